"""Whether a program makes sense; every message about names, states, shapes, scopes and domains.

In: an `ir.Program`. Out: a `Checked` program with what was inferred about each name. Must not know:
how a program is computed (lower.py), any framework.

Each name gets a type, a scope and a shape. The scope says how often it is computed: **step** (only
clocks and hyperparameters), **global** (a reduction over all parameters), **tensor** (once a
parameter), **element**. A shape is a tuple of symbolic sizes; sizes of 1 broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from generator import ir
from generator.equations import ascii_expr
from generator.errors import SpecError, suggest
from generator.language import RESERVED, reserved

Shape = tuple[str, ...]
FULL: Shape = ("shape",)
MATRIX: Shape = ("rows", "cols")
SHAPES: Mapping[str, Shape] = {
    "full": FULL,
    "row": ("rows", "1"),
    "column": ("1", "cols"),
    "scalar": (),
}
SCOPES = ("step", "global", "tensor", "element")


@dataclass(frozen=True)
class Info:
    """What is known of a value before it is computed."""

    type: Literal["float", "int", "bool"] = "float"
    scope: str = "step"
    shape: Shape = ()

    def describe(self) -> str:
        """The shape in words, for messages."""
        for name, shape in SHAPES.items():
            if shape == self.shape:
                return name
        return "(" + ", ".join(self.shape) + ")"


@dataclass(frozen=True)
class Checked:
    """A program that makes sense, and what was inferred."""

    program: ir.Program
    states: tuple[ir.State, ...]
    info: Mapping[str, Info]
    gradients: int  # how many gradients a step takes
    inputs: tuple[str, ...]  # oracles and noise sources, by name

    @property
    def sharding(self) -> str:
        """What the program needs to know of other shards of a tensor."""
        return _sharding(self.program)


def check(program: ir.Program) -> Checked:
    """Refuse what is wrong with a program, or tell what follows from it."""
    return _Checker(program).run()


_RESULT = {
    "optimizer": ("theta", "t"),
    "wrapper": ("theta", "t"),
    "transform": ("u", "t"),
    "schedule": ("lr", "n"),
}


class _Checker:
    def __init__(self, program: ir.Program) -> None:
        self.program = program
        self.parameters = {p.name: p for p in program.parameters}
        self.clock = "n" if program.kind == "schedule" else "t"
        self.line = program.line
        self.info: dict[str, Info] = {}
        self.defined: dict[str, tuple[int, tuple[int, ...]]] = {}  # name: line, region
        self.region: tuple[int, ...] = ()
        self.loops: list[ir.Loop] = []
        self.matrix = False
        self.gradients = 0
        self.inputs: list[str] = []

    def fail(self, message: str, line: int = 0) -> SpecError:
        return SpecError(self.program.file, line or self.line, message)

    # The whole program ----------------------------------------------------------------------------

    def run(self) -> Checked:
        self.documentation()
        everything = list(ir.statements(self.program.body))
        self.assigned = {s.target: s.line for s in reversed(everything) if isinstance(s, ir.Assign)}
        self.in_loops = {
            s.target
            for loop in everything
            if isinstance(loop, ir.Loop)
            for s in ir.statements(loop.body)
            if isinstance(s, ir.Assign)
        }
        starts = [s for s in everything if isinstance(s, ir.Start)]
        self.starts: dict[str, ir.Start] = {}
        for s in starts:
            self.line = s.line
            if s.target in self.starts:
                first = self.starts[s.target].line
                raise self.fail(f"{s.target}[0] is given twice (line {first}). Keep one.")
            self.starts[s.target] = s
        self.names()
        self.takes_grad = any(
            isinstance(e, ir.Call) and e.op == "grad"
            for s in everything
            for top in ir.expressions(s)
            for e in ir.walk(top)
        )
        for name, s in self.starts.items():
            self.line = s.line
            if name == "theta":
                raise self.fail("theta[0] is the user's. Only read it.")
            if name != "g" and name not in self.assigned:
                at = f"{name}[{self.clock}]"
                raise self.fail(f"{name}[0] is given, but {at} is never defined. Define {at}.")
            self.info[name] = self.start(s.value)
        while True:  # a state's shape follows from its update, which may read the state
            before = dict(self.info)
            self.defined.clear()
            self.gradients, self.inputs = 0, []
            self.block(self.program.body)
            if {n: self.info[n] for n in self.starts} == {n: before[n] for n in self.starts}:
                break
        self.result()
        for relation, self.line in self.program.requires:
            if self.expr(relation).scope != "step":
                raise self.fail("require(...) is about hyperparameters only.")
        if self.program.evaluate is not None:
            self.expr(self.program.evaluate)
        states = tuple(
            ir.State(n, s.value, self.info[n].scope == "step", s.line)
            for n, s in self.starts.items()
            if n not in self.in_loops
        )
        return Checked(self.program, states, self.info, self.gradients, tuple(self.inputs))

    def documentation(self) -> None:
        p = self.program
        if not p.title:
            raise self.fail(f"{p.name} has no docstring. Its first line is the algorithm's name.")
        if not p.source:
            raise self.fail(
                f"{p.name} has no source. Add a line `Source: authors, venue, number of the "
                "algorithm.` to its docstring."
            )
        if not p.class_name.isidentifier():
            raise self.fail(f"{p.class_name!r} is not a class name. Write it like AdamW.")

    def names(self) -> None:
        for name, line in {**self.assigned, **{n: s.line for n, s in self.starts.items()}}.items():
            self.line = line
            if name in self.parameters:
                raise self.fail(f"{name} is a hyperparameter and cannot be assigned. Rename one.")
            allowed = {"theta", "g", "lr"}
            if name in RESERVED - allowed:
                raise self.fail(reserved(name, "a state"))

    def result(self) -> None:
        name, clock = _RESULT[self.program.kind]
        if name not in self.defined:
            self.line = self.program.line
            raise self.fail(
                f"{name}[{clock}] is never defined. A{'n' * (self.program.kind == 'optimizer')} "
                f"{self.program.kind} ends with {name}[{clock}] = ..."
            )
        self.line = self.defined[name][0]
        info = self.info[name]
        if self.program.kind == "schedule" and info.scope != "step":
            raise self.fail("lr[n] depends on a tensor. A schedule knows n and hyperparameters only.")
        if self.program.kind != "schedule" and info.shape not in (FULL, MATRIX, ()):
            raise self.fail(
                f"{name}[t] has the shape {info.describe()}, but a parameter has the shape full."
            )

    # Statements -----------------------------------------------------------------------------------

    def block(self, body: tuple[ir.Statement, ...]) -> None:
        for number, s in enumerate(body):
            self.line = s.line
            match s:
                case ir.Start():
                    if s.target in self.in_loops:
                        self.info[s.target] = self.expr(s.value)
                        self.defined[s.target] = (s.line, self.region)
                case ir.Assign():
                    self.assign(s)
                case ir.Loop():
                    self.loop(s, number)
                case ir.When():
                    self.condition(s.condition, "when")
                    self.inside(s.body, (number, 0))
                    self.inside(s.otherwise, (number, 1))
                case ir.Case():
                    self.condition(s.condition, "case")
                    outer, self.matrix = self.matrix, self.matrix or s.condition != ir.Call(
                        "vector", ()
                    )
                    self.inside(s.body, (number, 2))
                    self.matrix = outer

    def inside(self, body: tuple[ir.Statement, ...], region: tuple[int, ...]) -> None:
        outer, self.region = self.region, (*self.region, *region)
        self.block(body)
        self.region = outer

    def condition(self, e: ir.Expr, word: str) -> None:
        info = self.expr(e)
        if info.type != "bool" and not (isinstance(e, ir.Hyper) and word == "when"):
            raise self.fail(f"{word}(...) asks for a condition, not for {ascii_expr(e)}.")
        if info.scope in ("tensor", "element") and word == "when":
            raise self.fail(
                "when(...) decides for all parameters at once: its condition is of t, "
                "hyperparameters or a global reduction. Use where(condition, a, b) for values."
            )

    def loop(self, s: ir.Loop, number: int) -> None:
        count = self.expr(s.count)
        if count.type != "int" or count.scope != "step":
            raise self.fail("iterate(...) counts to an integer of hyperparameters.")
        self.loops.append(s)
        while True:
            before = dict(self.info)
            for inner in ir.statements(s.body):
                if isinstance(inner, ir.Assign) and inner.target not in self.starts:
                    self.defined.pop(inner.target, None)
            self.inside(s.body, (number, 3))
            if before == self.info:
                break
        self.loops.pop()
        self.line = s.line

    def assign(self, s: ir.Assign) -> None:
        name = s.target
        if name in self.defined and not (self.loops and name in self.starts):
            line, region = self.defined[name]
            if region == self.region[: len(region)] and line != s.line:
                raise self.fail(
                    f"{name}[{self.clock}] is defined twice (line {line}). Each name is defined "
                    "once a step; give one of them another name."
                )
        info = self.expr(s.value)
        if name == "g" and not (isinstance(s.value, ir.Call) and s.value.op == "grad"):
            raise self.fail("g[t] is the gradient. Only g[t] = grad(point) defines it.")
        if name in self.starts:
            old = self.info[name]
            info = Info(info.type, _wider(old.scope, info.scope), self.joined(old, info, s.value))
            if info.type == "int" and old.type == "float":
                info = replace(info, type="float")
            if info.type == "bool":
                raise self.fail(f"{name} keeps a condition. Keep where({name}, 1, 0) instead.")
        self.info[name] = info
        self.defined[name] = (s.line, self.region)

    def joined(self, old: Info, new: Info, value: ir.Expr) -> Shape:
        if old.shape == () or old.shape == new.shape:
            return new.shape
        if new.shape == ():
            return old.shape
        raise self.fail(
            f"{ascii_expr(value)} has the shape {new.describe()}, but its start has the shape "
            f"{old.describe()}."
        )

    def start(self, value: ir.Expr) -> Info:
        """What a state begins as: a number, a hyperparameter, theta[0] or first(g)."""
        match value:
            case ir.Number():
                return Info("float")
            case ir.Call("neg", (ir.Number(),), _):
                return Info("float")
            case ir.Hyper(name) if not self.parameters[name].domain.many:
                return Info("float")
            case ir.Ref("theta", 1) | ir.Call("first", (), _):
                return Info("float", "element", FULL)
        if any(name == s for s in self.in_loops for name in [self.line_target()]):
            return Info("float")
        raise self.fail(
            f"a state starts as a number, a hyperparameter, theta[0] or first(g), not as "
            f"{ascii_expr(value)}."
        )

    def line_target(self) -> str:
        return next(n for n, s in self.starts.items() if s.line == self.line)

    # Expressions ----------------------------------------------------------------------------------

    def expr(self, e: ir.Expr) -> Info:
        match e:
            case ir.Number(value):
                return Info("int" if isinstance(value, int) else "float")
            case ir.Hyper(name):
                domain = self.parameters[name].domain
                if domain.type in ("bool", "choice"):
                    return Info("bool")
                return Info("int" if domain.type == "int" else "float")
            case ir.Clock(name):
                return self.clocked(name)
            case ir.Item(name, index):
                return self.item(name, index)
            case ir.Ref():
                return self.ref(e)
        assert isinstance(e, ir.Call)
        if e.op == "word":
            raise self.fail(f"{e.text!r} is a word; only compare a choice with it: equal(x, 'a').")
        operation = ir.OPERATIONS.get(e.op)
        if operation is None:
            known = set(ir.OPERATIONS) | set(self.parameters)
            raise self.fail(f"unknown function {e.op}.{suggest(e.op, known)}")
        if e.op in ("eq", "ne") and any(isinstance(a, ir.Call) and a.op == "word" for a in e.args):
            return self.choice(e)
        given = [self.expr(a) for a in e.args]
        match e.op:
            case "grad":
                self.gradients += 1
                return Info("float", "element", FULL)
            case "oracle" | "noise":
                self.inputs.append(e.text)
                return Info("float", "element", FULL)
            case "first":
                raise self.fail("first(g) is only the start of a state: g[0] = first(g).")
            case "update":
                if self.program.kind != "wrapper":
                    raise self.fail("update(g[t]) belongs to a wrapper. Decorate with @wrapper.")
                return Info("float", "element", FULL)
        self.arguments(e, operation, given)
        scope = "step"
        for info in given:
            scope = _wider(scope, info.scope)
        shape = self.shape(e, operation, given)
        if e.op in ir.GLOBAL:
            scope = "global"
        elif e.op in ("rows", "cols", "matrix", "vector"):
            scope = "tensor"
        elif e.op in ir.REDUCTIONS:
            scope = "tensor"
        elif shape == () and scope == "element":
            scope = "tensor"
        if not operation.tensors and scope != "step":
            raise self.fail(
                f"{e.op} of a tensor is not exact: libraries differ by 1 to 3 ULP. It works on t "
                "and hyperparameters."
            )
        kind = self.type(e, operation, given)
        if e.op == "power" and kind == "real" and scope != "step":
            raise self.fail(
                f"{ascii_expr(e)} raises a tensor to a power that is not an integer. "
                "Use sqrt(x), or an integer."
            )
        return Info("float" if kind == "real" else kind, scope, shape)  # type: ignore[arg-type]

    def clocked(self, name: str) -> Info:
        indices = [loop.index for loop in self.loops]
        if name not in (self.clock, *indices):
            if name == "n":
                raise self.fail("n counts finished steps in schedules. Here the step is t.")
            if name == "t":
                raise self.fail("t is the step of an optimizer. A schedule counts with n.")
            raise self.fail(f"{name} is only known inside its loop.")
        return Info("int")

    def item(self, name: str, index: ir.Expr) -> Info:
        if self.expr(index).type != "int":
            raise self.fail(f"{name}[...] is indexed by integers 1, 2, ...")
        domain = self.parameters[name].domain
        return Info("int" if domain.type == "int" else "float")

    def choice(self, e: ir.Call) -> Info:
        hyper, word = e.args if isinstance(e.args[0], ir.Hyper) else e.args[::-1]
        if not isinstance(hyper, ir.Hyper) or not isinstance(word, ir.Call):
            raise self.fail("only a choice hyperparameter is compared with a word.")
        choices = self.parameters[hyper.name].domain.choices
        if word.text not in choices:
            listed = ", ".join(map(repr, choices))
            raise self.fail(f"{word.text!r} is not one of {hyper.name}'s choices: {listed}.")
        return Info("bool")

    def ref(self, e: ir.Ref) -> Info:
        full = Info("float", "element", MATRIX if self.matrix else FULL)
        name, at = e.name, f"{e.name}[{self.clock}{'-1' if e.lag else ''}]"
        if name == "theta" and e.lag == 1 and self.program.kind != "schedule":
            return full
        if name == "g" and self.program.kind != "schedule":
            if e.lag == 0 and "g" not in self.assigned:
                return full
            if e.lag == 1 and "g" in self.starts:
                return full
        if e.lag == 1:
            if name in self.starts:
                return self.info[name]
            if name in self.assigned or name == "g":
                raise self.fail(
                    f"{at} is read but {name}[0] is never given. Add `{name}[0] = 0` to make "
                    f"{name} a state."
                )
        elif name in self.defined:
            return self.info[name]
        elif name in self.assigned:
            raise self.fail(
                f"{at} is used before it is defined (line {self.assigned[name]}). "
                "Move the definition up."
            )
        known = set(self.assigned) | set(self.starts) | {"theta", "g"}
        raise self.fail(f"{at} is never defined.{suggest(name, known - {name})}")

    def arguments(self, e: ir.Call, operation: ir.Operation, given: list[Info]) -> None:
        logical = e.op in ("and", "or", "not")
        for position, (a, info) in enumerate(zip(e.args, given, strict=True)):
            condition = logical or (e.op == "where" and position == 0)
            if condition and info.type != "bool":
                raise self.fail(f"{e.op} asks for a condition, not for {ascii_expr(a)}.")
            if not condition and info.type == "bool" and operation.shape == "elementwise":
                raise self.fail(
                    f"{ascii_expr(a)} is a condition, not a number. Use where({ascii_expr(a)}, 1, 0)."
                )

    def type(self, e: ir.Call, operation: ir.Operation, given: list[Info]) -> str:
        if e.op == "power":
            return "float" if given[1].type == "int" else "real"
        if e.op == "floor" and isinstance(e.args[0], ir.Call) and e.args[0].op == "div":
            if all(self.expr(a).type == "int" for a in e.args[0].args):
                return "int"
        if e.op == "mod" and any(i.type != "int" for i in given):
            raise self.fail("% works on integers: t, n, counts.")
        if operation.result == "same":
            numbers = given[1:] if e.op == "where" else given
            return "int" if all(i.type == "int" for i in numbers) else "float"
        return operation.result

    def shape(self, e: ir.Call, operation: ir.Operation, given: list[Info]) -> Shape:
        match operation.shape:
            case "elementwise":
                return self.broadcast(e, given)
            case "reduce" | "size" | "input":
                return ()
            case "rows" | "cols":
                self.two_axes(e, given[0])
                return ("rows", "1") if operation.shape == "rows" else ("1", "cols")
            case "transpose":
                self.two_axes(e, given[0])
                return given[0].shape[::-1]
        self.two_axes(e, given[0])
        self.two_axes(e, given[1])
        left, right = given[0].shape, given[1].shape
        if left[1] != right[0]:
            raise self.fail(
                f"{ascii_expr(e.args[0])} of shape ({', '.join(left)}) cannot be multiplied by "
                f"{ascii_expr(e.args[1])} of shape ({', '.join(right)}): {left[1]} is not {right[0]}."
            )
        return (left[0], right[1])

    def two_axes(self, e: ir.Call, info: Info) -> None:
        if len(info.shape) != 2:
            raise self.fail(
                f"{e.op} works on rows and columns, which {ascii_expr(e.args[0])} has only inside "
                "`with case(matrix):`."
            )

    def broadcast(self, e: ir.Call, given: list[Info]) -> Shape:
        shape: Shape = ()
        owner: ir.Expr = e
        for a, info in zip(e.args, given, strict=True):
            if info.shape == () or info.shape == shape:
                continue
            if shape == ():
                shape, owner = info.shape, a
                continue
            if {shape, info.shape} == {FULL, MATRIX}:
                shape = MATRIX
                continue
            sizes = []
            for x, y in zip(shape, info.shape, strict=False):
                if x != y and "1" not in (x, y):
                    break
                sizes.append(y if x == "1" else x)
            if len(sizes) != max(len(shape), len(info.shape)):
                raise self.fail(
                    f"{ascii_expr(owner)} of shape {_shown(shape)} and {ascii_expr(a)} of shape "
                    f"{_shown(info.shape)} do not fit together in {ascii_expr(e)}."
                )
            shape = tuple(sizes)
        return shape


def _shown(shape: Shape) -> str:
    return Info(shape=shape).describe()


def _wider(a: str, b: str) -> str:
    return max(a, b, key=SCOPES.index)


def _sharding(program: ir.Program) -> str:
    used = {
        e.op
        for s in ir.statements(program.body)
        for top in ir.expressions(s)
        for e in ir.walk(top)
        if isinstance(e, ir.Call)
    }
    if "matmul" in used:
        return "the whole matrix"
    if used & {"row_mean", "row_sum", "col_mean", "col_sum"}:
        return "all-reduces of rows and columns"
    if used & ir.REDUCTIONS:
        return "an all-reduce of scalars"
    return "nothing: elementwise"
