# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A reviewed plate or job becomes a version with everything that belongs to it; anything less is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import opentimelineio as otio
import pytest
from PIL import Image

from rushes import Shot
from rushes.jobs.folder import Job
from rushes.media import next_version, open_outputs, read_frames, read_manifest, read_record, shot_in, verify
from rushes.media.record import COMPOSITE, MADE_FROM, NO_SHOT, source_type
from rushes.publish import Report, Settings, add_review, find_subject, run
from rushes.shot import TRAINED_MEDIA, ShotError

Visible = Callable[[Path], list[str]]
SHOT = Shot("a red ball", size=(128, 80), frames=5, fps=12)


def _failed(report: Report) -> list[str]:
    return [row.plugin for row in report.failures]


def _refused(report: Report, plugin: str, words: str) -> None:
    assert not report.ok and not report.published and plugin in _failed(report)
    (sentence,) = [row.message for row in report.failures if row.plugin == plugin]
    assert words in sentence and "\n" not in sentence
    assert not any(row.trace for row in report.failures)


def test_a_version_has_everything_and_every_hash_is_right(approved: str, tmp_path: Path, visible: Visible) -> None:
    root = tmp_path / "show"
    report = run([approved], root)
    (folder,) = report.published
    assert report.ok and folder == root / "sh010" / "plates" / "sh010_ball" / "v001"
    stem = "sh010_ball_v001"
    others = [".exr.manifest.json", ".mp4", ".otio", "_contact_sheet.png", "_thumbnail.png"]
    frames = [f".{number}.exr" for number in range(1001, 1006)]
    assert visible(folder) == sorted([*(stem + end for end in (*frames, *others)), "publish.json"])
    listing = json.loads((folder / "publish.json").read_text())
    assert {*listing["files"], "publish.json"} == set(visible(folder))
    for name, about in listing["files"].items():
        data = (folder / name).read_bytes()
        assert (about["bytes"], about["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for number in range(1001, 1006):
        assert (folder / f"{stem}.{number}.exr").read_bytes() == Path(
            approved.replace("%04d", str(number))
        ).read_bytes()
    assert verify(folder / f"{stem}.%04d.exr").ok
    assert listing["review"]["by"] == "Ada" and listing["digital_source_type"] == TRAINED_MEDIA
    assert listing["record"] == read_record(approved)
    assert next_version(folder / f"{stem}.%04d.exr").endswith("v002/sh010_ball_v002.%04d.exr")


def test_what_is_delivered_shows_the_plate(approved: str, tmp_path: Path) -> None:
    """The movie has its frames and colours, the pictures their sizes and content, the timeline its files."""
    settings = Settings(thumbnail_width=320, sheet_width=900, sheet_columns=2, sheet_frames=3)
    (folder,) = run([approved], tmp_path / "show", settings=settings).published
    with read_frames(approved) as reader:
        plate = np.concatenate(list(reader)).clip(0, 1)  # [5, 80, 128, 3]
    with read_frames(folder / "sh010_ball_v001.mp4") as reader:
        movie = np.concatenate(list(reader))
    assert movie.shape == plate.shape and np.abs(movie - plate).mean() < 0.02
    with av.open(str(folder / "sh010_ball_v001.mp4")) as opened:
        assert opened.streams.video[0].average_rate == Fraction(12)
    small = np.asarray(Image.open(folder / "sh010_ball_v001_thumbnail.png"), np.float32) / 255
    assert small.shape == (200, 320, 3)
    there = np.asarray(Image.fromarray((plate[2] * 255).astype(np.uint8)).resize((320, 200)), np.float32) / 255
    assert np.abs(small - there).mean() < 0.02
    page = np.asarray(Image.open(folder / "sh010_ball_v001_contact_sheet.png"), np.float32) / 255
    assert page.shape[1] == 900
    coloured = np.ptp(page, axis=2) > 0.1  # the page itself is grey
    columns = coloured.any(axis=0)
    assert np.count_nonzero(np.diff(columns.astype(int)) == 1) == 2  # two pictures beside each other
    assert np.count_nonzero(np.diff(coloured[:, 100].astype(int)) == 1) == 2  # and two rows
    clip = otio.adapters.read_from_file(str(folder / "sh010_ball_v001.otio")).find_clips()[0]
    references = clip.media_references()
    assert set(references) == {"sh010_ball_v001.%04d.exr", "sh010_ball_v001.mp4"}
    sequence = references[clip.active_media_reference_key]
    urls = [sequence.target_url_for_image_number(at) for at in range(5)]
    assert [Path(url.removeprefix("file://")) for url in urls] == sorted(folder.glob("*.exr"))


def test_slate_handles_overscan_and_time_code_are_kept(tmp_path: Path) -> None:
    """What is no part of the cut or of the picture is in the plate and in no picture of it."""
    rng, shot = np.random.default_rng(), Shot("a red ball", size=(64, 48), frames=7, fps=24)
    record = {"rushes": "0.1.0", "shot": shot.to_dict(), "model": {"name": "starter", "sha256": "ab" * 32}}
    pattern = str(tmp_path / "sh1_v001.%04d.exr")
    frames = 0.5 + 0.2 * rng.random((7, 48, 64, 3), dtype=np.float32)
    frames[:, :8] = frames[:, -8:] = 0  # the overscan
    with open_outputs([pattern], record, slate=True, handles=2, overscan=8, timecode="10:00:00:00") as outputs:
        outputs.write(frames)
    subject = find_subject(pattern)
    add_review(subject, "Ada", "approved")
    settings = Settings(first_frame=1001, frames=(7, 7), sizes=((48, 32),), sheet_frames=3, sheet_columns=3)
    report = run([pattern], tmp_path / "show", settings=settings)
    assert report.ok, report.to_text()
    (folder,) = report.published
    assert (folder / "sh1_v001.1000.exr").is_file() and verify(folder / "sh1_v001.%04d.exr").ok
    manifest = read_manifest(folder / "sh1_v001.exr.manifest.json")
    assert (manifest.frames, manifest.handles, manifest.slate, manifest.first) == (7, 2, 1000, 1001)
    assert manifest.transform == read_manifest(tmp_path / "sh1_v001.exr.manifest.json").transform
    with read_frames(folder / "sh1_v001.mp4") as reader:
        movie = np.concatenate(list(reader))
        assert reader.start_frame == 864_000  # 10:00:00:00
    assert movie.shape == (7, 32, 48, 3) and 0.5 < movie.mean() < 0.7  # neither slate nor overscan is in it
    assert shot_in(read_record(folder / "sh1_v001.mp4"), "it")[0] == shot
    page = np.asarray(Image.open(folder / "sh1_v001_contact_sheet.png"), np.float32) / 255
    assert np.count_nonzero(np.diff((page[-200] > 0.4).all(axis=1).astype(int)) == 1) >= 3
    clip = otio.adapters.read_from_file(str(folder / "sh1_v001.otio")).find_clips()[0]
    assert (clip.source_range.start_time.value, clip.source_range.duration.value) == (864_002, 3)
    next(tmp_path.glob("*.manifest.json")).unlink()
    report = run([pattern], tmp_path / "show", settings=settings, is_repairing=True)
    assert report.ok and report.repaired, report.to_text()
    assert read_manifest(tmp_path / "sh1_v001.exr.manifest.json").slate == 1000
    clip = otio.adapters.read_from_file(str(report.published[0] / "sh1_v002.otio")).find_clips()[0]
    assert {"sh1_v001.%04d.exr", "sh1_v002.%04d.exr", "sh1_v001.mp4"} <= set(clip.media_references())
    assert clip.active_media_reference_key == "sh1_v002.%04d.exr"


@pytest.mark.parametrize(
    ("proxy", "suffix", "codec"),
    [
        ("h264-10bit", "mp4", "h264"), ("prores-422hq", "mov", "prores"), ("prores-4444", "mov", "prores"),
        ("dnxhr-hqx", "mov", "dnxhd"),
    ],
)  # fmt: skip
def test_a_project_chooses_the_proxys_codec(tmp_path: Path, proxy: str, suffix: str, codec: str) -> None:
    rng, shot = np.random.default_rng(), Shot("a red ball", size=(256, 144), frames=2, fps=24)
    record = {"rushes": "0.1.0", "shot": shot.to_dict(), "model": {"name": "starter", "sha256": "ab" * 32}}
    with open_outputs([tmp_path / "a.%04d.exr"], record) as outputs:
        outputs.write(rng.random((2, 144, 256, 3), dtype=np.float32))
    settings = Settings(proxy=proxy, is_review_required=False, template="{root}/{name}_{version}")
    report = run([str(tmp_path / "a.%04d.exr")], tmp_path / "show", settings=settings)
    assert report.published == (tmp_path / "show" / "a_1",), report.to_text()
    with av.open(str(tmp_path / "show" / "a_1" / f"a_v1.{suffix}")) as movie:
        assert movie.streams.video[0].codec_context.name == codec and movie.streams.video[0].frames == 2


def test_versions_count_on_and_nothing_is_overwritten(approved: str, tmp_path: Path, visible: Visible) -> None:
    root = tmp_path / "show"
    first, second = (run([approved], root).published[0] for _ in range(2))
    assert (first.name, second.name) == ("v001", "v002")
    before = {name: (root / name).read_bytes() for name in visible(root)}
    _refused(run([approved], root, version=2), "ExtractRushesPlate", "version: 2 of sh010_ball in")
    assert {name: (root / name).read_bytes() for name in visible(root)} == before
    assert run([approved], root, version=7).published[0].name == "v007"
    assert run([approved], root).published[0].name == "v008"


def test_a_job_is_published_by_its_plate_or_by_its_frames(
    plate_job: Job, frames_job: Job, tmp_path: Path, visible: Visible
) -> None:
    with_plate, without = str(plate_job.path), str(frames_job.path)
    for job in (with_plate, without):
        _refused(run([job], tmp_path / "show"), "ValidateRushesReview", "nobody has looked at it")
        add_review(find_subject(job), "Grace", "approved")
        assert (Path(job) / "review.json").is_file()
    report = run([with_plate, without], tmp_path / "show", shot="sq1_sh020")
    first, second = report.published
    assert report.ok and first == tmp_path / "show/sq1_sh020/plates/sh020/v001" and second.parent.name == frames_job.id
    assert verify(first / "sh020_v001.%04d.exr").ok
    assert verify(second / f"{frames_job.id}_v001.%04d.png").ok
    listing = json.loads((second / "publish.json").read_text())
    assert listing["job"] == frames_job.id and listing["review"]["by"] == "Grace"


def test_a_changed_plate_needs_a_new_review(approved: str, tmp_path: Path) -> None:
    """Whole and by its manifest, but not what was looked at; put back, the old review holds again."""
    folder = Path(approved).parent
    first, manifest = Path(approved.replace("%04d", "1001")), next(folder.glob("*.manifest.json"))
    kept = first.read_bytes(), manifest.read_text()
    first.write_bytes(kept[0] + b"\0")
    found = json.loads(manifest.read_text())
    found["files"][0].update(bytes=first.stat().st_size, sha256=hashlib.sha256(first.read_bytes()).hexdigest())
    manifest.write_text(json.dumps(found))
    assert verify(approved).ok  # by the forged manifest nothing is wrong
    _refused(run([approved], tmp_path / "show"), "ValidateRushesReview", "the files have changed since it was approved")
    first.write_bytes(kept[0])
    manifest.write_text(kept[1])
    assert run([approved], tmp_path / "show").ok
    add_review(find_subject(approved), "Ada", "rejected", "the ball is square")
    _refused(run([approved], tmp_path / "show"), "ValidateRushesReview", "rejected by Ada")
    add_review(find_subject(approved), "Ada", "approved")
    assert run([approved], tmp_path / "show").ok


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("alter", "frame 1003"),
        ("truncate", "frame 1003 (sh010_ball_v002.1003.exr) is cut off"),
        ("remove", "frame 1003 (sh010_ball_v002.1003.exr) is missing"),
        ("add", "sh010_ball_v002.1006.exr) is not in the manifest"),
        ("empty", "frame 1003 (sh010_ball_v002.1003.exr) is empty"),
    ],
)
def test_a_wrong_frame_is_named(approved: str, tmp_path: Path, visible: Visible, damage: str, words: str) -> None:
    path = Path(approved.replace("%04d", "1003"))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    changes = {"alter": bytes(data), "truncate": data[: len(data) // 2], "empty": b""}
    if damage == "add":
        shutil.copy(path, approved.replace("%04d", "1006"))
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(changes[damage])
    report = run([approved], tmp_path / "show")
    _refused(report, "ValidateRushesFrames", words)
    assert not (tmp_path / "show").exists()
    text = report.to_text()
    assert "nothing is published" in text and words in report.sentence
    assert "skipped  Plate, Contact sheet, Proxy movie, Thumbnail, Timeline, Version" in text
    # The other checks speak in the same report, as far as they can: of these bytes nobody has approved any
    unknown = "manifest: not known, because an earlier check of the plate has failed"
    assert (unknown if damage == "remove" else "the files have changed since it was approved") in text
    with pytest.raises(ShotError, match=r"1003|1006"):
        add_review(find_subject(approved), "Ada", "approved")
    assert add_review(find_subject(approved), "Ada", "rejected").verdict == "rejected"


@pytest.mark.parametrize(
    ("settings", "plugin", "words"),
    [
        ({"fps": (Fraction(24), Fraction(24000, 1001))}, "ValidateRushesRate", "the project allows 24, 24000/1001"),
        ({"sizes": ((1920, 1080),)}, "ValidateRushesSize", "the plate is 128x80; the project allows 1920x1080"),
        ({"frames": (9, 401)}, "ValidateRushesRange", "the plate has 5; the project allows 9 to 401"),
        ({"first_frame": 1}, "ValidateRushesRange", "begins at 1001; the project allows 1"),
        ({"colorspaces": ("ACES2065-1",)}, "ValidateRushesColor", "tagged ACEScg; the project allows ACES2065-1"),
    ],
)
def test_what_the_project_does_not_allow_is_refused(
    approved: str, tmp_path: Path, settings: dict[str, object], plugin: str, words: str
) -> None:
    report = run([approved], tmp_path / "show", settings=Settings(**settings))
    _refused(report, plugin, words)
    assert _failed(report) == [plugin] and not (tmp_path / "show").exists()


def test_what_the_project_allows_passes(approved: str, tmp_path: Path) -> None:
    settings = Settings(
        fps=(Fraction(12),), sizes=((128, 80),), frames=(5, 5), first_frame=1001, colorspaces=("ACEScg",)
    )
    assert run([approved], tmp_path / "show", settings=settings).ok


def test_a_project_may_want_less(plate: str, tmp_path: Path, visible: Visible) -> None:
    settings = Settings(is_review_required=False, proxy="none", sheet_frames=0, has_timeline=False)
    (folder,) = run([plate], tmp_path / "show", settings=settings).published
    assert [name for name in visible(folder) if not name.endswith(".exr")] == [
        "publish.json", "sh010_ball_v001.exr.manifest.json", "sh010_ball_v001_thumbnail.png",
    ]  # fmt: skip
    add_review(find_subject(plate), "Ada", "rejected")
    _refused(run([plate], tmp_path / "show", settings=settings), "ValidateRushesReview", "rejected by Ada")


def test_a_missing_manifest_is_written_only_when_asked_and_only_for_a_whole_plate(plate: str, tmp_path: Path) -> None:
    manifest = next(Path(plate).parent.glob("*.manifest.json"))
    manifest.unlink()
    add_review(find_subject(plate), "Ada", "approved")  # who has looked needs none, for the review has its own hashes
    settings = Settings()
    report = run([plate], tmp_path / "show", settings=settings)
    _refused(report, "ValidateRushesFrames", "there is no sh010_ball_v002.exr.manifest.json")
    assert "--repair: Write the missing manifest" in report.sentence and not manifest.exists()
    last = Path(plate.replace("%04d", "1005"))
    data = last.read_bytes()
    last.unlink()
    report = run([plate], tmp_path / "show", settings=settings, is_repairing=True)
    _refused(report, "ValidateRushesFrames", "tell of 5 frames, and 4 are there")
    assert not report.repaired and not manifest.exists()
    last.write_bytes(data)
    report = run([plate], tmp_path / "show", settings=settings, is_repairing=True)
    assert report.ok and report.repaired == (f"{manifest} is written",) and verify(plate).ok


def test_a_repair_never_approves(plate: str, tmp_path: Path) -> None:
    report = run([plate], tmp_path / "show", is_repairing=True)
    _refused(report, "ValidateRushesReview", "nobody has looked at it yet")
    assert not report.repaired and not find_subject(plate).review_path.exists()


@pytest.mark.parametrize("wrong", ["shot.mp4", "plate", "plates/%04d.tif", "", "a.%04d.%04d.exr", "x" * 300])
def test_what_is_no_plate_is_refused_in_a_sentence(tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSHES_JOBS", str(tmp_path))
    report = run([wrong], tmp_path / "show")
    _refused(report, "CollectRushesPlates", "allowed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sources": "plate.%04d.exr"}, "sources: got 'plate.%04d.exr'"),
        ({"sources": []}, r"sources: got \[\]"),
        ({"version": "1"}, "version: got '1'"),
        ({"version": True}, "version: got True"),
        ({"version": 0}, "version: got 0"),
    ],
)
def test_wrong_arguments_raise(plate: str, tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ShotError, match=words):
        run(**{"sources": [plate], "root": tmp_path, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sources": [7]}, "rushesSources: got [7]"),
        ({"root": None}, "--to: got None"),
        ({"root": 3}, "--to: got 3"),
        ({"shot": "../up"}, "shot: got '../up'"),
        ({"name": ""}, "name: got ''"),
        ({"name": 5}, "name: got 5"),
        ({"name": ".hidden"}, "name: got '.hidden'"),
        ({"name": "a%04d"}, "name: got 'a%04d'"),
        ({"settings": "/nowhere/rushes-publish.toml"}, "settings: /nowhere/rushes-publish.toml cannot be read"),
    ],
)
def test_wrong_wishes_are_in_the_report(plate: str, tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    report = run(**{"sources": [plate], "root": tmp_path / "show", **arguments})  # type: ignore[arg-type]
    assert _failed(report) == ["CollectRushesPlates"] and words in report.sentence


def test_names_come_from_the_file_or_from_the_artist(approved: str, tmp_path: Path) -> None:
    (folder,) = run([approved], tmp_path / "show", shot="SQ010-0100", name="ball.main").published
    assert folder == tmp_path / "show/SQ010-0100/plates/ball.main/v001"
    assert (folder / "ball.main_v001.1001.exr").is_file()


def test_a_single_picture_is_a_plate_too(plate: str, tmp_path: Path, visible: Visible) -> None:
    """One frame of a sequence is not a whole shot, and says so; the message is no traceback."""
    report = run([plate.replace("%04d", "1002")], tmp_path / "show", is_repairing=True)
    assert _failed(report) and not any(row.trace for row in report.rows)
    assert not (tmp_path / "show").exists()


def _with_tags(path: Path, **tags: object) -> None:
    """The same pixels under other tags, as a careless tool leaves them. None takes one away."""
    picture = oiio.ImageBuf(str(path))
    for name, value in tags.items():
        if value is None:
            picture.specmod().erase_attribute(name.replace("__", "/"))
        else:
            picture.specmod().attribute(name.replace("__", "/"), *value if isinstance(value, tuple) else (value,))
    picture.write(str(path.with_suffix(".tmp.exr")))
    path.with_suffix(".tmp.exr").replace(path)


@pytest.mark.parametrize(
    ("frames", "tags", "plugin", "words"),
    [
        (["1002"], {"colorInteropID": "lin_rec709_scene"}, "ValidateRushesColor", "1002.exr is tagged Linear Rec.709"),
        (
            ["1001", "1002", "1003", "1004", "1005"],
            {"chromaticities": ("float[8]", (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329))},
            "ValidateRushesColor",
            "is tagged ACEScg, and its primaries are those of Linear Rec.709 (sRGB)",
        ),
        (["1004"], {"rushes__record": None}, "ValidateRushesProvenance", "1004.exr: it holds no record of a shot"),
        (["1001"], {"framesPerSecond": ("rational", (24, 1))}, "ValidateRushesRate", "the files say 24, their shot 12"),
    ],
    ids=["colours of one frame", "primaries", "record", "rate"],
)
def test_tags_that_a_tool_has_spoiled_are_found(
    plate: str, tmp_path: Path, frames: list[str], tags: dict[str, object], plugin: str, words: str
) -> None:
    """The pixels are whole, so a manifest may be written anew; what the files say is still wrong."""
    for number in frames:
        _with_tags(Path(plate.replace("%04d", number)), **tags)
    next(Path(plate).parent.glob("*.manifest.json")).unlink()
    report = run([plate], tmp_path / "show", settings=Settings(is_review_required=False), is_repairing=True)
    assert report.repaired
    _refused(report, plugin, words)


def test_provenance_is_what_the_record_says_or_its_model_tells() -> None:
    """Frames that nobody's model has made are refused; changed ones are a composite."""
    made = {"rushes": "0.1.0", "shot": SHOT.to_dict(), "model": {"name": "starter", "sha256": "ab" * 32}}
    assert source_type(made, "a") == TRAINED_MEDIA
    assert source_type({**made, "digital_source_type": "http://cv.iptc.org/x"}, "a") == "http://cv.iptc.org/x"
    changed = {**made, "model": {"name": "none", "sha256": ""}, NO_SHOT: True}
    assert source_type({**changed, MADE_FROM: made}, "a") == COMPOSITE
    with pytest.raises(ShotError, match="a: no shot of Rushes made its frames"):
        source_type(changed, "a")
    for model in (None, {}, {"name": "x"}, "starter", {"sha256": ""}):
        with pytest.raises(ShotError, match="a: its record names no model"):
            source_type({**made, "model": model}, "a")
