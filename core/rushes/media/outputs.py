# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Outputs: all files of one shot, written in threads while frames arrive, visible together or not at all."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rushes.media.checks import checked_targets
from rushes.media.format import OutputFormat
from rushes.media.manifest import File, Hasher, Manifest, record_digest
from rushes.media.paths import MANIFEST, PICTURES, Target, manifest_name
from rushes.media.record import checked
from rushes.media.sink import Sink, WriteError
from rushes.media.staging import Staging
from rushes.shot import Shot, ShotError

FULL_BYTES = 2**20  # what is left of a disk when a library could not write its next few lines of a picture
QUEUE_FRAMES = 8  # frames that one output may lag behind; at 1920x1080 a frame holds 25 MB


def open_outputs(
    paths: Sequence[str | os.PathLike[str]],
    record: Mapping[str, Any],
    colorspace: str | None = None,
    overwrite: bool = False,
    start_frame: int = 1001,
    latents: Any = None,
    **options: Any,
) -> Outputs:
    """A context that takes the frames of one shot and writes every output that `paths` names.

    paths: names as after `-o`; record: the dict every output carries, its shot complete (size, frames, fps);
    colorspace: of plates, None means ACEScg; start_frame: number of the first file of a sequence;
    latents: float32 [1, c, t, h, w], wanted where a `.safetensors` output is named; options: the further fields
    of OutputFormat, such as compression, depth and manifest. Raises ShotError before anything is written, as
    `check_outputs`.
    """
    form = OutputFormat(colorspace=colorspace, start_frame=start_frame, **options)
    return Outputs(paths, record, form, overwrite, latents)


class Outputs:
    """Use as a context: leaving it moves all finished files to their names; an exception removes them.

    paths: the final files, and manifests: those beside them, after the block was left in peace.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        record: Mapping[str, Any],
        form: OutputFormat,
        overwrite: bool,
        latents: Any,
    ) -> None:
        self._record = checked(dict(record), Path("record"))
        self._shot = Shot.from_dict(self._record["shot"])
        shot = self._shot
        form.check_rate(shot)
        self._targets = checked_targets(paths, shot.frames, overwrite, form, shot.size)
        self._check_contents(latents)
        self._form = form
        self._latents = latents
        self._staging = Staging(self._targets, overwrite)
        self._folders: list[Path] = []
        self._writers: list[_Writer] = []
        self._count = 0
        self._shape: tuple[int, ...] | None = None
        self.paths: list[Path] = []
        self.manifests: list[Path] = []

    def _check_contents(self, latents: Any) -> None:
        for target in self._targets:
            if target.kind in ("exr", "mov", "mp4", "otio") and self._shot.fps is None:
                raise ShotError(f"-o {target.text}: the shot has no frame rate; give --fps")
            if target.kind != "safetensors":
                continue
            if latents is None:
                raise ShotError(f"-o {target.text}: there are no latents to write; another kind of output is allowed")
            from rushes.media.latents import as_latents

            as_latents(latents)

    def __enter__(self) -> Outputs:
        self._folders = self._staging.open()
        try:
            for target, folder in zip(self._targets, self._folders, strict=True):
                if target.kind in PICTURES:
                    sink = _sink(target, folder, self._record, self._form)
                    sink.hasher = Hasher() if self._form.wants_manifest(target) else None
                    if sink.warning:
                        warnings.warn(f"{target.text}: {sink.warning}", RuntimeWarning, stacklevel=2)
                    self._writers.append(_Writer(sink))
        except BaseException:
            self._stop(is_cancelled=True)
            self._staging.discard(keep_parents=False)
            raise
        return self

    def write(self, frames: np.ndarray) -> None:
        """Take the next frames: float32 [n, h, w, 3], display-referred sRGB in [0, 1].

        Returns as soon as every output has room in its queue. Frames are copied; the array may be used again.
        Raises ValueError for another shape, WriteError or ShotError when an output has failed meanwhile.
        """
        self._raise_failure()
        chunk = self._checked_chunk(frames)
        for frame in chunk:
            number = self._form.start_frame + self._count
            for writer in self._writers:
                writer.put(frame, number)
            self._count += 1
        self._raise_failure()

    def _checked_chunk(self, frames: np.ndarray) -> np.ndarray:
        chunk = np.array(frames, dtype=np.float32, order="C", copy=True)  # [n, h, w, 3]
        if chunk.ndim != 4 or chunk.shape[3] != 3:
            raise ValueError(f"frames: got {list(chunk.shape)}; [n, height, width, 3] is allowed")
        size = self._shot.size
        expected = self._shape or ((size[1], size[0], 3) if size is not None else chunk.shape[1:])
        if chunk.shape[1:] != expected:
            raise ValueError(
                f"frames: got {list(chunk.shape[1:])} after {self._count} frames; {list(expected)} is allowed"
            )
        self._shape = expected
        total = self._shot.frames
        if total is not None and self._count + len(chunk) > total:
            raise ValueError(f"frames: got {self._count + len(chunk)}; the record's {total} are allowed")
        return chunk

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_done = False
        try:
            self._stop(is_cancelled=error is not None)
            if error is None:
                self._raise_failure()
                published = self._staging.publish(self._files())
                self.manifests = [path for path in published if path.name.endswith(MANIFEST)]
                self.paths = [path for path in published if not path.name.endswith(MANIFEST)]
                is_done = True
        finally:
            self._stop(is_cancelled=True)  # again, should Ctrl-C have broken the first wait
            self._staging.discard(keep_parents=is_done)
        if is_done:
            self._warn()

    def _stop(self, is_cancelled: bool) -> None:
        for writer in self._writers:
            writer.stop(is_cancelled)
        for writer in self._writers:
            writer.join()

    def _raise_failure(self) -> None:
        for writer in self._writers:
            if writer.error is not None:
                raise writer.error

    def _files(self) -> list[list[str]]:
        """Complete what is not a stream of frames; returns the staged file names of each target."""
        pictures = [target for target in self._targets if target.kind in PICTURES]
        total = self._shot.frames
        if pictures and (self._count == 0 or (total is not None and self._count != total)):
            raise WriteError(f"{self._count} frames came for {pictures[0].text}, the shot has {total}")
        staged = {id(writer.sink.target): [*writer.sink.files, *self._manifest(writer)] for writer in self._writers}
        for target, folder in zip(self._targets, self._folders, strict=True):
            if target.kind == "safetensors":
                from rushes.media.latents import write_latents

                write_latents(folder / target.name, self._latents, self._record)
            elif target.kind == "otio":
                from rushes.media.timeline import write_timeline

                assert self._shot.fps is not None
                path = folder / target.name
                write_timeline(path, pictures, self._record, self._shot.fps, self._count, self._form)
        return [staged.get(id(target), [target.name]) for target in self._targets]

    def _manifest(self, writer: _Writer) -> list[str]:
        """Write the manifest of what a writer has finished, which becomes visible after it. Returns its name."""
        sink = writer.sink
        if sink.hasher is None:
            return []
        assert self._shape is not None
        height, width, _ = self._shape
        digest = record_digest(self._record)
        manifest = Manifest(
            sink.target.name, self._count, (width, height), self._shot.fps, sink.colorspace, digest, writer.files,
            sink.transform, self._form.handles, sink.slate,
        )  # fmt: skip
        path = sink.staging / manifest_name(sink.target)
        manifest.write(path)
        return [path.name]

    def _warn(self) -> None:
        for writer in self._writers:
            if writer.sink.repaired:
                warnings.warn(
                    f"{writer.sink.target.text}: {writer.sink.repaired} values were {writer.sink.repair}",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _sink(target: Target, folder: Path, record: Mapping[str, Any], form: OutputFormat) -> Sink:
    if target.kind == "exr":
        from rushes.media.plates import PlateSink

        return PlateSink(target, folder, record, form)
    if target.kind == "png":
        from rushes.media.stills import StillSink

        return StillSink(target, folder, record)
    from rushes.media.movies import MovieSink

    return MovieSink(target, folder, record, form)


class _Writer:
    """One output's thread: takes frames from a bounded queue, and after a failure only empties it.

    files: hashed, once the thread has ended and a manifest was wanted.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.error: Exception | None = None
        self.files: tuple[File, ...] = ()
        self._is_cancelled = False
        self._is_stopped = False
        self._queue: queue.Queue[tuple[np.ndarray, int] | None] = queue.Queue(QUEUE_FRAMES)
        self._thread = threading.Thread(target=self._run, name=f"rushes {sink.target.name}", daemon=True)
        self._thread.start()

    def put(self, frame: np.ndarray, number: int) -> None:
        self._queue.put((frame, number))

    def stop(self, is_cancelled: bool) -> None:
        """Tell the thread that no more frames come; cancelled: the waiting ones are not wanted either."""
        self._is_cancelled = self._is_cancelled or is_cancelled
        if not self._is_stopped:
            self._queue.put(None)
            self._is_stopped = True

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is None and not self._is_cancelled:
                self._guard(self.sink.write, *item)
        if self.error is None and not self._is_cancelled:
            self._guard(self._finish)
        if self.error is not None or self._is_cancelled:
            self.sink.abort()
        if self.sink.hasher is not None:
            self.sink.hasher.close()

    def _finish(self) -> None:
        self.sink.close()
        if self.sink.hasher is not None:
            self.files = self.sink.hasher.files()

    def _guard(self, call: Any, *arguments: Any) -> None:
        """Keep an exception for the thread that writes frames, under the output's name."""
        try:
            call(*arguments)
        except ShotError as error:
            self.error = error
        except Exception as error:
            cause = error
            if not isinstance(error, OSError) and _is_full(self.sink.staging):
                # the libraries say no more than that it failed
                cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                cause.__cause__ = error
            is_full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
            reason = "the disk is full" if is_full else str(error)
            self.error = WriteError(f"{self.sink.target.text} could not be written: {reason}")
            self.error.__cause__ = cause


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:  # it is gone
        return False
