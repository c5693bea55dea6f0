# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The inverse view transform and $OCIO, against OpenColorIO's own forward way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import PyOpenColorIO as ocio  # noqa: N813 - the field's name for it
import pytest

from rushes.cli import main
from rushes.media import color, open_outputs, read_frames, read_manifest
from rushes.media.sequences import _opened, read_stored
from rushes.shot import ShotError

ACES2 = "ocio://cg-config-v4.0.0_aces-v2.0_ocio-v2.5"


def seen_through(pixels: np.ndarray, config: str, view: str) -> np.ndarray:
    """What an sRGB display shows of scene-linear ACEScg: float32 [h, w, 3]."""
    transform = ocio.DisplayViewTransform("ACEScg", "sRGB - Display", view)
    shown = np.array(pixels, np.float32)
    ocio.Config.CreateFromFile(config).getProcessor(transform).getDefaultCPUProcessor().applyRGB(shown)
    return shown


def header(path: Path) -> Any:
    picture = _opened(path)
    spec = picture.spec()
    picture.close()
    return spec


@pytest.mark.parametrize(
    ("view", "config", "name", "white"),
    [
        ("default", color.CONFIG, "ACES 1.0 - SDR Video", 16.3),
        ("aces 1.0 - sdr video", color.CONFIG, "ACES 1.0 - SDR Video", 16.3),
        ("sRGB - Display/ACES 2.0 - SDR 100 nits (Rec.709)", ACES2, "ACES 2.0 - SDR 100 nits (Rec.709)", 128),
    ],
)
@pytest.mark.parametrize("depth", ["half", "float"])
def test_through_the_view_the_plate_is_the_clip(
    tmp_path: Path, make_record: Any, make_frames: Any, view: str, config: str, name: str, white: float, depth: str
) -> None:
    """Where the cap does not bend: within a few steps of 8 bits; white is bent to below the cap and warned of."""
    frames = make_frames(1, size=(61, 37)) * 0.8
    frames[0, :3] = 1
    with pytest.warns(RuntimeWarning, match=rf"display white 1\.0 becomes {white:.3g} before the soft cap of 8:"):  # noqa: SIM117
        with open_outputs(
            [tmp_path / "p.exr"], make_record(1, size=(61, 37)), inverse_view=view, depth=depth
        ) as outputs:
            outputs.write(frames)
    pixels = read_stored(outputs.paths[0])[0].astype(np.float32)
    shown = seen_through(pixels, config, name)
    below = pixels[3:].max(axis=2) < 4
    assert below.mean() > 0.9
    assert np.abs(shown[3:] - frames[0, 3:])[below].max() < 3 / 255
    assert pixels[:3].min() > 6 and pixels.max() <= 8.001
    assert (shown[:3] > 0.93).all()
    with read_frames(outputs.paths[0]) as reader:  # as it is to be seen, so that a proxy of it looks like the clip
        assert np.abs(next(iter(reader))[0] - shown).max() < 2e-3 and not reader.notes
    with read_frames(outputs.paths[0], colorspace="ACEScg") as reader:
        assert next(iter(reader)).max() > 2  # light, by request
    spec = header(outputs.paths[0])
    assert spec.getattribute("rushes/transform") == f"inverse of {name} on sRGB - Display, soft cap 8"
    assert "bands and sparks" in spec.getattribute("rushes/warning")
    assert read_manifest(outputs.manifests[0]).transform == spec.getattribute("rushes/transform")


def test_the_cap_bends_smoothly_and_keeps_hues(tmp_path: Path, make_record: Any) -> None:
    """Brighter stays brighter up to white, no jump where it begins, and the ratios of the channels stay."""
    from rushes.media import views

    view = views.find_view("default")
    ramp = np.linspace(0.5, 1, 500, dtype=np.float32)
    frame = ramp[None, :, None] * np.array([1, 0.96, 0.9], np.float32)
    free, bent = (views.invert(frame, view, "ACEScg", cap)[0] for cap in (1000, 4))
    peak = bent.max(axis=1)
    assert (np.diff(peak) > 0).all() and peak[-1] < 4 < free.max()
    assert np.array_equal(free[free.max(axis=1) < 2], bent[free.max(axis=1) < 2])
    assert np.allclose(bent / peak[:, None], free / free.max(axis=1, keepdims=True), atol=1e-5)
    assert np.diff(peak).max() <= np.diff(free.max(axis=1)).max()


def test_the_command_warns_and_colorimetric_is_the_default(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr with the view, none without; the other options of a plate in the same line."""
    monkeypatch.chdir(tmp_path)
    shot = ["generate", "a red ball", "--model", str(tiny_model), "--steps", "1"]
    assert main([*shot, "-o", "a.%04d.exr"]) == 0
    assert "display white" not in capsys.readouterr().err
    options = ["--inverse-view", "default", "--cap", "4", "--alpha", "solid", "--start-frame", "11", "--handles", "1"]
    more = ["--timecode", "10:00:00:00", "--slate", "--overscan", "1", "--compression", "zips", "--codec", "h264"]
    assert main([*shot, "-o", "b.%04d.exr", "-o", "b.mov", *options, *more]) == 0
    said = capsys.readouterr().err
    assert said.count("display white 1.0 becomes 16.3 before the soft cap of 4") == 1
    assert sorted(path.name for path in tmp_path.glob("b.*.exr")) == [f"b.{number:04d}.exr" for number in range(10, 16)]
    spec = header(tmp_path / "b.0011.exr")
    assert spec.getattribute("smpte:TimeCode")[0] == 0x10000000
    assert (spec.nchannels, spec.x, spec.getattribute("compression")) == (4, -1, "zips")
    assert main(["verify", "b.%04d.exr"]) == 0
    for option, got, message in (
        ("--handles", "x", "handles: got 'x'; a whole number"), ("--cap", "much", "cap: got 'much'; a number"),
        ("--start-frame", "1.5", "start frame: got '1.5'; a whole number"), ("--overscan", "", "overscan: got ''"),
    ):  # fmt: skip
        assert main([*shot, "-o", "c.%04d.exr", "--inverse-view", "default", option, got]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$OCIO: a configuration with a working space of the studio's own, half as bright as ACEScg."""
    config = copy.deepcopy(ocio.Config.CreateFromFile(color.CONFIG))
    space = ocio.ColorSpace(ocio.REFERENCE_SPACE_SCENE, "House Linear", ["house"], encoding="scene-linear")
    inner = ocio.GroupTransform()
    inner.appendTransform(ocio.MatrixTransform.Scale([2, 2, 2, 1]))
    inner.appendTransform(config.getColorSpace("ACEScg").getTransform(ocio.COLORSPACE_DIR_TO_REFERENCE))
    space.setTransform(inner, ocio.COLORSPACE_DIR_TO_REFERENCE)
    config.addColorSpace(space)
    config.setRole("scene_linear", "House Linear")
    path = tmp_path / "studio.ocio"
    path.write_text(config.serialize())
    monkeypatch.setenv("OCIO", str(path))
    return path


@pytest.mark.parametrize("asked", ["House Linear", "house", "scene_linear"])
def test_a_studios_own_space_comes_from_its_configuration(
    studio: Path, tmp_path: Path, make_record: Any, make_frames: Any, asked: str
) -> None:
    """By name, alias and role; its numbers are those that the studio says, and the header names the configuration."""
    frames = make_frames(1)
    for name, space in (("house", asked), ("aces", "ACEScg")):
        with open_outputs([tmp_path / f"{name}.exr"], make_record(1), space, depth="float") as outputs:
            outputs.write(frames)
    house, aces = (read_stored(tmp_path / f"{name}.exr")[0] for name in ("house", "aces"))
    assert np.allclose(house * 2, aces, rtol=1e-5, atol=1e-7)
    spec = header(tmp_path / "house.exr")
    assert (spec.getattribute("rushes/colorspace"), spec.getattribute("rushes/config")) == ("House Linear", str(studio))
    assert spec.getattribute("colorInteropID") is None and spec.getattribute("chromaticities") is None


def test_what_both_know_means_the_same_with_and_without(
    studio: Path, tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes: a studio's machine and a laptop make one plate of one shot."""
    frames, plates = make_frames(1), []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.delenv("OCIO")
        with open_outputs([tmp_path / name / "p.exr"], make_record(1)) as outputs:
            outputs.write(frames)
        plates.append(outputs.paths[0].read_bytes())
    assert plates[0] == plates[1]
    with pytest.raises(ShotError, match=r"^--colorspace: got 'house'"):
        color.find_space("house")


def test_a_configuration_that_is_none_is_refused_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that needs it says so; one that does not is served."""
    (tmp_path / "bad.ocio").write_text("ocio_profile_version: 2\nroles: [")
    for path in (tmp_path / "bad.ocio", tmp_path / "missing.ocio"):
        monkeypatch.setenv("OCIO", str(path))
        assert color.find_space("ACEScg").name == "ACEScg"
        with pytest.raises(
            ShotError, match=r"^\$OCIO: got '.*\.ocio' \(.*\); a configuration of OpenColorIO is allowed$"
        ):
            color.find_space("scene_linear")


def test_a_configuration_without_roles_for_interchange_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says then what its numbers mean to anybody else."""
    config = ocio.Config()
    config.addColorSpace(ocio.ColorSpace(ocio.REFERENCE_SPACE_SCENE, "mystery"))
    path = tmp_path / "mystery.ocio"
    path.write_text(config.serialize())
    monkeypatch.setenv("OCIO", str(path))
    with pytest.raises(ShotError, match=r"^--colorspace: 'mystery' of \$OCIO cannot be reached \(.*aces_interchange"):
        color.find_space("mystery")


def test_a_view_that_is_not_here_is_told(
    studio: Path, tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plate for the studio's own view, read where nobody knows it: colorimetric, and a note says so."""
    frames = make_frames(1)
    with pytest.warns(RuntimeWarning, match="display white"):  # noqa: SIM117
        with open_outputs([tmp_path / "p.exr"], make_record(1), inverse_view="default") as outputs:
            outputs.write(frames)
    with read_frames(outputs.paths[0]) as reader:
        assert np.abs(next(iter(reader)) - frames).mean() < 0.01 and reader.notes == ()
    monkeypatch.delenv("OCIO")
    with read_frames(outputs.paths[0]) as reader:
        seen = next(iter(reader))
        (note,) = reader.notes
    assert np.abs(seen - frames).mean() > 0.03
    assert "made for a view that is not here" in note and str(studio) in note
