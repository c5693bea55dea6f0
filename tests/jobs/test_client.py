# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The client beside its pipe: which worker is found, what it inherits, and paths that two machines see differently."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_only_paths_are_mapped() -> None:
    """A prompt that looks like one is a prompt; a number of frames is a number, a list of frames are paths."""
    given = {
        "shot": {"prompt": "/a/b", "frames": 9, "keyframes": [{"frame": 0, "image": "/a/x.png"}], "model": "/a/m"},
        "outputs": ["/a/y.mp4"], "frames": ["/a/0001.png"], "message": "/a/b", "path": "/a/z", "job": "/a/j",
    }  # fmt: skip
    mapped = client_module._mapped(given, lambda text: text.replace("/a", "/b"))
    assert mapped == {
        "shot": {"prompt": "/a/b", "frames": 9, "keyframes": [{"frame": 0, "image": "/b/x.png"}], "model": "/b/m"},
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


def test_a_worker_of_another_protocol_is_let_go(tmp_path: Path, wait: Callable[..., Any]) -> None:
    """It is told why, and not spoken to further."""
    script = tmp_path / "old"
    answer = '{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"protocol: the host speaks 1, this worker 7"}}'
    script.write_text(
        f"#!/bin/sh\nprintf 'Content-Length: {len(answer)}\\r\\n\\r\\n%s' '{answer}'\nexec cat > /dev/null\n"
    )
    script.chmod(0o755)
    client = Client(str(script), tmp_path / "jobs")
    client.start()
    events = wait(client, lambda event: event.kind == "died")
    assert events[0].kind == "refused" and "this worker 7" in events[0].fields["message"] and client.hello is None


def test_vendored_files_need_no_rushes(tmp_path: Path) -> None:
    """Copied into a package of a host's, by an interpreter that has nothing installed."""
    package = tmp_path / "addon"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("client.py", "wire.py"):
        source = Path(client_module.__file__).with_name(name)
        (package / name).write_bytes(source.read_bytes())
    code = "import addon.client as c; print(c.Client('x', 'y').is_running, 'rushes' in __import__('sys').modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "False False\n", done.stderr
