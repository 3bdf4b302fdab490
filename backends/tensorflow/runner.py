"""Runs trajectories and kernels with the generated TensorFlow package: eager, graph and XLA."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from backends.running import KernelInput, KernelOutput, Outcome, Policy, Run, further
from backends.tensorflow.native import native as native

# Keras keeps learning_rate in a float32 variable, and one count for all variables.
POLICY = Policy(
    missing="clock",
    rounds=frozenset({"lr"}),
    dispatched=frozenset({"eager"}),
    compiled=frozenset({"eager", "graph", "xla"}),
    flushes=True,
)

warnings.filterwarnings("ignore", message="Gradients do not exist for variables")  # on purpose, here


def _in_mode(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    if mode == "eager":
        return function
    made: Callable[..., Any] = tf.function(function, jit_compile=mode == "xla")
    return made


def _some(arrays: Sequence[Any]) -> list[Any]:
    return [tf.constant(a) for a in arrays if a is not None]


def _all(tensors: Sequence[Any], present: Sequence[bool]) -> list[Any]:
    rest = iter(tensors)
    return [next(rest) if here else None for here in present]


def _taken(lists: Sequence[Any], variables: Sequence[Any]) -> Callable[[], Any]:
    """The gradients of a step, one after the other, each where the variables are."""
    made = iter(lists)

    def gradient() -> list[Any]:
        given = next(made)
        if given is lists[0]:
            return list(given)
        points = [tf.convert_to_tensor(v.value) for v in variables]
        pairs = zip(given, points, strict=True)
        return [None if a is None else further(a, p, tf.where) for a, p in pairs]

    return gradient


def trajectory(run: Run, mode: str) -> Outcome:
    """The optimizer on a list of variables, applied eagerly or inside the user's function."""
    variables = [
        keras.Variable(p, dtype=p.dtype.name, trainable=True, name=str(i))
        for i, p in enumerate(run.params)
    ]
    hypers = dict(run.hypers)
    if run.schedule is not None:
        hypers["lr"] = run.package.create(run.schedule[0], **run.schedule[1])
    if run.rules is not None:
        hypers["rules"] = run.rules(run.package)
    optimizer = run.package.create(run.name, **hypers, **run.options)
    optimizer.build(variables)
    functions: dict[tuple[bool, ...], Callable[..., Any]] = {}
    for number, grads in enumerate(run.grads):
        present = tuple(g is not None for g in grads)
        if present not in functions:

            def apply(given: Any, inputs: Any, present: tuple[bool, ...] = present) -> None:
                lists = [_all(x, present) for x in given]
                taken = _taken(lists, variables) if run.further else lists[0]
                inputs = {k: _all(x, present) if isinstance(x, list) else x for k, x in inputs.items()}
                if run.further or inputs:
                    optimizer.step(taken, variables, **inputs)
                else:
                    optimizer.apply(taken, variables)

            functions[present] = _in_mode(apply, mode)
        inputs = {k: _some(x) if isinstance(x, list) else x for k, x in run.inputs(number).items()}
        functions[present]([_some(x) for x in run.gradients(number)], inputs)
    states = []
    for v in variables:
        slots = {
            name: np.asarray(slot.numpy())
            for name in optimizer.method.state._fields
            if (slot := optimizer._slot(name, v)) is not None
        }
        entries = optimizer._entries(v)
        for name, entry in zip(optimizer.method.state._fields, entries[:-1], strict=True):
            if isinstance(entry, tuple):
                slots[f"{name}.scale"] = entry[1].numpy()
        beside = optimizer.storage.beside(v.dtype)
        if beside is not None and entries[-1] is not None:
            slots[beside] = entries[-1].numpy()
        for name in optimizer._kept_once():
            dtype = "float64" if v.dtype == "float64" else "float32"
            kept = getattr(optimizer, f"_state_{name}")
            kind = f"{dtype} {optimizer._setting(v).label}".rstrip()
            if kind in kept:
                slots[name] = kept[kind].numpy()
        states.append(slots)
    return Outcome([np.asarray(v.numpy()) for v in variables], states)


def kernels(
    modules: Sequence[ModuleType], mode: str, inputs: Sequence[KernelInput]
) -> list[KernelOutput]:
    """Each module's kernel on its input; in one function unless eager."""
    methods: list[Any] = [m.METHOD for m in modules]
    runtime: Any = inspect.getmodule(type(methods[0]))
    methods = [runtime.decided(m, x.hypers) for m, x in zip(methods, inputs, strict=True)]

    def all_steps(thetas: Any, gs: Any, states: Any, kept: Any, t: Any) -> Any:
        results = []
        for m, x, theta, g, state, k in zip(methods, inputs, thetas, gs, states, kept, strict=True):
            s = runtime.step_scalars(m, t, theta.dtype, x.hypers, k)
            new, after = m.step(theta, g, state, s)
            results.append((new, after, {name: getattr(s, name) for name in k}))
        return results

    # The kernel is an XLA function of its own wherever it is called from.
    nested = tf.function(all_steps, jit_compile=True)
    function = _in_mode(nested, mode) if mode != "eager" else nested
    thetas = [tf.constant(x.theta) for x in inputs]
    gs = [tf.constant(x.g) for x in inputs]
    states = [
        m.init(t, **{h: x.hypers[h] for h in m.init_hypers})
        for m, x, t in zip(methods, inputs, thetas, strict=True)
    ]
    kept = [
        {k: tf.constant(x.hypers.get(v, v), t.dtype) for k, v in m.scalar_states.items()}
        for m, x, t in zip(methods, inputs, thetas, strict=True)
    ]
    for i in range(inputs[0].steps):
        results = function(thetas, gs, states, kept, tf.constant(inputs[0].first + i, tf.int64))
        thetas, states, kept = ([r[j] for r in results] for j in range(3))
    return [
        KernelOutput(
            t.numpy(), {k: v if v is None else v.numpy() for k, v in {**s._asdict(), **scalars}.items()}
        )
        for t, s, scalars in zip(thetas, states, kept, strict=True)
    ]


def schedule(
    package: ModuleType, name: str, hypers: Mapping[str, Any], at: Sequence[int], mode: str
) -> list[float]:
    """A schedule's values in double, as the optimizer takes them."""
    made = package.create(name, **hypers)
    function = _in_mode(lambda n: made(n), mode)
    return [float(function(tf.constant(n, tf.int64))) for n in at]


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
    taken = inspect.signature(getattr(package, name)).parameters
    clock = {"t": t} if "t" in taken else {}
    given = [
        [tf.constant(g) for g in grads],
        *([[tf.constant(p) for p in params]] if "variables" in taken else []),
    ]
    made = _in_mode(lambda *lists: package.create(name, *lists, **clock, **hypers), mode)(*given)
    return [np.asarray(u.numpy()) for u in made]


def wake() -> None:
    """Look for devices now: no level of logging hides what is written of those that are not there."""
    tf.config.list_physical_devices()


def forget() -> None:
    """Let go of what was traced."""
    keras.backend.clear_session()
