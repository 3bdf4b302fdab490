"""From a checked program to single assignments: what every backend computes, in this order.

In: a `Checked` program. Out: `ir.Lowered`: the step scalars (in double) and the step (on tensors), its
names derived from the spec. Must not know: any backend.

The rules (each defines bits):
- the largest expressions of clocks and hyperparameters alone are scalars, evaluated in double;
- what follows from a parameter's rows and columns alone is computed in double, too, and rounded once;
- what is divided by something of smaller shape is multiplied by its reciprocal;
- a quotient of tensors that is not chosen is a quotient by 1;
- norm(x) is the root of the sum of x*x, rms(x) of the mean; a sum over all parameters is the sum of
  the sums over each;
- x**k with a literal k is squarings and products, from the lowest bit;
- a state without a tensor in it is rounded to the compute dtype at each store.
"""

from __future__ import annotations

import functools
import re
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from generator import ir, passes, regions, shapes
from generator.check import Checked
from generator.equations import ascii_expr
from generator.errors import NotAvailable
from generator.ir import Branch, Given, Lowered, Number, Operand, Repeat, State, Step, Value, Word
from generator.regions import EVERYWHERE, Fact, Region
from generator.shapes import FULL, MATRIX, Shape

Type = Literal["float", "int", "bool", "key"]
ADDITIVE = ("add", "sub")
_KEPT = {"rows", "cols", "1"}  # sizes that a state's axes may have
_OF_SIZES = ("add", "sub", "mul", "div", "neg", "sqrt", "minimum", "maximum")
_CONDITIONS = ("gt", "lt", "ge", "le", "eq", "and", "or", "not")


@dataclass(frozen=True)
class Typed:
    """An operand with what decides how it may be used."""

    operand: Operand
    tensor: bool  # computed for each parameter, not of step scope
    type: Type
    shape: Shape = ()
    size: bool = False  # a double that follows from a parameter's rows and columns


def lower(checked: Checked) -> Lowered:
    """The program as typed single assignments; `NotAvailable` names what has no code yet."""
    return _Lowerer(checked).run()


class _Lowerer:
    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.program = checked.program
        self.scalars: list[Step] = []
        self.step: list[Step] = []  # where values of tensors go: the program, or a region
        self.region: Region = EVERYWHERE
        self.choosing = False  # whether sums over parameters decide on what the statement leaves
        self.holding: str | None = None  # what decides on whether the step counts
        self.choices = regions.choices(self.program)
        self.deciding = False  # whether a scalar decides on whether the statement happens
        self.parameter = "theta"
        self.into = self.scalars  # where step-scope values go: the program, a loop, a region
        self.known: ChainMap[tuple[object, ...], Typed] = ChainMap()
        # Of a region that choices decide on, scalars without a name that need no option go here:
        self.plain = self.into, self.known
        self.inner = {p.name for p in self.program.parameters if p.domain.optional}
        self.new: set[str] = set()  # what the statement at hand has made
        self.taken: set[str] = {p.name for p in self.program.parameters} | {"t", "n", "g", "theta"}
        self.taken |= {s.name for s in checked.states}
        self.types: dict[str, str] = {}
        self.exports: list[str] = []
        self.now: dict[str, Typed] = {}
        self.old: dict[str, Typed] = {}
        self.target = ""
        self.line = 0
        self.indices: dict[str, int] = {}  # of loops that are being unrolled
        self.either: dict[str, Fact] = {}  # the condition behind each size "a|b"
        self.given: dict[str, Given] = {}  # what the caller gives beside the gradient
        self.happening = ""  # the scalar without which the statement does not happen

    def missing(self, what: str) -> NotAvailable:
        return NotAvailable(f"{self.program.name} needs {what}, for which no code is generated yet")

    def run(self) -> Lowered:
        checked, program = self.checked, self.program
        if program.kind == "wrapper":
            raise NotAvailable(
                f"{program.name} wraps an optimizer and has no code of its own. Chain it: "
                f'"adamw > {program.name}"'
            )
        if program.only:
            self.region = frozenset({regions.fact("case", ir.Call(program.only, ()))})
        states = list(checked.states)
        if checked.elsewhere:
            self.parameter = "point"
            states.append(State("theta", ir.Ref("theta", 1), scalar=False))
            self.old["theta"] = Typed("state.theta", True, "float", FULL)
        else:
            self.old["theta"] = Typed("theta", True, "float", FULL)
        for s in states:
            name = f"{s.name}_prev" if s.scalar else f"state.{s.name}"
            if s.shared:
                name = f"shared.{s.name}_prev"
                if program.kind == "transform":
                    raise self.missing(f"a state of all parameters ({s.name}) in a transform")
            one = s.scalar or s.shared
            if one and isinstance(s.start, ir.Hyper) and program.parameter(s.start.name).domain.optional:
                raise self.missing(f"a number that starts at what may be None ({s.name})")
            if s.shape != FULL and not set(s.shape) <= _KEPT:
                raise self.missing(f"a state of shape {shapes.describe(s.shape)}")
            self.old[s.name] = Typed(name, not s.scalar, "float", s.shape)
            self.types[name] = "float"
        if program.kind != "schedule":
            self.now["g"] = Typed("g", True, "float", FULL)
        for s in checked.states:
            self.begun_by_gradient(s)
        point: ir.Expr | None = None
        body = []
        for statement in program.body:
            if isinstance(statement, ir.Assign) and statement.target == "g":
                assert isinstance(statement.value, ir.Call)
                point = statement.value.args[0]
            else:
                body.append(statement)
        self.block(body)
        new_states = []
        for s in states:
            value = self.now[s.name]
            if not s.scalar:
                if not value.tensor:
                    raise self.missing(f"{s.name} as a constant tensor")
                new_states.append((s.name, self.entered(value).operand))
        result = self.result(point)
        lowered = Lowered(
            program=program,
            states=tuple(states),
            scalars=tuple(self.scalars),
            exports=tuple(self.exports),
            step=tuple(self.step),
            parameter=self.parameter,
            result=result,
            new_states=tuple(new_states),
            types=self.types,
            delta=self.delta(result) if program.kind == "optimizer" and point is None else None,
            held=self.holding,
            evaluate=self.evaluated() if point is not None or program.evaluate else None,
            given=tuple(sorted(self.given.values(), key=lambda x: (x.gradient, x.sizes is None))),
        )
        try:
            return passes.split(_without_dead(lowered))
        except passes.Unsplit as reason:
            raise self.missing(str(reason)) from None

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
        last = self.step[-1] if self.step else None
        named = isinstance(last, Value) and last.name == "point_next"
        return "point_next" if named else value.operand

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
            if isinstance(v, Value) and v.name == result and v.op in ADDITIVE:
                if v.args[0] == "theta":
                    return v.op, v.args[1]
                if v.op == "add" and v.args[1] == "theta":
                    return v.op, v.args[0]
        return None

    # Statements -----------------------------------------------------------------------------------

    clock = Typed("t", False, "int")

    def block(self, body: Sequence[ir.Statement]) -> None:
        """Statements in their order; a region and its opposite, where they meet, are one branch."""
        rest = list(body)
        while rest:
            s = rest.pop(0)
            if isinstance(s, ir.When) and regions.static(s.condition):
                self.choice(s, rest)
                continue
            if not isinstance(s, ir.Case):
                self.statement(s)
                continue
            fact = regions.fact("case", s.condition)
            bodies: dict[bool, Sequence[ir.Statement]] = {fact[2]: s.body, not fact[2]: ()}
            after = rest[0] if rest else None
            if isinstance(after, ir.Case) and regions.fact("case", after.condition) == regions.opposite(fact):
                bodies[not fact[2]] = after.body
                rest.pop(0)
            if known := self.region & {fact, regions.opposite(fact)}:
                (true,) = known
                self.block(bodies[true[2]])
            else:
                self.line = s.line
                self.branch((fact[0], fact[1], True), bodies[True], bodies[False])

    def branch(
        self, fact: Fact, here: Sequence[ir.Statement], there: Sequence[ir.Statement]
    ) -> None:
        """What parameters of one shape go through, and the others instead."""
        condition = self.condition(fact[1])
        self.ways(fact, here, there, Typed(condition, True, "bool"))

    def choice(self, s: ir.When, rest: list[ir.Statement]) -> None:
        """What happens for some choices, and what for others; regions that follow are others'."""
        f = regions.fact("when", s.condition)
        otherwise = list(s.otherwise)
        while rest and isinstance(after := rest[0], ir.When) and not after.otherwise:
            both = self.region | {f, regions.fact("when", after.condition)}
            if not regions.impossible(both, self.choices):
                break
            otherwise.append(rest.pop(0))
        if regions.impossible(self.region | {regions.opposite(f)}, self.choices):
            self.block(s.body)
        elif regions.impossible(self.region | {f}, self.choices):
            self.block(otherwise)
        else:
            self.line = s.line
            assert isinstance(s.condition, ir.Hyper | ir.Call)
            self.ways(f, s.body, otherwise, s.condition)

    def when(self, s: ir.When) -> None:
        """What happens where a scalar says so, and what instead."""
        self.new = set()
        condition = self.expr(s.condition)
        if condition.tensor:
            self.held(s, condition)
            return
        condition = self.rename(condition, "happens")
        self.ways(regions.fact("when", s.condition), s.body, s.otherwise, condition)

    def held(self, s: ir.When, condition: Typed) -> None:
        """What happens where sums over all parameters say so: both ways are computed, and one is chosen."""
        condition = self.rename(condition, "happens")
        if self.program.held == s.condition:
            self.holding = str(condition.operand)
        fact = regions.fact("when", s.condition)
        around, before, choosing = self.region, self.now, self.choosing
        self.choosing = True
        ways = []
        for f, body in ((fact, s.body), (regions.opposite(fact), s.otherwise)):
            self.region, self.now = around | {f}, dict(before)
            self.block(body)
            ways.append((self.region, self.now))
        self.region, self.now, self.choosing = around, before, choosing
        for name in {n: None for _, now in ways for n in now if now[n] != before.get(n)}:
            one, other = (self.left(name, region, now) for region, now in ways)
            if one is None or other is None:
                continue  # of use inside its region only
            home = next((x.home for x in self.checked.states if x.name == name), ())
            if not all(regions.static(e) for e, _ in home):
                what = f"{name}, which only some parameters have, in a region that sums decide on"
                raise self.missing(what)
            outside, self.target = (self.step, self.known), name
            self.step, self.known = ([], self.known.new_child()) if home else outside
            values = [self.scalar(self.as_float(x)) for x in (one, other)]
            made = self.rename(self.make("where", [condition, *values], "float"), name)
            if home:  # where the state exists
                inside, (self.step, self.known) = tuple(self.step), outside
                asked = [e if holds else ir.Call("not", (e,)) for e, holds in home]
                whole = functools.reduce(lambda a, b: ir.Call("and", (a, b)), asked)
                assert isinstance(whole, ir.Hyper | ir.Call)
                self.step.append(Branch(whole, inside, (), ((str(made.operand), made.operand, None),)))
            self.now[name] = made

    def ways(
        self,
        fact: Fact,
        here: Sequence[ir.Statement],
        there: Sequence[ir.Statement],
        condition: Typed | ir.Hyper | ir.Call,
    ) -> None:
        """A region of the step, and what happens instead."""
        outside = self.step, self.known, self.region, self.now, self.into
        taken, ways = set(self.taken), []
        pairs = [(fact, here), (regions.opposite(fact), there)]
        static = not isinstance(condition, Typed)
        numbers = [] if isinstance(condition, Typed) else regions.amounts(condition)
        by_value = isinstance(condition, Typed) and not condition.tensor
        before, self.deciding = self.deciding, self.deciding or by_value
        around = self.happening
        for f, body in pairs:
            if isinstance(condition, Typed) and by_value and not around and body is here:
                self.happening = str(condition.operand)
            self.step, self.known = [], outside[1].new_child()
            self.region, self.now = outside[2] | {f}, dict(outside[3])
            # Scalars are computed in any case, but where choices decide: those may need what is None.
            self.into = [] if static and not numbers else outside[4]
            # Ways that exclude each other may use the same names, but for what enters the step.
            scalars = {v.name for v in ir.values_of((*self.plain[0], *self.into))}
            names, self.taken = self.taken, taken | scalars | set(self.exports)
            self.block(body)
            for name, x in self.now.items():
                if x.size and x != outside[3].get(name):
                    self.now[name] = self.entered(x)
            ways.append((self.region, self.step, self.now, self.known, self.into))
            self.taken |= names
        self.step, self.known, self.region, self.now, self.into = outside
        self.happening = around
        changed = {n: None for way in ways for n in way[2] if way[2][n] != self.now.get(n)}
        carried: list[tuple[str, Operand | None, Operand | None]] = []
        kept: dict[str, tuple[Operand | None, Operand | None]] = {}  # scalars that choices decide on
        self.deciding = before
        for name in changed:
            values = [self.left(name, way[0], way[2]) for way in ways]
            some = [x for x in values if x is not None]
            if not any(x.tensor for x in some) and not isinstance(condition, Typed):
                if numbers:
                    what = f"{name}, a number, inside of `with when({numbers[0]} > 0):`; use where"
                    raise self.missing(f"{what}({numbers[0]} > 0, ...)")
                kept.update([self.decided(name, values, taken, ways)])
                continue
            if by_value and len(some) == 2 and not any(x.tensor for x in some):
                self.chosen(name, condition, some)  # type: ignore[arg-type]
                continue
            if by_value and len(some) < 2:
                continue  # of use inside its region only
            if (by_value or static) and len({x.shape for x in some}) > 1:
                raise self.missing(f"two shapes of {name} in two regions")
            operands = []
            for end, way in zip(values, ways, strict=True):
                if static:
                    self.known, self.into = way[3:]
                operands.append(None if end is None else self.entering(self.scalar(end)))
            self.known, self.into = outside[1], outside[4]
            merged = self.merged(f"{name}_next" if name == "theta" else name, name, taken)
            shape = self.either_shape([x.shape for x in some], fact)
            self.now[name] = Typed(merged, True, some[0].type, shape)
            self.types[merged] = some[0].type
            carried.append((merged, *operands))  # type: ignore[arg-type]
        one, other = (tuple(way[1]) for way in ways)
        if not isinstance(condition, Typed):
            after = [ir.made_by(way[4]) for way in ways if not numbers]
            for e in self.exports:
                if any(e in names for names in after):
                    kept.setdefault(e, tuple(e if e in names else None for names in after))  # type: ignore[arg-type]
            if kept:
                first, second = (tuple(way[4]) for way in ways)
                ends = tuple((n, *x) for n, x in kept.items())
                self.into.append(Branch(condition, first, second, ends))
            if carried:
                self.step.append(Branch(condition, one, other, tuple(carried)))
        elif carried:
            asked = self.entering(condition)
            self.step.append(Branch(asked, one, other, tuple(carried), not by_value))

    def merged(self, wanted: str, name: str, taken: set[str]) -> str:
        """What a name is called after regions that may each have used it."""
        state = any(x.name == name for x in self.checked.states)
        if self.choosing and (state or name == "theta"):
            wanted, state = f"{name}_new", False  # as `rename` has it
        mark = f"{name}*" if state else wanted
        if mark in taken:
            wanted = self.fresh(name)
        self.taken |= {mark, wanted}
        return wanted

    def decided(
        self, name: str, values: list[Typed | None], taken: set[str], ways: Sequence[Any]
    ) -> tuple[str, tuple[Operand | None, Operand | None]]:
        """A name of step scope after regions that choices decide on."""
        outside = self.known, self.into
        state = any(s.name == name for s in self.checked.states)
        unlike = state or len({x.type for x in values if x is not None}) > 1
        for i, x in enumerate(values):
            self.known, self.into = ways[i][3:]
            values[i] = x = self.as_float(x) if x is not None and unlike else x
            if x is not None and x.type == "float":
                values[i] = self.scalar(x)  # a literal is a double
        self.known, self.into = outside
        merged = self.fresh(name) if state and self.deciding else self.merged(name, name, taken)
        kind = next(x.type for x in values if x is not None)
        self.now[name], self.types[merged] = Typed(merged, False, kind), kind
        if state and not self.deciding:
            self.export(self.now[name])
        one, other = (None if x is None else x.operand for x in values)
        return merged, (one, other)

    def either_shape(self, given: Sequence[Shape], fact: Fact) -> Shape:
        """The shape of what has the first where a fact holds, and the second where it does not."""
        a, b = (FULL if x == MATRIX else x for x in (given[0], given[-1]))
        shape = shapes.either(a, b) if fact[2] else shapes.either(b, a)
        self.either |= {x: (*fact[:2], True) for x in shape or () if "|" in x}
        return shape or a

    def chosen(self, name: str, condition: Typed, values: list[Typed]) -> None:
        """A name of step scope after regions that a scalar decides on."""
        if name in {s.name for s in self.checked.states}:
            values = [self.as_float(x) for x in values]
        made = self.make("where", [condition, *self.alike(values)], values[0].type)
        self.target = name
        self.now[name] = self.rename(made, name)
        if any(s.name == name and s.scalar for s in self.checked.states) and not self.deciding:
            self.export(self.now[name])

    def left(self, name: str, region: Region, now: dict[str, Typed]) -> Typed | None:
        """What a name is at the end of a region; None for a state that does not exist there."""
        if name in now:
            return now[name]
        if name == "theta":  # stays where it is
            return self.old[name]
        state = next((s for s in self.checked.states if s.name == name), None)
        if state is None or (not state.scalar and self.absent(state, region)):
            return None
        return self.old[name]

    def absent(self, state: State, region: Region) -> bool:
        """Whether a state never exists in a region."""
        home = [(kind, e, holds) for e, holds in state.home for kind in ("case", "when")]
        return regions.exclude(frozenset(home), region, self.choices)

    def condition(self, e: ir.Expr) -> Operand:
        """A condition on a parameter's shape, which is known before anything is computed."""
        match e:
            case ir.Call("matrix" | "rows" | "cols", (), _):
                given: tuple[Operand, ...] = ("g" if self.program.kind == "transform" else self.parameter,)
            case ir.Call(op, args, _) if op in _CONDITIONS:
                given = tuple(self.condition(a) for a in args)
            case Number():
                return e
            case _:
                raise self.missing("a shape that is compared with more than sizes")
        key = (e.op, *map(repr, given))
        if key not in self.known:
            name = self.fresh(_question(e))
            kind: Type = "int" if e.op in ("rows", "cols") else "bool"
            self.step.append(Value(name, e.op, given, kind, line=self.line))
            self.types[name] = kind
            self.known[key] = Typed(name, True, kind)
        return self.known[key].operand

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
                self.when(s)

    def gradient(self, target: str, point: ir.Expr) -> None:
        """One more gradient, at a point that is known by then."""
        if self.program.kind == "transform":
            raise self.missing("a gradient of its own")
        if self.region != EVERYWHERE:
            raise self.missing(f"a gradient inside a region ({target})")
        self.target = f"{target}_point"
        at = self.expr(point)
        if not at.tensor:
            raise self.missing("a gradient at a constant point")
        self.step.append(Value(target, "grad", (at.operand,), "float", spec=True, line=self.line))
        self.given[target] = Given(target, gradient=True)
        self.types[target] = self.types[f"given.{target}"] = "float"
        self.now[target] = Typed(target, True, "float", FULL)

    def oracle(self, e: ir.Call) -> Typed:
        """What the caller knows and gives."""
        if self.program.kind == "transform":
            raise self.missing(f"a further input ({e.text})")
        info = self.checked.info[e.text]
        if info.shape not in (FULL, MATRIX, ()):
            raise self.missing(f"an input of the shape {info.describe()} ({e.text})")
        earlier = self.given.get(e.text)
        when = self.happening if earlier in (None, Given(e.text, when=self.happening)) else ""
        of_all = info.scope == "global"
        if info.shape == () and not of_all:
            raise self.missing(f"an input of one number a parameter ({e.text})")
        self.given[e.text] = Given(e.text, when=when, scalar=of_all)
        name = f"given.{e.text}"
        self.types[name] = "float"
        return Typed(name, True, "float", () if of_all else FULL)

    def meta(self, e: ir.Call) -> Typed:
        """What the caller gives once."""
        if self.program.kind == "transform":
            raise self.missing(f"a meta-parameter ({e.text})")
        sizes = tuple(int(a.value) for a in e.args if isinstance(a, Number))
        self.given[e.text] = Given(e.text, sizes=sizes)
        name = f"given.{e.text}"
        self.types[name] = "float"
        return Typed(name, True, "float", tuple(map(str, sizes)))

    def features(self, e: ir.Call) -> Typed:
        """Tensors side by side, a layer of them, or one of them."""
        if e.op == "entry":
            first = int(e.args[1].value) - 1  # type: ignore[union-attr]
            given = [self.expr(e.args[0]), Typed(Number(first), False, "int")]
            return self.make("entry", given, "float", FULL)
        given = [self.as_float(self.expr(a)) for a in e.args]
        if e.op == "stack":  # which brings literals no dtype
            return self.make("stack", [self.scalar(x) for x in given], "float", shapes.features(len(given)))
        return self.make("dense", given, "float", shapes.features(int(given[0].shape[0])))

    def assign(self, target: str, value: ir.Expr) -> None:
        if isinstance(value, ir.Call) and value.op == "grad":
            self.gradient(target, value.args[0])
            return
        self.target, self.new = target, set()
        made = self.expr(value)
        state = next((s for s in self.checked.states if s.name == target), None)
        if state is not None and state.scalar:
            made = self.make("store", [self.as_float(made)], "float")
            if self.deciding:  # named and kept once it is known what happens
                self.now[target] = made
                return
        elif self.checked.info[target].type == "float":
            made = self.as_float(made)
        if state is not None and not state.scalar and not made.tensor and state.shape == FULL:
            like = Typed(self.parameter, True, "float", FULL)
            made = self.make("fill", [like, made], "float")
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
        plain, self.into, self.known = self.plain, [], self.known.new_child()
        self.plain = self.into, self.known
        for x in carried:
            name = self.fresh(x)
            self.old[x] = Typed(name, False, starts[x].type)
            self.types[name] = starts[x].type
        self.types[s.index] = "int"
        self.block(s.body)
        ends = [(self.old[x].operand, starts[x].operand, self.now[x].operand) for x in carried]
        body = tuple(self.into)
        self.into, self.known, self.plain = outer, outer_known, plain
        if self.into is not plain[0]:
            self.inner |= {str(name) for name, _, _ in ends}
        self.into.append(Repeat(s.index, count.operand, tuple(ends), body))  # type: ignore[arg-type]
        for x in carried:
            self.now[x] = self.old[x]
        self.old = outer_old

    def unrolled(self, s: ir.Loop) -> None:
        if not isinstance(s.count, Number):
            what = f"a loop over tensors, iterate({ascii_expr(s.count)}), whose length is no number"
            raise self.missing(what)
        outer = dict(self.old)
        for k in range(1, int(s.count.value) + 1):
            for x in [x.target for x in ir.statements(s.body) if isinstance(x, ir.Assign)]:
                if x in self.now:
                    self.old[x] = self.now[x]
            self.indices[s.index] = k
            self.block(s.body)
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
                x = self.old[name] if lag else self.now[name]
                return replace(x, shape=self.local(x.shape))
        assert isinstance(e, ir.Call)
        return self.call(e)

    def call(self, e: ir.Call) -> Typed:
        operation = ir.OPERATIONS[e.op]
        if operation.shape in ("matmul", "transpose"):
            return self.product(e.op, [self.expr(a) for a in e.args])
        if e.op in ir.REDUCTIONS:
            return self.reduction(e.op, self.as_float(self.expr(e.args[0])))
        if e.op in ("rows", "cols"):
            of = Typed(self.parameter, True, "float", FULL)
            return self.make(f"size_{e.op}", [of], "float", ())
        if e.op in ("matrix", "vector"):
            raise self.missing(f"where({e.op}, ...) in place of `with case({e.op}):`")
        if e.op == "oracle":
            return self.oracle(e)
        if e.op == "meta":
            return self.meta(e)
        if operation.shape == "features":
            return self.features(e)
        if e.op == "length":
            return self.make("length", [Typed(e.text, False, "float")], "int")
        if e.op in ("eq", "ne") and regions.static(e):
            name, word = regions.asked(e)
            same = self.make("is", [Typed(name, False, "bool"), Typed(Word(word), False, "bool")], "bool")
            return same if e.op == "eq" else self.make("not", [same], "bool")
        if e.op == "floor" and isinstance(e.args[0], ir.Call) and e.args[0].op == "div":
            both = [self.expr(a) for a in e.args[0].args]
            if all(x.type == "int" for x in both):
                return self.make("floordiv", both, "int")
        if e.op == "noise":
            return self.noise(e.text)
        if e.op == "where":
            return self.one_of_two(e)
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
        if operation.result == "float":
            given = [self.as_float(x) for x in given]
        else:
            given = self.alike(given)
        result: Type = "bool" if operation.result == "bool" else "float"
        if operation.result in ("same", "int") and given and given[0].type == "int":
            result = "int"
        return self.make(e.op, given, result)

    def one_of_two(self, e: ir.Call) -> Typed:
        """One of two values."""
        condition = self.expr(e.args[0])
        values = self.alike([self.way(condition, a, i == 0) for i, a in enumerate(e.args[1:])])
        if condition.tensor:
            values = [self.as_float(x) for x in values]
            if not any(x.tensor for x in values):  # they bring the dtype
                values = [self.scalar(x) for x in values]
        return self.make("where", [condition, *values], values[0].type)

    def way(self, condition: Typed, e: ir.Expr, first: bool) -> Typed:
        """A value that may not be chosen; a tensor's quotient is by 1 then.

        What is not chosen has the derivative 0 times that of the quotient, and 0 * inf is NaN: a norm
        of 0 would make NaN of every derivative of the step. What is chosen keeps its bits.
        """
        if not (condition.tensor and isinstance(e, ir.Call) and e.op == "div"):
            return self.expr(e)
        a, b = (self.as_float(self.expr(x)) for x in e.args)
        if b.tensor and not b.size and self.together([condition, b]) == self.local(b.shape):
            one = Typed(Number(1.0), False, "float")
            b = self.make("where", [condition, *((b, one) if first else (one, b))], "float")
        return self.divide(a, b)

    def product(self, op: str, given: Sequence[Typed]) -> Typed:
        """A matrix product, or a matrix whose rows are columns."""
        sizes = [self.local(x.shape) for x in given]
        shape = (sizes[0][0], sizes[1][1]) if op == "matmul" else sizes[0][::-1]
        return self.make(op, given, "float", shape)

    def noise(self, name: str) -> Typed:
        """Standard normal numbers; their source is the noise's place in the program."""
        source = Typed(Number(self.checked.noises.index(name)), False, "int")
        key = self.make("random_key", [Typed(ir.SEED, False, "int"), self.clock, source], "key")
        key = self.rename(key, f"{name}_key")
        return self.rename(self.make("normal", [key, self.now["g"]], "float", FULL), name)

    def reduction(self, op: str, x: Typed) -> Typed:
        """A sum, or what is made of one."""
        match op:
            case _ if op in ir.ROOTS:
                squares = self.make("mul", [x, x], "float")
                return self.make("sqrt", [self.reduction(ir.ROOTS[op], squares)], "float")
            case "global_sum":
                own = self.make("sum", [x], "float", ()) if x.shape else x
                return self.make("global_sum", [own], "float", ())
        rows, cols = self.local(x.shape) if len(self.local(x.shape)) == 2 else MATRIX
        shape = {"row": (rows, "1"), "col": ("1", cols)}.get(op[:3], ())
        return self.make(op, [x], "float", shape)

    def divide(self, a: Typed, b: Typed) -> Typed:
        if self.sizes([a, b]):
            return self.make("div", [a, b], "float")
        smaller = a.tensor and (not b.tensor or self.together([a, b]) != self.local(b.shape))
        if smaller:
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

    def local(self, shape: Shape) -> Shape:
        """A shape in the region at hand, where a matrix has rows and columns."""
        inside = ("case", ir.Call("matrix", ()), True) in self.region
        if inside and shape == FULL:
            return MATRIX
        sizes = []
        for size in shape:
            fact = self.either.get(size)
            if fact in self.region:
                size = size.split("|")[0]
            elif fact is not None and regions.opposite(fact) in self.region:
                size = size.split("|")[1]
            sizes.append(size)
        return tuple(sizes)

    def sizes(self, args: Sequence[Typed]) -> bool:
        """Whether an operation is of rows, columns and numbers alone, and therefore in double."""
        alone = all(a.size or isinstance(a.operand, Number) for a in args)
        return alone and any(a.size for a in args)

    def entered(self, x: Typed) -> Typed:
        """What follows from sizes as it meets tensors: rounded once to the compute dtype."""
        if not x.size:
            return x
        like = Typed(self.parameter, True, "float", FULL)
        return self.make("size_rounded", [replace(x, size=False), like], "float", ())

    def together(self, args: Sequence[Typed]) -> Shape:
        """The shape of an elementwise operation."""
        shape: Shape = ()
        for a in args:
            shape = shapes.broadcast(shape, self.local(a.shape)) or shape
        return shape

    def make(
        self, op: str, args: Sequence[Typed], result: Type, shape: Shape | None = None
    ) -> Typed:
        """The value of an operation; the same operation on the same operands is computed once."""
        size = self.sizes(args)
        if size and op not in _OF_SIZES:
            raise self.missing(f"{op} of rows and columns")
        op = f"size_{op}" if size else op
        args = [self.as_float(a) for a in args] if size else [self.entered(a) for a in args]
        tensor = any(a.tensor for a in args)
        plain = size or op in ir.PLAIN or not tensor
        operands = tuple(a.operand if plain else self.entering(a) for a in args)
        key = (op, tuple(map(repr, operands)), tensor)  # repr: -0.0 is not 0.0
        if key in self.known:
            return self.known[key]
        name = self.fresh(_describe(op, operands) or f"{self.target or 'value'}_part")
        value = Value(name, op, operands, result, line=self.line)
        self.types[name] = result
        shape = self.together(args) if shape is None else shape
        made = Typed(name, tensor, result, shape, size or op in ("size_rows", "size_cols"))
        self.new.add(name)
        if tensor:
            self.step.append(value)
        elif self.into is not self.plain[0] and self.inner.isdisjoint(operands):
            self.plain[0].append(value)
            self.plain[1][key] = made
            return made
        else:
            self.settle(value)
        self.known[key] = made
        return made

    def settle(self, value: Value) -> None:
        """Put a scalar where the statement stands."""
        self.into.append(value)
        if self.into is not self.plain[0]:
            self.inner.add(value.name)

    def entering(self, x: Typed) -> Operand:
        """An operand of a tensor operation: scalars come in through the exports, literals do not."""
        if x.tensor:
            return self.entered(x).operand
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
        block: list[Any] = self.step if x.tensor else self.into
        plain: list[Any] = self.plain[0]
        if not x.tensor and x.operand in self.new and x.operand in ir.made_by(plain[-1:]):
            block = plain
        last = block[-1] if block else None
        if not isinstance(last, Value) or last.name != x.operand or last.spec:
            return x  # another name for what is there already
        state = any(s.name == wanted for s in self.checked.states)
        if self.choosing and (state or wanted == "theta"):
            name = self.fresh(f"{wanted}_new")  # the name is for what is chosen
        elif wanted in ("theta", "point"):
            name = f"{wanted}_next"
        elif state and f"{wanted}*" not in self.taken:
            name = wanted
            self.taken.add(f"{wanted}*")
        else:
            name = self.fresh(wanted)
        value = replace(last, name=name, spec=True)
        block[-1] = value
        if block is plain and plain is not self.into:  # a name belongs to its region
            plain.pop()
            for key in [k for k, v in self.plain[1].items() if v == x]:
                self.known[key] = self.plain[1].pop(key)
            self.settle(value)
        self.inner |= {name} if last.name in self.inner else set()
        self.taken.discard(last.name)
        self.types[name] = self.types.pop(last.name)
        self.exports = [name if e == last.name else e for e in self.exports]
        renamed = replace(x, operand=name)
        for known in self.known.maps:
            known.update({key: renamed for key, value in known.items() if value == x})
        return renamed


_LONGEST = 32
_WORDS = {0.0: "zero", 0.5: "half", 1.0: "one", 2.0: "two", 3.0: "three", 4.0: "four"}


def _question(e: ir.Call) -> str:
    """What to call a condition on a parameter's shape, or a part of one: `rows_gt_cols`."""
    if not e.args:
        return "is_matrix" if e.op == "matrix" else f"{e.op}_of_theta"
    plain = [a.op for a in e.args if isinstance(a, ir.Call) and not a.args]
    return f"_{e.op}_".join(plain) if len(plain) == len(e.args) > 1 else f"{e.op}_of_theta"


def _describe(op: str, args: tuple[Operand, ...]) -> str:
    """What people would call this value: `one_minus_beta1`; empty where that gets too long."""
    words = []
    for a in args:
        if isinstance(a, Word):
            words.append("none" if a.value is None else re.sub(r"\W", "_", a.value))
        elif isinstance(a, Number):
            words.append(_WORDS.get(float(a.value), ""))
        else:
            words.append(a.rpartition(".")[2])
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
        case "is", [x, y]:
            text = f"{x}_is_{y}"
        case "not", [x]:
            text = f"not_{x}"
        case "add", [x, y]:
            text = f"{x}_plus_{y}"
        case "floordiv", [x, y]:
            text = f"{x}_floordiv_{y}"
        case ("power" | "real_power"), [x, y]:
            text = f"{x}_pow_{y}"
        case "neg", [x]:
            text = f"minus_{x}"
        case "to_float", [x]:
            text = f"{x}_float"
        case "sum", [x]:
            text = f"sum_{x}"
        case "mean", [x]:
            text = f"mean_{x}"
        case "size_rounded", [x, _]:
            text = f"{x}_rounded"
        case ("sqrt" | "abs" | "sign" | "floor" | "exp" | "log" | "cos"), [x]:
            text = f"{op}_{x}"
        case _:
            return ""
    return text if len(text) <= _LONGEST else ""


def _without_dead(lowered: Lowered) -> Lowered:
    """The program without values that nothing reads."""
    needed: set[Operand] = {lowered.result, *(o for _, o in lowered.new_states)}
    step = passes.alive(lowered.step, needed)
    exports = tuple(
        e
        for e in lowered.exports
        if f"s.{e}" in needed or e in {s.name for s in lowered.scalar_states}
    )
    needed |= set(exports)
    scalars = passes.alive(lowered.scalars, needed)
    return replace(lowered, step=step, scalars=scalars, exports=exports)
