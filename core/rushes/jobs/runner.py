# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Runs one job in its folder, from wherever it stands, and leaves it whole whatever happens."""

from __future__ import annotations

import errno
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from rushes.engine import Engine
from rushes.jobs.estimate import pace_kind
from rushes.jobs.folder import Job, JobError, not_writable
from rushes.media import (
    FrameFolder,
    next_version,
    open_outputs,
    read_history,
    read_latents,
    read_record,
    write_latents,
)
from rushes.media.paths import Target
from rushes.progress import Cancelled, Denoising, Frames, Progress
from rushes.shot import Shot, ShotError
from rushes.speed import Speed, describe_attention, describe_reuse

# tell("progress", phase=..., step=...), tell("frame", number=1, path=...), ...
Tell = Callable[..., object]
Load = Callable[[Shot, Speed], Engine]
LISTEN_EVERY = 0.5  # seconds between looks for somebody's wish that the job be stopped
SAVE_EVERY = 1.0  # seconds between saved denoising states; what a kill may cost
PREVIEW_EVERY = 0.5
LOCK_WAIT = 1.0  # a listing holds the lock for a moment


def run_job(job: Job, load: Load, tell: Tell, cancel: threading.Event) -> str:
    """Make the job's clip; returns its state afterwards: done, failed or cancelled. `Job.reopen` one that had ended.

    load: the engine of a shot's model and a job's speed. tell gets started, note, progress, preview, frame, named, done
    or failed, with fields.
    Raises JobError when another process runs the job, it is done, or its folder is gone, from the future or read-only.
    """
    request = job.request()
    try:
        lock = job.lock().acquire(timeout=LOCK_WAIT)
    except Timeout:
        raise JobError(f"job: {job.id} is being made by another process; wait for it or end that one") from None
    except OSError as error:
        raise not_writable(job.path, error) from error
    with lock:
        if (job.path / "done.json").exists():
            raise JobError(f"job: {job.id} is done; an unfinished job is allowed")
        try:
            with _listening(job, cancel):
                _Run(job, load, tell, cancel).make(request)
        except Cancelled:
            _end(job, tell, "it was cancelled", cancelled=True)
            return "cancelled"
        except Exception as error:
            _end(job, tell, _sentence(job, error), trace=traceback.format_exc())
            return "failed"
    return "done"


@contextmanager
def _listening(job: Job, cancel: threading.Event) -> Iterator[None]:
    """Inside, whoever can write into the folder can stop the job: a host that came back, or somebody at a terminal."""
    is_over = threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            if job.is_asked_to_stop():
                cancel.set()
            is_over.wait(LISTEN_EVERY)

    listener = threading.Thread(target=listen, name="rushes cancel", daemon=True)
    listener.start()
    try:
        yield
    finally:
        is_over.set()
        listener.join()
        with suppress(OSError):  # a folder that takes nothing any more: going on clears it too
            job.forget_stop()


def _end(job: Job, tell: Tell, sentence: str, cancelled: bool = False, trace: str = "") -> None:
    """Into the folder if that can still be written, and to the host in any case."""
    try:
        job.fail(sentence, cancelled=cancelled, trace=trace)
        job.append("cancelled" if cancelled else "failed", sync=True, message=sentence)
    except OSError as error:  # the disk that broke the job; its state is then "interrupted", which resumes as well
        trace += f"\nand this could not be written down: {error}"
    tell("failed", message=sentence, cancelled=cancelled, traceback=trace)


def _sentence(job: Job, error: Exception) -> str:
    if not job.path.is_dir():
        return f"job: its folder {job.path} is gone; ask for the shot again"
    if isinstance(error, ShotError):
        return str(error)
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return "the disk is full; make room, then resume the job: nothing that was made is lost"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "there is not enough memory for this shot; a smaller size or fewer frames need less"
    if isinstance(cause, OSError) and cause.filename:
        return f"file: {cause.filename} cannot be used ({cause.strerror}); put that right, then resume the job"
    return f"{type(error).__name__}: {error}"


class _Run:
    """One attempt. The order of writes is what makes a kill harmless: latents before frames, frames before done."""

    def __init__(self, job: Job, load: Load, tell: Tell, cancel: threading.Event) -> None:
        self.job, self._load, self._tell, self._cancel = job, load, tell, cancel
        self._saved = self._previewed = time.monotonic()
        self._patterns: list[str] = []  # the outputs' names, as given or with their version
        self._share = 1.0  # of the steps, what this attempt has made itself

    def make(self, request: dict[str, Any]) -> None:
        job = self.job
        job.append("started", sync=True)
        self._tell("started")
        shot = Shot.from_dict(request["shot"])
        speed = Speed.read(request)
        engine = self._load(shot, speed)
        shot = engine.resolve(shot)
        record = engine.record(shot)
        for note in engine.notes(shot):
            self._tell("note", message=note)
        if record["unknown_words"]:
            self._tell("note", message=f"the {engine.card.name} does not know: {', '.join(record['unknown_words'])}")
        work, started = engine.work(shot), time.monotonic()
        latents = self._denoise(engine, shot, record)
        self._pace(work.flops * self._share, started, engine, "flops", pace_kind(shot, speed))
        started = time.monotonic()
        paths = self._decode(engine, latents, record, request)
        self._pace(work.pixels, started, engine, "pixels", {})
        told = {"frames": len(job.frames()), "outputs": paths, "patterns": self._patterns}
        job.finish(**told, record=record)
        job.append("done", sync=True)
        self._tell("done", **told)

    def _denoise(self, engine: Engine, shot: Shot, record: dict[str, Any]) -> torch.Tensor:
        """Finished latents, from the last state on disk if there is one."""
        state, steps = self._last_state(record), shot.steps or 0
        self._share = 1.0 - (state.step / steps if state is not None else 0.0)
        if state is not None and state.step == steps:
            return state.latents

        def save(now: Denoising) -> None:
            if now.step < steps and time.monotonic() - self._saved > SAVE_EVERY:
                unfinished = {**record, "denoising": {"step": now.step, "steps": steps}}
                write_latents(self.job.latents_path, now.latents, unfinished, now.history)
                self.job.append("saved", step=now.step, steps=steps)
                self._saved = time.monotonic()

        latents = engine.denoise(shot, self._progress, self._preview, self._cancel, on_state=save, resume=state)
        write_latents(self.job.latents_path, latents, record)
        self._report(engine, steps - (state.step if state is not None else 0), steps)
        self.job.append("denoised", sync=True)
        return latents

    def _report(self, engine: Engine, made: int, steps: int) -> None:
        """What was really saved, in the folder and to the host. made: steps of this attempt, which alone are known."""
        beyond = "" if made == steps else f", in the last {made} steps, made since the job was taken up again"
        for kind, report, describe in (
            ("attention", engine.attention_report(), describe_attention),
            ("reuse", engine.reuse_report(), describe_reuse),
        ):
            if report is not None:
                self.job.append(kind, report=report)
                self._tell("note", message=describe(report) + beyond, **{kind: report})

    def _last_state(self, record: dict[str, Any]) -> Denoising | None:
        """Where the denoising stands. A file that cannot be read costs its time and not the job."""
        path = self.job.latents_path
        if not path.exists():
            return None
        try:
            latents, before = read_latents(path, unfinished=True)
            history = read_history(path)
        except ShotError as error:
            self._tell("note", message=f"{error}; the denoising starts anew")
            path.unlink()
            return None
        then, now = before["model"]["sha256"], record["model"]["sha256"]
        if then != now:
            raise ShotError(
                f"model: the weights of {record['model']['name']} have changed since this job began "
                f"(SHA-256 {then[:8]}, now {now[:8]}); put the old ones back or make a new job"
            )
        for name in ("keyframes", "control"):
            if before["shot"].get(name, []) != record["shot"][name]:
                raise ShotError(f"{name}: a file has changed since this job began; put it back or make a new job")
        step = before["denoising"]["step"] if "denoising" in before else before["shot"]["steps"]
        return Denoising(step, torch.from_numpy(latents), tuple(torch.from_numpy(part) for part in history))

    def _decode(
        self, engine: Engine, latents: torch.Tensor, record: dict[str, Any], request: dict[str, Any]
    ) -> list[str]:
        """Frames into the folder, one by one, and the outputs that were asked for, all at the end."""
        with ExitStack() as stack:
            folder = stack.enter_context(FrameFolder(self.job.frames_folder, record))
            outputs = None
            if request["outputs"]:
                options = dict(request.get("plate") or {})
                self._patterns = names = self._named(request["outputs"], record, options.pop("next_version", False))
                overwrite = request["overwrite"] or all(_is_made_already(name, record) for name in names)
                outputs = stack.enter_context(
                    open_outputs(names, record, request["colorspace"], overwrite, latents=latents, **options)
                )
            number = 0
            for frames in engine.decode(latents, self._progress, self._cancel):
                if outputs is not None:
                    outputs.write(frames)
                for frame in frames:
                    number += 1
                    path = folder.path(number)
                    if not path.exists():  # made before the interruption, with these bits
                        folder.write(frame, number)
                    self._tell("frame", number=number, path=str(path))
        return [str(path) for path in outputs.paths] if outputs is not None else []

    def _named(self, outputs: list[str], record: dict[str, Any], is_versioned: bool) -> list[str]:
        """The outputs' names. A version is the next free one; after a kill it is the one that the job already had."""
        if not is_versioned:
            return outputs
        names: list[str] = []
        for event in self.job.events():
            names = event["names"] if event["event"] == "named" else names
        # somebody may have taken a name since, but not while this job was writing: its staging folder was in the way
        if not names or any(Target.parse(name).existing() and not _is_made_already(name, record) for name in names):
            names = [next_version(output) for output in outputs]
            self.job.append("named", sync=True, names=names)
        self._tell("named", outputs=names)
        return names

    def _pace(self, amount: float, started: float, engine: Engine, unit: str, kind: dict[str, Any]) -> None:
        """For later estimates: how much of the work this model and device do in a second. kind: see `pace_kind`."""
        if amount:
            rate = amount / max(time.monotonic() - started, 1e-3)
            name, device = engine.card.name, engine.device.type
            self.job.append("pace", unit=unit, rate=rate, model=name, device=device, kind=kind)

    def _progress(self, progress: Progress) -> None:
        self._tell(
            "progress", phase=progress.phase, step=progress.step, steps=progress.steps,
            seconds_per_step=round(progress.seconds_per_step, 4), remaining=round(progress.remaining, 2),
        )  # fmt: skip

    def _preview(self, step: int, frames: Frames) -> None:
        """The middle of the clip as it stands, [h, w, 3] in latent resolution, now and then."""
        if time.monotonic() - self._previewed < PREVIEW_EVERY:
            return
        self._previewed = time.monotonic()
        path = _write_preview(self.job.path, frames[len(frames) // 2])
        self._tell("preview", step=step + 1, path=str(path))


def _is_made_already(output: str, record: dict[str, Any]) -> bool:
    """Whether a kill came after this output had got its name and before the job was done."""
    try:
        return read_record(output) == record
    except ShotError:
        return False


def _write_preview(folder: Path, picture: Frames) -> Path:
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    path, temporary = folder / "preview.png", folder / ".preview.png"
    oiio.ImageBuf(picture).write(str(temporary), oiio.UINT8)
    temporary.replace(path)
    return path
