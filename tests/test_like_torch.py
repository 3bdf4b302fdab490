"""`generated.torch.like_torch` beside `torch.optim`: signatures, torch's own configurations, checkpoints.

The configurations are those of torch's tests, with the running error bound of test_twins.py as tolerance.
"""

from __future__ import annotations

import copy
import importlib
import inspect

import numpy as np
import pytest
import test_twins as twins

from backends import discover
from generator import render

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch's table of configurations imports it
native = importlib.import_module("backends.torch.native")
table = importlib.import_module("torch.testing._internal.common_optimizers")
like_torch = importlib.import_module("generated.torch.like_torch")

NAMES = like_torch.__all__
INFOS = {info.optim_cls.__name__: info for info in table.optim_db}
STEPS = 12
FLAGS = ("maximize", "foreach", "capturable", "differentiable", "fused")
# What a class does not have yet: remove entries as they come.
NOT_YET = {"ns_steps": ["Muon"]}  # has to be 5
# What torch refuses and has a meaning here.
TAKEN = {
    "betas must be either both floats or both Tensors",  # each for itself
    "only support 2D parameters",  # a stack of matrices
    # Tensors as hyperparameters, with any flag.
    "lr as Tensor doesn't work with foreach & not capturable",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
    r"betas\[1\] as a Tensor is not supported for capturable=False and foreach=True",
}


def spec_of(name):
    return next(s for s in twins.ENTRIES if s == f"{name.lower()}_torch")


def later(name, kwargs):
    """The options among these that are not there yet."""
    return [k for k in kwargs if name in NOT_YET.get(k, ()) and (k != "ns_steps" or kwargs[k] != 5)]


def hypers_of(name, kwargs):
    """torch's arguments by the spec's names, over the spec's defaults."""
    program = twins.ENTRIES[spec_of(name)].program
    hypers = {p.name: p.default for p in program.parameters}
    for k, value in kwargs.items():
        members = native.BUNDLES.get(k, (k,))
        members = members if members[0] in hypers else (k,)
        values = value if len(members) > 1 else (value,)
        hypers |= dict(zip(members, values, strict=True))
    return {k: float(x) if isinstance(x, torch.Tensor) else x for k, x in hypers.items()}


def stepped(made, theta, grads, kwargs):
    """The parameter after some steps of a class."""
    p = torch.nn.Parameter(torch.tensor(theta))
    optimizer = made([p], **kwargs)
    for g in grads:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p, optimizer


@pytest.fixture
def precise(monkeypatch):
    """torch counts and multiplies in the parameters' precision."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_every_class_is_there():
    """But for two that are no equations of one gradient: L-BFGS, and Adam for sparse gradients."""
    assert set(NAMES) == INFOS.keys() - {"LBFGS", "SparseAdam"}
    assert dir(like_torch) == sorted(NAMES)
    with pytest.raises(AttributeError, match="no attribute 'LBFGS'"):
        _ = like_torch.LBFGS


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    ours = inspect.signature(getattr(like_torch, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    # torch takes flags by position in some classes, for old code's sake.
    wanted = [k for k, x in theirs.items() if x.kind is not x.KEYWORD_ONLY and k not in FLAGS]
    assert list(ours)[: len(wanted)] == wanted
    for k in list(theirs)[1:]:
        a, b = ours[k].default, theirs[k].default
        assert a == b, k


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_configurations(name, precise):
    configurations = INFOS[name].optim_inputs_func(device="cpu", dtype=torch.float64)
    taken = [c.kwargs for c in configurations if not later(name, c.kwargs)]
    assert taken
    for kwargs in taken:
        hypers = hypers_of(name, kwargs)
        theta, grads, _, tolerance = twins.ours("torch", spec_of(name), hypers, STEPS)
        assert ((tolerance >= 0) & (tolerance < 1e-5)).all(), kwargs
        ours, _ = stepped(getattr(like_torch, name), theta, grads, kwargs)
        if name == "Adafactor":  # None is 2**-23 here, whatever the dtype
            kwargs = {"eps": (2.0**-23, 1e-3), **kwargs}
        theirs, _ = stepped(getattr(torch.optim, name), theta, grads, kwargs)
        distance = (ours - theirs).abs().detach().numpy() / tolerance
        assert distance.max() <= 1, kwargs


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_refuses(name):
    for case in INFOS[name].optim_error_inputs_func("cpu", torch.float32):
        given, kwargs = case.optimizer_error_input, case.optimizer_error_input.kwargs
        if later(name, kwargs) or given.desc in TAKEN:
            continue
        params = [torch.nn.Parameter(torch.ones(2, 2))] if given.params is None else given.params
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type):
                getattr(like_torch, name)(params, **kwargs)
            continue
        with pytest.raises((ValueError, TypeError)):
            getattr(like_torch, name)(params, **kwargs).step()
            pytest.fail(f"{given.desc} is taken")


OPTIONS = {
    "SGD": {"momentum": 0.9, "dampening": 0.2},
    "Adam": {"amsgrad": True},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "ASGD": {"t0": 2.0},
    "Adafactor": {"eps": (1e-8, 1e-3)},
}


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_go_both_ways(name, precise):
    """A run goes on in the other's class; every number is O(1), and a step has a few dozen roundings."""
    rng = np.random.default_rng(0)
    theta, grads = rng.standard_normal((4, 3)), list(rng.standard_normal((8, 4, 3)))
    kwargs = {"lr": 0.05, **OPTIONS.get(name, {})}
    classes = [getattr(like_torch, name), getattr(torch.optim, name)]
    whole, _ = stepped(classes[1], theta, grads, kwargs)
    for first, second in (classes, classes[::-1]):
        p, optimizer = stepped(first, theta, grads[:4], kwargs)
        q, other = stepped(second, p.detach().numpy(), [], {})
        other.load_state_dict(optimizer.state_dict())
        for g in grads[4:]:
            q.grad = torch.tensor(g)
            other.step()
        torch.testing.assert_close(q, whole, rtol=0, atol=8 * 64 * 2.0**-53 * 100)
    saved = [stepped(c, theta, grads[:4], kwargs)[1].state_dict()["state"][0] for c in classes]
    assert saved[0].keys() - {"step"} == saved[1].keys() - {"step"}
    assert saved[0]["step"].dtype == torch.float32 and saved[0]["step"] == 4
    for k in saved[1].keys() - {"step"}:
        torch.testing.assert_close(saved[0][k].to(saved[1][k].dtype), saved[1][k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", discover())
def test_the_other_packages_have_them(backend):
    """By the framework's own names, imported when they are used."""
    pytest.importorskip(backend)
    module = importlib.import_module(f"generated.{backend}.like_torch")
    package = importlib.import_module(f"generated.{backend}")
    own = package.names("optimizers")
    assert len(module.__all__) == len([n for n in own if render.speaks(n) == "torch"]) == len(NAMES)
    function = backend == "jax"
    made = getattr(module, "rmsprop" if function else "RMSprop")
    assert made is getattr(package, "rmsprop_torch" if function else "RMSpropTorch")


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("Adafactor", "Muon")])
def test_complex_parameters(name, foreach):
    """As torch's, whose states load into ours, and ours into it."""

    def trained(cls, others=None):
        torch.manual_seed(0)
        kinds = (torch.complex64, torch.float32)
        params = [torch.nn.Parameter(torch.randn(3, 4, dtype=kind)) for kind in kinds]
        optimizer = cls(params, foreach=foreach, **({"momentum": 0.9} if name == "SGD" else {}))
        for t in range(4):
            if t == 2 and others is not None:
                optimizer.load_state_dict(others)
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
            if t == 1:
                saved = copy.deepcopy(optimizer.state_dict())
        return params, saved

    theirs, state = trained(getattr(torch.optim, name))
    ours, same = trained(getattr(like_torch, name), state)
    for results in (ours, trained(getattr(torch.optim, name), same)[0]):
        for a, b in zip(theirs, results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
