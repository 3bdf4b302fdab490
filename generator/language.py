"""The language that specs are written in: `from generator.language import *`.

In: a decorated function whose body reads like the algorithm box of a paper. Out: a `Spec`; `trace`
calls the function once and records its SymPy equations exactly as written. Must not know: what the
equations mean (check.py), what is computed (lower.py), any framework.

SymPy sorts sums and products when it evaluates, and that changes bits, so the function runs under
`sympy.evaluate(False)`; nothing after freeze.py touches SymPy again.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from generator import ir
from generator.errors import SpecError
from generator.syntax import scan

_FUNCTIONS = (
    "sqrt abs sign minimum maximum floor where exp log cos sum mean norm rms row_mean col_mean"
    " row_sum col_sum global_sum global_norm rows cols equal grad"
)

__all__ = [  # noqa: PLE0604 - one list of functions, see above
    *_FUNCTIONS.split(),
    *"t n theta g lr pi matrix vector full row column scalar".split(),
    *"names first case when otherwise iterate length update oracle noise evaluate require".split(),
    *"NonNegative Positive Decay Real Count PositiveCount Schedule".split(),
    *"Choice Optional Annotated Domain optimizer schedule transform wrapper".split(),
]

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


def Domain(  # noqa: N802 - reads like the type it makes
    low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> ir.Domain:
    """An interval of its own, for `Annotated[float, Domain(0, 1)]`; both ends belong to it."""
    return ir.Domain("Domain", "float", low, high, low_open, high_open)


class Choice:
    """`Choice["a", "b"]`: one of these words."""

    def __class_getitem__(cls, words: str | tuple[str, ...]) -> ir.Domain:
        """The domain of these words."""
        chosen = words if isinstance(words, tuple) else (words,)
        return ir.Domain("Choice", "choice", choices=chosen)


class Optional:
    """`Optional[Domain]`: such a value, or None."""

    def __class_getitem__(cls, domain: Any) -> ir.Domain:
        """The domain with None added."""
        return _replaced(_domain(domain), optional=True)


def _replaced(domain: ir.Domain, **changes: Any) -> ir.Domain:
    return ir.Domain(**{**domain.__dict__, **changes})


def _domain(annotation: Any) -> ir.Domain:
    """The domain that an annotation stands for; KeyError where it stands for none."""
    if isinstance(annotation, ir.Domain):
        return annotation
    if typing.get_origin(annotation) is tuple:
        return _replaced(_domain(typing.get_args(annotation)[0]), many=True)
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, ir.Domain):
            return extra
    return _PLAIN[annotation]


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


@dataclass
class Trace:
    """Everything a spec says: the equations as written, and what its signature declares."""

    spec: Spec
    parameters: tuple[ir.Parameter, ...]
    body: list[Recorded]
    requires: list[tuple[Any, int]]
    oracles: dict[str, tuple[tuple[Any, ...], str]]
    evaluate: tuple[Any, int] | None = None

    @property
    def equations(self) -> list[sp.Eq]:
        """The equations in the author's order, unevaluated."""

        def collect(body: list[Recorded]) -> Iterator[sp.Eq]:
            for r in body:
                if r.what == "set":
                    left = sp.Indexed(sp.IndexedBase(r.name), r.index)
                    yield sp.Eq(left, sp.sympify(r.value), evaluate=False)
                yield from collect(r.body)

        with sp.evaluate(False):
            return list(collect(self.body))


class _Recording:
    """The trace being made; regions nest by pushing a block."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.blocks: list[list[Recorded]] = [[]]
        self.requires: list[tuple[Any, int]] = []
        self.oracles: dict[str, tuple[tuple[Any, ...], str]] = {}
        self.evaluate: tuple[Any, int] | None = None
        self.loops = 0

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
    file, line = _here()
    made = []
    for word in text.replace(",", " ").split():
        if word in RESERVED:
            raise SpecError(file, line, reserved(word, "a state"))
        if not word.isidentifier() or keyword.iskeyword(word):
            raise SpecError(file, line, f"{word!r} is not a name. Use letters, digits and _.")
        made.append(TimeIndexed(word))
    return made[0] if len(made) == 1 else tuple(made)


class Item(sp.Indexed):
    """One entry of a tuple hyperparameter; callable where the entry is a schedule."""

    def __call__(self, step: Any) -> Any:
        """The entry, a schedule, at a step."""
        return sp.Function("call")(self, step)


class ScheduleParameter(sp.Symbol):
    """A hyperparameter that is a schedule: `schedule(n - warmup)`."""

    def __call__(self, step: Any) -> Any:
        """The schedule at a step."""
        return sp.Function("call")(self, step)


class TupleParameter:
    """A hyperparameter that is a tuple: `boundaries[k]` with k = 1, 2, ..."""

    def __init__(self, name: str) -> None:
        self.name = name

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
    arity = ir.OPERATIONS["eq" if name == "equal" else name].arity

    def apply(*operands: Any) -> Any:
        if len(operands) != arity:
            raise TypeError(f"{name} takes {arity} operand{'s'[: arity != 1]}, got {len(operands)}")
        return made(*operands)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = ir.OPERATIONS["eq" if name == "equal" else name].meaning
    return apply


sqrt, abs, sign = _function("sqrt"), _function("abs"), _function("sign")  # noqa: A001
minimum, maximum = _function("minimum"), _function("maximum")
floor, where, equal = _function("floor"), _function("where"), _function("equal")
exp, log, cos = _function("exp"), _function("log"), _function("cos")
sum, mean = _function("sum"), _function("mean")  # noqa: A001
norm, rms = _function("norm"), _function("rms")
row_mean, col_mean = _function("row_mean"), _function("col_mean")
row_sum, col_sum = _function("row_sum"), _function("col_sum")
global_sum, global_norm = _function("global_sum"), _function("global_norm")
rows, cols, grad = _function("rows"), _function("cols"), _function("grad")
pi = sp.pi
matrix, vector = sp.Symbol("matrix"), sp.Symbol("vector")
full, row, column, scalar = "full", "row", "column", "scalar"


def length(parameter: TupleParameter) -> Any:
    """How many entries a tuple hyperparameter has."""
    return sp.Function("length")(sp.Symbol(parameter.name))


def first(gradient: TimeIndexed) -> Any:
    """The start of a state that keeps the previous gradient: `g[0] = first(g)`."""
    return sp.Function("first")(sp.Symbol(gradient.name))


def update(gradient: Any) -> Any:
    """The wrapped optimizer's new parameters for this gradient."""
    return sp.Function("update")(gradient)


def noise(name: str) -> Any:
    """Standard normal numbers, the same bits on every backend."""
    _record("noise").oracles[name] = ((full,), "noise")
    return sp.Function("noise")(sp.Symbol(name))


def oracle(name: str, shape: Any = full, scope: str = "tensor") -> Any:
    """A further input besides the gradient, such as a Hessian diagonal or the loss."""
    shape = shape if isinstance(shape, tuple) else (shape,)
    _record("oracle").oracles[name] = (shape, scope)
    return sp.Function("oracle")(sp.Symbol(name))


def evaluate(value: Any) -> None:
    """Name the tensor to evaluate the model with, where that is not theta."""
    _record("evaluate").evaluate = (value, _here()[1])


def require(relation: Any, why: str = "") -> None:
    """Refuse hyperparameters for which the relation does not hold."""
    _record("require").requires.append((relation, _here()[1]))


def case(condition: Any) -> AbstractContextManager[None]:
    """A region for parameters of one shape."""
    return _record("case").region(Recorded("case", _here()[1], value=condition))


def when(condition: Any) -> AbstractContextManager[None]:
    """A region that may not happen."""
    return _record("when").region(Recorded("when", _here()[1], value=condition))


def otherwise() -> AbstractContextManager[None]:
    """What happens where the region before did not."""
    return _record("otherwise").region(Recorded("otherwise", _here()[1]))


def iterate(count: Any) -> Iterator[sp.Symbol]:
    """The one loop: its body is traced once, with k standing for 1, ..., count."""
    current = _record("iterate")
    current.loops += 1
    index = sp.Symbol("k" if current.loops == 1 else f"k{current.loops}", integer=True)
    with current.region(Recorded("loop", _here()[1], index=index, value=count)):
        yield index


# ---------------------------------------------------------------------------------------------------
# Specs

RESERVED = frozenset(__all__) | {"s", "state", "fl", "store"}

# Words that a hyperparameter may bear, since they have no meaning inside an equation beside it.
_FREE = {"lr", "first", "schedule"}


def reserved(word: str, what: str) -> str:
    """The message for a name that the language keeps for itself."""
    return f"{word} is a word of the language and cannot be {what}. Choose another name."


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
    def decorate(name_or_function: Any) -> Any:
        if isinstance(name_or_function, str):
            return lambda function: Spec(kind, function, name_or_function)
        camel = "".join(part.capitalize() for part in name_or_function.__name__.split("_"))
        return Spec(kind, name_or_function, camel)

    decorate.__name__ = kind
    decorate.__doc__ = f"Declare the function below as the spec of one {kind}."
    return decorate


optimizer, schedule = _decorator("optimizer"), _decorator("schedule")
transform, wrapper = _decorator("transform"), _decorator("wrapper")


def _parameters(spec: Spec, lines: dict[str, int]) -> tuple[ir.Parameter, ...]:
    """The signature, read as hyperparameters."""
    made = []
    for name, parameter in inspect.signature(spec.function).parameters.items():
        line = lines.get(name, spec.line)
        if name in RESERVED - _FREE:
            raise SpecError(spec.file, line, reserved(name, "a hyperparameter"))
        annotation = parameter.annotation
        try:
            if isinstance(annotation, str):
                annotation = eval(annotation, spec.function.__globals__)
            domain = _domain(annotation)
        except (KeyError, NameError, TypeError):
            given = "no" if annotation is inspect.Parameter.empty else "an unknown"
            raise SpecError(
                spec.file,
                line,
                f"{name} has {given} domain. Annotate it, for example `{name}: NonNegative`.",
            ) from None
        default = parameter.default
        if default is inspect.Parameter.empty:
            default = ir.REQUIRED
        elif not domain.contains(default):
            what = f"{name} = {default!r} is outside its domain, {domain.phrase}."
            raise SpecError(spec.file, line, f"{what} Change the default or the annotation.")
        elif domain.type == "float" and isinstance(default, int) and not domain.many:
            default = float(default)
        made.append(ir.Parameter(name, domain, default, "", line))
    return tuple(made)


@contextmanager
def _matrix_operators() -> Iterator[None]:
    """`@` and `.T` on every SymPy expression while a spec is traced, and not a moment longer."""

    def product(a: Any, b: Any) -> Any:
        return sp.Function("matmul")(a, b)

    sp.Expr.__matmul__ = product
    sp.Expr.T = property(lambda a: sp.Function("transpose")(a))
    try:
        yield
    finally:
        del sp.Expr.__matmul__, sp.Expr.T


def trace(spec: Spec) -> Trace:
    """Call the spec's function once and record what it writes."""
    scanned = scan(spec.function, frozenset(__all__))
    parameters = _parameters(spec, scanned.parameter_lines)
    recording = _Recording(spec)
    token = _recording.set(recording)
    try:
        with sp.evaluate(False), _matrix_operators():
            spec.function(**{p.name: _symbol(p) for p in parameters})
    except SpecError:
        raise
    except Exception as error:
        line = spec.line
        for frame in inspect.getinnerframes(error.__traceback__):
            if frame.filename == spec.file:
                line = frame.lineno
        raise SpecError(spec.file, line, f"{error}.") from error
    finally:
        _recording.reset(token)
    return Trace(
        spec,
        parameters,
        recording.blocks[0],
        recording.requires,
        recording.oracles,
        recording.evaluate,
    )

