# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""torch's own files (.pth, .pt), looked through before torch opens them with weights_only.

torch runs no code of such a file; but it would unpack a zip that grows a thousandfold, and a pickle may ask for a list
of any size. A plain state dict needs neither, so only what it needs is let through.
"""

from __future__ import annotations

import mmap
import pickletools
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

MAX_PICKLE = 16 * 2**20  # bytes of names, shapes and places; Wan's have 0.2 MB
LEGACY_PARTS = 5  # pickles, one behind the other, in files older than torch 1.6

# "module name" of what a state dict is made of; torch's own list is longer
_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool", "Untyped")
_GLOBALS |= {f"torch {kind}Storage" for kind in _STORAGES} | {"torch.storage UntypedStorage"}
_GLOBALS |= {"torch float8_e4m3fn", "torch float8_e5m2", "torch._utils _rebuild_tensor_v3"}
# Other ways to name or make an object, which torch, writing protocol 2, does not use
_FOREIGN = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER")


def is_zip(path: Path) -> bool:
    """Whether it is a file as torch writes them since 1.6, which alone can be mapped."""
    return zipfile.is_zipfile(path)


def check(path: Path) -> None:
    """Raise ValueError, or what reading a damaged file raises, for a file that is more than plain tensors."""
    if not is_zip(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in range(LEGACY_PARTS):
                _check_pickle(content)
        return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed zip, which torch does not write")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries are larger than the file")
        pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickled) != 1 or pickled[0].file_size > MAX_PICKLE:
            raise ValueError("it has not the one list of tensors that torch writes")
        _check_pickle(BytesIO(archive.read(pickled[0])))


def _check_pickle(content: Any) -> None:
    """Go through one pickle without running it."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            if argument not in _GLOBALS:
                raise ValueError(f"a pickle that calls {str(argument).replace(' ', '.')}")
        elif opcode.name in _FOREIGN:
            raise ValueError(f"a pickle with {opcode.name}, which no state dict has")
