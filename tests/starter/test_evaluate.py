# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Evaluation: what is read off real clips is true, scores are means over classes, the judge learns and is honest."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rushes import Engine
from rushes.starter.palette import LIGHTS, SUBJECTS, subject_color
from rushes.starter.scene import ATTRIBUTES, CAMERAS, COLORS, MOTIONS, Scene
from rushes.starter.train import evaluate as evaluation
from rushes.starter.train import judges, practice
from rushes.starter.train.analysis import color_inside, direction, psnr, seam
from rushes.starter.train.evaluate import CHANCE, NEUTRAL_MOTIONS, TITLES, Scores, ask, evaluate, neutral_sets
from rushes.starter.train.judges import Judge, Verdict, judge_clips
from rushes.starter.train.practice import Practice, Shown, render_seen, seen_frames
from rushes.starter.train.report import Report, Row, Tally, contact_sheet
from rushes.starter.world import is_held_out, render, sample_scenes


@pytest.fixture
def seed() -> int:
    """A new seed for each run; it is shown when a test fails."""
    return random.SystemRandom().randrange(2**20)


def scenes_with(seed: int, count: int, **wanted: str | tuple[str, ...]) -> list[Scene]:
    found = [s.replace(second=None) for s in sample_scenes(3000, seed, split="all")]
    fits = [
        s for s in found
        if all(getattr(s, n) in (v if isinstance(v, tuple) else (v,)) for n, v in wanted.items())
    ]  # fmt: skip
    assert len(fits) >= count
    return fits[:count]


def test_psnr_is_that_of_the_definition() -> None:
    """A difference of a tenth everywhere is 20 dB; equal pictures give the cap."""
    a = torch.rand(5, 7, 3) * 0.8
    assert psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-3)
    assert psnr(a, a) == pytest.approx(100.0)


def test_the_color_of_real_subjects_is_found_in_their_pixels(seed: int) -> None:
    """Under every light, for the truth's mask: at least 23 of 24."""
    scenes = scenes_with(seed, 24)
    rendered = render(scenes, frames=1)
    found = [
        color_inside(frames.float() / 255, mask, scene.time)
        for scene, frames, mask in zip(scenes, rendered.frames, rendered.mask, strict=True)
    ]
    assert sum(a == b.color for a, b in zip(found, scenes, strict=True)) >= 23, list(zip(found, scenes, strict=True))


def test_no_color_is_found_in_an_empty_mask_or_far_from_all() -> None:
    """None, and not a guess."""
    frames = torch.full((2, 20, 20, 3), 0.5)
    assert color_inside(frames, torch.zeros(2, 20, 20, dtype=torch.bool), "day") is None
    frames[..., 0], frames[..., 1], frames[..., 2] = 0.55, 0.65, 0.15
    assert color_inside(frames, torch.ones(2, 20, 20, dtype=torch.bool), "day") is None


@pytest.mark.parametrize(("way", "step"), [("left", (-4, 0)), ("right", (4, 0)), ("rise", (0, -3)), ("fall", (0, 3))])
def test_the_way_of_a_coloured_square_is_read(way: str, step: tuple[int, int]) -> None:
    """A square that moves over scenery that has its colour too; also when it moves less than its width."""
    color = torch.tensor(subject_color(SUBJECTS["pink"], LIGHTS["day"]))
    frames = torch.full((9, 80, 128, 3), 0.45)
    frames[:, :10, :30] = color
    for t in range(9):
        x, y = 60 + step[0] * (t - 4), 40 + step[1] * (t - 4)
        frames[t, y - 10 : y + 10, x - 10 : x + 10] = color
    assert direction(frames, "pink", "day") == way
    assert direction(frames[:4], "pink", "day") == way
    assert direction(frames[:1].expand_as(frames), "pink", "day") is None
    assert direction(frames, "green", "day") is None


def test_the_way_of_real_subjects_is_read(seed: int) -> None:
    """Vivid subjects in front of scenery of other colours, static camera: at least 11 of 12."""
    scenes = scenes_with(
        seed,
        12,
        motion=evaluation.WAYS,
        camera="static",
        color=("red", "purple", "pink", "yellow"),
        time=("day", "dawn"),
    )
    clips = render_seen(scenes, 33).frames.float() / 255
    found = [direction(clip, s.color, s.time) for clip, s in zip(clips, scenes, strict=True)]
    assert sum(a == s.motion for a, s in zip(found, scenes, strict=True)) >= 11, list(zip(found, scenes, strict=True))


def test_a_jump_shows_in_the_seam() -> None:
    """Frames change by 0.01, and by 0.05 where the made part begins."""
    frames = torch.arange(12).view(-1, 1, 1, 1).expand(-1, 4, 6, 3) * 0.01
    frames = frames + torch.where(torch.arange(12) >= 9, 0.04, 0.0).view(-1, 1, 1, 1)
    jump, inside = seam(frames, 9)
    assert jump == pytest.approx(0.05, abs=1e-6) and inside == pytest.approx(0.01, abs=1e-6)


def test_accuracy_is_the_mean_over_classes() -> None:
    """Always saying the commonest class is worth one class, however common that is."""
    tally = Tally()
    for prompt in range(90):
        tally.add("static", True, prompt)
    for prompt in range(90, 100):
        tally.add("orbit", False, prompt)
    assert tally.macro() == pytest.approx(50.0)
    assert tally.n == 100 and tally.per_class() == {"static": 100.0, "orbit": 0.0}


def test_the_spread_counts_prompts_and_not_clips() -> None:
    """Ten seeds of a prompt that always agree tell no more than one."""
    few, many = Tally(), Tally()
    for prompt in range(20):
        few.add("a", prompt % 2 == 0, prompt)
        for _ in range(10):
            many.add("a", prompt % 2 == 0, prompt)
    assert many.n == 10 * few.n
    # 22 prompts with the two that are added, half of them right
    assert many.spread() == pytest.approx(few.spread()) == pytest.approx(1.96 * 100 * (0.25 / 21) ** 0.5)
    sure = Tally()
    sure.add("a", True, 0)
    assert sure.spread() > 50


def test_prompts_are_held_out_and_balanced(seed: int) -> None:
    """As many of each motion under a static camera, and of each camera move with a still subject; none comes twice."""
    scenes = ask(200, seed)
    assert len(scenes) == 200 and len({scene.to_json() for scene in scenes}) == 200
    assert all(is_held_out(scene) and scene.second is None for scene in scenes)
    motions = Counter(s.motion for s in scenes[:80])
    cameras = Counter(s.camera for s in scenes[80:160])
    assert motions == dict.fromkeys(MOTIONS, 10) and all(s.camera == "static" for s in scenes[:80])
    assert cameras == dict.fromkeys(CAMERAS, 10) and all(s.motion == "still" for s in scenes[80:160])
    assert ask(200, seed) == scenes and ask(200, seed + 1) != scenes


def test_neutral_first_frames_are_the_same_to_the_bit(seed: int) -> None:
    """Whatever the motion, the first frame is one; what follows is not."""
    for frames in (17, 33):
        for scenes in neutral_sets(3, seed, frames):
            assert [s.motion for s in scenes] == list(NEUTRAL_MOTIONS)
            assert all(is_held_out(s) for s in scenes)
            drawn = render(scenes, (64, 40), frames=frames)
            assert (drawn.frames[:, 0] == drawn.frames[:1, 0]).all()
            assert len({clip.numpy().tobytes() for clip in drawn.frames}) == len(NEUTRAL_MOTIONS)
            assert drawn.mask[:, -1].flatten(1).any(1).all(), "a subject has left the frame"


@pytest.mark.parametrize("frames", [17, 33])
def test_the_frames_a_judge_sees_are_those_of_the_clip(seed: int, frames: int) -> None:
    """Rendering fewer frames at a slower rate draws the same moments; sizes are matched."""
    scenes = [scene.replace(second=None) for scene in sample_scenes(4, seed)]
    seen = render_seen(scenes, frames)
    full = render(scenes, frames=frames)
    step = (frames - 1) // 8
    assert torch.equal(seen.frames, full.frames[:, ::step]) and torch.equal(seen.mask, full.mask[:, ::step])
    clip = seen_frames(full.frames[0])
    assert torch.equal(clip, seen.frames[0].permute(0, 3, 1, 2).float() / 255)
    assert seen_frames(torch.rand(frames, 40, 64, 3)).shape == clip.shape
    with pytest.raises(ValueError, match="frames is 12"):
        render_seen(scenes, 12)


def test_a_subject_moved_far_away_is_not_in_the_frame(seed: int) -> None:
    """The judge's clips without a subject have none, under every camera move."""
    scenes = [s.replace(second=None, x=practice.FAR_AWAY) for s in sample_scenes(64, seed)]
    assert not render_seen(scenes, 33).mask.any()


def test_backward_and_mirrored_clips_get_the_other_label() -> None:
    """Both twice gives the label back; what has no other way round stays."""
    names = {"motion": MOTIONS, "camera": CAMERAS}
    for pairs in (practice.BACKWARDS, practice.MIRRORED):
        for name, classes in names.items():
            for label in range(-1, len(classes)):
                labels = {"motion": -1, "camera": -1, name: label}
                turned = practice.turned(labels, pairs)
                assert practice.turned(turned, pairs) == labels and (label < 0) == (turned[name] < 0)
    turned = practice.turned(
        {"motion": MOTIONS.index("approach"), "camera": CAMERAS.index("orbit")}, practice.BACKWARDS
    )
    assert turned == {"motion": MOTIONS.index("recede"), "camera": CAMERAS.index("orbit")}


def test_a_clip_turned_round_keeps_its_truth(seed: int) -> None:
    """Mask and path of backward, mirrored and held clips are those of their own frames."""
    scene = scenes_with(seed, 1, motion="left", camera="pan_right")[0]
    drawn = render_seen([scene], 33)
    cells = torch.nn.functional.avg_pool2d(drawn.mask[:, list(practice.LOOKS)].float(), 4)
    path = torch.cat((drawn.shifts, drawn.subject), dim=2)
    labels = {"motion": MOTIONS.index("left"), "camera": CAMERAS.index("pan_right"), "present": 1}
    shown = Shown(drawn.frames[0], cells[0], path[0], labels)
    back, mirror, held = shown.backwards(), shown.mirrored(), shown.held(1)
    assert torch.equal(back.frames[2], shown.frames[6]) and torch.equal(back.mask[0], shown.mask[1])
    assert torch.equal(back.path[-1] - back.path[0], shown.path[0] - shown.path[-1])
    assert torch.equal(mirror.frames[:, :, 0], shown.frames[:, :, -1])
    assert torch.equal(mirror.mask.flip(2), shown.mask)
    moved, mirrored = shown.path[-1] - shown.path[0], mirror.path[-1] - mirror.path[0]
    assert torch.allclose(mirrored[[0, 3]], -moved[[0, 3]]) and torch.allclose(
        mirrored[[1, 2, 4, 5]], moved[[1, 2, 4, 5]]
    )
    assert (held.frames == shown.frames[6]).all() and (held.mask == shown.mask[1]).all()
    assert (held.path == held.path[:1]).all()
    assert MOTIONS[held.labels["motion"]] == "still" and CAMERAS[held.labels["camera"]] == "static"
    assert MOTIONS[back.labels["motion"]] == MOTIONS[mirror.labels["motion"]] == "right"
    assert CAMERAS[back.labels["camera"]] == CAMERAS[mirror.labels["camera"]] == "pan_left"


def test_worn_clips_stay_pictures(seed: int) -> None:
    """Shape and range hold, blur keeps the mean, and its kernel has no tails that slow a processor down."""
    clip = torch.rand(3, 3, 80, 128)
    dice = torch.Generator().manual_seed(seed)
    for _ in range(6):
        worn = practice.wear(clip.clone(), dice)
        assert worn.shape == clip.shape and float(worn.min()) >= 0 and float(worn.max()) <= 1
    blurred = practice._blurred(clip, 1.5)
    assert float(blurred.mean()) == pytest.approx(float(clip.mean()), abs=5e-3)
    assert float(blurred.std()) < 0.5 * float(clip.std())
    matrix = practice._blur_matrix(80, 0.3, clip)
    assert not ((matrix > 0) & (matrix < 1e-5)).any()


def test_a_small_set_is_learnt(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls by half in forty steps on sixteen clips: every part of the judge is connected."""
    monkeypatch.setattr(practice, "POOL", 16)
    torch.manual_seed(seed)
    clips, judge = Practice(seed, "cpu"), Judge()
    clips.add(16)
    sample = clips.draw(16)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    values = []
    for _ in range(40):
        loss = judges.losses(judge, sample)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if not values:
            assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in judge.parameters())
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


def test_the_judge_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call trains nothing; a file of another version is not trusted."""
    monkeypatch.setattr(practice, "POOL", 8)
    first = judges.load_judge(tmp_path, 1e-6)
    monkeypatch.setattr(judges, "train_judge", lambda *a, **k: pytest.fail("trained again"))
    again = judges.load_judge(tmp_path, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    clip = torch.rand(practice.SEEN, 3, 80, 128)
    a, b = judge_clips(first, [clip])[0], judge_clips(again, [clip])[0]
    assert a.classes == b.classes and torch.equal(a.mask, b.mask) and a.mask.shape == (len(practice.LOOKS), 80, 128)
    monkeypatch.setattr(judges, "VERSION", "another")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        judges.load_judge(tmp_path, 1e-6)


def test_each_question_is_asked_only_where_it_has_one_answer(seed: int) -> None:
    """Motion under a static camera, camera with a still subject; everything else always."""
    clip, nothing = torch.zeros(9, 3, 80, 128), torch.zeros(len(practice.LOOKS), 80, 128, dtype=torch.bool)
    scenes = [s.replace(second=None) for s in sample_scenes(60, seed)]
    scores = Scores()
    for number, scene in enumerate(scenes):
        truth = {name: getattr(scene, name) for name in ATTRIBUTES}
        scores.add(scene, clip, Verdict(truth, True, nothing), number)
    counts = {name: tally.n for name, tally in scores.tallies.items()}
    assert counts["kind"] == counts["present"] == counts["color_pixels"] == 60
    assert counts["motion"] == sum(s.camera == "static" for s in scenes)
    assert counts["camera"] == sum(s.motion == "still" for s in scenes)
    assert counts["ways"] == counts["ways_path"] == sum(
        s.camera == "static" and s.motion in evaluation.WAYS for s in scenes
    )  # fmt: skip
    assert scores.tallies["kind"].macro() == scores.tallies["motion"].macro() == 100
    assert scores.tallies["color_pixels"].macro() == 0, "a black clip has no pixels of the subject"
    assert CHANCE["color"] == 100 / len(COLORS)


def test_the_report_says_what_holds_and_what_does_not() -> None:
    """Every row with its columns; low is good where it says so."""
    rows = (
        Row("colour", 96.0, "%", 600, 1.5, 99.2, 10.0, 95.0),
        Row("kind of subject", 41.5, "%", 600, 4.0, 94.0, 14.3, 60.0),
        Row("extension: seam ratio", 1.4, "", 25, ceiling=1.0, must=1.5, low_is_good=True),
        Row("colour, by pixels", 90.0, "%", 600),
    )
    report = Report((("model", "starter"),), rows, ("motion: still 90",))
    lines = report.to_text().splitlines()
    assert lines[0].split() == ["model", "starter"] and lines[-1] == "motion: still 90"
    assert lines[2].split() == ["attribute", "score", "+-", "ceiling", "chance", "n", "must"]
    assert lines[3].split() == ["colour", "96.0", "%", "1.5", "99.2", "10.0", "600", ">=", "95", "ok"]
    assert lines[4].endswith(">= 60 MISSED") and lines[5].endswith("<= 1.5 ok") and lines[6].split()[-1] == "-"
    assert not report.holds and Report((), rows[2:]).holds


def test_a_sheet_holds_its_strips_under_their_words(tmp_path: Path) -> None:
    """Strips of different lengths, each bit of them there; the words leave marks above."""
    from PIL import Image

    strips = [(f"strip {n}", torch.randint(0, 255, (n, 16, 24, 3), dtype=torch.uint8)) for n in (2, 5)]
    contact_sheet(tmp_path / "sheet.png", strips)
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "sheet.png").convert("RGB")))
    assert sheet.shape[1] == 5 * 26 + 8
    assert torch.equal(sheet[20:36, 4:28], strips[0][1][0]) and torch.equal(sheet[56:72, 108:132], strips[1][1][4])
    assert float(sheet[4:20].float().std()) > 1


@pytest.mark.slow
def test_everything_is_measured_and_written(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model through the whole evaluation: all rows, both sheets, the report on disk."""
    monkeypatch.setattr(practice, "POOL", 8)
    monkeypatch.setattr(evaluation, "KNOWN", 5)
    monkeypatch.setattr(evaluation, "full_caption", lambda scene: "a red ball rolls to the right")  # its text is short
    said: list[str] = []
    engine = Engine.load(tiny_model, device="cpu")
    report = evaluate(engine, prompts=1, seeds=1, folder=tmp_path, judges_minutes=1e-6, frames=9, tell=said.append)
    names = [row.name for row in report.rows]
    assert names[: len(TITLES)] == list(TITLES.values())
    assert sum(name.startswith(("VAE", "image", "extension", "one 17-frame")) for name in names) == 6
    assert all(row.score == row.score for row in report.rows), "no row is empty"
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == report.to_text()
    assert (tmp_path / "sheet.png").stat().st_size > 0 and (tmp_path / "sheet_real.png").stat().st_size > 0
    assert said
