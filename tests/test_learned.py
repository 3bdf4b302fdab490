"""Meta-parameters in the shells: given once, checked, the same bits, traced in JAX, saved or not."""

from __future__ import annotations

import copy
import importlib.util
import os
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generator import catalogue, verify

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

(ENTRY,) = catalogue.entries(["learned"])
WEIGHTS = verify.weights(ENTRY.lowered)
SHAPES = (3, 2), (4,)
STEPS = 3


def parameters() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in SHAPES]


def gradients() -> list[list[Any]]:
    rng = np.random.default_rng(1)
    return [[rng.standard_normal(s).astype(np.float32) for s in SHAPES] for _ in range(STEPS)]


def numpy_run(weights: Any = WEIGHTS) -> list[Any]:
    from generated.numpy import Learned

    params = parameters()
    optimizer = Learned(params, weights)
    for grads in gradients():
        optimizer.step(grads)
    return params


def made(backend: str, weights: Any) -> Any:
    pytest.importorskip(backend)
    package: Any = import_module(f"generated.{backend}")
    if backend == "torch":
        import torch

        return package.Learned([torch.zeros(2, requires_grad=True)], weights)
    if backend == "numpy":
        return package.Learned([np.zeros(2, np.float32)], weights)
    return package.learned(weights) if backend == "jax" else package.Learned(weights)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "tensorflow"])
def test_wrong_weights_are_refused(backend: str) -> None:
    name = "learned" if backend == "jax" else "Learned"
    has = "It has the entries W1 (16, 8), b1 (16,), W2 (16, 16), b2 (16,), W3 (2, 16), b3 (2,)."
    wrong = [
        (None, TypeError, f"weights must be a mapping from names to arrays, got NoneType. {has}"),
        ({k: x for k, x in WEIGHTS.items() if k != "b2"}, ValueError, f"weights lacks b2. {has}"),
        ({**WEIGHTS, "W4": WEIGHTS["W3"]}, ValueError, f"weights also has W4. {has}"),
        ({**WEIGHTS, "b3": [0.0, 0.0]}, TypeError, "weights['b3'] must be an array of shape (2,), got list."),
        (
            {**WEIGHTS, "W1": WEIGHTS["W1"].T},
            ValueError,
            "weights['W1'] has shape (8, 16); expected is (16, 8).",
        ),
        (
            {**WEIGHTS, "b3": np.array([1, 2])},
            TypeError,
            "weights['b3'] has dtype int64. Convert it, for example to float32.",
        ),
    ]
    for weights, error, words in wrong:
        with pytest.raises(error) as caught:
            made(backend, weights)
        assert str(caught.value) == f"{name}: {words}"


def test_numpy_keeps_a_copy_that_can_be_set() -> None:
    from generated.numpy import Learned, create

    own = {k: x.copy() for k, x in WEIGHTS.items()}
    params = parameters()
    optimizer = create("learned", params, weights=own)
    assert isinstance(optimizer, Learned)
    for x in own.values():
        x[...] = 0
    for grads in gradients():
        optimizer.step(grads)
    assert all(map(np.array_equal, params, numpy_run()))
    before = [p.copy() for p in params]
    optimizer.weights = own
    optimizer.step(gradients()[0])  # a network of zeros does nothing
    assert all(map(np.array_equal, params, before))
    with pytest.raises(ValueError, match=r"Learned: weights lacks"):
        optimizer.weights = {}
    assert set(optimizer.state_dict()) == set(Learned(parameters(), own).state_dict())


def test_weights_in_float64_count_as_float32_beside_float32() -> None:
    wide = {k: x + np.float64(1e-12) for k, x in WEIGHTS.items()}
    assert all(map(np.array_equal, numpy_run(wide), numpy_run()))


def test_torch_copies_have_the_weights() -> None:
    torch = pytest.importorskip("torch")
    from generated.torch import Learned

    params = [torch.nn.Parameter(torch.tensor(p)) for p in parameters()]
    optimizer = Learned(params, {k: torch.tensor(x, dtype=torch.float64) for k, x in WEIGHTS.items()})
    for step, grads in enumerate(gradients()):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        if step == 0:  # both go on with them
            params, optimizer = copy.deepcopy((params, optimizer))
            optimizer.load_state_dict(optimizer.state_dict())
    assert all(np.array_equal(p.detach(), q) for p, q in zip(params, numpy_run(), strict=True))
    assert set(optimizer.state_dict()) == {"state", "param_groups", "algorithm"}
    with pytest.raises(ValueError, match=r"Learned: weights lacks"):
        optimizer.weights = {}


def test_jax_weights_may_be_traced() -> None:
    """A loss after some steps, as a function of the weights: grad, jit, scan; the bits stay."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    from generated.jax import learned

    grads = [jnp.stack(gs) for gs in zip(*gradients(), strict=True)]

    def trained(weights: Any) -> Any:
        optimizer = learned(weights, learning_rate=0.1)
        params = [jnp.asarray(p) for p in parameters()]

        def one(carry: Any, g: Any) -> tuple[Any, None]:
            params, state = carry
            return optimizer.step(params, g, state), None

        return jax.lax.scan(one, (params, optimizer.init(params)), grads)[0][0]

    def loss(weights: Any) -> Any:
        return sum((p * p).sum() for p in trained(weights))

    weights = {k: jnp.asarray(x) for k, x in WEIGHTS.items()}
    slopes = jax.jit(jax.grad(loss))(weights)
    assert {k: x.shape for k, x in slopes.items()} == {k: x.shape for k, x in WEIGHTS.items()}
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in slopes.values())
    alone, inside = trained(weights), jax.jit(trained)(weights)
    assert all(map(np.array_equal, alone, inside))


def test_keras_carries_the_weights() -> None:
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import Learned

    def run(optimizer: Any, function: Any) -> list[Any]:
        variables = [tf.Variable(p) for p in parameters()]
        optimizer.build(variables)
        step = function(lambda *gs: optimizer.apply(list(gs), variables))
        for grads in gradients():
            step(*map(tf.constant, grads))
        return variables

    weights = {k: tf.Variable(x) for k, x in WEIGHTS.items()}
    first = Learned(weights)
    config = first.get_config()
    weights["b1"].assign(weights["b1"] + 1)  # a copy is kept
    again = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert again.get_config() == config
    for optimizer, function in ((first, tf.function), (again, lambda f: f)):
        found = run(optimizer, function)
        assert all(np.array_equal(p.numpy(), q) for p, q in zip(found, numpy_run(), strict=True))
    names = [v.path for v in first.variables]
    assert len(names) == 2 + len(SHAPES) * 5 and not any("W1" in x for x in names)


def test_a_number_as_meta_parameter(tmp_path: Any) -> None:
    """One without axes is a number in the equations; step scope does not see it."""
    from generator.interpret import Exact, step

    file = tmp_path / "scaled.py"
    file.write_text(SCALED)
    (entry,) = catalogue.entries([str(file)])
    run = Exact(entry.lowered, np.array([1.0, 2.0], np.float32))
    step([run], [np.ones(2, np.float32)], {"lr": 0.5}, None, {"c": [np.float32(3)]})
    assert run.theta.tolist() == [-0.5, 0.5]
    for backend in ("numpy", "jax"):
        found = verify.job(str(file), f"backends.{backend}", 5, ("float32",), "cpu", brief=verify.Brief())
        assert [r["ulp"] for r in found] == [0.0] * len(found)


SCALED = '''
from generator.language import *


@optimizer
def scaled(lr: NonNegative = 0.5):
    """A gradient times a number that somebody has learnt.

    Source: the test.
    """
    c = meta("c", ())
    theta[t] = theta[t-1] - lr * (c * g[t])
'''


def test_the_example_beats_tuned_sgd() -> None:
    """The weights that are checked in, on new digits; SGD is tuned on these very tasks."""
    pytest.importorskip("sklearn")
    from generated.numpy import SGD

    example = vars_of("learned.py")
    tasks = example["tasks"](example["UNSEEN"], 16, seed=5)
    ours = example["curves"](example["learnt"](example["saved_weights"]()), tasks)
    rates = np.geomspace(0.05, 2, 12)
    found = [example["curves"](lambda p, lr=lr: SGD(p, lr=float(lr)), tasks) for lr in rates]
    assert ours[:, -1].mean() < 0.8 * min(x[:, -1].mean() for x in found)
    assert ours.mean() < 0.8 * min(x.mean() for x in found)


def test_the_example_has_the_same_bits_everywhere() -> None:
    pytest.importorskip("sklearn")
    there = [x for x in ("numpy", "torch", "jax", "tensorflow") if importlib.util.find_spec(x)]
    example = vars_of("learned.py")
    differ = example["same_bits"](example["saved_weights"](), there)
    assert differ == dict.fromkeys(there, 0)


def test_the_example_learns() -> None:
    """A few meta-steps in JAX: the loss falls."""
    pytest.importorskip("sklearn")
    pytest.importorskip("jax")
    said: list[str] = []
    vars_of("learned.py")["trained"](8, at_a_time=2, report=said.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in said]
    assert losses[1] < losses[0]


def vars_of(name: str) -> dict[str, Any]:
    """An example as a module."""
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / name))
