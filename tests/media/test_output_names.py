# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Names of outputs, and every refusal that comes before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rushes.media import check_outputs
from rushes.media.paths import Target
from rushes.shot import ShotError


@pytest.mark.parametrize(
    ("name", "padding", "frame_7"),
    [
        ("plate.%04d.exr", 4, "plate.0007.exr"),
        ("plate.####.exr", 4, "plate.0007.exr"),
        ("plate.######.png", 6, "plate.000007.png"),
        ("plate_%d.exr", 1, "plate_7.exr"),
        ("####.exr", 4, "0007.exr"),  # nothing before the number
        ("still.png", None, "still.png"),
        ("PLATE.%03d.EXR", 3, "PLATE.007.EXR"),  # suffix in capitals
        ("take#2.mp4", None, "take#2.mp4"),  # a movie's name holds no pattern
    ],
)
def test_a_name_says_which_files_it_stands_for(name: str, padding: int | None, frame_7: str) -> None:
    """Both ways of writing a pattern give the same padding."""
    target = Target.parse(name)
    assert target.padding == padding
    assert target.file_name(7) == frame_7


def test_existing_frames_are_only_those_of_the_very_pattern(tmp_path: Path) -> None:
    """Neighbours with another name, another padding or no number do not count."""
    names = (
        "a.0001.exr",
        "a.12345.exr",
        "a.1.exr",
        "a.0001.png",
        "ab.0001.exr",
        "a..exr",
        "a.-001.exr",
        "a.0x1.exr",
    )
    for name in names:
        (tmp_path / name).touch()
    found = Target.parse(tmp_path / "a.%04d.exr").existing()
    assert found == [(1, tmp_path / "a.0001.exr"), (12345, tmp_path / "a.12345.exr")]


REFUSALS: list[tuple[list[str], dict[str, Any], str]] = [
    ([], {}, r"^-o: no output is given; one or more file names are allowed$"),
    (
        ["shot.avi"],
        {},
        r"^-o \S*shot\.avi: the suffix is '\.avi'; allowed are \.exr, \.mov, \.mp4, \.otio, \.png, \.s",
    ),
    (["shot"], {}, r"the name has no suffix; allowed are \.exr"),
    (["a.%04d.####.exr"], {}, r"the name holds 2 frame patterns; one %04d or #### is allowed$"),
    (
        ["plate.exr"],
        {},
        r"it names one file and the shot has 3 frames; .*plate\.%04d\.exr or \S*plate\.####\.exr is",
    ),
    (["still.png"], {}, r"it names one file and the shot has 3 frames; .*still\.%04d\.png"),
    (["a.mp4", "x/../a.mp4"], {}, r"it is the same output as -o \S*a\.mp4; give each name once$"),
    (["a.%04d.exr", "a.####.exr"], {}, r"it is the same output as"),
    (["a.%04d.exr", "a.%d.exr"], {}, r"it is the same output as"),  # both are a.1001.exr
    (["a.%04d.png", "a.1002.png"], {"frames": 1}, r"it is the same output as"),
    (["odd.mp4"], {"size": (63, 48)}, r"the size is 63x48; H\.264 .* such as 62x48 or 64x48"),
    (["odd.mp4"], {"size": (64, 47)}, r"the size is 64x47; .* such as 64x46 or 64x48"),
    (["alone.otio"], {}, r"a timeline refers to pictures and none are written beside it; add another -o"),
    (["alone.otio", "l.safetensors"], {}, r"a timeline refers to pictures"),  # latents are no picture
    (
        ["a.%04d.exr"],
        {"colorspace": "ACEScgg"},
        r"^--colorspace: got 'ACEScgg' \(closest: ACEScg.*allowed are ACEScg, ",
    ),
    (
        ["a.%04d.exr"],
        {"colorspace": "qqqqqqqq"},
        r"^--colorspace: got 'qqqqqqqq'; allowed are ACEScg, ACES2065-1",
    ),
    (
        ["a.%04d.exr"],
        {"colorspace": "Raw"},
        r"got 'Raw', which means numbers and not colours; allowed are ACEScg",
    ),
    (
        ["a.mp4"],
        {"colorspace": "ACEScg"},
        r"^--colorspace: got 'ACEScg' without a plate; it is allowed with an \.exr",
    ),
    (["file.txt/a.mp4"], {}, r"file\.txt is not a folder"),
    (["file.txt/new/a.mp4"], {}, r"file\.txt is not a folder"),
    (["dir.mp4"], {"overwrite": True}, r"dir\.mp4 is a folder; the name of a file is allowed$"),
    (["there.mp4"], {}, r"there\.mp4 already exists; give another name or --overwrite$"),
    (["seq.%04d.exr"], {}, r"seq\.2000\.exr already exists; give another name or --overwrite$"),
]


@pytest.mark.parametrize(("names", "options", "message"), REFUSALS, ids=[case[2][:40] for case in REFUSALS])
def test_outputs_are_refused_in_one_sentence(
    tmp_path: Path, names: list[str], options: dict[str, Any], message: str
) -> None:
    """Each refusal names the argument and what is allowed, and leaves no trace on disk."""
    (tmp_path / "file.txt").touch()
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "there.mp4").touch()
    (tmp_path / "seq.2000.exr").touch()  # not in the new range, and still the same sequence
    before = sorted(tmp_path.rglob("*"))
    asked = {"frames": 3, "overwrite": False, "colorspace": None, **options}
    with pytest.raises(ShotError, match=message) as caught:
        check_outputs([f"{tmp_path}/{name}" for name in names], **asked)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the output's own folder would first have to be created in it."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ShotError, match=r"^-o \S*a\.mp4: the folder \S+ is not writable; a folder of your own"):
        check_outputs([f"{tmp_path}/new/sub/a.mp4"], 3, False, None)


def test_good_outputs_pass_and_nothing_is_created(tmp_path: Path) -> None:
    """Missing folders are fine, names may share a stem, a still needs no pattern."""
    names = ["new/a.mp4", "new/a.mov", "new/a.%04d.exr", "new/a.%04d.png", "new/a.otio", "new/a.safetensors"]
    check_outputs([tmp_path / name for name in names], 33, False, "lin_rec709", size=(64, 48))
    check_outputs([tmp_path / "still.png", tmp_path / "still.exr"], 1, False, None)
    check_outputs([tmp_path / "odd.mov"], 3, False, None, size=(63, 47))
    check_outputs([tmp_path / "later.exr"], None, False, None)  # frames not yet known
    assert list(tmp_path.iterdir()) == []


def test_importing_the_room_loads_no_picture_library() -> None:
    """A host that only wants to check names does not wait for PyAV, OpenImageIO or torch."""
    code = (
        "import sys, rushes.media; rushes.media.check_outputs(['a.mp4'], 3, True, None);"
        "heavy = ('av', 'OpenImageIO', 'PyOpenColorIO', 'opentimelineio', 'torch', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
