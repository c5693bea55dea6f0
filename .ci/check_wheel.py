# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Fails unless the installed package has everything it needs, and nothing that belongs to the checkout."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from importlib import metadata

REQUIRED = (
    "rushes/py.typed",
    "rushes/shot.py",
    "rushes/publish/plugins/rushes_validate.py",
    "rushes/publish/rushes-publish.toml",
    "rushes/starter/held_out.json",
    "rushes/starter/weights/*.safetensors",
    "rushes/attention/_kernel.*",
    "rushes/plugins/blender/blender_manifest.toml",
    "rushes/plugins/blender/__init__.py",
    "rushes/plugins/comfyui/__init__.py",
    "rushes/plugins/comfyui/pyproject.toml",
    "rushes/plugins/comfyui/example_workflows/*.json",
    "rushes/plugins/comfyui/locales/en/nodeDefs.json",
    "rushes/plugins/comfyui/web/docs/RushesGenerate.md",
    "rushes/plugins/nuke/init.py",
    "rushes/plugins/nuke/menu.py",
    "rushes/plugins/nuke/rushes_nuke/__init__.py",
    "rushes-*.dist-info/licenses/LICENSE",
)
ALLOWED_TREES = ("rushes/", "rushes-", "../")  # "../" is the script `rushes`
MAX_WEIGHTS = 48_000_000  # bytes, all files of the starter together


def main() -> int:
    files = [file for file in metadata.files("rushes") or () if "__pycache__" not in str(file)]
    names = [file.as_posix() for file in files]
    faults = [f"missing: {pattern}" for pattern in REQUIRED if not any(fnmatch(name, pattern) for name in names)]
    faults += [f"does not belong: {name}" for name in names if not name.startswith(ALLOWED_TREES)]
    faults += [f"does not belong: {name}" for name in names if name.endswith((".cpp", ".h", ".pt", ".pth", ".ckpt"))]
    weights = sum(file.size or 0 for file in files if file.name.endswith(".safetensors"))
    if weights > MAX_WEIGHTS:
        faults.append(f"the weights are {weights / 1e6:.1f} MB; up to {MAX_WEIGHTS / 1e6:.0f} MB are allowed")
    if not any(file.startswith("../") and "/rushes" in file for file in names):
        faults.append("missing: the script `rushes`")
    print(f"{len(names)} files, weights {weights / 1e6:.1f} MB")
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
