"""Training in bfloat16 and with states in 8 bits: what stalls, what does not, and what each costs.

    python examples/low_precision.py
    python examples/low_precision.py --lr 1e-3 --epochs 10 --frameworks numpy torch

One network on scikit-learn's digits (see digits.py), trained with Adam from the same weights and with
the same batches, its parameters and states kept in seven ways. Numbers in bfloat16 have 8 significant
bits: next to a weight of 0.1 they lie 0.0005 apart. The learning rate here is 0.0001, and so is the
longest step of Adam, about: less than half of that, so with plain rounding most weights never move.
It is a small rate on purpose: at ten times this one plain rounding learns, too, and ends half a point
behind. Rates like this one are what fine-tuning, and the end of every schedule, have.

The gradients are computed with NumPy, in float32, at the parameters as they are, and rounded to the
parameters' dtype; every framework's optimizer is fed with them, and all have the same bits after
every step. Needs `pip install scikit-learn matplotlib rich ml_dtypes` and whichever of PyTorch, JAX
and TensorFlow are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from digits import (
    TITLES,
    Arrays,
    Images,
    accuracy,
    batches,
    digits,
    first_weights,
    mean_loss,
    present,
)

HIDDEN = 128  # so that the first matrix, 64 x 128, is large enough for states in 8 bits


@dataclass(frozen=True)
class Way:
    """How parameters and states are kept."""

    name: str
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    colour: str = "black"
    dash: Any = "-"
    width: float = 2.2


WAYS = (
    Way("float32", colour="#000000", width=7),
    Way("float32, 8 bits", "float32", {"states": "8bit"}, "#E69F00", (0, (1, 1))),
    Way("bfloat16, rounded", "bfloat16", {}, "#D55E00"),
    Way("bfloat16, master", "bfloat16", {"store": "master"}, "#56B4E9", width=4),
    Way("bfloat16, kahan", "bfloat16", {"store": "kahan"}, "#0072B2", (0, (5, 2))),
    Way("bfloat16, stochastic", "bfloat16", {"store": "stochastic"}, "#009E73", (0, (2, 3))),
    Way("bfloat16, kahan, 8 bits", "bfloat16", {"store": "kahan", "states": "8bit"}, "#CC79A7", (0, (1, 2))),
)


class Run(NamedTuple):
    """An optimizer in one framework; parameters come and go as float32, which holds them exactly."""

    step: Callable[[Arrays], None]
    params: Callable[[], Arrays]
    kept: Callable[[], int]  # the bytes of parameters and states


def with_numpy(start: Arrays, way: Way, lr: float) -> Run:
    """Arrays, updated in place."""
    import ml_dtypes

    from generated.numpy import Adam

    dtype = np.dtype(ml_dtypes.bfloat16 if way.dtype == "bfloat16" else np.float32)
    theta = {k: p.astype(dtype) for k, p in start.items()}
    optimizer = Adam(theta, lr=lr, **way.options)

    def kept() -> int:
        states = [x for slot in optimizer.state.values() for x in slot.values()]
        return sum(x.nbytes for x in [*theta.values(), *states] if isinstance(x, np.ndarray))

    def step(grads: Arrays) -> None:
        optimizer.step({k: g.astype(dtype) for k, g in grads.items()})

    return Run(step, lambda: {k: p.astype(np.float32) for k, p in theta.items()}, kept)


def with_torch(start: Arrays, way: Way, lr: float) -> Run:
    """Parameters and their `grad`."""
    import torch

    from generated.torch import Adam

    dtype = getattr(torch, way.dtype)
    theta = {k: torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for k, p in start.items()}
    optimizer = Adam(theta.values(), lr=lr, **way.options)

    def step(grads: Arrays) -> None:
        for k, p in theta.items():
            p.grad = torch.tensor(grads[k], dtype=dtype)
        optimizer.step()

    def kept() -> int:
        states = [x for slot in optimizer.state.values() for x in slot.values()]
        return sum(x.nbytes for x in [*theta.values(), *states] if isinstance(x, torch.Tensor))

    return Run(step, lambda: {k: p.detach().float().numpy().copy() for k, p in theta.items()}, kept)


def with_jax(start: Arrays, way: Way, lr: float) -> Run:
    """`optimizer.step` under jit.

    A list, since JAX would sort a dictionary, and what chance decides depends on a parameter's place.
    """
    import jax
    import jax.numpy as jnp

    from generated.jax import adam

    optimizer = adam(lr, **way.options)
    theta = [jnp.asarray(p, way.dtype) for p in start.values()]
    state, stepped = optimizer.init(theta), jax.jit(optimizer.step)

    def step(grads: Arrays) -> None:
        nonlocal theta, state
        theta, state = stepped(theta, [jnp.asarray(grads[k], way.dtype) for k in start], state)

    def kept() -> int:
        return sum(x.nbytes for x in jax.tree.leaves((theta, state.tensors, state.beside)))

    return Run(step, lambda: {k: np.asarray(p, np.float32) for k, p in zip(start, theta, strict=True)}, kept)


def with_tensorflow(start: Arrays, way: Way, lr: float) -> Run:
    """Variables and `optimizer.apply` in a tf.function."""
    import tensorflow as tf

    from generated.tensorflow import Adam

    theta = {k: tf.Variable(tf.cast(p, way.dtype), name=k) for k, p in start.items()}
    variables = list(theta.values())
    optimizer = Adam(lr, **way.options)
    optimizer.build(variables)

    @tf.function
    def apply(grads: Any) -> None:
        optimizer.apply(grads, variables)

    def step(grads: Arrays) -> None:
        apply([tf.cast(grads[k], way.dtype) for k in theta])

    def kept() -> int:
        states = [v.value for v in optimizer.variables[2:]]  # behind the clock and the learning rate
        return sum(v.shape.num_elements() * v.dtype.size for v in [*variables, *states])

    return Run(step, lambda: {k: tf.cast(p, tf.float32).numpy() for k, p in theta.items()}, kept)


FRAMEWORKS = {"numpy": with_numpy, "torch": with_torch, "jax": with_jax, "tensorflow": with_tensorflow}


def gradients(theta: Arrays, batch: Images) -> Arrays:
    """Of the mean cross-entropy, by hand, in float32."""
    x, y = batch
    hidden = np.tanh(x @ theta["w1"] + theta["b1"])
    z = hidden @ theta["w2"] + theta["b2"]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    dz = e / e.sum(axis=1, keepdims=True)  # softmax
    dz[np.arange(len(y)), y] -= 1
    dz /= np.float32(len(y))
    dh = (dz @ theta["w2"].T) * (1 - hidden * hidden)
    return {"w1": x.T @ dh, "b1": dh.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}


@dataclass
class Result:
    """What one way of keeping numbers came to."""

    steps: list[int]
    losses: list[float]
    accuracy: float
    bytes: float  # a parameter, its own included
    agree: bool  # whether all frameworks had the same bits after every step


def trained(
    way: Way, frameworks: Sequence[str], train: Images, aside: Images, some: Sequence[Images], lr: float
) -> Result:
    """One run in all frameworks at once, with the gradients at the first one's parameters."""
    start = first_weights(HIDDEN)
    runs = {name: FRAMEWORKS[name](start, way, lr) for name in frameworks}
    first, agree = runs[frameworks[0]], True
    theta = first.params()
    steps, losses = [0], [mean_loss(theta, train)]
    for step, batch in enumerate(some, 1):
        grads = gradients(theta, batch)
        for run in runs.values():
            run.step(grads)
        theta = first.params()
        for run in runs.values():
            agree = agree and all(p.tobytes() == theta[k].tobytes() for k, p in run.params().items())
        if step % max(1, len(some) // 100) == 0 or step == len(some):
            steps.append(step)
            losses.append(mean_loss(theta, train))
    count = sum(p.size for p in start.values())
    return Result(steps, losses, accuracy(theta, aside), first.kept() / count, agree)


def draw(out: Path, results: dict[str, Result], title: str) -> None:
    """The loss curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for way in WAYS:
        result = results[way.name]
        style = {"color": way.colour, "linestyle": way.dash, "linewidth": way.width}
        axes.plot(result.steps, result.losses, label=f"{way.name}  ({result.bytes:.1f} bytes)", **style)
    axes.set(title=title, xlabel="step", ylabel="loss over all training images", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(title="bytes a parameter, with its states", handlelength=4)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def main() -> int:
    """The table and the picture; 1 if any bit differs between frameworks."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lr", type=float, default=1e-4, help="learning rate (1e-4)")
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS), metavar="NAME")
    p.add_argument("--out", type=Path, default=Path("low_precision.png"), help="the picture")
    args = p.parse_args()
    began, console = time.perf_counter(), Console()
    frameworks, notes = present(args.frameworks)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    train, aside = digits()
    some = list(batches(train, 32, args.epochs))
    lr = float(np.float32(args.lr))  # Keras keeps it so
    results = {}
    for way in track(WAYS, "training", console=console, transient=True):
        results[way.name] = trained(way, frameworks, train, aside, some, lr)
    title = f"Adam, lr {args.lr:g}, {len(some):,} steps on scikit-learn's digits"
    together = ", ".join(TITLES[name] for name in frameworks)
    caption = f"Bytes a parameter, states included; held-out accuracy; training loss; bits in {together}."
    table = Table(title=title, caption=caption)
    table.add_column("parameters and states", no_wrap=True)
    for heading in ("bytes", "accuracy", "loss", "bits"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.bytes:.2f}",
            f"{100 * result.accuracy:.2f} %",
            f"{result.losses[-1]:.4f}",
            "the same" if result.agree else "[red]differ[/]",
        )
    console.print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(args.out, results, title)
    console.print(f"{args.out}   {time.perf_counter() - began:.0f} s", highlight=False)
    return 0 if all(result.agree for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
