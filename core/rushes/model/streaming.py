# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A transformer whose blocks rest in the host's memory and visit the device one after the other.

While one block works, the next one is copied: two places on the device take turns. Each block's weights lie in one
piece, pinned where the device copies from pinned memory, so that a visit is a single copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

PLACES = 2  # blocks on the device at once
_ALIGN = 64  # bytes; views of any type may begin there


class Lane(Protocol):
    """How copies go to a device beside its work. Copies and work each happen in the order in which they are asked for.

    A mark is a moment in one of the two, for the other to wait for.
    """

    def hold(self, size: int) -> Tensor:
        """uint8 [size] in the host's memory, from where copies go fast."""

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Ask for a copy; returns a mark of its end."""

    def mark_work(self) -> Any:
        """A mark of the end of all work that was asked for so far."""

    def copies_wait(self, mark: Any) -> None:
        """Copies asked for from now on begin after the mark."""

    def work_waits(self, mark: Any) -> None:
        """Work asked for from now on begins after the mark."""


class PlainLane:
    """A device without streams: every copy ends before `copy` returns."""

    def hold(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark_work(self) -> None:
        return None

    def copies_wait(self, mark: None) -> None:
        return None

    def work_waits(self, mark: None) -> None:
        return None


class CudaLane:
    """Copies on a stream of their own. Not run on a card yet: the order of its calls is what the tests prove."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def hold(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def mark_work(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self._device).record_event()

    def copies_wait(self, mark: torch.cuda.Event) -> None:
        self._stream.wait_event(mark)

    def work_waits(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)


def lane_for(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else PlainLane()


@dataclass(frozen=True)
class _Slice:
    """Where one tensor of a block lies in the block's piece, and how to put it into its layer."""

    start: int
    size: int
    dtype: torch.dtype
    shape: torch.Size
    put: Callable[[Tensor], None]

    def of(self, piece: Tensor) -> Tensor:
        return piece[self.start : self.start + self.size].view(self.dtype).view(self.shape)


class _Packet:
    """One block: its piece in the host's memory, and the slices of it."""

    def __init__(self, block: nn.Module, lane: Lane) -> None:
        tensors = list(_tensors(block))
        starts, end = [], 0
        for tensor, _ in tensors:
            starts.append(end)
            end += -(-tensor.numel() * tensor.itemsize // _ALIGN) * _ALIGN
        self.piece = lane.hold(end)
        self._slices = [
            _Slice(start, tensor.numel() * tensor.itemsize, tensor.dtype, tensor.shape, put)
            for start, (tensor, put) in zip(starts, tensors, strict=True)
        ]
        for part, (tensor, _) in zip(self._slices, tensors, strict=True):
            part.of(self.piece).copy_(tensor)
        self.use(self.piece)

    def use(self, piece: Tensor) -> None:
        """Have the block's tensors be the slices of this piece."""
        for part in self._slices:
            part.put(part.of(piece))


def _tensors(block: nn.Module) -> Iterator[tuple[Tensor, Callable[[Tensor], None]]]:
    """Parameters and buffers, packed weights too, each with what replaces it."""
    for layer in block.modules():
        for parameter in layer.parameters(recurse=False):
            yield parameter.data, _setter(parameter)
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer is not None:
                yield buffer, _buffer_setter(layer, name)


def _setter(parameter: nn.Parameter) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        parameter.data = tensor

    return put


def _buffer_setter(layer: nn.Module, name: str) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        layer._buffers[name] = tensor

    return put


class BlockStream:
    """Streams blocks, which work in the order given, again and again. What is outside of them is the caller's to place.

    The blocks' weights must be in the host's memory. Until `close`, calling a block brings it; afterwards the weights
    are in the host's memory again.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, lane: Lane | None = None) -> None:
        self._lane = lane or lane_for(device)
        self._packets = [_Packet(block, self._lane) for block in blocks]
        size = max(len(packet.piece) for packet in self._packets)
        count = min(PLACES, len(blocks))
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._in_place: list[int | None] = [None] * count  # the block that is there, or on its way
        self._arrived: list[Any] = [None] * count
        self._left: list[Any] = [None] * count  # None until a block has worked there
        self._has_left = [False] * count
        self._hooks = [
            hook
            for i, block in enumerate(blocks)
            for hook in (
                block.register_forward_pre_hook(lambda *_, i=i: self._enter(i)),
                block.register_forward_hook(lambda *_, i=i: self._leave(i)),
            )
        ]

    @property
    def device_bytes(self) -> int:
        return sum(len(place) for place in self._places)

    def close(self) -> None:
        """Give the blocks their own weights back."""
        for hook in self._hooks:
            hook.remove()
        for packet in self._packets:
            packet.use(packet.piece)
        self._places.clear()

    def _enter(self, block: int) -> None:
        if block not in self._in_place:  # out of turn, after a cancel: what was cancelled may still work there
            self._lane.copies_wait(self._lane.mark_work())
            self._bring(block)
        place = self._in_place.index(block)
        self._lane.work_waits(self._arrived[place])
        self._packets[block].use(self._places[place][: len(self._packets[block].piece)])
        follower = (block + 1) % len(self._packets)
        if follower not in self._in_place:
            self._bring(follower, keep=place)

    def _leave(self, block: int) -> None:
        place = self._in_place.index(block)
        self._left[place], self._has_left[place] = self._lane.mark_work(), True
        self._packets[block].use(self._packets[block].piece)

    def _bring(self, block: int, keep: int | None = None) -> None:
        """Ask for the copy of a block into a place whose block has left, never into `keep`."""
        place = next(i for i in range(len(self._places)) if i != keep)
        if self._has_left[place]:
            self._lane.copies_wait(self._left[place])
        piece = self._packets[block].piece
        self._arrived[place] = self._lane.copy(self._places[place][: len(piece)], piece)
        self._in_place[place] = block
