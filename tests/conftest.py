# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What all tests share: the parity rule, the command line as a process, a tiny model, the starter."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_PARITY_PACKAGES = ("diffusers", "transformers", "peft", "sentencepiece")
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
def one_thread() -> Iterator[None]:
    """Beside a worker that has OMP_NUM_THREADS=1: a sum's last bits depend on how many threads share it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree(): everything below tmp_path, hidden files and empty folders included, with its bytes."""

    def read() -> dict[str, bytes]:
        return {
            path.relative_to(tmp_path).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
            for path in tmp_path.rglob("*")
        }

    return read


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A folder on a file system of its own, and what mounts it anew with other options ("size=1m", "ro")."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system wants root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "rushes", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True) and None
    finally:
        subprocess.run(["umount", "-l", place], check=True)


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


_PIECES = (  # text, score and kind, of a sentencepiece model
    *(("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)),
    *((f"▁{word}", -2.0, 1) for word in ("a", "red", "ball", "rolls", "to", "the", "right")),
    *((letter, -9.0, 1) for letter in "▁abcdefghijklmnopqrstuvwxyz"),
)


def _spiece() -> bytes:
    """The pieces as a sentencepiece file, byte by byte as the format's page has it."""

    def field(number: int, value: bytes | float | int) -> bytes:
        if isinstance(value, bytes):
            return bytes([number << 3 | 2, len(value)]) + value
        if isinstance(value, float):
            return bytes([number << 3 | 5]) + struct.pack("<f", value)
        return bytes([number << 3, value])

    body = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in _PIECES
    )
    return body + field(2, field(3, 1)) + field(3, field(1, b"identity"))


def _write_tokenizer(path: Path) -> None:
    """The same pieces as a tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.Unigram([(text, score) for text, score, _ in _PIECES], 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.save(str(path))


@pytest.fixture
def tiny_wan(tmp_path: Path) -> Callable[..., Any]:
    """tiny_wan(layout, family): random weights of a small Wan, written as its files in one of the layouts that are
    found on disk: "original", "comfy" or "diffusers". family: "2.1", or "2.2" for the one of 48 channels. Further
    arguments: heads, text_width (of the encoder and of what reads it), spiece, names (the stems of one transformer or
    of two experts), and fields of the transformer; with image_dim a CLIP tower is written too, of 5 tokens a picture.

    What comes back has .files (ModelFiles), .configs and .states, both by part, the states by our names.
    """
    import torch
    from safetensors.torch import save_file

    from rushes.model import checkpoint
    from rushes.model.clip import ClipVision, ClipVisionConfig
    from rushes.model.config import WAN21_VAE, WAN22_VAE, TransformerConfig
    from rushes.model.files import ModelFiles
    from rushes.model.text import TIED_EMBEDDING, TextConfig, TextEncoder
    from rushes.model.tokenizer import UnigramTokenizer
    from rushes.model.transformer import Transformer
    from rushes.model.vae import VideoVAE

    def same(names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}

    def prefixed(prefix: str) -> Callable[[Iterable[str]], dict[str, str]]:
        return lambda names: {name: prefix + name for name in names}

    renamers = {  # our names -> those of the layout
        "original": {"transformer": same, "text": checkpoint.text_names_to_original, "vae": same},
        "comfy": {
            "transformer": prefixed("model.diffusion_model."),
            "text": prefixed("text_encoders.umt5xxl.transformer."),
            "vae": prefixed("vae."),
        },
        "diffusers": {
            "transformer": checkpoint.transformer_names_to_diffusers,
            "text": same,
            "vae": checkpoint.vae_names_to_diffusers,
        },
    }

    def write(
        layout: str = "comfy",
        family: str = "2.1",
        spiece: bytes = b"",
        names: tuple[str, ...] = ("tiny_transformer",),
        **changes: Any,
    ) -> SimpleNamespace:
        spiece = spiece or _spiece()
        published, base = (WAN21_VAE, 8) if family == "2.1" else (WAN22_VAE, 16)
        channels, heads, width = published.latent_channels, changes.pop("heads", 2), changes.pop("text_width", 24)
        shape: dict[str, Any] = {"dim": 24 * heads, "layers": 2, "ffn_dim": 56, "text_dim": width}
        shape |= {"in_channels": channels, "out_channels": channels}
        rows = UnigramTokenizer.from_sentencepiece(spiece).vocab_size + 3
        configs: dict[str, Any] = {"transformer": TransformerConfig(heads=heads, **(shape | changes))}
        if len(names) > 1:
            configs["transformer_low"] = configs["transformer"]
        configs["text"] = TextConfig(vocab_size=rows, dim=width, heads=2, layers=2, ffn_dim=40, head_dim=8)
        configs["vae"] = dataclasses.replace(published, encoder_dim=base, decoder_dim=base)
        if (image_dim := changes.get("image_dim")) is not None:
            configs["clip"] = ClipVisionConfig(image_dim, heads=2, layers=3, ffn_dim=40, image_size=28)
        kinds = {"text": TextEncoder, "vae": VideoVAE, "clip": ClipVision}
        with torch.random.fork_rng():
            torch.manual_seed(21)
            states = {part: kinds.get(part, Transformer)(config).state_dict() for part, config in configs.items()}
            for state in states.values():
                for tensor in state.values():
                    if tensor.ndim == 1 or tensor.shape[1:].numel() == 1:  # gains and biases, away from 1 and 0
                        tensor.add_(0.2 * torch.randn_like(tensor))
                for name, tensor in state.items():
                    if ".after_proj.weight" in name:
                        tensor.mul_(8)  # or what the control branch says would be lost among rounding
        folder = tmp_path / f"{layout}_{family}_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        stems = {"transformer": names[0], "transformer_low": names[-1]}
        paths = {}
        for part, state in states.items():
            kept = {name: t for name, t in state.items() if layout == "diffusers" or name != TIED_EMBEDDING}
            renamer = same if part == "clip" else renamers[layout][part.removesuffix("_low")]
            tensors = {renamer(kept)[name]: t.clone() for name, t in kept.items()}
            if part == "text" and layout == "comfy":
                prefix = "text_encoders.umt5xxl.transformer."
                tensors[f"{prefix}spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
            paths[part] = folder / f"{stems.get(part, f'tiny_{part}')}.safetensors"
            stated = {"transformer": heads, "transformer_low": heads, "clip": 2}.get(part)
            metadata = {"config": json.dumps({"transformer": {"num_heads": stated}})} if stated else None
            save_file(tensors, paths[part], metadata=metadata)
        if layout != "comfy":
            _write_tokenizer(folder / "tokenizer.json")
        return SimpleNamespace(files=ModelFiles(**paths), configs=configs, states=states)

    return write


@pytest.fixture
def trained_spiece() -> bytes:
    """A sentencepiece model of 200 pieces, trained on the spot."""
    sentencepiece = pytest.importorskip("sentencepiece")
    draw, buffer = random.Random(3), io.BytesIO()
    words = "a red ball rolls to the right over wet sand while waves crash close-up ein Hund läuft 一只红色的球 café"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(draw.choices(words.split(), k=12)) for _ in range(400)]),
        model_writer=buffer, vocab_size=200, hard_vocab_limit=False, model_type="unigram", minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return buffer.getvalue()


@pytest.fixture
def wan_pipeline(tmp_path: Path, trained_spiece: bytes) -> Callable[..., Any]:
    """wan_pipeline(wan, "WanPipeline", shift): diffusers' own pipeline, filled by its own names of the same weights,
    with transformers' tokenizer of spiece, encoder and CLIP, and UniPC with the shift. Further arguments are its own.
    """

    def build(wan: SimpleNamespace, name: str, shift: float = 5.0, spiece: bytes = b"", **options: Any) -> Any:
        diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
        from rushes.model.checkpoint import transformer_names_from_diffusers, vae_names_from_diffusers

        config, vae, text = wan.configs["transformer"], wan.configs["vae"], wan.configs["text"]
        shape: dict[str, Any] = {
            "num_attention_heads": config.heads, "attention_head_dim": config.head_dim, "num_layers": config.layers,
            "ffn_dim": config.ffn_dim, "in_channels": config.in_channels, "out_channels": config.out_channels,
            "text_dim": config.text_dim,
        }  # fmt: skip
        kind = diffusers.WanTransformer3DModel
        if config.vace_layers:
            kind = diffusers.WanVACETransformer3DModel
            shape |= {"vace_layers": list(config.vace_layers), "vace_in_channels": config.vace_in_channels}
        elif config.image_dim is not None:
            shape |= {"image_dim": config.image_dim, "added_kv_proj_dim": config.dim}
            shape |= {"pos_embed_seq_len": config.image_positions} if config.image_positions else {}
        channels = 3 * vae.patch_size**2
        models = {
            "transformer": kind(**shape),
            "vae": diffusers.AutoencoderKLWan(
                base_dim=vae.encoder_dim, decoder_base_dim=vae.decoder_dim, z_dim=vae.latent_channels,
                latents_mean=list(vae.latents_mean), latents_std=list(vae.latents_std), is_residual=vae.shortcuts,
                in_channels=channels, out_channels=channels, patch_size=vae.patch_size if vae.patch_size > 1 else None,
                scale_factor_spatial=vae.spatial_factor,
            ),
            "text": transformers.UMT5EncoderModel(
                transformers.UMT5Config(
                    vocab_size=text.vocab_size, d_model=text.dim, d_kv=text.head_dim, d_ff=text.ffn_dim,
                    num_layers=text.layers, num_heads=text.heads, feed_forward_proj="gated-gelu",
                )
            ),
        }  # fmt: skip
        if "transformer_low" in wan.states:
            models["transformer_low"] = kind(**shape)
        if (clip := wan.configs.get("clip")) is not None:
            models["clip"] = transformers.CLIPVisionModel(
                transformers.CLIPVisionConfig(
                    hidden_size=clip.dim, intermediate_size=clip.ffn_dim, num_hidden_layers=clip.layers,
                    num_attention_heads=clip.heads, image_size=clip.image_size, patch_size=clip.patch_size,
                    hidden_act="gelu",
                )
            )  # fmt: skip
        renames = {"vae": vae_names_from_diffusers, "text": dict, "clip": dict}
        for part, model in models.items():
            keys = {key: key for key in model.state_dict()}
            found = renames.get(part, transformer_names_from_diffusers)(keys)
            state = {key: wan.states[part][ours.removeprefix("vision_model.")] for key, ours in found.items()}
            model.load_state_dict(state)
            model.eval().requires_grad_(False)
        (tmp_path / "spiece.model").write_bytes(spiece or trained_spiece)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
        if "clip" in models:
            options["image_encoder"] = models["clip"]
        if "transformer_low" in models:
            options["transformer_2"] = models["transformer_low"]
        pipeline = getattr(diffusers, name)(
            tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path), text_encoder=models["text"],
            vae=models["vae"], transformer=models["transformer"],
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
            ),
            **options,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(autouse=True)
def no_kept_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test reads its prompts itself; those of the cache turn it on."""
    monkeypatch.setenv("RUSHES_TEXT_CACHE", "off")


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that no model of the machine's user is met; the settings and caches lie below it."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "RUSHES_COMFYUI"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("XDG_CONFIG_HOME", "config"), ("XDG_CACHE_HOME", "cache"), ("XDG_DATA_HOME", "data")):
        monkeypatch.setenv(name, str(home / folder))
    for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(home))
    return home


@pytest.fixture(scope="session")
def starter() -> str:
    """The name of the shipped model; fails, and never skips, when its weights are missing."""
    from rushes.model.bundle import bundle_path

    path = bundle_path("starter")
    if not path.is_file():
        pytest.fail(f"the starter's weights are missing: {path}")
    return "starter"
