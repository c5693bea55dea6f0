# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What all tests share: the parity rule, the command line as a process, a tiny model, the starter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_PARITY_PACKAGES = ("diffusers", "transformers", "sentencepiece")
_START = Path.cwd()
_PARITY_REQUIRED = os.environ.get("RUSHES_REQUIRE_PARITY") == "1"

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Tree = Callable[[], "dict[str, bytes]"]


def _missing_parity_packages() -> list[str]:
    return [name for name in _PARITY_PACKAGES if importlib.util.find_spec(name) is None]


def pytest_configure(config: pytest.Config) -> None:
    """Under RUSHES_REQUIRE_PARITY=1, as .ci/run sets it, a run without the references does not even start."""
    if _PARITY_REQUIRED and (missing := _missing_parity_packages()):
        raise pytest.UsageError(f"RUSHES_REQUIRE_PARITY=1 and not installed: {', '.join(missing)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("parity") and (missing := _missing_parity_packages()):
        pytest.skip(f"the extra `parity` is not installed: {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # pytest's own generator protocol: what is returned replaces the report
    """Under RUSHES_REQUIRE_PARITY=1 a parity test that skips itself, for whatever reason, has failed."""
    report = yield
    if _PARITY_REQUIRED and item.get_closest_marker("parity") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"a parity test was skipped where it must run: {report.longrepr}"
    return report


def process_environment() -> dict[str, str]:
    """For a process in another folder: a PYTHONPATH of a source tree holds there too, and text is UTF-8."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if path := environment.get("PYTHONPATH"):
        # of the folder where pytest was started: a test may have gone to another since
        environment["PYTHONPATH"] = os.pathsep.join(str(_START / part) for part in path.split(os.pathsep))
    return environment


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment for a test's own processes."""
    return process_environment()


@pytest.fixture
def rushes_process(tmp_path: Path) -> Run:
    """Runs the command line in tmp_path as its own process: rushes_process("doctor", "--json")."""

    def run(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rushes", *arguments],
            cwd=tmp_path,
            env={**process_environment(), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
        )

    return run


@pytest.fixture
def rushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The same inside this process, which has imported torch already: seconds less for each call."""
    from rushes.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        status = main(arguments)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, err)

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree(): everything below tmp_path, hidden files and empty folders included, with its bytes."""

    def read() -> dict[str, bytes]:
        return {
            path.relative_to(tmp_path).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
            for path in tmp_path.rglob("*")
        }

    return read


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights in the starter's layout: makes noise, quickly. 16x16 pixels, 5 frames."""
    import torch

    from rushes.model.bundle import Card, Defaults, write_bundle
    from rushes.model.config import TransformerConfig, VAEConfig
    from rushes.model.text import TIED_EMBEDDING, TextConfig, TextEncoder
    from rushes.model.transformer import Transformer
    from rushes.model.vae import VideoVAE

    words = ("a", "ball", "left", "red", "right", "rolls", "the", "to")
    channels = 4
    card = Card(
        name="tiny",
        transformer=TransformerConfig(
            dim=32,
            heads=2,
            layers=2,
            ffn_dim=48,
            in_channels=channels,
            out_channels=channels,
            text_dim=16,
            text_len=12,
        ),
        vae=VAEConfig(
            latent_channels=channels,
            encoder_dim=8,
            decoder_dim=8,
            latents_mean=(0.0,) * channels,
            latents_std=(1.0,) * channels,
            multipliers=(1, 2, 2),
            blocks_per_stage=1,
            temporal_downsample=(True, True),
            patch_size=2,
            shortcuts=True,
        ),
        text=TextConfig(vocab_size=len(words) + 3, dim=16, heads=2, layers=1, ffn_dim=24, head_dim=8),
        vocabulary=words,
        defaults=Defaults(size=(16, 16), frames=5, fps="12", steps=3, guidance=2.0, shift=3.0),
        preview=((0.1, 0.1, 0.1),) * channels + ((0.5, 0.5, 0.5),),
        trained_frames=33,
        max_frames=401,
        max_pixels=128 * 128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(20)
        modules = {
            "transformer": Transformer(card.transformer),
            "vae": VideoVAE(card.vae),
            "text": TextEncoder(card.text),
        }
        for module in modules.values():
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    states = {name: module.state_dict() for name, module in modules.items()}
    del states["text"][TIED_EMBEDDING]  # the same tensor as the table of words; a file holds it once
    write_bundle(path, card, states)
    return path


@pytest.fixture(scope="session")
def starter() -> str:
    """The name of the shipped model; fails, and never skips, when its weights are missing."""
    from rushes.model.bundle import bundle_path

    path = bundle_path("starter")
    if not path.is_file():
        pytest.fail(f"the starter's weights are missing: {path}")
    return "starter"
