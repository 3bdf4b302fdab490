"""A step in PyTorch beside torch.optim and pytorch_optimizer: milliseconds, ratios, the memory floor.

    python benchmarks/torch_steps.py [--rounds 15] [--only adamw …] [--threads 2] [--png FILE] [--json FILE]

In: the generated PyTorch package. Out: for each workload and algorithm the median time of a step of each
implementation, measured in turns in one process; beside it the floor, the time in which as many bytes can be
copied as a step has to move (parameter, gradient and states read, parameter and states written), the memory
that a step needs besides, and how long the first step takes. On a CUDA device where there is one.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import generated.torch as ours
from generator import verify

# What torch.optim has: our dialect, torch's class.
ALGORITHMS = {
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rprop": "Rprop",
    "asgd": "ASGD",
}


def resnet50() -> list[tuple[int, ...]]:
    """The 161 shapes of a ResNet-50."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2() -> list[tuple[int, ...]]:
    """The 148 shapes of a small GPT-2."""
    d = 768
    attention = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    block = [*attention, (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *(shape for _ in range(12) for shape in block), (d,), (d,)]


WORKLOADS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "one of 16 M": lambda: [(16 * 2**20,)],
    "ResNet-50": resnet50,
    "1,000 of 1,000": lambda: [(1000,)] * 1000,
    "GPT-2 small": gpt2,
}


def parameters(shapes: list[tuple[int, ...]], device: str) -> list[torch.nn.Parameter]:
    """Random parameters with gradients."""
    made = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def implementations(name: str, device: str) -> dict[str, Callable[[Any], Any]]:
    """Each way to make an optimizer of an algorithm."""
    theirs = getattr(torch.optim, ALGORITHMS[name])

    def flattened(params: Any) -> Any:
        ours.flatten(params)
        return ours.create(f"{name}_torch", params, fused=True)

    made: dict[str, Callable[[Any], Any]] = {
        "torch loop": lambda params: theirs(params, foreach=False),
        "torch foreach": lambda params: theirs(params, foreach=True),
    }
    if name == "adamw":
        made["torch fused"] = lambda params: theirs(params, fused=True)
    try:
        import pytorch_optimizer as others
    except ImportError:
        pass
    else:
        if name == "adamw":
            made["pytorch_optimizer"] = lambda params: others.AdamW(params)
    return made | {
        "ours, readable": lambda params: ours.create(f"{name}_torch", params, foreach=False),
        "ours": lambda params: ours.create(f"{name}_torch", params),
        "ours, fused": lambda params: ours.create(f"{name}_torch", params, fused=True),
        "ours, flattened": flattened,
    }


def wait(device: str) -> None:
    """Until everything on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], device: str) -> float:
    """Milliseconds."""
    wait(device)
    begun = time.perf_counter()
    function()
    wait(device)
    return 1e3 * (time.perf_counter() - begun)


def peak(function: Callable[[], Any], device: str) -> float:
    """MiB that a call needs besides what there was."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    page = 4096
    statm, highest, done = Path("/proc/self/statm"), [0], threading.Event()
    before = int(statm.read_text().split()[1])

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], int(statm.read_text().split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0, highest[0] - before) * page / 2**20


def measure(workload: str, name: str, rounds: int, device: str) -> list[dict[str, Any]]:
    """One algorithm on one workload: a row for each implementation."""
    shapes = WORKLOADS[workload]()
    runs: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for label, make in implementations(name, device).items():
        torch.manual_seed(0)
        optimizer = make(parameters(shapes, device))
        first = timed(optimizer.step, device)
        optimizer.step()
        runs[label] = optimizer
        rows[label] = {"workload": workload, "algorithm": name, "implementation": label, "first": first}
    states = sum(
        x.numel() * x.element_size()
        for slot in runs["ours"].state.values()
        for x in slot.values()
        if isinstance(x, torch.Tensor)
    )
    count = sum(p.numel() for group in runs["ours"].param_groups for p in group["params"])
    moved = 2 * states + 12 * count  # bytes; a copy reads and writes
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    floor: list[float] = []
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        floor.append(timed(lambda: target.copy_(source), device))
        for label, optimizer in runs.items():
            times[label].append(timed(optimizer.step, device))
    for label, row in rows.items():
        row["ms"] = statistics.median(times[label])
        row["floor"] = statistics.median(floor)
        row["extra"] = peak(runs[label].step, device)
    return list(rows.values())


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over the best of torch's that it stands beside."""
    ms = {r["implementation"]: r["ms"] for r in rows}
    eager = min(ms["torch loop"], ms["torch foreach"])
    fused = ms.get("torch fused", eager)
    return {
        "ours": ms["ours"] / eager,
        "ours, fused": ms["ours, fused"] / fused,
        "ours, flattened": ms["ours, flattened"] / fused,
    }


def shown(rows: list[dict[str, Any]]) -> Table:
    """A table of one workload and algorithm."""
    table = Table(title=f"{rows[0]['algorithm']}, {rows[0]['workload']}; floor {rows[0]['floor']:.2f} ms")
    for head in ("implementation", "ms", "x floor", "ratio", "extra MiB", "first step, ms"):
        table.add_column(head, justify="left" if head == "implementation" else "right")
    compared = ratios(rows)
    for r in rows:
        ratio = compared.get(r["implementation"])
        table.add_row(
            r["implementation"], f"{r['ms']:.2f}", f"{r['ms'] / r['floor']:.1f}",
            "" if ratio is None else f"{ratio:.2f}", f"{r['extra']:.0f}", f"{r['first']:.0f}",
        )  # fmt: skip
    return table


def drawn(rows: list[dict[str, Any]], path: Path) -> None:
    """Points: how many times the floor each implementation of AdamW takes, and its milliseconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    rows = [r for r in rows if r["algorithm"] == "adamw"]
    workloads = list(dict.fromkeys(r["workload"] for r in rows))
    figure, axes = plt.subplots(1, len(workloads), figsize=(3.2 * len(workloads), 3.4), layout="constrained")
    for axis, workload in zip([axes] if len(workloads) == 1 else axes, workloads, strict=True):
        here = [r for r in rows if r["workload"] == workload]
        labels = [r["implementation"] for r in here]
        values = [r["ms"] / r["floor"] for r in here]
        colors = ["#3b6ea5" if label.startswith("ours") else "#b8b8b8" for label in labels]
        axis.hlines(labels, 0.4, values, colors="#e4e4e4", linewidth=1)
        axis.scatter(values, labels, color=colors, zorder=3)
        for r, value in zip(here, values, strict=True):
            text = f"{r['ms']:,.0f} ms" if r["ms"] >= 100 else f"{r['ms']:.3g} ms"
            axis.annotate(text, (value, r["implementation"]), (5, 4), textcoords="offset points", fontsize=8)
        axis.invert_yaxis()
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(0.4, 4 * max(values))
        axis.xaxis.set_major_locator(ticker.LogLocator(10, subs=(1, 3)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.set_title(workload, fontsize=10)
        axis.set_xlabel("times a copy of as many bytes")
        axis.spines[["top", "right"]].set_visible(False)
        if workload != workloads[0]:
            axis.set_yticklabels([])
    figure.suptitle("A step of AdamW in PyTorch", fontsize=11)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=sorted(ALGORITHMS), default=sorted(ALGORITHMS))
    parser.add_argument("--workloads", nargs="*", choices=sorted(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console, rows = Console(), []
    for workload in given.workloads:
        for name in given.only:
            if workload == "GPT-2 small" and name != "adamw":
                continue  # 124 M parameters, seven times over
            found = measure(workload, name, given.rounds, device)
            console.print(shown(found))
            rows += found
            gc.collect()
    if given.json:
        about = {"machine": verify.machine(), "versions": verify.versions(), "threads": given.threads}
        given.json.write_text(json.dumps({**about, "device": device, "rows": rows}, indent=1) + "\n")
    if given.png:
        drawn(rows, given.png)


if __name__ == "__main__":
    main()
