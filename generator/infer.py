"""What an expression is, where it stands: its type, its scope, its shape, or why it makes no sense.

In: expressions of an `ir.Program`, and what is known at the statement around them. Out: `Info`, or a
`SpecError`. Must not know: how statements follow each other (check.py), how anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

from generator import ir, regions, sample, shapes
from generator.equations import Ascii
from generator.errors import SpecError, brief, suggest
from generator.language import LARGEST
from generator.regions import EVERYWHERE, Fact, Region
from generator.shapes import FULL, MATRIX, SHAPES, Shape

SCOPES = ("step", "global", "tensor", "element")
_POWERS = 64  # each is written out in products; beyond, hardly a float is left that does not overflow


@dataclass(frozen=True)
class Info:
    """What is known of a value before it is computed."""

    type: Literal["float", "int", "bool"] = "float"
    scope: str = "step"
    shape: Shape = ()

    def describe(self) -> str:
        """The shape in words, for messages."""
        return shapes.describe(self.shape)


_SIGNS = {"and": "&", "or": "|", "not": "~", "mod": "%", "floordiv": "//"}
TENSORS = {"grad", "oracle", "noise", "update", "matrix", "vector", "rows", "cols", "first"}
TENSORS |= {"meta", "stack", "dense", "entry"}
SIZES = {"matrix", "vector", "rows", "cols"}


@dataclass(frozen=True)
class Definition:
    """One place where a name is defined."""

    line: int
    region: Region
    info: Info


class Inference:
    """What is known of a program at one of its statements, and what follows for expressions."""

    def __init__(self, program: ir.Program) -> None:
        self.program = program
        self.parameters = {p.name: p for p in program.parameters}
        self.clock = "n" if program.kind == "schedule" else "t"
        self.line = program.line
        self.words = Ascii(program)
        self.choices = regions.choices(program)
        # What the statements declare:
        self.starts: dict[str, ir.Start] = {}
        self.home: dict[str, Region] = {}  # where a state exists
        self.assigned: dict[str, int] = {}  # the line of the first definition
        self.loop_of: dict[str, ir.Loop] = {}
        # What is known at the statement that is looked at:
        self.known: dict[str, list[Definition]] = {}
        self.loops: list[ir.Loop] = []
        self.region: Region = EVERYWHERE
        self.decided = "step"  # the widest scope of the conditions around the statement
        # What is inferred:
        self.info: dict[str, Info] = {}
        self.either: dict[str, Fact] = {}  # the condition behind each size "a|b"
        self.points: list[ir.Expr] = []
        self.updates = 0
        self.reads_g = False
        self.inputs: dict[str, ir.Expr] = {}
        self.raises = False  # whether a power is left to a function of that name
        self.strict = False

    def fail(self, message: str, line: int = 0) -> SpecError:
        """The refusal, at the statement that is looked at or at a line."""
        return SpecError(self.program.file, line or self.line, message)

    def text(self, e: ir.Expr) -> str:
        """An expression as it is written at this statement."""
        return self.words.expr(e)

    # Expressions ----------------------------------------------------------------------------------

    def expr(self, e: ir.Expr) -> Info:
        """What an expression is."""
        match e:
            case ir.Number(value):
                return Info("int" if isinstance(value, int) else "float")
            case ir.Hyper(name):
                return self.hyper(name)
            case ir.Clock(name):
                return self.clocked(name)
            case ir.Item(name, index):
                return self.item(name, index)
            case ir.Ref():
                return self.ref(e)
        assert isinstance(e, ir.Call)
        return self.call(e)

    def call(self, e: ir.Call) -> Info:
        """What an operation gives."""
        operation = ir.OPERATIONS.get(e.op)
        if operation is None or e.op == "word":
            if e.op == "word":
                raise self.fail(
                    f"{e.text!r} is a word. Compare a choice with it: equal(x, {e.text!r})."
                )
            known = set(ir.OPERATIONS) | set(self.parameters)
            raise self.fail(f"unknown function {e.op}.{suggest(e.op, known) or ' Write it out.'}")
        if e.op in TENSORS:
            self.tensors_only(f"{e.op}(...)" if e.op not in SIZES else e.op)
        match e.op:
            case "eq" | "ne" if any(is_call(a, "word") for a in e.args):
                return self.choice(e)
            case "grad" | "update":
                raise self.fail(
                    f"{e.op}(...) stands alone on its right side. Give it a line: h[t] = {self.text(e)}."
                )
            case "oracle" | "noise":
                return self.input(e)
            case "meta":
                return self.number_given(e)
            case "stack":
                return self.stack(e)
            case "dense":
                return self.dense(e)
            case "entry":
                return self.entry(e)
            case "first":
                raise self.fail("first(g) is only the start of a state. Write g[0] = first(g).")
            case "rows" | "cols" if not self.matrix:
                raise self.fail(
                    "rows and cols exist only inside `with case(matrix):`. Move it there."
                )
            case "rows" | "cols" | "matrix" | "vector":
                return Info("int" if e.op in ("rows", "cols") else "bool", "tensor")
            case "call":
                return self.schedule(e)
            case "length":
                self.given(e.text)
        given = [self.expr(a) for a in e.args]
        self.arguments(e, operation, given)
        self.finite(e)
        self.integers(e, given)
        scope = "step"
        for info in given:
            scope = wider(scope, info.scope)
        shape = self.shape(e, operation, given)
        if e.op in ir.GLOBAL:
            scope = "global"
        elif e.op in ir.REDUCTIONS or (shape == () and scope == "element"):
            scope = "tensor"
        if not operation.tensors and scope != "step":
            if e.op in ("mod", "floordiv"):
                raise self.fail(
                    f"{_SIGNS[e.op]} works on integers, not on tensors. Use t, n and counts."
                )
            raise self.fail(
                f"{e.op} of a tensor is not exact: libraries differ by 1 to 3 ULP. Use it on t and "
                "hyperparameters only."
            )
        return Info(self.type(e, operation, given), scope, shape)

    def finite(self, e: ir.Call) -> None:
        """Refuse what literals alone make NaN or infinite, and every division by 0."""
        if e.op == "div" and _value(e.args[1]) == 0:
            raise self.fail(f"{self.text(e)} divides by 0. Write the value that is meant.")
        value = _value(e)
        if isinstance(value, Real) and not math.isfinite(value):
            raise self.fail(f"{self.text(e)} is no finite number. Write the value that is meant.")

    def integers(self, e: ir.Call, given: list[Info]) -> None:
        """Refuse integers that JAX has no room for, where nothing makes them floats."""
        if any(info.type == "float" for info in given):
            return
        for a in e.args:
            if isinstance(a, ir.Number) and not -LARGEST <= a.value <= LARGEST:
                what = f"{brief(a.value)} is beyond 2**31 - 1, where integers end."
                raise self.fail(f"{what} Write a float, such as 1e10.")

    def tensors_only(self, what: str) -> None:
        """Refuse what a schedule cannot know."""
        if self.program.kind == "schedule":
            raise self.fail(
                f"{what} is about tensors, and a schedule knows n and hyperparameters only. Remove it."
            )

    def hyper(self, name: str) -> Info:
        """A hyperparameter, read as a number or a condition."""
        domain = self.parameters[name].domain
        if domain.many:
            raise self.fail(f"{name} is a tuple. Read one entry: {name}[1].")
        if domain.type == "schedule":
            raise self.fail(f"{name} is a schedule. Say at which step: {name}({self.clock}).")
        if domain.type == "choice":
            word = domain.choices[0]
            raise self.fail(f"{name} is a choice. Compare it with a word: equal({name}, {word!r}).")
        self.given(name)
        return Info("int" if domain.type == "int" else "bool" if domain.type == "bool" else "float")

    def given(self, name: str) -> None:
        """Refuse to read what may be None."""
        none = ir.Call("eq", (ir.Hyper(name), ir.Call("word", (), "None")))
        possible = not regions.impossible(self.region | {("when", none, True)}, self.choices)
        if self.parameters[name].domain.optional and possible:
            raise self.fail(
                f"{name} may be None here. Read it inside `with when(~equal({name}, None)):`."
            )

    def clocked(self, name: str) -> Info:
        """A clock, or a loop's index."""
        if name not in (self.clock, *(loop.index for loop in self.loops)):
            if name == "n":
                raise self.fail(
                    "n counts finished steps in schedules. Write t, which is the step here."
                )
            if name == "t":
                raise self.fail(
                    "t is the step of an optimizer. Write n, the finished steps, in a schedule."
                )
            raise self.fail(f"{name} is known only inside its loop. Use the loop's count.")
        return Info("int")

    def item(self, name: str, index: ir.Expr) -> Info:
        """One entry of a tuple hyperparameter."""
        domain = self.parameters[name].domain
        self.given(name)
        at = self.expr(index)
        if at.type != "int" or at.scope != "step":
            raise self.fail(f"{name}[{self.text(index)}] is no entry. Index by integers 1, 2, ...")
        if isinstance(index, ir.Number) and index.value < 1:
            raise self.fail(f"{name}[{index.value}] is no entry. Write {name}[1] for the first.")
        if domain.type == "schedule":
            entry = f"{name}[{self.text(index)}]"
            raise self.fail(f"{entry} is a schedule. Say at which step: {entry}({self.clock}).")
        if domain.type == "choice":
            raise self.fail(f"{name} has words for entries, which cannot be read. Use one choice.")
        return Info("int" if domain.type == "int" else "bool" if domain.type == "bool" else "float")

    def schedule(self, e: ir.Call) -> Info:
        """A schedule hyperparameter at a step."""
        called, step = e.args
        name = called.name if isinstance(called, ir.Hyper | ir.Item) else ""
        if not name or self.parameters[name].domain.type != "schedule":
            raise self.fail(
                f"{self.text(called)} is not a schedule. Declare it: tuple[Schedule, ...]."
            )
        self.given(name)
        if isinstance(called, ir.Item) and self.expr(called.index).type != "int":
            raise self.fail(f"{self.text(called)} is no entry. Index by integers 1, 2, ...")
        if self.expr(step).type != "int":
            raise self.fail(
                f"a schedule is asked at an integer step, not at {self.text(step)}. Use // for /."
            )
        return Info("float")

    def choice(self, e: ir.Call) -> Info:
        """Whether a choice is a word, or an option None."""
        hyper, word = e.args if isinstance(e.args[0], ir.Hyper) else e.args[::-1]
        if not isinstance(hyper, ir.Hyper) or not isinstance(word, ir.Call):
            raise self.fail(
                "only a choice hyperparameter is compared with a word. Compare numbers."
            )
        domain = self.parameters[hyper.name].domain
        if word.text == "None":
            if not domain.optional:
                raise self.fail(
                    f"{hyper.name} is never None. Annotate it Optional[...], or remove this."
                )
        elif domain.type != "choice":
            raise self.fail(
                f"{hyper.name} is {domain.phrase}, not a word. Compare it with a number."
            )
        elif word.text not in domain.choices:
            listed = " or ".join(map(repr, domain.choices))
            raise self.fail(f"{word.text!r} is not one of {hyper.name}'s choices. Use {listed}.")
        return Info("bool")

    def input(self, e: ir.Call) -> Info:
        """An oracle or a noise source, whose shape and scope are words; or a meta-parameter."""
        if e.text in self.assigned or e.text in self.parameters:
            raise self.fail(f"{e.text} is the name of an input, too. Rename one of them.")
        self.inputs[e.text] = e
        if e.op == "meta":
            return Info("float", "global")
        *sizes, scope = [a.text for a in e.args if isinstance(a, ir.Call)] or ["full", "tensor"]
        shape = SHAPES[sizes[0]] if len(sizes) == 1 else tuple(sizes)
        if shape in (FULL, MATRIX):
            info = self.full()
        else:
            info = Info("float", "element" if shape and scope == "tensor" else scope, shape)
        self.info[e.text] = replace(info, shape=FULL) if info.shape == MATRIX else info
        return self.here(info, f"the input {e.text}")

    # Features -------------------------------------------------------------------------------------

    def meta(self, e: ir.Expr) -> Shape | None:
        """The sizes of a meta-parameter; None for anything else."""
        if not isinstance(e, ir.Call) or e.op != "meta":
            return None
        self.input(e)
        sizes = tuple(str(a.value) for a in e.args if isinstance(a, ir.Number))
        self.info[e.text] = Info("float", "global", sizes)
        return sizes

    def number_given(self, e: ir.Call) -> Info:
        """A meta-parameter where it is read by itself, which one without axes can be."""
        sizes = self.meta(e)
        if sizes:
            raise self.fail(
                f"{e.text} has the shape {_sizes(sizes)} and stands in dense(weights, bias, x) only. "
                "Declare a number with ()."
            )
        return self.info[e.text]

    def stack(self, e: ir.Call) -> Info:
        """Tensors and numbers side by side."""
        given = [self.expr(a) for a in e.args]
        for a, info in zip(e.args, given, strict=True):
            if info.type == "bool" or info.shape not in (FULL, MATRIX, ()):
                what = "a condition" if info.type == "bool" else f"of shape {info.describe()}"
                raise self.fail(
                    f"stack(...) puts tensors shaped like theta side by side, and numbers; {self.text(a)} "
                    f"is {what}. Remove it, or make it of shape full."
                )
        if self.strict and all(info.shape == () for info in given):
            raise self.fail(
                f"{self.text(e)} has numbers only. Give stack(...) a tensor, such as g[t], among them."
            )
        return Info("float", "element", shapes.features(len(given)))

    def dense(self, e: ir.Call) -> Info:
        """A layer: what it is of has as many features as its weights have columns."""
        weights, bias, x = e.args
        of, info = self.text(e), self.expr(x)
        both = self.meta(weights), self.meta(bias)
        for a, sizes, axes, example in zip((weights, bias), both, (2, 1), ("(16, 8)", "(16,)"), strict=True):
            if sizes is None or len(sizes) != axes:
                its = "is no meta-parameter" if sizes is None else f"has the shape {_sizes(sizes)}"
                which = "weights, of two axes" if axes == 2 else "bias, of one axis"
                raise self.fail(
                    f"{of} takes a meta-parameter for its {which}; {self.text(a)} {its}. "
                    f'Declare it: {"W" if axes == 2 else "b"} = meta("...", {example}).'
                )
        (out, into), (offset,) = both  # type: ignore[misc]
        count = shapes.count_of(info.shape)
        if not count and (self.strict or info.shape):
            raise self.fail(
                f"{of} is of features, which {self.text(x)} of shape {info.describe()} has none of. "
                "Put them side by side with stack(...)."
            )
        if count and str(count) != into:
            raise self.fail(
                f"{self.text(weights)} of shape {_sizes((out, into))} takes {into} features, but "
                f"{self.text(x)} has {count}. Declare it with ({out}, {count})."
            )
        if offset != out:
            raise self.fail(
                f"{self.text(weights)} of shape {_sizes((out, into))} gives {out} features, but "
                f"{self.text(bias)} has {offset}. Declare it with ({out},)."
            )
        return Info("float", "element", shapes.features(int(out)))

    def entry(self, e: ir.Call) -> Info:
        """One feature."""
        x, k = e.args
        info, text = self.expr(x), self.text(e)
        count = shapes.count_of(info.shape)
        if not isinstance(k, ir.Number) or not isinstance(k.value, int) or k.value < 1:
            raise self.fail(f"{text} counts features from 1. Write entry({self.text(x)}, 1) for the first.")
        if not count and (self.strict or info.shape):
            raise self.fail(
                f"{text} is of features, which {self.text(x)} of shape {info.describe()} has none of. "
                f"Write {self.text(x)} alone."
            )
        if count and k.value > count:
            what = f"{self.text(x)} has {count} features and no entry {k.value}."
            raise self.fail(f"{what} Write a smaller one.")
        return self.full()

    @property
    def matrix(self) -> bool:
        """Whether parameters are known to have rows and columns."""
        return ("case", ir.Call("matrix", ()), True) in self.region

    def full(self) -> Info:
        """A value that is shaped like the parameter."""
        return Info("float", "element", MATRIX if self.matrix else FULL)

    def here(self, info: Info, at: str) -> Info:
        """What is known of a value in this region."""
        if self.matrix and info.shape == FULL:
            return replace(info, shape=MATRIX)
        if shapes.count_of(info.shape):
            return info
        if not self.matrix and info.shape not in (FULL, ()):
            raise self.fail(
                f"{at} has rows and columns, which exist only inside `with case(matrix):`. Move it there."
            )
        sizes = []
        for x in info.shape:
            fact = self.either.get(x)
            if fact in self.region:
                x = x.split("|")[0]
            elif fact is not None and regions.opposite(fact) in self.region:
                x = x.split("|")[1]
            sizes.append(x)
        return replace(info, shape=tuple(sizes))

    def ref(self, e: ir.Ref) -> Info:
        """A name at a time."""
        name, at = e.name, self.text(e)
        if name in ("theta", "g"):
            self.tensors_only(at)
            self.reads_g |= name == "g"
            own = e.lag == 1 if name == "theta" else e.lag == 0 and "g" not in self.assigned
            if own or (name == "g" and e.lag == 1 and "g" in self.starts):
                return self.full()
        if e.lag == 1:
            return self.before(name, at)
        return self.current(name, at)

    def before(self, name: str, at: str) -> Info:
        """`x[t-1]`, or `x[k-1]` in a loop."""
        if name not in self.starts:
            if name in self.assigned or name == "g":
                value = "first(g)" if name == "g" else "0"
                state = "a state" if name not in self.loop_of else "known before the loop"
                raise self.fail(
                    f"{at} is read but {name}[0] is never given. Add `{name}[0] = {value}` to make "
                    f"{name} {state}."
                )
            raise self.undefined(name, at)
        if name in self.loop_of:
            if name not in self.known:
                raise self.fail(
                    f"{at} is read before {name}[0] is given (line {self.starts[name].line}). Move "
                    "the start above the loop."
                )
        else:
            self.covered(name, at, [self.home[name]], self.starts[name].line)
        return self.here(self.info[name], at)

    def current(self, name: str, at: str) -> Info:
        """`x[t]`, `x[k]` in a loop, or what a loop ended with."""
        definitions = self.known.get(name, [])
        if not definitions:
            if (
                name in self.assigned
                and name in self.loop_of
                and self.loop_of[name] not in self.loops
            ):
                raise self.fail(f"{at} is read before its loop. Move the loop up.")
            if self.assigned.get(name) == self.line:
                raise self.fail(
                    f"{at} is used in its own definition. Write {self.text(ir.Ref(name, 1))}."
                )
            if name in self.assigned:
                raise self.fail(
                    f"{at} is used before it is defined (line {self.assigned[name]}). "
                    "Move the definition up."
                )
            raise self.undefined(name, at)
        loop = self.loop_of.get(name)
        if loop is not None and loop not in self.loops and name not in self.starts:
            raise self.fail(
                f"{at} is read after its loop, but {name}[0] is never given. Add `{name}[0] = ...` above "
                "the loop."
            )
        if loop in self.loops and name in self.starts and len(definitions) == 1:
            raise self.fail(
                f"{at} is used before it is defined (line {self.assigned[name]}). Move the definition up."
            )
        places = [d.region for d in definitions]
        if name in self.starts or name == "theta":  # keeps its value where a `when` does not happen
            places = [frozenset(f for f in place if f[0] == "case") for place in places]
            places = [place | self.home.get(name, EVERYWHERE) for place in places]
        self.covered(name, at, places, definitions[-1].line)
        possible = [d for d in definitions if not regions.exclude(d.region, self.region, self.choices)]
        if name in self.starts or len(possible) == len(definitions):
            return self.here(self.info[name], at)
        return self.here(self.merged(name, possible), at)

    def covered(self, name: str, at: str, places: list[Region], line: int) -> None:
        """Refuse a name that is not defined wherever it is read."""
        gap = regions.gap(self.region, places, self.choices)
        if gap is None:
            return
        facts = sorted(gap - self.region, key=lambda f: (len(repr(f)), repr(f)))
        where = " and ".join(map(self.place, facts))
        if name in self.starts and self.home[name] - self.region:
            raise self.fail(
                f"{at} is read in {where}, but {name} exists only in another region (line {line}). "
                f"Read it there, or move {name}[0] out of it."
            )
        remedy = "Define it there, too"
        if any(kind == "when" for kind, _, _ in facts):
            remedy += f", or give {name}[0] to keep the last value"
        elif [condition for _, condition, _ in facts] == [ir.Call("matrix", ())]:
            other = "vector" if facts[0][2] else "matrix"
            remedy += f", or write require({other}) if there are no others"
        raise self.fail(f"{at} is defined in line {line}, but not in {where}. {remedy}.")

    def place(self, fact: Fact) -> str:
        """A region as people write it."""
        kind, condition, holds = fact
        if kind == "when" and not holds:
            return f"the otherwise() of when({self.text(condition)})"
        return f"{kind}({self.text(condition if holds else regions.contrary(condition))})"

    def undefined(self, name: str, at: str) -> SpecError:
        """The refusal of a name that nothing defines."""
        known = set(self.assigned) | set(self.starts) | {"theta", "g"}
        hint = suggest(name, known - {name}) or f" Define {at.split('[')[0]}[{self.clock}] above."
        return self.fail(f"{at} is never defined.{hint}")

    def arguments(self, e: ir.Call, operation: ir.Operation, given: list[Info]) -> None:
        """Conditions where conditions belong, numbers where numbers do."""
        logical = e.op in ("and", "or", "not")
        for position, (a, info) in enumerate(zip(e.args, given, strict=True)):
            condition = logical or (e.op == "where" and position == 0)
            if condition and info.type != "bool":
                word = _SIGNS.get(e.op, e.op)
                raise self.fail(
                    f"{word} asks for a condition, not for {self.text(a)}. Compare it with something."
                )
            if not condition and info.type == "bool":
                raise self.fail(
                    f"{self.text(a)} is a condition, not a number. Use where({self.text(a)}, 1, 0)."
                )
        over_all = e.op in ir.GLOBAL and given[0].scope in ("tensor", "element")
        if self.strict and e.op in ir.REDUCTIONS and given[0].shape == () and not over_all:
            raise self.fail(
                f"{e.op}(...) is of a tensor, which {self.text(e.args[0])} is not. Remove it."
            )

    def type(
        self, e: ir.Call, operation: ir.Operation, given: list[Info]
    ) -> Literal["float", "int", "bool"]:
        """The type of what an operation gives."""
        if e.op == "power":
            return self.power(e, given)
        if e.op == "floor" and is_call(e.args[0], "div"):
            assert isinstance(e.args[0], ir.Call)
            if all(self.expr(a).type == "int" for a in e.args[0].args):
                return "int"
        if e.op in ("mod", "floordiv") and any(i.type != "int" for i in given):
            instead = (
                " Use floor(a / b) for others."
                if e.op == "floordiv"
                else " Use a Count or PositiveCount."
            )
            raise self.fail(f"{_SIGNS[e.op]} works on integers: t, n, counts.{instead}")
        if e.op in ("mod", "floordiv"):
            self.divisor(e)
        if operation.result == "same":
            numbers = given[1:] if e.op == "where" else given
            tensors = any(i.scope == "element" for i in given)
            return "int" if not tensors and all(i.type == "int" for i in numbers) else "float"
        return operation.result

    def divisor(self, e: ir.Call) -> None:
        """Integers have no infinity: refuse to divide them by what may be 0."""
        by = e.args[1]
        if isinstance(by, ir.Number) and by.value == 0:
            raise self.fail(f"{self.text(e)} divides by 0. Write the value that is meant.")
        if isinstance(by, ir.Hyper | ir.Item) and self.parameters[by.name].domain.low <= 0:
            what = f"{self.text(by)} may be 0 in {self.text(e)}."
            raise self.fail(f"{what} Annotate {by.name} with PositiveCount.")

    def power(self, e: ir.Call, given: list[Info]) -> Literal["float"]:
        """The type of a power, which is exact for integer exponents only."""
        base, exponent = given
        if exponent.scope != "step":
            raise self.fail(
                f"the exponent of {self.text(e)} is not a number. Raise to a number, t or a "
                "hyperparameter."
            )
        if base.scope != "step" and exponent.type != "int":
            raise self.fail(
                f"{self.text(e)} raises a tensor to a power that is not an integer. "
                "Use sqrt(x), or an integer."
            )
        literal = exponent.type == "int" and isinstance(e.args[1], ir.Number)
        if literal and base.scope != "step" and abs(int(e.args[1].value)) > _POWERS:  # type: ignore[union-attr]
            raise self.fail(
                f"{self.text(e)} raises a tensor to more than the power {_POWERS}. Write it in parts, "
                "or a smaller one."
            )
        small = literal and abs(int(e.args[1].value)) <= 4  # type: ignore[union-attr]
        self.raises |= base.scope == "step" and exponent.type == "int" and not small
        return "float"

    def shape(self, e: ir.Call, operation: ir.Operation, given: list[Info]) -> Shape:
        """The shape of what an operation gives."""
        match operation.shape:
            case "elementwise":
                return self.broadcast(e, given)
            case "reduce" | "size" | "input":
                return ()
            case "rows" | "cols":
                rows, cols = self.two_axes(e, 0, given[0])
                return (rows, "1") if operation.shape == "rows" else ("1", cols)
            case "slices":
                return self.two_axes(e, 0, given[0])
            case "transpose":
                return self.two_axes(e, 0, given[0])[::-1]
        left, right = self.two_axes(e, 0, given[0]), self.two_axes(e, 1, given[1])
        if left[1] != right[0]:
            raise self.fail(
                f"{self.text(e.args[0])} of shape ({', '.join(left)}) cannot be multiplied by "
                f"{self.text(e.args[1])} of shape ({', '.join(right)}): {left[1]} is not {right[0]}. "
                "Transpose one of them with .T."
            )
        return (left[0], right[1])

    def two_axes(self, e: ir.Call, position: int, info: Info) -> Shape:
        """An operand's rows and columns."""
        if len(info.shape) != 2:
            word = {"matmul": "@", "transpose": ".T"}.get(e.op, e.op)
            operand = self.text(e.args[position])
            if info.shape == ():
                raise self.fail(
                    f"{word} works on rows and columns; {operand} is a number. Remove it."
                )
            raise self.fail(
                f"{word} works on rows and columns, which {operand} has only inside "
                "`with case(matrix):`. Move it there."
            )
        return info.shape

    def broadcast(self, e: ir.Call, given: list[Info]) -> Shape:
        """The shape of an elementwise operation."""
        shape: Shape = ()
        owner: ir.Expr = e
        for a, info in zip(e.args, given, strict=True):
            fitting = shapes.broadcast(shape, info.shape)
            if fitting is None:
                raise self.fail(
                    f"{self.text(owner)} of shape {shapes.describe(shape)} and {self.text(a)} of shape "
                    f"{info.describe()} do not fit together in {self.text(e)}. Give them one shape."
                )
            if fitting != shape:
                shape, owner = fitting, a
        return shape

    def merged(self, name: str, definitions: list[Definition]) -> Info:
        """What definitions in regions that exclude each other have in common."""
        first, *others = definitions
        info = first.info
        for d in others:
            both = {info.type, d.info.type}
            if "bool" in both and len(both) > 1:
                what = f"{name} is a condition in one region and a number in another."
                raise self.fail(f"{what} Rename one.")
            fact = next((f for f in first.region if regions.opposite(f) in d.region), None)
            if fact is None or fact[2]:
                shape = shapes.either(info.shape, d.info.shape)
            else:
                shape = shapes.either(d.info.shape, info.shape)
            apart = fact is not None and fact[1] == ir.Call("matrix", ())
            unlike = shape is None or (apart and info.shape != d.info.shape)
            if unlike and (self.strict or shape is None):  # states may turn out larger than they start
                raise self.fail(
                    f"{name} has the shape {info.describe()} in one region and "
                    f"{d.info.describe()} in another. Give them two names."
                )
            scope = wider(info.scope, d.info.scope)
            if fact is not None:
                self.either |= {x: (*fact[:2], True) for x in shape or () if "|" in x}
                scope = wider(scope, "tensor" if fact[0] == "case" else "step")
            info = Info(info.type if len(both) == 1 else "float", scope, shape or info.shape)
        return info


def _value(e: ir.Expr) -> Any:
    """What literals alone amount to; None where there is more."""
    if any(not isinstance(x, ir.Number | ir.Call) for x in ir.walk(e)):
        return None
    try:
        return sample.constant(e)
    except (sample.Unknown, OverflowError, TypeError):
        return None


def is_call(e: ir.Expr, *ops: str) -> bool:
    """Whether an expression is one of these operations."""
    return isinstance(e, ir.Call) and e.op in ops


def _sizes(shape: Shape) -> str:
    """Sizes as people write them: (16, 8), (16,)."""
    return f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"


def wider(a: str, b: str) -> str:
    """The scope of what depends on both."""
    return max(a, b, key=SCOPES.index)
