"""exp, log, cos and real powers in double, of `+ - * /`, floor and comparisons alone.

In: doubles. Out: doubles with the same bits on every backend: the text below is the one definition,
run as it stands by interpret.py and printed into each backend's runtime by render.py, where every
operation is rounded on its own. Must not know: any framework.

What the text relies on: each operation correctly rounded, none fused, reassociated or merged; every
`where` has a branch that is not a literal; no intermediate result is subnormal where the result is
normal. Two devices replace ldexp and frexp. With C = sqrt(2) * 2**52, `c = x * C; c - (c - x)` is the
power of two next to x, so 2**h needs an approximation to 40 % only. And the exponent of a power of two
is counted in the last bits of a number near 2**40. Polynomials interpolate at Chebyshev points.

    LN2_HI + LN2_LO  ln 2, the first 42 bits and the rest     TO_POWER  sqrt(2) * 2**52
    LOG2_E           1 / ln 2                                  SPLIT     2**27 + 1 (Veltkamp)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

floor, where, absolute = np.floor, np.where, np.abs

# <text>


def _exp_tail(hi: Any, lo: Any, k: Any) -> Any:
    """exp(hi - lo) * 2**k, |hi - lo| <= 0.3467, integer |k| <= 1090."""
    # exp(r) = 1 + r + r c / (2 - c), c = r - r**2 P(r**2)
    r = hi - lo
    t = r * r
    p = t * 4.138131763947477e-08 + -1.6533902049312623e-06  # P: fit, 2**-61 of exp(r)
    p = t * p + 6.613756321258729e-05
    p = t * p + -0.0027777777777014683
    p = t * p + 0.16666666666666602
    c = r - t * p
    u = (r * c) / (2.0 - c) - lo
    s = 1.0 + hi  # fast two-sum: 1 + hi = s + (hi - (s - 1))
    v = s + (u + (hi - (s - 1.0)))
    # 2**k = 2**h * 2**h * (1 + (k - 2 h)), h = floor(k / 2), |h| <= 545
    h = floor(k * 0.5)
    w = h * 0.00016886182129383087  # ln 2 / 2**12, times 0.99785 to level the error of the next line
    y = (1.0 + w) / (1.0 - w)
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y  # 2**h to 32 %
    c = y * 6369051672525773.0  # TO_POWER
    y = c - (c - y)  # 2**h
    b = 1.0 + (k - (h + h))  # 1 or 2
    return v * b * y * y


def exp(x: Any) -> Any:
    """e**x, within 1 ulp; inf above 709.78, 0 below -745.13."""
    x = where(x > 720.0, 720.0, x)
    x = where(x < -750.0, -750.0, x)
    k = floor(x * 1.4426950408889634 + 0.5)  # LOG2_E
    hi = x - k * 0.6931471805598903  # LN2_HI; exact
    lo = k * 5.497923018708371e-14  # LN2_LO
    return _exp_tail(hi, lo, k)


def _split(x: Any) -> Any:
    """m, k with x = m * 2**k exactly, m in [0.7071, 1.4143], k an integer; x normal and positive."""
    big = x >= 1.42
    z = where(big, x * 7.458340731200207e-155, x * 6.703903964971299e+153)  # 2**-512, 2**511
    c = z * 6369051672525773.0  # TO_POWER
    q = c - (c - z)  # power of two, 2**-511 to 2**512
    m = z / q
    # Each line brings q nearer to 2**40 by 2**-s and counts: its factor is 2**-s * (1 + s * 2**-40).
    q = where(q < 1.5, q * 1.34078079236991e+154, q)
    q = where(q > 1.736881338559743e+77, q * 8.63616855710521e-78, q)
    q = where(q > 5.104235503814077e+38, q * 2.9387358773978327e-39, q)
    q = where(q > 2.7670116110564327e+19, q * 5.421010862743067e-20, q)
    q = where(q < 6442450944.0, q * 4294967295.875, q)
    q = where(q > 422212465065984.0, q * 1.5258789062722045e-05, q)
    q = where(q > 1649267441664.0, q * 0.003906250000028422, q)
    q = where(q < 103079215104.0, q * 15.999999999941792, q)
    q = where(q < 412316860416.0, q * 3.999999999992724, q)
    q = where(q < 824633720832.0, q * 1.999999999998181, q)
    # q = 2**40 (1 + (e - 40) 2**-40), 2**e the q before: k = e - 511, or e + 512 where big
    k = floor(q - 1099511628246.5)  # 2**40 + 470.5
    k = where(big, k + 1023.0, k)
    return m, k


def log(x: Any) -> Any:
    """Natural logarithm. Within 1 ulp; -inf at 0, NaN below."""
    zero = x == 0.0
    m, k = _split(where(zero, 1.0, x))
    # log(1 + f) = f - (f**2/2 - s (f**2/2 + R)), s = f / (2 + f), R = s**2 (2/3 + 2/5 s**2 + ...)
    f = m - 1.0
    s = f / (m + 1.0)
    z = s * s
    p = z * 0.14794982816072527 + 0.15314151163104317  # fit, 2**-59
    p = z * p + 0.18183560234751694
    p = z * p + 0.2222219865498682
    p = z * p + 0.28571428741561117
    p = z * p + 0.3999999999941852
    p = z * p + 0.6666666666666734
    h = f * 0.5 * f
    u = h - s * (h + z * p)
    a = k * 0.6931471805598903  # LN2_HI; exact
    t = a + f  # fast two-sum: a + f = t + (f - (t - a))
    r = t + (((f - (t - a)) + k * 5.497923018708371e-14) - u)  # LN2_LO
    r = where(zero, -math.inf, r)
    r = where(x == math.inf, math.inf, r)
    return where(x < 0.0, math.nan, r)


def cos(x: Any) -> Any:
    """cos x. Within 1 ulp for |x| up to 1e5; next to its zeros within 1e-16."""
    # x = k pi/2 + (r + low): pi/2 in parts of 33, 33 and 53 bits, k times the first two is exact
    k = floor(x * 0.6366197723675814 + 0.5)  # 2 / pi
    a = x - k * 1.5707963267341256  # first 33 bits of pi/2; exact
    b = k * 6.077100506303966e-11  # next 33 bits; exact
    y = a - b
    w = k * 2.0222662487959506e-21 - ((a - y) - b)  # the rest of pi/2
    r = y - w
    low = (y - r) - w
    z = r * r
    # cosine of r + low
    p = z * -1.1369278642189947e-11 + 2.0875912328022366e-09  # fit, 2**-59
    p = z * p + -2.755731576272698e-07
    p = z * p + 2.4801587294414505e-05
    p = z * p + -0.0013888888888882055
    p = z * p + 0.041666666666666644
    h = z * 0.5
    y = 1.0 - h
    c = y + (((1.0 - y) - h) + (z * (z * p) - r * low))  # fast two-sum of 1 and -h
    # sine of r + low
    p = z * 1.5896782715145627e-10 + -2.5050757879910682e-08  # fit, 2**-57
    p = z * p + 2.755731369032523e-06
    p = z * p + -0.00019841269829802915
    p = z * p + 0.008333333333322408
    p = z * p + -0.16666666666666632
    s = r + (z * r * p + low)
    # quadrant 0 1 2 3: cos, -sin, -cos, sin
    q = k - 4.0 * floor(k * 0.25)
    d = q - 2.0
    return where(absolute(d) == 1.0, d * s, (1.0 - q) * c)


def _power(a: Any, y: Any) -> Any:
    """a**y for a >= 0 (see real_power)."""
    zero = a == 0.0
    m, k = _split(where(zero, 1.0, a))
    # log m = sh + sl + t with S = 2 f / (2 + f): sh its first 26 bits, sl the rest, t = S**3/12 + ...
    f = m - 1.0
    f2 = f + f
    g = m + 1.0
    s = f2 / g
    c = s * 134217729.0  # SPLIT
    sh = c - (c - s)
    c = g * 134217729.0  # SPLIT
    gh = c - (c - g)
    gl = m - (gh - 1.0)  # gh + gl = m + 1 exactly
    sl = ((f2 - sh * gh) - sh * gl) / g
    z = sh * sh + sl * (sh + s)  # the square of sh + sl, rounded once
    p = z * 1.0109176376894122e-06 + 4.043652092727705e-06  # fit, 2**-62
    p = z * p + 1.87830627366327e-05
    p = z * p + 8.877820218612602e-05
    p = z * p + 0.0004340277860325951
    p = z * p + 0.0022321428569609266
    p = z * p + 0.012500000000001937
    p = z * p + 0.08333333333333333
    w = z * p
    t = sh * w
    # log a = lh + ll, lh of 26 bits
    b = k * 0.6931471805598903  # LN2_HI; exact
    e = b + (sh + t)
    c = e * 134217729.0  # SPLIT
    lh = c - (c - e)
    ll = ((sh - (lh - b)) + t) + ((sl + sl * w) + k * 5.497923018708371e-14)  # LN2_LO
    # y log a = ph + pl, ph exact
    c = y * 134217729.0  # SPLIT
    yh = c - (c - y)
    ph = yh * lh
    pl = (y - yh) * lh + y * ll
    # about y log a, infinite where it should be
    v = y * where(zero, -math.inf, where(a == math.inf, math.inf, lh))
    k = floor(v * 1.4426950408889634 + 0.5)  # LOG2_E
    hi = ph - k * 0.6931471805598903  # LN2_HI; exact
    lo = k * 5.497923018708371e-14 - pl  # LN2_LO
    r = _exp_tail(hi, lo, k)
    r = where(v > 720.0, math.inf, r)
    r = where(v < -750.0, 0.0, r)
    return where(y == 0.0, 1.0, r)


def real_power(x: Any, y: Any) -> Any:
    """x**y. Within 2 ulp; NaN for negative x unless y is an integer."""
    r = _power(absolute(x), y)
    h = y * 0.5
    n = where(h == floor(h), r, -r)  # even or odd y
    n = where(y == floor(y), n, math.nan)
    return where(x < 0.0, n, r)
