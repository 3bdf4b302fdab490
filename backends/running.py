"""What a trajectory is, for whoever runs one: `verify`, the tests, a stranger's backend.

In: nothing. Out: `Run` (what to do) and `Outcome` (what came of it), both in NumPy. Must not know: any
framework. A backend's `runner` module offers

    trajectory(run: Run, mode: str) -> Outcome      the generated shell, as its users run it
    kernels(modules, mode, inputs) -> list          many generated kernels in one compiled function
    POLICY: Policy                                  where its ecosystem's contract differs
    wake() -> None                                  optional: does what its framework writes about, once
    forget() -> None                                optional: lets go of what was compiled
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

Arrays = Sequence[Any]


@dataclass(frozen=True)
class Run:
    """One trajectory.

    Attributes:
        package: the generated package, already imported.
        name: the spec's name.
        params: start values, one array a parameter, in the storage dtype.
        grads: for each step one array a parameter; None where there is no gradient.
        hypers: hyperparameters by the spec's names.
        schedule: a schedule's name and hyperparameters for lr, or None for a constant.
        device: where to run, in the framework's words.
        further: for each step what its further gradients are made of, see `further`.
        given: for each step what else the program reads, by name: arrays like grads, or a number.
        options: `store` and `states`, where they are not what shells do by themselves.
        rules: makes the rules from the package; parameters have their places as names, 0, 1, ...
    """

    package: ModuleType
    name: str
    params: Arrays
    grads: Sequence[Sequence[Any]]
    hypers: Mapping[str, Any]
    schedule: tuple[str, Mapping[str, Any]] | None = None
    device: str = "cpu"
    further: Sequence[Sequence[Arrays]] = ()
    given: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: Callable[[Any], Sequence[Any]] | None = None

    def gradients(self, step: int) -> list[Arrays]:
        """What each gradient of a step is made of, the first as it is."""
        return [self.grads[step], *(self.further[step] if self.further else ())]

    def inputs(self, step: int) -> Mapping[str, Any]:
        """What else a step reads."""
        return self.given[step] if self.given else {}


def further(a: Any, point: Any, where: Callable[[Any, Any, Any], Any]) -> Any:
    """A further gradient where the parameter holds `point`, made of an array: no operation rounds."""
    return where(a > 0, point * 0.5, a)


@dataclass(frozen=True)
class Outcome:
    """Where a trajectory ended: parameters, and each parameter's states by name.

    In a reference, `subnormal` says for each parameter where a number on the way was subnormal.
    """

    params: Arrays
    states: Sequence[Mapping[str, Any]]
    subnormal: Arrays = ()


@dataclass(frozen=True)
class Policy:
    """What follows from an ecosystem's contract, and what `verify` must know of it.

    Attributes:
        missing: `skip`: a parameter without a gradient keeps its step count; `clock`: there is one
            count for all, which goes on; `refuse`: every gradient must be there.
        rounds: hyperparameters that the framework keeps in float32, so that they count as that.
        additive: modes that are exact for additive programs and float32 or float64 only.
        flushes: whether subnormal numbers become zeros, here or there.
        slow: modes that take so long that one case in float32 and one in float64 must do.
        dispatched: modes in which Python calls each kernel, of which one case in float32 and one in float64
            must do where there are more than a hundred steps.
        compiled: modes that compile, each case anew. Tests, which have little time, run one case of a
            program in each of them, and every other case in one of them at most, in turn.
    """

    missing: str = "skip"
    rounds: frozenset[str] = frozenset()
    additive: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    dispatched: frozenset[str] = frozenset()
    compiled: frozenset[str] = frozenset()
    flushes: bool = False


@dataclass(frozen=True)
class KernelInput:
    """What one kernel is called with, `steps` times in a row: theta and g, arrays of one dtype."""

    theta: Any
    g: Any
    hypers: Mapping[str, Any]
    steps: int = 1
    first: int = 1  # t of the first step


@dataclass(frozen=True)
class KernelOutput:
    """What came of it."""

    theta: Any
    state: Mapping[str, Any] = field(default_factory=dict)
