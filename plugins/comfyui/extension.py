# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The list of nodes, or one readable line in the log where the package `rushes` is missing or too old."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .presence import why_absent


class RushesExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if reason := why_absent():
            logging.error("Rushes: %s No Rushes nodes were added.", reason)
            return []
        from .attention_node import RushesAttention, RushesAttentionReport
        from .control_node import RushesControl
        from .generate_node import RushesGenerate
        from .model_nodes import RushesLoadLora, RushesLoadModel
        from .read_nodes import RushesReadPlate, RushesShotFromFile
        from .shot_nodes import RushesKeyframe, RushesShot
        from .write_node import RushesWritePlate

        return [
            RushesLoadModel,
            RushesLoadLora,
            RushesShot,
            RushesKeyframe,
            RushesControl,
            RushesShotFromFile,
            RushesGenerate,
            RushesWritePlate,
            RushesReadPlate,
            RushesAttention,
            RushesAttentionReport,
        ]
