# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Files from the Hugging Face hub into its cache: resumed after any interruption, and none without the hub's own hash.

huggingface_hub asks the questions, moves the bytes and keeps the cache. The unfinished part of a file is kept here,
since its own download drops what it has when the process ends.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rushes.model.offers import LICENSE, Source
from rushes.model.places import hub_cache
from rushes.shot import ShotError

OnBytes = Callable[[str, int, int], object]  # what is done, bytes so far, bytes in all
SPARE = 64 * 2**20  # bytes that a download leaves free on the disk
_BLOCK = 2**22


@dataclass(frozen=True)
class Item:
    """One file to fetch. sha256: of its content; git: the id that git gives it, of small files, which have no other."""

    repository: str
    commit: str
    path: str
    size: int
    sha256: str
    git: str

    @property
    def key(self) -> str:
        """What the cache calls the content."""
        return self.sha256 or self.git

    @property
    def blob(self) -> Path:
        return hub_cache() / f"models--{self.repository.replace('/', '--')}" / "blobs" / self.key

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.key}.rushes.incomplete")

    @property
    def remaining(self) -> int:
        """Bytes that are not here yet."""
        if self.blob.is_file() and self.blob.stat().st_size == self.size:
            return 0
        here = self.partial.stat().st_size if self.partial.is_file() else 0
        return self.size - here if here <= self.size else self.size


def endpoint() -> str:
    """Where the hub is, by its own variable, read now."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def ask(sources: Sequence[Source]) -> list[Item]:
    """What the files of the sources are, asked from the hub. Raises ShotError where one is not to be had."""
    from huggingface_hub import HfApi

    found: list[Item] = []
    for repository in dict.fromkeys(source.repository for source in sources):
        with _in_a_sentence(repository):
            info = HfApi(endpoint=endpoint()).model_info(repository, files_metadata=True)
        _check_license(repository, info)
        files = {entry.rfilename: entry for entry in info.siblings or []}
        for pattern in [one for source in sources if source.repository == repository for one in source.patterns]:
            names = fnmatch.filter(files, pattern)
            if not names:
                raise ShotError(f"get: {repository} at {endpoint()} has no {pattern}; another model is allowed")
            found += [_item(repository, info.sha or "", files[name]) for name in names]
    return list(dict.fromkeys(found))


def _item(repository: str, commit: str, entry: Any) -> Item:
    sha256 = entry.lfs.sha256 if entry.lfs is not None else ""
    if entry.size is None or not (sha256 or entry.blob_id):
        raise ShotError(f"get: {endpoint()} states no size or hash of {repository}/{entry.rfilename}; nothing is taken")
    return Item(repository, commit, entry.rfilename, entry.size, sha256, entry.blob_id or "")


def _check_license(repository: str, info: Any) -> None:
    tags = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    if tags and LICENSE not in tags:
        raise ShotError(f"get: {repository} now states the licence {tags[0]}; only {LICENSE} is fetched")


def check_space(items: Sequence[Item]) -> int:
    """Bytes to fetch. Raises ShotError where the disk of the cache has not room for them."""
    needed = sum(item.remaining for item in items)
    place = hub_cache().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed and needed + SPARE > free:
        raise ShotError(
            f"get: {needed / 1e9:.1f} GB are to be fetched and {hub_cache()} has {free / 1e9:.1f} GB free; room there, "
            "or HF_HOME on another disk, is needed"
        )
    return needed


def fetch(item: Item, tell: OnBytes) -> Path:
    """The file in the cache, whole and with the hub's hash. What came before an interruption is not fetched again.

    Raises ShotError; after it, and after a kill, the next call goes on where this one stopped.
    """
    from huggingface_hub import hf_hub_download

    try:
        item.blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{item.partial}.lock", timeout=0), _in_a_sentence(item.repository):
            if item.remaining or not item.blob.is_file():
                _complete(item, tell)
                _check(item, tell)
                os.replace(item.partial, item.blob)
            path = hf_hub_download(item.repository, item.path, endpoint=endpoint(), cache_dir=hub_cache())
    except Timeout as error:
        raise ShotError(f"get: {item.path} is being fetched by another process; wait for it") from error
    Path(f"{item.partial}.lock").unlink(missing_ok=True)
    return Path(path)


def _complete(item: Item, tell: OnBytes) -> None:
    """Fetch what is missing of the partial file; a connection that ends early is taken up while bytes keep coming."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if item.partial.is_file() and item.partial.stat().st_size > item.size:
        item.partial.unlink()
    disable_progress_bars("huggingface_hub.http_get")
    try:
        while True:
            before = item.remaining
            try:
                return _append(item, tell)
            except HTTPError:
                if item.remaining == before:
                    raise
    finally:
        enable_progress_bars("huggingface_hub.http_get")


def _append(item: Item, tell: OnBytes) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(item.repository, item.path, revision=item.commit or None, endpoint=endpoint())
    with item.partial.open("ab") as file:
        start = file.tell()
        if start < item.size:
            counted = _Counted(file, item, tell)
            http_get(url, counted, resume_size=start, headers=build_hf_headers(), expected_size=item.size)  # type: ignore[arg-type]


def _check(item: Item, tell: OnBytes) -> None:
    """Raise ShotError, and drop the file, where its content is not what the hub says."""
    found = hashlib.sha256() if item.sha256 else hashlib.sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    done = 0
    with item.partial.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            done += len(block)
            tell(f"checking {item.path}", done, item.size)
    if done != item.size or found.hexdigest() != item.key:
        item.partial.unlink()
        raise ShotError(
            f"get: {item.path} came damaged from {endpoint()} (its hash is not the one stated); it was deleted, so "
            "try again"
        )


class _Counted:
    """A file that tells how much of it is written."""

    def __init__(self, file: IO[bytes], item: Item, tell: OnBytes) -> None:
        self._file, self._item, self._tell = file, item, tell

    def write(self, block: bytes) -> int:
        written = self._file.write(block)
        self._tell(self._item.path, self._file.tell(), self._item.size)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _in_a_sentence(repository: str) -> Iterator[None]:
    """The hub's and the network's errors as a ShotError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ShotError(f"get: {repository} asks for a permission at {endpoint()}; get it there first") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 404)
        raise ShotError(f"get: {repository} is not to be had at {endpoint()} ({status}); see HF_ENDPOINT") from error
    except errors.HfHubHTTPError as error:
        raise ShotError(
            f"get: {endpoint()} answers {error.response.status_code} for {repository}; try later"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ShotError("get: HF_HUB_OFFLINE is set; nothing can be fetched then") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of the library below it
        raise ShotError(
            f"get: {endpoint()} cannot be reached ({error or type(error).__name__}); what came is kept, try again"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ShotError(f"get: the disk of {hub_cache()} is full; make room and try again, it goes on") from error
        reason = (error.strerror or str(error)).splitlines()[0]
        raise ShotError(f"get: {repository} was interrupted ({reason}); what came is kept, try again") from error
