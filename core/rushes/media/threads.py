# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Who shares out the work on EXR files: OpenEXR's own threads, or ours, a frame each.

OpenEXR hands the blocks of every file to one pool of threads. That is quick for one file at a time; for a plate, whose
frames are many, a thread for each frame costs less: nobody waits for anybody, and no block changes hands.
"""

from __future__ import annotations

import threading

import OpenImageIO as oiio  # noqa: N813 - the field's name for it

_POOL = "exr_threads"  # OpenImageIO's name; it is one for the whole process
_NO_POOL = -1

_lock = threading.Lock()
_holders = 0
_before = 0


def hold() -> None:
    """From now on every EXR file is worked on by the thread that asks, until each holder has called `release`."""
    global _holders, _before
    with _lock:
        if not _holders:
            _before = oiio.get_int_attribute(_POOL)
            oiio.attribute(_POOL, _NO_POOL)
        _holders += 1


def release() -> None:
    """The last one puts back what was before."""
    global _holders
    with _lock:
        _holders -= 1
        if not _holders:
            oiio.attribute(_POOL, _before)
