# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The extension's jobs with real workers, without Blender."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rushes.jobs.client import WorkerMissing
from rushes.media import load_image

Make = Callable[..., Any]


@pytest.fixture
def make(controller_module: ModuleType, worker_command: Path, tmp_path: Path) -> Iterator[Make]:
    """make(): a controller with a worker of its own; all workers are killed at the end."""
    from rushes_blender.vendor.client import Client  # type: ignore[import-not-found]

    made: list[Any] = []

    def begin() -> Any:
        home = tmp_path / "worker home"
        controller = controller_module.Controller(lambda: Client(str(worker_command), home))
        made.append(controller)
        return controller

    yield begin
    for controller in made:
        controller.kill()


@pytest.fixture
def wish(tiny_model: Path) -> dict[str, Any]:
    return {
        "prompt": "a red ball rolls to the right", "negative": "", "model": str(tiny_model), "seed": 5, "steps": 4,
        "guidance": None, "fps": "", "scene_fps": "24", "keyframes": [],
        "size": {"mode": "MODEL", "scene": [640, 400], "custom": [16, 16]},
        "length": {"mode": "FRAMES", "frames": 9, "scene_frames": 0, "from": "FRAMES"},
    }  # fmt: skip


def _until(controller: Any, is_true: Callable[[], Any], seconds: float = 60) -> set[str]:
    """Tick until it is true; the keys that changed on the way."""
    changed: set[str] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        changed |= controller.tick()
        if is_true():
            return changed
        time.sleep(0.005)
    raise AssertionError([vars(job) for job in controller.jobs.values()] + [controller.worker])


def _bits(job: Any) -> list[bytes]:
    return [path.read_bytes() for path in sorted((job.folder / "frames").glob("*.png"))]


def test_the_extension_is_imported_without_blender(extension: ModuleType, controller_module: ModuleType) -> None:
    """Controller and plan are plain Python; the client in it is ours, word for word."""
    import rushes.jobs.client as client

    assert "bpy" not in sys.modules
    vendored = Path(str(extension.__file__)).parent / "vendor" / "client.py"
    assert vendored.read_bytes() == Path(client.__file__).read_bytes()


def test_a_clip_is_made(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    controller = make()
    job = controller.submit("k", wish, str(fresh_home))
    assert job.state == "planning" and job.is_active
    seen = []

    def done() -> bool:
        seen.append((job.state, job.frames, job.done_share))
        return not job.is_active

    assert _until(controller, done) == {"k"}
    assert (job.state, job.frames, job.length, job.message) == ("done", 9, 18, "")
    assert job.folder.parent == fresh_home and len(_bits(job)) == 9
    assert job.record["model"]["name"] == "tiny" and job.record["shot"]["seed"] == 5
    shares = [share for *_, share in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    assert "is ready" in controller.worker and str(wish["model"]) in controller.limits


def test_a_wish_is_priced(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """Before anything is made; a refusal is the sentence of the model."""
    controller = make()
    controller.ask_quote(wish, str(fresh_home))
    _until(controller, lambda: controller.quote is not None)
    quote = controller.quote
    assert quote.wish == wish and quote.seconds > 0 and quote.bytes > 0 and quote.length == 18 and not quote.message
    controller.ask_quote({**wish, "model": "nothing"}, str(fresh_home))
    _until(controller, lambda: controller.quote.message)
    assert controller.quote.message.startswith("model: got 'nothing'")
    assert not fresh_home.exists()


def test_a_faster_clip_is_made_and_told(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """What the wish says arrives, in the price and the clip; what was delivered is a note; a refusal is a sentence."""
    controller = make()
    size = {**wish["size"], "mode": "CUSTOM", "custom": [128, 128]}
    fast = {
        **wish, "size": size, "length": {**wish["length"], "frames": 33}, "steps": 8, "reuse": 0.1, "guided": 0.5,
        "attention": 0.3, "fp8_products": False,
    }  # fmt: skip
    assert not controller.is_on_cuda
    job = controller.submit("k", fast, str(fresh_home))
    _until(controller, lambda: not job.is_active)
    assert job.state == "done", job.message
    assert (job.record["shot"]["reuse"], job.record["shot"]["guided"]) == (0.1, 0.5)
    assert job.record["model"]["attention"]["density"] == 0.3
    assert [note.partition(":")[0] for note in job.notes][-2:] == ["attention", "reuse"]
    for changes, is_measured in (({}, True), ({"attention": None}, False)):
        controller.ask_quote({**fast, **changes}, str(fresh_home))
        _until(controller, lambda: controller.quote is not None)
        assert controller.quote.is_measured is is_measured
        controller.quote = None
    wrong = controller.submit("w", {**fast, "attention": 0.0}, str(fresh_home))
    _until(controller, lambda: not wrong.is_active)
    assert wrong.message == "attention: density: got 0.0; above 0 and up to 1 is allowed"


def test_a_killed_worker_costs_no_bit(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """Interrupted, retried, the same frames as in one go."""
    controller = make()
    long = {**wish, "steps": 250, "length": {**wish["length"], "frames": 33}}
    whole = controller.submit("whole", long, str(fresh_home))
    job = controller.submit("broken", long, str(fresh_home))
    _until(controller, lambda: job.phase == "denoise" and job.step > 20)
    controller.kill()
    _until(controller, lambda: job.state == "interrupted")
    assert "SIGKILL" in job.message and whole.state == "done"
    controller.retry("broken")
    _until(controller, lambda: not job.is_active)
    assert job.state == "done" and _bits(job) == _bits(whole) and len(_bits(job)) == 33


def test_a_waiting_job_is_cancelled_alone(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """It ends at once, and the running one goes on; one that was not even sent is never made."""
    controller = make()
    long = {**wish, "steps": 400, "length": {**wish["length"], "frames": 33}}
    unsent = controller.submit("unsent", wish, str(fresh_home))
    controller.cancel("unsent")
    running, waiting = controller.submit("a", long, str(fresh_home)), controller.submit("b", wish, str(fresh_home))
    _until(controller, lambda: running.phase == "denoise")
    controller.cancel("b")
    _until(controller, lambda: waiting.state == "cancelled", 5)
    assert running.state == "running" and unsent.state == "cancelled"
    controller.cancel("a", free=True)
    _until(controller, lambda: running.state == "cancelled", 10)
    controller.retry("b")
    _until(controller, lambda: waiting.state == "done")
    controller.forget("a")
    assert set(controller.jobs) == {"unsent", "b"}


def test_a_job_of_another_worker_is_followed(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """To its end, or, when that worker dies, gone on with; it can be cancelled, and our own worker goes on."""
    one, two = make(), make()
    two.start()
    _until(two, lambda: two.is_ready)
    long = {**wish, "steps": 500, "length": {**wish["length"], "frames": 33}}
    for is_killed in (False, True):
        job = one.submit(f"{is_killed}", long, str(fresh_home))
        _until(one, lambda job=job: job.phase == "denoise" and job.step > 3)
        same = two.attach("k", long, str(fresh_home), job.id, is_resuming=False)
        _until(two, lambda same=same: same.state == "running")
        assert same.is_elsewhere
        if is_killed:
            one.kill()
        _until(two, lambda same=same: not same.is_active)
        assert same.state == "done" and same.frames == 33 and same.record["model"]["name"] == "tiny"
        two.forget("k")
    ours = two._client
    one.start()
    _until(one, lambda: one.is_ready)
    job = one.submit("long", {**long, "steps": 1000}, str(fresh_home))
    _until(one, lambda: job.phase == "denoise")
    same = two.attach("k", long, str(fresh_home), job.id, is_resuming=False)
    _until(two, lambda: same.state == "running")
    two.cancel("k")
    _until(two, lambda: same.state == "cancelled")
    assert same.message == "it was cancelled" and two._client is ours and two.is_running
    _until(one, lambda: job.state == "cancelled")


def test_a_worker_that_died_unheard_takes_its_jobs_with_it(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """The next button is pressed before any tick: what it was making is interrupted, and does not run for ever."""
    controller = make()
    job = controller.submit("k", {**wish, "steps": 400}, str(fresh_home))
    _until(controller, lambda: job.phase == "denoise")
    controller.kill()
    end = time.monotonic() + 10
    while controller.is_running and time.monotonic() < end:
        time.sleep(0.01)
    other = controller.submit("l", wish, str(fresh_home))
    assert job.state == "interrupted"
    _until(controller, lambda: not other.is_active)
    assert other.state == "done" and job.state == "interrupted"
    controller.retry("k")
    _until(controller, lambda: job.state == "done")


def test_a_folder_from_elsewhere_is_not_gone_on_with_unasked(
    make: Make, wish: dict[str, Any], fresh_home: Path, tmp_path: Path
) -> None:
    """A file that somebody sends must not write outputs where it likes; the button does what the artist wants."""
    controller = make()
    job = controller.submit("k", {**wish, "steps": 400}, str(fresh_home))
    _until(controller, lambda: job.phase == "denoise")
    controller.kill()
    _until(controller, lambda: job.state == "interrupted")
    request = json.loads((job.folder / "shot.json").read_text())
    out = tmp_path / "out.mp4"
    (job.folder / "shot.json").write_text(json.dumps({**request, "outputs": [str(out)]}))
    controller.forget("k")
    same = controller.attach("k", wish, str(fresh_home), job.id, is_resuming=False)
    _until(controller, lambda: same.state == "interrupted")
    assert not out.exists()
    controller.retry("k")
    _until(controller, lambda: same.state == "done")
    assert out.is_file()


def test_a_vanished_folder_is_made_anew(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    import shutil

    controller = make()
    job = controller.attach("k", wish, str(fresh_home), "20260101-000000-abcdef")
    _until(controller, lambda: not job.is_active)
    assert job.state == "failed" and "there is no such job" in job.message
    controller.retry("k")
    _until(controller, lambda: job.state == "done")
    shutil.rmtree(job.folder)
    controller.forget("k")


def test_memory_is_given_back(make: Make, wish: dict[str, Any], fresh_home: Path) -> None:
    """With and without a running job."""
    controller = make()
    controller.free()  # no worker: nothing to free, and none is started for it
    assert not controller.is_running
    job = controller.submit("k", wish, str(fresh_home))
    _until(controller, lambda: job.state == "done")
    controller.free()
    _until(controller, lambda: controller.worker == "the model's memory is free")
    job = controller.submit("l", {**wish, "steps": 400}, str(fresh_home))
    _until(controller, lambda: job.phase == "denoise")
    controller.free()
    _until(controller, lambda: job.state == "cancelled")
    controller.free()
    _until(controller, lambda: controller.worker == "no model was loaded")


def test_a_missing_worker_is_told_before_anything_is_listed(
    controller_module: ModuleType, wish: dict[str, Any], fresh_home: Path
) -> None:
    def connect() -> Any:
        raise WorkerMissing("worker: there is none")

    controller = controller_module.Controller(connect)
    with pytest.raises(WorkerMissing):
        controller.submit("k", wish, str(fresh_home))
    assert not controller.jobs and controller.tick() == set()


def test_the_placeholder_is_a_picture_of_its_size(extension: ModuleType, tmp_path: Path) -> None:
    from rushes_blender.vendor.placeholder import write_placeholder  # type: ignore[import-not-found]

    path = write_placeholder(tmp_path / "new", (37, 23))
    assert write_placeholder(tmp_path / "new", (37, 23)) == path
    picture = load_image(str(path), (37, 23))
    assert picture.shape == (23, 37, 3) and 0.1 < picture.min() < picture.max() < 0.3


def test_the_package_says_no_to_a_folder_it_cannot_write(
    rushes: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = rushes("package", "blender", "-o", "file")
    assert done.returncode == 2 and "output: file cannot be written" in done.stderr
    done = rushes("package", "blender", "-o", "dist")
    assert done.returncode == 0 and Path(done.stdout.strip()).name.startswith("rushes-")
    first = Path(tmp_path / done.stdout.strip()).read_bytes()
    rushes("package", "blender", "-o", "dist")
    assert Path(tmp_path / done.stdout.strip()).read_bytes() == first, "the same sources make the same bytes"
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".zip", ".json", ".html"}
