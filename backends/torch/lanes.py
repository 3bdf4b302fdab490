"""How a step goes over many parameters: their states lie one after another, and pieces of a fixed size pass.

In: parameters of one dtype on one device, their states by name, and a function that does a step in place on
flat tensors. Out: a `Lane`, which calls it; `flatten`, for models whose parameters are to lie so themselves.
Must not know: any algorithm, hyperparameter or precision.

Where every number goes its own way, where a parameter ends does not matter. The states of a lane's
parameters are views of one buffer a name. Large parameters pass as they lie in memory, whole or in parts, and
so do parameters that follow one another there; other small ones are gathered, a fixed number at once, pass
together, and are put back.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors


def lies_flat(x: Tensor) -> bool:
    """Whether it is a plain tensor whose numbers fill its memory, in whatever order."""
    if type(x) not in (Tensor, torch.nn.Parameter) or x.layout != torch.strided or not x.numel():
        return False
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    """A view of the numbers in the order of memory."""
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))


def flat_as(x: Tensor, like: Tensor) -> Tensor:
    """The numbers of a tensor in the order in which those of another lie; a view where it can be one."""
    if like.is_contiguous():
        return x.reshape(-1)
    return flat(x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x))


@dataclass(frozen=True)
class Buffers:
    """The states of some parameters, one after another: a tensor for each name."""

    tensors: tuple[Tensor, ...]
    begins: dict[Tensor, int]  # where those of a parameter begin

    def hold(self, p: Tensor, states: Sequence[Tensor]) -> bool:
        """Whether these are the states of the parameter, in the order in which it lies now."""
        begin = self.begins[p]
        return all(
            x.data_ptr() == buffer.data_ptr() + begin * buffer.element_size() and x.stride() == p.stride()
            for x, buffer in zip(states, self.tensors, strict=True)
        )


@dataclass(frozen=True)
class _Piece:
    """What passes in one call: several parameters, or a part of what lies in one piece of memory."""

    first: int  # of the lane's parameters
    last: int
    kept: tuple[Tensor, ...]  # their states
    theta: Tensor | None  # where they lie in one piece; None: they have to be gathered
    part: slice  # which numbers of what lies in one piece
    apart: tuple[Tensor, ...] = ()  # where they lie if not so


Step: TypeAlias = Callable[[Tensor, Tensor, Sequence[Tensor]], None]
_PIECES = 4  # what a thread has to do at least: to wake it costs as much as one piece


class Lane:
    """Parameters that go through a step together.

    Attributes:
        names: of the states.
        params: the parameters, in the order of their states.
        slots: for each the dictionary that holds its states, and more.
        views: for each name the states themselves; where others stand there, the lane is out of date.
        grads: of each the gradient, of its shape.
        buffers: what holds the states of each, for the lane that comes after this one.
    """

    def __init__(
        self,
        slots: Mapping[Tensor, dict[str, Any]],
        names: Sequence[str],
        before: Mapping[Tensor, Buffers],
        size: int,
        alone: int,
        part: int,
    ) -> None:
        """Lay out states one after another; those that lie so already stay where they are.

        Args:
            slots: for each parameter, which lies flat, its states and more.
            names: the names of the states, tensors of one dtype shaped like the parameter.
            before: buffers of earlier lanes.
            size: how many numbers are gathered at most.
            alone: from how many on a parameter passes as it lies.
            part: how many of it pass at once.
        """
        kept = {p: tuple(slot[name] for name in names) for p, slot in slots.items()}
        fresh = [p for p, states in kept.items() if p not in before or not before[p].hold(p, states)]
        self.buffers = {p: before[p] for p in slots if p in before}
        self.buffers |= dict.fromkeys(fresh, _laid_out(_small_first(fresh, alone), slots, names))
        self.names = tuple(names)
        self.params = sorted(slots, key=self._place)
        self.slots = [slots[p] for p in self.params]
        self.views = [[slot[name] for slot in self.slots] for name in names]
        self.grads: list[Tensor] = [cast(Tensor, p.grad) for p in self.params]
        self._lay = [_lies(p) for p in self.params]
        self._flat = [flat(p.detach()) for p in self.params]
        self._pieces = list(self._cut(size, alone, part))

    def _place(self, p: Tensor) -> tuple[int, int]:
        """In which buffers the states of a parameter are, and where."""
        return id(self.buffers[p]), self.buffers[p].begins[p]

    def _cut(self, size: int, alone: int, most: int) -> Iterator[_Piece]:
        """The pieces: of `size` numbers at most what is gathered, of `most` what lies in one piece."""
        first = 0
        while first < len(self.params):
            last, count = self._run_from(first)
            if count >= alone:
                theta = self._flat[first].as_strided((count,), (1,))
                for a in range(0, count, min(most, count)):
                    part = slice(a, min(a + most, count))
                    yield _Piece(first, last, self._kept(first, part), theta[part], part)
            else:
                last, count = first, 0
                while last < len(self.params) and self._follows(first, last, count):
                    n = self.params[last].numel()
                    if n >= alone or count + n > max(size, n):
                        break
                    count, last = count + n, last + 1
                whole = slice(0, count)
                kept, apart = self._kept(first, whole), tuple(self._flat[first:last])
                if len(apart) == 1:
                    yield _Piece(first, last, kept, apart[0], whole)
                else:
                    yield _Piece(first, last, kept, None, whole, apart)
            first = last

    def _run_from(self, first: int) -> tuple[int, int]:
        """The parameters from one on that follow one another in memory, as their states do."""
        start, memory = self._flat[first], self._flat[first].untyped_storage().data_ptr()
        last, count = first + 1, self.params[first].numel()
        while (
            last < len(self.params)
            and self._flat[last].data_ptr() == start.data_ptr() + count * start.element_size()
            and self._flat[last].untyped_storage().data_ptr() == memory
            and self._follows(first, last, count)
        ):
            last, count = last + 1, count + self.params[last].numel()
        return last, count

    def _follows(self, first: int, last: int, count: int) -> bool:
        """Whether the states of a parameter begin so many numbers behind those of another."""
        place, begin = self._place(self.params[first])
        return self._place(self.params[last]) == (place, begin + count)

    def _kept(self, first: int, part: slice) -> tuple[Tensor, ...]:
        """The states from those of a parameter on."""
        begin = self._place(self.params[first])[1]
        buffers = self.buffers[self.params[first]].tensors
        return tuple(x[begin + part.start : begin + part.stop] for x in buffers)

    def holds(self) -> bool:
        """Whether parameters and states lie where they did, and there are gradients that fit; keeps these."""
        for name, views in zip(self.names, self.views, strict=True):
            if not all(map(operator.is_, [slot.get(name) for slot in self.slots], views)):
                return False
        grads = [p.grad for p in self.params]
        if not all(map(operator.is_not, grads, itertools.repeat(None))):
            return False
        p, self.grads = self.params[0], grads
        return (
            list(map(_lies, self.params)) == self._lay
            and [g.shape for g in self.grads] == [p.shape for p in self.params]
            and {(g.dtype, g.layout, g.device) for g in self.grads} == {(p.dtype, torch.strided, p.device)}
        )

    def run(self, step: Step, threads: int = 1) -> None:
        """One step of all parameters and states: `step(theta, g, states)`, in place, on flat tensors.

        Args:
            step: does that; with several threads, for parts that have no memory in common at once.
            threads: how many share the pieces, where these are many.
        """
        threads = min(threads, len(self._pieces) // _PIECES)
        if threads < 2:
            self._pass(step, self._pieces)
            return
        cuts = [len(self._pieces) * i // threads for i in range(threads + 1)]
        mine, *others = (self._pieces[a:b] for a, b in itertools.pairwise(cuts))
        started = [_workers(threads - 1).submit(self._pass, step, pieces) for pieces in others]
        try:
            self._pass(step, mine)
        finally:
            wait(started)
        for one in started:
            one.result()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _pass(self, step: Step, pieces: Sequence[_Piece]) -> None:
        """Some of the pieces, one after the other."""
        joined: tuple[int, Tensor] | None = None  # the gradients of the last piece's parameters
        for piece in pieces:
            if joined is None or joined[0] != piece.first:
                joined = piece.first, self._joined(piece.first, piece.last)
            if piece.theta is not None:
                step(piece.theta, joined[1][piece.part], piece.kept)
            else:
                theta = torch.cat(piece.apart)
                step(theta, joined[1], piece.kept)
                torch._foreach_copy_(piece.apart, torch.split(theta, [x.shape[0] for x in piece.apart]))

    def _joined(self, first: int, last: int) -> Tensor:
        """The gradients of some parameters one after another; as they lie, where they lie so."""
        grads, params = self.grads[first:last], self.params[first:last]
        if len(grads) == 1:
            return flat_as(grads[0], params[0])
        if grads[0].untyped_storage().data_ptr() == grads[-1].untyped_storage().data_ptr():
            parts, at = list(map(flat_as, grads, params)), grads[0].data_ptr()
            for part in parts:
                if part.data_ptr() != at:
                    break
                at += part.shape[0] * part.element_size()
            else:
                return parts[0].as_strided((sum(part.shape[0] for part in parts),), (1,))
        if all(p.is_contiguous() for p in params):
            joined: Tensor = _flatten_dense_tensors(grads)
            return joined
        return torch.cat(list(map(flat_as, grads, params)))


def _lies(p: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies, and how."""
    return p.data_ptr(), p.stride(), p.dtype


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads that wait for work."""
    return ThreadPoolExecutor(count, "optimizer")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # a child of this process has no threads


def _small_first(params: Sequence[Tensor], alone: int) -> list[Tensor]:
    """What has to be gathered before what passes as it lies: as much as can be is gathered at once."""
    runs: list[list[Tensor]] = []  # what lies one after another
    end = None
    for p in params:
        if p.data_ptr() == end:
            runs[-1].append(p)
        else:
            runs.append([p])
        end = p.data_ptr() + p.numel() * p.element_size()
    runs.sort(key=lambda run: sum(p.numel() for p in run) >= alone)
    return [p for run in runs for p in run]


def _laid_out(
    params: Sequence[Tensor], slots: Mapping[Tensor, dict[str, Any]], names: Sequence[str]
) -> Buffers:
    """New buffers for the states of some parameters, which become views of them."""
    total, begins = 0, {}
    for p in params:
        begins[p] = total
        total += p.numel()
    tensors = []
    for name in names:
        buffer = slots[params[0]][name].new_empty(total) if params else torch.empty(0)
        for p in params:
            view = buffer.as_strided(p.shape, p.stride(), begins[p])
            slots[p][name] = view.copy_(slots[p][name])
        tensors.append(buffer)
    return Buffers(tuple(tensors), begins)


# --------------------------------------------------------------------------------------------------
# Models that lie flat


class Flat:
    """Parameters of one dtype on one device, and their gradients, each one after another in memory.

    Attributes:
        params: the parameters.
        data: the memory that they are views of.
        grad: that of their gradients.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        """Move parameters, and gradients where there are some, into buffers of their own."""
        self.params = list(params)
        count = sum(p.numel() for p in params)
        self.data, self.grad = params[0].new_empty(count), params[0].new_zeros(count)
        self._grads, begin = [], 0
        for p in params:
            value, g = (x.as_strided(p.shape, p.stride(), begin) for x in (self.data, self.grad))
            value.copy_(p.detach())
            if p.grad is not None:
                g.copy_(p.grad)
            p.data, p.grad = value, g
            self._grads.append(g)
            begin += p.numel()
            p._lies_in = self

    def zero_grad(self) -> None:
        """Set the gradients to zero, where they are."""
        self.grad.zero_()
        for p, g in zip(self.params, self._grads, strict=True):
            if p.grad is not g:
                p.grad = g

    def gather(self) -> bool:
        """Put gradients that lie elsewhere back; whether there were any."""
        away = [(p, g) for p, g in zip(self.params, self._grads, strict=True) if p.grad is not g]
        for p, g in away:
            if p.grad is None:
                g.zero_()
            else:
                g.copy_(p.grad)
            p.grad = g
        return bool(away)

    def moved(self) -> bool:
        """Whether parameters are no longer where they were put, as after `model.to(...)`."""
        ends = self.params[0], self.params[-1]
        return any(x.untyped_storage().data_ptr() != self.data.untyped_storage().data_ptr() for x in ends)


@torch.no_grad()  # type: ignore[untyped-decorator]
def flatten(model: torch.nn.Module | Iterable[Tensor]) -> list[Flat]:
    """Move the parameters of a model, and their gradients, each into one piece of memory for each dtype.

    A step of an optimizer that goes number by number is one pass over that memory then, without a copy. Do
    it once, when the model is on its device in its dtype, before the first step. From then on:

    - use `optimizer.zero_grad()`, which sets the gradients to zero where they are; `model.zero_grad()` takes
      them out, and the next step has to put them back, with a warning;
    - every parameter has a gradient in every step, zeros where nothing depends on it: it decays, and goes on
      with its momentum;
    - `model.to(...)` and `p.data = ...` move parameters out again; the next step warns.

    Args:
        model: a module, or its parameters. Those that need no gradient stay where they are.

    Returns:
        What was made, one for each dtype and device.

    Raises:
        ValueError: a parameter is part of a larger tensor that overlaps itself, or is no plain tensor.
    """
    every = model.parameters() if isinstance(model, torch.nn.Module) else model
    params = [p for p in dict.fromkeys(every) if p.requires_grad and p.numel()]
    odd = [i for i, p in enumerate(params) if not lies_flat(p)]
    if odd:
        raise ValueError(
            f"flatten: parameter {odd[0]} has shape {tuple(params[odd[0]].shape)} and strides "
            f"{params[odd[0]].stride()}, which leave gaps, or is a {type(params[odd[0]]).__name__}. Make it "
            "contiguous, or pass the other parameters only."
        )
    kinds: dict[Any, list[Tensor]] = {}
    for p in params:
        kinds.setdefault((p.dtype, p.device), []).append(p)
    return [Flat(group) for group in kinds.values()]


def flat_of(params: Iterable[Tensor]) -> list[Flat]:
    """What `flatten` has made of some parameters."""
    found = (getattr(p, "_lies_in", None) for p in params)
    return list(dict.fromkeys(flat for flat in found if flat is not None))
