# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Does the starter make what the sentence says? Held-out prompts, judged, beside what the judge makes of real clips.

Every accuracy is a mean over classes. Motion is asked under a static camera and the camera's move with a still subject:
with both moving, a clip may be right in more than one way. Prompts have one subject.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rushes.engine import Engine
from rushes.shot import Keyframe, Shot
from rushes.starter.captions import full_caption
from rushes.starter.scene import ATTRIBUTES, FOCAL, MOTIONS, Scene
from rushes.starter.train.analysis import color_inside, direction, psnr, seam
from rushes.starter.train.judges import Judge, Verdict, judge_clips, load_judge
from rushes.starter.train.practice import LOOKS, SIZE, render_seen, seen_frames
from rushes.starter.train.report import Report, Row, Tally, classes_line, contact_sheet
from rushes.starter.train.vae import test_vae
from rushes.starter.world import render, sample_scenes

WAYS = ("left", "right", "rise", "fall")
NEUTRAL_KINDS = ("ball", "cube", "cone", "cylinder", "tree")  # they look alike from all sides
NEUTRAL_MOTIONS = ("still", "left", "right", "rise", "bounce", "approach", "recede")
KNOWN = 9  # frames of the clip before that an extension is given
SHORT = 17  # frames of the clip that is timed
STRIPS = 14
MUST = {
    "present": 97.0, "color": 95.0, "time": 85.0, "setting": 80.0, "kind": 60.0, "motion": 75.0, "camera": 55.0,
    "psnr": 33.0, "subject_psnr": 28.0, "first_frame": 30.0, "image_motion": 85.0, "seam": 1.5, "seconds": 2.0,
}  # fmt: skip
TITLES = {
    "present": "subject present", "color": "colour", "color_pixels": "colour, by pixels", "time": "time of day",
    "setting": "setting", "kind": "kind of subject", "motion": "motion, static camera",
    "ways": "  left, right, rise, fall", "ways_path": "  the same, by the colour's path",
    "camera": "camera, still subject",
}  # fmt: skip
CHANCE = {
    **{name: 100 / len(classes) for name, classes in ATTRIBUTES.items()},
    "color_pixels": 10.0, "ways": 100 / len(MOTIONS), "ways_path": 25.0,
}  # fmt: skip
Tell = Callable[[str], object]


@dataclass
class Scores:
    """Tallies of all questions about a set of clips."""

    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in TITLES})

    def add(self, scene: Scene, clip: Tensor, verdict: Verdict, prompt: int) -> None:
        """Count one clip: the frames that the judge saw [T, 3, H, W], what it said, and what was asked for."""
        said = verdict.classes
        for name in ("color", "time", "setting", "kind"):
            self.tallies[name].add(getattr(scene, name), said[name] == getattr(scene, name), prompt)
        self.tallies["present"].add("present", verdict.present, prompt)
        pixels = color_inside(clip[list(LOOKS)].permute(0, 2, 3, 1), verdict.mask, scene.time)
        self.tallies["color_pixels"].add(scene.color, pixels == scene.color, prompt)
        if scene.camera == "static":
            self.tallies["motion"].add(scene.motion, said["motion"] == scene.motion, prompt)
            if scene.motion in WAYS:
                self.tallies["ways"].add(scene.motion, said["motion"] == scene.motion, prompt)
                way = direction(clip.permute(0, 2, 3, 1), scene.color, scene.time)
                self.tallies["ways_path"].add(scene.motion, way == scene.motion, prompt)
        if scene.motion == "still":
            self.tallies["camera"].add(scene.camera, said["camera"] == scene.camera, prompt)


def evaluate(
    engine: Engine,
    prompts: int = 200,
    seeds: int = 3,
    folder: Path = Path("evaluation"),
    judges_minutes: float = 8.0,
    seed: int = 0,
    frames: int | None = None,
    tell: Tell = print,
) -> Report:
    """Measure a model; writes report.txt, sheet.png and sheet_real.png into the folder, which keeps the judge too.

    judges_minutes: processor time for the judge's training, if folder/judges.safetensors is not there yet. frames: of
    the clips, the model's own number by default (17, 33 and others that `render_seen` takes). tell: gets progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = engine.device.type
    frames = frames or engine.card.defaults.frames
    judge = load_judge(folder, judges_minutes, seed, device)
    tell("real clips: what the judge makes of them")
    ceiling, held_still = judge_real(judge, ask(2 * prompts, seed + 1), frames, device)
    scenes = ask(prompts, seed)
    contact_sheet(folder / "sheet_real.png", list(_real_strips(scenes, frames)))
    scores, strips = _judge_made(engine, judge, scenes, seeds, frames, seed, tell)
    rows = [_row(name, scores, ceiling) for name in TITLES]
    rows += _vae_rows(engine, max(16, prompts // 3))
    sets = neutral_sets(max(2, prompts // 25), seed, frames)
    image_rows, image_strips = _image_rows(engine, judge, sets, frames, tell)
    rows += [*image_rows, *_seam_rows(engine, scenes, frames, tell), _speed_row(engine, scenes[0])]
    contact_sheet(folder / "sheet.png", [*strips, *image_strips])
    notes = [classes_line(TITLES[name].strip(), scores.tallies[name], ATTRIBUTES[name]) for name in ATTRIBUTES]
    report = Report(_head(engine, len(scenes), seeds, frames, folder), tuple(rows), (*notes, *held_still))
    (folder / "report.txt").write_text(report.to_text(), encoding="utf-8")
    return report


def ask(count: int, seed: int) -> list[Scene]:
    """Held-out scenes to ask for: two fifths with a static camera, alike many of each motion; two fifths with a still
    subject, alike many of each camera move; the rest as they come. Each move and motion is there at least once."""
    pool = [s.replace(second=None) for s in sample_scenes(max(3000, 20 * count), 31_000 + seed, split="held_out")]
    each = max(1, round(0.4 * count / len(MOTIONS)))
    taken = _spread([s for s in pool if s.camera == "static"], "motion", each)
    kept = {id(scene) for scene in taken}
    taken += _spread([s for s in pool if s.motion == "still" and id(s) not in kept], "camera", each)
    kept = {id(scene) for scene in taken}
    rest = [scene for scene in pool if id(scene) not in kept]
    return taken + rest[: max(0, count - len(taken))]


def _spread(pool: Sequence[Scene], attribute: str, each: int) -> list[Scene]:
    """`each` scenes of every class of an attribute; of those that fit, one whose other classes are rare so far."""
    counts: dict[tuple[str, str], int] = {}
    chosen: list[Scene] = []
    for _ in range(each):
        for label in ATTRIBUTES[attribute]:
            taken = {id(scene) for scene in chosen}
            fitting = [s for s in pool if getattr(s, attribute) == label and id(s) not in taken]
            if not fitting:
                raise RuntimeError(f"too few held-out scenes with {attribute} {label}")
            best = min(fitting, key=lambda s: sum(counts.get((n, getattr(s, n)), 0) ** 2 for n in ATTRIBUTES))
            for name in ATTRIBUTES:
                key = (name, getattr(best, name))
                counts[key] = counts.get(key, 0) + 1
            chosen.append(best)
    return chosen


def judge_real(judge: Judge, scenes: Sequence[Scene], frames: int, device: str) -> tuple[Scores, list[str]]:
    """What the judge makes of rendered clips, and lines that say whether it falls for a single frame held still."""
    scores, still, static = Scores(), 0, 0
    for start in range(0, len(scenes), 32):
        some = scenes[start : start + 32]
        clips = render_seen(some, frames, device).frames.cpu().permute(0, 1, 4, 2, 3).float() / 255
        for row, verdict in enumerate(judge_clips(judge, list(clips))):
            scores.add(some[row], clips[row], verdict, start + row)
        held = [clip[:1].expand_as(clip) for clip in clips]
        for verdict in judge_clips(judge, held):
            still += verdict.classes["motion"] == "still"
            static += verdict.classes["camera"] == "static"
    still, static = (round(100 * count / len(scenes)) for count in (still, static))
    return scores, [f"real first frames held still: judged still in {still} %, the camera static in {static} %"]


def _judge_made(
    engine: Engine, judge: Judge, scenes: Sequence[Scene], seeds: int, frames: int, seed: int, tell: Tell
) -> tuple[Scores, list[tuple[str, Tensor]]]:
    """Scores of made clips, and strips of some; clips are judged as they come, so that memory holds one."""
    scores, strips = Scores(), []
    shown = _shown(len(scenes))
    started, total = time.perf_counter(), seeds * len(scenes)
    for k in range(seeds):
        for number, scene in enumerate(scenes):
            shot = Shot(full_caption(scene), size=SIZE, frames=frames, seed=clip_seed(seed, k, number))
            clip = seen_frames(torch.from_numpy(engine.generate(shot).frames))
            scores.add(scene, clip, judge_clips(judge, [clip])[0], number)
            if k == 0 and number in shown:
                strips.append((shot.prompt, _bytes(clip.permute(0, 2, 3, 1))))
            if (done := k * len(scenes) + number + 1) % 20 == 0:
                left = (time.perf_counter() - started) / done * (total - done)
                tell(f"{done} of {total} clips made, {left / 60:.0f} min to go")
    return scores, strips


def clip_seed(seed: int, k: int, number: int) -> int:
    """The noise of the k-th clip of a prompt; other prompts get other noise."""
    return seed * 1_000_003 + k * 10_007 + number


def _shown(count: int) -> set[int]:
    return {round(k * (count - 1) / max(1, STRIPS - 1)) for k in range(STRIPS)}


def _bytes(frames: Tensor) -> Tensor:
    return frames.mul(255).round().clamp(0, 255).to(torch.uint8)


def _real_strips(scenes: Sequence[Scene], frames: int) -> Iterable[tuple[str, Tensor]]:
    for number in sorted(_shown(len(scenes))):
        yield full_caption(scenes[number]), render_seen([scenes[number]], frames).frames[0]


def _row(name: str, scores: Scores, ceiling: Scores) -> Row:
    mine, best = scores.tallies[name], ceiling.tallies[name].macro()
    return Row(TITLES[name], mine.macro(), "%", mine.n, mine.spread(), best, CHANCE.get(name), MUST.get(name))


def _vae_rows(engine: Engine, clips: int) -> list[Row]:
    def again(frames: Tensor) -> Tensor:
        pictures = [((clip.permute(1, 2, 3, 0) + 1) / 2).numpy() for clip in frames]
        made = [torch.cat([torch.from_numpy(part) for part in engine.decode(engine.encode(p))]) for p in pictures]
        return torch.stack(made).permute(0, 4, 1, 2, 3) * 2 - 1

    values = test_vae(again, clips)
    return [
        Row("VAE: whole clips", values["psnr"], "dB", clips, must=MUST["psnr"]),
        Row("VAE: moving subjects", values["subject_psnr"], "dB", clips, must=MUST["subject_psnr"]),
    ]


def neutral_sets(count: int, seed: int, frames: int) -> list[list[Scene]]:
    """Sets of held-out scenes with one and the same first frame and another motion each: it gives nothing away."""
    pool = sample_scenes(400 + 60 * count, 32_000 + seed, split="held_out", frames=max(33, frames))
    fitting = [s for s in pool if s.kind in NEUTRAL_KINDS and s.motion == "still" and s.camera == "static"]
    if len(fitting) < count:
        raise RuntimeError("too few held-out scenes with a still subject that looks alike from all sides")
    return [_moved(scene, frames) for scene in fitting[:count]]


def _moved(scene: Scene, frames: int) -> list[Scene]:
    z, seconds = 6.0, (frames - 1) / scene.fps
    room = 0.8 * z / FOCAL  # half of the frame's width at the subject, in metres
    base = scene.replace(second=None, x=0.15 * scene.x * z / scene.z, z=z, size=scene.size * z / scene.z, phase=0.0)
    moves: dict[str, dict[str, float]] = {
        "left": {"speed": min(1.6, 0.7 * room / seconds)},
        "right": {"speed": min(1.6, 0.7 * room / seconds)},
        "rise": {"speed": 0.7, "lift": 0.0},
        "bounce": {"lift": 1.0, "period": 0.9},
        "approach": {"speed": 1.0},
        "recede": {"speed": 1.4},
    }
    return [base.replace(motion=motion, **moves.get(motion, {})) for motion in NEUTRAL_MOTIONS]


def _image_rows(
    engine: Engine, judge: Judge, sets: Sequence[Sequence[Scene]], frames: int, tell: Tell
) -> tuple[list[Row], list[tuple[str, Tensor]]]:
    """Image-to-video from neutral first frames: is the frame kept, and does the subject do what is asked?"""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    mine, ceiling, ratios, strips = Tally(), Tally(), [], []
    with tempfile.TemporaryDirectory() as place:
        for number, scenes in enumerate(sets):
            picture = render([scenes[0]], SIZE, frames=1).frames[0, 0]
            path = str(Path(place, f"{number}.png"))
            oiio.ImageBuf(picture.numpy()).write(path)
            for k, scene in enumerate(scenes):
                shot = Shot(full_caption(scene), size=SIZE, frames=frames, seed=k, keyframes=(Keyframe(0, path),))
                made = torch.from_numpy(engine.generate(shot).frames)
                clip = seen_frames(made)
                ratios.append(psnr(made[0], picture / 255))
                said = judge_clips(judge, [clip, seen_frames(_seen_real(scene, frames))])
                for tally, verdict in zip((mine, ceiling), said, strict=True):
                    tally.add(scene.motion, verdict.classes["motion"] == scene.motion, number)
                if number == 0:
                    strips.append((f"from a first frame: {shot.prompt}", _bytes(clip.permute(0, 2, 3, 1))))
            tell(f"image-to-video: {number + 1} of {len(sets)} first frames")
    motion = Row(
        "image-to-video: motion", mine.macro(), "%", mine.n, mine.spread(), ceiling.macro(),
        100 / len(NEUTRAL_MOTIONS), MUST["image_motion"],
    )  # fmt: skip
    first = Row("image-to-video: first frame", statistics.mean(ratios), "dB", len(ratios), must=MUST["first_frame"])
    return [first, motion], strips


def _seen_real(scene: Scene, frames: int) -> Tensor:
    return render_seen([scene], frames).frames[0]


def extend(engine: Engine, before: Tensor, shot: Shot) -> Tensor:
    """A clip [T, H, W, 3] that begins with the frames `before` [n, H, W, 3], n = 1 + a multiple of the VAE's factor."""
    return torch.from_numpy(engine.generate(shot, before=engine.encode(before.numpy())).frames)


def _seam_rows(engine: Engine, scenes: Sequence[Scene], frames: int, tell: Tell) -> list[Row]:
    """How much a clip jumps where its made part joins the part it was given, over how much it changes before."""
    moving = [s for s in scenes if s.motion != "still" or s.camera != "static"][: max(2, len(scenes) // 8)]
    made, real = [], []
    for number, scene in enumerate(moving):
        clip = render([scene], SIZE, frames=KNOWN + 1).frames[0].float() / 255
        shot = Shot(full_caption(scene), size=SIZE, frames=frames, seed=number)
        made.append(seam(extend(engine, clip[:KNOWN], shot), KNOWN))
        real.append(seam(clip, KNOWN))
    tell(f"extension: {len(moving)} clips")
    ratio, ceiling = (sum(a for a, _ in pairs) / sum(b for _, b in pairs) for pairs in (made, real))
    return [Row("extension: seam ratio", ratio, "", len(made), ceiling=ceiling, must=MUST["seam"], low_is_good=True)]


def _speed_row(engine: Engine, scene: Scene) -> Row:
    shot, seconds = Shot(full_caption(scene), size=SIZE, frames=SHORT), []
    for k in range(6):
        started = time.perf_counter()
        engine.generate(shot.replace(seed=k))
        seconds.append(time.perf_counter() - started)
    name = f"one {SHORT}-frame clip, warm, {torch.get_num_threads()} threads"
    return Row(name, statistics.median(seconds[1:]), "s", 5, must=MUST["seconds"], low_is_good=True)


def _head(engine: Engine, prompts: int, seeds: int, frames: int, folder: Path) -> tuple[tuple[str, str], ...]:
    shot = engine.resolve(Shot("a red ball", frames=frames))
    judge = hashlib.sha256((folder / "judges.safetensors").read_bytes()).hexdigest()
    return (
        ("model", f"{engine.card.name}, SHA-256 {engine.record(shot)['model']['sha256'][:12]}"),
        ("training", ", ".join(f"{name} {value}" for name, value in engine.card.training.items()) or "not recorded"),
        ("clips", f"{prompts} held-out prompts, {seeds} seeds, {frames} frames of {SIZE[0]}x{SIZE[1]}"),
        ("sampling", f"{shot.steps} steps, guidance {shot.guidance:g}"),
        ("judge", f"SHA-256 {judge[:12]}; ceiling = the same measure on rendered clips"),
        ("device", f"{engine.device.type}, torch {torch.__version__}"),
    )
