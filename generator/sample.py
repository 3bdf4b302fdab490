"""Values of a program at sample points, in ordinary NumPy: good for checks, not for bits.

In: programs. Out: whether a relation holds for the defaults, and where the first gradient is taken. Must
not know: messages, shapes, backends.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from generator import ir


class Unknown(Exception):
    """A value that depends on what is not given."""


def _norm(x: Any) -> Any:
    return np.sqrt(np.sum(x * x))


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "floor": np.floor,
    "where": np.where,
    "power": lambda x, y: np.float_power(x, y),
    "exp": np.exp,
    "log": np.log,
    "cos": np.cos,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "pi": lambda: math.pi,
    "sum": np.sum,
    "mean": np.mean,
    "norm": _norm,
    "rms": lambda x: np.sqrt(np.mean(x * x)),
    "row_mean": lambda x: np.mean(x, axis=-1, keepdims=True),
    "col_mean": lambda x: np.mean(x, axis=-2, keepdims=True),
    "row_sum": lambda x: np.sum(x, axis=-1, keepdims=True),
    "col_sum": lambda x: np.sum(x, axis=-2, keepdims=True),
    "row_norm": lambda x: np.sqrt(np.sum(x * x, axis=-1, keepdims=True)),
    "col_norm": lambda x: np.sqrt(np.sum(x * x, axis=-2, keepdims=True)),
    "row_rms": lambda x: np.sqrt(np.mean(x * x, axis=-1, keepdims=True)),
    "col_rms": lambda x: np.sqrt(np.mean(x * x, axis=-2, keepdims=True)),
    "mean_but_first": lambda x: np.mean(x, tuple(range(1, x.ndim)), keepdims=True) + 0 * x,
    "mean_but_last": lambda x: np.mean(x, tuple(range(x.ndim - 1)), keepdims=True) + 0 * x,
    "global_sum": np.sum,
    "global_norm": _norm,
    "matmul": np.matmul,
    "transpose": lambda x: np.swapaxes(x, -1, -2),
}


class _Values:
    """What is known: hyperparameters, clocks, and names at lags 0 and 1."""

    def __init__(self, hypers: Mapping[str, Any], theta: Any = None) -> None:
        self.hypers, self.theta = hypers, theta
        self.clocks: dict[str, int] = {}
        self.now: dict[str, Any] = {}
        self.before: dict[str, Any] = {} if theta is None else {"theta": theta}

    def value(self, e: ir.Expr) -> Any:
        match e:
            case ir.Number(value):
                return value
            case ir.Hyper(name) | ir.Call("length", _, name) if name in self.hypers:
                given = self.hypers[name]
                return len(given) if isinstance(e, ir.Call) else given
            case ir.Item(name, index) if name in self.hypers:
                return self.hypers[name][int(self.value(index)) - 1]
            case ir.Clock(name) if name in self.clocks:
                return self.clocks[name]
            case ir.Ref(name, lag) if name in (self.before if lag else self.now):
                return (self.before if lag else self.now)[name]
            case ir.Call("word", _, text):
                return None if text == "None" else text
            case ir.Call("eq", (a, ir.Call("word") as b), _):
                return self.value(a) == self.value(b)
            case ir.Call(("matrix" | "vector") as op, _, _) if self.theta is not None:
                return (self.theta.ndim >= 2) == (op == "matrix")
            case ir.Call(("rows" | "cols") as op, _, _) if self.theta is not None:
                return self.theta.shape[-2:][op == "cols"]
            case ir.Call(op, args, _) if op in _OPERATIONS:
                return _OPERATIONS[op](*map(self.value, args))
        raise Unknown

    def run(self, body: tuple[ir.Statement, ...]) -> ir.Expr | None:
        """Go through statements; the point of `g[t] = grad(point)` ends the walk."""
        for s in body:
            point: ir.Expr | None = None
            match s:
                case ir.Assign("g", ir.Call("grad", (point,), _)):
                    return point
                case ir.Assign(name, value):
                    self.keep(self.now, name, value)
                case ir.Start(name, value):
                    self.keep(self.before, name, value)
                case ir.When(condition, inner, other):
                    point = self.run(inner if self.holds(condition) else other)
                case ir.Case(condition, inner):
                    point = self.run(inner) if self.holds(condition) else None
                case ir.Loop(index, count, inner):
                    for k in range(1, int(self.value(count)) + 1):
                        self.clocks[index] = k
                        point = point or self.run(inner)
                        self.before |= {k: v for k, v in self.now.items() if k in self.before}
                    self.clocks.pop(index, None)
            if point is not None:
                return point
        return None

    def keep(self, where: dict[str, Any], name: str, value: ir.Expr) -> None:
        where.pop(name, None)
        with suppress(Unknown):  # which matters only if the point depends on it
            where[name] = self.value(value)

    def holds(self, condition: ir.Expr) -> bool:
        return bool(np.all(self.value(condition)))


def constant(e: ir.Expr) -> Any:
    """The value of an expression of literals alone; `Unknown` where it is of more."""
    with np.errstate(all="ignore"):
        return _Values({}).value(e)


def defaults_fit(program: ir.Program, relation: ir.Expr) -> bool:
    """Whether a relation holds between defaults; true where it needs a value that has none."""
    given = {p.name: p.default for p in program.parameters if p.default is not ir.REQUIRED}
    try:
        with np.errstate(all="ignore"):
            return _Values(given).holds(relation)
    except (Unknown, TypeError):
        return True


def fit(program: ir.Program, given: Mapping[str, Any]) -> bool:
    """Whether hyperparameters fulfil what a program requires of them."""
    with np.errstate(all="ignore"):
        return all(_Values(given).holds(relation) for relation, _ in program.relations)


def starts_at_theta(program: ir.Program) -> bool:
    """Whether the point of `g[t] = grad(point)` is theta[0] at t = 1, tried at a few places."""
    rng = random.Random(0)
    for shape in ((3, 2), (2, 3), (4,), ()) * 2:
        theta = np.array([rng.uniform(-2, 2) for _ in range(math.prod(shape))]).reshape(shape)
        values = _Values({p.name: _some(p, rng) for p in program.parameters}, theta)
        values.clocks["t"] = 1
        try:
            with np.errstate(all="ignore"):
                starts = [s for s in ir.statements(program.body) if isinstance(s, ir.Start)]
                values.run(tuple(starts))
                point = values.run(program.body)
                if point is not None and not _close(values.value(point), theta):
                    return False
        except Unknown:
            return False
    return True


def _close(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-9, atol=1e-9)


def _some(p: ir.Parameter, rng: random.Random) -> Any:
    """A value of a hyperparameter's domain."""
    d = p.domain
    if d.many:
        return tuple(_one(d, rng) for _ in range(max(d.least, 2)))
    return _one(d, rng)


def _one(d: ir.Domain, rng: random.Random) -> Any:
    match d.type:
        case "bool":
            return rng.random() < 0.5
        case "choice":
            return rng.choice(d.choices)
        case "int":
            first = int(max(d.low, -5))
            return rng.randint(first, int(min(d.high, first + 5)))
        case "schedule":
            return rng.random()
    low = max(d.low, -3.0)
    return rng.uniform(low, min(d.high, low + 3.0))
