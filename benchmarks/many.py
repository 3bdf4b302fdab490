"""Many small tensors: what PyTorch saves where those of one shape go through a kernel together.

    python benchmarks/many.py [--tensors 200] [--side 32]

Prints the median time of a step of several optimizers, one kernel call a tensor and one a shape, in
turn in one process, with the same bits. Under XLA tensors stay apart: a step on 60 matrices of 64 x 64
as one jitted function took 2.5 ms with them joined and 1.8 ms with them apart, and three times as long
to compile, since joining and parting are copies there and calls cost nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import generated.torch as package
import generated.torch.runtime as runtime

NAMES = ("adamw", "lamb", "adafactor", "lars")
ROUNDS = 25


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--side", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{given.tensors} matrices of {given.side} x {given.side}, one thread, ms a step")
    print(f"{'':12}{'apart':>8}{'together':>10}{'ratio':>8}")
    for name in NAMES:
        runs = {}
        for small in (0, runtime._SMALL):
            torch.manual_seed(0)
            params = [torch.nn.Parameter(torch.randn(given.side, given.side)) for _ in range(given.tensors)]
            for p in params:
                p.grad = torch.randn_like(p)
            runs[small] = package.create(name, params), params, []
        for _ in range(ROUNDS):
            for small, (optimizer, _, times) in runs.items():
                runtime._SMALL, before = small, runtime._SMALL
                begun = time.perf_counter()
                optimizer.step()
                times.append(time.perf_counter() - begun)
                runtime._SMALL = before
        (_, one, apart), (_, other, together) = runs.values()
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
        a, b = (1e3 * statistics.median(x) for x in (apart, together))
        print(f"{name:12}{a:8.2f}{b:10.2f}{a / b:8.2f}")


if __name__ == "__main__":
    main()
