# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Reviews: who has looked at which pictures, and what they said of them.

A review holds for the bytes that were there when it was given: its digest is that of every file. Where one changes, the
plate is unreviewed again. The history is only ever added to. It proves nothing against somebody who edits it by hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rushes.jobs.folder import write_json
from rushes.publish.subject import Content, Subject
from rushes.publish.version import SHARED
from rushes.shot import MAX_PROMPT, ShotError

VERSION = 1
VERDICTS = ("approved", "rejected")
_WAIT = 10.0  # seconds for somebody else who is writing the same history


@dataclass(frozen=True)
class Review:
    """by: a name; verdict: one of VERDICTS; note: any text; at: UTC, ISO 8601; content: digest of every file; frames:
    how many they were.
    """

    by: str
    verdict: str
    note: str
    at: str
    content: str
    frames: int

    def __str__(self) -> str:
        note = f": {self.note}" if self.note else ""
        at = self.at[:16].replace("T", " ")
        return f"{self.verdict} by {self.by}, {at} UTC{note}"


def read_reviews(path: Path) -> list[Review]:
    """The history, oldest first; empty where there is none. Raises ShotError for a file that is damaged or newer."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int or not isinstance(values.get("reviews"), list):
        raise _damaged(path)
    if version > VERSION:
        raise ShotError(f"review: {path} is of version {version}, this Rushes reads up to {VERSION}; update Rushes")
    return [_review(entry, path) for entry in values["reviews"]]


def _review(entry: Any, path: Path) -> Review:
    kinds = {name: int if name == "frames" else str for name in (field.name for field in fields(Review))}
    is_whole = isinstance(entry, dict) and entry.keys() == kinds.keys()
    if not is_whole or any(type(entry[name]) is not kind for name, kind in kinds.items()):
        raise _damaged(path)
    if entry["verdict"] not in VERDICTS:
        raise _damaged(path)
    return Review(**entry)


def _damaged(path: Path) -> ShotError:
    return ShotError(f"review: {path} cannot be read; a history that `rushes review` has written is allowed")


def last_review(reviews: list[Review], content: Content) -> Review | None:
    """The last word on exactly these bytes."""
    return next((review for review in reversed(reviews) if review.content == content.digest), None)


def add_review(subject: Subject, by: str, verdict: str, note: str = "") -> Review:
    """Look at what is there, and write the verdict down. Raises ShotError; nothing is approved that does not read."""
    by, note = _text("by", by, may_be_empty=False), _text("note", note, may_be_empty=True)
    if verdict not in VERDICTS:
        raise ShotError(f"verdict: got {verdict!r}; {' or '.join(VERDICTS)} is allowed")
    content = subject.content()
    if verdict == "approved":
        from rushes.publish.checks import NoManifest, check_frames

        with suppress(NoManifest):  # of the bytes that are here the review itself is proof
            check_frames(subject)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    review = Review(by, verdict, note, at, content.digest, len(content.files))
    path = subject.review_path
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT, mode=SHARED):
            history = [*read_reviews(path), review]
            write_json(path, {"version": VERSION, "reviews": [asdict(entry) for entry in history]})
    except Timeout as error:
        raise ShotError(f"review: somebody else is writing {path}; wait for it, then try again") from error
    except OSError as error:
        reason = error.strerror or error
        raise ShotError(f"review: {path} cannot be written ({reason}); a writable folder is allowed") from error
    return review


def _text(name: str, value: object, *, may_be_empty: bool) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > MAX_PROMPT:
        got = repr(value)[:40]
        raise ShotError(f"{name}: got {got}; text of up to {MAX_PROMPT} characters is allowed")
    value = " ".join(value.split())  # one line, as reports show it
    if not value and not may_be_empty:
        raise ShotError(f"{name}: it is empty; the name of a person is allowed")
    return value


def shown(path: Path, content: Content) -> Mapping[str, Any]:
    """For --json: the last verdict, whether it was given on `content`, and the whole history. Raises ShotError."""
    reviews = read_reviews(path)
    return {
        "verdict": reviews[-1].verdict if reviews else None,
        "holds": bool(reviews) and reviews[-1].content == content.digest,
        "reviews": [asdict(review) for review in reviews],
    }
