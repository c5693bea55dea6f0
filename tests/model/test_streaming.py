# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Blocks that visit a device: the same bits as resident ones, whatever the order in which copies and work happen.

The device is made of the processor and of two queues: copies and work happen only when something forces them, as late
as their marks allow or as early, so that a missing wait reads or overwrites what it must not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rushes.model.config import TransformerConfig
from rushes.model.packed import Packed, PackedLinear
from rushes.model.streaming import PLACES, BlockStream, PlainLane
from rushes.model.transformer import Context, Control, Transformer

CONFIG = TransformerConfig(
    dim=32, heads=2, layers=5, ffn_dim=48, in_channels=4, out_channels=4, text_dim=16, text_len=6
)
CPU = torch.device("cpu")


class LazyLane:
    """Copies wait in a queue until work that needs one comes. Work itself happens at once, so a copy that was asked for
    without waiting for the work of the block before would have to be refused: its mark says whether it may begin."""

    def __init__(self, eager: Callable[[], bool]) -> None:
        self._eager = eager
        self._queue: list[tuple[Tensor, Tensor, int]] = []
        self._done = self._asked = 0
        self._work = 0
        self.log: list[str] = []
        self.waited: int | None = None

    def hold(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> int:
        target.fill_(255)  # half-written numbers are NaN: nothing may read them before the mark
        self._queue.append((target, source, self._asked))
        self._asked += 1
        self.log.append("copy")
        if self._eager():
            self._run(self._asked)
        return self._asked

    def mark_work(self) -> int:
        self._work += 1
        return self._work

    def copies_wait(self, mark: int) -> None:
        assert mark <= self._work
        self.waited = mark
        self.log.append(f"copies wait {mark}")

    def work_waits(self, mark: int) -> None:
        self.log.append("work waits")
        self._run(mark)

    def _run(self, until: int) -> None:
        while self._done < until:
            target, source, _ = self._queue[self._done]
            target.copy_(source)
            self._done += 1


def _inputs(model: Transformer) -> tuple[Tensor, Tensor, Context]:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 3, 4, 6, generator=generator)
    return latents, torch.tensor([[300.0, 0.0, 300.0]]), model.context(torch.randn(1, 5, 16, generator=generator))


def _model(**changes: Any) -> Transformer:
    import dataclasses

    torch.manual_seed(7)
    model = Transformer(dataclasses.replace(CONFIG, **changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("mood", ["late", "early", "mixed"])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_streamed_blocks_give_the_bits_of_resident_ones(mood: str, layers: int) -> None:
    """Over several steps, for one block, two and more, and however late copies are."""
    draw = random.Random(layers)
    lane = LazyLane({"late": lambda: False, "early": lambda: True, "mixed": lambda: draw.random() < 0.5}[mood])
    model = _model(layers=layers)
    inputs = _inputs(model)
    expected = model(*inputs)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    stream = BlockStream(list(model.blocks), CPU, lane)
    for _ in range(3):
        assert torch.equal(model(*inputs), expected)
    assert stream.device_bytes < 3 * sum(t.numel() * 4 for t in model.blocks[0].parameters())
    stream.close()
    assert torch.equal(model(*inputs), expected)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_the_next_block_is_asked_for_before_this_one_works() -> None:
    """And into a place only after the work of the block that was there."""
    model = _model()
    lane = LazyLane(lambda: False)
    inputs = _inputs(model)
    BlockStream(list(model.blocks), CPU, lane)
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(lane.log.count("copy")))
    model(*inputs)
    assert seen == [2, 3, 4, 5, 6]  # its own and the next: the last one asks for the first of the next step
    waits = [entry for entry in lane.log if entry.startswith("copies wait")]
    assert waits == [f"copies wait {i}" for i in range(1, 6)]
    order = [entry for entry in lane.log if entry != "work waits"]
    assert order == [waits[0], "copy", "copy", *(entry for wait in waits[1:] for entry in (wait, "copy"))]
    assert PLACES == 2


def test_a_block_that_is_called_out_of_turn_is_brought() -> None:
    """After a cancel the next step begins with the first block again."""
    model = _model()
    inputs = _inputs(model)
    expected = model(*inputs)
    BlockStream(list(model.blocks), CPU, LazyLane(lambda: False))

    class Stop(Exception):
        pass

    def cancel(block: int) -> None:
        if block == 3:
            raise Stop

    with pytest.raises(Stop):
        model(*inputs, on_block=cancel)
    assert torch.equal(model(*inputs), expected)


def test_packed_weights_and_control_blocks_are_streamed_too() -> None:
    """fp8 stays bytes on the way; VACE's blocks work before the others."""
    model = _model(vace_in_channels=8, vace_layers=(0, 2, 4))
    layer = model.blocks[1].ffn[0]
    data = (torch.randn(48, 32) * 4).to(torch.float8_e4m3fn).view(torch.uint8)
    model.blocks[1].ffn[0] = PackedLinear(Packed("F8_E4M3", data, (48, 32), torch.tensor([0.1])), layer.bias)
    latents, time, context = _inputs(model)
    control = [Control(torch.randn(1, 8, 3, 4, 6))]
    expected = model(latents, time, context, control)
    stream = BlockStream([*model.vace_blocks, *model.blocks], CPU, LazyLane(lambda: False))
    assert torch.equal(model(latents, time, context, control), expected)
    assert torch.equal(model(latents, time, context, control), expected)
    stream.close()
    assert torch.equal(model(latents, time, context, control), expected)


def test_a_device_without_streams_copies_at_once() -> None:
    model = _model()
    inputs = _inputs(model)
    expected = model(*inputs)
    BlockStream(list(model.blocks), CPU, PlainLane())
    assert torch.equal(model(*inputs), expected)
