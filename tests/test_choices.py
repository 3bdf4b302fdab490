"""Regions that choices decide on: states and scalars exist where they happen, on every backend."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import elsewhere
import numpy as np
import pytest

from backends import discover
from generator import catalogue, facts, verify
from generator.check import check
from generator.compose import chain
from generator.errors import NotAvailable
from generator.interpret import Exact
from generator.lower import lower

BACKENDS = discover()

SPECS = '''
from generator.language import *

v, a, b, d, h, m, u, w, rate, scale = names("v a b d h m u w rate scale")


@optimizer("Momentous")
def momentous(lr: NonNegative = 1e-2, mu: Optional[Decay] = 0.9, dampening: Real = 0.1,
              nesterov: bool = False):
    """Stochastic gradient descent with or without momentum, of either kind.

    Source: this test.
    """
    with when(~equal(mu, None)):
        b[0] = 0
        b[t] = mu * b[t-1] + (1 - dampening) * g[t]
        with when(nesterov):
            d[t] = g[t] + mu * b[t]
        with otherwise():
            d[t] = b[t]
    with otherwise():
        d[t] = g[t]
    theta[t] = theta[t-1] - lr * d[t]


@optimizer("Centred")
def centred(lr: NonNegative = 1e-2, rho: Decay = 0.9, eps: Positive = 1e-8, start: NonNegative = 0.1,
            size: Choice["square", "max"] = "square", centered: bool = True, bias: bool = False):
    """RMSprop, centred or not, by squares or by maxima.

    Source: this test.
    """
    with when(equal(size, "square")):
        v[0] = 0
        v[t] = rho * v[t-1] + (1 - rho) * g[t]**2
        u[t] = v[t]
        with when(centered):
            a[0] = 0
            a[t] = rho * a[t-1] + (1 - rho) * g[t]
            d[t] = maximum(u[t] - a[t]**2, 0)
        with otherwise():
            d[t] = u[t]
    with when(equal(size, "max")):
        w[0] = start
        w[t] = maximum(rho * w[t-1], abs(g[t]))
        d[t] = w[t]**2
    with when(bias):
        rate[t] = lr / (1 - rho**t)
    with otherwise():
        rate[t] = lr
    theta[t] = theta[t-1] - rate[t] * where(equal(size, "max"), 0.5, 1) * (g[t] / (sqrt(d[t]) + eps))


@optimizer("Nested")
def nested(lr: NonNegative = 1e-2, mu: Decay = 0.9, max_norm: Optional[Positive] = 1.0,
           kind: Choice["norm", "rows", "none"] = "rows", k: PositiveCount = 3):
    """Choices inside of other regions, and sums over all parameters inside of choices.

    Source: this test.
    """
    scale[0] = 1
    with when(~equal(max_norm, None)):
        u[t] = g[t] * (max_norm / maximum(max_norm, global_norm(g[t])))
        scale[t] = 0.5 * scale[t-1] + max_norm
    with otherwise():
        u[t] = g[t]
    with when(equal(kind, "norm")):
        w[t] = u[t] / (1 + global_norm(u[t]))
    with otherwise():
        w[t] = u[t]
    with case(matrix):
        with when(equal(kind, "rows")):
            h[0] = 0
            h[t] = mu * h[t-1] + row_mean(w[t]**2)
            d[t] = w[t] / sqrt(h[t] + 1e-8)
        with otherwise():
            d[t] = w[t]
    with case(vector):
        d[t] = w[t]
    m[0] = 0
    with when(equal(t % k, 0)):
        with when(~equal(max_norm, None)):
            m[t] = mu * m[t-1] + d[t] * max_norm
        with otherwise():
            m[t] = mu * m[t-1] + d[t]
    with otherwise():
        m[t] = m[t-1] + d[t]
    theta[t] = theta[t-1] - lr * scale[t] * m[t]


@optimizer("Amounted")
def amounted(lr: NonNegative = 1e-2, mu: Decay = 0.9, rho: Decay = 0.0, nesterov: bool = False):
    """Momentum and a divisor, each where its number is above 0.

    Source: this test.
    """
    require(~nesterov | (mu > 0))
    with when(mu > 0):
        b[0] = 0
        b[t] = mu * b[t-1] + (1 - rho) * g[t]
        with when(nesterov):
            d[t] = g[t] + mu * b[t]
        with otherwise():
            d[t] = b[t]
    with when(~(mu > 0)):
        d[t] = g[t]
    with when((rho > 0) & (mu > 0)):
        v[0] = 0
        v[t] = rho * v[t-1] + (1 - rho) * d[t]**2
        u[t] = d[t] / (sqrt(v[t]) + 1e-8)
    with otherwise():
        u[t] = d[t]
    theta[t] = theta[t-1] - lr * u[t]


@optimizer("Still")
def still(lr: NonNegative = 1e-2, moves: bool = False):
    """A parameter that stays where nothing moves it.

    Source: this test.
    """
    with when(moves):
        theta[t] = theta[t-1] - lr * g[t]
'''
NAMES = ("momentous", "centred", "nested", "amounted", "still")
STATES = {
    "momentous": (({}, {"b"}), ({"nesterov": True}, {"b"}), ({"mu": None}, set())),
    "centred": (
        ({}, {"v", "a"}),
        ({"centered": False}, {"v"}),
        ({"size": "max"}, {"w"}),
        ({"size": "max", "centered": False, "bias": True}, {"w"}),
    ),
    "still": (({}, set()), ({"moves": True}, set())),
    "amounted": (
        ({}, {"b"}),
        ({"mu": 0.0}, set()),
        ({"rho": 0.5}, {"b", "v"}),
        ({"rho": 0.5, "mu": 0.0}, set()),
    ),
    "nested": (({}, {"h", "m"}), ({"kind": "norm"}, {"m"}), ({"max_norm": None}, {"h", "m"})),
}
# A set's text depends on the run's hash seed, and workers must agree on the names of tests.
CHOSEN = [
    pytest.param(name, chosen, there, id=f"{name}-{chosen}-{'+'.join(sorted(there)) or 'none'}")
    for name, cases in STATES.items()
    for chosen, there in cases
]
SHAPES = ((4, 3), (7,), ())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choices") / "choices.py"
    path.write_text(SPECS)
    return path


@pytest.fixture(scope="module")
def packages(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def package(name: str) -> Any:
        pytest.importorskip(name)
        if name not in made:
            folder = tmp_path_factory.mktemp(f"built_{name}")
            made[name] = verify.built(catalogue.entries([str(file)]), BACKENDS[name], folder)
        return made[name]

    return package


def inputs(steps: int = 6, seed: int = 0) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(seed)
    make = lambda: [np.asarray(rng.standard_normal(s), np.float32) for s in SHAPES]  # noqa: E731
    return make(), [make() for _ in range(steps)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits(backend: str, file: Path) -> None:
    try:
        importlib.import_module(BACKENDS[backend].runner)
    except ImportError as missing:
        pytest.skip(str(missing))
    dtypes = ("float32", "float64")
    brief = verify.Brief(True, len(BACKENDS), list(BACKENDS).index(backend))
    found = elsewhere.job(str(file), f"backends.{backend}", 20, dtypes, "cpu", brief=brief)
    assert not [r for r in found if r["ulp"] > 0]
    assert {r["spec"] for r in found if r["cases"]} == set(NAMES)


def test_every_choice_is_measured(file: Path) -> None:
    for entry in catalogue.entries([str(file)]):
        names = [c.name for c in verify.cases(entry.lowered, "float32", 20)]
        # Five of amounted's seven fulfil what it requires.
        expected = {"momentous": 3, "centred": 7, "nested": 5, "amounted": 5, "still": 1}[entry.program.name]
        assert len([n for n in names if "=" in n]) == expected


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mu", [None, 0.9])
def test_the_algorithm(mu: float | None, nesterov: bool, packages: Any) -> None:
    """Against SGD, written down in float64."""
    params, grads = inputs(20)
    optimizer = packages("numpy").Momentous(params, mu=mu, nesterov=nesterov)
    for g in grads:
        optimizer.step(g)
    theta, b = inputs()[0][0].astype(np.float64), 0.0
    for (g, *_) in grads:
        if mu is None:
            d = g
        else:
            b = mu * b + 0.9 * g
            d = g + mu * b if nesterov else b
        theta = theta - 1e-2 * d
    np.testing.assert_allclose(params[0], theta, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------
# States


@pytest.mark.parametrize(("name", "chosen", "there"), CHOSEN)
def test_states_exist_where_they_are_chosen(
    name: str, chosen: dict[str, Any], there: set[str], packages: Any, file: Path
) -> None:
    (entry,) = [e for e in catalogue.entries([str(file)]) if e.program.name == name]
    run = Exact(entry.lowered, np.ones((2, 2), np.float32))
    run.start({**verify.defaults(entry.program), **chosen})
    scalar = {s.name for s in entry.lowered.scalar_states}
    assert {k for k, x in run.state.items() if x is not None} - scalar == there
    params, grads = inputs(2)
    optimizer = packages("numpy").create(name, params, **chosen)
    for g in grads:
        optimizer.step(g)
    assert set(optimizer.state["[0]"]) == there | scalar | {"step"}


@pytest.mark.parametrize(("name", "chosen", "there"), CHOSEN)
def test_numpy_goes_on_from_what_it_saved(
    name: str, chosen: dict[str, Any], there: set[str], packages: Any
) -> None:
    params, grads = inputs()
    one = packages("numpy").create(name, params, **chosen)
    other = [p.copy() for p in params]
    for g in grads[:3]:
        one.step(g)
    saved, now = one.state_dict(), [p.copy() for p in params]
    for g in grads[3:]:
        one.step(g)
    again = packages("numpy").create(name, now, **chosen)
    again.load_state_dict(saved)
    for g in grads[3:]:
        again.step(g)
    assert all(np.array_equal(p, q) for p, q in zip(params, now, strict=True))
    for different, others in STATES[name]:
        if others != there:
            stranger = packages("numpy").create(name, other, **different)
            with pytest.raises(ValueError, match="expected is"):
                stranger.load_state_dict(saved)


@pytest.mark.parametrize(("name", "chosen", "there"), CHOSEN)
def test_torch_goes_on_from_what_it_saved(
    name: str, chosen: dict[str, Any], there: set[str], packages: Any
) -> None:
    import torch

    def stepped(optimizer: Any, params: Any, grads: Any) -> None:
        for gs in grads:
            for p, g in zip(params, gs, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()

    start, grads = inputs()
    params = [torch.nn.Parameter(torch.tensor(p)) for p in start]
    one = packages("torch").create(name, params, **chosen)
    stepped(one, params, grads[:3])
    now = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = packages("torch").create(name, now)  # of other choices: the checkpoint brings its own
    again.load_state_dict(one.state_dict())
    assert {**again.param_groups[0], **chosen} == again.param_groups[0]
    assert there <= set(again.state[now[0]])
    stepped(one, params, grads[3:])
    stepped(again, now, grads[3:])
    assert all(torch.equal(p, q) for p, q in zip(params, now, strict=True))


@pytest.mark.parametrize(("name", "chosen", "there"), CHOSEN)
def test_jax_under_jit_and_scan(
    name: str, chosen: dict[str, Any], there: set[str], packages: Any
) -> None:
    import jax
    import jax.numpy as jnp

    start, grads = inputs()
    optimizer = packages("jax").create(name, **chosen)
    params = [jnp.asarray(p) for p in start]
    state = optimizer.init(params)
    assert {k for k, x in state.tensors._asdict().items() if x[0] is not None} == there
    stacked = [jnp.stack(x) for x in zip(*grads, strict=True)]

    def one(carry: Any, g: Any) -> Any:
        return optimizer.step(carry[0], g, carry[1]), None

    (scanned, end), _ = jax.jit(lambda *x: jax.lax.scan(one, x, stacked))(params, state)
    step = jax.jit(optimizer.step)
    for g in grads:
        params, state = step(params, g, state)
    assert step._cache_size() == 1
    assert all(np.array_equal(p, q) for p, q in zip(params, scanned, strict=True))
    assert jax.tree.structure(end) == jax.tree.structure(state)
    reference = [p.copy() for p in start]
    same = packages("numpy").create(name, reference, **chosen)
    for g in grads:
        same.step(g)
    assert all(np.array_equal(p, q) for p, q in zip(params, reference, strict=True))


@pytest.mark.parametrize(("name", "chosen", "there"), CHOSEN)
def test_keras_goes_on_from_what_it_saved(
    name: str, chosen: dict[str, Any], there: set[str], packages: Any
) -> None:
    package = packages("tensorflow")
    import keras

    start, grads = inputs()
    variables = [keras.Variable(p) for p in start]
    one = package.create(name, **chosen)
    one.build(variables)
    tensors = {k for k in one.method.state._fields if getattr(one, f"_state_{k}")[0] is not None}
    assert tensors == there
    for g in grads[:3]:
        one.apply(g)
    store: dict[str, Any] = {}
    one.save_own_variables(store)
    now = [keras.Variable(v.numpy()) for v in variables]
    again = type(one).from_config(one.get_config())
    again.build(now)
    again.load_own_variables(store)
    for g in grads[3:]:
        one.apply(g)
        again.apply(g)
    pairs = zip(variables, now, strict=True)
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in pairs)


# ---------------------------------------------------------------------------------------------------
# Choices that change, and what may not be one


def test_numpy_refuses_to_change_states(packages: Any) -> None:
    params, grads = inputs(2)
    optimizer = packages("numpy").Momentous(params)
    optimizer.mu = None
    optimizer.mu = 0.9  # nothing has begun
    optimizer.step(grads[0])
    optimizer.nesterov = True  # which has no states
    optimizer.mu = 0.5
    optimizer.step(grads[1])
    with pytest.raises(ValueError, match="mu = None decides on the states b, and the run has begun"):
        optimizer.mu = None
    assert optimizer.mu == 0.5
    wanted = inputs()[0]
    first = packages("numpy").Momentous(wanted)
    first.step(grads[0])
    second = packages("numpy").Momentous(wanted, mu=0.5, nesterov=True)
    second.load_state_dict(first.state_dict())
    second.step(grads[1])
    assert all(np.array_equal(p, q) for p, q in zip(params, wanted, strict=True))


def test_torch_refuses_to_change_states(packages: Any) -> None:
    import torch

    package = packages("torch")
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "mu": None}]
    optimizer = package.Momentous(groups)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[p]) == {"step", "b"} and set(optimizer.state[q]) == {"step"}
    optimizer.param_groups[0]["nesterov"] = True
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["mu"] = None
    with pytest.raises(ValueError, match="decide on the states b, and the run of parameter 0"):
        optimizer.step()
    assert torch.equal(p, before)
    rules = [package.runtime.Rule("bias", mu=None)]
    named = package.Momentous([("weight", p), ("bias", q)], rules=rules)
    named.step()
    assert set(named.state[p]) == {"step", "b"} and set(named.state[q]) == {"step"}


def test_torch_compiles_once(packages: Any) -> None:
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for mu, nesterov in itertools.product((None, 0.9), (False, True)):
        p = torch.nn.Parameter(torch.ones(50))
        optimizer = packages("torch").Momentous([p], mu=mu, nesterov=nesterov, fused=True)
        for k in range(4):
            p.grad = torch.full((50,), float(k))
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1 + k
    assert counters["stats"]["unique_graphs"] == 4  # one a choice


def test_keras_refuses_to_change_states(packages: Any) -> None:
    package = packages("tensorflow")
    import keras

    optimizer = package.Momentous()
    optimizer.nesterov, optimizer.mu = True, None
    optimizer.mu = 0.9
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer.build([variable])
    optimizer.nesterov = False
    with pytest.raises(ValueError, match="mu = None decides on the states b"):
        optimizer.mu = None
    optimizer.apply([np.ones(3, np.float32)])
    assert optimizer.mu == 0.9


def test_rules_are_for_all_choices_alike(packages: Any) -> None:
    package = packages("numpy")
    rule = package.runtime.Rule(max_ndim=1, mu=None)
    with pytest.raises(ValueError, match="mu of rule 1 decides on what a step does"):
        package.Momentous(inputs()[0], rules=[rule])
    package.Momentous(inputs()[0], rules=[package.runtime.Rule(max_ndim=1, mu=0.5)])


def test_jax_refuses_arrays(packages: Any) -> None:
    import jax
    import jax.numpy as jnp

    package = packages("jax")
    with pytest.raises(TypeError, match="nesterov must be True or False, got an array"):
        package.momentous(nesterov=jnp.asarray(True))

    def update(g: Any, nesterov: Any, mu: Any) -> Any:
        optimizer = package.momentous(nesterov=nesterov, mu=mu)
        return optimizer.update([g], optimizer.init([g]), [g])[0]

    g = jnp.ones(3)
    with pytest.raises(TypeError, match="static_argnames"):
        jax.jit(update)(g, True, 0.9)
    assert jax.jit(update, static_argnames=("nesterov",))(g, True, 0.9)[0].shape == (3,)


def test_storage_of_what_is_not_there(packages: Any) -> None:
    """States in 8 bits, and parameters with a rest, for choices without some of the states."""
    rng = np.random.default_rng(1)
    for chosen, there in STATES["centred"]:
        params = [rng.standard_normal(5000).astype(np.float16)]
        grads = [rng.standard_normal(5000).astype(np.float16) for _ in range(3)]
        optimizer = packages("numpy").Centred(params, store="kahan", states="8bit", **chosen)
        for g in grads:
            optimizer.step([g])
        assert {k for k in optimizer.state["[0]"] if f"{k}.scale" in optimizer.state["[0]"]} == there


# ---------------------------------------------------------------------------------------------------
# Around


def test_a_step_that_is_left_out(file: Path) -> None:
    """skip_nonfinite stands around choices: their states stay as they were, those that there are."""
    programs = {e.program.name: e.program for e in catalogue.entries([str(file), "skip_nonfinite"])}
    parts = [programs["momentous"], programs["skip_nonfinite"]]
    made = lower(check(chain(parts, "momentous_skip", "MomentousSkip")))
    for chosen in ({}, {"mu": None}, {"nesterov": True}):
        hypers = {"lr": 0.1, "mu": 0.9, "dampening": 0.0, "nesterov": False, **chosen}
        run, plain = (Exact(x, np.ones(3, np.float32)) for x in (made, lowered_of(file, "momentous")))
        for g in (1.0, np.inf, 2.0):
            run.step(np.full(3, g, np.float32), hypers)
            if np.isfinite(g):
                plain.step(np.full(3, g, np.float32), hypers)
        assert np.array_equal(run.theta, plain.theta)
        assert (run.state["b"] is None) == (chosen == {"mu": None})


def lowered_of(file: Path, name: str) -> Any:
    (entry,) = [e for e in catalogue.entries([str(file)]) if e.program.name == name]
    return lower(entry.checked)


def test_what_is_said_of_states(file: Path) -> None:
    entries = {e.program.name: e for e in catalogue.entries([str(file)])}
    assert facts.memory(entries["momentous"]) == "4 bytes a parameter where mu is not None"
    assert facts.memory(entries["centred"]) == (
        '4 bytes a parameter where size == "square"; 4 bytes a parameter where size == "square" and '
        'centered; 4 bytes a parameter where size == "max"'
    )
    assert facts.bytes_a_parameter(entries["centred"]) == 8
    assert 'of a matrix where kind == "rows"' in facts.memory(entries["nested"])
    assert facts.memory(entries["amounted"]) == (
        "4 bytes a parameter where mu > 0; 4 bytes a parameter where rho > 0 and mu > 0"
    )
    assert facts.bytes_a_parameter(entries["amounted"]) == 4


def test_a_number_that_is_not_known_counts_as_above_0(packages: Any) -> None:
    """A schedule, a tensor and a tracer decide on nothing; the number in its place does."""
    import jax
    import jax.numpy as jnp
    import torch

    made = packages("jax")
    params = [jnp.asarray(x) for x in inputs()[0]]
    g = [jnp.asarray(x) for x in inputs()[1][0]]

    def stepped(mu: Any) -> Any:
        optimizer = made.amounted(mu=mu)
        return optimizer.step(params, g, optimizer.init(params))

    want, _ = stepped(0.9)
    for got, its in (stepped(lambda count: 0.9), jax.jit(stepped)(0.9)):
        assert its.tensors.b[0] is not None
        assert all(x.shape == y.shape for x, y in zip(got, want, strict=True))
    assert stepped(0.0)[1].tensors.b[0] is None
    assert jax.jit(stepped)(0.0)[1].tensors.b[0] is not None
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = packages("torch").Amounted([p], mu=torch.tensor(0.0))
    optimizer.step()
    assert "b" in optimizer.state[p]


def test_a_number_inside_of_such_a_region_has_no_code(tmp_path: Path) -> None:
    spec = tmp_path / "rated.py"
    spec.write_text(RATED)
    (entry,) = catalogue.entries([str(spec)])
    with pytest.raises(NotAvailable, match=r"rate, a number, inside of .* use where\(mu > 0, \.\.\.\)"):
        _ = entry.lowered


RATED = '''
from generator.language import *

rate = names("rate")


@optimizer
def rated(lr: NonNegative = 1e-2, mu: Decay = 0.5):
    """Steps of another size where a number is above 0.

    Source: this test.
    """
    with when(mu > 0):
        rate[t] = lr * mu
    with otherwise():
        rate[t] = lr
    theta[t] = theta[t-1] - rate[t] * g[t]
'''


def test_sums_in_regions_that_the_clock_decides_on(tmp_path: Path) -> None:
    spec = tmp_path / "late.py"
    spec.write_text(LATE)
    (entry,) = catalogue.entries([str(spec)])
    with pytest.raises(NotAvailable, match=r"inside a region that may not happen \(take it out"):
        _ = entry.lowered


LATE = '''
from generator.language import *

m = names("m")


@optimizer
def late(lr: NonNegative = 1e-2):
    """A sum now and then.

    Source: this test.
    """
    m[0] = 0
    with when(equal(t % 2, 0)):
        m[t] = g[t] / global_norm(g[t])
    theta[t] = theta[t-1] - lr * m[t]
'''


def test_torch_compiles_as_often_as_there_are_kinds_of_parameters():
    """torch.compile gives up on a function that it has compiled eight times; ours are several."""
    torch = pytest.importorskip("torch")
    made = pytest.importorskip("generated.torch")
    shapes = [(2,) * n for n in range(1, 6)]
    kinds = [(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.float64)]
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape, dtype in kinds]
    optimizer = made.LARS(params, lr=1e-2, fused=True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not any(p.isnan().any() or (p == 1).any() for p in params)
