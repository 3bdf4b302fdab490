"""The frameworks' own optimizers take our trajectory where their equations are the spec's.

Tolerance, derived and not chosen. Beside the trajectory runs a bound of its rounding error, by running
error analysis (Wilkinson): every operation of the lowered program hands on the errors of its operands,
amplified as the operation amplifies them, and adds half a unit in the last place of its own result
(2**-53 of it; 16 times that for a real power, k times for a k-th power). So cancellations, above all in
1 - beta**t and in radam's rho, count with what they cost. A framework's form of the same equations has
other roundings, but for each of ours at most CHARGE = 4 of the same size: lerp's three for an average's
three, one more product where a scalar is folded in elsewhere, roots and powers good to a unit or two in
the last place instead of half a one. Two computations whose distances from the truth are at most
`error` and CHARGE * `error` differ by at most (1 + CHARGE) * `error`.

All is in float64. The modules `native` see to three conditions: JAX's 64-bit mode (else optax'
1 - decay**count is float32), Keras' floatx (the dtype that its learning rate is kept in) and torch's
default dtype (that of NAdam's mu_product) are float64. Two float32 numbers remain, both in Keras, which
turns Python's numbers into float32 before it casts them to the variable's dtype: betas and weight_decay
(so there the hyperparameters of both sides are float32 numbers) and Nadam's 0.96, which is therefore
4e-8 off in mu_t, but not in their product. That constant's error goes into the bound as it is, beside
the roundings: see CONSTANTS.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from backends import load
from backends.running import Run
from generator import catalogue, render, sample, verify
from generator.interpret import EXACT, Exact, evaluate

STEPS, SIZE = 50, 64
UNIT, CHARGE, PERTURBED = 2.0**-53, 4, 1e-6
FRAMEWORKS = {"torch": ["torch"], "jax": ["jax", "optax"], "tensorflow": ["tensorflow", "keras"]}
ENTRIES = {
    e.program.name: e
    for e in catalogue.entries()
    # No framework learns a rate, or has an optimizer that asks for more than the gradient.
    if e.program.kind == "optimizer" and not e.lowered.shared_states and not e.lowered.given
}


def those_of(framework):
    """The optimizers that a framework may have: another's definitions are the other's."""
    own = ("", *load(f"backends.{framework}").dialects)
    return [name for name in ENTRIES if render.speaks(name) in own]


# Constants of a spec that a framework has in float32: how far off they are.
CONSTANTS = {
    ("tensorflow", "nadam"): {0.96: abs(float(np.float32(0.96)) - 0.96)},
    ("tensorflow", "adafactor"): {-0.8: abs(float(np.float32(0.8)) - 0.8)},
    ("jax", "adafactor"): {-0.8: 4 * 2.0**-24},  # whose powers of t are float32, 2**-0.8 and on
}
# Gradients so large that it does not matter whether 1e-7 is added to a norm or is the least that it may be.
SCALE = {("torch", "muon"): 2.0**40}
# Bounds that ordinary parameters and gradients do not reach.
UNFELT = {
    ("adafactor", "default"): ("eps1", "eps2"),
    ("adafactor_torch", "default"): ("eps1", "eps2"),
    ("rprop_torch", "default"): ("step_size_min", "step_size_max"),
    ("asgd_torch", "default"): ("t0",),  # which is the average's
    ("asgd_torch", "other"): ("t0",),
}
# Where the decay is added to a gradient that is then normalised, a parameter that it takes to 0 turns
# back and forth, and an error grows without bound: with these rates none gets there.
SLOW = {"adam_torch": 2e-3, "adamax_torch": 2e-3, "nadam_torch": 2e-3, "radam_torch": 2e-3}
SLOW |= {"rmsprop_torch": 5e-5}
# Where nothing but a sign is taken, half of the gradients put its argument next to 0; else a decay
# could be wrong and no sign change.
BALANCED = {"lion": "beta1", "signum": "beta"}


# ---------------------------------------------------------------------------------------------------
# Numbers with a bound of their error


@dataclass
class Near:
    """A value, and how far from it the exact one may be."""

    value: Any
    error: Any


def near(x):
    return x if isinstance(x, Near) else Near(np.float64(x), np.float64(0.0))


def rounded(value, error, units=1):
    return Near(value, error + units * UNIT * np.abs(value))


def _mul(a, b):
    return rounded(
        a.value * b.value,
        np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error,
    )


def _div(a, b):
    quotient = a.value / b.value
    return rounded(quotient, (a.error + np.abs(quotient) * b.error) / (np.abs(b.value) - b.error))


def _sqrt(a):
    # |sqrt(x) - sqrt(x - e)| = e / (sqrt(x) + sqrt(x - e)); where x is 0 it is sqrt(e)
    roots = np.sqrt(a.value) + np.sqrt(np.maximum(a.value - a.error, 0.0))
    error = np.where(roots > 0, a.error / np.where(roots > 0, roots, 1.0), np.sqrt(a.error))
    return rounded(np.sqrt(a.value), error)


def _sign(a):
    known = (np.abs(a.value) > a.error) | (a.error == 0)
    return Near(EXACT["sign"](a.value), np.where(known, 0.0, 2.0))


def _power(a, k):
    value, k = EXACT["power"](a.value, int(k.value)), abs(float(k.value))
    return rounded(value, k * np.abs(value) * a.error / np.abs(a.value), units=k)


def _real_power(a, b):
    value = EXACT["real_power"](a.value, b.value)
    grown = np.abs(np.log(a.value)) * b.error + np.abs(b.value / a.value) * a.error
    return rounded(value, np.abs(value) * grown, units=16)


def _equal(a, b):
    assert a.error == b.error == 0, "only integers can be told equal"
    return a.value == b.value


def _compared(op):
    def compare(a, b):
        error = a.error + b.error
        assert np.all((np.abs(a.value - b.value) > error) | (error == 0)), "a comparison in doubt"
        return EXACT[op](a.value, b.value)

    return compare


def _sum(op):
    """A sum of n numbers in any order: n - 1 roundings, none larger than that of the absolute sum."""

    def bound(a):
        total, error, size = (EXACT[op](x) for x in (np.asarray(a.value), a.error, np.abs(a.value)))
        count = np.size(a.value) // np.size(total)
        return rounded(total, error + count * UNIT * size, units=1 + ("mean" in op))

    return bound


def _product(a, b):
    """A product of matrices; each entry is a sum of products in any order."""
    size, k = np.abs(a.value) @ np.abs(b.value), a.value.shape[-1]
    error = a.error @ np.abs(b.value) + np.abs(a.value) @ b.error + a.error @ b.error
    return Near(a.value @ b.value, error + k * UNIT * size)


BOUNDS = {
    "add": lambda a, b: rounded(a.value + b.value, a.error + b.error),
    "sub": lambda a, b: rounded(a.value - b.value, a.error + b.error),
    "mul": _mul,
    "div": _div,
    "neg": lambda a: Near(-a.value, a.error),
    "abs": lambda a: Near(np.abs(a.value), a.error),
    "sqrt": _sqrt,
    "sign": _sign,
    "power": _power,
    "real_power": _real_power,
    "maximum": lambda a, b: Near(EXACT["maximum"](a.value, b.value), np.maximum(a.error, b.error)),
    "minimum": lambda a, b: Near(EXACT["minimum"](a.value, b.value), np.maximum(a.error, b.error)),
    "matrix": lambda a: np.ndim(a.value) >= 2,
    "and": lambda a, b: a & b,
    **{op: _sum(op) for op in ("sum", "mean", "row_mean", "col_mean", "row_sum", "col_sum")},
    "lt": _compared("lt"),
    "matmul": _product,
    "transpose": lambda a: Near(a.value.T, a.error.T),
    "rows": lambda a: near(a.value.shape[-2]),
    "cols": lambda a: near(a.value.shape[-1]),
    **{f"size_{op}": lambda a, op=op: near(EXACT[f"size_{op}"](a.value)) for op in ("rows", "cols")},
    "size_mul": lambda a, b: near(a.value * b.value),
    "size_div": lambda a, b: near(a.value / b.value),
    "size_maximum": lambda a, b: near(max(a.value, b.value)),
    "size_sqrt": lambda a: near(np.sqrt(a.value)),
    "size_rounded": lambda a, like: a,
    "where": lambda c, a, b: Near(np.where(c, a.value, b.value), np.where(c, a.error, b.error)),
    "gt": _compared("gt"),
    "eq": _equal,
    "to_float": near,
    "store": near,
}


def bounded(op):
    """An operation on what is near, or a condition, or a plain number."""
    return lambda *args: BOUNDS[op](*(a if is_condition(a) else near(a) for a in args))


def is_condition(x):
    return isinstance(x, bool | np.bool_) or (isinstance(x, np.ndarray) and x.dtype == bool)


OPERATIONS = {op: bounded(op) for op in BOUNDS} | {"item": lambda x, i: x[int(near(i).value) - 1]}


def entering(x):
    """A hyperparameter: numbers are near themselves, choices what they are."""
    if isinstance(x, tuple):
        return tuple(map(near, x))
    return x if x is None or isinstance(x, bool | str) else near(x)


class Bounded:
    """What `Exact` computes in float64, with its error; some literals may be wrong by some error."""

    def __init__(self, lowered, theta, hypers, wrong=None):
        self.wrong = wrong or {}
        start = Exact(lowered, theta, dtype=np.float64)
        start.start(hypers)
        self.lowered, self.hypers, self.t = lowered, hypers, 0
        self.theta = self.start(theta)
        self.state = {k: v if v is None else self.start(v) for k, v in start.state.items()}

    def start(self, x):
        return Near(np.array(x, np.float64), np.zeros(np.shape(x)))

    def literal(self, x):
        return Near(np.float64(x), np.float64(self.wrong.get(x, 0.0)))

    def step(self, g):
        self.t += 1
        lowered = self.lowered
        kept = {f"{s.name}_prev": self.state[s.name] for s in lowered.scalar_states}
        names = {**{k: entering(v) for k, v in self.hypers.items()}, "t": self.t, **kept}
        evaluate(lowered.scalars, names, OPERATIONS, self.literal)
        tensors = {
            lowered.parameter: self.theta,
            "g": self.start(g),
            **{f"state.{s.name}": self.state[s.name] for s in lowered.tensor_states},
            **{f"s.{e}": names[e] for e in lowered.exports},
            **{name: self.hypers[name] for name in lowered.choices},
        }
        evaluate(lowered.step, tensors, OPERATIONS, self.literal)
        self.theta = tensors[str(lowered.result)]
        self.state = {
            **{s.name: names[s.name] for s in lowered.scalar_states},
            **{k: tensors[str(v)] for k, v in lowered.new_states},
        }


# ---------------------------------------------------------------------------------------------------
# Runs


def module(framework):
    for needed in FRAMEWORKS[framework]:
        pytest.importorskip(needed)
    return importlib.import_module(f"backends.{framework}.native")


def hypers_of(framework, name, kind, where):
    """The defaults, or others that are not 0 and not equal; then what `where` fixes."""
    parameters = ENTRIES[name].program.parameters
    other = {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "psi": 0.5, "eps1": 1e-12, "eps2": 2.0}
    other |= {"dampening": 0.3, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "momentum_decay": 0.5}
    other |= {"lambd": 0.3, "d": 1.5, "beta2_decay": -0.6, "step_size_max": 0.2, "step_size_min": 0.04}
    other |= {"ns_coefficients": (3.4, -4.7, 2.1), "alpha": 0.6, "t0": 20.5}
    hypers = {p.name: p.default for p in parameters}
    if kind == "other":
        decays = [p.name for p in parameters if p.domain.high == 1.0]
        other |= {"lr": SLOW[name]} if name in SLOW else {}
        other |= {k: 0.7 + 0.05 * i for i, k in enumerate(decays)}
        hypers |= {k: v for k, v in other.items() if k in hypers}
    return {k: given(framework, v) for k, v in (hypers | where).items()}


def given(framework, value):
    """A hyperparameter that the framework can take as it is."""
    return float(np.float32(value)) if framework == "tensorflow" and isinstance(value, float) else value


def ours(framework, name, hypers, steps=STEPS):
    """Start, gradients over twelve decades (eps is felt), the last parameters and their tolerance."""
    lowered = ENTRIES[name].lowered
    rng = np.random.default_rng(3)
    shape = (SIZE,) if lowered.elementwise else (8, SIZE // 8)
    theta = rng.standard_normal(shape)
    # Of a matrix row by row: sums along rows would hide small numbers beside large ones.
    scale = 10.0 ** rng.uniform(-16 if len(shape) > 1 else -11, 1, (shape[0],) + (1,) * (len(shape) - 1))
    run, bound = Exact(lowered, theta.copy(), dtype=np.float64), Bounded(lowered, theta, hypers)
    scale = scale * SCALE.get((framework, name), 1.0)
    wrong = CONSTANTS.get((framework, name), {})
    off = Bounded(lowered, theta, hypers, wrong)
    grads = []
    for t in range(steps):
        g = scale * rng.standard_normal(shape)
        if name in BALANCED and t % 5 == 4:
            beta, half = hypers[BALANCED[name]], slice(t % 2, None, 2)
            margin = 1 + 1e-9 * rng.choice([-1, 1], SIZE)
            g[half] = (-beta / (1 - beta) * run.state["m"] * margin)[half]
        run.step(g, hypers)
        bound.step(g)
        off.step(g)
        grads.append(g)
    assert np.array_equal(run.theta, bound.theta.value), "the bound is of another trajectory"
    tolerance = CHARGE * bound.theta.error + off.theta.error
    return theta, grads, run.theta, tolerance


def compared(native, framework, name, hypers):
    """How far the framework's own, with any hyperparameters, ends from ours, in tolerances."""
    theta, grads, want, tolerance = ours(framework, name, hypers)
    assert ((tolerance >= 0) & (tolerance < 1e-4)).all(), "a bound that says nothing"

    def distance(given):
        got = native.trained(Run(None, name, [theta], [[g] for g in grads], given))
        assert got.dtype == np.float64 and np.isfinite(got).all()
        return np.abs((got - want) / tolerance).max()

    return distance


CASES = [pytest.param(f, name, id=f"{f}-{name}") for f in FRAMEWORKS for name in those_of(f)]


@pytest.mark.parametrize("kind", ["default", "other"])
@pytest.mark.parametrize(("framework", "name"), CASES)
def test_twin(framework, name, kind):
    """The twin's trajectory is ours, and with any hyperparameter a millionth off it is not.

    Optimizers that are said to be different are, so that no twin that fails can hide among them; where
    they agree with some hyperparameters, they do.
    """
    native = module(framework)
    if name not in native.NATIVE:
        pytest.skip(native.DIFFERENT[name])
    if name in native.DIFFERENT:
        hypers = hypers_of(framework, name, kind, {})
        assert not native.agrees(name, hypers)
        assert compared(native, framework, name, hypers)(hypers) > 1000
        if name not in native.WHERE:
            return
    where = native.WHERE.get(name, {})
    hypers = hypers_of(framework, name, kind, where)
    assert native.agrees(name, hypers)
    distance = compared(native, framework, name, hypers)
    assert distance(hypers) <= 1
    # A constant of lower precision hides what is smaller than its own error.
    perturbed = 100 * PERTURBED if (framework, name) in CONSTANTS else PERTURBED
    for k, v in hypers.items():
        if v and isinstance(v, float) and k not in where and k not in UNFELT.get((name, kind), ()):
            wrong = {**hypers, k: given(framework, v * (1 + perturbed))}
            assert distance(wrong) > 1, f"{k} could be wrong"


@pytest.mark.parametrize("name", ["muon", "muon_torch"])
def test_torchs_muon_in_full_precision(monkeypatch, name):
    """Without its cast to bfloat16, torch's Muon is the spec's."""
    native = module("torch")
    import torch

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    hypers = hypers_of("torch", name, "default", {})
    distance = compared(native, "torch", name, hypers)
    assert distance(hypers) <= 1
    for k, v in hypers.items():
        if isinstance(v, float) and k != "eps":  # which bounds a norm that is never so small
            assert distance({**hypers, k: v * (1 + PERTURBED)}) > 1, f"{k} could be wrong"


CHOOSING = [
    pytest.param(f, name, id=f"{f}-{name}")
    for f in FRAMEWORKS
    for name in those_of(f)
    if render.speaks(name) and verify.choices(ENTRIES[name].program)
]


@pytest.mark.parametrize(("framework", "name"), CHOOSING)
def test_choices(framework, name, monkeypatch):
    """A framework's own definition is ours for every choice."""
    native, program = module(framework), ENTRIES[name].program
    if name == "muon_torch":
        torch = importlib.import_module("torch")
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    hypers = hypers_of(framework, name, "other", {})
    for chosen in verify.choices(program):
        if chosen.get("nesterov") and "dampening" in hypers:
            chosen = {**chosen, "dampening": 0.0}
        if chosen.get("centered"):  # a decay beside small gradients has hardly a variance
            chosen = {**chosen, "weight_decay": 0.0}
        together = {**hypers, **chosen}
        assert sample.fit(program, together)
        assert compared(native, framework, name, together)(together) <= 1, chosen


@pytest.mark.parametrize("size", [0.01, 10.0])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_frameworks_own_clips_by_global_norm(framework, size):
    """One factor for all, which the framework makes of the same norm in an order of its own.

    A sum of 21 squares is off by 20 roundings at most, its root by half of them and one; two norms are twice
    that apart, and quotient and product add two each. PyTorch adds 1e-6 to the norm.
    """
    lib = pytest.importorskip(framework)
    ours = importlib.import_module(f"generated.{framework}")
    rng = np.random.default_rng(6)
    grads = [rng.standard_normal(s) * size for s in ((3, 4), (9,))]
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    extra = 0.0
    if framework == "torch":
        params = [lib.nn.Parameter(lib.zeros(g.shape, dtype=lib.float64)) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = lib.tensor(g)
        lib.nn.utils.clip_grad_norm_(params, 1.0)
        theirs, extra = [p.grad for p in params], 1e-6
        got = ours.clip_by_global_norm([lib.tensor(g) for g in grads], max_norm=1.0)
    elif framework == "jax":
        optax = pytest.importorskip("optax")
        with lib.enable_x64(True):
            given = [lib.numpy.asarray(g) for g in grads]
            got, theirs = (
                rule.update(given, rule.init(given))[0]
                for rule in (ours.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0))
            )
    else:
        given = [lib.constant(g) for g in grads]
        theirs = lib.clip_by_global_norm(given, 1.0)[0]
        got = ours.clip_by_global_norm(given, max_norm=1.0)
    wanted = [np.asarray(x) * ((norm + extra) / norm if norm > 1 else 1.0) for x in theirs]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=(2 * 11 + 4) * 2.0**-53 if norm > 1 else 2.0**-53)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tables_are_complete(framework):
    """Every optimizer has a native one or a reason; only the different need conditions."""
    native = module(framework)
    assert native.NATIVE.keys() | native.DIFFERENT.keys() == set(those_of(framework))
    assert native.WHERE.keys() <= native.NATIVE.keys() & native.DIFFERENT.keys()
    for name, values in native.WHERE.items():
        assert values.keys() <= {p.name for p in ENTRIES[name].program.parameters}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_verify_asks_for(framework):
    """In float32 `runner.native` answers for what agrees with the default hyperparameters, else None."""
    native = module(framework)
    runner = importlib.import_module(f"backends.{framework}.runner")
    theta, g = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)
    for name in those_of(framework):
        hypers = {p.name: p.default for p in ENTRIES[name].program.parameters}
        got = runner.native(Run(None, name, [theta], [[g]], hypers))
        assert (got is not None) == (name not in native.DIFFERENT)
        assert got is None or (got.dtype == np.float32 and not np.array_equal(got, theta))
    scheduled = ("cosine", {"base_lr": 1.0, "total": 2})
    assert runner.native(Run(None, "sgd", [theta], [[g]], {"lr": 1.0}, scheduled)) is None
