# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates through OpenEXR's own Python package: another reader than the one that wrote them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes.media import open_outputs, read_frames, verify

OpenEXR = pytest.importorskip("OpenEXR", reason="the extra test brings OpenEXR's own package")

LOSSLESS = ["zip", "zips", "piz", "none"]


def opened(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Header, and pixels [h, w, c]."""
    with OpenEXR.File(str(path)) as file:
        (channels,) = file.channels().values()
        return dict(file.header()), np.array(channels.pixels)


def test_every_attribute_is_of_the_type_that_the_standard_names(
    tmp_path: Path, make_record: Any, make_frames: Any
) -> None:
    """OpenEXR gives each as its own kind of value, not as text that was meant to be one."""
    record = make_record(3, size=(33, 21))
    with open_outputs([tmp_path / "p.%04d.exr"], record, timecode="10:59:59:22") as outputs:
        outputs.write(make_frames(3, size=(33, 21)))
    header, pixels = opened(outputs.paths[2])
    assert header["framesPerSecond"] == Fraction(24000, 1001)
    code = header["timeCode"]
    assert (code.hours, code.minutes, code.seconds, code.frame, code.dropFrame) == (11, 0, 0, 0, 0)
    assert header["chromaticities"] == pytest.approx((0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767))
    assert header["colorInteropID"] == "lin_ap1_scene"
    assert header["compression"] == OpenEXR.ZIP_COMPRESSION
    assert header["rushes/transform"] == "colorimetric, clipped at display white"
    assert header["rushes/config"] == "ocio://cg-config-v2.2.0_aces-v1.3_ocio-v2.4"
    assert header["rushes/prompt"] == record["shot"]["prompt"]
    assert [tuple(corner) for corner in header["dataWindow"]] == [(0, 0), (32, 20)]
    assert [tuple(corner) for corner in header["displayWindow"]] == [(0, 0), (32, 20)]
    assert "capDate" not in header and "rushes/handles" not in header and "rushes/warning" not in header
    assert pixels.shape == (21, 33, 3) and pixels.dtype == np.float16


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize(("depth", "kind"), [("half", np.float16), ("float", np.float32)])
def test_it_reads_the_numbers_that_openimageio_wrote(
    tmp_path: Path, make_record: Any, make_frames: Any, compression: str, depth: str, kind: Any
) -> None:
    """Bit by bit the same for both readers, in every lossless compression."""
    from rushes.media.sequences import read_stored

    options = {"compression": compression, "depth": depth}
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(2, size=(67, 45)), **options) as outputs:
        outputs.write(make_frames(2, size=(67, 45)))
    for path in outputs.paths:
        header, pixels = opened(path)
        assert str(header["compression"]).endswith(
            f"{'no' if compression == 'none' else compression}_compression".upper()
        )
        assert pixels.dtype == kind and np.array_equal(pixels, read_stored(path)[0])


def test_what_openexr_saves_again_is_told_from_what_was_written(
    tmp_path: Path, make_record: Any, make_frames: Any
) -> None:
    """A round trip through another program keeps the pixels and their meaning, and is not taken for untouched."""
    frames = make_frames(2)
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(2)) as outputs:
        outputs.write(frames)
    header, pixels = opened(outputs.paths[0])
    header["compression"] = OpenEXR.PIZ_COMPRESSION
    OpenEXR.File(header, {"RGB": pixels}).write(str(outputs.paths[0]))
    (finding,) = verify(tmp_path / "p.%04d.exr").findings
    assert finding.sentence.endswith("was changed since it was written; its pixels are the same")
    with read_frames(tmp_path / "p.%04d.exr") as reader:
        assert reader.colorspace == "ACEScg" and reader.fps == Fraction(24000, 1001)
        assert np.abs(np.concatenate(list(reader)) - frames).max() < 0.02  # a step of half near black


@pytest.mark.parametrize("depth", ["half", "float"])
@pytest.mark.parametrize("options", [{}, {"inverse_view": "default"}], ids=["colorimetric", "inverse view"])
def test_no_plate_holds_infinity_or_no_number(
    tmp_path: Path, make_record: Any, make_frames: Any, depth: str, options: dict[str, str]
) -> None:
    """Whatever comes in, what another program multiplies later is finite; and it is said."""
    frames = make_frames(2)
    frames[0, 0, :4] = np.array([np.nan, np.inf, -np.inf, 3e38], np.float32)[:, None]
    with pytest.warns(RuntimeWarning, match=r"values were NaN"):  # noqa: SIM117
        with open_outputs([tmp_path / "p.%04d.exr"], make_record(2), depth=depth, **options) as outputs:
            outputs.write(frames)
    for path in outputs.paths:
        assert np.isfinite(opened(path)[1]).all()
    assert verify(tmp_path / "p.%04d.exr").ok
