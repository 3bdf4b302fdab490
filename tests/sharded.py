"""Two processes train a sharded or replicated model beside a whole one; test_ecosystem.py runs this.

In: names of algorithms; none are all. Out: a line for each that does not end with the same bits, and `done`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import generated.torch as package

warnings.simplefilter("ignore")

STEPS = 4
MATRICES = ("muon", "muon_torch")  # for parameters with two axes only
# What reads more than gradients.
OTHERS = ("adahessian", "learned", "sophia", "storm", "svrg")


def model(bias=True):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16, bias=bias), torch.nn.Tanh(), torch.nn.Linear(16, 5, bias=bias)
    return torch.nn.Sequential(*layers)


def trained(network, optimizer, first=0, last=STEPS):
    draw = torch.Generator().manual_seed(1)
    data = [torch.randn(8, 6, generator=draw) for _ in range(last)]
    for x in data[first:]:

        def closure(x=x):
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    return network


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def same(network, other):
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    return all(torch.equal(whole(a.detach()), b.detach()) for a, b in pairs)


def says(rank, text):
    if rank == 0:
        print(text, flush=True)


def sharded(rank, name, **options):
    """Every algorithm, its parameters cut in two: one of five rows, where they cannot be halved."""
    plain, parts = model(name not in MATRICES), model(name not in MATRICES)
    fully_shard(parts)
    one, two = (package.create(name, m.parameters(), **options) for m in (plain, parts))
    trained(plain, one)
    trained(parts, two)
    if not same(parts, plain):
        says(rank, f"{name} {options} differs where sharded")


def replicated(rank):
    """DistributedDataParallel adds the gradients of two equal batches and halves them: no bit changes."""
    plain, copies = model(), DistributedDataParallel(model())
    trained(plain, package.AdamW(plain.parameters()))
    trained(copies, package.AdamW(copies.parameters(), fused=True))
    if not same(copies, plain):
        says(rank, "adamw differs where replicated")


def resumed(rank, name, folder):
    """Saved after two steps and loaded into a new model: nothing moves but to what was saved."""
    plain = model()
    trained(plain, package.create(name, plain.parameters()))
    first = model()
    fully_shard(first)
    optimizer = package.create(name, first.parameters())
    trained(first, optimizer, 0, 2)
    parts, states = get_state_dict(first, optimizer)
    dcp.save({"model": parts, "optimizer": states}, checkpoint_id=folder)
    second = model()
    fully_shard(second)
    optimizer = package.create(name, second.parameters())
    before = [whole(p.detach()).clone() for p in second.parameters()]
    parts, states = get_state_dict(second, optimizer)  # takes a step with gradients 0 and lr 0
    if not all(torch.equal(whole(p.detach()), x) for p, x in zip(second.parameters(), before, strict=True)):
        says(rank, f"{name} moves when its state is asked for")
    dcp.load({"model": parts, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(second, optimizer, model_state_dict=parts, optim_state_dict=states)
    trained(second, optimizer, 2)
    if not same(second, plain):
        says(rank, f"{name} differs where resumed")


def refused(rank):
    parts = model()
    fully_shard(parts)
    try:
        package.AdamW(parts.parameters(), states="8bit")
    except ValueError as error:
        says(rank, f"refused: {error}")


def work(rank, port, folder, names):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in names:
        sharded(rank, name)
    sharded(rank, "adamw", foreach=False)
    sharded(rank, "adamw", fused=True)
    sharded(rank, "adamw", maximize=True)
    replicated(rank)
    for name in ("adamw", "nadam", "adafactor"):
        resumed(rank, name, f"{folder}/{name}")
    refused(rank)
    says(rank, "done")
    dist.destroy_process_group()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or [n for n in package.names("optimizers") if n not in OTHERS]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(free_port(), folder, chosen), nprocs=2)
