# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What ComfyUI gives a node while it runs: its interrupt, its progress bar, its links, its devices' memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from rushes.progress import Cancelled
from rushes.shot import ShotError

_COMMAND_LINE = re.compile(r" \([^()]*--[a-z][^()]*\)|^(--|-o )")


class Interrupt:
    """The engine's `cancel`: set while somebody has pressed the button that stops a run."""

    def is_set(self) -> bool:
        return bool(comfy.model_management.processing_interrupted())

    def check(self) -> None:
        """Raise ComfyUI's own exception when it is set."""
        comfy.model_management.throw_exception_if_processing_interrupted()


@contextmanager
def spoken_plainly() -> Iterator[None]:
    """The core's exceptions as ComfyUI shows them: an interrupt is one, and bad input is one sentence."""
    try:
        yield
    except Cancelled as error:
        comfy.model_management.throw_exception_if_processing_interrupted()  # it takes the request back, too
        raise comfy.model_management.InterruptProcessingException() from error
    except ShotError as error:
        raise ShotError(plain(error)) from None


def plain(error: ShotError) -> str:
    """The sentence without what only the command line has, such as "(--fit takes the nearest)"."""
    return _COMMAND_LINE.sub("", str(error))


def linked_outputs() -> frozenset[int] | None:
    """The outputs of the running node that the prompt reads; None where the prompt does not show it."""
    context, prompt = get_executing_context(), get_progress_state().dynprompt.get_original_prompt()
    if context is None or context.node_id not in prompt:
        return None
    links: list[Any] = [value for node in prompt.values() for value in node["inputs"].values() if is_link(value)]
    return frozenset(slot for node_id, slot in links if node_id == context.node_id)
