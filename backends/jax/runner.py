"""Runs trajectories and kernels with the generated JAX package.

Its modes: `eager`, the step called by itself, which runs one compiled kernel a tensor; `op by op`, the
same with kernels that are not compiled; `jit`, the whole step compiled; `update`, optax's, compiled.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from backends.jax.native import native as native
from backends.running import KernelInput, KernelOutput, Outcome, Policy, Run, further

POLICY = Policy(
    missing="refuse",
    additive=frozenset({"update"}),
    slow=frozenset({"op by op"}),
    dispatched=frozenset({"eager"}),
    compiled=frozenset({"eager", "op by op", "jit", "update"}),
    flushes=True,
)


def _exact(x: Any) -> Any:
    """A NumPy array with its dtype kept; float64 wants the wide mode."""
    return jnp.asarray(x)


def _shown(x: Any) -> Any:
    """A state in NumPy; None where the parameter has none of its name."""
    return None if x is None else np.asarray(x)


def _wide(arrays: Sequence[Any]) -> Any:
    """float64 exists in JAX's 64-bit mode only."""
    return jax.enable_x64(any(np.asarray(a).dtype == np.float64 for a in arrays))


def _not_compiled(package: ModuleType) -> Any:
    """Inside, the package's kernels run operation by operation."""
    runtime: Any = importlib.import_module(f"{package.__name__}.runtime")

    def plain(compiled: Any) -> Any:
        return lambda *given: compiled(*given).__wrapped__

    return patch.multiple(
        runtime,
        _kernel=plain(runtime._kernel),
        _shared_kernel=plain(runtime._shared_kernel),
        _opened=plain(runtime._opened),
        _packed=plain(runtime._packed),
        _parted=plain(runtime._parted),
        _added=runtime._total,
    )


def _taken(grads: Sequence[Any], first: bool = True) -> Any:
    """The gradients of a step, one after the other, each where the parameters are."""
    made = iter(grads)
    as_it_is = grads[0] if first else None

    def gradient(params: Any) -> Any:
        given = next(made)
        if given is as_it_is:
            return given
        return [further(a, p, jnp.where) for a, p in zip(given, params, strict=True)]

    return gradient


def trajectory(run: Run, mode: str) -> Outcome:
    """The transformation on a list of arrays."""
    hypers = dict(run.hypers)
    if run.schedule is not None:
        hypers["lr"] = run.package.create(run.schedule[0], **run.schedule[1])
    if run.rules is not None:
        hypers["rules"] = run.rules(run.package)
    optimizer = run.package.create(run.name, **hypers, **run.options)

    def exact(params: Any, grads: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
        taken = _taken(grads) if run.further else grads[0]
        params, state = optimizer.step(params, taken, state, **inputs)
        return params, state

    def added(params: Any, grads: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
        extra = {"gradient": _taken(grads[1:], first=False)} if run.further else {}
        updates, state = optimizer.update(grads[0], state, params, **extra, **inputs)
        return [p + u for p, u in zip(params, updates, strict=True)], state

    step = {"jit": jax.jit(exact), "update": jax.jit(added)}.get(mode, exact)
    with _wide(run.params), _not_compiled(run.package) if mode == "op by op" else nullcontext():
        params = [_exact(p) for p in run.params]
        state = optimizer.init(params)
        for number in range(len(run.grads)):
            grads, inputs = jax.tree.map(_exact, (run.gradients(number), dict(run.inputs(number))))
            params, state = step(params, grads, state, inputs)
        states = []
        settings = optimizer.shell.settings(jax.tree.structure(params), params)
        for i, p in enumerate(run.params):
            dtype = "float64" if p.dtype == np.float64 else "float32"
            kept = state.scalars.get(f"{dtype} {settings[i].label}".rstrip(), {})
            slots: dict[str, Any] = {}
            for name, tree in state.tensors._asdict().items():
                pieces = isinstance(tree[i], tuple)
                slots |= dict(zip((name, f"{name}.scale"), tree[i] if pieces else (tree[i],), strict=False))
            if state.beside:
                slots["theta.rest" if run.options["store"] == "kahan" else "theta.master"] = state.beside[i]
            shown = {name: _shown(x) for name, x in {**slots, **kept}.items()}
            states.append({name: x for name, x in shown.items() if x is not None})
        return Outcome([np.asarray(p) for p in params], states)


def kernels(
    modules: Sequence[ModuleType], mode: str, inputs: Sequence[KernelInput]
) -> list[KernelOutput]:
    """Each module's kernel on its input; compiled, all of them are one function."""
    methods: list[Any] = [m.METHOD for m in modules]
    runtime: Any = inspect.getmodule(type(methods[0]))
    methods = [runtime.decided(m, x.hypers) for m, x in zip(methods, inputs, strict=True)]
    additive = [m.update is not None and mode == "update" for m in methods]

    def all_steps(thetas: Any, gs: Any, states: Any, scalars: Any) -> Any:
        results = []
        for i, m in enumerate(methods):
            given = (thetas[i], gs[i], states[i], scalars[i])
            if additive[i]:
                u, state = m.update(*given)
                results.append((thetas[i] + u, state))
            else:
                results.append((jax.jit(m.step) if mode == "eager" else m.step)(*given))
        return results

    function = all_steps if mode in ("eager", "op by op") else jax.jit(all_steps)
    with _wide([x.theta for x in inputs]):
        thetas, gs = [_exact(x.theta) for x in inputs], [_exact(x.g) for x in inputs]
        hypers = [runtime._hypers(m, x.hypers) for m, x in zip(methods, inputs, strict=True)]
        states, kept = [], []
        for m, h, theta in zip(methods, hypers, thetas, strict=True):
            given = {k: jnp.asarray(h[k], theta.dtype) for k in m.init_hypers}
            states.append(m.init(theta, **given))
            starts = {k: h[v] if isinstance(v, str) else v for k, v in m.scalar_states.items()}
            kept.append({k: jnp.asarray(v, theta.dtype) for k, v in starts.items()})
        for step in range(inputs[0].steps):
            count = jnp.asarray(inputs[0].first + step - 1, jnp.int32)
            scalars = [
                runtime._evaluated(
                    m.scalars, count, h, theta.dtype, {f"{k}_prev": v for k, v in c.items()}
                )
                for m, h, theta, c in zip(methods, hypers, thetas, kept, strict=True)
            ]
            kept = [{k: getattr(s, k) for k in c} for s, c in zip(scalars, kept, strict=True)]
            results = function(thetas, gs, states, scalars)
            thetas, states = [r[0] for r in results], [r[1] for r in results]
        return [
            KernelOutput(np.asarray(t), {k: _shown(v) for k, v in {**s._asdict(), **c}.items()})
            for t, s, c in zip(thetas, states, kept, strict=True)
        ]


def schedule(
    package: ModuleType, name: str, hypers: Mapping[str, Any], at: Sequence[int], mode: str
) -> list[float]:
    """A schedule's values in double: what its users get in JAX's 64-bit mode."""
    with jax.enable_x64(True):
        made = package.create(name, **hypers)
        function = made if mode in ("eager", "op by op") else jax.jit(made)
        return [float(function(jnp.asarray(n, jnp.int32))) for n in at]


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
    made = package.create(name, **hypers)
    with _wide(grads):
        thetas, gs = [_exact(p) for p in params], [_exact(g) for g in grads]
        state = made.init(thetas)
        state = state._replace(count=state.count + (t - 1))
        update = jax.jit(made.update) if mode in ("jit", "update") else made.update
        updates, _ = update(gs, state, thetas)
        return [np.asarray(u) for u in updates]


def forget() -> None:
    """Let go of what was compiled."""
    jax.clear_caches()
