"""Where in a program a name is known: regions that may not happen, and what they cover together.

In: conditions of `when` and `case` regions. Out: whether definitions made in some regions reach another.
Must not know: messages, shapes.

A region is a set of facts: (kind, condition, whether it holds). Two regions exclude each other where
they disagree on a condition, or where no choice of hyperparameters fulfils both.

A condition of choices alone (bool and choice hyperparameters, whether an option is None, and whether
a number is above 0) is *static*: decided once and for all when an optimizer is made.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Mapping

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


_CONTRARY = {"gt": "le", "le": "gt", "lt": "ge", "ge": "lt", "matrix": "vector", "vector": "matrix"}


def contrary(condition: ir.Expr) -> ir.Expr:
    """The opposite of a condition on a parameter's shape, as people write it."""
    match condition:
        case ir.Call(op, args, _) if op in _CONTRARY:
            return ir.Call(_CONTRARY[op], args)
        case ir.Call("not", (inner,), _):
            return inner
    return ir.Call("not", (condition,))


Choices = Mapping[str, tuple[object, ...]]
_GIVEN = object()  # an option that is not None, whatever its value
_MANY = 4096  # more combinations are not tried; then regions count as possible


def choices(program: ir.Program) -> Choices:
    """What each choice of a program may be."""
    made: dict[str, tuple[object, ...]] = {}
    for p in program.parameters:
        values: tuple[object, ...] = (_GIVEN,)
        if not p.domain.many and p.domain.type in ("bool", "choice"):
            values = p.domain.choices or (False, True)
        elif not p.domain.many and not p.domain.optional and p.domain.type in ("float", "int"):
            values = _amounts(p.domain)
        made[p.name] = (*values, None) if p.domain.optional else values
    return made


def _amounts(d: ir.Domain) -> tuple[float, ...]:
    """A number that is not above 0, and one that is, where a domain has such."""
    without = d.low < 0 or (d.low == 0 and not d.low_open)
    return (0.0,) * without + (1.0,) * (d.high > 0)


def static(e: ir.Expr) -> bool:
    """Whether a condition is one of choices alone."""
    match e:
        case ir.Hyper() | ir.Call("gt", (ir.Hyper(), ir.Number(0)), _):
            return True
        case ir.Call("eq" | "ne", args, _):
            return any(isinstance(a, ir.Call) and a.op == "word" for a in args)
        case ir.Call("and" | "or" | "not", args, _):
            return all(map(static, args))
    return False


def amounts(e: ir.Expr) -> list[str]:
    """The numbers of which a static condition asks whether they are above 0."""
    calls = (x for x in ir.walk(e) if isinstance(x, ir.Call) and x.op == "gt")
    return [x.args[0].name for x in calls if isinstance(x.args[0], ir.Hyper)]


def amounts_of(program: ir.Program) -> list[str]:
    """The numbers of which a program's regions ask that."""
    asked = (s.condition for s in ir.statements(program.body) if isinstance(s, ir.When))
    names = {name for e in asked if static(e) for name in amounts(e)}
    return [p.name for p in program.parameters if p.name in names]


def asked(e: ir.Expr) -> tuple[str, str | None]:
    """Of `equal(choice, word)` the hyperparameter and the word; None is a word, too."""
    assert isinstance(e, ir.Call)
    hyper, word = e.args if isinstance(e.args[0], ir.Hyper) else e.args[::-1]
    assert isinstance(hyper, ir.Hyper) and isinstance(word, ir.Call)
    return hyper.name, None if word.text == "None" else word.text


def decided(e: ir.Expr, given: Mapping[str, object]) -> bool:
    """Whether a static condition holds for these hyperparameters."""
    match e:
        case ir.Hyper(name):
            return given[name] is True
        case ir.Call("gt", (ir.Hyper(name), _), _):  # what changes from step to step counts as above 0
            value = given[name]
            return not isinstance(value, numbers.Real) or float(value) > 0
        case ir.Call("not", (inner,), _):
            return not decided(inner, given)
        case ir.Call("and", (a, b), _):
            return decided(a, given) and decided(b, given)
        case ir.Call("or", (a, b), _):
            return decided(a, given) or decided(b, given)
    assert isinstance(e, ir.Call)
    name, word = asked(e)
    same = given[name] is None if word is None else given[name] == word
    return same == (e.op == "eq")


def impossible(region: Region, known: Choices) -> bool:
    """Whether no choices make the region happen."""
    facts = [(e, holds) for kind, e, holds in region if kind == "when" and static(e)]
    names = sorted({x.name for e, _ in facts for x in ir.walk(e) if isinstance(x, ir.Hyper)})
    if not facts or math.prod(len(known[n]) for n in names) > _MANY:
        return False
    combinations = itertools.product(*(known[n] for n in names))
    worlds = (dict(zip(names, values, strict=True)) for values in combinations)
    return not any(all(decided(e, w) == holds for e, holds in facts) for w in worlds)


def exclude(a: Region, b: Region, known: Choices) -> bool:
    """Whether never both regions happen."""
    return any(opposite(f) in b for f in a) or impossible(a | b, known)


def gap(here: Region, defined: Iterable[Region], known: Choices) -> Region | None:
    """A part of `here` in which none of the definitions has happened; None if there is none."""
    possible = [d for d in defined if not exclude(d, here, known)]
    if impossible(here, known):
        return None
    if not possible:
        return here
    if any(d <= here for d in possible):
        return None
    f = min(possible[0] - here, key=repr)
    found = gap(here | {f}, possible, known)
    return gap(here | {opposite(f)}, possible, known) if found is None else found


# Conditions on choices as text

_LEVELS = {"or": 0, "and": 1, "not": 2}
_ATOM = 3


def python(e: ir.Expr, holds: bool = True, told: ir.Program | None = None) -> str:
    """A static condition, or its opposite, as Python; in kernels by the names that they are told."""
    return _python(e if holds else ir.Call("not", (e,)), told)[0]


def _python(e: ir.Expr, told: ir.Program | None) -> tuple[str, int]:
    match e:
        case ir.Hyper(name):
            return name, _ATOM
        case ir.Call("not", (ir.Call("not", (inner,), _),), _):
            return _python(inner, told)
        case ir.Call("not", (ir.Call(("eq" | "ne") as op, args, _),), _):
            return _python(ir.Call("ne" if op == "eq" else "eq", args), told)
        case ir.Call(("not" | "and" | "or") as op, args, _):
            parts = [_python(a, told) for a in args]
            texts = [text if level >= _LEVELS[op] else f"({text})" for text, level in parts]
            return f"not {texts[0]}" if op == "not" else f" {op} ".join(texts), _LEVELS[op]
        case ir.Call("gt", (ir.Hyper(name), _), _):
            return (f"{name} > 0" if told is None else told.told(name)), _ATOM
    assert isinstance(e, ir.Call)
    (name, word), same = asked(e), e.op == "eq"
    if word is not None:
        return f"{name} {'==' if same else '!='} {quoted(word)}", _ATOM
    if told is not None and told.told(name) != name:
        return (f"not {told.told(name)}", _LEVELS["not"]) if same else (told.told(name), _ATOM)
    return f"{name} is {'' if same else 'not '}None", _ATOM


def quoted(word: str | None) -> str:
    """A word as Python, or None."""
    return "None" if word is None else f'"{word}"'


def whose(home: Iterable[tuple[ir.Expr, bool]]) -> str:
    """Which parameters have a state, and for which choices; empty: all, always."""
    found = list(home)
    shapes = [holds for e, holds in found if not static(e)]
    parts = [{True: "of a matrix", False: "of other parameters"}[shapes[0]]] if shapes else []
    texts = [_python(e if holds else ir.Call("not", (e,)), None) for e, holds in found if static(e)]
    if texts:
        both = (text if level > _LEVELS["or"] else f"({text})" for text, level in texts)
        parts.append("where " + (" and ".join(both) if len(texts) > 1 else texts[0][0]))
    return " ".join(parts)
