# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a project asks of a published plate: one TOML file, read and checked whole before anything begins.

Without a file every rate, size, length and colour space is allowed, a review is needed, and the template is TEMPLATE.
`rushes-publish.toml` beside this module is an example with a comment for every key.
"""

from __future__ import annotations

import importlib
import os
import re
import string
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from rushes.media.paths import CODECS
from rushes.shot import MAX_FRAMES, ShotError, parse_fps, parse_size

FILE_NAME = "rushes-publish.toml"
VARIABLE = "RUSHES_PUBLISH_SETTINGS"
TEMPLATE = "{root}/{shot}/plates/{name}/v{version:03d}"
FIELDS = ("root", "shot", "name", "version")
# Of `proxy`: the suffix of each codec, the first that has it
PROXIES = {
    codec: next(kind for kind in CODECS if codec in CODECS[kind]) for codecs in CODECS.values() for codec in codecs
}
PROXIES |= {"none": ""}
VERSION_FIELD = re.compile(r"\{version[^}]*\}")
_VERSION_FORMAT = re.compile(r"0\d*d|d|")


@dataclass(frozen=True)
class Settings:
    """Empty and None mean that everything is allowed.

    path: the file, None without one; template: of a version's folder; fps: exact rates; sizes: (width, height) in
    pixels; first_frame: number of the first file; frames: fewest and most; colorspaces: names, aliases or Color
    Interop IDs; is_review_required; proxy: a key of PROXIES; thumbnail_width, sheet_width: pixels; sheet_columns,
    sheet_frames: of the contact sheet, 0 frames for none; has_timeline.
    """

    path: Path | None = None
    template: str = TEMPLATE
    fps: tuple[Fraction, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    first_frame: int | None = None
    frames: tuple[int, int] | None = None
    colorspaces: tuple[str, ...] = ()
    is_review_required: bool = True
    proxy: str = "h264"
    thumbnail_width: int = 640
    sheet_width: int = 1600
    sheet_columns: int = 4
    sheet_frames: int = 12
    has_timeline: bool = True

    @property
    def proxy_suffix(self) -> str:
        """ "mp4" or "mov", or "" where no proxy is wanted."""
        return PROXIES[self.proxy]

    def version_text(self, version: int) -> str:
        """The number as the template writes it, so that files and folders have the same."""
        found = VERSION_FIELD.search(self.template)
        assert found is not None  # a template without it is refused
        return found[0].format(version=version)

    def folder(self, root: Path, shot: str, name: str, version: int) -> Path:
        """Where a version goes."""
        return Path(self.template.format(root=root, shot=shot, name=name, version=version))


def find_settings(root: str | os.PathLike[str], given: str | os.PathLike[str] | None = None) -> Settings:
    """The project's settings: `given`, else what RUSHES_PUBLISH_SETTINGS names, else the nearest file upward of `root`.

    Raises ShotError for a file that is named and missing, and for anything in it that is wrong.
    """
    named = given or os.environ.get(VARIABLE)
    if named:
        return read_settings(Path(named).expanduser().absolute())
    folder = Path(root).absolute()
    for parent in (folder, *folder.parents):
        if (parent / FILE_NAME).is_file():
            return read_settings(parent / FILE_NAME)
    return Settings()


def read_settings(path: Path) -> Settings:
    """One file. Raises ShotError."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ShotError(
            f"settings: {path} cannot be read ({error.strerror or error}); a {FILE_NAME} is allowed"
        ) from error
    except UnicodeDecodeError as error:
        raise ShotError(f"settings: {path} is not UTF-8; a TOML text is allowed") from error
    toml = _toml()
    try:
        values = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ShotError(f"settings: {path} is not TOML ({error}); a TOML text is allowed") from error
    return Settings(path=path, **_Reader(path, values).read())


def _toml() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ShotError(
            f'settings: reading TOML needs {name} on this Python; `pip install "rushes[publish]"` brings it'
        ) from error


@dataclass
class _Reader:
    """Goes through the tables; every refusal names the file, the key, what was got and what is allowed."""

    path: Path
    values: Mapping[str, Any]
    found: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, Any]:
        """Fields of Settings that the file gives."""
        unknown = [key for key in self.values if key not in {table or key for table, key in _KEYS}]
        for table in {table for table, _ in _KEYS if table} & self.values.keys():
            if not isinstance(self.values[table], dict):
                raise self.refusal(table, self.values[table], f"a table [{table}]")
            unknown += [f"{table}.{key}" for key in self.values[table] if (table, key) not in _KEYS]
        if unknown:
            allowed = ", ".join(f"{table}.{key}" if table else key for table, key in _KEYS)
            raise ShotError(
                f"settings: {self.path} has unknown keys: {', '.join(sorted(unknown))}; allowed are {allowed}"
            )
        for (table, key), (name, convert) in _KEYS.items():
            holder = self.values.get(table, {}) if table else self.values
            if key in holder:
                self.found[name] = convert(self, f"{table}.{key}" if table else key, holder[key])
        return self.found

    def refusal(self, key: str, got: Any, allowed: str) -> ShotError:
        return ShotError(f"settings: in {self.path}, {key} is {got!r}; {allowed} is allowed")


def _rates(reader: _Reader, key: str, value: Any) -> tuple[Fraction, ...]:
    return tuple(_each(reader, key, value, parse_fps, 'a list of rates such as [24, "24000/1001"]'))


def _sizes(reader: _Reader, key: str, value: Any) -> tuple[tuple[int, int], ...]:
    return tuple(_each(reader, key, value, parse_size, 'a list of sizes such as ["1920x1080"]'))


def _spaces(reader: _Reader, key: str, value: Any) -> tuple[str, ...]:
    from rushes.media.images import tagged_space

    def known(name: str) -> str:
        return tagged_space(name).name

    return tuple(_each(reader, key, value, known, 'a list of colour spaces such as ["ACEScg"]'))


def _each(reader: _Reader, key: str, value: Any, convert: Callable[[Any], Any], allowed: str) -> list[Any]:
    if not isinstance(value, list) or any(isinstance(item, (dict, list, bool)) for item in value):
        raise reader.refusal(key, value, allowed)
    try:
        return [convert(item) for item in value]
    except (ShotError, AttributeError, TypeError) as error:
        reason = f" ({error})" if isinstance(error, ShotError) else ""
        raise reader.refusal(key, value, f"{allowed}{reason},") from error


def _span(reader: _Reader, key: str, value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
    if not is_pair or not 1 <= value[0] <= value[1] <= MAX_FRAMES:
        raise reader.refusal(key, value, "[fewest, most] such as [9, 401]")
    return value[0], value[1]


def _whole(low: int, high: int) -> Callable[[_Reader, str, Any], int]:
    def convert(reader: _Reader, key: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise reader.refusal(key, value, f"a whole number from {low} to {high}")
        return value

    return convert


def _flag(reader: _Reader, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise reader.refusal(key, value, "true or false")
    return value


def _proxy(reader: _Reader, key: str, value: Any) -> str:
    if not isinstance(value, str) or value not in PROXIES:
        raise reader.refusal(key, value, " or ".join(f'"{name}"' for name in PROXIES))
    return value


def _template(reader: _Reader, key: str, value: Any) -> str:
    example = f'a path such as "{TEMPLATE}"'
    if not isinstance(value, str):
        raise reader.refusal(key, value, example)
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise reader.refusal(key, value, example) from error
    names = [name for _, name, _, _ in parts if name is not None]
    if unknown := sorted(set(names) - set(FIELDS)):
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise reader.refusal(key, value, f"a path of {fields} alone, without {', '.join(map(repr, unknown))},")
    for _, name, form, conversion in parts:
        is_plain = not conversion and (_VERSION_FORMAT.fullmatch(form or "") if name == "version" else not form)
        if name is not None and not is_plain:
            raise reader.refusal(key, value, f"fields without a format, but for {{version:03d}}, as in {example},")
    folders = value.replace("\\", "/").split("/")
    if folders[0] != "{root}" or names.count("root") != 1 or any(part in ("", ".", "..") for part in folders):
        raise reader.refusal(key, value, f"{{root}}, then folders inside it, as in {example},")
    if names.count("version") != 1 or "{version" not in folders[-1]:
        raise reader.refusal(key, value, f"one {{version}}, in the last folder's name, as in {example},")
    return value


_KEYS: dict[tuple[str, str], tuple[str, Callable[[_Reader, str, Any], Any]]] = {
    ("", "template"): ("template", _template),
    ("plate", "fps"): ("fps", _rates),
    ("plate", "sizes"): ("sizes", _sizes),
    ("plate", "first_frame"): ("first_frame", _whole(0, 10_000_000)),
    ("plate", "frames"): ("frames", _span),
    ("plate", "colorspaces"): ("colorspaces", _spaces),
    ("review", "required"): ("is_review_required", _flag),
    ("deliver", "proxy"): ("proxy", _proxy),
    ("deliver", "thumbnail_width"): ("thumbnail_width", _whole(64, 4096)),
    ("deliver", "contact_sheet_width"): ("sheet_width", _whole(320, 8192)),
    ("deliver", "contact_sheet_columns"): ("sheet_columns", _whole(1, 20)),
    ("deliver", "contact_sheet_frames"): ("sheet_frames", _whole(0, 200)),
    ("deliver", "timeline"): ("has_timeline", _flag),
}
