"""What every generated JAX optimizer shares: the guard, exact scalar functions, checks, the shell.

In: pytrees of arrays and their gradients. Out: new pytrees; nothing is changed in place. Must not
know: any one algorithm (the generated files hold those).

A compiler that fuses, merges or reorders operations changes their last bits. `fl` stops XLA from
doing so, and has the derivative of the identity. Scalars (functions of the step and of the
hyperparameters) are evaluated in double precision, also where JAX's 64-bit mode is off, and rounded
once to the compute dtype before they meet an array.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from backends.domains import Domain, check_all, check_relations
from generator.elementary import cos, exp, log, real_power

try:
    from optax import GradientTransformationExtraArgs
except ImportError:

    class GradientTransformationExtraArgs(NamedTuple):  # type: ignore[no-redef]
        """What optax calls a gradient transformation: two pure functions."""

        init: Callable[..., Any]
        update: Callable[..., Any]


Tensor = jax.Array
Scalar = Any  # a double in step scope; an array of the compute dtype, without axes, in a kernel
Tree = Any  # a pytree of arrays

# --------------------------------------------------------------------------------------------------
# The guard

_INTEGERS = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def _bits(x: Any) -> Any:
    return lax.bitcast_convert_type(x, _INTEGERS[x.dtype.itemsize])


def _zero(bits: Any) -> Any:
    """An integer zero: one of b and b + 1 is even, which no compiler knows."""
    return bits * (bits + 1) & 1


@jax.custom_jvp
def _opaque(x: Any) -> Any:
    # The zero comes from the value itself, so that a value which the compiler does not know is hidden
    # from it, and one which it knows is computed as it should be. Any other zero may be known.
    bits = _bits(x)
    return lax.bitcast_convert_type(bits ^ _zero(bits), x.dtype)


@_opaque.defjvp
def _opaque_jvp(primals: Any, tangents: Any) -> Any:
    return _opaque(*primals), tangents[0]


@jax.custom_jvp
def _hidden(x: Any, zero: Any) -> Any:
    bits = _bits(x)
    return lax.bitcast_convert_type(bits ^ zero.astype(bits.dtype), x.dtype)


@_hidden.defjvp
def _hidden_jvp(primals: Any, tangents: Any) -> Any:
    return _hidden(*primals), tangents[0]


def rounded(*given: Any) -> Callable[[Any], Any]:
    """Return fl, the rounded operation: fl(x) is x to its last bit, under every transformation.

    XLA may fuse, merge and reorder what it can see; through fl it sees nothing. The derivative of fl,
    of any order, is the identity's. A literal has nothing to hide behind but what is given.

    Args:
        *given: values that are no constants: the step, the scalars. Literals get their dtype.
    """
    arrays = [x for x in jax.tree.leaves(given) if _is_array(x) and x.dtype != bool]

    def fl(x: Any) -> Any:
        if isinstance(x, (int, float)):
            return _literal(x, *arrays[:1])
        return _opaque(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return fl


def _literal(x: float, cover: Any = None) -> Any:
    """A literal as an array that the compiler does not know, if it does not know the cover."""
    if cover is None:
        return jnp.asarray(x, jnp.float64)
    inexact = jnp.issubdtype(cover.dtype, jnp.floating)
    bits = _bits(cover) if inexact else cover
    one = jnp.sum(bits.reshape(-1)[:1], dtype=bits.dtype) if bits.ndim else bits  # empty: 0
    return _hidden(jnp.asarray(x, cover.dtype if inexact else jnp.float64), _zero(one))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)  # tracers too


# --------------------------------------------------------------------------------------------------
# Operations whose values JAX leaves open


def div(a: Any, b: Any) -> Any:
    """The quotient of doubles; XLA would take the reciprocal of a divisor that it knows."""
    a, b = jnp.asarray(a, jnp.float64), jnp.asarray(b, jnp.float64)
    return a / _hidden(b, _zero(_bits(a)))


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN if either is NaN; x only where x > y, so maximum(+0, -0) is -0."""
    return jnp.where((x > y) | (x != x), x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN if either is NaN."""
    return jnp.where((x < y) | (x != x), x, y)


def sign(x: Any) -> Any:
    """1 above zero, -1 below; zeros and NaN are kept. The derivative is 0 everywhere."""
    x = lax.stop_gradient(x)
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, x))


def to_float(i: Any) -> Any:
    """An integer of step scope as a double."""
    return jnp.asarray(i, jnp.float64)


def power(x: Any, k: Any) -> Any:
    """x**k by squaring from the lowest bit; an integer k that is traced must not be negative."""
    if isinstance(k, int) and k < 0:
        return div(1.0, power(x, -k))
    return _raised(jnp.asarray(x, jnp.float64), jnp.asarray(k, jnp.int64))


@jax.custom_jvp
def _raised(x: Any, k: Any) -> Any:
    def squared(i: Any, carry: Any) -> Any:
        result, x = carry
        return jnp.where(k >> i & 1 == 1, result * x, result), x * x

    start = jnp.ones_like(x * k), x * jnp.ones_like(x * k)
    return lax.fori_loop(0, 31, squared, start)[0]


@_raised.defjvp
def _raised_jvp(primals: Any, tangents: Any) -> Any:
    x, k = primals
    slope = k * _raised(x, jnp.maximum(k - 1, 0))
    return _raised(x, k), slope * tangents[0]


# --------------------------------------------------------------------------------------------------
# Methods


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """An algorithm as the shell runs it: pure functions, what they keep and what they are given."""

    name: str
    scalars: Callable[..., Any]  # optimizer: (t, **hypers); schedule: (n, **hypers); in double
    hypers: Mapping[str, tuple[str, Domain]]  # by the spec's name: the user's name and the domain
    state: Any = None  # the NamedTuple of tensor states
    init: Callable[..., Any] | None = None  # (theta, **hypers) -> tensor states
    step: Callable[..., Any] | None = None  # (theta, g, state, s) -> (theta or u, state)
    update: Callable[..., Any] | None = None  # (theta, g, state, s) -> (u, state), where exact
    reads_theta: bool = True  # whether `update` does, or, in a transform, `step`
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    # States of step scope: where they start, a number or a hyperparameter's name.
    scalar_states: Mapping[str, float | str] = field(default_factory=dict)
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    requires: Callable[..., Mapping[str, Any]] | None = None  # relations: text, whether it holds


def _hypers(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as they are kept, checked: doubles, 64-bit integers, arrays, functions."""
    kept = {}
    for name, (spelling, domain) in method.hypers.items():
        value = given[name]
        schedule = method.step is not None and domain.kind == "float" and callable(value)
        if not schedule:
            check_all(method.name, {spelling: domain}, {spelling: value}, unchecked=_is_array)
        kept[name] = _kept(method.name, spelling, domain, value)
    if not any(map(_is_array, jax.tree.leaves(kept))):
        check_relations(method.name, method.requires, kept)
    return kept


def _kept(owner: str, name: str, domain: Domain, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_kept(owner, f"{name}[{i}]", domain, v) for i, v in enumerate(value))
    if value is None or callable(value) or domain.kind in ("bool", "choice"):
        return value
    if not _is_array(value):
        return np.int64(value) if domain.kind == "int" else np.float64(value)
    real = jnp.issubdtype(value.dtype, jnp.integer)
    real |= domain.kind != "int" and jnp.issubdtype(value.dtype, jnp.floating)
    if value.ndim or not real:
        raise TypeError(
            f"{owner}: {name} must be {domain.phrase}, got an array of shape {value.shape} and dtype "
            f"{value.dtype}. Pass an array without axes."
        )
    if domain.kind != "int" and not jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(jnp.float32)
    return value


# --------------------------------------------------------------------------------------------------
# Step scope: double precision


def _wide(x: Any) -> Any:
    integer = jnp.issubdtype(jnp.result_type(x), jnp.integer)
    return jnp.asarray(x, jnp.int64 if integer else jnp.float64)


def _in_double(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """The function, evaluated in double precision, its results rounded once to dtype.

    JAX's 64-bit mode ends with this function, but differentiation comes back later, when it is off.
    So the derivative is taken in here too: partial derivatives in double precision, forward, each
    rounded once; only their linear combination is left to the outside.
    """

    @jax.custom_jvp
    def narrowed(*args: Any) -> Any:
        with jax.enable_x64(True):
            results = _apart(function, *map(_wide, args))
            return jax.tree.map(lambda x: x if x.dtype == bool else x.astype(dtype), results)

    def derivative(primals: Any, tangents: Any) -> Any:
        results, structure = jax.tree.flatten(narrowed(*primals))
        moved = tuple(i for i, x in enumerate(tangents) if not isinstance(x, SymbolicZero))
        slopes = iter(_in_double(functools.partial(_slopes, function, moved), dtype)(*primals))
        changes = []
        for x in results:
            if x.dtype == bool:
                changes.append(np.zeros(x.shape, jax.dtypes.float0))
                continue
            terms = [slope * tangents[i].astype(dtype) for i, slope in zip(moved, next(slopes), strict=True)]
            changes.append(sum(terms, start=jnp.zeros_like(x)))
        return jax.tree.unflatten(structure, results), jax.tree.unflatten(structure, changes)

    narrowed.defjvp(derivative, symbolic_zeros=True)
    return narrowed


def _apart(function: Callable[..., Any], n: Any, *args: Any) -> Any:
    """The function, in a loop whose second round has the result.

    XLA neither looks into a loop nor runs one in advance. So the scalars are not computed again in
    every kernel that uses them, and they stay unknown, and therefore unmerged, even where the count
    is a constant, as in steps compiled together with `init`.
    """

    def one_round(n: Any, _: None) -> tuple[Any, Any]:
        return n ^ _zero(n), function(n, *args)

    _, rounds = lax.scan(one_round, n, None, length=2)
    return jax.tree.map(lambda x: x[1], rounds)


def _slopes(function: Callable[..., Any], moved: tuple[int, ...], *args: Any) -> list[Any]:
    """The derivatives of each result that is no condition with respect to the moved arguments."""

    def along(*xs: Any) -> list[Any]:
        given = dict(zip(moved, xs, strict=True))
        results = function(*(given.get(i, x) for i, x in enumerate(args)))
        return [x for x in jax.tree.leaves(results) if x.dtype != bool]

    at = tuple(args[i] for i in moved)
    directions = tuple(jnp.eye(len(moved)))
    return jax.vmap(lambda *xs: jax.jvp(along, at, xs)[1])(*directions)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1024)
def _compiled(
    scalars: Callable[..., Any],
    structure: Any,
    static: tuple[Any, ...],
    stored: tuple[str, ...],
    dtype: Any,
    wide: bool,
) -> Callable[..., Any]:
    """`scalars` as a compiled function of the count, the stored states and the hyperparameters."""

    def function(n: Any, *args: Any) -> Any:
        # Hyperparameters are hidden behind the count: XLA computes in its own way with constants.
        zero = _zero(n)
        states: dict[str, Any] = dict(zip(stored, args, strict=False))
        arrays = iter(args[len(stored) :])
        leaves = [_covered(next(arrays), zero) if x is None else x[0] for x in static]
        hypers = {
            name: value.at(n, wide) if isinstance(value, Schedule) else value
            for name, value in jax.tree.unflatten(structure, leaves).items()
        }
        if stored:
            states["store"] = functools.partial(_stored, dtype)
        return jax.tree.map(jnp.asarray, scalars(n + 1, **states, **hypers))

    return jax.jit(_in_double(function, dtype))


def _covered(x: Any, zero: Any) -> Any:
    return x ^ zero if x.dtype == jnp.int64 else _hidden(x, zero)


def _stored(dtype: Any, x: Any) -> Any:
    """A double as it is after a stay in the compute dtype; the guard, for XLA drops such visits."""
    return _opaque(x.astype(dtype)).astype(jnp.float64)


def _evaluated(
    scalars: Callable[..., Any],
    count: Any,
    hypers: Mapping[str, Any],
    dtype: Any,
    stored: Mapping[str, Any],
) -> Any:
    """The step's scalars after `count` finished steps, each rounded once to dtype."""
    leaves, structure = jax.tree.flatten(dict(hypers))
    arrays = [_as_it_shows(x) for x in leaves if isinstance(x, (np.number, jax.Array))]
    static = tuple(None if isinstance(x, (np.number, jax.Array)) else (x,) for x in leaves)
    wide = bool(jax.config.jax_enable_x64)
    function = _compiled(scalars, structure, static, tuple(stored), dtype, wide)
    count = _as_it_shows(count)
    with jax.enable_x64(True):
        return function(count, *stored.values(), *arrays)


def _as_it_shows(x: Any) -> Any:
    """The number with the dtype that it shows: under vmap or grad a wider NumPy number may hide."""
    return x * 1 if isinstance(x, jax.core.Tracer) else x


# --------------------------------------------------------------------------------------------------
# Schedules


@jax.tree_util.register_pytree_node_class
class Schedule:
    """A learning rate as a function of the number of finished steps.

    Called by a user it gives an array of the default float dtype; an optimizer that is given one
    evaluates it in double precision. Differentiable in hyperparameters that are arrays.
    """

    def __init__(self, method: Method, **hypers: Any) -> None:
        self.method = method
        self.hypers = _hypers(method, hypers)

    def __call__(self, count: Any) -> Any:
        """The learning rate after `count` finished steps; an array of counts gives as many."""
        count = jnp.asarray(count)
        if not jnp.issubdtype(count.dtype, jnp.integer):
            count = count.astype(jnp.int32)
        return _evaluated(_itself, count, {"value": self}, jnp.result_type(float), {})

    def at(self, n: Any, wide: bool) -> Any:
        """The double after n finished steps; in step scope only."""
        hypers = {
            name: _function(value, wide) if self.method.hypers[name][1].kind == "schedule" else value
            for name, value in self.hypers.items()
        }
        return self.method.scalars(n, **hypers)

    def table(self, n: int) -> Any:
        """The first n values."""
        return self(jnp.arange(n))

    def tree_flatten(self) -> Any:
        """The hyperparameters, and the algorithm with their names."""
        return tuple(self.hypers.values()), (self.method, tuple(self.hypers))

    @classmethod
    def tree_unflatten(cls, what: Any, values: Any) -> Schedule:
        """The same schedule with other hyperparameters, unchecked."""
        self = object.__new__(cls)
        self.method, names = what
        self.hypers = dict(zip(names, values, strict=True))
        return self

    def __repr__(self) -> str:
        spelled = {self.method.hypers[k][0]: v for k, v in self.hypers.items()}
        inside = ", ".join(f"{k}={_plain(v)!r}" for k, v in spelled.items())
        return f"{self.method.name}({inside})"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.number) else value


def _itself(t: Any, *, value: Any) -> Any:
    del t
    return value


def _function(value: Any, wide: bool) -> Any:
    """A schedule among the hyperparameters as a function from counts to doubles."""
    if isinstance(value, tuple):
        return tuple(_function(v, wide) for v in value)
    if isinstance(value, Schedule):
        return lambda n: value.at(n, wide)
    if not callable(value):
        return lambda n: value

    def foreign(n: Any) -> Any:
        with jax.enable_x64(wide):
            result = jnp.asarray(value(jnp.asarray(n, jnp.int32)))
        return _opaque(jnp.asarray(result, jnp.float64))

    return foreign


# --------------------------------------------------------------------------------------------------
# Parameters and gradients

_FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def compute_dtype(dtype: Any) -> Any:
    """float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _nearest(x: Any, dtype: Any) -> Any:
    """The float32 nearest to x that the smaller dtype holds, to even; casts alone are dropped."""
    drop = 23 - jnp.finfo(dtype).nmant
    bits = _bits(x)
    even = bits + ((1 << (drop - 1)) - 1) + (bits >> drop & 1)
    near = lax.bitcast_convert_type(even & -(1 << drop), x.dtype)
    if dtype == jnp.float16:  # its subnormals are the multiples of 2**-24, as are 0.5 to 1 in float32
        tiny = _opaque(jnp.abs(x) + 0.5) - 0.5
        tiny = lax.bitcast_convert_type(_bits(tiny) | bits & jnp.int32(-(2**31)), x.dtype)
        near = jnp.where(jnp.abs(x) < 2.0**-14, tiny, near)
    return jnp.where(x != x, x, near)


@_nearest.defjvp
def _nearest_jvp(dtype: Any, primals: Any, tangents: Any) -> Any:
    return _nearest(*primals, dtype), tangents[0]


def stored(x: Any, dtype: Any) -> Any:
    """A result in the parameter's dtype, rounded once, to nearest even."""
    if dtype in (jnp.float16, jnp.bfloat16):
        x = _nearest(x, dtype)
    return x.astype(dtype)


def _named(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths, None included."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _arrays(owner: str, what: str, tree: Tree) -> list[Any]:
    """The leaves as floating-point arrays."""
    arrays = []
    for path, leaf in _named(tree).items():
        if leaf is None:
            continue
        array = jnp.asarray(leaf)
        if array.dtype not in _FLOATS:
            raise TypeError(
                f"{owner}: {what} {path or 'array'} has dtype {array.dtype}; float16, bfloat16, "
                "float32 and float64 can be optimized. Convert it, or leave it out with optax.masked."
            )
        arrays.append(array)
    return arrays


def _matched(owner: str, params: Tree, grads: Tree) -> tuple[list[Any], list[Any]]:
    """Parameters and their gradients, checked: every parameter has one, of its shape."""
    known, given = _named(params), _named(grads)
    missing = [k for k, p in known.items() if p is not None and given.get(k) is None]
    extra = [k for k, g in given.items() if g is not None and known.get(k) is None]
    if missing or extra:
        what = [f"no gradient for {k or 'the parameter'}" for k in missing]
        what += [f"no parameter for the gradient {k or 'given'}" for k in extra]
        raise ValueError(
            f"{owner}: {'; '.join(what)}. One count serves the whole tree, so no parameter can sit "
            "out a step. Pass a gradient of zeros, make the parameter None too, or give it an "
            "optimizer of its own with optax.partition."
        )
    if jax.tree.structure(params) != jax.tree.structure(grads):
        raise ValueError(
            f"{owner}: the gradients have the structure {jax.tree.structure(grads)}, the parameters "
            f"{jax.tree.structure(params)}. Pass the gradients as jax.grad gives them."
        )
    thetas, gs = _arrays(owner, "parameter", params), _arrays(owner, "the gradient of", grads)
    paths = [k or "the parameter" for k, p in known.items() if p is not None]
    for path, theta, g in zip(paths, thetas, gs, strict=True):
        if theta.shape != g.shape:
            raise ValueError(
                f"{owner}: the gradient of {path} has shape {g.shape}, the parameter has shape "
                f"{theta.shape}. Pass the gradient of this parameter, or reshape it."
            )
        if g.dtype == jnp.float64 and theta.dtype != jnp.float64:
            raise TypeError(
                f"{owner}: the gradient of {path} has dtype {g.dtype}, the parameter has dtype "
                f"{theta.dtype}. Rounding it would hide a mistake; convert it yourself, "
                f"g.astype({theta.dtype})."
            )
    return thetas, gs


def _wide_enough(*trees: Tree) -> contextlib.AbstractContextManager[Any]:
    """64-bit mode where float64 arrays come from such a mode that has ended."""
    leaves = jax.tree.leaves(trees)
    if any(_is_array(x) and x.dtype == jnp.float64 for x in leaves):
        return jax.enable_x64(True)
    return contextlib.nullcontext()


# --------------------------------------------------------------------------------------------------
# The shell


class State(NamedTuple):
    """What an optimizer keeps between steps.

    Attributes:
        count: finished steps, int32; it stays at the largest integer.
        tensors: the states of the algorithm by name, each in the structure of the parameters and in
            the compute dtype.
        scalars: states without a tensor in them, for each compute dtype.
    """

    count: Any
    tensors: Any
    scalars: dict[str, dict[str, Any]]


class Transformation(GradientTransformationExtraArgs):
    """An optax gradient transformation: `init(params)`, `update(grads, state, params)`."""

    @classmethod
    def of(cls, method: Method, **hypers: Any) -> Transformation:
        """A method with its hyperparameters, given by the spec's names, checked."""
        shell = _Shell(method, hypers)
        return cls(shell.init, shell.transformed)


class Optimizer(GradientTransformationExtraArgs):
    """An optax gradient transformation that has, besides, the exact step.

    Attributes:
        init: `init(params)` gives the state.
        update: `update(grads, state, params)` gives what optax.apply_updates adds, and the state.
        step: `step(params, grads, state)` gives the new parameters and the state.
        evaluation_params: `evaluation_params(params, state)` gives the parameters to evaluate the
            model with.
    """

    step: Callable[[Tree, Tree, State], tuple[Tree, State]]
    evaluation_params: Callable[[Tree, State], Tree]

    @classmethod
    def of(cls, method: Method, **hypers: Any) -> Optimizer:
        """A method with its hyperparameters, given by the spec's names, checked."""
        shell = _Shell(method, hypers)
        self = cls(shell.init, shell.update)
        self.step, self.evaluation_params = shell.step, shell.evaluation_params
        return self


@functools.cache
def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when called by itself; traced once for all parameters of a shape otherwise."""
    return jax.jit(function)


class _Shell:
    """A method with its hyperparameters, run over trees."""

    def __init__(self, method: Method, hypers: Mapping[str, Any]) -> None:
        self.method = method
        self.hypers = _hypers(method, hypers)
        for name in method.init_hypers:
            if callable(self.hypers[name]):
                raise TypeError(
                    f"{method.name}: {method.hypers[name][0]} is needed before the first step and "
                    "cannot be a schedule. Pass a number."
                )

    def init(self, params: Tree) -> State:
        """The state before the first step."""
        method = self.method
        assert method.init is not None
        with _wide_enough(params):
            thetas = _arrays(method.name, "parameter", params)
            dtypes = [compute_dtype(theta.dtype) for theta in thetas]
            slots = []
            for theta, dtype in zip(thetas, dtypes, strict=True):
                hypers = {k: jnp.asarray(self.hypers[k], dtype) for k in method.init_hypers}
                slots.append(method.init(theta.astype(dtype), **hypers))
            scalars = {}
            if method.scalar_states:
                for dtype in dtypes:
                    scalars[str(dtype)] = {
                        k: jnp.asarray(self.hypers[x] if isinstance(x, str) else x, dtype)
                        for k, x in method.scalar_states.items()
                    }
            return State(jnp.zeros((), jnp.int32), self.gathered(slots, jax.tree.structure(params)), scalars)

    def gathered(self, slots: list[Any], structure: Any) -> Any:
        """The states of all parameters, each a tree like the parameters."""
        columns = [[slot[i] for slot in slots] for i in range(len(self.method.state._fields))]
        return self.method.state(*(jax.tree.unflatten(structure, c) for c in columns))

    def slots(self, state: State, structure: Any, arrays: list[Any]) -> list[Any]:
        """The states of each parameter."""
        columns = [jax.tree.leaves(tree) for tree in state.tensors]
        fits = all(jax.tree.structure(tree) == structure for tree in state.tensors)
        if not fits or any(
            x.shape != a.shape for c in columns for x, a in zip(c, arrays, strict=True)
        ):
            raise ValueError(
                f"{self.method.name}: the state belongs to other parameters. Make it with "
                "init(params)."
            )
        if not columns:
            return [self.method.state() for _ in arrays]
        return [self.method.state(*row) for row in zip(*columns, strict=True)]

    def scalars(self, state: State, dtypes: set[Any]) -> dict[Any, Any]:
        """The step's scalars in each compute dtype."""
        hypers = {
            k: jnp.asarray(v(state.count)) if callable(v) and not isinstance(v, Schedule) else v
            for k, v in self.hypers.items()
        }
        return {
            dtype: _evaluated(
                self.method.scalars,
                state.count,
                hypers,
                dtype,
                {f"{k}_prev": x for k, x in state.scalars.get(str(dtype), {}).items()},
            )
            for dtype in dtypes
        }

    def run(
        self, one: Callable[..., Any], structure: Any, thetas: list[Any], gs: list[Any], state: State
    ) -> tuple[Tree, State]:
        """`one(theta, g, slot, s)` for every parameter, and the state after it."""
        old = self.slots(state, structure, thetas)
        dtypes = [compute_dtype(theta.dtype) for theta in thetas]
        by_dtype = self.scalars(state, set(dtypes))
        results, slots = [], []
        for theta, g, dtype, slot in zip(thetas, gs, dtypes, old, strict=True):
            result, new = one(theta, g, slot, by_dtype[dtype])
            results.append(result)
            slots.append(new)
        scalars = {
            name: {k: getattr(by_dtype[jnp.dtype(name)], k) for k in kept}
            for name, kept in state.scalars.items()
        }
        count = state.count + (state.count < np.iinfo(np.int32).max)
        tensors = self.gathered(slots, structure)
        return jax.tree.unflatten(structure, results), State(count, tensors, scalars)

    def called(self, kernel: Any, theta: Any, g: Any, slot: Any, s: Any) -> tuple[Any, Any]:
        """A kernel on one parameter, in its compute dtype."""
        dtype = compute_dtype(theta.dtype)
        return _kernel(kernel)(theta.astype(dtype), g.astype(dtype), slot, s)  # type: ignore[no-any-return]

    # What users call -------------------------------------------------------------------------------

    def step(self, params: Tree, grads: Tree, state: State) -> tuple[Tree, State]:
        """Do one step, exactly.

        Args:
            params: the parameters.
            grads: their gradients, in the same structure, of the same shapes.
            state: what `init` or the last step gave.

        Returns:
            The new parameters and the new state.
        """

        def one(theta: Any, g: Any, slot: Any, s: Any) -> tuple[Any, Any]:
            new, slot = self.called(self.method.step, theta, g, slot, s)
            return stored(new, theta.dtype), slot

        with _wide_enough(params):
            thetas, gs = _matched(self.method.name, params, grads)
            return self.run(one, jax.tree.structure(params), thetas, gs, state)

    def update(
        self, updates: Tree, state: State, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, State]:
        """Do one step, given as what is to be added to the parameters.

        Where the algorithm adds to the parameters last, and they are float32 or float64, the sum has
        the bits of `step`; else it comes as near as a sum can.

        Args:
            updates: the gradients.
            state: what `init` or the last update gave.
            params: the parameters.
            **extra_args: what other transformations of a chain may need; not used.

        Returns:
            What optax.apply_updates adds to the parameters, and the new state.
        """
        del extra_args
        method = self.method

        def exact(theta: Any, g: Any, slot: Any, s: Any) -> tuple[Any, Any]:
            u, slot = self.called(method.update, theta, g, slot, s)
            return stored(u, theta.dtype), slot

        def nearest(theta: Any, g: Any, slot: Any, s: Any) -> tuple[Any, Any]:
            if method.update is not None and theta.dtype == compute_dtype(theta.dtype):
                return exact(theta, g, slot, s)
            new, slot = self.called(method.step, theta, g, slot, s)
            # The parameter that `step` stores and this one often lie close enough to differ exactly.
            new, old = stored(new, theta.dtype).astype(new.dtype), theta.astype(new.dtype)
            return stored(new - old, theta.dtype), slot

        with _wide_enough(updates, params):
            if params is not None:
                thetas, gs = _matched(method.name, params, updates)
                return self.run(nearest, jax.tree.structure(params), thetas, gs, state)
            if method.update is None or method.reads_theta:
                raise ValueError(
                    f"{method.name}: update needs the parameters. Call update(grads, state, params)."
                )
            gs = _arrays(method.name, "the gradient of", updates)
            return self.run(exact, jax.tree.structure(updates), gs, gs, state)

    def transformed(
        self, updates: Tree, state: State, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, State]:
        """Transform gradients.

        Args:
            updates: the gradients.
            state: what `init` or the last update gave.
            params: the parameters, where the transform reads them.
            **extra_args: what other transformations of a chain may need; not used.

        Returns:
            The transformed gradients, and the new state.
        """
        del extra_args
        method = self.method

        def one(theta: Any, g: Any, slot: Any, s: Any) -> tuple[Any, Any]:
            u, slot = self.called(method.step, theta, g, slot, s)
            return stored(u, g.dtype), slot

        if method.reads_theta and params is None:
            raise ValueError(
                f"{method.name}: update needs the parameters. Call update(grads, state, params)."
            )
        with _wide_enough(updates, params):
            if method.reads_theta:
                thetas, gs = _matched(method.name, params, updates)
            else:
                thetas = gs = _arrays(method.name, "the gradient of", updates)
            return self.run(one, jax.tree.structure(updates), thetas, gs, state)

    def evaluation_params(self, params: Tree, state: State) -> Tree:
        """The parameters to evaluate the model with.

        They differ from `params` where the algorithm takes its gradient at another point.
        """
        if self.method.evaluate is None:
            return params
        values = getattr(state.tensors, self.method.evaluate)
        return jax.tree.map(lambda p, x: stored(x, jnp.asarray(p).dtype), params, values)

