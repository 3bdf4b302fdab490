"""Which states can never be negative, and which can be kept in 8 bits.

In: a lowered program. Out: names of states. Must not know: how anything is kept.

Each value gets an interval that it cannot leave, from the domains of the hyperparameters. What a state
starts with and what each step makes of it must not be negative, where the states that are still
thought of are not; what cannot be shown counts as signed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from generator import ir
from generator.ir import Branch, Lowered, Number, Operand, State, Step, Value
from generator.shapes import FULL, MATRIX


class Interval(NamedTuple):
    """The numbers from low to high, and NaN."""

    low: float
    high: float


ANY = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)


def kept_in_8_bits(lowered: Lowered) -> dict[str, str]:
    """The states that may be kept so, with the code that suits each: `signed` or `unsigned`.

    They have the parameter's shape, and are no copy of it: points are not kept so roughly.
    """
    positive = never_negative(lowered)
    return {
        s.name: "unsigned" if s.name in positive else "signed"
        for s in lowered.tensor_states
        if s.shape in (FULL, MATRIX) and not _copies(s)
    }


def _copies(s: State) -> bool:
    """Whether a state starts as the parameter."""
    return isinstance(s.start, ir.Ref)


def never_negative(lowered: Lowered) -> set[str]:
    """The tensor states that stay at 0 or above."""
    names: dict[str, Interval] = {p.name: _domain(p.domain) for p in lowered.program.parameters}
    starts = {s.name: _start(s, names) for s in lowered.states}
    thought = {s.name for s in lowered.tensor_states if starts[s.name].low >= 0}
    names |= {"t": Interval(1, math.inf), lowered.parameter: ANY, "g": ANY}
    _run(lowered.scalars, names)
    names |= {f"s.{e}": names.get(e, ANY) for e in lowered.exports}
    while True:
        now = dict(names)
        now |= {f"state.{name}": POSITIVE for name in thought}
        _run(lowered.step, now)
        left = {
            name for name, new in lowered.new_states if name in thought and _of(new, now).low >= 0
        }
        if left == thought:
            return thought
        thought = left


def _domain(d: ir.Domain) -> Interval:
    return ANY if d.many or d.type not in ("float", "int") else Interval(d.low, d.high)


def _start(s: State, names: dict[str, Interval]) -> Interval:
    match s.start:
        case Number(value):
            return Interval(value, value)
        case ir.Hyper(name):
            return names[name]
        case ir.Call("first", _, _):
            return Interval(0.0, 0.0)
    return ANY


def _of(o: Operand | None, names: dict[str, Interval]) -> Interval:
    if isinstance(o, Number):
        return Interval(o.value, o.value)
    return names.get(o, ANY) if isinstance(o, str) else ANY


def _run(values: Iterable[Step], names: dict[str, Interval]) -> None:
    """Put the interval of each value among the names."""
    for v in values:
        if isinstance(v, Value):
            rule = _RULES.get(v.op)
            args = [_of(a, names) for a in v.args]
            if v.op == "mul" and v.args[0] == v.args[1]:
                names[v.name] = POSITIVE
            elif rule is not None:
                names[v.name] = rule(*args)
        elif isinstance(v, Branch):
            ends: dict[str, list[Interval]] = {c[0]: [] for c in v.carried}
            for way, body in ((1, v.body), (2, v.otherwise)):
                inside = dict(names)  # the ways may use the same names
                _run(body, inside)
                for c in v.carried:
                    ends[c[0]] += [_of(c[way], inside)] * (c[way] is not None)
            names |= {name: _hull(*parts) for name, parts in ends.items()}


def _made(*ends: float) -> Interval:
    return ANY if any(math.isnan(x) for x in ends) else Interval(min(ends), max(ends))


def _hull(*parts: Interval) -> Interval:
    return _made(*(x for part in parts for x in part))


def _mul(a: Interval, b: Interval) -> Interval:
    if a.low >= 0 and b.low >= 0:
        high = a.high * b.high
        return Interval(a.low * b.low if a.low and b.low else 0.0, math.inf if math.isnan(high) else high)
    return ANY


def _div(a: Interval, b: Interval) -> Interval:
    if a.low >= 0 and b.low >= 0:
        return Interval(0.0, math.inf if b.low == 0 else a.high / b.low)
    return ANY


def _power(a: Interval, k: Interval) -> Interval:
    if a.low >= 0 and a.high <= 1 and k.low >= 0:
        return Interval(0.0, 1.0)
    even = k.low == k.high and k.low % 2 == 0
    return POSITIVE if a.low >= 0 or even else ANY


def _real_power(a: Interval, k: Interval) -> Interval:
    if a.low >= 1 and k.high <= 0:
        return Interval(0.0, 1.0)
    return _power(a, k) if a.low >= 0 else ANY


def _same(a: Interval) -> Interval:
    return a


def _total(a: Interval) -> Interval:
    """Of sums: only the sign is known."""
    return POSITIVE if a.low >= 0 else ANY


_RULES: dict[str, Callable[..., Interval]] = {
    "add": lambda a, b: _made(a.low + b.low, a.high + b.high),
    "sub": lambda a, b: _made(a.low - b.high, a.high - b.low),
    "neg": lambda a: Interval(-a.high, -a.low),
    "mul": _mul,
    "div": _div,
    "sqrt": lambda a: POSITIVE,
    "abs": lambda a: POSITIVE,
    "exp": lambda a: POSITIVE,
    "minimum": lambda a, b: Interval(min(a.low, b.low), min(a.high, b.high)),
    "maximum": lambda a, b: Interval(max(a.low, b.low), max(a.high, b.high)),
    "where": lambda c, a, b: _hull(a, b),
    "power": _power,
    "real_power": _real_power,
    "to_float": _same,
    "store": _same,
    "fill": lambda like, a: a,
    **dict.fromkeys(("mean", "row_mean", "col_mean"), _same),
    **dict.fromkeys(("sum", "row_sum", "col_sum"), _total),
}
