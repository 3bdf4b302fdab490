"""The typed tree behind the front door: what a spec is once SymPy is gone.

In: nothing; every other module of the generator builds or walks these. Out: expressions, statements,
programs, and the one table of operations (`OPERATIONS`) with the meaning of each on every input.
Must not know: SymPy, any framework, how text is printed.

    Program ── statements ── expressions
                Start         Number Hyper Clock Ref Item Call
                Assign
                Loop When Case
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

# ---------------------------------------------------------------------------------------------------
# Expressions


@dataclass(frozen=True)
class Number:
    """A literal of the spec; an `int` stays an integer, a `float` is the double the author wrote."""

    value: int | float


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter."""

    name: str


@dataclass(frozen=True)
class Clock:
    """An integer that the program counts by: the step `t`, finished steps `n`, or a loop's index."""

    name: str


@dataclass(frozen=True)
class Ref:
    """`name[t]` (lag 0) or `name[t-1]` (lag 1); inside a loop the lag counts its iterations."""

    name: str
    lag: int = 0


@dataclass(frozen=True)
class Item:
    """One entry of a tuple hyperparameter; `index` counts from 1."""

    name: str
    index: Expr


@dataclass(frozen=True)
class Call:
    """An operation of the table, `+` included, with its operands in the author's order."""

    op: str
    args: tuple[Expr, ...]
    text: str = ""  # the name given to an oracle, a noise source or a meta-parameter


Expr = Number | Hyper | Clock | Ref | Item | Call

# ---------------------------------------------------------------------------------------------------
# Statements


@dataclass(frozen=True)
class Start:
    """`target[0] = value`: makes `target` a state, or starts a loop's iterate."""

    target: str
    value: Expr
    line: int


@dataclass(frozen=True)
class Assign:
    """`target[t] = value`."""

    target: str
    value: Expr
    line: int


@dataclass(frozen=True)
class Loop:
    """`for index in iterate(count)`: index = 1, ..., count; the body is traced once."""

    index: str
    count: Expr
    body: tuple[Statement, ...]
    line: int


@dataclass(frozen=True)
class When:
    """A region that may not happen, and what happens instead."""

    condition: Expr
    body: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]
    line: int


@dataclass(frozen=True)
class Case:
    """A region for parameters of one shape: `matrix`, `vector`, or a relation between sizes."""

    condition: Expr
    body: tuple[Statement, ...]
    line: int


Statement = Start | Assign | Loop | When | Case

# ---------------------------------------------------------------------------------------------------
# Programs

Kind = Literal["optimizer", "schedule", "transform", "wrapper"]


@dataclass(frozen=True)
class Domain:
    """The values that a hyperparameter may take, and how people write that set."""

    name: str
    type: Literal["float", "int", "bool", "choice", "schedule"] = "float"
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True
    choices: tuple[str, ...] = ()
    many: bool = False  # a tuple of such values
    optional: bool = False  # None is a value too
    least: int = 0  # how many values a tuple has at least

    def __call__(self) -> None:
        """Nothing: typing's generics ask of their parameters that they be callable."""
        raise TypeError(f"{self.name} is a domain, not a function")

    @property
    def interval(self) -> str:
        """The set in mathematical notation: `[0, inf)`."""
        if self.type in ("bool", "schedule"):
            return self.name
        if self.type == "choice":
            return "{" + ", ".join(repr(c) for c in self.choices) + "}"
        low, high = (f"{x:g}" for x in (self.low, self.high))
        opening = "(" if self.low_open or math.isinf(self.low) else "["
        closing = ")" if self.high_open or math.isinf(self.high) else "]"
        return f"{opening}{low}, {high}{closing}"

    @property
    def phrase(self) -> str:
        """The set in words, for messages and docstrings: `a number in [0, inf)`."""
        words = {
            "float": f"a number in {self.interval}",
            "int": f"an integer in {self.interval}",
            "bool": "True or False",
            "choice": f"one of {self.interval}",
            "schedule": "a schedule",
        }[self.type]
        if self.many and self.least:
            entries = "1 entry" if self.least == 1 else f"{self.least} entries"
            words = f"a tuple of {entries} or more, each {words}"
        elif self.many:
            words = f"a tuple, each entry {words}"
        return f"{words}, or None" if self.optional else words

    def contains(self, value: object) -> bool:
        """Whether a Python value lies in the set (NaN lies in none)."""
        if value is None:
            return self.optional
        if self.many:
            if not isinstance(value, tuple) or len(value) < self.least:
                return False
            return all(self._holds(v) for v in value)
        return self._holds(value)

    def _holds(self, value: object) -> bool:
        match self.type:
            case "bool":
                return isinstance(value, bool)
            case "choice":
                return value in self.choices
            case "schedule":
                return callable(value) or isinstance(value, int | float)
            case "int":
                if not isinstance(value, int) or isinstance(value, bool):
                    return False
            case _:
                if not isinstance(value, int | float) or isinstance(value, bool):
                    return False
        assert isinstance(value, int | float)
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and not math.isinf(value)


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter as the signature declares it."""

    name: str
    domain: Domain
    default: object  # `REQUIRED` where there is none
    about: str
    line: int


REQUIRED = "required"


_SHAPES = (Call("matrix", ()), Call("vector", ()))


@dataclass(frozen=True)
class Program:
    """A spec, frozen: equations as written and everything that its signature and docstring say."""

    kind: Kind
    name: str
    class_name: str
    title: str
    source: tuple[str, ...]
    notes: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    requires: tuple[tuple[Expr, int], ...] = ()
    evaluate: Expr | None = None
    held: Expr | None = None  # steps in which this does not hold are not counted
    file: str = ""
    line: int = 0
    doc: tuple[str, ...] = ()  # docstring paragraphs that are neither source nor note

    def told(self, name: str) -> str:
        """What a kernel is told: a choice itself, whether an option is given, whether a number is above 0."""
        domain = self.parameter(name).domain
        if domain.type in ("bool", "choice"):
            return name
        return f"has_{name}" if domain.optional else f"with_{name}"

    def parameter(self, name: str) -> Parameter:
        """The hyperparameter of this name."""
        return next(p for p in self.parameters if p.name == name)

    @property
    def only(self) -> str:
        """The parameters that it is for where it is not for all: `matrix` or `vector`."""
        shapes = (e.op for e, _ in self.requires if isinstance(e, Call))
        return next((op for op in shapes if op in ("matrix", "vector")), "")

    @property
    def relations(self) -> tuple[tuple[Expr, int], ...]:
        """What is required of hyperparameters, without what is required of parameters."""
        return tuple((e, line) for e, line in self.requires if e not in _SHAPES)


def noises(program: Program) -> list[str]:
    """The noise sources of a program, in their order."""
    found = (e for s in statements(program.body) for top in expressions(s) for e in walk(top))
    return list(dict.fromkeys(e.text for e in found if isinstance(e, Call) and e.op == "noise"))


def seeded(program: Program) -> Program:
    """The program with the hyperparameter that says which random numbers it draws, if it draws any."""
    if not noises(program):
        return program
    about = "which random numbers are drawn"
    seed = Parameter(SEED, Domain("Count", "int", low=0), 0, about, program.line)
    return replace(program, parameters=(*program.parameters, seed))


def unseeded(program: Program) -> Program:
    """The program without that hyperparameter."""
    own = tuple(p for p in program.parameters if p.name != SEED or not noises(program))
    return replace(program, parameters=own)


SEED = "seed"

# ---------------------------------------------------------------------------------------------------
# Operations

Shaping = Literal[
    "elementwise",
    "reduce",
    "rows",
    "cols",
    "slices",
    "matmul",
    "transpose",
    "size",
    "input",
    "features",
]


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    Attributes:
        arity: how many operands; ANY: as many as there are, two or more.
        result: `float`, `bool`, `int`, or `same` (integers give an integer, else float).
        shape: how the result's shape follows from the operands'.
        meaning: the value on every input, special values included.
    """

    arity: int
    result: Literal["float", "bool", "int", "same"]
    shape: Shaping
    meaning: str
    tensors: bool = True  # may stand on tensors; otherwise in step scope only


ANY = -1
_IEEE = "correctly rounded, IEEE 754 on every input"

OPERATIONS: Mapping[str, Operation] = {
    "add": Operation(2, "same", "elementwise", _IEEE),
    "sub": Operation(2, "same", "elementwise", _IEEE),
    "mul": Operation(2, "same", "elementwise", _IEEE),
    "div": Operation(2, "float", "elementwise", _IEEE + "; x/0 is ±inf, 0/0 is NaN"),
    "neg": Operation(1, "same", "elementwise", "the sign bit flipped"),
    "sqrt": Operation(1, "float", "elementwise", _IEEE + "; NaN below 0, sqrt(-0) is -0"),
    "abs": Operation(1, "same", "elementwise", "the sign bit cleared"),
    "sign": Operation(1, "float", "elementwise", "1 above 0, -1 below; ±0 and NaN are kept"),
    "minimum": Operation(2, "same", "elementwise", "x if x < y or x is NaN, else y"),
    "maximum": Operation(2, "same", "elementwise", "x if x > y or x is NaN, else y"),
    "floor": Operation(1, "float", "elementwise", "the largest integer not above; ±inf, NaN kept"),
    "where": Operation(3, "same", "elementwise", "a where the condition holds, else b; bits kept"),
    "power": Operation(2, "same", "elementwise", "x**k, k an integer: squaring from the lowest bit"),
    "real_power": Operation(2, "float", "elementwise", "x**y in double", tensors=False),
    "exp": Operation(1, "float", "elementwise", "e**x in double", tensors=False),
    "log": Operation(1, "float", "elementwise", "natural logarithm in double", tensors=False),
    "cos": Operation(1, "float", "elementwise", "cosine in double", tensors=False),
    "to_float": Operation(1, "float", "elementwise", "an integer as a double", tensors=False),
    "floordiv": Operation(2, "int", "elementwise", "floor of the exact quotient", tensors=False),
    "mod": Operation(2, "int", "elementwise", "x - y*floor(x/y)", tensors=False),
    "lt": Operation(2, "bool", "elementwise", "x < y; false for NaN"),
    "le": Operation(2, "bool", "elementwise", "x <= y; false for NaN"),
    "gt": Operation(2, "bool", "elementwise", "x > y; false for NaN"),
    "ge": Operation(2, "bool", "elementwise", "x >= y; false for NaN"),
    "eq": Operation(2, "bool", "elementwise", "x = y; -0 equals +0, NaN equals nothing"),
    "ne": Operation(2, "bool", "elementwise", "not x = y"),
    "finite": Operation(1, "bool", "elementwise", "neither infinite nor NaN"),
    "and": Operation(2, "bool", "elementwise", "both"),
    "or": Operation(2, "bool", "elementwise", "either"),
    "not": Operation(1, "bool", "elementwise", "the other"),
    "pi": Operation(0, "float", "size", "the double nearest to pi"),
    "length": Operation(0, "int", "size", "how many entries a tuple hyperparameter has"),
    "call": Operation(2, "float", "size", "a schedule hyperparameter at a step", tensors=False),
    "store": Operation(1, "float", "elementwise", "rounded to the compute dtype", tensors=False),
    # Reductions add in one fixed tree; shapes keep their axes.
    "sum": Operation(1, "float", "reduce", "sum over one tensor"),
    "mean": Operation(1, "float", "reduce", "sum times the reciprocal of the count"),
    "norm": Operation(1, "float", "reduce", "square root of the sum of squares"),
    "rms": Operation(1, "float", "reduce", "square root of the mean of squares"),
    "row_mean": Operation(1, "float", "rows", "mean along each row: shape (rows, 1)"),
    "col_mean": Operation(1, "float", "cols", "mean along each column: shape (1, cols)"),
    "row_sum": Operation(1, "float", "rows", "sum along each row: shape (rows, 1)"),
    "col_sum": Operation(1, "float", "cols", "sum along each column: shape (1, cols)"),
    "row_norm": Operation(1, "float", "rows", "square root of the sum of squares along each row"),
    "col_norm": Operation(1, "float", "cols", "square root of the sum of squares along each column"),
    "row_rms": Operation(1, "float", "rows", "square root of the mean of squares along each row"),
    "col_rms": Operation(1, "float", "cols", "square root of the mean of squares along each column"),
    "mean_but_first": Operation(1, "float", "slices", "mean over all axes but the first, repeated"),
    "mean_but_last": Operation(1, "float", "slices", "mean over all axes but the last, repeated"),
    "global_sum": Operation(1, "float", "reduce", "sum over all parameters"),
    "global_norm": Operation(1, "float", "reduce", "square root of the sum of all squares"),
    "matmul": Operation(2, "float", "matmul", "matrix product of the last two axes"),
    "transpose": Operation(1, "float", "transpose", "the last two axes exchanged"),
    "rows": Operation(1, "int", "size", "size of the last axis but one"),
    "cols": Operation(1, "int", "size", "size of the last axis"),
    "matrix": Operation(0, "bool", "size", "the parameter has two or more axes"),
    "vector": Operation(0, "bool", "size", "the parameter has fewer than two axes"),
    # Features: tensors side by side along a first axis.
    "stack": Operation(ANY, "float", "features", "tensors and numbers side by side, each a feature"),
    "dense": Operation(
        3, "float", "features", "bias + weights[:, 0] * x[0] + weights[:, 1] * x[1] + ..., left to right"
    ),
    "entry": Operation(2, "float", "features", "one feature, counted from 1"),
    # What comes from outside.
    "grad": Operation(1, "float", "input", "the gradient at a point"),
    "oracle": Operation(0, "float", "input", "a further input, given by the caller"),
    "meta": Operation(0, "float", "input", "a meta-parameter: an array that the caller gives once"),
    "noise": Operation(0, "float", "input", "standard normal numbers, the same on every backend"),
    "random_key": Operation(3, "int", "input", "what a noise source draws with in a step"),
    "normal": Operation(2, "float", "input", "standard normal numbers, drawn with a key"),
    "first": Operation(0, "float", "input", "the gradient of the first step"),
    "update": Operation(1, "float", "input", "the wrapped optimizer's new parameters"),
}

REDUCTIONS = frozenset(
    name for name, op in OPERATIONS.items() if op.shape in ("reduce", "rows", "cols")
)
GLOBAL = frozenset({"global_sum", "global_norm"})
# Reductions that are the square root of another one of the squares.
ROOTS: Mapping[str, str] = {
    "norm": "sum",
    "rms": "mean",
    "row_norm": "row_sum",
    "col_norm": "col_sum",
    "row_rms": "row_mean",
    "col_rms": "col_mean",
    "global_norm": "global_sum",
}

# Lowered, what follows from a parameter's sizes alone is in double, and rounded once where it ends.
SIZED = frozenset(
    f"size_{op}" for op in "rows cols add sub mul div neg sqrt minimum maximum rounded".split()
)


# Operations whose literals are Python's own numbers, not rounded to the dtype of tensors.
PLAIN = SIZED | {"entry"}


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of an expression."""
    match expr:
        case Call(_, args, _):
            return args
        case Item(_, index):
            return (index,)
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node of an expression, operands before operations."""
    for child in children(expr):
        yield from walk(child)
    yield expr


def statements(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, regions before what they contain."""
    for s in body:
        yield s
        match s:
            case Loop() | Case():
                yield from statements(s.body)
            case When():
                yield from statements(s.body)
                yield from statements(s.otherwise)


def expressions(statement: Statement) -> tuple[Expr, ...]:
    """The expressions that stand directly in one statement."""
    match statement:
        case Start() | Assign():
            return (statement.value,)
        case Loop():
            return (statement.count,)
        case When() | Case():
            return (statement.condition,)


# ---------------------------------------------------------------------------------------------------
# The lowered program: single assignments, typed


@dataclass(frozen=True)
class Word:
    """A word with which a choice is compared, or None, with which an option is."""

    value: str | None


@dataclass(frozen=True)
class Value:
    """One operation with a name of its own: `name = op(args)`; an operand is a name or a literal."""

    name: str
    op: str
    args: tuple[Operand, ...]
    type: Literal["float", "int", "bool", "key"]
    spec: bool = False  # the name stands in the spec and keeps a line of its own in the text
    line: int = 0


Operand = str | Number | Word


@dataclass(frozen=True)
class Repeat:
    """A loop of step scope. Each carried (`name`, `start`, `end`): name is start, then end, ..."""

    index: str
    count: Operand
    carried: tuple[tuple[str, Operand, str], ...]
    body: tuple[Step, ...]


@dataclass(frozen=True)
class Branch:
    """A region that may not happen, and what happens instead.

    Each carried (`name`, `here`, `there`): after the regions name is what the one taken has made;
    None where it does not exist. The condition is `known` before anything is computed where it is
    about a parameter's shape, or an expression of choices; otherwise it is a scalar's value.
    """

    condition: Operand | Hyper | Call
    body: tuple[Step, ...]
    otherwise: tuple[Step, ...]
    carried: tuple[tuple[str, Operand | None, Operand | None], ...]
    known: bool = True


Step = Value | Repeat | Branch  # a loop is of step scope, or unrolled


def values_of(steps: Iterable[Step]) -> Iterator[Value]:
    """Every operation, those inside of regions and loops included."""
    for v in steps:
        if isinstance(v, Value):
            yield v
        elif isinstance(v, Repeat):
            yield from values_of(v.body)
        else:
            yield from values_of((*v.body, *v.otherwise))


def made_by(values: Iterable[Step]) -> set[str]:
    """The names that are known after the values."""
    found: set[str] = set()
    for v in values:
        found |= {v.name} if isinstance(v, Value) else {name for name, _, _ in v.carried}
    return found


def uses(values: Iterable[Step]) -> list[str]:
    """Every name that the values read, once for each time it is read."""
    found: list[str] = []
    for v in values:
        match v:
            case Value():
                found += [a for a in v.args if isinstance(a, str)]
            case Repeat():
                found += [a for a in (v.count, *(s for _, s, _ in v.carried)) if isinstance(a, str)]
                found += [e for _, _, e in v.carried if isinstance(e, str)]
                found += uses(v.body)
            case Branch():
                found += [v.condition] if isinstance(v.condition, str) else []
                found += uses(v.body) + uses(v.otherwise)
                for name, *ends in v.carried:  # an end of the same name is that name itself
                    found += [e for e in ends if isinstance(e, str) and e != name]
    return found


def _asked(steps: Iterable[Step]) -> Iterator[Expr]:
    """The conditions of branches that are expressions of choices."""
    for v in steps:
        if isinstance(v, Branch):
            if isinstance(v.condition, Hyper | Call):
                yield v.condition
            yield from _asked((*v.body, *v.otherwise))


def _replaced(
    steps: Iterable[Step], function: Callable[[Value], Iterable[Value]]
) -> tuple[Step, ...]:
    made: list[Step] = []
    for v in steps:
        if isinstance(v, Value):
            made += function(v)
        elif isinstance(v, Branch):
            body, otherwise = _replaced(v.body, function), _replaced(v.otherwise, function)
            made.append(replace(v, body=body, otherwise=otherwise))
    return tuple(made)


@dataclass(frozen=True)
class State:
    """What a program keeps between steps.

    `shape` holds symbolic sizes, `full` for the parameter's own; `home` the conditions on a
    parameter's shape and on choices under which the state exists: (condition, whether it holds). A
    `shared` state is one number for all parameters: it follows from sums over them.
    """

    name: str
    start: Expr
    scalar: bool  # of step scope: no tensor in it
    line: int = 0
    shape: tuple[str, ...] = ("shape",)
    home: tuple[tuple[Expr, bool], ...] = ()
    shared: bool = False


@dataclass(frozen=True)
class Pass:
    """What a step needs to know of all parameters: sums over each, added up, and what follows.

    `partials` are computed a parameter, like a step, and end in one number for each of `sums`: its
    name among the totals `total.name`, and where the number is. `values` are computed once, of the
    totals and the step's scalars; `exports` say what enters later passes and the step as `shared.name`,
    new values of shared states among them.
    """

    partials: tuple[Step, ...]
    sums: tuple[tuple[str, Operand], ...]
    values: tuple[Value, ...]
    exports: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Point:
    """Where a step takes one more gradient, which later passes and the step read as `given.name`.

    `partials` are computed a parameter, like a step; `at` is the point.
    """

    partials: tuple[Step, ...]
    name: str
    at: Operand


@dataclass(frozen=True)
class Given:
    """What a step is given beside the gradient: one more gradient, or what the caller knows.

    `when` is the scalar that says whether the step at hand reads it; empty: it always does. `sizes` are
    those of a meta-parameter, which is given once for all steps; None for what is none.
    """

    name: str
    gradient: bool = False
    when: str = ""
    scalar: bool = False  # one number for all parameters
    sizes: tuple[int, ...] | None = None

    @property
    def asked(self) -> bool:
        """Whether the caller of a step is asked for it."""
        return not self.gradient and self.sizes is None


@dataclass(frozen=True)
class Lowered:
    """The meaning of a program: what every backend computes, in this order.

    Names of inputs: hyperparameters by their names, the clock `t` or `n`; tensors: the parameter
    (`parameter`), the gradient `g`, old states as `state.m`; rounded scalars as `s.name`; what came of
    the passes as `shared.name`, where the old value of a shared state stands as `shared.name_prev`;
    further gradients, meta-parameters and what else the caller gives as `given.name`.

    A program with shared states has one clock for all its parameters, those without a gradient included.
    Where `shared.held` does not hold, a step is not counted, and t stays as it was.
    """

    program: Program
    states: tuple[State, ...]
    scalars: tuple[Step, ...]  # step scope, in double
    exports: tuple[str, ...]  # the scalars that enter the step, each rounded once
    step: tuple[Step, ...]  # tensors
    parameter: str  # the name of the first argument: theta, or y where the gradient's point is kept
    result: Operand  # the new parameter, the transform's u, or the schedule's lr
    new_states: tuple[tuple[str, Operand], ...]
    types: Mapping[str, str] = field(default_factory=dict)
    delta: tuple[str, Operand] | None = None  # ("add" | "sub", value): parameter ± value is result
    evaluate: str | None = None  # the state to evaluate with; None: the parameters themselves
    passes: tuple[Pass | Point, ...] = ()  # what comes before the step, in this order
    held: str | None = None  # what follows from sums and says whether the step counts
    given: tuple[Given, ...] = ()  # what the caller gives, then the further gradients

    @property
    def elementwise(self) -> bool:
        """Whether every number of a parameter goes its own way, so that parameters can be joined."""
        return not self.passes and not self.given and all(
            OPERATIONS[v.op].shape == "elementwise" if v.op in OPERATIONS else v.op not in SIZED
            for v in values_of(self.step)
        )

    @property
    def clocked(self) -> bool:
        """Whether anything depends on the step's number."""
        return "t" in self.exports or any("t" in v.args for v in values_of(self.scalars))

    def replaced(self, function: Callable[[Value], Iterable[Value]]) -> Lowered:
        """The program with each operation on tensors replaced by others."""
        return replace(
            self,
            step=_replaced(self.step, function),
            passes=tuple(
                replace(p, partials=_replaced(p.partials, function))
                if isinstance(p, Point)
                else replace(
                    p,
                    partials=_replaced(p.partials, function),
                    values=tuple(x for v in p.values for x in function(v)),
                )
                for p in self.passes
            ),
        )

    @property
    def choices(self) -> tuple[str, ...]:
        """The hyperparameters that decide, before anything is computed, what a step does."""
        asked = [e for s in self.tensor_states for e, _ in s.home]
        blocks = [self.step, *(p.partials for p in self.passes)]
        asked += [c for block in blocks for c in _asked(block)]
        names = {x.name for e in asked for x in walk(e) if isinstance(x, Hyper)}
        return tuple(p.name for p in self.program.parameters if p.name in names)

    @property
    def tensor_states(self) -> tuple[State, ...]:
        """The states that each parameter has."""
        return tuple(s for s in self.states if not s.scalar and not s.shared)

    @property
    def scalar_states(self) -> tuple[State, ...]:
        """The states of step scope."""
        return tuple(s for s in self.states if s.scalar)

    @property
    def shared_states(self) -> tuple[State, ...]:
        """The states of all parameters together."""
        return tuple(s for s in self.states if s.shared)
