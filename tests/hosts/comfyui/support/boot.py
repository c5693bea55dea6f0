# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Starts ComfyUI's main.py where torchvision and torchaudio of the package index meet a torch without CUDA.

Both are CUDA builds there, whose C++ libraries do not load beside the processor's torch, and ComfyUI imports both.
Their Python halves are enough: torchvision's imports once the two operators that it registers a second form for are
declared, torchaudio's once it does not see its library. Where the libraries load nothing is done.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class Finder(importlib.abc.MetaPathFinder):
    """Asked before every import; acts on two names, once each."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._kept: list[Any] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self._seen or name not in ("torchvision", "torchaudio._extension.utils"):
            return None
        self._seen.add(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and name == "torchvision":
            self._declare_operators(pathlib.Path(spec.origin or "").parent)
            return None
        if spec is not None:
            self._hide_library(spec)
        return spec

    def _declare_operators(self, package: pathlib.Path) -> None:
        import torch

        if not _loads(package.glob("_C*.so")):
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self._kept.append(library)

    @staticmethod
    def _hide_library(spec: importlib.machinery.ModuleSpec) -> None:
        assert spec.loader is not None
        if _loads((pathlib.Path(spec.origin or "").parents[1] / "lib").glob("*torchaudio*.so")):
            return
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            module._LIB_DIR = pathlib.Path(os.devnull)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]


def _loads(libraries: Any) -> bool:
    import torch

    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
