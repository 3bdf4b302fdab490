"""The shells as their users meet them: what is refused, how, with nothing changed; and each idiom.

The equations are tested elsewhere; here AdamW and Nesterov stand for all, and where bits are compared,
the NumPy package gives them.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import os
import pickle

import numpy as np
import pytest

from generated.numpy import AdamW, Cosine, Nesterov, create

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

FRAMEWORKS = {"numpy": ["numpy"], "torch": ["torch"], "jax": ["jax", "optax"], "tensorflow": ["keras"]}
NUMBERS, AVERAGE = "a number in [0, inf)", "a number in [0, 1)"
# The spec's hyperparameters, and how the package's users write them.
WRITTEN = {
    "numpy": dict(lr="lr", beta1="beta1", beta2="beta2", eps="eps", weight_decay="weight_decay"),
    "torch": dict(lr="lr", beta1="betas[0]", beta2="betas[1]", eps="eps", weight_decay="weight_decay"),
    "jax": dict(lr="learning_rate", beta1="b1", beta2="b2", eps="eps", weight_decay="weight_decay"),
    "tensorflow": dict(
        lr="learning_rate", beta1="beta_1", beta2="beta_2", eps="epsilon", weight_decay="weight_decay"
    ),
}
BAD = {
    "lr": [-1, math.nan, math.inf, "0.1", None],
    "beta1": [1.0, -0.1, math.nan, 1.5],
    "beta2": [1.0, -0.1, math.nan, 1.5],
    "eps": [-1, math.nan],
    "weight_decay": [-1, math.nan],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]
PACKAGES = [*WRITTEN]
NAN_HINT = " NaN often comes from a division by zero where the value was computed."
ONE_HINT = " At 1 nothing new would ever enter the average; 0.999 is a long memory."

_random = np.random.default_rng(0)
SHAPES = {"w": (4, 3), "b": (3,)}
START = {k: _random.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
GRADS = [{k: _random.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()} for _ in range(5)]

CLIPPED = [{k: np.clip(v, np.float32(-0.5), np.float32(0.5)) for k, v in g.items()} for g in GRADS]


def package(name):
    for module in FRAMEWORKS[name]:
        pytest.importorskip(module)
    return importlib.import_module(f"generated.{name}")


def frozen(x):
    """A copy that compares byte for byte: of trees, of arrays and tensors of any framework."""
    if isinstance(x, dict):
        return {k: frozen(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [frozen(v) for v in x]
    if hasattr(x, "detach"):
        x = x.detach().numpy()
    if hasattr(x, "shape"):
        x = np.asarray(x)
        return x.dtype.name, x.shape, x.tobytes()
    return x


def start(*names):
    """Fresh copies of the parameters, all or some."""
    return {k: START[k].copy() for k in names or START}


def trajectory(steps=None, cls=AdamW, names=(), grads=GRADS, **hypers):
    """NumPy's parameters after some steps."""
    params = start(*names)
    optimizer = cls(params, **hypers)
    for g in grads[:steps]:
        optimizer.step({k: g[k] for k in params})
    return params


def same(ours, numpys):
    """The same bits under the same names."""
    assert frozen({k: np.asarray(v) for k, v in ours.items()}) == frozen(numpys)


# ---------------------------------------------------------------------------------------------------
# Hyperparameters, the same in all four


def parameters(name):
    """The first argument of the package's class: parameters, or none."""
    if name == "numpy":
        return (start(),)
    if name == "torch":
        return ([importlib.import_module("torch").nn.Parameter(tensor("w"))],)
    return ()


def constructed(name, **hypers):
    """AdamW in the words of the package."""
    made = package(name)
    if name == "torch" and {"beta1", "beta2"} & set(hypers):
        hypers["betas"] = (hypers.pop("beta1", 0.9), hypers.pop("beta2", 0.999))
    given = {WRITTEN[name].get(k, k): v for k, v in hypers.items()}
    return (made.adamw if name == "jax" else made.AdamW)(*parameters(name), **given)


def refusal(name, hyper, value):
    """What the message says."""
    owner = "adamw" if name == "jax" else "AdamW"
    domain = AVERAGE if hyper.startswith("beta") else NUMBERS
    return f"{owner}: {WRITTEN[name][hyper]} must be {domain}, got {value!r}."


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("hyper", "value"), CASES)
def test_a_bad_hyperparameter_is_refused(name, hyper, value):
    kind = TypeError if value is None or isinstance(value, str) else ValueError
    hint = ""
    if isinstance(value, str):
        hint = " Pass a number, not text."
    elif value == 1.0:
        hint = ONE_HINT
    elif value is not None and value != value:
        hint = NAN_HINT
    with pytest.raises(kind) as caught:
        constructed(name, **{hyper: value})
    assert str(caught.value) == refusal(name, hyper, value) + hint
    with pytest.raises(kind) as caught:  # by the spec's names, in the words of the package
        package(name).create("adamw", *parameters(name), **{hyper: value})
    assert str(caught.value) == refusal(name, hyper, value) + hint


@pytest.mark.parametrize(
    ("name", "hypers", "message"),
    [
        ("numpy", {"lr": -1}, "AdamW: lr must be a number in [0, inf), got -1."),
        ("torch", {"beta2": 1.5}, "AdamW: betas[1] must be a number in [0, 1), got 1.5."),
        ("jax", {"lr": math.inf}, "adamw: learning_rate must be a number in [0, inf), got inf."),
        ("jax", {"beta1": -0.1}, "adamw: b1 must be a number in [0, 1), got -0.1."),
        ("tensorflow", {"lr": None}, "AdamW: learning_rate must be a number in [0, inf), got None."),
        (
            "tensorflow",
            {"beta1": 1.0},
            "AdamW: beta_1 must be a number in [0, 1), got 1.0. "
            "At 1 nothing new would ever enter the average; 0.999 is a long memory.",
        ),
        ("tensorflow", {"eps": -1}, "AdamW: epsilon must be a number in [0, inf), got -1."),
    ],
)
def test_the_message_word_by_word(name, hypers, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        constructed(name, **hypers)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("lr", [np.float32(1e-3), np.float64(1e-3), 1, np.int64(1), 0])
def test_numbers_of_python_and_numpy_are_accepted(name, lr):
    constructed(name, lr=lr, eps=np.float32(1e-6), weight_decay=np.int64(0), beta1=0)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("lr", [True, 1j, [], [0.1], (0.1, 0.2), {}])
def test_what_is_no_number_is_refused(name, lr):
    with pytest.raises(TypeError) as caught:
        constructed(name, lr=lr)
    assert refusal(name, "lr", lr) in str(caught.value)


@pytest.mark.parametrize("name", PACKAGES)
def test_create_has_the_specs_names_and_says_what_it_lacks(name):
    made = package(name)
    with pytest.raises(ValueError, match=r"no algorithm is called 'adamq'\. Did you mean 'adam"):
        made.create("adamq", *parameters(name))
    with pytest.raises(TypeError) as caught:
        made.create("adamw", *parameters(name), beta3=0.5)
    assert "beta3" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("torch", dict(beta1=0.8, betas=(0.1, 0.2)), "beta1 and betas"),
        ("jax", dict(lr=0.1, learning_rate=0.2), "lr and learning_rate"),
    ],
)
def test_create_drops_nothing_that_is_given_twice(name, given, words):
    with pytest.raises(TypeError, match=f"adamw: {words} are the same, and both are given. Leave one out"):
        package(name).create("adamw", *parameters(name), **given)


# ---------------------------------------------------------------------------------------------------
# NumPy


def unchanged(optimizer, params, error, grads, *words):
    """A step is refused with these words, and all is as before."""
    before = frozen(params), frozen(optimizer.state_dict()), repr(optimizer)
    with pytest.raises(error) as caught:
        optimizer.step(grads)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert (frozen(params), frozen(optimizer.state_dict()), repr(optimizer)) == before


def running(steps=1, **hypers):
    params = start()
    optimizer = AdamW(params, **hypers)
    for g in GRADS[:steps]:
        optimizer.step(g)
    return optimizer, params


@pytest.mark.parametrize("steps", [0, 1])
def test_numpy_refuses_gradients_that_do_not_fit(steps):
    optimizer, params = running(steps)
    w, b = GRADS[1]["w"], GRADS[1]["b"]
    wrong = [
        (ValueError, {"w": w, "b": b[:2]}, ["gradient of b", "(2,)", "(3,)", "reshape"]),
        (ValueError, {"w": w.T, "b": b}, ["gradient of w", "(3, 4)", "(4, 3)", "Pass the gradient"]),
        (ValueError, {"w": w}, ["no gradient for b", "None for a parameter that has none"]),
        (ValueError, {"w": w, "b": b, "c": b}, ["no parameter for the gradient c", "structure"]),
        (ValueError, [w, b], ["no gradient for w, b", "no parameter for the gradient [0], [1]"]),
        (ValueError, w, ["no gradient for w, b", "structure of params"]),
        (ValueError, {"w": {"x": w}, "b": b}, ["no gradient for w", "w.x"]),
        (TypeError, {"w": w, "b": np.ones(3, np.int32)}, ["gradient of b", "int32", "astype"]),
        (TypeError, {"w": w, "b": 1.0}, ["gradient of b", "float", "numpy.asarray"]),
        (TypeError, {"w": w, "b": b.astype(np.float64)}, ["gradient of b", "float64", "float32", "astype"]),
    ]
    for error, grads, words in wrong:
        unchanged(optimizer, params, error, grads, "AdamW: ", *words)
    optimizer.step(GRADS[steps])  # nothing is stuck
    same(params, trajectory(steps + 1))


def test_numpy_refuses_parameters_that_it_cannot_update():
    w = start()["w"]
    read_only = w.copy()
    read_only.flags.writeable = False
    wrong = [
        (TypeError, {"a": w, "n": np.arange(3)}, ["parameter n", "int64", "astype"]),
        (TypeError, {"a": w, "n": w.astype(w.dtype.newbyteorder("S"))}, ["byte order", "(numpy.float32)"]),
        (TypeError, {"a": w, "n": 1.5}, ["parameter n", "float", "numpy.asarray"]),
        (TypeError, {"a": w, "n": None}, ["parameter n", "NoneType"]),
        (ValueError, {"a": read_only}, ["parameter a", "read-only", "copy"]),
        (ValueError, {"a": w, "n": [w]}, ["a and n[0]", "same array"]),
        (ValueError, {}, ["empty"]),
        (ValueError, [[], {}], ["empty"]),
    ]
    for error, params, words in wrong:
        with pytest.raises(error) as caught:
            AdamW(params)
        for word in ["AdamW: ", *words]:
            assert word in str(caught.value), str(caught.value)


def test_numpy_refuses_an_array_that_was_made_read_only_before_anything_changes():
    optimizer, params = running()
    params["b"].flags.writeable = False
    unchanged(optimizer, params, ValueError, GRADS[1], "parameter b", "read-only")


def test_numpy_refuses_parameters_that_share_memory():
    x = np.zeros((4, 6), np.float32)
    for a, b in ((x, x[1:]), (x[:3], x[2:]), (x[:, ::2], x[:, ::3]), (x, x.T), (x[::-1], x[:1])):
        with pytest.raises(ValueError, match=r"AdamW: \w and \w share memory\. Pass copies"):
            package("numpy").AdamW({"a": a, "b": b})
    package("numpy").AdamW([x[:2], x[2:3, ::2], x[2:3, 1::2], x[3:], x[:0], x[:0]])  # side by side


def test_numpy_refuses_two_parameters_of_one_path():
    w, b = start().values()
    with pytest.raises(ValueError, match=r"AdamW: .*a\.b"):
        AdamW({"a.b": w, "a": {"b": b}})


@pytest.mark.parametrize(("hyper", "value"), CASES)
def test_numpy_attributes_are_checked_when_they_are_set(hyper, value):
    optimizer, params = running()
    before = repr(optimizer)
    with pytest.raises((ValueError, TypeError)) as caught:
        setattr(optimizer, hyper, value)
    assert refusal("numpy", hyper, value) in str(caught.value)
    assert repr(optimizer) == before
    optimizer.lr, optimizer.beta1 = np.float32(0.5), np.int64(0)
    optimizer.step(GRADS[1])
    assert all(np.isfinite(p).all() for p in params.values())


class Recorded(AdamW):
    """With attributes of its own."""

    losses = None
    rates: list

    def __init__(self, *args, **hypers):
        self.before = 1
        super().__init__(*args, **hypers)
        self.before, self.losses, self.rates, self._cache = 2, [], [], {}


def test_numpy_attributes_that_are_settled_are_refused():
    optimizer, params = running()
    before = frozen(optimizer.state_dict()), repr(optimizer), frozen(params)
    made = r"is settled when the optimizer is made\. Make another"
    for name, value, words in [
        ("store", "kahan", rf"AdamW: store {made}, AdamW\(params, store=\.\.\.\)"),
        ("states", "zzz", f"AdamW: states {made}"),
        ("seed", "a", f"AdamW: seed {made}"),
        ("rules", [3], f"AdamW: rules {made}"),
        ("params", 3, rf"AdamW: params {made}, AdamW\(params\)\."),
        ("storage", None, f"AdamW: storage {made}"),
        ("state", {}, "AdamW: state is what the steps made. Pass it to load_state_dict"),
        ("t", -5, "AdamW has no t. There are lr, beta1, beta2, eps, weight_decay"),
        ("foo", 1, "AdamW has no foo. There are lr"),
        ("lrr", 1, "AdamW has no lrr. Did you mean lr"),
    ]:
        with pytest.raises(AttributeError, match=words):
            setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=r"AdamW: steps must be an integer in \[0, inf\), got -1"):
        optimizer.steps = -1
    assert (frozen(optimizer.state_dict()), repr(optimizer), frozen(params)) == before
    optimizer.steps, optimizer._own = 7, 1
    recorded = copy.deepcopy(Recorded(params))
    recorded.before, recorded.losses = 3, [1.0]
    with pytest.raises(AttributeError, match="Recorded has no others"):
        recorded.others = 1


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_a_function_that_is_no_schedule_is_named(name):
    made, word = package(name), WRITTEN[name]["lr"]
    owner, schedule = ("AdamW", made.Cosine) if name == "numpy" else ("adamw", made.cosine)
    for wrong in (schedule, lambda: 1.0):
        with pytest.raises(TypeError) as caught:
            constructed(name, lr=wrong)
        said = str(caught.value)
        assert said.startswith(f"{owner}: {word} must be {NUMBERS}, or a function of the number of finished")
        assert "Make a schedule of it, Cosine(...)" in said or "Pass a schedule that is made" in said
    constructed(name, lr=lambda n, extra=1: 0.1)
    with pytest.raises(TypeError, match="must be a schedule, got <class"):
        (made.Warmup if name == "numpy" else made.warmup)(5, Cosine)


def test_numpy_checks_what_a_schedule_gives():
    optimizer, params = running(lr=lambda n: 0.1 if n == 0 else math.nan)
    unchanged(optimizer, params, ValueError, GRADS[1], "AdamW: lr(1) must be a number in [0, inf), got nan")


def test_numpy_updates_arrays_lists_and_nested_dictionaries_in_place():
    expected = trajectory(lr=0.1)
    one, many, deep = start("w")["w"], [*start().values()], start()
    nested = {"layers": [{"w": deep["w"]}, (deep["b"],)], "none": {}}
    optimizers = [AdamW(one, lr=0.1), AdamW(many, lr=0.1), AdamW(nested, lr=0.1)]
    for g in GRADS:
        w, b = g["w"], g["b"]
        for optimizer, grads in zip(
            optimizers, [w, (w, b), {"layers": [{"w": w}, [b]], "none": {}}], strict=True
        ):
            assert optimizer.step(grads) is None
    same({"w": one}, {"w": expected["w"]})
    same(dict(zip("wb", many, strict=True)), expected)
    same(deep, expected)
    assert [*optimizers[2].state] == ["layers[0].w", "layers[1][0]"]
    zero_d, view = np.array(1.5), np.zeros((4, 6))[:, ::2]
    small = AdamW([zero_d, view], lr=0.1)
    small.step([zero_d * 2, view + 1])  # NumPy gives a scalar for the first
    assert zero_d != 1.5 and (view.base[:, 1::2] == 0).all() and (view != 0).all()


def test_numpy_leaves_a_parameter_without_gradient_alone():
    optimizer, params = running()
    before = frozen(params["b"]), frozen(optimizer.state["b"])
    optimizer.step({"w": GRADS[1]["w"], "b": None})
    assert (frozen(params["b"]), frozen(optimizer.state["b"])) == before
    assert (optimizer.state["w"]["step"], optimizer.state["b"]["step"], optimizer.steps) == (2, 1, 2)
    same({"w": params["w"]}, trajectory(2, names=["w"]))


@pytest.mark.parametrize("cls", [AdamW, Nesterov])
def test_numpy_state_dict_goes_on_with_the_same_bits(cls):
    schedule = Cosine(0.1, total=5)
    params = start()
    optimizer = cls(params, lr=schedule)
    for g in GRADS[:2]:
        optimizer.step(g)
    saved, copied = pickle.loads(pickle.dumps(optimizer.state_dict())), copy.deepcopy(params)
    again = cls(copied, lr=schedule)
    again.load_state_dict(saved)
    kept = frozen(saved)
    for g in GRADS[2:]:
        optimizer.step(g)
        again.step(g)
    same(copied, params)
    same(copied, trajectory(cls=cls, lr=schedule))
    assert frozen(again.state_dict()) == frozen(optimizer.state_dict())
    assert frozen(saved) == kept  # copies, on the way out and on the way in


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_numpy_copies_go_on_with_the_same_bits(through):
    optimizer, params = running(2, lr=Cosine(0.1, total=5))
    copied, again = through((params, optimizer))
    for g in GRADS[2:]:
        again.step(g)
    same(params, trajectory(2, lr=Cosine(0.1, total=5)))
    same(copied, trajectory(lr=Cosine(0.1, total=5)))


def unnamed(optimizer):
    """Its state, without the name of the algorithm that it belongs to."""
    return {k: v for k, v in optimizer.state_dict().items() if k != "algorithm"}


def test_numpy_refuses_a_state_dict_that_does_not_fit():
    optimizer, params = running(2)
    before = frozen(optimizer.state_dict()), frozen(params)
    other = AdamW({"w": np.zeros(3), "b": np.zeros(3)})
    other.step({"w": np.ones(3), "b": np.ones(3)})
    nesterov = Nesterov(start())
    nesterov.step(GRADS[0])
    for wrong, words in [
        (other.state_dict(), ["w", "(3,)", "(4, 3)"]),
        (nesterov.state_dict(), ["is of nesterov", "Another optimizer saved it"]),
        (unnamed(nesterov), ["expected is", "theta", "Another optimizer saved it"]),
        ({}, ["not what state_dict() gave"]),
        (None, ["not what state_dict() gave"]),
        (AdamW([np.zeros(3)]).state_dict(), ["other parameters", "[0]"]),
    ]:
        with pytest.raises(ValueError) as caught:
            optimizer.load_state_dict(wrong)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert (frozen(optimizer.state_dict()), frozen(params)) == before


@pytest.mark.parametrize("n", [-1, 1.5, "a", None])
def test_numpy_schedules_count_from_0(n):
    with pytest.raises(ValueError, match="Cosine: n must be an integer, 0 or more"):
        Cosine(0.1, total=5)(n)


def test_numpy_evaluates_at_another_point_without_a_trace():
    params = start()
    optimizer = Nesterov(params, lr=0.1)
    for g in GRADS:
        optimizer.step(g)
        training = frozen(params)
        with optimizer.evaluation() as inside:
            assert inside is params
            same(params, {k: slot["theta"] for k, slot in optimizer.state.items()})
            assert frozen(params) != training
            with optimizer.evaluation():
                same(params, {k: slot["theta"] for k, slot in optimizer.state.items()})
            with pytest.raises(RuntimeError, match="Nesterov: step inside"):
                optimizer.step(g)
        assert frozen(params) == training
    same(params, trajectory(cls=Nesterov, lr=0.1))
    adamw, params = running()
    with adamw.evaluation():
        same(params, trajectory(1))


def test_numpy_create_takes_the_specs_names():
    params = start()
    optimizer = create("adamw", params, lr=0.1, beta1=0.5)
    for g in GRADS:
        optimizer.step(g)
    same(params, trajectory(lr=0.1, beta1=0.5))


# ---------------------------------------------------------------------------------------------------
# PyTorch


def tensor(name):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(START[name].copy())


def torch_params(*names):
    nn = pytest.importorskip("torch").nn
    return {k: nn.Parameter(tensor(k)) for k in names or START}


def torch_steps(optimizer, params, grads=GRADS):
    torch = pytest.importorskip("torch")
    for g in grads:
        for k, p in params.items():
            p.grad = None if g.get(k) is None else torch.from_numpy(g[k].copy())
        optimizer.step()


def torch_frozen(optimizer):
    return frozen(optimizer.state_dict())


def detached(params):
    return {k: p.detach().numpy() for k, p in params.items()}


def torch_refused(optimizer, params, error, *words):
    before = frozen(params), torch_frozen(optimizer), len(optimizer.state)
    with pytest.raises(error) as caught:
        optimizer.step()
    for word in ["AdamW: ", *words]:
        assert word in str(caught.value), str(caught.value)
    assert (frozen(params), torch_frozen(optimizer), len(optimizer.state)) == before


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("shape", ValueError, ["gradient of parameter 1", "(3,)", "(2,)", "p.grad to None"]),
        ("sparse", TypeError, ["gradient of parameter 1", "sparse", "to_dense()"]),
        ("float64", TypeError, ["gradient of parameter 1", "float64", "float32", "p.grad.to("]),
        ("integer", TypeError, ["parameter 1", "int64", "float()"]),
    ],
)
def test_torch_refuses_gradients_that_do_not_fit(steps, wrong, error, words):
    torch = pytest.importorskip("torch")
    params = torch_params()
    optimizer = package("torch").AdamW(params.values())
    torch_steps(optimizer, params, GRADS[:steps])
    w, b = params.values()
    w.grad = torch.ones_like(w)
    if wrong == "sparse":
        b.grad = torch.ones(3).to_sparse()
    elif wrong == "shape":  # what is left after a parameter was replaced
        b.grad = torch.ones(3)
        b.data = torch.ones(2)
    elif wrong == "float64":  # torch refuses the assignment, unless the parameter changes later
        b.data = b.data.double()
        b.grad = torch.ones(3, dtype=torch.float64)
        b.data = b.data.float()
    else:
        b.grad = None
        b.requires_grad_(False)
        b.data = torch.ones(3, dtype=torch.int64)
        b.grad = torch.ones(3, dtype=torch.int64)
    torch_refused(optimizer, params, error, *words)


def test_torch_refuses_parameters_and_groups_whole():
    torch = pytest.importorskip("torch")
    made = package("torch")
    with pytest.raises(TypeError, match=r"AdamW: parameter 1 of param group 0 has dtype torch\.int64"):
        made.AdamW([torch_params()["w"], torch.arange(3)])
    with pytest.raises(TypeError, match=r"AdamW: parameter bias has dtype torch\.int64"):
        made.AdamW([("weight", torch_params()["w"]), ("bias", torch.arange(3))])
    w, b = torch_params().values()
    with pytest.raises(ValueError, match=r"AdamW: lr of param group 1 must be a number in \[0, inf\)"):
        made.AdamW([{"params": [w]}, {"params": [b], "lr": -1}])
    optimizer = made.AdamW([w])
    with pytest.raises(ValueError, match=r"AdamW: eps of param group 1 .* got nan"):
        optimizer.add_param_group({"params": [b], "eps": math.nan})
    with pytest.raises(TypeError, match="betas"):
        optimizer.add_param_group({"params": [b], "betas": 0.9})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [b], "eps": 1e-3})


def test_torch_refuses_a_parameter_that_overlaps_itself():
    torch, made = pytest.importorskip("torch"), package("torch")
    params = torch_params()
    wide = torch.ones(1).expand(3).requires_grad_()
    for given, called in [([wide], "parameter 1 of param group 0"), ([("x", wide)], "parameter x")]:
        first = [("w", params["w"])] if called == "parameter x" else [params["w"]]
        with pytest.raises(ValueError, match=f"AdamW: {called} overlaps itself in memory: .* Pass a copy"):
            made.AdamW(first + given)
    optimizer = made.AdamW(params.values())
    params["b"].data = torch.ones(1).expand(3)  # afterwards: the first parameter must not move
    for p in params.values():
        p.grad = torch.ones(p.shape)
    torch_refused(optimizer, params, ValueError, "parameter 1 of param group 0 overlaps itself")
    nothing = torch.ones(1).expand(2).reshape(1, 2)[:0]
    assert nothing.stride()[1] == 0
    made.AdamW([torch.ones(3, 1).expand(3, 1), nothing])


def test_torch_refuses_what_no_group_can_have():
    made = package("torch")
    w, b = torch_params().values()
    optimizer = made.AdamW([w])
    for entries, words in [
        ({"lrr": 1}, r"lrr of param group 1 is no hyperparameter\. Did you mean lr\?"),
        ({"weight_dacay": 0}, "Did you mean weight_decay"),
        ({"beta1": 0.5}, "Did you mean betas"),
        ({"store": "zzz"}, r"store of param group 1 is an option .* AdamW\(params, store=\.\.\.\)"),
        ({"compile": 3}, "compile of param group 1 is an option of the optimizer as a whole"),
        ({"rules": 1}, "rules of param group 1 is an option of the optimizer as a whole"),
    ]:
        with pytest.raises(TypeError, match=f"AdamW: .*{words}"):
            made.AdamW([{"params": [w]}, {"params": [b], **entries}])
        with pytest.raises(TypeError, match=f"AdamW: .*{words}"):
            optimizer.add_param_group({"params": [b], **entries})
        assert len(optimizer.param_groups) == 1
    own = {"initial_lr": 0.1, "max_lr": 1.0, "max_momentum": 0.9, "name": "head", "foreach": None}
    optimizer.add_param_group({"params": [b], **own})
    made.Momentum([{"params": [b], **own}])


@pytest.mark.parametrize(("hyper", "value"), CASES)
def test_torch_checks_groups_changed_between_steps(hyper, value):
    params = torch_params()
    optimizer = package("torch").AdamW(params.values(), lr=0.1)
    torch_steps(optimizer, params, GRADS[:1])
    group = optimizer.param_groups[0]
    name = hyper if hyper in group else "betas"
    good = group[name]
    group[name] = {"beta1": (value, 0.999), "beta2": (0.9, value)}.get(hyper, value)
    kind = TypeError if value is None or isinstance(value, str) else ValueError
    text = f"{WRITTEN['torch'][hyper]} of param group 0 must be"
    torch_refused(optimizer, params, kind, text, f"got {value!r}.")
    group[name] = good
    torch_steps(optimizer, params, GRADS[1:])
    same(detached(params), trajectory(lr=0.1))


def test_torch_leaves_a_parameter_without_gradient_alone():
    params = torch_params()
    optimizer = package("torch").AdamW(params.values())
    torch_steps(optimizer, params, GRADS[:1])
    before = frozen(params["b"]), frozen(optimizer.state[params["b"]])
    torch_steps(optimizer, params, [{"w": GRADS[1]["w"]}])
    assert (frozen(params["b"]), frozen(optimizer.state[params["b"]])) == before
    assert [optimizer.state[p]["step"] for p in params.values()] == [2, 1]
    same(detached({"w": params["w"]}), trajectory(2, names=["w"]))


def test_torch_groups_have_their_own_hyperparameters():
    params = torch_params()
    groups = [{"params": [params["w"]]}, {"params": [params["b"]], "lr": 0.3, "betas": (0.5, 0.9)}]
    torch_steps(package("torch").AdamW(groups, lr=0.01), params)
    own = trajectory(names=["w"], lr=0.01) | trajectory(names=["b"], lr=0.3, beta1=0.5, beta2=0.9)
    same(detached(params), own)


def test_torch_step_returns_what_the_closure_does():
    torch = pytest.importorskip("torch")
    p = torch_params("w")["w"]
    optimizer = package("torch").AdamW([p], lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    expected = (p * p).sum().item()
    assert optimizer.step(closure).item() == expected
    assert optimizer.step() is None
    assert closure().item() < expected


@pytest.mark.parametrize("by", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["AdamW", "Nesterov"])
def test_torch_goes_on_with_the_same_bits(by, name):
    torch = pytest.importorskip("torch")
    cls, params = getattr(package("torch"), name), torch_params()
    optimizer = cls(params.values(), lr=0.1)
    torch_steps(optimizer, params, GRADS[:2])
    if by in ("state_dict", "file"):
        saved = optimizer.state_dict()
        if by == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        copied = copy.deepcopy(params)
        again = cls(copied.values(), lr=0.7)
        again.load_state_dict(saved)
    else:
        through = copy.deepcopy if by == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
        copied, again = through((params, optimizer))
        assert again.param_groups[0]["params"][0] is copied["w"]
    torch_steps(again, copied, GRADS[2:])
    same(detached(params), trajectory(2, {"AdamW": AdamW, "Nesterov": Nesterov}[name], lr=0.1))
    torch_steps(optimizer, params, GRADS[2:])
    assert torch_frozen(again) == torch_frozen(optimizer)
    same(detached(copied), detached(params))
    same(detached(copied), trajectory(cls={"AdamW": AdamW, "Nesterov": Nesterov}[name], lr=0.1))


def test_torch_refuses_a_state_dict_that_does_not_fit():
    torch = pytest.importorskip("torch")
    made, params = package("torch"), torch_params()
    optimizer = made.AdamW(params.values())
    torch_steps(optimizer, params, GRADS[:2])
    before = frozen(params), torch_frozen(optimizer)
    p, more = torch.nn.Parameter(torch.ones(2)), torch_params()
    narrow, nesterov = made.AdamW([p, torch_params("b")["b"]]), made.Nesterov(more.values())
    torch_steps(narrow, {"p": p}, [{"p": np.ones(2, np.float32)}])
    torch_steps(nesterov, more, GRADS[:1])
    for wrong, words in [
        (made.AdamW([p]).state_dict(), ["has 1 parameters", "2 here"]),
        (made.AdamW([{"params": [p]}, {"params": []}]).state_dict(), ["2 param groups"]),
        (narrow.state_dict(), ["parameter 0", "(2,)", "(4, 3)"]),
        (nesterov.state_dict(), ["is of nesterov", "Another optimizer saved it"]),
        (unnamed(nesterov), ["theta", "Another optimizer saved it"]),
        (made.RAdam(params.values()).state_dict() | {"algorithm": "radam"}, ["is of radam"]),
        (backwards(optimizer), ["the step of", "-5"]),
    ]:
        with pytest.raises(ValueError) as caught:
            optimizer.load_state_dict(wrong)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert (frozen(params), torch_frozen(optimizer)) == before
    module = torch.nn.Linear(2, 1)
    for wrong in ({}, None, module.state_dict(), {"state": {0: 1}, "param_groups": []}):
        with pytest.raises(ValueError, match=r"AdamW: this is not what state_dict\(\) of an optimizer gave"):
            optimizer.load_state_dict(wrong)
        assert (frozen(params), torch_frozen(optimizer)) == before
    for slot, group, words in [
        ({"step": "x"}, {}, "the step of parameter 0 of param group 0 is 'x'.* integer, 0 or more"),
        ({"step": 1.5}, {}, "the step of parameter 0 of param group 0 is 1.5"),
        ({"step": math.nan}, {}, "the step of parameter 0 of param group 0 is nan"),
        ({"m": None}, {}, r"m of parameter 0 .* is None .* tensor of shape \(4, 3\)"),
        ({}, {"lr": -1}, r"lr of param group 0 in the checkpoint must be a number in \[0, inf\), got -1"),
    ]:
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0] |= slot
        saved["param_groups"][0] |= group
        with pytest.raises(ValueError, match=f"AdamW: {words}"):
            optimizer.load_state_dict(saved)
        assert (frozen(params), torch_frozen(optimizer)) == before
    few = made.Lion(torch_params().values())  # its states are among AdamW's
    with pytest.raises(ValueError, match="Another optimizer saved it"):
        few.load_state_dict(unnamed(optimizer))


def backwards(optimizer):
    """Its state, with a count of steps that cannot be."""
    saved = copy.deepcopy(optimizer.state_dict())
    next(iter(saved["state"].values()))["step"] = -5
    return saved


def test_torch_refuses_what_other_frameworks_take():
    torch, made = pytest.importorskip("torch"), package("torch")
    with pytest.raises(TypeError, match=r"AdamW: params is a model\. Pass its named_parameters\(\)"):
        made.AdamW(torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match=r"AdamW: step was given a list as closure.* call loss\.backward"):
        made.AdamW([torch.nn.Parameter(torch.ones(2))]).step([torch.ones(2)])


def test_torch_refuses_parameters_in_another_order():
    """Equal shapes would be taken for each other."""
    torch, made = pytest.importorskip("torch"), package("torch")
    pair = [(n, torch.nn.Parameter(torch.ones(3))) for n in ("q", "k")]
    saved = made.AdamW(pair).state_dict()
    with pytest.raises(ValueError, match="number 0 is k here and q there"):
        made.AdamW(pair[::-1]).load_state_dict(saved)
    made.AdamW([(f"module.{n}", p) for n, p in pair]).load_state_dict(saved)
    made.AdamW([p for _, p in pair]).load_state_dict(saved)


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor"])
@pytest.mark.parametrize("shape", [(3, 4), (4, 5), (12,)])
def test_torch_refuses_a_parameter_that_was_replaced(name, shape):
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = getattr(package("torch"), name)([p])
    p.grad = torch.ones(4, 3)
    optimizer.step()
    p.data, p.grad = torch.ones(shape), None
    p.grad = torch.ones(shape)
    with pytest.raises(ValueError, match="after a change of shape make a new optimizer"):
        optimizer.step()
    assert torch.equal(p, torch.ones(shape))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_torch_checks_rates_that_are_tensors(value):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="lr must be a number in"):
        package("torch").AdamW(torch_params().values(), lr=torch.tensor(value))


def test_torch_schedules_of_ours_drive_optimizers_of_torch():
    torch = pytest.importorskip("torch")
    p = torch_params("w")["w"]
    optimizer = torch.optim.SGD([p], lr=0.1)
    schedule = package("torch").Cosine(optimizer, total=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        p.grad = torch.ones_like(p)
        optimizer.step()
        schedule.step()
    assert rates == [Cosine(0.1, total=4)(n) for n in range(5)]
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)


def test_torch_schedules_go_on_from_their_own_state_alone():
    torch, made = pytest.importorskip("torch"), package("torch")
    optimizer = made.AdamW(torch_params().values(), lr=0.1)
    schedule, other = (made.WarmupCosine(optimizer, warmup=2, total=9) for _ in range(2))
    for _ in range(3):
        optimizer.step()
        schedule.step()
    saved, before = schedule.state_dict(), frozen(other.state_dict())
    foreign = torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict()
    unnamed = {k: x for k, x in saved.items() if k != "schedule"}
    for wrong, words in [
        ({}, r"not what state_dict\(\) of a schedule gave"),
        (None, r"not what state_dict\(\) of a schedule gave"),
        (made.Cosine(optimizer, total=5).state_dict(), "is of cosine. Another schedule saved it"),
        (foreign, "is of a schedule with step_size, gamma"),
        ({**saved, "last_epoch": -3}, "the saved last_epoch is -3"),
        ({**saved, "base_lrs": []}, "one for each of the 1 param groups"),
    ]:
        with pytest.raises(ValueError, match=f"WarmupCosine: .*{words}"):
            other.load_state_dict(wrong)
        assert frozen(other.state_dict()) == before
    for right in (saved, unnamed):
        other.load_state_dict(right)
        assert frozen(other.state_dict()) == frozen(saved)


def test_torch_names_what_is_missing():
    made = package("torch")
    with pytest.raises(TypeError, match=r"Nesterov: watch was given a int\. Pass the model"):
        made.Nesterov(torch_params().values()).watch(3)
    params = torch_params()
    optimizer = made.AdamW(params.values())
    torch_steps(optimizer, params, GRADS[:1])
    del optimizer.param_groups[0]["lr"]
    torch_refused(optimizer, params, ValueError, 'param group 0 has no lr. Set optimizer.param_groups[0]["lr')


def test_torch_schedules_of_torch_drive_ours():
    torch = pytest.importorskip("torch")
    params = torch_params()
    optimizer = package("torch").AdamW(params.values(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    for g in GRADS:
        torch_steps(optimizer, params, [g])
        schedule.step()
    same(detached(params), trajectory(lr=lambda n: 0.1 * 0.5**n))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)  # moves betas, too
    moved = set()
    for g in GRADS:
        torch_steps(optimizer, params, [g])
        cycle.step()
        moved.add(optimizer.param_groups[0]["betas"])
    assert len(moved) > 1 and all(p.isfinite().all() for p in params.values())


def test_torch_create_takes_the_specs_names():
    params = torch_params()
    optimizer = package("torch").create("adamw", params.values(), lr=0.1, beta1=0.5)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    torch_steps(optimizer, params)
    same(detached(params), trajectory(lr=0.1, beta1=0.5))
    params = torch_params()
    torch_steps(package("torch").AdamW(params.values(), lr=0.1, betas=(0.5, 0.999)), params)
    same(detached(params), trajectory(lr=0.1, beta1=0.5))


@pytest.mark.parametrize("by", ["evaluation", "eval and train"])
def test_torch_evaluates_at_another_point_without_a_trace(by):
    params = torch_params()
    optimizer = package("torch").Nesterov(params.values(), lr=0.1)
    for g in GRADS:
        torch_steps(optimizer, params, [g])
        training = frozen(params)
        if by == "evaluation":
            with optimizer.evaluation():
                with optimizer.evaluation():
                    inside = frozen(params)
                assert frozen(params) == inside
                with pytest.raises(RuntimeError, match="Nesterov: step in evaluation mode"):
                    optimizer.step()
        else:
            optimizer.eval()
            inside = frozen(params)
            optimizer.train()
        assert inside == frozen({k: optimizer.state[p]["theta"] for k, p in params.items()}) != training
        assert frozen(params) == training
    same(detached(params), trajectory(cls=Nesterov, lr=0.1))


# ---------------------------------------------------------------------------------------------------
# JAX


def jax_tree(tree):
    jnp = pytest.importorskip("jax.numpy")
    return {k: None if v is None else jnp.asarray(v) for k, v in tree.items()}


def jax_steps(optimizer, grads=GRADS):
    params = jax_tree(START)
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.step(params, jax_tree(g), state)
    return params, state


def stacked():
    return {k: np.stack([g[k] for g in GRADS]) for k in START}


@pytest.mark.parametrize("call", ["step", "update"])
def test_jax_refuses_gradients_that_do_not_fit(call):
    optimizer = package("jax").adamw(0.1)
    jnp = importlib.import_module("jax.numpy")
    params, state = jax_steps(optimizer, GRADS[:1])
    before = frozen(params), frozen(state)
    with importlib.import_module("jax").enable_x64(True):
        wide = jnp.ones(3, jnp.float64)
    w, b = jax_tree(GRADS[1]).values()
    wrong = [
        (ValueError, {"w": w, "b": b[:2]}, ["gradient of b", "(2,)", "(3,)", "reshape"]),
        (ValueError, {"w": w, "b": None}, ["no gradient for b", "Pass zeros"]),
        (ValueError, {"w": w}, ["no gradient for b", "optax.partition"]),
        (ValueError, {"w": w, "b": b, "c": b}, ["no parameter for the gradient c", "Leave"]),
        (ValueError, [w, b], ["no gradient for"]),
        (TypeError, {"w": w, "b": jnp.ones(3, int)}, ["gradient of b", "int32", "astype"]),
        (TypeError, {"w": w, "b": wide}, ["gradient of b", "float64", "float32", "astype"]),
    ]
    for error, grads, words in wrong:
        with pytest.raises(error) as caught:
            if call == "step":
                optimizer.step(params, grads, state)
            else:
                optimizer.update(grads, state, params)
        for word in ["adamw: ", *words]:
            assert word in str(caught.value), str(caught.value)
        assert (frozen(params), frozen(state)) == before
    with pytest.raises(ValueError, match=r"adamw: .*params"):  # it decays them
        optimizer.update({"w": w, "b": b}, state)


def test_jax_refuses_parameters_and_states_that_do_not_fit():
    optimizer = package("jax").adamw(0.1)
    jnp = importlib.import_module("jax.numpy")
    with pytest.raises(TypeError, match=r"adamw: parameter n has dtype int32; .*astype"):
        optimizer.init({"w": jnp.ones(3), "n": jnp.arange(3)})
    params = jax_tree(START)
    with pytest.raises(ValueError, match=r"adamw: the state belongs to other parameters.*init"):
        optimizer.step(params, params, optimizer.init({"w": jnp.ones(3), "b": jnp.ones(3)}))
    for other in (package("jax").lion().init(params), None):
        with pytest.raises(TypeError, match="adamw: the state is not of this optimizer"):
            optimizer.step(params, params, other)


def test_jax_refuses_the_state_of_another_optimizer_that_keeps_the_same():
    pytest.importorskip("jax")
    made, params = package("jax"), jax_tree(START)
    state = made.momentum(0.1).init(params)
    with pytest.raises(TypeError, match="heavy_ball: the state is not of this optimizer"):
        made.heavy_ball(0.1).step(params, jax_tree(GRADS[0]), state)


def test_jax_checks_what_a_schedule_gives_where_it_is_known():
    jax, made = pytest.importorskip("jax"), package("jax")
    jnp, params = jax.numpy, jax_tree(START)
    for value, error, text in [
        (math.nan, ValueError, "nan"),
        (-1, ValueError, "-1"),
        (jnp.float32(-1), ValueError, ".*-1.0"),
        ("a", TypeError, "'a'. Pass a number, not text"),
        (None, TypeError, "None"),
    ]:
        optimizer = made.adamw(lambda n, value=value: value)
        state = optimizer.init(params)
        for step in (optimizer.step, lambda p, g, s, o=optimizer: o.update(g, s, p)):
            with pytest.raises(error, match=rf"adamw: learning_rate.* must be a number in .*, got {text}"):
                step(params, params, state)
    traced = made.adamw(lambda n: jnp.where(n < 0, 1.0, -1.0))  # a tracer is not looked into
    jax.jit(traced.step)(params, params, traced.init(params))


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_schedules_refuse_counts_below_0(name):
    made = package(name)
    schedule = made.create("warmup_cosine", 0.1, warmup=5, total=9)
    for n in (-1, np.int64(-1), np.arange(-1, 3)):
        with pytest.raises(ValueError, match="n must be an integer, 0 or more, got"):
            schedule(n)
    tensors = importlib.import_module("jax.numpy" if name == "jax" else "tensorflow")
    asarray = tensors.asarray if name == "jax" else tensors.constant
    with pytest.raises(ValueError, match="n must be an integer, 0 or more, got"):
        schedule(asarray(-1))
    assert float(schedule(asarray(0))) == 0.0 and len(schedule.table(3)) == 3


def test_jax_chains_with_optax():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    chain = optax.chain(optax.clip(0.5), package("jax").adamw(0.1))
    params = jax_tree(START)
    state = chain.init(params)

    @jax.jit
    def step(params, g, state):
        updates, state = chain.update(g, state, params)
        return optax.apply_updates(params, updates), state

    for g in GRADS:
        params, state = step(params, jax_tree(g), state)
    same(params, trajectory(grads=CLIPPED, lr=0.1))


def test_jax_hyperparameters_can_be_injected():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    optimizer = optax.inject_hyperparams(package("jax").adamw)(learning_rate=0.1)
    params = jax_tree(START)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    numpys = start()
    near = {k: float(np.float32(v)) for k, v in [("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)]}
    reference = AdamW(numpys, lr=float(np.float32(0.1)), weight_decay=float(np.float32(0.01)), **near)
    for n, g in enumerate(GRADS):
        if n == 2:
            state.hyperparams["learning_rate"] = jax.numpy.float32(0.25)
            reference.lr = 0.25
        updates, state = update(jax_tree(g), state, params)
        params = optax.apply_updates(params, updates)
        reference.step(g)
    same(params, numpys)


def test_jax_states_are_the_carry_of_a_compiled_scan():
    jax = pytest.importorskip("jax")
    optimizer = package("jax").adamw(package("jax").cosine(0.1, total=5))

    @jax.jit
    def run(params, grads):
        def one(carry, g):
            return optimizer.step(carry[0], g, carry[1]), None

        return jax.lax.scan(one, (params, optimizer.init(params)), grads)[0]

    params, state = run(jax_tree(START), jax_tree(stacked()))
    same(params, trajectory(lr=Cosine(0.1, total=5)))
    assert int(state.count) == len(GRADS)


def test_jax_sweeps_over_learning_rates_under_vmap():
    jax = pytest.importorskip("jax")
    made, rates = package("jax"), np.float32([0.01, 0.1, 0.3])

    @jax.jit
    @jax.vmap
    def sweep(lr):
        optimizer, params = made.adamw(lr), jax_tree(START)
        state = optimizer.init(params)
        for g in GRADS[:3]:
            params, state = optimizer.step(params, jax_tree(g), state)
        return params

    found = sweep(rates)
    for i, lr in enumerate(rates):
        same({k: v[i] for k, v in found.items()}, trajectory(3, lr=float(lr)))


def test_jax_create_takes_the_specs_names():
    made = package("jax")
    same(jax_steps(made.create("adamw", lr=0.1, beta1=0.5))[0], trajectory(lr=0.1, beta1=0.5))
    same(jax_steps(made.adamw(0.1, b1=0.5))[0], trajectory(lr=0.1, beta1=0.5))


def test_jax_evaluates_at_another_point_without_a_trace():
    optimizer, params = package("jax").nesterov(0.1), jax_tree(START)
    state = optimizer.init(params)
    for g in GRADS:
        params, state = optimizer.step(params, jax_tree(g), state)
        before = frozen(params), frozen(state)
        best = optimizer.evaluation_params(params, state)
        assert frozen(best) == frozen(state.tensors.theta) != frozen(params)
        assert (frozen(params), frozen(state)) == before
    same(params, trajectory(cls=Nesterov, lr=0.1))
    adamw = package("jax").adamw()
    assert frozen(adamw.evaluation_params(params, adamw.init(params))) == frozen(params)


# ---------------------------------------------------------------------------------------------------
# Keras

RATE = float(np.float32(0.1))  # as Keras keeps it


def variables(*names):
    keras = pytest.importorskip("keras")
    return {k: keras.Variable(START[k], name=k) for k in names or START}


def keras_steps(optimizer, params, grads=GRADS):
    tf = pytest.importorskip("tensorflow")
    for g in grads:
        optimizer.apply([tf.constant(g[k]) for k in params], [*params.values()])


def valued(params):
    return {k: v.numpy() for k, v in params.items()}


def keras_frozen(optimizer, params):
    return frozen(valued(params)), [(v.path, frozen(v.numpy())) for v in optimizer.variables]


def test_keras_refuses_gradients_that_do_not_fit():
    optimizer, params = package("tensorflow").AdamW(0.1), variables()
    tf = importlib.import_module("tensorflow")
    keras_steps(optimizer, params, GRADS[:1])
    w, b = (tf.constant(g) for g in GRADS[1].values())
    slices = tf.IndexedSlices(tf.ones([2, 3]), tf.constant([0, 1]), tf.constant([5, 3], tf.int64))
    both = [*params.values()]
    wrong = [
        (ValueError, [w, b[:2]], both, ["gradient of b", "(2,)", "(3,)", "reshape"]),
        (ValueError, [slices, b], both, ["gradient of w", "(5, 3)", "(4, 3)"]),
        (ValueError, [w], both, ["1 gradients for 2 parameters", "None for a parameter"]),
        (ValueError, [w, b, b], both, ["3 gradients for 2 parameters"]),
        (ValueError, [w, b, b], None, ["3 gradients for 2 parameters"]),
        (TypeError, [w, tf.ones(3, tf.int32)], both, ["gradient of b", "int32", "float32"]),
        (TypeError, [w, tf.ones(3, tf.float64)], both, ["gradient of b", "float64", "float32", "tf.cast"]),
        (ValueError, [w, w], [both[0], both[0]], ["parameter w", "twice"]),
    ]
    before = keras_frozen(optimizer, params)
    for error, grads, given, words in wrong:
        with pytest.raises(error) as caught:
            optimizer.apply(grads, given)
        for word in ["AdamW: ", *words]:
            assert word in str(caught.value), str(caught.value)
        assert keras_frozen(optimizer, params) == before
    keras_steps(optimizer, params, GRADS[1:])
    same(valued(params), trajectory(lr=RATE))


def test_keras_refuses_what_is_no_list_of_variables():
    made, params = package("tensorflow"), variables()
    optimizer, both = made.AdamW(0.1), [*params.values()]
    keras_steps(optimizer, params, GRADS[:1])
    before, grads = keras_frozen(optimizer, params), [*GRADS[1].values()]
    for call, words in [
        (lambda: optimizer.apply(None, both), "grads must be a list .* got a NoneType"),
        (lambda: optimizer.apply(both[0], both), "grads must be a list .* got a .*Variable"),
        (lambda: optimizer.apply(grads, 3), "variables must be a list .* got a int"),
        (lambda: made.AdamW().build(None), r"variables must be a list .* Call build\(variables\)"),
        (lambda: optimizer.apply(both, grads), r"parameter 0 is a ndarray, not a variable\. The order is"),
        (lambda: optimizer.apply_gradients(zip(both, grads, strict=True)), "parameter 0 is a ndarray"),
    ]:
        with pytest.raises(TypeError, match=f"AdamW: {words}"):
            call()
        assert keras_frozen(optimizer, params) == before


def saved_by(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def test_keras_refuses_a_saved_state_that_does_not_fit():
    keras, made = pytest.importorskip("keras"), package("tensorflow")
    optimizer, params = made.AdamW(0.1), variables()
    keras_steps(optimizer, params, GRADS[:1])
    adam, narrow = made.Adam(0.2), made.AdamW(0.2)
    keras_steps(adam, variables())
    narrow.build([keras.Variable(np.ones((4, 3), np.float32)), keras.Variable(np.ones(2, np.float32))])
    before, unnamed = keras_frozen(optimizer, params), saved_by(optimizer)
    assert bytes(unnamed.pop("algorithm")) == b"adamw"
    for store, words in [
        (saved_by(adam), "is of adam. Another optimizer saved it"),
        (saved_by(narrow), r"the saved .*b_m has shape \(2,\); expected is \(3,\)"),
        ({f"x{k}": v for k, v in unnamed.items()}, "has no entry 0"),
    ]:
        with pytest.raises(ValueError, match=f"AdamW: .*{words}"):
            optimizer.load_own_variables(store)
        assert keras_frozen(optimizer, params) == before
    for store in (saved_by(optimizer), unnamed):  # former versions saved no name
        again, copied = made.AdamW(0.3), variables()
        again.build([*copied.values()])
        again.load_own_variables(store)
        assert [x for _, x in keras_frozen(again, copied)[1]] == [x for _, x in before[1]]


def test_keras_refuses_an_integer_parameter():
    keras, tf = pytest.importorskip("keras"), pytest.importorskip("tensorflow")
    n = keras.Variable(np.arange(3), dtype="int32", name="n")
    for given in (n, tf.Variable([1, 2, 3], name="n")):
        with pytest.raises(TypeError, match=r"AdamW: parameter n.* has dtype int32; only float"):
            package("tensorflow").AdamW().build([variables("w")["w"], given])
    assert (n.numpy() == np.arange(3)).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_keras_leaves_a_variable_without_gradient_alone():
    optimizer, params = package("tensorflow").AdamW(0.1), variables()
    keras_steps(optimizer, params, GRADS[:1])
    before = {path: x for path, x in keras_frozen(optimizer, params)[1] if "/b_" in path}
    b = frozen(params["b"].numpy())
    optimizer.apply([GRADS[1]["w"], None], [*params.values()])
    after = dict(keras_frozen(optimizer, params)[1])
    assert len(before) == 2 and before.items() <= after.items()
    assert frozen(params["b"].numpy()) == b
    same({"w": params["w"].numpy()}, trajectory(2, names=["w"], lr=RATE))
    frozen_all = keras_frozen(optimizer, params)
    with pytest.raises(ValueError):
        optimizer.apply([None, None], [*params.values()])
    assert keras_frozen(optimizer, params) == frozen_all


@pytest.mark.parametrize(("hyper", "value"), CASES)
def test_keras_attributes_are_checked_when_they_are_set(hyper, value):
    optimizer = package("tensorflow").AdamW(0.1)
    before = optimizer.get_config()
    with pytest.raises((ValueError, TypeError)) as caught:
        setattr(optimizer, WRITTEN["tensorflow"][hyper], value)
    assert refusal("tensorflow", hyper, value) in str(caught.value)
    assert optimizer.get_config() == before


def test_keras_checks_what_a_schedule_gives_where_it_is_known():
    keras, tf, made = pytest.importorskip("keras"), pytest.importorskip("tensorflow"), package("tensorflow")

    class Given(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, value):
            self.value = value

        def __call__(self, step):
            return self.value

    for value, error, text in [
        (math.nan, ValueError, "nan"),
        (-1, ValueError, "-1"),
        (tf.constant(-1.0), ValueError, ".*-1.0"),
        ("a", TypeError, "'a'. Pass a number, not text"),
        (None, TypeError, "None"),
    ]:
        for word in ("learning_rate", "weight_decay"):
            optimizer, params = made.AdamW(**{word: Given(value)}), variables()
            optimizer.build([*params.values()])
            before = keras_frozen(optimizer, params)
            with pytest.raises(error, match=rf"AdamW: {word}, which a schedule gave, must be .*, got {text}"):
                keras_steps(optimizer, params, GRADS[:1])
            assert keras_frozen(optimizer, params) == before


def test_keras_attributes_take_numbers():
    optimizer, params = package("tensorflow").AdamW(0.5), variables()
    optimizer.learning_rate = np.float32(0.1)
    optimizer.beta_1 = np.float64(0.5)
    keras_steps(optimizer, params)
    same(valued(params), trajectory(lr=RATE, beta1=0.5))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_keras_decays_once(decay):
    optimizer, params = package("tensorflow").AdamW(0.1, weight_decay=decay), variables()
    keras_steps(optimizer, params)
    same(valued(params), trajectory(lr=RATE, weight_decay=decay))
    optimizer._apply_weight_decay([*params.values()])  # Keras' own, to decay a second time
    same(valued(params), trajectory(lr=RATE, weight_decay=decay))


def test_keras_excludes_variables_from_decay():
    optimizer, params = package("tensorflow").AdamW(0.1, weight_decay=0.3), variables()
    optimizer.exclude_from_weight_decay(var_names=["b"])
    keras_steps(optimizer, params)
    own = trajectory(names=["w"], lr=RATE, weight_decay=0.3)
    same(valued(params), own | trajectory(names=["b"], lr=RATE, weight_decay=0.0))


def test_keras_takes_no_decay_where_the_algorithm_has_none():
    made = package("tensorflow")
    with pytest.raises(TypeError, match=r"Adam: this algorithm has no weight_decay\. Take one that has"):
        made.Adam(weight_decay=0.1)
    adam = made.Adam()
    with pytest.raises(TypeError, match="Adam: this algorithm has no weight_decay"):
        adam.weight_decay = 0.1
    with pytest.raises(TypeError, match="Adam: this algorithm has no weight_decay"):
        adam.exclude_from_weight_decay(var_names=["b"])
    assert "weight_decay" not in adam.get_config()


def test_keras_says_what_there_is():
    with pytest.raises(TypeError) as caught:
        package("tensorflow").AdamW(rule=[])
    said = str(caught.value)
    assert said.startswith("AdamW: no hyperparameter is called rule. There are learning_rate, beta_1, ")
    assert ", rules, name, clipnorm, " in said and said.endswith("states, seed.")


def test_keras_makes_sparse_gradients_dense():
    optimizer, params = package("tensorflow").AdamW(0.1), variables("w")
    tf = importlib.import_module("tensorflow")
    dense = np.zeros((4, 3), np.float32)
    dense[[1, 3]] = [[3.0, 3.0, 3.0], [1.0, 1.0, 1.0]]
    rows = tf.constant([[1.0] * 3, [1.0] * 3, [2.0] * 3])
    slices = tf.IndexedSlices(rows, tf.constant([3, 1, 1]), tf.constant([4, 3], tf.int64))
    optimizer.apply([slices], [*params.values()])
    same(valued(params), trajectory(1, names=["w"], grads=[{"w": dense}], lr=RATE))


@pytest.mark.parametrize("compiled", [False, True])
def test_keras_fits_a_model_with_an_embedding(compiled):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
    optimizer = package("tensorflow").AdamW(learning_rate=0.05)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=compiled)
    x = np.arange(12, dtype=np.int32).reshape(4, 3) % 4  # row 4 of the embedding has no gradient
    y = np.float32([[0], [1], [0], [1]])
    unused = layers[0].embeddings.numpy()[4]
    history = model.fit(x, y, batch_size=2, epochs=4, shuffle=False, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert int(optimizer.iterations.numpy()) == 8
    # A gradient of zeros: only the decay acts, once a step.
    row = {"w": unused.copy()}
    reference = AdamW(row, lr=float(np.float32(0.05)))
    for _ in range(8):
        reference.step({"w": np.zeros_like(unused)})
    same({"w": layers[0].embeddings.numpy()[4]}, row)


def test_keras_configurations_make_the_same_optimizer():
    keras, made = pytest.importorskip("keras"), package("tensorflow")
    schedule = made.Cosine(0.1, total=5)
    for rate in (np.float32(0.1), schedule):
        optimizer = made.AdamW(rate, beta_1=0.5, clipvalue=0.5, name="mine")
        config = optimizer.get_config()
        config_read = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
        for again in (made.AdamW.from_config(config), keras.optimizers.deserialize(config_read)):
            assert type(again) is made.AdamW and again.get_config() == config
            params = variables()
            keras_steps(again, params)
            lr = RATE if rate is not schedule else Cosine(0.1, total=5)
            same(valued(params), trajectory(grads=CLIPPED, lr=lr, beta1=0.5))


def test_keras_create_takes_the_specs_names():
    made = package("tensorflow")
    for optimizer in (made.create("adamw", lr=0.1, beta1=0.5), made.AdamW(0.1, beta_1=0.5)):
        params = variables()
        keras_steps(optimizer, params)
        same(valued(params), trajectory(lr=RATE, beta1=0.5))


def test_keras_evaluates_at_another_point_without_a_trace():
    optimizer, params = package("tensorflow").Nesterov(0.1), variables()
    iterate = start()
    theta, v = iterate, {k: np.zeros_like(x) for k, x in iterate.items()}
    beta, rate = np.float32(0.9), np.float32(0.1)
    for g in GRADS:
        keras_steps(optimizer, params, [g])
        v = {k: beta * v[k] + rate * g[k] for k in v}
        theta = {k: theta[k] - v[k] for k in v}
        training = frozen(valued(params))
        with optimizer.evaluation():
            same(valued(params), theta)
            with optimizer.evaluation():
                same(valued(params), theta)
            with pytest.raises(RuntimeError, match="Nesterov: a step inside"):
                optimizer.apply([*g.values()], [*params.values()])
        assert frozen(valued(params)) == training != frozen(theta)
    same(valued(params), trajectory(cls=Nesterov, lr=RATE))
