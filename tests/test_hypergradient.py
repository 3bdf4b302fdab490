"""What is learnt by hypergradient descent: the derivatives are right, the definition is followed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import sympy as sp

from generator import catalogue, interpret, ir
from generator.errors import SpecError
from generator.interpret import Exact
from generator.verify import defaults

ELEMENTWISE = [
    ("sgd", "lr"),
    ("sgd_l2", "weight_decay"),
    ("momentum", "lr"),
    ("momentum", "beta"),
    ("heavy_ball", "mu"),
    ("rmsprop", "gamma"),
    ("rmsprop", "eps"),
    ("adam", "lr"),
    ("adam", "eps"),
    ("adam", "beta1"),
    ("adam", "beta2"),
    ("adamw", "lr"),
    ("adamw", "weight_decay"),
    ("amsgrad", "beta1"),
    ("adamax", "beta2"),
    ("lion", "lr"),
    ("yogi", "beta2"),
]


def learnt(name: str, wrt: str) -> catalogue.Entry:
    (entry,) = catalogue.entries([f"hypergradient({name}, {wrt})"])
    return entry


# ---------------------------------------------------------------------------------------------------
# The derivatives, by SymPy's own


_SYMPY: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "power": lambda a, b: a**b,
    "sqrt": sp.sqrt,
    "abs": sp.Abs,
    "sign": sp.sign,
    "maximum": sp.Max,
    "gt": lambda a, b: a > b,
    "where": lambda c, a, b: sp.Piecewise((a, c), (b, True)),
}
# Wherever derivatives are compared, everything but gradients and momenta is positive.
_OF_ANY_SIGN = {"g", "m", "theta"}


def symbol(name: str) -> sp.Symbol:
    return sp.Symbol(name, real=True) if name in _OF_ANY_SIGN else sp.Symbol(name, positive=True)


def as_sympy(e: ir.Expr, now: dict[str, sp.Expr], wrt: str) -> sp.Expr:
    """A frozen expression as SymPy sees it, names of this step replaced by what they stand for."""
    match e:
        case ir.Number(value):
            return sp.nsimplify(value)
        case ir.Hyper(name) | ir.Clock(name):
            return symbol(name)
        case ir.Ref(name, 0) if name == f"learnt_{wrt}":
            return symbol(wrt)
        case ir.Ref(name, 0) if name != "g":
            return now[name]
        case ir.Ref(name, _):
            return symbol(name)
        case ir.Call(op, args, _):
            return _SYMPY[op](*(as_sympy(a, now, wrt) for a in args))
    raise AssertionError(e)


def theta_of(name: str) -> sp.Expr:
    """theta[t] of a spec in one expression, from the SymPy equations that its author wrote."""
    (entry,) = catalogue.entries([name])
    assert isinstance(entry.spec, catalogue.Spec)
    functions = {k: f for k, f in _SYMPY.items() if k in ("sqrt", "abs", "sign", "maximum")}
    now: dict[str, sp.Expr] = {}

    def plain(e: sp.Expr) -> sp.Expr:
        if isinstance(e, sp.Indexed):
            name, at = str(e.base), e.indices[0]
            return now[name] if at.is_Symbol and name != "g" else symbol(name)
        if isinstance(e, sp.Symbol):
            return symbol(e.name)
        if not e.args:
            return e
        made = [plain(a) for a in e.args]
        return functions.get(type(e).__name__, e.func)(*made)

    for equation in entry.spec.equations:
        if equation.lhs.indices[0] != 0:
            now[str(equation.lhs.base)] = plain(equation.rhs)
    return now["theta"]


@pytest.mark.parametrize(("name", "wrt"), ELEMENTWISE)
def test_the_slope_is_the_derivative(name: str, wrt: str) -> None:
    now: dict[str, sp.Expr] = {}
    for s in ir.statements(learnt(name, wrt).program.body):
        if isinstance(s, ir.Assign) and s.target != f"learnt_{wrt}":
            now[s.target] = as_sympy(s.value, now, wrt)
    wanted = theta_of(name).diff(symbol(wrt))
    assert sp.simplify(now["theta"] - theta_of(name)) == 0  # the same step
    difference = wanted - now["slope"]
    assert wanted != 0
    if sp.simplify(difference) == 0:
        return
    rng = np.random.default_rng(0)
    for _ in range(20):  # at points, where SymPy does not see it
        at = {}
        for x in sorted(difference.free_symbols, key=str):
            value = rng.uniform(0.1, 0.9) * (rng.choice([-1, 1]) if x.name in _OF_ANY_SIGN else 1)
            at[x] = sp.Integer(3) if x.name == "t" else sp.Rational(value)
        scale = abs(wanted.subs(at).evalf(60))
        assert abs(difference.subs(at).evalf(60)) <= scale * sp.Float("1e-50", 60)


# ---------------------------------------------------------------------------------------------------
# The definition, by finite differences


SUMS = [
    ("lamb", "weight_decay"),
    ("lamb", "lr"),
    ("lars", "trust"),
    ("adafactor", "lr"),
    ("clip_by_global_norm > momentum", "max_norm"),
    ("clip_by_norm > adam", "lr"),
]
KAPPA = {"lr": 1e-4, "max_norm": 1e-2}


@pytest.mark.parametrize(("name", "wrt"), [x for x in ELEMENTWISE if x[1] not in ("beta1", "beta2")] + SUMS)
def test_the_run_is_that_of_the_definition(name: str, wrt: str) -> None:
    """h - kappa times the inner product over all tensors with a difference quotient of the last step."""
    (base,) = catalogue.entries([name])
    entry = learnt(name, wrt)
    hypers = defaults(entry.program)
    hypers.update({k: v for k, v in {"lr": 0.01, "eps": 1e-2}.items() if k in hypers})
    hypers["kappa"] = KAPPA.get(wrt, 1e-3)
    rng = np.random.default_rng(5)
    starts = [rng.standard_normal(s) for s in ((4, 6), (7,))]
    slopes = [rng.uniform(0.5, 2.0, x.shape) for x in starts]
    ours = [Exact(entry.lowered, x.copy(), dtype=np.float64) for x in starts]
    runs = [Exact(base.lowered, x.copy(), dtype=np.float64) for x in starts]
    given = {k: v for k, v in hypers.items() if k != "kappa"}
    h, quotients = hypers[wrt], [np.zeros_like(x) for x in starts]
    for r in runs:
        r.start(given)
    for _ in range(12):
        noise = [rng.standard_normal(x.shape) for x in starts]
        grads = [a * r.theta + n for a, r, n in zip(slopes, runs, noise, strict=True)]
        interpret.step(ours, grads, hypers)
        h -= hypers["kappa"] * sum(np.vdot(g, q) for g, q in zip(grads, quotients, strict=True))
        assert ours[0].state[f"learnt_{wrt}"] == pytest.approx(h, rel=1e-7)
        small = 1e-5 * max(abs(h), 0.1)
        ends = []
        for way in (-small, small, 0.0):
            tried = copy.deepcopy(runs)
            interpret.step(tried, grads, {**given, wrt: h + way})
            ends.append([r.theta for r in tried])
        quotients = [(b - a) / (2 * small) for a, b, _ in zip(*ends, strict=True)]
        runs = tried
        for r, mine in zip(runs, ours, strict=True):
            np.testing.assert_allclose(mine.theta, r.theta, rtol=1e-6, atol=1e-9)
    assert abs(h - hypers[wrt]) > 1e-7 * abs(h)  # it has moved


def test_the_rate_adapts() -> None:
    """From a rate that is far too small, the learnt one grows until the loss is where a good one gets."""
    from generated.numpy import SGD, SGDHD

    scale = np.linspace(0.1, 1.0, 20)
    losses = {}
    for optimizer_class, options in ((SGD, {}), (SGDHD, {"kappa": 1e-3})):
        theta = np.ones(20)
        optimizer = optimizer_class(theta, lr=1e-3, **options)
        for _ in range(200):
            optimizer.step(scale * theta)
        losses[optimizer_class] = float(np.sum(scale * theta**2))
    assert losses[SGDHD] < 0.05 * losses[SGD]
    assert optimizer.shared["float64"]["learnt_lr"] > 0.1


def test_a_slope_of_a_root_is_zero_at_zero() -> None:
    entry = learnt("clip_by_norm > adam", "max_norm")
    run = Exact(entry.lowered, np.ones(3), dtype=np.float64)
    for g in ([1.0, 0.0, 2.0], [0.5, 1.0, 0.0]):
        run.step(np.array(g), {**defaults(entry.program), "kappa": 1.0})
    assert run.state["learnt_max_norm"] != 1 and np.isfinite(run.state["learnt_max_norm"])


# ---------------------------------------------------------------------------------------------------
# Two at once, chains, and what is refused


def test_two_are_learnt() -> None:
    (entry,) = catalogue.entries(["hypergradient(momentum_hd, beta)"])
    assert [s.name for s in entry.lowered.shared_states] == ["learnt_beta", "learnt_lr"]
    assert [p.name for p in entry.program.parameters] == ["lr", "beta", "kappa", "kappa_of_beta"]
    targets = [s.target for s in entry.program.body if isinstance(s, ir.Assign)]
    assert targets == [
        "learnt_beta", "learnt_lr", "v", "slope_v", "theta", "slope_of_beta", "slope",
    ]  # fmt: skip


def test_a_chain_around_it_and_inside() -> None:
    for word in ("clip_by_norm > sgd_hd", "sgd_hd > lookahead", "hypergradient(clip_by_norm > sgd, lr)"):
        (entry,) = catalogue.entries([word])
        assert [s.name for s in entry.lowered.shared_states] == ["learnt_lr"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hypergradient(sgd, rate)", "sgd has no hyperparameter 'rate'. It has lr."),
        ("hypergradient(nesterov, lr)", "nesterov takes its gradient at another point than theta"),
        ("hypergradient(lion, beta1)", "(1 - beta1) * g[t]) depends on beta1 and has no slope"),
        ("hypergradient(lion, beta2)", "theta[t] of lion does not follow from beta2 in the same step"),
        ("hypergradient(adam > accumulate, k)", "k of adam_accumulate is an integer in [1, inf); only"),
        ("hypergradient(adam > accumulate, lr)", "reads lr in when(...), which is not derived yet"),
        ("hypergradient(clip_by_norm, max_norm)", "clip_by_norm is a transform, which has no parameters"),
        ("hypergradient(sgd_hd, lr)", "lr of sgd_hd is where a state begins"),
        ("hypergradient(nadam, psi)", "is exact for t and hyperparameters only, and a learnt psi is none"),
    ],
)  # fmt: skip
def test_refused(word: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _ = catalogue.entries([word])[0].lowered
    assert message in str(caught.value)


def test_no_code_yet() -> None:
    with pytest.raises(catalogue.NotAvailable, match="a tensor raised to a power that is not a literal"):
        _ = learnt("adam", "beta1").lowered


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x = hypergradient(3)", "3 is no spec. Give what @optimizer or chain(...) made."),
        ("x = hypergradient(sgd, wrt=3)", "3 is no name. Name a hyperparameter"),
        ("x = hypergradient(sgd, kappa=-1)", "kappa is a number in [0, inf), not -1."),
        ('x = hypergradient(sgd, name="a b")', "'a b' is no name for a spec."),
    ],
)
def test_wrong_lines_in_a_spec(line: str, message: str, tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from generator.language import *\nfrom specs.optimizers.sgd import sgd\n{line}\n")
    with pytest.raises(SpecError) as caught:
        catalogue.load(file)
    assert message in str(caught.value) and "mine.py:3:" in str(caught.value)
