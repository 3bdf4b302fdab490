"""What a lowered program computes, one operation after another: the reference for every backend.

In: an `ir.Lowered` and numbers. Out: the result and the new states, either in NumPy with the exact bits
that every backend must have (`Exact`) or in mpmath with 50 digits, the oracle (`Oracle`). Must not
know: any backend, any text.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np

from generator import (
    elementary,
    ir,
    network,
    normal,
    regions,
    signs,
    storage,
    summation,
    threefry,
)
from generator.ir import Branch, Lowered, Number, Operand, Point, State, Step, Value, Word
from generator.shapes import FULL

Numbers = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------
# The meaning of each operation, in NumPy


def _maximum(x: Any, y: Any) -> Any:
    return np.where((x > y) | (x != x), x, y)


def _minimum(x: Any, y: Any) -> Any:
    return np.where((x < y) | (x != x), x, y)


def _sign(x: Any) -> Any:
    one = np.ones_like(x)
    return np.where(x > 0, one, np.where(x < 0, -one, x))


def _power(x: Any, k: int) -> Any:
    if k < 0:
        return np.float64(1.0) / _power(x, -k)
    result = np.float64(1.0)
    for bit in reversed(bin(k)[2:]):
        result = result * x if bit == "1" else result
        x = x * x
    return result


_COMMON: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "finite": lambda x: x - x == 0,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "call": lambda schedule, n: schedule(n),
    "length": len,
    "item": lambda entries, k: entries[k - 1],
    "matrix": lambda x: np.ndim(x) >= 2,
    "rows": lambda x: np.shape(x)[-2],
    "cols": lambda x: np.shape(x)[-1],
    "fill": np.full_like,
    "stack": lambda *features: np.stack(np.broadcast_arrays(*features)),
    "dense": network.dense,
    "entry": lambda x, k: x[k],
    "size_add": lambda a, b: a + b,
    "size_sub": lambda a, b: a - b,
    "size_mul": lambda a, b: a * b,
    "size_neg": lambda a: -a,
    "is": lambda choice, word: choice is None if word is None else choice == word,
}

EXACT: dict[str, Callable[..., Any]] = {
    **_COMMON,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": _sign,
    "minimum": _minimum,
    "maximum": _maximum,
    "floor": np.floor,
    "where": np.where,
    "not": np.logical_not,
    "power": _power,
    "real_power": elementary.real_power,
    "exp": elementary.exp,
    "log": elementary.log,
    "cos": elementary.cos,
    "to_float": np.float64,
    "pi": lambda: np.float64(math.pi),
    "sum": lambda x: summation.tree_sum(x)[()],
    "mean": lambda x: summation.tree_mean(x)[()],
    "row_sum": summation.row_sum,
    "row_mean": summation.row_mean,
    "matmul": np.matmul,
    "transpose": summation.transposed,
    "size_rows": summation.rows_of,
    "size_cols": summation.cols_of,
    "size_div": summation.size_ratio,
    "size_sqrt": summation.size_root,
    "size_maximum": summation.larger_size,
    "size_minimum": summation.smaller_size,
    "size_rounded": lambda x, like: like.dtype.type(x),
    "col_sum": summation.col_sum,
    "col_mean": summation.col_mean,
    "mean_but_first": summation.mean_but_first,
    "mean_but_last": summation.mean_but_last,
    "random_key": threefry.random_key,
    "normal": normal.normal,
}

# ... and with 50 digits, on single numbers

_DIGITS = 50


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        return mpmath.nan if a == 0 or mpmath.isnan(a) else mpmath.inf * mpmath.sign(a)
    return a / b


def _root(x: Any) -> Any:
    return mpmath.nan if x < 0 else mpmath.sqrt(x)


ORACLE: dict[str, Callable[..., Any]] = {
    **_COMMON,
    "div": _divide,
    "sqrt": _root,
    "abs": abs,
    "sign": lambda x: mpmath.sign(x),
    "minimum": lambda a, b: a if a < b or a != a else b,
    "maximum": lambda a, b: a if a > b or a != a else b,
    "floor": mpmath.floor,
    "where": lambda c, a, b: a if c else b,
    "not": lambda c: not c,
    "power": lambda x, k: x**k,
    "real_power": lambda x, y: mpmath.power(x, y) if x > 0 or y == 0 else mpmath.mpf(0) * x,
    "exp": mpmath.exp,
    "log": mpmath.log,
    "cos": mpmath.cos,
    "to_float": mpmath.mpf,
    "pi": lambda: +mpmath.pi,
    "store": lambda x: x,
    "random_key": threefry.random_key,
}


# ... on arrays of such numbers


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: np.frompyfunc(function, len(args), 1)(*args)


def _fsum(axis: int | None, mean: bool) -> Callable[[Any], Any]:
    """The sum along an axis, or of everything, divided by how many there are."""

    def function(x: Any) -> Any:
        x = np.asarray(x, object)
        total = x.sum(axis, keepdims=axis is not None) if x.size else mpmath.mpf(0)
        count = x.size if axis is None else x.shape[axis]
        return total / max(count, 1) if mean else total

    return function


def _drawn(key: Any, like: Any) -> Any:
    """The numbers of the wider dtype, of which the others are roundings."""
    return _digits(normal.normal(key, np.zeros(np.shape(like))))


def _fmean_but(axis: int) -> Callable[[Any], Any]:
    """The mean over all axes but one, repeated."""

    def function(x: Any) -> Any:
        slices = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        means = _fsum(1, mean=True)(slices).reshape([x.shape[axis]] + [1] * (x.ndim - 1))
        return np.broadcast_to(np.moveaxis(means, 0, axis), x.shape)

    return function


_AXES = {"": None, "row_": -1, "col_": -2}
ORACLE_TENSORS: dict[str, Callable[..., Any]] = {
    **{op: _elementwise(function) for op, function in ORACLE.items()},
    **{op: _COMMON[op] for op in ("matrix", "rows", "cols", "fill", "stack", "dense", "entry")},
    **{op: _COMMON[op] for op in ("size_add", "size_sub", "size_mul", "size_neg")},
    **{f"size_{op}": ORACLE[op] for op in ("div", "sqrt", "maximum", "minimum")},
    "size_rows": lambda x: mpmath.mpf(x.shape[-2]),
    "size_cols": lambda x: mpmath.mpf(x.shape[-1]),
    "size_rounded": lambda x, like: x,
    "matmul": lambda a, b: (a[..., :, :, None] * b[..., None, :, :]).sum(-2),
    "transpose": summation.transposed,
    **{f"{a}sum": _fsum(axis, mean=False) for a, axis in _AXES.items()},
    **{f"{a}mean": _fsum(axis, mean=True) for a, axis in _AXES.items()},
    "mean_but_first": _fmean_but(0),
    "mean_but_last": _fmean_but(-1),
    "normal": _drawn,
}


def evaluate(
    values: Sequence[Step],
    names: dict[str, Any],
    operations: Mapping[str, Callable[..., Any]],
    literal: Callable[[int | float], Any],
) -> dict[str, Any]:
    """Compute the values in their order; `names` holds the inputs and receives the results."""

    def operand(o: Operand) -> Any:
        if isinstance(o, Word):
            return o.value
        return literal(o.value) if isinstance(o, Number) else names[o]

    def exact_operand(o: Operand) -> Any:
        return names[o] if isinstance(o, str) else o.value

    for v in values:
        if isinstance(v, Value):
            given = map(exact_operand if v.op in ir.PLAIN else operand, v.args)
            names[v.name] = operations[v.op](*given)
            continue
        if isinstance(v, Branch):
            if isinstance(v.condition, ir.Hyper | ir.Call):
                way = 1 if regions.decided(v.condition, names) else 2
            else:
                way = 1 if operand(v.condition) else 2
            evaluate(v.body if way == 1 else v.otherwise, names, operations, literal)
            for c in v.carried:
                end = c[way]
                names[c[0]] = None if end is None else operand(end)
            continue
        for name, start, _ in v.carried:
            names[name] = operand(start)
        for k in range(1, int(operand(v.count)) + 1):
            names[v.index] = k
            evaluate(v.body, names, operations, literal)
            ends = [operand(end) for _, _, end in v.carried]
            names.update(zip([name for name, _, _ in v.carried], ends, strict=True))
    return names


@dataclass
class Exact:
    """One parameter under one program, in NumPy, with the bits that define the program."""

    lowered: Lowered
    theta: Any  # in the storage dtype
    state: dict[str, Any] = field(default_factory=dict)
    t: int = 0
    dtype: Any = np.float32  # the compute dtype
    stream: int = 0  # the parameter's place in its optimizer; what is drawn depends on it
    subnormal: Any = False  # where a value on the way was subnormal; such are flushed by some
    operations: Mapping[str, Callable[..., Any]] = field(default_factory=lambda: EXACT)
    storage: storage.Storage = field(default_factory=storage.Storage)

    def start(self, hypers: Numbers) -> None:
        """The states before the first step, as they are kept."""
        theta = np.asarray(self.theta).astype(self.dtype)
        self.keep({s.name: _start(s, theta, hypers, self.dtype) for s in self.lowered.states})
        name = self.storage.beside(self.theta.dtype.name)
        if name is not None:
            self.state[name] = self.storage.begun(theta)

    @functools.cached_property
    def codes(self) -> Mapping[str, str]:
        """The states that are kept in 8 bits, with their codes."""
        coded = signs.kept_in_8_bits(self.lowered)
        return self.storage.codes(coded, self.theta.dtype.name, self.theta.size)

    def keep(self, states: Mapping[str, Any]) -> None:
        """New values of states."""
        self.state.update(storage.entries(states, self.codes))

    def loaded(self) -> Any:
        """The parameter as the step takes it."""
        dtype, p = self.theta.dtype, np.asarray(self.theta).astype(self.dtype)
        name = self.storage.beside(dtype.name)
        if name is None:
            return p
        return self.storage.loaded(p, self.state[name], dtype.name)

    def store(self, x: Any) -> None:
        """A new value of the parameter."""
        dtype, name = self.theta.dtype, self.storage.beside(self.theta.dtype.name)
        if not self.storage.plain(dtype.name):
            x, rest = self.storage.parted(np.asarray(x), dtype.name, self.t, self.stream)
            if name is not None:
                self.state[name] = rest
        self.theta = np.asarray(x).astype(dtype)

    def step(self, g: Any, hypers: Numbers, t: int | None = None) -> None:
        """One step with gradient `g`; `t` where a clock is not the parameter's own."""
        step([self], [g], hypers, t)

    def begin(
        self, g: Any, hypers: Numbers, t: int | None, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a step may read, by name; the scalars are computed."""
        if not self.state and self.lowered.states:
            self.start(hypers)
        self.t = self.t + 1 if t is None else t
        names = self.scalars(hypers)
        for s in self.lowered.scalar_states:
            self.state[s.name] = names[s.name]
        kept = storage.opened(self.state, self.codes)
        return {
            self.lowered.parameter: self.loaded(),
            "g": np.asarray(g).astype(self.dtype),
            **{f"given.{k}": np.asarray(x).astype(self.dtype) for k, x in given.items()},
            **{f"state.{s.name}": kept[s.name] for s in self.lowered.tensor_states},
            **self.common(names),
        }

    def common(self, names: Numbers) -> dict[str, Any]:
        """What a step reads that is the same for all parameters: scalars, old values of shared states."""
        return {
            **{f"s.{e}": self.rounded(names[e]) for e in self.lowered.exports},
            **{f"shared.{s.name}_prev": self.state[s.name] for s in self.lowered.shared_states},
            **{name: names[name] for name in self.lowered.choices},
        }

    def finish(self, tensors: dict[str, Any]) -> None:
        """The step itself, once everything that it reads is known."""
        evaluate(self.lowered.step, tensors, self.operations, self.literal)
        self.subnormal = self.subnormal | self.flushed(tensors.values())
        self.keep({name: tensors[str(value)] for name, value in self.lowered.new_states})
        self.store(tensors[str(self.lowered.result)])

    def flushed(self, values: Iterable[Any]) -> Any:
        """Where one of the values, each of the parameter's shape or smaller, is subnormal."""
        found = np.zeros(np.shape(self.theta), bool)
        tiny = np.finfo(self.dtype).tiny
        for x in values:
            number = isinstance(x, np.ndarray | np.generic) and x.dtype == self.dtype
            size = np.abs(x) if number else np.float64(0)
            if (size < tiny).any() and ((size > 0) & (size < tiny)).any():
                where = (size > 0) & (size < tiny)
                alike = all(n in (1, k) for n, k in zip(size.shape[::-1], found.shape[::-1], strict=False))
                # What has another shape is a factor of products, and anywhere in what follows.
                found |= where if alike and np.ndim(size) <= found.ndim else True
        return found

    def wait(self, hypers: Numbers, t: int | None) -> dict[str, Any]:
        """A step without a gradient where all parameters share one clock: only that goes on."""
        if not self.state and self.lowered.states:
            self.start(hypers)
        self.t = self.t + 1 if t is None else t
        with np.errstate(all="ignore"):
            names = self.scalars(hypers)
        for s in self.lowered.scalar_states:
            self.state[s.name] = names[s.name]
        return self.common(names)

    def follow(self, p: ir.Pass, totals: Numbers, names: dict[str, Any]) -> None:
        """What follows from the totals of a pass, new values of shared states included."""
        names.update({k: self.rounded(x) for k, x in totals.items()})
        evaluate(p.values, names, EXACT, self.literal)
        names.update({f"shared.{e}": names[o] for e, o in p.exports})
        for s in self.lowered.shared_states:
            self.state[s.name] = names.get(f"shared.{s.name}", self.state[s.name])

    def scalars(self, hypers: Numbers) -> dict[str, Any]:
        """Everything of step scope, in double."""
        names: dict[str, Any] = {k: exact(v) for k, v in hypers.items()}
        names["t"] = self.t
        for s in self.lowered.scalar_states:
            names[f"{s.name}_prev"] = np.float64(self.state[s.name])
        operations = {**EXACT, "store": lambda x: np.float64(np.dtype(self.dtype).type(x))}
        return evaluate(self.lowered.scalars, names, operations, exact)

    def rounded(self, x: Any) -> Any:
        """A scalar in the compute dtype; conditions as they are, keys in the parameter's stream."""
        if np.ndim(x):
            return threefry.in_stream(x, self.stream)
        return x if x is None or isinstance(x, bool | np.bool_) else np.dtype(self.dtype).type(x)

    def literal(self, value: int | float) -> Any:
        """A literal of the step, in the compute dtype."""
        return np.dtype(self.dtype).type(value)


Again = Callable[[str, list[Any]], Sequence[Any]]


def step(
    runs: Sequence[Exact],
    grads: Sequence[Any],
    hypers: Numbers,
    t: int | None = None,
    given: Mapping[str, Sequence[Any]] | None = None,
    again: Again | None = None,
) -> None:
    """One step of several parameters; None for one that has no gradient.

    `given` has what else the program reads, for each parameter; `again` gives one more gradient, by
    name, where the parameters hold these values.
    """
    moving = [i for i, g in enumerate(grads) if g is not None]
    held = runs[0].lowered.held if runs else None
    t = None if held else t
    with np.errstate(all="ignore"):
        known = []
        for i in moving:
            besides = {name: values[i] for name, values in (given or {}).items()}
            known.append((runs[i], runs[i].begin(grads[i], hypers, t, besides)))
        waiting: list[tuple[Exact, dict[str, Any]]] = []
        if moving and runs[0].lowered.shared_states:
            idle = [r for r, g in zip(runs, grads, strict=True) if g is None]
            waiting = [(r, r.wait(hypers, t)) for r in idle]
        for p in runs[moving[0]].lowered.passes if moving else ():
            if isinstance(p, Point):
                assert again is not None, f"the program asks for another gradient ({p.name})"
                _elsewhere(p, runs, known, again)
                continue
            sums: dict[str, list[Any]] = {name: [] for name, _ in p.sums}
            for r, names in known:
                evaluate(p.partials, names, r.operations, r.literal)
                for name, operand in p.sums:
                    sums[name].append(names[str(operand)])
            totals = {f"total.{name}": total(parts) for name, parts in sums.items()}
            for r, names in (*known, *waiting):
                r.follow(p, totals, names)
        for r, names in known:
            r.finish(names)
        for r, names in (*known, *waiting) if held else ():
            r.t -= not names[f"shared.{held}"]


def _elsewhere(
    p: Point, runs: Sequence[Exact], known: Sequence[tuple[Exact, dict[str, Any]]], again: Again
) -> None:
    """One more gradient: the parameters hold its point, those without a gradient their values."""
    points = [r.theta for r in runs]
    at = [next(i for i, x in enumerate(runs) if x is r) for r, _ in known]
    for i, (r, names) in zip(at, known, strict=True):
        evaluate(p.partials, names, EXACT, r.literal)
        points[i] = np.asarray(names[str(p.at)]).astype(r.theta.dtype)
    taken = again(p.name, points)
    for i, (r, names) in zip(at, known, strict=True):
        names[f"given.{p.name}"] = np.asarray(taken[i]).astype(r.dtype)


def total(parts: Sequence[Any]) -> Any:
    """Numbers added in an order that does not depend on theirs: sorted first, then in the tree."""
    if parts[0] is None:  # the region that adds up does not happen
        return None
    return summation.tree_sum(np.sort(np.array(parts, np.result_type(*parts))))[()]


def exact(value: Any) -> Any:
    """A hyperparameter or literal in step scope: integers, conditions and functions as they are."""
    if isinstance(value, tuple | list):
        return tuple(exact(v) for v in value)
    if isinstance(value, float | np.floating):
        return np.float64(value)
    return value


def _start(s: State, theta: Any, hypers: Numbers, dtype: Any) -> Any:
    value = start_number(s, hypers)
    if s.scalar:
        return np.float64(np.dtype(dtype).type(value))
    if s.shared:
        return np.dtype(dtype).type(value)
    if not exists(s, theta.shape, hypers):
        return None
    return theta.copy() if value is None else np.full(kept_shape(s, theta.shape), value, dtype)


def exists(s: State, shape: tuple[int, ...], hypers: Numbers) -> bool:
    """Whether a parameter of this shape has the state, for these choices."""
    return all(
        (regions.decided(e, hypers) if regions.static(e) else _holds(e, shape)) == holds
        for e, holds in s.home
    )


def _holds(e: ir.Expr, shape: tuple[int, ...]) -> Any:
    match e:
        case Number(value):
            return value
        case ir.Call("matrix", _, _):
            return len(shape) >= 2
        case ir.Call("rows" | "cols" as op, _, _):
            return shape[-2 if op == "rows" else -1]
        case ir.Call(op, args, _):
            return EXACT[op](*(_holds(a, shape) for a in args))
    raise AssertionError(e)


def kept_shape(s: State, shape: tuple[int, ...]) -> Sequence[int]:
    """The shape of a state of a parameter of this shape."""
    return shape if s.shape == FULL else summation.sized(shape, s.shape)


def start_number(s: State, hypers: Numbers) -> Any:
    """The number that a state starts with; None where it starts as a copy of theta."""
    match s.start:
        case Number(value):
            return value
        case ir.Call("neg", (Number(value),), _):
            return -value
        case ir.Hyper(name):
            return hypers[name]
        case ir.Call("first", _, _):
            return 0.0
    return None


def schedule_value(lowered: Lowered, n: int, hypers: Numbers) -> float:
    """A schedule after n finished steps, with the bits that define it."""
    names: dict[str, Any] = {k: exact(v) for k, v in hypers.items()}
    names["n"] = n
    with np.errstate(all="ignore"):
        evaluate(lowered.scalars, names, EXACT, exact)
    result = lowered.result
    return float(exact(float(result.value)) if isinstance(result, Number) else names[str(result)])


@dataclass
class Oracle:
    """One parameter under one program, with 50 digits and no rounding between steps."""

    lowered: Lowered
    theta: Any  # an array
    state: dict[str, Any] = field(default_factory=dict)
    t: int = 0

    def step(
        self,
        g: Any,
        hypers: Numbers,
        given: Mapping[str, Any] | None = None,
        again: Callable[[str, Any], Any] | None = None,
    ) -> None:
        """One step; what else it reads as in `step`, of one parameter."""
        self.t += 1
        with mpmath.workdps(_DIGITS):
            if self.t == 1:
                self.theta = _digits(self.theta)
                self.state = {s.name: self.started(s, hypers) for s in self.lowered.states}
            names = {**{k: _high(v) for k, v in hypers.items()}, "t": self.t}
            for s in self.lowered.scalar_states:
                names[f"{s.name}_prev"] = self.state[s.name]
            evaluate(self.lowered.scalars, names, ORACLE, _high)
            tensors = {
                **{f"s.{e}": names[e] for e in self.lowered.exports},
                self.lowered.parameter: self.theta,
                "g": _digits(g),
                **{f"given.{k}": _digits(x) for k, x in (given or {}).items()},
                **{f"state.{k}": v for k, v in self.state.items()},
                **{f"shared.{k}_prev": v for k, v in self.state.items()},
                **{name: hypers[name] for name in self.lowered.choices},
            }
            for p in self.lowered.passes:
                evaluate(p.partials, tensors, ORACLE_TENSORS, _high)
                if isinstance(p, Point):
                    assert again is not None, f"the program asks for another gradient ({p.name})"
                    tensors[f"given.{p.name}"] = again(p.name, tensors[str(p.at)])
                    continue
                tensors.update({f"total.{name}": tensors[str(o)] for name, o in p.sums})
                evaluate(p.values, tensors, ORACLE_TENSORS, _high)
                tensors.update({f"shared.{e}": tensors[o] for e, o in p.exports})
            kept = {s.name: tensors[f"shared.{s.name}"] for s in self.lowered.shared_states}
            evaluate(self.lowered.step, tensors, ORACLE_TENSORS, _high)
            self.theta = tensors[str(self.lowered.result)]
            self.state = {
                **{s.name: names[s.name] for s in self.lowered.scalar_states},
                **kept,
                **{k: tensors[str(v)] for k, v in self.lowered.new_states},
            }

    def started(self, s: State, hypers: Numbers) -> Any:
        """A state before the first step."""
        value = start_number(s, hypers)
        if s.scalar or s.shared:
            return mpmath.mpf(value)
        if not exists(s, self.theta.shape, hypers):
            return None
        return self.theta if value is None else _digits(np.full(kept_shape(s, self.theta.shape), value))


def _digits(x: Any) -> Any:
    """An array of numbers with 50 digits."""
    return np.frompyfunc(lambda v: mpmath.mpf(float(v)), 1, 1)(np.asarray(x))


def _high(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_high(v) for v in value)
    if isinstance(value, float | np.floating):
        return mpmath.mpf(float(value))
    return value
