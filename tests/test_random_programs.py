"""As written is as executed: random programs have the bits of the lowered program in every mode."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import programs
import pytest

from backends import discover
from backends.running import KernelInput
from generator import render
from generator.ir import values_of

BACKENDS = discover()
MODES = [(b, m) for b, backend in BACKENDS.items() for m in backend.modes]
COUNT = 100
# A hundred programs in one compiled function where that is cheap; inductor and XLA need a second or two a
# program, so there each mode and dtype has some of the hundred, other ones than the last.
SEEDS = {
    ("torch", "fused"): 5,
    ("jax", "eager"): 5,
    ("jax", "op by op"): 5,
    ("jax", "jit"): 8,
    ("jax", "update"): 5,
    ("tensorflow", "eager"): 5,
    ("tensorflow", "graph"): 5,
    ("tensorflow", "xla"): 5,
}
FIRST = dict(zip(SEEDS, itertools.accumulate((2 * n for n in SEEDS.values()), initial=0), strict=False))


def generated(tmp_path, monkeypatch, name, made):
    """The rendered modules of some programs, imported from a package of their own."""
    backend = BACKENDS[name]
    package = f"random_{name}_{tmp_path.name}"
    files = {"__init__.py": "", "optimizers/__init__.py": "", "runtime.py": render.runtime(backend)}
    for m in made:
        files[f"optimizers/{m.lowered.program.name}.py"] = render.render(m.lowered, backend)
    render.write(files, tmp_path / package)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return [
        importlib.import_module(f"{package}.optimizers.{m.lowered.program.name}") for m in made
    ]


def compare(made, inputs, outputs, steps):
    wrong = []
    compared = 0
    for m, x, y in zip(made, inputs, outputs, strict=True):
        want = programs.reference(m, x.theta, x.g, steps)
        compared += int(want.valid.sum())
        ok = programs.same(want.theta, y.theta) | ~want.valid
        for state, value in y.state.items():
            if value is None or want.state[state] is None:
                assert value is want.state[state], state
            elif value.shape == want.theta.shape:
                ok &= programs.same(want.state[state], value) | ~want.valid
            elif want.valid.all():
                assert float(want.state[state]) == pytest.approx(float(value), abs=0, nan_ok=True)
        if not ok.all():
            where = np.flatnonzero(~ok)[:3]
            wrong.append((m.lowered.program.name, int((~ok).sum()), where, want.theta[where]))
    assert not wrong, f"{len(wrong)} of {len(made)} programs differ: {wrong[:5]}"
    assert compared > 0.5 * sum(x.theta.size for x in inputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "mode"), MODES, ids=lambda x: x)
def test_random_programs(name, mode, dtype, tmp_path, monkeypatch):
    pytest.importorskip({"numpy": "numpy"}.get(name, name))
    steps = 3
    count = SEEDS.get((name, mode), COUNT)
    first = FIRST.get((name, mode), 0) + (dtype == "float64") * (count % COUNT)
    seeds = [seed % COUNT for seed in range(first, first + count)]
    made = [programs.make(seed) for seed in seeds]
    modules = generated(tmp_path, monkeypatch, name, made)
    inputs = []
    for seed, m in zip(seeds, made, strict=True):
        theta, g = programs.ordinary(seed, dtype)
        inputs.append(KernelInput(theta, g, m.hypers, steps))
    runner = importlib.import_module(BACKENDS[name].runner)
    compare(made, inputs, runner.kernels(modules, mode, inputs), steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "mode"), MODES, ids=lambda x: x)
def test_special_values(name, mode, dtype, tmp_path, monkeypatch):
    pytest.importorskip({"numpy": "numpy"}.get(name, name))
    made = [programs.single(op) for op in programs.TENSOR_OPS]
    modules = generated(tmp_path, monkeypatch, name, made)
    theta, g = programs.special_pairs(dtype)
    inputs = [KernelInput(theta, g, {}, 1) for _ in made]
    runner = importlib.import_module(BACKENDS[name].runner)
    compare(made, inputs, runner.kernels(modules, mode, inputs), 1)


def test_every_operation_is_drawn():
    drawn = set()
    for seed in range(COUNT):
        lowered = programs.make(seed).lowered
        drawn |= {v.op for v in values_of((*lowered.step, *lowered.scalars))}
    sums = {"sum", "mean", "row_sum", "row_mean", "col_sum", "col_mean", "matrix"}
    wanted = {*programs.TENSOR_OPS, *sums, "real_power", "exp", "log", "cos", "power"}
    assert wanted <= drawn


