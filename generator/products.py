"""How far apart matrix products may lead, which each library adds up in an order of its own.

In: a program as something that can be run with other operations. Out: for each parameter and state a
tolerance, 0 for what no product leads to, which therefore has the same bits everywhere. Must not know: any
backend.

Derived, not chosen. A product of k terms an entry, in floating point and added up in any order, with fused
multiply-adds or without, is off by k * u * (|A| @ |B|) at most, u being half a unit in the last place of 1
(Higham, Accuracy and Stability of Numerical Algorithms, 3.13). So the program is run a few times with every
product off by just that, up or down at random in every entry. How far this moves a result shows how the
program magnifies such errors (Newton and Schulz's iteration takes singular values near 0 times 3.4445, five
times over: 485), and it is more than a library comes to, whose errors mostly cancel. Two libraries may be
twice as far apart; and what is stored last is rounded, which may fall the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends.running import Outcome
from generator import ir
from generator.interpret import EXACT
from generator.ir import Lowered

RUNS = 4
_UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
Operations = Mapping[str, Callable[..., Any]]


def used(lowered: Lowered) -> bool:
    """Whether a program has matrix products, so that it is not promised to the last bit."""
    return any(v.op == "matmul" for v in ir.values_of(lowered.step))


def unit(x: Any) -> float:
    """One in the last place of an array's largest entry."""
    sizes = np.abs(np.asarray(x).astype(np.float64))
    largest = sizes[np.isfinite(sizes)].max(initial=0.0)
    return float(_UNITS[x.dtype.name] * largest)


def distance(a: Any, b: Any) -> float:
    """The largest difference of two arrays; infinite where only one is finite, or of another dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | ((a != a) & (b != b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))


def tolerances(run: Callable[[Operations], Outcome], want: Outcome) -> Outcome:
    """For each parameter and state how far from `want` a library may take it."""
    unknown = run({**EXACT, "matmul": _unknown})
    others = [run({**EXACT, "matmul": _off(np.random.default_rng(seed))}) for seed in range(RUNS)]

    def of(x: Any, nan: Any, *ys: Any) -> float:
        x, nan, others = np.asarray(x), np.asarray(nan), list(map(np.asarray, ys))
        if not (np.isnan(nan) & ~np.isnan(x)).any():
            return 0.0  # no product leads here
        return 2.0 * max(distance(x, y) for y in others) + 2.0 * unit(x)

    runs = [unknown, *others]
    return Outcome(
        [of(*xs) for xs in zip(want.params, *(r.params for r in runs), strict=True)],
        [
            {k: 0.0 if x is None else of(x, *(r.states[i][k] for r in runs)) for k, x in slot.items()}
            for i, slot in enumerate(want.states)
        ],
    )


def _unknown(a: Any, b: Any) -> Any:
    """NaN in place of a product: it is found again wherever a product leads to."""
    return np.full_like(np.matmul(a, b), np.nan)


def _off(rng: np.random.Generator) -> Callable[[Any, Any], Any]:
    """Products that are off by as much as they may be, up or down."""

    def matmul(a: Any, b: Any) -> Any:
        made = np.matmul(a, b)
        size = np.matmul(np.abs(a), np.abs(b)) * (a.shape[-1] * np.finfo(made.dtype).eps / 2)
        return made + (size * rng.choice([-1.0, 1.0], made.shape)).astype(made.dtype)

    return matmul
