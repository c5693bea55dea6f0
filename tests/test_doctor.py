# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""doctor: it says what is there, what is not, and survives everything being broken."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rushes import doctor
from rushes.attention.extension import Extension, load_extension
from rushes.doctor import Finding, examine


def _named(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def test_it_names_versions_weights_and_disks() -> None:
    """One line each; the versions are those that pip installed."""
    findings = examine()
    for name, distribution in (("torch", "torch"), ("PyAV", "av"), ("OpenColorIO", "opencolorio")):
        (found,) = _named(findings, name)
        assert found.state == "ok" and metadata.version(distribution) in found.text
    for name in (
        "rushes",
        "python",
        "processor",
        "attention",
        "starter",
        "working folder",
        "temporary folder",
    ):
        assert _named(findings, name), name
    assert {finding.state for finding in findings} <= {"ok", "note", "problem"}
    assert all(finding.text and "\n" not in finding.text for finding in findings)


def test_a_library_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the loader's own words and the package to install, and every other line still there."""
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name == "OpenImageIO":
            raise ImportError("libfoo.so.3: cannot open shared object file\nsecond line")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    findings = examine()
    (found,) = _named(findings, "OpenImageIO")
    assert found.state == "problem" and "libfoo.so.3" in found.text and "pip install OpenImageIO" in found.text
    assert _named(findings, "torch")[0].state == "ok"


def test_a_check_that_fails_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with a hole says where the hole is."""

    def broken(path: Any) -> Any:
        raise OSError("no such device")

    monkeypatch.setattr(doctor.shutil, "disk_usage", broken)
    findings = examine()
    (found,) = _named(findings, "disks")
    assert found.state == "problem" and "no such device" in found.text


def test_an_install_without_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a problem, since torch's attention serves, but never silent."""
    monkeypatch.setattr(
        "rushes.attention.extension.load_extension", lambda: Extension(None, "it was not built, so there")
    )
    findings = examine()
    (found,) = _named(findings, "compiled module")
    assert found.state == "note" and "it was not built" in found.text
    assert "torch" in _named(findings, "attention")[0].text


def test_it_says_which_attention_serves_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name for each dtype; when the environment decides, that is the reason; a wrong word is a problem."""
    if load_extension().module is None:
        pytest.skip(load_extension().reason)
    monkeypatch.delenv("RUSHES_ATTENTION", raising=False)
    (found,) = _named(examine(), "attention")
    assert found.state == "ok" and "float32 by " in found.text and "gradients" in found.text
    monkeypatch.setenv("RUSHES_ATTENTION", "torch")
    assert _named(examine(), "attention")[0].text == "by torch, as RUSHES_ATTENTION=torch asks"
    monkeypatch.setenv("RUSHES_ATTENTION", "cudnn")
    (found,) = _named(examine(), "attention")
    assert found.state == "problem" and "'cudnn'" in found.text and "torch, flex or rushes is allowed" in found.text


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package folder with one weights file, as doctor sees its own."""
    weights = tmp_path / "rushes" / "starter" / "weights" / "starter.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "rushes" / "doctor.py"))
    yield weights


def _recorded(monkeypatch: pytest.MonkeyPatch, weights: Path, content: bytes) -> None:
    """Make importlib.metadata say that the installer wrote `content` there."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    entry = SimpleNamespace(
        name=weights.name, hash=SimpleNamespace(mode="sha256", value=digest), locate=lambda: weights
    )
    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: SimpleNamespace(files=[entry]))


def _starter() -> Finding:
    (found,) = doctor._starter_weights()
    return found


def test_intact_weights_are_ok(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their digest is the installer's."""
    _recorded(monkeypatch, package, b"weights")
    assert _starter().state == "ok"


def test_changed_weights_are_a_problem(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit is enough."""
    _recorded(monkeypatch, package, b"weightr")
    assert _starter().state == "problem" and "changed" in _starter().text


def test_weights_without_a_recorded_digest_are_not_called_intact(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a source tree there is nothing to compare with, and that is what it says."""

    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "distribution", absent)
    assert _starter().state == "note" and "not compared" in _starter().text


def test_missing_weights_are_a_problem(package: Path) -> None:
    """With the folder where they belong."""
    package.unlink()
    assert _starter().state == "problem" and str(package.parent) in _starter().text


def test_the_command_prints_a_line_each_and_exits_with_0(rushes: Any) -> None:
    """As text, and as JSON for a bug report."""
    text = rushes("doctor")
    assert text.returncode == 0 and text.stderr == "" and "torch" in text.stdout
    listed = rushes("doctor", "--json")
    findings = json.loads(listed.stdout)
    assert listed.returncode == 0 and len(findings) == len(text.stdout.splitlines())
    assert all(set(finding) == {"name", "state", "text"} for finding in findings)
