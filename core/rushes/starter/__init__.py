# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The starter model: its procedural world, its training, its weights."""
