"""Random numbers: the published words, the same bits in every mode, and a normal distribution."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from backends import discover
from generator import catalogue, ir, normal, threefry, verify
from generator.errors import SpecError
from generator.interpret import Exact
from generator.verify import distance

MODES = {
    "numpy": ("numpy",),
    "torch": ("eager", "fused"),
    "jax": ("op by op", "jit"),
    "tensorflow": ("eager", "graph", "xla"),
}
EVERYWHERE = [(b, m) for b, modes in MODES.items() for m in modes]
SHAPES = ((), (0, 4), (1,), (3, 5), (70_001,))


def words(*integers: int) -> list[Any]:
    return [threefry.word(x) for x in integers]


def test_known_answers() -> None:
    """Those of Random123 1.14, kat_vectors: threefry 2x32, 20 rounds."""
    pi = 0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3
    answers = {
        (0, 0, 0, 0): (0x6B200159, 0x99BA4EFE),
        (2**32 - 1,) * 4: (0x1CB996FC, 0xBB002BE7),
        pi: (0xC4923A9C, 0x483DF7A0),
    }
    for given, answer in answers.items():
        assert tuple(int(x[0]) for x in threefry.threefry(*words(*given))) == answer


def test_no_two_draws_share_key_and_counter() -> None:
    keys = {
        tuple(threefry.random_key(seed, t, source))
        for seed in (0, 1) for t in (1, 2, 2**31) for source in (0, 1, 2**31)
    }  # fmt: skip
    assert len(keys) == 18
    key = threefry.random_key(0, 1, 0)
    drawn = set()
    for stream in range(3):
        in_it = threefry.in_stream(key, stream)
        drawn |= set(zip(*(w.tolist() for w in threefry.random_words(in_it, 100, None)), strict=True))
    assert len(drawn) == 300  # of 64 bits, so that equal ones are no chance
    with pytest.raises(ValueError, match="more than a stream has"):
        threefry.random_words(key, 2**32 + 1, None)


def in_mode(backend: str, mode: str, function: Callable[..., Any], tensor: Any) -> Any:
    """A function of a tensor, in a framework's mode; the results as NumPy arrays."""
    if backend == "numpy":
        return function(tensor)
    module = importlib.import_module({"jax": "jax.numpy"}.get(backend, backend))
    if backend == "torch":
        module._dynamo.reset()
        compiled = module.compile(function, dynamic=True, fullgraph=True)
        made = (compiled if mode == "fused" else function)(module.from_numpy(tensor))
        return [x.numpy() for x in made]
    if backend == "jax":
        jax = importlib.import_module("jax")
        with jax.enable_x64(tensor.dtype == np.float64):
            made = (jax.jit(function) if mode == "jit" else function)(module.asarray(tensor))
            return [np.asarray(x) for x in made]
    if mode != "eager":
        function = module.function(function, jit_compile=mode == "xla")
    return [x.numpy() for x in function(module.constant(tensor))]


def drawn(backend: str, mode: str, like: Any) -> list[Any]:
    """Words and normal numbers in the shape of an array, by a framework's runtime."""
    pytest.importorskip(backend)
    runtime: Any = importlib.import_module(f"generated.{backend}.runtime")
    key = runtime.in_stream(runtime.random_key(7, 2**31 + 3, 1), 5)

    def function(x: Any) -> tuple[Any, ...]:
        return (*runtime.random_words(key, math.prod(x.shape), x), runtime.normal(key, x))

    return list(in_mode(backend, mode, function, like))


@pytest.mark.parametrize(("backend", "mode"), EVERYWHERE)
def test_same_bits(backend: str, mode: str) -> None:
    key = threefry.in_stream(threefry.random_key(7, 2**31 + 3, 1), 5)
    for dtype in (np.float32, np.float64):
        for shape in SHAPES:
            like = np.zeros(shape, dtype)
            high, low, xi = drawn(backend, mode, like)
            want = threefry.random_words(key, like.size, like)
            assert np.array_equal(high, want[0]) and np.array_equal(low, want[1])
            assert xi.dtype == dtype and xi.shape == shape
            assert distance(normal.normal(key, like), xi) == 0


# --------------------------------------------------------------------------------------------------
# The normal distribution


def exact(high: int, low: int, bits: int) -> Any:
    """The number that two words stand for, with 40 digits."""
    i = high % 2**31 if bits == 32 else high % 2**31 * 2**32 + low
    x = mpmath.sqrt(2) * mpmath.erfinv((2 * i + 1) / mpmath.mpf(2) ** bits)
    return -x if high >> 31 else x


@pytest.mark.parametrize(("dtype", "bits", "bound"), [(np.float32, 32, 8), (np.float64, 64, 12)])
def test_the_inverse(dtype: Any, bits: int, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few units in the last place, between the parts and at both ends too."""
    rng = np.random.default_rng(0)
    ends = [0, 1, 2**31 - 1, 2**31 - 2, 2**31, 2**32 - 1, int(0.425 * 2**32), int(0.425 * 2**32) + 1]
    near_end = 2**31 - 1 - (2 ** rng.uniform(0, 30, 400)).astype(np.int64)
    near_centre = (2 ** rng.uniform(0, 30, 200)).astype(np.int64)
    high = np.concatenate([ends, near_end, near_centre, rng.integers(0, 2**32, 600)]).astype(np.uint32)
    low = rng.integers(0, 2**32, high.size).astype(np.uint32)
    low[:2], low[2:6] = 0, 2**32 - 1
    monkeypatch.setattr(normal, "random_words", lambda key, count, like: (high, low))
    got = normal.normal(None, np.zeros(high.size, dtype))
    with mpmath.workdps(40):
        for x, h, w in zip(got, high, low, strict=True):
            error = mpmath.mpf(float(x)) - exact(int(h), int(w), bits)
            assert abs(error) <= bound * float(np.spacing(np.abs(x))), (x, h, w)
        largest = -float(mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(2) ** -bits - 1))
    assert float(np.abs(got).max()) == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_distribution(dtype: Any) -> None:
    """Moments, tails and the largest distance from the distribution, each within 5 deviations."""
    n = 400_000
    x = normal.normal(threefry.random_key(1, 1, 0), np.zeros(n, dtype)).astype(np.float64)
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # of x**k: mean, variance
    for k, (mean, variance) in moments.items():
        assert abs(np.mean(x**k) - mean) < 5 * math.sqrt(variance / n), k
    for p in (1e-4, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999):
        point = float(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1))
        assert abs(np.mean(x < point) - p) < 5 * math.sqrt(p * (1 - p) / n), p
    x.sort()
    below = np.array([float(mpmath.ncdf(v)) for v in x[:: n // 20_000]])
    rank = np.arange(0, n, n // 20_000) / n
    largest = float(np.abs(below - rank).max())
    # Kolmogorov: P(D > d) < 2 exp(-2 n d**2), here 1e-6; the ranks between are at most 20 / n further.
    assert largest < math.sqrt(math.log(2e6) / (2 * n)) + n // 20_000 / n


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    """Correlations between steps, streams, sources, seeds and neighbours."""
    n = 100_000
    like = np.zeros(n)

    def draw(seed: int, t: int, source: int, stream: int) -> Any:
        return normal.normal(threefry.in_stream(threefry.random_key(seed, t, source), stream), like)

    first = draw(0, 1, 0, 0)
    others = [draw(1, 1, 0, 0), draw(0, 2, 0, 0), draw(0, 1, 1, 0), draw(0, 1, 0, 1)]
    for other in (*others, np.roll(first, 1), np.roll(first, 2)):
        assert abs(np.mean(first * other)) < 5 / math.sqrt(n)


# --------------------------------------------------------------------------------------------------
# noise in programs

TWO_SOURCES = '''
from generator.language import *

m = names("m")


@optimizer
def langevin(lr: NonNegative = 1e-2, heat: NonNegative = 0.5):
    """Langevin dynamics with a noisy momentum; the norm reads noise before the step.

    Source: this test.
    """
    xi = noise("xi")
    zeta = noise("zeta")
    m[0] = 0
    m[t] = 0.9 * m[t-1] + g[t] + heat * zeta
    theta[t] = theta[t-1] - lr * m[t] / global_norm(g[t] + xi) + sqrt(2 * lr * heat) * xi
'''


@pytest.mark.parametrize("backend", MODES)
def test_two_sources_have_the_same_bits(backend: str, tmp_path: Any) -> None:
    pytest.importorskip(backend)
    file = tmp_path / "langevin.py"
    file.write_text(TWO_SOURCES)
    rows = verify.job(str(file), f"backends.{backend}", 4, ("float64",), "cpu", brief=verify.Brief())
    assert [(r["mode"], r["ulp"], r["error"]) for r in rows if r["ulp"]] == []


def one(word: str) -> Any:
    return catalogue.entries([word])[0]


def test_every_parameter_draws_its_own_numbers() -> None:
    """Also where another has no gradient; each step and each seed has others."""
    from generated.numpy import add_noise

    g = np.zeros((3, 2), np.float32)
    a, b, c = add_noise([g, g, g], t=1)
    assert not (a == b).any() and not (b == c).any() and not (a == c).any()
    assert add_noise([g, None, g], t=1)[1] is None
    assert np.array_equal(add_noise([g, None, g], t=1)[2], c)
    assert np.array_equal(add_noise({"w": g}, t=1)["w"], a)
    assert not (add_noise([g], t=2)[0] == a).any() and not (add_noise([g], t=1, seed=1)[0] == a).any()
    assert not (add_noise([g], t=1, seed=2**32)[0] == a).any()  # a seed has two words
    more = add_noise([np.zeros(7, np.float32)], t=1)[0]
    assert np.array_equal(more[:6].reshape(3, 2), a)  # by position, whatever the shape
    assert (np.abs(add_noise([g.astype(np.float64)], t=1)[0] - a) < 1e-6).all()  # and the dtype


def test_steps_and_seeds_are_checked() -> None:
    from generated.numpy import add_noise

    g = [np.zeros(3, np.float32)]
    with pytest.raises(ValueError, match=r"t must be an integer in \[1, inf\), got 0"):
        add_noise(g, t=0)
    with pytest.raises(TypeError, match="seed must be an integer"):
        add_noise(g, t=1, seed=0.5)
    with pytest.raises(TypeError, match="'t'"):
        add_noise(g)


def test_noise_leaves_nan_where_it_is() -> None:
    from generated.numpy import add_noise

    g = np.array([1.0, np.nan, -np.inf], np.float32)
    empty, scalar, made = add_noise([np.zeros((0, 3)), np.array(1.0), g], t=1)
    assert empty.shape == (0, 3) and scalar.shape == () and float(scalar) != 1.0
    assert np.isfinite(made[0]) and np.isnan(made[1]) and made[2] == -np.inf
    assert np.array_equal(add_noise([g], t=1, eta0=0.0)[0], g, equal_nan=True)


def test_a_chain_has_one_seed() -> None:
    chained = one("add_noise > add_noise > sgd").program
    assert [p.name for p in chained.parameters if "seed" in p.name] == ["seed"]
    assert len(ir.noises(chained)) == 2
    from generated.numpy import add_noise

    g = np.zeros(5, np.float32)
    run = Exact(one("add_noise > sgd").lowered, np.ones(5, np.float32))
    run.step(g, {**verify.defaults(run.lowered.program), "lr": 1.0})
    assert np.array_equal(run.theta, 1 - add_noise([g], t=1)[0])


def test_torch_compiles_noise_once(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    chained = one("add_noise > heavy_ball")
    package: Any = verify.built([chained], discover()["torch"], tmp_path)
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = package.create(chained.program.name, [p], fused=True)
    for step in range(4):
        p.grad = torch.ones(4, 3) * step
        if step < 2:
            optimizer.step()
            continue
        with torch.compiler.set_stance("fail_on_recompile"):
            optimizer.step()
    assert torch.isfinite(p).all()


def test_jax_draws_under_its_transformations() -> None:
    """In a scan and a jit as one by one; a sweep over seeds has those of each seed."""
    jax = pytest.importorskip("jax")
    jnp = importlib.import_module("jax.numpy")
    from generated.jax import add_noise

    g = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4)}
    rule = add_noise(seed=3)
    state, alone = rule.init(g), []
    for _ in range(3):
        u, state = rule.update(g, state)
        alone.append(u)

    def body(state: Any, _: Any) -> Any:
        u, state = rule.update(g, state)
        return state, u

    _, scanned = jax.jit(lambda s: jax.lax.scan(body, s, length=3))(rule.init(g))
    for k in g:
        assert np.array_equal(scanned[k], np.stack([u[k] for u in alone]))

    def with_seed(seed: Any) -> Any:
        rule = add_noise(seed=seed)
        return rule.update(g, rule.init(g))[0]

    swept = jax.vmap(with_seed)(jnp.arange(5))
    assert np.array_equal(swept["a"][3], alone[0]["a"])
    slope = jax.grad(lambda x: rule.update(x, rule.init(x))[0]["a"].sum())(g)
    assert (slope["a"] == 1).all() and (slope["b"] == 0).all()


def test_derivatives_see_noise_as_a_constant() -> None:
    torch = pytest.importorskip("torch")
    from generated.torch import add_noise

    g = torch.zeros(4, requires_grad=True)
    eta0 = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (u,) = add_noise([g], t=1, eta0=eta0, gamma=0.0)
    u.sum().backward()
    assert g.grad.tolist() == [1.0] * 4
    # u = sqrt(eta0) xi: the slope in eta0 is xi / (2 sqrt(eta0)), and xi is u / sqrt(eta0).
    assert float(eta0.grad) == pytest.approx(float(u.detach().sum()) / 0.5, rel=1e-5)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_tensorflow_derivatives_see_noise_as_a_constant(mode: str) -> None:
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import add_noise

    def slope(g: Any, t: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            (u,) = add_noise([g], t=t)
            total = tf.reduce_sum(u * u)
        return u, tape.gradient(total, g)

    function = slope if mode == "eager" else tf.function(slope, jit_compile=mode == "xla")
    g = tf.constant([1.0, 2.0])
    for t in (1, 2):
        u, by_g = function(g, tf.constant(t, tf.int64))
        want = add_noise([g], t=t)[0]
        assert np.array_equal(u, want) and np.array_equal(by_g, 2 * u.numpy())


def test_a_spec_with_noise_has_no_seed_of_its_own(tmp_path: Any) -> None:
    file = tmp_path / "langevin.py"
    file.write_text(TWO_SOURCES.replace("heat", "seed"))
    with pytest.raises(SpecError, match=r"seed is the hyperparameter that noise\(...\) brings with it"):
        assert catalogue.entries([str(file)])[0].program
