"""Runs trajectories and kernels with the generated NumPy package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from backends.running import KernelInput, KernelOutput, Outcome, Policy, Run, further

POLICY = Policy()


def trajectory(run: Run, mode: str) -> Outcome:
    """The optimizer in place on a list of arrays."""
    params = [np.array(p) for p in run.params]
    hypers = dict(run.hypers)
    if run.schedule is not None:
        name, given = run.schedule
        hypers["lr"] = run.package.create(name, **given)
    if run.rules is not None:
        hypers["rules"] = run.rules(run.package)
    optimizer = run.package.create(run.name, params, **hypers, **run.options)
    for step, grads in enumerate(run.grads):
        taken = _taken(run, step) if run.further else list(grads)
        optimizer.step(taken, **run.inputs(step))
    states = [
        {k: np.asarray(v) for k, v in {**slot, **_common(optimizer, p)}.items() if k != "step"}
        for p, slot in zip(params, optimizer.state.values(), strict=True)
    ]
    return Outcome(params, states)


def _taken(run: Run, step: int) -> Any:
    """The gradients of a step, one after the other, each where the parameters are."""
    made = iter(run.gradients(step))

    def gradient(params: list[Any]) -> list[Any]:
        given = next(made)
        if given is run.grads[step]:
            return list(given)
        return [a if a is None else further(a, p, np.where) for a, p in zip(given, params, strict=True)]

    return gradient


def _common(optimizer: Any, p: Any) -> dict[str, Any]:
    """What parameters of this compute dtype keep together."""
    kept: dict[str, Any] = optimizer.shared.get("float64" if p.dtype == np.float64 else "float32", {})
    return kept


def kernels(
    modules: Sequence[ModuleType], mode: str, inputs: Sequence[KernelInput]
) -> list[KernelOutput]:
    """Each module's kernel on its input."""
    return [_kernel(m, x) for m, x in zip(modules, inputs, strict=True)]


def _kernel(module: ModuleType, x: KernelInput) -> KernelOutput:
    runtime: Any = inspect.getmodule(type(module.METHOD))
    method: Any = runtime.decided(module.METHOD, x.hypers)
    dtype = np.asarray(x.theta).dtype
    hypers = {k: np.float64(v) if isinstance(v, float) else v for k, v in x.hypers.items()}
    with np.errstate(all="ignore"):
        starts = {k: hypers.get(v, v) for k, v in method.scalar_states.items()}
        theta, kept = x.theta, {k: np.float64(dtype.type(v)) for k, v in starts.items()}
        state = method.init(theta, **{h: hypers[h] for h in method.init_hypers})
        for t in range(x.first, x.first + x.steps):
            store = {"store": lambda v: np.float64(dtype.type(v))} if kept else {}
            previous = {f"{k}_prev": v for k, v in kept.items()}
            s = method.scalars(t, **previous, **store, **hypers)
            kept = {k: getattr(s, k) for k in kept}
            rounded = runtime._rounded(s, dtype)
            theta, state = method.step(theta, x.g, state, rounded)
    return KernelOutput(np.asarray(theta), {**state._asdict(), **kept})


def schedule(
    package: ModuleType, name: str, hypers: Mapping[str, Any], at: Sequence[int], mode: str
) -> list[float]:
    """A schedule's values after n finished steps."""
    made = package.create(name, **hypers)
    return [made(n) for n in at]


def transform(
    package: ModuleType,
    name: str,
    hypers: Mapping[str, Any],
    params: Sequence[Any],
    grads: Sequence[Any],
    mode: str,
    t: int = 1,
) -> list[Any]:
    """What a transform makes of some gradients at step t."""
    function = getattr(package, name)
    taken = inspect.signature(function).parameters
    clock = {"t": t} if "t" in taken else {}
    given = [list(grads), *([list(params)] if "params" in taken else [])]
    made: list[Any] = function(*given, **clock, **hypers)
    return made
