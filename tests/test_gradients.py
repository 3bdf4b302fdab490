"""Generated kernels under differentiation, against finite differences of the NumPy kernels.

Three chained steps with gradients theta + g[t], so that each step depends on all before. Derivatives
are taken with respect to theta, g, the initial states, every hyperparameter and every meta-parameter, in
float64, and the differentiated function must have the bits of the NumPy kernels.

The tolerance is derived. A central difference with step h is off by h**2/6 * f''' and by what rounding
does: where f is a sum whose terms have the size M in all and which K roundings led to, K * 2**-53 * M / h.
The difference with step 2h has four times the first error, so the two of them differ by three times it:
that is the first part of the tolerance; the second is the error by rounding. With f''' and K of the
order of 10, both errors together are least near h = (2**-53)**(1/3), about 5e-6; H is a power of two
next to it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

H = 2.0**-18
ROUNDINGS = 64.0  # that lead to one term, in three steps
UNIT = 2.0**-53
STEPS, SIZE = 3, 2

# Numbers at which third derivatives are moderate; RAdam begins at t = 4, where rho passes 4.
HYPERS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 0.1, "beta1": 0.75, "beta2": 0.875, "eps": 0.125, "weight_decay": 0.25},
    "radam": {"lr": 0.1, "beta1": 0.75, "beta2": 0.9, "eps": 0.125},
    "nadam": {"lr": 0.1, "beta1": 0.75, "beta2": 0.875, "eps": 0.125, "psi": 2.0},
    "lion": {"lr": 0.1, "beta1": 0.75, "beta2": 0.875, "weight_decay": 0.25},
    "rmsprop": {"lr": 0.1, "gamma": 0.75, "eps": 0.125},
    "learned": {"lr": 0.1},
}
FIRST = {"radam": 4}
NAMES = tuple(HYPERS)


def in_modes(*modes: str) -> list[tuple[str, str]]:
    """Each optimizer in each mode; what is long in compiling in the first only."""
    return [(n, m) for n in NAMES for m in modes if n != "learned" or m == modes[0]]


EAGER_AND_COMPILED = [*((n, "eager") for n in NAMES), ("adamw", "compile")]


class Point(NamedTuple):
    """Where a derivative is taken; also the derivative itself."""

    theta: Any  # (SIZE,)
    g: Any  # (STEPS, SIZE)
    state: dict[str, Any]
    hypers: dict[str, Any]
    weights: dict[str, Any]  # meta-parameters


class Expected(NamedTuple):
    """What a framework must find: bits of theta, derivatives and how far off they may be."""

    theta: Any
    slope: Any  # flat, in the order of `flat`
    tolerance: Any


def method(framework: str, name: str) -> Any:
    return import_module(f"generated.{framework}.optimizers.{name}").METHOD


def flat(p: Point) -> Any:
    """All numbers of a point in one array."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves(p)])


def unflat(numbers: Any, like: Point) -> Point:
    """The inverse of `flat`."""
    parts = iter(np.split(numbers, np.cumsum([np.size(x) for x in leaves(like)])[:-1]))
    theta, g = next(parts), next(parts).reshape(STEPS, SIZE)
    state = {k: next(parts) for k in like.state}
    hypers = {k: np.float64(next(parts)[0]) for k in like.hypers}
    return Point(theta, g, state, hypers, {k: next(parts).reshape(x.shape) for k, x in like.weights.items()})


def leaves(p: Point) -> list[Any]:
    return [p.theta, p.g, *p.state.values(), *p.hypers.values(), *p.weights.values()]


def start(name: str) -> Point:
    """Numbers of both signs, away from zero; states above it."""
    rng = np.random.default_rng(2)

    def away(*shape: int) -> Any:
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)

    fields = method("numpy", name).state._fields
    state = {k: rng.uniform(0.5, 1.5, SIZE) for k in fields}
    hypers = dict(sorted(HYPERS[name].items()))  # as JAX sorts them
    shapes = sorted(method("numpy", name).weights.items())
    once = {k: away(*shape) / np.sqrt(shape[-1]) for k, shape in shapes}
    return Point(away(SIZE), away(STEPS, SIZE), state, hypers, once)


def weights(count: int) -> Any:
    """What theta and each state contribute to the value that is differentiated."""
    return 1.0 + 0.5 * np.cos(np.arange(1.0, count * SIZE + 1.0)).reshape(count, SIZE)


def chain(m: Any, name: str, p: Point, scalars: Callable[..., Any]) -> tuple[Any, Any]:
    """Three steps; `scalars(t, kept, hypers)` gives the rounded scalars."""
    theta, state, kept = p.theta, m.state(**p.state), dict(m.scalar_states)
    for i in range(STEPS):
        s = scalars(FIRST.get(name, 1) + i, kept, p.hypers)
        kept = {k: getattr(s, k) for k in kept}
        theta, state = m.step(theta, theta + p.g[i], state, s, *once(m, p))
    return theta, state


def once(m: Any, p: Point) -> list[Any]:
    """What a step is given besides: meta-parameters, where there are any."""
    return [m.given(**p.weights)] if p.weights else []


def summed(theta: Any, state: Any) -> Any:
    """The value that is differentiated: theta and all states, weighted."""
    w = weights(1 + len(state))
    return sum(((x * row).sum() for x, row in zip(state, w[1:], strict=True)), (theta * w[0]).sum())


def numpy_chain(name: str, p: Point) -> tuple[Any, Any]:
    m = method("numpy", name)

    def scalars(t: int, kept: Any, hypers: Any) -> Any:
        before = {f"{k}_prev": np.float64(v) for k, v in kept.items()}
        store = {"store": np.float64} if kept else {}
        return m.scalars(t, **before, **store, **{k: np.float64(v) for k, v in hypers.items()})

    return chain(m, name, p, scalars)


@functools.cache
def expected(name: str, **other: float) -> Expected:
    """Central differences of the NumPy kernels, and their own error."""
    p = start(name)
    p = p._replace(hypers={**p.hypers, **other})
    x = flat(p)
    theta, state = numpy_chain(name, p)

    def slopes(h: float) -> Any:
        found = []
        for i in range(x.size):
            up, down = x.copy(), x.copy()
            up[i] += h
            down[i] -= h
            values = [summed(*numpy_chain(name, unflat(y, p))) for y in (up, down)]
            found.append((values[0] - values[1]) / (up[i] - down[i]))
        return np.array(found)

    slope = slopes(H)
    size = summed(abs(theta), [abs(s) for s in state])
    tolerance = abs(slopes(2.0 * H) - slope) + ROUNDINGS * UNIT * size / H
    return Expected(theta, slope, tolerance)


def check(want: Expected, theta: Any, found: Point) -> None:
    """The differentiated function has the right bits, and the right derivatives."""
    np.testing.assert_array_equal(np.asarray(theta), want.theta)
    off = abs(flat(found) - want.slope)
    assert (off <= want.tolerance).all(), np.stack([flat(found), want.slope, want.tolerance])


# --------------------------------------------------------------------------------------------------
# The reference itself


@pytest.mark.parametrize("name", NAMES)
def test_differences_are_sharp(name: str) -> None:
    """The tolerance is 1e-7 at most, and hardly anything that is differentiated has no effect."""
    want = expected(name)
    assert want.tolerance.max() < 1e-7
    assert (abs(want.slope) > 1e-3).mean() > {"lion": 0.5, "learned": 0.5}.get(name, 0.9)


# --------------------------------------------------------------------------------------------------
# PyTorch


def torch_chain(name: str) -> Callable[[Point], tuple[Any, Any]]:
    """The chain as torch.compile can trace it: nothing is imported on the way."""
    from generated.torch import runtime

    m = method("torch", name)

    def scalars(t: int, kept: Any, hypers: Any) -> Any:
        before = {f"{k}_prev": v for k, v in kept.items()}
        store = {"store": runtime.storing(float64)} if kept else {}
        return runtime.rounded(m.scalars(t, **before, **store, **hypers), float64)

    float64 = runtime.torch.float64
    return lambda p: chain(m, name, p, scalars)


def torch_point(p: Point) -> Point:
    import torch

    def leaf(x: Any) -> Any:
        return torch.tensor(x, dtype=torch.float64, requires_grad=True)

    state = {k: leaf(v) for k, v in p.state.items()}
    hypers, once = ({k: leaf(v) for k, v in d.items()} for d in (p.hypers, p.weights))
    return Point(leaf(p.theta), leaf(p.g), state, hypers, once)


@pytest.mark.parametrize(("name", "mode"), EAGER_AND_COMPILED)
def test_torch(name: str, mode: str) -> None:
    torch = pytest.importorskip("torch")
    p, function = torch_point(start(name)), torch_chain(name)
    if mode == "compile":
        torch._dynamo.reset()
        function = torch.compile(function, fullgraph=True)
    theta, state = function(p)
    rows = torch.from_numpy(weights(1 + len(state)))
    value = (torch.stack([theta, *state]) * rows).sum()
    found = torch.autograd.grad(value, leaves(p), allow_unused=True, materialize_grads=True)
    check(expected(name), theta.detach(), unflat(np.concatenate([np.ravel(x) for x in found]), start(name)))


def test_torch_second_derivative_of_the_root() -> None:
    """96 * sqrt(x) at 16 has the derivatives 12 and -12/32, exactly, though the root is NumPy's."""
    torch = pytest.importorskip("torch")
    from generated.torch import runtime

    x = torch.tensor(16.0, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(96.0 * runtime.sqrt(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (12.0, -0.375)


def test_torch_rounding_keeps_derivatives() -> None:
    """What is rounded to a narrower dtype and back has the derivative of the identity."""
    torch = pytest.importorskip("torch")
    from generated.torch import runtime

    x = torch.tensor(2.1, dtype=torch.float64, requires_grad=True)
    value = 12.0 * runtime.storing(torch.float32)(x)
    value = value + 12.0 * runtime.full_like(torch.zeros((), dtype=torch.float64), x)
    assert torch.autograd.grad(value, x)[0].item() == 24.0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_narrow_store_keeps_derivatives(dtype: str, compiled: bool) -> None:
    """What is stored in a narrower dtype has the derivative of the identity."""
    torch = pytest.importorskip("torch")
    from generated.torch import runtime

    def stored(x: Any) -> Any:
        return 12.0 * runtime.round_to(x, getattr(torch, dtype)).float()

    x = torch.tensor([2.1, -0.3], requires_grad=True)
    function = torch.compile(stored) if compiled else stored
    assert torch.autograd.grad(function(x).sum(), x)[0].tolist() == [12.0, 12.0]


def test_torch_zero_gradients() -> None:
    torch = pytest.importorskip("torch")
    p = torch_point(zeros())
    value = torch_chain_on_zeros(p)
    found = torch.autograd.grad(value, leaves(p), allow_unused=True, materialize_grads=True)
    check_at_zero(unflat(np.concatenate([np.ravel(x) for x in found]), zeros()))


def torch_chain_on_zeros(p: Point) -> Any:
    from generated.torch import runtime

    m = method("torch", "adamw")
    theta, state = p.theta, m.state(**p.state)
    for i in range(STEPS):
        s = runtime.rounded(m.scalars(1 + i, **p.hypers), theta.dtype)
        theta, state = m.step(theta, p.g[i], state, s)
    return theta.sum()


# --------------------------------------------------------------------------------------------------
# Exact zeros: adamw with m = v = 0 and g = 0, where the root of v has an infinite slope


def zeros() -> Point:
    """No gradient ever for the first parameter; the second has some."""
    p = start("adamw")
    g = p.g.copy()
    g[:, 0] = 0.0
    return p._replace(g=g, state={k: np.zeros(SIZE) for k in p.state})


def check_at_zero(found: Point) -> None:
    """Every derivative is finite, and by g what the equations give.

    At 0 the slope of m_hat/(sqrt(v_hat) + eps) is that of m_hat/eps, since m_hat = 0. So g[i] counts in
    step t = i, i+1, ... with -lr/eps * (1 - beta1) * beta1**(t-i)/(1 - beta1**t), and what a step has
    changed shrinks by 1 - lr * weight_decay in each later one.
    """
    assert np.isfinite(flat(found)).all(), found
    h = HYPERS["adamw"]
    b, shrunk = h["beta1"], 1.0 - h["lr"] * h["weight_decay"]

    def by_g(i: int) -> float:
        counted = [(1 - b) * b ** (t - i) / (1 - b**t) * shrunk ** (STEPS - t) for t in range(i, STEPS + 1)]
        return -h["lr"] / h["eps"] * sum(counted)

    np.testing.assert_allclose(np.asarray(found.g)[:, 0], [by_g(i + 1) for i in range(STEPS)], rtol=1e-14)
    np.testing.assert_allclose(np.asarray(found.theta), shrunk**STEPS, rtol=1e-14)
    assert np.asarray(found.state["v"])[0] == 0.0


# --------------------------------------------------------------------------------------------------
# Norms of 0: what a ratio of norms does where it is not chosen, 0/0, is nothing to a derivative


RATIOS = {
    "lamb": {"lr": 0.1, "beta1": 0.75, "beta2": 0.875, "eps": 0.125, "weight_decay": 0.0},
    "lars": {"lr": 0.1, "mu": 0.75, "weight_decay": 0.0, "trust": 0.5},
}
# One step from states of 0, whose ratio is 1: the slope by g is that of -lr * g / eps, and of -lr * g.
BY_G = {"lamb": -0.1 / 0.125, "lars": -0.1}


@pytest.mark.parametrize("at", [0.0, 1.0])
@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_norms_of_zero(framework: str, name: str, at: float) -> None:
    module = pytest.importorskip(framework)
    runtime: Any = import_module(f"generated.{framework}.runtime")
    m, hypers = method(framework, name), RATIOS[name]
    theta, g = np.full((2, 3), at), np.zeros((2, 3))

    def value(theta: Any, g: Any, s: Any) -> Any:
        return m.step(theta, g, m.init(theta), s)[0]

    if framework == "torch":
        x, y = (module.tensor(a, requires_grad=True) for a in (theta, g))
        s = runtime.rounded(m.scalars(1, **hypers), module.float64)
        found = module.autograd.grad(value(x, y, s).sum(), (x, y))
    elif framework == "jax":
        with module.enable_x64(True):
            s = jax_scalars(m, 1, {}, hypers)
            slopes = module.jit(module.grad(lambda x, y: value(x, y, s).sum(), (0, 1)))
            found = slopes(module.numpy.asarray(theta), module.numpy.asarray(g))
    else:
        x, y = module.constant(theta), module.constant(g)
        with module.GradientTape() as tape:
            tape.watch((x, y))
            end = module.reduce_sum(value(x, y, runtime.step_scalars(m, 1, module.float64, hypers)))
        found = tape.gradient(end, (x, y))
    np.testing.assert_allclose(found[0], np.ones((2, 3)), rtol=1e-14)
    np.testing.assert_allclose(found[1], np.full((2, 3), BY_G[name]), rtol=1e-14)


# --------------------------------------------------------------------------------------------------
# JAX


def jax_scalars(m: Any, t: Any, kept: Any, hypers: Any) -> Any:
    import jax.numpy as jnp

    from generated.jax import runtime

    hypers = {k: jnp.asarray(v, jnp.float64) for k, v in hypers.items()}
    before = {f"{k}_prev": jnp.asarray(v, jnp.float64) for k, v in kept.items()}
    return runtime._evaluated(m.scalars, jnp.asarray(t - 1, jnp.int32), hypers, jnp.dtype("float64"), before)


def jax_chain(name: str, p: Point) -> tuple[Any, Any]:
    m = method("jax", name)
    theta, state = chain(m, name, p, functools.partial(jax_scalars, m))
    return summed(theta, state), theta


def jax_scan(name: str, p: Point) -> tuple[Any, Any]:
    """The same in lax.scan, each step computed again on the way back."""
    import jax
    import jax.numpy as jnp

    m = method("jax", name)

    def body(carry: Any, given: Any) -> tuple[Any, None]:
        theta, state, kept = carry
        t, g = given
        s = jax_scalars(m, t, kept, p.hypers)
        theta, state = m.step(theta, theta + g, state, s, *once(m, p))
        return (theta, state, {k: getattr(s, k) for k in kept}), None

    kept = {k: jnp.asarray(v, jnp.float64) for k, v in m.scalar_states.items()}
    ts = FIRST.get(name, 1) + jnp.arange(STEPS, dtype=jnp.int32)
    (theta, state, _), _ = jax.lax.scan(jax.checkpoint(body), (p.theta, m.state(**p.state), kept), (ts, p.g))
    return summed(theta, state), theta


def jax_point(p: Point) -> Point:
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), p)


@pytest.mark.parametrize(("name", "mode"), in_modes("jit", "op by op", "scan"))
def test_jax(name: str, mode: str) -> None:
    jax = pytest.importorskip("jax")
    function = functools.partial(jax_scan if mode == "scan" else jax_chain, name)
    differentiated = jax.value_and_grad(function, has_aux=True)
    if mode != "op by op":
        differentiated = jax.jit(differentiated)
    with jax.enable_x64(True):
        (_, theta), found = differentiated(jax_point(start(name)))
        check(expected(name), theta, found)


def test_jax_vmap() -> None:
    """A sweep over the step size, all derivatives of each at once."""
    jax = pytest.importorskip("jax")
    rates = (0.05, 0.1)
    p = start("adamw")
    axes = Point(None, None, None, {k: 0 if k == "lr" else None for k in p.hypers}, None)
    with jax.enable_x64(True):
        given = jax_point(p._replace(hypers={**p.hypers, "lr": np.array(rates)}))
        differentiated = jax.value_and_grad(functools.partial(jax_chain, "adamw"), has_aux=True)
        (_, thetas), founds = jax.jit(jax.vmap(differentiated, in_axes=(axes,)))(given)
        for i, lr in enumerate(rates):
            found = jax.tree.map(lambda x, i=i: x[i], founds)
            check(expected("adamw", lr=lr), thetas[i], found)


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_guard_keeps_derivatives(compiled: bool) -> None:
    """x**3 behind guards has at 2 the derivatives 12, 12 and 6: those of x**3, not 0."""
    jax = pytest.importorskip("jax")
    from generated.jax import runtime

    def cubed(x: Any) -> Any:
        fl = runtime.rounded(x)
        return fl(fl(fl(x * x) * x) + 1.0)

    functions = [jax.grad(cubed), jax.grad(jax.grad(cubed)), jax.jacfwd(jax.grad(jax.grad(cubed)))]
    for function, slope in zip(functions, (12.0, 12.0, 6.0), strict=True):
        assert float((jax.jit(function) if compiled else function)(2.0)) == slope


def test_jax_rounding_keeps_derivatives() -> None:
    """What is rounded to a narrower dtype has the derivative of the identity."""
    jax = pytest.importorskip("jax")
    from generated.jax import runtime

    def stored(x: Any) -> Any:
        return 12.0 * runtime.stored(x, "bfloat16").astype("float32")

    assert float(jax.jit(jax.grad(stored))(2.1)) == 12.0


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_zero_gradients(compiled: bool) -> None:
    jax = pytest.importorskip("jax")
    m = method("jax", "adamw")

    def value(p: Point) -> Any:
        theta, state = p.theta, m.state(**p.state)
        for i in range(STEPS):
            theta, state = m.step(theta, p.g[i], state, jax_scalars(m, 1 + i, {}, p.hypers))
        return theta.sum()

    function = jax.jit(jax.grad(value)) if compiled else jax.grad(value)
    with jax.enable_x64(True):
        check_at_zero(function(jax_point(zeros())))


# --------------------------------------------------------------------------------------------------
# TensorFlow


def tf_point(p: Point) -> Point:
    import tensorflow as tf

    return tf.nest.map_structure(lambda x: tf.constant(x, tf.float64), p)


def tf_chain(name: str, p: Point) -> tuple[Any, Any]:
    import tensorflow as tf

    from generated.tensorflow import runtime

    m = method("tensorflow", name)

    def scalars(t: int, kept: Any, hypers: Any) -> Any:
        return runtime.step_scalars(m, t, tf.float64, hypers, kept)

    theta, state = chain(m, name, p, scalars)
    return tf.reduce_sum(tf.stack([theta, *state]) * weights(1 + len(state))), theta


def tf_found(function: Callable[[Point], Any], p: Point, mode: str) -> Any:
    """The function's results, and the first one's derivatives, taken in a mode."""
    import tensorflow as tf

    def differentiated(p: Point) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(p)
            value, *rest = function(p)
        return [value, *rest], tape.gradient(value, p, unconnected_gradients="zero")

    if mode != "eager":
        differentiated = tf.function(differentiated, autograph=False, jit_compile=mode == "xla")
    return differentiated(p)


@pytest.mark.parametrize(("name", "mode"), in_modes("eager", "graph", "xla"))
def test_tensorflow(name: str, mode: str) -> None:
    pytest.importorskip("tensorflow")
    (_, theta), found = tf_found(functools.partial(tf_chain, name), tf_point(start(name)), mode)
    check(expected(name), theta, found)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_tensorflow_guard_keeps_derivatives(mode: str) -> None:
    """x**3 behind guards has at 2 the derivatives 12 and 12: those of x**3, not 0."""
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import runtime

    def cubed(x: Any) -> Any:
        fl = runtime.rounded(x)
        return fl(fl(fl(x * x) * x) + 1.0)

    def slopes(x: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = cubed(x)
            first = inner.gradient(value, x)
        return first, outer.gradient(first, x)

    function = slopes if mode == "eager" else tf.function(slopes, autograph=False, jit_compile=mode == "xla")
    assert [float(x) for x in function(tf.constant(2.0, tf.float64))] == [12.0, 12.0]


@pytest.mark.parametrize(
    "mode",
    ["eager", "graph", "xla"],
)
def test_tensorflow_zero_gradients(mode: str) -> None:
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import runtime

    m = method("tensorflow", "adamw")

    def value(p: Point) -> list[Any]:
        theta, state = p.theta, m.state(**p.state)
        for i in range(STEPS):
            s = runtime.step_scalars(m, 1 + i, tf.float64, p.hypers)
            theta, state = m.step(theta, p.g[i], state, s)
        return [tf.reduce_sum(theta)]

    check_at_zero(tf_found(value, tf_point(zeros()), mode)[1])


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tensorflow_narrow_store_keeps_derivatives(dtype: str, mode: str) -> None:
    """What is stored in a narrower dtype has the derivative of the identity."""
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import runtime

    def stored(x: Any) -> list[Any]:
        return [tf.reduce_sum(12.0 * tf.cast(runtime.stored(x, tf.as_dtype(dtype)), tf.float32))]

    assert list(tf_found(stored, tf.constant([2.1, -0.3]), mode)[1].numpy()) == [12.0, 12.0]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_tensorflow_transforms_have_derivatives(mode: str) -> None:
    """Through a clip (where it clips, the bound's), and through a decay added to the gradient."""
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import clip_by_value, weight_decay

    def value(x: Any) -> list[Any]:
        g, theta, c = x
        (u,) = clip_by_value([g], c=c)
        (v,) = weight_decay([u], [theta], weight_decay=0.25)
        return [tf.reduce_sum(v)]

    x = tf.constant([0.5, -3.0, 4.0]), tf.constant([1.0, 2.0, 3.0]), tf.constant(2.0, tf.float64)
    by_g, by_theta, by_c = tf_found(value, x, mode)[1]
    assert list(by_g.numpy()) == [1.0, 0.0, 0.0]
    assert list(by_theta.numpy()) == [0.25] * 3
    assert float(by_c) == 0.0  # -1 + 1
