# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes in ComfyUI: text-to-video nodes. Nothing heavy is loaded here: ComfyUI waits for every pack at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extension import RushesExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> RushesExtension:
    from .extension import RushesExtension

    return RushesExtension()
