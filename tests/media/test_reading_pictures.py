# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sequences and stills read again: colours against formulas written here."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import load_image, open_outputs, read_frames
from rushes.shot import ShotError

AP1 = (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767)
REC709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)


# ACES AP1 to linear Rec.709 with Bradford adaptation, as published with the ACES CTL (rounded)
AP1_TO_REC709 = np.array([[1.70505, -0.62179, -0.08326], [-0.13026, 1.14080, -0.01055], [-0.02400, -0.12897, 1.15297]])
REC709_TAG = {"chromaticities": ("float[8]", REC709)}


def encode(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 encoding, its straight part going on below zero and its curve above one."""
    v = light.astype(np.float64)
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 0) ** (1 / 2.4) - 0.055)


def decode(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 decoding in float64."""
    v = srgb.astype(np.float64)
    return np.where(v <= 0.04045, v / 12.92, ((np.maximum(v, 0) + 0.055) / 1.055) ** 2.4)


def light(*shape: int) -> np.ndarray:
    """Fresh scene-linear values from -0.1 to 12, float32."""
    return np.random.default_rng().uniform(-0.1, 12, shape).astype(np.float32)


def everything(path: str | Path, **options: Any) -> np.ndarray:
    return np.concatenate(list(read_frames(path, **options)))


@pytest.mark.parametrize("size", [(20, 14), (63, 47), (8, 8)])
@pytest.mark.parametrize(
    ("colorspace", "options"),
    [
        (None, {}),
        ("lin_rec709", {"compression": "piz"}),
        ("lin_rec2020", {"depth": "float", "compression": "none"}),
        ("ACEScct", {"depth": "float"}),  # no light and no interop id: our own tag says it
        ("sRGB Encoded Rec.709 (sRGB)", {}),
    ],
)
def test_our_plates_come_back(
    tmp_path: Path, make_record: Any, make_frames: Any, colorspace: str | None, options: Any, size: tuple[int, int]
) -> None:
    """Whatever space and depth they were written in, by their tags alone: the frames that were given."""
    frames = make_frames(3, size=size)
    path = tmp_path / "p.%04d.exr"
    with open_outputs([path], make_record(3, size=size), colorspace=colorspace, **options) as outputs:
        outputs.write(frames)
    with read_frames(path) as reader:
        assert (reader.frames, reader.size, reader.fps, reader.start_frame) == (3, size, Fraction(24000, 1001), 1001)
        assert reader.colorspace == (colorspace if colorspace and "lin" not in colorspace else reader.colorspace)
        back = np.concatenate(list(reader))
    assert back.dtype == np.float32 and back.shape == frames.shape
    # in light, where a step of half float is 2**-11 of it, and the matrix may double that
    assert np.abs(decode(back) - decode(frames)).max() < (1e-5 if options.get("depth") == "float" else 1e-3)
    assert reader.notes == ()


@pytest.mark.parametrize("kind", [oiio.HALF, oiio.FLOAT])
def test_light_is_encoded_by_the_formula_and_not_clipped(tmp_path: Path, save_picture: Any, kind: Any) -> None:
    """Files of another program, tagged by their primaries; 12 stays far above 1, negatives below 0."""
    stored = light(9, 11, 3)
    stored[0, 0] = -0.1, 0.0, 12.0
    stored = stored.astype(np.float16).astype(np.float32)
    back = everything(save_picture(tmp_path / "a.exr", stored, kind, **REC709_TAG))
    assert back.shape == (1, 9, 11, 3)
    # the configuration's straight part is steeper by 2.5e-4, so that it meets the curve
    assert back[0] == pytest.approx(encode(stored), rel=3e-4, abs=1e-6)
    assert back.max() > 2 and back.min() < 0


@pytest.mark.parametrize(
    "tags",
    [
        {"chromaticities": ("float[8]", AP1)},
        {"colorInteropID": "lin_ap1_scene"},
        {"colorInteropID": "lin_ap1_scene", "rushes/colorspace": "ACEScct"},  # rendered again by a compositor
        {"chromaticities": ("float[8]", AP1), "rushes/colorspace": "ACEScct"},
        {"rushes/colorspace": "ACEScg"},
    ],
)
def test_every_tag_that_declares_acescg_is_understood(tmp_path: Path, save_picture: Any, tags: dict[str, Any]) -> None:
    """The standard's own before ours, which another program may have carried on."""
    stored = light(5, 7, 3)
    path = save_picture(tmp_path / "a.exr", stored, oiio.FLOAT, **tags)
    with read_frames(path) as reader:
        assert reader.colorspace == "ACEScg"
        assert next(reader)[0] == pytest.approx(encode(stored @ AP1_TO_REC709.T), rel=2e-3, abs=2e-3)


def test_a_given_space_overrides_the_tags(tmp_path: Path, save_picture: Any) -> None:
    """By any of its names, and what the file says is not even looked at."""
    stored = light(5, 7, 3)
    expected = encode(stored @ AP1_TO_REC709.T)
    for index, tags in enumerate(({}, REC709_TAG, {"colorInteropID": "unknown"})):
        path = save_picture(tmp_path / f"{index}.exr", stored, oiio.FLOAT, **tags)
        with read_frames(path, colorspace="lin_ap1") as reader:
            assert reader.colorspace == "ACEScg"
            assert next(reader)[0] == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({}, "it does not say what its colours are; give colorspace, such as ACEScg, ACES2065-1, lin_rec709"),
        ({"chromaticities": ("float[8]", (0.7,) * 8)}, "its primaries are none that Rushes knows; give colorspace"),
        (
            {"colorInteropID": "lin_arriwidegamut4_scene"},
            "tagged as 'lin_arriwidegamut4_scene', .*does not know; give color",
        ),
        ({"colorInteropID": "data"}, "tagged as 'data', a colour space that Rushes does not know; give colorspace"),
        ({"rushes/colorspace": "Kodachrome"}, "tagged as 'Kodachrome'"),
    ],
)
def test_colours_that_nobody_declares_are_refused(
    tmp_path: Path, save_picture: Any, tags: dict[str, Any], words: str
) -> None:
    """In one sentence that says what to give; nothing is guessed."""
    path = save_picture(tmp_path / "a.exr", light(4, 4, 3), **tags)
    with pytest.raises(ShotError, match=rf"a\.exr: .*{words}") as caught:
        read_frames(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ShotError, match=r"--colorspace: got 'ACEScgg' \(closest: ACEScg"):
        read_frames(path, colorspace="ACEScgg")
    with pytest.raises(ShotError, match="which means numbers and not colours"):
        read_frames(path, colorspace="Raw")


def test_alpha_of_one_is_dropped_in_silence_and_other_alpha_is_noted(tmp_path: Path, save_picture: Any) -> None:
    """The colour channels are as they are stored: nothing is divided, in a PNG nothing multiplied."""
    stored = np.abs(light(5, 4, 4))
    for alpha, notes in ((1.0, 0), (0.5, 1)):
        stored[..., 3] = 1
        stored[-1, -1, 3] = alpha
        for number in (1, 2):  # said once for both frames
            save_picture(tmp_path / f"p.{number}.exr", stored, oiio.FLOAT, **REC709_TAG)
        reader = read_frames(tmp_path / "p.#.exr")
        assert np.concatenate(list(reader))[1] == pytest.approx(encode(stored[..., :3]), rel=3e-4, abs=1e-6)
        assert len(reader.notes) == notes
        if notes:
            assert reader.notes[0].endswith(
                "p.#.exr: alpha is not 1 everywhere; it is left out, and the colours are as the file stores them"
            )
    codes = np.random.default_rng().integers(0, 256, (5, 4, 4)).astype(np.uint8)
    reader = read_frames(save_picture(tmp_path / "a.png", codes, oiio.UINT8, oiio__UnassociatedAlpha=1))
    assert np.abs(next(reader)[0] * 255 - codes[..., :3]).max() < 1e-3
    assert len(reader.notes) == 1 and "alpha" in reader.notes[0]


def test_whole_numbers_in_an_exr_are_what_they_are(tmp_path: Path, save_picture: Any) -> None:
    """Not fractions of four thousand million, which is how OpenImageIO reads them; alpha beside them stays float."""
    stored = np.random.default_rng().integers(0, 5000, (3, 4, 3)).astype(np.uint32)
    back = everything(save_picture(tmp_path / "a.exr", stored, oiio.UINT, **REC709_TAG))
    assert back[0] == pytest.approx(encode(stored), rel=1e-4)
    spec = oiio.ImageSpec(4, 3, 4, oiio.FLOAT)
    spec.channelformats = (oiio.TypeDesc("uint"),) * 3 + (oiio.TypeDesc("float"),)
    spec.attribute("chromaticities", "float[8]", REC709)
    out = oiio.ImageOutput.create("openexr")
    assert out.open(str(tmp_path / "b.exr"), spec), out.geterror()
    fractions = np.concatenate([stored / (2**32 - 1), np.full((3, 4, 1), 0.5)], axis=2)  # as OpenImageIO wants them
    assert out.write_image(fractions), out.geterror()
    assert out.close(), out.geterror()
    reader = read_frames(tmp_path / "b.exr")
    assert next(reader)[0] == pytest.approx(encode(stored), rel=1e-4)
    assert len(reader.notes) == 1 and "alpha" in reader.notes[0]


def test_16_bit_and_grey_stills(tmp_path: Path, save_picture: Any) -> None:
    """65535 is 1, and grey comes in three channels."""
    codes = np.random.default_rng().integers(0, 65536, (5, 4, 3)).astype(np.uint16)
    assert np.abs(everything(save_picture(tmp_path / "a.png", codes, oiio.UINT16))[0] - codes / 65535).max() < 1e-6
    grey = np.random.default_rng().integers(0, 256, (5, 4, 1)).astype(np.uint8)
    back = everything(save_picture(tmp_path / "g.png", grey, oiio.UINT8))[0]
    assert np.abs(back - np.repeat(grey, 3, axis=2) / 255).max() < 1e-6


def test_the_main_layer_and_the_display_window_are_read(tmp_path: Path, save_picture: Any) -> None:
    """Of many channels the colours; overscan is cut off and what is outside of the data is black."""
    names = ("B", "G", "R", "depth.Z", "key.B", "key.G", "key.R")
    stored = np.abs(light(6, 8, 7))
    path = save_picture(tmp_path / "a.exr", stored, oiio.FLOAT, channelnames=names, x=-1, y=2,
                full_x=0, full_y=0, full_width=5, full_height=9, **REC709_TAG)  # fmt: skip
    reader = read_frames(path)
    assert reader.size == (5, 9)
    back = next(reader)[0]
    assert back[2:8] == pytest.approx(encode(stored[:, 1:6, [2, 1, 0]]), rel=3e-4, abs=1e-6)
    assert (back[:2] == 0).all() and (back[8:] == 0).all()


def test_values_that_are_no_numbers_are_repaired_and_noted(tmp_path: Path, save_picture: Any) -> None:
    """NaN becomes 0 and infinity the largest half, with their number in one sentence."""
    stored = np.ones((4, 4, 3), np.float32)
    stored[0, 0], stored[1, 1, 0] = np.nan, np.inf
    reader = read_frames(save_picture(tmp_path / "a.exr", stored, **REC709_TAG))
    assert reader.notes == ()  # not read yet
    back = next(reader)[0]
    assert (back[0, 0] == 0).all() and back[1, 1, 0] == pytest.approx(encode(np.array(65504.0)), rel=1e-4)
    assert [note.partition(": ")[2] for note in reader.notes] == [
        "4 values were NaN or infinite; NaN became 0, infinity 65504"
    ]


def test_a_size_fills_and_crops_as_keyframes_do(tmp_path: Path, save_picture: Any) -> None:
    """The same pixels as load_image for a still; light above 1 stays above 1."""
    codes = np.random.default_rng().integers(0, 256, (33, 51, 3)).astype(np.uint8)
    path = save_picture(tmp_path / "a.png", codes, oiio.UINT8)
    for size in ((16, 24), (64, 20), (51, 33)):
        reader = read_frames(path, size=size)
        assert reader.size == size
        back = next(reader)
        assert back.shape == (1, size[1], size[0], 3)
        assert np.array_equal(back[0], load_image(path, size))
    flat = everything(
        save_picture(tmp_path / "a.exr", np.full((30, 50, 3), 4, np.float32), **REC709_TAG), size=(16, 24)
    )
    assert flat == pytest.approx(np.full((1, 24, 16, 3), encode(np.array(4.0))), rel=1e-4)
    for wrong in ((0, 5), (5, -1), (5,), ()):
        with pytest.raises(ShotError, match=r"size: got .* a width and a height of 1 and more are allowed"):
            read_frames(path, size=wrong)


def test_pixels_that_are_not_square_are_noted(tmp_path: Path, save_picture: Any) -> None:
    """Frames as stored say so; frames of a wanted size are stretched to their true shape and have no need to."""
    path = save_picture(tmp_path / "a.exr", np.abs(light(20, 20, 3)), PixelAspectRatio=2.0, **REC709_TAG)
    reader = read_frames(path)
    assert reader.size == (20, 20) and "a pixel is 2 times as wide as high" in reader.notes[0]
    assert read_frames(path, size=(40, 20)).notes == ()


def test_reading_an_exr_does_not_slow_the_conversion_down(tmp_path: Path, save_picture: Any) -> None:
    """OpenEXR leaves AVX registers half used, and SSE code crawls behind it: 20 times slower, were it not cleared."""
    from rushes.media import color

    picture = np.abs(light(400, 400, 3))
    path = save_picture(tmp_path / "a.exr", picture, oiio.HALF, **REC709_TAG)

    def seconds() -> float:
        begin = time.perf_counter()
        color.convert(picture, "ACEScg", color.SRGB)
        return time.perf_counter() - begin

    before = min(seconds() for _ in range(5))
    everything(path)
    oiio.ImageInput.open(str(path)).read_image(oiio.FLOAT)
    assert min(seconds() for _ in range(5)) < 5 * before
