"""How long a tuple has to be follows from the equations, and is asked for before anything is computed."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backends
from generator import catalogue, verify
from generator.catalogue import Entry


def made(path: Path, sig: str, body: str) -> Entry:
    """The spec with this signature and body."""
    file = path / "mine.py"
    names = 'x = names("x")\n' if "x[" in body else ""
    head = f"from generator.language import *\n{names}\n\n@optimizer\ndef mine({sig}):\n"
    doc = '    """Title.\n\n    Source: here.\n    """\n'
    file.write_text(head + doc + textwrap.indent(textwrap.dedent(body), "    ") + "\n")
    (entry,) = catalogue.load(file)
    return entry


RATES = "rates: tuple[Decay, ...]"
OPTION = "rates: Optional[tuple[Decay, ...]] = None"
LAST = "\ntheta[t] = theta[t-1] - x[3] * g[t]"
BODIES = [
    (RATES, "theta[t] = theta[t-1] - rates[2] * rates[1] * g[t]", 2),
    (RATES, "theta[t] = theta[t-1] - rates[length(rates)] * g[t]", 1),
    (RATES, "theta[t] = theta[t-1] - rates[minimum(t, 3)] * g[t]", 3),
    (RATES, "theta[t] = theta[t-1] - rates[t % 4 + 1] * g[t]", 4),
    (RATES, "theta[t] = theta[t-1] - where(t > 5, rates[3], rates[1]) * g[t]", 3),
    (RATES, "x[0] = 0\nfor j in iterate(3):\n    x[j] = x[j-1] + rates[j+1]" + LAST, 4),
    (RATES, "x[0] = 0\nfor j in iterate(3):\n    x[j] = x[j-1] + rates[j+1-j]" + LAST, 0),
    (
        f"{RATES}, k: Count = 3",
        "x[0] = 0\nfor j in iterate(k):\n    x[j] = x[j-1] + rates[2]" + LAST.replace("3", "k"),
        2,
    ),
    (
        RATES,
        "x[0] = 0\nfor j in iterate(length(rates)):\n    x[j] = x[j-1] + rates[j] * rates[1]"
        + LAST.replace("3", "length(rates)"),
        0,
    ),
    (RATES, "with when(t > 9):\n    theta[t] = theta[t-1] - rates[2] * g[t]", 2),
    (f"{RATES}, flag: bool = False", "with when(flag):\n    theta[t] = theta[t-1] - rates[2] * g[t]", 0),
    (OPTION, "with when(~equal(rates, None)):\n    theta[t] = theta[t-1] - rates[2] * g[t]", 2),
    (
        OPTION,
        "with when(equal(rates, None)):\n    theta[t] = theta[t-1] - g[t]\n"
        "with otherwise():\n    theta[t] = theta[t-1] - rates[2] * g[t]",
        2,
    ),
]


@pytest.mark.parametrize(("sig", "body", "least"), BODIES, ids=[str(k) for k in range(len(BODIES))])
def test_the_least_length(sig: str, body: str, least: int, tmp_path: Path) -> None:
    assert made(tmp_path, sig, body).checked.program.parameter("rates").domain.least == least


def test_what_the_domain_says(tmp_path: Path) -> None:
    body = "theta[t] = theta[t-1] - rates[2] * more[1] * g[t]"
    program = made(tmp_path, f"{RATES}, more: tuple[Decay, ...]", body).program
    rates, more = (p.domain for p in program.parameters)
    assert rates.phrase == "a tuple of 2 entries or more, each a number in [0, 1)"
    assert more.phrase == "a tuple of 1 entry or more, each a number in [0, 1)"
    assert rates.contains((0.5, 0.5)) and not rates.contains((0.5,))


PARAMS = {"numpy": lambda: ([np.zeros(2)],), "torch": lambda: (_torch(),), "jax": tuple, "tensorflow": tuple}


def _torch() -> Any:
    return [importlib.import_module("torch").zeros(2, requires_grad=True)]


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_generated_code_asks_for_it(name: str, tmp_path: Path) -> None:
    entry = made(tmp_path, RATES, "theta[t] = theta[t-1] - rates[3] * g[t]")
    backend = backends.load(f"backends.{name}")
    package = verify.built([entry], backend, tmp_path)
    build = getattr(package, "mine" if "optimizer" in backend.functions else "Mine")
    build(*PARAMS[name](), rates=(0.5, 0.25, 0.125))
    owner = "mine" if name == "jax" else "Mine"
    message = f"{owner}: rates must be a tuple of 3 entries or more, each a number in [0, 1), got"
    with pytest.raises(ValueError) as caught:
        build(*PARAMS[name](), rates=(0.5, 0.25))
    assert str(caught.value) == f"{message} (0.5, 0.25)."
