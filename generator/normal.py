"""Standard normal numbers from random words, by the inverse of the distribution function.

In: words of 32 bits (threefry.py). Out: float32 or float64 with the same bits on every backend. Must not
know: any framework; the text below is the one definition, run as it stands by interpret.py and copied
into each backend's runtime by render.py.

A number is the point below which the normal distribution has the probability 1/2 + (i + 1/2) / 2**32,
or minus: the first bit of a word is the sign, i the 31 others. In float64 it is (i + 1/2) / 2**64, i of
63 bits, which begin with those 31. So the largest are 6.34 and 9.16, and none is zero. The inverse is
that of Wichura, Algorithm AS 241, Applied Statistics 37 (1988), PPND16; the logarithm in it takes a
number's bits apart. Products, quotients and roots are rounded by `fl`, where a compiler would fuse or
replace them; no result on the way is subnormal. Measured: within 8 units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from generator.threefry import moved, random_words, word

sqrt, select = np.sqrt, np.where


def guard(like: Any) -> Callable[[Any], Any]:
    """Return fl, the rounded operation: here each operation is rounded on its own."""
    return lambda x: x


def double(like: Any) -> bool:
    """Whether numbers are computed in float64; else in float32."""
    return bool(like.dtype == np.float64)


def number(x: Any, like: Any) -> Any:
    """Integers as floats of the dtype of an array; those here have room in it."""
    return x.astype(like.dtype)


def bits_of(x: Any) -> Any:
    """The bits of floats as signed integers."""
    return x.view(np.int64 if x.dtype == np.float64 else np.int32)


def of_bits(bits: Any, like: Any) -> Any:
    """Floats of their bits."""
    return bits.view(like.dtype)


def shaped_like(x: Any, like: Any) -> Any:
    """Numbers one after another in the shape of an array."""
    return x.reshape(like.shape)


# <text>


# Wichura's coefficients, highest power first.
CENTRE = (
    (
        2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
        13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080,
    ),
    (
        5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
        5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0,
    ),
)  # fmt: skip
TAIL = (
    (
        7.74545014278341407640e-4, 0.0227238449892691845833, 0.241780725177450611770,
        1.27045825245236838258, 3.64784832476320460504, 5.76949722146069140550,
        4.63033784615654529590, 1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
        0.148103976427480074590, 0.689767334985100004550, 1.67638483018380384940,
        2.05319162663775882187, 1.0,
    ),
)  # fmt: skip
FAR = (
    (
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.00124266094738807843860,
        0.0265321895265761230930, 0.296560571828504891230, 1.78482653991729133580,
        5.46378491116411436990, 6.65790464350110377720,
    ),
    (
        2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
        7.86869131145613259100e-4, 0.0148753612908506148525, 0.136929880922735805310,
        0.599832206555887937690, 1.0,
    ),
)  # fmt: skip
# log(m) = s (2 + z P(z)), s = (m - 1) / (m + 1), z = s**2; a fit, within 2**-59
LOGARITHM = (
    0.14794982816072527, 0.15314151163104317, 0.18183560234751694, 0.2222219865498682,
    0.28571428741561117, 0.3999999999941852, 0.6666666666666734,
)  # fmt: skip


def _polynomial(fl: Any, x: Any, coefficients: Sequence[float]) -> Any:
    """A polynomial, from the highest power down."""
    value = fl(x * coefficients[0]) + coefficients[1]
    for c in coefficients[2:]:
        value = fl(value * x) + c
    return value


def _ratio(fl: Any, x: Any, parts: Any) -> Any:
    return fl(_polynomial(fl, x, parts[0]) / _polynomial(fl, x, parts[1]))


def _minus_log(fl: Any, x: Any) -> Any:
    """-log x, of normal numbers."""
    # x = m 2**k, m from sqrt(1/2) to sqrt(2)
    low, size = (4604544271217802189, 52) if double(x) else (1060439283, 23)
    bits = bits_of(x)
    k = moved(bits - low, size)
    m = of_bits(bits - k * (1 << size), x)
    s = fl((m - 1.0) / (m + 1.0))
    z = fl(s * s)
    log_m = fl(s * (fl(z * _polynomial(fl, z, LOGARITHM)) + 2.0))
    return fl(number(k, x) * -0.6931471805599453) - log_m


def _probability(fl: Any, high: Any, low: Any, like: Any) -> Any:
    """The middle of an interval: a fraction of 31 bits, or 63, from 0 to 1/2."""
    if double(like):
        i = fl(number(high, like) * 4294967296.0) + number(low, like)
        return fl((i + 0.5) * 5.421010862427522e-20)  # 2**-64
    # Both parts have room in a float32.
    i = fl(number(moved(high, 16), like) * 65536.0) + number(high & word(65535), like)
    return fl((i + 0.5) * 2.3283064365386963e-10)  # 2**-32


def normal(key: Any, like: Any) -> Any:
    """Standard normal numbers in the shape and dtype of a tensor, float32 or float64."""
    fl = guard(like)
    high, low = random_words(key, math.prod(like.shape), like)
    side, high = moved(high, 31), high & word(0x7FFFFFFF)
    from_half = _probability(fl, high, low, like)
    from_end = _probability(fl, high ^ word(0x7FFFFFFF), low ^ word(0xFFFFFFFF), like)
    centre = fl(from_half * _ratio(fl, 0.180625 - fl(from_half * from_half), CENTRE))
    y = fl(sqrt(_minus_log(fl, from_end)))
    tail = _ratio(fl, y - 1.6, TAIL)
    if double(like):  # a float32 does not get there
        tail = select(y > 5.0, _ratio(fl, y - 5.0, FAR), tail)
    x = select(from_half > 0.425, tail, centre)
    return shaped_like(select(side > word(0), -x, x), like)
