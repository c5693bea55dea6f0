# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates that a host has a worker write as versions, and what such a file tells it afterwards."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes import Engine, Shot
from rushes.jobs.client import Client, Event
from rushes.jobs.delivery import about_file
from rushes.jobs.folder import create_job
from rushes.jobs.runner import run_job

Start = Callable[..., Client]
Wait = Callable[..., list[Event]]
Ask = Callable[..., Any]


def _ended(event: Event) -> bool:
    return event.kind in ("done", "failed", "died")


def _submit(ask: Ask, worker: Client, shot: Shot, output: Path, **plate: Any) -> Any:
    request = {"shot": shot.to_dict(), "outputs": [str(output)], "colorspace": "lin_rec709", "plate": plate}
    return ask(worker, "submit", request)


def test_each_job_is_a_new_version(start: Start, wait: Wait, ask: Ask, shot: Shot, tmp_path: Path) -> None:
    """Two seeds in one queue become v001 and v002, numbered as asked; the host is told the names, and finds them again.

    The versions follow the order of the queue, and nothing that was there is overwritten.
    """
    worker, first = start(), random.randrange(1, 5000)
    plate = tmp_path / "new folder" / "sh010.%04d.exr"
    asked = {"start_frame": first, "next_version": True, "depth": "float", "compression": "piz"}
    jobs = [_submit(ask, worker, shot.replace(seed=seed), plate, **asked)["job"] for seed in (1, 2)]
    names = []
    for _ in jobs:
        events = wait(worker, _ended)
        assert events[-1].kind == "done", events[-1]
        names += [event.fields["outputs"] for event in events if event.kind == "named"]
        assert events[-1].fields["patterns"] == names[-1]
    assert names == [[str(plate.with_name(f"sh010_v00{version}.%04d.exr"))] for version in (1, 2)]
    for job, (name,) in zip(jobs, names, strict=True):
        assert ask(worker, "attach", {"job": job})["ending"]["patterns"] == [name]
        found = ask(worker, "record", {"path": name})
        assert (found["first"], found["last"], found["missing"]) == (first, first + 8, [])
        assert found["colorspace"] == "Linear Rec.709 (sRGB)" and found["notes"] == []
        spec = oiio.ImageInput.open(name % first).spec()
        assert spec.format == oiio.FLOAT and spec.getattribute("compression") == "piz"
    assert [ask(worker, "record", {"path": name})["shot"]["seed"] for (name,) in names] == [1, 2]


def test_a_resumed_job_keeps_its_version(shot: Shot, tmp_path: Path) -> None:
    """Killed between the plate's names and done.json, the job ends with the plate it had, and no v002 appears."""
    home, plate = tmp_path / "jobs", tmp_path / "plates" / "a.%04d.exr"
    job = create_job(home, shot, [str(plate)], plate={"next_version": True, "start_frame": 3})
    load, told = (lambda shot, _: Engine.load(shot.model)), []

    def tell(name: str, **fields: Any) -> None:
        told.append((name, fields))

    assert run_job(job, load, tell, threading.Event()) == "done"
    (job.path / "done.json").unlink()
    before = {path.name: path.read_bytes() for path in plate.parent.iterdir()}
    assert run_job(job, load, tell, threading.Event()) == "done"
    assert {path.name: path.read_bytes() for path in plate.parent.iterdir()} == before
    assert sorted(before) == [*(f"a_v001.{number:04d}.exr" for number in range(3, 12)), "a_v001.exr.manifest.json"]
    # but when somebody has taken the name meanwhile, theirs stays and ours is the next
    (job.path / "done.json").unlink()
    for path in plate.parent.iterdir():
        path.write_bytes(b"another picture")
    assert run_job(job, load, tell, threading.Event()) == "done"
    assert told[-1] == ("done", {**told[-1][1], "patterns": [str(plate.with_name("a_v002.%04d.exr"))]})
    assert (plate.parent / "a_v001.0003.exr").read_bytes() == b"another picture"


@pytest.mark.parametrize(
    ("plate", "words"),
    [
        ({"start": 3}, "plate: got 'start'; start_frame, next_version, compression, depth, alpha"),
        ({"start_frame": True}, "plate: start_frame is True; int is allowed"),
        ({"next_version": 1}, "plate: next_version is 1; bool is allowed"),
        ({"start_frame": -1}, "plate: start_frame is -1; a whole number from 0"),
        ({"compression": "htj2k"}, "--compression: got 'htj2k'; allowed are zip"),
        ({"depth": 16}, "plate: depth is 16; str is allowed"),
    ],
)
def test_bad_plates_are_refused_before_any_work(
    start: Start, ask: Ask, shot: Shot, tmp_path: Path, home: Path, plate: dict[str, Any], words: str
) -> None:
    answer = _submit(ask, start(), shot, tmp_path / "a.%04d.exr", **plate)
    assert isinstance(answer, str) and words in answer
    assert [path for path in home.iterdir() if path.is_dir()] == []


def test_a_version_is_for_one_output(start: Start, ask: Ask, shot: Shot, tmp_path: Path) -> None:
    request = {"shot": shot.to_dict(), "plate": {"next_version": True}}
    worker = start()
    two = ask(worker, "submit", {**request, "outputs": [str(tmp_path / "a.%04d.exr"), str(tmp_path / "a.mov")]})
    assert two == "plate: next_version with 2 outputs; one, without overwrite, is allowed"
    assert "it is given and no output is" in ask(worker, "submit", request)


def test_a_plate_says_what_has_changed_since(shot: Shot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one frame, whichever it is: the shot, the range, the holes in it, and why the bits may differ now."""
    clip = Engine.load(shot.model).generate(shot)
    pattern = tmp_path / "a_v007.%04d.exr"
    clip.write(pattern, start_frame=998)
    (tmp_path / "a_v007.1001.exr").unlink()
    found = about_file(str(tmp_path / "a_v007.0999.exr"))
    assert found["shot"] == clip.shot.to_dict() and found["colorspace"] == "ACEScg" and found["notes"] == []
    assert (found["first"], found["last"], found["missing"]) == (998, 1006, [1001])
    record = {**clip.record, "rushes": "0.0.1", "model": {"name": "tiny", "sha256": "0" * 64}}
    record["shot"] = clip.shot.replace(model=str(tmp_path / "gone.safetensors")).to_dict()
    other = tmp_path / "b.mp4"
    from rushes.media import open_outputs

    with open_outputs([other], {**record, "shot": clip.shot.to_dict()}) as outputs:
        outputs.write(clip.frames)
    found = about_file(str(other))
    assert found["first"] is None and found["colorspace"] is None
    assert (
        "made by Rushes 0.0.1" in found["notes"][0] and "other weights of tiny (SHA-256 00000000" in found["notes"][1]
    )
    with open_outputs([tmp_path / "c.mp4"], record) as outputs:
        outputs.write(clip.frames)
    assert any("gone.safetensors" in note for note in about_file(str(tmp_path / "c.mp4"))["notes"])


def test_a_file_of_others_is_refused(start: Start, ask: Ask, tmp_path: Path) -> None:
    picture = tmp_path / "plain.exr"
    oiio.ImageBuf(oiio.ImageSpec(8, 8, 3, oiio.HALF)).write(str(picture))
    worker = start()
    assert "it holds no record of a shot" in ask(worker, "record", {"path": str(picture)})
    assert "there is no such file" in ask(worker, "record", {"path": str(tmp_path / "none.%04d.exr")})


def test_spaces_have_all_their_names(start: Start, ask: Ask) -> None:
    """JSON-ready, and every name in them finds the same space again."""
    from rushes.media.color import find_space

    spaces = ask(start(), "colorspaces")["colorspaces"]
    assert json.loads(json.dumps(spaces)) == spaces
    linear = [space["name"] for space in spaces if space["is_linear"]]
    assert {"ACEScg", "ACES2065-1", "Linear Rec.709 (sRGB)"} <= set(linear)
    for space in spaces:
        assert {find_space(name).name for name in [space["name"], *space["aliases"]]} == {space["name"]}


def test_a_slate_and_a_view_are_found_again(shot: Shot, tmp_path: Path) -> None:
    """The slate is no frame of the clip, and the view that was inverted is one that can be asked for again."""
    from rushes.media.views import find_view, list_views

    view = random.choice([name for name in list_views() if name.startswith("sRGB - Display/")])
    clip = Engine.load(shot.model).generate(shot)
    with pytest.warns(RuntimeWarning, match="soft cap of 6"):
        clip.write(tmp_path / "a.%04d.exr", start_frame=20, slate=True, inverse_view=view, cap=6.0)
    found = about_file(str(tmp_path / "a.0024.exr"))
    assert (found["first"], found["last"], found["missing"]) == (20, 28, [])
    assert found["path"] == str(tmp_path / "a.%04d.exr")
    assert found["plate"]["cap"] == 6.0 and find_view(found["plate"]["inverse_view"]) == find_view(view)


def test_spaces_of_a_studio_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import PyOpenColorIO as ocio  # noqa: N813 - the field's name for it

    from rushes.media.color import find_space, list_spaces

    before = [space["name"] for space in list_spaces()]
    config = ocio.Config.CreateFromBuiltinConfig("studio-config-v2.2.0_aces-v1.3_ocio-v2.4")
    path = tmp_path / "studio.ocio"
    path.write_text(config.serialize())
    monkeypatch.setenv("OCIO", str(path))
    after = list_spaces()
    assert [space["name"] for space in after][: len(before)] == before and len(after) > len(before)
    assert {find_space(space["name"]).name for space in after} == {space["name"] for space in after}
