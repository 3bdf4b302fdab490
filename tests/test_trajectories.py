"""Every spec takes the same trajectory on every backend, in every mode, to the last bit."""

from __future__ import annotations

import importlib.util

import elsewhere
import pytest

from backends import discover
from generator import catalogue, interpret, verify

BACKENDS = discover()
ENTRIES = {e.program.name: e for e in catalogue.entries() if e.program.kind != "wrapper"}
# What has subnormal numbers on the way in these runs: nadam's product of momenta after 900 steps, decays
# to the power of a million steps, and gradients that are clipped to 1e-6 and squared.
SUBNORMAL = {"nadam", "exponential", "step_decay", "clip_by_global_norm_adamw_lookahead"}
# Narrow parameters are the shells' matter; a few specs tell. `verify` has them all.
NARROW = ("adamw", "adafactor", "lion", "nesterov", "clip_by_global_norm", "weight_decay")
# The defaults in every mode that compiles: what the README's table begins with, and one of each kind that
# differs in more than its equations. Of the others each backend compiles one mode, in turn.
FIRST = """
    sgd momentum heavy_ball nesterov sgd_l2 rmsprop adam adamw amsgrad adagrad adadelta radam adamax nadam
    adabelief yogi lion adan signum clip_by_value weight_decay decoupled_weight_decay
    lamb adafactor muon schedule_free_adamw adamw_sam adam_hd sophia clip_by_global_norm
""".split()
COMPILED = [name for name in BACKENDS if name != "numpy"]
LONG = ("adamw", "radam", "adadelta", "nadam", "lion")


def there(backend):
    """Skip where the framework is not installed; it is not imported here."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")


def rows(name, backend, steps, dtypes):
    there(backend)
    path = ENTRIES[name].spec.file
    part = COMPILED.index(backend) if backend in COMPILED else 0
    brief = verify.Brief(name in FIRST, len(COMPILED), part)
    return elsewhere.job(path, f"backends.{backend}", steps, dtypes, "cpu", brief=brief)


def assert_exact(found):
    wrong = [
        f"{r['mode']} {r['dtype']}: {r['ulp']:g} ULP {r['where']} {r['error']}"
        for r in found
        if r["ulp"] > 0
    ]
    assert not wrong, wrong
    assert all(r["cases"] or r["error"] for r in found)
    assert {r["spec"] for r in found if r["subnormal"]} <= SUBNORMAL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_same_bits(name, backend):
    found = rows(name, backend, 20, verify.DTYPES if name in NARROW else ("float32", "float64"))
    assert_exact(found)
    able = {r["mode"] for r in found if r["error"] != verify.NOT_ADDITIVE}
    ran = {r["mode"] for r in found if r["cases"]}
    if name in FIRST or backend in ("numpy", "torch"):  # where at most one mode compiles
        assert ran == able
    else:
        assert ran and ran <= able


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
    """What follows a subnormal number is the written exception; anything else is a distance."""
    import numpy as np

    def gap(want, got, subnormal):
        found = verify.Gap()
        arrays = np.array(want, np.float32), np.array(got, np.float32)
        found.add(*arrays, "here", subnormal and np.array(subnormal))
        return found.ulp, found.subnormal

    nan = np.nan
    assert gap([1e-40, nan, 1.0], [0.0, nan, 1.0], [True, True, False]) == (0, 1)
    assert gap([1e-40, 1.0], [0.0, 1.0], [False, False]) == (0, 1)
    assert gap([1.2e-38, 1.0], [0.0, 1.0], [False, False])[0] > 1e6
    assert gap([1e-40, 1.0], [0.5, 1.0], [False, False])[0] > 1e6  # no flush
    assert gap([1e-40], [0.0], False)[0] > 0  # where nothing is flushed
    assert gap([[1.0]], [1.5], [True])[0] == np.inf
    wide = verify.Gap()
    wide.add(np.ones(2, np.float32), np.ones(2), "here", np.ones(2, bool))
    assert wide.ulp == np.inf  # another dtype
    assert gap([1e-40, 1.0], [0.0, np.nextafter(np.float32(1), 2)], [True, False])[0] == 1


def test_subnormal_numbers_on_the_way_are_found():
    import numpy as np

    (entry,) = catalogue.entries(["adam"])
    run = interpret.Exact(entry.lowered, np.ones(3, np.float32))
    run.step(np.array([1.0, 1e-20, 0.0], np.float32), verify.defaults(entry.program))
    assert run.subnormal.tolist() == [False, True, False]  # the square of the second


def test_a_file_with_two_specs(tmp_path):
    """One that works every k steps, and one with a flag; each is measured."""
    file = tmp_path / "two.py"
    file.write_text(TWO)
    found = verify.job(str(file), "backends.numpy", 20, ("float32",), "cpu")
    assert {r["spec"] for r in found} == {"every", "seldom", "flagged"}
    assert_exact(found)


TWO = '''
from generator.language import *

h, v, d = names("h v d")


@optimizer
def every(lr: NonNegative = 1e-2, k: PositiveCount = 3):
    """Second moments that are renewed every k steps.

    Source: this test.
    """
    h[0] = 1
    with when(equal(t % k, 1)):
        h[t] = 0.9 * h[t-1] + 0.1 * g[t]**2
    theta[t] = theta[t-1] - lr * (g[t] / (sqrt(h[t]) + 1e-8))


@optimizer
def seldom(lr: NonNegative = 1e-2, k: PositiveCount = 3):
    """Gradients are added up, and every k steps the parameters move; else they stay.

    Source: this test.
    """
    v[0] = 0
    v[t] = v[t-1] + g[t]
    with when(equal(t % k, 0)):
        theta[t] = theta[t-1] - lr * v[t]


@optimizer
def flagged(lr: NonNegative = 1e-2, mu: Decay = 0.9, nesterov: bool = True):
    """Momentum with a flag.

    Source: this test.
    """
    v[0] = 0
    v[t] = mu * v[t-1] + g[t]
    with when(nesterov):
        d[t] = g[t] + mu * v[t]
    with otherwise():
        d[t] = v[t]
    theta[t] = theta[t-1] - lr * d[t]
'''


CHAINS = ("clip_by_global_norm > adamw > lookahead", "adafactor > accumulate", "add_noise > heavy_ball")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chain", CHAINS)
def test_same_bits_of_chains(chain, backend):
    there(backend)
    steps = 7  # lookahead jumps at 5, accumulate steps at 4
    brief = verify.Brief()
    assert_exact(elsewhere.job(chain, f"backends.{backend}", steps, ("float32",), "cpu", brief=brief))
