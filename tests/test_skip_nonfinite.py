"""skip_nonfinite: a step with a bad gradient anywhere leaves everything as it was, and is counted."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import papers
import pytest

import backends
from backends.running import Run
from generator import catalogue, interpret, verify
from generator.errors import SpecError
from generator.interpret import Exact
from generator.verify import Case, defaults

CHAINS = ("adam > skip_nonfinite", "clip_by_global_norm > nadam > skip_nonfinite", "sgd_hd > skip_nonfinite")
BAD = {0: (0, np.nan), 3: (2, np.inf), 4: (1, -np.inf), 7: (2, np.nan)}  # step: parameter, value
SHAPES = ((), (7,), (4, 3))


def problem(dtype: str = "float32", steps: int = 9) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(9)
    params = [np.asarray(rng.standard_normal(s)).astype(dtype) for s in SHAPES]
    grads = [[np.asarray(rng.standard_normal(s)).astype(dtype) for s in SHAPES] for _ in range(steps)]
    for step, (i, value) in BAD.items():
        if step < steps:
            grads[step][i].flat[-1] = value
    return params, grads


def entry_of(chain: str) -> catalogue.Entry:
    (entry,) = catalogue.entries([chain])
    return entry


@pytest.mark.parametrize("inner", ["adam", "radam", "clip_by_norm > adamw", "sgd_hd", "adamw > lookahead"])
def test_it_is_the_run_without_those_steps(inner: str) -> None:
    """To the bit: parameters, states and t are those of a run in which the bad steps never were."""
    params, grads = problem()
    entry, plain = entry_of(f"{inner} > skip_nonfinite"), entry_of(inner)
    hypers = defaults(entry.program)
    ours = [Exact(entry.lowered, p.copy()) for p in params]
    want = [Exact(plain.lowered, p.copy()) for p in params]
    for r in (*ours, *want):
        r.start(hypers)
    done = papers.skip_nonfinite(grads)
    assert done == [step not in BAD for step in range(len(grads))]
    for happens, gs in zip(done, grads, strict=True):
        interpret.step(ours, gs, hypers)
        if happens:
            interpret.step(want, gs, hypers)
        for a, b in zip(ours, want, strict=True):
            assert a.theta.tobytes() == b.theta.tobytes() and a.t == b.t
            for name, value in b.state.items():
                assert np.asarray(a.state[name]).tobytes() == np.asarray(value).tobytes(), name
    assert ours[0].state["skipped"] == len(BAD)


def package_of(backend: str, chain: str, folder: Path) -> Any:
    made = backends.load(f"backends.{backend}")
    return verify.built([entry_of(chain)], made, folder)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "tensorflow"])
def test_the_same_bits(backend: str, chain: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    record = backends.load(f"backends.{backend}")
    runner: Any = importlib.import_module(record.runner)
    package, entry = package_of(backend, chain, tmp_path), entry_of(chain)
    for dtype in ("float32", "float64"):
        params, grads = problem(dtype)
        case = Case("bad", params, grads, defaults(entry.program))
        want = verify.reference(entry.lowered, None, case, dtype, runner.POLICY)
        for mode in record.modes:
            if mode == "update" or (mode in runner.POLICY.compiled and dtype == "float64"):
                continue
            run = Run(package, entry.program.name, params, grads, case.hypers, None, "cpu")
            got = runner.trajectory(run, mode)
            gap = verify.compared(want, got, np.dtype(dtype))
            assert gap.ulp == 0, (mode, dtype, gap)
            assert float(got.states[0]["skipped"]) == len(BAD)


def test_torch_goes_on(tmp_path: Path) -> None:
    """The count is a tensor; it is saved, loaded and goes on."""
    torch = pytest.importorskip("torch")
    package = package_of("torch", CHAINS[0], tmp_path)
    params, grads = problem()
    case = Case("bad", params, grads, defaults(entry_of(CHAINS[0]).program))
    want = verify.reference(entry_of(CHAINS[0]).lowered, None, case, "float32", verify.Policy())
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = package.create("adam_skip_nonfinite", tensors)
    for step, gs in enumerate(grads):
        if step == 5:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = package.create("adam_skip_nonfinite", tensors)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
            assert isinstance(optimizer.param_groups[0]["shared"]["float32"]["step"], torch.Tensor)
        for p, g in zip(tensors, gs, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    assert all(p.detach().numpy().tobytes() == w.tobytes() for p, w in zip(tensors, want.params, strict=True))
    assert int(optimizer.param_groups[0]["shared"]["float32"]["step"]) == len(grads) - len(BAD)


def test_torch_powers_where_nothing_is_looked_at(tmp_path: Path) -> None:
    """On a device the exponent is a tensor that no host reads; the bits are the same."""
    torch = pytest.importorskip("torch")
    from generated.torch import runtime

    for base in (0.9, 0.999, 1.5, -0.3, 0.0):
        for k in (0, 1, 2, 3, 7, 100, 12345, -5):
            x = torch.tensor(base, dtype=torch.float64)
            if base or k >= 0:
                assert float(runtime._power_there(x, torch.tensor(k))) == runtime.power(base, k)


def test_jax_scans(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    package = package_of("jax", CHAINS[0], tmp_path)
    params, grads = problem()
    case = Case("bad", params, grads, defaults(entry_of(CHAINS[0]).program))
    want = verify.reference(entry_of(CHAINS[0]).lowered, None, case, "float32", verify.Policy())
    optimizer = package.create("adam_skip_nonfinite")
    stacked = [np.stack(gs) for gs in zip(*grads, strict=True)]

    @jax.jit
    def train(params: Any, stacked: Any) -> Any:
        def one(carry: Any, gs: Any) -> Any:
            return optimizer.step(carry[0], gs, carry[1]), None

        return jax.lax.scan(one, (params, optimizer.init(params)), stacked)[0]

    got, state = train(params, stacked)
    assert all(np.asarray(p).tobytes() == w.tobytes() for p, w in zip(got, want.params, strict=True))
    assert int(state.count) == len(grads) - len(BAD)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("sgd > skip_nonfinite > lookahead", "lookahead counts steps that sgd_skip_nonfinite does not"),
        ("sgd > skip_nonfinite > skip_nonfinite", "skips steps already"),
        ("nesterov > skip_nonfinite", "nesterov has its own say about the gradient"),
        ("adan > skip_nonfinite", "adan has its own say about the gradient"),
    ],
)
def test_refused(chain: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _ = entry_of(chain).lowered
    assert message.replace("sgd_skip_nonfinite", "sgd") in str(caught.value)


def test_states_of_some_parameters_have_no_code_yet() -> None:
    with pytest.raises(catalogue.NotAvailable, match="which only some parameters have"):
        _ = entry_of("adafactor > skip_nonfinite").lowered
