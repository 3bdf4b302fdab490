"""What every generated NumPy optimizer shares: exact scalar functions, checks, the shell.

In: arrays, lists or nested dictionaries of arrays, and their gradients. Out: the same arrays, updated
in place. Must not know: any one algorithm (the generated files hold those).

Scalars (functions of the step and the hyperparameters) are `numpy.float64` and follow IEEE 754 without
exceptions; each is rounded once to the compute dtype before it meets an array.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.domains import (
    Count,
    Domain,
    PositiveCount,
    check_all,
    check_relations,
    check_schedule,
    check_shape,
    check_states,
    check_weights,
    settled,
    told,
)
from backends.rules import Assignment, Rule, Rules, Setting, Times
from generator.elementary import cos, exp, log, real_power
from generator.network import dense as dense
from generator.normal import normal as normal
from generator.storage import Storage, entries, opened
from generator.summation import sized, tree_sum
from generator.threefry import of_parameter, random_key

Array = NDArray[Any]
Scalar = Any  # numpy.float64 in step scope; a scalar of the compute dtype in a kernel
Tree = Any  # an array, a list or tuple of trees, or a dictionary of trees

# ---------------------------------------------------------------------------------------------------
# Operations whose values NumPy leaves open


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN if either is NaN; x only where x > y, so maximum(+0, -0) is -0."""
    return np.where((x > y) | (x != x), x, y)[()]


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN if either is NaN."""
    return np.where((x < y) | (x != x), x, y)[()]


def sign(x: Any) -> Any:
    """1 above zero, -1 below; zeros and NaN are kept."""
    one = np.asarray(x).dtype.type(1)
    return np.where(x > 0, one, np.where(x < 0, -one, x))[()]


def where(condition: Any, a: Any, b: Any) -> Any:
    """a if the condition of step scope holds, else b; a literal as a double, which divides by 0."""
    chosen = a if condition else b
    return np.float64(chosen) if isinstance(chosen, float) else chosen


def power(x: Any, k: int) -> Any:
    """x**k by squaring from the lowest bit; the same products on every backend."""
    if k < 0:
        return np.float64(1.0) / power(x, -k)
    result = np.float64(1.0)
    while k:
        if k & 1:
            result = result * x
        k >>= 1
        if k:
            x = x * x
    return result


# ---------------------------------------------------------------------------------------------------
# What sums are made of, and shapes


def join(parts: Sequence[Array], axis: int = -1) -> Array:
    """Arrays one after another along an axis."""
    return np.concatenate(parts, axis)


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """The same numbers in another shape."""
    return np.reshape(x, shape)


def spread(x: Any, like: Any) -> Any:
    """The same numbers along axes that have one, repeated to the shape of an array."""
    return np.broadcast_to(x, like.shape)


def zeros(shape: Sequence[int], like: Any) -> Array:
    """Zeros in the dtype of an array."""
    return np.zeros(shape, like.dtype)


def transposed(x: Array) -> Array:
    """The last two axes exchanged."""
    return np.swapaxes(x, -1, -2)


def stack(*features: Any) -> Array:
    """Arrays and numbers side by side along a new first axis."""
    return np.stack(np.broadcast_arrays(*features))


def rounded_size(x: Any, like: Any) -> Any:
    """A double that follows from rows and columns, rounded once to the dtype of an array."""
    return like.dtype.type(x)


# ---------------------------------------------------------------------------------------------------
# What random numbers are made of: words of 32 bits, as numpy.uint32


def word(x: Any) -> Array:
    """A word of an integer, modulo 2**32; with an axis, since scalars warn where they wrap around."""
    return np.array([int(x) & 0xFFFFFFFF], np.uint32)


def packed(words: Sequence[Array]) -> Array:
    """Words as one array."""
    return np.concatenate(words)


def counted(count: int, like: Any) -> Array:
    """The words 0, 1, ..., as many as there are numbers."""
    return np.arange(count, dtype=np.uint32)


def added(a: Array, b: Array) -> Array:
    """The sum modulo 2**32."""
    return a + b


def rotated(x: Array, k: int) -> Array:
    """The bits of words moved up by k, those beyond the top to the bottom."""
    return x << k | x >> (32 - k)


def moved(x: Array, k: int) -> Array:
    """The bits of integers moved down by k."""
    return x >> k


def number(x: Array, like: Array) -> Array:
    """Integers as floats of the dtype of an array; those here have room in it."""
    return x.astype(like.dtype)


def bits_of(x: Array) -> Array:
    """The bits of floats as signed integers."""
    return x.view(np.int64 if double(x) else np.int32)


def of_bits(bits: Array, like: Array) -> Array:
    """Floats of their bits."""
    return bits.view(like.dtype)


def double(like: Array) -> bool:
    """Whether numbers are computed in float64; else in float32."""
    return like.dtype == np.float64


def shaped_like(x: Array, like: Array) -> Array:
    """Numbers one after another in the shape of an array."""
    return x.reshape(like.shape)


def guard(like: Any) -> Callable[[Any], Any]:
    """Return fl, the rounded operation: here each operation is rounded on its own."""
    return lambda x: x


sqrt, select = np.sqrt, np.where

# ---------------------------------------------------------------------------------------------------
# Regions and shapes


def branch(condition: Any, here: Callable[[], Any], there: Callable[[], Any]) -> Any:
    """What one of two functions gives, the first where the condition holds."""
    return here() if condition else there()


def is_matrix(x: Any) -> bool:
    """Whether a parameter has two axes or more; rows and columns are the last two."""
    return np.ndim(x) >= 2


def kept(theta: Array, value: Any, *sizes: str | int) -> Array:
    """A state of another shape than its parameter's, filled: a number, rows, columns."""
    return np.full(sized(theta.shape, sizes), value, theta.dtype)


# ---------------------------------------------------------------------------------------------------
# What storage is made of


def as_bytes(k: Any) -> Any:
    """Whole numbers from 0 to 255 as uint8."""
    return k.astype(np.uint8)


def below(x: Any) -> Any:
    """The largest whole numbers that are not above."""
    return np.floor(x)


def greatest(x: Any) -> Any:
    """The largest number along the last axis, which becomes 1."""
    return np.max(x, -1, keepdims=True)


def taken(table: tuple[float, ...], k: Any) -> Any:
    """The entries of a table of float32 numbers at some places."""
    return _as_array(table)[k]


@functools.cache
def _as_array(table: tuple[float, ...]) -> Array:
    return np.array(table, np.float32)


# ---------------------------------------------------------------------------------------------------
# Methods


class Method(NamedTuple):
    """An algorithm as the shell runs it: pure functions and what they keep."""

    name: str
    state: Any  # the NamedTuple of tensor states
    init: Callable[..., Any]  # (theta, **hypers) -> tensor states
    scalars: Callable[..., Any]  # (t, **hypers) -> the step's scalars in double
    step: Callable[..., Any]  # (theta, g, state, s[, given][, shared]) -> (theta, state)
    elementwise: bool = True  # whether every number goes its own way
    only: str = ""  # the parameters that it is for, matrix or vector; empty: all
    # Before the step, in this order: over all parameters, (theta, g, state, s[, given][, shared]) -> sums
    # and (totals, s[, shared]) -> shared; or where one more gradient is taken, and its name.
    passes: tuple[tuple[Callable[..., Any], Any], ...] = ()
    given: Any = None  # the NamedTuple of what the caller gives beside the gradient
    weights: Mapping[str, tuple[int, ...]] = {}  # what of it is given at construction: names, shapes
    inputs: Mapping[str, str] = {}  # what a step is asked for: the scalar that says whether it is read
    numbers: tuple[str, ...] = ()  # what of that is one number for all parameters
    sources: tuple[str, ...] = ()  # the scalars that are keys of noise
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    choices: Mapping[str, str] = {}  # what kernels are told besides, of which hyperparameters
    scalar_states: Mapping[str, float | str] = {}  # states of step scope: a number or a hyper's name
    shared: Any = None  # the NamedTuple of what passes leave, where old shared states enter them
    shared_states: Mapping[str, float | str] = {}  # states of all parameters, likewise
    held: str | None = None  # what of `shared` says whether the step counts; None: it does
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    coded: Mapping[str, str] = {}  # states that may be kept in 8 bits, with their codes
    requires: Callable[..., Mapping[str, Any]] | None = None  # relations: text, whether it holds


def decided(method: Method, hypers: Mapping[str, Any]) -> Method:
    """The method for the choices among the hyperparameters: its kernels need no longer be told."""
    said = told(method.choices, hypers)
    if not said:
        return method
    return method._replace(
        init=settled(method.init, said),
        step=settled(method.step, said),
        passes=tuple((settled(first, said), then) for first, then in method.passes),
        choices={},
    )


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def stored(x: Array, dtype: np.dtype[Any]) -> Array:
    """A float32 result in the parameter's dtype, rounded once, to nearest even."""
    return x if x.dtype == dtype else x.astype(dtype)


def _rounding(dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    """Rounds a double to the compute dtype and gives it back as a double."""
    return lambda x: np.float64(dtype.type(x))


def _rounded(s: Any, dtype: np.dtype[Any]) -> Any:
    """The step's scalars in the compute dtype, conditions and keys as they are."""
    kind = dtype.type
    return type(s)(*(x if x is None or isinstance(x, (bool, np.bool_)) or np.ndim(x) else kind(x) for x in s))


def _exact(value: Any) -> Any:
    """A hyperparameter as the equations take it: doubles for numbers, tuples entry by entry."""
    if isinstance(value, (tuple, list)):
        return tuple(_exact(v) for v in value)
    if isinstance(value, (bool, str)) or value is None or callable(value):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    return np.float64(value)


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of a tree with its path: `layers[0].weight`."""
    if isinstance(tree, Mapping):
        for key, sub in tree.items():
            yield from leaves(sub, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)):
        for i, sub in enumerate(tree):
            yield from leaves(sub, f"{path}[{i}]")
    else:
        yield path, tree


def _by_path(owner: str, what: str, tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their paths, which have to differ."""
    named: dict[str, Any] = {}
    for path, x in leaves(tree):
        if path in named:
            raise ValueError(f"{owner}: two {what} have the path {path}. Rename one of their keys.")
        named[path] = x
    return named


def rebuilt(tree: Tree, values: Iterator[Any]) -> Tree:
    """A tree of the same structure with other leaves."""
    if isinstance(tree, Mapping):
        return {key: rebuilt(sub, values) for key, sub in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([rebuilt(sub, values) for sub in tree])
    return next(values)


def _floating(dtype: np.dtype[Any]) -> bool:
    """float16, float32, float64, and bfloat16 where a package has brought it to NumPy."""
    return dtype in (np.float16, np.float32, np.float64) or dtype.name == "bfloat16"


def _check_array(owner: str, what: str, path: str, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{owner}: {what} {path or 'array'} is a {type(value).__name__}, not a NumPy array. "
            "Pass numpy.asarray(...)."
        )
    native = value.dtype.newbyteorder("=")
    if native != value.dtype and _floating(native):
        raise TypeError(
            f"{owner}: {what} {path or 'array'} has dtype {value.dtype}, whose byte order is not this "
            f"machine's. Convert it, x.astype(numpy.{native})."
        )
    if not _floating(value.dtype):
        raise TypeError(
            f"{owner}: {what} {path or 'array'} has dtype {value.dtype}; only floating-point arrays "
            "can be optimized. Convert it, for example x.astype(numpy.float32)."
        )


def _check_writeable(owner: str, path: str, p: Array) -> None:
    if not p.flags.writeable:
        raise ValueError(
            f"{owner}: parameter {path or 'array'} is read-only. Pass a copy, or set "
            "x.flags.writeable = True."
        )


def _check_apart(owner: str, arrays: Mapping[str, Array]) -> None:
    """Refuse arrays that share memory: a step on one would move the other in the middle of its own."""
    ends = []
    for path, p in arrays.items():
        steps = [(n - 1) * stride for n, stride in zip(p.shape, p.strides, strict=True)]
        low = p.ctypes.data + sum(min(step, 0) for step in steps)
        high = p.ctypes.data + sum(max(step, 0) for step in steps) + p.itemsize
        ends += [(low, high, path)] if p.size else []
    reach: list[tuple[int, str]] = []  # where those that begin earlier end
    for low, high, path in sorted(ends):
        reach = [(end, other) for end, other in reach if end > low]
        for _, other in reach:
            if np.shares_memory(arrays[path], arrays[other]):
                raise ValueError(
                    f"{owner}: {other} and {path} share memory. Pass copies, or the array they are part of."
                )
        reach.append((high, path))


def _check_gradient(owner: str, path: str, p: Array, g: Any, what: str = "gradient") -> None:
    _check_array(owner, f"the {what} of", path, g)
    if g.shape != p.shape:
        raise ValueError(
            f"{owner}: the {what} of {path or 'the parameter'} has shape {g.shape}, the parameter "
            f"has shape {p.shape}. Pass the {what} of this parameter, or reshape it."
        )
    if p.dtype != np.float64 and g.dtype == np.float64:
        raise TypeError(
            f"{owner}: the {what} of {path or 'the parameter'} has dtype {g.dtype}, the parameter "
            f"has dtype {p.dtype}. Rounding it would hide a mistake; convert it yourself, "
            f"g.astype(numpy.{p.dtype})."
        )


@dataclass
class _Together:
    """What parameters of one compute dtype have in common, where they have states together."""

    s: Any  # the step's scalars
    dtype: np.dtype[Any]
    clock: dict[str, Any]  # what is kept of them
    shared: Any  # what the passes have left so far


def over_all(
    method: Method,
    arguments: Sequence[Any],
    given: Sequence[Any] = (),
    elsewhere: Callable[[list[Any]], Sequence[Any]] | None = None,
    together: Sequence[_Together] = (),
) -> list[tuple[Any, ...]]:
    """What each kernel call is given besides: what comes before the step, if anything.

    Args:
        method: the algorithm's record.
        arguments: (theta, g, state, s) for each parameter.
        given: what the caller gives, for each parameter, where the method reads any of it.
        elsewhere: the gradients where the parameters hold other values.
        together: what parameters have in common, for each dtype, where they have states together.
    """
    besides = [{"given": x} for x in given] or [{} for _ in arguments]
    common = {x.dtype: x for x in together}
    for (theta, *_), b in zip(arguments, besides, strict=True):
        b |= {"shared": common[theta.dtype].shared} if together else {}
    for first, then in method.passes if arguments else ():
        found = [first(*a, *b.values()) for a, b in zip(arguments, besides, strict=True)]
        if isinstance(then, str):
            assert elsewhere is not None, f"{method.name} takes gradients of its own"
            for b, g in zip(besides, elsewhere(found), strict=True):
                b["given"] = b["given"]._replace(**{then: g})
            continue
        total = type(found[0])(*map(total_of, zip(*found, strict=True)))
        for x in together:
            x.shared = then(_rounded(total, x.dtype), x.s, x.shared)
        made: dict[int, Any] = {}  # the parameters of a step share their scalars
        for (theta, _, _, s), b in zip(arguments, besides, strict=True):
            if together:
                b["shared"] = common[theta.dtype].shared
                continue
            if id(s) not in made:
                shared = () if "shared" not in b else (b["shared"],)
                made[id(s)] = then(_rounded(total, theta.dtype), s, *shared)
            b["shared"] = made[id(s)]
    return [tuple(b.values()) for b in besides]


def total_of(parts: Sequence[Any]) -> Any:
    """The sum over parameters: sorted first, so that their order does not matter."""
    if parts[0] is None:  # choices leave nothing to be added up
        return None
    return tree_sum(np.sort(np.array(parts, np.result_type(*parts))))


def _there(state: Any) -> dict[str, Any]:
    """The states that a parameter of its shape has."""
    return {name: value for name, value in state._asdict().items() if value is not None}


# ---------------------------------------------------------------------------------------------------
# The shell


def _times(value: Any, factor: float) -> Any:
    """A number or a schedule, so many times."""
    return (lambda n: np.float64(value(n)) * factor) if callable(value) else value * factor


class _Ready(NamedTuple):
    """One parameter before its step."""

    path: str
    slot: dict[str, Any]  # its state after the step, but for the tensors
    arguments: tuple[Any, ...]  # what its kernel is given: (theta, g, state, s)


class Optimizer:
    """Updates arrays in place: `optimizer.step(grads)`.

    Every hyperparameter is an attribute, checked when it is set; a float one may be a schedule, a
    function of the number of finished steps. So is `steps`, the clock of schedules. All else is settled
    when the optimizer is made: parameters, rules, and how parameters and states are kept, `storage`. A
    subclass declares attributes of its own in its body, or begins their names with an underscore.
    """

    method: Method
    domains: Mapping[str, Domain]

    weights: Mapping[str, Array]  # meta-parameters, where the method has any

    def __init__(
        self,
        params: Tree,
        rules: Sequence[Rule] = (),
        *,
        store: str = "nearest",
        states: str = "float32",
        weights: Any = None,
        **hypers: Any,
    ) -> None:
        self.name = type(self).__name__
        seed = hypers["seed"] if "seed" in self.domains else hypers.pop("seed", 0)
        self._check(hypers)
        self.storage = Storage(store, states, seed).check(self.name)
        self.weights = weights
        self.__dict__.update(hypers, method=decided(self.method, hypers))
        whole = self.method.shared_states, self.method.elementwise, type(self).method.choices
        self._rules = Rules(self.name, rules, self.domains, {}, hypers, self._scheduled, *whole)
        self.params = params
        self.steps = 0  # finished steps; the clock of schedules
        self.shared: dict[str, dict[str, Any]] = {}  # what is kept once, for each compute dtype
        self._arrays = _by_path(self.name, "parameters", params)
        self._evaluating: dict[str, Array] | None = None
        self._resumed = False  # whether a state was loaded since the last step
        if not self._arrays:
            raise ValueError(f"{self.name}: there is nothing to optimize; params is empty.")
        seen: dict[int, str] = {}
        for path, p in self._arrays.items():
            _check_array(self.name, "parameter", path, p)
            _check_writeable(self.name, path, p)
            if id(p) in seen:
                raise ValueError(f"{self.name}: {seen[id(p)]} and {path} are the same array.")
            seen[id(p)] = path
        _check_apart(self.name, self._arrays)
        self._streams = {path: i for i, path in enumerate(self._arrays)}  # places, for random numbers
        shapes = [(path, p.shape) for path, p in self._arrays.items()]
        self._settings = dict(zip(self._arrays, self._rules.assign(shapes), strict=True))
        for path, shape in shapes:
            if (setting := self._settings[path]).train:
                called = f"parameter {path or 'array'}"
                check_shape(self.name, self.method.only, called, setting.seen(shape))
        for setting in self._rules.settings.values():
            self._check(setting.over(hypers, _times))
        self.state: dict[str, dict[str, Any]] = {path: {} for path in self._arrays}

    def __setattr__(self, name: str, value: Any) -> None:
        made = "state" in self.__dict__  # the last of its own, which a hyperparameter may resemble
        if made and name not in self.domains and not name.startswith("_"):
            self._check_attribute(name, value)
        if name == "weights":
            known = check_weights(self.name, self.method.weights, value)
            value = {k: np.array(x) for k, x in known.items()}
        if name in self.domains:
            hypers = {**self.hypers, name: value}
            for setting in self._rules.settings.values():
                self._check(setting.over(hypers, _times))
            for state, start in self.method.shared_states.items():
                if start == name and self.shared:
                    raise ValueError(
                        f"{self.name}: {name} is where {state} began, and changes nothing any more. "
                        f'Set optimizer.shared["float32"]["{state}"].'
                    )
            if name in type(self).method.choices.values():
                self._choose(f"{name} = {value!r}", {**self.hypers, name: value})
        super().__setattr__(name, value)

    def _check_attribute(self, name: str, value: Any) -> None:
        """Refuse to set what is settled, or is nothing at all: it would change nothing, or break the run."""
        owner = type(self).__name__
        if name == "steps":
            Count.check(owner, name, value)
        elif name in ("state", "shared"):
            raise AttributeError(f"{owner}: {name} is what the steps made. Pass it to load_state_dict.")
        elif name in ("params", "rules", "store", "states", "seed"):
            given = "params" if name == "params" else f"params, {name}=..."
            raise AttributeError(
                f"{owner}: {name} is settled when the optimizer is made. Make another, {owner}({given})."
            )
        elif name in ("name", "storage", "method", "domains"):
            raise AttributeError(f"{owner}: {name} is settled when the optimizer is made. Make another.")
        elif not (name in self.__dict__ or any(name in self._declared(c) for c in type(self).__mro__)):
            meant = difflib.get_close_matches(name, self.domains, 1, 0.8)
            hint = f"Did you mean {meant[0]}?" if meant else f"There are {', '.join(self.domains)}."
            raise AttributeError(f"{owner} has no {name}. {hint}")

    @staticmethod
    def _declared(cls: type) -> set[str]:
        """What the body of a class names."""
        return {*vars(cls), *vars(cls).get("__annotations__", {})}

    def _choose(self, what: str, hypers: Mapping[str, Any]) -> None:
        """Take other kernels for other choices, unless a parameter's states do not fit them."""
        chosen = decided(type(self).method, hypers)
        for path, p in self._arrays.items():
            if self.state[path]:
                given = dict.fromkeys(chosen.init_hypers, 0.0)
                before, after = (m.init(p, **given) for m in (self.method, chosen))
                check_states(self.name, what, before, after, chosen.state._fields)
        self.__dict__["method"] = chosen

    @property
    def hypers(self) -> dict[str, Any]:
        """The hyperparameters as they are set now."""
        return {name: self.__dict__[name] for name in self.domains if name in self.__dict__}

    def _check(self, hypers: Mapping[str, Any]) -> None:
        """Refuse what lies outside its domain; schedules are checked by what they give."""
        known = {k: v for k, v in hypers.items() if not self._scheduled(self.domains[k], v)}
        for name in hypers.keys() - known.keys():
            check_schedule(type(self).__name__, name, self.domains[name], hypers[name])
        check_all(type(self).__name__, {k: self.domains[k] for k in known}, known)
        for state, start in self.method.shared_states.items():
            if callable(hypers.get(str(start))):
                raise TypeError(
                    f"{type(self).__name__}: {start} is where {state} begins, which goes its own way, so "
                    "it cannot be a schedule. Pass a number."
                )
        if len(hypers) == len(self.domains):
            check_relations(type(self).__name__, self.method.requires, hypers)

    @staticmethod
    def _scheduled(domain: Domain, value: Any) -> bool:
        """Whether a value is a schedule in place of a number."""
        return callable(value) and domain.kind == "float"

    def _now(self, setting: Setting) -> dict[str, Any]:
        """The hyperparameters of the coming step, schedules evaluated and checked."""
        now = {}
        for name, value in setting.over(self.hypers, _times).items():
            if self._scheduled(self.domains[name], value):
                value = value(self.steps)
                self.domains[name].check(self.name, f"{name}({self.steps})", value)
            now[name] = _exact(value)
        return now

    def assignment(self) -> Assignment:
        """Which rules hold for which parameter, and what follows: a table when it is printed."""
        named = [(path, p.shape, self._settings[path]) for path, p in self._arrays.items()]
        return self._rules.assignment(self.hypers, named)

    def step(self, grads: Tree | Callable[[Tree], Tree], **given: Any) -> None:
        """Do one step in place.

        Args:
            grads: gradients in the structure of `params`; shapes equal the parameters'. None for a
                parameter leaves it, its states and its step count as they are; where there are
                states of all parameters together, `shared`, there is one count for all, which goes on.
                A rule with train=False leaves it, too. Or a function that computes them,
                `gradient(params)`: algorithms that take several gradients a step call it again while
                `params` hold another point.
            **given: what else the algorithm reads, by name: a tree like `grads`, or a function that
                makes one of `params`, called in those steps that read it.

        Raises:
            ValueError: a gradient is missing, superfluous or of another shape; nothing is changed.
            TypeError: a gradient is not a floating-point array, or is no function where several are
                taken; nothing is changed.
        """
        if self._evaluating is not None:
            raise RuntimeError(
                f"{self.name}: step inside `with optimizer.evaluation()`. Leave the block first."
            )
        self._check_given(grads, given)
        if self._resumed:
            self._check_point()
        again = grads if callable(grads) else None
        now = self._matched(grads(self.params) if callable(grads) else grads)
        if self._takes_several:  # the function may use its memory again
            now = {path: None if g is None else g.copy() for path, g in now.items()}
        moving = [
            (i, path)
            for i, path in enumerate(self._arrays)
            if now[path] is not None and self._settings[path].train
        ]
        hypers = {s: self._now(s) for s in dict.fromkeys(self._settings[path] for _, path in moving)}
        with np.errstate(all="ignore"):
            scalars: dict[Any, Any] = {}
            plain = self._rules.settings[()]  # no rules where there are states of all parameters
            together = self._together(hypers[plain], scalars) if plain in hypers else {}
            ready = [
                self._ready(path, i, now[path], hypers, scalars, together) for i, path in moving
            ]
            besides = self._given(ready, given)
            with self._elsewhere(ready, again) as elsewhere:
                calls = [x.arguments for x in ready]
                shared = over_all(self.method, calls, besides, elsewhere, [*together.values()])
            for x, w in zip(ready, shared, strict=True):
                self._update(x, w)
            for kind, common in together.items():
                new = {name: getattr(common.shared, name) for name in self.method.shared_states}
                if self.method.held and not getattr(common.shared, self.method.held):
                    new["step"] = common.clock["step"] - 1
                self.shared[kind] = {**common.clock, **new}
            for x in ready if together else ():
                x.slot["step"] = self.shared[compute_dtype(x.arguments[0].dtype).name]["step"]
        self.steps += 1

    @property
    def _takes_several(self) -> bool:
        return any(isinstance(then, str) for _, then in self.method.passes)

    def _check_given(self, grads: Any, given: Mapping[str, Any]) -> None:
        """Refuse what the algorithm cannot do with: too few gradients, other inputs."""
        if self._takes_several and not callable(grads):
            raise TypeError(
                f"{self.name} takes several gradients a step. Pass a function that computes them: "
                "optimizer.step(gradient), where gradient(params) gives gradients like params."
            )
        names = self.method.inputs
        if odd := [k for k in given if k not in names]:
            reads = f"reads {', '.join(names)}" if names else "reads nothing but gradients"
            raise TypeError(f"{self.name}: step was given {', '.join(odd)}; it {reads}. Leave it out.")
        if lacking := [k for k in names if given.get(k) is None]:
            what = ", ".join(f"{k}=..." for k in lacking)
            raise TypeError(f"{self.name}: step reads {', '.join(lacking)}. Pass {what}.")

    def _given(self, ready: Sequence[_Ready], given: Mapping[str, Any]) -> list[Any]:
        """What the caller gives, for each parameter in its compute dtype; zeros where it is not read."""
        method = self.method
        if method.given is None or not ready:
            return []
        made: list[dict[str, Any]] = [
            {k: w.astype(x.arguments[0].dtype, copy=False) for k, w in self.weights.items()} for x in ready
        ]
        for name, when in method.inputs.items():
            asked = not when or any(bool(getattr(x.arguments[3], when)) for x in ready)
            value = given[name](self.params) if asked and callable(given[name]) else given[name]
            if name in method.numbers:
                for m, x in zip(made, ready, strict=True):
                    dtype = x.arguments[0].dtype.type
                    m[name] = dtype(0 if not asked else self._number(name, value))
                continue
            trees = None if not asked else self._matched(value, name)
            for m, x in zip(made, ready, strict=True):
                theta = x.arguments[0]
                found = None if trees is None else trees[x.path]
                if trees is not None and found is None:
                    raise ValueError(
                        f"{self.name}: {name} has nothing for {x.path or 'the parameter'}, which has a "
                        "gradient. Pass an array."
                    )
                m[name] = np.zeros_like(theta)
                if found is not None:
                    m[name] = found.astype(theta.dtype).reshape(theta.shape)
        return [method.given(**m) for m in made]

    def _number(self, name: str, value: Any) -> float:
        if np.ndim(value) != 0 or np.asarray(value).dtype.kind not in "fiu":
            raise TypeError(f"{self.name}: {name} must be a number, got {value!r}.")
        return float(value)

    @contextmanager
    def _elsewhere(
        self, ready: Sequence[_Ready], gradient: Callable[[Tree], Tree] | None
    ) -> Iterator[Callable[[list[Any]], list[Any]]]:
        """A function that takes one more gradient; behind it the parameters are as they were."""
        before = {x.path: self._arrays[x.path].copy() for x in ready} if self._takes_several else {}

        def elsewhere(points: list[Any]) -> list[Any]:
            assert gradient is not None
            for x, point in zip(ready, points, strict=True):
                p = self._arrays[x.path]
                p[...] = stored(np.asarray(point), p.dtype).reshape(p.shape)
            taken, made = self._matched(gradient(self.params)), []
            for x in ready:
                g = taken[x.path]
                if g is None:
                    raise ValueError(
                        f"{self.name}: {x.path or 'the parameter'} has a first gradient in this step "
                        "and no further one. Give it all of them, or none."
                    )
                theta = x.arguments[0]
                made.append(np.array(g, theta.dtype).reshape(theta.shape))
            return made

        try:
            yield elsewhere
        finally:
            for path, value in before.items():
                self._arrays[path][...] = value

    def _matched(self, tree: Tree, what: str = "gradient") -> dict[str, Any]:
        """Gradients by the parameters' paths: each has one (or None) of its shape, and none is left over."""
        named = _by_path(self.name, f"{what}s", tree)
        # Reductions give NumPy scalars where the parameter is an array without axes.
        given = {k: np.asarray(g) if isinstance(g, np.generic) else g for k, g in named.items()}
        missing = [path or "params" for path in self._arrays if path not in given]
        extra = [path or "grads" for path in given if path not in self._arrays]
        if missing or extra:
            wrong = []
            if missing:
                wrong.append(f"no {what} for {', '.join(missing)}")
            if extra:
                wrong.append(f"no parameter for the {what} {', '.join(extra)}")
            raise ValueError(
                f"{self.name}: {'; '.join(wrong)}. Pass {what}s in the structure of params, "
                "None for a parameter that has none."
            )
        for path, g in given.items():
            if g is not None:
                _check_gradient(self.name, path, self._arrays[path], g, what)
                _check_writeable(self.name, path, self._arrays[path])
        return given

    def _together(
        self, hypers: Mapping[str, Any], scalars: dict[Any, Any]
    ) -> dict[str, _Together]:
        """What parameters have in common in this step, where they have states together."""
        method, made = self.method, {}
        for dtype in {compute_dtype(p.dtype) for p in self._arrays.values()} if method.shared_states else ():
            clock = dict(self.shared.get(dtype.name, {}))
            if not clock:
                clock = {"step": 0, **self._starts(method.scalar_states, dtype, hypers)}
                begun = self._starts(method.shared_states, dtype, hypers)
                clock |= {name: dtype.type(x) for name, x in begun.items()}
            shared = method.shared(**{f"{name}_prev": clock[name] for name in method.shared_states})
            s = self._scalars(dtype, clock, hypers, scalars)
            made[dtype.name] = _Together(s, dtype, clock, shared)
        return made

    def _starts(
        self, starts: Mapping[str, float | str], dtype: np.dtype[Any], hypers: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Numbers that states begin with, in a compute dtype."""
        given = {k: hypers[x] if isinstance(x, str) else x for k, x in starts.items()}
        return {name: float(dtype.type(x)) for name, x in given.items()}

    def _ready(
        self,
        path: str,
        place: int,
        g: Array,
        settings: Mapping[Setting, Mapping[str, Any]],
        scalars: dict[Any, Any],
        together: Mapping[str, _Together],
    ) -> _Ready:
        """One parameter: what its kernel is given. Nothing is changed yet."""
        method, slot, p = self.method, dict(self.state[path]), self._arrays[path]
        dtype, setting = compute_dtype(p.dtype), self._settings[path]
        hypers = settings[setting]
        g32 = g.astype(dtype, copy=False).reshape(setting.seen(p.shape))
        if not slot:
            slot.update(step=0, **self._begun(path, hypers))
            if not together:
                slot.update(self._starts(method.scalar_states, dtype, hypers))
        s = together[dtype.name].s if together else self._scalars(dtype, slot, hypers, scalars, setting)
        s = of_parameter(method.sources, s, place)
        return _Ready(path, slot, (self._loaded(path, slot), g32, self._state_of(p, slot), s))

    def _scalars(
        self,
        dtype: np.dtype[Any],
        clock: dict[str, Any],
        hypers: Mapping[str, Any],
        scalars: dict[Any, Any],
        setting: Setting | None = None,
    ) -> Any:
        """The scalars of the coming step; the clock and the states of step scope are put on."""
        method = self.method
        t = clock["step"] + 1
        kept = {f"{name}_prev": np.float64(clock[name]) for name in method.scalar_states}
        key = (setting, t, dtype, *kept.values())
        if key not in scalars:
            store = {"store": _rounding(dtype)} if kept else {}
            s = method.scalars(t, **kept, **store, **hypers)
            scalars[key] = s, _rounded(s, dtype)
        s, rounded = scalars[key]
        for name in method.scalar_states:
            clock[name] = float(getattr(s, name))
        clock["step"] = t
        return rounded

    def _begun(self, path: str, hypers: Mapping[str, Any]) -> dict[str, Array]:
        """The tensors that are kept of a parameter, before its first step."""
        p = self._arrays[path]
        theta = p.astype(compute_dtype(p.dtype), copy=False)
        theta = theta.reshape(self._settings[path].seen(p.shape))
        started = self.method.init(theta, **{h: hypers[h] for h in self.method.init_hypers})
        kept, beside = entries(_there(started), self._codes(p)), self.storage.beside(p.dtype.name)
        if beside is not None:
            kept[beside] = self._beside(p, self.storage.begun(theta))
        return kept

    def _codes(self, p: Array) -> Mapping[str, str]:
        """The states of a parameter that are kept in 8 bits."""
        return self.storage.codes(self.method.coded, p.dtype.name, p.size)

    def _loaded(self, path: str, slot: Mapping[str, Any]) -> Array:
        """The parameter as the kernel takes it."""
        p = self._arrays[path]
        # Where further gradients are taken the parameter's memory holds other points.
        wide = p.astype(compute_dtype(p.dtype), copy=self._takes_several)
        theta: Array = wide.reshape(self._settings[path].seen(p.shape))
        beside = self.storage.beside(p.dtype.name)
        if beside is None:
            return theta
        return np.asarray(self.storage.loaded(theta, slot[beside].astype(theta.dtype), p.dtype.name))

    def _beside(self, p: Array, x: Array) -> Array:
        """What is kept beside a parameter: its copy in the compute dtype, a rest in its own."""
        return np.array(x, None if self.storage.store == "master" else p.dtype)

    def _store(self, path: str, slot: dict[str, Any], x: Array) -> None:
        """A new value of a parameter, in place, and what is kept beside it."""
        p = self._arrays[path]
        kind, name = p.dtype.name, self.storage.beside(p.dtype.name)
        if not self.storage.plain(kind):
            x, beside = self.storage.parted(x, kind, slot["step"], self._streams[path])
            if name is not None:
                slot[name] = self._beside(p, beside)
        p[...] = stored(x, p.dtype).reshape(p.shape)

    def _update(self, x: _Ready, w: tuple[Any, ...]) -> None:
        """One parameter: run the kernel and store."""
        p, (theta, g, *_) = self._arrays[x.path], x.arguments
        new, state = self.method.step(*x.arguments, *w)
        self._store(x.path, x.slot, np.asarray(new))
        for name, value in entries(_there(state), self._codes(p)).items():
            # The user's own gradient and parameter arrays are not kept: they change outside.
            x.slot[name] = np.array(value, copy=value is g or value is theta or None)
        self.state[x.path] = x.slot

    def _state_of(self, p: Array, slot: Mapping[str, Any]) -> Any:
        """The tensor states as the kernel takes them."""
        kept = opened(slot, self._codes(p))
        return self.method.state(**{k: kept.get(k) for k in self.method.state._fields})

    @contextmanager
    def evaluation(self) -> Iterator[Tree]:
        """The parameters to evaluate with: `with optimizer.evaluation(): ...`.

        Where the algorithm takes its gradient at another point (look-ahead), `params` hold that point
        during training; inside this block they hold the iterate. Copies are swapped, nothing is
        recomputed, so a run with evaluations has the bits of a run without.
        """
        name = self.method.evaluate
        if self._evaluating is not None:  # a block inside a block; the outer one swaps back
            yield self.params
            return
        if name is not None:
            self._evaluating = {path: p.copy() for path, p in self._arrays.items()}
            for path, p in self._arrays.items():
                if self.state[path]:
                    p[...] = stored(self.state[path][name], p.dtype).reshape(p.shape)
        try:
            yield self.params
        finally:
            if self._evaluating is not None:
                for path, p in self._arrays.items():
                    p[...] = self._evaluating[path]
                self._evaluating = None

    def _check_point(self) -> None:
        """Warn where what is resumed from are the parameters to evaluate with."""
        self._resumed, name = False, self.method.evaluate
        moved = {path: slot for path, slot in self.state.items() if slot and slot["step"]}
        if name is not None and moved and all(
            np.array_equal(p, stored(slot[name], p.dtype).reshape(p.shape), equal_nan=True)
            for p, slot in ((self._arrays[path], slot) for path, slot in moved.items())
        ):
            warnings.warn(
                f"{self.name}: the parameters are those to evaluate with, not those that the loaded "
                "state was saved beside, so this run does not go on where that one was. Save them "
                "outside of optimizer.evaluation() to go on, inside to use them.",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to go on, as numbers and copies of arrays; no pickle needed."""
        state = {
            path: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in slot.items()}
            for path, slot in self.state.items()
        }
        kept = {
            kind: {k: x if k == "step" else float(x) for k, x in values.items()}
            for kind, values in self.shared.items()
        }
        made = {"algorithm": self.method.name, "steps": self.steps, "state": state}
        return made | ({"shared": kept} if kept else {})

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; refused, with nothing changed, where it does not fit."""
        if not isinstance(saved, Mapping) or not {"steps", "state"} <= saved.keys():
            raise ValueError(f"{self.name}: this is not what state_dict() gave. Pass that.")
        if saved.get("algorithm", self.method.name) != self.method.name:
            raise ValueError(
                f"{self.name}: the saved state is of {saved['algorithm']}. Another optimizer saved it: load "
                "it into that one."
            )
        counts = [saved["steps"], *(slot["step"] for slot in saved["state"].values() if "step" in slot)]
        for n in counts:
            if np.ndim(n) or np.asarray(n).dtype.kind not in "iu" or n < 0:
                what = f"the saved step count is {n!r}. It must be an integer, 0 or more."
                raise ValueError(f"{self.name}: {what}")
        if set(saved["state"]) != set(self.state):
            odd = sorted(set(saved["state"]) ^ set(self.state))
            raise ValueError(f"{self.name}: the saved state has other parameters: {', '.join(odd)}.")
        fits = {}
        for path, slot in saved["state"].items():
            p = self._arrays[path]
            fits[path] = fitting = self._begun(path, dict.fromkeys(self.method.init_hypers, 0.0))
            own = () if self.method.shared_states else self.method.scalar_states
            wanted = {"step", *own, *fitting}
            if slot and set(slot) != wanted:
                has, needs = (", ".join(sorted(names)) for names in (slot, wanted))
                raise ValueError(
                    f"{self.name}: the saved state of {path or 'the parameter'} has {has}; expected is "
                    f"{needs}. Another optimizer saved it, or one with another store or states."
                )
            for name, value in slot.items():
                if np.asarray(value).dtype.kind not in "fiu" and not _floating(np.asarray(value).dtype):
                    raise TypeError(f"{self.name}: the saved {name} of {path} is {value!r}, no number.")
                shape = np.shape(fitting.get(name, value))
                if np.shape(value) != shape:
                    raise ValueError(
                        f"{self.name}: the saved {name} of {path} has shape {np.shape(value)}, that of "
                        f"a parameter of shape {p.shape} has shape {shape}."
                    )
        kept = self._kept(saved)
        self.__dict__.update(steps=int(saved["steps"]), shared=kept)
        for path, slot in saved["state"].items():
            self.state[path] = {
                k: np.array(v, fits[path][k].dtype) if k in fits[path] else v for k, v in slot.items()
            }
        self._resumed = True

    def _kept(self, saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The saved states of all parameters together, in their dtypes."""
        method, kept = self.method, saved.get("shared", {})
        names = {"step", *method.scalar_states, *method.shared_states}
        kinds = {compute_dtype(p.dtype).name for p in self._arrays.values()}
        begun = method.shared_states and any(saved["state"].values())
        if set(kept) != (kinds if kept or begun else set()) or any(set(x) != names for x in kept.values()):
            raise ValueError(
                f"{self.name}: the saved state has other states of all parameters together; expected "
                f"are {', '.join(sorted(names))} in {', '.join(sorted(kinds))}. Another optimizer saved it."
                if method.shared_states
                else f"{self.name}: the saved state has states of all parameters together, of which "
                "there are none here. Another optimizer saved it."
            )
        return {
            kind: {k: np.dtype(kind).type(x) if k in method.shared_states else x for k, x in values.items()}
            for kind, values in kept.items()
        }

    def __repr__(self) -> str:
        inside = [f"{k}={v!r}" for k, v in self.hypers.items()]
        inside += [f"rules={[*self._rules.given]}"] if self._rules.given else []
        return f"{self.name}({', '.join(inside)})"


class Schedule:
    """A learning rate as a function of the number of finished steps, in double precision."""

    function: Callable[..., Any]
    domains: Mapping[str, Domain]
    requires: Callable[..., Mapping[str, Any]] | None = None

    def __init__(self, **hypers: Any) -> None:
        check_all(type(self).__name__, self.domains, hypers)
        check_relations(type(self).__name__, type(self).__dict__.get("requires"), hypers)
        self.__dict__.update(hypers)
        self._hypers = {name: self._callable(name, value) for name, value in hypers.items()}

    def _callable(self, name: str, value: Any) -> Any:
        """Schedules among the hyperparameters as functions, numbers as doubles."""
        if self.domains[name].kind != "schedule":
            return _exact(value)
        if isinstance(value, (tuple, list)):
            return tuple(self._callable(name, v) for v in value)
        if callable(value):
            return lambda n: np.float64(value(n))
        return lambda n: np.float64(value)

    def __call__(self, n: int) -> float:
        """The learning rate after n finished steps."""
        if not isinstance(n, (int, np.integer)) or n < 0:
            raise ValueError(f"{type(self).__name__}: n must be an integer, 0 or more, got {n!r}.")
        with np.errstate(all="ignore"):
            return float(type(self).__dict__["function"](int(n), **self._hypers))

    def table(self, n: int) -> Array:
        """The first n values."""
        return np.array([self(k) for k in range(n)])

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={self.__dict__[k]!r}" for k in self.domains)
        return f"{type(self).__name__}({inside})"


def transformed(
    owner: str,
    method: Method,
    domains: Mapping[str, Domain],
    grads: Tree,
    params: Tree | None,
    hypers: Mapping[str, Any],
    t: int = 1,
) -> Tree:
    """New gradients in the structure of the old; None stays None."""
    PositiveCount.check(owner, "t", t)
    check_all(owner, domains, hypers)
    method = decided(method, hypers)
    given = dict(leaves(grads))
    at = dict(leaves(params)) if params is not None else {}
    exact = {k: _exact(v) for k, v in hypers.items()}
    arguments: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        scalars: dict[Any, Any] = {}
        for place, (path, g) in enumerate(given.items()):
            if g is None:
                continue
            _check_array(owner, "the gradient of", path, g)
            theta = at.get(path, g)
            _check_gradient(owner, path, theta, g)
            check_shape(owner, method.only, f"the gradient {path or 'array'}", g.shape)
            dtype = compute_dtype(g.dtype)
            if dtype not in scalars:
                scalars[dtype] = _rounded(method.scalars(t, **exact), dtype)
            theta, g32 = theta.astype(dtype, copy=False), g.astype(dtype, copy=False)
            s = of_parameter(method.sources, scalars[dtype], place)
            arguments[path] = theta, g32, method.init(theta), s
        shared = dict(zip(arguments, over_all(method, list(arguments.values())), strict=True))
        results = [
            None if g is None else stored(np.asarray(method.step(*arguments[k], *shared[k])[0]), g.dtype)
            for k, g in given.items()
        ]
    return rebuilt(grads, iter(results))
