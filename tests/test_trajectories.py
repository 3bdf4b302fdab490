"""Every spec takes the same trajectory on every backend, in every mode, to the last bit."""

from __future__ import annotations

import importlib

import pytest

from backends import discover
from generator import catalogue, verify

BACKENDS = discover()
ENTRIES = {e.program.name: e for e in catalogue.entries() if e.program.kind != "wrapper"}
LONG = ("adamw", "radam", "adadelta", "nadam", "lion")


def rows(name, backend, steps, dtypes):
    try:
        importlib.import_module(BACKENDS[backend].runner)
    except ImportError as missing:
        pytest.skip(str(missing))
    path = ENTRIES[name].spec.file
    return verify.job(path, f"backends.{backend}", steps, dtypes, "cpu", brief=True)


def assert_exact(found):
    wrong = [
        f"{r['mode']} {r['dtype']}: {r['ulp']:g} ULP {r['where']} {r['error']}"
        for r in found
        if r["ulp"] > 0
    ]
    assert not wrong, wrong
    assert all(r["cases"] or r["error"] for r in found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_same_bits(name, backend):
    assert_exact(rows(name, backend, 20, verify.DTYPES))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LONG)
def test_same_bits_for_a_thousand_steps(name, backend):
    assert_exact(rows(name, backend, 1000, ("float32", "float64")))


def test_the_distance_tells():
    """What measures the promise is measured: one ulp, a sign of zero and a NaN are seen."""
    import numpy as np

    one = np.array([1.0, 0.0, np.nan], np.float32)
    assert verify.distance(one, one.copy()) == 0
    assert verify.distance(one, np.nextafter(one, 2, dtype=np.float32)) >= 1
    assert verify.distance(one, np.array([1.0, -0.0, np.nan], np.float32)) == 1
    assert verify.distance(one, np.array([1.0, 0.0, 0.0], np.float32)) == float("inf")


def test_flushed_numbers_are_counted_apart():
    """Zero in place of a subnormal number is the written exception; anything else is a distance."""
    import numpy as np

    def gap(want, got):
        found = verify.Gap()
        found.add(np.array(want, np.float32), np.array(got, np.float32), "here")
        return found.ulp, found.subnormal

    nan = np.nan
    assert gap([1e-40, -1e-40, nan, 1.0], [0.0, -0.0, nan, 1.0]) == (0, 2)
    assert gap([1e-40, 1.0], [0.0, np.nextafter(np.float32(1), 2)])[0] == 1
    assert gap([1.2e-38], [0.0])[0] > 1e6  # normal
    assert gap([1e-40], [-1e-40])[0] == 1  # a sign is no flush
