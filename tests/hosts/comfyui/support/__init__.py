# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the tests of the ComfyUI nodes drive: a real ComfyUI, its server, a frontend, and prompts."""
