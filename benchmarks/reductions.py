"""What the sums of a step cost: two norms as a share of a LAMB step on 1,000,000 parameters.

In: the generated packages of NumPy, PyTorch and JAX. Out: a table: milliseconds of a step, of its two
norms in the fixed tree, of the framework's own sum of squares, and the share. Measured in turns in one
run, medians; the share is of equal work on the same machine at the same time.

    python benchmarks/reductions.py [--size 1000000] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

Job = Callable[[], Any]


def numpy_jobs(size: int) -> dict[str, Job]:
    """A step, its two norms, NumPy's own."""
    from generated.numpy import LAMB
    from generated.numpy.runtime import tree_sum

    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    g = x[::-1].copy()
    optimizer = LAMB([x.copy()])
    return {
        "step": lambda: optimizer.step([g]),
        "norms": lambda: (tree_sum(x * x), tree_sum(g * g)),
        "own": lambda: (np.sum(x * x), np.sum(g * g)),
    }


def torch_jobs(size: int) -> dict[str, Job]:
    """The same in PyTorch, on one thread."""
    import torch

    from generated.torch import LAMB
    from generated.torch.runtime import tree_sum

    torch.set_num_threads(1)
    x, g = torch.randn(size), torch.randn(size)
    p = torch.nn.Parameter(x.clone())
    p.grad = g
    optimizer = LAMB([p])
    return {
        "step": optimizer.step,
        "norms": lambda: (tree_sum(x * x), tree_sum(g * g)),
        "own": lambda: ((x * x).sum(), (g * g).sum()),
    }


def jax_jobs(size: int) -> dict[str, Job]:
    """The same in JAX, compiled; the products are guarded in both."""
    import jax
    import jax.numpy as jnp

    from generated.jax import lamb
    from generated.jax.runtime import rounded, tree_sum

    x = jnp.asarray(np.random.default_rng(0).standard_normal(size).astype(np.float32))
    g = x[::-1] + 0
    optimizer = lamb()
    state = optimizer.init([x])
    step = jax.jit(optimizer.step)
    ours = jax.jit(lambda x: tree_sum(rounded(x)(x * x)))
    own = jax.jit(lambda x: jnp.sum(rounded(x)(x * x)))
    return {
        "step": lambda: jax.block_until_ready(step([x], [g], state)),
        "norms": lambda: jax.block_until_ready((ours(x), ours(g))),
        "own": lambda: jax.block_until_ready((own(x), own(g))),
    }


def medians(jobs: dict[str, Job], rounds: int) -> dict[str, float]:
    """Milliseconds of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            begun = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(ts[1:]) for name, ts in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    table = Table(title=f"LAMB on {arguments.size:,} float32 parameters, ms, medians of {arguments.rounds}")
    for head in ("framework", "step", "two norms", "its own sum", "share of the step"):
        table.add_column(head, justify="left" if head == "framework" else "right")
    for name, jobs in (("NumPy", numpy_jobs), ("PyTorch", torch_jobs), ("JAX jit", jax_jobs)):
        ms = medians(jobs(arguments.size), arguments.rounds)
        share = f"{100 * ms['norms'] / ms['step']:.0f} %"
        table.add_row(name, *(f"{ms[k]:.2f}" for k in ("step", "norms", "own")), share)
    Console().print(table)


if __name__ == "__main__":
    main()
