# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes models get` against a small server that speaks the hub's protocol over real sockets, and fails as told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rushes.model import hub
from rushes.model.offers import OFFERS, Source
from rushes.model.shelf import look
from rushes.shot import ShotError

TinyWan = Callable[..., Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B"
COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Repositories of files. What goes wrong: cut (bytes of a body after which the connection ends, for how many
    answers), status (for a path that contains the key), damage (files whose content differs from their hash), slow."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.license = "apache-2.0"
        self.cut, self.cuts_left = 0, 0
        self.status: dict[str, int] = {}
        self.damage: set[str] = set()
        self.claimed: dict[str, int] = {}
        self.pause = 0.0
        self.asked: list[tuple[str, str, str]] = []  # method, path, range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        for part, status in self.server.status.items():
            if part in path:
                return self._refuse(status)
        if path.startswith("/api/models/"):
            repository = path.removeprefix("/api/models/").split("/revision/")[0]
            if repository not in self.server.repositories:
                return self._refuse(404)
            return self._send(json.dumps(self._info(repository)).encode(), {"Content-Type": "application/json"}, True)
        repository, _, rest = path[1:].partition("/resolve/")
        name = rest.partition("/")[2]
        files = self.server.repositories.get(repository, {})
        if name not in files:
            return self._refuse(404)
        content = files[name]
        headers = {
            "X-Repo-Commit": COMMIT, "ETag": f'"{self._key(name, content)}"', "Accept-Ranges": "bytes",
            "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{self._key(name, content)}"',
        }  # fmt: skip
        if name in self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(content, headers, with_body)

    def _refuse(self, status: int) -> None:
        code = {404: "RepoNotFound", 401: "RepoNotFound", 403: "GatedRepo"}.get(status, "")
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def _info(self, repository: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.server.repositories[repository].items():
            entry: dict[str, Any] = {"rfilename": name, "size": self.server.claimed.get(name, len(content))}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if not name.endswith("json"):
                entry["lfs"] = {"sha256": self._key(name, content), "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
        tags = [f"license:{self.server.license}"] if self.server.license else []
        return {"id": repository, "modelId": repository, "sha": COMMIT, "tags": tags, "siblings": siblings}

    @staticmethod
    def _key(name: str, content: bytes) -> str:
        if name.endswith("json"):
            return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return hashlib.sha256(content).hexdigest()

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        start, whole = 0, len(content)
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.send_response(206 if given else 200)
        for key, value in {**headers, "Content-Length": str(whole - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        body, is_file = content[start:], "X-Repo-Commit" in headers
        if is_file and self.server.cut and self.server.cuts_left > 0 and len(body) > self.server.cut:
            self.server.cuts_left -= 1
            self.wfile.write(body[: self.server.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        for at in range(0, len(body), 65536):
            self.wfile.write(body[at : at + 65536])
            if is_file and self.server.pause:
                self.wfile.flush()
                time.sleep(self.server.pause)


@pytest.fixture
def server(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which HF_ENDPOINT names."""
    found = Hub()
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_HOME", str(nobody / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)  # the files here are smaller than one
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def wan(server: Hub, tiny_wan: TinyWan) -> dict[str, bytes]:
    """The repository of the smallest Wan as it is published: .pth files, and a tokenizer in a folder of its own."""
    made = tiny_wan("original").files
    files = {"diffusion_pytorch_model.safetensors": made.transformer.read_bytes()}
    for part, name in (("text", "models_t5_umt5-xxl-enc-bf16.pth"), ("vae", "Wan2.1_VAE.pth")):
        path = made.paths[part]
        torch.save(load_file(path), path.with_suffix(".pth"))
        files[name] = path.with_suffix(".pth").read_bytes()
    files["google/umt5-xxl/tokenizer.json"] = (made.transformer.parent / "tokenizer.json").read_bytes()
    files["README.md"] = b"not asked for"
    server.repositories[REPOSITORY] = files
    shutil.rmtree(made.transformer.parent)
    return files


def _gets(server: Hub, name: str) -> list[str]:
    """Ranges of the requests for a file's content."""
    return [given for method, path, given in server.asked if method == "GET" and path.endswith(f"/{name}")]


def test_a_model_is_fetched_and_runs_by_its_name(server: Hub, wan: dict[str, bytes], rushes: Run, nobody: Path) -> None:
    """Into the hub's own cache, only what is needed; the second time nothing is fetched."""
    done = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes")
    assert done.returncode == 0, done.stderr
    assert not _gets(server, "README.md") and len(_gets(server, "Wan2.1_VAE.pth")) == 1
    snapshot = nobody / "hf" / "hub" / "models--Wan-AI--Wan2.1-T2V-1.3B" / "snapshots" / COMMIT
    for name, content in wan.items():
        assert name == "README.md" or (snapshot / name).read_bytes() == content
    assert not [path for path in (nobody / "hf").rglob("*") if "rushes" in path.name]
    (entry,) = [entry for entry in look().entries if entry.origin == "hub"]
    assert entry.is_ready, entry.refusal
    shot = ("a red ball", "--model", entry.name, "--size", "64x32", "--frames", "5", "--steps", "1")
    assert rushes("generate", *shot, "-o", "x.mp4").returncode == 0
    before = len(server.asked)
    again = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["bytes"] == 0
    assert all(method == "HEAD" or path.startswith("/api/") for method, path, _ in server.asked[before:])


def test_nothing_is_fetched_unasked(server: Hub, wan: dict[str, bytes], rushes: Run) -> None:
    """Without a person to answer, --yes is needed; the sentence says how much, from where and under which licence."""
    done = rushes("models", "get", "wan2.1-t2v-1.3b")
    assert done.returncode == 2 and done.stdout == ""
    size = sum(len(content) for name, content in wan.items() if name != "README.md")
    for words in (
        f"{size / 1e6:.0f} MB in 4 files from {REPOSITORY} at {server.address}",
        "licence apache-2.0",
        "--yes",
    ):
        assert words in done.stderr
    assert all(path.startswith("/api/") for _, path, _ in server.asked)
    asked = len(server.asked)
    for command in (["models"], ["models", "get"], ["generate", "a ball", "--model", "wan2.1-t2v-1.3b", "-o", "x.mp4"]):
        rushes(*command)
    assert len(server.asked) == asked


def test_what_is_here_is_not_fetched_again(server: Hub, hollow: Callable[..., Path], nobody: Path) -> None:
    """The text encoder of eleven gigabytes, above all."""
    from rushes.model.shelf import lacking

    models = nobody / "ComfyUI" / "models"
    spiece = {"spiece_model": ("U8", [4])}
    text = hollow(models / "text_encoders" / "umt5.safetensors", "transformers.umt5_xxl_encoder", **spiece)
    sources = OFFERS["wan2.2-ti2v-5b"].sources
    assert [one.part for one in lacking(look(), sources)] == ["transformer", "vae"]
    hollow(models / "vae" / "wan2.2_vae.safetensors", "original.wan22_vae")
    assert [one.part for one in lacking(look(), sources)] == ["transformer"]
    assert [one.part for one in lacking(look(), OFFERS["wan2.1-t2v-14b"].sources)] == ["transformer", "vae"]
    text.unlink()
    hollow(text, "transformers.umt5_xxl_encoder")  # without a tokenizer it does not serve
    assert [one.part for one in lacking(look(), sources)] == ["transformer", "text"]


VAE = (Source("vae", REPOSITORY, ("Wan2.1_VAE.pth",)),)


def test_a_cut_connection_is_taken_up_where_it_ended(server: Hub, wan: dict[str, bytes]) -> None:
    """In the same call, by a range."""
    (item,) = hub.ask(VAE)
    server.cut, server.cuts_left = 100_000, 1
    assert item.size > 200_000
    path = hub.fetch(item, lambda *_: None)
    assert path.read_bytes() == wan["Wan2.1_VAE.pth"]
    first, second = _gets(server, "Wan2.1_VAE.pth")
    assert first == "" and second.startswith("bytes=") and second != "bytes=0-"


def test_a_dead_server_leaves_what_came(server: Hub, wan: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """And another call goes on from there, even in another process."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    (item,) = hub.ask(VAE)
    server.cut, server.cuts_left = 100_000, 1
    told: list[int] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append(done)
        server.status["resolve"] = 500  # from the first bytes on

    with pytest.raises(ShotError, match=r"^get: "):
        hub.fetch(item, tell)
    assert 0 < item.partial.stat().st_size <= 100_000 and not item.blob.exists()
    server.status.clear()
    server.asked.clear()
    start = item.partial.stat().st_size
    assert item.remaining == item.size - start
    assert hub.fetch(item, lambda *_: None).read_bytes() == wan["Wan2.1_VAE.pth"]
    assert _gets(server, "Wan2.1_VAE.pth") == [f"bytes={start}-"]


def test_a_killed_download_goes_on(server: Hub, wan: dict[str, bytes], environment: dict[str, str]) -> None:
    """SIGKILL in the middle; nothing half-done is taken for a file."""
    server.pause = 0.2
    program = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 2**16; from rushes.cli import main; "
        "main(['models', 'get', 'wan2.1-t2v-1.3b', '--yes'])"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, env={**environment, **os.environ, **environment})
    items = hub.ask(OFFERS["wan2.1-t2v-1.3b"].sources)
    deadline = time.monotonic() + 60
    while not any(item.partial.is_file() and item.partial.stat().st_size for item in items):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.pause = 0.0
    started = [item for item in items if item.partial.is_file()]
    assert len(started) == 1 and not started[0].blob.exists()
    server.asked.clear()
    for item in items:
        assert hub.fetch(item, lambda *_: None).read_bytes() == wan[item.path]
    (given,) = _gets(server, started[0].path)
    assert given.startswith("bytes=")


def test_a_wrong_hash_is_never_a_file(server: Hub, wan: dict[str, bytes], rushes: Run) -> None:
    """Large files by SHA-256, small ones by git's own; nothing stays, and a second try is whole."""
    for name in ("diffusion_pytorch_model.safetensors", "google/umt5-xxl/tokenizer.json"):
        server.damage = {name}
        done = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes")
        assert done.returncode == 2 and f"{name} came damaged" in done.stderr and "was deleted" in done.stderr
        (item,) = hub.ask([Source("x", REPOSITORY, (name,))])
        assert not item.partial.exists() and not item.blob.exists()
    server.damage = set()
    assert rushes("models", "get", "wan2.1-t2v-1.3b", "--yes").returncode == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "is not to be had at"),
        (401, "is not to be had at"),
        (403, "asks for a permission at"),
        (503, "answers 503 for"),
    ],
)
def test_what_the_hub_refuses_is_said(
    server: Hub, wan: dict[str, bytes], rushes: Run, monkeypatch: pytest.MonkeyPatch, status: int, sentence: str
) -> None:
    """In one line, with the repository and the address."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.status["/api/models"] = status
    done = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{REPOSITORY} {sentence}" in done.stderr or f"{sentence} {REPOSITORY}" in done.stderr
    assert server.address in done.stderr


def test_a_repository_that_changed_is_refused(server: Hub, wan: dict[str, bytes]) -> None:
    """A file that is gone, another licence, no hash."""
    with pytest.raises(ShotError, match=r"has no Wan9\.pth"):
        hub.ask([Source("vae", REPOSITORY, ("Wan9.pth",))])
    server.license = "cc-by-nc-4.0"
    with pytest.raises(ShotError, match=r"now states the licence cc-by-nc-4\.0; only apache-2\.0 is fetched"):
        hub.ask(VAE)


def test_no_server_is_said(server: Hub, rushes: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes")
    assert done.returncode == 2 and "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert rushes("models", "get", "wan9").returncode == 2


def test_a_disk_without_room_is_found_out_first(server: Hub, wan: dict[str, bytes], rushes: Run, nobody: Path) -> None:
    """Before a byte is fetched, with what is needed and what is free."""
    server.claimed["Wan2.1_VAE.pth"] = 10**16
    done = rushes("models", "get", "wan2.1-t2v-1.3b", "--yes")
    assert done.returncode == 2 and "10000000.0 GB are to be fetched" in done.stderr and "GB free" in done.stderr
    assert not list((nobody / "hf").rglob("*.pth"))
    assert not any("/resolve/" in path for _, path, _ in server.asked)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system wants root on Linux")
def test_a_disk_that_fills_up_keeps_what_came(
    server: Hub, wan: dict[str, bytes], nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, of which another program takes the rest; when there is room the download goes on."""
    place = nobody / "small disk"
    place.mkdir()
    (item,) = hub.ask(VAE)
    size = item.size * 2 // 3
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        monkeypatch.setenv("HF_HOME", str(place))
        with pytest.raises(ShotError, match=r"^get: the disk of .* is full; make room and try again, it goes on$"):
            hub.fetch(item, lambda *_: None)
        assert 0 < item.partial.stat().st_size < item.size
        subprocess.run(["mount", "-o", f"remount,size={item.size * 2}", str(place)], check=True)
        server.asked.clear()
        assert hub.fetch(item, lambda *_: None).read_bytes() == wan["Wan2.1_VAE.pth"]
        assert _gets(server, "Wan2.1_VAE.pth")[0].startswith("bytes=")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_events_tell_the_bytes(server: Hub, wan: dict[str, bytes], rushes: Run) -> None:
    """For programs: file, bytes, all bytes; then that it is done."""
    lines = [
        json.loads(line) for line in rushes("models", "get", "wan2.1-t2v-1.3b", "--yes", "--json").stdout.splitlines()
    ]
    assert lines[-1]["event"] == "done" and len(lines[-1]["files"]) == 4
    ends = {line["phase"]: line for line in lines[:-1] if line["step"] == line["steps"]}
    assert ends["Wan2.1_VAE.pth"]["steps"] == len(wan["Wan2.1_VAE.pth"]) and "checking Wan2.1_VAE.pth" in ends


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of its own is POSIX's")
@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_person_is_asked_and_sees_a_bar(
    server: Hub, wan: dict[str, bytes], nobody: Path, environment: dict[str, str], answer: str
) -> None:
    """On a real terminal: how much, from where, and a no leaves nothing behind."""
    import pty

    server.pause = 0.01
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rushes", "models", "get", "wan2.1-t2v-1.3b"],
        stdin=follower, stdout=subprocess.PIPE, stderr=follower, env={**environment, **os.environ, **environment},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(leader, 65536)
    assert b"MB in 4 files from" in shown and REPOSITORY.encode() in shown.replace(b"\r\n", b"")
    os.write(leader, f"{answer}\n".encode())
    try:
        while block := os.read(leader, 65536):
            shown += block
    except OSError:
        pass  # Linux reports the other end's closing as an error
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    if answer == "n":
        assert process.returncode == 130 and not list((nobody / "hf").rglob("*"))
    else:
        assert process.returncode == 0 and b"wan2.1-t2v-1.3b:" in out and b"fetched" in out
        vae = len(wan["Wan2.1_VAE.pth"]) / 1e6
        assert "\u2501".encode() in shown and f"{vae:.1f}/{vae:.1f} MB".encode() in shown


def test_two_processes_do_not_write_one_file(server: Hub, wan: dict[str, bytes]) -> None:
    """The second says that it waits for nobody."""
    (item,) = hub.ask(VAE)
    refused: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(ShotError, match="is being fetched by another process") as caught:
                hub.fetch(item, lambda *_: None)
            refused.append(str(caught.value))

    hub.fetch(item, tell)
    assert refused
