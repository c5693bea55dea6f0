# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The types on our wires. ComfyUI matches them by name."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "Rushes"

ModelSocket = io.Custom("RUSHES_MODEL")  # model.RushesModel
ShotSocket = io.Custom("RUSHES_SHOT")  # rushes.Shot
KeyframesSocket = io.Custom("RUSHES_KEYFRAMES")  # tuple of rushes.Keyframe
ControlSocket = io.Custom("RUSHES_CONTROL")  # tuple of rushes.Control
RecordSocket = io.Custom("RUSHES_RECORD")  # the dict that every output of Rushes carries
