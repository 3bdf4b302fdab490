"""Each spec is its paper's algorithm: a float64 reference written from the paper, not from the spec.

Tolerance. Both sides compute in float64 with a few dozen roundings a step in another order. An error made
in one step is carried on, at worst amplified by the step itself, which is a smooth function of what it
reads wherever the gradient is not 0; sums of `STEPS` times `ROUNDINGS` units of 2**-53, times the size
of the largest intermediate relative to the result, bound the difference.
"""

from __future__ import annotations

import inspect

import numpy as np
import papers
import pytest

from generator import catalogue, interpret, verify
from generator.interpret import Exact, schedule_value
from generator.verify import schedule_hypers

STEPS, ROUNDINGS = 60, 64
ENTRIES = {e.program.name: e for e in catalogue.entries()}
OPTIMIZERS = [n for n, e in ENTRIES.items() if e.program.kind == "optimizer"]
SCHEDULES = [n for n, e in ENTRIES.items() if e.program.kind == "schedule"]
TRANSFORMS = [n for n, e in ENTRIES.items() if e.program.kind == "transform"]
TOLERANCE = STEPS * ROUNDINGS * 2.0**-53


def hypers_of(entry, ordinary):
    if ordinary:
        return {p.name: p.default for p in entry.program.parameters}
    other = {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "kappa": 1e-5}
    return {
        p.name: other.get(p.name, 0.7 if p.domain.high == 1.0 else p.default)
        for p in entry.program.parameters
    }




def shapes(entry):
    """Shapes on which an optimizer may take other ways."""
    if entry.lowered.elementwise:
        return [(50,)]
    if entry.program.only == "matrix":
        return [(5, 10), (10, 5), (2, 4, 3)]
    return [(50,), (5, 10)]


SHAPES = [(n, s) for n in OPTIMIZERS for s in shapes(ENTRIES[n])]


def paper(name):
    """The reference of a spec."""
    assert hasattr(papers, name), f"{name} has no reference: add the reference {name} to tests/papers.py"
    return getattr(papers, name)


@pytest.mark.parametrize("ordinary", [True, False], ids=["default", "other"])
@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_optimizer(name, shape, ordinary):
    hypers = hypers_of(ENTRIES[name], ordinary)
    follows(name, shape, hypers)


CHOOSING = [n for n in OPTIMIZERS if verify.choices(ENTRIES[n].program)]


@pytest.mark.parametrize("name", CHOOSING)
def test_choices(name):
    entry = ENTRIES[name]
    for chosen in verify.choices(entry.program):
        follows(name, shapes(entry)[-1], {**hypers_of(entry, False), **chosen})


def follows(name, shape, hypers):
    """The spec's trajectory is the paper's."""
    entry = ENTRIES[name]
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(shape)
    slope, noise = rng.uniform(0.5, 2, shape), rng.standard_normal((STEPS, *shape))

    def gradient(step, point):
        return slope * point + noise[step]

    # What else a spec may read: the gradient of all data, and how it changes from batch to batch.
    inputs = {
        "full_gradient": lambda step, point: slope * point,
        "hessian_diagonal": lambda step, point: slope + 0.3 * noise[step],
    }
    inputs = {x.name: inputs[x.name] for x in entry.lowered.given if x.asked}
    weights = verify.weights(entry.lowered)
    run = Exact(entry.lowered, theta.copy(), dtype=np.float64)
    points = []
    run.start(hypers)
    for step in range(STEPS):
        points.append(np.array(run.theta))
        given = {k: [f(step, run.theta)] for k, f in inputs.items()} | {k: [w] for k, w in weights.items()}
        again = lambda _, at, s=step: [gradient(s, at[0])]  # noqa: E731
        interpret.step([run], [gradient(step, run.theta)], hypers, None, given, again)
    if entry.checked.gradients:  # the paper's function is called at the point it chooses itself
        grads = [lambda at, s=s: gradient(s, at) for s in range(STEPS)]
        ours = run.state["theta"] if entry.checked.elsewhere else run.theta
    else:
        grads = [gradient(s, p) for s, p in enumerate(points)]
        ours = run.theta
    known = {k: [lambda at, s=s, f=f: f(s, at) for s in range(STEPS)] for k, f in inputs.items()}
    known |= {"weights": weights} if weights else {}
    want = paper(name)(theta.copy(), grads, **hypers, **known)[-1]
    scale = np.maximum(np.abs(want), 1.0)
    assert (np.abs(ours - want) / scale).max() <= TOLERANCE


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    entry = ENTRIES[name]
    hypers = schedule_hypers(entry.program, 70)
    reference = paper(name)
    for n in [*range(90), 10**6]:
        want = reference(n, **hypers)
        got = schedule_value(entry.lowered, n, hypers)
        lost = 0.1 * max(n, 8) * 2.0**-53  # a formula in n itself has an ulp of n, times the slope
        assert got == pytest.approx(want, rel=ROUNDINGS * 2.0**-53, abs=lost)


@pytest.mark.parametrize("shape", [(40,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name, shape):
    entry = ENTRIES[name]
    rng = np.random.default_rng(2)
    theta, g = rng.standard_normal(shape), 2 * rng.standard_normal(shape)
    for hypers in verify.transform_hypers(entry.program):
        run = Exact(entry.lowered, theta.copy(), dtype=np.float64)
        run.step(g, hypers)
        want = paper(name)(theta, g, **hypers)
        few = (16 if entry.checked.noises else 4) * 2.0**-53  # normal numbers are within 8
        np.testing.assert_allclose(run.theta, want, rtol=few, atol=few)


@pytest.mark.parametrize("name", list(ENTRIES))
def test_references_are_complete(name):
    """Every spec has a reference with its hyperparameters, under the same names."""
    given = set(inspect.signature(paper(name)).parameters)
    assert {p.name for p in ENTRIES[name].program.parameters} <= given


def trained(chain, steps=30):
    """Points, gradients and states of a chain on noisy gradients."""
    (entry,) = catalogue.entries([chain])
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(40)
    grads = [theta + rng.standard_normal(40) for _ in range(steps)]
    run = Exact(entry.lowered, theta.copy(), dtype=np.float64)
    hypers = {p.name: p.default for p in entry.program.parameters}
    points = [theta]
    for g in grads:
        run.step(g, hypers)
        points.append(np.array(run.theta))
    return points, grads, run.state


def test_polyak_average():
    points, _, state = trained("heavy_ball > polyak_average")
    want = papers.polyak_average(points, decay=0.999)
    np.testing.assert_allclose(state["average"], want, rtol=0, atol=TOLERANCE)


def test_cautious():
    points, grads, _ = trained("lion > cautious")
    (lion,) = catalogue.entries(["lion"])
    run = Exact(lion.lowered, points[0].copy(), dtype=np.float64)
    hypers = {p.name: p.default for p in lion.program.parameters}
    for before, after, g in zip(points, points[1:], grads, strict=False):
        run.theta = before.copy()
        run.step(g, hypers)
        want = before + papers.cautious(run.theta - before, g, least=1e-3)
        np.testing.assert_allclose(after, want, rtol=0, atol=TOLERANCE)


def test_lookahead():
    """Between two jumps the points are those of the optimizer alone, begun at the last jump."""
    points, grads, state = trained("heavy_ball > lookahead", steps=11)
    mu, lr, k = 0.9, 1e-2, 5
    theta = slow = points[0]
    v = np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        v = mu * v + g
        theta = theta - lr * v
        if t % k == 0:
            theta = slow = papers.lookahead(theta, slow, k=k, alpha=0.5)
        np.testing.assert_allclose(points[t], theta, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(state["slow"], slow, rtol=0, atol=TOLERANCE)


def test_accumulate():
    """Every fourth step is one of adam's own, which counts it so."""
    points, grads, _ = trained("adam > accumulate", steps=18)
    means = papers.accumulate(grads, k=4)
    want = papers.adam(points[0], means, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    for t, point in enumerate(points):
        at = want[t // 4 - 1] if t >= 4 else points[0]
        np.testing.assert_allclose(point, at, rtol=0, atol=TOLERANCE)


def test_sam():
    """Sgd with the gradient of the worst point nearby."""
    (entry,) = catalogue.entries(["sgd > sam"])
    rng = np.random.default_rng(4)
    theta, slope = rng.standard_normal(30), rng.uniform(0.5, 2, 30)
    hypers = {p.name: p.default for p in entry.program.parameters}
    run = Exact(entry.lowered, theta.copy(), dtype=np.float64)
    for step in range(20):
        noise = rng.standard_normal(30)

        def gradient(at, noise=noise):
            return slope * at + noise

        interpret.step([run], [gradient(run.theta)], hypers, again=lambda _, at, f=gradient: [f(at[0])])
        theta = theta - hypers["lr"] * papers.sam(theta, gradient, rho=0.05)
        np.testing.assert_allclose(run.theta, theta, rtol=0, atol=TOLERANCE * (step + 1))
