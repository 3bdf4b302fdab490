"""What every generated PyTorch optimizer shares: exact functions, checks, and the shells.

In: kernels, pure functions that were generated from equations, and what they keep. Out: classes that
are `torch.optim.Optimizer` and `LRScheduler` in every respect. Must not know: any one algorithm (the
generated files hold those).

Scalars (functions of the step and the hyperparameters) are Python floats that follow IEEE 754 without
exceptions, or 0-d float64 tensors where a hyperparameter is a tensor, differentiable then; each is
rounded once, to a 0-d tensor of the compute dtype, before it meets a parameter.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from backends.domains import Domain  # <include backends/domains.py>

try:
    import numpy as np
except ImportError:  # PyTorch runs without NumPy; square roots on the CPU are slower then
    np = None  # type: ignore[assignment]

Scalar: TypeAlias = float | Tensor  # a Python float or a 0-d tensor
Condition: TypeAlias = bool | Tensor
Tree = Any  # a tensor, a list or tuple of trees, or a dictionary of trees
NT = TypeVar("NT", bound=tuple[Any, ...])  # a NamedTuple

# ---------------------------------------------------------------------------------------------------
# The exact square root
#
# torch.sqrt on the CPU (MKL) is one unit in the last place off for a sixth of all float32 values.


def _native_root_is_exact(dtype: torch.dtype) -> bool:
    """Whether this build's torch.sqrt rounds correctly on the CPU: true without MKL."""
    x = torch.linspace(1.0, 4.0, 4097, dtype=torch.float64, device="cpu").to(dtype)
    exact = [math.sqrt(v) for v in x.tolist()]
    return torch.equal(torch.sqrt(x), torch.tensor(exact, dtype=dtype, device="cpu"))


_INEXACT = {d for d in (torch.float32, torch.float64) if not _native_root_is_exact(d)}


def _root(x: Tensor) -> Tensor:
    """The correctly rounded square root of a tensor; not differentiable."""
    if not x.is_cpu or x.dtype not in _INEXACT:
        return torch.sqrt(x)
    if np is not None:
        try:
            source = x.detach().numpy()
        except (RuntimeError, TypeError):  # a subclass, such as DTensor, has no memory of its own
            return _corrected_root(x)
        result = torch.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.sqrt(source, out=result.numpy())
        return result
    return _corrected_root(x)


def _corrected_root(x: Tensor) -> Tensor:
    """The same from a root that is off by at most one unit in the last place."""
    if x.dtype == torch.float32:
        # A float32 root is never so close to a midpoint that an ulp of double precision matters.
        return x.double().sqrt_().float()
    # Scaled by powers of 4, so that no square below overflows or loses bits.
    up, down = x < 2.0**-600, x > 2.0**600
    x = torch.where(up, x * 2.0**400, torch.where(down, x * 2.0**-400, x))
    y = torch.sqrt(x)
    # The residual r = x - y*y, exactly: y in two halves (Veltkamp), its square in two (Dekker).
    c = y * 134217729.0
    high = c - (c - y)
    low = y - high
    square = y * y
    r = (x - square) - (((high * high - square) + 2.0 * high * low) + low * low)
    # The root lies above y + ulp/2 just where r > y*ulp (all are multiples of one unit).
    above = torch.nextafter(y, torch.full_like(y, math.inf))
    below = torch.nextafter(y, torch.zeros_like(y))
    y = torch.where(r > y * (above - y), above, torch.where(r <= -(y * (y - below)), below, y))
    return torch.where(up, y * 2.0**-200, torch.where(down, y * 2.0**200, y))


class _Root(torch.autograd.Function):
    """`_root` with its derivatives, of any order, forward and backward, under torch.func too."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _root(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        # 0 at 0 and below: infinity would turn the zero gradients of what was not chosen into NaN.
        return grad / (2.0 * torch.where(y > 0.0, y, math.inf))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return _Root.backward(ctx, tangent)

    @staticmethod
    def vmap(info: Any, dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return _Root.apply(x), dims[0]


def _traced_root(x: Tensor) -> Tensor:
    """The same for torch.compile, whose own root is exact."""
    if not x.requires_grad:
        return torch.sqrt(x)
    positive = x > 0.0
    rest = torch.where(x == 0.0, x.detach(), math.nan)
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), rest)


@overload
def sqrt(x: Tensor) -> Tensor: ...
@overload
def sqrt(x: float) -> float: ...
def sqrt(x: Scalar) -> Scalar:
    """The square root, correctly rounded; NaN below 0. Its derivative at 0 is taken as 0."""
    if not isinstance(x, Tensor):
        return math.nan if x < 0 else math.sqrt(x)
    if torch.compiler.is_compiling():
        return _traced_root(x)
    if torch.is_grad_enabled():
        root: Tensor = _Root.apply(x)
        return root
    return _root(x)


# ---------------------------------------------------------------------------------------------------
# Functions of floats and tensors alike. Python's own `/`, `**` and `math` raise where IEEE 754 has a
# value; torch's minimum, maximum and sign are not those of other libraries at NaN and -0.


def div(a: Any, b: Any) -> Any:
    """a / b; x/0 is infinite, 0/0 is NaN. torch's own number / tensor rounds twice."""
    if isinstance(b, Tensor):
        return (a if isinstance(a, Tensor) else b.new_full((), a)) / b
    if isinstance(a, Tensor):
        return a / a.new_full((), b)
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def power(x: Any, k: int) -> Any:
    """x**k by squaring from the lowest bit; the same products on every backend."""
    if k < 0:
        return div(1.0, power(x, -k))
    result: Any = 1.0
    while k:
        if k & 1:
            result = result * x
        k >>= 1
        if k:
            x = x * x
    return result


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; a condition of the host chooses one of the two."""
    if isinstance(condition, bool):
        return a if condition else b
    if not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        raise TypeError("where: neither branch is a tensor. Make one with full_like(g, value).")
    return torch.where(condition, a, b)


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN if either is NaN; x only where x > y, so maximum(+0, -0) is -0."""
    return where((x > y) | (x != x), x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN if either is NaN."""
    return where((x < y) | (x != x), x, y)


def sign(x: Any) -> Any:
    """1 above zero, -1 below; zeros and NaN are kept. Its derivative is 0, at zero too."""
    if not isinstance(x, Tensor):
        return 1.0 if x > 0 else -1.0 if x < 0 else x
    rest = torch.where(x == 0.0, x.detach(), x) if x.requires_grad else x
    return torch.where(x > 0.0, 1.0, torch.where(x < 0.0, -1.0, rest))


def floor(x: Any) -> Any:
    """The largest integer not above x, as a float; infinities, NaN and -0 are kept."""
    if isinstance(x, Tensor):
        return torch.floor(x)
    return x // 1.0 if math.isfinite(x) else x


def to_float(x: Any) -> Any:
    """An integer as a double."""
    return x.double() if isinstance(x, Tensor) else float(x)


def logical_and(a: Any, b: Any) -> Any:
    """Both."""
    return a & b


def logical_or(a: Any, b: Any) -> Any:
    """Either."""
    return a | b


def logical_not(a: Any) -> Any:
    """The other."""
    return ~a if isinstance(a, Tensor) else not a


def full_like(x: Tensor, value: Scalar) -> Tensor:
    """A tensor like x, every entry the value."""
    if isinstance(value, Tensor):  # a copy: torch.full_like would read the number from its device
        return value.to(x.device, x.dtype).expand(x.shape).clone()
    return torch.zeros_like(x) + rounded((value,), x.dtype)[0]


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a function made of +, -, *, / and floor the derivative of torch's own, bits unchanged."""
    native = {"exp": torch.exp, "log": torch.log, "cos": torch.cos, "real_power": torch.pow}

    @functools.wraps(function)
    def exact(*arguments: Any) -> Any:
        if not any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function(*arguments)
        value = function(*(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        slope = native[function.__name__](*arguments)
        # slope + (value - slope) is value: the difference of neighbours is exact.
        return torch.where(value.isfinite(), slope + (value - slope).detach(), value)

    return exact


absolute = abs

# <elementary>

# ---------------------------------------------------------------------------------------------------
# Precision


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def computed(x: Tensor) -> Tensor:
    """A parameter or gradient in its compute dtype; exact."""
    return x.to(compute_dtype(x.dtype))


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a narrower dtype, rounded once, to nearest even.

    torch.compile drops a cast and its way back (x - x.to(bfloat16).float() becomes 0), so under it the
    value is rounded inside its own dtype, on its bits, and the cast is exact.
    """
    if x.dtype == dtype or not torch.compiler.is_compiling():
        return x.to(dtype)
    wide, narrow = torch.finfo(x.dtype), torch.finfo(dtype)
    surplus = round(math.log2(narrow.eps / wide.eps))
    if surplus <= 0:
        return x.to(dtype)
    bits = x.view(torch.int32 if wide.bits == 32 else torch.int64)
    half = (1 << (surplus - 1)) - 1 + ((bits >> surplus) & 1)  # ties to even
    rounded = ((bits + half) & -(1 << surplus)).view(x.dtype)
    # Below the smallest normal number the spacing is fixed: that of x's own dtype next to `grid`.
    grid = 1.5 * narrow.smallest_normal * narrow.eps / wide.eps
    rounded = torch.where(x.abs() < narrow.smallest_normal, (x + grid) - grid, rounded)
    rounded = torch.where(rounded.abs() > narrow.max, math.inf, rounded)
    return torch.where(x != x, x, torch.copysign(rounded, x)).to(dtype)


def rounded(s: NT, dtype: torch.dtype) -> NT:
    """The step's scalars as 0-d tensors of the compute dtype; conditions of the host stay."""
    return _remade(s, (_entering(x, dtype) for x in s))


def _entering(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, bool):
        return x
    if isinstance(x, Tensor):
        return x if x.dtype == torch.bool else x.to(dtype)
    return torch.tensor(x, dtype=dtype, device="cpu")


def _remade(like: NT, entries: Iterable[Any]) -> NT:
    """A tuple or NamedTuple of the same class."""
    make = getattr(type(like), "_make", type(like))
    made: NT = make(entries)
    return made


def storing(dtype: torch.dtype) -> Callable[[Scalar], Scalar]:
    """Rounds a double to the compute dtype and gives it back as a double."""

    def store(x: Scalar) -> Scalar:
        if isinstance(x, Tensor):
            return x.to(dtype).double()
        return x if dtype == torch.float64 else ctypes.c_float(x).value

    return store


def _double(value: Any) -> Any:
    """A hyperparameter as the equations take it: tensors as 0-d float64, the rest as it is."""
    return value.reshape(()).double() if isinstance(value, Tensor) else value


# ---------------------------------------------------------------------------------------------------
# Hyperparameters

NonNegative = Domain("a number in [0, inf)", low=0.0)
Positive = Domain("a number in (0, inf)", low=0.0, low_open=True)
Decay = Domain("a number in [0, 1)", low=0.0, high=1.0)
Real = Domain("a number in (-inf, inf)", low_open=True)
Count = Domain("an integer in [0, inf)", "int", low=0.0)
PositiveCount = Domain("an integer in [1, inf)", "int", low=1.0)
AnySchedule = Domain("a schedule", "schedule")


def _checked(owner: str, name: str, domain: Domain, value: Any) -> Any:
    """The value as Python's own number, once it lies in its domain; tensors are not looked into."""
    if isinstance(value, Tensor) and domain.kind == "float":
        if value.numel() != 1 or not value.is_floating_point():
            raise TypeError(
                f"{owner}: {name} must be {domain.phrase}, got a tensor of shape "
                f"{tuple(value.shape)} and dtype {value.dtype}. A tensor must hold one float."
            )
        return value
    if isinstance(value, LRScheduler) and domain.kind == "schedule":
        kind = type(value).__name__
        raise TypeError(
            f"{owner}: {name} must be {domain.phrase}, got a {kind} that drives an optimizer. "
            f"Pass {kind}.of(...) without the optimizer."
        )
    domain.check(owner, name, value)
    if value is None or domain.kind in ("bool", "choice", "schedule"):
        return tuple(value) if domain.many and value is not None else value
    number = int if domain.kind == "int" else float
    return tuple(number(v) for v in value) if domain.many else number(value)


def _checked_hyper(
    owner: str, name: str, domain: Domain, spelled: str | tuple[str, ...], value: Any
) -> Any:
    """The same for a hyperparameter of the shell, which may bundle several: `betas`."""
    if not isinstance(spelled, tuple):
        return _checked(owner, name, domain, value)
    if not isinstance(value, (tuple, list)) or len(value) != len(spelled):
        raise TypeError(f"{owner}: {name} must be a tuple ({', '.join(spelled)}), got {value!r}.")
    return tuple(_checked(owner, f"{name}[{i}]", domain, v) for i, v in enumerate(value))


def spelled(shell: type[Any], hypers: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters under the spec's names as keywords of the shell: `beta1`, `beta2` as `betas`."""
    signature = inspect.signature(shell).parameters
    given, keywords = dict(hypers), {}
    for name, words in shell.spelling.items():
        if isinstance(words, str):
            if words in given:
                keywords[name] = given.pop(words)
        elif any(word in given for word in words):
            default = signature[name].default
            keywords[name] = tuple(given.pop(w, d) for w, d in zip(words, default, strict=True))
    for name in given:
        if name not in signature or name in shell.spelling:
            known = [w for n in shell.domains for w in _words(shell.spelling.get(n, n))]
            raise TypeError(
                f"{shell.__name__}: there is no hyperparameter {name}; there are {', '.join(known)}."
            )
    return {**given, **keywords}


def _words(spelled: str | tuple[str, ...]) -> tuple[str, ...]:
    return spelled if isinstance(spelled, tuple) else (spelled,)


def _require(owner: str, relations: Callable[..., Mapping[str, Any]], hypers: Any) -> None:
    """Refuse hyperparameters that do not fit each other; relations of tensors are not looked into."""
    for text, holds in relations(**hypers).items():
        if not isinstance(holds, Tensor) and not holds:
            values = ", ".join(f"{k}={v!r}" for k, v in hypers.items() if k in text)
            raise ValueError(f"{owner}: {text} must hold, got {values}.")


# ---------------------------------------------------------------------------------------------------
# Optimizers


class Method(NamedTuple):
    """An algorithm as the shell runs it: pure functions and what they keep."""

    name: str
    state: Any  # the NamedTuple of tensor states
    init: Callable[..., Any]  # (theta, **hypers) -> tensor states
    scalars: Callable[..., Any]  # (t, **hypers) -> the step's scalars in double
    step: Callable[..., Any]  # (theta, g, state, s) -> (theta, state)
    init_hypers: tuple[str, ...] = ()  # hyperparameters that `init` takes
    scalar_states: Mapping[str, float] = {}  # states of step scope and their starts
    evaluate: str | None = None  # the state to evaluate the model with; None: the parameters
    requires: Callable[..., Mapping[str, Any]] | None = None  # relations, as text, and if they hold


_PARAMETERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRAINING = "training"  # in a parameter's state while the iterate stands in for it: what it holds else


@dataclass
class _Loaded:
    """A parameter's loaded state; torch, which casts tensors, passes on what it does not know."""

    entries: dict[str, Any]


@functools.cache
def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel as one pass over memory: one compilation for all sizes, steps and groups."""
    return torch.compile(step, dynamic=True, fullgraph=True)


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that runs a `Method`.

    The state of a parameter is a dictionary: `step`, an integer, and the method's states by their
    names, float32 for float16 and bfloat16 parameters. A parameter without a gradient is left alone,
    its step included. With `compile=True`, torch.compile takes the kernel over all parameters at once;
    the bits are the same.
    """

    method: ClassVar[Method]
    domains: ClassVar[Mapping[str, Domain]]
    spelling: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}  # shell's name -> the spec's names

    def __init__(self, params: ParamsT, hypers: dict[str, Any], *, compile: bool = False) -> None:
        """Check the hyperparameters and take the parameters, as `torch.optim.Optimizer` does."""
        self._name = type(self).__name__
        Domain("True or False", "bool").check(self._name, "compile", compile)
        self._compile = compile
        self._evaluating = False
        self._seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        super().__init__(params, self._in_domains(hypers, ""))

    def _in_domains(self, hypers: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The hyperparameters, checked, under the shell's names."""
        checked = {
            name: _checked_hyper(
                self._name, name + place, domain, self.spelling.get(name, name), hypers[name]
            )
            for name, domain in self.domains.items()
        }
        if self.method.requires is not None:
            _require(self._name, self.method.requires, self._for_kernel(checked))
        return checked

    def _for_kernel(self, hypers: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters under the spec's names."""
        named: dict[str, Any] = {}
        for name in self.domains:
            words = self.spelling.get(name, name)
            named.update(zip(words, hypers[name], strict=True) if isinstance(words, tuple) else {})
            named.update({words: hypers[name]} if isinstance(words, str) else {})
        return named

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own hyperparameters, as in `torch.optim`; refused whole or not at all."""
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        try:
            group = self.param_groups[index]
            group.update(self._in_domains(group, f" of param group {index}"))
            for p, name in zip(group["params"], self._names(index), strict=True):
                self._check_parameter(p, name)
        except Exception:
            self.param_groups.pop()
            raise

    def _names(self, index: int) -> Sequence[str]:
        """What to call the parameters of a group in messages."""
        group = self.param_groups[index]
        if "param_names" in group:
            return [repr(name) for name in group["param_names"]]
        return [f"{i} of param group {index}" for i in range(len(group["params"]))]

    def _check_parameter(self, p: Tensor, name: str) -> None:
        if p.dtype in _PARAMETERS:
            return
        remedy = "Convert it, for example module.float(), or leave it out."
        if p.is_complex():
            remedy = (
                "Keep a real parameter of two numbers and use torch.view_as_complex on it in the model."
            )
        raise TypeError(
            f"{self._name}: parameter {name} has dtype {p.dtype}; only float16, bfloat16, float32 and "
            f"float64 can be optimized. {remedy}"
        )

    def _check_gradient(self, p: Tensor, g: Tensor, name: str) -> None:
        """Refuse a gradient that does not fit, with the remedy."""
        wrong = f"{self._name}: the gradient of parameter {name}"
        if g.layout != torch.strided:
            raise TypeError(
                f"{wrong} is sparse ({g.layout}). Build the embedding with sparse=False, or set "
                "p.grad = p.grad.to_dense() before the step."
            )
        if g.shape != p.shape:
            raise ValueError(
                f"{wrong} has shape {tuple(g.shape)}, the parameter has shape {tuple(p.shape)}. Set "
                "the gradient to None when the parameter is replaced."
            )
        if g.device != p.device:
            raise ValueError(
                f"{wrong} is on {g.device}, the parameter is on {p.device}. Move the model before "
                "backward(), or move the gradient."
            )
        wide = compute_dtype(p.dtype)
        if g.dtype != wide and torch.promote_types(g.dtype, wide) != wide:
            raise TypeError(
                f"{wrong} has dtype {g.dtype}, the parameter has dtype {p.dtype}. Rounding it would "
                f"hide a mistake; convert it yourself, p.grad.to({p.dtype})."
            )

    def _check_state(self, p: Tensor, name: str) -> None:
        """Refuse a parameter that was moved, converted or reshaped since its state was made."""
        slot = self.state[p]
        for field in self.method.state._fields[:1] if slot else ():
            x = slot[field]
            if (x.device, x.dtype, x.shape) != (p.device, compute_dtype(p.dtype), p.shape):
                raise ValueError(
                    f"{self._name}: parameter {name} is {p.dtype} of shape {tuple(p.shape)} on "
                    f"{p.device}, but its state is {x.dtype} of shape {tuple(x.shape)} on {x.device}. "
                    "Move the state with optimizer.load_state_dict(optimizer.state_dict()); after a "
                    "change of shape make a new optimizer."
                )

    def _groups(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Each group's hyperparameters for the kernel, checked where one is another object now."""
        seen = []
        for index, group in enumerate(self.param_groups):
            values = tuple(group[name] for name in self.domains)
            if index < len(self._seen) and all(map(operator.is_, values, self._seen[index][0])):
                seen.append(self._seen[index])
                continue
            group.update(self._in_domains(group, f" of param group {index}"))
            values = tuple(group[name] for name in self.domains)
            seen.append((values, self._for_kernel(group)))
        self._seen = seen
        return seen

    @torch.compiler.disable  # a compiled training step leaves the optimizer to its own kernels
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Do one step.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            ValueError: a hyperparameter or gradient does not fit; nothing is changed.
            TypeError: one has a wrong type, or a gradient is sparse; nothing is changed.
            RuntimeError: in evaluation mode.
        """
        if self._evaluating and self.method.evaluate is not None:
            raise RuntimeError(
                f"{self._name}: step in evaluation mode. Call optimizer.train() first, or leave the "
                "block of optimizer.evaluation()."
            )
        groups = self._groups()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = []
        for index, (group, (values, hypers)) in enumerate(
            zip(self.param_groups, groups, strict=True)
        ):
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    if self._doubtful(p, p.grad):
                        name = self._names(index)[i]
                        self._check_parameter(p, name)
                        self._check_gradient(p, p.grad, name)
                        self._check_state(p, name)
                    ready.append((p, values, hypers))
        for job, (hypers, params) in self._jobs(ready).items():
            self._run(params, hypers, *job[1:])
        return loss

    def _doubtful(self, p: Tensor, g: Tensor) -> bool:
        """Whether anything about a parameter asks for the checks that have messages."""
        wide = compute_dtype(p.dtype)
        fields = self.method.state._fields
        x = self.state[p][fields[0]] if fields and p in self.state else None
        return (
            g.layout != torch.strided
            or g.dtype != p.dtype
            or g.shape != p.shape
            or g.device != p.device
            or p.dtype not in _PARAMETERS
            or (x is not None and (x.dtype != wide or x.device != p.device or x.shape != p.shape))
        )

    def _jobs(self, ready: Sequence[tuple[Tensor, Any, Any]]) -> dict[Any, Any]:
        """Parameters by what their scalars and buffers depend on, whatever the user's groups are."""
        jobs: dict[Any, tuple[Any, list[Tensor]]] = {}
        for p, values, hypers in ready:
            slot = self.state[p]
            if not slot:
                start = self.method.init(computed(p.detach()), **self._init_hypers(hypers))
                slot.update(step=0, **self.method.scalar_states, **start._asdict())
            kept = tuple(slot[name] for name in self.method.scalar_states)
            key = (values, p.dtype, p.device, slot["step"] + 1, kept)
            jobs.setdefault(key, (hypers, []))[1].append(p)
        return jobs

    def _init_hypers(self, hypers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _double(hypers[name]) for name in self.method.init_hypers}

    def _run(
        self,
        params: list[Tensor],
        hypers: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        t: int,
        kept: tuple[Any, ...],
    ) -> None:
        """One step of parameters that share everything but their values."""
        method, wide = self.method, compute_dtype(dtype)
        extra = {f"{name}_prev": x for name, x in zip(method.scalar_states, kept, strict=True)}
        extra |= {"store": storing(wide)} if kept else {}
        exact = method.scalars(t, **extra, **{k: _double(v) for k, v in hypers.items()})
        s = rounded(exact, wide)
        if not (self._compile and self._run_flat(params, s)):
            self._run_each(params, s)
        for p in params:
            self.state[p].update({name: getattr(exact, name) for name in method.scalar_states}, step=t)

    def _run_each(self, params: list[Tensor], s: Any) -> None:
        """The kernel on one parameter after the other."""
        for p in params:
            slot = self.state[p]
            theta, g = computed(p.detach()), computed(p.grad)
            result, state = self.method.step(theta, g, self._tensors(slot), s)
            taken = {id(theta), id(g)}  # the user's own memory, which changes outside, is not kept
            for name, x in state._asdict().items():
                slot[name] = x.clone() if id(x) in taken else x
                taken.add(id(slot[name]))
            p.copy_(round_to(result, p.dtype))

    def _run_flat(self, params: list[Tensor], s: Any) -> bool:
        """The compiled kernel on all parameters at once; False where there is no compiler."""
        sizes = [p.numel() for p in params]
        missing = max(0, 2 - sum(sizes))  # torch.compile would compile again for sizes 0 and 1

        def joined(tensors: Iterable[Any]) -> Tensor:
            pieces = [x.detach().reshape(-1) for x in tensors]
            return computed(torch.cat([*pieces, pieces[0].new_zeros(missing)]))

        slots = [self.state[p] for p in params]
        state = self.method.state._make(
            joined(slot[name] for slot in slots) for name in self.method.state._fields
        )
        scalars = _remade(
            s, (torch.tensor(x, device="cpu") if isinstance(x, bool) else x for x in s)
        )
        try:
            theta, state = _compiled(self.method.step)(
                joined(params), joined(p.grad for p in params), state, scalars
            )
        except Exception as error:
            from torch._dynamo.exc import BackendCompilerFailed

            if not isinstance(error, BackendCompilerFailed):
                raise
            warnings.warn(
                f"{self._name}: torch.compile failed ({str(error).splitlines()[0]}); the step goes on "
                "uncompiled, with the same bits. Install a C++ compiler, or drop compile=True.",
                stacklevel=2,
            )
            self._compile = False
            return False
        results = [(params, theta)]
        results += [([slot[f] for slot in slots], x) for f, x in state._asdict().items()]
        for targets, flat in results:
            for target, piece in zip(targets, flat[: sum(sizes)].split(sizes), strict=True):
                target.copy_(round_to(piece.view(target.shape), target.dtype))
        return True

    def _tensors(self, slot: Mapping[str, Any]) -> Any:
        """The tensor states as the kernel takes them."""
        return self.method.state._make(slot[name] for name in self.method.state._fields)

    # Evaluation -----------------------------------------------------------------------------------

    @torch.no_grad()
    def eval(self) -> None:
        """Let the parameters hold what the model is evaluated with.

        Where the algorithm takes its gradient at another point (look-ahead), the parameters hold that
        point during training and the iterate from here to `train()`. Copies are swapped, nothing is
        recomputed, so a run with evaluations has the bits of a run without.
        """
        name = self.method.evaluate
        if not self._evaluating and name is not None:
            for p, slot in self._stateful():
                slot[_TRAINING] = p.detach().clone()
                p.copy_(round_to(slot[name], p.dtype))
        self._evaluating = True

    @torch.no_grad()
    def train(self) -> None:
        """Let the parameters hold again what the next gradient is taken at."""
        for p, slot in self._stateful():
            if _TRAINING in slot:
                p.copy_(slot.pop(_TRAINING))
        self._evaluating = False

    def _stateful(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for p in group["params"]:
                if self.state.get(p):
                    yield p, self.state[p]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """`with optimizer.evaluation():` is `eval()` before and, where it was so, `train()` after."""
        before = self._evaluating
        self.eval()
        try:
            yield
        finally:
            if not before:
                self.train()

    # Saving and loading ---------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`; refused, with nothing changed, where it does not fit.

        States are moved to the parameter's device and keep their own dtype (`torch.optim` casts them
        to the parameter's).
        """
        hook = self.register_load_state_dict_pre_hook(Optimizer._understood)  # after the user's hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def _understood(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint with every state checked, copied, and shielded from torch's cast."""
        saved, live = state_dict["param_groups"], self.param_groups
        if len(saved) != len(live):
            raise ValueError(
                f"{self._name}: the checkpoint has {len(saved)} param groups, the optimizer has "
                f"{len(live)}. Build it with the groups it was saved with."
            )
        state, groups = dict(state_dict["state"]), []
        for index, (old, new) in enumerate(zip(saved, live, strict=True)):
            if len(old["params"]) != len(new["params"]):
                raise ValueError(
                    f"{self._name}: param group {index} of the checkpoint has {len(old['params'])} "
                    f"parameters, the optimizer's has {len(new['params'])}. Build it over the same "
                    "parameters in the same order."
                )
            groups.append({**{name: new[name] for name in self.domains}, **old})
            hypers = self._for_kernel(new)
            for key, p, name in zip(old["params"], new["params"], self._names(index), strict=True):
                if state.get(key):
                    state[key] = _Loaded(self._fitted(p, name, state[key], hypers))
        return {**state_dict, "state": state, "param_groups": groups}

    def _fitted(
        self, p: Tensor, name: str, entries: Mapping[str, Any], hypers: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The saved state of one parameter, on its device, in the dtypes of this method."""
        method = self.method
        wanted = {"step", *method.scalar_states, *method.state._fields}
        if not wanted <= entries.keys():
            raise ValueError(
                f"{self._name}: the state of parameter {name} in the checkpoint has entries "
                f"{', '.join(sorted(entries))}; expected are {', '.join(sorted(wanted))}. It was saved "
                "by another optimizer."
            )
        fitted = dict(entries)
        start = method.init(computed(p.detach()).to("meta"), **self._init_hypers(hypers))
        like = {**start._asdict(), _TRAINING: p}
        for field in like.keys() & entries.keys():
            if entries[field].shape != like[field].shape:
                raise ValueError(
                    f"{self._name}: {field} of parameter {name} has shape "
                    f"{tuple(entries[field].shape)} in the checkpoint, expected is "
                    f"{tuple(like[field].shape)}. Build the optimizer over the same parameters in the "
                    "same order."
                )
            fitted[field] = entries[field].detach().to(p.device, like[field].dtype, copy=True)
        fitted["step"] = int(entries["step"])
        for field in method.scalar_states:
            fitted[field] = float(entries[field])
        return fitted

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying take: torch's three entries and the two modes."""
        modes = {"_compile": self._compile, "_evaluating": self._evaluating}
        return {**super().__getstate__(), **modes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` or `load_state_dict` made."""
        super().__setstate__(state)
        self._name = type(self).__name__
        self._seen = []
        for p, slot in self.state.items():
            if isinstance(slot, _Loaded):
                self.state[p] = slot.entries
        if "_evaluating" not in state:
            self._evaluating = any(_TRAINING in slot for slot in self.state.values())


# ---------------------------------------------------------------------------------------------------
# Schedules


class Rule(NamedTuple):
    """A learning rate as a function of the number n of finished steps, in double precision."""

    name: str
    value: Callable[..., Any]  # (n, base_lr=..., **hypers) -> lr
    uses_base_lr: bool = True
    requires: Callable[..., Mapping[str, Any]] | None = None  # relations, as text, and if they hold


@dataclass(frozen=True)
class Unbound:
    """A schedule without an optimizer: a function of n and the base learning rate."""

    schedule: type[Schedule]
    hypers: dict[str, Any]

    def __call__(self, n: int, base_lr: Scalar) -> Scalar:
        """The learning rate after n finished steps."""
        hypers = dict(self.hypers)
        for name, domain in self.schedule.domains.items():
            if domain.kind == "schedule":
                each = hypers[name] if domain.many else (hypers[name],)
                parts = tuple(_as_function(part, base_lr) for part in each)
                hypers[name] = parts if domain.many else parts[0]
        if self.schedule.rule.uses_base_lr:
            hypers["base_lr"] = base_lr
        value: Scalar = self.schedule.rule.value(n, **hypers)
        return value

    def table(self, n: int, base_lr: float) -> list[Scalar]:
        """The first n values."""
        return [self(k, base_lr) for k in range(n)]

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.hypers.items())
        return f"{self.schedule.__name__}.of({inside})"


def _as_function(schedule: Any, base_lr: Scalar) -> Callable[[int], Scalar]:
    """A schedule among the hyperparameters, or a function of the step, or a number, as the text calls it."""
    if isinstance(schedule, Unbound):
        return lambda n: schedule(n, base_lr)
    if callable(schedule):
        return lambda n: _double(schedule(n))
    return lambda n: float(schedule)


class Schedule(LRScheduler):
    """An `LRScheduler` in closed form: the learning rate follows from `last_epoch` alone.

    The base learning rate is each group's `initial_lr`. `state_dict()` holds the clock; the
    hyperparameters are the constructor's.
    """

    rule: ClassVar[Rule]
    domains: ClassVar[Mapping[str, Domain]]
    spelling: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}

    def __init__(
        self, optimizer: torch.optim.Optimizer, hypers: dict[str, Any], last_epoch: int = -1
    ) -> None:
        """Check the hyperparameters and set the learning rate of step 0."""
        self.unbound = self._unbound(hypers)
        super().__init__(optimizer, last_epoch)

    @classmethod
    def of(cls, **hypers: Any) -> Unbound:
        """The schedule without an optimizer, as `Warmup` and `Join` take it."""
        given = inspect.signature(cls).bind(None, **hypers)
        given.apply_defaults()
        return cls._unbound({name: given.arguments[name] for name in cls.domains})

    @classmethod
    def _unbound(cls, hypers: Mapping[str, Any]) -> Unbound:
        checked = {n: _checked(cls.__name__, n, d, hypers[n]) for n, d in cls.domains.items()}
        if cls.rule.requires is not None:
            _require(cls.__name__, cls.rule.requires, checked)
        return Unbound(cls, checked)

    def get_lr(self) -> list[Any]:
        """The learning rate of each group after `last_epoch` steps."""
        return [self.unbound(self.last_epoch, _double(base)) for base in self.base_lrs]

    def table(self, n: int) -> list[Scalar]:
        """The first n values for the first group."""
        return self.unbound.table(n, _double(self.base_lrs[0]))

    def state_dict(self) -> dict[str, Any]:
        """The clock and the base learning rates; plain data."""
        return {key: value for key, value in super().state_dict().items() if key != "unbound"}


# ---------------------------------------------------------------------------------------------------
# Transforms


def _leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor of a tree with its path: `layers[0].weight`."""
    if isinstance(tree, Mapping):
        for key, sub in tree.items():
            yield from _leaves(sub, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)):
        for i, sub in enumerate(tree):
            yield from _leaves(sub, f"{path}[{i}]")
    else:
        yield path, tree


def _rebuilt(tree: Tree, values: Iterator[Any]) -> Tree:
    """A tree of the same structure with other leaves."""
    if isinstance(tree, Mapping):
        return {key: _rebuilt(sub, values) for key, sub in tree.items()}
    if isinstance(tree, (list, tuple)):
        return _remade(tree, [_rebuilt(sub, values) for sub in tree])
    return next(values)


def transformed(
    owner: str,
    method: Method,
    domains: Mapping[str, Domain],
    grads: Tree,
    params: Tree | None,
    hypers: Mapping[str, Any],
) -> Tree:
    """New gradients in the structure of the old; None stays None."""
    checked = {name: _checked(owner, name, domain, hypers[name]) for name, domain in domains.items()}
    exact = method.scalars(1, **{name: _double(value) for name, value in checked.items()})
    at = None if params is None else dict(_leaves(params))
    for path, g in _leaves(grads):
        if g is not None:
            _check_leaf(owner, path, g, g if at is None else at.get(path))
    results = []
    for path, g in _leaves(grads):
        if g is not None:
            theta = computed(g if at is None else at[path])
            s = rounded(exact, theta.dtype)
            u, _ = method.step(theta, computed(g), method.init(theta), s)
            results.append(round_to(u, g.dtype))
        else:
            results.append(None)
    return _rebuilt(grads, iter(results))


def _check_leaf(owner: str, path: str, g: Any, theta: Any) -> None:
    """Refuse what is not a gradient, or not that of its parameter."""
    wrong = f"{owner}: the gradient {path}".rstrip()
    if not isinstance(g, Tensor):
        raise TypeError(
            f"{wrong} is a {type(g).__name__}, not a tensor. Pass a tensor, or lists, tuples and "
            "dictionaries of tensors."
        )
    if g.layout != torch.strided or g.dtype not in _PARAMETERS:
        raise TypeError(
            f"{wrong} has dtype {g.dtype} and layout {g.layout}; float16, bfloat16, float32 and "
            "float64, strided, are understood. Convert it, for example g.to_dense().float()."
        )
    if not isinstance(theta, Tensor):
        raise ValueError(f"{wrong} has no parameter. Pass parameters in the structure of the gradients.")
    if theta.shape != g.shape or theta.dtype != g.dtype:
        raise ValueError(
            f"{wrong} is {g.dtype} of shape {tuple(g.shape)}, its parameter is {theta.dtype} of shape "
            f"{tuple(theta.shape)}. Pass parameters in the structure of the gradients."
        )
