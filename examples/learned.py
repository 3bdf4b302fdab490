"""An optimizer that is learnt: a network's weights, trained in JAX, used in four frameworks.

    python examples/learned.py            # compares the weights beside this file with tuned optimizers
    python examples/learned.py --train    # learns them anew first: a minute or two, the same every time

A task is a small classifier of three kinds of digits, 4 x 4 pixels, each in units of its own, so that some
tasks are well conditioned and others badly; its start and the order of images differ, too. The optimizer
learns on tasks with the digits 0 to 5, by differentiating through 50 of its own steps on 8 tasks at a time
(`jax.grad` of `jax.lax.scan`); the tasks that it is measured on have the digits 6 to 9, which it has never
seen. SGD, momentum and Adam are tuned on its training tasks, each by a fine grid. Then NumPy, PyTorch, JAX
and TensorFlow train one of the new tasks with the same weights and, fed the same gradients, end with the
same bits.

Needs `pip install scikit-learn matplotlib rich` and whichever of PyTorch, JAX and TensorFlow are there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on many threads
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # equal bits are promised on the CPU
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

STEPS = 50  # that the optimizer is learnt through, and measured after
BATCH = 32  # images a step
HIDDEN, CLASSES = 6, 3
RATE = 0.05  # the network's step is multiplied by it
SEEN, UNSEEN = range(6), range(6, 10)  # digits of tasks to learn on and to measure with
WEIGHTS = HERE / "learned.npz"

Params = list[Any]  # two matrices, whose last rows are biases
Weights = Mapping[str, Any]


# --------------------------------------------------------------------------------------------------
# Tasks


class Task(NamedTuple):
    """A classifier's start, a batch of images and their classes for each step, and images kept aside."""

    params: Params
    x: Any  # (steps, BATCH, pixels)
    y: Any  # (steps, BATCH, CLASSES), one-hot
    x_new: Any
    y_new: Any


def images() -> tuple[Any, Any]:
    """Digits of 4 x 4 pixels, and which they are."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    small = pixels.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    return ((small - small.mean()) / small.std()).astype(np.float32), digit


def tasks(digits: Sequence[int], count: int, seed: int, steps: int = STEPS) -> list[Task]:
    """Tasks with some digits, three each."""
    pixels, digit = images()
    rng = np.random.default_rng(seed)
    choices = list(combinations(digits, CLASSES))
    made = []
    for _ in range(count):
        chosen = choices[rng.integers(len(choices))]
        at = rng.permutation(np.flatnonzero(np.isin(digit, chosen)))
        scale = np.exp(rng.uniform(np.log(0.25), np.log(4), 16)).astype(np.float32)
        x, y = pixels[at] * scale, (digit[at, None] == np.array(chosen)).astype(np.float32)
        old, new = np.arange(len(at) - 100), slice(len(at) - 100, None)
        order = rng.choice(old, (steps, BATCH))
        starts = [rng.standard_normal(s) / np.sqrt(s[0]) for s in ((17, HIDDEN), (HIDDEN + 1, CLASSES))]
        made.append(Task([s.astype(np.float32) for s in starts], x[order], y[order], x[new], y[new]))
    return made


def with_ones(xp: Any, x: Any) -> Any:
    """A column of ones behind the others, for biases."""
    return xp.concatenate([x, xp.ones_like(x[..., :1])], -1)


def logits(xp: Any, params: Params, x: Any) -> Any:
    """What the classifier makes of images."""
    return with_ones(xp, xp.tanh(with_ones(xp, x) @ params[0])) @ params[1]


def cross_entropy(xp: Any, z: Any, y: Any) -> Any:
    """The mean over images."""
    z = z - z.max(-1, keepdims=True)
    return (xp.log(xp.exp(z).sum(-1)) - (z * y).sum(-1)).mean()


def gradient(xp: Any, params: Params, x: Any, y: Any) -> tuple[Any, Params]:
    """The loss on a batch and its gradient, in NumPy or in jax.numpy."""
    hidden = xp.tanh(with_ones(xp, x) @ params[0])
    z = with_ones(xp, hidden) @ params[1]
    e = xp.exp(z - z.max(-1, keepdims=True))
    back = (e / e.sum(-1, keepdims=True) - y) / len(x)
    within = (back @ params[1][:-1].T) * (1 - hidden * hidden)
    return cross_entropy(xp, z, y), [with_ones(xp, x).T @ within, with_ones(xp, hidden).T @ back]


# --------------------------------------------------------------------------------------------------
# Learning to learn, in JAX


def begun(seed: int = 0) -> dict[str, Any]:
    """Weights of a network that hardly moves yet."""
    from generated.numpy.optimizers.learned import METHOD

    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in METHOD.weights.items():
        size = {"W": np.sqrt(2 / shape[-1]), "b": 0.0}[name[0]] * (0.1 if name == "W3" else 1)
        made[name] = (size * rng.standard_normal(shape)).astype(np.float32)
    return made


def trained(meta_steps: int, at_a_time: int = 8, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Weights that make the loss small over all steps of a task, on average over tasks."""
    import jax
    import jax.numpy as jnp

    from generated.jax import adam, clip_by_global_norm, learned, warmup_cosine

    def online(weights: Weights, params: Params, x: Any, y: Any) -> Any:
        """The loss of one task over its steps, each on images that the step has not seen."""
        optimizer = learned(weights, learning_rate=RATE)

        def step(carry: Any, batch: Any) -> tuple[Any, Any]:
            params, state = carry
            loss, grads = gradient(jnp, params, *batch)
            # How a gradient depends on earlier steps is left out, as Andrychowicz et al. do: such
            # derivatives explode.
            return optimizer.step(params, jax.lax.stop_gradient(grads), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), (x, y))[1].mean()

    rate = warmup_cosine(5e-3, warmup=min(20, meta_steps), total=meta_steps)
    clip, outer = clip_by_global_norm(1.0), adam(rate)

    def slopes_of(weights: Weights, *task: Any) -> tuple[Any, Any]:
        """The loss on one task and its derivatives, which explode now and then: each task's are clipped."""
        loss, slopes = jax.value_and_grad(online)(weights, *task)
        return loss, clip.update(slopes, clip.init(weights))[0]

    @jax.jit
    def meta_step(weights: Weights, state: Any, *batch: Any) -> tuple[Any, Any, Any]:
        losses, each = jax.vmap(slopes_of, (None, 0, 0, 0))(weights, *batch)
        slopes = jax.tree.map(lambda x: x.mean(0), each)
        return *outer.step(weights, slopes, state), losses.mean()

    weights = {k: jnp.asarray(w) for k, w in begun().items()}
    state, start = outer.init(weights), time.perf_counter()
    pool = tasks(SEEN, 60 * at_a_time, seed=1)
    for n in range(meta_steps):
        chosen = [pool[i % len(pool)] for i in range(n * at_a_time, (n + 1) * at_a_time)]
        params = [np.stack(p) for p in zip(*(c.params for c in chosen), strict=True)]
        batch = (np.stack([c.x for c in chosen]), np.stack([c.y for c in chosen]))
        weights, state, loss = meta_step(weights, state, params, *batch)
        if n % 50 == 0 or n == meta_steps - 1:
            report(f"meta-step {n:4d}: mean loss {float(loss):.4f}, {time.perf_counter() - start:.0f} s")
    return {k: np.asarray(w) for k, w in weights.items()}


def saved_weights(path: Path = WEIGHTS) -> dict[str, Any]:
    """Weights from a file of arrays, which holds no code."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


# --------------------------------------------------------------------------------------------------
# Comparing, in NumPy


def curves(make: Callable[[Params], Any], chosen: Sequence[Task]) -> Any:
    """The loss on new images before each step and after the last, a row for each task."""
    params = [[p.copy() for p in task.params] for task in chosen]
    optimizer = make(params)  # a tensor is a tensor of one task
    rows = []
    for step in range(len(chosen[0].x) + 1):
        at = zip(params, chosen, strict=True)
        rows.append([cross_entropy(np, logits(np, p, c.x_new), c.y_new) for p, c in at])
        if step < len(chosen[0].x):
            pairs = zip(params, chosen, strict=True)
            optimizer.step([gradient(np, p, c.x[step], c.y[step])[1] for p, c in pairs])
    return np.array(rows).T


def tuned(chosen: Sequence[Task]) -> Iterator[tuple[str, Callable[[Params], Any]]]:
    """SGD, momentum and Adam, with what does best on these tasks."""
    from generated.numpy import SGD, Adam, HeavyBall

    rates = [float(f"{x:.3g}") for x in np.geomspace(1e-2, 3, 25)]
    grids: list[tuple[str, Any, list[dict[str, float]]]] = [
        ("SGD", SGD, [{}]),
        ("SGD with momentum", HeavyBall, [{"mu": mu} for mu in (0.5, 0.8, 0.9, 0.95)]),
        ("Adam", Adam, [{"beta1": b} for b in (0.5, 0.9)]),
    ]
    for name, kind, others in grids:
        best: dict[str, float] = {}
        least = np.inf
        for other in others:
            for lr in rates:
                hypers = {"lr": lr, **other}
                loss = curves(functools.partial(kind, **hypers), chosen).mean()
                if loss < least:
                    best, least = hypers, loss
        described = ", ".join(f"{k} {x:g}" for k, x in best.items())
        yield f"{name}, {described}", functools.partial(kind, **best)


def learnt(weights: Weights) -> Callable[[Params], Any]:
    """What makes the learnt optimizer."""
    from generated.numpy import Learned

    return lambda params: Learned(params, weights, lr=RATE)


def compare(weights: Weights, picture: Path) -> None:
    """The table and the picture."""
    import matplotlib.pyplot as plt
    from rich.console import Console
    from rich.table import Table

    console, new = Console(width=110), tasks(UNSEEN, 60, seed=2)
    table = Table("optimizer", "loss after 50 steps", "mean over the steps", "worse than the learnt")
    ours = curves(learnt(weights), new)
    figure, axes = plt.subplots(figsize=(6.4, 4))
    rows = [("learnt on other digits", ours)]
    rows += [(name, curves(make, new)) for name, make in tuned(tasks(SEEN, 20, seed=1))]
    for name, found in rows:
        worse = f"{(found[:, -1] > ours[:, -1]).sum()} of {len(new)} tasks" if found is not ours else ""
        table.add_row(name, f"{found[:, -1].mean():.3f}", f"{found.mean():.3f}", worse)
        axes.plot(found.mean(0), label=name)
    console.print("\nTasks with digits that no optimizer was learnt or tuned on, images kept aside:\n")
    console.print(table)
    sgd = rows[1][1][:, -1].mean()
    reached = (ours.mean(0) < sgd).argmax()
    console.print(f"\nThe learnt optimizer is where SGD ends after {reached} of {STEPS} steps. Its loss")
    for name, found in rows[1:]:
        end, all_steps = (100 * (ours[:, k].mean() / found[:, k].mean() - 1) for k in (-1, slice(None)))
        console.print(f"  beside {name}: {end:+.0f} % at the end, {all_steps:+.0f} % over all steps")
    long = tasks(UNSEEN, 20, seed=3, steps=4 * STEPS)
    late, then = curves(learnt(weights), long)[:, [-1, STEPS]].mean(0)
    console.print(f"After four times as many steps as it was learnt for: {late:.3f}; {then:.3f} before.\n")
    axes.set(xlabel="step", ylabel="loss on images kept aside", yscale="log", title="60 new tasks")
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


# --------------------------------------------------------------------------------------------------
# The same bits


def in_numpy(weights: Weights, params: Params, grads: Iterator[Params]) -> Params:
    """Where these gradients lead in NumPy."""
    from generated.numpy import Learned

    optimizer = Learned(params, weights, lr=RATE)
    for gs in grads:
        optimizer.step(gs)
    return params


def in_torch(weights: Weights, params: Params, grads: Iterator[Params]) -> Params:
    """... in PyTorch."""
    import torch

    from generated.torch import Learned

    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = Learned(tensors, weights, lr=RATE)
    for gs in grads:
        for p, g in zip(tensors, gs, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in tensors]


def in_jax(weights: Weights, params: Params, grads: Iterator[Params]) -> Params:
    """... in JAX."""
    import jax

    from generated.jax import learned

    optimizer = learned(weights, learning_rate=RATE)
    step, state = jax.jit(optimizer.step), optimizer.init(params)
    for gs in grads:
        params, state = step(params, gs, state)
    return list(map(np.asarray, params))


def in_tensorflow(weights: Weights, params: Params, grads: Iterator[Params]) -> Params:
    """... in TensorFlow."""
    import tensorflow as tf

    from generated.tensorflow import Learned

    variables = [tf.Variable(p) for p in params]
    optimizer = Learned(weights, learning_rate=RATE)
    for gs in grads:
        optimizer.apply([tf.constant(g) for g in gs], variables)
    return [v.numpy() for v in variables]


RUNS: Mapping[str, Any] = {
    "numpy": in_numpy,
    "torch": in_torch,
    "jax": in_jax,
    "tensorflow": in_tensorflow,
}


def same_bits(weights: Weights, frameworks: Sequence[str]) -> dict[str, int]:
    """How many numbers differ from NumPy's, where all are fed NumPy's gradients on one new task."""
    from generated.numpy import Learned

    (task,) = tasks(UNSEEN, 1, seed=4)
    params = [p.copy() for p in task.params]
    optimizer, grads = Learned(params, weights, lr=RATE), []
    for x, y in zip(task.x, task.y, strict=True):
        grads.append(gradient(np, params, x, y)[1])
        optimizer.step(grads[-1])
    differ = {}
    for name in frameworks:
        ends = RUNS[name](weights, [p.copy() for p in task.params], iter(grads))
        pairs = zip(params, ends, strict=True)
        differ[name] = sum(int((p.view(np.int32) != q.view(np.int32)).sum()) for p, q in pairs)
    return differ


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", action="store_true", help="learn the weights anew, in JAX")
    parser.add_argument("--meta-steps", type=int, default=250, metavar="N", help="when learning")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="read, or written")
    parser.add_argument("--picture", type=Path, default=Path("learned.png"), metavar="FILE")
    there = [name for name in RUNS if importlib.util.find_spec(name) is not None]
    parser.add_argument("--frameworks", nargs="+", choices=RUNS, default=there)
    chosen = parser.parse_args()
    if chosen.train:
        np.savez(chosen.weights, **trained(chosen.meta_steps))
    weights = saved_weights(chosen.weights)
    compare(weights, chosen.picture)
    count = 17 * HIDDEN + (HIDDEN + 1) * CLASSES
    for name, differ in same_bits(weights, chosen.frameworks).items():
        print(f"{name:>10}: {differ} of {count} parameters differ from where NumPy's gradients were taken")


if __name__ == "__main__":
    main()
