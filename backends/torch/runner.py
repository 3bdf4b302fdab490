"""Runs trajectories and kernels with the generated PyTorch package, eager and compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from backends.running import KernelInput, KernelOutput, Outcome, Policy, Run, further
from backends.torch.native import native as native

POLICY = Policy(compiled=frozenset({"fused"}))
_SPEEDS: dict[str, dict[str, bool]] = {"eager": {"foreach": False}, "default": {}, "fused": {"fused": True}}
_BF16 = "bfloat16"


def tensor(x: Any, device: str = "cpu") -> torch.Tensor:
    """A NumPy array as a tensor of its own; bfloat16 by its bits."""
    x = np.array(x)
    if x.dtype.name == _BF16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(x).to(device)


def array(x: torch.Tensor, like: Any) -> Any:
    """A tensor as a NumPy array of the storage dtype."""
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(like.dtype)
    return x.numpy()


def _trained(
    optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor], run: Run, scheduler: Any
) -> None:
    for step, grads in enumerate(run.grads):
        inputs = {k: _input(x, run.device) for k, x in run.inputs(step).items()}
        if run.further:
            optimizer.step(_closure(params, run, step), **inputs)
        else:
            for p, g in zip(params, grads, strict=True):
                p.grad = None if g is None else tensor(g, run.device)
            optimizer.step(**inputs)
        if scheduler is not None:
            scheduler.step()


def _closure(params: Sequence[torch.Tensor], run: Run, step: int) -> Callable[[], None]:
    """Sets the gradients of a step, one after the other, each where the parameters are."""
    made = iter(run.gradients(step))

    def closure() -> None:
        given = next(made)
        for p, a in zip(params, given, strict=True):
            g = None if a is None else tensor(a, run.device)
            p.grad = g if g is None or given is run.grads[step] else further(g, p.detach(), torch.where)

    return closure


def _input(x: Any, device: str) -> Any:
    if isinstance(x, float):
        return x
    return [None if a is None else tensor(a, device) for a in x]


def _common(optimizer: Any, p: torch.Tensor) -> dict[str, Any]:
    """What parameters of this compute dtype keep together."""
    kind = "float64" if p.dtype == torch.float64 else "float32"
    kept: dict[str, Any] = optimizer.param_groups[0].get("shared", {}).get(kind, {})
    return kept


def trajectory(run: Run, mode: str) -> Outcome:
    """The optimizer on a list of parameters."""
    params = [torch.nn.Parameter(tensor(p, run.device)) for p in run.params]
    hypers = dict(run.hypers)
    scheduled = dict(run.schedule[1]) if run.schedule is not None else {}
    if run.schedule is not None:
        hypers["lr"] = scheduled.pop("base_lr", hypers["lr"])
    given: Any = params
    if run.rules is not None:
        given = [(str(i), p) for i, p in enumerate(params)]
        hypers["rules"] = run.rules(run.package)
    optimizer = run.package.create(
        run.name, given, **hypers, **_SPEEDS[mode], **run.options
    )
    scheduler = None
    if run.schedule is not None:
        scheduler = run.package.create(run.schedule[0], optimizer, **scheduled)
    _trained(optimizer, params, run, scheduler)
    states = [
        {
            k: array(v, q) if isinstance(v, torch.Tensor) else np.asarray(v)
            for k, v in {**optimizer.state[p], **_common(optimizer, p)}.items()
            if k != "step"
        }
        for p, q in zip(params, run.params, strict=True)
    ]
    ends = [array(p, q) for p, q in zip(params, run.params, strict=True)]
    return Outcome(ends, states)


def kernels(
    modules: Sequence[ModuleType], mode: str, inputs: Sequence[KernelInput]
) -> list[KernelOutput]:
    """Each module's kernel on its input; compiled, all of them are one function."""
    from typing import cast

    methods: list[Any] = [m.METHOD for m in modules]
    runtime: Any = inspect.getmodule(type(methods[0]))
    methods = [runtime.decided(m, x.hypers) for m, x in zip(methods, inputs, strict=True)]
    thetas = [tensor(x.theta) for x in inputs]
    gs = [tensor(x.g) for x in inputs]
    kept = [
        {k: float(_rounded(x.hypers.get(v, v), t.dtype)) for k, v in m.scalar_states.items()}
        for m, x, t in zip(methods, inputs, thetas, strict=True)
    ]
    states = [
        m.init(t, **{h: x.hypers[h] for h in m.init_hypers})
        for m, x, t in zip(methods, inputs, thetas, strict=True)
    ]

    def all_steps(thetas: Any, gs: Any, states: Any, scalars: Any) -> Any:
        return [
            m.step(*arguments)
            for m, *arguments in zip(methods, thetas, gs, states, scalars, strict=True)
        ]

    def in_arrays(thetas: Any, gs: Any, states: Any, scalars: Any) -> Any:
        """What passes NumPy's views of tensors, as the default does."""
        made = []
        for m, theta, g, state, s in zip(methods, thetas, gs, states, scalars, strict=True):
            kept = {k: x.clone() for k, x in state._asdict().items() if x is not None}
            flat, new = runtime._Flattened(m.step, m.state, tuple(kept), False), theta.clone()
            numbers = runtime.in_numpy(s, theta.dtype)
            if m.elementwise and flat.in_arrays(new, g, list(kept.values()), numbers):
                made.append((new, state._replace(**kept)))
            else:
                made.append(m.step(theta, g, state, runtime.rounded(s, theta.dtype)))
        return made

    function: Callable[..., Any] = in_arrays if mode == "default" else all_steps
    if mode == "fused":
        torch._dynamo.reset()
        function = cast("Callable[..., Any]", torch.compile(all_steps, fullgraph=True))
    for i in range(inputs[0].steps):
        scalars = []
        for j, (m, x) in enumerate(zip(methods, inputs, strict=True)):
            dtype = thetas[j].dtype
            previous = {f"{k}_prev": v for k, v in kept[j].items()}
            store = {"store": runtime.storing(dtype)} if previous else {}
            s = m.scalars(x.first + i, **previous, **store, **x.hypers)
            kept[j] = {k: getattr(s, k) for k in kept[j]}
            scalars.append(s if mode == "default" else runtime.rounded(s, dtype))
        results = function(thetas, gs, states, scalars)
        thetas, states = [r[0] for r in results], [r[1] for r in results]
    return [
        KernelOutput(t.numpy(), {**_arrays(s._asdict()), **_arrays(k)})
        for t, s, k in zip(thetas, states, kept, strict=True)
    ]


def _rounded(value: float, dtype: torch.dtype) -> Any:
    return np.float32(value) if dtype == torch.float32 else np.float64(value)


def _arrays(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if v is None else np.asarray(v) for k, v in kept.items()}


def schedule(
    package: ModuleType, name: str, hypers: Mapping[str, Any], at: Sequence[int], mode: str
) -> list[float]:
    """A schedule's values after n finished steps."""
    given = dict(hypers)
    base = given.pop("base_lr", 0.0)
    cls = getattr(package, package._BY_NAME[name])
    made = cls.of(**given)
    return [float(made(n, base)) for n in at]


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
    given = [[tensor(g) for g in grads], *([[tensor(p) for p in params]] if "params" in taken else [])]
    made = function(*given, **clock, **hypers)
    return [array(u, g) for u, g in zip(made, grads, strict=True)]


def forget() -> None:
    """Let go of what was compiled."""
    torch._dynamo.reset()
