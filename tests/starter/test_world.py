# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The starter's world: its records, its balance, and that its pictures show what the records say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from rushes.starter import raster, world
from rushes.starter.palette import LIGHTS, SUBJECTS
from rushes.starter.scene import (
    ATTRIBUTES,
    CAMERAS,
    COLORS,
    KINDS,
    MOTIONS,
    SETTINGS,
    TIMES,
    WIDTHS,
    Scene,
    camera_at,
    subject_at,
)
from rushes.starter.world import held_out, is_held_out, render, sample_scenes


@pytest.fixture
def seed() -> int:
    """A new seed for each run; it is shown when a test fails."""
    return random.SystemRandom().randrange(2**31)


def plain(seed: int, count: int = 1, **wanted: str) -> list[Scene]:
    """Random scenes without a second subject that have the attributes wanted."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        found = sample_scenes(2000, seed, split="all")
        scenes += [
            scene
            for scene in found
            if scene.second is None and all(getattr(scene, name) == value for name, value in wanted.items())
        ]
        seed += 1
    return scenes[:count]


def centroids(mask: Tensor) -> Tensor:
    """Middle x, y and area in pixels of a mask in each frame, [F, 3], straight from the pixels."""
    rows = []
    for frame in mask:
        y, x = frame.nonzero(as_tuple=True)
        rows.append([float(x.float().mean()), float(y.float().mean()), float(len(x))])
    return torch.tensor(rows)


def displacement(before: Tensor, after: Tensor) -> tuple[int, int]:
    """Right and down in pixels from one picture [H, W, 3] to another, by phase correlation.

    Kuglin & Hines 1975.
    """
    grey = [k.float().mean(-1) for k in (before, after)]
    taper = torch.outer(*(torch.hann_window(n, periodic=False) for n in grey[0].shape))
    a, b = (torch.fft.rfft2((k - k.mean()) * taper) for k in grey)
    cross = b * a.conj()
    peak = torch.fft.irfft2(cross / (cross.abs() + 1e-3 * cross.abs().max()), s=grey[0].shape)
    down, right = divmod(int(peak.argmax()), peak.shape[1])
    down, right = (k - n if k > n // 2 else k for k, n in zip((down, right), peak.shape, strict=True))
    return right, down


def test_same_seed_gives_the_same_scenes_and_bytes(seed: int) -> None:
    """A seed names scenes and pixels for ever; another seed names others."""
    first, again, other = (sample_scenes(4, k) for k in (seed, seed, seed + 1))
    assert first == again
    assert first != other
    assert torch.equal(render(first, frames=3).frames, render(again, frames=3).frames)


def test_a_record_survives_json_and_draws_the_same_bytes(seed: int) -> None:
    """The record is the whole clip."""
    scenes = sample_scenes(20, seed, split="all")
    copies = [Scene.from_json(json.dumps(json.loads(scene.to_json()))) for scene in scenes]
    assert copies == scenes
    assert any(scene.second is not None for scene in scenes)
    assert torch.equal(render(scenes[:5], frames=2).frames, render(copies[:5], frames=2).frames)


def test_other_clips_in_the_batch_do_not_change_a_clip(seed: int) -> None:
    """A clip's bytes are the same alone and among others."""
    scenes = sample_scenes(6, seed, split="all")
    whole = render(scenes, depth=True, frames=3)
    for k in (0, 5):
        alone = render([scenes[k]], depth=True, frames=3)
        for field in dataclasses.fields(whole):
            assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[k]), field.name


def test_clips_drawn_together_are_those_drawn_one_by_one(seed: int) -> None:
    """The way clips are drawn on an accelerator gives the pictures of the CPU's way, to within rounding."""
    scenes = sample_scenes(12, seed, split="all")
    frames, mask, depth = raster._draw(scenes, (96, 60), torch.device("cpu"), True, 4, 3)
    each = render(scenes, (96, 60), depth=True, first=4, frames=3)
    assert (frames.int() - each.frames.int()).abs().max() <= 1
    assert torch.equal(mask, each.mask)
    assert depth is not None and each.depth is not None
    assert torch.equal(depth, each.depth)


def test_a_window_is_a_cut_of_the_whole_clip(seed: int) -> None:
    """first and frames choose frames and change none; shifts count from the window's own first frame."""
    scenes = plain(seed, 1, camera="push_in") + plain(seed, 1, setting="sea", camera="pan_left")
    whole, part = render(scenes), render(scenes, first=9, frames=5)
    assert torch.equal(part.frames, whole.frames[:, 9:14])
    assert torch.equal(part.mask, whole.mask[:, 9:14])
    assert torch.equal(part.subject, whole.subject[:, 9:14])
    torch.testing.assert_close(part.shifts, whole.shifts[:, 9:14] - whole.shifts[:, 9:10], atol=1e-6, rtol=0)


def test_training_never_shows_what_is_held_out(seed: int) -> None:
    """No training scene shows a kept-back pair, neither in its first nor in its second subject."""
    kept = held_out()
    for scene in sample_scenes(3000, seed):
        assert (scene.color, scene.kind) not in kept.color_kind
        assert (scene.setting, scene.time) not in kept.setting_time
        assert scene.second is None or (scene.second.color, scene.second.kind) not in kept.color_kind
    assert all(map(is_held_out, sample_scenes(600, seed, split="held_out")))


def test_held_out_combinations_exist_and_every_one_is_tested(seed: int) -> None:
    """About a tenth of either table is kept back, and the held-out split asks for all of it."""
    kept = held_out()
    assert all(color in COLORS and kind in KINDS for color, kind in kept.color_kind)
    assert all(setting in SETTINGS and time in TIMES for setting, time in kept.setting_time)
    assert 0.08 <= len(kept.color_kind) / (len(COLORS) * len(KINDS)) <= 0.13
    assert 0.08 <= len(kept.setting_time) / (len(SETTINGS) * len(TIMES)) <= 0.13
    scenes = sample_scenes(300, seed, split="held_out")
    assert kept.color_kind <= {(k.color, k.kind) for k in scenes}
    assert kept.setting_time <= {(k.setting, k.time) for k in scenes}


@pytest.mark.parametrize("split", ["train", "all"])
def test_classes_are_balanced(seed: int, split: str) -> None:
    """Each class of each attribute has its share, and so it has among the scenes of any other class."""
    count = 4000
    scenes = sample_scenes(count, seed, split=split)  # type: ignore[arg-type]
    for name, classes in ATTRIBUTES.items():
        seen = Counter(getattr(scene, name) for scene in scenes)
        for value in classes:
            share = 1.0 / len(classes)
            if name == "camera":
                share = 0.35 if value == "static" else 0.65 / 7
            assert abs(seen[value] / count - share) < 0.004, (name, value)
    assert abs(sum(scene.second is not None for scene in scenes) / count - 0.2) < 0.004
    pairs = Counter((scene.motion, scene.camera) for scene in scenes)
    for motion in MOTIONS:
        for camera in CAMERAS:
            expected = count / 8 * (0.35 if camera == "static" else 0.65 / 7)
            assert abs(pairs[motion, camera] - expected) < 6.0 * expected**0.5, (motion, camera)


def test_the_subject_stays_in_the_frame_and_is_large(seed: int) -> None:
    """For all 33 frames its middle is in the picture, at the edge in one clip of two thousand (0.961 was met)."""
    scenes = sample_scenes(150, seed)
    truth = render(scenes, (64, 40)).subject
    assert bool((truth[..., 0] > 0.02).all() and (truth[..., 0] < 0.98).all())
    assert bool((truth[..., 1] > 0.0).all() and (truth[..., 1] < 0.97).all())
    assert 0.28 < float(truth[:, 0, 2].median()) < 0.40
    assert float(truth[..., 2].min()) > 0.12


def test_mask_pixels_have_the_subjects_color(seed: int) -> None:
    """Most pixels in the mask are nearer in hue to the record's colour than to any other, by daylight."""
    hues = {name: torch.tensor(rgb) for name, rgb in SUBJECTS.items() if name not in ("white", "black")}
    directions = torch.stack([rgb - rgb.mean() for rgb in hues.values()])
    directions = directions / directions.norm(dim=1, keepdim=True)
    for number, (color, _) in enumerate(hues.items()):
        scene = plain(seed, 1, color=color, kind="ball", time="day")[0]
        drawn = render([scene], frames=1)
        pixels = drawn.frames[drawn.mask].float() / 255.0  # [pixels, 3]
        offset = pixels - pixels.mean(1, keepdim=True)
        nearest = (offset @ directions.T).argmax(1)
        assert (nearest == number).float().mean() > 0.9, color


def test_black_is_dark_and_white_is_light(seed: int) -> None:
    """The two colours without hue are told apart by their lightness at any time of day."""
    for time in TIMES:
        level = {}
        for color in ("black", "white"):
            drawn = render(plain(seed, 1, color=color, kind="cube", time=time), frames=1)
            level[color] = float(drawn.frames[drawn.mask].float().mean())
        assert level["black"] < 60 < 120 < level["white"], time


def test_mask_and_subject_truth_agree(seed: int) -> None:
    """The mask's bounding box is where the ground truth says the subject is."""
    for kind in KINDS:
        scene = plain(seed, 1, kind=kind, motion="still", camera="static")[0]
        drawn = render([scene], (160, 100), frames=1)
        y, x = drawn.mask[0, 0].nonzero(as_tuple=True)
        middle_x, middle_y, height = drawn.subject[0, 0].tolist()
        assert abs(float(y.min() + y.max() + 1) / 200 - middle_y) < 0.03, kind
        assert abs(float(y.max() - y.min() + 1) / 100 - height) < 0.04, kind
        assert abs(float(x.min() + x.max() + 1) / 320 - middle_x) < 0.03, kind
        if kind != "car":
            width = float(x.max() - x.min() + 1) / 100
            assert abs(width / height - WIDTHS[kind]) < 0.1, kind


def test_motion_in_the_mask_is_the_motion_of_the_record(seed: int) -> None:
    """Measured from the pixels of the mask alone, with a static camera, every class moves its own way."""
    for motion in MOTIONS:
        for scene in plain(seed, 4, motion=motion, camera="static"):
            x, y, area = centroids(render([scene], first=0, frames=17).mask[0]).T
            right, down, growth = float(x[-1] - x[0]), float(y[-1] - y[0]), float(area[-1] / area[0])
            label = (motion, scene.to_json())
            if motion in ("left", "right"):
                assert right * (1 if motion == "right" else -1) > 15 and abs(down) < 2, label
            elif motion in ("rise", "fall"):
                assert down * (1 if motion == "fall" else -1) > 6 and abs(right) < 1, label
            elif motion in ("approach", "recede"):
                assert (growth > 1.25) if motion == "approach" else (growth < 0.8), label
            elif motion == "bounce":
                turns = (torch.diff(torch.sign(torch.diff(y))) != 0).sum()
                assert float(y.max() - y.min()) > 8 and int(turns) >= 2 and abs(right) < 1, label
            else:
                assert abs(right) < 1.5 and abs(down) < 1.5 and 0.85 < growth < 1.15, label


def test_a_fall_ends_on_its_shadow_on_the_ground(seed: int) -> None:
    """What falls lands within the clip's 33 frames, and never goes below the ground."""
    for scene in plain(seed, 8, motion="fall"):
        heights = [subject_at(scene, frame)[1] for frame in range(33)]
        assert heights[0] > 0.8 and heights[-1] < 0.2
        assert all(a >= b >= 0.0 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize(
    ("camera", "right", "down"),
    [("static", 0, 0), ("pan_left", 1, 0), ("pan_right", -1, 0), ("tilt_up", 0, 1), ("tilt_down", 0, -1)],
)
def test_camera_moves_the_background_the_right_way(seed: int, camera: str, right: int, down: int) -> None:
    """By phase correlation of the pictures: a pan to the left moves the world to the right."""
    scenes = [
        scene.replace(size=0.05, x=-2.0) for scene in plain(seed, 3, camera=camera, setting="forest", motion="still")
    ]
    drawn = render(scenes, (160, 100), frames=5)
    for clip, shift in zip(drawn.frames, drawn.shifts, strict=True):
        moved = displacement(clip[0], clip[4])
        told = float(shift[4, 0]) * 160, float(shift[4, 1]) * 100
        for pixels, sign, truth in zip(moved, (right, down), told, strict=True):
            assert (pixels > 0) - (pixels < 0) == sign, (camera, moved)
            assert abs(pixels - truth) <= 2.0, (camera, moved, told)


@pytest.mark.parametrize(("camera", "grows"), [("push_in", True), ("pull_out", False)])
def test_a_dolly_scales_the_world(seed: int, camera: str, grows: bool) -> None:
    """A still subject grows under a push in and shrinks under a pull out, and so does the told zoom."""
    for scene in plain(seed, 3, camera=camera, motion="still"):
        drawn = render([scene], first=0, frames=17)
        area = centroids(drawn.mask[0])[:, 2]
        assert (area[-1] > 1.2 * area[0]) if grows else (area[-1] < area[0] / 1.2)
        assert (drawn.shifts[0, -1, 2] > 0.08) if grows else (drawn.shifts[0, -1, 2] < -0.08)


def test_an_orbit_moves_the_backdrop_and_not_the_pivot(seed: int) -> None:
    """The point that an orbit goes around stays in place while the backdrop slides."""
    for scene in plain(seed, 3, camera="orbit", motion="still"):
        around = [camera_at(scene, k).project((0.0, 0.0, scene.pivot)) for k in (0, 16, 32)]
        assert max(abs(u) for u, _, _ in around) < 1e-6
        assert max(abs(depth - scene.pivot) for _, _, depth in around) < 1e-6
        assert abs(float(render([scene], (32, 20)).shifts[0, -1, 0])) > 0.15


def test_depth_orders_sky_layers_ground_and_subject(seed: int) -> None:
    """The sky is farthest, the ground comes nearer downwards, and the subject has its own depth."""
    scene = plain(seed, 1, setting="mountains", motion="still", camera="static")[0]
    drawn = render([scene], depth=True, frames=1)
    assert drawn.depth is not None
    depth, mask = drawn.depth[0, 0].float(), drawn.mask[0, 0]
    assert bool((depth > 0).all())
    away = camera_at(scene, 0).project(subject_at(scene, 0))[2]
    assert float((depth[mask] - away).abs().max()) < 0.01
    clear = next(x for x in range(128) if not mask[:, x].any())
    column = depth[:, clear]
    assert float(column[0]) == 200.0
    assert bool((torch.diff(column) <= 0.01).all())


def test_times_of_day_look_different(seed: int) -> None:
    """The mean colours of the four skies are far apart, whatever the setting."""
    scene = plain(seed, 1, setting="sea", motion="still", camera="static")[0]
    skies = [
        render([scene.replace(time=time, sun_elevation=0.12)], frames=1).frames[0, 0, :28].float().mean((0, 1))
        for time in LIGHTS
    ]
    for k, one in enumerate(skies):
        for other in skies[k + 1 :]:
            assert float((one - other).norm()) > 60.0


@pytest.mark.parametrize("size", [(128, 80), (160, 96), (64, 64), (97, 53), (40, 90), (8, 8)])
def test_any_size_works(seed: int, size: tuple[int, int]) -> None:
    """Shapes follow the size, also for odd, square and upright frames."""
    drawn = render(sample_scenes(3, seed, frames=2), size, depth=True)
    width, height = size
    assert drawn.frames.shape == (3, 2, height, width, 3)
    assert drawn.mask.shape == (3, 2, height, width)
    assert drawn.depth is not None and drawn.depth.shape == drawn.mask.shape
    assert bool(torch.isfinite(drawn.depth.float()).all())


def test_bad_input_is_refused_with_a_sentence() -> None:
    """Each refusal names the argument, what was got and what is allowed."""
    scene = sample_scenes(1, 0)[0]
    with pytest.raises(ValueError, match="split is 'test'; allowed: train, held_out, all"):
        sample_scenes(1, 0, split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n is -1"):
        sample_scenes(-1, 0)
    with pytest.raises(ValueError, match="kind is 'house'; allowed: ball, cube"):
        scene.replace(kind="house")
    with pytest.raises(ValueError, match="size is 4x80"):
        render([scene], (4, 80))
    with pytest.raises(ValueError, match="frames 30 to 46 are not in every scene"):
        render([scene], first=30, frames=17)
    with pytest.raises(ValueError, match="scenes is empty"):
        render([])


def test_zero_scenes_are_no_scenes() -> None:
    """An empty request gives an empty list."""
    assert sample_scenes(0, 3) == []
    assert world.sample_scenes(1, 3, split="held_out") != []
