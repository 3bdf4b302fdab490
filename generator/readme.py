"""The parts of the README that are made: specs, a kernel, the tables of `verify` and of benchmarks.

In: README.md and docs/guide.md, specs, generated code, docs/*.json. Out: both pages with their marked
blocks current. Must not know: how any of these come to be.

    python -m generator.readme
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generator import catalogue, verify

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "README.md", ROOT / "docs/guide.md"


def blocks() -> dict[str, str]:
    """Every marked block by its name."""
    spec = (ROOT / "specs/optimizers/adamw.py").read_text()
    torch = (ROOT / "generated/torch/optimizers/adamw.py").read_text()
    made = {
        "spec": _code(_brief(spec)),
        "kernel": _code(_function(torch, "adamw_step")),
        "adafactor": _code(_brief((ROOT / "specs/optimizers/adafactor.py").read_text())),
        "muon": _code(_brief((ROOT / "specs/optimizers/muon.py").read_text())),
        "assignment": _assignment(),
    }
    measured = ROOT / "docs/verify.json"
    if measured.exists():
        report = json.loads(measured.read_text())
        made["table"] = table(report)
        made["accuracy"] = accuracy(report["rows"])
    timed = ROOT / "docs/torch_steps.json"
    if timed.exists():
        made["speed"] = speed(json.loads(timed.read_text()))
    return made


def current() -> dict[Path, str]:
    """The pages with their blocks made anew."""
    made = blocks()
    return {page: _renewed(page.read_text(), made) for page in PAGES}


def _renewed(text: str, blocks: dict[str, str]) -> str:
    for name, block in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"
    return text


def _assignment() -> str:
    """The table that an optimizer prints under rules."""
    numpy, made = importlib.import_module("numpy"), importlib.import_module("generated.numpy")
    shapes = {"kernel": (3, 3, 1, 8), "bias": (8,)}, {"kernel": (8, 10), "bias": (10,)}
    params: dict[str, Any] = {"embed": numpy.zeros((100, 8))}
    params["layers"] = [{k: numpy.zeros(x) for k, x in layer.items()} for layer in shapes]
    rules = [
        made.Rule(max_ndim=1, weight_decay=0.0),
        made.Rule("layers[0].*", lr=made.Times(0.1)),
        made.Rule("embed", train=False),
    ]
    optimizer = made.AdamW(params, weight_decay=0.1, rules=rules)
    return f"```\n{optimizer.assignment()}\n```"


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```"


def _brief(spec: str) -> str:
    """A spec without notes and arguments, which are many."""
    keep, skipping = [], False
    for line in spec.splitlines():
        if line.startswith(("    Note:", "    Args:")):
            skipping = True
        elif line.strip() == '"""' or not line.startswith("        "):
            skipping = skipping and not line.strip().startswith('"""') and line.strip() != ""
        if not skipping:
            keep.append(line)
    return re.sub(r"\n\n+    \"\"\"", '\n    """', re.sub(r"\n{4,}", "\n\n\n", "\n".join(keep)))


def _function(text: str, name: str) -> str:
    start = text.index(f"def {name}(")
    return text[start : text.index("\n\n\n", start)]


def table(report: dict[str, Any]) -> str:
    """A line a spec, a column a mode: the largest distance over dtypes and cases."""
    rows: Sequence[dict[str, Any]] = report["rows"]
    columns = list(dict.fromkeys((r["backend"], r["mode"]) for r in rows))
    heads = [b if b == m else f"{b} {m}" for b, m in columns]
    lines = [
        "Largest distance in ULP over float32, float64, bfloat16 and float16, "
        f"{report['steps']} steps; `-`: not promised (see below).",
        "",
        "| spec | " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * len(heads),
    ]
    for spec in dict.fromkeys(r["spec"] for r in rows):
        cells = []
        for b, m in columns:
            here = [r for r in rows if (r["spec"], r["backend"], r["mode"]) == (spec, b, m)]
            shown = verify.entry(here) if here else ""
            cells.append(shown.replace("*", "\\*").replace("~", "\\~"))
        lines.append(f"| {spec} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    machine = report["machine"]
    if any(r["subnormal"] for r in rows):
        lines += ["", verify.SUBNORMAL.replace("*", "\\*") + "."]
    if any(r.get("products") for r in rows):
        lines += ["", verify.PRODUCTS.replace("~", "\\~") + "."]
    if any(r.get("infinite") for r in rows):
        lines += ["", verify.INFINITE + "."]
    if missing := _unmeasured(rows):
        which = f"{', '.join(missing)}; and empty fields"
        lines += ["", f"Not measured for that long, but in the tests: {which}."]
    lines += ["", f"Measured on {machine['processor']}, {machine['system']}; {versions}."]
    return "\n".join(lines)


def _unmeasured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Specs of the catalogue that have no row."""
    measured = {r["spec"] for r in rows}
    entries = catalogue.entries()
    return [e.program.name for e in entries if e.spec.kind != "wrapper" and e.program.name not in measured]


def accuracy(rows: Sequence[dict[str, Any]]) -> str:
    """Ours and the framework's own, where it has the same algorithm."""
    lines = ["| spec | framework | ours | its own |", "| --- | --- | ---: | ---: |"]
    for r in rows:
        ours, native = r.get("ours"), r.get("native")
        if ours is None or native is None or math.isnan(ours) or math.isnan(native):
            continue
        lines.append(f"| {r['spec']} | {r['backend']} | {ours:.1e} | {native:.1e} |")
    return "\n".join(lines)


def speed(report: dict[str, Any]) -> str:
    """A line an implementation of AdamW, a column a workload; then other algorithms, ours beside the best."""
    rows: Sequence[dict[str, Any]] = report["rows"]
    works = list(dict.fromkeys(r["workload"] for r in rows))
    ms = {(r["algorithm"], r["workload"], r["implementation"]): r for r in rows}
    names = list(dict.fromkeys(r["implementation"] for r in rows if r["algorithm"] == "adamw"))
    lines = [
        "Milliseconds of a step of AdamW, and how many times as long that is as to copy what it has to move:",
        "",
        "| | " + " | ".join(works) + " |",
        "| --- |" + " ---: |" * len(works),
    ]
    for name in names:
        here = [ms.get(("adamw", work, name)) for work in works]
        each = [(f"{r['ms']:,.0f}" if r["ms"] >= 100 else f"{r['ms']:.3g}", r) if r else None for r in here]
        cells = [f"{x[0]} ({x[1]['ms'] / x[1]['floor']:.1f})" if x else "" for x in each]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    others = [a for a in dict.fromkeys(r["algorithm"] for r in rows) if a != "adamw"]
    works = [w for w in works if any((a, w, "ours") in ms for a in others)]
    if others:
        lines += ["", "For what torch does not fuse, `fused=True` over the best that torch has:"]
        lines += ["", "| | " + " | ".join(works) + " |", "| --- |" + " ---: |" * len(works)]
    for name in others:
        cells = []
        for work in works:
            best = min(ms[name, work, f"torch {x}"]["ms"] for x in ("loop", "foreach"))
            cells.append(f"{ms[name, work, 'ours, fused']['ms'] / best:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {report['versions'][k]}" for k in ("python", "torch", "numpy"))
    machine = report["machine"]
    threads = f"{report['threads']} threads of {machine['processor']}, {machine['system']}"
    return "\n".join([*lines, "", f"Medians of interleaved rounds on {threads}; {versions}."])


if __name__ == "__main__":
    for page, text in current().items():
        page.write_text(text)
