"""The language that specs are written in: `from generator.language import *`.

In: a decorated function whose body reads like the algorithm box of a paper. Out: a `Spec`; `trace`
calls the function once and records its SymPy equations exactly as written. Must not know: what the
equations mean (check.py), what is computed (lower.py), any framework.

SymPy sorts sums and products when it evaluates, and that changes bits, so the function runs under
`operators.as_written`; nothing after freeze.py touches SymPy again.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import sympy as sp

from generator import ir
from generator.errors import TOO_DEEP, SpecError, brief, explain, shallow, suggest
from generator.operators import as_written
from generator.syntax import Scope, Source, find, scan, written

_FUNCTIONS = (
    *"sqrt abs sign minimum maximum floor where equal finite exp log cos sum mean norm rms".split(),
    *"row_mean col_mean row_sum col_sum row_norm col_norm row_rms col_rms".split(),
    *"mean_but_first mean_but_last global_sum global_norm grad update oracle noise".split(),
    *"meta stack dense entry".split(),
    *"first length iterate case when otherwise evaluate require".split(),
)
_VALUES = ("t", "n", "pi", "matrix", "vector", "rows", "cols")
_SHAPES = ("full", "row", "column", "scalar")
_TIMED = ("theta", "g", "lr")

__all__ = [
    *(*_FUNCTIONS, *_VALUES, *_SHAPES, *_TIMED),
    *"names optimizer schedule transform wrapper chain route hypergradient".split(),
    *"Choice Optional Annotated Domain".split(),
    *"NonNegative Positive Decay Real Count PositiveCount Schedule".split(),
]

LARGEST = 2**31 - 1  # of integers: JAX has no wider ones as it comes

# ---------------------------------------------------------------------------------------------------
# Domains

NonNegative = ir.Domain("NonNegative", low=0.0)
Positive = ir.Domain("Positive", low=0.0, low_open=True)
Decay = ir.Domain("Decay", low=0.0, high=1.0)
Real = ir.Domain("Real")
Count = ir.Domain("Count", "int", low=0)
PositiveCount = ir.Domain("PositiveCount", "int", low=1)
Schedule = ir.Domain("Schedule", "schedule")
Annotated = typing.Annotated
_PLAIN = {bool: ir.Domain("bool", "bool"), float: Real, int: ir.Domain("Integer", "int")}


def Domain(
    low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> ir.Domain:
    """An interval of its own, for `Annotated[float, Domain(0, 1)]`; both ends belong to it."""
    for end in (low, high):
        if type(end) not in (int, float) or (type(end) is int and not _finite(end)):
            raise SpecError(*_here(), f"{brief(end)} is no end of a domain. Write Domain(0, 1).")
    if not (low < high or (low == high and not (low_open or high_open))):
        raise SpecError(*_here(), f"Domain({low}, {high}) is empty. Write the smaller end first.")
    return ir.Domain("Domain", "float", low, high, low_open, high_open)


class Choice:
    """`Choice["a", "b"]`: one of these words."""

    def __class_getitem__(cls, words: str | tuple[str, ...]) -> ir.Domain:
        """The domain of these words."""
        chosen = words if isinstance(words, tuple) else (words,)
        if not chosen or not all(isinstance(w, str) and _WORD.fullmatch(w) for w in chosen):
            raise SpecError(*_here(), 'Choice[...] lists words. Write Choice["a", "b"].')
        for position, word in enumerate(chosen):
            if word in chosen[:position]:
                raise SpecError(*_here(), f"{word!r} stands twice in Choice[...]. Write it once.")
        return ir.Domain("Choice", "choice", choices=chosen)


class Optional:
    """`Optional[Domain]`: such a value, or None."""

    def __class_getitem__(cls, domain: Any) -> ir.Domain:
        """The domain with None added."""
        return replace(_domain(domain), optional=True)


def _domain(annotation: Any) -> ir.Domain:
    """The domain that an annotation stands for; KeyError where it stands for none."""
    if isinstance(annotation, ir.Domain):
        return annotation
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and arguments[1:] == (Ellipsis,):
        return replace(_domain(arguments[0]), many=True)
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, ir.Domain):
            whole = annotation.__origin__ is int and extra.type == "float"
            return replace(extra, type="int") if whole else extra
    return _PLAIN[annotation]


_WORD = re.compile(r"(?!None\b)\w[\w .+-]*")  # stands in quotes and in docstrings


def _finite(value: float) -> bool:
    """Whether a number of Python is one as a double."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


# ---------------------------------------------------------------------------------------------------
# The recording: what a traced function leaves behind


@dataclass
class Recorded:
    """One statement as SymPy sees it; `what` is set, loop, when, otherwise or case."""

    what: str
    line: int
    name: str = ""
    index: Any = None
    value: Any = None
    body: list[Recorded] = field(default_factory=list)


class Equation(sp.Eq):  # type: ignore[misc]  # SymPy has no types
    """An equation that prints as it was written, where SymPy's own printers sort sums."""

    def _sympystr(self, printer: Any) -> str:
        given = {k: v for k, v in printer._settings.items() if k in printer._default_settings}
        return str(type(printer)({**given, "order": "none"})._print_Relational(self))

    _latex = _sympystr


@dataclass
class Trace:
    """Everything a spec says: the equations as written, and what its signature declares."""

    spec: Spec
    parameters: tuple[ir.Parameter, ...]
    body: list[Recorded]
    requires: list[tuple[Any, int]]
    oracles: dict[str, tuple[tuple[str, ...], str]]
    evaluate: tuple[Any, int] | None = None
    documented: int = 0  # the first line of the docstring

    @property
    def equations(self) -> list[sp.Eq]:
        """The equations in the author's order, unevaluated."""

        def collect(body: list[Recorded]) -> Iterator[sp.Eq]:
            for r in body:
                if r.what == "set":
                    left = sp.Indexed(sp.IndexedBase(r.name), r.index)
                    yield Equation(left, sp.sympify(r.value), evaluate=False)
                yield from collect(r.body)

        with as_written():
            return list(collect(self.body))


class _Recording:
    """The trace being made; regions nest by pushing a block."""

    def __init__(self, source: Source) -> None:
        self.named = source.named
        self.blocks: list[list[Recorded]] = [[]]
        self.requires: list[tuple[Any, int]] = []
        self.oracles: dict[str, tuple[tuple[str, ...], str]] = {}
        self.evaluate: tuple[Any, int] | None = None

    def add(self, record: Recorded) -> None:
        self.blocks[-1].append(record)

    @contextmanager
    def region(self, record: Recorded) -> Iterator[None]:
        self.add(record)
        self.blocks.append(record.body)
        yield
        self.blocks.pop()


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def _here() -> tuple[str, int]:
    """File and line of the spec that called into the language."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _record(what: str) -> _Recording:
    current = _recording.get()
    if current is None:
        raise SpecError(*_here(), f"{what} stands outside a spec. Put it in a decorated function.")
    return current


# ---------------------------------------------------------------------------------------------------
# Names, clocks and hyperparameters

t = sp.Symbol("t", integer=True, positive=True)
n = sp.Symbol("n", integer=True, nonnegative=True)


class TimeIndexed:
    """A name with a time: `m[t]`, `m[t-1]`, `m[0]`. Setting one records an equation."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index: Any) -> sp.Indexed:
        """The value at a time."""
        return sp.Indexed(sp.IndexedBase(self.name), index)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record `name[index] = value`."""
        _, line = _here()
        _record(f"{self.name}[{index}] = ...").add(Recorded("set", line, self.name, index, value))

    def __repr__(self) -> str:
        return self.name


theta, g, lr = TimeIndexed("theta"), TimeIndexed("g"), TimeIndexed("lr")


def names(text: str) -> Any:
    """Names to write equations in: `m, v = names("m v")`, one name alone for one word."""
    place = _here()
    words = text.replace(",", " ").split() if isinstance(text, str) else []
    if not words:
        raise SpecError(*place, 'names(...) makes no name. Write m, v = names("m v").')
    for position, word in enumerate(words):
        if word in RESERVED:
            raise SpecError(*place, reserved(word, "a state"))
        if word in words[:position]:
            raise SpecError(*place, f"{word} stands twice in names(...). Write it once.")
        if not _NAME.fullmatch(word):
            raise SpecError(
                *place, f"{word!r} is not a name. Use letters, digits and _, a letter first."
            )
        if keyword.iskeyword(word):
            raise SpecError(*place, f"{word} is a word of Python. Choose another name.")
    made = tuple(map(TimeIndexed, words))
    return made[0] if len(made) == 1 else made


_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")


class Word(sp.Symbol):  # type: ignore[misc]  # SymPy has no types
    """A word in quotes, with which a choice is compared, or None."""


class Item(sp.Indexed):  # type: ignore[misc]  # SymPy has no types
    """One entry of a tuple hyperparameter; callable where the entry is a schedule."""

    def __call__(self, step: Any) -> Any:
        """The entry, a schedule, at a step."""
        return sp.Function("call")(self, step)


class ScheduleParameter(sp.Symbol):  # type: ignore[misc]  # SymPy has no types
    """A hyperparameter that is a schedule: `schedule(n - warmup)`."""

    def __call__(self, step: Any) -> Any:
        """The schedule at a step."""
        return sp.Function("call")(self, step)


class TupleParameter:
    """A hyperparameter that is a tuple: `boundaries[k]` with k = 1, 2, ..."""

    def __init__(self, name: str) -> None:
        self.name, self.symbol = name, sp.Symbol(name)

    def __getitem__(self, index: Any) -> Item:
        """The entry at an index that counts from 1."""
        return Item(sp.IndexedBase(self.name), index)


def _symbol(parameter: ir.Parameter) -> Any:
    """What stands for a hyperparameter in the equations; SymPy learns its domain for proofs."""
    domain = parameter.domain
    if domain.many:
        return TupleParameter(parameter.name)
    if domain.type == "schedule":
        return ScheduleParameter(parameter.name)
    if domain.type in ("bool", "choice"):
        return sp.Symbol(parameter.name)
    facts: dict[str, bool] = {"integer": True} if domain.type == "int" else {"real": True}
    if domain.low > 0 or (domain.low == 0 and domain.low_open):
        facts["positive"] = True
    elif domain.low == 0:
        facts["nonnegative"] = True
    return sp.Symbol(parameter.name, **facts)


# ---------------------------------------------------------------------------------------------------
# Operations: uninterpreted functions, so that SymPy has no opinion about them


def _function(name: str) -> Callable[..., Any]:
    made = sp.Function(name)
    operation = ir.OPERATIONS[name]

    def apply(*operands: Any) -> Any:
        return made(*_counted(name, operation.arity, operands))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = operation.meaning
    return apply


def _counted(name: str, arity: int, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    if arity == ir.ANY and len(operands) < 2:
        raise SpecError(*_here(), f"{name} takes two operands or more. Write {name}(a, b, c).")
    if arity not in (len(operands), ir.ANY):
        nested = f"Nest them: {name}(a, {name}(b, c))." if len(operands) > arity == 2 else ""
        example = nested or f"Write {written(name, arity)}."
        number = {0: "no operand", 1: "1 operand"}.get(arity, f"{arity} operands")
        what = f"{name} takes {number}, not {len(operands)}. {example}"
        raise SpecError(*_here(), what)
    return operands


sqrt, abs, sign = _function("sqrt"), _function("abs"), _function("sign")
minimum, maximum = _function("minimum"), _function("maximum")
floor, where, finite = _function("floor"), _function("where"), _function("finite")
exp, log, cos = _function("exp"), _function("log"), _function("cos")
sum, mean = _function("sum"), _function("mean")
norm, rms = _function("norm"), _function("rms")
row_mean, col_mean = _function("row_mean"), _function("col_mean")
row_sum, col_sum = _function("row_sum"), _function("col_sum")
row_norm, col_norm = _function("row_norm"), _function("col_norm")
row_rms, col_rms = _function("row_rms"), _function("col_rms")
mean_but_first, mean_but_last = _function("mean_but_first"), _function("mean_but_last")
global_sum, global_norm = _function("global_sum"), _function("global_norm")
stack, dense, entry = _function("stack"), _function("dense"), _function("entry")
grad = _function("grad")
pi = sp.pi
matrix, vector = sp.Symbol("matrix"), sp.Symbol("vector")
rows, cols = (sp.Symbol(x, integer=True, positive=True) for x in ("rows", "cols"))
full, row, column, scalar = _SHAPES


# How many operands each function takes.
_ARITY = {
    **{name: ir.OPERATIONS[name].arity for name in _FUNCTIONS if name in ir.OPERATIONS},
    **dict.fromkeys("first length iterate case when evaluate require oracle noise".split(), 1),
    **{"equal": 2, "otherwise": 0, "meta": 2, "stack": 3},
}


def equal(*operands: Any) -> Any:
    """Whether two values are equal; a choice is compared with a word, an option with None."""
    a, b = (
        Word(str(x)) if x is None or isinstance(x, str) else sp.sympify(getattr(x, "symbol", x))
        for x in _counted("equal", 2, operands)
    )
    return sp.Eq(a, b)


def length(*operands: TupleParameter) -> Any:
    """How many entries a tuple hyperparameter has."""
    (parameter,) = _counted("length", 1, operands)
    return sp.Function("length")(sp.Symbol(parameter.name))


def first(*operands: TimeIndexed) -> Any:
    """The start of a state that keeps the previous gradient: `g[0] = first(g)`."""
    (gradient,) = _counted("first", 1, operands)
    return sp.Function("first")(sp.Symbol(gradient.name))


def update(*operands: Any) -> Any:
    """The wrapped optimizer's new parameters for this gradient: `inner = update(g[t])`."""
    (gradient,) = _counted("update", 1, operands)
    _, line = _here()
    current, value = _record("update"), sp.Function("update")(gradient)
    name = current.named.get(line, "")
    if not name:
        return value
    current.add(Recorded("set", line, name, t, value))
    return sp.Indexed(sp.IndexedBase(name), t)


def noise(*operands: str) -> Any:
    """Standard normal numbers, the same bits on every backend: `xi = noise("xi")`."""
    (name,) = _counted("noise", 1, operands)
    return _input("noise", name, ("full",), "tensor")


def oracle(*operands: str, shape: Any = "full", scope: str = "tensor") -> Any:
    """A further input besides the gradient, such as a Hessian diagonal or the loss."""
    (name,) = _counted("oracle", 1, operands)
    sizes = tuple(map(str, shape)) if isinstance(shape, tuple) else (str(shape),)
    right = {"rows", "cols", "1"}
    if not (set(sizes) <= right if len(sizes) > 1 else sizes[0] in _SHAPES):
        what = "is no shape. Write full, row, column, scalar, or a pair such as (rows, rows)."
        raise SpecError(*_here(), f"{shape} {what}")
    if scope not in ("tensor", "global"):
        what = 'is no scope. Write "tensor", one a parameter, or "global", one for all.'
        raise SpecError(*_here(), f"{scope!r} {what}")
    return _input("oracle", name, sizes, scope)


def meta(*operands: Any) -> Any:
    """A meta-parameter, an array that the caller gives once: `W1 = meta("W1", (16, 8))`."""
    name, sizes = _counted("meta", 2, operands)
    whole = isinstance(sizes, tuple) and all(type(x) is int and 0 < x <= LARGEST for x in sizes)
    if not whole or len(sizes) > 2:
        what = "is no shape of a meta-parameter. Write (16, 8), (16,), or () for a number."
        raise SpecError(*_here(), f"{brief(sizes)} {what}")
    return _input("meta", name, tuple(map(str, sizes)), "global")


def _input(kind: str, name: Any, shape: tuple[str, ...], scope: str) -> Any:
    place, current = _here(), _record(kind)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        rest = ", (16, 8)" if kind == "meta" else ""
        raise SpecError(*place, f'{kind}(...) takes a name in quotes. Write x = {kind}("x"{rest}).')
    if name in RESERVED | _ASKED:
        raise SpecError(*place, reserved(name, "an input"))
    current.oracles[name] = (shape, scope)
    return sp.Function(kind)(sp.Symbol(name))


def evaluate(*operands: Any) -> None:
    """Name the tensor to evaluate the model with, where that is not theta."""
    (value,) = _counted("evaluate", 1, operands)
    current = _record("evaluate")
    if current.evaluate is not None:
        earlier = current.evaluate[1]
        raise SpecError(*_here(), f"evaluate(...) stands here twice (line {earlier}). Keep one.")
    current.evaluate = (value, _here()[1])


def require(*operands: Any) -> None:
    """Refuse hyperparameters for which the relation does not hold."""
    (relation,) = _counted("require", 1, operands)
    _record("require").requires.append((relation, _here()[1]))


def _region(what: str, operands: tuple[Any, ...]) -> AbstractContextManager[None]:
    (condition,) = operands or (None,)
    return _record(what).region(Recorded(what, _here()[1], value=condition))


def case(*operands: Any) -> AbstractContextManager[None]:
    """A region for parameters of one shape."""
    return _region("case", _counted("case", 1, operands))


def when(*operands: Any) -> AbstractContextManager[None]:
    """A region that may not happen."""
    return _region("when", _counted("when", 1, operands))


def otherwise(*operands: Any) -> AbstractContextManager[None]:
    """What happens where the region before did not."""
    return _region("otherwise", _counted("otherwise", 0, operands))


def iterate(*operands: Any) -> Iterator[sp.Symbol]:
    """The one loop: its body is traced once, with k standing for 1, ..., count."""
    (count,) = _counted("iterate", 1, operands)
    current, (_, line) = _record("iterate"), _here()
    index = sp.Symbol(current.named[line], integer=True, positive=True)
    with current.region(Recorded("loop", line, index=index, value=count)):
        yield index


# ---------------------------------------------------------------------------------------------------
# Specs

# What generated code calls its own: kernels, shells, and the frameworks' usual prefixes.
_GENERATED = frozenset(
    """s state store fl theta_next np torch jnp tf jax math keras div real_power
    to_float rounded logical_and logical_or logical_not full_like len range float int bool str
    tuple dict list super isinstance tree_sum tree_mean is_matrix kept branch here there happens
    matmul transposed rows_of cols_of size_ratio size_root larger_size smaller_size
    rounded_size given""".split()
)
RESERVED = frozenset(__all__) | _GENERATED

# What shells keep among a parameter's states; a value that is not kept may be called so.
ENTRIES = frozenset("step steps training".split())

# What a package has besides its algorithms.
PACKAGE = frozenset(
    "create names runtime optimizers schedules transforms importlib difflib inspect Rule Times".split()
)

# Words that a hyperparameter may bear, since they have no meaning inside an equation beside it.
_FREE = {"lr", "first", "schedule"}

# What shells call their own operands, and what a hyperparameter of that name would hide in them.
_OPERANDS = frozenset("self cls params grads hypers options name rules".split())
_OF_SCHEDULES = frozenset("function requires table domains spelling get_config from_config".split())
# What the shells' steps call their own arguments, beside which inputs are passed by name.
_ASKED = frozenset("self grads closure gradient params state updates trainable_variables".split())
_ATTRIBUTES = frozenset(
    """step steps train eval assignment method domains spelling evaluation compile closure state_dict
    load_state_dict zero_grad param_groups defaults build built apply assign variables iterations
    weights clipnorm clipvalue global_clipnorm use_ema ema_momentum ema_overwrite_frequency
    loss_scale_factor gradient_accumulation_steps storage states""".split()
)


def reserved(word: str, what: str) -> str:
    """The message for a name that the language, or generated code, keeps for itself."""
    whose = "the language" if word in __all__ else "generated code"
    return f"{word} is a word of {whose} and cannot be {what}. Choose another name."


def lost(word: str) -> str:
    """The message for a word of the language that a file lacks."""
    return f"{word} is not imported. Begin with: from generator.language import *"


@dataclass(frozen=True, eq=False)
class Spec:
    """A declared algorithm; nothing is traced before it is asked for."""

    kind: ir.Kind
    function: Callable[..., Any]
    class_name: str

    @property
    def name(self) -> str:
        """The name that users create it by."""
        return self.function.__name__

    @property
    def file(self) -> str:
        """Where the spec stands."""
        return self.function.__code__.co_filename

    @property
    def line(self) -> int:
        """The line of its first decorator."""
        return self.function.__code__.co_firstlineno

    @functools.cached_property
    def trace(self) -> Trace:
        """The recording of one call."""
        return trace(self)

    @property
    def equations(self) -> list[sp.Eq]:
        """The equations as SymPy `Eq`, in the author's order, unevaluated."""
        return self.trace.equations


def _decorator(kind: ir.Kind) -> Callable[..., Any]:
    def spec(function: Any, class_name: str = "") -> Spec:
        if not inspect.isfunction(function):
            what = f'@{kind} decorates a function, or takes one name: @{kind}("AdamW").'
            raise SpecError(*_here(), f"{what} Correct the line.")
        camel = "".join(part.capitalize() for part in function.__name__.split("_"))
        return Spec(kind, function, class_name or camel)

    def decorate(name_or_function: Any = None) -> Any:
        if name_or_function is None or isinstance(name_or_function, str):
            return lambda function: spec(function, name_or_function or "")
        return spec(name_or_function)

    decorate.__name__ = kind
    decorate.__doc__ = f"Declare the function below as the spec of one {kind}."
    return decorate


optimizer, schedule = _decorator("optimizer"), _decorator("schedule")
transform, wrapper = _decorator("transform"), _decorator("wrapper")


@dataclass(frozen=True, eq=False)
class Chain:
    """Several specs as one: transforms, then an optimizer, then wrappers; or two side by side."""

    parts: tuple[Spec | Chain | Learner, ...]
    name: str
    class_name: str
    file: str
    line: int
    routed: bool = False  # the first for matrices, the second for other parameters

    @property
    def kind(self) -> ir.Kind:
        """An optimizer's if one is among the parts."""
        kinds = [part.kind for part in self.parts]
        return "optimizer" if "optimizer" in kinds else kinds[0]


def chain(*parts: Any, name: str = "", class_name: str = "") -> Chain:
    """What a gradient goes through, in this order: `clipped = chain(clip_by_norm, adamw)`.

    Args:
        *parts: specs: transforms, then one optimizer, then wrappers.
        name: what users create it by; the names of the parts if left out.
        class_name: the names of their classes if left out.
    """
    if len(parts) < 2 and all(isinstance(part, Spec | Chain | Learner) for part in parts):
        what = "a chain has two specs or more. Write chain(clip_by_norm, adamw)."
        raise SpecError(*_here(), what)
    return _composed("Chain", parts, name, class_name)


def route(*parts: Any, name: str = "", class_name: str = "") -> Chain:
    """One optimizer for matrices, another for other parameters: `muon_adamw = route(muon, adamw)`.

    The rate of the second is that of the first times a hyperparameter, `adamw_lr_ratio`, so that a
    schedule drives both; its other hyperparameters have its name as a prefix, `adamw_beta1`.

    Args:
        *parts: two optimizers: for parameters with two axes or more, and for the others.
        name: what users create it by; the names of the parts if left out.
        class_name: the names of their classes if left out.
    """
    if len(parts) != 2:
        what = f"route(...) takes two optimizers, here are {len(parts)}. Write route(muon, adamw)."
        raise SpecError(*_here(), what)
    return replace(_composed("Route", parts, name, class_name), routed=True)


def _composed(word: str, parts: tuple[Any, ...], name: str, class_name: str) -> Chain:
    """Several specs under one name."""
    file, line = _here()
    for part in parts:
        if not isinstance(part, Spec | Chain | Learner):
            what = f"{brief(part)} is no spec. {word} what @optimizer and @transform made."
            raise SpecError(file, line, what)
    whole = _named(name or "_".join(part.name for part in parts))
    return Chain(parts, whole, class_name or "".join(p.class_name for p in parts), file, line)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name) or name in RESERVED:
        what = f"{name!r} is no name for a spec. Choose letters, digits and _."
        raise SpecError(*_here(), what)
    return name


@dataclass(frozen=True, eq=False)
class Learner:
    """An optimizer that learns one of its hyperparameters."""

    part: Spec | Chain | Learner
    wrt: str
    kappa: float
    name: str
    class_name: str
    file: str
    line: int
    kind: ir.Kind = "optimizer"


def hypergradient(
    part: Any, wrt: str = "lr", *, kappa: float = 1e-7, name: str = "", class_name: str = ""
) -> Learner:
    """The optimizer with a hyperparameter learnt: `sgd_hd = hypergradient(sgd, wrt="lr")`.

    Args:
        part: a spec, or a chain with an optimizer.
        wrt: the hyperparameter, a real number; its value is where the learnt one begins.
        kappa: default of the step size of what is learnt, a new hyperparameter.
        name: what users create it by; the name of the part and _hd if left out.
        class_name: the name of its class; that of the part and HD if left out.
    """
    file, line = _here()
    if not isinstance(part, Spec | Chain | Learner):
        what = f"{brief(part)} is no spec. Give what @optimizer or chain(...) made."
        raise SpecError(file, line, what)
    if not isinstance(wrt, str):
        what = f"{brief(wrt)} is no name. Name a hyperparameter: wrt=\"lr\"."
        raise SpecError(file, line, what)
    if type(kappa) not in (int, float) or not NonNegative.contains(kappa):
        raise SpecError(file, line, f"kappa is {NonNegative.phrase}, not {brief(kappa)}. Correct it.")
    words = [] if wrt == "lr" else [wrt]
    whole = _named(name or "_".join([part.name, "hd", *words]))
    called = class_name or part.class_name + "HD" + "".join(w.capitalize() for w in wrt.split("_") if words)
    return Learner(part, wrt, float(kappa), whole, called, file, line)


_RESULTS = {"transform": "u", "schedule": "lr"}


def _around(function: Callable[..., Any]) -> dict[str, Any]:
    """What the names in a function stand for: its module's, and those of functions around it."""
    inner: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            inner[name] = cell.cell_contents
    return {**function.__globals__, **inner}


def _scope(spec: Spec, parameters: tuple[ir.Parameter, ...]) -> Scope:
    around = _around(spec.function)
    ours = {word: globals()[word] for word in __all__}
    hypers = {p.name for p in parameters}
    own = {word for word in ours if around.get(word, _lost) is ours[word]}
    missing = {
        word: f"{word} stands for something else in this file. Remove what replaces it."
        if word in around
        else lost(word)
        for word in set(ours) - own
    }
    return Scope(
        functions={w: _ARITY[w] for w in own & set(_FUNCTIONS) - hypers},
        values=frozenset(own & set(_VALUES)),
        shapes=frozenset(own & set(_SHAPES)),
        lost=missing,
        reserved={word: reserved(word, "a state") for word in RESERVED},
        timed=frozenset(k for k, v in around.items() if isinstance(v, TimeIndexed)) - hypers,
        numbers=frozenset(k for k, v in around.items() if _constant(v)) - hypers,
        odd={k: _odd(k, v) for k, v in around.items() if k not in ours and _looks_constant(v)},
        parameters={p.name: _kind(p.domain) for p in parameters},
        results=frozenset({_RESULTS.get(spec.kind, "theta")}),
    )


_lost = object()


def _constant(value: Any) -> bool:
    """Whether equations may read it: a number of NumPy would compute in a precision of its own."""
    return type(value) in (int, float) and _finite(value)


def _looks_constant(value: Any) -> bool:
    """Whether somebody may take it for a constant that equations can read."""
    known = isinstance(value, TimeIndexed | Spec | ModuleType | sp.Basic) or callable(value)
    return not known and not _constant(value)


def _odd(name: str, value: Any) -> str:
    if type(value) in (int, float):
        return f"{name} is {brief(value)}, which is no finite double. Give it another value."
    if isinstance(value, list | tuple) and value and all(map(_constant, value)):
        what = f"{name} is a {type(value).__name__}, of which equations cannot read an entry."
        return f"{what} Give each number a name, or make {name} a hyperparameter: tuple[Real, ...]."
    kind = type(value)
    whose = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return f"{name} is a {whose}{kind.__name__}, not a plain number. Give it one, such as 0.001."


def _kind(domain: ir.Domain) -> str:
    return "tuple" if domain.many else "schedule" if domain.type == "schedule" else "number"


def _parameters(spec: Spec, lines: Mapping[str, int]) -> tuple[ir.Parameter, ...]:
    """The signature, read as hyperparameters."""
    taken = RESERVED - _FREE | _OPERANDS
    if spec.kind in ("optimizer", "wrapper"):
        taken |= _ATTRIBUTES
    elif spec.kind == "schedule":
        taken |= _OF_SCHEDULES
    around = _around(spec.function)
    made = []
    for name, parameter in inspect.signature(spec.function).parameters.items():
        place = spec.file, lines.get(name, spec.line)
        if name in taken:
            raise SpecError(*place, reserved(name, "a hyperparameter"))
        if not _NAME.fullmatch(name):
            what = "is no name for a hyperparameter. Use letters, digits and _, a letter first."
            raise SpecError(*place, f"{name} {what}")
        annotation = parameter.annotation
        try:
            if isinstance(annotation, str):
                annotation = eval(annotation, around)
            domain = _domain(annotation)
        except SpecError:
            raise
        except Exception:
            raise SpecError(*place, _unknown(name, parameter.annotation, around)) from None
        default = parameter.default
        if default is inspect.Parameter.empty:
            default = ir.REQUIRED
        elif large := _too_large(domain, default):
            raise SpecError(*place, f"{name} = {large}")
        elif not domain.contains(default):
            what = f"{name} = {default!r} is outside its domain, {domain.phrase}."
            raise SpecError(*place, f"{what} Change the default or the annotation.")
        elif domain.type == "float":
            default = _floats(default)
        made.append(ir.Parameter(name, domain, default, "", place[1]))
    return tuple(made)


def _too_large(domain: ir.Domain, default: Any) -> str:
    """Why an integer cannot be a default, however its domain is written; empty if it can."""
    for x in default if isinstance(default, tuple) else (default,):
        if isinstance(x, int) and not _finite(x):
            return f"{brief(x)} is too large for a double. Choose a smaller default."
        if isinstance(x, int) and domain.type == "int" and not -LARGEST <= x <= LARGEST:
            return f"{brief(x)} is beyond 2**31 - 1, where integers end. Choose a smaller default."
    return ""


def _unknown(name: str, annotation: Any, around: Mapping[str, Any]) -> str:
    if annotation is inspect.Parameter.empty:
        return f"{name} has no domain. Annotate it, for example `{name}: NonNegative`."
    if typing.get_origin(annotation) is tuple:
        return (
            f"{name} has entries of several domains. Write one and dots: tuple[NonNegative, ...]."
        )
    if hasattr(annotation, "__metadata__"):
        return f"{name} has no Domain. Write Annotated[float, Domain(0, 1)]."
    given = getattr(annotation, "__name__", str(annotation))
    known = [k for k, v in around.items() if isinstance(v, ir.Domain)]
    hint = suggest(given, known) or f" Annotate it, for example `{name}: NonNegative`."
    return f"{name} has an unknown domain{f', {given}' if given else ''}.{hint}"


def _floats(default: Any) -> Any:
    """Integers as the floats that they stand for."""
    if isinstance(default, tuple):
        return tuple(map(_floats, default))
    return float(default) if isinstance(default, int) else default


def trace(spec: Spec) -> Trace:
    """Call the spec's function once and record what it writes."""
    with shallow(spec.file, spec.line):
        return _trace(spec)


def _trace(spec: Spec) -> Trace:
    source = find(spec.function)
    if spec.name in RESERVED | PACKAGE or not _NAME.fullmatch(spec.name):
        raise SpecError(spec.file, source.node.lineno, reserved(spec.name, "the name of a spec"))
    parameters = _parameters(spec, source.parameters)
    scan(source, _scope(spec, parameters))
    recording = _Recording(source)
    token = _recording.set(recording)
    try:
        with as_written():
            spec.function(**{p.name: _symbol(p) for p in parameters})
    except SpecError:
        raise
    except RecursionError as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in frames if f.filename == spec.file), 0)
        raise SpecError(spec.file, line or spec.line, TOO_DEEP) from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == spec.file]
        raise SpecError(spec.file, lines[-1] or spec.line, explain(error)) from error
    finally:
        _recording.reset(token)
    return Trace(
        spec,
        parameters,
        recording.blocks[0],
        recording.requires,
        recording.oracles,
        recording.evaluate,
        source.documented,
    )
