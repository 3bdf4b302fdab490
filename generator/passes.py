"""Cuts a program at its sums over all parameters, and where it takes one more gradient.

In: a lowered program whose step holds `global_sum` and `grad`. Out: the program with passes before
the step. Must not know: how anything is computed.

Each `global_sum` and each `grad` has a level: one more than those that it depends on. Pass k computes,
a parameter, what the sums of level k are of, and then, once, what follows from the totals alone; then
come the points of the gradients of level k. The step that remains reads the results as `shared.name`
and `given.name`. New values of the states of all parameters leave a pass in the same way; everybody
reads their old values, as `shared.name_prev`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from generator.ir import (
    Branch,
    Call,
    Hyper,
    Lowered,
    Operand,
    Pass,
    Point,
    Repeat,
    Step,
    Value,
    made_by,
    uses,
)


class Unsplit(Exception):
    """What a program needs that cannot be cut."""


def split(lowered: Lowered) -> Lowered:
    """The program with passes for each level of its sums over all parameters, and of its gradients."""
    lowered = replace(lowered, step=tuple(_opened(lowered.step)))
    if not any(_cuts(v) for v in lowered.step):
        return lowered
    level: dict[str, int] = {}
    shared: dict[str, Value] = {}  # what is the same for all parameters
    early: set[str] = set()  # ... and follows from old states alone, so that no sum need be waited for
    points: dict[str, Value] = {}
    for v in lowered.step:
        below = [level.get(a, 0) for a in _read(v)]
        for name in made_by([v]):
            level[name] = max(below, default=0) + _cuts(v)
        if _is_gradient(v):
            points[_value(v).name] = _value(v)
        elif isinstance(v, Value):
            tensors = [a for a in v.args if isinstance(a, str) and not a.startswith("s.")]
            common = all(a in shared or a.startswith("shared.") for a in tensors)
            if _is_sum(v) or (tensors and common):
                shared[v.name] = v
                early |= {v.name} if level[v.name] == 0 else set()
    kept = _kept(lowered, shared)
    states = [(s, o) for s, o in lowered.new_states if s not in kept]
    results = {str(lowered.result), *(str(o) for _, o in states), str(lowered.held)}
    own = [v for v in lowered.step if not isinstance(v, Value) or v.name not in {**shared, **points}]
    seen = {name: f"shared.{name}" for name in shared} | {name: f"given.{name}" for name in points}
    made: list[Pass | Point] = []
    first_sums = min((level[name] for name, v in shared.items() if _is_sum(v)), default=0)
    for name in (*early, *kept.values()):
        level[name] = max(level.get(name, 0), first_sums)
    for k in range(1, max(level[name] for name in (*shared, *points)) + 1):
        sums = [v for v in shared.values() if _is_sum(v) and level[v.name] == k]
        values = [v for v in shared.values() if not _is_sum(v) and level[v.name] == k]
        totals = {v.name: f"total.{v.args[0]}" for v in sums}
        here = {**totals, **{v.name: v.name for v in values}}
        names = {n: here.get(n, seen[n]) for n in (*shared, *points)}
        used = {a for v in (*own, *points.values()) for a in _read(v)} | results
        used |= {a for v in shared.values() if level[v.name] > k for a in v.args if isinstance(a, str)}
        # Until a pass has left it, each parameter computes for itself what follows from old states.
        alone = early if k <= first_sums else set()
        there = {name: text for name, text in seen.items() if name not in alone}
        local = [v for v in lowered.step if v in own or alone & set(made_by([v]))]
        if sums:
            first = _needed(local, [a for v in sums for a in v.args])
            exports = {n: here[n] for n in here if n in used}
            exports |= {s: names.get(o, o) for s, o in kept.items() if level[o] == k}
            needed = _needed(values, exports.values())
            made.append(
                Pass(
                    partials=tuple(_renamed(v, there) for v in first),
                    sums=tuple((str(v.args[0]), v.args[0]) for v in sums),
                    values=tuple(replace(_value(_renamed(v, names)), name=_value(v).name) for v in needed),
                    exports=tuple(exports.items()),
                )
            )
            there = seen
        for v in points.values():
            if level[v.name] == k:
                at = _needed(own if there is seen else local, v.args)
                before = tuple(_renamed(x, there) for x in at)
                made.append(Point(before, v.name, _named(v.args[0], there)))
    return replace(
        lowered,
        step=tuple(_renamed(v, seen) for v in _needed(own, list(results))),
        passes=tuple(made),
        new_states=tuple((s, _named(o, seen)) for s, o in states),
        delta=_delta(lowered, seen),
    )


def _kept(lowered: Lowered, shared: Mapping[str, Value]) -> dict[str, str]:
    """The new values of the states of all parameters, which follow from sums and other such states."""
    kept = {}
    for s in lowered.shared_states:
        kept[s.name] = str(dict(lowered.new_states)[s.name])
        if kept[s.name] not in shared and not kept[s.name].startswith("shared."):
            raise Unsplit(f"a state of all parameters ({s.name}) that a region sets")
    return kept


def _opened(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps with no sum over all parameters inside of a region.

    A region that choices decide on is parted: what comes before the sum, the sum, and the rest. Where
    the region does not happen there is nothing to be added up, and the total is None.
    """
    for v in steps:
        while isinstance(v, Branch) and any(_is_sum(x) for x in _inside(v)):
            if not isinstance(v.condition, Hyper | Call):
                whose = "for one shape" if v.known else "that may not happen"
                raise Unsplit(f"a sum over all parameters inside a region {whose} (take it out of there)")
            ways = [list(_opened(v.body)), list(_opened(v.otherwise))]
            here = 0 if any(map(_is_sum, ways[0])) else 1
            at = next(i for i, x in enumerate(ways[here]) if _is_sum(x))
            before, total, after = ways[here][:at], _value(ways[here][at]), ways[here][at + 1 :]
            name = next(n for n in (total.name, f"{total.name}_of_all") if n not in made_by(ways[1 - here]))
            carried = [(n, n, None) if here == 0 else (n, None, n) for n in sorted(made_by(before))]
            if before:
                first = [(), tuple(before)] if here else [tuple(before), ()]
                yield Branch(v.condition, first[0], first[1], tuple(carried))
            yield replace(total, name=name)
            names = {total.name: name}
            ways[here] = [_renamed(x, names) for x in after]
            ends = [
                (n, *(_named(e, names) if e and i == here else e for i, e in enumerate(both)))
                for n, *both in v.carried
            ]
            v = replace(v, body=tuple(ways[0]), otherwise=tuple(ways[1]), carried=tuple(ends))  # type: ignore[arg-type]
        yield v


def _is_sum(v: Step) -> bool:
    return isinstance(v, Value) and v.op == "global_sum"


def _is_gradient(v: Step) -> bool:
    return isinstance(v, Value) and v.op == "grad"


def _cuts(v: Step) -> bool:
    return _is_sum(v) or _is_gradient(v)


def _inside(v: Step) -> Iterable[Step]:
    yield v
    if isinstance(v, Branch):
        for x in (*v.body, *v.otherwise):
            yield from _inside(x)


def _read(v: Step) -> list[str]:
    assert not isinstance(v, Repeat), v
    if isinstance(v, Value):
        return [a for a in v.args if isinstance(a, str)]
    ends = [e for _, *both in v.carried for e in both if isinstance(e, str)]
    inner = [a for x in (*v.body, *v.otherwise) for a in _read(x)]
    return [*([v.condition] if isinstance(v.condition, str) else []), *inner, *ends]


def _needed(values: Sequence[Step], wanted: Iterable[Operand | None]) -> list[Step]:
    """The values from which the wanted ones follow, in their order."""
    return list(alive(values, {w for w in wanted if w is not None}))


def alive(values: Sequence[Step], needed: set[Operand]) -> tuple[Step, ...]:
    """The values that something needed reads; adds what they read."""
    kept: list[Step] = []
    for v in reversed(values):
        if isinstance(v, Value):
            if v.name in needed:
                kept.append(v)
                needed.update(v.args)
            continue
        if isinstance(v, Repeat):
            if needed & {name for name, _, _ in v.carried}:
                kept.append(v)
                needed.update(uses([v]))
            continue
        carried = tuple(c for c in v.carried if c[0] in needed)
        if carried:
            ways = []
            for way, steps in ((1, v.body), (2, v.otherwise)):
                inside: set[Operand] = {end for c in carried if (end := c[way]) is not None}
                ways.append(alive(steps, inside))
                needed |= inside - made_by(steps)  # names of its own
            body, otherwise = ways
            if isinstance(v.condition, str):
                needed.add(v.condition)
            kept.append(replace(v, body=body, otherwise=otherwise, carried=carried))
    return tuple(kept[::-1])


def _named(o: Operand, names: Mapping[str, str]) -> Operand:
    return names.get(o, o) if isinstance(o, str) else o


def _renamed(v: Step, names: Mapping[str, str]) -> Step:
    assert not isinstance(v, Repeat), v
    if isinstance(v, Value):
        return replace(v, args=tuple(_named(a, names) for a in v.args))
    return replace(
        v,
        condition=_named(v.condition, names) if isinstance(v.condition, str) else v.condition,
        body=tuple(_renamed(x, names) for x in v.body),
        otherwise=tuple(_renamed(x, names) for x in v.otherwise),
        carried=tuple((name, a and _named(a, names), b and _named(b, names)) for name, a, b in v.carried),
    )


def _value(v: Step) -> Value:
    assert isinstance(v, Value)
    return v


def _delta(lowered: Lowered, seen: Mapping[str, str]) -> tuple[str, Operand] | None:
    if lowered.delta is None:
        return None
    op, value = lowered.delta
    return op, seen.get(value, value) if isinstance(value, str) else value
