"""A first result with NumPy alone: a line fitted to noisy points, the learning rate on a schedule.

    python examples/first.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from generated.numpy import AdamW, WarmupCosine


def main() -> None:
    """Fit y = a x + b and print how it went."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 200).astype(np.float32)
    y = (3 * x - 2 + 0.1 * rng.standard_normal(200)).astype(np.float32)
    params = {"a": np.zeros((), np.float32), "b": np.zeros((), np.float32)}
    optimizer = AdamW(params, lr=WarmupCosine(0.1, warmup=20, total=400), weight_decay=0.0)
    for step in range(401):
        error = params["a"] * x + params["b"] - y
        if step % 100 == 0:
            a, b, loss = float(params["a"]), float(params["b"]), float(np.mean(error**2))
            print(f"step {step:3}   loss {loss:8.5f}   y = {a:+.4f} x {b:+.4f}")
        optimizer.step({"a": np.mean(2 * error * x), "b": np.mean(2 * error)})
    print("the points were made with y = +3 x -2; the noise alone has a loss of 0.01")


if __name__ == "__main__":
    main()
