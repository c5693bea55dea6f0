# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The version: its only place. The build reads this file too."""

__version__ = "0.1.0"
