"""Where in a program a name is known: regions that may not happen, and what they cover together.

In: conditions of `when` and `case` regions. Out: whether definitions made in some regions reach another.
Must not know: messages, shapes.

A region is a set of facts: (kind, condition, whether it holds). Two regions exclude each other where
they disagree on a condition.
"""

from __future__ import annotations

from collections.abc import Iterable

from generator import ir

Fact = tuple[str, ir.Expr, bool]
Region = frozenset[Fact]
EVERYWHERE: Region = frozenset()

_OPPOSITE = {"ge": "lt", "le": "gt", "ne": "eq"}


def fact(kind: str, condition: ir.Expr) -> Fact:
    """What holds inside `with kind(condition):`, such that a condition and its opposite meet."""
    match condition:
        case ir.Call("not", (inner,), _):
            kind, inner, holds = fact(kind, inner)
            return kind, inner, not holds
        case ir.Call("vector", (), _):
            return kind, ir.Call("matrix", ()), False
        case ir.Call("ne", args, _):
            return kind, ir.Call("eq", args), False
        # Of floats that may be NaN, a <= b is not the opposite of a > b; sizes are integers.
        case ir.Call(op, args, _) if kind == "case" and op in _OPPOSITE:
            return fact(kind, ir.Call("not", (ir.Call(_OPPOSITE[op], args),)))
        case ir.Call("lt", (a, b), _) if kind == "case":
            return kind, ir.Call("gt", (b, a)), True
    return kind, condition, True


def opposite(f: Fact) -> Fact:
    """The fact that holds where this one does not."""
    return f[0], f[1], not f[2]


def exclude(a: Region, b: Region) -> bool:
    """Whether never both regions happen."""
    return any(opposite(f) in b for f in a)


def gap(here: Region, defined: Iterable[Region]) -> Region | None:
    """A part of `here` in which none of the definitions has happened; None if there is none."""
    possible = [d for d in defined if not exclude(d, here)]
    if not possible:
        return here
    if any(d <= here for d in possible):
        return None
    f = min(possible[0] - here, key=repr)
    found = gap(here | {f}, possible)
    return gap(here | {opposite(f)}, possible) if found is None else found
