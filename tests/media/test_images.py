# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures in: shapes stay shapes, colours go by their tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import load_image, open_outputs
from rushes.shot import ShotError

AP1 = (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767)
# ACES AP1 to linear Rec.709 with Bradford adaptation, as published with the ACES CTL (rounded)
AP1_TO_REC709 = np.array([[1.70505, -0.62179, -0.08326], [-0.13026, 1.14080, -0.01055], [-0.02400, -0.12897, 1.15297]])


def save(path: Path, pixels: np.ndarray, kind: Any = oiio.UINT8, **attributes: Any) -> Path:
    """Write a picture with OpenImageIO alone. pixels: float [h, w, c] in file values."""
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], kind)
    if names := attributes.pop("channelnames", None):
        spec.channelnames = names
    for name in ("full_x", "full_y", "full_width", "full_height", "x", "y"):
        if name in attributes:
            setattr(spec, name, attributes.pop(name))
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), *value if isinstance(value, tuple) else (value,))
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec), out.geterror()
    assert out.write_image(np.ascontiguousarray(pixels, np.float32)), out.geterror()
    out.close()
    return path


def encode(value: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 encoding of linear light, clipped to [0, 1]."""
    v = np.clip(value, 0, 1)
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def decode(value: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 decoding to linear light, float64."""
    v = value.astype(np.float64)
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def disc(width: int, height: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    return np.repeat(inside[..., None].astype(np.float32), 3, axis=2)


def extents(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Centre x, centre y, width, height of what is bright, from its coverage, in pixels."""
    grey = picture[..., 0].astype(np.float64)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    mass = grey.sum()
    cx, cy = (grey * x).sum() / mass, (grey * y).sum() / mass
    # the second moment of a disc of radius r is r^2 / 4
    return (
        cx,
        cy,
        4 * np.sqrt((grey * (x - cx) ** 2).sum() / mass),
        4 * np.sqrt((grey * (y - cy) ** 2).sum() / mass),
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((300, 200), (150, 100)),  # the same shape
        ((200, 320), (160, 90)),  # portrait into landscape
        ((320, 180), (96, 128)),  # landscape into portrait
        ((61, 47), (128, 80)),  # enlarged, odd
        ((333, 127), (127, 333)),  # primes and odd
        ((64, 64), (64, 64)),  # nothing to do
        ((1000, 40), (33, 33)),  # very wide
    ],
)
def test_a_circle_stays_a_circle(tmp_path: Path, source: tuple[int, int], target: tuple[int, int]) -> None:
    """In the centre, as wide as high, scaled by the side that fills."""
    scale = max(target[0] / source[0], target[1] / source[1])
    radius = 0.4 * min(target) / scale  # as large as the crop lets it be
    path = save(tmp_path / "a.png", disc(*source, (source[0] / 2, source[1] / 2), radius))
    picture = load_image(path, target)
    assert picture.shape == (target[1], target[0], 3)
    assert picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1
    cx, cy, width, height = extents(picture)
    assert abs(cx - target[0] / 2) < 0.6 and abs(cy - target[1] / 2) < 0.6
    assert abs(width / height - 1) < 0.03
    assert abs(width / (2 * radius * scale) - 1) < 0.04


def test_the_crop_keeps_the_centre(tmp_path: Path) -> None:
    """Of three bands the middle one fills the frame."""
    bands = np.zeros((30, 90, 3), np.float32)
    bands[:, 30:60] = (1.0, 0.5, 0.25)
    picture = load_image(save(tmp_path / "a.png", bands), (30, 30))
    assert np.abs(picture - np.array([255, 128, 64]) / 255).max() < 1e-6


def test_scaling_down_does_not_alias(tmp_path: Path) -> None:
    """One-pixel stripes become flat grey and not moiré."""
    stripes = np.zeros((128, 128, 3), np.float32)
    stripes[:, ::2] = 1
    picture = load_image(save(tmp_path / "a.png", stripes), (40, 40))
    assert np.abs(picture[4:-4, 4:-4] - 0.5).max() < 0.02


def test_an_eight_bit_picture_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    """Every code value as it is."""
    codes = np.random.default_rng().integers(0, 256, (24, 32, 3))
    picture = load_image(save(tmp_path / "a.png", codes / 255), (32, 24))
    assert np.abs(picture * 255 - codes).max() < 1e-3


@pytest.mark.parametrize("kind", [oiio.HALF, oiio.FLOAT])
def test_an_untagged_float_file_is_linear_rec709(tmp_path: Path, kind: Any) -> None:
    """sRGB encoded, clipped at 1, without tone mapping; NaN does not get through."""
    light = np.random.default_rng().random((16, 16, 3)) * 1.5
    light[0, 0], light[0, 1], light[0, 2] = 0.0, 1.0, 0.18
    pixels = light.astype(np.float32)
    pixels[1, 1] = np.nan
    light[1, 1] = 0
    picture = load_image(save(tmp_path / "a.exr", pixels, kind), (16, 16))
    assert np.abs(picture - encode(light)).max() < 2e-3
    assert abs(picture[0, 2, 0] - 0.4613561) < 1e-3  # mid grey


@pytest.mark.parametrize(
    "tag",
    [
        {"colorInteropID": "lin_ap1_scene"},
        {"oiio__ColorSpace": "ACEScg"},
        {"chromaticities": ("float[8]", AP1)},  # what Nuke and older tools write
    ],
)
def test_acescg_is_brought_to_srgb(tmp_path: Path, tag: dict[str, Any]) -> None:
    """By the id, the name, or the primaries in the header."""
    light = np.random.default_rng().random((16, 16, 3))
    picture = load_image(save(tmp_path / "a.exr", light, oiio.HALF, **tag), (16, 16))
    assert np.abs(picture - encode(light.astype(np.float16) @ AP1_TO_REC709.T)).max() < 4e-3


def test_a_plate_of_ours_comes_back_as_it_was(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Written as ACEScg, loaded as a keyframe: the same light within half float's steps."""
    frames = make_frames(1)
    for space in ("ACEScg", "lin_rec709", "ACES2065-1", "lin_rec2020"):
        with open_outputs([tmp_path / f"{space}.exr"], make_record(1), colorspace=space) as outputs:
            outputs.write(frames)
        # a half below 1 is off by up to 2^-12; no row of the way back weighs more than 4.1 (AP0 to Rec.709)
        light = decode(load_image(outputs.paths[0], (20, 14))) - decode(frames[0])
        assert np.abs(light).max() < 4.5 * 2**-12


def test_old_names_and_display_tags_are_understood(tmp_path: Path) -> None:
    """What OpenImageIO called spaces before 3.1, and an sRGB display."""
    values = np.random.default_rng().random((8, 8, 3))
    for tag in ("sRGB", "srgb_rec709_display", "srgb_texture"):
        picture = load_image(save(tmp_path / "a.exr", values, oiio.FLOAT, oiio__ColorSpace=tag), (8, 8))
        assert np.abs(picture - values).max() < 1e-4, tag
    picture = load_image(save(tmp_path / "b.exr", values, oiio.FLOAT, oiio__ColorSpace="Linear"), (8, 8))
    assert np.abs(picture - encode(values)).max() < 1e-4


@pytest.mark.parametrize("suffix", ["ppm", "jpg", "tif", "bmp", "webp", "tga", "dpx", "sgi", "hdr", "gif", "rla"])
def test_pictures_of_many_formats_are_taken_as_srgb(tmp_path: Path, suffix: str) -> None:
    """Flat colours of an 8-bit file come as they are; only Radiance stores light."""
    values = np.broadcast_to(np.array([0.8, 0.4, 0.2]), (16, 16, 3))
    path = save(tmp_path / f"a.{suffix}", values, oiio.FLOAT if suffix == "hdr" else oiio.UINT8)
    expected = encode(values) if suffix == "hdr" else values
    assert np.abs(load_image(path, (16, 16)) - expected).max() < 0.02


def test_an_unknown_tag_is_refused(tmp_path: Path) -> None:
    """A camera's log is no picture to be guessed at."""
    path = save(tmp_path / "a.exr", np.zeros((4, 4, 3)), oiio.HALF, colorInteropID="ocio:some_camera_log")
    with pytest.raises(ShotError, match=r"a\.exr: it is tagged as 'ocio:some_camera_log', a colour space that Rushes"):
        load_image(path, (4, 4))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_becomes_rgb_and_alpha_is_dropped(tmp_path: Path, channels: int) -> None:
    """One, two (grey and alpha) and four channels give three."""
    pixels = np.ones((8, 8, channels), np.float32)
    pixels[..., 0] = 0.2
    picture = load_image(save(tmp_path / "a.png", pixels), (8, 8))
    assert picture.shape == (8, 8, 3)
    expected = [0.2, 0.2, 0.2] if channels < 4 else [0.2, 1.0, 1.0]
    assert np.abs(picture - expected).max() < 1e-6


def test_channels_are_found_by_name(tmp_path: Path) -> None:
    """A multi-layer EXR gives its main layer, else its first complete one; a lone depth is grey."""
    pixels = np.arange(7, dtype=np.float32) / 10 * np.ones((8, 8, 1), np.float32)
    order = {"B": 0, "G": 1, "R": 2, "A": 3, "depth.Z": 4, "diffuse.R": 5, "diffuse.G": 6}
    picture = load_image(save(tmp_path / "a.exr", pixels, oiio.FLOAT, channelnames=tuple(order)), (8, 8))
    assert np.abs(picture - encode(np.array([0.2, 0.1, 0.0]))).max() < 1e-4
    names = ("depth.Z", "key.R", "key.G", "x.B", "fill.B", "fill.G", "fill.R")
    picture = load_image(save(tmp_path / "b.exr", pixels, oiio.FLOAT, channelnames=names), (8, 8))
    assert np.abs(picture - encode(np.array([0.6, 0.5, 0.4]))).max() < 1e-4
    picture = load_image(save(tmp_path / "c.exr", pixels[..., 3:4], oiio.FLOAT, channelnames=("depth.Z",)), (8, 8))
    assert np.abs(picture - encode(np.array(0.3))).max() < 1e-4


def test_a_data_window_is_seen_through_the_display_window(tmp_path: Path) -> None:
    """Overscan is cut off; what the data window does not cover is black."""
    window = {"full_x": 0, "full_y": 0, "full_width": 20, "full_height": 10}
    over = np.full((14, 24, 3), 0.5, np.float32)
    over[2:12, 2:22] = 1.0
    picture = load_image(save(tmp_path / "a.exr", over, oiio.HALF, x=-2, y=-2, **window), (20, 10))
    assert (picture > 0.999).all()
    picture = load_image(save(tmp_path / "b.exr", np.ones((4, 5, 3)), oiio.HALF, x=10, y=3, **window), (20, 10))
    expected = np.zeros((10, 20, 3))
    expected[3:7, 10:15] = 1
    assert np.abs(picture - expected).max() < 1e-3


def test_squeezed_pixels_are_unsqueezed(tmp_path: Path) -> None:
    """An anamorphic 2:1 plate of 50x100 pixels shows 100x100: its ellipse is a circle again."""
    ellipse = disc(100, 100, (50, 50), 30)[:, ::2]
    picture = load_image(save(tmp_path / "a.exr", ellipse, oiio.HALF, PixelAspectRatio=2.0), (100, 100))
    _, _, width, height = extents(picture)
    assert abs(width / height - 1) < 0.03
    assert abs(width - 60) < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(tmp_path: Path, orientation: int) -> None:
    """Each EXIF orientation gives what Pillow's own transpose gives."""
    image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    codes = np.zeros((24, 40, 3), np.uint8)
    codes[:12, :20], codes[:12, 20:], codes[12:, :20] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    photo = image.fromarray(codes)
    exif = photo.getexif()
    exif[0x112] = orientation
    photo.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    expected = np.asarray(ops.exif_transpose(image.open(tmp_path / "a.jpg")))
    picture = load_image(tmp_path / "a.jpg", (expected.shape[1], expected.shape[0]))
    assert np.abs(picture * 255 - expected).max() < 4


def test_a_picture_that_changed_on_disk_is_read_again(tmp_path: Path) -> None:
    """No cache stands between an artist and the last save."""
    for value in (0.2, 0.8):
        picture = load_image(save(tmp_path / "a.png", np.full((4, 4, 3), value)), (4, 4))
        assert np.abs(picture - value).max() < 1e-6


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Missing, a folder, no picture, cut in half."""
    with pytest.raises(ShotError, match=r"gone\.png: there is no such file; a picture is allowed$"):
        load_image(tmp_path / "gone.png", (4, 4))
    with pytest.raises(ShotError, match="there is no such file"):
        load_image(tmp_path, (4, 4))
    (tmp_path / "text.png").write_text("no picture\nat all")
    whole = save(tmp_path / "a.exr", np.random.default_rng().random((64, 64, 3)), oiio.FLOAT).read_bytes()
    (tmp_path / "cut.exr").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "cut.exr"):
        with pytest.raises(ShotError, match=rf"{name}: it cannot be read as a picture \(.+\); a complete") as caught:
            load_image(tmp_path / name, (4, 4))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"size: got \(0, 4\); 1x1 and more is allowed"):
        load_image(tmp_path / "a.exr", (0, 4))
