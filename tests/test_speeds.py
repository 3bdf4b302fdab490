"""PyTorch: one program at every speed, with the same bits; what a step leaves alone, and what it needs."""

from __future__ import annotations

import copy
import importlib
import itertools
import tracemalloc
import warnings

import pytest

torch = pytest.importorskip("torch")
made = importlib.import_module("generated.torch")
runtime = importlib.import_module("generated.torch.runtime")
dispatch = importlib.import_module("torch.utils._python_dispatch")

SHAPES = ((), (1,), (7,), (64, 33), (3, 3, 8, 16), (0, 4), (70_000,), (30, 50, 5, 5))
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parameters(kind):
    """Parameters that lie in every way: contiguous, channels last, transposed, with gaps."""
    torch.manual_seed(1)
    tensors = [torch.randn(shape).to(kind) for shape in SHAPES]
    tensors[7] = tensors[7].to(memory_format=torch.channels_last)
    tensors += [torch.randn(40, 30).to(kind).t(), torch.randn(50, 40).to(kind)[:, ::2]]
    return [torch.nn.Parameter(x) for x in tensors]


def trained(name, kind, steps=6, reload_at=None, **options):
    """Parameters and optimizer after steps in which some gradients are missing, and one lies otherwise."""
    params = parameters(kind)
    optimizer = made.create(name, params, **options)
    draw = torch.Generator().manual_seed(3)
    for t in range(steps):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=draw).to(kind)
            missing = (t == 2 and i in (1, 4)) or (t > 3 and i == 6)
            p.grad = None if missing else g.t().contiguous().t() if g.ndim == 2 and t == 1 else g
        optimizer.step()
        if t == reload_at:
            saved = optimizer.state_dict()
            optimizer = made.create(name, params, **options)
            optimizer.load_state_dict(saved)
    return params, optimizer


def same(a, b):
    """Whether parameters and states have the same bits."""
    (params, one), (others, two) = a, b
    assert all(map(torch.equal, params, others))
    for p, q in zip(params, others, strict=True):
        assert one.state[p].keys() == two.state[q].keys()
        for name, x in one.state[p].items():
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(two.state[q][name])), name
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "nadam", "adan", "sgd_torch", "lamb"])
def test_many_at_once_have_the_bits_of_one_by_one(name, kind):
    plain = trained(name, KINDS[kind], foreach=False)
    assert same(plain, trained(name, KINDS[kind]))
    assert same(plain, trained(name, KINDS[kind], reload_at=3))


@pytest.mark.parametrize("kind", KINDS)
def test_fused_has_the_bits_of_one_by_one(kind):
    assert same(trained("adamw", KINDS[kind], foreach=False), trained("adamw", KINDS[kind], fused=True))


@pytest.fixture
def three_threads():
    """Where there are pieces enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_size(kind, monkeypatch, three_threads):
    """Where a parameter is cut, which are gathered, and in what thread a piece passes, does not tell."""
    plain = trained("adamw", KINDS[kind], foreach=False)
    for size in (1000, 10**6):
        monkeypatch.setattr(runtime, "_PIECE", size)
        assert same(plain, trained("adamw", KINDS[kind]))


def test_what_fails_in_a_thread_is_raised(monkeypatch, three_threads):
    """After every thread has come to its end."""
    monkeypatch.setattr(runtime, "_PIECE", 1000)
    p = torch.nn.Parameter(torch.ones(100_000))
    optimizer = made.SGD([p])
    p.grad = torch.ones_like(p)

    def failing(theta, g, state, s):
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(made.SGD, "method", made.SGD.method._replace(step=failing))
    with pytest.raises(ArithmeticError, match="on purpose"):
        optimizer.step()


@pytest.mark.parametrize("numpy", ["without", "old", "new"])
def test_numpy_is_not_needed(numpy, monkeypatch):
    """The default passes NumPy's views of tensors to the kernels, where there is a NumPy that it can be."""
    plain = trained("yogi", torch.float32, foreach=False)
    called = []
    kernel = made.Yogi.method.step
    seen = made.Yogi.method._replace(step=lambda theta, *rest: called.append(theta) or kernel(theta, *rest))
    monkeypatch.setattr(made.Yogi, "method", seen)
    if numpy != "new":
        monkeypatch.setattr(runtime, "_ARRAYS", ())
    if numpy == "without":
        monkeypatch.setattr(runtime, "np", None)
    assert same(plain, trained("yogi", torch.float32))
    assert any(not isinstance(x, torch.Tensor) for x in called) == (numpy == "new")


def test_autograd_sees_that_parameters_have_changed():
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    made.SGD([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiled_once():
    """Whatever the sizes, steps, rates and groups are."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for sizes in ((5, 300), (1, 2, 100_000), (17,)):
        params = [torch.nn.Parameter(torch.randn(n)) for n in sizes]
        groups = [{"params": [p], "lr": 0.1 / i} for i, p in enumerate(params, 1)]
        optimizer = made.Adagrad(groups, fused=True)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_is_saved_belongs_to_nothing_larger():
    params, optimizer = trained("adamw", torch.float32)
    shared = [x for slot in optimizer.state.values() for x in slot.values() if isinstance(x, torch.Tensor)]
    assert len({x.untyped_storage().data_ptr() for x in shared if x.numel()}) < len(shared)
    for slot in optimizer.state_dict()["state"].values():
        for x in slot.values():
            if isinstance(x, torch.Tensor):
                assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
    twin = copy.deepcopy(optimizer)
    for one, p in zip((optimizer, twin), (params, twin.param_groups[0]["params"]), strict=True):
        for q in p:
            q.grad = torch.ones_like(q)
        one.step()
    assert same((params, optimizer), (twin.param_groups[0]["params"], twin))


def test_the_users_tensors_stay_where_they_are():
    params = parameters(torch.float32)
    optimizer = made.AdamW(params)
    for p in params:
        p.grad = torch.ones_like(p)
    before = [(p.data_ptr(), p.stride(), p.grad, p.grad.data_ptr(), p.grad.clone()) for p in params]
    optimizer.step()
    for p, (at, stride, g, there, value) in zip(params, before, strict=True):
        assert (p.data_ptr(), p.stride(), p.grad.data_ptr()) == (at, stride, there)
        assert p.grad is g
        assert torch.equal(g, value)


def test_states_that_are_put_in_are_taken():
    """A state or a parameter's memory that the user replaces counts from the next step on."""
    (p,), q = [torch.nn.Parameter(torch.ones(3))], torch.nn.Parameter(torch.ones(3))
    one, two = made.HeavyBall([p]), made.HeavyBall([q], foreach=False)
    for optimizer, x in ((one, p), (two, q)):
        x.grad = torch.ones(3)
        optimizer.step()
        optimizer.state[x]["v"] = torch.full((3,), 5.0)
        optimizer.step()
        x.data = torch.zeros(3)
        optimizer.step()
        optimizer.state[x] = {"step": 7, "v": torch.zeros(3)}
        optimizer.step()
    assert same(([p], one), ([q], two))


class Allocated(dispatch.TorchDispatchMode):
    """The bytes of the largest tensor that is made while it is on, besides those that are there."""

    def __init__(self, there):
        super().__init__()
        self.there = {x.untyped_storage().data_ptr() for x in there}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.there:
                self.most = max(self.most, x.untyped_storage().nbytes())
        return result


def test_a_step_needs_memory_of_a_fixed_size():
    """However many parameters there are: as the README says, pieces of 65,536 numbers."""
    params = [torch.nn.Parameter(torch.randn(n)) for n in (10**6, *[1000] * 300)]
    optimizer = made.AdamW(params)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    states = (x for slot in optimizer.state.values() for x in slot.values() if isinstance(x, torch.Tensor))
    there = [*params, *(p.grad for p in params), *states]
    tracemalloc.start()
    with Allocated(there) as allocated:
        optimizer.step()
    arrays = tracemalloc.get_traced_memory()[1]  # NumPy tells what it takes
    tracemalloc.stop()
    assert 0 < allocated.most <= 4 * runtime._PIECE
    assert 4 * runtime._PIECE < arrays < 12 * 4 * runtime._PIECE


# Complex parameters


def drawn_complex():
    """Complex tensors of both precisions, one of them conjugated and transposed, and a real one."""
    shapes = [((3, 4), torch.complex128), ((5,), torch.float32), ((), torch.complex64)]
    drawn = [torch.randn(s, dtype=kind) for s, kind in shapes]
    return [*drawn, torch.randn(4, 3, dtype=torch.complex64).conj().t()]


def real(x):
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": False}], ids=str)
def test_complex_numbers_are_pairs(options):
    """With the bits that an optimizer has on the parts; test_like_torch.py has torch's own beside it."""
    torch.manual_seed(0)
    start = drawn_complex()
    params, parts = [torch.nn.Parameter(x) for x in start], [real(x).clone() for x in start]
    optimizer, twin = made.AdamW(params, **options), made.AdamW(parts)
    for _ in range(4):
        for p, q, g in zip(params, parts, drawn_complex(), strict=True):
            p.grad, q.grad = g, real(g)
        optimizer.step()
        twin.step()
    for p, q in zip(params, parts, strict=True):
        assert torch.equal(real(p.detach()), q)
        m = optimizer.state[p]["m"]
        assert (m.shape, m.dtype) == (p.shape, p.dtype)
        assert torch.equal(real(m), twin.state[q]["m"])


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("lamb", torch.complex64, {}, "and LAMB is for real numbers: it takes a tensor as a whole. Keep its"),
        ("adamw", torch.complex64, {"states": "8bit"}, 'is complex; states="8bit" is for plain tensors of'),
        ("adamw", torch.int32, {}, "complex64 and complex128 can be optimized. Convert it, for example"),
    ],
)
def test_dtypes_that_are_refused(name, kind, options, message):
    p = torch.ones(3, dtype=kind)
    with pytest.raises((TypeError, ValueError), match=message):
        made.create(name, [p], **options)


# What torch calls them


def test_maximize():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    up, down = made.AdamWSAM([p], maximize=True, lr=0.1), made.AdamWSAM([q], lr=0.1)

    def closure(x, sign):
        x.grad = None
        loss = sign * (x * x * torch.arange(3.0)).sum()
        loss.backward()
        return loss

    for _ in range(3):
        up.step(lambda: closure(p, -1))
        down.step(lambda: closure(q, 1))
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["adamw", "nadam", "lamb"])
def test_capturable(name):
    """Counts are tensors, and nothing of them is looked at."""
    runs = []
    for capturable in (False, True):
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3,), (2, 2))]
        optimizer = made.create(name, params, capturable=capturable)
        for t in range(4):
            for p in params:
                p.grad = torch.full_like(p, 0.3 * t + 0.1)
            optimizer.step()
            if t == 2:
                saved = optimizer.state_dict()
                optimizer = made.create(name, params, capturable=capturable)
                optimizer.load_state_dict(saved)
        runs.append((params, optimizer))
    assert all(map(torch.equal, runs[0][0], runs[1][0]))
    counts = {optimizer.state[params[0]]["step"] for params, optimizer in runs[1:]}
    assert all(isinstance(x, torch.Tensor) and x == 4 for x in counts)


def test_differentiable():
    """The slope of a loss after three steps in the rate, and in the first parameters."""

    def run(lr, start):
        x = start.clone()
        optimizer = made.AdamW([x], lr=lr, differentiable=True)
        for g in ([1.0, -2.0, 0.5], [0.3, 0.1, -1.0], [2.0, 0.0, 1.0]):
            x.grad = torch.tensor(g, dtype=torch.float64)
            optimizer.step()
        return (x * x).sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = torch.ones(3, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(run(lr, start), (lr, start))
    h = 1e-6
    with torch.no_grad():
        numeric = (run(lr + h, start) - run(lr - h, start)) / (2 * h)
        along = (run(lr, start + h) - run(lr, start - h)) / (2 * h)
    torch.testing.assert_close(slopes[0], numeric, rtol=1e-7, atol=0)
    torch.testing.assert_close(slopes[1].sum(), along, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fused": True, "foreach": True}, RuntimeError, "fused and foreach cannot both be True."),
        ({"fused": True, "differentiable": True}, RuntimeError, "fused and differentiable cannot both be"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1."),
        ({"fused": "yes"}, TypeError, "fused must be True or False, got 'yes'."),
        ({"capturable": None}, TypeError, "capturable must be True or False, got None."),
    ],
)
def test_flags_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        made.AdamW([torch.nn.Parameter(torch.ones(2))], **options)
    group = {"params": [torch.nn.Parameter(torch.ones(2))], **options}
    with pytest.raises(error, match=" of param group 1"):
        made.AdamW([torch.nn.Parameter(torch.ones(2))]).add_param_group(group)


def test_flags_of_a_group():
    """Each group has its own, and they may change between steps."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = made.SGD([{"params": params[:1], "maximize": True}, {"params": params[1:]}], lr=1.0)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
    assert [p[0].item() for p in params] == [3.0, -1.0]
    optimizer.param_groups[0]["maximize"] = False
    optimizer.step()
    assert [p[0].item() for p in params] == [2.0, -2.0]


# Models that lie flat


def model():
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10)
    return torch.nn.Sequential(*parts)


def train(network, optimizer, steps=5):
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), [("adamw", {}), ("adamw", {"fused": True}), ("lamb", {})])
def test_flatten(name, options):
    plain, flat = model(), model()
    (whole,) = made.flatten(flat)
    optimizers = [
        made.create(name, plain.parameters(), foreach=False),
        made.create(name, flat.parameters(), **options),
    ]
    for network, optimizer in zip((plain, flat), optimizers, strict=True):
        train(network, optimizer)
    assert same(*zip(map(list, (plain.parameters(), flat.parameters())), optimizers, strict=True))
    inside = whole.grad.untyped_storage().data_ptr()
    assert {p.grad.untyped_storage().data_ptr() for p in flat.parameters()} == {inside}
    if name == "adamw":
        (lane,) = optimizers[1]._plan.flats
        assert len(lane.lane._pieces) == 1


def test_what_leaves_a_flat_model_is_noticed():
    network = model()
    made.flatten(network)
    optimizer = made.AdamW(network.parameters())
    train(network, optimizer, 1)
    other = model()
    twin = made.AdamW(other.parameters())
    train(other, twin, 1)
    x = torch.ones(1, 1, 8, 8)
    for one in (network, other):
        one.zero_grad()
        one(x).square().mean().backward()
    twin.step()
    with pytest.warns(UserWarning, match=r"gradients have left .* Call optimizer\.zero_grad\(\)"):
        optimizer.step()
    assert all(map(torch.equal, network.parameters(), other.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # they are back
    network.double()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="parameters have left"), pytest.raises(ValueError, match="dtype"):
        optimizer.step()


def test_what_cannot_lie_flat():
    odd = torch.nn.Parameter(torch.ones(4, 4)[:, ::2])
    what = r"parameter 1 has shape \(4, 2\) and strides \(4, 2\), which leave gaps"
    with pytest.raises(ValueError, match=what):
        made.flatten([torch.nn.Parameter(torch.ones(2)), odd])


def test_flatten_keeps_kinds_apart():
    pairs = itertools.product((2, 3), KINDS.values())
    params = [torch.nn.Parameter(torch.ones(n).to(kind)) for n, kind in pairs]
    frozen = torch.nn.Parameter(torch.ones(5), requires_grad=False)
    at = frozen.data_ptr()
    assert [len(flat.data) for flat in made.flatten([*params, frozen])] == [5, 5]
    assert frozen.data_ptr() == at
