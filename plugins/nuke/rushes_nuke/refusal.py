# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What stops the artist, in one sentence that names the argument, what was got and what is allowed."""

from __future__ import annotations


class Refusal(ValueError):
    """Bad input, or something that is not there."""
