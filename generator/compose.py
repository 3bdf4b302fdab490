"""Several programs as one: transforms before an optimizer, wrappers after it.

In: frozen programs, in the order in which a gradient goes through them. Out: one frozen program, which
is checked, lowered and printed like any other. Must not know: SymPy, how a program is computed.

    transforms > optimizer > wrappers        clip_by_global_norm > adamw > polyak_average

Each transform's u[t] is the next one's g[t]. A wrapper's `inner = update(g[t])` is replaced by the
equations of what it wraps, with inner in place of theta[t]. A name that two of them use gets the
name of its program as a prefix; the optimizer keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from generator import ir
from generator.errors import SpecError

_RESULT = {"optimizer": "theta", "wrapper": "theta", "transform": "u"}


def chain(programs: Sequence[ir.Program], name: str, class_name: str) -> ir.Program:
    """One program that does what these do in turn."""
    kinds = [p.kind for p in programs]
    main = next((i for i, kind in enumerate(kinds) if kind == "optimizer"), len(programs) - 1)
    before, core, after = programs[:main], programs[main], programs[main + 1 :]
    for p in before:
        if p.kind != "transform":
            raise _misplaced(p, core)
    for p in after:
        if p.kind != "wrapper" or core.kind != "optimizer":
            raise _misplaced(p, core)
    if core.kind not in ("optimizer", "transform"):
        raise _misplaced(core, core)
    taken = {"g", "theta"}
    made = _Part(core, taken, {})
    result = made.program
    for p in reversed(before):
        result = _after(result, _Part(p, taken, {}).program)
    for p in after:
        result = _wrapped(_Part(p, taken, {}).program, result)
    return replace(
        result,
        name=name,
        class_name=class_name,
        title=_title(before, core, after),
        source=tuple(f"{p.class_name}: {s}" for p in programs for s in p.source),
        notes=tuple(f"{p.class_name}: {n}" for p in programs for n in p.notes),
    )


def _title(before: Sequence[ir.Program], core: ir.Program, after: Sequence[ir.Program]) -> str:
    title = f"{core.class_name}"
    if before:
        title += " of a gradient that went through " + " and ".join(p.name for p in before)
    if after:
        title += ", inside " + ", inside ".join(p.name for p in after)
    return f"{title}."


def _misplaced(p: ir.Program, core: ir.Program) -> SpecError:
    a = "an" if p.kind == "optimizer" else "a"
    return SpecError(
        p.file,
        p.line,
        f"{p.name} is {a} {p.kind}, which has no place there in a chain. Put transforms first, then "
        "one optimizer, then wrappers.",
    )


class _Part:
    """A program in which every name that others have taken is prefixed."""

    def __init__(self, program: ir.Program, taken: set[str], names: dict[str, str]) -> None:
        self.names = names
        own = [p.name for p in program.parameters]
        for s in ir.statements(program.body):
            if isinstance(s, ir.Assign | ir.Start):
                own.append(s.target)
            elif isinstance(s, ir.Loop):
                own.append(s.index)
        own += [
            e.text
            for s in ir.statements(program.body)
            for top in ir.expressions(s)
            for e in ir.walk(top)
            if isinstance(e, ir.Call) and e.op in ("oracle", "noise")
        ]
        for name in dict.fromkeys(own):
            if name not in ("theta", "g"):
                free = name if name not in taken else f"{program.name}_{name}"
                taken.add(free)
                if free != name:
                    self.names[name] = free
        self.program = replace(
            program,
            parameters=tuple(replace(p, name=self.names.get(p.name, p.name)) for p in program.parameters),
            body=_statements(program.body, self.names),
            requires=tuple((_expr(e, self.names), line) for e, line in program.requires),
            evaluate=None if program.evaluate is None else _expr(program.evaluate, self.names),
        )


def _after(program: ir.Program, transform: ir.Program) -> ir.Program:
    """The program with the transform's result in place of its gradient."""
    result = next(
        s.target
        for s in reversed(transform.body)
        for s in ir.statements((s,))
        if isinstance(s, ir.Assign) and (s.target == "u" or s.target == f"{transform.name}_u")
    )
    if any(isinstance(s, ir.Start) and s.target == "g" for s in ir.statements(program.body)):
        raise SpecError(
            program.file,
            program.line,
            f"{program.name} keeps the gradient, which a chain would replace. Use {transform.name} "
            "by itself, before the step.",
        )
    if any(isinstance(s, ir.Start) and s.target == "g" for s in ir.statements(transform.body)):
        result_of = f"{transform.name} keeps the gradient and cannot stand in a chain"
        raise SpecError(transform.file, transform.line, f"{result_of}. Use it by itself.")
    taken_at = [
        i for i, s in enumerate(program.body) if isinstance(s, ir.Assign) and s.target == "g"
    ]
    cut = taken_at[0] + 1 if taken_at else 0
    renamed = {"g": result}
    return replace(
        program,
        parameters=(*program.parameters, *transform.parameters),
        body=(*program.body[:cut], *transform.body, *_statements(program.body[cut:], renamed)),
        requires=(*program.requires, *transform.requires),
    )


def _wrapped(wrapper: ir.Program, program: ir.Program) -> ir.Program:
    """The wrapper with the program's equations where it asks for an update."""
    body: list[ir.Statement] = []
    for s in wrapper.body:
        if isinstance(s, ir.Assign) and isinstance(s.value, ir.Call) and s.value.op == "update":
            if s.value.args[0] != ir.Ref("g"):
                raise SpecError(
                    wrapper.file, s.line, "a chain gives update(...) the gradient itself. Write update(g[t])."
                )
            body += _statements(program.body, {"theta": s.target}, now_only=True)
        else:
            body.append(s)
    if wrapper.evaluate is not None and program.evaluate is not None:
        raise SpecError(
            wrapper.file,
            wrapper.line,
            f"{wrapper.name} and {program.name} both say what to evaluate with. Leave one of them out.",
        )
    return replace(
        program,
        parameters=(*program.parameters, *wrapper.parameters),
        body=tuple(body),
        requires=(*program.requires, *wrapper.requires),
        evaluate=wrapper.evaluate if program.evaluate is None else program.evaluate,
    )


def _statements(
    body: Sequence[ir.Statement], names: Mapping[str, str], now_only: bool = False
) -> tuple[ir.Statement, ...]:
    """Statements with other names; `now_only` leaves what a name was a step before."""
    made: list[ir.Statement] = []

    def expr(e: ir.Expr) -> ir.Expr:
        return _expr(e, names, now_only)

    for s in body:
        match s:
            case ir.Start(target, value):
                made.append(replace(s, target=names.get(target, target), value=expr(value)))
            case ir.Assign(target, value):
                made.append(replace(s, target=names.get(target, target), value=expr(value)))
            case ir.Loop(index, count, inner):
                inside = _statements(inner, names, now_only)
                made.append(replace(s, index=names.get(index, index), count=expr(count), body=inside))
            case ir.When(condition, inner, other):
                inside, outside = (_statements(b, names, now_only) for b in (inner, other))
                made.append(replace(s, condition=expr(condition), body=inside, otherwise=outside))
            case ir.Case(condition, inner):
                made.append(replace(s, condition=expr(condition), body=_statements(inner, names, now_only)))
    return tuple(made)


def _expr(e: ir.Expr, names: Mapping[str, str], now_only: bool = False) -> ir.Expr:
    match e:
        case ir.Ref(name, lag):
            return e if now_only and lag else replace(e, name=names.get(name, name))
        case ir.Hyper(name) | ir.Clock(name):
            return replace(e, name=names.get(name, name))
        case ir.Item(name, index):
            return ir.Item(names.get(name, name), _expr(index, names, now_only))
        case ir.Call(op, args, text):
            named = op in ("length", "oracle", "noise")
            inner = tuple(_expr(a, names, now_only) for a in args)
            return ir.Call(op, inner, names.get(text, text) if named else text)
    return e
