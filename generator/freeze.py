"""From SymPy to our own tree: the only file that looks inside SymPy.

In: a `Trace` (equations as written). Out: an `ir.Program` with the same operations in the same order.
Must not know: whether the program makes sense (check.py).

Written under `operators.as_written`, expressions keep the author's order in `.args`: `a/b` and `a*(1/b)`
are both Mul(a, Pow(b, -1)), `-a` is Mul(-1, a), `a - b` is Add(a, Mul(-1, b)) or, of a literal, Add(a, -5),
`a // b` is floor(a/b).
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from generator import ir, lengths, regions
from generator.equations import ascii_expr
from generator.errors import SpecError, brief, elsewhere, shallow, suggest, twice, uncounted
from generator.language import LARGEST, Recorded, Trace, Word

_PLAIN = {
    sp.StrictLessThan: "lt",
    sp.LessThan: "le",
    sp.StrictGreaterThan: "gt",
    sp.GreaterThan: "ge",
    sp.Eq: "eq",
    sp.And: "and",
    sp.Or: "or",
    sp.Not: "not",
    sp.Mod: "mod",
}
_ZERO = ir.Number(0)


def freeze(trace: Trace) -> ir.Program:
    """The program of a trace."""
    with shallow(trace.spec.file, trace.spec.line):
        return _Freezer(trace).program()


class _Freezer:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.file = trace.spec.file
        self.parameters = {p.name: p for p in trace.parameters}
        self.clock = "n" if trace.spec.kind == "schedule" else "t"
        self.open: list[Recorded] = []  # the loops around the statement
        self.loops = _loops(trace.body)
        self.starting = False  # whether the value is that of a state before the first step
        self.line = trace.spec.line

    def fail(self, message: str, line: int = 0) -> SpecError:
        return SpecError(self.file, line or self.line, message)

    def program(self) -> ir.Program:
        spec = self.trace.spec
        raw = spec.function.__doc__ or ""
        blank = raw[: len(raw) - len(raw.lstrip())].count("\n")
        self.printable(raw)
        doc = _Docstring(inspect.cleandoc(raw), self.trace.documented + blank)
        for word, line in doc.unknown.items():
            hint = suggest(word.capitalize(), _SECTIONS) or " Write Source:, Note: or Args:."
            hint = hint.replace("?", ":?")
            raise self.fail(f"{word}: is no section of a docstring.{hint}", line)
        for name, line in doc.lines.items():
            if name not in self.parameters:
                hint = suggest(name, self.parameters) or " Remove it."
                raise self.fail(f"Args: describes {name}, which is no hyperparameter.{hint}", line)
        parameters = tuple(
            replace(p, about=doc.about.get(p.name, "")) for p in self.trace.parameters
        )
        body = self.block(self.trace.body)
        requires = []
        for relation, line in self.trace.requires:
            self.line = line
            requires.append((self.expr(relation), line))
        evaluated = None
        if self.trace.evaluate is not None:
            value, self.line = self.trace.evaluate
            evaluated = self.expr(value)
        program = ir.Program(
            kind=spec.kind,
            name=spec.name,
            class_name=spec.class_name,
            title=doc.title,
            source=tuple(filter(None, doc.source)),
            notes=tuple(filter(None, doc.notes)),
            parameters=parameters,
            body=body,
            requires=tuple(requires),
            evaluate=evaluated,
            file=self.file,
            line=spec.line,
            doc=tuple(doc.other),
        )
        program = self.long_enough(program)
        for p in parameters:
            if p.name == ir.SEED and (ir.noises(program) or spec.kind == "optimizer"):
                what = "seed is the hyperparameter that noise(...) brings with it, an option of optimizers"
                raise self.fail(f"{what}. Rename this one.", p.line)
        return ir.seeded(program)

    def long_enough(self, program: ir.Program) -> ir.Program:
        """The program whose tuples are as long as its equations need, in their domains and defaults."""
        least = lengths.least(program)
        made = []
        for p in program.parameters:
            length, line = least.get(p.name, (0, 0))
            if isinstance(p.default, tuple) and len(p.default) < length:
                what = f"{p.name} = {p.default!r} is too short: line {line} reads {p.name}[{length}]."
                how = "it an entry" if length == 1 else f"{length} entries or more"
                raise self.fail(f"{what} Give {how}.", p.line)
            made.append(replace(p, domain=replace(p.domain, least=length)))
        return replace(program, parameters=tuple(made))

    def printable(self, raw: str) -> None:
        """Refuse a docstring that would end, or mean something else, in the docstring of a module."""
        for line, text in enumerate(raw.splitlines(), self.trace.documented):
            if wrong := next((x for x in ('"""', "\\") if x in text), ""):
                what = f"the docstring goes into generated code and cannot have {wrong} in it."
                raise self.fail(f"{what} Write it in words.", line)
            if not text.replace("\t", " ").isprintable():
                what = "the docstring goes into generated code and has a character that cannot be printed."
                raise self.fail(f"{what} Remove it.", line)

    # Statements -----------------------------------------------------------------------------------

    def block(self, records: list[Recorded]) -> tuple[ir.Statement, ...]:
        made: list[ir.Statement] = []
        for before, r in zip([None, *records], records, strict=False):
            self.line = r.line
            match r.what:
                case "set":
                    with shallow(self.file, r.line):
                        made.append(self.equation(r))
                case "loop":
                    count = self.expr(r.value)
                    if isinstance(count, ir.Number) and count.value < 1:
                        raise self.fail(f"iterate({count.value}) does nothing. Remove the loop.")
                    if not self.whole_number(count):  # before what is read behind the loop
                        raise self.fail(uncounted(ascii_expr(count)))
                    self.open.append(r)
                    made.append(ir.Loop(r.index.name, count, self.block(r.body), r.line))
                    self.open.pop()
                case "when":
                    made.append(ir.When(self.expr(r.value), self.block(r.body), (), r.line))
                case "otherwise":
                    w = made.pop() if before and before.what == "when" else None
                    if not isinstance(w, ir.When):
                        raise self.fail(self.alone(made[-1] if made else None))
                    made.append(ir.When(w.condition, w.body, self.block(r.body), w.line))
                case "case":
                    made.append(ir.Case(self.expr(r.value), self.block(r.body), r.line))
        return tuple(made)

    def alone(self, before: ir.Statement | None) -> str:
        """Why otherwise() cannot stand behind a statement."""
        if isinstance(before, ir.Case):
            right = ascii_expr(regions.contrary(before.condition))
            return f"otherwise() is of when(...), not of case(...). Write `with case({right}):`."
        return "otherwise() stands directly below a when(...) region. Move it."

    def whole_number(self, e: ir.Expr) -> bool:
        """Whether an expression can be an integer that is the same in every step."""
        match e:
            case ir.Number(value):
                return isinstance(value, int)
            case ir.Hyper(name) | ir.Item(name):
                return self.parameters[name].domain.type == "int"
            case ir.Call("where", (_, *values), _):
                return all(map(self.whole_number, values))
            case ir.Call(op, args, _) if op not in ("rows", "cols"):
                operation = ir.OPERATIONS.get(op)
                integer = operation is not None and operation.result in ("int", "same")
                return integer and all(map(self.whole_number, args))
        return False

    def equation(self, r: Recorded) -> ir.Statement:
        index = self.expr(r.index)
        now = self.open[-1].index.name if self.open else self.clock
        kind = self.trace.spec.kind
        result = {"transform": "u", "schedule": "lr"}.get(kind, "theta")
        if r.name in {"theta", "lr"} - {result}:
            raise self.fail(elsewhere(kind, r.name, f"{result}[{self.clock}]"))
        self.whole(r.name, index)
        if index == _ZERO:
            self.starting = r.name not in self.loops
            if self.starting and self.open:
                raise self.fail(f"{r.name}[0] stands in a loop. Move it above the loop.")
            start = ir.Start(r.name, self.expr(r.value), r.line)
            self.starting = False
            return start
        if index == ir.Clock(now):
            home, first = self.loops.get(r.name, (None, 0))
            if home is not (self.open[-1] if self.open else None):
                raise self.fail(twice(f"{r.name}[{now}]", first))
            if self.open and r.name in ("theta", "g", result):
                raise self.fail(
                    f"{r.name} is defined once a step and not in a loop. Give the loop's value a name of "
                    f"its own: x[{now}]."
                )
            return ir.Assign(r.name, self.expr(r.value), r.line)
        what = f"{r.name}[{_index(index)}] cannot be defined here."
        if index in (ir.Clock("t"), ir.Clock("n")):
            a = "an" if self.trace.spec.kind == "optimizer" else "a"
            where = "in the loop" if self.open else f"in {a} {self.trace.spec.kind}"
            raise self.fail(f"{what} Write {r.name}[{now}]: names count with {now} {where}.")
        raise self.fail(f"{what} Define {r.name}[{now}].")

    # Expressions ----------------------------------------------------------------------------------

    def whole(self, name: str, index: ir.Expr) -> None:
        """Refuse t - 1.0, which Python takes for t - 1."""
        if any(isinstance(x, ir.Number) and isinstance(x.value, float) for x in ir.walk(index)):
            what = f"{name}[{_index(index)}] has an index that is no integer."
            raise self.fail(f"{what} Write {name}[{self.clock}] or {name}[{self.clock}-1].")

    def expr(self, e: Any) -> ir.Expr:
        return self.node(sp.sympify(e))

    def node(self, e: Any) -> ir.Expr:
        match e:
            case sp.Integer():
                return self.integer(int(e))
            case sp.Float() if math.isfinite(float(e)):
                return ir.Number(float(e))
            case sp.Symbol():
                return self.symbol(e)
            case sp.Indexed():
                return self.indexed(e)
            case sp.Add():
                return self.sum(e.args)
            case sp.Mul():
                return self.product(e.args)
            case sp.Pow():
                return self.power(e)
            case AppliedUndef():
                return self.applied(e)
            case sp.floor():
                a, b = e.args[0].args
                return ir.Call("floordiv", (self.node(a), self.node(b.base)))
        if e is sp.pi:
            return ir.Call("pi", ())
        if type(e) in _PLAIN:
            return ir.Call(_PLAIN[type(e)], tuple(map(self.node, e.args)))
        raise self.fail(
            f"{e} is no value of the language. Write it with the language's operations."
        )

    def integer(self, value: int) -> ir.Expr:
        """A literal that Python may have computed: 10**400."""
        try:
            same = int(float(value)) == value
        except OverflowError:
            what = f"{brief(value)} is too large for a double. Write a smaller number."
            raise self.fail(what) from None
        if not same:
            raise self.fail(f"{brief(value)} is not exact in a double. Write a float, such as 1e20.")
        return ir.Number(value)

    def symbol(self, e: Any) -> ir.Expr:
        if isinstance(e, Word):
            return ir.Call("word", (), e.name)
        if e.name in self.parameters:
            return ir.Hyper(e.name)
        if e.name in ("matrix", "vector", "rows", "cols"):
            return ir.Call(e.name, ())
        return ir.Clock(e.name)

    def indexed(self, e: Any) -> ir.Expr:
        name, index = e.base.label.name, self.node(e.indices[0])
        if name in self.parameters:
            return ir.Item(name, index)
        self.whole(name, index)
        at = f"{name}[{_index(index)}]"
        loop, _ = self.loops.get(name, (None, 0))
        now = loop.index.name if loop else self.clock
        if index == _ZERO:
            if self.starting and name == "theta":
                return ir.Ref("theta", 1)
            raise self.fail(self.beginning(name, now))
        if loop and not any(loop is x for x in self.open):
            count = self.expr(loop.value)
            if index == count:
                return ir.Ref(name)  # what the loop ended with
            raise self.fail(
                f"{at}: here the loop is over. Read its last value, {name}[{_index(count)}]."
            )
        match index:
            case ir.Clock(clock) if clock == now:
                return ir.Ref(name)
            case ir.Call("sub", (ir.Clock(clock), ir.Number(1)), _) if clock == now:
                return ir.Ref(name, 1)
            case ir.Call("sub", (ir.Clock(clock), ir.Number(int() as lag)), _) if clock == now:
                if lag > 1:
                    raise self.fail(
                        f"{at} looks back {lag} steps; a state remembers one. Keep another state: "
                        f"{name}_1[{now}] = {name}[{now}-1]."
                    )
            case ir.Call("add", (ir.Clock(clock), _), _) if clock == now:
                raise self.fail(
                    f"{at} is not known yet at step {now}. Read {name}[{now}] or {name}[{now}-1]."
                )
            case ir.Clock() | ir.Call(_, (ir.Clock(), _), _):
                if self.clock == "n" and name in ("theta", "g"):
                    return ir.Ref(name)  # and refused for what it is
                raise self.fail(f"{at}: {name} counts with {now}. Write {name}[{now}].")
        raise self.fail(
            f"{at} is at no time that the language knows. Use {name}[{now}] or {name}[{now}-1]."
        )

    def beginning(self, name: str, now: str) -> str:
        if self.starting:
            return (
                "a state starts as a number, a hyperparameter, theta[0] or first(g), not as "
                f"{name}[0]. Write the value out."
            )
        if name == "theta":
            return (
                "theta[0] is known only before the first step. Write theta[t-1], or keep it: "
                "start[0] = theta[0] and start[t] = start[t-1]."
            )
        return f"{name}[0] is only the start of {name}. Read {name}[{now}-1]."

    def sum(self, args: tuple[Any, ...]) -> ir.Expr:
        total = self.node(args[0])
        for a in args[1:]:
            if isinstance(a, sp.Mul) and a.args[0] is sp.S.NegativeOne and len(a.args) == 2:
                total = ir.Call("sub", (total, self.node(a.args[1])))
            elif isinstance(a, sp.Number) and a < 0:
                total = ir.Call("sub", (total, self.node(-a)))
            else:
                total = ir.Call("add", (total, self.node(a)))
        return total

    def product(self, args: tuple[Any, ...]) -> ir.Expr:
        if args[0] is sp.S.NegativeOne and len(args) == 2:
            return ir.Call("neg", (self.node(args[1]),))
        total = self.node(args[0])
        for a in args[1:]:
            if isinstance(a, sp.Pow) and a.exp is sp.S.NegativeOne:
                total = ir.Call("div", (total, self.node(a.base)))
            else:
                total = ir.Call("mul", (total, self.node(a)))
        return total

    def power(self, e: Any) -> ir.Expr:
        if isinstance(e.exp, sp.Integer) and not -LARGEST <= int(e.exp) <= LARGEST:
            what = f"the exponent {brief(int(e.exp))} is beyond 2**31 - 1, where integers end."
            raise self.fail(f"{what} Write a smaller one.")
        if e.exp == sp.Integer(-1):
            return ir.Call("div", (ir.Number(1), self.node(e.base)))
        return ir.Call("power", (self.node(e.base), self.node(e.exp)))

    def applied(self, e: Any) -> ir.Expr:
        name = type(e).__name__
        if name in ("oracle", "noise"):
            text = e.args[0].name
            shape, scope = self.trace.oracles[text]
            given = () if (shape, scope) == (("full",), "tensor") else (*shape, scope)
            return ir.Call(name, tuple(ir.Call("word", (), w) for w in given), text)
        if name == "meta":
            sizes, _ = self.trace.oracles[e.args[0].name]
            return ir.Call(name, tuple(ir.Number(int(x)) for x in sizes), e.args[0].name)
        if name in ("first", "length"):
            return ir.Call(name, (), e.args[0].name)
        return ir.Call(name, tuple(map(self.node, e.args)))


Home = tuple[Recorded, int]  # a loop, and a line in it


def _loops(body: list[Recorded], inside: Recorded | None = None) -> dict[str, Home]:
    """The loop in which each name that one defines is defined first."""
    found: dict[str, Home] = {}
    for r in body:
        loop = r if r.what == "loop" else inside
        if r.what == "set" and loop is not None and sp.sympify(r.index) != 0:
            found.setdefault(r.name, (loop, r.line))
        found |= {k: v for k, v in _loops(r.body, loop).items() if k not in found}
    return found


def _index(index: ir.Expr) -> str:
    """An index as people write it: `t-2`, not `t - 2`."""
    return ascii_expr(index).replace(" ", "")


_SECTIONS = ("Source", "Note", "Args")
# What other docstrings have, and nobody reads here.
_FOREIGN = frozenset(
    """arg argument arguments attributes example examples hyperparameters keyword notes param
    parameter parameters params raises reference references return returns see sources todo warning
    warnings yields""".split()
)


class _Docstring:
    """Title, `Source:`, `Note:` and `Args:` of a spec's docstring; the rest is prose."""

    def __init__(self, text: str, first: int) -> None:
        lines = text.splitlines()
        self.title = lines[0].strip() if lines else ""
        self.source: list[str] = []
        self.notes: list[str] = []
        self.other: list[str] = []
        self.about: dict[str, str] = {}
        self.lines: dict[str, int] = {}  # where each entry of `Args:` stands
        self.unknown: dict[str, int] = {}  # what looks like a section and is none
        where: list[str] | None = None  # what the next line goes on with
        parameter = ""
        for number, line in enumerate(lines[1:], first + 1):
            word, indented = line.strip(), line.startswith(" ")
            head, colon, rest = (x.strip() for x in word.partition(":"))
            section = bool(colon) and not indented and head.isidentifier()
            if section and head not in _SECTIONS:
                lower = head.lower()
                if lower in _FOREIGN or head.capitalize() in _SECTIONS or (not rest and head.istitle()):
                    self.unknown.setdefault(head, number)
            if line.startswith(("Source:", "Note:")):
                where, parameter = self.source if head == "Source" else self.notes, ""
                where.append(rest)
            elif line.startswith("Args:"):
                where, parameter = None, "?"
            elif not word or (parameter and not indented):
                where, parameter = (self.other, "") if word else (None, "")
                self.other += [word] * bool(word)
            elif parameter:
                if colon and head.isidentifier() and len(line) - len(line.lstrip()) <= 4:
                    parameter = head
                    self.about[head], self.lines[head] = rest, number
                else:
                    self.about[parameter] = f"{self.about.get(parameter, '')} {word}".strip()
            elif where is self.other or (where and indented):
                where[-1] = f"{where[-1]} {word}".strip()
            else:
                where = self.other
                self.other.append(word)
