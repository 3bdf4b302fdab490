"""Low precision: roundings, the code, what is kept and at what cost, saving, and what it is good for."""

from __future__ import annotations

import copy
import importlib
import io
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

import backends
from backends.running import Run
from generated.numpy import AdamW, create
from generator import catalogue, signs, storage, verify
from generator.storage import Storage

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

ml_dtypes = pytest.importorskip("ml_dtypes")
BF16 = ml_dtypes.bfloat16
NARROW = {"bfloat16": BF16, "float16": np.float16}
PACKAGES = {"numpy": ["numpy"], "torch": ["torch"], "jax": ["jax"], "tensorflow": ["keras"]}
STORES = ("nearest", "master", "kahan", "stochastic")
rng = np.random.default_rng(0)

ODD = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, -70000, 3.4e38, 1, 1.00390625, 1.01171875]
TINY = [2.0**-24, 2.0**-25, 1.5 * 2.0**-24, -(2.0**-25), 2.0**-14, 2.0**-14 * (1 - 2.0**-11), 6e-5]
SPECIAL = np.array([*ODD, *TINY], np.float32)
ANY = np.concatenate([SPECIAL, rng.integers(0, 2**32, 5000, np.uint32).view(np.float32)])
LARGE = 64 * 70  # not a multiple of 256


def package(name):
    for module in PACKAGES[name]:
        pytest.importorskip(module)
    return importlib.import_module(f"generated.{name}")


def runtime(name):
    """A package's runtime, a function into its arrays, one back, and how it compiles."""
    made = importlib.import_module(f"{package(name).__name__}.runtime")
    if name == "numpy":
        return made, np.array, np.asarray, lambda f: f
    if name == "torch":
        import torch

        return made, lambda x: torch.from_numpy(np.array(x)), lambda x: x.numpy(), lambda f: f
    if name == "jax":
        import jax

        return made, jax.numpy.asarray, np.asarray, jax.jit
    import tensorflow as tf

    return made, tf.constant, lambda x: x.numpy(), lambda f: tf.function(f, jit_compile=True)


def same(a, b):
    """The same bits; NaN equals NaN. Subnormal numbers, which XLA flushes, are left out."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float64)) < 2.0**-126
    np.testing.assert_array_equal(np.where(apart, 0, a), np.where(apart, 0, b))


# ---------------------------------------------------------------------------------------------------
# Roundings


@pytest.mark.parametrize("dtype", NARROW)
def test_the_nearest_number_is_that_of_a_cast(dtype):
    with np.errstate(all="ignore"):
        want = ANY.astype(NARROW[dtype]).astype(np.float32)
        got = storage.nearest(ANY, dtype)
    np.testing.assert_array_equal(want, got)
    np.testing.assert_array_equal(np.signbit(want[want == want]), np.signbit(got[want == want]))


@pytest.mark.parametrize("dtype", NARROW)
def test_chance_chooses_a_neighbour_and_is_right_on_average(dtype):
    for value in (1.003, -1.003, 3.3e-6, 1e-7, 2.0**-14 * 1.0001):
        x = np.full(100_000, value, np.float32)
        noise = rng.integers(0, 2**23, x.size).astype(np.int32)
        y = storage.stochastic(x, dtype, noise)
        found = np.unique(y)
        assert len(found) == 2 and found[0] < x[0] < found[1]
        np.testing.assert_array_equal(y.astype(NARROW[dtype]).astype(np.float32), y)
        assert abs(y.astype(np.float64).mean() - x[0]) < 0.01 * np.ptp(found)


@pytest.mark.parametrize("dtype", NARROW)
def test_chance_leaves_alone_what_needs_no_rounding(dtype):
    with np.errstate(all="ignore"):
        x = ANY.astype(NARROW[dtype]).astype(np.float32)
        noise = rng.integers(0, 2**23, x.size).astype(np.int32)
        np.testing.assert_array_equal(storage.stochastic(x, dtype, noise), x)


@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
@pytest.mark.parametrize("dtype", NARROW)
def test_roundings_have_the_same_bits_everywhere(name, dtype):
    made, into, back, compiled = runtime(name)
    noise = rng.integers(0, 2**23, ANY.size).astype(np.int32)
    for function, arguments in (("nearest", ()), ("stochastic", (noise,))):
        here = getattr(made, function)
        with np.errstate(all="ignore"):
            want = getattr(storage, function)(ANY, dtype, *arguments)
        given = [into(x) for x in (ANY, *arguments)]
        for run in (lambda f: f, compiled):
            got = run(lambda x, *more, here=here: here(x, dtype, *more))(*given)
            same(want, back(got))


def test_a_kept_rest_gives_the_number_back():
    """p + c is x to twice the bits, and near(p) decides whether p was changed."""
    x = (rng.standard_normal(10_000) * 10.0 ** rng.uniform(-3, 3, 10_000)).astype(np.float32)
    for dtype, digits in (("bfloat16", 16), ("float16", 22)):
        kahan = Storage("kahan")
        p, c = kahan.parted(x, dtype, 1, 0)
        got = kahan.loaded(p, c, dtype)
        assert (np.abs(got - x) <= np.abs(x) * 2.0**-digits + 2.0**-36).all()
        # Beside another parameter the rest is dropped, or less than the spacing of numbers there.
        with np.errstate(all="ignore"):
            other = (p / 1024).astype(NARROW[dtype])
        off = np.abs(kahan.loaded(other.astype(np.float32), c, dtype) - other.astype(np.float32))
        assert (off <= np.abs(np.spacing(other)).astype(np.float32)).all()
    with np.errstate(all="ignore"):
        p, c = kahan.parted(np.array([np.inf, np.nan, 7e4, 1], np.float32), "float16", 1, 0)
    np.testing.assert_array_equal(kahan.loaded(p, c, "float16"), [np.inf, np.nan, np.inf, 1])


# ---------------------------------------------------------------------------------------------------
# 8 bits


def published(signed):
    """The authors' own construction, in single steps, as their library has it."""
    data = [0.0, 1.0]
    for i in range(7):
        items = 2**i + 1 if signed else 2 ** (i + 1) + 1
        bounds = np.linspace(0.1, 1, items)
        means = (bounds[:-1] + bounds[1:]) / 2
        data += [*(10.0 ** (i - 6) * means)] + ([*(-(10.0 ** (i - 6)) * means)] if signed else [])
    return np.sort(data)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_the_code_is_the_published_one(kind):
    want = published(kind == "signed")
    assert want.shape == (256,)
    np.testing.assert_allclose(storage.CODES[kind], want, rtol=1e-14)


def blocks(kind):
    x = (rng.standard_normal((40, 256)) * 10.0 ** rng.uniform(-6, 3, (40, 256))).astype(np.float32)
    x[1] = 0
    x[2, 0] = np.nan
    x[3, 5] = np.inf
    x[4] *= np.float32(1e30)  # up to 1e33
    x[5] = 1e-40
    x[6, 0] = 3e38
    x[7] = -0.0
    x = np.abs(x) if kind == "unsigned" else x
    return x.reshape(-1)[:-100].reshape(4, -1)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_numbers_in_8_bits(kind):
    x = blocks(kind)
    with np.errstate(all="ignore"):
        k, scales = storage.encoded(x, kind)
        y = storage.decoded(k, scales, kind).reshape(-1)
    assert k.dtype == np.uint8 and k.shape == x.shape and scales.shape == (40,)
    x = x.reshape(-1)
    for row in range(40):
        piece, got = x[row * 256 : row * 256 + 256], y[row * 256 : row * 256 + 256]
        if row in (2, 3, 6):
            assert np.isnan(got).all()
        elif row in (1, 5, 7):
            assert (got == 0).all()
        else:
            code = np.array(storage.CODES[kind])
            top = np.abs(piece).max()
            best = np.abs(piece[:, None] / np.float64(top) - code).min(1)
            assert (np.abs(piece - got.astype(np.float64)) / top <= best + 1e-6).all()
            assert kind == "signed" or (got[piece > 0] > 0).all()


@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_8_bits_are_the_same_everywhere(name, kind):
    made, into, back, compiled = runtime(name)
    x = blocks(kind)
    with np.errstate(all="ignore"):
        k, scales = storage.encoded(x, kind)
        y = storage.decoded(k, scales, kind)
    for run in (lambda f: f, compiled):
        got = run(lambda x: made.encoded(x, kind))(into(x))
        np.testing.assert_array_equal(k, back(got[0]))
        same(scales, back(got[1]))
        same(y, back(run(lambda k, s: made.decoded(k, s, kind))(*got)))


KINDS = {
    "adabelief": "+-", "adadelta": "+ +", "adafactor": "+", "adagrad": "+", "adam": "-+", "adamax": "-+",
    "adamw": "-+", "adan": "---+", "amsgrad": "-++", "heavy_ball": "-", "lion": "-", "rmsprop": "+",
    "schedule_free_adamw": "+", "schedule_free_sgd": "", "sgd": "", "yogi": "--", "nesterov": "-",
}  # fmt: skip


def test_what_cannot_be_negative_is_derived():
    found = {e.program.name: signs.kept_in_8_bits(e.lowered) for e in catalogue.entries(list(KINDS))}
    for name, kinds in KINDS.items():
        shown = sorted("+" if k == "unsigned" else "-" for k in found[name].values())
        assert shown == sorted(kinds.replace(" ", "")), name
    assert found["adam"] == {"m": "signed", "v": "unsigned"}
    assert "x" not in found["schedule_free_adamw"]  # copies of the parameter stay as they are


# ---------------------------------------------------------------------------------------------------
# Optimizers. One problem for all: many small steps.


def a_run(store, dtype=BF16, steps=300, rate=2.0**-12):
    """Parameters that start at 1 and go up by far less than the next bfloat16 in each step."""
    theta = np.ones(64, dtype)
    optimizer = create("sgd", theta, lr=rate, store=store)
    for _ in range(steps):
        optimizer.step(-np.ones(64, dtype))
    return theta.astype(np.float64)


def test_plain_rounding_stalls_and_the_others_do_not():
    end = 1 + 300 * 2.0**-12
    assert (a_run("nearest") == 1).all()
    for store in ("master", "kahan"):
        assert (a_run(store) == np.float64(np.float32(end).astype(BF16))).all()
    by_chance = a_run("stochastic")
    assert len(np.unique(by_chance)) > 1 and abs(by_chance.mean() - end) < 0.01


def test_float32_parameters_are_stored_as_they_are():
    for store in STORES:
        theta = np.ones(8, np.float32)
        optimizer = create("adamw", theta, store=store)
        optimizer.step(np.full(8, 0.1, np.float32))
        reference = np.ones(8, np.float32)
        create("adamw", reference).step(np.full(8, 0.1, np.float32))
        assert theta.tobytes() == reference.tobytes()
        assert set(optimizer.state[""]) == {"step", "m", "v"}


@pytest.mark.parametrize("store", ["master", "kahan"])
def test_a_parameter_that_is_changed_counts(store):
    """Loaded weights are not undone by what is kept beside the parameter."""
    theta = np.ones(4, BF16)
    optimizer = create("sgd", theta, lr=2.0**-10, store=store)
    optimizer.step(np.ones(4, BF16))
    theta[:2] = 5
    optimizer.step(np.zeros(4, BF16))
    assert theta.astype(np.float32).tolist() == [5, 5, 1, 1]
    for _ in range(3):
        optimizer.step(np.ones(4, BF16))
    assert theta[2] == np.float32(1 - 4 * 2.0**-10).astype(BF16)


def test_seeds_and_places_and_steps_draw_apart():
    def ends(seed):
        a, b = np.ones(200, BF16), np.ones(200, BF16)
        optimizer = create("sgd", [a, b], lr=2.0**-10, store="stochastic", seed=seed)
        optimizer.step([np.ones(200, BF16)] * 2)
        return a, b

    (a, b), (c, _), (again, _) = ends(1), ends(2), ends(1)
    assert (a != b).any() and (a != c).any() and (a == again).all()


@pytest.mark.parametrize("name", PACKAGES)
def test_wrong_options_are_refused(name):
    made = package(name)
    params = {"numpy": (np.ones(3, np.float32),), "torch": (), "jax": (), "tensorflow": ()}[name]
    if name == "torch":
        import torch

        params = ([torch.nn.Parameter(torch.ones(3))],)
    for option, value, why in (
        ("store", "masters", "store must be nearest, master, kahan or stochastic, got 'masters'"),
        ("states", "4bit", "states must be float32 or 8bit, got '4bit'"),
    ):
        with pytest.raises(ValueError, match=re.escape(why)):
            made.create("adamw", *params, **{option: value})
    with pytest.raises(TypeError, match="seed must be an integer"):
        made.create("adamw", *params, seed=0.5)


# ---------------------------------------------------------------------------------------------------
# Memory


def kept_bytes(name, spec, size, dtype, **options):
    """The bytes of all that an optimizer keeps of one parameter, after a step."""
    made = package(name)
    theta, g = np.ones(size, dtype), np.full(size, 0.1).astype(dtype)
    if name == "numpy":
        optimizer = made.create(spec, theta, **options)
        optimizer.step(g)
        return sum(x.nbytes for x in optimizer.state[""].values() if isinstance(x, np.ndarray))
    if name == "torch":
        import torch

        kind = getattr(torch, np.dtype(dtype).name)
        p = torch.nn.Parameter(torch.ones(size, dtype=kind))
        p.grad = torch.full((size,), 0.1, dtype=kind)
        optimizer = made.create(spec, [p], **options)
        optimizer.step()
        slot = optimizer.state[p]
        return sum(x.numel() * x.element_size() for x in slot.values() if isinstance(x, torch.Tensor))
    if name == "jax":
        import jax

        optimizer = made.create(spec, **options)
        theta = jax.numpy.asarray(theta)
        _, state = optimizer.step(theta, jax.numpy.asarray(g), optimizer.init(theta))
        return sum(x.nbytes for x in jax.tree.leaves((state.tensors, state.beside)))
    import keras
    import tensorflow as tf

    v = keras.Variable(theta, dtype=np.dtype(dtype).name)
    optimizer = made.create(spec, **options)
    optimizer.apply([tf.constant(g)], [v])
    return sum(np.prod(x.shape) * tf.as_dtype(x.dtype).size for x in optimizer.variables[2:])


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("spec", ["adam", "lion", "nesterov"])
def test_memory_is_what_the_docstring_says(name, spec):
    text = importlib.import_module(f"generated.{name}.optimizers.{spec}").__doc__
    full, rough = re.findall(r"([\d.]+)\s+bytes\s+a\s+parameter", text)
    size = 1 << 16
    assert kept_bytes(name, spec, size, np.float32) == float(full) * size
    each = kept_bytes(name, spec, size, np.float32, states="8bit") / size
    assert each == pytest.approx(float(rough), abs=0.005)
    small = storage.SMALL - 1
    assert kept_bytes(name, spec, small, np.float32, states="8bit") == float(full) * small


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_store_costs(name):
    """What the text on `store` says: 4 bytes a parameter for a copy, 2 for a rest, none for chance."""
    for store, cost in (("master", 4), ("kahan", 2), ("stochastic", 0)):
        assert kept_bytes(name, "sgd", 5000, BF16, store=store) == cost * 5000


# ---------------------------------------------------------------------------------------------------
# Saving


OPTIONS = [dict(store="kahan", states="8bit"), dict(store="master"), dict(store="stochastic", seed=3)]
GRADS = [rng.standard_normal(LARGE).astype(BF16) for _ in range(4)]


def numpys(options):
    theta = np.ones(LARGE, BF16)
    optimizer = AdamW(theta, **options)
    for g in GRADS:
        optimizer.step(g)
    return theta.view(np.int16)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_numpy_states_are_saved_and_loaded(options):
    theta = np.ones(LARGE, BF16)
    optimizer = AdamW(theta, **options)
    for g in GRADS[:2]:
        optimizer.step(g)
    saved, other = copy.deepcopy(optimizer.state_dict()), theta.copy()
    resumed = AdamW(other, **options)
    resumed.load_state_dict(saved)
    for g in GRADS[2:]:
        resumed.step(g)
    np.testing.assert_array_equal(other.view(np.int16), numpys(options))
    if "seed" not in options:
        with pytest.raises(ValueError, match="or one with another store or states"):
            AdamW(other).load_state_dict(saved)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_torch_states_are_saved_and_loaded(options):
    torch = pytest.importorskip("torch")

    def tensor(x):
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)

    made = package("torch")
    p = torch.nn.Parameter(tensor(np.ones(LARGE, BF16)))
    optimizer = made.AdamW([p], **options)
    for g in GRADS[:2]:
        p.grad = tensor(g)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"p": p.detach(), "state": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    q = torch.nn.Parameter(saved["p"])
    resumed = made.AdamW([q], **options)
    resumed.load_state_dict(saved["state"])
    if "seed" not in options:
        with pytest.raises(ValueError, match="or one with another store or states"):
            made.AdamW([q]).load_state_dict(saved["state"])
    resumed = pickle.loads(pickle.dumps(resumed))
    (q,) = resumed.param_groups[0]["params"]
    for g in GRADS[2:]:
        q.grad = tensor(g)
        resumed.step()
    np.testing.assert_array_equal(q.detach().view(torch.int16).numpy(), numpys(options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_jax_states_are_pytrees(options):
    jax = pytest.importorskip("jax")
    made = package("jax")
    optimizer = made.adamw(**options)
    theta = jax.numpy.ones(LARGE, jax.numpy.bfloat16)
    state = optimizer.init(theta)
    step = jax.jit(optimizer.step)
    for n, g in enumerate(GRADS):
        if n == 2:
            leaves, structure = jax.tree.flatten(state)
            leaves = [jax.numpy.asarray(np.asarray(x).copy()) for x in leaves]
            state = jax.tree.unflatten(structure, leaves)
        theta, state = step(theta, jax.numpy.asarray(g), state)
    np.testing.assert_array_equal(np.asarray(theta).view(np.int16), numpys(options))
    if "seed" not in options:
        with pytest.raises(ValueError, match="the state was made with another option"):
            made.adamw().step(theta, theta, state)
    with pytest.raises(ValueError, match="update needs the parameters"):
        optimizer.update(theta, state)


@pytest.mark.parametrize("store", STORES)
def test_jax_updates_add_up_to_the_step_where_both_are_near(store):
    jax = pytest.importorskip("jax")
    optimizer = package("jax").adamw(1e-3, store=store)
    theta = other = jax.numpy.ones(100, jax.numpy.bfloat16)
    state, others = optimizer.init(theta), optimizer.init(other)
    for g in GRADS:
        g = jax.numpy.asarray(g[:100])
        theta, state = optimizer.step(theta, g, state)
        u, others = optimizer.update(g, others, other)
        assert u.dtype == other.dtype
        other = other + u
        assert (theta == other).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_keras_states_are_saved_and_loaded(options, tmp_path):
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    made = package("tensorflow")
    optimizer = made.AdamW(**options)
    config = optimizer.get_config()
    assert {k: config[k] for k in options} == options
    v = keras.Variable(np.ones(LARGE, BF16), dtype="bfloat16", name="v")
    for g in GRADS[:2]:
        optimizer.apply([tf.constant(g)], [v])
    store, kept = {}, v.numpy()
    optimizer.save_own_variables(store)
    w = keras.Variable(kept, dtype="bfloat16", name="v")
    resumed = made.AdamW.from_config(config)
    resumed.build([w])
    resumed.load_own_variables(store)
    for g in GRADS[2:]:
        resumed.apply([tf.constant(g)], [w])
    reference = np.ones(LARGE, BF16)
    lr = float(np.float32(1e-3))
    numpy = AdamW(reference, lr=lr, **options)
    for g in GRADS:
        numpy.step(g)
    np.testing.assert_array_equal(np.asarray(w.numpy()).view(np.int16), reference.view(np.int16))


def test_evaluation_weights_are_swapped_and_nothing_is_lost():
    theta, plain = np.ones(LARGE, BF16), np.ones(LARGE, BF16)
    a = create("schedule_free_adamw", theta, store="kahan", states="8bit")
    b = create("schedule_free_adamw", plain, store="kahan", states="8bit")
    for g in GRADS:
        a.step(g)
        b.step(g)
        with a.evaluation():
            pass
    assert theta.tobytes() == plain.tobytes()


@pytest.mark.parametrize("name", PACKAGES)
def test_noise_and_chance_share_a_seed(name, tmp_path):
    """A program that draws has a seed already; stores draw from it, too, and apart."""
    package(name)
    (entry,) = catalogue.entries(["add_noise > sgd"])
    backend = backends.load(f"backends.{name}")
    runner, built = importlib.import_module(backend.runner), verify.built([entry], backend, tmp_path)
    hypers = {**verify.defaults(entry.program), "seed": 5, "lr": 2.0**-9}
    grads = [[GRADS[i][:50], GRADS[i][50:70]] for i in range(3)]
    case = verify.Case("noise", [np.ones(50, BF16), np.ones(20, BF16)], grads, hypers)
    case = replace(case, storage=Storage("stochastic", seed=5))
    want = verify.reference(entry.lowered, None, case, "bfloat16", runner.POLICY)
    options = {"store": "stochastic"}
    run = Run(built, entry.program.name, case.params, case.grads, hypers, options=options)
    mode = "jit" if name == "jax" else backend.modes[0]
    assert verify.compared(want, runner.trajectory(run, mode), np.float32).ulp == 0
