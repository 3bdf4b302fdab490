"""Parameters that are sharded over processes, as `fully_shard` leaves them: what a process takes, and keeps.

In: a parameter, a DTensor. Out: the plain tensors that a kernel takes of it, and the way back. Must not know:
any algorithm.

Where every number goes its own way, a process steps the part that it has, and nothing is communicated.
Anything else is made of whole tensors: each process gathers a parameter, its gradient and its states,
computes the same numbers as the others, and keeps its part. So sharded training has the bits of training
with whole tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch.distributed is not imported to know."""
    return getattr(x, "device_mesh", None) is not None


def gathered(x: Any, like: Tensor, whole: bool) -> Any:
    """A parameter, gradient or state as a plain tensor: the part of this process, or the whole."""
    if not (isinstance(x, Tensor) and is_sharded(x)):
        return x
    if whole:
        return x.full_tensor()
    return (x if x.placements == like.placements else x.redistribute(placements=like.placements)).to_local()


def scattered(x: Any, like: Tensor, whole: bool) -> Any:
    """The way back of what is shaped like the parameter; other states are the same in every process."""
    if not is_sharded(like) or not isinstance(x, Tensor):
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
