"""One spec at any stage, for people: `python -m generator show`.

In: a catalogue entry, and a backend for the last stages. Out: printed text. Must not know: how any
stage is made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from backends import Backend
from generator import facts, ir, render
from generator.catalogue import Entry
from generator.equations import ascii_expr, ascii_lines, latex_lines
from generator.errors import NotAvailable, place
from generator.terminal import code, heading, table


def overview(entry: Entry, offered: Sequence[str]) -> None:
    """Everything that a user of the algorithm asks; `offered`: the backends that have it."""
    program, checked = entry.program, entry.checked
    heading(f"{program.class_name}: {program.title}")
    print(f"{program.kind} {program.name}, {place(program.file, program.line)}\n")
    _lines(ascii_lines(program))
    for paragraph in program.doc:
        print(f"\n{textwrap.fill(paragraph, 96)}")
    hypers = facts.hypers(entry)
    if hypers:
        heading("\nhyperparameters")
        rows = [[h.name, h.default or "required", h.domain, h.about] for h in hypers]
        table(["name", "default", "domain", "meaning"], rows, "    ")
    for relation, _ in program.requires:
        print(f"    requires {ascii_expr(relation)}")
    states = facts.states(entry)
    if states:
        heading("\nstates")
        rows = [[s.name, s.scope, s.shape, s.start, s.memory] for s in states]
        table(["name", "scope", "shape", "starts as", "memory"], rows, "    ")
    print()
    if program.kind != "schedule":
        if states:
            _item("memory", f"{facts.memory(entry)} (float32 and below; float64 twice that)")
        print(f"sharded tensors need {checked.sharding}")
    if checked.elsewhere:
        times = "once" if checked.gradients == 1 else f"{checked.gradients} times"
        _item("gradient", f"{times} a step, first at the point that the user's parameters hold")
        _item("evaluate", f"with the state {ascii_expr(program.evaluate or ir.Ref('theta'))}")
    elif checked.gradients:
        _item("gradient", f"{checked.gradients} times a step, first at theta[t-1]")
    for name in checked.inputs:
        _item("meta-parameter" if name in checked.metas else "input", name)
    for source in program.source:
        _item("source", source)
    for note in program.notes:
        _item("note", note)
    try:
        entry.lowered  # noqa: B018 - says whether there is code
        _item("backends", ", ".join(offered) or "none")
    except NotAvailable as reason:
        _item("no code yet", str(reason))


def _item(what: str, text: str) -> None:
    print(textwrap.fill(f"{what}: {text}", 96, subsequent_indent="    ", break_on_hyphens=False))


def _lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"    {line}")


def latex(entry: Entry) -> None:
    """The equations as LaTeX."""
    print(aligned(latex_lines(entry.program)))


def aligned(lines: Sequence[str]) -> str:
    r"""Lines with `&` as one `aligned` environment; GitHub refuses the macro \operatorname."""
    body = " \\\\\n".join(lines).replace(r"\operatorname", r"\mathrm")
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


# --------------------------------------------------------------------------------------------------
# Stages


def equations(entry: Entry, backend: Backend) -> None:
    """The equations as written."""
    for line in ascii_lines(entry.program):
        print(line)


def program(entry: Entry, backend: Backend) -> None:
    """The frozen tree: every operation with its operands, in the author's order."""
    p = entry.program
    print(f"{p.kind} {p.name}")
    for parameter in p.parameters:
        print(f"    {parameter.name}: {parameter.domain.phrase}; default {parameter.default!r}")
    for relation, line in p.requires:
        print(f"    require {_tree(relation)}  # line {line}")
    _statements(p.body, 1)
    if p.evaluate is not None:
        print(f"    evaluate {_tree(p.evaluate)}")


def _statements(body: tuple[ir.Statement, ...], depth: int) -> None:
    for s in body:
        inner: tuple[ir.Statement, ...] = ()
        match s:
            case ir.Start(target, value):
                text = f"start {target} = {_tree(value)}"
            case ir.Assign(target, value):
                text = f"set {target} = {_tree(value)}"
            case ir.Loop(index, count, inner):
                text = f"loop {index} = 1, ..., {_tree(count)}:"
            case ir.When(condition, inner):
                text = f"when {_tree(condition)}:"
            case ir.Case(condition, inner):
                text = f"case {_tree(condition)}:"
        print(f"{'    ' * depth}{text}  # line {s.line}")
        _statements(inner, depth + 1)
        if isinstance(s, ir.When) and s.otherwise:
            print(f"{'    ' * depth}otherwise:")
            _statements(s.otherwise, depth + 1)


def _tree(e: ir.Expr) -> str:
    """An expression with nothing left to precedence: add(mul(beta, m[t-1]), g[t])."""
    if isinstance(e, ir.Call):
        inner = ", ".join([*([repr(e.text)] if e.text else []), *map(_tree, e.args)])
        return f"{e.op}({inner})"
    return ascii_expr(e)


def checked(entry: Entry, backend: Backend) -> None:
    """What was inferred about each name."""
    c = entry.checked
    starts = {s.name: ascii_expr(s.start) for s in c.states}
    rows = [
        [name, info.type, info.scope, info.describe(), starts.get(name, "")]
        for name, info in c.info.items()
    ]
    table(["name", "type", "scope", "shape", "state from"], rows)
    print(f"\ngradients that grad(...) takes: {c.gradients}")
    print(f"further inputs: {', '.join(c.inputs) or 'none'}")
    print(f"sharded tensors need {c.sharding}")


def lowered(entry: Entry, backend: Backend) -> None:
    """The single assignments that define the bits, the same for every backend."""
    _single_assignments(entry.lowered)


def legal(entry: Entry, backend: Backend) -> None:
    """The single assignments in a backend's own operations."""
    heading(f"for {backend.title}")
    _single_assignments(backend.legalize(entry.lowered))


def _single_assignments(p: ir.Lowered) -> None:
    is_schedule = p.program.kind == "schedule"
    heading("step scope, in double")
    _values(p.scalars, 1)
    for name in p.exports:
        print(f"    s.{name} = {name}, rounded")
    if is_schedule:
        print(f"    result {_operand(p.result)}")
        return
    for one in p.passes:
        if isinstance(one, ir.Point):
            heading("\none more gradient")
            _values(one.partials, 1)
            print(f"    given.{one.name} = gradient at {_operand(one.at)}")
            continue
        heading("\nover all parameters")
        _values(one.partials, 1)
        for name, value in one.sums:
            print(f"    total.{name} += {_operand(value)}")
        _values(one.values, 1)
        for name, source in one.exports:
            print(f"    shared.{name} = {source}")
    heading("\ntensor scope")
    _values(p.step, 1)
    for name, value in p.new_states:
        print(f"    state.{name} = {_operand(value)}")
    print(f"    result {_operand(p.result)}")
    if p.delta is not None:
        print(f"    additive: {p.delta[0]}({p.parameter}, {_operand(p.delta[1])})")
    if p.evaluate is not None:
        print(f"    evaluate with state.{p.evaluate}")


def _values(values: Sequence[ir.Step], depth: int) -> None:
    lead = "    " * depth
    for v in values:
        if isinstance(v, ir.Value):
            kind = "" if v.type == "float" else f"  # {v.type}"
            print(f"{lead}{v.name} = {v.op}({', '.join(map(_operand, v.args))}){kind}")
            continue
        if isinstance(v, ir.Branch):
            for word, body, end in (("if", v.body, 1), ("otherwise, not", v.otherwise, 2)):
                print(f"{lead}{word} {_operand(v.condition)}:")
                _values(body, depth + 1)
                for c in v.carried:
                    made = c[end]
                    if made != c[0]:
                        print(f"{lead}    {c[0]} = {'nothing' if made is None else _operand(made)}")
            continue
        for carried, start, _ in v.carried:
            print(f"{lead}{carried} = {_operand(start)}")
        print(f"{lead}for {v.index} = 1, ..., {_operand(v.count)}:")
        _values(v.body, depth + 1)
        for carried, _, last in v.carried:
            print(f"{lead}    {carried} = {last}")


def _operand(o: ir.Operand | ir.Hyper | ir.Call) -> str:
    if isinstance(o, ir.Hyper | ir.Call):
        return _tree(o)
    return o if isinstance(o, str) else repr(o.value)


def text(entry: Entry, backend: Backend) -> None:
    """The module that `build` writes."""
    code(render.render(entry.lowered, backend))


STAGES: dict[str, Callable[[Entry, Backend], None]] = {
    "equations": equations,
    "program": program,
    "checked": checked,
    "lowered": lowered,
    "legal": legal,
    "text": text,
}
