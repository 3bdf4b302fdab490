"""From SymPy to our own tree: the only file that looks inside SymPy.

In: a `Trace` (equations as written). Out: an `ir.Program` with the same operations in the same order.
Must not know: whether the program makes sense (check.py).

Under `evaluate(False)` SymPy keeps the author's order in `.args`, with these habits to undo:
`a/b` and `a*(1/b)` are both Mul(a, Pow(b, -1)); `-(a*b)` is flattened to Mul(-1, a, b); `a - b*c` is
Add(a, Mul(-1, b, c)); `a // b` is floor(a/b).
"""

from __future__ import annotations

import inspect
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import Boolean, BooleanFalse, BooleanTrue

from generator import ir
from generator.errors import SpecError
from generator.language import Recorded, Trace

_RELATIONS = {
    sp.StrictLessThan: "lt",
    sp.LessThan: "le",
    sp.StrictGreaterThan: "gt",
    sp.GreaterThan: "ge",
}
_RENAMED = {"equal": "eq"}
_TEXTUAL = ("oracle", "noise", "first", "length")


def freeze(trace: Trace) -> ir.Program:
    """The program of a trace."""
    return _Freezer(trace).program()


class _Freezer:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.file = trace.spec.file
        self.parameters = {p.name: p for p in trace.parameters}
        self.loops: list[tuple[str, ir.Expr]] = []  # enclosing and finished loops: index, count
        self.line = trace.spec.line

    def fail(self, message: str) -> SpecError:
        return SpecError(self.file, self.line, message)

    def program(self) -> ir.Program:
        spec = self.trace.spec
        doc = _Docstring(inspect.getdoc(spec.function) or "")
        parameters = tuple(
            ir.Parameter(p.name, p.domain, p.default, doc.about.get(p.name, ""), p.line)
            for p in self.trace.parameters
        )
        body = self.block(self.trace.body)
        requires = []
        for relation, self.line in self.trace.requires:
            requires.append((self.expr(relation), self.line))
        evaluated = None
        if self.trace.evaluate is not None:
            value, self.line = self.trace.evaluate
            evaluated = self.expr(value)
        return ir.Program(
            kind=spec.kind,
            name=spec.name,
            class_name=spec.class_name,
            title=doc.title,
            source=tuple(doc.source),
            notes=tuple(doc.notes),
            parameters=parameters,
            body=body,
            requires=tuple(requires),
            evaluate=evaluated,
            file=self.file,
            line=spec.line,
            doc=tuple(doc.other),
        )

    # Statements -----------------------------------------------------------------------------------

    def block(self, records: list[Recorded]) -> tuple[ir.Statement, ...]:
        made: list[ir.Statement] = []
        for r in records:
            self.line = r.line
            match r.what:
                case "set":
                    made.append(self.equation(r))
                case "loop":
                    count = self.expr(r.value)
                    self.loops.append((r.index.name, count))
                    made.append(ir.Loop(r.index.name, count, self.block(r.body), r.line))
                case "when":
                    made.append(ir.When(self.expr(r.value), self.block(r.body), (), r.line))
                case "otherwise":
                    if not made or not isinstance(made[-1], ir.When):
                        raise self.fail("otherwise() follows a when(...) region directly.")
                    w = made.pop()
                    assert isinstance(w, ir.When)
                    made.append(ir.When(w.condition, w.body, self.block(r.body), w.line))
                case "case":
                    made.append(ir.Case(self.expr(r.value), self.block(r.body), r.line))
        return tuple(made)

    def equation(self, r: Recorded) -> ir.Statement:
        index = sp.sympify(r.index)
        value = self.expr(r.value)
        if index == sp.Integer(0):
            return ir.Start(r.name, value, r.line)
        if isinstance(index, sp.Symbol) and index.name in self.clocks():
            return ir.Assign(r.name, value, r.line)
        now = " or ".join(f"{r.name}[{c}]" for c in self.clocks())
        raise self.fail(f"{r.name}[{_text(index)}] cannot be defined here. Define {now}.")

    def clocks(self) -> list[str]:
        clock = "n" if self.trace.spec.kind == "schedule" else "t"
        return [clock, *(name for name, _ in self.loops)]

    # Expressions ----------------------------------------------------------------------------------

    def expr(self, e: Any) -> ir.Expr:
        if isinstance(e, bool):
            raise self.fail("True and False are decided already. Use a bool hyperparameter.")
        if isinstance(e, int | float):
            return ir.Number(e)
        if isinstance(e, str):
            return ir.Call("word", (), e)
        return self.node(sp.sympify(e))

    def node(self, e: Any) -> ir.Expr:
        if isinstance(e, sp.Integer):
            return ir.Number(int(e))
        if isinstance(e, sp.Float):
            return ir.Number(float(e))
        if isinstance(e, sp.Rational):
            return ir.Call("div", (ir.Number(e.p), ir.Number(e.q)))
        if e is sp.pi:
            return ir.Call("pi", ())
        if isinstance(e, sp.Symbol):
            return self.symbol(e)
        if isinstance(e, sp.Indexed):
            return self.indexed(e)
        if isinstance(e, sp.Add):
            return self.sum(e.args)
        if isinstance(e, sp.Mul):
            return self.product(e.args)
        if isinstance(e, sp.Pow):
            return self.power(e)
        if isinstance(e, AppliedUndef):
            return self.applied(e)
        if type(e) in _RELATIONS:
            return ir.Call(_RELATIONS[type(e)], (self.node(e.args[0]), self.node(e.args[1])))
        if isinstance(e, sp.And | sp.Or):
            op = "and" if isinstance(e, sp.And) else "or"
            first, *rest = (self.node(a) for a in e.args)
            for other in rest:
                first = ir.Call(op, (first, other))
            return first
        if isinstance(e, sp.Not):
            return ir.Call("not", (self.node(e.args[0]),))
        if isinstance(e, sp.floor):
            return ir.Call("floor", (self.node(e.args[0]),))
        if isinstance(e, sp.Mod):
            return ir.Call("mod", (self.node(e.args[0]), self.node(e.args[1])))
        if isinstance(e, sp.Eq | sp.Ne):
            op = "eq" if isinstance(e, sp.Eq) else "ne"
            return ir.Call(op, (self.node(e.args[0]), self.node(e.args[1])))
        if isinstance(e, BooleanTrue | BooleanFalse | Boolean):
            raise self.fail(f"this condition is always {e}. Remove it.")
        what = type(e).__name__
        raise self.fail(f"{what} is not an operation of the language. Write it with those that are.")

    def symbol(self, e: Any) -> ir.Expr:
        if e.name in self.parameters:
            return ir.Hyper(e.name)
        if e.name in ("t", "n") or e.name in (name for name, _ in self.loops):
            return ir.Clock(e.name)
        if e.name in ("matrix", "vector"):
            return ir.Call(e.name, ())
        raise self.fail(f"{e.name} is not a hyperparameter of this spec.")

    def indexed(self, e: Any) -> ir.Expr:
        name, index = e.base.label.name, e.indices[0]
        if name in self.parameters:
            return ir.Item(name, self.node(index))
        if index == sp.Integer(0):
            return ir.Ref(name, 1) if name != "theta" else ir.Ref("theta", 1)
        clocks = self.clocks()
        if isinstance(index, sp.Symbol) and index.name in clocks:
            return ir.Ref(name)
        if isinstance(index, sp.Add) and len(index.args) == 2:
            clock, offset = index.args
            if isinstance(clock, sp.Symbol) and clock.name in clocks:
                if offset == sp.Integer(-1):
                    return ir.Ref(name, 1)
                if isinstance(offset, sp.Integer) and int(offset) < -1:
                    raise self.fail(
                        f"{name}[{_text(index)}] looks back {-int(offset)} steps; a state remembers "
                        f"one. Keep another state: {name}_1[t] = {name}[t-1]."
                    )
                raise self.fail(f"{name}[{_text(index)}] is not known yet at step {clock}.")
        frozen = self.node(index)
        if any(frozen == count for _, count in self.loops):
            return ir.Ref(name)  # x[count]: what the loop ended with
        raise self.fail(
            f"{name}[{_text(index)}] is at no time that the language knows. Use t, t-1 or 0."
        )

    def sum(self, args: tuple[Any, ...]) -> ir.Expr:
        total = self.node(args[0])
        for a in args[1:]:
            if isinstance(a, sp.Mul) and a.args[0] == sp.Integer(-1) and len(a.args) > 1:
                total = ir.Call("sub", (total, self.product(a.args[1:])))
            elif isinstance(a, sp.Mul) and isinstance(a.args[0], sp.Number) and a.args[0] < 0:
                total = ir.Call("sub", (total, self.product((-a.args[0], *a.args[1:]))))
            elif isinstance(a, sp.Number) and a < 0:
                total = ir.Call("sub", (total, self.node(-a)))
            else:
                total = ir.Call("add", (total, self.node(a)))
        return total

    def product(self, args: tuple[Any, ...]) -> ir.Expr:
        if args[0] == sp.Integer(-1) and len(args) > 1:
            return ir.Call("neg", (self.product(args[1:]),))
        total = self.node(args[0])
        for a in args[1:]:
            if isinstance(a, sp.Pow) and a.exp == sp.Integer(-1):
                total = ir.Call("div", (total, self.node(a.base)))
            else:
                total = ir.Call("mul", (total, self.node(a)))
        return total

    def power(self, e: Any) -> ir.Expr:
        if e.exp == sp.Integer(-1):
            return ir.Call("div", (ir.Number(1), self.node(e.base)))
        return ir.Call("power", (self.node(e.base), self.node(e.exp)))

    def applied(self, e: Any) -> ir.Expr:
        name = type(e).__name__
        if name == "call":
            called, step = e.args
            return ir.Call("call", (self.node(called), self.node(step)))
        if name in _TEXTUAL:
            return ir.Call(name, (), e.args[0].name)
        name = _RENAMED.get(name, name)
        return ir.Call(name, tuple(map(self.node, e.args)))


def _text(index: Any) -> str:
    """An index as people write it: `t-2`, not `t - 2`."""
    return sp.sstr(index, order="none").replace(" ", "")


class _Docstring:
    """Title, `Source:`, `Note:` and `Args:` of a spec's docstring; the rest is prose."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self.title = lines[0].strip() if lines else ""
        self.source: list[str] = []
        self.notes: list[str] = []
        self.other: list[str] = []
        self.about: dict[str, str] = {}
        where: list[str] | None = None
        parameter = ""
        for line in lines[1:]:
            word, indented = line.strip(), line.startswith(" ")
            if line.startswith(("Source:", "Note:")):
                head, _, rest = word.partition(":")
                where = self.source if head == "Source" else self.notes
                where.append(rest.strip())
                parameter = ""
            elif line.startswith("Args:"):
                where, parameter = None, "?"
            elif not word:
                where, parameter = None, ""
            elif parameter:
                name, colon, rest = word.partition(":")
                if colon and name.isidentifier() and len(line) - len(line.lstrip()) <= 4:
                    parameter = name
                    self.about[name] = rest.strip()
                else:
                    self.about[parameter] = f"{self.about.get(parameter, '')} {word}".strip()
            elif where is not None and indented:
                where[-1] = f"{where[-1]} {word}"
            else:
                if where is not self.other:
                    where = self.other
                    self.other.append(word)
                else:
                    self.other[-1] = f"{self.other[-1]} {word}"
