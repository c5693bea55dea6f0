# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What this machine has and what is missing, as data. Each check survives a broken library."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rushes._version import __version__

State = Literal["ok", "note", "problem"]
_GIB = 2**30
_LOW_DISK = 2  # GiB; a minute of 1080p half-float plates takes about ten


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: "note" is worth knowing, "problem" stops or spoils a shot."""

    name: str
    state: State
    text: str


def examine() -> list[Finding]:
    """Every check, in reading order. Imports torch and the media libraries; takes seconds; writes nothing."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _interpreter,
        _libraries,
        _processor,
        _cards,
        _starter_weights,
        _disks,
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:  # a report with one hole is worth more than none, and the hole is in the report
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "problem", f"the check failed: {type(error).__name__}: {error}"))
    return findings


def _interpreter() -> Iterator[Finding]:
    yield Finding("rushes", "ok", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield Finding("system", "ok", f"{platform.platform()}, {os.cpu_count()} logical cores")


def _libraries() -> Iterator[Finding]:
    """Imports each, because an installed library may still miss a part of the system."""
    for name, module, distribution in (
        ("torch", "torch", "torch"),
        ("OpenImageIO", "OpenImageIO", "OpenImageIO"),
        ("OpenColorIO", "PyOpenColorIO", "opencolorio"),
        ("PyAV", "av", "av"),
        ("OpenTimelineIO", "opentimelineio", "OpenTimelineIO"),
        ("safetensors", "safetensors", "safetensors"),
        ("tokenizers", "tokenizers", "tokenizers"),
    ):
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            yield Finding(name, "problem", f"it cannot be imported: {_first_line(error)}; pip install {distribution}")
        else:
            yield Finding(name, "ok", _version_of(module, distribution))


def _processor() -> Iterator[Finding]:
    try:
        from rushes.attention.extension import load_extension
    except (ImportError, OSError) as error:
        yield Finding("attention", "problem", f"torch cannot be imported: {_first_line(error)}")
        return
    extension = load_extension()
    if extension.module is None:
        yield Finding("processor", "note", f"{platform.machine()}; its features are read by the compiled module")
        yield Finding("compiled module", "note", extension.reason)
        yield Finding("attention", "ok", "by torch, as there is no compiled module")
        return
    info = extension.module.build_info()
    features = [name for name, present in extension.module.cpu_features().items() if present]
    yield Finding("processor", "ok", f"{info['architecture']}: {', '.join(features) or 'no vector extensions'}")
    yield Finding("compiled module", "ok", f"{info['version']}, built by {info['compiler']}")
    yield from _attention()


def _attention() -> Iterator[Finding]:
    """Which code serves each dtype of a CPU's tensors, and why."""
    from rushes.attention.dispatch import FASTER, forced_backend
    from rushes.attention.kernel import backend_name

    try:
        forced = forced_backend()
    except ValueError as error:
        yield Finding("attention", "problem", str(error))
        return
    if forced in ("torch", "flex"):
        how = "torch" if forced == "torch" else "torch, tile patterns by its FlexAttention"
        yield Finding("attention", "note", f"by {how}, as RUSHES_ATTENTION={forced} asks")
        return
    served = ", ".join(f"{dtype} by {backend_name(128, dtype, None)}" for dtype in ("float32", "bfloat16", "float16"))
    if forced is None:
        faster = ", ".join(sorted({dtype for dtype, engine in FASTER if backend_name(128, dtype, None) == engine}))
        text = (
            f"by the compiled kernel on the processor ({served}) for tile patterns, and dense where it is faster than "
            f"torch ({faster or 'nowhere'} here); few queries, cards and gradients by torch"
        )
    else:
        text = f"by the compiled kernel, as RUSHES_ATTENTION=rushes asks: {served}; what it cannot do is refused"
    yield Finding("attention", "ok", text)


def _cards() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError):
        return  # told with the libraries
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            text = f"{card.name}, {card.total_memory / _GIB:.1f} GiB, sm_{card.major}{card.minor}"
            yield Finding(f"cuda:{index}", "ok", text)
    elif torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    elif torch.version.cuda is None and torch.version.hip is None:
        yield Finding("GPU", "note", "this torch is a CPU build; shots are made on the processor")
    else:
        yield Finding("GPU", "note", "none that torch can use; shots are made on the processor")
    yield Finding("threads", "ok", f"torch uses {torch.get_num_threads()} on the processor")


def _starter_weights() -> Iterator[Finding]:
    folder = Path(__file__).parent / "starter" / "weights"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        yield Finding("starter", "problem", f"no weights in {folder}; install Rushes again")
    for file in files:
        size = f"{file.name}, {file.stat().st_size / 1e6:.1f} MB"
        expected = _recorded_digest(file)
        if expected is None:
            # a source tree or an editable install has no list of digests to compare with
            yield Finding("starter", "note", f"{size}; not compared, since it is not part of an installed wheel")
        elif hashlib.sha256(file.read_bytes()).digest() == expected:
            yield Finding("starter", "ok", f"{size}, as installed")
        else:
            yield Finding(
                "starter",
                "problem",
                f"{size}: the file has changed since it was installed; install Rushes again",
            )


def _recorded_digest(file: Path) -> bytes | None:
    """SHA-256 that the installer wrote into RECORD for this very file, or None if it wrote none."""
    try:
        recorded = metadata.distribution("rushes").files or []
    except metadata.PackageNotFoundError:
        return None
    for entry in recorded:
        if entry.name != file.name or entry.hash is None or entry.hash.mode != "sha256":
            continue
        if Path(str(entry.locate())).resolve() == file.resolve():
            return base64.urlsafe_b64decode(entry.hash.value + "=" * (-len(entry.hash.value) % 4))
    return None


def _disks() -> Iterator[Finding]:
    for name, folder in (("working folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / _GIB
        writable = os.access(folder, os.W_OK)
        text = f"{folder}, {free:.1f} GiB free" + ("" if writable else ", not writable")
        yield Finding(name, "ok" if writable and free >= _LOW_DISK else "note", text)


def _version_of(module: str, distribution: str) -> str:
    """The installed distribution's version; the module's own word where a studio builds it without one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = getattr(sys.modules[module], "__version__", None)
        return f"{version or 'unknown version'} (not installed by pip)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
