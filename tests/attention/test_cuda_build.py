# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The CUDA kernels compile for every architecture, into the instructions and registers that they were written for.

Needs nvcc; reads machine code with cuobjdump, from the toolkit or from `pip install nvidia-cuda-cuobjdump
nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cpp_ext" / "src" / "cuda"
HOPPER = "90a"
# (architecture, since which toolkit)
OTHERS = [("80", (12, 0)), ("86", (12, 0)), ("89", (12, 0)), ("100", (12, 8)), ("120", (12, 8))]
SHAPES = [f"d{head_dim}_{dtype}" for head_dim in (64, 96, 128, 256) for dtype in ("bf16", "fp16")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nvcc() -> tuple[str, tuple[int, int]]:
    """The compiler and its version."""
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc here")
    text = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    assert match is not None, text
    return found, (int(match[1]), int(match[2]))


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    """What reads machine code."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for found in Path(folder).glob("*/bin/cuobjdump"):
            return str(found)
    found_in_path = shutil.which("cuobjdump")
    if found_in_path is None:
        pytest.skip("no cuobjdump here: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return found_in_path


def _compile(nvcc: str, name: str, architecture: str, folder: Path) -> tuple[Path, str]:
    """The object file, and what the assembler says of registers."""
    target = folder / f"{name}_{architecture}.o"
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++17", "-O3", "-gencode", code, "-Xptxas", "-v", "-c", f"{name}.cu", "-o", str(target)]
    command += ["-I.", "-I../../include"]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target, done.stderr


def _spills(report: str) -> dict[str, int]:
    """Bytes by kernel, stores and loads."""
    found = re.findall(r"Function properties for (\S+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert found, report
    return {name: int(stores) + int(loads) for name, stores, loads in found}


def _sass(cuobjdump: str, target: Path) -> dict[str, list[str]]:
    """Opcodes by kernel."""
    text = subprocess.run([cuobjdump, "-sass", str(target)], check=True, capture_output=True, text=True).stdout
    kernels = re.split(r"Function : (\S+)", text)[1:]
    opcode = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.x]*)")
    return {name: opcode.findall(body) for name, body in zip(kernels[::2], kernels[1::2], strict=True)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("architecture", "since"), OTHERS, ids=[f"sm_{name}" for name, _ in OTHERS])
def test_mma_kernels_spill_nothing(
    nvcc: tuple[str, tuple[int, int]], tmp_path: Path, architecture: str, since: tuple[int, int], shape: str
) -> None:
    """Every file for every architecture."""
    if nvcc[1] < since:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    report = _compile(nvcc[0], f"mma_{shape}", architecture, tmp_path)[1]
    assert set(_spills(report).values()) == {0}, report


@pytest.mark.parametrize("name", ["plan", *(f"sm90_{shape}" for shape in SHAPES)])
def test_hopper_kernels_spill_nothing(nvcc: tuple[str, tuple[int, int]], tmp_path: Path, name: str) -> None:
    """Nor does a product wait for the one before, or the assembler refuse to hand over registers; it would say both."""
    report = _compile(nvcc[0], name, HOPPER, tmp_path)[1]
    assert set(_spills(report).values()) == {0}, report
    assert "serialized" not in report and "setmaxnreg" not in report, report


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["80", "120"])
def test_mma_kernels_use_tensor_cores(
    nvcc: tuple[str, tuple[int, int]], cuobjdump: str, tmp_path: Path, architecture: str, dtype: str
) -> None:
    """head_dim 128: products in tensor cores, asynchronous copies, matrices loaded as a whole."""
    if architecture == "120" and nvcc[1] < (12, 8):
        pytest.skip("this nvcc does not know sm_120")
    kernels = _sass(cuobjdump, _compile(nvcc[0], f"mma_d128_{dtype}", architecture, tmp_path)[0])
    assert len(kernels) == 3
    for name, opcodes in kernels.items():
        for wanted in ("HMMA.16816.F32", "LDGSTS", "LDSM", "MUFU.EX2"):
            assert any(code.startswith(wanted) for code in opcodes), (name, wanted)
        assert not any(code.startswith(("STL", "LDL", "ATOM", "RED")) for code in opcodes), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_hopper_kernels_use_its_instructions(
    nvcc: tuple[str, tuple[int, int]], cuobjdump: str, tmp_path: Path, dtype: str
) -> None:
    """head_dim 128: wgmma, tensor copies, registers handed over, barriers in shared memory; no atomics."""
    kernels = _sass(cuobjdump, _compile(nvcc[0], f"sm90_d128_{dtype}", HOPPER, tmp_path)[0])
    assert len(kernels) == 2
    for name, opcodes in kernels.items():
        for wanted in ("HGMMA.64x128x16.F32", "UTMALDG.4D", "USETMAXREG", "SYNCS", "MUFU.EX2"):
            assert any(code.startswith(wanted) for code in opcodes), (name, wanted)
        # scores of the first step and of the loop, sums in the loop and at the end: four times 128 / 16
        assert sum(code.startswith("HGMMA") for code in opcodes) == 32, name
        assert not any(code.startswith(("HMMA", "STL", "LDL", "ATOM", "RED")) for code in opcodes), name
