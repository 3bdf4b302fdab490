"""Sums at their edges: zeros, one NaN, no numbers, one row, one column, many axes, missing gradients."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import discover
from backends.running import Outcome, Run
from generator import catalogue, interpret, summation, verify
from generator.verify import Case

MODES = {"numpy": "numpy", "torch": "eager", "jax": "jit", "tensorflow": "eager"}
SPECS = ("lars", "lamb", "adafactor", "clip_by_global_norm > adamw", "adamw_sam")
# Those that take gradients elsewhere, evaluate elsewhere, or read a Hessian's diagonal.
OTHERS = ("svrg", "storm", "schedule_free_sgd", "schedule_free_adamw", "sophia", "adahessian")
SHAPES = ((3, 4), (1, 5), (5, 1), (), (0, 4), (2, 3, 4, 5))


def case(entry: catalogue.Entry) -> Case:
    rng = np.random.default_rng(4)
    params = [np.asarray(rng.standard_normal(s)).astype(np.float32) for s in SHAPES]
    params[0] *= 0  # a norm of 0
    grads: list[list[Any]] = []
    for step in range(6):
        made: list[Any] = [np.asarray(rng.standard_normal(s)).astype(np.float32) for s in SHAPES]
        if step in (1, 2):
            made = [x * 0 for x in made]  # norms of 0 of everything
        if step == 5:
            made[5][1, 2, 3, 4] = np.nan
        grads.append(made)
    return verify._extended(Case("edges", params, grads, verify.defaults(entry.program)), entry.lowered)


@pytest.mark.parametrize("backend", MODES)
@pytest.mark.parametrize("spec", SPECS + OTHERS)
def test_edges(spec: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    (entry,) = catalogue.entries([spec])
    record = discover()[backend]
    runner: Any = importlib.import_module(record.runner)
    c = case(entry)
    want = verify.reference(entry.lowered, None, c, "float32", runner.POLICY)
    package = verify.built([entry], record, tmp_path)
    run = Run(package, entry.program.name, c.params, c.grads, c.hypers, further=c.further, given=c.given)
    got: Outcome = runner.trajectory(run, MODES[backend])
    gap = verify.compared(want, got, np.float32)
    assert gap.ulp == 0, gap.where
    finite = [bool(np.isfinite(p).all()) for p in got.params]
    # One NaN is its own tensor's matter, unless a norm is of everything; SAM takes one that is NaN for 0.
    everything = [p.size == 0 for p in got.params]
    assert finite == (everything if ">" in spec else [True] * 5 + [False])


def test_zero_gradients_leave_no_nan() -> None:
    for spec in SPECS + OTHERS:
        (entry,) = catalogue.entries([spec])
        if entry.lowered.given:  # a further gradient
            continue
        run = interpret.Exact(entry.lowered, np.ones((2, 3), np.float32))
        for _ in range(2):
            run.step(np.zeros((2, 3), np.float32), verify.defaults(entry.program))
        assert np.isfinite(run.theta).all(), spec


@pytest.mark.parametrize(
    "spec", ["lars", "adafactor", "storm", "adamw_sam", "schedule_free_sgd", "schedule_free_adamw"]
)
def test_training_is_one_jitted_function(spec: str) -> None:
    """The start of the states, gradients and steps in one function; NumPy's bits come out.

    Halves and quarters of parameters are gradients that no compiler rounds in its own way.
    """
    jax = pytest.importorskip("jax")
    jaxs, numpys = (importlib.import_module(f"generated.{x}") for x in ("jax", "numpy"))
    rng = np.random.default_rng(3)
    params = {str(s): np.asarray(rng.standard_normal(s)).astype(np.float32) for s in SHAPES}
    factors = {k: np.float32((0.5, 0.0, 0.25)[i % 3]) for i, k in enumerate(params)}

    def gradient(params: Any) -> Any:
        return {k: p * factors[k] for k, p in params.items()}

    optimizer = jaxs.create(spec)
    several = spec in ("storm", "adamw_sam")

    @jax.jit
    def trained(params: Any) -> Any:
        def one(carry: Any, _: None) -> Any:
            params, state = carry
            return optimizer.step(params, gradient if several else gradient(params), state), None

        return jax.lax.scan(one, (params, optimizer.init(params)), length=3)[0][0]

    got = jax.block_until_ready(trained(params))  # it may still read what NumPy changes
    reference = numpys.create(spec, params)
    for _ in range(3):
        reference.step(gradient)
    for k, p in params.items():
        assert verify.distance(p, np.asarray(got[k])) == 0, k


# --------------------------------------------------------------------------------------------------
# The sum itself


def by_hand(x: list[Any]) -> Any:
    """The order of additions, once more: halves of a power of two."""
    n = len(x)
    if n == 1:
        return x[0]
    half = 1 << ((n - 1).bit_length() - 1)
    return by_hand([x[i] + x[i + half] if i + half < n else x[i] for i in range(half)])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 100, 1000])
def test_the_order_of_additions(n: int) -> None:
    x = (np.random.default_rng(n).standard_normal(n) * 1e3).astype(np.float32)
    assert summation.tree_sum(x) == by_hand(list(x))
    m = np.stack([x, x[::-1], -x])
    assert [float(v) for v in summation.row_sum(m)[:, 0]] == [float(by_hand(list(r))) for r in m]
    assert np.array_equal(summation.col_sum(m.T)[0], summation.row_sum(m)[:, 0])


def test_blocks_are_added_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summation, "BLOCK", 8)
    x = np.random.default_rng(0).standard_normal(75).astype(np.float32)
    parts = [by_hand(list(x[i : i + 8])) for i in range(0, 75, 8)]
    blocks = [by_hand(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    assert summation.tree_sum(x) == by_hand(blocks)
    assert summation.col_sum(x[:, None])[0, 0] == by_hand(blocks)


def test_sums_of_nothing_and_of_zeros() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert summation.tree_sum(empty) == 0 and summation.tree_mean(empty) == 0
    assert summation.row_sum(empty).shape == (0, 1)
    assert np.array_equal(summation.col_sum(empty), [[0, 0, 0]])
    assert np.signbit(summation.tree_sum(np.array([-0.0, -0.0, -0.0], np.float32)))


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_large_sums_have_the_same_bits(framework: str) -> None:
    pytest.importorskip(framework)
    runtime = importlib.import_module(f"generated.{framework}.runtime")
    x = np.random.default_rng(1).standard_normal((3, 70_001)).astype(np.float32)
    for name in ("tree_sum", "tree_mean", "row_sum", "col_sum", "row_mean", "col_mean"):
        for value in (x, x.T.copy()):
            got = np.asarray(getattr(runtime, name)(tensor(framework, value)))
            assert verify.distance(np.asarray(getattr(summation, name)(value), np.float32), got) == 0


def tensor(framework: str, value: Any) -> Any:
    module = importlib.import_module({"jax": "jax.numpy"}.get(framework, framework))
    word = {"torch": "from_numpy", "jax": "asarray", "tensorflow": "constant"}[framework]
    return getattr(module, word)(value)


# --------------------------------------------------------------------------------------------------
# Means over all axes but one

SLICED = '''
from generator.language import *

u = names("u")


@optimizer
def sliced(lr: NonNegative = 1e-2):
    """Slices of both kinds; what is only repeated is divided by, too.

    Source: this test.
    """
    with case(matrix):
        u[t] = (g[t] - mean_but_first(g[t])) / (mean_but_last(g[t]**2) + 1e-3)
    with case(vector):
        u[t] = g[t]
    theta[t] = theta[t-1] - lr * u[t]
'''


@pytest.mark.parametrize("backend", MODES)
def test_slices_have_the_same_bits(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    file = tmp_path / "sliced.py"
    file.write_text(SLICED)
    rows = verify.job(str(file), f"backends.{backend}", 3, ("float32",), "cpu", brief=verify.Brief())
    assert [(r["mode"], r["where"], r["error"]) for r in rows if r["ulp"]] == []


def test_means_of_slices() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.allclose(summation.mean_but_first(x), x.mean((1, 2), keepdims=True))
    assert np.allclose(summation.mean_but_last(x), x.mean((0, 1)))
    for shape in ((0, 4), (4, 0), (2, 0, 3)):
        for function in (summation.mean_but_first, summation.mean_but_last):
            assert function(np.zeros(shape)).shape == shape


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_centralize_is_its_own_derivative(framework: str) -> None:
    """It is a projection: what comes back through it is what it makes of that."""
    pytest.importorskip(framework)
    package = importlib.import_module(f"generated.{framework}")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)

    def transformed(g: Any) -> Any:
        if framework == "jax":
            rule = package.centralize(outputs="last")
            return rule.update([g], rule.init([g]))[0][0]
        return package.centralize([g], outputs="last")[0]

    g, back = tensor(framework, x), tensor(framework, w)
    if framework == "torch":
        transformed(g.requires_grad_()).backward(back)
        got = g.grad
    elif framework == "jax":
        got = importlib.import_module("jax").vjp(transformed, g)[1](back)[0]
    else:
        with importlib.import_module("tensorflow").GradientTape() as tape:
            tape.watch(g)
            u = transformed(g)
        got = tape.gradient(u, g, back)
    np.testing.assert_allclose(got, w - w.mean((0, 1)), atol=1e-6)
