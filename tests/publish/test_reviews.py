# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Reviews: bound to the bytes, only ever added to, and whole when two people speak at once."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import pytest

from rushes.jobs.folder import Job
from rushes.publish import add_review, find_subject, last_review, read_reviews
from rushes.shot import ShotError


def test_a_review_says_who_when_what_and_of_which_bytes(plate: str) -> None:
    subject = find_subject(plate)
    given = add_review(subject, "  Ada\nLovelace ", "rejected", "too\tdark")
    assert (given.by, given.note, given.frames) == ("Ada Lovelace", "too dark", 5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", given.at)
    second = add_review(subject, "Grace", "approved")
    assert read_reviews(subject.review_path) == [given, second]
    assert subject.review_path == Path(plate).parent / "sh010_ball_v002.exr.review.json"
    assert last_review([given, second], subject.content()) == second
    first = Path(plate.replace("%04d", "1001"))
    first.write_bytes(first.read_bytes()[:-1] + b"\0")
    assert last_review([given, second], subject.content()) is None
    assert find_subject(plate).content().digest != second.content


def test_the_digest_knows_the_order_of_the_frames(plate: str) -> None:
    """Two frames that have changed places are other pictures."""
    before = find_subject(plate).content().digest
    first, second = (Path(plate.replace("%04d", number)) for number in ("1001", "1002"))
    bytes_of = first.read_bytes(), second.read_bytes()
    first.write_bytes(bytes_of[1])
    second.write_bytes(bytes_of[0])
    assert find_subject(plate).content().digest != before


def test_it_travels_with_the_plate(approved: str, tmp_path: Path) -> None:
    """A copy elsewhere is what was looked at, and so is the published version's source."""
    shutil.copytree(Path(approved).parent, tmp_path / "elsewhere")
    copy = find_subject(str(tmp_path / "elsewhere" / Path(approved).name))
    (review,) = read_reviews(copy.review_path)
    assert last_review([review], copy.content()) == review


def test_nobody_is_lost_when_many_speak_at_once(plate: str) -> None:
    names = [f"person {number}" for number in range(8)]
    people = [threading.Thread(target=add_review, args=(find_subject(plate), name, "approved")) for name in names]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert sorted(review.by for review in read_reviews(find_subject(plate).review_path)) == names


def test_a_job_must_be_done(frames_job: Job) -> None:
    (frames_job.path / "done.json").unlink()
    with pytest.raises(ShotError, match=rf"job: {frames_job.id} is interrupted; one that is done is allowed"):
        find_subject(str(frames_job.path))


def test_a_job_with_two_plates_asks_which(frames_job: Job) -> None:
    request = json.loads((frames_job.path / "shot.json").read_text())
    (frames_job.path / "shot.json").write_text(json.dumps({**request, "outputs": ["/a.%04d.exr", "/b.%04d.exr"]}))
    with pytest.raises(ShotError, match="has made 2 plates; the pattern of one of them is allowed"):
        find_subject(frames_job.id[:12])


def test_a_jobs_frame_that_is_gone_is_noticed(frames_job: Job) -> None:
    frames_job.frames()[2].unlink()
    with pytest.raises(ShotError, match=r"frame 3 \(0003\.png\) is missing"):
        add_review(find_subject(frames_job.id), "Ada", "approved")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "approved"), "by: it is empty"),
        ((" \n", "approved"), "by: it is empty"),
        ((None, "approved"), "by: got None"),
        ((7, "approved"), "by: got 7"),
        (("a\0b", "approved"), "by: got"),
        (("Ada", "ok"), "verdict: got 'ok'; approved or rejected is allowed"),
        (("Ada", None), "verdict: got None"),
        (("Ada", ["approved"]), r"verdict: got \['approved'\]"),
        (("Ada", "approved", 5), "note: got 5"),
        (("Ada", "approved", "x" * 20_000), "note: got"),
    ],
)
def test_wrong_words_leave_nothing(plate: str, arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ShotError, match=words):
        add_review(find_subject(plate), *arguments)  # type: ignore[arg-type]
    assert not find_subject(plate).review_path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"version": 1}', '{"version": true, "reviews": []}', '{"version": 1, "reviews": {}}',
        '{"version": 1, "reviews": [{}]}', '{"version": 1, "reviews": [5]}', '{"version": 1, "reviews": [',
        '{"version": 1, "reviews": [{"by":"A","verdict":"fine","note":"","at":"","content":"","frames":1}]}',
        '{"version": 1, "reviews": [{"by":"A","verdict":"approved","note":"","at":"","content":"","frames":true}]}',
        '{"version": 1, "reviews": [{"by":"A","verdict":"approved","note":"","at":"","content":1,"frames":1}]}',
        '{"version": 99, "reviews": []}',
    ],
)  # fmt: skip
def test_a_damaged_history_is_refused_and_kept(plate: str, text: str) -> None:
    """It counts as no review, and a new one is not written over it."""
    path = find_subject(plate).review_path
    path.write_text(text)
    with pytest.raises(ShotError, match=r"cannot be read|update Rushes"):
        read_reviews(path)
    with pytest.raises(ShotError):
        add_review(find_subject(plate), "Ada", "approved")
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_named(plate: str, disk: tuple[Path, object]) -> None:
    place, mount = disk
    shutil.copytree(Path(plate).parent, place / "plates")
    mount("ro")  # type: ignore[operator]
    with pytest.raises(ShotError, match=r"review: .*review\.json cannot be written \(Read-only file system\)"):
        add_review(find_subject(str(place / "plates" / Path(plate).name)), "Ada", "approved")
