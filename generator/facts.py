"""What people ask of a spec: hyperparameters, states, memory.

In: a catalogue entry. Out: small records of text, for `list`, `show` and the catalogue. Must not
know: how they are printed, any backend.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from generator import check, ir, regions, shapes
from generator.catalogue import Entry
from generator.equations import ascii_expr

_SIZE = 4  # bytes of a float32, the narrowest dtype in which states are kept
Home = tuple[tuple[ir.Expr, bool], ...]  # conditions on a parameter's shape, and on choices


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter."""

    name: str
    default: str  # empty where it must be given
    domain: str
    about: str


@dataclass(frozen=True)
class State:
    """Something that is kept between steps."""

    name: str
    scope: str
    shape: str
    start: str
    memory: str


def hypers(entry: Entry) -> list[Hyper]:
    """The hyperparameters, in the order of the signature."""
    made = []
    for p in entry.program.parameters:
        default = "" if p.default == ir.REQUIRED else _short(p.default)
        made.append(Hyper(p.name, default, p.domain.phrase, p.about))
    return made


def states(entry: Entry) -> list[State]:
    """The states; where the gradient is taken elsewhere, theta is one of them."""
    made = []
    for s in _kept(entry):
        info = _info(entry, s)
        made.append(State(s.name, info.scope, info.describe(), _start(s), _memory(entry, s)))
    return made


def memory(entry: Entry) -> str:
    """What all states cost: `8 bytes a parameter`, of matrices and of others where these differ."""
    costs = []
    for home, counted in _by_home(entry).items():
        cost = ", ".join(f"{_SIZE * n} bytes a {unit}" for unit, n in counted.items())
        costs.append(f"{cost} {regions.whose(home)}".strip())
    return "; ".join(costs) or "none"


def _by_home(entry: Entry) -> dict[Home, Counter[str]]:
    """How many states there are for each ..., by the parameters that have them."""
    counted: dict[Home, Counter[str]] = {}
    for s in _kept(entry):
        if not _single(s):
            counted.setdefault(s.home, Counter())[_unit(entry, s)] += 1
    return counted


def bytes_a_parameter(entry: Entry) -> int:
    """The part of that which grows with the number of parameters, in float32, by default."""
    given = {p.name: p.default for p in entry.program.parameters}
    numbers: Counter[Home] = Counter()
    for home, counted in _by_home(entry).items():
        if all(regions.decided(e, given) == holds for e, holds in home if regions.static(e)):
            shape = tuple((e, holds) for e, holds in home if not regions.static(e))
            numbers[shape] += counted["parameter"]
    return _SIZE * (numbers.pop((), 0) + max(numbers.values(), default=0))


def _kept(entry: Entry) -> list[ir.State]:
    checked = entry.checked
    point = [ir.State("theta", ir.Ref("theta", 1), scalar=False)] if checked.elsewhere else []
    return [*checked.states, *point]


def _info(entry: Entry, s: ir.State) -> check.Info:
    return entry.checked.info[s.name]


def _unit(entry: Entry, s: ir.State) -> str:
    return shapes.UNITS.get(_info(entry, s).shape, "parameter")


def _memory(entry: Entry, s: ir.State) -> str:
    if _single(s):
        return "one number"
    choices = [(e, holds) for e, holds in s.home if regions.static(e)]
    return f"{_SIZE} bytes a {_unit(entry, s)} {regions.whose(choices)}".strip()


def _single(s: ir.State) -> bool:
    """Whether there is one number, however many parameters there are."""
    return s.scalar or s.shared


def _start(s: ir.State) -> str:
    match s.start:
        case ir.Ref("theta", 1):
            return "theta[0]"
        case ir.Call("first", _, name):
            return f"the first {name}"
    return ascii_expr(s.start)


def _short(value: object) -> str:
    """A default as people write it: 1e-8, not 1e-08."""
    return re.sub(r"e([+-])0+", r"e\1", repr(value))
