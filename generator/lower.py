"""From a checked program to single assignments: what every backend computes, in this order.

In: a `Checked` program. Out: `ir.Lowered`: the step scalars (in double) and the step (on tensors), its
names derived from the spec. Must not know: any backend.

The rules (each defines bits):
- the largest expressions of clocks and hyperparameters alone are scalars, evaluated in double;
- what is divided by something of smaller shape is multiplied by its reciprocal;
- x**k with a literal k is squarings and products, from the lowest bit;
- a state without a tensor in it is rounded to the compute dtype at each store.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from generator import ir
from generator.check import Checked
from generator.errors import NotAvailable
from generator.ir import Lowered, Number, Operand, Repeat, State, Value

Type = Literal["float", "int", "bool"]
ADDITIVE = ("add", "sub")


@dataclass(frozen=True)
class Typed:
    """An operand with what decides how it may be used."""

    operand: Operand
    tensor: bool
    type: Type


def lower(checked: Checked) -> Lowered:
    """The program as typed single assignments; `NotAvailable` names what has no code yet."""
    return _Lowerer(checked).run()


class _Lowerer:
    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.program = checked.program
        self.scalars: list[Value | Repeat] = []
        self.step: list[Value] = []
        self.into = self.scalars  # where step-scope values go: the program, or a loop's body
        self.known: ChainMap[tuple[object, ...], Typed] = ChainMap()
        self.taken: set[str] = {p.name for p in self.program.parameters} | {"t", "n", "g", "theta"}
        self.taken |= {s.name for s in checked.states}
        self.types: dict[str, str] = {}
        self.exports: list[str] = []
        self.now: dict[str, Typed] = {}
        self.old: dict[str, Typed] = {}
        self.target = ""
        self.line = 0
        self.indices: dict[str, int] = {}  # of loops that are being unrolled

    def missing(self, what: str) -> NotAvailable:
        return NotAvailable(f"{self.program.name} needs {what}, for which no code is generated yet")

    def run(self) -> Lowered:
        checked, program = self.checked, self.program
        if checked.gradients > 1:
            raise self.missing("more than one gradient a step")
        if checked.inputs:
            raise self.missing(f"a further input ({checked.inputs[0]})")
        if program.kind == "wrapper":
            raise self.missing("the wrapped optimizer's update")
        for relation, _ in program.requires:
            if any(isinstance(e, ir.Call) and e.op in ("matrix", "vector") for e in ir.walk(relation)):
                raise self.missing("a shape that is required of parameters")
        states = list(checked.states)
        parameter = "theta"
        if checked.gradients == 1:
            parameter = "point"
            states.append(State("theta", ir.Ref("theta", 1), scalar=False))
            self.old["theta"] = Typed("state.theta", True, "float")
        else:
            self.old["theta"] = Typed("theta", True, "float")
        for s in states:
            name = f"{s.name}_prev" if s.scalar else f"state.{s.name}"
            self.old[s.name] = Typed(name, not s.scalar, "float")
            self.types[name] = "float"
        if program.kind != "schedule":
            self.now["g"] = Typed("g", True, "float")
        for s in checked.states:
            self.begun_by_gradient(s)
        point: ir.Expr | None = None
        for statement in program.body:
            if isinstance(statement, ir.Assign) and statement.target == "g":
                assert isinstance(statement.value, ir.Call)
                point = statement.value.args[0]
            else:
                self.statement(statement)
        new_states = []
        for s in states:
            value = self.now[s.name]
            if not s.scalar:
                if not value.tensor:
                    raise self.missing(f"{s.name} as a constant tensor")
                new_states.append((s.name, value.operand))
        result = self.result(point)
        lowered = Lowered(
            program=program,
            states=tuple(states),
            scalars=tuple(self.scalars),
            exports=tuple(self.exports),
            step=tuple(self.step),
            parameter=parameter,
            result=result,
            new_states=tuple(new_states),
            types=self.types,
            delta=self.delta(result) if program.kind == "optimizer" and point is None else None,
            evaluate=self.evaluated() if point is not None or program.evaluate else None,
        )
        return _without_dead(lowered)

    def begun_by_gradient(self, s: State) -> None:
        """A state that starts as `first(g)`: at t = 1 its old value is the gradient."""
        if s.start != ir.Call("first", (), "g"):
            return
        at = [Typed("t", False, "int"), Typed(Number(1), False, "int")]
        first = self.rename(self.make("eq", at, "bool"), "is_first")
        chosen = self.make("where", [first, self.now["g"], self.old[s.name]], "float")
        self.old[s.name] = self.rename(chosen, f"{s.name}_prev")

    def result(self, point: ir.Expr | None) -> Operand:
        if point is not None:
            return self.next_point(point)
        name = {"schedule": "lr", "transform": "u"}.get(self.program.kind, "theta")
        value = self.now[name]
        if self.program.kind == "schedule":
            return self.as_float(value).operand
        if not value.tensor:
            raise self.missing(f"{name} as a constant tensor")
        return value.operand

    def next_point(self, point: ir.Expr) -> Operand:
        """Where the next gradient is taken: the point at t + 1, of what is known at the end of t."""
        self.target, self.old = "point", dict(self.now)
        after = Typed("t", False, "int")
        if ir.Clock("t") in ir.walk(point):
            after = self.make("add", [after, Typed(Number(1), False, "int")], "int")
        self.clock = after
        value = self.expr(point)
        if not value.tensor:
            raise self.missing("a gradient at a constant point")
        self.rename(value, "point")
        return "point_next" if self.step and self.step[-1].name == "point_next" else value.operand

    def evaluated(self) -> str:
        wanted = self.program.evaluate
        if wanted is None:
            return "theta"
        if isinstance(wanted, ir.Ref) and wanted.name in {s.name for s in self.checked.states}:
            return wanted.name
        if wanted == ir.Ref("theta"):
            return "theta"
        raise self.missing("evaluation at an expression; name a state")

    def delta(self, result: Operand) -> tuple[str, Operand] | None:
        """How the result is the parameter plus or minus one value, where it is."""
        for v in self.step:
            if v.name == result and v.op in ADDITIVE:
                if v.args[0] == "theta":
                    return v.op, v.args[1]
                if v.op == "add" and v.args[1] == "theta":
                    return v.op, v.args[0]
        return None

    # Statements -----------------------------------------------------------------------------------

    clock = Typed("t", False, "int")

    def statement(self, s: ir.Statement) -> None:
        self.line = s.line
        match s:
            case ir.Start(target, value):
                if target not in {x.name for x in self.checked.states}:
                    start = self.expr(value)
                    wanted = self.checked.info[target].type
                    self.now[target] = self.as_float(start) if wanted == "float" else start
            case ir.Assign(target, value):
                self.assign(target, value)
            case ir.Loop():
                self.loop(s)
            case ir.When():
                raise self.missing("`when` regions")
            case ir.Case():
                raise self.missing("`case` regions")

    def assign(self, target: str, value: ir.Expr) -> None:
        self.target = target
        made = self.expr(value)
        state = next((s for s in self.checked.states if s.name == target), None)
        if state is not None and state.scalar:
            made = self.make("store", [self.as_float(made)], "float")
        elif self.checked.info[target].type == "float":
            made = self.as_float(made)
        self.now[target] = self.rename(made, target)
        if state is not None and state.scalar:
            self.export(self.now[target])

    def loop(self, s: ir.Loop) -> None:
        assigned = [x.target for x in ir.statements(s.body) if isinstance(x, ir.Assign)]
        if any(self.checked.info[x].scope != "step" for x in assigned):
            self.unrolled(s)
            return
        carried = [x for x in assigned if x in self.now]
        count = self.expr(s.count)
        starts = {x: self.now[x] for x in carried}
        outer, outer_known, outer_old = self.into, self.known, dict(self.old)
        self.into, self.known = [], self.known.new_child()
        for x in carried:
            name = self.fresh(x)
            self.old[x] = Typed(name, False, starts[x].type)
            self.types[name] = starts[x].type
        self.types[s.index] = "int"
        for inner in s.body:
            self.statement(inner)
        ends = [(self.old[x].operand, starts[x].operand, self.now[x].operand) for x in carried]
        body = tuple(self.into)
        self.into, self.known = outer, outer_known
        self.into.append(Repeat(s.index, count.operand, tuple(ends), body))  # type: ignore[arg-type]
        for x in carried:
            self.now[x] = self.old[x]
        self.old = outer_old

    def unrolled(self, s: ir.Loop) -> None:
        if not isinstance(s.count, Number):
            raise self.missing("a loop over tensors whose length is not a literal")
        outer = dict(self.old)
        for k in range(1, int(s.count.value) + 1):
            for x in [x.target for x in ir.statements(s.body) if isinstance(x, ir.Assign)]:
                if x in self.now:
                    self.old[x] = self.now[x]
            self.indices[s.index] = k
            for inner in s.body:
                self.statement(inner)
        self.old = outer

    # Expressions ----------------------------------------------------------------------------------

    def expr(self, e: ir.Expr) -> Typed:
        match e:
            case Number(value):
                return Typed(e, False, "int" if isinstance(value, int) else "float")
            case ir.Hyper(name):
                kind = self.program.parameter(name).domain.type
                types: dict[str, Type] = {"int": "int", "bool": "bool", "choice": "bool"}
                return Typed(name, False, types.get(kind, "float"))
            case ir.Clock(name):
                if name in self.indices:
                    return Typed(Number(self.indices[name]), False, "int")
                return self.clock if name == "t" else Typed(name, False, "int")
            case ir.Item(name, index):
                kind = self.program.parameter(name).domain.type
                at = self.expr(index)
                return self.make(
                    "item", [Typed(name, False, "float"), at], "int" if kind == "int" else "float"
                )
            case ir.Ref(name, lag):
                return self.old[name] if lag else self.now[name]
        assert isinstance(e, ir.Call)
        return self.call(e)

    def call(self, e: ir.Call) -> Typed:
        operation = ir.OPERATIONS[e.op]
        if e.op in ir.REDUCTIONS or operation.shape in ("matmul", "transpose"):
            raise self.missing(e.op)
        if e.op in ("rows", "cols", "matrix", "vector"):
            raise self.missing(e.op)
        if e.op == "length":
            return self.make("length", [Typed(e.text, False, "float")], "int")
        if e.op in ("eq", "ne") and any(isinstance(a, ir.Call) and a.op == "word" for a in e.args):
            raise self.missing("choices")
        if e.op == "floor" and isinstance(e.args[0], ir.Call) and e.args[0].op == "div":
            both = [self.expr(a) for a in e.args[0].args]
            if all(x.type == "int" for x in both):
                return self.make("floordiv", both, "int")
        given = [self.expr(a) for a in e.args]
        match e.op:
            case "power":
                return self.power(given[0], given[1])
            case "div":
                return self.divide(*map(self.as_float, given))
            case "call":
                return self.make("call", given, "float")
            case "and" | "or" | "not":
                return self.make(e.op, given, "bool")
            case "where":
                values = self.alike(given[1:])
                if given[0].tensor:
                    values = [self.as_float(x) for x in values]
                    if not any(x.tensor for x in values):  # they bring the dtype
                        values = [self.scalar(x) for x in values]
                return self.make("where", [given[0], *values], values[0].type)
        if operation.result == "float":
            given = [self.as_float(x) for x in given]
        else:
            given = self.alike(given)
        result: Type = "bool" if operation.result == "bool" else "float"
        if operation.result in ("same", "int") and given and given[0].type == "int":
            result = "int"
        return self.make(e.op, given, result)

    def divide(self, a: Typed, b: Typed) -> Typed:
        if a.tensor and not b.tensor:
            return self.make("mul", [a, self.reciprocal(b)], "float")
        return self.make("div", [a, b], "float")

    def reciprocal(self, x: Typed) -> Typed:
        if isinstance(x.operand, Number) and x.operand.value:
            return Typed(Number(1.0 / x.operand.value), False, "float")
        return self.make("div", [Typed(Number(1.0), False, "float"), x], "float")

    def power(self, base: Typed, exponent: Typed) -> Typed:
        base = self.as_float(base)
        if isinstance(exponent.operand, Number) and exponent.type == "int":
            k = int(exponent.operand.value)
            if abs(k) <= 4 or base.tensor:
                raised = self.raised(base, abs(k))
                one = Typed(Number(1.0), False, "float")
                return self.make("div", [one, raised], "float") if k < 0 else raised
        if base.tensor:
            raise self.missing("a tensor raised to a power that is not a literal")
        if exponent.type == "int":
            return self.make("power", [base, exponent], "float")
        return self.make("real_power", [base, self.as_float(exponent)], "float")

    def raised(self, x: Typed, k: int) -> Typed:
        """x**k by squaring from the lowest bit."""
        result: Typed | None = None
        while k:
            if k & 1:
                result = x if result is None else self.make("mul", [result, x], "float")
            k >>= 1
            if k:
                x = self.make("mul", [x, x], "float")
        return result or Typed(Number(1.0), False, "float")

    def as_float(self, x: Typed) -> Typed:
        if x.type != "int":
            return x
        if isinstance(x.operand, Number):
            return Typed(Number(float(x.operand.value)), False, "float")
        return self.make("to_float", [x], "float")

    def scalar(self, x: Typed) -> Typed:
        """A literal as a value of step scope, which enters the step with the compute dtype."""
        return self.make("to_float", [x], "float") if isinstance(x.operand, Number) else x

    def alike(self, values: Sequence[Typed]) -> list[Typed]:
        """Integers stay integers among themselves and become floats beside one."""
        if all(x.type == "int" for x in values) and not any(x.tensor for x in values):
            return list(values)
        return [self.as_float(x) for x in values]

    # Values and their names -----------------------------------------------------------------------

    def make(self, op: str, args: Sequence[Typed], result: Type) -> Typed:
        """The value of an operation; the same operation on the same operands is computed once."""
        tensor = any(a.tensor for a in args)
        operands = tuple(self.entering(a) if tensor else a.operand for a in args)
        key = (op, tuple(map(repr, operands)), tensor)  # repr: -0.0 is not 0.0
        if key in self.known:
            return self.known[key]
        name = self.fresh(_describe(op, operands) or f"{self.target or 'value'}_part")
        value = Value(name, op, operands, result, line=self.line)
        (self.step if tensor else self.into).append(value)
        self.types[name] = result
        made = self.known[key] = Typed(name, tensor, result)
        return made

    def entering(self, x: Typed) -> Operand:
        """An operand of a tensor operation: scalars come in through the exports, literals do not."""
        if x.tensor:
            return x.operand
        x = self.as_float(x)
        if isinstance(x.operand, Number):
            return Number(float(x.operand.value))
        self.export(x)
        return f"s.{x.operand}"

    def export(self, x: Typed) -> None:
        assert isinstance(x.operand, str)
        if x.operand not in self.exports:
            self.exports.append(x.operand)
            self.types[f"s.{x.operand}"] = x.type
            self.types.setdefault(x.operand, x.type)

    def fresh(self, base: str) -> str:
        name, number = base, 2
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name

    def rename(self, x: Typed, wanted: str) -> Typed:
        """Give the value just made the name that the spec gives it."""
        block: list[Value | Repeat] = self.step if x.tensor else self.into  # type: ignore[assignment]
        last = block[-1] if block else None
        if not isinstance(last, Value) or last.name != x.operand or last.spec:
            return x  # another name for what is there already
        state = any(s.name == wanted for s in self.checked.states)
        if wanted in ("theta", "point"):
            name = f"{wanted}_next"
        elif state and f"{wanted}*" not in self.taken:
            name = wanted
            self.taken.add(f"{wanted}*")
        else:
            name = self.fresh(wanted)
        block[-1] = replace(last, name=name, spec=True)
        self.taken.discard(last.name)
        self.types[name] = self.types.pop(last.name)
        self.exports = [name if e == last.name else e for e in self.exports]
        renamed = Typed(name, x.tensor, x.type)
        for key, value in list(self.known.items()):
            if value == x:
                self.known[key] = renamed
        return renamed


_LONGEST = 32
_WORDS = {0.0: "zero", 0.5: "half", 1.0: "one", 2.0: "two", 3.0: "three", 4.0: "four"}


def _describe(op: str, args: tuple[Operand, ...]) -> str:
    """What people would call this value: `one_minus_beta1`; empty where that gets too long."""
    words = []
    for a in args:
        if isinstance(a, Number):
            words.append(_WORDS.get(float(a.value), ""))
        else:
            words.append(a.removeprefix("s.").removeprefix("state."))
    if not all(words):
        return ""
    match op, words:
        case "div", ["one", x]:
            text = f"inv_{x}"
        case "div", [x, y]:
            text = f"{x}_over_{y}"
        case "mul", [x, y]:
            text = f"{x}_squared" if x == y else f"{x}_times_{y}"
        case "sub", [x, y]:
            text = f"{x}_minus_{y}"
        case "add", [x, y]:
            text = f"{x}_plus_{y}"
        case ("power" | "real_power"), [x, y]:
            text = f"{x}_pow_{y}"
        case "neg", [x]:
            text = f"minus_{x}"
        case "to_float", [x]:
            text = f"{x}_float"
        case ("sqrt" | "abs" | "sign" | "floor" | "exp" | "log" | "cos"), [x]:
            text = f"{op}_{x}"
        case _:
            return ""
    return text if len(text) <= _LONGEST else ""


def uses(values: Sequence[Value | Repeat]) -> list[str]:
    """Every name that the values read, once for each time it is read."""
    found: list[str] = []
    for v in values:
        if isinstance(v, Value):
            found += [a for a in v.args if isinstance(a, str)]
        else:
            found += [a for a in (v.count, *(s for _, s, _ in v.carried)) if isinstance(a, str)]
            found += [e for _, _, e in v.carried if isinstance(e, str)]
            found += uses(v.body)
    return found


def _without_dead(lowered: Lowered) -> Lowered:
    """The program without values that nothing reads."""
    needed = {lowered.result, *(o for _, o in lowered.new_states)}
    step: list[Value] = []
    for v in reversed(lowered.step):
        if v.name in needed:
            step.append(v)
            needed.update(v.args)
    exports = tuple(
        e
        for e in lowered.exports
        if f"s.{e}" in needed or e in {s.name for s in lowered.scalar_states}
    )
    needed |= set(exports)
    scalars: list[Value | Repeat] = []
    for s in reversed(lowered.scalars):
        if isinstance(s, Repeat):
            if needed & {name for name, _, _ in s.carried}:
                scalars.append(s)
                needed.update(uses([s]))
        elif s.name in needed:
            scalars.append(s)
            needed.update(s.args)
    return replace(
        lowered, step=tuple(step[::-1]), scalars=tuple(scalars[::-1]), exports=exports
    )
