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
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from backends.domains import (
    Domain,
    check_all,
    check_relations,
    check_schedule,
    check_shape,
    check_weights,
    settled,
    told,
)
from backends.rules import Assignment, Rule, Rules, Setting, Times
from generator.elementary import cos, exp, log, real_power
from generator.network import dense as dense
from generator.normal import normal as normal
from generator.storage import Storage, decoded, encoded, nearest
from generator.summation import sized, tree_sum
from generator.threefry import of_parameter, random_key

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


def _smooth(function: Callable[..., Any]) -> Any:
    """The function with the derivative of the identity in its first argument, of any order."""
    smooth = jax.custom_jvp(function)
    smooth.defjvp(lambda primals, tangents: (smooth(*primals), tangents[0]))
    return smooth


@_smooth
def _opaque(x: Any) -> Any:
    """The number, hidden from the compiler.

    The zero comes from the number itself, so that one which the compiler does not know is hidden,
    and one that it knows is computed as it should be. Any other zero may be known.
    """
    bits = _bits(x)
    return lax.bitcast_convert_type(bits | _zero(bits), x.dtype)


@_smooth
def _hidden(x: Any, zero: Any) -> Any:
    """The number, known or not, hidden behind a zero that the compiler does not know."""
    bits = _bits(x)
    return lax.bitcast_convert_type(bits | zero.astype(bits.dtype), x.dtype)


def rounded(*given: Any) -> Callable[[Any], Any]:
    """Return fl, the rounded operation: fl(x) is x to its last bit, under every transformation.

    XLA may fuse, merge and reorder what it can see; through fl it sees nothing. The derivative of fl,
    of any order, is the identity's. In step scope fl is what the scope says.

    Args:
        *given: values that are no constants, the scalars: literals hide behind the first of them and
            get its dtype.
    """
    within = _SCOPE.get()
    if within is not None:
        return within
    leaves = jax.tree.leaves(given)
    covers = [x for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.floating)]

    def fl(x: Any) -> Any:
        return _literal(x, jnp.asarray(covers[0])) if isinstance(x, (int, float)) else _opaque(x)

    return fl


def _literal(x: float, cover: Any) -> Any:
    """A literal in the dtype of the cover, behind one of its entries."""
    one = _bits(cover.reshape(-1)[:1]).sum(dtype=_INTEGERS[cover.dtype.itemsize])  # of none: 0
    return _hidden(jnp.asarray(x, cover.dtype), _zero(one))


# What fl is in step scope: _behind a zero, or _wide where a derivative is taken; None in kernels.
_SCOPE: ContextVar[Callable[[Any], Any] | None] = ContextVar("_SCOPE", default=None)


def _behind(zero: Any, x: Any) -> Any:
    """In step scope: a double or an integer, hidden behind a zero that is made from the count."""
    x = _wide(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x | zero
    return lax.bitcast_convert_type(_bits(x) | zero, x.dtype)


def _wide(x: Any) -> Any:
    whole = jnp.issubdtype(jnp.result_type(x), jnp.integer)
    return jnp.asarray(x, jnp.int64 if whole else jnp.float64)


def _is_real(x: Any) -> bool:
    """Whether an array holds numbers; neither conditions nor keys of noise."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)  # tracers too


def _known(value: Any) -> np.ndarray[Any, Any] | None:
    """Numbers that can be looked at without waiting for them or for a device; else None."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array):
        here = all(d.platform == "cpu" for d in value.devices())
        if not here or not value.is_fully_addressable or not value.is_ready():
            return None
    elif not isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        return None
    found = np.asarray(value)
    return found if found.dtype.kind in "biuf" else None


# --------------------------------------------------------------------------------------------------
# Operations whose values JAX leaves open


def div(a: Any, b: Any) -> Any:
    """The quotient of doubles; XLA would take the reciprocal of a divisor that it knows."""
    return _wide(a) / (rounded()(b) if isinstance(b, float) else b)


def _root(x: Any) -> Any:
    """The square root; the derivative at 0 is 0, since infinity times 0 would be NaN."""
    return jnp.sqrt(x)


def _root_jvp(primals: Any, tangents: Any) -> Any:
    y = sqrt(primals[0])
    zero = y == 0
    slope = 0.5 / jnp.where(zero, jnp.ones_like(y), y)
    return y, jnp.where(zero, jnp.zeros_like(y), slope) * tangents[0]


sqrt: Any = jax.custom_jvp(_root)
sqrt.defjvp(_root_jvp)


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
    x, k = _wide(x), _wide(k)
    result = one = jnp.ones_like(x * k)
    x = x * one
    for i in range(32):  # no loop of XLA's, whose rounds are kernels of their own on a GPU
        result = result * jnp.where(k >> i & 1 == 1, x, one)
        x = x * x
    return result


def _sloped(exact: Callable[..., Any], plain: Callable[..., Any]) -> Any:
    """A function whose derivative need not go the way of its exact evaluation."""

    @functools.wraps(exact)
    def either(*args: Any) -> Any:
        return plain(*map(to_float, args)) if _SCOPE.get() is _wide else exact(*args)

    return either


power, real_power = _sloped(power, jnp.power), _sloped(real_power, jnp.power)
exp, log, cos = _sloped(exp, jnp.exp), _sloped(log, jnp.log), _sloped(cos, jnp.cos)


# --------------------------------------------------------------------------------------------------
# What sums are made of, and shapes


def join(parts: Sequence[Any], axis: int = -1) -> Any:
    """Arrays one after another along an axis."""
    return jnp.concatenate(parts, axis)


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """The same numbers in another shape."""
    return jnp.reshape(x, shape)


def spread(x: Any, like: Any) -> Any:
    """The same numbers along axes that have one, repeated to the shape of an array.

    The zero that hides them has that shape too: what is only repeated, XLA divides by in its own way.
    """
    return _hidden(jnp.broadcast_to(x, like.shape), _zero(_bits(like)))


def zeros(shape: Sequence[int], like: Any) -> Any:
    """Zeros in the dtype of an array."""
    return jnp.zeros(shape, like.dtype)


def transposed(x: Any) -> Any:
    """The last two axes exchanged."""
    return jnp.swapaxes(x, -1, -2)


def matmul(a: Any, b: Any) -> Any:
    """The matrix product in full precision, which is not the default on every device."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def stack(*features: Any) -> Any:
    """Arrays and numbers side by side along a new first axis."""
    return jnp.stack(jnp.broadcast_arrays(*features))


def rounded_size(x: float, like: Any) -> Any:
    """A double that follows from rows and columns, rounded once to the dtype of an array."""
    return _literal(x, like)


# --------------------------------------------------------------------------------------------------
# What random numbers are made of: words of 32 bits, as uint32


def word(x: Any) -> Any:
    """A word of an integer, modulo 2**32; with an axis."""
    if isinstance(x, int):
        return np.array([x & 0xFFFFFFFF], np.uint32)
    return jnp.asarray(x).astype(jnp.uint32).reshape(1)


def packed(words: Sequence[Any]) -> Any:
    """Words as one array."""
    return jnp.concatenate(words)


def counted(count: int, like: Any) -> Any:
    """The words 0, 1, ..., as many as there are numbers."""
    return lax.iota(jnp.uint32, count)


def added(a: Any, b: Any) -> Any:
    """The sum modulo 2**32."""
    return a + b


def rotated(x: Any, k: int) -> Any:
    """The bits of words moved up by k, those beyond the top to the bottom."""
    return x << k | x >> (32 - k)


def moved(x: Any, k: int) -> Any:
    """The bits of integers moved down by k."""
    return x >> k


def number(x: Any, like: Any) -> Any:
    """Integers as floats of the dtype of an array; those here have room in it."""
    return x.astype(like.dtype)


def bits_of(x: Any) -> Any:
    """The bits of floats as signed integers."""
    return _bits(x)


def of_bits(bits: Any, like: Any) -> Any:
    """Floats of their bits."""
    return lax.bitcast_convert_type(bits, like.dtype)


def double(like: Any) -> bool:
    """Whether numbers are computed in float64; else in float32."""
    return bool(like.dtype == jnp.float64)


def shaped_like(x: Any, like: Any) -> Any:
    """Numbers one after another in the shape of an array."""
    return x.reshape(like.shape)


guard, select = rounded, jnp.where

# --------------------------------------------------------------------------------------------------
# Regions and shapes


def branch(condition: Any, here: Callable[[], Any], there: Callable[[], Any]) -> Any:
    """What one of two functions gives, the first where the condition holds; the other is not run."""
    if not isinstance(condition, jax.core.Tracer):
        return here() if condition else there()
    return lax.cond(condition, here, there)


def is_matrix(x: Any) -> bool:
    """Whether a parameter has two axes or more; rows and columns are the last two."""
    return jnp.ndim(x) >= 2


def kept(theta: Any, value: Any, *sizes: str | int) -> Any:
    """A state of another shape than its parameter's, filled: a number, rows, columns."""
    return jnp.full(sized(theta.shape, sizes), value, theta.dtype)


# --------------------------------------------------------------------------------------------------
# What storage is made of


def as_bytes(k: Any) -> Any:
    """Whole numbers from 0 to 255 as uint8."""
    return k.astype(jnp.uint8)


def below(x: Any) -> Any:
    """The largest whole numbers that are not above."""
    return jnp.floor(x)


def greatest(x: Any) -> Any:
    """The largest number along the last axis, which becomes 1."""
    return jnp.max(x, -1, keepdims=True)


def taken(table: tuple[float, ...], k: Any) -> Any:
    """The entries of a table of float32 numbers at some places."""
    return jnp.asarray(table, jnp.float32).at[k].get(mode="promise_in_bounds")


# --------------------------------------------------------------------------------------------------
# Methods


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """An algorithm as the shell runs it: pure functions, what they keep and what they are given."""

    name: str
    scalars: Callable[..., Any]  # of an optimizer (t, **hypers), of a schedule (n, **hypers); double
    hypers: Mapping[str, tuple[str, Domain]]  # by the spec's name: the user's name and the domain
    state: Any = None  # the NamedTuple of tensor states
    init: Any = None  # (theta, **hypers) -> tensor states
    step: Any = None  # (theta, g, state, s[, given][, shared]) -> (theta, state); of a transform (u, state)
    update: Any = None  # of the same -> (u, state); theta + u has the bits of step
    reads_theta: bool = True  # whether `update` does, or the `step` of a transform
    elementwise: bool = True  # whether every number goes its own way
    only: str = ""  # the parameters that it is for, matrix or vector; empty: all
    # Before the step, in this order: over all parameters, (theta, g, state, s[, given][, shared]) -> sums
    # and (totals, s[, shared]) -> shared; or where one more gradient is taken, and its name.
    passes: tuple[tuple[Callable[..., Any], Any], ...] = ()
    given: Any = None  # the NamedTuple of what the caller gives beside the gradient
    # What of it is given once, when the optimizer is made: names and shapes.
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # what a step is asked for: name, when read
    numbers: tuple[str, ...] = ()  # what of that is one number for all parameters
    sources: tuple[str, ...] = ()  # the scalars that are keys of noise
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    choices: Mapping[str, str] = field(default_factory=dict)  # what kernels are told, of which hyper
    scalar_states: Mapping[str, Any] = field(default_factory=dict)  # starts: numbers, or a name
    shared: Any = None  # the NamedTuple of what passes leave, where old shared states enter them
    shared_states: Mapping[str, Any] = field(default_factory=dict)  # of all parameters, likewise
    held: str | None = None  # what of `shared` says whether the step counts; None: it does
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    coded: Mapping[str, str] = field(default_factory=dict)  # states that 8 bits may hold, their codes
    requires: Callable[..., Mapping[str, Any]] | None = None  # what must hold between them

    @property
    def takes_several(self) -> bool:
        """Whether a step takes several gradients."""
        return any(isinstance(then, str) for _, then in self.passes)


def decided(method: Method, hypers: Mapping[str, Any]) -> Method:
    """The method for the choices among the hyperparameters: its kernels need no longer be told."""
    said = told(method.choices, hypers)
    return _decided(method, said) if said else method


@functools.cache
def _decided(method: Method, said: tuple[tuple[str, Any], ...]) -> Method:
    return replace(
        method,
        init=settled(method.init, said),
        step=settled(method.step, said),
        update=method.update and settled(method.update, said),
        passes=tuple((settled(first, said), then) for first, then in method.passes),
        choices={},
    )


def _hypers(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as they are kept: doubles, 64-bit integers, arrays, functions of the count."""
    for name, (spelling, domain) in method.hypers.items():
        if not _scheduled(method, domain, given[name]):
            check_all(method.name, {spelling: domain}, {spelling: given[name]}, _is_array)
        elif not isinstance(given[name], Schedule):
            check_schedule(method.name, spelling, domain, given[name])
    check_relations(method.name, method.requires, given)
    for name in method.choices.values():
        spelling, domain = method.hypers[name]
        if domain.kind in ("bool", "choice") and _is_array(given[name]):
            raise TypeError(
                f"{method.name}: {spelling} must be {domain.phrase}, got an array. It decides on what is "
                "compiled; where the optimizer is made under jit, pass it with static_argnames."
            )
    return {name: _kept(method, name, given[name]) for name in method.hypers}


def _scheduled(method: Method, domain: Domain, value: Any) -> bool:
    """A function of the count in place of a number: an optimizer's, not a schedule's."""
    return method.step is not None and domain.kind == "float" and callable(value)


def _kept(method: Method, name: str, value: Any) -> Any:
    spelling, domain = method.hypers[name]
    if isinstance(value, (tuple, list)):
        return tuple(_kept(method, name, v) for v in value)
    if value is None or callable(value) or domain.kind in ("bool", "choice"):
        return value
    if not _is_array(value):
        return np.int64(value) if domain.kind == "int" else np.float64(value)
    whole = jnp.issubdtype(value.dtype, jnp.integer)
    inexact = jnp.issubdtype(value.dtype, jnp.floating)
    if value.ndim or not (whole or (inexact and domain.kind != "int")):
        raise TypeError(
            f"{method.name}: {spelling} must be {domain.phrase}, got an array of shape "
            f"{value.shape} and dtype {value.dtype}. Pass an array without axes."
        )
    return value.astype(jnp.float32) if whole and domain.kind != "int" else value


def _copied(weight: Any) -> Any:
    """A meta-parameter, which changes no more; one that is traced stays traced."""
    return np.array(weight) if isinstance(weight, np.ndarray) else weight


def _described(method: Method, hypers: Mapping[str, Any], rules: Sequence[Rule] = ()) -> str:
    """As users write it: `adamw(learning_rate=0.001, ...)`."""
    inside = [f"{method.hypers[k][0]}={_plain(x)!r}" for k, x in hypers.items()]
    inside += [f"rules={[*rules]}"] if rules else []
    return f"{method.name}({', '.join(inside)})"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.number) else value


# --------------------------------------------------------------------------------------------------
# Step scope: double precision


def _in_double(function: Callable[..., Any], dtype: Any) -> Any:
    """`function(exact, n, *args)`, evaluated in double precision, its results rounded once to dtype.

    JAX's 64-bit mode ends with this function, but differentiation comes back later, when it is off.
    So the derivative is taken in here, too: partial derivatives in double precision, forward, each
    rounded once; only their linear combination is left to the outside. They are not exact.
    """

    def narrow(*args: Any) -> Any:
        results = function(True, *args)
        return jax.tree.map(lambda x: x.astype(dtype) if _is_real(x) else x, results)

    def in_scope(*args: Any) -> Any:
        with jax.enable_x64(True):
            return _apart(narrow, *map(_wide, args))

    def derivative(primals: Any, tangents: Any) -> Any:
        results, structure = jax.tree.flatten(narrowed(*primals))
        moved = tuple(i for i, x in enumerate(tangents) if not isinstance(x, SymbolicZero))
        slopes = iter(_in_double(functools.partial(_slopes, function, moved), dtype)(*primals))
        changes: list[Any] = []
        for x in results:
            if not _is_real(x):
                changes.append(np.zeros(x.shape, jax.dtypes.float0))
                continue
            pairs = zip(moved, next(slopes), strict=True)
            terms = [slope * tangents[i].astype(dtype) for i, slope in pairs]
            changes.append(sum(terms, start=jnp.zeros_like(x)))
        return jax.tree.unflatten(structure, results), jax.tree.unflatten(structure, changes)

    narrowed = jax.custom_jvp(in_scope)
    narrowed.defjvp(derivative, symbolic_zeros=True)
    return narrowed


def _apart(function: Callable[..., Any], n: Any, *args: Any) -> Any:
    """The function, in a loop whose second round has the result.

    XLA neither looks into a loop nor runs one in advance. So the scalars are not computed again in
    every kernel that uses them, and they stay unknown, and therefore unmerged, even where the count
    is a constant, as in steps compiled together with `init`.
    """
    traced = jax.jit(function)  # once, for its shapes and for the loop

    def one_round(_: Any, carry: Any) -> Any:
        n, _ = carry
        return n | _zero(n), traced(n, *args)

    shapes = jax.eval_shape(traced, n, *args)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.fori_loop(0, 2, one_round, (n, start))[1]


def _slopes(function: Callable[..., Any], moved: tuple[int, ...], exact: bool, *args: Any) -> list[Any]:
    """The derivatives of each result that is no condition with respect to the moved arguments."""
    del exact

    def along(*xs: Any) -> list[Any]:
        given = dict(zip(moved, xs, strict=True))
        results = function(False, *(given.get(i, x) for i, x in enumerate(args)))
        return [x for x in jax.tree.leaves(results) if _is_real(x)]

    at = tuple(args[i] for i in moved)
    directions = tuple(jnp.eye(len(moved)))
    made: list[Any] = jax.vmap(lambda *xs: jax.jvp(along, at, xs)[1])(*directions)
    return made


@functools.lru_cache(maxsize=1024)
def _compiled(
    scalars: Callable[..., Any],
    structure: Any,
    static: tuple[Any, ...],
    kept: tuple[str, ...],
    dtype: Any,
    wide: bool,
) -> Any:
    """`scalars` as a compiled function of the count, the kept scalars and the hyperparameters."""

    def function(exact: bool, n: Any, *args: Any) -> Any:
        fl = functools.partial(_behind, _zero(n)) if exact else _wide
        arrays = iter(map(fl, args))  # XLA computes in its own way with constants that it sees
        previous: dict[str, Any] = {name: next(arrays) for name in kept}
        if kept:
            previous["store"] = functools.partial(_visited, dtype)
        leaves = [next(arrays) if x is None else x[0] for x in static]
        token = _SCOPE.set(fl)
        try:
            hypers = {
                name: x.at(n, wide) if isinstance(x, (Schedule, _Scaled)) else x
                for name, x in jax.tree.unflatten(structure, leaves).items()
            }
            return jax.tree.map(jnp.asarray, scalars(n + 1, **previous, **hypers))
        finally:
            _SCOPE.reset(token)

    return jax.jit(_in_double(function, dtype))


def _visited(dtype: Any, x: Any) -> Any:
    """A double after a visit to the compute dtype; guarded, for XLA leaves such visits out."""
    return _opaque(x.astype(dtype)).astype(jnp.float64)


def _evaluated(
    scalars: Callable[..., Any],
    count: Any,
    hypers: Mapping[str, Any],
    dtype: Any,
    kept: Mapping[str, Any],
) -> Any:
    """The scalars of the step that follows `count` finished ones, each rounded once to dtype."""
    leaves, structure = jax.tree.flatten(dict(hypers))
    numbers = [isinstance(x, (np.number, jax.Array)) for x in leaves]
    static = tuple(None if number else (x,) for x, number in zip(leaves, numbers, strict=True))
    wide = bool(jax.config.jax_enable_x64)
    function = _compiled(scalars, structure, static, tuple(kept), dtype, wide)
    arrays = [x for x, number in zip(leaves, numbers, strict=True) if number]
    args = [_as_shown(x) for x in (count, *kept.values(), *arrays)]
    with jax.enable_x64(True):
        return function(*args)


def _as_shown(x: Any) -> Any:
    """The number in the dtype that it shows: under vmap or grad it may be a wider one of NumPy's."""
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
        return self._rounded(count, jnp.result_type(float))

    def in_double(self, count: Any) -> Any:
        """The same in double precision, as an optimizer takes it."""
        return self._rounded(count, jnp.dtype(jnp.float64))

    def table(self, n: int) -> Any:
        """The first n values."""
        return self(jnp.arange(n))

    def _rounded(self, count: Any, dtype: Any) -> Any:
        known = _known(count)
        if known is not None and (known < 0).any():
            raise ValueError(f"{self.method.name}: n must be an integer, 0 or more, got {count!r}.")
        count = jnp.asarray(count)
        if not jnp.issubdtype(count.dtype, jnp.integer):
            count = count.astype(jnp.int32)
        return _evaluated(_itself, count, {"value": self}, dtype, {})

    def at(self, n: Any, wide: bool) -> Any:
        """The double after n finished steps, inside step scope."""
        hypers = {
            name: _function(x, wide) if self.method.hypers[name][1].kind == "schedule" else x
            for name, x in self.hypers.items()
        }
        return self.method.scalars(n, **hypers)

    def tree_flatten(self) -> Any:
        """The hyperparameters; the algorithm and their names."""
        return tuple(self.hypers.values()), (self.method, tuple(self.hypers))

    @classmethod
    def tree_unflatten(cls, what: Any, values: Any) -> Schedule:
        """The same schedule with other hyperparameters, unchecked."""
        self = object.__new__(cls)
        self.method, names = what
        self.hypers = dict(zip(names, values, strict=True))
        return self

    def __repr__(self) -> str:
        return _described(self.method, self.hypers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Scaled:
    """A function of the count, or what it gave, so many times."""

    value: Any
    factor: Any

    def at(self, n: Any, wide: bool) -> Any:
        """The double after n finished steps, inside step scope."""
        given = self.value.at(n, wide) if isinstance(self.value, (Schedule, _Scaled)) else self.value
        return rounded()(given * self.factor)

    def __repr__(self) -> str:
        return f"{_plain(self.factor)!r} * {self.value!r}"


def _scaled(value: Any, factor: float) -> Any:
    """A number, an array or a function of the count, so many times."""
    later = callable(value) or isinstance(value, _Scaled)
    return _Scaled(value, np.float64(factor)) if later else value * factor


def _itself(t: Any, *, value: Any) -> Any:
    del t
    return value


def _function(value: Any, wide: bool) -> Any:
    """A schedule among hyperparameters as a function from counts to doubles, inside step scope."""
    if isinstance(value, tuple):
        return tuple(_function(x, wide) for x in value)
    if isinstance(value, Schedule):
        return lambda n: value.at(_wide(n), wide)
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


def stored(x: Any, dtype: Any) -> Any:
    """A result in the parameter's dtype, rounded once, to nearest even."""
    if dtype in (jnp.float16, jnp.bfloat16):
        x = _smooth(functools.partial(nearest, dtype=jnp.dtype(dtype).name))(x)
    return x.astype(dtype)


def _named(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths, None included."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return {_name(path): x for path, x in leaves}


def _name(path: Sequence[Any]) -> str:
    """A path as text: `layers[0].weight`."""
    text = ""
    for key in path:
        plain = jax.tree_util.keystr((key,), simple=True)
        text += f"[{plain}]" if hasattr(key, "idx") else f".{plain}"
    return text.removeprefix(".")


def _names(tree: Tree) -> list[str]:
    """The paths of the arrays."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _path(tree: Tree, i: int) -> str:
    """The path of the i-th array."""
    return _names(tree)[i] or "params"


def _arrays(owner: str, what: str, tree: Tree) -> list[Any]:
    """The leaves as floating-point arrays."""
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    for i, x in enumerate(arrays):
        if x.dtype not in _FLOATS:
            raise TypeError(
                f"{owner}: {what} {_path(tree, i)} has dtype {x.dtype}; only float16, bfloat16, "
                "float32 and float64 can be optimized. Convert it, for example "
                "x.astype(jnp.float32), or leave it out with optax.masked."
            )
    return arrays


def _matched(
    owner: str, params: Tree, grads: Tree, what: str = "gradient"
) -> tuple[list[Any], list[Any]]:
    """Parameters and their gradients, checked: every parameter has one, of its shape."""
    if jax.tree.structure(params) != jax.tree.structure(grads):
        raise ValueError(f"{owner}: {_mismatch(params, grads)}")
    thetas, gs = _arrays(owner, "parameter", params), _arrays(owner, f"the {what} of", grads)
    for i, (theta, g) in enumerate(zip(thetas, gs, strict=True)):
        if theta.shape != g.shape:
            raise ValueError(
                f"{owner}: the {what} of {_path(params, i)} has shape {g.shape}, the parameter "
                f"has shape {theta.shape}. Pass the {what} of this parameter, or reshape it."
            )
        if g.dtype == jnp.float64 and theta.dtype != jnp.float64:
            raise TypeError(
                f"{owner}: the {what} of {_path(params, i)} has dtype {g.dtype}, the parameter "
                f"has dtype {theta.dtype}. Rounding it would hide a mistake; convert it yourself, "
                f"g.astype(jnp.{theta.dtype})."
            )
    return thetas, gs


def _mismatch(params: Tree, grads: Tree) -> str:
    """What is wrong with gradients in another structure than the parameters, and the remedy."""
    known, given = _named(params), _named(grads)
    missing = [k for k, p in known.items() if p is not None and given.get(k) is None]
    extra = [k for k, g in given.items() if g is not None and known.get(k) is None]
    if missing:
        return (
            f"no gradient for {', '.join(missing)}. There is one count for all parameters, so none "
            "can sit out a step. Pass zeros, make the parameter None as well, or give it an "
            "optimizer of its own with optax.partition."
        )
    if extra:
        return f"no parameter for the gradient {', '.join(extra)}. Leave the gradient out."
    return (
        f"the gradients have the structure {jax.tree.structure(grads)}, the parameters have "
        f"{jax.tree.structure(params)}. Pass gradients as jax.grad gives them."
    )


def _wide_enough(*trees: Tree) -> Any:
    """64-bit mode where float64 arrays come from such a mode that has ended."""
    if any(_is_array(x) and x.dtype == jnp.float64 for x in jax.tree.leaves(trees)):
        return jax.enable_x64(True)
    return contextlib.nullcontext()


# --------------------------------------------------------------------------------------------------
# The shell


class State(NamedTuple):
    """What an optimizer keeps between steps.

    Attributes:
        count: finished steps, int32; it stays at the largest integer.
        tensors: the algorithm's states by name, each in the structure of the parameters and in the
            compute dtype, or as `Pieces`; None for a parameter whose shape has no such state.
        scalars: states without a tensor in them, and those of all parameters together, for each
            compute dtype.
        beside: what is kept beside narrow parameters, in the structure of the parameters, None for
            those that have nothing; () where no parameter has.
    """

    count: Any
    tensors: Any
    scalars: dict[str, dict[str, Any]]
    beside: Any = ()


class Pieces(NamedTuple):
    """A state in 8 bits.

    Attributes:
        places: in the code, uint8, shaped like the parameter.
        scales: one for each 256 in a row, float32.
    """

    places: Any
    scales: Any


class Transformation(GradientTransformationExtraArgs):  # type: ignore[misc]
    """An optax gradient transformation: `init(params)`, `update(grads, state, params)`."""

    shell: _Shell

    @classmethod
    def of(cls, method: Method, **hypers: Any) -> Transformation:
        """A method with its hyperparameters, given by the spec's names and checked."""
        shell = _Shell(method, hypers)
        self = cls(shell.init, shell.transformed)
        self.shell = shell
        return self

    def __repr__(self) -> str:
        return repr(self.shell)


class Optimizer(GradientTransformationExtraArgs):  # type: ignore[misc]
    """An optax gradient transformation that has, besides, the exact step.

    What a function of the count gives is checked where it is known without waiting: a number, or an array
    that lies computed on the CPU. What is traced, or on another device, is not looked into.

    Attributes:
        init: `init(params)` gives the state.
        update: `update(grads, state, params)` gives what optax.apply_updates adds, and the state.
    """

    shell: _Shell

    @classmethod
    def of(
        cls,
        method: Method,
        *,
        rules: Sequence[Rule] = (),
        store: str = "nearest",
        states: str = "float32",
        seed: Any = 0,
        weights: Mapping[str, Any] | None = None,
        **hypers: Any,
    ) -> Optimizer:
        """A method with its hyperparameters, given by the spec's names, and options, all checked."""
        if "seed" in method.hypers:  # the algorithm has one: it is that
            hypers["seed"] = seed
        if not _is_array(seed):  # optax.inject_hyperparams makes arrays of numbers
            seed = int(Storage(seed=seed).check(method.name).seed)
        storage = Storage(store, states).check(method.name)
        shell = _Shell(method, hypers, storage, seed, rules, weights)
        self = cls(shell.init, shell.update)
        self.shell = shell
        return self

    def step(
        self, params: Tree, grads: Tree | Callable[[Tree], Tree], state: State, **given: Any
    ) -> tuple[Tree, State]:
        """Do one step, exactly.

        Args:
            params: the parameters.
            grads: their gradients, in the same structure, of the same shapes; or a function from
                parameters to gradients, which algorithms that take several a step ask for.
            state: what `init` or the last step gave.
            **given: what else the algorithm reads, by name: a tree like the parameters, or a function
                that makes one of them, called in those steps that read it.

        Returns:
            The new parameters and the new state.
        """
        return self.shell.step(params, grads, state, **given)

    def evaluation_params(self, params: Tree, state: State) -> Tree:
        """The parameters to evaluate the model with.

        They differ from `params` where the algorithm takes its gradient at another point.
        """
        return self.shell.evaluation_params(params, state)

    def assignment(self, params: Tree) -> Assignment:
        """Which rules hold for which parameter, and what follows: a table when it is printed."""
        return self.shell.assignment(params)

    def __repr__(self) -> str:
        return repr(self.shell)


@functools.cache
def _kernel(function: Callable[..., Any]) -> Any:
    """The kernel in the compute dtype, compiled where it is called by itself, once for a shape."""

    def kernel(theta: Any, g: Any, slot: Any, s: Any, zero: Any, *w: Any) -> Any:
        dtype = compute_dtype(theta.dtype)
        tensors = _tied((theta.astype(dtype), g.astype(dtype), slot), zero)
        return function(*tensors, s, *_tied(w, zero))

    return jax.jit(kernel)


@functools.cache
def _shared_kernel(function: Callable[..., Any]) -> Any:
    """What follows from the sums over all arrays, compiled as kernels are."""

    def kernel(total: Any, s: Any, zero: Any, *w: Any) -> Any:
        total, w = _tied((total, w), zero)
        return function(total, s, *w)

    return jax.jit(kernel)


def _tied(tree: Tree, zero: Any) -> Tree:
    """Arrays tied to the scalars.

    A sweep over hyperparameters under vmap may share them. Tied, they have the sweep's axis too: XLA
    divides by what has one axis less in its own way.
    """
    return jax.tree.map(lambda x: x if x.dtype == bool else _hidden(x, zero), tree)


def over_all(
    method: Method,
    calls: list[Any],
    given: Sequence[Any] = (),
    elsewhere: Callable[[list[Any]], list[Any]] | None = None,
    begun: Sequence[Any] = (),
) -> list[Any]:
    """What kernels are given, and behind it what comes before the step, if anything.

    Args:
        method: the algorithm's record.
        calls: (theta, g, state, s, zero) for each parameter.
        given: what the caller gives for each, where the method reads any of it.
        elsewhere: the gradients where the parameters hold other values.
        begun: old states of all parameters together, for each, where there are any.
    """
    besides: list[dict[str, Any]] = [{"given": x} for x in given] or [{} for _ in calls]
    for b, old in zip(besides, begun, strict=False):
        b["shared"] = old
    for first, then in method.passes if calls else ():
        found = [_kernel(first)(*x, *b.values()) for x, b in zip(calls, besides, strict=True)]
        if isinstance(then, str):
            assert elsewhere is not None, f"{method.name} takes gradients of its own"
            for b, g in zip(besides, elsewhere(found), strict=True):
                b["given"] = b["given"]._replace(**{then: g})
            continue
        total = _added(found)
        made: dict[Any, Any] = {}
        for (theta, _, _, *scalars), b in zip(calls, besides, strict=True):
            common = id(scalars[0])  # the scalars of one dtype under the same rules are one object
            if common not in made:
                dtype = compute_dtype(theta.dtype)
                near = jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), total)
                shared = () if "shared" not in b else (b["shared"],)
                made[common] = _shared_kernel(then)(near, *scalars, *shared)
            b["shared"] = made[common]
    return [(*x, *b.values()) for x, b in zip(calls, besides, strict=True)]


def _total(sums: list[Any]) -> Any:
    """The sums over parameters: sorted first, so that their order does not matter."""
    wide = jnp.result_type(*jax.tree.leaves(sums), jnp.float32)  # choices may leave nothing to be added
    return jax.tree.map(lambda *xs: tree_sum(jnp.sort(jnp.asarray(xs, wide))), *sums)


_added: Any = jax.jit(_total)


@functools.lru_cache(maxsize=4096)
def _state_shapes(method: Method, shape: tuple[int, ...]) -> list[tuple[int, ...] | None]:
    """The shapes of the states of a parameter; None for one that it does not have."""
    start = functools.partial(method.init, **dict.fromkeys(method.init_hypers, 0.0))
    return _shapes(jax.eval_shape(start, jax.ShapeDtypeStruct(shape, jnp.float32)))


def _shapes(slot: Any) -> list[tuple[int, ...] | None]:
    return [getattr(x.places if isinstance(x, Pieces) else x, "shape", None) for x in slot]


@functools.cache
def _opened(method: Method, storage: Storage) -> Any:
    """A parameter, what is beside it and its states as kernels take them, compiled as kernels are."""

    def function(p: Any, beside: Any, slot: Any) -> tuple[Any, Any]:
        wide = {
            name: decoded(*x, method.coded[name]) if isinstance(x, Pieces) else x
            for name, x in slot._asdict().items()
        }
        if beside is not None:
            dtype = jnp.dtype(jnp.float32)
            p = storage.loaded(p.astype(dtype), beside.astype(dtype), p.dtype.name)
        return p, type(slot)(**wide)

    return jax.jit(function)


@functools.cache
def _packed(method: Method, codes: tuple[str, ...]) -> Any:
    """The states of a parameter as they are kept, compiled as kernels are."""

    def function(slot: Any) -> Any:
        made = {name: getattr(slot, name) for name in codes}
        pieces = {k: Pieces(*encoded(x, method.coded[k])) for k, x in made.items() if x is not None}
        return slot._replace(**pieces)

    return jax.jit(function)


@functools.cache
def _parted(storage: Storage, dtype: str) -> Any:
    """A narrow parameter and what is kept beside it, compiled as kernels are."""

    def function(x: Any, t: Any, stream: Any, seed: Any) -> tuple[Any, Any]:
        p, beside = storage.parted(x, dtype, t, stream, seed)
        rest = storage.store == "kahan"
        return p.astype(dtype), beside.astype(dtype) if rest else beside

    return jax.jit(function)


def _cover(s: Any) -> Any:
    """A zero that has to do with each of the scalars."""
    bits = [_bits(x) for x in jax.tree.leaves(s) if _is_real(x)]
    return _zero(functools.reduce(lax.bitwise_xor, bits)) if bits else jnp.int32(0)


_compiled_cover: Any = jax.jit(_cover)


def _shaped(x: Any, shape: tuple[int, ...]) -> Any:
    return x if x.shape == shape else jnp.reshape(x, shape)


class _Kind(NamedTuple):
    """What parameters have in common that have the same scalars."""

    dtype: Any  # the compute dtype
    setting: Setting

    def __str__(self) -> str:
        return f"{self.dtype} {self.setting.label}".rstrip()


_PLAIN = Storage()
_OTHERWISE = "the state was made with another option `{}`. Make it with init(params)."


class _Shell:
    """A method with its hyperparameters, run over trees."""

    def __init__(
        self,
        method: Method,
        hypers: Mapping[str, Any],
        storage: Storage = _PLAIN,
        seed: Any = 0,
        rules: Sequence[Rule] = (),
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        self.hypers, choices = _hypers(method, hypers), method.choices
        self.method = method = decided(method, self.hypers)
        self.storage, self.seed = storage, seed
        known = check_weights(method.name, method.weights, weights)
        self.weights = {k: _copied(x) for k, x in known.items()}
        self.rules = Rules(
            method.name,
            rules,
            dict(method.hypers.values()),
            {spelling: name for name, (spelling, _) in method.hypers.items()},
            self.hypers,
            lambda domain, x: _is_array(x) or _scheduled(method, domain, x),
            method.shared_states,
            method.elementwise,
            choices,
        )
        for overrides in self.rules.overrides:
            for name, x in overrides.items():
                overrides[name] = x if isinstance(x, Times) else _kept(method, name, x)
        self._assigned: dict[Any, list[Setting]] = {}
        self._resolved: dict[Setting, dict[str, Any]] = {}
        self.resolved(self.rules.settings[()])

    def __repr__(self) -> str:
        return _described(self.method, self.hypers, self.rules.given)

    # Parts -----------------------------------------------------------------------------------------

    def settings(self, structure: Any, arrays: list[Any]) -> list[Setting]:
        """What rules say of each parameter."""
        if not self.rules.given:
            return [self.rules.settings[()]] * len(arrays)
        key = structure, tuple(x.shape for x in arrays)
        if key not in self._assigned:
            names = _names(jax.tree.unflatten(structure, range(len(arrays))))
            self._assigned[key] = self.rules.assign(list(zip(names, key[1], strict=True)))
        return self._assigned[key]

    def resolved(self, setting: Setting) -> dict[str, Any]:
        """The hyperparameters under some rules."""
        if setting not in self._resolved:
            method, hypers = self.method, setting.over(self.hypers, _scaled)
            numbers = (*method.scalar_states.values(), *method.shared_states.values())
            starts = [x for x in numbers if isinstance(x, str)]
            for name in (*method.init_hypers, *starts):
                if callable(hypers[name]) or isinstance(hypers[name], _Scaled):
                    raise TypeError(
                        f"{method.name}: {method.hypers[name][0]} is needed before the first step, so it "
                        "cannot be a schedule. Pass a number."
                    )
            if setting.rules:
                check_relations(method.name, method.requires, hypers)
            self._resolved[setting] = hypers
        return self._resolved[setting]

    def slots(
        self, state: State, structure: Any, arrays: list[Any], settings: list[Setting]
    ) -> list[Any]:
        """The states of each parameter."""
        method = self.method
        self.own(state)
        try:
            columns = [structure.flatten_up_to(tree) for tree in state.tensors]
        except ValueError:
            fits, slots = False, []
        else:
            slots = [method.state(*(column[i] for column in columns)) for i in range(len(arrays))]
            trios = zip(slots, arrays, settings, strict=True)
            fits = all(
                _shapes(slot) == (_state_shapes(method, s.seen(x.shape)) if s.train else [None] * len(slot))
                for slot, x, s in trios
            )
        if not fits:
            raise ValueError(
                f"{method.name}: the state belongs to other parameters. Make it with init(params)."
            )
        for slot, x in zip(slots, arrays, strict=True):
            known = [k for k, kept in slot._asdict().items() if isinstance(kept, Pieces)]
            if known != [k for k in self.codes(x) if getattr(slot, k) is not None]:
                raise ValueError(f"{method.name}: {_OTHERWISE.format('states')}")
        return slots

    def own(self, state: State) -> None:
        """Refuse the state of another optimizer, and what is none."""
        tensors, wanted = getattr(state, "tensors", None), self.method.state
        # By name, too: momentum and heavy_ball both keep one v. Another build has other types.
        same = getattr(tensors, "_fields", None) == wanted._fields
        if not same or type(tensors).__name__ != wanted.__name__:
            raise TypeError(
                f"{self.method.name}: the state is not of this optimizer. Pass what init or the last step "
                "gave: step(params, grads, state), update(grads, state, params)."
            )

    def codes(self, p: Any) -> list[str]:
        """The states of a parameter that are kept in 8 bits."""
        codes = self.storage.codes(self.method.coded, p.dtype.name, p.size)
        return [name for name in self.method.state._fields if name in codes]

    def besides(
        self, state: State, structure: Any, arrays: list[Any], settings: list[Setting]
    ) -> list[Any]:
        """What is kept beside each parameter."""
        kept = [None] * len(arrays)
        if not (isinstance(state.beside, tuple) and state.beside == ()):
            kept = structure.flatten_up_to(state.beside)
        wanted = [
            s.train and self.storage.beside(x.dtype.name) is not None
            for x, s in zip(arrays, settings, strict=True)
        ]
        if wanted != [x is not None for x in kept]:
            raise ValueError(f"{self.method.name}: {_OTHERWISE.format('store')}")
        return kept

    def beside(self, kept: list[Any], structure: Any) -> Any:
        """What is kept beside all parameters, as a tree."""
        there = any(x is not None for x in kept)
        return jax.tree.unflatten(structure, kept) if there else ()

    def gathered(self, slots: list[Any], structure: Any) -> Any:
        """The states of all parameters, each a tree like the parameters."""
        columns = [[slot[i] for slot in slots] for i in range(len(self.method.state._fields))]
        return self.method.state(*(jax.tree.unflatten(structure, c) for c in columns))

    def scalars(self, state: State, kind: _Kind) -> Any:
        """The step's scalars in a compute dtype, under some rules, and a zero made of them."""
        hypers = dict(self.resolved(kind.setting))
        for name, x in hypers.items():
            hypers[name] = self._at(name, x, state.count)
        old = state.scalars.get(str(kind), {})
        kept = {f"{k}_prev": old[k] for k in self.method.scalar_states}
        s = _evaluated(self.method.scalars, state.count, hypers, kind.dtype, kept)
        return s, _compiled_cover(s)

    def _at(self, name: str, x: Any, count: Any) -> Any:
        """A hyperparameter of the coming step; generated schedules wait for step scope."""
        if isinstance(x, _Scaled):
            return _Scaled(self._at(name, x.value, count), x.factor)
        if callable(x) and not isinstance(x, Schedule):
            spelling, domain = self.method.hypers[name]
            value = x(count)
            found = _known(value)
            if found is not None:
                n = _known(count)
                at = "n" if n is None else int(n)
                domain.check(self.method.name, f"{spelling}({at})", value if found.ndim else found.item())
            elif not _is_array(value):
                domain.check(self.method.name, spelling, value)
            return _kept(self.method, name, value)
        return x

    def given(
        self,
        structure: Any,
        arrays: list[Any],
        trained: Mapping[int, _Kind],
        scalars: Any,
        values: Mapping[str, Any],
    ) -> list[Any]:
        """What the caller gives, for each trained parameter in its compute dtype; zeros if it is not read."""
        method = self.method
        if method.given is None or not trained:
            return []
        if lacking := [name for name in method.inputs if values.get(name) is None]:
            what = ", ".join(f"{name}=..." for name in lacking)
            raise TypeError(f"{method.name}: a step reads {', '.join(lacking)}. Pass {what}.")
        columns: dict[str, list[Any]] = {}
        params = jax.tree.unflatten(structure, arrays)
        for name, when in method.inputs.items():
            value = values[name]

            def read(name: str = name, value: Any = value) -> list[Any]:
                found = value(params) if callable(value) else value
                if name in method.numbers:
                    return [jnp.asarray(found, compute_dtype(x.dtype)) for x in arrays]
                _, xs = _matched(method.name, params, found, name)
                return [x.astype(compute_dtype(p.dtype)) for x, p in zip(xs, arrays, strict=True)]

            def nothing(name: str = name) -> list[Any]:
                shapes = [() if name in method.numbers else x.shape for x in arrays]
                return [jnp.zeros(z, compute_dtype(x.dtype)) for z, x in zip(shapes, arrays, strict=True)]

            first = next(iter(scalars.values()))[0]
            asked = getattr(first, when) if when and callable(value) else None
            columns[name] = read() if asked is None else branch(asked, read, nothing)
        dtypes = {compute_dtype(x.dtype) for x in arrays}
        once = {d: {k: jnp.asarray(w, d) for k, w in self.weights.items()} for d in dtypes}

        def one(i: int, seen: Setting) -> Any:
            inputs = {k: _shaped(x[i], seen.seen(x[i].shape)) for k, x in columns.items()}
            return method.given(**once[compute_dtype(arrays[i].dtype)], **inputs)

        return [one(i, kind.setting) for i, kind in trained.items()]

    def elsewhere(
        self, structure: Any, arrays: list[Any], trained: Mapping[int, _Kind], gradient: Any
    ) -> Any:
        """The function that takes further gradients: from points to gradients, in compute dtypes."""
        name = self.method.name
        if self.method.takes_several and not callable(gradient):
            raise TypeError(
                f"{name} takes several gradients a step. Pass a function from parameters to gradients: "
                "step(params, jax.grad(loss), state), or update(grads, state, params, "
                "gradient=jax.grad(loss))."
            )

        def further(points: list[Any]) -> list[Any]:
            near = list(arrays)
            for i, x in zip(trained, points, strict=True):
                near[i] = _shaped(stored(x, arrays[i].dtype), arrays[i].shape)
            tree = jax.tree.unflatten(structure, near)
            _, gs = _matched(name, tree, gradient(tree))
            return [
                _shaped(gs[i].astype(kind.dtype), kind.setting.seen(gs[i].shape))
                for i, kind in trained.items()
            ]

        return further

    def begun(self, state: State, kind: _Kind) -> tuple[Any, ...]:
        """What enters the first pass: old states of all parameters together, where there are any."""
        names = self.method.shared_states
        if not names:
            return ()
        old = state.scalars[str(kind)]
        return (self.method.shared(**{f"{name}_prev": old[name] for name in names}),)

    def run(
        self,
        one: Callable[..., Any],
        still: Callable[..., Any],
        structure: Any,
        arrays: list[Any],
        gs: list[Any],
        state: State,
        gradient: Any = None,
        **values: Any,
    ) -> tuple[Tree, State]:
        """`one(p, i, theta, g, *rest)` for every parameter p, the i-th, and the state after it.

        From theta on it is all that kernels take. It gives a result, what is beside it, and states.
        What a rule leaves untrained is `still(theta)` instead. `gradient` takes further gradients,
        `values` are what else the method reads, by name.
        """
        settings = self.settings(structure, arrays)
        slots = self.slots(state, structure, arrays, settings)
        beside = self.besides(state, structure, arrays, settings)
        seen = [_shaped(x, setting.seen(x.shape)) for x, setting in zip(arrays, settings, strict=True)]
        trained = {
            i: _Kind(compute_dtype(x.dtype), setting)
            for i, (x, setting) in enumerate(zip(arrays, settings, strict=True))
            if setting.train
        }
        scalars = {kind: self.scalars(state, kind) for kind in dict.fromkeys(trained.values())}
        calls = []
        for i, kind in trained.items():
            theta, slot, (s, zero) = seen[i], slots[i], scalars[kind]
            if beside[i] is not None or self.codes(theta):
                theta, slot = _opened(self.method, self.storage)(theta, beside[i], slot)
            g = _shaped(gs[i], seen[i].shape)
            calls.append((theta, g, slot, of_parameter(self.method.sources, s, i), zero))
        elsewhere = self.elsewhere(structure, arrays, trained, gradient)
        given = self.given(structure, arrays, trained, scalars, values)
        results = [None if i in trained else still(x) for i, x in enumerate(arrays)]
        begun = [x for kind in trained.values() for x in self.begun(state, kind)]
        made = over_all(self.method, calls, given, elsewhere, begun)
        shared = {}
        for (i, kind), arguments in zip(trained.items(), made, strict=True):
            result, beside[i], new = one(seen[i], i, *arguments)
            codes = tuple(self.codes(arrays[i]))
            slots[i] = _packed(self.method, codes)(new) if codes else new
            shared[str(kind)] = arguments[-1]
            results[i] = _shaped(result, arrays[i].shape)
        scope = {str(kind): s for kind, (s, _) in scalars.items()}
        kept = {
            kind: {
                **{name: getattr(scope[kind], name) for name in self.method.scalar_states},
                **{name: getattr(shared[kind], name) for name in self.method.shared_states},
            }
            for kind in state.scalars
        }
        counts = state.count < np.iinfo(np.int32).max
        if self.method.held and shared:
            counts &= getattr(next(iter(shared.values())), self.method.held)
        count = state.count + counts
        tensors = self.gathered(slots, structure)
        after = State(count, tensors, kept, self.beside(beside, structure))
        return jax.tree.unflatten(structure, results), after

    def parted(self, p: Any, i: int, x: Any, count: Any) -> tuple[Any, Any]:
        """A new value of the i-th parameter as it is stored, and what is kept beside it."""
        if self.storage.plain(p.dtype.name):
            return stored(x, p.dtype), None
        seed = word(self.seed), word(0 if _is_array(self.seed) else self.seed >> 32)
        made: tuple[Any, Any] = _parted(self.storage, p.dtype.name)(x, count + 1, i, seed)
        return made

    # What users call -------------------------------------------------------------------------------

    def init(self, params: Tree) -> State:
        """The state before the first step."""
        method = self.method
        with _wide_enough(params):
            arrays = _arrays(method.name, "parameter", params)
            structure = jax.tree.structure(params)
            settings = self.settings(structure, arrays)
            for i, (theta, setting) in enumerate(zip(arrays, settings, strict=True)):
                if method.only and setting.train:
                    called = f"parameter {_path(params, i)}"
                    check_shape(method.name, method.only, called, setting.seen(theta.shape))
            slots, scalars = [], {}
            beside: list[Any] = []
            for p, setting in zip(arrays, settings, strict=True):
                beside.append(None)
                if not setting.train:
                    slots.append(method.state._make([None] * len(method.state._fields)))
                    continue
                dtype, known = compute_dtype(p.dtype), self.resolved(setting)
                theta = _shaped(p.astype(dtype), setting.seen(p.shape))
                hypers = {name: jnp.asarray(known[name], dtype) for name in method.init_hypers}
                slot, codes = method.init(theta, **hypers), tuple(self.codes(p))
                slots.append(_packed(method, codes)(slot) if codes else slot)
                if self.storage.beside(p.dtype.name) is not None:
                    wide = dtype if self.storage.store == "master" else p.dtype
                    beside[-1] = jnp.array(self.storage.begun(theta), wide)
                starts = {**method.scalar_states, **method.shared_states}
                numbers = {name: known.get(x, x) for name, x in starts.items()}
                if numbers:
                    kind = str(_Kind(dtype, setting))
                    scalars[kind] = {k: jnp.asarray(x, dtype) for k, x in numbers.items()}
            kept = self.beside(beside, structure)
            return State(jnp.zeros((), jnp.int32), self.gathered(slots, structure), scalars, kept)

    def step(self, params: Tree, grads: Any, state: State, **given: Any) -> tuple[Tree, State]:
        """The new parameters and the new state."""
        if odd := [name for name in given if name not in self.method.inputs]:
            names = ", ".join(self.method.inputs)
            reads = f"reads {names}" if names else "reads nothing but gradients"
            raise TypeError(
                f"{self.method.name}: step was given {', '.join(odd)}; it {reads}. Leave it out."
            )
        if isinstance(grads, State):
            raise TypeError(f"{self.method.name}: the order is step(params, grads, state).")
        gradient = grads if callable(grads) else None
        if callable(grads):
            grads = grads(params)

        def one(p: Any, i: int, *arguments: Any) -> tuple[Any, Any, Any]:
            new, slot = _kernel(self.method.step)(*arguments)
            return *self.parted(p, i, new, state.count), slot

        with _wide_enough(params):
            thetas, gs = _matched(self.method.name, params, grads)
            structure = jax.tree.structure(params)
            return self.run(one, lambda x: x, structure, thetas, gs, state, gradient, **given)

    def update(
        self, updates: Tree, state: State, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, State]:
        """Do one step, given as what is to be added to the parameters.

        Where the algorithm ends with an addition to theta[t-1] and parameters are float32 or float64,
        the sum has the bits of `step`; otherwise it comes as close as a sum can. With narrow
        parameters the sum is the parameter that `step` gives where both lie within a factor of two,
        under every `store`; where the sum is another number, that counts in the next step.

        Args:
            updates: the gradients.
            state: what `init` or the last update gave.
            params: the parameters.
            **extra_args: `gradient`, a function from parameters to gradients, for algorithms that take
                several a step; what else the algorithm reads, by name. What other transformations of
                a chain may need is not used.

        Returns:
            What optax.apply_updates adds to the parameters, and the new state.
        """
        method = self.method
        if isinstance(updates, State):
            raise TypeError(f"{method.name}: the order is update(grads, state, params).")
        extra = {k: x for k, x in extra_args.items() if k in ("gradient", *method.inputs)}

        def exact(p: Any, i: int, *arguments: Any) -> tuple[Any, Any, Any]:
            u, slot = _kernel(method.update)(*arguments)
            return stored(u, p.dtype), None, slot

        def close(p: Any, i: int, *arguments: Any) -> tuple[Any, Any, Any]:
            dtype = compute_dtype(p.dtype)
            if method.update is not None and p.dtype == dtype:
                return exact(p, i, *arguments)
            new, slot = _kernel(method.step)(*arguments)
            near, beside = self.parted(p, i, new, state.count)
            # From this parameter to the one that `step` stores; exact where they are close together.
            return stored(near.astype(dtype) - p.astype(dtype), p.dtype), beside, slot

        with _wide_enough(updates, params):
            if params is not None:
                thetas, gs = _matched(method.name, params, updates)
                structure = jax.tree.structure(params)
                return self.run(close, jnp.zeros_like, structure, thetas, gs, state, **extra)
            needed = method.reads_theta or method.given is not None or self.storage.store != "nearest"
            if method.update is None or needed:
                raise ValueError(self.needs_params())
            gs = _arrays(method.name, "the gradient of", updates)
            return self.run(exact, jnp.zeros_like, jax.tree.structure(updates), gs, gs, state)

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

        def one(p: Any, i: int, theta: Any, g: Any, *rest: Any) -> tuple[Any, Any, Any]:
            u, slot = _kernel(method.step)(theta, g, *rest)
            return stored(u, g.dtype), None, slot

        with _wide_enough(updates, params):
            if not method.reads_theta:
                thetas = gs = _arrays(method.name, "the gradient of", updates)
            elif params is None:
                raise ValueError(self.needs_params())
            else:
                thetas, gs = _matched(method.name, params, updates)
            return self.run(one, lambda x: x, jax.tree.structure(updates), thetas, gs, state)

    def needs_params(self) -> str:
        """What to say where the parameters are left out."""
        name = self.method.name
        return f"{name}: update needs the parameters. Call update(grads, state, params)."

    def evaluation_params(self, params: Tree, state: State) -> Tree:
        """The parameters to evaluate the model with."""
        if self.method.evaluate is None:
            return params
        self.own(state)
        values = getattr(state.tensors, self.method.evaluate)
        leaves, structure = jax.tree.flatten(params)
        with _wide_enough(params):
            made = [
                p if x is None else jnp.reshape(stored(x, jnp.asarray(p).dtype), jnp.shape(p))
                for p, x in zip(leaves, structure.flatten_up_to(values), strict=True)
            ]
            return jax.tree.unflatten(structure, made)

    def assignment(self, params: Tree) -> Assignment:
        """The table of what rules say."""
        arrays, structure = jax.tree.flatten(params)
        settings = self.settings(structure, arrays)
        rows = [(n, jnp.shape(x), s) for n, x, s in zip(_names(params), arrays, settings, strict=True)]
        return self.rules.assignment(self.hypers, rows)
