# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Attention in a real ComfyUI: models of its own, small and with random weights. The cases are in inside/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rushes.attention import kernel
from rushes.attention.hosted import CROSS, FEW, FIRST_LAYERS, FIRST_STEPS, LAST_LAYERS, LAST_STEPS

HERE = Path(__file__).parent
STEPS, LAYERS = 4, 4  # of each sampling, whose passes hold both prompts

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test installs ComfyUI
    pytest.mark.skipif(sys.platform != "linux", reason="run on Linux only so far"),
]

Saw = Callable[[str], Any]


@pytest.fixture(scope="module")
def saw(comfyui: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Saw:
    """saw("window"): what that case inside ComfyUI answered. All run in one process."""
    result = tmp_path_factory.mktemp("attention") / "result.json"
    command = [comfyui.python, HERE / "support" / "boot.py", HERE / "inside" / "attention.py", pack, result]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=comfyui.folder,
        env={**os.environ, "PYTHONPATH": str(comfyui.rushes), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    answers = json.loads(result.read_text())

    def of(name: str) -> Any:
        assert "answer" in answers[name], answers[name]["error"]
        return answers[name]["answer"]

    return of


def _kernel(precision: str | None = None) -> str:
    return f"rushes {kernel.backend_name(128, 'float32', precision)}"


def test_dense_makes_the_same_clip(saw: Saw) -> None:
    """Within float32's rounding, carried through four steps; all calls served."""
    found = saw("dense")
    assert found["error"] < 2e-5
    assert found["passes"] == STEPS
    assert found["dense"] == {"": STEPS * LAYERS * 2}
    assert found["backends"] == [_kernel()]
    assert found["handed_on"] == {}


def test_the_report_is_text_and_passes_the_latent_through(saw: Saw) -> None:
    """So that it can stand between sampler and decoder; of any other model it says that."""
    found = saw("dense")
    latent, text = found["report"]
    assert latent == "the latent"
    assert text.startswith("Rushes Attention, dense, sampling 1\n32 calls in 4 passes, ")
    assert 0 < found["seconds"] < 60
    assert found["through"] == [1, "This model does not come from Rushes Attention."]


def test_a_window_is_the_masked_model(saw: Saw) -> None:
    """Against ComfyUI's model with a mask over the ragged grid's tokens; what it delivers is what the mask keeps."""
    found = saw("window")
    assert found["error"] < 2e-5
    assert found["density"] == pytest.approx([found["asked"]] * 3, rel=1e-12)
    assert found["sparse"] == {_kernel(): STEPS * LAYERS}
    assert found["dense"] == {CROSS: STEPS * LAYERS}
    assert found["grids"] == ["5x12x14"]
    print(f"a window that keeps {found['asked']:.1%} changes this random model's clip by {found['change']:.1%}")
    assert found["change"] > 1e-3, "a pattern that changes nothing was not there"


def test_density_is_what_was_asked_within_one_tile_a_row(saw: Saw) -> None:
    """Of each head, and less of a change the more is kept."""
    few, half = saw("density")
    for found in (few, half):
        least, _, most = found["density"]
        assert found["asked"] <= least <= most < found["asked"] + found["tile"]
        assert found["sparse"] == {_kernel(): STEPS * LAYERS}
        print(f"density {found['asked']:.0%} changes this random model's clip by {found['change']:.1%}")
    assert half["change"] < few["change"]


def test_steps_and_layers_stay_dense(saw: Saw) -> None:
    """First 1 and last 1 of 4 steps; first 1 and last 2 of 4 layers."""
    found = saw("dense_parts")
    assert found["dense"] == {CROSS: 16, FIRST_STEPS: LAYERS, LAST_STEPS: LAYERS, FIRST_LAYERS: 2, LAST_LAYERS: 4}
    assert found["sparse"] == {_kernel(): 2}


def test_precision_can_be_lowered(saw: Saw) -> None:
    """Where the processor has it; otherwise each call is handed on, with the reason."""
    found = saw("precision")
    assert found["fp32"]["backends"] == [_kernel("fp32")]
    for name, bound in (("bf16", 0.05), ("int8", 0.15)):
        if kernel.backend_name(128, "float32", name) is None:
            assert sum(found[name]["handed_on"].values()) == STEPS * LAYERS * 2
        else:
            assert found[name]["backends"] == [_kernel(name)]
            assert 1e-5 < found[name]["error"] < bound


def test_an_override_that_was_there_gets_what_is_handed_on(saw: Saw) -> None:
    """And nothing else; our own node twice is the second one."""
    found = saw("chained")
    assert found["handed"] == 0
    assert sum(found["sparse"].values()) == STEPS * LAYERS
    assert found["after"] == [840]
    assert found["equal"]
    ((reason, count),) = found["reasons"].items()
    assert "float64" in reason
    assert count == 1
    assert set(found["wrappers"].values()) == {1}
    assert found["untouched"] == [False, None]


def test_an_override_that_comes_later_is_told_in_the_report(saw: Saw) -> None:
    """The slot is one, and its last owner has it."""
    found = saw("taken_over")
    assert found["equal"]
    assert "no calls" in found["report"][1]


def test_counts_survive_clones_and_are_of_the_latest_sampling(saw: Saw) -> None:
    """Every node after ours clones the model, so that the sampler never sees ours itself."""
    found = saw("cloned")
    assert found["same"]
    assert found["passes"] == 3
    assert "sampling 2" in found["report"][1]


def test_a_mask_is_handed_on_and_told_once(saw: Saw) -> None:
    """The same bits as without the node."""
    found = saw("masks")
    assert found["equal"] == [True] * 3
    assert list(found["handed_on"].values()) == [3]
    assert len(found["log"]) == 1


def test_each_form_of_a_call_is_served(saw: Saw) -> None:
    """And one with a keyword that nobody knows is not."""
    found = saw("forms")
    assert all(shape and wrong < 2e-6 for shape, wrong in found["forms"])
    assert found["strange"] < 2e-6
    assert list(found["handed_on"]) == ["sinks: the host asks for what Rushes does not know"]


def test_text_behind_the_video_stays_dense(saw: Saw) -> None:
    """HunyuanVideo: blocks of two kinds, text in the same attention, and a refiner of the text's own."""
    found = saw("text_behind_the_video")
    assert found["error"] < 2e-5
    assert found["grids"] == ["5x12x14 and 30 tokens after it"]
    assert found["sparse"] == {_kernel(): LAYERS}
    assert found["parts"]["sparse"] == {_kernel(): LAYERS - 1}
    assert found["parts"]["dense"][FIRST_LAYERS] == 1
    assert found["first"] > 1e-4


def test_text_before_the_picture_stays_dense(saw: Saw) -> None:
    """Flux, as a picture is a clip of one frame."""
    found = saw("text_before_the_picture")
    assert found["error"] < 2e-5
    assert found["grids"] == ["1x26x30 and 30 tokens before it"]
    assert found["sparse"] == {_kernel(): LAYERS}


def test_an_interrupt_stops_the_kernel(saw: Saw) -> None:
    """Within one call; it is taken back, and the next sampling is whole."""
    found = saw("interrupted")
    assert found["end"] == "interrupted"
    assert found["seconds"] < 1
    assert not found["left"]
    assert found["error"] < 2e-5


def test_a_compiled_model_calls_it(saw: Saw) -> None:
    """torch.compile leaves our calls out and compiles the rest once."""
    found = saw("compiled")
    assert found["graphs"][0] == found["graphs"][1] > 0
    assert found["error"] < 2e-5
    assert found["sparse"] == {_kernel(): STEPS * LAYERS}
    assert FEW not in found["dense"]


def test_the_server_offers_both_nodes_with_a_word_on_each_input(server: Any) -> None:
    """As the frontend asks for them; each has a page of its own, too."""
    for name in ("RushesAttention", "RushesAttentionReport"):
        about = server.get(f"/object_info/{name}")[name]
        widgets = about["input"]["required"]
        assert widgets and all(options[1].get("tooltip") for options in widgets.values())
        assert all(about["output_tooltips"])
        assert name.removeprefix("Rushes").split("Report")[0] in about["display_name"]
        assert server.get(f"/extensions/rushes/docs/{name}.md").startswith(b"# Rushes Attention")


def test_the_server_refuses_what_is_out_of_range_by_the_input_s_name(server: Any) -> None:
    """Before anything runs."""
    about = server.get("/object_info/RushesAttention")["RushesAttention"]["input"]["required"]
    chosen = {name: options[1].get("default") for name, options in about.items() if name != "model"}
    prompt = {
        "1": {
            "class_type": "RushesAttention",
            "inputs": {"model": ["2", 0], **chosen, "density": 1.5, "tile_width": 0},
        },
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "none", "weight_dtype": "default"}},
        "3": {"class_type": "RushesAttentionReport", "inputs": {"model": ["1", 0], "latent": ["4", 0]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400
    named = {error["extra_info"]["input_name"] for error in answer["node_errors"]["1"]["errors"]}
    assert named == {"density", "tile_width"}
