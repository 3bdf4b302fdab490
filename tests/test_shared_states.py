"""States of all parameters together: kept once, saved, on one clock, with the same bits everywhere."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from generator import catalogue, interpret, ir
from generator.interpret import Exact
from generator.verify import defaults

SHAPES = ((3, 4), (5,), ())
HYPERS = {"lr": 0.01, "kappa": 1e-3}
NAMES = ("sgd_hd", "adamw_hd", "momentum_hd_beta")


def problem(
    steps: int, missing: bool = False, kinds: Any = ("float32",) * 3
) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(7)
    params = [rng.standard_normal(s).astype(k) for s, k in zip(SHAPES, kinds, strict=True)]
    grads: list[list[Any]] = [
        [np.asarray(rng.standard_normal(s)).astype(k) for s, k in zip(SHAPES, kinds, strict=True)]
        for _ in range(steps)
    ]
    if missing:
        for i, gs in enumerate(grads):
            gs[i % 3] = None
    return [np.asarray(p) for p in params], grads


def reference(name: str, params: list[Any], grads: list[list[Any]], **hypers: Any) -> list[Exact]:
    """The lowered program, node by node, over all parameters."""
    (entry,) = catalogue.entries([name])
    given = {**defaults(entry.program), **hypers}
    runs = [
        Exact(entry.lowered, p.copy(), dtype=np.dtype("float64" if p.dtype == "float64" else "float32"))
        for p in params
    ]
    for r in runs:
        r.start(given)
    for gs in grads:
        interpret.step(runs, gs, given)
    return runs


def same(arrays: Any, runs: list[Exact]) -> None:
    for x, r in zip(arrays, runs, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(r.theta).tobytes()


SPEC = '''
from generator.language import *

p, q, w, h, u, D = names("p q w h u D")


@optimizer
def two_levels(lr: NonNegative = 1e-2, kappa: NonNegative = 1e-3):
    """States that read each other before, between and after two sums.

    Source: this test.
    """
    h[0] = lr
    w[0] = q[0] = 1
    D[0] = 0
    w[t] = sqrt(h[t-1] * 2) + w[t-1] / 3
    u[t] = g[t] * (1 + w[t-1] * w[t-1])
    p[t] = global_sum(u[t] * D[t-1])
    h[t] = h[t-1] + kappa * global_norm(u[t] / (1 + abs(p[t]))) * (1 - 0.5**t)
    q[t] = h[t-1]
    D[t] = -g[t] / h[t] * q[t-1]
    theta[t] = theta[t-1] - h[t] * g[t]
'''


@pytest.fixture
def two_levels(tmp_path: Any) -> catalogue.Entry:
    file = tmp_path / "two_levels.py"
    file.write_text(SPEC)
    (entry,) = catalogue.load(file)
    return entry


def test_where_states_are_computed(two_levels: catalogue.Entry) -> None:
    """Once, in the pass in which they are known; what old states alone give is there before the first."""
    lowered = two_levels.lowered
    assert [s.name for s in lowered.shared_states] == ["h", "w", "q"]
    assert [s.name for s in lowered.tensor_states] == ["D"] == [name for name, _ in lowered.new_states]
    first, second = lowered.passes
    assert isinstance(first, ir.Pass) and isinstance(second, ir.Pass)
    assert {"w": "w", "q": "shared.h_prev"}.items() <= dict(first.exports).items()
    assert dict(second.exports)["h"] == "h"
    assert "w_prev_squared" in {v.name for v in first.partials}  # type: ignore[union-attr]
    assert not any("global" in repr(v) for v in lowered.step)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "tensorflow"])
def test_two_levels_have_the_same_bits(two_levels: catalogue.Entry, backend: str) -> None:
    pytest.importorskip(backend)
    from generator import verify

    dtypes = ("float32", "float64")
    rows = verify.job(two_levels.spec.file, f"backends.{backend}", 6, dtypes, "cpu", brief=verify.Brief())
    assert all(r["ulp"] == 0 for r in rows), rows
    assert any(r["cases"] for r in rows)


def test_regions_that_set_one_are_refused() -> None:
    (entry,) = catalogue.entries(["sgd_hd > accumulate"])
    with pytest.raises(catalogue.NotAvailable, match="a sum over all parameters inside a region"):
        _ = entry.lowered


# ---------------------------------------------------------------------------------------------------
# NumPy


def numpy_run(name: str, params: list[Any], grads: list[list[Any]], **hypers: Any) -> Any:
    from generated import numpy as package

    optimizer = package.create(name, params, **hypers)
    for gs in grads:
        optimizer.step(gs)
    return optimizer


@pytest.mark.parametrize("name", NAMES)
def test_one_clock(name: str) -> None:
    """A parameter without a gradient sits out; the clock and what is shared go on."""
    params, grads = problem(7, missing=True, kinds=("float32", "float64", "float16"))
    runs = reference(name, params, grads, **HYPERS)
    optimizer = numpy_run(name, params, grads, **HYPERS)
    same(params, runs)
    assert {r.t for r in runs} == {7} == {x["step"] for x in optimizer.shared.values()}
    state = next(iter(optimizer.method.shared_states))
    assert optimizer.shared["float64"][state] == runs[1].state[state]
    assert optimizer.shared["float32"][state] == runs[0].state[state] == runs[2].state[state]
    optimizer.step([None] * 3)  # a step of nobody
    assert {x["step"] for x in optimizer.shared.values()} == {7}


def test_the_order_of_parameters_does_not_matter() -> None:
    params, grads = problem(5)
    turned = [p.copy() for p in params[::-1]]
    numpy_run("adamw_hd", params, grads, **HYPERS)
    numpy_run("adamw_hd", turned, [gs[::-1] for gs in grads], **HYPERS)
    assert [p.tobytes() for p in params] == [p.tobytes() for p in turned[::-1]]


def test_numpy_goes_on() -> None:
    params, grads = problem(9, missing=True)
    runs = reference("adamw_hd", params, grads, **HYPERS)
    first = numpy_run("adamw_hd", params, grads[:4], **HYPERS)
    numbers = json.loads(json.dumps(first.state_dict()["shared"]))  # plain numbers
    second = numpy_run("adamw_hd", params, [], **HYPERS)
    second.load_state_dict({**first.state_dict(), "shared": numbers})
    for gs in grads[4:]:
        second.step(gs)
    same(params, runs)
    with pytest.raises(ValueError, match="expected are learnt_lr, step in float32"):
        second.load_state_dict({**first.state_dict(), "shared": {"float32": {"step": 3}}})
    with pytest.raises(ValueError, match="expected are learnt_lr, step in float32"):
        second.load_state_dict({k: v for k, v in first.state_dict().items() if k != "shared"})


def test_numpy_refuses_to_drive_it() -> None:
    from generated.numpy import SGDHD, Cosine

    with pytest.raises(TypeError, match=r"lr is where learnt_lr begins.*cannot be a schedule"):
        SGDHD(np.ones(3), lr=Cosine(0.1, total=10))
    optimizer = SGDHD(np.ones(3))
    optimizer.lr = 0.1  # it has not begun yet
    optimizer.step(np.ones(3))
    with pytest.raises(ValueError, match="lr is where learnt_lr began, and changes nothing any more"):
        optimizer.lr = 0.2
    optimizer.kappa = 1e-3


# ---------------------------------------------------------------------------------------------------
# PyTorch


def torch_run(name: str, params: list[Any], grads: list[list[Any]], **hypers: Any) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from generated import torch as package

    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = package.create(name, tensors, **hypers)
    torch_steps(optimizer, tensors, grads)
    return optimizer, tensors


def torch_steps(optimizer: Any, tensors: Any, grads: list[list[Any]]) -> None:
    import torch

    for gs in grads:
        for p, g in zip(tensors, gs, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        optimizer.step()


def test_torch_goes_on() -> None:
    torch = pytest.importorskip("torch")
    params, grads = problem(9, missing=True, kinds=("float32", "float64", "float32"))
    runs = reference("adamw_hd", params, grads, **HYPERS)
    first, tensors = torch_run("adamw_hd", params, grads[:4], **HYPERS)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = type(first)(tensors, **HYPERS)
    second.load_state_dict(saved)
    kept = second.state_dict()
    before = float(kept["param_groups"][0]["shared"]["float32"]["learnt_lr"])
    torch_steps(second, tensors, grads[4:])
    same([p.detach().numpy() for p in tensors], runs)
    # What state_dict gave is not what the run goes on with.
    assert float(kept["param_groups"][0]["shared"]["float32"]["learnt_lr"]) == before
    for wrong in ({"float32": {"step": 1}}, {}):
        saved["param_groups"][0]["shared"] = wrong
        with pytest.raises(ValueError, match="for all parameters of param group 0 together"):
            second.load_state_dict(saved)
    del saved["param_groups"][0]["shared"]
    with pytest.raises(ValueError, match="for all parameters of param group 0 together"):
        second.load_state_dict(saved)


def test_torch_groups() -> None:
    """Sums go over all groups; each has its own start, step size and state."""
    torch = pytest.importorskip("torch")
    from generated.torch import SGDHD

    params, grads = problem(6)
    a, b, c = (torch.nn.Parameter(torch.tensor(p)) for p in params)
    groups = [{"params": [a], "lr": 0.02}, {"params": [b, c], "kappa": 1e-4}]
    optimizer = SGDHD(groups, lr=0.01, kappa=1e-3)
    torch_steps(optimizer, (a, b, c), grads)
    total, slopes = 0.0, [np.zeros_like(p) for p in params]
    for gs in grads:
        total += sum(float(np.vdot(g, s)) for g, s in zip(gs, slopes, strict=True))
        slopes = [-g for g in gs]
    first, second = (g["shared"]["float32"] for g in optimizer.param_groups)
    assert float(first["learnt_lr"]) == pytest.approx(0.02 - 1e-3 * total, rel=1e-5)
    assert float(second["learnt_lr"]) == pytest.approx(0.01 - 1e-4 * total, rel=1e-5)
    # A group that comes later begins its own clock.
    d = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [d]})
    torch_steps(optimizer, (a, b, c, d), [[*grads[0], np.ones(2, np.float32)]])
    steps = [g["shared"]["float32"]["step"] for g in optimizer.param_groups]
    assert steps == [7, 7, 1] and optimizer.state[d]["step"] == 1


def test_groups_alike_are_one() -> None:
    torch = pytest.importorskip("torch")
    from generated.torch import AdamWHD

    params, grads = problem(6, missing=True)
    runs = reference("adamw_hd", params, grads, **HYPERS)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = AdamWHD([{"params": [p]} for p in tensors], **HYPERS)
    torch_steps(optimizer, tensors, grads)
    same([p.detach().numpy() for p in tensors], runs)


def test_torch_refuses_to_drive_it() -> None:
    torch = pytest.importorskip("torch")
    from generated.torch import SGDHD, Cosine

    params, grads = problem(2)
    for attach in (lambda o: torch.optim.lr_scheduler.StepLR(o, 3), lambda o: Cosine(o, total=10)):
        tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        optimizer = SGDHD(tensors)
        attach(optimizer)
        with pytest.raises(ValueError, match="lr of param group 0 is where learnt_lr begins"):
            torch_steps(optimizer, tensors, grads)
        same([p.detach().numpy() for p in tensors], reference("sgd_hd", params, []))
    optimizer, tensors = torch_run("sgd_hd", params, grads)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="no scheduler can drive it"):
        optimizer.step()


def test_torch_waits_for_no_number() -> None:
    """What is learnt stays a tensor: nothing is read back."""
    torch = pytest.importorskip("torch")
    params, grads = problem(2)
    optimizer, _ = torch_run("sgd_hd", params, grads)
    assert isinstance(optimizer.param_groups[0]["shared"]["float32"]["learnt_lr"], torch.Tensor)


# ---------------------------------------------------------------------------------------------------
# JAX


@pytest.mark.parametrize("name", NAMES)
def test_jax_scans(name: str) -> None:
    """One compiled loop over all steps, `init` inside; and eager steps after half of them."""
    jax = pytest.importorskip("jax")
    from generated import jax as package

    params, grads = problem(8)
    runs = reference(name, params, grads, **HYPERS)
    optimizer = package.create(name, **HYPERS)
    stacked = [np.stack(gs) for gs in zip(*grads, strict=True)]

    @jax.jit
    def train(params: Any, stacked: Any) -> Any:
        def one(carry: Any, gs: Any) -> Any:
            return optimizer.step(carry[0], gs, carry[1]), None

        return jax.lax.scan(one, (params, optimizer.init(params)), stacked)[0]

    same(train(params, stacked)[0], runs)
    half, state = train(params, [x[:4] for x in stacked])
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [jax.numpy.asarray(np.asarray(x)) for x in leaves])  # saved, loaded
    for gs in grads[4:]:
        half, state = optimizer.step(half, gs, state)
    same(half, runs)
    learnt = next(iter(runs[0].lowered.shared_states)).name
    assert float(state.scalars["float32"][learnt]) == runs[0].state[learnt]


def test_jax_sweeps() -> None:
    """A sweep over kappa under vmap has the bits of its runs."""
    jax = pytest.importorskip("jax")
    from generated.jax import sgd_hd

    params, grads = problem(5)

    def run(kappa: Any) -> Any:
        optimizer = sgd_hd(0.01, kappa=kappa)
        now, state = params, optimizer.init(params)
        for gs in grads:
            now, state = optimizer.step(now, gs, state)
        return now

    kappas = np.array([0.0, 1e-3, 1e-2], np.float32)
    swept = jax.jit(jax.vmap(run))(kappas)
    for i, kappa in enumerate(kappas):
        same([x[i] for x in swept], reference("sgd_hd", params, grads, lr=0.01, kappa=float(kappa)))


def test_jax_refuses_a_schedule() -> None:
    pytest.importorskip("jax")
    from generated.jax import cosine, sgd_hd

    with pytest.raises(TypeError, match="learning_rate is needed before the first step"):
        sgd_hd(cosine(0.1, total=10))


# ---------------------------------------------------------------------------------------------------
# Keras


def keras_run(optimizer: Any, variables: Any, grads: list[list[Any]]) -> None:
    import tensorflow as tf

    for gs in grads:
        optimizer.apply([None if g is None else tf.constant(g) for g in gs], variables)


@pytest.mark.parametrize("missing", [False, True])
def test_keras_goes_on(missing: bool, tmp_path: Any) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from generated.tensorflow import AdamWHD

    params, grads = problem(8, missing, kinds=("float32", "float16", "float32"))
    runs = reference("adamw_hd", params, grads, lr=float(np.float32(0.01)), kappa=1e-3)
    variables = [keras.Variable(p, dtype=p.dtype.name) for p in params]
    first = AdamWHD(0.01, kappa=1e-3)
    keras_run(first, variables, grads[:4])
    second = AdamWHD.from_config(first.get_config())
    second.build(variables)
    kept: dict[str, Any] = {}
    first.save_own_variables(kept)
    second.load_own_variables(kept)
    keras_run(second, variables, grads[4:])
    same([v.numpy() for v in variables], runs)
    (learnt,) = (v for v in second.variables if v.name == "learnt_lr_float32")
    assert learnt.numpy() == runs[0].state["learnt_lr"]


def test_keras_decay_of_some() -> None:
    """Variables that do not decay learn the same rate."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from generated.tensorflow import AdamWHD

    params, grads = problem(5)
    variables = [keras.Variable(p) for p in params]
    optimizer = AdamWHD(0.01, kappa=1e-3, weight_decay=0.1)
    optimizer.exclude_from_weight_decay([variables[1]])
    keras_run(optimizer, variables, grads)
    (entry,) = catalogue.entries(["adamw_hd"])
    hypers = {**defaults(entry.program), "lr": float(np.float32(0.01)), "kappa": 1e-3, "weight_decay": 0.1}
    runs = [Exact(entry.lowered, p.copy()) for p in params]
    for r in runs:
        r.start(hypers)
    for gs in grads:
        mine = [
            (r, r.begin(g, {**hypers, "weight_decay": 0.0} if i == 1 else hypers, None, {}))
            for i, (r, g) in enumerate(zip(runs, gs, strict=True))
        ]
        (p,) = entry.lowered.passes
        assert isinstance(p, ir.Pass)
        sums = []
        for r, names in mine:
            interpret.evaluate(p.partials, names, interpret.EXACT, r.literal)
            sums.append(names[str(p.sums[0][1])])
        for r, names in mine:
            r.follow(p, {f"total.{p.sums[0][0]}": interpret.total(sums)}, names)
            r.finish(names)
    same([v.numpy() for v in variables], runs)


def test_keras_refuses_to_drive_it() -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from generated.tensorflow import SGDHD, Cosine, MomentumHDBeta

    with pytest.raises(TypeError, match=r"learning_rate is where learnt_lr begins.*cannot be a schedule"):
        SGDHD(Cosine(0.1, total=10))
    optimizer = SGDHD(0.1)
    optimizer.learning_rate = 0.2
    optimizer.build([keras.Variable(np.ones(3, np.float32))])
    with pytest.raises(ValueError, match="learning_rate is where learnt_lr began"):
        optimizer.learning_rate = 0.3
    optimizer.kappa = 1e-3
    MomentumHDBeta(Cosine(0.1, total=10))  # of what is not learnt, a schedule is as good as ever
