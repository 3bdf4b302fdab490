"""How many entries a tuple hyperparameter needs, for its equations to find what they read.

In: a frozen program. Out: for each tuple the least length, and the line that asks for it. Must not know:
how a program is computed.

What a choice leaves out asks for nothing: the entry is read only where the choice is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from generator import ir, regions

Range = tuple[float, float]  # the smallest and the largest value of an index
_ANY: Range = (-math.inf, math.inf)


def least(program: ir.Program) -> dict[str, tuple[int, int]]:
    """The least length of each tuple of which entries are read, and the line of that entry."""
    found: dict[str, tuple[int, int]] = {}
    for name, length, line in _read(program.body, {"t": (1, math.inf), "n": (0, math.inf)}, (), ()):
        if length > found.get(name, (0, 0))[0]:
            found[name] = length, line
    return found


def _read(
    body: Iterable[ir.Statement],
    clocks: Mapping[str, Range],
    counts: tuple[ir.Expr, ...],
    chosen: tuple[ir.Expr, ...],
) -> Iterator[tuple[str, int, int]]:
    """Each entry that is read, in loops with these counts, where these choices were made."""
    for s in body:
        for e in (x for top in ir.expressions(s) for x in ir.walk(top)):
            if isinstance(e, ir.Item) and all(_is_given(e.name, c) for c in chosen):
                if any(x == _length(e.name) for c in counts for x in ir.walk(c)):
                    continue  # as often as there are entries
                highest = 1 if e.index == _length(e.name) else _range(e.index, clocks)[1]
                if 0 < highest < math.inf:
                    yield e.name, int(highest), s.line
        match s:
            case ir.Loop(index, count, inner):
                inside = {**clocks, index: (1, _range(count, clocks)[1])}
                yield from _read(inner, inside, (*counts, count), chosen)
            case ir.When(condition, inner, other):
                static = regions.static(condition)
                yield from _read(inner, clocks, counts, (*chosen, condition) if static else chosen)
                negated = ir.Call("not", (condition,))
                yield from _read(other, clocks, counts, (*chosen, negated) if static else chosen)
            case ir.Case(_, inner):
                yield from _read(inner, clocks, counts, chosen)


def _length(name: str) -> ir.Expr:
    return ir.Call("length", (), name)


def _is_given(name: str, condition: ir.Expr) -> bool:
    """Whether a condition of choices asks no more than whether this tuple is there."""
    _, asked, holds = regions.fact("when", condition)
    if isinstance(asked, ir.Call) and asked.op == "eq" and not holds:
        return regions.asked(asked) == (name, None)
    return False


def _range(e: ir.Expr, clocks: Mapping[str, Range]) -> Range:
    """Between which integers an index lies, both of which it reaches."""
    used = [x for x in ir.walk(e) if isinstance(x, ir.Clock)]
    if len(used) > len(set(used)):
        return _ANY  # k + (3 - k) reaches less than its parts would
    match e:
        case ir.Number(value):
            return value, value
        case ir.Clock(name):
            return clocks.get(name, _ANY)
        case ir.Call("mod", (_, ir.Number(value)), _) if value > 0:
            return 0, value - 1
        case ir.Call(("add" | "sub" | "minimum" | "maximum") as op, (x, y), _):
            (a, b), (c, d) = _range(x, clocks), _range(y, clocks)
            if op == "add":
                return a + c, b + d
            if op == "sub":
                return a - d, b - c
            return (min(a, c), min(b, d)) if op == "minimum" else (max(a, c), max(b, d))
    return _ANY
