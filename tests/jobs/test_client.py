# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The client beside its pipe: which worker is found, what it inherits, and paths that two machines see differently."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rushes import Shot
from rushes.jobs import client as client_module
from rushes.jobs.client import Client, WorkerMissing, clean_environment, find_worker


def _executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_nearest_wish_wins(tmp_path: Path) -> None:
    """Preference, then RUSHES_WORKER, then PATH, then the virtual environments where people put them."""
    usual = _executable(tmp_path / "home" / ".venv" / "bin" / "rushes")
    active = _executable(tmp_path / "active" / "bin" / "rushes")
    on_path = _executable(tmp_path / "path" / "rushes")
    variable, wish = _executable(tmp_path / "v" / "my worker"), _executable(tmp_path / "w" / "ä rushes")
    environment = {"HOME": str(tmp_path / "home"), "PATH": ""}
    assert find_worker(environment=environment) == usual
    environment["VIRTUAL_ENV"] = str(tmp_path / "active")
    assert find_worker(environment=environment) == active
    environment["PATH"] = str(tmp_path / "path")
    assert find_worker(environment=environment) == on_path
    environment["RUSHES_WORKER"] = variable
    assert find_worker(environment=environment) == variable
    assert find_worker(wish, environment) == wish


def test_a_wish_for_nothing_is_an_error(tmp_path: Path) -> None:
    """Not passed over for another worker, which might be an old one."""
    _executable(tmp_path / "path" / "rushes")
    environment = {"HOME": str(tmp_path), "PATH": str(tmp_path / "path")}
    with pytest.raises(WorkerMissing, match="the preference names '/nowhere/rushes'; an executable file is allowed"):
        find_worker("/nowhere/rushes", environment)
    with pytest.raises(WorkerMissing, match="RUSHES_WORKER names 'nothing'"):
        find_worker("", {**environment, "RUSHES_WORKER": "nothing"})


def test_without_a_worker_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(WorkerMissing, match=r"no `rushes` on PATH nor in .*\.venv.*; `pip install rushes` brings it"):
        find_worker(environment={"HOME": str(tmp_path), "PATH": str(tmp_path)})


def test_the_hosts_own_python_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blender's and Nuke's interpreters come with these; another Python breaks on them."""
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "QT_PLUGIN_PATH"):
        monkeypatch.setenv(name, "/host")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    kept = clean_environment()
    assert "/host" not in kept.values() and kept["CUDA_VISIBLE_DEVICES"] == "1" and kept["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mnt/show", "P:/show"), ("/mnt/show/a/b.png", "P:/show/a/b.png"), ("/mnt/shows/a", "/mnt/shows/a"),
        ("/mnt", "/mnt"), ("relative/a", "relative/a"), ("", ""),
    ],
)  # fmt: skip
def test_prefixes_are_whole_folders(path: str, expected: str) -> None:
    assert client_module._swap(path, [("/mnt/show", "P:/show")]) == expected


@pytest.mark.parametrize(
    ("path", "table", "expected"),
    [
        ("/mnt/show/a", ("/mnt/show/", "/Volumes/show"), "/Volumes/show/a"),
        ("/mnt/show/a", ("/mnt/show", "P:\\"), "P:/a"),
        ("P:\\show\\a b\\c.png", ("P:\\show\\", "/mnt/show"), "/mnt/show/a b/c.png"),
        ("/mnt/show/back\\slash", ("/mnt/show", "/show"), "/show/back\\slash"),
    ],
)
def test_prefixes_are_typed_in_many_ways(path: str, table: tuple[str, str], expected: str) -> None:
    """With a slash at the end or not, and from a system whose paths have backslashes to one whose have none."""
    assert client_module._swap(path, [table]) == expected


def test_only_paths_are_mapped() -> None:
    """A prompt that looks like one is a prompt; a number of frames is a number, a list of frames are paths."""
    given = {
        "shot": {"prompt": "/a/b", "frames": 9, "keyframes": [{"frame": 0, "image": "/a/x.png"}], "model": "/a/m",
                 "control": [{"kind": "/a", "path": "/a/z.%04d.exr", "mask": "/a/k", "references": ["/a/1", "/c/2"]}]},
        "outputs": ["/a/y.mp4"], "frames": ["/a/0001.png"], "message": "/a/b", "path": "/a/z", "job": "/a/j",
    }  # fmt: skip
    mapped = client_module._mapped(given, lambda text: text.replace("/a", "/b"))
    assert mapped == {
        "shot": {"prompt": "/a/b", "frames": 9, "keyframes": [{"frame": 0, "image": "/b/x.png"}], "model": "/b/m",
                 "control": [{"kind": "/a", "path": "/b/z.%04d.exr", "mask": "/b/k", "references": ["/b/1", "/c/2"]}]},
        "outputs": ["/b/y.mp4"], "frames": ["/b/0001.png"], "message": "/a/b", "path": "/b/z", "job": "/a/j",
    }  # fmt: skip


def test_a_worker_that_sees_other_mount_points(
    tmp_path: Path, shot: Shot, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, wait: Callable[..., Any]
) -> None:
    """The host's folder does not exist for the worker under that name, nor the worker's for the host: a chroot's view
    of it is a real folder, the host's a link to it."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (theirs / "jobs").mkdir(parents=True)
    ours.symlink_to(theirs)
    monkeypatch.setattr(client_module, "clean_environment", lambda: environment)
    command = [sys.executable, "-m", "rushes"]
    client = Client(command, ours / "jobs", paths=[(str(theirs), str(ours))])
    client.start()
    try:
        wait(client, lambda event: event.kind == "ready")
        assert client.hello is not None and client.hello["home"] == str(ours / "jobs")
        shown = ours / "clip.mp4"
        client.request("submit", {"shot": shot.to_dict(), "outputs": [str(shown)]}, failed=pytest.fail)
        events = wait(client, lambda event: event.kind in ("done", "failed"))
    finally:
        client.kill()
    assert events[-1].fields["outputs"] == [str(shown)] and shown.is_file()
    frames = [event.fields["path"] for event in events if event.kind == "frame"]
    assert len(frames) == 9 and all(path.startswith(f"{ours}/jobs/") and Path(path).is_file() for path in frames)
    (job,) = (path for path in (theirs / "jobs").iterdir() if path.is_dir())
    assert str(theirs / "clip.mp4") in (job / "shot.json").read_text()


def _script(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            '"error":{"code":-32602,"message":"protocol: the host speaks 1, this worker 7"}',
            "the host speaks 1, this worker 7",
        ),
        ('"result":{"protocol":7}', "protocol: the worker speaks 7, this host 1; update the older one"),
    ],
    ids=["a worker that looks", "a worker that does not"],
)
def test_a_worker_of_another_protocol_is_let_go(
    tmp_path: Path, wait: Callable[..., Any], answer: str, words: str
) -> None:
    """It is told why, and not spoken to further."""
    message = f'{{"jsonrpc":"2.0","id":1,{answer}}}'
    say = f"printf 'Content-Length: {len(message)}\\r\\n\\r\\n%s' '{message}'"
    client = Client(_script(tmp_path / "old", f"{say}\nexec cat > /dev/null"), tmp_path / "jobs")
    client.start()
    events = wait(client, lambda event: event.kind == "died")
    assert events[0].kind == "refused" and words in events[0].fields["message"] and client.hello is None


def test_another_program_is_told_by_its_name(tmp_path: Path, wait: Callable[..., Any]) -> None:
    """What an artist picks by mistake: it ends at once, it cannot be run, or there is no room for its log."""
    other = _script(tmp_path / "not rushes", "echo what is this >&2; exit 3")
    client = Client(other, tmp_path / "jobs")
    client.start()
    sentence = wait(client, lambda event: event.kind == "died")[-1].fields["message"]
    assert sentence == (
        f"the worker has ended (exit status 3) before it was ready, which was started as {other!r}; "
        "its last words: what is this"
    )
    picture = tmp_path / "picture"
    picture.write_bytes(b"\x89PNG")
    picture.chmod(0o755)
    with pytest.raises(WorkerMissing, match=r"picture cannot be used \(Exec format error\); the executable `rushes`"):
        Client(str(picture), tmp_path / "jobs").start()
    with pytest.raises(WorkerMissing, match=r"cannot be used \(Not a directory\)"):
        Client(other, picture / "jobs").start()


def test_a_worker_that_closes_its_output_and_stays_keeps_nobody_waiting(
    tmp_path: Path, wait: Callable[..., Any]
) -> None:
    """No tick waits for the end of a process; it is killed when it has had its time."""
    client = Client(_script(tmp_path / "odd", "exec >&-; exec sleep 60"), tmp_path / "jobs", patience=(0.3, 0.3))
    client.start()
    longest, events, end = 0.0, [], time.monotonic() + 20
    while not events and time.monotonic() < end:
        began = time.monotonic()
        events = client.tick()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    assert [event.kind for event in events] == ["died"] and longest < 0.2


def _vendored(folder: Path) -> Path:
    """The client as a package of a host's has it."""
    package = folder / "addon"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("client.py", "wire.py"):
        (package / name).write_bytes(Path(client_module.__file__).with_name(name).read_bytes())
    return package


def test_vendored_files_need_no_rushes(tmp_path: Path) -> None:
    """Copied into a package of a host's, by an interpreter that has nothing installed."""
    _vendored(tmp_path)
    code = "import addon.client as c; print(c.Client('x', 'y').is_running, 'rushes' in __import__('sys').modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "False False\n", done.stderr


def test_vendored_files_are_written_in_python_3_9() -> None:
    for name in ("client.py", "wire.py"):
        source = Path(client_module.__file__).with_name(name).read_text()
        ast.parse(source, name, feature_version=(3, 9))


def _interpreter(version: str) -> str:
    """That version of Python, on PATH or among pyenv's; skips where there is none."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, pyenv)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"no Python {version} on this machine")


HOST = """
import sys, time, json
sys.path.insert(0, sys.argv[1])
from addon import client as c
environment = json.loads(sys.argv[4])
c.clean_environment = lambda: environment
client, answers = c.Client([sys.argv[2], "-m", "rushes"], sys.argv[3]), []
client.start()
client.request("jobs", then=answers.append, failed=answers.append)
end = time.monotonic() + 60
while not answers and time.monotonic() < end:
    client.tick()
    time.sleep(0.01)
client.close()
while client.is_running and time.monotonic() < end:
    time.sleep(0.01)
print(sys.version_info[:2], client.hello["protocol"], answers, [event.kind for event in client.tick()])
"""


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_hosts_python_talks_to_the_worker(tmp_path: Path, environment: dict[str, str], version: str) -> None:
    """From Nuke 14's to what comes after Blender 5: started, asked, let go."""
    _vendored(tmp_path)
    command = [_interpreter(version), "-I", "-c", HOST, tmp_path, sys.executable, tmp_path / "jobs"]
    done = subprocess.run([*map(str, command), json.dumps(environment)], capture_output=True, text=True, timeout=120)
    major, minor = version.split(".")
    assert done.stdout == f"({major}, {minor}) 1 [{{'jobs': []}}] ['died']\n", done.stderr
