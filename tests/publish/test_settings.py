# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The project's settings: found, read exactly, and refused in one sentence that names the file and the key."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from rushes.publish import Settings, find_settings
from rushes.publish import settings as settings_module
from rushes.publish.settings import FILE_NAME, TEMPLATE, read_settings
from rushes.shot import ShotError


def test_the_example_has_every_key_and_reads() -> None:
    """What is shipped as documentation is true."""
    path = Path(settings_module.__file__).parent / FILE_NAME
    found = read_settings(path)
    assert found == Settings(
        path=path, template=TEMPLATE, fps=(Fraction(24), Fraction(24000, 1001)), sizes=((832, 480), (1280, 720)),
        first_frame=1001, frames=(9, 401), colorspaces=("ACEScg", "Linear Rec.709 (sRGB)"),
    )  # fmt: skip
    text = path.read_text()
    for _, key in settings_module._KEYS:
        assert f"{key} = " in text


def test_they_are_found_upward_by_the_environment_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer wins over the farther, the environment over both, and what is given over all."""
    paths = [tmp_path / FILE_NAME, tmp_path / "show" / FILE_NAME, tmp_path / "env.toml", tmp_path / "given.toml"]
    (tmp_path / "show").mkdir()
    root = tmp_path / "show" / "not there yet" / "plates"
    for first, path in enumerate(paths):
        path.write_text(f"[plate]\nfirst_frame = {first}\n")
        given = path if path.name == "given.toml" else None
        if path.name == "env.toml":
            monkeypatch.setenv("RUSHES_PUBLISH_SETTINGS", str(path))
        assert find_settings(root, given).first_frame == first
    monkeypatch.setenv("RUSHES_PUBLISH_SETTINGS", "/nowhere.toml")
    with pytest.raises(ShotError, match=r"settings: /nowhere\.toml cannot be read \(No such file"):
        find_settings(root)


def test_without_a_file_all_is_allowed_but_a_review_is_needed(tmp_path: Path) -> None:
    found = find_settings(tmp_path)
    assert found == Settings() and found.is_review_required and found.path is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fps = [24]\n[plate]\nfpss = 1\nsize = 2\n", "has unknown keys: fps, plate.fpss, plate.size; allowed are"),
        ("[plates]\n", "has unknown keys: plates; allowed are"),
        ("plate = 3\n", "plate is 3; a table [plate] is allowed"),
        ("[plate]\nfps = 24\n", 'plate.fps is 24; a list of rates such as [24, "24000/1001"]'),
        ("[plate]\nfps = [0]\n", "plate.fps is [0]; a list of rates"),
        ("[plate]\nfps = [true]\n", "plate.fps is [True]"),
        ('[plate]\nsizes = ["wide"]\n', "plate.sizes is ['wide']"),
        ("[plate]\nsizes = [[1920, 1080]]\n", "plate.sizes is [[1920, 1080]]"),
        ("[plate]\nsizes = [1920]\n", "plate.sizes is [1920]"),
        ('[plate]\ncolorspaces = ["ACESgc"]\n', "closest: ACEScg"),
        ("[plate]\nfirst_frame = 1001.0\n", "plate.first_frame is 1001.0; a whole number from 0"),
        ("[plate]\nfirst_frame = -1\n", "plate.first_frame is -1"),
        ("[plate]\nframes = [9]\n", "plate.frames is [9]; [fewest, most] such as [9, 401] is allowed"),
        ("[plate]\nframes = [9, 5]\n", "plate.frames is [9, 5]"),
        ("[plate]\nframes = [true, 5]\n", "plate.frames is [True, 5]"),
        ('[review]\nrequired = "yes"\n', "review.required is 'yes'; true or false is allowed"),
        ('[deliver]\nproxy = "gif"\n', "deliver.proxy is 'gif'; \"h264\""),
        ("[deliver]\nproxy = []\n", "deliver.proxy is []"),
        ("[deliver]\ncontact_sheet_columns = 0\n", "deliver.contact_sheet_columns is 0; a whole number from 1 to 20"),
        ("template = 5\n", "template is 5; a path such as"),
        ('template = "{root}/v{version"\n', "template is '{root}/v{version'; a path such as"),
        ('template = "{root}/{user}/v{version}"\n', "without 'user', is allowed"),
        ('template = "{root}/{0}/v{version}"\n', "without '0', is allowed"),
        ('template = "{root.x}/v{version}"\n', "without 'root.x', is allowed"),
        ('template = "{root}/{shot!r}/v{version}"\n', "fields without a format"),
        ('template = "{root}/{shot:>900000000}/v{version}"\n', "fields without a format"),
        ('template = "{root}/v{version:>3}"\n', "fields without a format"),
        ('template = "/shows/{shot}/v{version:03d}"\n', "{root}, then folders inside it"),
        ('template = "{root}/../{shot}/v{version:03d}"\n', "{root}, then folders inside it"),
        ('template = "{root}/{shot}"\n', "one {version}, in the last folder's name"),
        ('template = "{root}/v{version:03d}/{name}"\n', "one {version}, in the last folder's name"),
        ('template = "{root}/{version}_{version}"\n', "one {version}, in the last folder's name"),
        ("[plate\n", "is not TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(text)
    with pytest.raises(ShotError) as refused:
        read_settings(path)
    assert words in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_in_another_encoding_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'template = "\xff"')
    with pytest.raises(ShotError, match="is not UTF-8"):
        read_settings(tmp_path / FILE_NAME)
    with pytest.raises(ShotError, match="cannot be read"):
        read_settings(tmp_path)
