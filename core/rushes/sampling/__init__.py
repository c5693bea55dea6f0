# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sampling: from noise to latents. Pure functions; state is in the arguments, nothing is global.

schedules (which noise levels), solvers (how to step between them), guidance (how the prompt pulls),
known_frames (frames that are given), masks (the extra channels of Wan I2V and VACE), noise (where it starts).
"""
