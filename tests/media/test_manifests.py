# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Manifests: beside which outputs they lie, under which name, what they say, and which of them are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import WriteError, manifest_path, next_version, open_outputs, read_manifest
from rushes.media.paths import Target
from rushes.shot import ShotError

NAMES = [  # output, its manifest
    ("sh010_v003.%04d.exr", "sh010_v003.exr.manifest.json"),
    ("sh010_v003.####.exr", "sh010_v003.exr.manifest.json"),
    ("sh010_v003_%04d.png", "sh010_v003.png.manifest.json"),
    ("plate%04d.exr", "plate.exr.manifest.json"),
    ("plate.%04d.left.exr", "plate.left.exr.manifest.json"),
    ("%04d.exr", "frames.exr.manifest.json"),
    ("shot.mov", "shot.mov.manifest.json"),
    ("still.png", "still.png.manifest.json"),
]


@pytest.mark.parametrize(("output", "name"), NAMES)
def test_the_name_is_the_outputs_without_the_frame_number(tmp_path: Path, output: str, name: str) -> None:
    """With its suffix, so that a plate, its stills and its proxy do not share one."""
    assert manifest_path(f"{tmp_path}/{output}") == tmp_path / name


def test_a_plate_has_one_and_the_rest_where_asked(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Paths are still the pictures alone."""
    names = [tmp_path / name for name in ("p.%04d.exr", "s.%04d.png", "m.mov")]
    for folder, asked, expected in (
        ("default", {}, ["p.exr"]),
        ("all", {"manifest": True}, ["p.exr", "s.png", "m.mov"]),
        ("none", {"manifest": False}, []),
    ):
        paths = [path.parent / folder / path.name for path in names]
        with open_outputs(paths, make_record(2), **asked) as outputs:
            outputs.write(make_frames(2))
        assert [path.name for path in outputs.manifests] == [f"{name}.manifest.json" for name in expected]
        assert [path.name for path in outputs.paths] == [
            "p.1001.exr", "p.1002.exr", "s.1001.png", "s.1002.png", "m.mov"
        ]  # fmt: skip
        found = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert found == sorted(path.name for path in [*outputs.paths, *outputs.manifests])


def test_it_says_what_is_on_disk(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Bytes and digests are those of the files, counted here; the numbers are those of the names."""
    record = make_record(3, size=(21, 13))
    with open_outputs([tmp_path / "p.%04d.exr"], record, "lin_rec709", start_frame=998) as outputs:
        outputs.write(make_frames(3, size=(21, 13)))
    text = outputs.manifests[0].read_text("utf-8")
    stored = json.loads(text)
    assert {key: stored[key] for key in ("manifest", "pattern", "frames", "first", "last", "size", "fps")} == {
        "manifest": 1, "pattern": "p.%04d.exr", "frames": 3, "first": 998, "last": 1000, "size": [21, 13],
        "fps": "24000/1001",
    }  # fmt: skip
    assert stored["colorspace"] == "Linear Rec.709 (sRGB)"
    line = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert stored["shot"] == hashlib.sha256(line.encode()).hexdigest()
    assert len(text.splitlines()) < 30  # a line for each file, for people and for diff
    for number, path, file in zip((998, 999, 1000), outputs.paths, stored["files"], strict=True):
        assert (file["number"], file["name"]) == (number, path.name)
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        pixels = np.asarray(oiio.ImageInput.open(str(path)).read_image(oiio.HALF))
        assert file["pixels"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert read_manifest(outputs.manifests[0]).to_text() == text


@pytest.mark.parametrize(
    ("name", "options", "has_pixels"),
    [
        ("a.exr", {"depth": "float", "compression": "piz"}, True),
        ("a.exr", {"compression": "none"}, True),
        ("a.exr", {"compression": "dwaa"}, False),  # lossy: it gives back other numbers
        ("a.png", {}, True),
        ("a.mov", {}, False),
    ],
)
def test_pixels_are_proven_where_the_file_keeps_them(
    tmp_path: Path, make_record: Any, make_frames: Any, name: str, options: Any, has_pixels: bool
) -> None:
    """Of a lossy file only the bytes are known."""
    with open_outputs([tmp_path / name], make_record(1), manifest=True, **options) as outputs:
        outputs.write(make_frames(1))
    (file,) = read_manifest(outputs.manifests[0]).files
    assert (file.pixels is not None) is has_pixels
    assert file.number is None


def test_no_manifest_outlives_its_files(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """What fails leaves none; what replaces a plate replaces it or takes it away."""
    with pytest.raises(WriteError), open_outputs([tmp_path / "p.%04d.exr"], make_record(2)) as outputs:
        outputs.write(make_frames(1))
    assert list(tmp_path.iterdir()) == []
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(2)) as outputs:
        outputs.write(make_frames(2))
    before = outputs.manifests[0].read_text()
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(1), overwrite=True) as outputs:
        outputs.write(make_frames(1))
    after = outputs.manifests[0].read_text()
    assert before != after and json.loads(after)["last"] == 1001
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(1), overwrite=True, manifest=False) as outputs:
        outputs.write(make_frames(1))
    assert [path.name for path in tmp_path.iterdir()] == ["p.1001.exr"]


def test_a_manifest_takes_its_name(tmp_path: Path, make_record: Any) -> None:
    """Somebody took the frames away: their manifest is not silently replaced, and the version counts as taken."""
    (tmp_path / "p_v001.exr.manifest.json").write_text("{}")
    with pytest.raises(ShotError, match=r"^-o .*: p_v001\.exr\.manifest\.json already exists; give another name or"):
        open_outputs([tmp_path / "p_v001.%04d.exr"], make_record(1))
    assert next_version(tmp_path / "p.%04d.exr") == f"{tmp_path}/p_v002.%04d.exr"


def test_two_outputs_with_one_manifest_are_refused(tmp_path: Path, make_record: Any) -> None:
    """A sequence and a picture of the same name can stand side by side, their manifests cannot."""
    paths = [tmp_path / "a.%04d.exr", tmp_path / "a.exr"]
    with pytest.raises(ShotError, match=r"its manifest would be a\.exr\.manifest\.json, as that of -o .*a\.%04d\.exr;"):
        open_outputs(paths, make_record(1))
    open_outputs(paths, make_record(1), manifest=False)


def test_a_manifest_moves_to_a_new_name_with_its_files(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """The same digests under the names of a published version."""
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(2)) as outputs:
        outputs.write(make_frames(2))
    old = read_manifest(outputs.manifests[0])
    new = old.renamed(Target.parse(tmp_path / "sh010_v002.######.exr"))
    assert [file.name for file in new.files] == ["sh010_v002.001001.exr", "sh010_v002.001002.exr"]
    assert [file.sha256 for file in new.files] == [file.sha256 for file in old.files]
    new.write(tmp_path / "sh010_v002.exr.manifest.json")
    assert read_manifest(tmp_path / "sh010_v002.exr.manifest.json") == new
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


DAMAGE = [  # what is changed, and what is said
    (lambda m: m.update(manifest=2), r"its version is 2; up to 1 is allowed \(a newer Rushes"),
    (lambda m: m.pop("manifest"), r"cannot be read as a manifest \(it has no version\); a complete"),
    (lambda m: m.update(manifest=True), r"\(it has no version\)"),
    (lambda m: m.update(manifest="1"), r"\(it has no version\)"),
    (lambda m: m.pop("files"), r"\(a field is missing or wrong\)"),
    (lambda m: m.update(files=[]), r"\(it names no file\)"),
    (lambda m: m.update(size=[1]), r"\(a field is missing or wrong\)"),
    (lambda m: m.update(fps="fast"), r"cannot be read as a manifest \(fps: got 'fast'"),
    (lambda m: m["files"][0].update(sha256="abc"), r"\(a field is missing or wrong\)"),
    (lambda m: m["files"][0].update(bytes=-1), r"\(a field is missing or wrong\)"),
    (lambda m: m["files"][0].update(name="../../secret"), r"\(its files are not those of its pattern"),
    (lambda m: m["files"].pop(1), r"\(its files are not those of its pattern, one for each frame\)"),
    (lambda m: m["files"].pop(), r"\(its number of frames is not that of its files\)"),
    (lambda m: m.update(pattern="../p.%04d.exr"), r"\(its pattern is no file name\)"),
    (lambda m: m.update(pattern="q.%04d.exr"), r"it is the manifest of q\.%04d\.exr, which belongs into q\.exr\.man"),
    (lambda m: m.update(pattern="p.%04d.txt"), r"the suffix is '\.txt'"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, make_record: Any, make_frames: Any, change: Any, message: str
) -> None:
    """In one sentence that names it; it leads nobody to other files."""
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(3)) as outputs:
        outputs.write(make_frames(3))
    path = outputs.manifests[0]
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(ShotError, match=message) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"7", b'{"manifest": 1', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    """Half a file, another encoding, a bomb of brackets."""
    path = tmp_path / "p.exr.manifest.json"
    path.write_bytes(content)
    with pytest.raises(ShotError, match=r"p\.exr\.manifest\.json: it cannot be read as a manifest \("):
        read_manifest(path)
    path.unlink()
    with pytest.raises(ShotError, match=r"there is no such file"):
        read_manifest(path)
