# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The job folder: the truth about a job, whole after every kill.

shot.json             the request: shot, outputs, when, by which version; written first, never changed
events.jsonl          what happened, one JSON object a line, appended only; changes of state are fsynced
latents.safetensors   the denoising as it stands, then finished; replaced whole
frames/0001.png ...   finished frames, each whole
done.json | failed.json
review.json           what people have said of the frames, by `rushes review`; only added to
cancel                somebody wants it stopped, who is not the host of the worker that runs it
lock                  held by the process that runs the job, and by nothing when that process is gone
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rushes._version import __version__
from rushes.folders import user_folder
from rushes.replacing import replacing
from rushes.shot import Shot, ShotError
from rushes.speed import PLAIN, Speed

VERSION = 1
STATES = ("queued", "running", "interrupted", "done", "failed", "cancelled")
REVIEWS = "review.json"
_HOME_VARIABLE = "RUSHES_JOBS"
_FRESH = 3600.0  # seconds after which a folder that never got its name is a kill's leftover


class JobError(ShotError):
    """A job that cannot be made or found. One sentence."""


def not_writable(folder: Path, error: OSError) -> JobError:
    return JobError(f"job: {folder} cannot be written ({error.strerror or error}); a writable folder is allowed")


def jobs_home() -> Path:
    """Where job folders live: RUSHES_JOBS, or the user's data folder by the habits of the system."""
    if asked := os.environ.get(_HOME_VARIABLE):
        return Path(asked).expanduser().absolute()
    return user_folder("data") / "jobs"


class Job:
    """One job folder. Reading needs no lock; only the process that runs the job writes, but for `ask_to_stop`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def frames_folder(self) -> Path:
        return self.path / "frames"

    @property
    def latents_path(self) -> Path:
        return self.path / "latents.safetensors"

    def request(self) -> dict[str, Any]:
        """shot.json: version, shot, attention, fp8_products, outputs, colorspace, overwrite, plate, created.

        An older Rushes has written neither of attention and fp8_products. Raises JobError.
        """
        values = _read_json(self.path / "shot.json")
        if values is None:
            raise JobError(f"job: {self.path} holds no shot.json that can be read; a job's folder is allowed")
        version = values.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise JobError(
                f"job: {self.path} is of version {version!r}, this Rushes reads up to {VERSION}; update Rushes"
            )
        return values

    def shot(self) -> Shot:
        """What is to be made. Raises ShotError."""
        return Shot.from_dict(self.request()["shot"])

    def state(self) -> str:
        """One of STATES, from what lies in the folder and whether somebody holds its lock."""
        if (self.path / "done.json").exists():
            return "done"
        if self.is_running():
            return "running"
        if (ending := _read_json(self.path / "failed.json")) is not None:
            return "cancelled" if ending.get("cancelled") else "failed"
        started = any(event["event"] == "started" for event in self.events())
        return "interrupted" if started else "queued"

    def is_running(self) -> bool:
        """Whether a process holds the lock. A killed process holds nothing."""
        try:
            with self.lock():
                return False
        except Timeout:
            return True
        except OSError:
            return _is_held(self.path / "lock")

    def lock(self) -> FileLock:
        """A lock that does not wait; taking it twice, anywhere, raises filelock.Timeout."""
        return FileLock(self.path / "lock", timeout=0)

    def append(self, event: str, *, sync: bool = False, **fields: Any) -> dict[str, Any]:
        """Add a line to events.jsonl; sync: it must survive a power cut. Returns it. Raises OSError."""
        entry = {"time": round(time.time(), 3), "event": event, **fields}
        with (self.path / "events.jsonl").open("a+b") as file:
            # A full disk cuts a line short; the next one must not be glued to it, and be lost with it
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            is_cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * is_cut + json.dumps(entry).encode() + b"\n")
            file.flush()
            if sync:
                os.fsync(file.fileno())
        return entry

    def events(self) -> Iterator[dict[str, Any]]:
        """All whole lines so far; one that a kill has cut short is left out."""
        try:
            lines = (self.path / "events.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "event" in entry:
                yield entry

    def frames(self) -> list[Path]:
        """Finished frames, by number."""
        return sorted(self.frames_folder.glob("[0-9][0-9][0-9][0-9]*.png"))

    def finish(self, **fields: Any) -> None:
        """Write done.json; an earlier failure is no longer true."""
        write_json(self.path / "done.json", {"version": VERSION, **fields})
        (self.path / "failed.json").unlink(missing_ok=True)

    def fail(self, sentence: str, *, cancelled: bool = False, trace: str = "") -> None:
        """Write failed.json: the sentence for the artist, the traceback for the log."""
        fields = {"version": VERSION, "message": sentence, "cancelled": cancelled, "traceback": trace}
        write_json(self.path / "failed.json", fields)

    def reopen(self) -> None:
        """Before going on: what ended it is no longer true, nor what somebody wanted then. Raises JobError."""
        try:
            (self.path / "failed.json").unlink(missing_ok=True)
            self.forget_stop()
        except OSError as error:
            raise not_writable(self.path, error) from error

    def ask_to_stop(self) -> None:
        """For whoever runs it, wherever that is. Raises OSError."""
        (self.path / "cancel").touch()

    def is_asked_to_stop(self) -> bool:
        return (self.path / "cancel").exists()

    def forget_stop(self) -> None:
        """What was asked is done, or no longer true. Raises OSError."""
        (self.path / "cancel").unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the folder away; it is out of sight first, so that nobody meets half of it. Raises JobError."""
        hidden = self.path.with_name(f".{self.id}")
        try:
            self.path.rename(hidden)
            shutil.rmtree(hidden)
        except OSError as error:
            raise not_writable(self.path, error) from error

    def ending(self) -> dict[str, Any] | None:
        """done.json or failed.json; None while the job is open."""
        return _read_json(self.path / "done.json") or _read_json(self.path / "failed.json")


def create_job(
    home: Path,
    shot: Shot,
    outputs: Sequence[str] = (),
    *,
    colorspace: str | None = None,
    overwrite: bool = False,
    plate: Mapping[str, Any] | None = None,
    speed: Speed = PLAIN,
) -> Job:
    """A new folder under `home` with the request in it. Raises JobError when the disk does not take it.

    plate: more of what `open_outputs` takes, and `next_version`, by which the output gets its name when it is written.
    The folder gets its name only when it is complete, so that nobody sees half a request.
    """
    name = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)
    building = home / f".{name}"
    request = {
        "version": VERSION, "rushes": __version__, "created": round(time.time(), 3), "shot": shot.to_dict(),
        "outputs": [os.path.abspath(output) for output in outputs], "colorspace": colorspace, "overwrite": overwrite,
        "plate": dict(plate or {}), **speed.to_dict(),
    }  # fmt: skip
    try:
        (building / "frames").mkdir(parents=True)
        write_json(building / "shot.json", request)
        Job(building).append("submitted", sync=True)
        building.rename(home / name)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise not_writable(home, error) from error
    return Job(home / name)


def find_job(home: Path, name: str) -> Job:
    """A job by its id, a clear beginning of it, or the path of its folder. Raises JobError."""
    if os.path.isfile(os.path.join(name, "shot.json")):
        return Job(Path(name).absolute())
    found = [job for job in list_jobs(home) if job.id.startswith(name)] if name and os.sep not in name else []
    exact = [job for job in found if job.id == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    problem = f"{len(found)} jobs begin so" if found else "there is no such job"
    raise JobError(f"job: got {name!r}, {problem} in {home}; `rushes jobs` lists those that are allowed")


def list_jobs(home: Path) -> list[Job]:
    """All jobs under `home`, oldest first."""
    if not home.is_dir():
        return []
    folders = [path for path in home.iterdir() if not path.name.startswith(".") and (path / "shot.json").is_file()]
    return [Job(path) for path in sorted(folders)]


def remove_leftovers(home: Path) -> int:
    """Remove what a kill has left of folders that were just being made or removed. Returns how many."""
    count = 0
    for path in home.glob(".[0-9]*") if home.is_dir() else ():
        if path.is_dir() and time.time() - path.stat().st_mtime > _FRESH:
            shutil.rmtree(path, ignore_errors=True)
            count += not path.exists()
    return count


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all, and on the disk when this returns."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _is_held(lock: Path) -> bool:
    """Whether somebody holds a lock that this process may not write: somebody else's job, on a shared disk."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none: nobody has begun
        return False
    return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
