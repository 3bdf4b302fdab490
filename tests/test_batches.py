"""Small tensors of one shape go through PyTorch's kernels together, with the bits that they have alone.

So do those of optimizers whose numbers do not go each its own way; the others' lie flat (test_speeds.py).
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import generated.torch as package  # noqa: E402
import generated.torch.runtime as runtime  # noqa: E402

SHAPES = [(5, 7)] * 4 + [(9,)] * 3 + [()] * 3 + [(3, 2, 4, 4)] * 2 + [(0, 3)] * 2 + [(100, 90)] * 2


def trained(name, dtype, monkeypatch, small, **hypers):
    monkeypatch.setattr(runtime, "_SMALL", small)
    sizes = []
    together = runtime.together

    def noted(method, function, calls):
        sizes.append(len(calls))
        return together(method, function, calls)

    monkeypatch.setattr(runtime, "together", noted)
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in SHAPES]
    optimizer = package.create(name, params, **hypers)
    for step in range(4):
        for i, p in enumerate(params):
            size = 0 if (i + step) % 5 == 0 else 10.0 ** (step - 2)
            g = torch.randn(p.shape).to(dtype) * size
            p.grad = None if (i + step) % 7 == 0 else g
        optimizer.step()
    return params, optimizer, max(sizes)


NAMES = ["lamb", "adafactor", "lars", "adam_hd"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_bits(name, dtype, monkeypatch):
    with monkeypatch.context() as patch:
        alone, apart, most = trained(name, dtype, patch, 0)
        assert most == 1
    with monkeypatch.context() as patch:
        joined, joint, most = trained(name, dtype, patch, 2**13)
        assert most > 1
    for p, q in zip(alone, joined, strict=True):
        assert torch.equal(p, q)
        a, b = apart.state[p], joint.state[q]
        assert a.keys() == b.keys()
        for key, x in a.items():
            same = torch.equal(x, b[key]) if isinstance(x, torch.Tensor) else x == b[key]
            assert same, key


def test_states_have_memory_of_their_own(monkeypatch):
    params, optimizer, _ = trained("lamb", torch.float32, monkeypatch, 2**13)
    for p in params:
        for x in optimizer.state[p].values():
            if isinstance(x, torch.Tensor):
                assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_products_and_noise_stay_apart():
    """The bits of a parameter do not depend on how many others there are."""
    from generated.torch.optimizers import adamw, muon

    theta = [torch.zeros(3, 3)] * 3
    assert len(runtime.batches(adamw.METHOD, theta, ["s"] * 3)) == 1
    assert len(runtime.batches(muon.METHOD, theta, ["s"] * 3)) == 3
