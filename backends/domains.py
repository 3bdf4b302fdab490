"""What a hyperparameter may be, checked the same way on every backend.

In: values that users pass. Out: nothing, or an error that says what is wrong and what to do. Must not
know: any framework. The build copies this text into each backend's runtime, so that a generated
package stands alone.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Domain:
    """A set of values: an interval of numbers, True and False, words, or schedules."""

    phrase: str
    kind: str = "float"
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True
    choices: tuple[str, ...] = ()
    parts: tuple[Domain, ...] = ()  # of the entries of a tuple, where they differ
    many: bool = False
    optional: bool = False
    least: int = 0  # how many entries a tuple has at least

    def check(self, owner: str, name: str, value: Any) -> None:
        """Refuse a value outside the set; the message names owner, hyperparameter and remedy."""
        if value is None and self.optional:
            return
        if self.many:
            if not isinstance(value, (tuple, list)):
                raise TypeError(f"{owner}: {name} must be {self.phrase}, got {value!r}.")
            self.long_enough(owner, name, value)
            for entry in value:
                self.entry(owner, name, entry)
            return
        self.entry(owner, name, value)

    def long_enough(self, owner: str, name: str, value: Any) -> None:
        """Refuse a tuple that lacks entries which the equations read."""
        if self.many and isinstance(value, (tuple, list)) and len(value) < self.least:
            raise ValueError(f"{owner}: {name} must be {self.phrase}, got {value!r}.")

    def entry(self, owner: str, name: str, value: Any) -> None:
        """Refuse one value."""
        wrong = f"{owner}: {name} must be {self.phrase}, got {value!r}."
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise TypeError(f"{wrong} Pass True or False.")
        elif self.kind == "choice":
            if value not in self.choices:
                raise ValueError(wrong)
        elif self.kind == "schedule":
            if isinstance(value, type) or not (callable(value) or _is_number(value)):
                raise TypeError(f"{wrong} Pass a schedule, a function of the step, or a number.")
        else:
            self.number(wrong, value)

    def part(self, i: int) -> Domain:
        """The domain of an entry of a tuple that bundles hyperparameters."""
        return self.parts[i] if self.parts else self

    def number(self, wrong: str, value: Any) -> None:
        """Refuse what is not a number of the interval; NaN lies in none."""
        if not _is_number(value):
            hint = " Pass a number, not text." if isinstance(value, str) else ""
            raise TypeError(wrong + hint)
        if self.kind == "int" and not isinstance(value, numbers.Integral):
            raise TypeError(f"{wrong} Pass an integer.")
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        if not (above and below):
            hint = ""
            if value == self.high == 1:
                hint = " At 1 nothing new would ever enter the average; 0.999 is a long memory."
            elif value != value:
                hint = " NaN often comes from a division by zero where the value was computed."
            raise ValueError(wrong + hint)


NonNegative = Domain("a number in [0, inf)", low=0.0)
Positive = Domain("a number in (0, inf)", low=0.0, low_open=True)
Decay = Domain("a number in [0, 1)", low=0.0, high=1.0)
Real = Domain("a number in (-inf, inf)")
Count = Domain("an integer in [0, inf)", "int", low=0)
PositiveCount = Domain("an integer in [1, inf)", "int", low=1)
Flag = Domain("True or False", "bool")
AnySchedule = Domain("a schedule", "schedule")


def tuple_of(domain: Domain, least: int = 0) -> Domain:
    """A tuple whose entries lie in a domain; `least` says how many are read by themselves."""
    entries = "1 entry" if least == 1 else f"{least} entries"
    whole = f"a tuple of {entries} or more, each" if least else "a tuple, each entry"
    return replace(domain, phrase=f"{whole} {domain.phrase}", many=True, least=least)


def optional(domain: Domain) -> Domain:
    """A value of a domain, or None."""
    return replace(domain, phrase=f"{domain.phrase}, or None", optional=True)


def each_of(*domains: Domain) -> Domain:
    """A tuple with an entry of each of these domains."""
    phrase = ", then ".join(dict.fromkeys(d.phrase for d in domains))
    return Domain(f"a tuple of {phrase}", domains[0].kind, parts=domains)


def _is_number(value: Any) -> bool:
    """A real number of Python or NumPy, booleans apart."""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return False
    return isinstance(value, numbers.Real)


def check_all(
    owner: str,
    domains: Mapping[str, Domain],
    values: Mapping[str, Any],
    unchecked: Callable[[Any], bool] = lambda value: False,
) -> None:
    """Check every value that has a domain; `unchecked` says which are tensors or schedules."""
    for name, domain in domains.items():
        value = values[name]
        entries = value if domain.many and isinstance(value, (tuple, list)) else (value,)
        domain.long_enough(owner, name, value)
        if not any(unchecked(entry) for entry in entries):
            domain.check(owner, name, value)


def check_schedule(owner: str, name: str, domain: Domain, value: Any, counts: bool = True) -> None:
    """Refuse a function that cannot be a schedule in place of a number; `counts`: it is given the count."""
    wrong = f"{owner}: {name} must be {domain.phrase}, or a function of the number of finished steps, got"
    if isinstance(value, type):
        raise TypeError(f"{wrong} the class {value.__name__}. Make a schedule of it, {value.__name__}(...).")
    try:
        inspect.signature(value).bind(*[0] * counts)
    except ValueError:  # a function of C has no signature
        return
    except TypeError as error:
        what = f"{wrong} {value!r}, which cannot be called with that alone: {error}."
        raise TypeError(f"{what} Pass a schedule that is made, or, for example, lambda n: 0.1.") from None


def check_weights(owner: str, shapes: Mapping[str, tuple[int, ...]], weights: Any) -> dict[str, Any]:
    """The meta-parameters; refuses missing, superfluous, misshapen ones, and other than floats."""
    if not shapes:
        return {}
    wanted = f"It has the entries {', '.join(f'{name} {shape}' for name, shape in shapes.items())}."
    if not isinstance(weights, Mapping):
        what = f"weights must be a mapping from names to arrays, got {type(weights).__name__}."
        raise TypeError(f"{owner}: {what} {wanted}")
    lacking, odd = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    for names, verb in ((lacking, "lacks"), (odd, "also has")):
        if names:
            raise ValueError(f"{owner}: weights {verb} {', '.join(sorted(map(str, names)))}. {wanted}")
    for name, shape in shapes.items():
        x, called = weights[name], f"weights[{name!r}]"
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise TypeError(f"{owner}: {called} must be an array of shape {shape}, got {type(x).__name__}.")
        if tuple(x.shape) != shape:
            raise ValueError(f"{owner}: {called} has shape {tuple(x.shape)}; expected is {shape}.")
        if "float" not in str(x.dtype):
            raise TypeError(f"{owner}: {called} has dtype {x.dtype}. Convert it, for example to float32.")
    return {name: weights[name] for name in shapes}


def check_shape(owner: str, only: str, called: str, shape: Sequence[int]) -> None:
    """Refuse a parameter that an algorithm is not for: `only` is matrix, vector or empty."""
    if only and (len(shape) >= 2) != (only == "matrix"):
        whom = {"matrix": "with two axes or more", "vector": "with fewer than two axes"}[only]
        raise ValueError(
            f"{owner}: {called} has the shape {tuple(shape)}; {owner} is for parameters {whom} only. "
            "Pass this one to another optimizer, or use one that does both: MuonAdamW, or what python -m "
            'generator build --chain "muon | lion" makes.'
        )


def check_relations(
    owner: str, requires: Callable[..., Mapping[str, Any]] | None, values: Mapping[str, Any]
) -> None:
    """Refuse hyperparameters that do not fit each other; by the spec's names."""
    try:
        relations = requires(**values) if requires else {}
    except TypeError:  # a schedule cannot be compared
        if not any(map(callable, values.values())):
            raise
        return
    for text, holds in relations.items():
        if type(holds).__name__ in ("bool", "bool_") and not holds:  # tensors are not looked into
            given = ", ".join(f"{k} = {v!r}" for k, v in values.items() if k in text)
            raise ValueError(f"{owner}: {text} must hold, got {given}.")


def told(choices: Mapping[str, str], hypers: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What kernels are told: choices themselves, of options whether given, of numbers whether above 0.

    A number that is not known yet, a tensor or a schedule, counts as above 0.
    """
    made: list[tuple[str, Any]] = []
    for name, h in choices.items():
        value = hypers[h]
        if name == f"has_{h}":
            value = value is not None
        elif name == f"with_{h}":
            value = not _is_number(value) or bool(value > 0)
        made.append((name, value))
    return tuple(made)


@functools.cache
def settled(kernel: Any, said: tuple[tuple[str, Any], ...]) -> Any:
    """The kernel that has been told of the choices, a function of its own to every compiler."""
    own = another(kernel)
    own.__kwdefaults__ = {**(kernel.__kwdefaults__ or {}), **dict(said)}
    return own


def another(kernel: Any) -> Any:
    """The same kernel as a function of its own to every compiler."""
    code = kernel.__code__.replace()
    own = types.FunctionType(
        code, kernel.__globals__, kernel.__name__, kernel.__defaults__, kernel.__closure__
    )
    own.__kwdefaults__ = kernel.__kwdefaults__
    return own


def check_states(
    owner: str, what: str, before: Sequence[Any], after: Sequence[Any], fields: Sequence[str]
) -> None:
    """Refuse a choice that changes which states there are, once there are some."""
    odd = [k for k, a, b in zip(fields, before, after, strict=True) if (a is None) != (b is None)]
    if odd:
        raise ValueError(
            f"{owner}: {what} decides on the states {', '.join(odd)}, and the run has begun. "
            "Set it back, or make a new optimizer."
        )
