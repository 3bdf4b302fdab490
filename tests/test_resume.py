"""PyTorch: interrupted in one process and resumed in another, a run has the bits of one that went on.

This file is also the program of the first process: it trains half of every run, and saves.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import generated.torch as package  # noqa: E402
from backends.running import Run  # noqa: E402
from backends.torch import runner  # noqa: E402
from generator import catalogue, verify  # noqa: E402

ENTRIES = {e.program.name: e for e in catalogue.entries() if e.program.kind == "optimizer"}
COMPILED = ("adamw", "nadam", "lamb")  # numbers, a number of its own beside them, whole tensors
SPEEDS = [(n, s) for n in ENTRIES for s in ("eager", "default", "fused") if s != "fused" or n in COMPILED]
STEPS, HALF = 6, 3


def run_of(name):
    """The defaults on a schedule; in every third step some gradients are missing."""
    lowered = ENTRIES[name].lowered
    case = next(verify.cases(lowered, "float32", STEPS, brief=verify.Brief()))
    case = verify._extended(case, lowered)
    return Run(
        package, name, case.params, case.grads, case.hypers, case.schedule, "cpu", case.further, case.given
    )


def begun(name, speed):
    """Parameters, the optimizer and its schedule."""
    run = run_of(name)
    params = [torch.nn.Parameter(runner.tensor(p)) for p in run.params]
    hypers, schedule = dict(run.hypers), None
    if run.schedule is not None:
        rates = dict(run.schedule[1])
        hypers["lr"] = rates.pop("base_lr")
    optimizer = package.create(name, params, **hypers, **runner._SPEEDS[speed])
    if run.schedule is not None:
        schedule = package.create(run.schedule[0], optimizer, **rates)
    return run, params, optimizer, schedule


def trained(run, params, optimizer, schedule, first, last):
    part = {k: getattr(run, k)[first:last] for k in ("grads", "further", "given")}
    runner._trained(optimizer, params, dataclasses.replace(run, **part), schedule)


def save(folder):
    """The first process."""
    for name, speed in SPEEDS:
        run, params, optimizer, schedule = begun(name, speed)
        trained(run, params, optimizer, schedule, 0, HALF)
        saved = [[p.detach() for p in params], optimizer.state_dict(), schedule and schedule.state_dict()]
        torch.save(saved, Path(folder) / f"{name}.{speed}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the first process leaves."""
    made = tmp_path_factory.mktemp("saved")
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, __file__, made],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        check=True,
        capture_output=True,
    )
    return made


@pytest.mark.parametrize(("name", "speed"), SPEEDS)
def test_resumed_in_another_process(name, speed, folder):
    run, params, optimizer, schedule = begun(name, speed)
    trained(run, params, optimizer, schedule, 0, STEPS)
    run, others, resumed, again = begun(name, speed)
    values, state, rates = torch.load(folder / f"{name}.{speed}.pt", weights_only=True)
    for p, x in zip(others, values, strict=True):
        p.data.copy_(x)
    resumed.load_state_dict(state)
    if again is not None:
        again.load_state_dict(rates)
    trained(run, others, resumed, again, HALF, STEPS)
    for p, q in zip(params, others, strict=True):
        assert p.detach().numpy().tobytes() == q.detach().numpy().tobytes()
        assert optimizer.state[p].keys() == resumed.state[q].keys()
        for field, x in optimizer.state[p].items():
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(resumed.state[q][field])), field
    assert optimizer.param_groups[0].get("lr") == resumed.param_groups[0].get("lr")


if __name__ == "__main__":
    save(sys.argv[1])
