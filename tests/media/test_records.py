# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The record comes back out of every kind of output, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import opentimelineio as otio
import pytest

from rushes.media import open_outputs, read_latents, read_record, shot_in, write_latents
from rushes.shot import MAX_SEED, Shot, ShotError

KINDS = ["a.%04d.exr", "a.%04d.png", "a.mp4", "a.mov", "a.otio", "a.safetensors"]


@pytest.fixture
def written(tmp_path: Path, make_record: Any, make_frames: Any) -> tuple[Path, dict[str, Any]]:
    """A folder with one output of every kind, and their record with a seed at the limit."""
    record = make_record(2, seed=MAX_SEED, prompt="quote \" ' \\ new\nline\r\n\ttab é 夜 🎬 \ud800 half a pair")
    latents = np.zeros((1, 4, 1, 2, 3), np.float32)
    with open_outputs([tmp_path / name for name in KINDS], record, latents=latents) as outputs:
        outputs.write(make_frames(2))
    return tmp_path, record


def test_the_shot_behind_changed_frames_is_found(make_record: Any) -> None:
    """Frames that a graph has changed say what they were made from; frames that no shot made have nothing to say."""
    made, stand_in = make_record(2, seed=5), {**make_record(3, prompt="a stand-in"), "without_shot": True}
    assert shot_in(made, "a.exr") == (Shot.from_dict(made["shot"]), made)
    assert shot_in({**stand_in, "made_from": made}, "a.exr") == (Shot.from_dict(made["shot"]), made)
    with pytest.raises(ShotError, match=r"^a\.exr: no shot of Rushes made its frames; a file made from a shot"):
        shot_in(stand_in, "a.exr")
    with pytest.raises(ShotError, match="holds no record of a shot"):
        shot_in({**stand_in, "made_from": {"rushes": 3}}, "a.exr")


@pytest.mark.parametrize("name", [*KINDS, "a.####.exr", "a.1002.exr", "a.1001.png"])
def test_the_record_comes_back_whole(written: tuple[Path, dict[str, Any]], name: str) -> None:
    """From a pattern or any of its frames; the shot in it is equal to the one asked for."""
    folder, record = written
    found = read_record(folder / name)
    assert found == record
    assert Shot.from_dict(found["shot"]) == Shot.from_dict(record["shot"])
    assert read_record(str(folder / name)) == record


@pytest.mark.parametrize("name", [*KINDS, "gone/a.mp4"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """One sentence with the name."""
    with pytest.raises(ShotError, match=r"a\.\S+: there is no such file; a file that Rushes has written is allowed$"):
        read_record(tmp_path / name)


@pytest.mark.parametrize("name", ["a.exr", "a.png", "a.mp4", "a.mov", "a.otio", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not what the suffix says", b"\x00" * 100])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """One line, whatever the library had to say."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ShotError, match=rf"{name}: it cannot be read as .* \(.+\); a complete file is allowed$"
    ) as caught:
        read_record(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "png", "safetensors"])
def test_a_file_cut_in_half_never_crashes(written: tuple[Path, dict[str, Any]], suffix: str) -> None:
    """Either the whole record, where it stands before the cut, or a refusal."""
    folder, record = written
    source = next(folder.glob(f"*.{suffix}"))
    content = source.read_bytes()
    for part in (len(content) // 2, len(content) // 8, 40):
        cut = folder / f"cut.{suffix}"
        cut.write_bytes(content[:part])
        try:
            assert read_record(cut) == record
        except ShotError as error:
            assert str(error).startswith(str(cut))


def test_files_of_others_are_told_from_ours(tmp_path: Path) -> None:
    """A picture, a movie comment and metadata without a record, or with something else under our key."""
    import av
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it
    from safetensors.numpy import save_file

    for name in ("a.png", "a.exr"):
        oiio.ImageBuf(np.zeros((4, 4, 3), np.float32)).write(str(tmp_path / name))
    with av.open(str(tmp_path / "a.mp4"), "w") as movie:
        movie.metadata["comment"] = "shot on a camera"
        stream = movie.add_stream("libx264", rate=24)
        stream.width = stream.height = 16
        movie.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        movie.mux(stream.encode(None))
    otio.adapters.write_to_file(otio.schema.Timeline("t", metadata={"rushes": "a note"}), str(tmp_path / "a.otio"))
    (tmp_path / "b.otio").write_text("[]")
    save_file({"x": np.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "b.safetensors", metadata={"rushes": json.dumps({"shot": {}})})
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ShotError, match=rf"{path.name}: it holds no record of a shot; a file that Rushes has"):
            read_record(path)


def test_an_unknown_suffix_is_refused() -> None:
    """The kinds that carry a record are listed."""
    with pytest.raises(ShotError, match=r"notes\.txt: the suffix is '\.txt'; .*\.exr, \.mov, \.mp4"):
        read_record("notes.txt")


def test_latents_come_back_bit_for_bit(tmp_path: Path, make_record: Any) -> None:
    """As an array or a torch tensor, also one that is not contiguous; the bytes of the file do not vary."""
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng().standard_normal((1, 16, 3, 4, 5), dtype=np.float32)
    latents[0, 0, 0, 0, 0] = np.nan  # latents are kept as they are
    transposed = torch.from_numpy(latents.transpose(0, 1, 2, 4, 3).copy()).transpose(3, 4).requires_grad_()
    path, record = tmp_path / "l.safetensors", make_record(9)
    contents = set()
    for given in (latents, transposed):
        write_latents(path, given, record)
        found, found_record = read_latents(path)
        assert found.dtype == np.float32 and found.tobytes() == latents.tobytes()
        assert found_record == record
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["l.safetensors"]


def test_latents_of_another_kind_are_refused(tmp_path: Path, make_record: Any) -> None:
    """Wrong key, wrong type, wrong shape; a failed write leaves the old file and no temporary one."""
    from safetensors.numpy import save_file

    from rushes.media.record import to_text

    path, metadata = tmp_path / "l.safetensors", {"rushes": to_text(make_record(9))}
    save_file({"samples": np.zeros((1, 4, 1, 2, 2), np.float32)}, path, metadata=metadata)
    with pytest.raises(ShotError, match=r"l\.safetensors: it holds no tensor 'latents'"):
        read_latents(path)
    save_file({"latents": np.zeros((1, 4, 1, 2, 2), np.float16)}, path, metadata=metadata)
    with pytest.raises(ShotError, match=r"l\.safetensors: latents: got float16 \[1, 4, 1, 2, 2\]; float32 \[1,"):
        read_latents(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"latents: got float64 \[2, 2\]"):
        write_latents(path, np.zeros((2, 2)), make_record(9))
    with pytest.raises(TypeError):
        write_latents(path, np.zeros((1, 1, 1, 1, 1), np.float32), {"rushes": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["l.safetensors"]
