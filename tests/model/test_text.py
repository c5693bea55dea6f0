# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The text encoder against a float64 loop written from the T5 papers, and against transformers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rushes.model.text import (
    EMBEDDING,
    TIED_EMBEDDING,
    UMT5_XXL,
    TextConfig,
    TextEncoder,
    infer_text_config,
    relative_buckets,
    summarize,
)
from rushes.shot import ShotError

TINY = TextConfig(vocab_size=131, dim=48, heads=3, layers=2, ffn_dim=56, head_dim=8)  # heads * head_dim != dim


def restless(config: TextConfig, seed: int) -> TextEncoder:
    """Random weights in which every tensor matters: norms away from 1, biases as large as the scores."""
    torch.manual_seed(seed)
    model = TextEncoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            if "relative_attention_bias" in name:
                parameter.normal_(std=1.5)
    return model


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def loop_bucket(offset: int, buckets: int, max_distance: int) -> int:
    """T5's bucket of key - query, in exact integers: distance >= exact * (max / exact) ** (n / steps)."""
    half = buckets // 2
    exact = half // 2
    distance = abs(offset)
    bucket = distance
    if distance >= exact:
        steps = half - exact
        reached = [n for n in range(steps) if distance**steps * exact**n >= exact**steps * max_distance**n]
        bucket = exact + reached[-1]
    return bucket + (half if offset > 0 else 0)


def loop_encoder(model: TextEncoder, ids: list[int]) -> Tensor:
    """One unpadded prompt, head by head and pair by pair, float64. [L, dim]"""
    config = model.config
    weights = {name: value.double() for name, value in model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return torch.stack([row / math.sqrt((row @ row).item() / len(row) + config.eps) for row in x]) * weights[name]

    x = weights[EMBEDDING][ids]
    length = len(ids)
    for layer in range(config.layers):
        root = f"encoder.block.{layer}.layer"
        h = norm(x, f"{root}.0.layer_norm.weight")
        project = {name: h @ weights[f"{root}.0.SelfAttention.{name}.weight"].T for name in "qkv"}
        table = weights[f"{root}.0.SelfAttention.relative_attention_bias.weight"]
        heads = []
        for head in range(config.heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            q, k, v = (project[name][:, part] for name in "qkv")
            scores = torch.empty(length, length, dtype=torch.float64)
            for i in range(length):
                for j in range(length):
                    bias = table[loop_bucket(j - i, config.buckets, config.max_distance), head]
                    scores[i, j] = q[i] @ k[j] + bias  # no division by sqrt(head_dim)
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ weights[f"{root}.0.SelfAttention.o.weight"].T
        h = norm(x, f"{root}.1.layer_norm.weight")
        gate = h @ weights[f"{root}.1.DenseReluDense.wi_0.weight"].T
        gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        hidden = gate * (h @ weights[f"{root}.1.DenseReluDense.wi_1.weight"].T)
        x = x + hidden @ weights[f"{root}.1.DenseReluDense.wo.weight"].T
    return norm(x, "encoder.final_layer_norm.weight")


@pytest.mark.parametrize(
    ("buckets", "max_distance"),
    [
        (32, 128),  # T5's
        (32, 150),  # edges that are no powers of two
        (8, 20),  # more distances than buckets
    ],
)
def test_buckets_are_exact_nearby_and_logarithmic_beyond(buckets: int, max_distance: int) -> None:
    """Every distance up to 400, both ways, falls into the bucket that exact integer arithmetic gives."""
    got = relative_buckets(401, buckets, max_distance)
    expected = [loop_bucket(offset, buckets, max_distance) for offset in range(-400, 401)]
    assert got[400].tolist() == expected[:401]
    assert got[0].tolist() == expected[400:]


def test_features_equal_a_float64_loop() -> None:
    """The whole encoder on one prompt, 21 tokens so that logarithmic buckets are used."""
    model = restless(TINY, seed=1)
    ids = torch.randint(3, TINY.vocab_size, (21,)).tolist()
    got = model(torch.tensor([ids]))[0]
    assert relative(got, loop_encoder(model, ids)) <= 2e-6


@pytest.mark.parity
def test_features_equal_transformers() -> None:
    """Same tiny random weights and mask as transformers' UMT5EncoderModel, 150 tokens (past max_distance)."""
    transformers = pytest.importorskip("transformers")
    ours = restless(TINY, seed=2)
    theirs = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=TINY.vocab_size, d_model=TINY.dim, d_kv=TINY.head_dim, d_ff=TINY.ffn_dim,
            num_layers=TINY.layers, num_heads=TINY.heads, relative_attention_num_buckets=TINY.buckets,
            relative_attention_max_distance=TINY.max_distance, feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    lengths = [150, 1, 37]
    ids = torch.zeros(3, 150, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, TINY.vocab_size, (length,))
    mask = torch.arange(150) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        got = ours(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    for row, length in enumerate(lengths):
        assert relative(got[row, :length], expected[row, :length]) <= 1e-5
        assert got[row, length:].abs().sum() == 0


def test_names_are_the_two_of_the_shared_embedding_and_the_blocks() -> None:
    """Both names stand for one tensor, which an optimiser sees once."""
    model = TextEncoder(TINY)
    state = model.state_dict()
    assert state[EMBEDDING].data_ptr() == state[TIED_EMBEDDING].data_ptr()
    assert [name for name, _ in model.named_parameters() if "embed" in name or "shared" in name] == [EMBEDDING]


@pytest.mark.parametrize("absent", [EMBEDDING, TIED_EMBEDDING])
@pytest.mark.parametrize("assign", [False, True])
def test_a_file_with_one_name_of_the_embedding_loads(absent: str, assign: bool) -> None:
    """Files keep only one of the tied names; loading is strict about all others and keeps the tie."""
    source = restless(TINY, seed=3)
    state = {name: value for name, value in source.state_dict().items() if name != absent}
    with torch.device("meta" if assign else "cpu"):
        model = TextEncoder(TINY)
    model.load_state_dict(state, assign=assign)
    ids = torch.randint(1, TINY.vocab_size, (2, 9))
    assert torch.equal(model(ids), source(ids))
    assert model.shared.weight is model.encoder.embed_tokens.weight
    del state["encoder.final_layer_norm.weight"]
    with pytest.raises(RuntimeError, match="final_layer_norm"):
        model.load_state_dict(state, assign=assign)


def test_padding_is_zero_and_changes_nothing() -> None:
    """Rows past the mask are zero; what stands in them and how many there are does not reach the others."""
    model = restless(TINY, seed=4)
    ids = torch.randint(1, TINY.vocab_size, (2, 13))
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 5:] = False
    other = ids.clone()
    other[1, 5:] = torch.randint(1, TINY.vocab_size, (8,))
    with torch.no_grad():
        got = model(ids, mask)
        assert got[1, 5:].abs().sum() == 0
        assert torch.equal(got, model(other, mask))
        assert relative(got[1, :5], model(ids[1:, :5])[0]) <= 1e-6
        assert torch.equal(model(ids.where(mask, 0)), model(ids.where(mask, 0), mask))  # the default mask


def test_a_row_of_padding_alone_gives_zeros_and_finite_gradients() -> None:
    """A batch may hold an empty prompt; it must not turn the shared weights into NaN."""
    model = restless(TINY, seed=5)
    ids = torch.zeros(2, 6, dtype=torch.long)
    ids[0, :4] = torch.tensor([5, 9, 7, 1])
    got = model(ids)
    assert got[1].abs().sum() == 0
    got.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_encode_pads_prompts_of_any_length_to_the_rows_asked_for() -> None:
    """[B, rows, dim], each prompt as if it were alone, zero below."""
    model = restless(TINY, seed=6)
    prompts = [[8, 4, 1], [1], [77, 4, 9, 12, 1]]
    with torch.no_grad():
        got = model.encode(prompts, rows=11)
        assert got.shape == (3, 11, TINY.dim)
        for row, prompt in zip(got, prompts, strict=True):
            assert relative(row[: len(prompt)], model(torch.tensor([prompt]))[0]) <= 1e-6
            assert row[len(prompt) :].abs().sum() == 0


def test_encode_refuses_a_prompt_longer_than_the_rows() -> None:
    """The sentence says how long it is and how long it may be."""
    with pytest.raises(ShotError, match=r"prompt: it has 6 tokens; up to 5"):
        TextEncoder(TINY).encode([[3, 4, 5, 6, 7, 1]], rows=5)
    with pytest.raises(ValueError, match="prompts"):
        TextEncoder(TINY).encode([[]], rows=5)


def test_gradients_equal_finite_differences_everywhere() -> None:
    """Each parameter, biases of distance included, moves a float64 loss as its gradient says."""
    model = restless(dataclasses.replace(TINY, layers=1, dim=12, heads=2, head_dim=4, ffn_dim=10), seed=7).double()
    ids = torch.randint(1, TINY.vocab_size, (2, 7))
    ids[1, 4:] = 0
    target = torch.randn(2, 7, 12, dtype=torch.float64)

    def loss() -> Tensor:
        return (model(ids) * target).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        slope = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            above = loss().item()
            parameter.sub_(direction, alpha=2e-6)
            below = loss().item()
            parameter.add_(direction, alpha=1e-6)
        assert abs(slope) > 1e-3, name
        assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-5), name


def test_bfloat16_training_stays_near_float32() -> None:
    """Under autocast the features are within twice the error of rounding weights and features to bfloat16."""
    model = restless(TINY, seed=8)
    ids = torch.randint(1, TINY.vocab_size, (3, 10))
    with torch.no_grad():
        expected = model(ids)
        rounded = TextEncoder(TINY)
        rounded.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
        floor = relative(rounded(ids).bfloat16(), expected)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(ids)
    assert relative(got, expected) <= 2 * floor


def test_a_few_steps_of_training_lower_the_loss() -> None:
    """From its own fresh weights the encoder learns to tell words apart."""
    torch.manual_seed(9)
    model = TextEncoder(TINY)
    probe = torch.nn.Linear(TINY.dim, 4)
    optimizer = torch.optim.AdamW([*model.parameters(), *probe.parameters()], lr=3e-3)
    ids = torch.randint(3, TINY.vocab_size, (32, 6))
    labels = ids[:, 2] % 4  # only readable through attention: the probe sees the first row
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(probe(model(ids)[:, 0]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_fresh_weights_are_reproducible_and_of_t5s_size() -> None:
    """The seed decides them; deviations are T5's, and the features come out at about one."""
    config = TextConfig(vocab_size=300, dim=128, heads=4, layers=2, ffn_dim=256, head_dim=32)
    torch.manual_seed(10)
    model = TextEncoder(config)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_parameters()
    assert not torch.equal(model.shared.weight, first[EMBEDDING])
    torch.manual_seed(10)
    again = TextEncoder(config).state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    attention = "encoder.block.1.layer.0.SelfAttention."
    assert first[EMBEDDING].std().item() == pytest.approx(1, rel=0.05)
    assert first[f"{attention}q.weight"].std().item() == pytest.approx((128 * 32) ** -0.5, rel=0.05)
    assert first[f"{attention}k.weight"].std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert first["encoder.block.1.layer.1.DenseReluDense.wo.weight"].std().item() == pytest.approx(256**-0.5, rel=0.05)
    features = model(torch.randint(1, 300, (4, 12)))
    assert features.square().mean().sqrt().item() == pytest.approx(1, rel=0.05)


def test_the_configuration_is_read_from_shapes() -> None:
    """Shapes alone give it back, whichever name the embedding has."""
    shapes = {name: tuple(value.shape) for name, value in TextEncoder(TINY).state_dict().items()}
    assert infer_text_config(shapes) == TINY
    del shapes[EMBEDDING]
    assert infer_text_config(shapes) == TINY
    with pytest.raises(ShotError, match=r"shared\.weight"):
        infer_text_config({"patch_embedding.weight": (1, 2)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 0}, "heads: got 0"),
        ({"buckets": 6}, "buckets: got 6"),
        ({"max_distance": 8}, "max_distance: got 8"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, int], words: str) -> None:
    """The sentence names the field and its value."""
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(UMT5_XXL, **change)


def test_ids_without_a_batch_are_refused() -> None:
    """A single prompt needs its batch dimension."""
    with pytest.raises(ValueError, match=r"ids: got shape \(4,\)"):
        TextEncoder(TINY)(torch.tensor([3, 4, 5, 1]))


def test_a_sentence_s_summary_is_the_mean_of_its_own_rows() -> None:
    """Padding rows do not dilute it, whatever the batch holds."""
    features = torch.randn(3, 7, 5)
    features[0, 4:] = 0
    features[2, 1:] = 0
    summary = summarize(features)
    assert summary.shape == (3, 1, 5)
    assert torch.allclose(summary[0, 0], features[0, :4].mean(0), atol=1e-6)
    assert torch.allclose(summary[1, 0], features[1].mean(0), atol=1e-6)
    assert torch.equal(summary[2, 0], features[2, 0])
