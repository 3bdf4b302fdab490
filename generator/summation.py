"""Sums in one fixed order, so that they have the same bits on every backend; what rows and columns are.

In: arrays. Out: their sums over everything, along rows or along columns; numbers that follow from their
rows and columns, as Python's own, without its exceptions. Must not know: any framework;
the text below is the one definition, run as it stands by interpret.py and copied into each backend's
runtime by render.py, where `join`, `reshape`, `zeros` and `transposed` are the framework's own words.

The order: an axis is cut into aligned blocks of 2**16 numbers, the last one as long as it is. In a
block the second half is added to the first, the halves of a power of two, until one number is left;
the blocks' sums are added up in the same way. So blocks may go to different caches, threads and
devices, and a short axis costs what it is long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def join(parts: Sequence[Any], axis: int = -1) -> Any:
    """Arrays one after another along an axis."""
    return np.concatenate(parts, axis)


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """The same numbers in another shape."""
    return np.reshape(x, shape)


def zeros(shape: Sequence[int], like: Any) -> Any:
    """Zeros in the dtype of an array."""
    return np.zeros(shape, like.dtype)


def transposed(x: Any) -> Any:
    """The last two axes exchanged."""
    return np.swapaxes(x, -1, -2)


def spread(x: Any, like: Any) -> Any:
    """The same numbers along axes that have one, repeated to the shape of an array."""
    return np.broadcast_to(x, like.shape)


# <text>


BLOCK = 65536


def _halved(x: Any) -> Any:
    """The sum along the last axis, which becomes 1: half a power of two is added to the other half."""
    n = x.shape[-1]
    while n > 1:
        half = 1 << ((n - 1).bit_length() - 1)
        pairs = x[..., : n - half] + x[..., half:]
        x = pairs if n == 2 * half else join([pairs, x[..., n - half : half]])
        n = half
    return x


def sized(shape: Sequence[Any], sizes: Sequence[str | int]) -> list[int]:
    """The shape of one number without sizes, else that of rows and columns, a parameter's last axes."""
    if not sizes:
        return []
    ends = {"rows": shape[-2], "cols": shape[-1]}
    return [int(k) for k in (*shape[:-2], *(ends.get(str(k), 1) for k in sizes))]


def rows_of(x: Any) -> Any:
    """How many rows a matrix has, as a double."""
    return float(x.shape[-2])


def cols_of(x: Any) -> Any:
    """How many columns a matrix has, as a double."""
    return float(x.shape[-1])


def size_ratio(a: Any, b: Any) -> Any:
    """The quotient of doubles; infinite or NaN where b is 0."""
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def size_root(x: Any) -> Any:
    """The square root of a double; NaN below 0."""
    return math.sqrt(x) if x >= 0 else math.nan


def larger_size(a: Any, b: Any) -> Any:
    """The larger of two doubles; NaN if either is NaN."""
    return a if a > b or a != a else b


def smaller_size(a: Any, b: Any) -> Any:
    """The smaller of two doubles; NaN if either is NaN."""
    return a if a < b or a != a else b


def row_sum(x: Any) -> Any:
    """The sum of each row; shape (..., rows, 1)."""
    lead = [int(k) for k in x.shape[:-1]]
    if x.shape[-1] == 0:
        return zeros([*lead, 1], x)
    while x.shape[-1] > BLOCK:
        count = x.shape[-1] // BLOCK
        blocks = reshape(x[..., : count * BLOCK], [*lead, count, BLOCK])
        parts = [reshape(_halved(blocks), [*lead, count])]
        if x.shape[-1] > count * BLOCK:
            parts.append(_halved(x[..., count * BLOCK :]))
        x = join(parts)
    return _halved(x)


def col_sum(x: Any) -> Any:
    """The sum of each column; shape (..., 1, cols)."""
    n = x.shape[-2]
    if n == 0 or n > BLOCK:
        return transposed(row_sum(transposed(x)))
    while n > 1:  # as _halved, along memory
        half = 1 << ((n - 1).bit_length() - 1)
        pairs = x[..., : n - half, :] + x[..., half:, :]
        x = pairs if n == 2 * half else join([pairs, x[..., n - half : half, :]], -2)
        n = half
    return x


def tree_sum(x: Any) -> Any:
    """The sum of all numbers, row by row; no axes."""
    return reshape(row_sum(reshape(x, [-1])), [])


def inverse(x: Any, axis: int) -> Any:
    """The reciprocal of how many numbers an axis has; 1 where it has none."""
    return 1.0 / max(int(x.shape[axis]), 1)


def row_mean(x: Any) -> Any:
    """The sum of each row times the reciprocal of its length."""
    return row_sum(x) * inverse(x, -1)


def col_mean(x: Any) -> Any:
    """The sum of each column times the reciprocal of its length."""
    return col_sum(x) * inverse(x, -2)


def mean_but_first(x: Any) -> Any:
    """The mean over all axes but the first, repeated to the shape of x."""
    n, *rest = x.shape
    means = row_mean(reshape(x, [n, math.prod(rest)]))
    return spread(reshape(means, [n] + [1] * len(rest)), x)


def mean_but_last(x: Any) -> Any:
    """The mean over all axes but the last, repeated to the shape of x."""
    *rest, n = x.shape
    means = col_mean(reshape(x, [math.prod(rest), n]))
    return spread(reshape(means, [1] * len(rest) + [n]), x)


def tree_mean(x: Any) -> Any:
    """The sum of all numbers times the reciprocal of how many there are; 0 where there are none."""
    return tree_sum(x) * inverse(reshape(x, [-1]), -1)
