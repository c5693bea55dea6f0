# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shots with LoRAs: on plain and packed weights, on either expert, with the settings of distillations, made again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes import Engine, Shot
from rushes.model.catalog import Model
from rushes.model.files import ModelFiles
from rushes.model.lora import adapt_packed
from rushes.sampling.schedules import schedule
from rushes.shot import Lora, ShotError, parse_lora

Make = Callable[..., Any]
PREFIX = "model.diffusion_model."
HEADS = {"config": '{"num_heads": 2}'}
SMALL = {"size": (32, 32), "frames": 5, "seed": 4, "steps": 4, "guidance": 4.0, "negative": "the ball"}
LAYERS = {"blocks.0.self_attn.v": 48, "blocks.1.ffn.0": 48, "blocks.1.cross_attn.o": 48}


def shot(**changes: Any) -> Shot:
    return Shot("a red ball rolls", **{**SMALL, **changes})


def write_lora(path: Path, state: Mapping[str, Tensor], seed: int = 1, size: float = 0.2) -> dict[str, Tensor]:
    """A LoRA of rank 2; what it adds to the weights by our names comes back."""
    draw = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for layer, width in LAYERS.items():
        rows = state[f"{layer}.weight"].shape[0]
        down, up = torch.randn(2, width, generator=draw) * size, torch.randn(rows, 2, generator=draw) * size
        tensors[f"diffusion_model.{layer}.lora_down.weight"], tensors[f"diffusion_model.{layer}.lora_up.weight"] = (
            down,
            up,
        )
        added[f"{layer}.weight"] = up.double() @ down.double()
    save_file(tensors, path)
    return added


def merged(
    files: ModelFiles, path: Path, *added: tuple[Mapping[str, Tensor], float], part: str = "transformer"
) -> ModelFiles:
    """The same model with changes in its file; path: of the new transformer."""
    tensors = load_file(files.paths[part])
    for change, strength in added:
        for name, delta in change.items():
            key = f"{PREFIX}{name}"
            tensors[key] = (tensors[key].double() + strength * delta).float()
    save_file(tensors, path, {"config": '{"num_heads": 2}'})
    return dataclasses.replace(files, **{part: path})


def near(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= 2e-5 * want.abs().max())


def test_shots_with_and_without_loras_are_made_one_after_the_other(tiny_wan: Make, tmp_path: Path) -> None:
    """Each as the model with the change in its file makes it; afterwards the model is the bits that it was."""
    wan = tiny_wan()
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    added = [write_lora(path, wan.states["transformer"], seed=i) for i, path in enumerate(paths)]
    engine = Engine.load(wan.files, device="cpu")
    before = engine.denoise(shot())
    for strengths in ((1.0, 0.0), (0.5, 2.0), (0.0, -1.0)):
        loras = tuple(Lora(str(path), strength) for path, strength in zip(paths, strengths, strict=True))
        got = engine.denoise(shot(loras=loras))
        files = merged(wan.files, tmp_path / "merged.safetensors", *zip(added, strengths, strict=True))
        assert near(got, Engine.load(files, device="cpu").denoise(shot()))
        assert (got - before).abs().max() > 1e-3
    assert torch.equal(engine.denoise(shot()), before)


def test_a_lora_on_packed_weights_is_that_on_open_ones(tiny_wan: Make, tmp_path: Path) -> None:
    wan = tiny_wan()
    added = write_lora(tmp_path / "a.safetensors", wan.states["transformer"])
    tensors = {name: t.clone() for name, t in load_file(wan.files.transformer).items()}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = tensor.to(torch.float8_e4m3fn)
    note = {"config": '{"num_heads": 2}'}
    save_file(tensors, packed := tmp_path / "packed.safetensors", note)
    save_file({name: t.float() for name, t in tensors.items()}, opened := tmp_path / "opened.safetensors", note)
    engine = Engine.load(dataclasses.replace(wan.files, transformer=packed), device="cpu")
    got = engine.denoise(shot(loras=(f"{tmp_path / 'a.safetensors'}:0.6",)))
    plain = dataclasses.replace(wan.files, transformer=opened)
    want = Engine.load(merged(plain, tmp_path / "m.safetensors", (added, 0.6)), device="cpu").denoise(shot())
    assert near(got, want)
    assert torch.equal(engine.denoise(shot()), Engine.load(plain, device="cpu").denoise(shot()))


@pytest.fixture
def experts(tiny_wan: Make) -> SimpleNamespace:
    found: SimpleNamespace = tiny_wan(names=("tiny_t2v_high_noise", "tiny_t2v_low_noise"))
    return found


def test_each_expert_has_its_own(experts: SimpleNamespace, tmp_path: Path) -> None:
    """By the file's name, by word, or both the same: as two models with the changes in their files."""
    state = experts.states["transformer"]
    high, low = tmp_path / "style_high_noise.safetensors", tmp_path / "style_low_noise.safetensors"
    any_ = tmp_path / "any.safetensors"
    added = {path: write_lora(path, state, seed) for seed, path in enumerate((high, low, any_))}
    engine = Engine.load(experts.files, device="cpu")

    def want(*changes: tuple[str, Path, float]) -> Tensor:
        files = experts.files
        for part in ("transformer", "transformer_low"):
            mine = [(added[path], strength) for name, path, strength in changes if name == part]
            files = merged(files, tmp_path / f"merged_{files.paths[part].name}", *mine, part=part)
        return Engine.load(files, device="cpu").denoise(shot())

    high_change, low_change = ("transformer", high, 1.0), ("transformer_low", low, 0.5)
    assert near(engine.denoise(shot(loras=(str(high), f"{low}:0.5"))), want(high_change, low_change))
    assert near(engine.denoise(shot(loras=(f"low={any_}",))), want(("transformer_low", any_, 1.0)))
    assert near(engine.denoise(shot(loras=(f"high={low}:3",))), want(("transformer", low, 3.0)))
    both = [(part, any_, 1.0) for part in ("transformer", "transformer_low")]
    assert near(engine.denoise(shot(loras=(str(any_),))), want(*both))


def test_what_one_expert_alone_gets_is_said(experts: SimpleNamespace, tmp_path: Path) -> None:
    write_lora(path := tmp_path / "style_high_noise.safetensors", experts.states["transformer"])
    model = Model.open(experts.files)
    resolved = model.resolve(shot(loras=(str(path),)))
    assert resolved.loras[0].expert == "high"
    assert any("the high-noise expert has one and the low-noise expert none" in note for note in model.notes(resolved))


def test_a_distillation_brings_its_settings(tiny_wan: Make, tmp_path: Path) -> None:
    """Four steps of Euler without guidance at shift 5; what is asked for comes first."""
    wan = tiny_wan()
    path = tmp_path / "wan2.1_lightx2v_4steps.safetensors"
    write_lora(path, wan.states["transformer"])
    model = Model.open(wan.files)
    asked = Shot("a red ball", loras=(str(path),))
    found = model.resolve(asked)
    assert (found.steps, found.guidance) == (4, 1.0)
    assert model.settings(found) == ("euler", "simple", 5.0)
    assert model.record(found)["model"]["solver"] == "euler" and model.record(found)["model"]["shift"] == 5.0
    other = model.resolve(asked.replace(steps=6, guidance=2.0))
    assert (other.steps, other.guidance) == (6, 2.0)
    usual = model.resolve(Shot("a red ball", loras=(f"{path}:0",)))
    assert (usual.steps, model.settings(usual)) == (50, ("unipc", "wan_unipc", 8.0))
    own = Model.open(dataclasses.replace(wan.files, solver="unipc", shift=3.0))
    assert own.settings(own.resolve(asked)) == ("unipc", "wan_unipc", 3.0)


def test_the_two_lists_of_four_steps_are_one() -> None:
    """lightx2v's own list of entries in the table of shift 5, and ComfyUI's simple schedule of four steps there."""
    listed, simple = schedule("lightx2v", 4, 5.0), schedule("simple", 4, 5.0)
    assert listed == simple
    assert simple.sigmas == (1.0, 0.9375, pytest.approx(5 / 6, rel=1e-7), 0.625, 0.0)
    assert simple.timesteps == (1000.0, 937.5, pytest.approx(2500 / 3, rel=1e-7), 625.0)


def test_a_distilled_shot_is_four_steps_of_euler_by_hand(tiny_wan: Make, tmp_path: Path) -> None:
    """x + (sigma_next - sigma) v, with the change in the weights, and no second pass for a negative prompt."""
    wan = tiny_wan()
    path = tmp_path / "lightx2v.safetensors"
    added = write_lora(path, wan.states["transformer"])
    engine = Engine.load(wan.files, device="cpu")
    one = engine.resolve(shot(steps=None, guidance=None, loras=(str(path),)))
    got = engine.denoise(one)
    changed = Engine.load(merged(wan.files, tmp_path / "m.safetensors", (added, 1.0)), device="cpu")
    transformer = changed.parts["transformer"]
    ids = changed._tokens("prompt", one.prompt)
    x = torch.randn([1, 16, 2, 4, 4], generator=torch.Generator("cpu").manual_seed(4))
    with torch.inference_mode():
        context = transformer.context(changed.parts["text"].encode([ids], 512))  # type: ignore[operator, union-attr]
        for sigma, after in ((1.0, 0.9375), (0.9375, 5 / 6), (5 / 6, 0.625), (0.625, 0.0)):
            x = x + (after - sigma) * transformer(x, torch.tensor([1000.0 * sigma]), context)
    assert near(got, x)


def test_the_record_names_loras_so_that_a_shot_can_be_made_again(tiny_wan: Make, tmp_path: Path) -> None:
    """With the digest of each; one that is gone, or is another file now, is named."""
    wan = tiny_wan()
    write_lora(path := tmp_path / "style.safetensors", wan.states["transformer"])
    engine = Engine.load(wan.files, device="cpu")
    clip = engine.generate(shot(loras=(f"{path}:0.8",)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert clip.record["model"]["loras"] == [{"name": "style.safetensors", "sha256": sha256, "strength": 0.8}]
    again = Shot.from_json(json.dumps(clip.record["shot"]))
    assert again.loras == (Lora(str(path), 0.8, "", sha256),)
    assert torch.equal(engine.denoise(again), clip.latents)
    write_lora(path, wan.states["transformer"], seed=9)
    with pytest.raises(
        ShotError, match=r"^lora: .*style\.safetensors is not the file this shot was made with \(its SHA"
    ):
        engine.resolve(again)
    path.unlink()
    with pytest.raises(ShotError, match=r"^lora: .*style\.safetensors cannot be read \(No such file.*\); put it back"):
        engine.resolve(again)


def test_what_does_not_fit_is_refused_before_any_weight_is_read(
    tiny_wan: Make, experts: SimpleNamespace, tmp_path: Path, starter: str
) -> None:
    """Another model's, and one for an expert that is not there."""
    wan = tiny_wan()
    model = Model.open(wan.files)
    write_lora(path := tmp_path / "a.safetensors", wan.states["transformer"])
    with pytest.raises(ShotError, match=r"^lora: got high=a\.safetensors; tiny_transformer has one transformer"):
        model.resolve(shot(loras=(f"high={path}",)))
    with pytest.raises(ShotError, match=r"^lora: got a\.safetensors; it changes .* which is .* in starter"):
        Model.open(starter).resolve(Shot("a red ball", loras=(str(path),)))
    large = Model.open(tiny_wan(dim=96).files)
    with pytest.raises(ShotError, match=r"^lora: got a\.safetensors; it changes 'blocks\.0\.self_attn\.v\.weight' of"):
        large.resolve(shot(loras=(str(path),)))
    engine = Engine.load(wan.files, device="cpu", prepare=lambda part, memory: None)
    with pytest.raises(ShotError, match=r"^lora: got one in a host that moves the weights"):
        engine.denoise(shot(loras=(str(path),)))


def test_a_host_that_moves_the_weights_puts_loras_on_itself(tiny_wan: Make, tmp_path: Path) -> None:
    """It is told before the part works, and of none too; on packed weights `adapt_packed` is the same as without it."""
    wan = tiny_wan()
    write_lora(path := tmp_path / "a.safetensors", wan.states["transformer"])
    packed = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in load_file(wan.files.transformer).items()}
    save_file({name: t.clone() for name, t in packed.items()}, file := tmp_path / "fp8.safetensors", HEADS)
    files = dataclasses.replace(wan.files, transformer=file)
    worn: list[tuple[str, list[float]]] = []

    def wear(part: str, loras: Any) -> None:
        worn.append((part, [strength for _, strength in loras]))
        adapt_packed(engine.parts[part], loras)

    engine = Engine.load(files, device="cpu", prepare=lambda part, memory: None, wear=wear)
    alone = Engine.load(files, device="cpu")
    for one in (shot(loras=(f"{path}:0.6",)), shot()):
        assert torch.equal(engine.denoise(one), alone.denoise(one))
    assert worn == [("transformer", [0.6]), ("transformer", [])]


def test_the_starter_takes_loras(starter: str, tmp_path: Path) -> None:
    """On, changed and off again, when it is the bits that it was."""
    engine = Engine.load(starter, device="cpu")
    rows, columns = engine.parts["transformer"].state_dict()["blocks.0.ffn.0.weight"].shape
    pair = {"lora_up.weight": torch.ones(rows, 1) / 9, "lora_down.weight": torch.ones(1, columns) / 9}
    save_file(
        {f"diffusion_model.blocks.0.ffn.0.{end}": t for end, t in pair.items()}, path := tmp_path / "a.safetensors"
    )
    plain = Shot("a red ball", size=(32, 32), frames=5, steps=2, guidance=1.0)
    before = engine.denoise(plain)
    made = [engine.denoise(plain.replace(loras=(f"{path}:{strength}",))) for strength in (1, 0.5)]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], before)
    assert torch.equal(engine.denoise(plain), before)
    assert torch.equal(Engine.load(starter, device="cpu").denoise(plain.replace(loras=(f"{path}:0.5",))), made[1])


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.5", Lora("a.safetensors", 0.5)),
        ("a.safetensors:-2", Lora("a.safetensors", -2.0)),
        ("C:\\loras\\a.safetensors", Lora("C:\\loras\\a.safetensors")),
        ("C:\\loras\\a.safetensors:1.5", Lora("C:\\loras\\a.safetensors", 1.5)),
        ("high=a:b.safetensors:3", Lora("a:b.safetensors", 3.0, "high")),
        ("low=a.safetensors", Lora("a.safetensors", 1.0, "low")),
        ("x=a.safetensors", Lora("x=a.safetensors")),
    ],
)
def test_a_loras_text_is_read(text: str, lora: Lora) -> None:
    """Strengths behind the last colon, drives and colons in names, experts in front."""
    assert parse_lora(text) == lora


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": ""}, "the file is ''"),
        ({"path": "a", "strength": 101}, "the strength is 101; a number from -100.0 to 100.0"),
        ({"path": "a", "strength": float("nan")}, "the strength is nan"),
        ({"path": "a", "strength": True}, "the strength is True"),
        ({"path": "a", "expert": "middle"}, "the expert is 'middle'; high, low"),
        ({"file": "a"}, "got other fields; path, strength, expert and sha256 are allowed"),
    ],
)
def test_loras_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ShotError, match=f"^lora: {words}"):
        Shot.from_dict({"prompt": "a", "loras": [fields]})
