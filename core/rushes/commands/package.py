# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes package HOST`: the plug-in of a host as its users install it, with the jobs' client where one is needed."""

from __future__ import annotations

import hashlib
import html
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import rushes
from rushes._version import __version__
from rushes.replacing import replacing
from rushes.shot import ShotError

VENDORED = (
    "client.py",
    "controller.py",
    "placeholder.py",
    "plan.py",
    "wire.py",
)  # of rushes/jobs; standard library only
LEFT_OUT = ("__pycache__", "vendor", ".mypy_cache")
BLENDER_ID = "rushes"
COMFYUI_ID = "rushes"  # the folder below custom_nodes
NUKE_ID = "rushes"  # the folder that pluginAddPath names
_TIME = (2020, 1, 1, 0, 0, 0)  # of every file in a zip: the same sources make the same bytes
_HEADER = "# SPDX-License-Identifier: Apache-2.0\n# Copyright Contributors to the Rushes project\n"


@click.group()
def package() -> None:
    """Build the plug-in of a host. It is installed in the host, and works with an installation of Rushes."""


@package.command()
@click.option("-o", "--output", required=True, metavar="DIR", help="Where the zip and the repository index go.")
@click.option("--unpacked", is_flag=True, help="Leave a folder instead of a zip, for developers.")
def blender(output: str, unpacked: bool) -> None:
    """Build the extension for Blender 4.2 and later.

    DIR gets the zip, for Edit > Preferences > Get Extensions > Install from Disk, and index.json and index.html beside
    it: put DIR on a web server or a shared disk, and it is a repository that Blender updates from.
    """
    folder = Path(output)
    files = blender_files()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if unpacked:
            click.echo(_write_folder(folder / BLENDER_ID, files))
            return
        path = folder / f"{BLENDER_ID}-{__version__}.zip"
        _write_zip(path, files)
        index = blender_index(path, files["blender_manifest.toml"].decode())
        _write(folder / "index.json", json.dumps(index, indent=1).encode() + b"\n")
        _write(folder / "index.html", _page(path, index["data"][0]).encode())
    click.echo(path)


@package.command()
@click.option("-o", "--output", required=True, metavar="DIR", help="Where the folder goes, such as custom_nodes.")
def comfyui(output: str) -> None:
    """Write the nodes for ComfyUI 0.3.75 and later, as a folder ready for its custom_nodes.

    They need this package where ComfyUI runs: `pip install rushes` in its own environment.
    """
    folder = Path(output)
    with _writing(folder):
        click.echo(_write_folder(folder / COMFYUI_ID, comfyui_files()))


@package.command()
@click.option("-o", "--output", required=True, metavar="DIR", help="Where the folder goes, such as ~/.nuke.")
def nuke(output: str) -> None:
    """Write the plug-in for Nuke 14 and later, as a folder.

    One line in ~/.nuke/init.py has Nuke load it: nuke.pluginAddPath("DIR/rushes").
    """
    folder = Path(output)
    with _writing(folder):
        path = _write_folder(folder / NUKE_ID, nuke_files())
    click.echo(path)
    click.echo(f'in ~/.nuke/init.py: nuke.pluginAddPath("{path.absolute().as_posix()}")', err=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the system says about files in `folder`, as one sentence on the argument."""
    try:
        yield
    except OSError as error:
        raise ShotError(
            f"output: {folder} cannot be written ({error.strerror or error}); a folder is allowed"
        ) from error


def plugin_folder(host: str) -> Path:
    """Sources of a plug-in: inside the installed package, or in the checkout. Raises ShotError."""
    inside = Path(rushes.__file__).parent
    for folder in (inside / "plugins" / host, inside.parents[1] / "plugins" / host):
        if folder.is_dir():
            return folder
    raise ShotError(f"host: this installation has no plug-in for {host}; a complete one is allowed")


def blender_files() -> dict[str, bytes]:
    """The extension's files by their names in the zip."""
    return _sources("blender", "blender_manifest.toml") | _vendored("vendor")


def comfyui_files() -> dict[str, bytes]:
    """The nodes' files by their names in the folder."""
    return _sources("comfyui", "pyproject.toml")


def nuke_files() -> dict[str, bytes]:
    """The plug-in's files by their names in the folder."""
    return _sources("nuke") | _vendored("rushes_nuke/vendor")


def _vendored(folder: str) -> dict[str, bytes]:
    """The host-free files of rushes.jobs, as a package in `folder`."""
    jobs = Path(rushes.__file__).parent / "jobs"
    files = {f"{folder}/{name}": (jobs / name).read_bytes() for name in VENDORED}
    note = '"""From rushes/jobs of Rushes ' + __version__ + '."""\n'
    return {**files, f"{folder}/__init__.py": (_HEADER + note).encode()}


def _sources(host: str, manifest: str = "") -> dict[str, bytes]:
    """A plug-in's files by their names, with this version in the one that names it."""
    source = plugin_folder(host)
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part in LEFT_OUT for part in path.relative_to(source).parts)
    }
    if not manifest:
        return files
    text = files[manifest].decode()
    files[manifest] = re.sub(r'^version = ".*"$', f'version = "{__version__}"', text, count=1, flags=re.M).encode()
    return files


def blender_index(path: Path, manifest: str) -> dict[str, Any]:
    """A repository with this one extension, in the form of Blender's own `extension server-generate`."""
    data = path.read_bytes()
    entry = {
        **_manifest_values(manifest),
        "archive_url": f"./{path.name}",
        "archive_size": len(data),
        "archive_hash": f"sha256:{hashlib.sha256(data).hexdigest()}",
    }
    return {"version": "v1", "blocklist": [], "data": [entry]}


def _manifest_values(text: str) -> dict[str, Any]:
    """Our own manifest: one value a line, and one table. Python 3.10 has no TOML reader yet."""
    values: dict[str, Any] = {}
    table = values
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            table = values.setdefault(heading[1], {})
        elif pair := re.fullmatch(r"(\w+) = (\".*\"|\[.*\])", line):
            table[pair[1]] = json.loads(pair[2])
        elif line and not line.startswith("#"):
            raise ValueError(f"blender_manifest.toml: {line!r} is not understood")
    return values


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name])


def _write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write(folder / name, data)
    return folder


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _page(path: Path, entry: dict[str, Any]) -> str:
    """What a browser shows; the link can be dragged into Blender's window."""
    link = f"{entry['archive_url']}?repository=./index.json&blender_version_min={entry['blender_version_min']}"
    name, tagline = html.escape(entry["name"]), html.escape(entry["tagline"])
    return (
        f'<!doctype html><meta charset="utf-8"><title>{name}</title><h1>{name} {entry["version"]}</h1><p>{tagline}</p>'
        f'<p><a href="{html.escape(link)}">{html.escape(path.name)}</a>: drag it into Blender, or add this page\'s '
        "index.json as a remote repository.</p>\n"
    )
