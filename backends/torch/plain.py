"""What a kernel takes of parameters that are sharded or complex, plain tensors of real numbers, and back.

In: a parameter; what belongs to it. Out: the same for a kernel, and again as it is kept. Must not know: any
algorithm.

A complex number is the pair of its parts, each of which goes its own way, as in torch.optim.

Of parameters sharded over processes (DTensor, as `fully_shard` leaves them) a process steps the part
that it has, where every number goes its own way, and nothing is communicated. Anything else is made of whole
tensors: each process gathers a parameter, its gradient and its states, computes the same numbers as the
others, and keeps its part. So sharded training has the bits of training with whole tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch.distributed is not imported to know."""
    return getattr(x, "device_mesh", None) is not None


def plain(x: Any, like: Tensor, whole: bool) -> Any:
    """A parameter, gradient or state as a kernel takes it; where sharded, `whole` or this process's part."""
    if not isinstance(x, Tensor):
        return x
    if is_sharded(x):
        if whole:
            x = x.full_tensor()
        else:
            placed = x.placements == like.placements
            x = (x if placed else x.redistribute(placements=like.placements)).to_local()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def kept_as(x: Any, like: Tensor, whole: bool) -> Any:
    """The way back of what is shaped like the parameter; where sharded, other states are whole everywhere."""
    if not isinstance(x, Tensor):
        return x
    if like.is_complex():
        x = torch.view_as_complex(x.contiguous())
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    if whole:
        if x.shape != like.shape:
            return x
        everywhere = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
        x = everywhere.redistribute(placements=like.placements).to_local()
        x = x.clone(memory_format=torch.contiguous_format)  # no part of the whole
    placed = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(x, mesh, like.placements, run_check=False, **placed)
