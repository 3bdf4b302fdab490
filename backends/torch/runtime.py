"""What every generated PyTorch optimizer shares: exact functions, checks, and the shells.

In: kernels, pure functions that were generated from equations, and what they keep. Out: classes
that are `torch.optim.Optimizer` and `LRScheduler` in every respect. Must not know: any one
algorithm (the generated files hold those).

Scalars (functions of the step and the hyperparameters) are Python floats that follow IEEE 754
without exceptions, or 0-d float64 tensors where a hyperparameter is a tensor, differentiable then;
each is rounded once, to a 0-d tensor of the compute dtype, before it meets a parameter.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import inspect
import math
import numbers
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from backends.domains import (
    Domain,
    Flag,
    PositiveCount,
    another,
    check_relations,
    check_shape,
    check_weights,
    settled,
    told,
)
from backends.rules import Assignment, Rule, Rules, Setting, Times
from backends.torch.lanes import Flat, Lane, flat_of, flatten, lies_flat
from backends.torch.plain import is_sharded, kept_as, plain
from generator.elementary import cos, exp, log, real_power
from generator.network import dense as dense
from generator.normal import normal
from generator.storage import Storage, entries, opened, pieces, placed
from generator.summation import (
    col_sum,
    cols_of,
    inverse,
    larger_size,
    row_sum,
    rows_of,
    size_ratio,
    size_root,
    sized,
    smaller_size,
    tree_sum,
)
from generator.threefry import of_parameter, random_key, random_words

try:
    import numpy as np
except ImportError:  # PyTorch runs without NumPy; steps on the CPU are slower then
    np = None  # type: ignore[assignment]

# Kernels take NumPy's arrays, too, where a Python float takes on the dtype of what it meets: from 2.0 on.
_ARRAYS: Any = (np.ndarray, np.generic) if np is not None and np.__version__ >= "2" else ()
Scalar: TypeAlias = float | Tensor  # a Python float or a 0-d tensor
_HERE = __name__.replace(".", "_")  # whose custom operations are registered: several copies may be
Tree = Any  # a tensor, a list or tuple of trees, or a dictionary of trees

# --------------------------------------------------------------------------------------------------
# The exact square root
#
# torch.sqrt on the CPU (MKL) is one unit in the last place off for a sixth of all float32 values.


def _native_root_is_exact(dtype: torch.dtype) -> bool:
    """Whether this build's torch.sqrt rounds correctly on the CPU, as builds without MKL do."""
    x = torch.linspace(1.0, 4.0, 4097, dtype=torch.float64, device="cpu").to(dtype)
    exact = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=dtype, device="cpu")
    return bool(torch.equal(torch.sqrt(x), exact))


_INEXACT = {d for d in (torch.float32, torch.float64) if not _native_root_is_exact(d)}


def _root(x: Tensor) -> Tensor:
    """The correctly rounded square root of a tensor; not differentiable."""
    if not x.is_cpu or x.dtype not in _INEXACT:
        return torch.sqrt(x)
    if np is not None:
        try:
            source = x.detach().numpy()
        except (RuntimeError, TypeError):  # a subclass, such as DTensor, has no memory of its own
            return _corrected_root(x)
        result = torch.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.sqrt(source, out=result.numpy())
        return result
    return _corrected_root(x)


def _corrected_root(x: Tensor) -> Tensor:
    """The same from a root that is off by at most one unit in the last place."""
    if x.dtype == torch.float32:
        # No float32 root is so close to a midpoint that an ulp of double precision matters.
        return x.double().sqrt().float()
    # Scaled by powers of 4, so that no square below overflows or loses bits.
    up, down = x < 2.0**-600, x > 2.0**600
    x = torch.where(up, x * 2.0**400, torch.where(down, x * 2.0**-400, x))
    y = torch.sqrt(x)
    # The residual r = x - y*y, exactly: y in two halves (Veltkamp), its square in two (Dekker).
    c = y * 134217729.0
    high = c - (c - y)
    low = y - high
    square = y * y
    r = (x - square) - (((high * high - square) + 2.0 * high * low) + low * low)
    # The root lies above y + ulp/2 just where r > y*ulp: all are multiples of one unit.
    above = torch.nextafter(y, torch.full_like(y, math.inf))
    below = torch.nextafter(y, torch.zeros_like(y))
    less = (r <= -(y * (y - below))) & (r < 0.0)
    y = torch.where(r > y * (above - y), above, torch.where(less, below, y))
    return torch.where(up, y * 2.0**-200, torch.where(down, y * 2.0**200, y))


class _Root(torch.autograd.Function):  # type: ignore[misc]
    """`_root` with its derivatives, of any order, forward and backward, under torch.func too."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _root(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        # 0 at 0 and below: an infinite slope makes NaN of the zero gradient of what is not chosen.
        return grad / (2.0 * torch.where(y > 0.0, y, math.inf))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Root.backward(ctx, tangent)

    @staticmethod
    def vmap(info: Any, dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _Root.apply(x), dims[0]


def _traced_root(x: Tensor) -> Tensor:
    """The same for torch.compile, whose own root is exact."""
    if not x.requires_grad:
        return torch.sqrt(x)
    positive = x > 0.0
    rest = torch.where(x == 0.0, x.detach(), math.nan)
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), rest)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded; NaN below 0. Its derivative at 0 is taken as 0."""
    if isinstance(x, _ARRAYS):
        return np.sqrt(x)
    if not isinstance(x, Tensor):
        return math.nan if x < 0 else math.sqrt(x)
    if torch.compiler.is_compiling():
        return _traced_root(x)
    return _Root.apply(x) if torch.is_grad_enabled() else _root(x)


# --------------------------------------------------------------------------------------------------
# Functions of floats and tensors alike. Python's own `/`, `**` and `math` raise where IEEE 754 has
# a value; torch's minimum, maximum and sign are not those of other libraries at NaN and -0.


def div(a: Any, b: Any) -> Any:
    """The quotient; x/0 is infinite, 0/0 is NaN. torch's own number / tensor rounds twice."""
    if isinstance(b, Tensor):
        return (a if isinstance(a, Tensor) else b.new_full((), a)) / b
    if isinstance(a, Tensor):
        return a / a.new_full((), b)
    if isinstance(a, _ARRAYS) or isinstance(b, _ARRAYS):
        return a / b
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def quotient(a: float, x: Tensor) -> Tensor:
    """A literal divided by a tensor; Python's `/` would multiply by the reciprocal, rounded twice."""
    return a / x if isinstance(x, _ARRAYS) else x.new_full((), a) / x


def power(x: Any, k: Any) -> Any:
    """x**k by squaring from the lowest bit; the same products on every backend."""
    if isinstance(k, Tensor) and not k.is_cpu:
        return _power_there(x, k)
    k = int(k)  # in the host's memory, where looking does not wait
    if k < 0:
        return div(1.0, power(x, -k))
    result: Any = 1.0
    while k:
        if k & 1:
            result = result * x
        k >>= 1
        if k:
            x = x * x
    return result


def _power_there(x: Tensor, k: Tensor) -> Tensor:
    """The same for an exponent on a device, which is not looked at: 63 bits, with or without a product."""
    left, result = k.abs(), torch.ones_like(x)
    for _ in range(63):
        result = torch.where(left & 1 == 1, result * x, result)
        x, left = torch.where(left > 1, x * x, x), left >> 1
    return torch.where(k < 0, result.reciprocal(), result)


def where(condition: Any, a: Any, b: Any) -> Any:
    """One of two values; a condition of the host chooses a branch, a tensor each element."""
    if isinstance(condition, bool):
        chosen, other = (a, b) if condition else (b, a)
        if isinstance(other, _ARRAYS):
            return np.broadcast_arrays(np.asarray(chosen, other.dtype), other)[0]
        if not isinstance(other, Tensor):
            return chosen
        if not isinstance(chosen, Tensor):
            return full_like(other, chosen)
        if chosen.dim() >= other.dim():
            return chosen
        return chosen.expand(torch.broadcast_shapes(chosen.shape, other.shape)).clone()
    if isinstance(condition, _ARRAYS):
        return np.where(condition, a, b)
    if not (isinstance(a, Tensor) or isinstance(b, Tensor)):  # in step scope numbers are doubles
        a = torch.tensor(a, dtype=torch.float64, device=condition.device)
    return torch.where(condition, a, b)


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN if either is NaN; x only where x > y, so that of +0 and -0 it is -0."""
    return where((x > y) | (x != x), x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN if either is NaN."""
    return where((x < y) | (x != x), x, y)


def sign(x: Any) -> Any:
    """1 above zero, -1 below; zeros and NaN are kept. Its derivative is 0, at zero too."""
    if isinstance(x, _ARRAYS):
        return np.where(x > 0.0, x.dtype.type(1.0), np.where(x < 0.0, x.dtype.type(-1.0), x))
    if not isinstance(x, Tensor):
        return 1.0 if x > 0 else -1.0 if x < 0 else x
    rest = torch.where(x == 0.0, x.detach(), x) if x.requires_grad else x
    return torch.where(x > 0.0, 1.0, torch.where(x < 0.0, -1.0, rest))


def isfinite(x: Any) -> Any:
    """Whether it is neither infinite nor NaN."""
    if isinstance(x, _ARRAYS):
        return np.isfinite(x)
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def floor(x: Any) -> Any:
    """The largest integer not above x, as a float; infinities, NaN and -0 are kept."""
    if isinstance(x, Tensor):
        return torch.floor(x)
    if isinstance(x, _ARRAYS):
        return np.floor(x)
    return x // 1.0 if math.isfinite(x) else x


def to_float(x: Any) -> Any:
    """An integer as a double."""
    return x.double() if isinstance(x, Tensor) else float(x)


def logical_and(a: Any, b: Any) -> Any:
    """Whether both hold."""
    return a & b


def logical_or(a: Any, b: Any) -> Any:
    """Whether one of two holds."""
    return a | b


def logical_not(a: Any) -> Any:
    """Whether it does not hold."""
    return not a if isinstance(a, bool) else ~a


def full_like(x: Tensor, value: Any) -> Tensor:
    """A tensor like x, every entry the value rounded to its dtype; differentiable in the value."""
    if isinstance(x, _ARRAYS):
        return np.full_like(x, value)
    start: Tensor = _entering(value, x.dtype).to(x.device)
    return start.expand(x.shape).clone()


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the derivative of torch's own of that name, its bits unchanged."""
    native = {"exp": torch.exp, "log": torch.log, "cos": torch.cos, "real_power": torch.pow}
    uncompiled = torch.compiler.disable(function)  # inlining its chains of squares takes minutes

    @functools.wraps(function)
    def exact(*arguments: Any) -> Any:
        if any(isinstance(a, _ARRAYS) for a in arguments):
            return exact(*(torch.as_tensor(a) if isinstance(a, _ARRAYS) else a for a in arguments)).numpy()
        if not any(isinstance(a, Tensor) for a in arguments):
            return function(*arguments)
        value = uncompiled(*(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        if not any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return value
        slope = native[function.__name__](*arguments)
        # slope + (value - slope) is value: the difference of neighbours is exact.
        return torch.where(value.isfinite(), slope + (value - slope).detach(), value)

    return exact


# Their texts split numbers into bits and find exponents; derived term by term they are wrong.
exp, log = differentiable(exp), differentiable(log)
cos, real_power = differentiable(cos), differentiable(real_power)

# --------------------------------------------------------------------------------------------------
# What sums are made of, and shapes


def join(parts: Sequence[Any], axis: int = -1) -> Any:
    """Tensors, or NumPy's arrays, one after another along an axis."""
    whole = isinstance(parts[0], Tensor)
    return torch.cat(list(parts), axis) if whole else np.concatenate(parts, axis)


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """The same numbers in another shape."""
    return x.reshape(list(shape))


def spread(x: Tensor, like: Tensor) -> Tensor:
    """The same numbers along axes that have one, repeated to the shape of a tensor."""
    return x.expand(like.shape)


def zeros(shape: Sequence[int], like: Any) -> Any:
    """Zeros in the dtype of a tensor or array."""
    return like.new_zeros(list(shape)) if isinstance(like, Tensor) else np.zeros(shape, like.dtype)


def transposed(x: Any) -> Any:
    """The last two axes exchanged."""
    return x.transpose(-1, -2) if isinstance(x, Tensor) else np.swapaxes(x, -1, -2)


def stack(*features: Any) -> Tensor:
    """Tensors and numbers side by side along a new first axis."""
    like = next(x for x in features if isinstance(x, Tensor))
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(x).to(like) for x in features)))


# A compiled kernel serves all sizes: what depends on a size is one operation to torch.compile.


@torch.library.custom_op(f"{_HERE}::row_sum", mutates_args=())  # type: ignore[untyped-decorator]
def _opaque_row_sum(x: Tensor) -> Tensor:
    return _on_memory(_row_sum, x)


@_opaque_row_sum.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:-1], 1])


_opaque_row_sum.register_autograd(
    lambda ctx, grad: grad.expand(ctx.shape),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)


@torch.library.custom_op(f"{_HERE}::inverse", mutates_args=())  # type: ignore[untyped-decorator]
def _opaque_inverse(x: Tensor, axis: int) -> Tensor:
    return x.new_tensor(_inverse(x, axis))


@_opaque_inverse.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, axis: int) -> Tensor:
    return x.new_empty([])


@torch.library.custom_op(f"{_HERE}::size", mutates_args=())  # type: ignore[untyped-decorator]
def _opaque_size(x: Tensor, axis: int) -> Tensor:
    return x.new_tensor(x.shape[axis], dtype=torch.float64)


@_opaque_size.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, axis: int) -> Tensor:
    return x.new_empty([], dtype=torch.float64)


_rows_of, _cols_of = rows_of, cols_of


def rows_of(x: Tensor) -> Scalar:  # type: ignore[no-redef]
    """How many rows a matrix has, as a double."""
    return _opaque_size(x.detach(), -2) if torch.compiler.is_compiling() else _rows_of(x)


def cols_of(x: Tensor) -> Scalar:  # type: ignore[no-redef]
    """How many columns a matrix has, as a double."""
    return _opaque_size(x.detach(), -1) if torch.compiler.is_compiling() else _cols_of(x)


def rounded_size(x: Scalar, like: Tensor) -> Tensor:
    """A double that follows from rows and columns, rounded once to the dtype of a tensor."""
    return _entering(x, like.dtype)


def _sizes(of_floats: Callable[..., Any], of_tensors: Callable[..., Any]) -> Callable[..., Any]:
    """A function of sizes, which are floats, and tensors in a compiled kernel."""
    return lambda *x: (of_tensors if any(isinstance(v, Tensor) for v in x) else of_floats)(*x)


size_ratio, size_root = _sizes(size_ratio, div), _sizes(size_root, sqrt)
larger_size, smaller_size = _sizes(larger_size, maximum), _sizes(smaller_size, minimum)

_row_sum, _col_sum, _inverse = row_sum, col_sum, inverse


def row_sum(x: Tensor) -> Tensor:  # type: ignore[no-redef]
    """The sum of each row; shape (..., rows, 1)."""
    return _opaque_row_sum(x) if torch.compiler.is_compiling() else _on_memory(_row_sum, x)


def col_sum(x: Tensor) -> Tensor:  # type: ignore[no-redef]
    """The sum of each column; shape (..., 1, cols)."""
    if torch.compiler.is_compiling():
        return transposed(_opaque_row_sum(transposed(x)))
    return _on_memory(_col_sum, x)


def _on_memory(function: Callable[[Any], Any], x: Any) -> Any:
    """The function by NumPy on the tensor's own memory where that is to be had: cheaper calls."""
    if not isinstance(x, Tensor):
        return function(x)
    if np is not None and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled()):
        try:
            return torch.from_numpy(np.asarray(function(x.detach().numpy())))
        except (RuntimeError, TypeError):  # a subclass, such as DTensor, has no memory of its own
            pass
    return function(x)


def inverse(x: Tensor, axis: int) -> Any:  # type: ignore[no-redef]
    """The reciprocal of how many numbers an axis has; 1 where it has none."""
    if torch.compiler.is_compiling():
        return _opaque_inverse(x.detach(), axis)
    return _inverse(x, axis)


# --------------------------------------------------------------------------------------------------
# What random numbers are made of: words of 32 bits, in int64 since torch has no arithmetic of uint32;
# Python's integers in step scope, and numpy.uint32 where tensors are taken by their memory.


def word(x: Any) -> Any:
    """A word of an integer, modulo 2**32."""
    return x & 0xFFFFFFFF


def packed(words: Sequence[Any]) -> Tensor:
    """Words as one tensor."""
    place = next((w.device for w in words if isinstance(w, Tensor)), "cpu")
    given = (w if isinstance(w, Tensor) else torch.tensor(w, device=place) for w in words)
    return torch.cat([w.reshape(-1) for w in given])


def counted(count: int, like: Any) -> Any:
    """The words 0, 1, ..., as many as there are numbers."""
    if isinstance(like, Tensor):
        return torch.arange(count, device=like.device)
    return np.arange(count, dtype=np.uint32)


def added(a: Any, b: Any) -> Any:
    """The sum modulo 2**32."""
    return (a + b) & 0xFFFFFFFF


def rotated(x: Any, k: int) -> Any:
    """The bits of words moved up by k, those beyond the top to the bottom."""
    return (x << k | x >> (32 - k)) & 0xFFFFFFFF


def moved(x: Any, k: int) -> Any:
    """The bits of integers moved down by k."""
    return x >> k


def number(x: Any, like: Any) -> Any:
    """Integers as floats of the dtype of a tensor; those here have room in it."""
    return x.to(like.dtype) if isinstance(x, Tensor) else x.astype(like.dtype)


def bits_of(x: Any) -> Any:
    """The bits of floats as signed integers."""
    if isinstance(x, Tensor):
        return x.view(torch.int64 if double(x) else torch.int32)
    return x.view(np.int64 if double(x) else np.int32)


def of_bits(bits: Any, like: Any) -> Any:
    """Floats of their bits."""
    return bits.view(like.dtype)


def double(like: Any) -> bool:
    """Whether numbers are computed in float64; else in float32."""
    return bool(like.dtype.itemsize == 8)


def shaped_like(x: Any, like: Any) -> Any:
    """Numbers one after another in the shape of a tensor."""
    return x.reshape(like.shape)


def select(condition: Any, a: Any, b: Any) -> Any:
    """One of two, element by element."""
    whole = isinstance(condition, Tensor)
    return torch.where(condition, a, b) if whole else np.where(condition, a, b)


def guard(like: Any) -> Callable[[Any], Any]:
    """Return fl, the rounded operation: here each operation is rounded on its own."""
    return lambda x: x


# Inlined, a number's 200 operations take torch.compile a quarter of a minute: it sees one.


@torch.library.custom_op(f"{_HERE}::random_words", mutates_args=())  # type: ignore[untyped-decorator]
def _opaque_words(key: Tensor, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    if _by_memory(like):
        made = _random_words(key.numpy().astype(np.uint32), count, like.numpy())
        return torch.from_numpy(made[0].astype(np.int64)), torch.from_numpy(made[1].astype(np.int64))
    return _random_words(key.to(like.device), count, like)


@_opaque_words.register_fake  # type: ignore[untyped-decorator]
def _(key: Tensor, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    words = like.new_empty([count], dtype=torch.int64)
    return words, words.clone()


@torch.library.custom_op(f"{_HERE}::normal", mutates_args=())  # type: ignore[untyped-decorator]
def _opaque_normal(key: Tensor, like: Tensor) -> Tensor:
    if _by_memory(like):
        return torch.from_numpy(np.asarray(_normal(key.numpy().astype(np.uint32), like.numpy())))
    return _normal(key, like)


@_opaque_normal.register_fake  # type: ignore[untyped-decorator]
def _(key: Tensor, like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _by_memory(x: Tensor) -> bool:
    """Whether NumPy, which is faster at these, can stand in; a subclass has no memory of its own."""
    return np is not None and x.is_cpu and type(x) is Tensor


_random_words, _normal = random_words, normal


def random_words(key: Tensor, count: int, like: Any) -> Any:  # type: ignore[no-redef]
    """Two random words for each of as many numbers, in the place of a tensor; int64."""
    whole = isinstance(like, Tensor)
    return _opaque_words(key, count, like.detach()) if whole else _random_words(key, count, like)


def normal(key: Tensor, like: Tensor) -> Tensor:  # type: ignore[no-redef]
    """Standard normal numbers in the shape and dtype of a tensor, float32 or float64."""
    made: Tensor = _opaque_normal(key, like.detach())
    return made


# --------------------------------------------------------------------------------------------------
# Regions and shapes


def branch(condition: Any, here: Callable[[], Any], there: Callable[[], Any]) -> Any:
    """What one of two functions gives, the first where the condition holds.

    A condition that is a tensor is not looked at: both are called, and the results chosen from.
    """
    if not isinstance(condition, Tensor):
        return here() if condition else there()
    a, b = here(), there()
    if isinstance(a, tuple):
        pairs = zip(a, b, strict=True)
        return tuple(x if x is None else torch.where(condition, x, y) for x, y in pairs)
    return torch.where(condition, a, b)


def is_matrix(x: Tensor) -> bool:
    """Whether a parameter has two axes or more; rows and columns are the last two."""
    return bool(x.dim() >= 2)


def kept(theta: Tensor, value: Any, *sizes: str | int) -> Tensor:
    """A state of another shape than its parameter's, filled: a number, rows, columns."""
    return full_like(theta.new_empty(sized(theta.shape, sizes)), value)


# --------------------------------------------------------------------------------------------------
# Precision


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _kind(x: Tensor) -> str:
    """The name of a parameter's compute dtype: float32."""
    return str(compute_dtype(x.dtype)).removeprefix("torch.")


def computed(x: Tensor) -> Tensor:
    """A parameter or gradient in its compute dtype; exact."""
    return x.to(compute_dtype(x.dtype))


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a narrower dtype, rounded once, to nearest even."""
    if not torch.compiler.is_compiling() or torch.finfo(dtype).eps <= torch.finfo(x.dtype).eps:
        return x.to(dtype)
    return _Rounded.apply(x, dtype) if x.requires_grad else _rounded_on_bits(x, dtype)


class _Rounded(torch.autograd.Function):  # type: ignore[misc]
    """`_rounded_on_bits` with the derivative of the identity."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return _rounded_on_bits(x, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def _rounded_on_bits(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for torch.compile, which drops a cast and its way back: there x - x.to(bfloat16).float() is 0.

    The value is rounded inside its own dtype, on its bits, and the cast is exact.
    """
    wide, narrow = torch.finfo(x.dtype), torch.finfo(dtype)
    surplus = round(math.log2(narrow.eps / wide.eps))
    bits = x.view(torch.int32 if wide.bits == 32 else torch.int64)
    half = (1 << (surplus - 1)) - 1 + ((bits >> surplus) & 1)  # ties to even
    near = ((bits + half) & -(1 << surplus)).view(x.dtype)
    # Below the smallest normal number the spacing is fixed: that of x's own dtype next to `grid`.
    grid = 1.5 * narrow.smallest_normal * narrow.eps / wide.eps
    near = torch.where(x.abs() < narrow.smallest_normal, (x + grid) - grid, near)
    near = torch.where(near.abs() > narrow.max, math.inf, near)
    return torch.where(x != x, x, torch.copysign(near, x)).to(dtype)


def _entering(x: Any, dtype: torch.dtype) -> Any:
    """A scalar of step scope as it meets tensors of a dtype; conditions of the host stay."""
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x  # conditions and keys as they are
    return torch.tensor(x, dtype=dtype, device="cpu")


def rounded(s: Any, dtype: torch.dtype) -> Any:
    """The step's scalars, each rounded once to the compute dtype."""
    return s._make(_entering(x, dtype) for x in s)


def in_numpy(s: Any, dtype: torch.dtype) -> Any:
    """The same as NumPy's numbers, of scalars that are none of torch's."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(over="ignore"):
        return s._make(x if x is None or isinstance(x, bool) else kind(x) for x in s)


def storing(dtype: torch.dtype) -> Callable[[Scalar], Scalar]:
    """Rounds a double to the compute dtype and gives it back as a double."""

    def store(x: Scalar) -> Scalar:
        if isinstance(x, Tensor):
            return x.to(dtype).double()
        return x if dtype == torch.float64 else ctypes.c_float(x).value

    return store


def _double(value: Any) -> Any:
    """A hyperparameter as the equations take it: tensors as 0-d float64, the rest as it is."""
    return value.reshape(()).double() if isinstance(value, Tensor) else value


def _beside(t: Tensor, value: Any) -> Any:
    """A number as a double where the count of steps is."""
    return torch.tensor(value, dtype=torch.float64, device=t.device) if isinstance(value, float) else value


# --------------------------------------------------------------------------------------------------
# What storage is made of; it runs between kernels, never compiled


def as_bytes(k: Tensor) -> Tensor:
    """Whole numbers from 0 to 255 as uint8."""
    return k.to(torch.uint8)


def below(x: Tensor) -> Tensor:
    """The largest whole numbers that are not above."""
    return torch.floor(x)


def greatest(x: Tensor) -> Tensor:
    """The largest number along the last axis, which becomes 1."""
    return x.amax(-1, keepdim=True)


def taken(table: tuple[float, ...], k: Tensor) -> Tensor:
    """The entries of a table of float32 numbers at some places."""
    return _on_device(table, k.device)[k.long()]


_placed = placed


def placed(x: Tensor, table: tuple[float, ...]) -> Tensor:  # type: ignore[no-redef]
    """How many of 255 numbers in ascending order lie below each of x; torch's own search is faster."""
    if type(x) is not Tensor:  # a subclass, such as DTensor, may not have it
        made: Tensor = _placed(x, table)
        return made
    return torch.bucketize(x, _on_device(table, x.device), out_int32=True)


@functools.cache
def _on_device(table: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(table, dtype=torch.float32, device=device)


@functools.cache
def _word_of(dtype: torch.dtype) -> str:
    """The name of a dtype, as every framework writes it."""
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------------------
# Hyperparameters

Requires: TypeAlias = Callable[..., Mapping[str, Any]] | None  # relations: text, whether it holds
Spelling: TypeAlias = Mapping[str, str | tuple[str, ...]]  # a shell's name -> the spec's


def _checked(owner: str, name: str, domain: Domain, value: Any) -> Any:
    """The value as Python's own number, once it lies in its domain; tensors are not looked into."""
    if isinstance(value, Tensor) and domain.kind == "float":
        if value.numel() != 1 or not value.is_floating_point():
            raise TypeError(
                f"{owner}: {name} must be {domain.phrase}, got a tensor of shape "
                f"{tuple(value.shape)} and dtype {value.dtype}. A tensor must hold one float."
            )
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            domain.check(owner, name, float(value.detach()))  # elsewhere looking would wait
        return value
    if isinstance(value, (LRScheduler, Unbound)) and domain.kind == "float":
        raise TypeError(
            f"{owner}: {name} must be {domain.phrase}, got a schedule. Pass a number, then attach the "
            "schedule: Cosine(optimizer, total=100)."
        )
    entries = value if domain.many and isinstance(value, (tuple, list)) else (value,)
    if domain.kind == "schedule" and any(isinstance(x, LRScheduler) for x in entries):
        raise TypeError(
            f"{owner}: {name} must be {domain.phrase}, got one that drives an optimizer. Write "
            "Cosine.of(total=100) in place of Cosine(optimizer, total=100)."
        )
    domain.check(owner, name, value)
    if value is None:
        return None
    number: Callable[[Any], Any] = {"int": int, "float": float}.get(domain.kind, lambda x: x)
    return tuple(map(number, value)) if domain.many else number(value)


def _checked_all(
    owner: str,
    domains: Mapping[str, Domain],
    spelling: Spelling,
    requires: Requires,
    values: Mapping[str, Any],
    place: str = "",
) -> dict[str, Any]:
    """Every hyperparameter of a shell, checked; one that bundles several (`betas`) as a tuple."""
    checked: dict[str, Any] = {}
    for name, domain in domains.items():
        value, words = values[name], spelling.get(name, name)
        if isinstance(words, str):
            checked[name] = _checked(owner, name + place, domain, value)
            continue
        if not isinstance(value, (tuple, list)) or len(value) != len(words):
            raise TypeError(f"{owner}: {name}{place} must be a tuple ({', '.join(words)}), got {value!r}.")
        checked[name] = tuple(
            _checked(owner, f"{name}[{i}]{place}", domain.part(i), entry) for i, entry in enumerate(value)
        )
    check_relations(owner, requires, _in_the_specs_words(domains, spelling, checked))
    return checked


def _in_the_specs_words(
    domains: Iterable[str], spelling: Spelling, values: Mapping[str, Any]
) -> dict[str, Any]:
    """A shell's hyperparameters under the spec's names: `betas` as `beta1` and `beta2`."""
    named: dict[str, Any] = {}
    for name in domains:
        words = spelling.get(name, name)
        if isinstance(words, str):
            named[words] = values[name]
        else:
            named.update(zip(words, values[name], strict=True))
    return named


def _in_the_shells_words(
    domains: Iterable[str], spelling: Spelling, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The reverse: `beta1` and `beta2` as `betas`."""
    named: dict[str, Any] = {}
    for name in domains:
        words = spelling.get(name, name)
        named[name] = values[words] if isinstance(words, str) else tuple(values[w] for w in words)
    return named


def _is_tensor(domain: Domain, value: Any) -> bool:
    return isinstance(value, Tensor) and domain.kind == "float"


# --------------------------------------------------------------------------------------------------
# Optimizers


class Method(NamedTuple):
    """An algorithm as the shell runs it: pure functions and what they keep."""

    name: str
    state: Any  # the NamedTuple of tensor states
    init: Callable[..., Any]  # (theta, **hypers) -> tensor states
    scalars: Callable[..., Any]  # (t, **hypers) -> the step's scalars in double
    step: Callable[..., Any]  # (theta, g, state, s[, given][, shared]) -> (theta, state)
    elementwise: bool = True  # whether every number goes its own way
    only: str = ""  # the parameters that it is for, matrix or vector; empty: all
    # Before the step, in this order: over all parameters, (theta, g, state, s[, given][, shared]) -> sums
    # and (totals, s[, shared]) -> shared; or where one more gradient is taken, and its name.
    passes: tuple[tuple[Callable[..., Any], Any], ...] = ()
    given: Any = None  # the NamedTuple of what the caller gives beside the gradient
    weights: Mapping[str, tuple[int, ...]] = {}  # what of it is given at construction: names, shapes
    inputs: Mapping[str, str] = {}  # what a step is asked for: the scalar that says whether it is read
    numbers: tuple[str, ...] = ()  # what of that is one number for all parameters
    sources: tuple[str, ...] = ()  # the scalars that are keys of noise
    products: bool = False  # whether matrices are multiplied: how many at once tells in their last bits
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    choices: Mapping[str, str] = {}  # what kernels are told besides, of which hyperparameters
    scalar_states: Mapping[str, float | str] = {}  # states of step scope: a number or a hyper's name
    shared: Any = None  # the NamedTuple of what passes leave, where old shared states enter them
    shared_states: Mapping[str, float | str] = {}  # states of all parameters, likewise
    held: str | None = None  # what of `shared` says whether the step counts; None: it does
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    coded: Mapping[str, str] = {}  # states that may be kept in 8 bits, with their codes
    requires: Requires = None


def decided(method: Method, hypers: Mapping[str, Any]) -> Method:
    """The method for the choices among the hyperparameters: its kernels need no longer be told."""
    said = told(method.choices, hypers)
    if not said:
        return method
    return method._replace(
        init=settled(method.init, said),
        step=settled(method.step, said),
        passes=tuple((settled(first, said), then) for first, then in method.passes),
        choices={},
    )


_NAMED = "Pass model.named_parameters()."
# The entry of a param group that says which rules its parameters are meant by.
_ALGORITHM = "algorithm"  # in a state_dict: the name of its spec
_SCHEDULE = "schedule"  # in that of a schedule, likewise
_RULES = "rules"
_PARAMETERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
# What the optimizer is given as a whole; a param group has no say in it.
_OPTIONS = ("rules", "compile", "store", "states", "seed", "weights")
# The entry of a parameter's state that holds what it is trained with, while it is evaluated.
_TRAINING = "training"
# The entry of a param group that holds what its parameters keep together, for each compute dtype.
_SHARED = "shared"


@dataclass
class _Loaded:
    """The loaded state of a parameter; torch casts tensors and passes on what it does not know."""

    entries: dict[str, Any]


@dataclass
class _Job:
    """Parameters that share everything but their values."""

    method: Method  # for the choices of these parameters
    params: list[Tensor]
    setting: Setting  # of it, how the kernel sees them
    t: Any  # an integer, or a tensor where data decide on which steps count
    exact: Any  # the step's scalars in double
    s: Any  # the same, rounded
    options: Options
    clock: dict[str, Any] | None = None  # what is kept of them together
    shared: Any = None  # what the passes have left of it so far


class Options(NamedTuple):
    """How the parameters of a group are stepped, in torch's words; the bits are the same.

    Attributes:
        maximize: whether the objective is to grow: the gradient is taken with the other sign.
        foreach: False: one parameter after the other, the kernel as it can be read; else many at once.
        capturable: whether the count of steps is a tensor, for CUDA graphs.
        differentiable: whether autograd goes through the step.
        fused: whether the kernel is compiled by torch.compile into one pass over memory.
    """

    maximize: bool = False
    foreach: bool | None = None
    capturable: bool = False
    differentiable: bool = False
    fused: bool | None = None

    @property
    def together(self) -> bool:
        """Whether parameters may go through a step together."""
        return self.foreach is not False and not (self.capturable or self.differentiable)

    def check(self, owner: str, place: str = "") -> Options:
        """Refuse what is no flag, and what excludes each other, as torch does."""
        for name, value in self._asdict().items():
            if value is not None or name not in ("foreach", "fused"):
                Flag.check(owner, name + place, value)
        if self.fused and (self.foreach or self.differentiable):
            other = "foreach" if self.foreach else "differentiable"
            raise RuntimeError(
                f"{owner}: fused{place} and {other}{place} cannot both be True. Leave one of them out."
            )
        return self


@dataclass
class _Plan:
    """What the last step has found, good as long as nothing but numbers changes."""

    groups: list[list[Tensor]]  # the parameters of each
    others: list[Tensor]  # those that are in no lane
    owners: list[Tensor]  # those with a state, and it
    slots: list[dict[str, Any]]
    flats: list[_Flat]


@dataclass
class _Flat:
    """A lane, and what its parameters share."""

    lane: Lane
    index: int  # of the param group
    method: Method
    t: int  # finished steps
    scalars: tuple[Any, ...]  # states of step scope
    options: Options


def _are(some: Collection[Any], others: Collection[Any]) -> bool:
    """Whether they are the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


# Numbers that pass through a step at once where it is not compiled: what it computes with stays in a core's
# cache. Compiled, a pass needs no such memory: pieces are as large as what is gathered may be.
_PIECE = 2**16
_FUSED_PIECE = 2**18
_FUSED_ALONE = 2**16  # a call costs as much as to gather as many numbers
_LARGE = 2**20
_THREADS = 4  # of Python at most: each needs its lock between two calls


# Small tensors of one shape go through a kernel together: a call costs more than their numbers do. Larger
# ones cost more to copy.
_SMALL = 2**13


def batches(method: Method, thetas: Sequence[Tensor], scalars: Sequence[Any]) -> list[list[int]]:
    """Which tensors go through a kernel together: small ones of a shape and with the same scalars."""
    groups: dict[Any, list[int]] = {}
    for i, (theta, s) in enumerate(zip(thetas, scalars, strict=True)):
        plain = type(theta) in (Tensor, torch.nn.Parameter) and 0 < theta.numel() <= _SMALL
        alone = method.sources or method.products or not plain
        key = i if alone else (theta.shape, theta.dtype, theta.device, id(s))
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def called(method: Method, function: Callable[..., Any], calls: Sequence[Any]) -> list[Any]:
    """A part of a kernel on each of several calls, (theta, g, state, s[, given][, shared])."""
    results: list[Any] = [None] * len(calls)
    for members in batches(method, [x[0] for x in calls], [x[3] for x in calls]):
        found = together(method, function, [calls[i] for i in members])
        for i, x in zip(members, found, strict=True):
            results[i] = x
    return results


def together(method: Method, function: Callable[..., Any], calls: Sequence[Any]) -> list[Any]:
    """The same on calls of one shape with common scalars; several are one call, with the same bits."""
    if len(calls) == 1:
        return [function(*calls[0])]
    _, _, _, s, *rest = calls[0]
    shared = rest[method.given is not None :]
    own = [(*x[:3], *x[4 : 4 + (method.given is not None)]) for x in calls]  # theta, g, state[, given]
    made: list[Any] = []

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        theta, g, state, *given = _filled(own[0], iter(tensors))
        made.append(function(theta, g, state, s, *given, *shared))
        return tuple(_tensors(made[-1]))

    stacked = [torch.stack(x) for x in zip(*map(_tensors, own), strict=True)]
    columns = [x.unbind() for x in torch.vmap(one)(*stacked)]
    return [_filled(made[-1], iter(row)) for row in zip(*columns, strict=True)]


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples, without None."""
    if isinstance(tree, tuple):
        return [x for part in tree for x in _tensors(part)]
    return [] if tree is None else [tree]


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nested tuples with other tensors."""
    if isinstance(tree, tuple):
        parts = [_filled(part, tensors) for part in tree]
        return getattr(type(tree), "_make", tuple)(parts)
    return None if tree is None else next(tensors)


def over_all(
    methods: Sequence[Method],
    groups: Sequence[Sequence[Any]],
    given: Sequence[Sequence[Any]] = (),
    elsewhere: Callable[[list[Tensor]], Sequence[Tensor]] | None = None,
    together: Sequence[_Job] = (),
) -> list[list[tuple[Any, ...]]]:
    """What each kernel call is given besides: what comes before the step, if anything.

    Args:
        methods: the algorithm's record, for the choices of each group.
        groups: kernel calls (theta, g, state, s) with common scalars.
        given: what the caller gives for each call, where the method reads any of it.
        elsewhere: the gradients where the parameters hold other values.
        together: the job of each group, where parameters have states together; gets their new values.
    """
    calls = [call for group in groups for call in group]
    besides = [{"given": x} for group in given for x in group] or [{} for _ in calls]
    rest = iter(besides)
    parts = [[next(rest) for _ in group] for group in groups]
    for job, here in zip(together, parts, strict=False):
        for b in here:
            b["shared"] = job.shared
    for n, (_, then) in enumerate(methods[0].passes if calls else ()):
        found = [
            x
            for method, group, here in zip(methods, groups, parts, strict=True)
            for x in called(
                method, method.passes[n][0], [(*a, *b.values()) for a, b in zip(group, here, strict=True)]
            )
        ]
        if isinstance(then, str):
            assert elsewhere is not None, f"{methods[0].name} takes gradients of its own"
            for b, g in zip(besides, elsewhere(found), strict=True):
                b["given"] = b["given"]._replace(**{then: g})
            continue
        total = type(found[0])(*map(total_of, zip(*found, strict=True)))
        for i, (group, here) in enumerate(zip(groups, parts, strict=True)):
            if together:
                like, s, before = together[i].shared[0], together[i].s, [together[i].shared]
            else:
                like, s = group[0][0], group[0][3]
                before = [] if "shared" not in here[0] else [here[0]["shared"]]
            near = (x if x is None else x.to(like.device, like.dtype) for x in total)
            shared = then(type(total)(*near), s, *before)
            if together:
                together[i].shared = shared
            for b in here:
                b["shared"] = shared
    return [[tuple(b.values()) for b in here] for here in parts]


def total_of(given: Sequence[Tensor | None]) -> Tensor | None:
    """The sum over parameters: sorted first, so that their order does not matter."""
    parts = [x for x in given if x is not None]  # a group's choices may leave nothing to be added up
    if not parts:
        return None
    wide = functools.reduce(torch.promote_types, (x.dtype for x in parts))
    return tree_sum(torch.stack([x.to(parts[0].device, wide) for x in parts]).sort().values)


def _there(state: Any) -> dict[str, Any]:
    """The states that a parameter of its shape has."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def _overlaps(p: Tensor) -> bool:
    """Whether entries of a tensor share memory, so that torch cannot write to it: axes that only repeat."""
    if p.layout != torch.strided or 0 not in p.stride() or not p.numel():
        return False
    return any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True))


def _state_shapes(method: Method, shape: torch.Size) -> dict[str, torch.Size]:
    """The states that a parameter of a shape has, and their shapes."""
    return _shapes(method.init, method.init_hypers, shape)


@functools.cache
def _shapes(
    init: Callable[..., Any], hypers: tuple[str, ...], shape: torch.Size
) -> dict[str, torch.Size]:
    begun = init(torch.empty(shape, device="meta"), **dict.fromkeys(hypers, 0.0))
    return {name: x.shape for name, x in _there(begun).items()}


def _as_tensor(x: Any) -> Tensor:
    """A copy of a meta-parameter, which may be an array of NumPy's."""
    return (x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))).clone()


def _as_tensors(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Conditions among the scalars as tensors, so that a kernel is not compiled for their values."""
    theta, g, state, s, *w = arguments
    traced = (torch.tensor(x, device="cpu") if isinstance(x, bool) else x for x in s)
    return theta, g, state, s._make(traced), *w


@functools.cache
def _compiled(step: Callable[..., Any], axes: int, dtype: torch.dtype) -> Callable[..., Any]:
    """The kernel as one pass over memory: one compilation for all sizes, steps and groups.

    A function of its own for each number of axes and dtype: torch.compile gives up on one that it has
    compiled eight times.
    """
    compiled: Callable[..., Any] = torch.compile(another(step), dynamic=True, fullgraph=True)
    return compiled


class _Flattened(NamedTuple):
    """A kernel for tensors that lie flat."""

    step: Callable[..., Any]
    state: Any  # the NamedTuple of states
    names: tuple[str, ...]  # of the states that there are
    maximize: bool

    def new(self, theta: Tensor, g: Tensor, kept: Sequence[Tensor], s: Any) -> list[Tensor]:
        """The states after a step, then the parameters in their own dtype."""
        every = dict.fromkeys(self.state._fields) | dict(zip(self.names, kept, strict=True))
        g = computed(-g if self.maximize else g)
        result, after = self.step(computed(theta), g, self.state(**every), s)
        return [*(getattr(after, name) for name in self.names), round_to(result, theta.dtype)]

    def in_place(self, theta: Tensor, g: Tensor, kept: Sequence[Tensor], s: Any) -> None:
        """A step that changes its tensors."""
        old, new = [*kept, theta], self.new(theta, g, kept, s)
        given = {id(x) for x in (*old, g)}  # what is only passed on must not change before it is
        for x, y in zip(old, [y.clone() if id(y) in given else y for y in new], strict=True):
            x.copy_(y)

    def in_arrays(self, theta: Tensor, g: Tensor, kept: Sequence[Tensor], s: Any) -> bool:
        """The same on NumPy's views of the tensors, whose calls cost half as much; False: there are none."""
        g = computed(-g if self.maximize else g)
        try:
            taken = computed(theta).numpy(), g.numpy()
            states = [x.numpy() for x in kept]
        except (RuntimeError, TypeError):
            return False
        every = dict.fromkeys(self.state._fields) | dict(zip(self.names, states, strict=True))
        with np.errstate(all="ignore"):
            result, after = self.step(*taken, self.state(**every), s)
            new = [getattr(after, name) for name in self.names]
            given = {id(x) for x in (*taken, *states)}
            for x, y in zip(states, [y.copy() if id(y) in given else y for y in new], strict=True):
                np.copyto(x, y)
            if theta.dtype is compute_dtype(theta.dtype):
                np.copyto(taken[0], result)
            else:
                theta.copy_(torch.from_numpy(result))
        return True


class Packed(NamedTuple):
    """A step's scalars in one tensor: an input of a compiled kernel costs time in every call."""

    numbers: Tensor
    kinds: tuple[type | None, ...]  # of each: float, bool, or None, which there is nothing of

    @classmethod
    def of(cls, exact: Any, dtype: torch.dtype, device: torch.device) -> Packed:
        """Doubles and conditions, each rounded once."""
        kinds = tuple(None if x is None else bool if isinstance(x, bool) else float for x in exact)
        there = [x for x in exact if x is not None]
        if any(isinstance(x, Tensor) for x in there):
            on = [torch.as_tensor(x, dtype=torch.float64).to(device).reshape(()) for x in there]
            return cls(torch.stack(on).to(dtype), kinds)
        return cls(torch.tensor(there, dtype=torch.float64).to(dtype).to(device, non_blocking=True), kinds)


@functools.cache
def _fused(kernel: _Flattened, scalars: Any, packed: tuple[Any, ...], *_: Any) -> Callable[..., None]:
    """A kernel as one pass over memory that changes its tensors; compiled once, whatever their sizes."""

    def step(theta: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Tensor) -> None:
        each, found = list(numbers.unbind()), []
        for kind in packed:
            x = None if kind is None else each.pop(0)
            found.append(x != 0 if kind is bool else x)
        new = kernel.new(theta, g, kept, scalars._make(found))
        for x, y in zip([*kept, theta], new, strict=True):
            x.copy_(y)

    compiled: Callable[..., None] = torch.compile(another(step), dynamic=True, fullgraph=True)
    waiting = [True]

    def call(theta: Tensor, g: Tensor, kept: tuple[Tensor, ...], numbers: Tensor) -> None:
        if waiting:  # what is compiled for few numbers would be of one thread for all
            large = [x.new_ones(_LARGE) for x in (theta, g, *kept)]
            compiled(large[0], large[1], tuple(large[2:]), numbers)
            waiting.clear()
        compiled(theta, g, kept, numbers)

    return call


class Optimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """A `torch.optim.Optimizer` that runs a `Method`.

    The state of a parameter is a dictionary: `step`, an integer, and the method's states by their
    names, float32 for float16 and bfloat16 parameters. A parameter without a gradient is left
    alone, its step included. States of all parameters together are kept once a param group, in its
    entry `shared`, with the one count of steps that the group then has; sums go over all groups.

    A step goes over many parameters at once where every number goes its own way: their states are
    views of common buffers then, which `state_dict` does not show. With `fused=True`, torch.compile
    takes the kernel; see `Options`. `storage` says how parameters and states are kept: in 8 bits a
    state `m` is uint8, with `m.scale`; beside a narrow parameter there may be `theta.master` or
    `theta.rest`.
    """

    method: ClassVar[Method]
    domains: ClassVar[Mapping[str, Domain]]
    spelling: ClassVar[Spelling] = {}

    def __init__(
        self,
        params: ParamsT,
        hypers: dict[str, Any],
        *,
        rules: Sequence[Rule] = (),
        store: str = "nearest",
        states: str = "float32",
        seed: int = 0,
        weights: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Check the hyperparameters and take the parameters, as `torch.optim.Optimizer` does."""
        if isinstance(params, torch.nn.Module):
            raise TypeError(f"{self._name}: params is a model. Pass its named_parameters() or parameters().")
        self.weights = weights
        self._without_compiler = False
        self._plan: _Plan | None = None
        self._flats: tuple[list[int], list[Flat]] | None = None
        seed = hypers.get("seed", seed)  # where the algorithm has one, it is that
        self.storage = Storage(store, states, seed).check(self._name)
        self._evaluating = False
        self._resumed = False  # whether a state was loaded since the last step
        self._places: dict[Tensor, int] = {}  # of the parameters in the optimizer, for what draws
        self._seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        checked = self._in_domains(hypers)
        named = _in_the_specs_words(self.domains, self.spelling, checked)
        whole = self.method.shared_states, self.method.elementwise
        self._rules = Rules(
            self._name, rules, self.domains, self.spelling, named, _is_tensor, *whole
        )
        self._order: list[Tensor] = []  # as they were given, whatever groups rules make of them
        super().__init__(params, checked | Options(**options).check(self._name)._asdict())
        self._rules.assign(self._parameters(), _NAMED)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def weights(self) -> dict[str, Tensor]:
        """The meta-parameters by their names; they are not saved, set them where they are to change."""
        return self._weights

    @weights.setter
    def weights(self, values: Any) -> None:
        known = check_weights(self._name, self.method.weights, values)
        self._weights = {name: _as_tensor(x) for name, x in known.items()}

    def _in_domains(self, hypers: Mapping[str, Any], place: str = "") -> dict[str, Any]:
        """The hyperparameters, checked, under the shell's names."""
        return _checked_all(self._name, self.domains, self.spelling, self.method.requires, hypers, place)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own hyperparameters, as in `torch.optim`, or refuse it whole.

        What rules set for some of its parameters makes these a group of their own.
        """
        before = len(self.param_groups)
        if isinstance(param_group, dict):
            self._check_keys(before, param_group)
        try:
            for part in self._parts(param_group):
                self._add(part)
        except Exception:
            del self.param_groups[before:]
            raise

    def _check_keys(self, index: int, group: Mapping[str, Any]) -> None:
        """Refuse what means a hyperparameter or an option; groups may have entries of their users' own."""
        for key in group:
            if key in self.domains or not isinstance(key, str):
                continue
            if key in _OPTIONS and (key != "weights" or self.method.weights):
                raise TypeError(
                    f"{self._name}: {key} of param group {index} is an option of the optimizer as a whole. "
                    f"Pass it to the optimizer, {self._name}(params, {key}=...)."
                )
            close = difflib.get_close_matches(key, self.domains, 1, 0.8)
            if close and abs(len(close[0]) - len(key)) <= 2:  # max_momentum is an entry of schedulers
                raise TypeError(
                    f"{self._name}: {key} of param group {index} is no hyperparameter. Did you mean "
                    f"{close[0]}?"
                )

    def _parts(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group as groups whose parameters the same rules mean."""
        given = group.get("params") if self._rules.given and isinstance(group, dict) else None
        if given is None or isinstance(given, set):
            return [group]
        entries = [given] if isinstance(given, Tensor) else list(given)
        group = {**group, "params": entries}
        pairs = [entry if isinstance(entry, tuple) else (None, entry) for entry in entries]
        if not all(len(pair) == 2 and isinstance(pair[1], Tensor) for pair in pairs):
            return [group]  # to be refused
        settings = self._rules.assign([(name, p.shape) for name, p in pairs], _NAMED, whole=False)
        place = f" of param group {len(self.param_groups)}"
        checked = self._in_domains({**self.defaults, **group}, place)
        named = _in_the_specs_words(self.domains, self.spelling, checked)
        self._order += [p for _, p in pairs]
        parts = []
        for setting in dict.fromkeys(settings):
            own = [entry for entry, s in zip(entries, settings, strict=True) if s is setting]
            now = _in_the_shells_words(self.domains, self.spelling, setting.over(named))
            parts.append({**group, "params": own, **now, _RULES: setting.rules})
        return parts or [group]

    def _add(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        group = self.param_groups[index]
        group.update(self._in_domains(group, f" of param group {index}"))
        self._options(index)
        for i, p in enumerate(group["params"]):
            self._check_kind(p, index, i)
            if _overlaps(p):
                raise self._no_memory_of_its_own(index, i)
            if (setting := self._setting(group)).train:
                check_shape(self._name, self.method.only, self._called(index, i), setting.seen(p.shape))

    def _options(self, index: int) -> Options:
        """The options of a param group, checked."""
        group = self.param_groups[index]
        options = Options(*(group[name] for name in Options._fields))
        return options.check(self._name, f" of param group {index}")

    def _setting(self, group: Mapping[str, Any]) -> Setting:
        """What the rules of a group say; its hyperparameters are its own, and can be changed."""
        return self._rules.settings[tuple(group.get(_RULES, ()))]

    def _parameters(self) -> list[tuple[str | None, torch.Size]]:
        """The names, where there are any, and shapes of all parameters."""
        return [
            (name, p.shape)
            for group in self.param_groups
            for name, p in zip(
                group.get("param_names") or [None] * len(group["params"]), group["params"], strict=True
            )
        ]

    def _in_order(self) -> list[Tensor]:
        """All parameters, as they were given, whatever groups rules have made of them."""
        place = {p: i for i, p in enumerate(self._order)}
        every = [p for group in self.param_groups for p in group["params"]]
        return sorted(every, key=lambda p: place.get(p, len(place)))

    def assignment(self) -> Assignment:
        """Which rules hold for which parameter, and what follows: a table when it is printed."""
        rows: dict[Tensor, Any] = {}
        for index, group in enumerate(self.param_groups):
            setting = self._setting(group)
            now = _in_the_specs_words(self.domains, self.spelling, group)
            shown = replace(setting, overrides=tuple((name, now[name]) for name, _ in setting.overrides))
            for i, p in enumerate(group["params"]):
                name = (group.get("param_names") or {i: f"{index}/{i}"})[i]
                rows[p] = name, p.shape, shown
        return self._rules.assignment({}, [rows[p] for p in self._in_order()])

    def _called(self, index: int, i: int) -> str:
        """What to call a parameter in messages."""
        names = self.param_groups[index].get("param_names")
        return f"parameter {names[i]}" if names else f"parameter {i} of param group {index}"

    def _check_kind(self, p: Tensor, index: int, i: int) -> None:
        """Refuse a dtype that is not taken, or a parameter that is not so."""
        what = f"{self._name}: {self._called(index, i)}"
        if p.dtype not in (*_PARAMETERS, *_COMPLEX):
            raise TypeError(
                f"{what} has dtype {p.dtype}; only float16, bfloat16, float32, float64, complex64 and "
                "complex128 can be optimized. Convert it, for example module.float(), or leave it out."
            )
        if p.is_complex() and not self._elementwise:
            raise TypeError(
                f"{what} has dtype {p.dtype}, and {self._name} is for real numbers: it takes a tensor as a "
                "whole. Keep its two real parts and use torch.view_as_complex on them in the model."
            )
        if self.storage.states != "float32" and (is_sharded(p) or p.is_complex()):
            kind = "a DTensor" if is_sharded(p) else "complex"
            raise ValueError(
                f'{what} is {kind}; states="{self.storage.states}" is for plain tensors of real numbers. '
                "Leave states out."
            )

    def _no_memory_of_its_own(self, index: int, i: int) -> ValueError:
        return ValueError(
            f"{self._name}: {self._called(index, i)} overlaps itself in memory: several of its entries are "
            "one number, as after expand. Pass a copy, torch.nn.Parameter(p.detach().clone())."
        )

    def _check(self, p: Tensor, g: Tensor, index: int, i: int, setting: Setting) -> None:
        """Refuse a parameter, a gradient or a state that does not fit, with the remedy."""
        self._check_kind(p, index, i)
        if _overlaps(p):  # its memory may have been replaced
            raise self._no_memory_of_its_own(index, i)
        check_shape(self._name, self.method.only, self._called(index, i), p.shape)
        wide = compute_dtype(p.dtype)
        if g.layout != torch.strided:
            raise TypeError(
                f"{self._name}: the gradient of {self._called(index, i)} is sparse ({g.layout}). "
                "Build the embedding with sparse=False, or set p.grad = p.grad.to_dense()."
            )
        if g.dtype != p.dtype and (p.is_complex() or torch.promote_types(g.dtype, wide) != wide):
            raise TypeError(
                f"{self._name}: the gradient of {self._called(index, i)} has dtype {g.dtype}, the "
                f"parameter has dtype {p.dtype}. Rounding it would hide a mistake; convert it "
                f"yourself, p.grad.to({p.dtype})."
            )
        if g.shape != p.shape:
            raise ValueError(
                f"{self._name}: the gradient of {self._called(index, i)} has shape "
                f"{tuple(g.shape)}, the parameter has shape {tuple(p.shape)}. Set p.grad to None "
                "where the parameter is replaced."
            )
        if is_sharded(g) != is_sharded(p):
            raise TypeError(
                f"{self._name}: of {self._called(index, i)} and its gradient one is a DTensor, the other a "
                "plain tensor. Shard the model before backward()."
            )
        if g.device != p.device:
            raise ValueError(
                f"{self._name}: the gradient of {self._called(index, i)} is on {g.device}, the "
                f"parameter is on {p.device}. Move the model before backward()."
            )
        slot = self.state.get(p)
        hypers = self._seen[index][1]
        layout = self._layout(p, setting, hypers) if slot else {}
        odd = [k for k in self.method.state._fields if slot and (k in slot) != (k in layout)]
        if odd and self.method.choices:
            raise ValueError(
                f"{self._name}: the hyperparameters of param group {index} decide on the states "
                f"{', '.join(odd)}, and the run of {self._called(index, i)} has begun. Set them back, or "
                "make a new optimizer."
            )
        for field, (shape, kind) in layout.items():
            x = slot.get(field)
            if x is None or x.dtype != kind or x.shape != shape or x.device != p.device:
                its = f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if x is not None else "another's"
                raise ValueError(
                    f"{self._name}: {self._called(index, i)} is {p.dtype} of shape "
                    f"{tuple(p.shape)} on {p.device}, its state is {its}. After a change of dtype or "
                    "device call optimizer.load_state_dict(optimizer.state_dict()); after a change of "
                    "shape make a new optimizer."
                )

    def _layout(
        self, p: Tensor, setting: Setting, hypers: Mapping[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The tensors that are kept of a parameter: their shapes and dtypes."""
        wide, codes = p.dtype if p.is_complex() else compute_dtype(p.dtype), self._codes(p)
        kept: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        seen = torch.Size(setting.seen(p.shape))
        for name, shape in _state_shapes(decided(self.method, hypers), seen).items():
            kept[name] = shape, torch.uint8 if name in codes else wide
            if name in codes:
                kept[f"{name}.scale"] = (pieces(shape),), torch.float32
        beside = self.storage.beside(_word_of(p.dtype))
        if beside is not None:
            kept[beside] = seen, wide if self.storage.store == "master" else p.dtype
        return kept

    def _codes(self, p: Tensor) -> Mapping[str, str]:
        """The states of a parameter that are kept in 8 bits."""
        if self.storage.states == "float32":  # there may be thousands of parameters
            return {}
        return self.storage.codes(self.method.coded, _word_of(p.dtype), p.numel())

    def _groups(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Each group's hyperparameters, those checked that are other objects than a step ago."""
        seen = []
        for index, group in enumerate(self.param_groups):
            try:
                values = tuple(group[name] for name in self.domains)
            except KeyError as missing:
                name = missing.args[0]
                raise ValueError(
                    f"{self._name}: param group {index} has no {name}. Set "
                    f'optimizer.param_groups[{index}]["{name}"].'
                ) from None
            known = self._seen[index] if index < len(self._seen) else None
            if known is None or not all(map(operator.is_, values, known[0])):
                group.update(self._in_domains(group, f" of param group {index}"))
                values = tuple(group[name] for name in self.domains)
                hypers = _in_the_specs_words(self.domains, self.spelling, group)
                self._begun_already(index, group, hypers, known[1] if known else hypers)
                known = values, hypers
            seen.append(known)
        self._seen = seen
        return seen

    def _begun_already(
        self, index: int, group: Mapping[str, Any], now: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        """Refuse to change or schedule where a state of all parameters begins."""
        for state, start in self.method.shared_states.items():
            if (start == "lr" and "initial_lr" in group) or (
                isinstance(start, str) and _SHARED in group and now[start] is not before[start]
            ):
                raise ValueError(
                    f"{self._name}: {start} of param group {index} is where {state} begins, which then goes "
                    "its own way: no scheduler can drive it. Leave the scheduler out, and set "
                    f'group["{_SHARED}"]["float32"]["{state}"] if need be.'
                )

    # A compiled training step calls this uncompiled: traced, it would be compiled anew for every t.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None, **given: Any) -> Any:
        """Do one step.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss. Algorithms that
                take several gradients a step call it again where the parameters hold another point;
                afterwards they, and their gradients, are as after the first call.
            **given: what else the algorithm reads, by name: a list with a tensor for each parameter,
                or a function that makes one, called in those steps that read it.

        Returns:
            What the closure returned the first time, else None.

        Raises:
            ValueError: a hyperparameter or a gradient does not fit; nothing is changed.
            TypeError: one has a wrong type, a gradient is sparse, or the closure is missing; nothing
                is changed.
            RuntimeError: in evaluation mode.
        """
        with torch.set_grad_enabled(any(group["differentiable"] for group in self.param_groups)):
            return self._one_step(closure, given)

    def _one_step(self, closure: Callable[[], Any] | None, given: Mapping[str, Any]) -> Any:
        if self._evaluating and self.method.evaluate is not None:
            raise RuntimeError(
                f"{self._name}: step in evaluation mode. Call optimizer.train() first, or leave "
                "the block of optimizer.evaluation()."
            )
        groups = self._groups()
        self._check_given(closure, given)
        if self._resumed:
            self._check_point()
        loss = None
        if closure is not None:
            loss = self._evaluated(closure)
        for flat in self._flattened():
            if flat.gather() or flat.moved():
                self._flat_no_more(flat)
        if self._plan is not None and self._holds(self._plan):
            for lane in self._plan.flats:
                self._run_flat(lane, groups)
            return loss
        ready = self._ready()
        if self.method.sources or self.storage.store != "nearest":
            self._places = {p: i for i, p in enumerate(self._in_order())}
        fresh = [p for p, _ in ready if not self.state[p]]
        clocks = self._clocks(groups) if ready and self.method.shared_states else []
        try:
            self._begin(ready, groups)
            lanes, others = self._lanes(ready, groups)
            jobs = self._jobs(others, groups, clocks)
            shared = self._before(jobs, closure, given)
        except Exception:
            for p in fresh:
                del self.state[p]
            raise
        for lane in lanes:
            self._run_flat(lane, groups)
        for job, w in zip(jobs, shared, strict=True):
            self._run(job, w)
        for group, kept in zip(self.param_groups, clocks, strict=False):
            group[_SHARED] = kept
        return loss

    def _ready(self) -> list[tuple[Tensor, int]]:
        """The parameters with a gradient and the group of each, all of it checked."""
        ready = []
        for index, group in enumerate(self.param_groups):
            setting = self._setting(group)
            for i, p in enumerate(group["params"] if setting.train else ()):
                if p.grad is not None:
                    self._check(p, p.grad, index, i, setting)
                    ready.append((p, index))
        return ready

    def _begin(
        self, ready: Sequence[tuple[Tensor, int]], groups: Sequence[tuple[Any, Mapping[str, Any]]]
    ) -> None:
        """Give each parameter without states those before its first step; captured counts are tensors."""
        counts: dict[Any, Tensor] = {}  # one for all that have counted as far: they go on together
        for p, index in ready:
            slot, options = self.state[p], self._options(index)
            if not slot:
                slot.update(self._start(p, groups[index][1], self._setting(self.param_groups[index])))
            count = slot["step"]
            if options.capturable and not isinstance(count, Tensor):
                new = torch.tensor(count, device=p.device)
                slot["step"] = counts.setdefault((index, p.device, count), new)
            elif not options.capturable and isinstance(count, Tensor) and self.method.held is None:
                slot["step"] = int(count)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, as in `torch.optim`; those of parameters that lie flat become zeros."""
        kept = {p: p.grad for flat in self._flattened() for p in flat.params}
        super().zero_grad(set_to_none)
        for p, g in kept.items():
            p.grad = g
        for flat in self._flattened():
            flat.zero_grad()

    def _flattened(self) -> list[Flat]:
        """What `flatten` has made of the parameters."""
        count = [len(group["params"]) for group in self.param_groups]
        if self._flats is None or self._flats[0] != count:
            self._flats = count, flat_of(p for group in self.param_groups for p in group["params"])
        return self._flats[1]

    def _flat_no_more(self, flat: Flat) -> None:
        """Warn, once, where what was moved into one piece of memory has left it."""
        what, remedy = "gradients", "Call optimizer.zero_grad() in place of model.zero_grad()."
        if flat.moved():
            what, remedy = "parameters", "Call flatten(model) again, after model.to(...)."
        warnings.warn(
            f"{self._name}: {what} have left the memory that flatten(...) put them in, so steps are slower. "
            f"{remedy}",
            stacklevel=5,
        )

    # Many parameters at once ------------------------------------------------------------------------

    def _lanes(
        self, ready: Sequence[tuple[Tensor, int]], groups: Sequence[tuple[Any, Mapping[str, Any]]]
    ) -> tuple[list[_Flat], list[tuple[Tensor, int]]]:
        """Parameters that can lie flat, in lanes, for this step and for those after it; and the others."""
        method, plain = self.method, self.storage.states == "float32"
        if not (method.elementwise and plain) or method.sources or method.shared_states:
            return [], list(ready)
        others, found = [], dict[Any, dict[Tensor, dict[str, Any]]]()
        for p, index in ready:
            options, kind = self._options(index), _word_of(p.dtype)
            real = p.dtype in _PARAMETERS
            if not (options.together and self.storage.plain(kind) and real and lies_flat(p)):
                others.append((p, index))
                continue
            slot = self.state[p]
            scalars = tuple(slot[name] for name in method.scalar_states)
            key = index, options, p.dtype, p.device, slot["step"], scalars
            found.setdefault(key, {})[p] = slot
        old = self._plan.flats if self._plan is not None else []
        before = {p: b for x in old for p, b in x.lane.buffers.items()}
        flats = []
        for (index, options, *_, t, scalars), slots in found.items():
            chosen = decided(method, groups[index][1])
            first = next(iter(slots.values()))
            names = tuple(name for name in method.state._fields if name in first)
            sizes = (_PIECE, _PIECE // 2, _PIECE)
            if self._compiles(options):
                sizes = (_FUSED_PIECE, _FUSED_ALONE, sys.maxsize)
            lane = Lane(slots, names, before, *sizes)
            flats.append(_Flat(lane, index, chosen, t, scalars, options))
        inside = {p for x in flats for p in x.lane.params}
        every = [list(g["params"]) for g in self.param_groups]
        others_of_all = [p for params in every for p in params if p not in inside]
        self._plan = _Plan(every, others_of_all, list(self.state), list(self.state.values()), flats)
        return flats, others

    def _compiles(self, options: Options) -> bool:
        return bool(options.fused) and not self._without_compiler

    def _holds(self, plan: _Plan) -> bool:
        """Whether the lanes of the last step are good for this one; gives them their gradients."""
        live = [g["params"] for g in self.param_groups]
        if not (
            len(live) == len(plan.groups)
            and all(map(_are, live, plan.groups))
            and _are(self.state, plan.owners)
            and _are(self.state.values(), plan.slots)
            and all(p.grad is None for p in plan.others)
        ):
            return False
        return all(self._holds_for(flat) for flat in plan.flats)

    def _holds_for(self, flat: _Flat) -> bool:
        """Whether a lane is."""
        slots, own = flat.lane.slots, self.method.scalar_states
        return (
            [slot["step"] for slot in slots] == [flat.t] * len(slots)
            and not (own and any(tuple(slot[name] for name in own) != flat.scalars for slot in slots))
            and flat.options == self._options(flat.index)
            and decided(self.method, self._seen[flat.index][1]) == flat.method
            and flat.lane.holds()
        )

    def _run_flat(self, flat: _Flat, groups: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
        """One step of the parameters of a lane."""
        lane, method, hypers = flat.lane, flat.method, groups[flat.index][1]
        p = lane.params[0]
        wide = compute_dtype(p.dtype)
        exact = self._exact(method, flat.t + 1, hypers, wide, flat.scalars)
        kernel = _Flattened(method.step, method.state, lane.names, flat.options.maximize)
        s = rounded(exact, wide)

        def step(theta: Tensor, g: Tensor, kept: Sequence[Tensor]) -> None:
            kernel.in_place(theta, g, kept, s)

        if self._compiles(flat.options):
            numbers, kinds = Packed.of(exact, wide, p.device)
            compiled = _fused(kernel, cast(Any, type(exact)), kinds, p.dtype, p.device.type)

            def fused(theta: Tensor, g: Tensor, kept: Sequence[Tensor]) -> None:
                # Sizes 0 and 1, and what is as long as something else, would be compiled by themselves.
                if self._without_compiler or len(theta) in (0, 1, len(numbers)):
                    return step(theta, g, kept)
                try:
                    return compiled(theta, g, kept, numbers)
                except Exception as error:
                    self._go_on_without_compiler(error)
                    return step(theta, g, kept)

            lane.run(fused)
        elif _ARRAYS and p.is_cpu and not any(isinstance(x, Tensor) for x in exact):
            numbers = in_numpy(exact, wide)

            def in_arrays(theta: Tensor, g: Tensor, kept: Sequence[Tensor]) -> None:
                if not kernel.in_arrays(theta, g, kept, numbers):
                    step(theta, g, kept)

            lane.run(in_arrays, min(torch.get_num_threads(), _THREADS))
            torch.autograd.graph.increment_version(lane.params)
        else:
            lane.run(step)
        flat.t += 1
        flat.scalars = tuple(getattr(exact, name) for name in method.scalar_states)
        own = dict(zip(method.scalar_states, flat.scalars, strict=True))
        for slot in lane.slots:
            slot["step"] = flat.t
            if own:
                slot.update(own)

    # ------------------------------------------------------------------------------------------------

    def _evaluated(self, closure: Callable[[], Any]) -> Any:
        """What the closure returns; of several gradients each is its own, zeroed by the closure or not."""
        params = [p for group in self.param_groups for p in group["params"]] if self._takes_several else []
        for p in params:
            p.grad = None
        with torch.enable_grad():
            loss = closure()
        if params and all(p.grad is None for p in params):
            raise ValueError(
                f"{self._name}: the closure left no gradient. Call backward() in it, on a loss that depends "
                "on the parameters."
            )
        return loss

    @property
    def _takes_several(self) -> bool:
        return any(isinstance(then, str) for _, then in self.method.passes)

    def _check_given(self, closure: Any, given: Mapping[str, Any]) -> None:
        """Refuse what the algorithm cannot do with: no closure, other inputs."""
        if self._takes_several and closure is None:
            raise TypeError(
                f"{self._name} takes several gradients a step. Pass a closure that sets the gradients "
                "to zero, computes the loss, calls backward() and returns the loss: "
                "optimizer.step(closure)."
            )
        if closure is not None and not callable(closure):
            raise TypeError(
                f"{self._name}: step was given a {type(closure).__name__} as closure, which is no function. "
                "Gradients are read from the parameters: call loss.backward(), then optimizer.step()."
            )
        names = self.method.inputs
        if odd := [k for k in given if k not in names]:
            reads = f"reads {', '.join(names)}" if names else "reads nothing but gradients"
            raise TypeError(f"{self._name}: step was given {', '.join(odd)}; it {reads}. Leave it out.")
        if lacking := [k for k in names if given.get(k) is None]:
            what = ", ".join(f"{k}=..." for k in lacking)
            raise TypeError(f"{self._name}: step reads {', '.join(lacking)}. Pass {what}.")

    def _before(
        self, jobs: Sequence[_Job], closure: Any, given: Mapping[str, Any]
    ) -> list[list[tuple[Any, ...]]]:
        """For each parameter of each job what its kernel is given besides."""
        inputs = self._given(jobs, given)
        together = jobs if self.method.shared_states else ()
        methods = [job.method for job in jobs]
        params = [p for job in jobs for p in job.params]
        calls = [[self._arguments(p, job) for p in job.params] for job in jobs]
        if not self._takes_several:
            return over_all(methods, calls, inputs, None, together)
        # While the parameters hold other points, the kernels read copies.
        calls = [[(theta.clone(), g.clone(), *rest) for theta, g, *rest in group] for group in calls]
        before = [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in params]

        def elsewhere(points: list[Tensor]) -> list[Tensor]:
            for p, point in zip(params, points, strict=True):
                self._put(p, point)
            self._evaluated(closure)
            return [self._further(p).clone().reshape(x.shape) for p, x in zip(params, points, strict=True)]

        try:
            return over_all(methods, calls, inputs, elsewhere, together)
        finally:
            for p, (value, g) in zip(params, before, strict=True):
                p.copy_(value)
                p.grad = g

    def _further(self, p: Tensor) -> Tensor:
        """A further gradient of a parameter in the compute dtype, checked."""
        index, i = next(
            (index, i)
            for index, group in enumerate(self.param_groups)
            for i, q in enumerate(group["params"])
            if q is p
        )
        if p.grad is None:
            raise ValueError(
                f"{self._name}: {self._called(index, i)} has a first gradient in this step and no "
                "further one. Give it all of them, or none."
            )
        self._check(p, p.grad, index, i, self._setting(self.param_groups[index]))
        return computed(plain(-p.grad if self._options(index).maximize else p.grad, p, self._whole))

    def _given(self, jobs: Sequence[_Job], given: Mapping[str, Any]) -> list[list[Any]]:
        """What the caller gives, for each parameter in its compute dtype; zeros where it is not read."""
        method = self.method
        if method.given is None:
            return []
        every = self._in_order()
        made: dict[Tensor, dict[str, Any]] = {
            p: {k: x.to(p.device, compute_dtype(p.dtype)) for k, x in self._weights.items()}
            for job in jobs
            for p in job.params
        }
        seen = {p: job.setting.seen(p.shape) for job in jobs for p in job.params}
        for name, when in method.inputs.items():
            asked = not when or any(bool(getattr(job.exact, when)) for job in jobs)
            value = given[name]() if asked and callable(given[name]) else given[name]
            if name in method.numbers:
                for p, m in made.items():
                    number = _double(value) if isinstance(value, Tensor) else float(value)
                    m[name] = _entering(number if asked else 0.0, compute_dtype(p.dtype)).to(p.device)
                continue
            found = dict(zip(every, self._inputs(name, value, every), strict=True)) if asked else {}
            for p, m in made.items():
                x = found.get(p)
                if x is None and asked:
                    raise ValueError(
                        f"{self._name}: {name} has None for a parameter of shape {tuple(p.shape)}, which "
                        "has a gradient. Pass a tensor."
                    )
                m[name] = plain(torch.zeros_like(p) if x is None else x.detach(), p, self._whole)
                m[name] = computed(m[name]).to(compute_dtype(p.dtype))
                if self._whole or not (is_sharded(p) or p.is_complex()):
                    m[name] = m[name].reshape(seen[p])
        return [[method.given(**made[p]) for p in job.params] for job in jobs]

    def _inputs(self, name: str, value: Any, every: Sequence[Tensor]) -> list[Tensor | None]:
        """A tensor, or None, for each parameter, checked."""
        if not isinstance(value, (list, tuple)) or len(value) != len(every):
            got = f"{len(value)}" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
            raise ValueError(
                f"{self._name}: {name} must be a list with a tensor for each of the {len(every)} "
                f"parameters, got {got}. Pass one for each, in the order of the parameters."
            )
        for p, x in zip(every, value, strict=True):
            if x is not None and (not isinstance(x, Tensor) or x.shape != p.shape):
                its = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
                raise ValueError(
                    f"{self._name}: {name} of a parameter of shape {tuple(p.shape)} has {its}. Pass "
                    "tensors in the order of the parameters."
                )
        return list(value)

    def _clocks(self, groups: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """What the parameters of each group keep together, for each compute dtype; a copy."""
        method, clocks = self.method, []
        for group, (_, hypers) in zip(self.param_groups, groups, strict=True):
            kept = {kind: dict(clock) for kind, clock in group.get(_SHARED, {}).items()}
            for p in group["params"]:
                if _kind(p) not in kept:
                    wide = compute_dtype(p.dtype)
                    clock = kept[_kind(p)] = {"step": self._count(0, p)}
                    clock |= self._starts(method.scalar_states, wide, hypers)
                    for name, x in self._starts(method.shared_states, wide, hypers).items():
                        clock[name] = _entering(x, wide).detach().to(p.device, copy=True)
            clocks.append(kept)
        return clocks

    def _jobs(
        self,
        ready: Sequence[tuple[Tensor, int]],
        groups: Sequence[tuple[Any, Mapping[str, Any]]],
        clocks: Sequence[dict[str, Any]],
    ) -> list[_Job]:
        """Parameters by what their scalars and buffers depend on, whatever their groups are.

        Where parameters have states together, which go on without gradients, a job may have none.
        """
        jobs: dict[Any, tuple[Setting, Any, dict[str, Any] | None, list[Tensor]]] = {}

        def job(index: int, dtype: torch.dtype, kept: Any, place: Any, clock: Any) -> list[Tensor]:
            (values, hypers), setting = groups[index], self._setting(self.param_groups[index])
            scalars = tuple(kept[name] for name in self.method.scalar_states)
            count = kept["step"] if clock is None else 0  # a clock stands for its count
            options = self._options(index)
            key = (values, dtype, count, scalars, place, id(clock), setting.view, options)
            return jobs.setdefault(key, (setting, hypers, clock, []))[3]

        for p, index in ready:
            slot, clock = self.state[p], clocks[index][_kind(p)] if clocks else None
            job(index, p.dtype, clock or slot, p.device, clock).append(p)
        begun = {id(clock) for _, _, clock, _ in jobs.values()}
        for index, kinds in enumerate(clocks):
            for kind, clock in kinds.items():
                if id(clock) not in begun:
                    job(index, getattr(torch, kind), clock, None, clock)
        return [
            self._job(
                params, setting, hypers, dtype, (clock["step"] if clock else count) + 1, kept, clock, options
            )
            for (_, dtype, count, kept, *_, options), (setting, hypers, clock, params) in jobs.items()
        ]

    def _job(
        self,
        params: list[Tensor],
        setting: Setting,
        hypers: Mapping[str, Any],
        dtype: torch.dtype,
        t: Any,
        kept: tuple[Any, ...],
        clock: dict[str, Any] | None,
        options: Options,
    ) -> _Job:
        """Parameters that share everything but their values, and the scalars of their step."""
        method, wide = decided(self.method, hypers), compute_dtype(dtype)
        exact = self._exact(method, t, hypers, wide, kept)
        shared = None
        if clock is not None:
            old = {f"{name}_prev": clock[name] for name in method.shared_states}
            place = params[0].device if params else None
            shared = method.shared(**{name: x.to(place or x.device) for name, x in old.items()})
        return _Job(method, params, setting, t, exact, rounded(exact, wide), options, clock, shared)

    def _exact(
        self, method: Method, t: Any, hypers: Mapping[str, Any], wide: torch.dtype, kept: tuple[Any, ...]
    ) -> Any:
        """The scalars of step t in double, with states of step scope as they are kept."""
        given = {name: _double(value) for name, value in hypers.items()}
        if isinstance(t, Tensor):  # then all scalars are
            given = {name: _beside(t, value) for name, value in given.items()}
        if kept:
            given |= {f"{k}_prev": x for k, x in zip(method.scalar_states, kept, strict=True)}
            given["store"] = storing(wide)
        return method.scalars(t, **given)

    def _start(self, p: Tensor, hypers: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
        """The state of a parameter before its first step."""
        method = decided(self.method, hypers)
        slot: dict[str, Any] = {"step": 0}
        if not method.shared_states:
            slot.update(self._starts(method.scalar_states, compute_dtype(p.dtype), hypers))
        theta = computed(plain(p.detach(), p, self._whole))
        theta = theta.reshape(setting.seen(theta.shape))
        states = entries(_there(method.init(theta, **self._for_init(hypers))), self._codes(p))
        beside = self.storage.beside(_word_of(p.dtype))
        if beside is not None:
            states[beside] = self._beside(p, self.storage.begun(theta))
        slot.update({name: kept_as(x, p, self._whole) for name, x in states.items()})
        return slot

    @property
    def _whole(self) -> bool:
        """Whether the kernel takes sharded parameters as a whole."""
        return not self._elementwise or self.storage.store == "stochastic"

    @property
    def _elementwise(self) -> bool:
        """Whether every number goes its own way."""
        method = self.method
        return method.elementwise and not (method.passes or method.sources or method.shared_states)

    def _starts(
        self, starts: Mapping[str, float | str], dtype: torch.dtype, hypers: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Numbers that states begin with, in a compute dtype."""
        given = {k: _double(hypers[x]) if isinstance(x, str) else float(x) for k, x in starts.items()}
        return {name: storing(dtype)(x) for name, x in given.items()}

    def _loaded(self, p: Tensor, setting: Setting) -> Tensor:
        """A parameter as the kernel takes it; a copy where autograd goes through the step."""
        theta = plain(p.clone() if torch.is_grad_enabled() else p.detach(), p, self._whole)
        theta = computed(theta).reshape(setting.seen(theta.shape))
        beside = self.storage.beside(_word_of(p.dtype))
        if beside is None:
            return theta
        kept = plain(self.state[p][beside], p, self._whole)
        return self.storage.loaded(theta, computed(kept), _word_of(p.dtype))

    def _beside(self, p: Tensor, x: Tensor) -> Tensor:
        """What is kept beside a parameter: its copy in the compute dtype, a rest in its own."""
        return x.clone() if self.storage.store == "master" else x.to(p.dtype)

    def _store(self, p: Tensor, x: Tensor, t: int) -> None:
        """A new value of a parameter, in place, and what is kept beside it."""
        kind, name = _word_of(p.dtype), self.storage.beside(_word_of(p.dtype))
        if not self.storage.plain(kind):
            x, beside = self.storage.parted(x, kind, t, self._places[p])
            if name is not None:
                self.state[p][name] = kept_as(self._beside(p, beside), p, self._whole)
        self._put(p, x)

    def _put(self, p: Tensor, x: Tensor) -> None:
        """The same of a parameter that nothing is kept beside."""
        if is_sharded(p) or p.is_complex():
            shape = p.shape if self._whole and not p.is_complex() else plain(p.detach(), p, False).shape
            p.copy_(kept_as(round_to(x, p.dtype.to_real()).reshape(shape), p, self._whole))
        else:
            p.copy_(round_to(x, p.dtype).reshape(p.shape))

    def _count(self, step: int, p: Tensor) -> Any:
        """Counted steps; where data decide on what counts, a tensor where the parameter is."""
        return step if self.method.held is None else torch.tensor(step, device=p.device)

    def _for_init(self, hypers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _double(hypers[name]) for name in self.method.init_hypers}

    def _arguments(self, p: Tensor, job: _Job) -> tuple[Tensor, Tensor, Any, Any]:
        """What the kernel is given of a parameter."""
        slot = {name: plain(x, p, self._whole) for name, x in self.state[p].items()}
        kept = opened(slot, self._codes(p))
        state = self.method.state._make(kept.get(name) for name in self.method.state._fields)
        s = of_parameter(self.method.sources, job.s, self._places[p]) if self.method.sources else job.s
        theta = self._loaded(p, job.setting)
        g = plain(-p.grad if job.options.maximize else p.grad, p, self._whole)
        return theta, computed(g).reshape(theta.shape), state, s

    def _run(self, job: _Job, w: Sequence[tuple[Any, ...]]) -> None:
        """One step of the parameters of a job."""
        method = job.method
        self._run_each(job, w)
        kept = [self.state[p] for p in job.params]
        for slot in kept:
            slot["step"] = job.t
        if job.clock is not None:
            kept = [job.clock]
            counts = method.held is None or getattr(job.shared, method.held).to(job.t.device)
            job.clock["step"] = job.t if method.held is None else job.t - 1 + counts
            for p in job.params:
                self.state[p]["step"] = job.clock["step"]
            for name in method.shared_states:
                job.clock[name] = getattr(job.shared, name)
        for slot in kept:
            for name in method.scalar_states:
                slot[name] = getattr(job.exact, name)

    def _run_each(self, job: _Job, besides: Sequence[tuple[Any, ...]]) -> None:
        """The kernel on one parameter after the other, or on several small ones."""
        method, fused = job.method, self._compiles(job.options)
        params = [self._loaded(p, job.setting) for p in job.params]
        each = [[i] for i in range(len(params))]
        for members in batches(method, params, [job.s] * len(params)) if job.options.together else each:
            calls = [(*self._arguments(job.params[i], job), *besides[i]) for i in members]
            # What is compiled for one shape serves all of as many axes, but for sizes 0 and 1.
            compiled = fused and min(calls[0][0].shape, default=0) > 1
            if compiled:
                results = [self._called_kernel(method.step, *x) for x in calls]
            else:
                results = together(method, method.step, calls)
            for i, (theta, g, *_), (result, state) in zip(members, calls, results, strict=True):
                p = job.params[i]
                users = {id(theta), id(g)}  # memory of the user's, which changes outside, is not kept
                for name, x in entries(_there(state), self._codes(p)).items():
                    # Nor is a part of what belongs to several.
                    x = x.clone() if id(x) in users or len(members) > 1 else x
                    self.state[p][name] = kept_as(x, p, self._whole)
                self._store(p, result, job.t)

    def _called_kernel(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """The step of a kernel, compiled where that is possible."""
        try:
            theta = arguments[0]
            return _compiled(step, theta.ndim, theta.dtype)(*_as_tensors(arguments))
        except Exception as error:
            self._go_on_without_compiler(error)
            return step(*arguments)

    def _go_on_without_compiler(self, error: Exception) -> None:
        """Warn where there is no compiler; raise anything else again."""
        from torch._dynamo.exc import BackendCompilerFailed

        if not isinstance(error, BackendCompilerFailed):
            raise error
        cause = error.inner_exception
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        warnings.warn(
            f"{self._name}: torch.compile failed ({reason}); going on without it, with the "
            "same bits. Install a C++ compiler, or leave fused=True out.",
            stacklevel=2,
        )
        self._without_compiler = True

    # Evaluation -----------------------------------------------------------------------------------

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def eval(self) -> None:
        """Let the parameters hold what the model is evaluated with.

        Where the algorithm takes its gradient at another point (look-ahead), the parameters hold
        that point during training, and the iterate from here to `train()`. Copies are swapped,
        nothing is recomputed, so a run with evaluations has the bits of a run without.
        """
        name = self.method.evaluate
        if name is not None and not self._evaluating:
            for p, slot in self._stateful():
                slot[_TRAINING] = p.detach().clone()
                p.copy_(round_to(slot[name], p.dtype).reshape(p.shape))
        self._evaluating = True

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def train(self) -> None:
        """Let the parameters hold again what the next gradient is taken at."""
        for p, slot in self._stateful():
            if _TRAINING in slot:
                p.copy_(slot.pop(_TRAINING))
        self._evaluating = False

    def watch(self, model: torch.nn.Module) -> Any:
        """Warn where the model is evaluated while its parameters hold the point of the next gradient.

        That is, where `model` is called in its evaluation mode and the optimizer is in training mode.
        Nothing is watched where the algorithm trains and evaluates with the same parameters.

        Args:
            model: the module whose parameters are optimized.

        Returns:
            A handle whose `remove()` ends it.
        """
        if not isinstance(model, torch.nn.Module):
            raise TypeError(
                f"{self._name}: watch was given a {type(model).__name__}. Pass the model, a torch.nn.Module."
            )

        def look(module: torch.nn.Module, _: Any) -> None:
            wrong = self.method.evaluate is not None and not self._evaluating
            if wrong and not module.training and any(True for _ in self._stateful()):
                warnings.warn(
                    f"{self._name}: the model is evaluated with the point at which the next gradient is "
                    "taken. Evaluate inside `with optimizer.evaluation():`, or call optimizer.eval().",
                    stacklevel=3,
                )

        return model.register_forward_pre_hook(look)

    def _check_point(self) -> None:
        """Warn where what is resumed from are the parameters to evaluate with."""
        self._resumed, name = False, self.method.evaluate
        if self.method.name.endswith(_DIALECT):  # asgd's average is the parameters for long
            return
        if name is None or torch.compiler.is_compiling():
            return
        pairs = [(p, slot[name]) for p, slot in self._stateful() if slot["step"]]
        if pairs and all(torch.equal(p.detach(), round_to(x, p.dtype).reshape(p.shape)) for p, x in pairs):
            warnings.warn(
                f"{self._name}: the parameters are those to evaluate with, not those that the loaded "
                "state was saved beside, so this run does not go on where that one was. Save the model "
                "outside of optimizer.evaluation() to go on, inside to use it.",
                stacklevel=3,
            )

    def _stateful(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for p in group["params"]:
                if self.state.get(p):
                    yield p, self.state[p]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """`eval()` for a block: `with optimizer.evaluation(): ...`, then the mode of before."""
        before = self._evaluating
        self.eval()
        try:
            yield
        finally:
            if not before:
                self.train()

    # Saving and loading ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's two entries, and the algorithm: another one may have states of the same names.

        No tensor is part of a larger one. What has torch's equations has torch's states, too, for its own
        optimizer to load.
        """
        saved = {**super().state_dict(), _ALGORITHM: self.method.name}
        shown = _as_torchs if self.method.name.endswith(_DIALECT) else dict
        saved["state"] = {key: shown(_apart(slot)) for key, slot in saved["state"].items()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`; refused, with nothing changed, where it does not fit.

        States are copied to the parameter's device and keep their own dtype; `torch.optim` casts
        them to the parameter's.
        """
        if not isinstance(state_dict, Mapping):  # which torch would copy before it asks us
            raise self._no_checkpoint()
        last = self.register_load_state_dict_pre_hook(Optimizer._understood)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        self._resumed = not self._evaluating

    def _no_checkpoint(self) -> ValueError:
        return ValueError(
            f"{self._name}: this is not what state_dict() of an optimizer gave. Pass that; what a model "
            "gave goes into model.load_state_dict."
        )

    def _understood(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint with every state checked, copied, and shielded from torch's cast."""
        if not _is_checkpoint(state_dict):
            raise self._no_checkpoint()
        saved, live = state_dict["param_groups"], self.param_groups
        if state_dict.get(_ALGORITHM, self.method.name) != self.method.name:
            raise ValueError(
                f"{self._name}: the checkpoint is of {state_dict[_ALGORITHM]}. Another optimizer saved it: "
                "load it into that one."
            )
        if len(saved) != len(live):
            raise ValueError(
                f"{self._name}: the checkpoint has {len(saved)} param groups, the optimizer has "
                f"{len(live)}. Build it with the groups that it was saved with."
            )
        state, groups = dict(state_dict["state"]), []
        for index, (old, new) in enumerate(zip(saved, live, strict=True)):
            if len(old["params"]) != len(new["params"]):
                raise ValueError(
                    f"{self._name}: param group {index} has {len(old['params'])} parameters in the "
                    f"checkpoint and {len(new['params'])} here. Build the optimizer over the same "
                    "parameters in the same order."
                )
            _same_order(self._name, index, old.get("param_names"), new.get("param_names"))
            groups.append({**{name: new[name] for name in (*self.domains, *Options._fields)}, **old})
            groups[-1].pop(_RULES, None)
            groups[-1] |= {_RULES: new[_RULES]} if _RULES in new else {}
            self._in_domains(groups[-1], f" of param group {index} in the checkpoint")
            hypers = _in_the_specs_words(self.domains, self.spelling, groups[-1])
            begun = _SHARED in old or any(state.get(key) for key in old["params"])
            if self.method.shared_states and begun:
                groups[-1][_SHARED] = self._common(index, old.get(_SHARED, {}), new["params"])
            setting = self._setting(new)
            for i, (key, p) in enumerate(zip(old["params"], new["params"], strict=True)):
                if state.get(key) and self.method.name.endswith(_DIALECT):
                    state[key] = _from_torchs(state[key])
                if state.get(key):
                    called = self._called(index, i)
                    layout = self._layout(p, setting, hypers)
                    state[key] = _Loaded(self._fitted(p, called, state[key], layout))
        return {**state_dict, "state": state, "param_groups": groups}

    def _fitted(
        self, p: Tensor, called: str, saved: Mapping[str, Any], layout: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The saved state of one parameter, on its device, in the dtypes of this method."""
        own = () if self.method.shared_states else self.method.scalar_states
        wanted = {"step", *own, *layout}
        if wanted != saved.keys() - {_TRAINING}:
            raise ValueError(
                f"{self._name}: the checkpoint has {', '.join(sorted(saved))} for {called}; "
                f"expected are {', '.join(sorted(wanted))}. Another optimizer saved it, or one with "
                "another store or states."
            )
        fitted = dict(saved)
        for field, (shape, dtype) in {**layout, _TRAINING: (p.shape, p.dtype)}.items():
            if field not in saved:
                continue
            if not isinstance(saved[field], Tensor):
                raise ValueError(
                    f"{self._name}: {field} of {called} is {saved[field]!r} in the checkpoint; expected is a "
                    f"tensor of shape {tuple(shape)}. Load what state_dict() gave."
                )
            if saved[field].shape != shape:
                raise ValueError(
                    f"{self._name}: {field} of {called} has shape {tuple(saved[field].shape)} in "
                    f"the checkpoint; expected is {tuple(shape)}. Build the optimizer over "
                    "the same parameters in the same order."
                )
            fitted[field] = saved[field].detach().to(p.device, dtype, copy=True)
        fitted["step"] = self._saved_count(saved["step"], called)
        for field in own:
            fitted[field] = self._saved_number(field, saved[field], called)
        return fitted

    def _saved_count(self, step: Any, called: str) -> int:
        """A count of steps from a checkpoint."""
        if not _is_count(step):
            raise ValueError(
                f"{self._name}: the step of {called} is {step!r} in the checkpoint. It must be an integer, 0 "
                "or more."
            )
        return int(step)

    def _saved_number(self, field: str, x: Any, called: str) -> float:
        """A state without a tensor in it, from a checkpoint."""
        if not _is_one_number(x):
            raise ValueError(f"{self._name}: {field} of {called} is {x!r} in the checkpoint, no number.")
        return float(x)

    def _common(
        self, index: int, saved: Mapping[str, Any], params: Sequence[Tensor]
    ) -> dict[str, dict[str, Any]]:
        """The saved states that parameters of a group have together, on their device, in their dtypes."""
        method = self.method
        places: dict[str, Tensor] = {}
        for p in params:
            places.setdefault(_kind(p), p)
        names = {"step", *method.scalar_states, *method.shared_states}
        if not isinstance(saved, Mapping) or not all(isinstance(x, Mapping) for x in saved.values()):
            raise self._no_checkpoint()
        if saved.keys() != places.keys() or any(set(x) != names for x in saved.values()):
            has = {name for x in saved.values() for name in x}
            raise ValueError(
                f"{self._name}: the checkpoint has {', '.join(sorted(has))} for all parameters of "
                f"param group {index} together, in {', '.join(sorted(saved))}; expected are "
                f"{', '.join(sorted(names))} in {', '.join(sorted(places))}. Another optimizer saved it."
            )
        common = {}
        for kind, values in saved.items():
            like = places[kind].new_empty((), dtype=compute_dtype(places[kind].dtype))
            called = f"param group {index} in {kind}"
            numbered = {k: self._saved_number(k, x, called) for k, x in values.items() if k != "step"}
            common[kind] = {k: x for k, x in numbered.items() if k in method.scalar_states}
            common[kind]["step"] = self._count(self._saved_count(values["step"], called), places[kind])
            for name in method.shared_states:
                common[kind][name] = torch.as_tensor(values[name]).detach().reshape(()).to(like, copy=True)
        return common

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying take: torch's three entries, the modes, and what is given once."""
        kept = ("_evaluating", "_resumed", "storage", "_rules", "_order", "_weights")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` or `load_state_dict` made."""
        super().__setstate__(state)
        self._seen, self._plan, self._flats, self._without_compiler = [], None, None, False
        self._resumed = state.get("_resumed", False)
        for p, slot in self.state.items():
            if isinstance(slot, _Loaded):
                self.state[p] = slot.entries
        if "_evaluating" not in state:
            self._evaluating = any(_TRAINING in slot for slot in self.state.values())


def _apart(slot: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter with tensors of its own where they are parts of a buffer."""
    return {
        name: x.clone() if isinstance(x, Tensor) and x._base is not None and not x.requires_grad else x
        for name, x in slot.items()
    }


# Optimizers as torch defines them go on from what torch's have saved, and the other way.
_DIALECT = "_torch"
_TORCHS = {"square_sum": "sum", "rate": "eta"}  # states that have another name here


def _as_torchs(slot: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter as torch has it: numbers are tensors, the count of steps of float32."""
    made = {_TORCHS.get(name, name): x for name, x in slot.items()}
    numbers = {k: x for k, x in made.items() if isinstance(x, (int, float))}
    kinds = {k: torch.float32 if k == "step" else torch.float64 for k in numbers}
    return made | {k: torch.tensor(x, dtype=kinds[k], device="cpu") for k, x in numbers.items()}


def _from_torchs(slot: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse; where torch counts no steps it matters only that there has been one."""
    own = {theirs: name for name, theirs in _TORCHS.items()}
    return {"step": 1, **{own.get(name, name): x for name, x in slot.items() if x is not None}}


def _is_checkpoint(saved: Mapping[str, Any]) -> bool:
    """Whether it has the form of an optimizer's state_dict."""
    groups, state = saved.get("param_groups"), saved.get("state")
    return (
        isinstance(groups, (list, tuple))
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), (list, tuple)) for g in groups)
        and isinstance(state, Mapping)
        and all(isinstance(slot, Mapping) for slot in state.values())
    )


def _is_one_number(x: Any) -> bool:
    """A finite or infinite number, or a tensor that holds one."""
    if isinstance(x, Tensor):
        return x.numel() == 1 and not x.is_complex()
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _is_count(x: Any) -> bool:
    """A whole number, 0 or more, whatever type it went through a file in."""
    return _is_one_number(x) and math.isfinite(x) and x >= 0 and int(x) == x


def _same_order(name: str, index: int, saved: Sequence[str] | None, live: Sequence[str] | None) -> None:
    """Refuse parameters that change places, where both sides have their names.

    Other names are none of our business: a wrapped model has them.
    """
    if saved and live and sorted(saved) == sorted(live) and list(saved) != list(live):
        at = next(i for i, (a, b) in enumerate(zip(saved, live, strict=True)) if a != b)
        raise ValueError(
            f"{name}: the parameters of param group {index} are in another order than in the checkpoint: "
            f"number {at} is {live[at]} here and {saved[at]} there. Build the optimizer over them in that "
            "order."
        )


# --------------------------------------------------------------------------------------------------
# Schedules


class Rate(NamedTuple):
    """A learning rate as a function of the number n of finished steps."""

    name: str
    value: Callable[..., Any]  # (n, base_lr=..., **hypers) -> lr, in double
    uses_base_lr: bool = True
    requires: Requires = None


@dataclass(frozen=True)
class Unbound:
    """A schedule without an optimizer: a function of n and the base learning rate."""

    schedule: type[Schedule]
    hypers: dict[str, Any]

    def __call__(self, n: int, base_lr: Scalar) -> Scalar:
        """The learning rate after n finished steps."""
        hypers = dict(self.hypers)
        for name, domain in self.schedule.domains.items():
            if domain.kind == "schedule":
                hypers[name] = _callable(hypers[name], base_lr, domain.many)
        if self.schedule.rate.uses_base_lr:
            hypers["base_lr"] = base_lr
        value: Scalar = self.schedule.rate.value(n, **hypers)
        return value

    def table(self, n: int, base_lr: float) -> list[Scalar]:
        """The first n values."""
        return [self(k, base_lr) for k in range(n)]

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.hypers.items())
        return f"{self.schedule.__name__}.of({inside})"


def _callable(value: Any, base_lr: Scalar, many: bool) -> Any:
    """A schedule among hyperparameters as a function of n, whether one, a function or a number."""
    if many:
        return tuple(_callable(v, base_lr, False) for v in value)
    if isinstance(value, Unbound):
        return lambda n: value(n, base_lr)
    return lambda n: _double(value(n)) if callable(value) else float(value)


class Schedule(LRScheduler):  # type: ignore[misc]
    """An `LRScheduler` in closed form: the learning rate follows from `last_epoch` alone.

    The base learning rate is each group's `initial_lr`. `state_dict()` holds the clock; the
    hyperparameters are the constructor's.
    """

    rate: ClassVar[Rate]
    domains: ClassVar[Mapping[str, Domain]]
    spelling: ClassVar[Spelling] = {}

    def __init__(
        self, optimizer: torch.optim.Optimizer, hypers: dict[str, Any], last_epoch: int = -1
    ) -> None:
        """Check the hyperparameters and set the learning rate of step 0."""
        self._unbound = self._from(hypers)
        super().__init__(optimizer, last_epoch)

    @classmethod
    def of(cls, **hypers: Any) -> Unbound:
        """The schedule without an optimizer, to be a part of others: `Cosine.of(total=100)`."""
        try:
            given = inspect.signature(cls).bind(None, **hypers)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.of: {error}") from None
        given.apply_defaults()
        return cls._from(given.arguments)

    @classmethod
    def _from(cls, hypers: Mapping[str, Any]) -> Unbound:
        checked = _checked_all(cls.__name__, cls.domains, cls.spelling, cls.rate.requires, hypers)
        return Unbound(cls, _in_the_specs_words(cls.domains, cls.spelling, checked))

    def get_lr(self) -> list[Any]:
        """The learning rate of each group after `last_epoch` steps."""
        return [self._unbound(self.last_epoch, _double(base)) for base in self.base_lrs]

    def table(self, n: int) -> list[Scalar]:
        """The first n values for the first group."""
        return self._unbound.table(n, _double(self.base_lrs[0]))

    def state_dict(self) -> dict[str, Any]:
        """The clock, the base learning rates and the schedule's name; plain data."""
        own = {key: value for key, value in super().state_dict().items() if key != "_unbound"}
        return {**own, _SCHEDULE: self.rate.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`; refused, with nothing changed, where it does not fit."""
        name = type(self).__name__
        if not isinstance(state_dict, Mapping) or not {"last_epoch", "base_lrs"} <= state_dict.keys():
            raise ValueError(f"{name}: this is not what state_dict() of a schedule gave. Pass that.")
        # torch's own schedules keep their hyperparameters here, and have no name of ours.
        odd = [k for k in state_dict if k not in self.__dict__ and not k.startswith("_")]
        odd = [k for k in odd if k not in (_SCHEDULE, "verbose")]
        its = state_dict.get(_SCHEDULE, f"a schedule with {', '.join(odd)}" if odd else self.rate.name)
        if its != self.rate.name:
            raise ValueError(
                f"{name}: the saved state is of {its}. Another schedule saved it: load it into that one."
            )
        n, rates = state_dict["last_epoch"], state_dict["base_lrs"]
        if not _is_count(n):
            raise ValueError(f"{name}: the saved last_epoch is {n!r}. It must be an integer, 0 or more.")
        if not isinstance(rates, (list, tuple)) or len(rates) != len(self.base_lrs):
            raise ValueError(
                f"{name}: the saved base_lrs are {rates!r}; expected is one for each of the "
                f"{len(self.base_lrs)} param groups. Build the optimizer with the groups that it was saved "
                "with."
            )
        super().load_state_dict({k: x for k, x in state_dict.items() if k != _SCHEDULE})


# --------------------------------------------------------------------------------------------------
# Transforms


def _leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor of a tree with its path: `layers[0].weight`."""
    if isinstance(tree, Mapping):
        for key, sub in tree.items():
            yield from _leaves(sub, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)):
        for i, sub in enumerate(tree):
            yield from _leaves(sub, f"{path}[{i}]")
    else:
        yield path, tree


def _rebuilt(tree: Tree, values: Iterator[Any]) -> Tree:
    """A tree of the same structure with other leaves."""
    if isinstance(tree, Mapping):
        return {key: _rebuilt(sub, values) for key, sub in tree.items()}
    if isinstance(tree, (list, tuple)):
        make = getattr(type(tree), "_make", type(tree))  # a NamedTuple takes no list
        return make([_rebuilt(sub, values) for sub in tree])
    return next(values)


def transformed(
    owner: str,
    method: Method,
    domains: Mapping[str, Domain],
    grads: Tree,
    params: Tree | None,
    hypers: Mapping[str, Any],
    t: int = 1,
) -> Tree:
    """New gradients in the structure of the old; None stays None."""
    checked = _checked_all(owner, domains, {}, method.requires, hypers)
    PositiveCount.check(owner, "t", t)
    method = decided(method, checked)
    exact = method.scalars(t, **{name: _double(value) for name, value in checked.items()})
    given, at = list(_leaves(grads)), dict(_leaves(grads if params is None else params))
    for path, g in given:
        if g is not None:
            _check_leaf(owner, path, g, at.get(path))
            check_shape(owner, method.only, f"the gradient {path}".rstrip(), g.shape)
    groups: dict[Any, list[Any]] = {}
    for place, (path, g) in enumerate(given):
        if g is not None:
            theta = computed(at[path])
            key = theta.dtype, theta.device
            s = groups[key][0][3] if key in groups else rounded(exact, theta.dtype)
            own = of_parameter(method.sources, s, place)
            groups.setdefault(key, []).append((theta, computed(g), method.init(theta), own))
    shared = over_all([method] * len(groups), list(groups.values()))
    calls = {key: iter(made) for key, made in groups.items()}
    besides = {key: iter(made) for key, made in zip(groups, shared, strict=True)}
    results: list[Tensor | None] = []
    for path, g in given:
        if g is None:
            results.append(None)
            continue
        key = compute_dtype(at[path].dtype), at[path].device
        u, _ = method.step(*next(calls[key]), *next(besides[key]))
        results.append(round_to(u, g.dtype))
    return _rebuilt(grads, iter(results))


def _check_leaf(owner: str, path: str, g: Any, theta: Any) -> None:
    """Refuse what is not a gradient, or not that of its parameter."""
    wrong = f"{owner}: the gradient {path}".rstrip()
    if not isinstance(g, Tensor):
        raise TypeError(
            f"{wrong} is a {type(g).__name__}, not a tensor. Pass a tensor, or lists, tuples and "
            "dictionaries of tensors."
        )
    if g.layout != torch.strided or g.dtype not in _PARAMETERS:
        raise TypeError(
            f"{wrong} has dtype {g.dtype} and layout {g.layout}; float16, bfloat16, float32 and "
            "float64, strided, are understood. Convert it, for example g.to_dense().float()."
        )
    if not isinstance(theta, Tensor):
        raise ValueError(f"{wrong} has no parameter. Pass params in the structure of grads.")
    if theta.shape != g.shape or theta.dtype != g.dtype:
        raise ValueError(
            f"{wrong} is {g.dtype} of shape {tuple(g.shape)}, its parameter is {theta.dtype} of "
            f"shape {tuple(theta.shape)}. Pass params in the structure of grads."
        )
