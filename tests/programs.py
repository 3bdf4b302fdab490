"""Random programs of the language, and what they must compute.

In: a seed. Out: frozen programs over every operation and scope, hyperparameters and inputs for them, and
the reference: the lowered program evaluated node by node in NumPy. Must not know: any backend.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from generator import ir
from generator.check import check
from generator.errors import NotAvailable, SpecError
from generator.interpret import EXACT, Exact, evaluate
from generator.ir import Assign, Call, Clock, Hyper, Number, Ref, Start
from generator.language import Choice, NonNegative, Optional, PositiveCount, Real, _domain
from generator.lower import lower

LITERALS = (0.1, 0.5, 2.0, 3.0, -1.5, 0.9, 1.0, 7.0)
HYPERS = {"a": Real, "b": NonNegative, "c": NonNegative, "k": PositiveCount}
CHOICES = {"flag": _domain(bool), "kind": Choice["one", "other", "third"], "some": Optional[Real]}
_WORDS = {word: Call("eq", (Hyper("kind"), Call("word", (), word))) for word in CHOICES["kind"].choices}
_NONE = Call("eq", (Hyper("some"), Call("word", (), "None")))


@dataclass(frozen=True)
class Random:
    """A random program, lowered, with hyperparameters to call it with."""

    lowered: ir.Lowered
    hypers: dict[str, Any]


class _Maker:
    """Grows expressions of a wanted type: tensor, scalar (step scope), integer, condition."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tensors: list[ir.Expr] = [Ref("theta", 1), Ref("g"), Ref("m", 1), Ref("v", 1)]
        self.scalars: list[ir.Expr] = [Hyper("a"), Hyper("b"), Hyper("c"), Ref("w", 1)]
        self.rows = False  # whether tensors have rows and columns here

    def pick(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def literal(self) -> ir.Expr:
        return Number(self.rng.choice(LITERALS))

    def any_number(self, depth: int) -> ir.Expr:
        """A tensor, sometimes a scalar or a literal."""
        roll = self.rng.random()
        if roll < 0.03:
            return self.reduced(depth)
        if roll < 0.6:
            return self.tensor(depth)
        return self.scalar(depth) if roll < 0.85 else self.literal()

    def reduced(self, depth: int) -> ir.Expr:
        """A number that all entries share, or one that those of a row or a column do."""
        ops = ["sum", "mean", "norm", "rms"]
        if self.rows:
            ops = ["sum", "mean", "row_sum", "row_mean", "col_sum", "col_mean", "row_norm", "col_rms"]
        return Call(self.rng.choice(ops), (self.tensor(depth - 1),))

    def tensor(self, depth: int) -> ir.Expr:
        if depth <= 0:
            return self.rng.choice(self.tensors)
        d = depth - 1
        match self.pick(*"add sub mul div neg sqrt abs sign min max where power floor root".split()):
            case ("add" | "sub" | "mul" | "div") as op:
                pair = [self.tensor(d), self.any_number(d)]
                self.rng.shuffle(pair)
                return Call(op, tuple(pair))
            case ("neg" | "abs" | "sign" | "floor") as op:
                return Call(op, (self.tensor(d),))
            case "sqrt":
                return Call("sqrt", (self.tensor(d),))
            case "root":  # the commonest shape: a / (sqrt(b) + c)
                root = Call("add", (Call("sqrt", (Call("abs", (self.tensor(d),)),)), Hyper("b")))
                return Call("div", (self.tensor(d), root))
            case ("min" | "max") as op:
                pair = [self.tensor(d), self.any_number(d)]
                self.rng.shuffle(pair)
                return Call({"min": "minimum", "max": "maximum"}[op], tuple(pair))
            case "where":
                condition = self.condition(d) if self.rng.random() < 0.7 else self.step_condition(d)
                return Call("where", (condition, self.tensor(d), self.any_number(d)))
        return Call("power", (self.tensor(d), Number(self.pick(2, 2, 3, 4, 5, -1, -2, 1))))

    def condition(self, depth: int) -> ir.Expr:
        if depth > 1 and self.rng.random() < 0.3:
            a, b = self.condition(depth - 1), self.condition(depth - 1)
            return self.pick(Call("and", (a, b)), Call("or", (a, b)), Call("not", (a,)))
        op = self.pick("lt", "le", "gt", "ge", "eq", "ne", "finite")
        if op == "finite":
            return Call(op, (self.tensor(depth - 1),))
        return Call(op, (self.tensor(depth - 1), self.any_number(depth - 1)))

    def choice(self, depth: int) -> ir.Expr:
        """A condition on choices."""
        if depth > 0 and self.rng.random() < 0.4:
            return Call(self.pick("and", "or"), (self.choice(depth - 1), self.choice(depth - 1)))
        made = self.pick(Hyper("flag"), _NONE, *_WORDS.values())
        return Call("not", (made,)) if self.rng.random() < 0.5 else made

    def chosen(self, depth: int) -> list[ir.Statement]:
        """A state `q`, a tensor `e` and a number `z` that choices decide on."""
        asked, given = self.choice(1), ir.Call("not", (_NONE,))
        if there := self.rng.random() < 0.4:
            asked = Call("and", (given, asked))
        tensors, scalars = list(self.tensors), list(self.scalars)
        self.tensors.append(Ref("q", 1))
        if there:
            self.scalars += [Hyper("some")] * 4
        q: list[ir.Statement] = [Start("q", self.pick(Number(0), Hyper("b")), 20)]
        q.append(Assign("q", self.tensor(depth), 21))
        self.tensors.append(Ref("q"))
        q.append(Assign("z", self.scalar(depth), 22))
        self.scalars.append(Ref("z"))
        q += self.ways("e", depth)
        self.tensors, self.scalars = tensors, scalars
        other = [Assign("z", self.scalar(depth), 24), Assign("e", self.tensor(depth), 25)]
        if self.rng.random() < 0.3:
            regions = [ir.When(asked, tuple(q), (), 26), ir.When(Call("not", (asked,)), tuple(other), (), 27)]
        else:
            regions = [ir.When(asked, tuple(q), tuple(other), 26)]
        self.tensors.append(Ref("e"))
        self.scalars.append(Ref("z"))
        return regions

    def ways(self, name: str, depth: int) -> list[ir.Statement]:
        """A tensor, in a region inside of this one or not."""

        def one(line: int) -> tuple[ir.Statement]:
            return (Assign(name, self.tensor(depth), line),)

        match self.pick("plain", "choice", "words", "shape", "step"):
            case "choice":
                return [ir.When(self.choice(0), one(30), one(31), 30)]
            case "words":
                return [ir.When(e, one(32 + i), (), 32 + i) for i, e in enumerate(_WORDS.values())]
            case "shape":
                both = (Call("matrix", ()), Call("vector", ()))
                return [ir.Case(e, one(36 + i), 36 + i) for i, e in enumerate(both)]
            case "step":
                return [ir.When(self.step_condition(2), one(38), one(39), 38)]
        return [*one(40)]

    def step_condition(self, depth: int) -> ir.Expr:
        op = self.pick("lt", "le", "gt", "ge", "eq", "ne")
        if self.rng.random() < 0.5:
            return Call(op, (self.integer(depth - 1), Number(self.pick(1, 2, 3))))
        made: ir.Expr = Call(op, (self.scalar(depth - 1), self.scalar(depth - 1)))
        return Call("not", (made,)) if self.rng.random() < 0.2 else made

    def integer(self, depth: int) -> ir.Expr:
        match self.pick(*"t t k plus floordiv mod times".split()):
            case "k":
                return Hyper("k")
            case "plus":
                return Call("add", (Clock("t"), Number(self.pick(1, 2))))
            case "floordiv":
                return Call("floor", (Call("div", (Clock("t"), Hyper("k"))),))
            case "mod":
                return Call("mod", (Clock("t"), Hyper("k")))
            case "times":
                return Call("mul", (Number(2), Clock("t")))
        return Clock("t")

    def scalar(self, depth: int) -> ir.Expr:
        if depth <= 0:
            return self.rng.choice(self.scalars)
        d = depth - 1
        kinds = "add sub mul div neg sqrt min max where power real exp log cos int sign floor"
        match self.pick(*kinds.split()):
            case ("add" | "sub" | "mul" | "div") as op:
                pair = [self.scalar(d), self.pick(self.scalar(d), self.literal())]
                self.rng.shuffle(pair)
                return Call(op, tuple(pair))
            case ("neg" | "sign" | "floor" | "sqrt") as op:
                return Call(op, (self.scalar(d),))
            case ("min" | "max") as op:
                pair = (self.scalar(d), self.scalar(d))
                return Call({"min": "minimum", "max": "maximum"}[op], pair)
            case "where":
                return Call("where", (self.step_condition(d), self.scalar(d), self.scalar(d)))
            case "power":
                return Call("power", (self.pick(Hyper("b"), self.scalar(d)), self.integer(0)))
            case "real":
                return Call("power", (Call("abs", (self.scalar(d),)), self.pick(Hyper("c"), Number(-0.5))))
            case "exp":
                return Call("exp", (Call("neg", (Call("abs", (self.scalar(d),)),)),))
            case ("log" | "cos") as op:
                return Call(op, (self.scalar(d),))
        return Call("mul", (self.scalar(d), self.integer(d)))


def make(seed: int) -> Random:
    """The random program of a seed; what turns out to sum up a number, or has two shapes, is drawn again."""
    for attempt in range(20):
        try:
            return _made(seed, random.Random(seed + 1000 * attempt))
        except (SpecError, NotAvailable):
            continue
    raise AssertionError(seed)


def _made(seed: int, rng: random.Random, depth: int = 4) -> Random:
    maker = _Maker(rng)
    start = [
        Start("m", Number(0), 1),
        Start("v", Hyper("b"), 2),
        Start("w", Number(1), 3),
    ]
    body: list[ir.Statement] = list(start)
    if rng.random() < 0.5:
        body.append(Assign("p", maker.tensor(depth), 4))
    else:
        maker.rows = True
        along = Call("add", (maker.tensor(depth), maker.reduced(depth)))
        body.append(ir.Case(Call("matrix", ()), (Assign("p", along, 4),), 4))
        maker.rows = False
        body.append(ir.Case(Call("vector", ()), (Assign("p", maker.tensor(depth), 4),), 4))
    maker.tensors.append(Ref("p"))
    body.append(Assign("r", maker.scalar(depth - 1), 5))
    maker.scalars.append(Ref("r"))
    body.append(Assign("w", Call("mul", (Hyper("c"), Call("sub", (Ref("w", 1), Hyper("b"))))), 6))
    maker.scalars.append(Ref("w"))
    if rng.random() < 0.4:
        here, there = Assign("m", maker.tensor(depth - 1), 7), Assign("m", maker.tensor(depth - 1), 7)
        otherwise = (there,) if rng.random() < 0.5 else ()
        body.append(ir.When(maker.step_condition(2), (here,), otherwise, 7))
    else:
        body.append(Assign("m", maker.tensor(depth), 7))
    maker.tensors.append(Ref("m"))
    choosing = random.Random(seed + 7).random() < 0.4
    if choosing:
        body += maker.chosen(depth - 1)
    body.append(Assign("v", Call("abs", (maker.tensor(depth),)), 8))
    maker.tensors.append(Ref("v"))
    additive = rng.random() < 0.5
    change = maker.tensor(depth)
    # Whatever is drawn, everything reaches theta: what does not is refused.
    rest = Call("sub", (Call("mul", (Ref("p"), Ref("r"))), Call("mul", (Ref("m"), Ref("w")))))
    if choosing:
        rest = Call("add", (rest, Call("mul", (Ref("e"), Ref("z")))))
    small = Call("lt", (Call("abs", (change,)), Ref("v")))
    change = Call("where", (small, change, rest))
    value = Call("sub", (Ref("theta", 1), change)) if additive else change
    body.append(Assign("theta", value, 9))
    domains = {**HYPERS, **(CHOICES if choosing else {})}
    parameters = tuple(ir.Parameter(n, d, ir.REQUIRED, "", 0) for n, d in domains.items())
    program = ir.Program(
        "optimizer",
        f"random{seed}",
        f"Random{seed}",
        "A random program.",
        ("the test",),
        (),
        parameters,
        tuple(body),
        file="random.py",
    )
    hypers: dict[str, Any] = {
        "a": rng.choice([-0.7, 1.3, 0.001, -2.5]),
        "b": rng.choice([0.9, 0.0, 1e-3, 1.7]),
        "c": rng.choice([0.999, 0.25, 1.5]),
        "k": rng.choice([1, 2, 3]),
    }
    if choosing:
        hypers["flag"], hypers["kind"] = rng.random() < 0.5, rng.choice(CHOICES["kind"].choices)
        hypers["some"] = rng.choice([None, 0.7, -1.1])
    return Random(lower(check(program)), hypers)


def single(op: str) -> Random:
    """The program of one tensor operation on theta and g."""
    arity = ir.OPERATIONS[op].arity
    theta, g = Ref("theta", 1), Ref("g")
    args: tuple[ir.Expr, ...] = {1: (theta,), 2: (theta, g)}.get(arity, ())
    value: ir.Expr = Call(op, args)
    if op == "where":
        value = Call("where", (Call("lt", (theta, g)), theta, g))
    elif op == "power":
        value = Call("power", (theta, Number(3)))
    elif ir.OPERATIONS[op].result == "bool":
        condition = Call(op, args)
        if op in ("and", "or"):
            condition = Call(op, (Call("lt", (theta, g)), Call("gt", (theta, Number(0.0)))))
        elif op == "not":
            condition = Call("not", (Call("lt", (theta, g)),))
        value = Call("where", (condition, theta, g))
    program = ir.Program(
        "optimizer",
        f"single_{op}",
        f"Single{op.capitalize()}",
        "One operation.",
        ("the test",),
        (),
        (),
        (Assign("theta", value, 1),),
        file="single.py",
    )
    return Random(lower(check(program)), {})


TENSOR_OPS = tuple(
    name
    for name, op in ir.OPERATIONS.items()
    if op.shape == "elementwise" and op.tensors and name != "store"
)

SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, -1.0, 0.1, -2.5, 3.4e38)


def special_pairs(dtype: Any) -> tuple[Any, Any]:
    """Every pair of special values: two arrays of length 100."""
    values = np.array(SPECIAL, dtype)
    a, b = np.meshgrid(values, values, indexing="ij")
    return a.reshape(-1).copy(), b.reshape(-1).copy()


def ordinary(seed: int, dtype: Any) -> tuple[Any, Any]:
    """Values over six decades, exact zeros among them: a matrix, and every fourth time a vector."""
    rng = np.random.default_rng(seed)
    size = (8, 12) if seed % 4 else (96,)
    theta = rng.standard_normal(size)
    g = rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 3, size)
    g[rng.random(size) < 0.1] = 0.0
    return theta.astype(dtype), g.astype(dtype)


@dataclass(frozen=True)
class Reference:
    """What a program must give, and where the promise holds (no subnormal number on the way)."""

    theta: Any
    state: dict[str, Any]
    valid: Any


def reference(made: Random, theta: Any, g: Any, steps: int = 1) -> Reference:
    """The lowered program, node by node in NumPy."""
    dtype = theta.dtype
    run = Exact(made.lowered, theta.copy(), dtype=dtype)
    run.start(made.hypers)
    valid = np.ones(theta.shape, bool)
    for t in range(1, steps + 1):
        valid &= _normal(run, made, g, t)
        run.step(g, made.hypers, t)
    return Reference(run.theta, run.state, valid)


def _normal(run: Exact, made: Random, g: Any, t: int) -> Any:
    """Where no value of the coming step is subnormal."""
    lowered, dtype = made.lowered, np.dtype(run.dtype)
    tiny = np.finfo(dtype).tiny
    run.t = t
    with np.errstate(all="ignore"):
        names = run.scalars(made.hypers)
        tensors = {
            lowered.parameter: run.theta,
            "g": g,
            **{f"state.{s.name}": run.state[s.name] for s in lowered.tensor_states},
            **{f"s.{e}": run.rounded(names[e]) for e in lowered.exports},
            **{name: made.hypers[name] for name in lowered.choices},
        }
        evaluate(lowered.step, tensors, EXACT, run.literal)
        valid = np.ones(run.theta.shape, bool)
        smallest = np.finfo(np.float64).tiny
        for value in names.values():
            if isinstance(value, float | np.floating) and 0 < abs(value) < smallest:
                valid[...] = False
        for name, value in tensors.items():
            array = np.asarray(value)
            if array.dtype.kind == "f":
                size = np.abs(array)
                normal = ~((size > 0) & (size < tiny))
                valid &= normal if array.shape == valid.shape else normal.all()
            if name.startswith("s.") and array.dtype.kind == "f" and names[name[2:]] != 0:
                valid &= np.broadcast_to(np.abs(array) >= tiny, valid.shape) | ~np.isfinite(array)
    return valid if lowered.elementwise else np.broadcast_to(valid.all(), valid.shape)


def same(a: Any, b: Any) -> Any:
    """Equal bits, except that NaN equals NaN."""
    a, b = np.asarray(a), np.asarray(b)
    bits = {"float32": np.int32, "float64": np.int64}[a.dtype.name]
    return (a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))
