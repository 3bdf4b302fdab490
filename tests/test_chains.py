"""A chain has the bits of its parts applied in turn, on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from backends import discover
from generator import catalogue, ir, verify
from generator.compose import chain
from generator.errors import SpecError

CHAIN = "clip_by_global_norm > weight_decay > adamw"
NORM, DECAY = 0.7, 0.03
SHAPES = ((), (7,), (4, 3), (0, 2))
Arrays = list[Any]


def inputs() -> tuple[Arrays, list[Arrays]]:
    rng = np.random.default_rng(11)
    params = [np.asarray(rng.standard_normal(s)).astype(np.float32) for s in SHAPES]
    grads = [
        [np.asarray(rng.standard_normal(s) * 10.0**k).astype(np.float32) for s in SHAPES]
        for k in range(-3, 3)
    ]
    return params, grads


def apart_numpy(package: ModuleType, params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    params = [p.copy() for p in params]
    optimizer = package.AdamW(params)
    for g in grads:
        clipped = package.clip_by_global_norm(g, max_norm=NORM)
        optimizer.step(package.weight_decay(clipped, params, weight_decay=DECAY))
    return params


def whole_numpy(made: Callable[..., Any], params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    params = [p.copy() for p in params]
    optimizer = made(params, max_norm=NORM, weight_decay_weight_decay=DECAY)
    for g in grads:
        optimizer.step(g)
    return params


def torch_steps(optimizer: Any, params: Any, grads: Any, through: Callable[..., Any]) -> Arrays:
    for g in grads:
        for p, x in zip(params, through(g, [p.detach() for p in params]), strict=True):
            p.grad = x
        optimizer.step()
    return [p.detach().numpy() for p in params]


def torch_inputs(params: Arrays, grads: Sequence[Arrays]) -> tuple[Any, Any]:
    import torch

    return (
        [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params],
        [[torch.from_numpy(x) for x in g] for g in grads],
    )


def apart_torch(package: ModuleType, params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    ps, gs = torch_inputs(params, grads)

    def through(g: Any, at: Any) -> Any:
        clipped = package.clip_by_global_norm(g, max_norm=NORM)
        return package.weight_decay(clipped, at, weight_decay=DECAY)

    return torch_steps(package.AdamW(ps), ps, gs, through)


def whole_torch(made: Callable[..., Any], params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    ps, gs = torch_inputs(params, grads)
    optimizer = made(ps, max_norm=NORM, weight_decay_weight_decay=DECAY)
    return torch_steps(optimizer, ps, gs, lambda g, at: g)


def apart_jax(package: ModuleType, params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    import jax

    clip, decay = package.clip_by_global_norm(NORM), package.weight_decay(DECAY)
    optimizer = package.adamw()

    @jax.jit
    def step(params: Any, g: Any, state: Any) -> Any:
        g, _ = clip.update(g, clip.init(params), params)
        g, _ = decay.update(g, decay.init(params), params)
        return optimizer.step(params, g, state)

    state = optimizer.init(params)
    for g in grads:
        params, state = step(params, g, state)
    return [np.asarray(p) for p in params]


def whole_jax(made: Callable[..., Any], params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    optimizer = made(max_norm=NORM, weight_decay_weight_decay=DECAY)
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.step(params, g, state)
    return [np.asarray(p) for p in params]


def tensorflow_steps(optimizer: Any, params: Arrays, grads: Any, through: Any) -> Arrays:
    import keras
    import tensorflow as tf

    variables = [keras.Variable(p, dtype="float32") for p in params]
    for g in grads:
        given = through([tf.constant(x) for x in g], variables)
        optimizer.apply(given, variables)
    return [v.numpy() for v in variables]


def apart_tensorflow(package: ModuleType, params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    def through(g: Any, at: Any) -> Any:
        clipped = package.clip_by_global_norm(g, max_norm=NORM)
        return package.weight_decay(clipped, at, weight_decay=DECAY)

    rate = float(np.float32(1e-3))
    return tensorflow_steps(package.AdamW(learning_rate=rate), params, grads, through)


def whole_tensorflow(made: Callable[..., Any], params: Arrays, grads: Sequence[Arrays]) -> Arrays:
    optimizer = made(max_norm=NORM, weight_decay_weight_decay=DECAY)
    return tensorflow_steps(optimizer, params, grads, lambda g, at: g)


@pytest.mark.parametrize("name", discover())
def test_a_chain_has_the_bits_of_its_parts(name: str, tmp_path: Any) -> None:
    pytest.importorskip(name)
    (entry,) = catalogue.entries([f"{CHAIN} as Chained"])
    backend = discover()[name]
    package = verify.built([entry], backend, tmp_path)
    made = getattr(package, "chained" if "optimizer" in backend.functions else "Chained")
    params, grads = inputs()
    apart = globals()[f"apart_{name}"](importlib.import_module(f"generated.{name}"), params, grads)
    whole = globals()[f"whole_{name}"](made, params, grads)
    for p, a, w in zip(params, apart, whole, strict=True):
        assert verify.distance(a, w) == 0
        assert a.size == 0 or not np.array_equal(a, p)


def program(name: str) -> ir.Program:
    (entry,) = catalogue.entries([name])
    return entry.program


def test_names_that_clash_are_prefixed() -> None:
    (entry,) = catalogue.entries([CHAIN])
    names = [p.name for p in entry.program.parameters]
    assert names == ["lr", "beta1", "beta2", "eps", "weight_decay", "weight_decay_weight_decay", "max_norm"]
    assert [s.name for s in entry.checked.states] == ["m", "v"]


def test_the_gradient_is_taken_first() -> None:
    """Look-ahead: what is clipped is the gradient at the point, not the point."""
    made = chain([program("clip_by_norm"), program("nesterov")], "clipped", "Clipped")
    targets = [s.target for s in made.body if isinstance(s, ir.Assign)]
    assert targets == ["g", "factor", "u", "v", "theta"]


def test_a_chain_in_a_spec(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from generator.language import *\n"
        "from specs.optimizers.lion import lion\n"
        "from specs.transforms.clip_by_norm import clip_by_norm\n\n"
        'clipped_lion = chain(clip_by_norm, lion, name="clipped_lion", class_name="ClippedLion")\n'
    )
    (entry,) = catalogue.load(file)
    assert (entry.program.name, entry.program.class_name) == ("clipped_lion", "ClippedLion")
    assert not entry.lowered.elementwise


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x = chain(lion)", "a chain has two specs or more."),
        ("x = chain(lion, 3)", "3 is no spec. Chain what @optimizer and @transform made."),
        ('x = chain(lion, lion, name="a b")', "'a b' is no name for a spec."),
    ],
)
def test_wrong_chains_in_a_spec(line: str, message: str, tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    head = "from generator.language import *\nfrom specs.optimizers.lion import lion\n"
    file.write_text(f"{head}{line}\n")
    with pytest.raises(SpecError) as caught:
        catalogue.load(file)
    assert message in str(caught.value) and "mine.py:3:" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "x = chain(adam, lion)",
            "lion is an optimizer, which has no place there in a chain. Put transforms first, then one "
            "optimizer, then transforms of its change, then wrappers.",
        ),
        (
            "x = chain(cosine, adam)",
            "cosine is a schedule, which is no part of a chain. Give it as the learning rate to the "
            "optimizer that is built.",
        ),
        (
            "x = route(cosine, adam)",
            "cosine is a schedule, which is no part of a route. Give it as the learning rate to the "
            "optimizer that is built.",
        ),
        (
            "x = route(adam, muon)",
            "muon is not for other parameters than matrices. Put it on the other side.",
        ),
        (
            'x = chain(clip_by_norm, adam, class_name="Any")',
            "generated code has a class Any. Choose another name.",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_where_they_are_put_together(
    line: str, message: str, tmp_path: Any
) -> None:
    parts = "optimizers.adam optimizers.lion optimizers.muon schedules.cosine transforms.clip_by_norm"
    imports = [f"from specs.{part} import {part.partition('.')[2]}" for part in parts.split()]
    file = tmp_path / "mine.py"
    file.write_text("\n".join(["from generator.language import *", *imports, line, ""]))
    (entry,) = catalogue.load(file)
    with pytest.raises(SpecError) as caught:
        entry.checked  # noqa: B018 - asked for
    assert str(caught.value) == f"{file}:7: {message}"


def test_transforms_behind_an_optimizer_have_its_change(tmp_path: Any) -> None:
    """adam > clip_by_norm > decoupled_weight_decay has the bits of optax's chain of the three."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    import generated.jax as ours

    (entry,) = catalogue.entries(["adam > clip_by_norm > decoupled_weight_decay as Decayed"])
    names = [p.name for p in entry.program.parameters]
    assert names == ["lr", "beta1", "beta2", "eps", "max_norm", "weight_decay"]  # one lr
    package = verify.built([entry], discover()["jax"], tmp_path)
    whole = package.decayed(learning_rate=0.1, max_norm=0.2, weight_decay=0.05)
    apart = optax.chain(
        ours.adam(0.1), ours.clip_by_norm(0.2), ours.decoupled_weight_decay(0.1, 0.05)
    )
    params, grads = inputs()
    made = []
    for optimizer in (whole, apart):
        at, state = [jax.numpy.asarray(p) for p in params], optimizer.init(params)
        for g in grads:
            updates, state = jax.jit(optimizer.update)(g, state, at)
            at = [p + u for p, u in zip(at, updates, strict=True)]
        made.append(at)
    for a, b in zip(*made, strict=True):
        assert verify.distance(np.asarray(a), np.asarray(b)) == 0


def test_a_transform_behind_needs_a_change() -> None:
    (entry,) = catalogue.entries(["adan > clip_by_norm"])
    with pytest.raises(SpecError, match=r"does not end with theta.t. = theta.t-1. plus or minus"):
        entry.program  # noqa: B018 - asked for
