"""Low precision as codecs around an unchanged kernel: what a parameter and a state are between steps.

In: float32 arrays, as kernels take and give them. Out: what is kept of them in fewer bits, and back.
Must not know: any framework, any algorithm; the text below is the one definition, run as it stands by
interpret.py and copied into each backend's runtime by render.py, where `below` and the other words
above it are the framework's own, as are those of random numbers and sums.

Compilers drop a cast to fewer bits and back, so roundings are integer arithmetic on the bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.domains import Count, Domain
from generator.normal import bits_of, guard, number, of_bits, select
from generator.summation import join, reshape, zeros
from generator.threefry import packed, random_words, threefry, word


def below(x: Any) -> Any:
    """The largest whole numbers that are not above."""
    return np.floor(x)


def greatest(x: Any) -> Any:
    """The largest number along the last axis, which becomes 1."""
    return np.max(x, -1, keepdims=True)


@functools.cache
def _table(entries: tuple[float, ...]) -> Any:
    return np.array(entries, np.float32)


def taken(table: tuple[float, ...], k: Any) -> Any:
    """The entries of a table of float32 numbers at some places."""
    return _table(table)[k]


def as_bytes(k: Any) -> Any:
    """Whole numbers from 0 to 255 as uint8."""
    return k.astype(np.uint8)


# <text>


STORES = Domain(
    "nearest, master, kahan or stochastic", "choice", choices=("nearest", "master", "kahan", "stochastic")
)
STATES = Domain("float32 or 8bit", "choice", choices=("float32", "8bit"))
STORING = 0xFFFFFFFF  # the source of random numbers that stores draw from
SMALL = 4096  # states of fewer numbers are not kept in 8 bits
PIECE = 256  # how many numbers share a scale
_BESIDE = {"master": "theta.master", "kahan": "theta.rest"}
_DROPPED = {"bfloat16": 16, "float16": 13}  # how many bits float32 has more
_UNIT = {"bfloat16": 1.0, "float16": 2048.0}  # what a rest is kept in multiples of the inverse of


@dataclass(frozen=True)
class Storage:
    """What is kept between steps, and how; the same options on every backend.

    A bfloat16 or float16 parameter p is a rounding of the float32 number x that a step gives. `store`:

        nearest     p = near(x)                                     the next step takes p
        master      p = near(x), and x is kept                      ... x
        kahan       p = near(x), and c = near(x - p) is kept        ... p + c
        stochastic  p is x up or down by chance, on average x       ... p

    near rounds once, to nearest even; x - p is exact, and p + c is rounded to float32. c is in the
    parameter's dtype, in float16 times 2**11, since its exponents are few; 0 where p is not finite.
    Where p is not the rounding of what is kept beside it, it was changed from outside (weights were
    loaded, clipped, ...), and counts itself; a rest smaller than the spacing at p stays. The chance is
    Threefry's, for `seed`, the step and the parameter's place, the source being the last of all. For
    float32 and float64 parameters nothing is rounded, and `store` changes nothing.

    `states`: with 8bit, those in the shape of a parameter of 4,096 numbers or more, copies of it
    apart, are kept in 8 bits, in pieces of 256 with a scale (see `encoded`); float64 parameters keep
    float64 states.
    """

    store: str = "nearest"
    states: str = "float32"
    seed: int = 0

    def check(self, owner: str) -> Storage:
        """Refuse what is no option."""
        STORES.check(owner, "store", self.store)
        STATES.check(owner, "states", self.states)
        Count.check(owner, "seed", self.seed)
        return self

    def options(self) -> dict[str, Any]:
        """What differs from what shells do by themselves."""
        return {k: v for k, v in vars(self).items() if v != getattr(Storage, k)}

    def beside(self, dtype: str) -> str | None:
        """What is kept beside a parameter of this dtype: its name among the states."""
        return _BESIDE.get(self.store) if dtype in _DROPPED else None

    def codes(self, coded: Mapping[str, str], dtype: str, size: int) -> Mapping[str, str]:
        """The states of a parameter that are kept in 8 bits, of those that may be, with their codes."""
        return coded if self.states == "8bit" and dtype != "float64" and size >= SMALL else {}

    def plain(self, dtype: str) -> bool:
        """Whether a parameter of this dtype is rounded once, and nothing else."""
        return self.store == "nearest" or dtype not in _DROPPED

    def begun(self, theta: Any) -> Any:
        """What is kept beside a parameter before its first step; in float32."""
        return theta if self.store == "master" else zeros([int(k) for k in theta.shape], theta)

    def loaded(self, p: Any, beside: Any, dtype: str) -> Any:
        """The number that a parameter with something beside it stands for; everything in float32."""
        if self.store == "master":
            return select(nearest(beside, dtype) == p, beside, p)
        c = beside * (1.0 / _UNIT[dtype])
        # Half of c, for p + c may lie in the middle between p and its neighbour.
        return select(nearest(p + 0.5 * c, dtype) == p, p + c, p)

    def parted(
        self, x: Any, dtype: str, t: Any, stream: Any, seed: Any = None
    ) -> tuple[Any, Any]:
        """A narrow parameter and what is kept beside it, None if nothing; everything in float32.

        Args:
            x: what step t gives.
            dtype: the parameter's.
            t: the step.
            stream: the parameter's place in its optimizer.
            seed: its two words, where it is not the option's.
        """
        if self.store == "stochastic":
            low, high = seed or (word(self.seed), word(self.seed >> 32))
            key = packed([*threefry(low, high, word(t), word(STORING)), word(stream)])
            words, _ = random_words(key, math.prod(int(k) for k in x.shape), x)
            noise = reshape(number(words & 0x7FFFFF, bits_of(x)), x.shape)
            return stochastic(x, dtype, noise), None
        p = nearest(x, dtype)
        if self.store == "kahan":
            c = x - p
            return p, nearest(select(abs(c) < math.inf, c, 0.0) * _UNIT[dtype], dtype)
        return p, x if self.store == "master" else None


def entries(states: Mapping[str, Any], codes: Mapping[str, str]) -> dict[str, Any]:
    """The states of a parameter as they are kept; the scales of `m` are called `m.scale`."""
    made = {}
    for name, x in states.items():
        made[name] = x
        if name in codes and x is not None:
            made[name], made[f"{name}.scale"] = encoded(x, codes[name])
    return made


def opened(kept: Mapping[str, Any], codes: Mapping[str, str]) -> dict[str, Any]:
    """The reverse of `entries`, for what else there is, too."""
    if not codes:
        return dict(kept)
    return {
        k: decoded(x, kept[f"{k}.scale"], codes[k]) if k in codes and x is not None else x
        for k, x in kept.items()
        if not k.endswith(".scale")
    }


def nearest(x: Any, dtype: str) -> Any:
    """The float32 nearest to x that a narrower dtype holds, to even."""
    b, drop = bits_of(x), _DROPPED[dtype]
    half = (1 << (drop - 1)) - 1
    near = of_bits(select((b & (1 << drop)) == 0, b + half, b + (half + 1)) & -(1 << drop), x)
    if dtype == "float16":  # below 2**-14 it holds multiples of 2**-24, as float32 does above 0.5
        near = select(abs(x) < 2.0**-14, _signed(guard(x)(abs(x) + 0.5) - 0.5, b), near)
        near = select(abs(near) < 65536.0, near, of_bits((b & -(1 << 31)) | 0x7F800000, x))
    return select(x != x, x, near)


def stochastic(x: Any, dtype: str, noise: Any) -> Any:
    """One of the two neighbours of x in a narrower dtype, the nearer one more often; x if it is one.

    Args:
        x: float32 numbers.
        dtype: the narrower dtype.
        noise: as many int32 numbers of 23 random bits.
    """
    b, drop = bits_of(x), _DROPPED[dtype]
    y = of_bits((b + (noise & ((1 << drop) - 1))) & -(1 << drop), x)
    if dtype == "float16":  # below 2**-14 in multiples of 2**-24; powers of 2 change no bits
        a = abs(x) * 2.0**24
        whole = below(a)
        up = of_bits(noise | 0x3F800000, x) - 1.0 < a - whole
        y = select(abs(x) < 2.0**-14, _signed(select(up, whole + 1.0, whole) * 2.0**-24, b), y)
        y = select(abs(y) < 65536.0, y, of_bits((b & -(1 << 31)) | 0x7F800000, x))
    return select(x != x, x, y)


def _signed(x: Any, b: Any) -> Any:
    """Numbers without a sign under the sign of some bits."""
    return of_bits(bits_of(x) | (b & -(1 << 31)), x)


def _code(signs: tuple[int, ...]) -> tuple[float, ...]:
    """The 256 numbers that 8 bits stand for: the dynamic code of arXiv:2110.02861, from -1 to 1.

    Each of seven decades from 1e-6 to 1 has twice as many as the one below: the middles of equal
    parts of it. 0 and 1 complete them.
    """
    found = {0.0, 1.0}
    for i in range(7):
        n = 2**i * (3 - len(signs))
        top = [2 * n + 9 * (2 * k + 1) for k in range(n)]
        found |= {s * x / (2 * n * 10 ** (7 - i)) for x in top for s in signs}
    return tuple(sorted(found))


CODES = {"signed": _code((1, -1)), "unsigned": _code((1,))}
_MIDDLES = {kind: tuple((c[i] + c[i + 1]) / 2 for i in range(255)) for kind, c in CODES.items()}


def pieces(shape: Any) -> int:
    """How many scales a state of some shape has."""
    return -(-math.prod(int(k) for k in shape) // PIECE)


def encoded(x: Any, kind: str) -> tuple[Any, Any]:
    """Numbers in 8 bits: places in the code, shaped like x, and a scale for each 256 in a row.

    The scale is the largest absolute value. A number goes to the entry of the code nearest to its
    product with the scale's reciprocal, in the middle to the lower one; but in an unsigned state what
    is above 0, and no subnormal number, does not become 0, for one divides by such. A piece whose
    scale is below the smallest normal number is zeros, and one with NaN, an infinity or a number
    above 2**126 is NaN.
    """
    rows, fl = _in_rows(x), guard(x)
    top = greatest(bits_of(rows) & 0x7FFFFFFF)
    zero, lost = top < 0x00800000, top > 0x7E800000
    safe = of_bits(select(zero | lost, top * 0 + 0x3F800000, top), rows)
    rows = select(zero | lost, 0.0, rows)
    x01 = fl(rows * fl(fl(1.0) / safe))
    k = placed(x01, _MIDDLES[kind])
    if kind == "unsigned":
        k = select((bits_of(rows) >= 0x00800000) & (k == 0), k + 1, k)
    scales = of_bits(select(lost, top * 0 + 0x7FC00000, select(zero, top * 0, top)), rows)
    return _in_shape(as_bytes(k), x.shape), reshape(scales, [pieces(x.shape)])


def placed(x: Any, table: tuple[float, ...]) -> Any:
    """How many of 255 numbers in ascending order lie below each of x."""
    k = bits_of(x) * 0
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        k = select(x > taken(table, k + (step - 1)), k + step, k)
    return k


def decoded(k: Any, scales: Any, kind: str) -> Any:
    """The numbers again."""
    x = guard(scales)(taken(CODES[kind], _in_rows(k)) * reshape(scales, [pieces(k.shape), 1]))
    return _in_shape(x, k.shape)


def _in_rows(x: Any) -> Any:
    """A tensor in rows of 256, filled up with zeros."""
    size, count = math.prod(int(k) for k in x.shape), pieces(x.shape)
    flat = reshape(x, [size])
    if size < count * PIECE:
        flat = join([flat, zeros([count * PIECE - size], flat)])
    return reshape(flat, [count, PIECE])


def _in_shape(rows: Any, shape: Any) -> Any:
    """A tensor again, without what filled it up."""
    kept = [int(k) for k in shape]
    return reshape(reshape(rows, [-1])[: math.prod(kept)], kept)
