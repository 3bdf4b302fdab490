"""What every generated TensorFlow optimizer shares: rounding, scalar functions, checks, the Keras shell.

In: variables, their gradients, hyperparameters. Out: the same variables, updated. Must not know: any one
algorithm (the generated files hold those).

Scalars (functions of the step and the hyperparameters) are float64 tensors inside the same XLA function
as the kernel, or, where a kernel runs once a tensor, in one of their own; each is rounded once to the
compute dtype before it meets a tensor. XLA and Grappler may fuse, merge and reorder what they can see,
and the last bits change with it. So the kernel is an XLA function of its own wherever it is called from,
and in it every product, quotient and square root is `fl(...)`, which no compiler can look through (see
`rounded`).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import keras
import tensorflow as tf

from backends.domains import (
    Domain,
    PositiveCount,
    check_all,
    check_relations,
    check_shape,
    check_states,
    check_weights,
    settled,
    told,
)
from backends.rules import Assignment, Rule, Rules, Setting, Times
from generator.elementary import cos, exp, log, real_power
from generator.network import dense as dense
from generator.normal import normal as normal
from generator.storage import Storage, decoded, encoded, nearest, pieces
from generator.summation import sized, tree_sum
from generator.threefry import of_parameter, random_key

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"Keras runs on the {keras.backend.backend()} backend, these optimizers need tensorflow. Set "
        "the environment variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

Tensor = Any  # tf.Tensor; TensorFlow ships no types
Scalar = Any  # a float64 tensor in step scope; of the compute dtype in a kernel
Function = Callable[..., Any]

# ---------------------------------------------------------------------------------------------------
# Rounded operations

_BITS = {tf.float32: tf.int32, tf.float64: tf.int64}
_F = TypeVar("_F", bound=Function)
_with_gradient: Callable[[Function], Function] = tf.custom_gradient

# Whether what is being traced needs no derivative, or has one given: then fl needs none of its own.
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def _without_derivatives() -> Iterator[None]:
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _as_written(function: _F) -> _F:
    """Keep AutoGraph out: no Python in here decides on tensors, and rewriting it takes long."""
    kept: _F = tf.autograph.experimental.do_not_convert(function)
    return kept


@_as_written
def rounded(x: Any) -> Function:
    """Return fl, the rounded operation: fl(y) is y, to its last bit, on every path.

    In a graph fl hides y from compilers: its bits or a zero that nobody can know, since it is computed
    from data (b * (b + 1) is even). Not xor: two of these in a row are none. It needs no argument,
    costs nothing in a fused kernel, and has the identity's derivative, of any order. Eager operations
    run one by one, so that nothing looks across them: there fl has nothing to do.

    Args:
        x: a tensor of the data at hand, the gradient or the step. It may be empty.
    """
    if tf.executing_eagerly():
        return _unchanged
    zero = _hidden_zero(x)
    zeros = {bits: tf.cast(zero, bits) for bits in _BITS.values()}
    dtype = x.dtype if getattr(x, "dtype", None) in _BITS else tf.float64

    def hidden(y: Tensor) -> Tensor:
        bits = _BITS[y.dtype]
        return tf.bitcast(tf.bitwise.bitwise_or(tf.bitcast(y, bits), zeros[bits]), y.dtype)

    guard = hidden if _plain.get() else _with_gradient(lambda y: (hidden(y), _unchanged))

    @_as_written
    def fl(y: Any) -> Tensor:
        y = tf.convert_to_tensor(y, dtype) if isinstance(y, float) else tf.convert_to_tensor(y)
        if y.dtype.is_floating:
            return guard(y)
        return tf.bitwise.bitwise_or(y, zeros[y.dtype]) if y.dtype in zeros else y

    return fl


def _unchanged(y: Any) -> Any:
    return y


def _hidden_zero(x: Any) -> Tensor:
    """An integer that is 0, which no compiler knows: of two neighbours one is even."""
    if isinstance(x, (int, float)) or tf.get_static_value(tf.convert_to_tensor(x)) is not None:
        x = _opaque()
    x = tf.convert_to_tensor(x)
    first = tf.reshape(x, [-1])[:1]  # empty where x is; the sum of nothing is 0
    b = tf.reduce_sum(tf.bitcast(first, _BITS[x.dtype]) if x.dtype.is_floating else first)
    return tf.bitwise.bitwise_and(b * (b + 1), tf.constant(1, b.dtype))


@functools.cache
def _opaque() -> Tensor:
    """Data where there is none: a function takes an eager tensor as an input if it is this large."""
    with tf.init_scope():
        return tf.zeros([256], tf.int64)


# ---------------------------------------------------------------------------------------------------
# Scalar functions: IEEE double, never an exception; what `where` leaves out leaves no NaN in gradients


def _double(x: Any) -> Tensor:
    """A number, a tensor or a variable as float64; one that is float32 already counts as itself."""
    if isinstance(x, (int, float)):
        return tf.constant(x, tf.float64)
    return tf.cast(tf.convert_to_tensor(x), tf.float64)


def _alike(*operands: Any) -> list[Tensor]:
    """Python numbers in the dtype of the first tensor, in double where there is none."""
    dtype = next((x.dtype for x in operands if tf.is_tensor(x)), tf.float64)
    return [x if tf.is_tensor(x) else tf.constant(x, dtype) for x in operands]


@_with_gradient
def _quotient(a: Tensor, b: Tensor) -> tuple[Tensor, Function]:
    def gradient(d: Tensor) -> tuple[Tensor, Tensor]:
        regular = tf.not_equal(b, 0.0)
        safe = tf.where(regular, b, tf.ones_like(b))
        by_a = tf.where(regular, d / safe, tf.zeros_like(b))
        return by_a, tf.where(regular, -(d * (a / safe)) / safe, tf.zeros_like(b))

    return a / b, gradient


@_with_gradient
def _root(x: Tensor) -> tuple[Tensor, Function]:
    def gradient(d: Tensor) -> Tensor:
        regular = tf.greater(x, 0.0)  # at 0 the slope is infinite, and 0 * inf would be NaN
        safe = tf.where(regular, x, tf.ones_like(x))
        return tf.where(regular, 0.5 * d / tf.sqrt(safe), tf.zeros_like(x))

    return tf.sqrt(x), gradient


def div(a: Any, b: Any) -> Tensor:
    """a / b in double; infinite or NaN where b is 0, its derivative there 0."""
    return _quotient(_double(a), _double(b))


def sqrt(x: Any) -> Tensor:
    """The square root, of numbers in double; NaN below 0; the derivative at and below 0 is 0."""
    return _root(x if getattr(x, "dtype", None) in _BITS else _double(x))


def _with_derivative(text: Function, *partials: Function | None) -> Function:
    """A scalar function as one XLA function, traced once for all, with its partial derivatives."""

    @functools.cache
    def compiled(*dtypes: Any) -> Any:
        signature = [tf.TensorSpec([], dtype) for dtype in dtypes]
        return tf.function(text, signature, autograph=False, jit_compile=True)

    @_with_gradient
    def value(*xs: Tensor) -> tuple[Tensor, Function]:
        def gradient(d: Tensor) -> list[Any]:
            return [None if partial is None else d * partial(*xs) for partial in partials]

        inside = [tf.stop_gradient(x) for x in xs]  # no tape need look
        with _without_derivatives():
            if tf.executing_eagerly() or not _use_xla or any(x.shape.rank != 0 for x in xs):
                return text(*inside), gradient
            return compiled(*(x.dtype for x in xs))(*inside), gradient

    @_as_written
    def function(*operands: Any) -> Tensor:
        integer = [tf.is_tensor(x) and x.dtype.is_integer for x in operands]
        return value(*(x if i else _double(x) for x, i in zip(operands, integer, strict=True)))

    return functools.wraps(text)(function)


def _by_squaring(x: Tensor, k: Tensor) -> Tensor:
    fl = rounded(x)
    x = tf.broadcast_to(x, tf.broadcast_dynamic_shape(tf.shape(x), tf.shape(k)))
    one = tf.constant(1, k.dtype)

    def more(result: Tensor, x: Tensor, k: Tensor) -> Tensor:
        return tf.reduce_any(tf.greater(k, 0))

    def body(result: Tensor, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        odd = tf.equal(tf.bitwise.bitwise_and(k, one), one)
        result = tf.where(odd, fl(result * x), result)
        return result, fl(x * x), tf.bitwise.right_shift(k, one)

    return tf.while_loop(more, body, (tf.ones_like(x), x, k))[0]


_integer_power = _with_derivative(_by_squaring, lambda x, k: to_float(k) * power(x, maximum(k - 1, 0)), None)


def power(x: Any, k: Any) -> Tensor:
    """x**k by squaring from the lowest bit, the same products on every backend."""
    if not isinstance(k, int):
        return _integer_power(x, k)
    return _integer_power(x, tf.constant(k, tf.int64)) if k >= 0 else div(1.0, power(x, -k))


exp = _with_derivative(exp, lambda x: exp(x))
log = _with_derivative(log, lambda x: div(1.0, x))
cos = _with_derivative(cos, lambda x: -cos(x - math.pi / 2.0))
real_power = _with_derivative(
    real_power,
    lambda x, y: y * real_power(x, y - 1.0),
    lambda x, y: where(x > 0.0, log(where(x > 0.0, x, 1.0)) * real_power(x, y), 0.0),
)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger; NaN if either is NaN; x only where x > y, so maximum(+0, -0) is -0."""
    x, y = _alike(x, y)
    return tf.where(tf.logical_or(tf.greater(x, y), tf.not_equal(x, x)), x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller; NaN if either is NaN."""
    x, y = _alike(x, y)
    return tf.where(tf.logical_or(tf.less(x, y), tf.not_equal(x, x)), x, y)


def sign(x: Any) -> Tensor:
    """1 above zero, -1 below; zeros and NaN are kept."""
    x, one, zero = _alike(x, 1.0, 0.0)
    return tf.where(tf.greater(x, zero), one, tf.where(tf.less(x, zero), -one, x))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the condition holds, else b."""
    return tf.where(condition, *_alike(a, b))


def floor(x: Any) -> Tensor:
    """The next whole number below."""
    return tf.floor(*_alike(x))


def to_float(i: Any) -> Tensor:
    """An integer as double."""
    return _double(i)


def logical_not(condition: Any) -> Tensor:
    """The opposite of a condition."""
    return tf.logical_not(condition)


# ---------------------------------------------------------------------------------------------------
# What sums are made of, and shapes; the order of a sum depends on sizes, which a trace has to know


def join(parts: Sequence[Tensor], axis: int = -1) -> Tensor:
    """Tensors one after another along an axis."""
    return tf.concat(parts, axis)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same numbers in another shape."""
    return tf.reshape(x, shape)


def spread(x: Tensor, like: Tensor) -> Tensor:
    """The same numbers along axes that have one, repeated to the shape of a tensor.

    The zero that hides them has that shape too: what is only repeated, XLA divides by in its own way.
    """
    if tf.executing_eagerly():
        return tf.broadcast_to(x, like.shape)
    bits = _BITS[like.dtype]
    b = tf.bitcast(like, bits)
    zero = tf.bitwise.bitwise_and(b * (b + 1), tf.constant(1, bits))

    def hidden(y: Tensor) -> Tensor:
        return tf.bitcast(tf.bitwise.bitwise_or(tf.bitcast(y, bits), zero), y.dtype)

    guard = hidden if _plain.get() else _with_gradient(lambda y: (hidden(y), _unchanged))
    return guard(tf.broadcast_to(x, like.shape))


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros in the dtype of a tensor."""
    return tf.zeros(shape, like.dtype)


def transposed(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return tf.linalg.matrix_transpose(x)


def stack(*features: Tensor) -> Tensor:
    """Tensors and numbers side by side along a new first axis."""
    shape = functools.reduce(tf.broadcast_static_shape, (x.shape for x in features))
    return tf.stack([tf.broadcast_to(x, shape) for x in features])


def rounded_size(x: float, like: Tensor) -> Tensor:
    """A double that follows from rows and columns, rounded once to the dtype of a tensor."""
    return rounded(like)(tf.constant(x, like.dtype))


# ---------------------------------------------------------------------------------------------------
# What random numbers are made of: words of 32 bits, as uint32


def word(x: Any) -> Tensor:
    """A word of an integer, modulo 2**32; with an axis."""
    if isinstance(x, int):
        return tf.constant([x & 0xFFFFFFFF], tf.uint32)
    return tf.reshape(tf.cast(x, tf.uint32), [1])


def packed(words: Sequence[Tensor]) -> Tensor:
    """Words as one tensor."""
    return tf.concat(words, 0)


def counted(count: int, like: Tensor) -> Tensor:
    """The words 0, 1, ..., as many as there are numbers."""
    return tf.cast(tf.range(tf.constant(count, tf.int64)), tf.uint32)


def added(a: Tensor, b: Tensor) -> Tensor:
    """The sum modulo 2**32."""
    return a + b


def rotated(x: Tensor, k: int) -> Tensor:
    """The bits of words moved up by k, those beyond the top to the bottom."""
    return tf.bitwise.left_shift(x, tf.constant(k, tf.uint32)) | moved(x, 32 - k)


def moved(x: Any, k: int) -> Any:
    """The bits of integers moved down by k."""
    if isinstance(x, int):
        return x >> k
    return tf.bitwise.right_shift(x, tf.constant(k, x.dtype))


def number(x: Tensor, like: Tensor) -> Tensor:
    """Integers as floats of the dtype of a tensor; those here have room in it."""
    return tf.cast(x, like.dtype)


def bits_of(x: Tensor) -> Tensor:
    """The bits of floats as signed integers."""
    return tf.bitcast(x, _BITS[x.dtype])


def of_bits(bits: Tensor, like: Tensor) -> Tensor:
    """Floats of their bits."""
    return tf.bitcast(bits, like.dtype)


def double(like: Tensor) -> bool:
    """Whether numbers are computed in float64; else in float32."""
    return bool(like.dtype == tf.float64)


def shaped_like(x: Tensor, like: Tensor) -> Tensor:
    """Numbers one after another in the shape of a tensor."""
    return tf.reshape(x, like.shape)


guard, select = rounded, tf.where

# ---------------------------------------------------------------------------------------------------
# Regions and shapes


def branch(condition: Any, here: Function, there: Function) -> Any:
    """What one of two functions gives, the first where the condition holds; the other is not run."""
    if not tf.is_tensor(condition) or tf.executing_eagerly():
        return here() if condition else there()
    return tf.cond(condition, here, there)


def is_matrix(x: Tensor) -> bool:
    """Whether a parameter has two axes or more; rows and columns are the last two."""
    return bool(x.shape.rank >= 2)


def kept(theta: Tensor, value: Any, *sizes: str | int) -> Tensor:
    """A state of another shape than its parameter's, filled: a number, rows, columns."""
    return tf.fill(sized(theta.shape, sizes), tf.cast(_double(value), theta.dtype))


# ---------------------------------------------------------------------------------------------------
# What storage is made of


def as_bytes(k: Tensor) -> Tensor:
    """Whole numbers from 0 to 255 as uint8."""
    return tf.cast(k, tf.uint8)


def below(x: Tensor) -> Tensor:
    """The largest whole numbers that are not above."""
    return tf.floor(x)


def greatest(x: Tensor) -> Tensor:
    """The largest number along the last axis, which becomes 1."""
    return tf.reduce_max(x, -1, keepdims=True)


def taken(table: tuple[float, ...], k: Tensor) -> Tensor:
    """The entries of a table of float32 numbers at some places."""
    return tf.gather(tf.constant(table, tf.float32), tf.cast(k, tf.int32))


# ---------------------------------------------------------------------------------------------------
# Dtypes


def compute_dtype(dtype: Any) -> Any:
    """float64 for float64, else float32."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def full_like(x: Tensor, value: Any) -> Tensor:
    """A tensor of the shape and dtype of x, filled with a value that is rounded to that dtype."""
    return tf.fill(tf.shape(x), tf.cast(_double(value), x.dtype))


def stored(x: Tensor, dtype: Any) -> Tensor:
    """A result in the parameter's dtype, rounded once, to nearest even.

    The rounding is done on the bits, in float32: compilers may drop a cast there and back, and do.
    """
    if x.dtype == dtype:
        return x
    near = functools.partial(nearest, dtype=tf.as_dtype(dtype).name)
    guard = near if _plain.get() else _with_gradient(lambda y: (near(y), _unchanged))
    return tf.cast(guard(x), dtype)


# ---------------------------------------------------------------------------------------------------
# Methods and their kernels


@dataclass(frozen=True, eq=False)
class Method:
    """An algorithm as the shell runs it: pure functions and what they keep."""

    name: str
    state: Any  # the NamedTuple of tensor states
    init: Function  # (theta, **hypers) -> tensor states
    scalars: Function  # (t, **hypers) -> the step's scalars in double
    step: Function  # (theta, g, state, s[, given][, shared]) -> (theta, state)
    elementwise: bool = True  # whether every number goes its own way
    only: str = ""  # the parameters that it is for, matrix or vector; empty: all
    # Before the step, in this order: over all parameters, (theta, g, state, s[, given][, shared]) -> sums
    # and (totals, s[, shared]) -> shared; or where one more gradient is taken, and its name.
    passes: tuple[tuple[Function, Any], ...] = ()
    given: Any = None  # the NamedTuple of what the caller gives beside the gradient
    # What of it is given once, when the optimizer is made: names and shapes.
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # what a step is asked for: name, when read
    numbers: tuple[str, ...] = ()  # what of that is one number for all parameters
    sources: tuple[str, ...] = ()  # the scalars that are keys of noise
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    choices: Mapping[str, str] = field(default_factory=dict)  # what kernels are told, of which hyper
    # States of step scope: where they start, a number or a hyperparameter's name.
    scalar_states: Mapping[str, float | str] = field(default_factory=dict)
    shared: Any = None  # the NamedTuple of what passes leave, where old shared states enter them
    shared_states: Mapping[str, float | str] = field(default_factory=dict)  # of all parameters, likewise
    held: str | None = None  # what of `shared` says whether the step counts; None: it does
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    coded: Mapping[str, str] = field(default_factory=dict)  # states that 8 bits may hold, their codes
    requires: Function | None = None  # relations: text, whether it holds

    @property
    def takes_several(self) -> bool:
        """Whether a step takes several gradients."""
        return any(isinstance(then, str) for _, then in self.passes)

    @property
    def asks(self) -> bool:
        """Whether a step asks for more than one gradient."""
        return self.takes_several or bool(self.inputs)


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
        passes=tuple((settled(first, said), then) for first, then in method.passes),
        choices={},
    )


@_as_written
def step_scalars(
    method: Method,
    t: Any,
    dtype: Any,
    hypers: Mapping[str, Any],
    kept: Mapping[str, Any] | None = None,
) -> Any:
    """The scalars of step t as the kernel takes them, each rounded once to `dtype`.

    Differentiable in every hyperparameter that is a tensor.

    Args:
        method: the algorithm's record.
        t: 1, 2, ...; an integer or an integer tensor.
        dtype: the compute dtype, tf.float32 or tf.float64.
        hypers: hyperparameters by the spec's names, numbers or tensors.
        kept: the states of step scope before this step, where the algorithm has any.
    """
    hide = rounded(t)

    def hidden(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(hidden(v) for v in value)
        if isinstance(value, (bool, str)) or value is None or callable(value):
            return value
        return hide(tf.constant(value, tf.int64) if isinstance(value, int) else _double(value))

    if isinstance(t, int):
        t = tf.constant(t, tf.int64)
    reals = {name: hidden(value) for name, value in hypers.items()}
    return _scalars(method, t, dtype, kept or {}, reals)


def _scalars(
    method: Method, t: Tensor, dtype: Any, kept: Mapping[str, Any], hypers: Mapping[str, Any]
) -> Any:
    fl = rounded(t)
    extra: dict[str, Any] = {}
    if method.scalar_states:
        extra = {f"{name}_prev": _double(kept[name]) for name in method.scalar_states}
        # The guard between the casts: XLA drops a pair of casts that only loses precision.
        extra["store"] = lambda x: _double(fl(tf.cast(_double(x), dtype)))
    s = method.scalars(t, **extra, **hypers)
    names = [k for k, v in s._asdict().items() if not (v is None or _is_condition(v) or k in method.sources)]
    if not names:
        return s
    values = fl(tf.cast(tf.stack([_double(getattr(s, name)) for name in names]), dtype))
    return s._replace(**dict(zip(names, tf.unstack(values), strict=True)))


def _is_condition(x: Any) -> bool:
    return isinstance(x, bool) or (tf.is_tensor(x) and x.dtype == tf.bool)


_use_xla = True


def use_xla(flag: bool) -> None:
    """Run kernels under XLA (the default), or, where there is no XLA, operation by operation.

    The bits are the same. Without XLA a kernel costs about five times as much, and inside a
    tf.function it leaves the graph (tf.py_function), since Grappler would reorder its sums. Functions
    that have been traced before keep what they were traced with.
    """
    global _use_xla
    _use_xla = flag


class _Rate(NamedTuple):
    """What is left of a function of n: a generated schedule's class, another function, or neither."""

    kind: Any
    inner: Any


def _pack(value: Any, floats: list[Any], ints: list[int]) -> Any:
    """Move the numbers out of a hyperparameter; what is left of it is hashable and fixed in a trace."""
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_pack(v, floats, ints) for v in value)
    if isinstance(value, int):
        ints.append(value)
        return int
    floats.append(value)
    return float


def _unpack(holes: Any, floats: Iterator[Any], ints: Iterator[Any]) -> Any:
    """Put the numbers back where `_pack` took them."""
    if holes is float:
        return next(floats)
    if holes is int:
        return next(ints)
    if isinstance(holes, _Rate):
        return _unpack_rate(holes, floats, ints)
    if isinstance(holes, tuple):
        return tuple(_unpack(h, floats, ints) for h in holes)
    return holes


def _pack_rate(value: Any, floats: list[Any], ints: list[int]) -> Any:
    """The same for a hyperparameter of a schedule that is itself a schedule, or several."""
    if isinstance(value, (tuple, list)):
        return tuple(_pack_rate(v, floats, ints) for v in value)
    if isinstance(value, Schedule):
        inner = []
        for name, domain in value.domains.items():
            pack = _pack_rate if domain.kind == "schedule" else _pack
            inner.append((value.spelling.get(name, name), pack(getattr(value, name), floats, ints)))
        return _Rate(type(value), tuple(inner))
    return _Rate(value, ()) if callable(value) else _Rate(None, _pack(float(value), floats, ints))


def _unpack_rate(rate: _Rate, floats: Iterator[Any], ints: Iterator[Any]) -> Function:
    kind, inner = rate
    if kind is None:
        number = _unpack(inner, floats, ints)
        return lambda n: number
    if inner:
        hypers = {name: _unpack(holes, floats, ints) for name, holes in inner}
        return functools.partial(kind.function, **hypers)
    if isinstance(kind, keras.optimizers.schedules.LearningRateSchedule):
        return lambda n: _double(kind(n))
    return lambda n: _double(kind(to_float(n)))


def _vectors(floats: Sequence[Any], ints: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers as a float64 and an int64 vector: arguments of a kernel, so that none retraces it."""
    if all(isinstance(x, float) for x in floats):
        doubles = tf.constant(list(floats), tf.float64, [len(floats)])
    else:
        doubles = tf.stack([_double(x) for x in floats])
    return doubles, tf.constant(list(ints), tf.int64, [len(ints)])


class _Pieces(NamedTuple):
    """A state in 8 bits: places in the code, and scales."""

    places: Any
    scales: Any


class _Kept(NamedTuple):
    """What is kept of a parameter: the method's states, some as pieces, and what is beside it."""

    states: Any
    beside: Any = None


@dataclass(frozen=True)
class _Kernel:
    """What a trace fixes: a method, the dtype of its parameters, and which numbers it is given."""

    method: Method
    dtype: Any
    holes: Any
    floats: int
    ints: int
    storage: Storage = field(default_factory=Storage)

    def scalars(self, t: Tensor, floats: Tensor, ints: Tensor, kept: Any) -> Any:
        fl = rounded(t)  # XLA divides by what it knows as a constant with a multiplication
        numbers = iter(tf.unstack(fl(floats))), iter(tf.unstack(fl(ints)))
        hypers = {name: _unpack(hole, *numbers) for name, hole in self.holes}
        return _scalars(self.method, t, compute_dtype(self.dtype), kept, hypers)

    def step(self, t: Tensor, s: Any, theta: Tensor, g: Tensor, state: Any, *w: Any) -> tuple[Tensor, Any]:
        theta, state = self.method.step(*self.given(t, theta, g, state), s, *self.besides(t, w))
        return stored(theta, self.dtype), state

    def besides(self, t: Tensor, w: Sequence[Any]) -> list[Any]:
        """What the caller gives may be a constant, as gradients may."""
        if self.method.given is None:
            return list(w)
        return [tf.nest.map_structure(lambda x: None if x is None else rounded(t)(x), w[0]), *w[1:]]

    def given(self, t: Tensor, theta: Tensor, g: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        theta = tf.cast(theta, compute_dtype(self.dtype))
        copy = self.method.evaluate
        if copy:  # of the parameters, as they are when training begins
            first = tf.where(tf.equal(t, 1), theta, getattr(state, copy))
            state = state._replace(**{copy: first})
        # A gradient may be a constant that XLA knows; the clock never is.
        return theta, rounded(t)(g), state

    def begun(self, kept: Mapping[str, Any]) -> Any:
        """What enters the first pass: old states of all parameters together, where there are any."""
        names = self.method.shared_states
        old = {f"{name}_prev": tf.convert_to_tensor(kept[name]) for name in names}
        return self.method.shared(**old) if names else None

    def opened(self, theta: Tensor, kept: _Kept) -> tuple[Tensor, Any]:
        """A parameter and its states as the method takes them."""
        states = {
            name: decoded(*x, self.method.coded[name]) if isinstance(x, _Pieces) else x
            for name, x in kept.states._asdict().items()
        }
        if kept.beside is not None:
            theta, beside = tf.cast(theta, tf.float32), tf.cast(kept.beside, tf.float32)
            theta = self.storage.loaded(theta, beside, tf.as_dtype(self.dtype).name)
        return theta, self.method.state(**states)

    def counted(self, step: Tensor, shared: Any) -> Tensor:
        """The steps that count, this one included if it does."""
        return step + tf.cast(getattr(shared, cast(str, self.method.held)), step.dtype)

    def partials(
        self, n: int, t: Tensor, s: Any, theta: Tensor, g: Tensor, kept: _Kept, place: Any, *w: Any
    ) -> Any:
        theta, state = self.opened(theta, kept)
        return self.method.passes[n][0](*self.given(t, theta, g, state), s, *self.besides(t, w))

    def one(
        self, t: Tensor, s: Any, theta: Tensor, g: Tensor, kept: _Kept, place: Any, *w: Any
    ) -> tuple[Tensor, _Kept]:
        """The step of one parameter, from what is kept to what is kept."""
        theta, state = self.opened(theta, kept)
        theta, state = self.method.step(*self.given(t, theta, g, state), s, *self.besides(t, w))
        kind, beside = tf.as_dtype(self.dtype).name, None
        if not self.storage.plain(kind):
            theta, beside = self.storage.parted(theta, kind, t, place)
            if beside is not None:
                beside = tf.cast(beside, kept.beside.dtype)
        codes = [name for name, x in kept.states._asdict().items() if isinstance(x, _Pieces)]
        coded = {k: _Pieces(*encoded(getattr(state, k), self.method.coded[k])) for k in codes}
        return stored(theta, self.dtype), _Kept(state._replace(**coded), beside)

    def total(self, sums: Sequence[Any]) -> Any:
        """Sorted first, so that the order of the parameters does not matter; in the widest dtype."""
        wide = tf.float64 if any(x.dtype == tf.float64 for x in _flat(sums)) else tf.float32

        def added(column: Sequence[Tensor | None]) -> Tensor | None:
            if column[0] is None:  # choices leave nothing to be added up
                return None
            return tree_sum(tf.sort(tf.stack([tf.cast(x, wide) for x in column])))

        return type(sums[0])(*map(added, zip(*sums, strict=True)))

    def shared(self, n: int, total: Any, s: Any, *w: Any) -> Any:
        compute = compute_dtype(self.dtype)
        near = (x if x is None else tf.cast(x, compute) for x in total)
        return self.method.passes[n][1](type(total)(*near), s, *w)

    def both(
        self, t: Tensor, floats: Tensor, ints: Tensor, kept: Any, theta: Tensor, g: Tensor, state: Any
    ) -> tuple[Tensor, Any, Any]:
        with _without_derivatives():
            s = self.scalars(t, floats, ints, kept)
            theta, state = self.step(t, s, theta, g, self.whole(state))
        state = [x for x in state if x is not None]
        return theta, state, {name: getattr(s, name) for name in kept}

    @property
    def fields(self) -> list[str]:
        """The states that an elementwise method has, for its choices."""
        return _existing(self.method)

    def whole(self, states: Sequence[Tensor]) -> Any:
        """These states as the method takes them."""
        found = dict(zip(self.fields, states, strict=True))
        return self.method.state(**{k: found.get(k) for k in self.method.state._fields})

    def signature(self) -> list[Any]:
        compute = compute_dtype(self.dtype)
        flat = tf.TensorSpec([None], compute)
        return [
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([self.floats], tf.float64),
            tf.TensorSpec([self.ints], tf.int64),
            dict.fromkeys(self.method.scalar_states, tf.TensorSpec([], compute)),
            tf.TensorSpec([None], self.dtype),
            flat,
            [flat for _ in self.fields],
        ]


@functools.cache
def _existing(method: Method) -> list[str]:
    with tf.init_scope():
        begun = method.init(tf.zeros([0]), **dict.fromkeys(method.init_hypers, 0.0))
    return [name for name, x in begun._asdict().items() if x is not None]


def _prepared(
    method: Method, dtype: Any, hypers: Mapping[str, Any], storage: Storage | None = None
) -> tuple[_Kernel, Any]:
    """The kernel for these hyperparameters, and their numbers."""
    floats: list[Any] = []
    ints: list[int] = []
    holes = tuple((name, _pack(value, floats, ints)) for name, value in hypers.items())
    kernel = _Kernel(method, dtype, holes, len(floats), len(ints), storage or Storage())
    return kernel, _vectors(floats, ints)


@functools.cache
def _compiled(kernel: _Kernel) -> Any:
    """A kernel as one XLA function over flat tensors, traced once for all sizes, steps and values."""
    return tf.function(kernel.both, kernel.signature(), autograph=False, jit_compile=True)


def _flat_step(kernel: _Kernel, *arguments: Any) -> Any:
    """One step over flat tensors: (theta, state, kept)."""
    if _use_xla:
        return _compiled(kernel)(*arguments)
    if tf.executing_eagerly():
        return kernel.both(*arguments)
    kept, theta, _, state = arguments[3:]
    return _outside(kernel.both, arguments, (theta, state, kept))


def _outside(function: Function, arguments: Any, like: Any) -> Any:
    """Run a function eagerly in the middle of a graph; the results have dtypes and shapes of `like`."""

    def packed(structure: Any, values: Sequence[Any]) -> Any:
        rest = iter(values)
        return tf.nest.map_structure(lambda x: None if x is None else next(rest), structure)

    def flat(*values: Tensor) -> Any:
        return _flat(function(*packed(arguments, values)))

    kinds = _flat(like)
    results = tf.py_function(flat, _flat(arguments), [x.dtype for x in kinds])
    return packed(like, [tf.ensure_shape(r, x.shape) for r, x in zip(results, kinds, strict=True)])


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one dtype as one vector."""
    flat = [tf.reshape(x, [-1]) for x in tensors]
    return flat[0] if len(flat) == 1 else tf.concat(flat, 0)


def _parted(vector: Tensor, shapes: Sequence[Any]) -> list[Tensor]:
    """The inverse of `_joined`."""
    if len(shapes) == 1:
        return [tf.reshape(vector, shapes[0])]
    parts = tf.split(vector, [shape.num_elements() for shape in shapes])
    return [tf.reshape(x, shape) for x, shape in zip(parts, shapes, strict=True)]


def _step(
    kernel: _Kernel,
    t: Tensor,
    numbers: tuple[Tensor, Tensor],
    kept: Any,
    variables: Any,
    grads: Any,
    slots: Any,
) -> dict[str, Tensor]:
    """One step on variables of one dtype and their states, in place; gives the new `kept`."""
    compute = compute_dtype(kernel.dtype)
    floats, ints = numbers
    grads = [tf.cast(g, compute) for g in grads]
    targets = [variables, *slots]
    if _inside_xla():
        with _without_derivatives():
            s = kernel.scalars(t, floats, ints, kept)
            for g, v, *states in zip(grads, *targets, strict=True):
                state = kernel.whole(list(map(tf.convert_to_tensor, states)))
                theta, state = kernel.step(t, s, tf.convert_to_tensor(v), g, state)
                for target, value in zip([v, *states], _flat([theta, *state]), strict=True):
                    target.assign(value)
        return {name: getattr(s, name) for name in kept}
    theta, *states = [_joined(target) for target in targets]
    arguments = theta, _joined(grads), states
    theta, state, kept = _flat_step(kernel, t, floats, ints, kept, *arguments)
    for target, value in zip(targets, [theta, *state], strict=True):
        for variable, part in zip(target, _parted(value, [v.shape for v in target]), strict=True):
            variable.assign(part)
    return dict(kept)


def _step_each(
    plan: tuple[Sequence[_Kernel], Any],
    t: Tensor,
    numbers: Sequence[tuple[Tensor, Tensor]],
    kept: Any,
    variables: Any,
    grads: Any,
    slots: Any,
    places: Any,
    weights: Mapping[str, Tensor],
    taking: _Taking | None = None,
) -> list[dict[str, Tensor]]:
    """As `_step`, for several groups of variables, one after the other; slots may be None.

    The plan is their kernels, and the shapes in which these see the variables. The last of a variable's
    slots is what is kept beside it. `places` are those of the variables in the optimizer, None where
    nothing is drawn.
    """
    kernels, seen = plan
    thetas = [
        [_reshaped(tf.convert_to_tensor(v), shape) for v, shape in zip(*group, strict=True)]
        for group in zip(variables, seen, strict=True)
    ]
    given = [
        [
            _reshaped(tf.ensure_shape(tf.cast(g, compute_dtype(v.dtype)), v.shape), shape)
            for g, v, shape in zip(*group, strict=True)
        ]
        for group in zip(grads, variables, seen, strict=True)
    ]
    record = kernels[0].method.state
    read = [
        [_Kept(record(*map(_read, slot)), _read(beside)) for *slot, beside in group] for group in slots
    ]
    here = None if taking is None else functools.partial(taking.here, variables, seen)
    arguments = t, numbers, kept, thetas, given, read, places, weights, here
    new_thetas, new_states, new_kept = _each_step(kernels, *arguments)
    targets = variables, slots
    for target, value in zip(_flat(targets), _flat((new_thetas, new_states)), strict=True):
        target.assign(_reshaped(value, target.shape))
    return list(new_kept)


def _reshaped(x: Tensor, shape: Any) -> Tensor:
    return x if x.shape == tf.TensorShape(shape) else tf.reshape(x, shape)


@dataclass(frozen=True, eq=False)
class _Taking:
    """What a step is given beside its gradients: inputs by name, and a function for further gradients."""

    method: Method
    gradient: Function  # () -> the gradient of each variable by its reference, where the variables are
    values: Mapping[str, Any]  # inputs by name: gradients by reference, numbers, or functions of nothing

    def here(self, variables: Any, seen: Any, scalars: Sequence[Any]) -> tuple[Any, Function]:
        """What is given for each variable, and how further gradients are taken."""
        elsewhere = functools.partial(self.elsewhere, variables, seen)
        return self.inputs(variables, seen, scalars), elsewhere

    def inputs(
        self, variables: Any, seen: Any, scalars: Sequence[Any]
    ) -> list[list[dict[str, Tensor]]]:
        """What the caller gives, in the compute dtypes; zeros where it is not read."""
        columns: dict[str, list[Tensor]] = {}
        every = [v for group in variables for v in group]
        shapes = [shape for group in seen for shape in group]
        for name, when in self.method.inputs.items():
            value = self.values[name]

            def read(name: str = name, value: Any = value) -> list[Tensor]:
                found = value() if callable(value) else value
                if name in self.method.numbers:
                    return [tf.cast(found, compute_dtype(v.dtype)) for v in every]
                pairs = zip(every, shapes, strict=True)
                return [_reshaped(tf.cast(found[v.ref()], compute_dtype(v.dtype)), z) for v, z in pairs]

            def nothing(name: str = name) -> list[Tensor]:
                sizes = [()] * len(every) if name in self.method.numbers else shapes
                return [tf.zeros(z, compute_dtype(v.dtype)) for z, v in zip(sizes, every, strict=True)]

            asked = getattr(scalars[0], when) if when and callable(value) else None
            columns[name] = read() if asked is None else branch(asked, read, nothing)
        rows = iter(range(len(every)))
        return [
            [{k: column[i] for k, column in columns.items()} for i in _next(rows, group)]
            for group in variables
        ]

    def elsewhere(self, variables: Any, seen: Any, points: Any) -> list[list[Tensor]]:
        """The gradients where the variables hold these points, which they hold from now on."""
        before = [[tf.identity(v) for v in group] for group in variables]
        for group, at in zip(variables, points, strict=True):
            for v, point in zip(group, at, strict=True):
                v.assign(_reshaped(stored(point, v.dtype), v.shape))
        try:
            taken = self.gradient()
        except Exception:
            for v, value in zip(_flat(variables), _flat(before), strict=True):
                v.assign(value)
            raise
        return [
            [
                _reshaped(tf.cast(taken[v.ref()], compute_dtype(v.dtype)), shape)
                for v, shape in zip(*group, strict=True)
            ]
            for group in zip(variables, seen, strict=True)
        ]


def _next(rows: Iterator[int], group: Sequence[Any]) -> list[int]:
    return [next(rows) for _ in group]


def _read(slot: Any) -> Any:
    if isinstance(slot, _Pieces):
        return _Pieces(*map(_read, slot))
    return None if slot is None else tf.convert_to_tensor(slot)


def _flat(structure: Any) -> list[Any]:
    """What there is in nested lists and tuples, without None."""
    return [x for x in tf.nest.flatten(structure) if x is not None]


def _each_step(kernels: Sequence[_Kernel], *arguments: Any) -> Any:
    """One step over tensors in groups, a kernel call for each: (thetas, states, kept)."""
    if _use_xla:
        return _each(_apart, kernels, *arguments)
    each = functools.partial(_each, _as_it_is, kernels)
    if tf.executing_eagerly():
        return each(*arguments)
    kept, thetas, _, states, _, *more = arguments[2:]
    if more and more[-1] is not None:
        raise NotImplementedError(
            f"{kernels[0].method.name}: without XLA a tf.function cannot take further gradients in a step. "
            "Leave use_xla(False) out, or call step outside of a tf.function."
        )
    return _outside(each, arguments, (thetas, states, kept))


def _each(
    run: Function,
    kernels: Sequence[_Kernel],
    t: Tensor,
    numbers: Any,
    kept: Any,
    thetas: Any,
    grads: Any,
    states: Any,
    places: Any,
    weights: Mapping[str, Tensor] | None = None,
    taking: Function | None = None,
) -> tuple[list[list[Tensor]], list[list[Any]], list[dict[str, Tensor]]]:
    """The parts of the kernels, in their order; `run` says how each is called.

    `taking(scalars)` gives what the caller gives, for each tensor, and the function that takes further
    gradients.
    """
    s = [run(k, "scalars", t, *n, p) for k, n, p in zip(kernels, numbers, kept, strict=True)]
    sources = kernels[0].method.sources
    calls = [
        [
            (t, of_parameter(sources, s[i], place), *tensors, place)
            for place, *tensors in zip(*group, strict=True)
        ]
        for i, group in enumerate(zip(places, thetas, grads, states, strict=True))
    ]
    nothing: list[list[dict[str, Tensor]]] = [[{} for _ in group] for group in calls]
    inputs, elsewhere = taking(s) if taking is not None else (nothing, None)
    shared = [k.begun(p) for k, p in zip(kernels, kept, strict=True)]
    besides: list[list[dict[str, Any]]] = []
    for kernel, group in zip(kernels, inputs, strict=True):
        once = {k: tf.cast(w, compute_dtype(kernel.dtype)) for k, w in (weights or {}).items()}
        record = kernel.method.given
        besides.append([{"given": record(**once, **x)} if record is not None else {} for x in group])
    for old, bs in zip(shared, besides, strict=True):
        for b in bs if old is not None else ():
            b["shared"] = old
    for n, (_, then) in enumerate(kernels[0].method.passes if any(calls) else ()):
        found = [
            [run(kernel, "partials", n, *call, *b.values()) for call, b in zip(group, bs, strict=True)]
            for kernel, group, bs in zip(kernels, calls, besides, strict=True)
        ]
        if isinstance(then, str):
            assert elsewhere is not None
            for bs, gs in zip(besides, elsewhere(found), strict=True):
                for b, g in zip(bs, gs, strict=True):
                    b["given"] = b["given"]._replace(**{then: g})
            continue
        total = run(kernels[0], "total", [x for group in found for x in group])
        for i, (kernel, bs) in enumerate(zip(kernels, besides, strict=True)):
            if not bs and shared[i] is None:
                continue
            before = () if shared[i] is None else (shared[i],)
            shared[i] = run(kernel, "shared", n, total, s[i], *before)
            for b in bs:
                b["shared"] = shared[i]
    made = [
        [run(kernel, "one", *call, *b.values()) for call, b in zip(group, bs, strict=True)]
        for kernel, group, bs in zip(kernels, calls, besides, strict=True)
    ]
    after = [
        {
            name: k.counted(p[name], w)
            if name == "step"
            else getattr(x if name in k.method.scalar_states else w, name)
            for name in p
        }
        for k, x, p, w in zip(kernels, s, kept, shared, strict=True)
    ]
    return [[x for x, _ in group] for group in made], [[x for _, x in group] for group in made], after


def _as_it_is(kernel: _Kernel, part: str, *arguments: Any) -> Any:
    return getattr(kernel, part)(*arguments)


def _apart(kernel: _Kernel, part: str, *arguments: Any) -> Any:
    """A part of a kernel as an XLA function of its own, compiled once for all tensors of a shape."""
    leaves = tf.nest.flatten(arguments)
    kinds = tuple((x.dtype, *x.shape) if tf.is_tensor(x) else x for x in leaves)
    return _compiled_part(kernel, part, kinds)(*arguments)


@functools.cache
def _compiled_part(kernel: _Kernel, part: str, kinds: Any) -> Any:
    plain = functools.partial(_without_a_tape, kernel, part)
    return tf.function(plain, autograph=False, jit_compile=True)


def _without_a_tape(kernel: _Kernel, part: str, *arguments: Any) -> Any:
    with _without_derivatives():
        return _as_it_is(kernel, part, *arguments)


@functools.lru_cache(maxsize=256)
def _in_one_call(step: Function, kernels: Any, shapes: Any) -> Any:
    """`_step` or `_step_each` as a graph, for eager code: one call instead of ten a variable."""
    return tf.function(functools.partial(step, kernels), autograph=False)


def _inside_xla() -> bool:
    """Whether an XLA function is being traced: then everything becomes one program in any case.

    There joining and parting would only copy; outside, one kernel over everything compiles and runs
    faster than one a variable. The bits are the same, so that a wrong answer costs nothing but time.
    """
    try:  # TensorFlow has no public word for it
        from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    except ImportError:
        return False
    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


# ---------------------------------------------------------------------------------------------------
# Checks


def _native(variable: Any) -> Any:
    """The tf.Variable of a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _path(variable: Any) -> str:
    named = getattr(variable, "path", None) or getattr(variable, "name", None)
    return str(named or "a tensor")


def _is_tensor(value: Any) -> bool:
    return tf.is_tensor(value) or isinstance(value, (tf.Variable, keras.Variable))


def _known(value: Any) -> Any:
    """The numbers of a tensor as NumPy has them, where no device has to be waited for; else None."""
    here = isinstance(value, tf.Tensor) and hasattr(value, "numpy") and "CPU" in value.device
    return value.numpy() if here else None


def _canonical(domain: Domain, value: Any) -> Any:
    """A checked value as Python's own type, so that a configuration is JSON."""
    if isinstance(value, (tuple, list)):
        return tuple(_canonical(domain, v) for v in value)
    if value is None or callable(value) or _is_tensor(value):
        return value
    if domain.kind in ("float", "int"):
        return float(value) if domain.kind == "float" else int(value)
    return value


def _checked(
    owner: str,
    domains: Mapping[str, Domain],
    values: Mapping[str, Any],
    requires: Function | None = None,
    spelling: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Values inside their domains; tensors are not looked at, schedules give what they give."""
    known = {k: domains[k] for k, v in values.items() if not _is_schedule(domains[k], v)}
    check_all(owner, known, values, _is_tensor)
    if len(values) == len(domains):
        check_relations(owner, requires, _respelled(values, spelling or {}))
    return {name: _canonical(domains[name], value) for name, value in values.items()}


def _respelled(values: Mapping[str, Any], spelling: Mapping[str, str]) -> dict[str, Any]:
    """From Keras' names to the spec's."""
    return {spelling.get(name, name): value for name, value in values.items()}


def _is_schedule(domain: Domain, value: Any) -> bool:
    return domain.kind == "float" and callable(value) and not _is_tensor(value)


def _scaled(value: Any, factor: float) -> Any:
    """A number, a tensor or a schedule, so many times, in double."""
    if callable(value):
        return lambda n: _scaled(value(n), factor)
    if isinstance(value, (int, float)):
        return value * factor
    x = _double(value)
    return rounded(x)(x * factor)


def _listed_of(owner: str, what: str, given: Any, call: str) -> list[Any]:
    """A list, or what else holds one for each parameter, as a list."""
    if _is_tensor(given) or isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(
            f"{owner}: {what} must be a list with one for each parameter, got a {type(given).__name__}. "
            f"Call {call}."
        )
    return list(given)


def _check_parameter(owner: str, variable: Any) -> None:
    dtype = _native(variable).dtype
    if dtype not in (tf.float16, tf.bfloat16, tf.float32, tf.float64):
        raise TypeError(
            f"{owner}: parameter {_path(variable)} has dtype {dtype.name}; only float16, bfloat16, "
            "float32 and float64 can be optimized. Make it non-trainable, or convert it."
        )


def _dense(owner: str, gradient: Any, variable: Any) -> Tensor:
    """A gradient as a dense tensor of its parameter's shape; refused where it does not fit."""
    if isinstance(gradient, tf.IndexedSlices):
        gradient = tf.convert_to_tensor(gradient)
    native = _native(variable)
    if not _is_tensor(gradient):
        gradient = tf.convert_to_tensor(gradient)
    path = _path(variable)
    if not tf.TensorShape(gradient.shape).is_compatible_with(native.shape):
        raise ValueError(
            f"{owner}: the gradient of {path} has shape {tuple(gradient.shape)}, the parameter has "
            f"shape {tuple(native.shape)}. Pass the gradient of this parameter, or reshape it."
        )
    gradient = tf.convert_to_tensor(gradient)
    dtype = gradient.dtype
    if not dtype.is_floating:
        raise TypeError(
            f"{owner}: the gradient of {path} has dtype {dtype.name}, the parameter has dtype "
            f"{native.dtype.name}. Only floating-point gradients can be used."
        )
    if dtype == tf.float64 and native.dtype != tf.float64:
        raise TypeError(
            f"{owner}: the gradient of {path} has dtype {dtype.name}, the parameter has dtype "
            f"{native.dtype.name}. Rounding it would hide a mistake; convert it yourself, "
            f"tf.cast(g, tf.{native.dtype.name})."
        )
    return gradient


# ---------------------------------------------------------------------------------------------------
# The shell


_ALGORITHM = "algorithm"  # the entry of a saved state that holds the name of its spec


class KerasOptions(TypedDict, total=False):
    """What every optimizer takes besides its hyperparameters: Keras' own options, and `Storage`."""

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    store: str
    states: str
    seed: int


class _Kind(NamedTuple):
    """What variables have in common that have the same scalars."""

    dtype: str  # the compute dtype
    setting: Setting

    def __str__(self) -> str:
        return f"{self.dtype} {self.setting.label}".rstrip()


@dataclass(frozen=True)
class _Assigned:
    """What rules say of each variable, in the order of `build`; Keras need not look inside."""

    settings: list[Setting]
    kinds: dict[str, _Kind]


class Optimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """The Keras shell of a `Method`: `compile` and `fit`, `apply(grads, variables)`, `apply_gradients`.

    Every hyperparameter is an attribute, checked when it is set; as in Keras, a `fit` or tf.function
    that has been traced keeps the values it was traced with, learning_rate apart. learning_rate lives
    in Keras' float32 variable and counts as what that holds, whatever is assigned to the variable
    itself; a float hyperparameter may also be a generated schedule, which is evaluated in double
    precision. What schedules give is checked in eager steps, on the CPU; what is traced, or on another
    device, is not looked into.

    A variable whose gradient is None is left as it is, with its states; the clock, `iterations`, is
    one for all variables and moves. Parameters in float16 or bfloat16 are computed in float32 and
    rounded once when they are stored, or as `storage` says; their states are float32, or pieces.
    """

    method: Method
    domains: Mapping[str, Domain]
    spelling: Mapping[str, str] = {}  # names that differ: Keras' -> the spec's

    def __init__(
        self, *, rules: Sequence[Rule] = (), name: str | None = None, **arguments: Any
    ) -> None:
        if "weight_decay" not in self.domains and arguments.pop("weight_decay", None) is not None:
            raise TypeError(self._no_decay())
        weights = arguments.pop("weights", None)
        hypers = {k: arguments.pop(k) for k in self.domains if k in arguments}
        hypers = self._accepted(hypers)
        checked = Rules(
            type(self).__name__,
            rules,
            self.domains,
            self.spelling,
            _respelled(hypers, self.spelling),
            lambda domain, value: _is_tensor(value) or _is_schedule(domain, value),
            self.method.shared_states,
            self.method.elementwise,
            self.method.choices,
        )
        for overrides in checked.overrides:
            for key, value in overrides.items():
                if not isinstance(value, Times):
                    overrides[key] = _canonical(checked.domains[key], value)
        rate = hypers.pop("learning_rate", 1.0)
        unknown = arguments.keys() - KerasOptions.__annotations__.keys()
        if unknown:
            once = ["weights"] if self.method.weights else []
            known = ", ".join([*once, *self.domains, "rules", "name", *KerasOptions.__annotations__])
            raise TypeError(
                f"{type(self).__name__}: no hyperparameter is called {', '.join(sorted(unknown))}. "
                f"There are {known}."
            )
        words = {key: arguments.pop(key) for key in vars(Storage()) if key in arguments}
        words["seed"] = hypers.get("seed", words.get("seed", 0))  # the algorithm's, where it has one
        storage = Storage(**words).check(type(self).__name__)
        # weight_decay stays here: Keras' base class would decay a second time.
        super().__init__(learning_rate=rate, name=name or self.method.name, **arguments)
        for key, value in hypers.items():
            setattr(self, key, value)
        self._rules = checked
        self._checks = True
        self.__setattr__("weights", weights)
        self._parked: _Parked | None = None
        self._taking: _Taking | None = None
        self._evaluating = False
        self._resumed = False  # whether a state was loaded since the last step
        self.storage = storage
        self.method = decided(self.method, self._named(self._set()))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weights":  # before Keras can track them
            known = check_weights(type(self).__name__, self.method.weights, value)
            with tf.init_scope():
                name, value = "_once", _Once({k: tf.identity(x) for k, x in known.items()})
        if name in self.domains and name != "learning_rate" and getattr(self, "_checks", False):
            self._not_begun(name)
            now = self._accepted({**self._set(), name: value})
            value = now[name]
            if self.spelling.get(name, name) in type(self).method.choices.values():
                self._choose(f"{name} = {value!r}", self._named(now))
        if name == "weight_decay" and name not in self.domains and value is not None:
            raise TypeError(self._no_decay())
        super().__setattr__(name, value)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The meta-parameters by their names; a traced function keeps those that it was traced with."""
        values: dict[str, Tensor] = self._once.values
        return values

    def _set(self) -> dict[str, Any]:
        """The hyperparameters as they are set, by Keras' names; the learning rate is a variable."""
        now = {k: getattr(self, k) for k in self.domains if k != "learning_rate"}
        if "learning_rate" in self.domains:
            now["learning_rate"] = self._learning_rate
        return now

    def _named(self, hypers: Mapping[str, Any]) -> dict[str, Any]:
        return _respelled(hypers, self.spelling)

    def _choose(self, what: str, hypers: Mapping[str, Any]) -> None:
        """Take other kernels for other choices, unless the states of a variable do not fit them."""
        chosen = decided(type(self).method, hypers)
        given = dict.fromkeys(chosen.init_hypers, 0.0)
        for variable in self._trainable_variables if self.built else ():
            with tf.init_scope():
                theta = tf.zeros(_native(variable).shape)
                before, after = (m.init(theta, **given) for m in (self.method, chosen))
            check_states(type(self).__name__, what, before, after, chosen.state._fields)
        self.method = chosen

    @classmethod
    def _no_decay(cls) -> str:
        return (
            f"{cls.__name__}: this algorithm has no weight_decay. Take one that has, such as AdamW, or "
            "add the transform weight_decay to the gradients."
        )

    @classmethod
    def _accepted(cls, hypers: Mapping[str, Any]) -> dict[str, Any]:
        requires = cls.method.requires
        for name, state in cls._begins().items():
            if name in hypers and _is_schedule(cls.domains[name], hypers[name]):
                raise TypeError(
                    f"{cls.__name__}: {name} is where {state} begins, which goes its own way, so it cannot "
                    "be a schedule. Pass a number."
                )
        return _checked(cls.__name__, cls.domains, hypers, requires, cls.spelling)

    @classmethod
    def _begins(cls) -> dict[str, str]:
        """Hyperparameters, by Keras' names, at which states of all parameters together begin."""
        states = {start: state for state, start in cls.method.shared_states.items()}
        return {k: states[s] for k in cls.domains if (s := cls.spelling.get(k, k)) in states}

    def _not_begun(self, name: str) -> None:
        """Refuse to set where a state begins once it has."""
        if name in self._begins() and getattr(self, "built", False):
            state = self._begins()[name]
            raise ValueError(
                f"{type(self).__name__}: {name} is where {state} began, and changes nothing any more: no "
                f"callback can drive it. Assign the variable {state}_float32 of optimizer.variables."
            )

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the coming step: Keras' variable, or what the schedule gives."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if "learning_rate" in self.domains:
            self._not_begun("learning_rate")
            value = self._accepted({"learning_rate": value})["learning_rate"]
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Let variables, given themselves or by parts of their names, not decay. Call it before building."""
        if "weight_decay" not in self.domains:
            raise TypeError(self._no_decay())
        if "weight_decay" in self._begins():
            raise TypeError(f"{type(self).__name__}: one weight_decay goes its own way for all variables.")
        super().exclude_from_weight_decay(var_list, var_names)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: decay is part of the method's equations."""

    def build(self, variables: Any) -> None:
        """Create the states, in the order variable by variable, named `<variable>_<state>`."""
        if self.built:
            return
        variables = _listed_of(type(self).__name__, "variables", variables, "build(variables)")
        self._check_distinct(variables)
        for variable in variables:
            if not self._overwrite_variable_with_gradient(variable):
                _check_parameter(type(self).__name__, variable)
        settings = self._settings(variables)
        for variable, setting in zip(variables, settings, strict=True):
            if setting.train and not self._overwrite_variable_with_gradient(variable):
                called = f"parameter {_path(variable)}"
                shape = setting.seen(_native(variable).shape)
                check_shape(type(self).__name__, self.method.only, called, shape)
        super().build(variables)
        slots = [self._slots_of(v, setting) for v, setting in zip(variables, settings, strict=True)]
        for name in self.method.state._fields:
            setattr(self, f"_state_{name}", [slot.get(name) for slot in slots])
            setattr(self, f"_scale_{name}", [slot.get(f"{name}.scale") for slot in slots])
        self._beside = [slot.get("beside") for slot in slots]
        self._joins = self.method.elementwise and all(map(self._plainly_kept, variables))
        pairs = zip(variables, settings, strict=True)
        kinds = {self._kind(_native(v).dtype, setting) for v, setting in pairs if setting.train}
        kinds = kinds or {self._kind(tf.float32, self._rules.settings[()])}
        self._assigned = _Assigned(settings, {str(kind): kind for kind in sorted(kinds, key=str)})
        for name, start in self._kept_once().items():
            kept = {key: self._kept(name, start, kind) for key, kind in self._assigned.kinds.items()}
            setattr(self, f"_state_{name}", kept)

    def _settings(self, variables: Sequence[Any]) -> list[Setting]:
        """What rules say of each variable."""
        named = [(_path(v), tuple(_native(v).shape)) for v in variables]
        return self._rules.assign(named, "Give them names.")

    def _setting(self, variable: Any) -> Setting:
        return cast(Setting, self._assigned.settings[self._get_variable_index(variable)])

    @staticmethod
    def _kind(dtype: Any, setting: Setting) -> _Kind:
        return _Kind(compute_dtype(dtype).name, setting)

    def assignment(self, variables: Any = None) -> Assignment:
        """Which rules hold for which parameter, and what follows: a table when it is printed.

        Args:
            variables: the parameters, where the optimizer has not been built yet.

        Raises:
            RuntimeError: it has not been built, and there are no variables.
        """
        if variables is None and not self.built:
            raise RuntimeError(
                f"{type(self).__name__}: which parameters there are is not known before build. Pass "
                "them: optimizer.assignment(model.trainable_variables)."
            )
        known = [*(self._trainable_variables if variables is None else variables)]
        rows = []
        for v, setting in zip(known, self._settings(known), strict=True):
            if not self._decays(v):
                setting = replace(setting, overrides=(*setting.overrides, ("weight_decay", 0.0)))
            rows.append((_path(v), tuple(_native(v).shape), setting))
        now = {k: float(x.numpy()) if _is_tensor(x) else x for k, x in self._numbers().items()}
        return self._rules.assignment(now, rows)

    def _numbers(self) -> dict[str, Any]:
        """The hyperparameters as they are set now, by the spec's names."""
        now = {key: getattr(self, key) for key in self.domains}
        if callable(self._learning_rate) and "learning_rate" in now:
            now["learning_rate"] = self._learning_rate
        return _respelled(now, self.spelling)

    def _kept_once(self) -> dict[str, float | str]:
        """What is kept once for each compute dtype, and where it starts."""
        count: dict[str, float | str] = {"step": 0.0} if self.method.held else {}
        return {**self.method.scalar_states, **self.method.shared_states, **count}

    def _check_distinct(self, variables: Sequence[Any]) -> None:
        seen: set[Any] = set()
        for i, variable in enumerate(variables):
            if not hasattr(variable, "assign"):
                raise TypeError(
                    f"{type(self).__name__}: parameter {i} is a {type(variable).__name__}, not a variable. "
                    "The order is apply(grads, variables), of pairs (gradient, variable)."
                )
            key = self._var_key(variable)
            if key in seen:
                raise ValueError(
                    f"{type(self).__name__}: parameter {_path(variable)} is given twice. Add its "
                    "gradients and pass it once."
                )
            seen.add(key)

    def _plainly_kept(self, variable: Any) -> bool:
        """Whether a variable is rounded once, and its states are in the compute dtype."""
        native = _native(variable)
        return self.storage.plain(native.dtype.name) and not self._codes(native)

    def _codes(self, native: Any) -> Mapping[str, str]:
        """The states of a variable that are kept in 8 bits."""
        size = native.shape.num_elements()
        return self.storage.codes(self.method.coded, native.dtype.name, size)

    def _slots_of(self, variable: Any, setting: Setting) -> dict[str, Any]:
        if self._overwrite_variable_with_gradient(variable) or not setting.train:
            return {}
        native = _native(variable)
        numbers = setting.over(self._numbers(), _scaled)
        init = {name: numbers[name] for name in self.method.init_hypers}
        codes, beside = self._codes(native), self.storage.beside(native.dtype.name)
        with tf.init_scope():
            theta = _reshaped(tf.cast(native, compute_dtype(native.dtype)), setting.seen(native.shape))
            started: dict[str, Any] = {}
            for name, value in self.method.init(theta, **init)._asdict().items():
                started[name] = value
                if name in codes and value is not None:
                    started[name], started[f"{name}.scale"] = encoded(value, codes[name])
            if beside is not None:
                kind = theta.dtype if self.storage.store == "master" else native.dtype
                started["beside"] = tf.cast(self.storage.begun(theta), kind)
        path = _path(variable).replace("/", "_").replace(":", "_")
        slots: dict[str, Any] = {}
        for name, value in started.items():
            if value is None:
                continue
            word = (beside or "") if name == "beside" else name
            with tf.distribute.get_strategy().extended.colocate_vars_with(native):
                slots[name] = self.add_variable(
                    shape=value.shape,
                    initializer=lambda shape, dtype, value=value: tf.cast(value, dtype),
                    dtype=value.dtype.name,
                    name=f"{path}_{word.replace('.', '_')}",
                )
        return slots

    def _kept(self, name: str, start: Any, kind: _Kind) -> Any:
        numbers = kind.setting.over(self._numbers(), _scaled)
        with tf.init_scope():
            first = float(numbers.get(start, start))
        return self.add_variable(
            shape=(),
            # Keras' own Constant goes by float32.
            initializer=lambda shape, dtype: tf.cast(tf.constant(first, tf.float64, shape), dtype),
            dtype="int64" if name == "step" else kind.dtype,
            aggregation="only_first_replica",
            name=f"{name}_{kind}".replace(" ", "_"),
        )

    @_as_written
    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Do one step on the variables. Sparse gradients are made dense.

        Args:
            grads: a gradient for each variable, None for one that has none.
            trainable_variables: the variables; those the optimizer was built with if left out.

        Raises:
            ValueError: gradients and variables do not match in number or shape; nothing is changed.
            TypeError: a gradient is not of a floating-point type; nothing is changed.
            RuntimeError: the model holds its evaluation weights.
        """
        owner = type(self).__name__
        if self._evaluating:
            raise RuntimeError(
                f"{owner}: a step inside `with optimizer.evaluation()`. Leave the block first."
            )
        if self.method.asks and self._taking is None:
            raise TypeError(self._takes_more())
        if self._resumed and self.built:
            self._check_point()
        grads = _listed_of(owner, "grads", grads, "apply(grads, variables)")
        given = self._trainable_variables if trainable_variables is None else trainable_variables
        variables = _listed_of(owner, "variables", given, "apply(grads, variables)")
        if (self.built or trainable_variables is not None) and len(grads) != len(variables):
            raise ValueError(
                f"{owner}: {len(grads)} gradients for {len(variables)} parameters. Pass one for each, "
                "None for a parameter that has none."
            )
        self._check_distinct(variables)
        for i, (g, v) in enumerate(zip(grads, variables, strict=False)):
            if g is not None and not self._overwrite_variable_with_gradient(v):
                grads[i] = _dense(owner, g, v)
        super().apply(grads, variables if trainable_variables is not None else None)
        if self.method.evaluate:
            for g, v in zip(grads, variables, strict=True):
                if g is not None and getattr(v, "constraint", None) is not None:
                    slot = self._slot(self.method.evaluate, v)
                    if slot is not None:
                        x = v.constraint(_reshaped(tf.convert_to_tensor(slot), v.shape))
                        slot.assign(_reshaped(x, slot.shape))

    def _takes_more(self) -> str:
        """What to say where `apply` cannot do the step."""
        names = "".join(f", {name}=..." for name in self.method.inputs)
        takes = "takes several gradients a step" if self.method.takes_several else "reads more than gradients"
        return (
            f"{type(self).__name__} {takes}. Call optimizer.step(gradient, variables{names}), where "
            "gradient() gives the gradients at what the variables hold; in a Keras model, from train_step."
        )

    @_as_written
    def step(self, gradient: Any, trainable_variables: Any = None, **given: Any) -> None:
        """Do one step with gradients that the optimizer asks for.

        Args:
            gradient: a function without arguments that gives a gradient for each variable, where the
                variables are; algorithms that take several gradients a step call it again while the
                variables hold another point. A list of gradients for algorithms that take one.
            trainable_variables: the variables; those the optimizer was built with if left out.
            **given: what else the algorithm reads, by name: a list with a tensor for each variable, or
                a function that makes one, called in those steps that read it.

        Raises:
            ValueError: gradients and variables do not match in number or shape; nothing is changed.
            TypeError: no function is given where several gradients are taken, or an input is missing.
        """
        owner, method = type(self).__name__, self.method
        if method.takes_several and not callable(gradient):
            raise TypeError(self._takes_more())
        if odd := [k for k in given if k not in method.inputs]:
            reads = f"reads {', '.join(method.inputs)}" if method.inputs else "reads nothing but gradients"
            raise TypeError(f"{owner}: step was given {', '.join(odd)}; it {reads}. Leave it out.")
        if lacking := [k for k in method.inputs if given.get(k) is None]:
            what = ", ".join(f"{k}=..." for k in lacking)
            raise TypeError(f"{owner}: step reads {', '.join(lacking)}. Pass {what}.")
        if tf.distribute.has_strategy() and method.asks:
            raise NotImplementedError(f"{owner}: not under a distribution strategy. Use one device.")
        if self.gradient_accumulation_steps and method.takes_several:
            raise NotImplementedError(
                f"{owner}: several gradients a step are not accumulated. Leave "
                "gradient_accumulation_steps out."
            )
        chosen = self._trainable_variables if trainable_variables is None else trainable_variables
        variables = list(chosen)
        if not variables:
            raise ValueError(
                f"{owner}: there are no variables yet. Call the model once before: model(x[:1])."
            )
        first = list(gradient() if callable(gradient) else gradient)

        def by_reference(what: str, value: Any) -> dict[Any, Tensor]:
            value = list(value)
            if len(value) != len(variables):
                raise ValueError(
                    f"{owner}: {what} has {len(value)} entries for {len(variables)} parameters. Pass one "
                    "for each."
                )
            made = {}
            for v, x, g in zip(variables, value, first, strict=True):
                if g is not None and x is None:
                    raise ValueError(
                        f"{owner}: {what} has nothing for {_path(v)}, which has a gradient. Pass a tensor."
                    )
                if g is not None:
                    made[_native(v).ref()] = _dense(owner, x, v)
            return made

        def further() -> dict[Any, Tensor]:
            grads = by_reference("a further gradient", gradient())
            scale, values = self.loss_scale_factor, list(grads.values())
            if scale is not None:
                values = [g / scale for g in values]
            return dict(zip(grads, self._clip_gradients(values), strict=True))

        def input_of(name: str, value: Any) -> Any:
            if name in method.numbers:
                return value
            if callable(value):
                return lambda: by_reference(name, value())
            return by_reference(name, value)

        values = {name: input_of(name, value) for name, value in given.items()}
        self._taking = _Taking(method, further, values)
        try:
            self.apply(first, trainable_variables)
        finally:
            self._taking = None

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        """Keras calls this with the gradients clipped, averaged and unscaled."""
        if tf.distribute.has_strategy() and self.method.shared_states:
            raise NotImplementedError(
                f"{type(self).__name__} keeps {', '.join(self.method.shared_states)} for all parameters "
                "together, which is not there under tf.distribute yet. Leave the strategy out."
            )
        if tf.distribute.has_strategy():  # Keras sums gradients over replicas, then goes one by one
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            grads, trainable_variables = [], []
        kept = self._advance(grads, trainable_variables, learning_rate)
        for (name, kind), value in kept.items():
            self.assign(getattr(self, f"_state_{name}")[kind], value)

    def _distributed_tf_update_step(self, distribution: Any, grads_and_vars: Any, learning_rate: Any) -> None:
        """As Keras, one variable after the other, unless all of them have to be seen first."""
        pairs = list(grads_and_vars)
        if not self.method.passes or not pairs:
            super()._distributed_tf_update_step(distribution, pairs, learning_rate)
            return
        grads, variables = ([*x] for x in zip(*pairs, strict=True))

        def update(_: Any, grads: Any, variables: Any, learning_rate: Any) -> None:
            self._advance(grads, variables, learning_rate)

        given = grads, variables, learning_rate
        distribution.extended.update(variables[0], update, args=given, group=False)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its states."""
        self._advance([gradient], [variable], learning_rate)

    def _advance(self, grads: Any, variables: Any, learning_rate: Any) -> dict[tuple[str, str], Tensor]:
        """One step on all variables. Returns the new states of step scope."""
        t = tf.cast(tf.convert_to_tensor(self.iterations), tf.int64) + 1
        groups: dict[tuple[Any, bool, Setting], list[tuple[Any, Any]]] = {}
        for g, v in zip(grads, variables, strict=True):
            setting = self._setting(v)
            if setting.train:
                groups.setdefault((_native(v).dtype, self._decays(v), setting), []).append((g, v))
        kept_by_kind: dict[str, dict[str, Any]] = {}
        for name in self._kept_once():
            for kind, variable in getattr(self, f"_state_{name}").items():
                kept_by_kind.setdefault(kind, {})[name] = tf.convert_to_tensor(variable)
        for old in kept_by_kind.values():
            t = old["step"] + 1 if "step" in old else t
        present = {str(self._kind(dtype, setting)) for dtype, _, setting in groups}
        for key in kept_by_kind:
            if key not in present:  # the clock moves for these scalars, too
                kind = self._assigned.kinds[key]
                groups[tf.as_dtype(kind.dtype), True, kind.setting] = []
        kinds = [str(self._kind(dtype, setting)) for dtype, _, setting in groups]
        kept = [kept_by_kind.get(kind, {}) for kind in kinds]
        prepared = [
            _prepared(self.method, dtype, self._hypers(learning_rate, decays, setting), self.storage)
            for dtype, decays, setting in groups
        ]
        advance = self._advance_joined if self._joins else self._advance_each
        made = advance(t, prepared, kept, [*groups.values()])
        # What is kept once follows from the optimizer's own hyperparameters, decay included.
        order = sorted(zip(kinds, groups, made, strict=True), key=lambda x: x[1][1])
        moved = {kind: new for kind, _, new in order}
        return {(name, kind): new for kind, news in moved.items() for name, new in news.items()}

    def _advance_joined(self, t: Tensor, prepared: Any, kept: Any, groups: Any) -> list[Any]:
        """One kernel call for all variables of a group."""
        moved = []
        for (kernel, given), old, pairs in zip(prepared, kept, groups, strict=True):
            if not pairs:
                none = tf.zeros([0], kernel.dtype)
                empty = none, none, [none for _ in kernel.fields]
                moved.append(_flat_step(kernel, t, *given, old, *empty)[2])
                continue
            grads = [g for g, _ in pairs]
            variables = [_native(v) for _, v in pairs]
            slots = [[_native(self._slot(name, v)) for _, v in pairs] for name in kernel.fields]
            step = self._called(_step, kernel, tuple(tuple(v.shape) for v in variables))
            moved.append(step(t, given, old, variables, grads, slots))
        return moved

    def _advance_each(self, t: Tensor, prepared: Any, kept: Any, groups: Any) -> Any:
        """A kernel call for each variable, after what is computed over all of them."""
        if not groups:
            return []
        kernels, numbers = (tuple(x) for x in zip(*prepared, strict=True))
        grads = [[g for g, _ in pairs] for pairs in groups]
        variables = [[_native(v) for _, v in pairs] for pairs in groups]
        slots = [[self._entries(v) for _, v in pairs] for pairs in groups]
        shapes = tuple(tuple(tuple(v.shape) for v in group) for group in variables)
        seen = tuple(tuple(self._setting(v).seen(_native(v).shape) for _, v in pairs) for pairs in groups)
        plan = kernels, seen
        arguments = t, numbers, kept, variables, grads, slots, self._places(groups), self.weights
        if self._taking is not None and self.method.asks:
            return _step_each(plan, *arguments, self._taking)
        return self._called(_step_each, plan, shapes)(*arguments)

    def _places(self, groups: Any) -> list[list[Tensor | None]]:
        """The variables' places in the optimizer, which only what draws needs."""
        draws = self.method.sources or self.storage.store == "stochastic"
        return [
            [
                tf.constant(self._get_variable_index(v), tf.int64) if draws else None
                for _, v in pairs
            ]
            for pairs in groups
        ]

    def _entries(self, variable: Any) -> list[Any]:
        """All that is kept of a variable, what is beside it last."""
        i = self._get_variable_index(variable)
        entries: list[Any] = []
        for name in self.method.state._fields:
            slot, scales = getattr(self, f"_state_{name}")[i], getattr(self, f"_scale_{name}")[i]
            slot = _native(slot)
            entries.append(slot if scales is None else _Pieces(slot, _native(scales)))
        return [*entries, _native(self._beside[i])]

    def _called(self, step: Function, kernels: Any, shapes: Any) -> Function:
        if tf.executing_eagerly() and _use_xla and not tf.distribute.has_strategy():
            return cast(Function, _in_one_call(step, kernels, shapes))
        return functools.partial(step, kernels)

    def _slot(self, name: str, variable: Any) -> Any:
        return getattr(self, f"_state_{name}")[self._get_variable_index(variable)]

    def _decays(self, variable: Any) -> bool:
        return "weight_decay" not in self.domains or bool(self._use_weight_decay(variable))

    def _hypers(self, learning_rate: Any, decays: bool, setting: Setting) -> dict[str, Any]:
        """The hyperparameters of the coming step by the spec's names."""
        now = {key: getattr(self, key) for key in self.domains if key != "learning_rate"}
        if "learning_rate" in self.domains:
            now["learning_rate"] = learning_rate
        if not decays:
            now["weight_decay"] = 0.0
        now = {key: self._given(key, value) for key, value in now.items()}
        named = {self.spelling.get(key, key): now[key] for key in self.domains}
        words = {self.spelling.get(key, key): key for key in self.domains}
        hypers = setting.over(named, _scaled)
        return {name: self._given(words[name], value) for name, value in hypers.items()}

    def _given(self, key: str, value: Any) -> Any:
        """What a schedule gives in the coming step, checked where it is known; others as they are."""
        if not (callable(value) or (key == "learning_rate" and callable(self._learning_rate))):
            return value
        given = value(self._iterations) if callable(value) else value
        known = _known(given) if _is_tensor(given) else given
        if known is not None or given is None:
            known = known.item() if getattr(known, "shape", None) == () else known
            self.domains[key].check(type(self).__name__, f"{key}, which a schedule gave,", known)
        return given

    @contextmanager
    def evaluation(self, variables: Any = None) -> Iterator[None]:
        """The weights to evaluate with: `with optimizer.evaluation(): model.evaluate(...)`.

        Where the algorithm takes its gradient at another point (look-ahead), the variables hold that
        point during training; inside this block they hold the iterate. Copies are swapped, nothing is
        recomputed, so a run with evaluations has the bits of a run without. For other algorithms the
        block changes nothing.

        Args:
            variables: the variables to swap; all that the optimizer was built with if left out.
        """
        entered = self._enter_evaluation(variables)
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before
            if entered:
                self._leave_evaluation()

    def _enter_evaluation(self, variables: Any = None) -> bool:
        """Put the evaluation weights in, training weights aside; False where they are in already."""
        name = self.method.evaluate
        if name is None or not self.built:
            return False
        now = int(self._iterations.numpy())
        if self._parked is not None and self._parked.step == now:
            return False
        chosen = self._trainable_variables if variables is None else list(variables)
        self._check_variables_are_known(chosen)
        pairs = [(_native(v), self._slot(name, v)) for v in chosen]
        pairs = [(v, slot) for v, slot in pairs if slot is not None]
        self._parked = _Parked(now, [(v, tf.identity(v)) for v, _ in pairs])
        for v, slot in pairs:
            v.assign(_reshaped(stored(tf.convert_to_tensor(slot), v.dtype), v.shape))
        return True

    def _leave_evaluation(self) -> None:
        """Put the training weights back, if no step has been done since they were put aside."""
        parked, self._parked = self._parked, None
        if parked is not None and parked.step == int(self._iterations.numpy()):
            for v, value in parked.values:
                v.assign(value)

    def save_own_variables(self, store: Any) -> None:
        """Keras' numbered variables, and the algorithm: another one may have as many of the same shapes."""
        super().save_own_variables(store)
        # As numbers, which every store keeps.
        store[_ALGORITHM] = tf.constant([*self.method.name.encode()], tf.uint8).numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved; refused, with nothing changed, where it does not fit.

        Without variables, before `build`, or with another number of them and no name of an algorithm, as
        in files of former versions, Keras warns and loads nothing.
        """
        owner, name = type(self).__name__, self.method.name
        saved = {key: store[key] for key in store.keys()}  # noqa: SIM118 - Keras' stores are no mappings
        its = saved.pop(_ALGORITHM, None)
        its = name if its is None else bytes(int(x) for x in its).decode(errors="replace")
        if its != name:
            raise ValueError(
                f"{owner}: the saved state is of {its}. Another optimizer saved it: load it into that one, "
                "or leave it out, model.load_weights(..., skip_mismatch=True)."
            )
        variables = self.variables
        for i, v in enumerate(variables if len(saved) == len(variables) else ()):
            if str(i) not in saved:
                raise ValueError(
                    f"{owner}: the saved state has no entry {i}, for {v.path}. Load what save_own_variables "
                    "saved."
                )
            if tuple(saved[str(i)].shape) != tuple(v.shape):
                raise ValueError(
                    f"{owner}: the saved {v.path} has shape {tuple(saved[str(i)].shape)}; expected is "
                    f"{tuple(v.shape)}. Another optimizer saved it, or one of other parameters."
                )
        super().load_own_variables(saved)
        self._resumed = True

    def _check_point(self) -> None:
        """Warn where what is resumed from are the weights to evaluate with."""
        self._resumed, name = False, self.method.evaluate
        with tf.init_scope():
            if name is None or not tf.executing_eagerly() or not int(self._iterations.numpy()):
                return
            pairs = [(_native(v), self._slot(name, v)) for v in self._trainable_variables]
            found = [(v, slot) for v, slot in pairs if slot is not None]
            near = [_reshaped(stored(tf.convert_to_tensor(x), v.dtype), v.shape) for v, x in found]
            same = [tf.reduce_all(tf.equal(v, x)) for (v, _), x in zip(found, near, strict=True)]
            if found and bool(tf.reduce_all(tf.stack(same))):
                warnings.warn(
                    f"{type(self).__name__}: the variables hold the weights to evaluate with, not those that "
                    "the loaded state was trained with, so this run does not go on where that one was. "
                    "Save outside of optimizer.evaluation() to go on, or place the checkpoint's callback "
                    "before EvaluationWeights.",
                    stacklevel=3,
                )

    def finalize_variable_values(self, var_list: Any) -> None:
        """Leave the evaluation weights in the model, as Keras does at the end of `fit`.

        The training weights are kept aside; EvaluationWeights puts them back for the next `fit`.
        """
        if self.use_ema:
            super().finalize_variable_values(var_list)
        else:
            self._enter_evaluation(var_list)

    def get_config(self) -> dict[str, Any]:
        """Everything that makes another optimizer like this one, as JSON."""
        config = super().get_config()
        for key in ("learning_rate", "weight_decay"):
            if key not in self.domains:
                del config[key]
        own = {key: getattr(self, key) for key in self.domains if key != "learning_rate"}
        own |= vars(self.storage)
        own["rules"] = [rule.config() for rule in self._rules.given]
        once = {"weights": {k: _as_json(w) for k, w in self.weights.items()}} if self.weights else {}
        return {**config, **{key: _serialized(value) for key, value in own.items()}, **once}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Optimizer:
        """The reverse of `get_config`."""
        rules = [
            Rule.from_config({key: _deserialized(value, custom_objects) for key, value in rule.items()})
            for rule in config.get("rules", ())
        ]
        once: dict[str, Any] = {}
        if isinstance(config.get("weights"), Mapping):
            once["weights"] = {k: _unlisted(w) for k, w in config["weights"].items()}
        rest = {key: value for key, value in config.items() if key not in ("rules", *once)}
        made = {key: _deserialized(value, custom_objects) for key, value in rest.items()}
        return cls(rules=rules, **made, **once)


def _as_json(weight: Tensor) -> dict[str, Any]:
    """A meta-parameter as JSON, to the last bit."""
    return {"dtype": weight.dtype.name, "values": tf.cast(weight, tf.float64).numpy().tolist()}


def _unlisted(weight: Any) -> Any:
    """The reverse of `_as_json`; arrays as they are."""
    return tf.constant(weight["values"], weight["dtype"]) if isinstance(weight, Mapping) else weight


@dataclass(frozen=True)
class _Once:
    """Meta-parameters: no variables, so that Keras neither trains nor saves them."""

    values: dict[str, Tensor]


@dataclass
class _Parked:
    """Training weights that are set aside while the variables hold the evaluation weights."""

    step: int
    values: list[tuple[Any, Tensor]]


class EvaluationWeights(keras.callbacks.Callback):  # type: ignore[misc]
    """Validates, predicts and, if asked, saves with the weights to evaluate with.

    For optimizers whose variables hold another point during training (see `Optimizer.evaluation`);
    for all others it does nothing. `fit` leaves the evaluation weights in the model at its end; with
    this callback the next `fit` goes on from the training weights, to the bit as if there had been
    one. A checkpoint to resume from must hold the training weights: place its callback before this
    one, and those that save a model to be used after it.

    Args:
        swap_on_epoch: whether the evaluation weights are in the model for the `on_epoch_end` of the
            callbacks that follow, as in keras.callbacks.SwapEMAWeights.
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        super().__init__()
        self.swap_on_epoch = swap_on_epoch
        self._entered = False

    def _enter(self) -> bool:
        optimizer = self._optimizer()
        return optimizer is not None and optimizer._enter_evaluation()

    def _leave(self) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._leave_evaluation()

    def _optimizer(self) -> Optimizer | None:
        optimizer = getattr(self.model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        return optimizer if isinstance(optimizer, Optimizer) else None

    def on_train_begin(self, logs: Any = None) -> None:
        """Go on from the training weights."""
        self._leave()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Go on from the training weights."""
        self._leave()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Let the following callbacks see the evaluation weights."""
        if self.swap_on_epoch:
            self._enter()

    def on_test_begin(self, logs: Any = None) -> None:
        """Evaluate with the evaluation weights."""
        self._entered = self._enter()

    def on_test_end(self, logs: Any = None) -> None:
        """Put back what was in the model."""
        if self._entered:
            self._leave()
        self._entered = False

    def on_predict_begin(self, logs: Any = None) -> None:
        """Predict with the evaluation weights."""
        self._entered = self._enter()

    def on_predict_end(self, logs: Any = None) -> None:
        """Put back what was in the model."""
        self.on_test_end()


# ---------------------------------------------------------------------------------------------------
# Schedules and transforms


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A learning rate as a function of the number of finished steps, in double precision.

    Fits any Keras optimizer; the generated ones take its float64 value as it is.
    """

    function: Function
    domains: Mapping[str, Domain]
    requires: Function | None = None  # relations between hyperparameters, by the spec's names
    spelling: Mapping[str, str] = {}

    def __init__(self, **hypers: Any) -> None:
        self.__dict__.update(self._accepted(hypers))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.domains:
            now = {key: getattr(self, key) for key in self.domains}
            value = self._accepted({**now, name: value})[name]
        super().__setattr__(name, value)

    @classmethod
    def _accepted(cls, hypers: Mapping[str, Any]) -> dict[str, Any]:
        requires = cls.__dict__.get("requires")
        return _checked(cls.__name__, cls.domains, hypers, requires, cls.spelling)

    @_as_written
    def __call__(self, step: Any) -> Tensor:
        """The learning rate after `step` finished steps, a float64 tensor."""
        floats: list[Any] = []
        ints: list[int] = []
        holes = _pack_rate(self, floats, ints)
        n = tf.cast(tf.convert_to_tensor(step), tf.int64)
        known = _known(n)
        if known is not None and (known < 0).any():
            raise ValueError(f"{type(self).__name__}: n must be an integer, 0 or more, got {step!r}.")
        arguments = n, *_vectors(floats, ints)
        if tf.executing_eagerly():
            return _value(holes)(*arguments)
        if _use_xla:
            return _compiled_value(holes, len(floats), len(ints))(*arguments)
        return _outside(_value(holes), arguments, tf.zeros(n.shape, tf.float64))

    def table(self, n: int) -> Any:
        """The first n values, as a NumPy array."""
        return tf.broadcast_to(self(tf.range(n, dtype=tf.int64)), [n]).numpy()

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.domains)
        return f"{type(self).__name__}({inside})"

    def get_config(self) -> dict[str, Any]:
        """Everything that makes another schedule like this one, as JSON."""
        return {name: _serialized(getattr(self, name)) for name in self.domains}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """The reverse of `get_config`."""
        return cls(**{key: _deserialized(value) for key, value in config.items()})


def _value(holes: Any) -> Function:
    def value(n: Tensor, floats: Tensor, ints: Tensor) -> Tensor:
        fl = rounded(n)
        numbers = iter(tf.unstack(fl(floats))), iter(tf.unstack(fl(ints)))
        return _unpack_rate(holes, *numbers)(n)

    return value


@functools.cache
def _compiled_value(holes: Any, floats: int, ints: int) -> Any:
    """`_value` as one XLA function, traced once for all steps and values."""
    signature = [
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([floats], tf.float64),
        tf.TensorSpec([ints], tf.int64),
    ]
    return tf.function(_value(holes), signature, autograph=False, jit_compile=True)


def _serialized(value: Any) -> Any:
    if isinstance(value, Times):
        return {"times": value.factor}
    if isinstance(value, dict):
        return {key: _serialized(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_serialized(v) for v in value]
    return keras.saving.serialize_keras_object(value) if callable(value) else value


def _deserialized(value: Any, custom_objects: Any = None) -> Any:
    if isinstance(value, list):
        return [_deserialized(v, custom_objects) for v in value]
    if isinstance(value, dict) and value.keys() == {"times"}:
        return Times(value["times"])
    if isinstance(value, dict):
        return keras.saving.deserialize_keras_object(value, custom_objects)
    return value


def _transformed_flat(kernel: _Kernel, t: Tensor, ints: Tensor) -> Function:
    """A transform over flat tensors; its derivatives are those of the kernel, run again under a tape."""
    state = kernel.method.state()

    @_with_gradient
    def value(*given: Tensor) -> tuple[Tensor, Function]:
        def gradient(d: Tensor) -> Any:
            floats, theta, g = at = [tf.identity(x) for x in given]  # theta and g may be one tensor
            with tf.GradientTape() as tape:
                tape.watch(at)
                u = kernel.step(t, kernel.scalars(t, floats, ints, {}), theta, g, state)[0]
            return tape.gradient(u, at, d)

        floats, theta, g = given
        with _without_derivatives():
            return _flat_step(kernel, t, floats, ints, {}, theta, g, [])[0], gradient

    return value


def _transformed_joined(t: Tensor, calls: Sequence[Any]) -> list[list[Tensor]]:
    """Gradients in groups, those of a group joined."""
    made = []
    for kernel, (floats, ints), thetas, gs, _ in calls:
        g = _joined(gs)
        theta = g if thetas is gs else _joined(thetas)
        u = _transformed_flat(kernel, t, ints)(floats, theta, g)
        made.append(_parted(u, [g.shape for g in gs]))
    return made


def _transformed_each(t: Tensor, calls: Sequence[Any]) -> list[list[Tensor]]:
    """Gradients in groups, a kernel call for each; differentiated as those of `_transformed_flat`."""
    if not calls:
        return []
    kernels, (numbers, *_), *tensors, places = (list(x) for x in zip(*calls, strict=True))
    floats, ints = numbers  # the kernels differ in their dtype, the numbers do not
    like = floats, *tensors
    none: list[dict[str, Tensor]] = [{} for _ in kernels]
    states = [[_Kept(kernels[0].method.state()) for _ in group] for group in tensors[0]]

    def made(each: Function, values: Sequence[Tensor]) -> list[Tensor]:
        floats, thetas, gs = tf.nest.pack_sequence_as(like, values)
        numbers = [(floats, ints) for _ in kernels]
        given = t, numbers, none, thetas, gs, states, places
        us: list[Tensor] = tf.nest.flatten(each(kernels, *given)[0])
        return us

    @_with_gradient
    def value(*given: Tensor) -> tuple[list[Tensor], Function]:
        def gradient(*d: Tensor) -> Any:
            at = [tf.identity(x) for x in given]
            with tf.GradientTape() as tape:
                tape.watch(at)
                us = made(functools.partial(_each, _as_it_is), at)
            return tape.gradient(us, at, list(d))

        return made(_each_step, given), gradient

    packed: list[list[Tensor]] = tf.nest.pack_sequence_as(tensors[1], value(*tf.nest.flatten(like)))
    return packed


def _sized(owner: str, i: int, g: Tensor, like: Any) -> Tensor:
    """A gradient of known shape; refused where a trace does not know it."""
    if like.shape.is_fully_defined():
        return g if g.shape.is_fully_defined() else tf.ensure_shape(g, like.shape)
    raise ValueError(
        f"{owner}: gradient {i} has the shape {like.shape} where a tf.function is traced, and sums "
        "depend on sizes. Pass tf.ensure_shape(g, shape)."
    )


@_as_written
def transformed(
    owner: str,
    method: Method,
    domains: Mapping[str, Domain],
    grads: Sequence[Any],
    params: Sequence[Any] | None,
    hypers: Mapping[str, Any],
    spelling: Mapping[str, str] | None = None,
    t: Any = 1,
) -> list[Any]:
    """New gradients in place of the old, in a list; None stays None, sparse ones are made dense."""
    if not _is_tensor(t):
        PositiveCount.check(owner, "t", t)
    step = tf.cast(tf.convert_to_tensor(t), tf.int64) + _opaque()[0]  # which no compiler knows
    hypers = _checked(owner, domains, hypers, method.requires, spelling)
    hypers = _respelled(hypers, spelling or {})
    method = decided(method, hypers)
    grads = list(grads)
    at = grads if params is None else [p if _is_tensor(p) else tf.convert_to_tensor(p) for p in params]
    if len(at) != len(grads):
        raise ValueError(f"{owner}: {len(grads)} gradients for {len(at)} parameters. Pass one for each.")
    groups: dict[Any, list[int]] = {}
    for i, g in enumerate(grads):
        if g is None:
            continue
        if params is not None:
            _check_parameter(owner, at[i])
            grads[i] = _dense(owner, g, at[i])
        else:
            grads[i] = tf.convert_to_tensor(g)
        if not method.elementwise:
            grads[i] = _sized(owner, i, grads[i], _native(at[i] if params is not None else grads[i]))
        if method.only:
            check_shape(owner, method.only, f"gradient {i}", grads[i].shape)
        compute = compute_dtype(grads[i].dtype if params is None else _native(at[i]).dtype)
        groups.setdefault((grads[i].dtype, compute), []).append(i)
    calls = []
    for (_, compute), members in groups.items():
        gs = [tf.cast(grads[i], compute) for i in members]
        thetas = gs if params is None else [tf.cast(_native(at[i]), compute) for i in members]
        places = [tf.constant(i, tf.int64) if method.sources else None for i in members]
        calls.append((*_prepared(method, compute, hypers), thetas, gs, places))
    transform = _transformed_joined if method.elementwise else _transformed_each
    for ((dtype, _), members), us in zip(groups.items(), transform(step, calls), strict=True):
        for i, u in zip(members, us, strict=True):
            wide = u.dtype == tf.float64 and dtype == tf.float64
            grads[i] = u if wide else stored(tf.cast(u, tf.float32), dtype)
    return grads
