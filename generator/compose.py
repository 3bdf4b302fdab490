"""Several programs as one: transforms before an optimizer and behind it, wrappers around it.

In: frozen programs, in the order in which a gradient goes through them. Out: one frozen program, which
is checked, lowered and printed like any other. Must not know: SymPy, how a program is computed.

    transforms > optimizer > transforms > wrappers       clip_by_global_norm > adamw > polyak_average
    optimizer | optimizer                                muon | adamw

Each transform's u[t] is the next one's g[t]. Behind the optimizer that is the optimizer's change, what it
adds to theta[t-1]; an lr there is the optimizer's. A wrapper's `inner = update(g[t])` is replaced by
the equations of what it wraps, with inner in place of theta[t]. A name that two of them use gets
the name of its program as a prefix; the optimizer keeps its own.

Of two optimizers side by side the first is for matrices, the second for other parameters. All of the
second's hyperparameters get its name as a prefix, for they are about a part of the parameters only;
its rate is the first's times a ratio, so that one number, or one schedule, drives both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from generator import ir
from generator.errors import SpecError

_RESULT = {"optimizer": "theta", "wrapper": "theta", "transform": "u"}


class Misfit(Exception):
    """Why programs do not make one; where they were put together only the caller knows."""


def chain(programs: Sequence[ir.Program], name: str, class_name: str) -> ir.Program:
    """One program that does what these do in turn."""
    drawn = {ir.SEED for p in programs if ir.noises(p)}  # one seed for all
    programs = [ir.unseeded(p) for p in programs]
    kinds = [p.kind for p in programs]
    main = next((i for i, kind in enumerate(kinds) if kind == "optimizer"), len(programs) - 1)
    before, core, rest = programs[:main], programs[main], programs[main + 1 :]
    behind = next((i for i, p in enumerate(rest) if p.kind != "transform"), len(rest))
    changing, after = rest[:behind], rest[behind:]
    for p in before:
        if p.kind != "transform":
            raise _misplaced(p, core)
    for p in after:
        if p.kind != "wrapper" or core.kind != "optimizer":
            raise _misplaced(p, core)
    if core.kind not in ("optimizer", "transform"):
        raise _misplaced(core, core)
    taken = {"g", "theta"} | drawn
    made = _Part(core, taken, {})
    result = made.program
    for p in reversed(before):
        result = _after(result, _Part(p, taken, {}).program)
    for p in changing:
        result = _changed(result, _Part(p, taken, {}, shared={"lr"} & taken).program, taken)
    for p in after:
        result = _wrapped(_Part(p, taken, {}).program, result)
    result = replace(
        result,
        name=name,
        class_name=class_name,
        title=_title(before, core, changing, after),
        source=tuple(f"{p.class_name}: {s}" for p in programs for s in p.source),
        notes=tuple(f"{p.class_name}: {n}" for p in programs for n in p.notes),
    )
    return ir.seeded(result)


def route(programs: Sequence[ir.Program], name: str, class_name: str) -> ir.Program:
    """One program that does what the first does to matrices, and the second to other parameters."""
    first, second = programs
    for p, region in ((first, "matrix"), (second, "vector")):
        _may_be_routed(p, region)
    taken = {"g", "theta"}
    a = _Part(first, taken, {}).program
    names = {p.name: f"{second.name}_{p.name}" for p in second.parameters}
    b = _Part(second, taken, names).program
    parameters = [*a.parameters, *b.parameters]
    shared: list[str] = []
    rate = names.get("lr", "")
    if rate and any(p.name == "lr" for p in a.parameters):
        ratio = _ratio(first.parameter("lr"), second, f"{rate}_ratio")
        parameters = [ratio if p.name == rate else p for p in parameters]
        times = ir.Call("mul", (ir.Hyper("lr"), ir.Hyper(ratio.name)))
        shared.append(f"the rate of {second.class_name} is lr * {ratio.name}, so a schedule drives both.")
        b = replace(b, body=_statements(b.body, {}, hypers={rate: times}))
    result = next(n for n in ("change", f"{name}_change") if n not in taken)
    matrix, vector = ir.Call("matrix", ()), ir.Call("vector", ())
    sides = _on_one_side(a.body, "matrix"), _on_one_side(b.body, "vector")
    bodies, end = _with_common_end(sides, result)
    return replace(
        a,
        name=name,
        class_name=class_name,
        title=f"{first.class_name} for matrices, {second.class_name} for other parameters.",
        doc=(),
        parameters=tuple(parameters),
        body=(ir.Case(matrix, bodies[0], a.line), ir.Case(vector, bodies[1], b.line), *end),
        requires=(*a.relations, *b.relations),
        source=tuple(f"{p.class_name}: {s}" for p in programs for s in p.source),
        notes=(*shared, *(f"{p.class_name}: {n}" for p in programs for n in p.notes)),
    )


def _on_one_side(body: Sequence[ir.Statement], side: str) -> tuple[ir.Statement, ...]:
    """Statements where it is known whether a parameter is a matrix."""
    made: list[ir.Statement] = []
    for s in body:
        match s:
            case ir.Case(ir.Call("matrix" | "vector" as op, (), _), inner):
                made += _on_one_side(inner, side) if op == side else ()
            case ir.Case(_, inner) | ir.Loop(_, _, inner):
                made.append(replace(s, body=_on_one_side(inner, side)))
            case ir.When(_, inner, other):
                there = _on_one_side(other, side)
                made.append(replace(s, body=_on_one_side(inner, side), otherwise=there))
            case _:
                made.append(s)
    return tuple(made)


def _may_be_routed(p: ir.Program, region: str) -> None:
    """Refuse what cannot be one side of a route."""
    word = "matrices" if region == "matrix" else "other parameters than matrices"
    starts = (s for s in ir.statements(p.body) if isinstance(s, ir.Start | ir.Assign))
    what = ""
    if p.kind == "schedule":
        what = f"is a schedule, which is no part of a route. {_AS_RATE}"
    elif p.kind != "optimizer":
        what = f"is a {p.kind}, and a route has two optimizers. Chain it before or behind the route"
    elif p.only not in ("", region):
        what = f"is not for {word}. Put it on the other side"
    elif p.evaluate is not None or any(s.target == "g" for s in starts):
        what = "keeps the gradient or takes it at another point, which a route cannot. Use it by itself"
    elif any(
        isinstance(e, ir.Call) and e.op in ir.GLOBAL
        for s in ir.statements(p.body)
        for top in ir.expressions(s)
        for e in ir.walk(top)
    ):
        what = "sums over all parameters, of which a route gives it a part. Chain what sums before the route"
    if what:
        raise Misfit(f"{p.name} {what}.")


def _ratio(rate: ir.Parameter, second: ir.Program, name: str) -> ir.Parameter:
    """How large the second's rate is beside the first's; by default as their defaults are."""
    own = second.parameter("lr")
    known = isinstance(rate.default, float) and isinstance(own.default, float) and rate.default
    default = own.default / rate.default if known else 1.0  # type: ignore[operator]
    about = f"the step size of {second.name} as a multiple of lr"
    return replace(own, name=name, default=default, about=about)


def _with_common_end(
    bodies: Sequence[tuple[ir.Statement, ...]], result: str
) -> tuple[list[tuple[ir.Statement, ...]], tuple[ir.Statement, ...]]:
    """Where both have theta[t] = theta[t-1] - ..., the subtraction once, behind the regions."""
    made, line = [], 0
    for body in bodies:
        side: list[ir.Statement] = []
        for s in body:
            match s:
                case ir.Assign("theta", ir.Call("sub", (ir.Ref("theta", 1), change), _), line):
                    side.append(ir.Assign(result, change, line))
                case _:
                    side.append(s)
        left = [e for s in ir.statements(tuple(side)) for top in ir.expressions(s) for e in ir.walk(top)]
        if len(_assigned(side, result)) != 1 or _assigned(side, "theta") or ir.Ref("theta") in left:
            return list(bodies), ()
        made.append(tuple(side))
    difference = ir.Call("sub", (ir.Ref("theta", 1), ir.Ref(result)))
    return made, (ir.Assign("theta", difference, line),)


def _assigned(body: Sequence[ir.Statement], name: str) -> list[ir.Statement]:
    """Where a name is defined."""
    return [s for s in ir.statements(tuple(body)) if isinstance(s, ir.Assign) and s.target == name]


def _title(
    before: Sequence[ir.Program],
    core: ir.Program,
    changing: Sequence[ir.Program],
    after: Sequence[ir.Program],
) -> str:
    title = f"{core.class_name}"
    if before:
        title += " of a gradient that went through " + " and ".join(p.name for p in before)
    if changing:
        title += ", its change through " + " and ".join(p.name for p in changing)
    if after:
        title += ", inside " + ", inside ".join(p.name for p in after)
    return f"{title}."


def _misplaced(p: ir.Program, core: ir.Program) -> Misfit:
    a = "an" if p.kind == "optimizer" else "a"
    if p.kind == "schedule":
        return Misfit(f"{p.name} is a schedule, which is no part of a chain. {_AS_RATE}.")
    return Misfit(
        f"{p.name} is {a} {p.kind}, which has no place there in a chain. Put transforms first, then "
        "one optimizer, then transforms of its change, then wrappers."
    )


_AS_RATE = "Give it as the learning rate to the optimizer that is built"


class _Part:
    """A program in which every name that others have taken is prefixed."""

    def __init__(
        self,
        program: ir.Program,
        taken: set[str],
        names: dict[str, str],
        shared: Set[str] = frozenset(),
    ) -> None:
        self.names = names  # `shared` hyperparameters are those of the program that has them already
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
            if isinstance(e, ir.Call) and e.op in ("oracle", "noise", "meta")
        ]
        for name in dict.fromkeys(own):
            if name in names:
                taken.add(names[name])
            elif name not in ("theta", "g", *shared):
                free = name if name not in taken else f"{program.name}_{name}"
                taken.add(free)
                if free != name:
                    self.names[name] = free
        self.program = replace(
            program,
            parameters=tuple(
                replace(p, name=self.names.get(p.name, p.name))
                for p in program.parameters
                if p.name not in shared
            ),
            body=_statements(program.body, self.names),
            requires=tuple((_expr(e, self.names), line) for e, line in program.requires),
            evaluate=None if program.evaluate is None else _expr(program.evaluate, self.names),
        )


def _after(program: ir.Program, transform: ir.Program) -> ir.Program:
    """The program with the transform's result in place of its gradient."""
    result = _result(transform)
    if any(isinstance(s, ir.Start) and s.target == "g" for s in ir.statements(program.body)):
        raise Misfit(
            f"{program.name} keeps the gradient, which a chain would replace. Use {transform.name} "
            "by itself, before the step."
        )
    if any(isinstance(s, ir.Start) and s.target == "g" for s in ir.statements(transform.body)):
        result_of = f"{transform.name} keeps the gradient and cannot stand in a chain"
        raise Misfit(f"{result_of}. Use it by itself.")
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


def _changed(program: ir.Program, transform: ir.Program, taken: set[str]) -> ir.Program:
    """The program whose change of theta goes through a transform before it is added."""
    last = program.body[-1]
    match last:
        case ir.Assign("theta", ir.Call("sub", (ir.Ref("theta", 1), x), _)):
            change: ir.Expr = ir.Call("neg", (x,))
        case ir.Assign("theta", ir.Call("add", (ir.Ref("theta", 1), x), _)):
            change = x
        case _:
            raise Misfit(
                f"{transform.name} stands behind {program.name}, which does not end with theta[t] = "
                "theta[t-1] plus or minus a change. Put it before the optimizer."
            )
    if any(isinstance(s, ir.Start) and s.target == "g" for s in ir.statements(transform.body)):
        what = f"{transform.name} keeps the gradient and cannot stand in a chain. Use it by itself."
        raise Misfit(what)
    first: tuple[ir.Statement, ...] = ()
    if isinstance(change, ir.Ref) and not change.lag:
        name = change.name
    else:
        name = next(x for x in ("change", f"{transform.name}_change") if x not in taken)
        first = (ir.Assign(name, change, last.line),)
    taken.add(name)
    result = _result(transform)
    body = _statements(transform.body, {"g": name})
    end = ir.Call("add", (ir.Ref("theta", 1), ir.Ref(result)))
    return replace(
        program,
        parameters=(*program.parameters, *transform.parameters),
        body=(
            *program.body[:-1],
            *first,
            *body,
            ir.Assign("theta", end, last.line),
        ),
        requires=(*program.requires, *transform.requires),
    )


def _result(transform: ir.Program) -> str:
    """What a transform calls its u."""
    return next(
        s.target
        for top in reversed(transform.body)
        for s in ir.statements((top,))
        if isinstance(s, ir.Assign) and s.target in ("u", f"{transform.name}_u")
    )


def _wrapped(wrapper: ir.Program, program: ir.Program) -> ir.Program:
    """The wrapper with the program's equations where it asks for an update."""
    if wrapper.evaluate is not None and program.evaluate is not None:
        what = f"{wrapper.name} and {program.name} both say what to evaluate with. Leave one of them out."
        raise Misfit(what)
    held = next((s for s in wrapper.body if isinstance(s, ir.When) and _held(wrapper, s)), None)
    clocks = any(
        e == ir.Clock("t") for s in ir.statements(wrapper.body) for x in ir.expressions(s) for e in ir.walk(x)
    )
    if clocks and (held is not None or program.held is not None):
        what = f"{wrapper.name} counts steps that {program.name} does not. Put it inside of what skips steps."
        raise Misfit(what)
    if held is not None:
        kept = {s.target for s in ir.statements(program.body) if isinstance(s, ir.Start | ir.Assign)}
        if program.held is not None or "g" in kept:
            does = "skips steps already" if program.held is not None else "has its own say about the gradient"
            what = f"{program.name} {does}, inside of {wrapper.name}. Wrap another optimizer."
            raise Misfit(what)
    return replace(
        program,
        held=program.held if held is None else held.condition,
        parameters=(*program.parameters, *wrapper.parameters),
        body=_spliced(wrapper, wrapper.body, program, None),
        requires=(*program.requires, *wrapper.requires),
        evaluate=wrapper.evaluate if program.evaluate is None else program.evaluate,
    )


def _spliced(
    wrapper: ir.Program,
    body: Sequence[ir.Statement],
    program: ir.Program,
    clock: ir.Expr | None,
) -> tuple[ir.Statement, ...]:
    """Statements of the wrapper with the program's in them; `clock` counts the times they happen."""
    made: list[ir.Statement] = []
    for s in body:
        if isinstance(s, ir.When):
            clock = ir.Clock("t") if _held(wrapper, s) else _times(s.condition)
            inside = _spliced(wrapper, s.body, program, clock)
            made.append(replace(s, body=inside))
        elif isinstance(s, ir.Assign) and isinstance(s.value, ir.Call) and s.value.op == "update":
            names = {"theta": s.target}
            given = s.value.args[0]
            if given != ir.Ref("g"):
                if any(isinstance(x, ir.Assign) and x.target == "g" for x in program.body):
                    what = f"{program.name} takes its gradient at another point than {wrapper.name} knows."
                    raise Misfit(f"{what} Wrap another optimizer.")
                if any(isinstance(x, ir.Start) and x.target == "g" for x in program.body):
                    what = f"{program.name} keeps the gradient, which {wrapper.name} would replace."
                    raise Misfit(f"{what} Wrap another optimizer.")
                plain = isinstance(given, ir.Ref) and not given.lag
                names["g"] = given.name if plain else f"{wrapper.name}_g"  # type: ignore[union-attr]
                if not plain:
                    made.append(ir.Assign(names["g"], given, s.line))
            inner = _statements(program.body, names, now_only=True)
            if clock is None and _is_inside(wrapper, s):
                what = "update(...) happens every k steps in a chain: with when(equal(t % k, 0))."
                raise SpecError(wrapper.file, s.line, f"{what} Write the region so.")
            made += inner if clock is None else _statements(inner, {}, clock=clock)
        else:
            made.append(s)
    return tuple(made)


def _is_inside(wrapper: ir.Program, s: ir.Statement) -> bool:
    return all(x is not s for x in wrapper.body)


def _held(wrapper: ir.Program, s: ir.When) -> bool:
    """Whether sums over all parameters decide on the update: then t counts the updates alone."""
    updates = [x for x in s.body if isinstance(x, ir.Assign) and isinstance(x.value, ir.Call)]
    if not any(x.value.op == "update" for x in updates if isinstance(x.value, ir.Call)):
        return False
    read = {s.condition}
    for x in reversed(wrapper.body):  # what the condition follows from
        if isinstance(x, ir.Assign) and ir.Ref(x.target) in {e for r in read for e in ir.walk(r)}:
            read |= {x.value}
    nodes = (e for r in read for e in ir.walk(r))
    return any(isinstance(e, ir.Call) and e.op in ir.GLOBAL for e in nodes)


def _times(condition: ir.Expr) -> ir.Expr | None:
    """How often t % k = 0 has been so: t // k."""
    match condition:
        case ir.Call("eq", (ir.Call("mod", (ir.Clock("t"), k), _), ir.Number(0)), _):
            return ir.Call("floor", (ir.Call("div", (ir.Clock("t"), k)),))
    return None


def _statements(
    body: Sequence[ir.Statement],
    names: Mapping[str, str],
    now_only: bool = False,
    clock: ir.Expr | None = None,
    hypers: Mapping[str, ir.Expr] | None = None,
) -> tuple[ir.Statement, ...]:
    """Statements with other names; `now_only` leaves what a name was a step before.

    `hypers` says what stands in place of a hyperparameter.
    """
    made: list[ir.Statement] = []

    def expr(e: ir.Expr) -> ir.Expr:
        return _expr(e, names, now_only, clock, hypers or {})

    def block(body: Sequence[ir.Statement]) -> tuple[ir.Statement, ...]:
        return _statements(body, names, now_only, clock, hypers)

    for s in body:
        match s:
            case ir.Start(target, value):
                made.append(replace(s, target=names.get(target, target), value=expr(value)))
            case ir.Assign(target, value):
                made.append(replace(s, target=names.get(target, target), value=expr(value)))
            case ir.Loop(index, count, inner):
                index = names.get(index, index)
                made.append(replace(s, index=index, count=expr(count), body=block(inner)))
            case ir.When(condition, inner, other):
                condition = expr(condition)
                made.append(replace(s, condition=condition, body=block(inner), otherwise=block(other)))
            case ir.Case(condition, inner):
                made.append(replace(s, condition=expr(condition), body=block(inner)))
    return tuple(made)


def _expr(
    e: ir.Expr,
    names: Mapping[str, str],
    now_only: bool = False,
    clock: ir.Expr | None = None,
    hypers: Mapping[str, ir.Expr] | None = None,
) -> ir.Expr:
    match e:
        case ir.Hyper(name) if hypers and name in hypers:
            return hypers[name]
        case ir.Ref(name, lag):
            return e if now_only and lag and name == "theta" else replace(e, name=names.get(name, name))
        case ir.Clock("t") if clock is not None:
            return clock
        case ir.Hyper(name) | ir.Clock(name):
            return replace(e, name=names.get(name, name))
        case ir.Item(name, index):
            return ir.Item(names.get(name, name), _expr(index, names, now_only, clock, hypers))
        case ir.Call(op, args, text):
            named = op in ("length", "oracle", "noise", "meta")
            inner = tuple(_expr(a, names, now_only, clock, hypers) for a in args)
            return ir.Call(op, inner, names.get(text, text) if named else text)
    return e
