# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Control passes as a model wants them: depth over the whole shot, normals, masks, references; and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest

from rushes.media import footage_digest, is_still, read_pass, read_reference
from rushes.shot import ShotError

Write = Callable[[str, np.ndarray], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("z.%04d.exr", values [n, h, w, c]): a sequence, or one file of the first frame; its name."""

    def store(name: str, values: np.ndarray) -> str:
        for number, frame in enumerate(values if "%" in name else values[:1], 1):
            path = str(tmp_path / (name % number if "%" in name else name))
            spec = oiio.ImageSpec(frame.shape[1], frame.shape[0], frame.shape[2], "float" if "exr" in name else "uint8")
            if frame.shape[2] == 1:
                spec.channelnames = ("Z",)
            out = oiio.ImageOutput.create(path)
            assert out.open(path, spec) and out.write_image(np.ascontiguousarray(frame, np.float32)) and out.close()
        return str(tmp_path / name)

    return store


def test_distances_become_nearness_over_the_whole_shot(write: Write) -> None:
    """White at the nearest point of any frame, black at the farthest; infinity and no number are black."""
    distance = np.array([[[2.0, 4.0], [8.0, 4.0]], [[1.0, 2.0], [np.inf, 1e10]]], np.float32)[..., None]
    distance[1, 1, 0] = np.nan
    found = read_pass(write("z.%04d.exr", distance), "depth", (2, 2), 9)
    expected = np.array([[[0.5, 0.25], [0.125, 0.25]], [[1.0, 0.5], [0.0, 0.0]]], np.float32)
    assert found.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-6)
    assert (found == found[..., :1]).all()


def test_painted_depth_is_stretched_as_it_is(write: Write) -> None:
    """A picture is white where it is near already; a shot of one distance is black."""
    values = np.array([[[0.2, 0.4]], [[0.6, 0.2]]], np.float32)[..., None].repeat(3, 3)
    found = read_pass(write("z.%04d.png", values), "depth", (2, 1), 9)
    np.testing.assert_allclose(found[..., 0], [[[0.0, 0.5]], [[1.0, 0.0]]], atol=0.01)
    flat = read_pass(write("flat.png", np.full((1, 3, 5, 3), 0.4)), "depth", (5, 3), 9)
    assert flat.shape == (1, 3, 5, 3) and not flat.any()


def test_depth_is_stretched_over_the_frames_that_are_used(write: Write) -> None:
    """A nearer frame behind the clip's end changes nothing."""
    distance = np.array([4.0, 2.0, 0.1], np.float32).reshape(3, 1, 1, 1).repeat(4, 2)
    found = read_pass(write("z.%04d.exr", distance), "depth", (4, 1), 2)
    assert found.shape[0] == 2 and found[0].max() == 0 and found[1].min() == 1


def test_normals_of_an_exr_are_signed(write: Write) -> None:
    """-1 ... 1 becomes 0 ... 1; painted ones are so already."""
    normals = np.array([[[[-1.0, 0.0, 1.0], [0.5, -0.5, 0.0]]]], np.float32)
    found = read_pass(write("n.exr", normals), "normal", (2, 1), 1)
    np.testing.assert_allclose(found[0, 0], [[0.0, 0.5, 1.0], [0.75, 0.25, 0.5]], atol=1e-6)
    painted = read_pass(write("n.png", (normals + 1) / 2), "normal", (2, 1), 1)
    np.testing.assert_allclose(painted, found, atol=0.01)


def test_masks_are_numbers_and_grey_is_luminance(write: Write) -> None:
    """A mask's first channel as it is stored, within 0 ... 1, whatever an EXR says of its colours."""
    values = np.array([[[[0.5, 0.0, 0.0], [2.0, 0.0, 0.0], [np.nan, 1.0, 1.0]]]], np.float32)
    np.testing.assert_array_equal(read_pass(write("m.exr", values), "mask", (3, 1), 1)[0, 0, :, 1], [0.5, 1.0, 0.0])
    colours = np.array([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]]], np.float32)
    grey = read_pass(write("g.png", colours), "grey", (3, 1), 1)
    np.testing.assert_allclose(grey[0, 0, :, 2], [0.2126, 0.7152, 1.0], atol=1e-5)
    assert (read_pass(write("g.png", colours), "pose", (3, 1), 1) == colours).all()


def test_a_reference_is_seen_whole_on_white(write: Write) -> None:
    """A wide picture in a square: bands above and below, nothing cut off."""
    path = write("r.png", np.zeros((1, 6, 12, 3)))
    found = read_reference(path, (8, 8))
    assert found.shape == (8, 8, 3)
    assert not found[2:6].any() and (found[:2] == 1).all() and (found[6:] == 1).all()


def test_a_digest_is_of_all_files_of_a_sequence(write: Write, tmp_path: Path) -> None:
    """One picture has its own; a sequence's changes with any frame."""
    values = np.random.default_rng(3).random((3, 4, 5, 3))
    still, pattern = write("a.png", values), write("s.%04d.png", values)
    assert footage_digest(still) == hashlib.sha256(Path(still).read_bytes()).hexdigest()
    before = footage_digest(pattern)
    write("s.%04d.png", values[::-1])
    assert footage_digest(pattern) != before
    assert is_still(still) and not is_still(pattern)
    movie = tmp_path / "m.mov"
    movie.write_bytes(b"any")
    assert footage_digest(str(movie)) == hashlib.sha256(b"any").hexdigest()


@pytest.mark.parametrize("name", ["gone.png", "gone.%04d.exr", "gone.mov", "."])
def test_footage_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShotError, match=r"gone|cannot be read"):
        footage_digest(str(tmp_path / name))
    with pytest.raises(ShotError, match="allowed"):
        read_pass(str(tmp_path / name), "pose", (16, 16), 5)


def test_a_pass_is_found_among_many_layers(tmp_path: Path) -> None:
    """As Blender and Nuke name them; colours beside it are not taken for it."""
    values = np.random.default_rng(8).random((3, 4, 9)).astype(np.float32)
    for depth, normal in (("ViewLayer.Depth.Z", "ViewLayer.Normal."), ("depth.Z", "normal."), ("Z", "N_normal.")):
        names = ("R", "G", "B", "A", "V.Combined.R", depth, f"{normal}X", f"{normal}Y", f"{normal}Z")
        path = str(tmp_path / "many.exr")
        spec = oiio.ImageSpec(4, 3, 9, "float")
        spec.channelnames = names
        out = oiio.ImageOutput.create(path)
        assert out.open(path, spec) and out.write_image(values) and out.close()
        stored = [oiio.ImageBuf(path).spec().channelnames.index(name) for name in names]  # EXR sorts them
        pixels = oiio.ImageBuf(path).get_pixels(oiio.FLOAT)
        near = 1 / pixels[..., stored[5]]
        expected = (near - near.min()) / (near.max() - near.min())
        np.testing.assert_allclose(read_pass(path, "depth", (4, 3), 1)[0, ..., 0], expected, rtol=1e-5, atol=1e-6)
        normals = (pixels[..., stored[6:9]] + 1) / 2
        np.testing.assert_allclose(read_pass(path, "normal", (4, 3), 1)[0], normals, rtol=1e-6)
