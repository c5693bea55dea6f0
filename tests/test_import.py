# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Importing: what is loaded, what is not, and what the front door promises."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Top-level names of everything heavy that the package uses somewhere.
HEAVY = {
    "OpenImageIO",
    "PyOpenColorIO",
    "av",
    "click",
    "ftfy",
    "numpy",
    "opentimelineio",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
}


def _modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _heavy_after(code: str) -> set[str]:
    return {name.partition(".")[0] for name in _modules_after(code)} & HEAVY


def test_importing_rushes_loads_nothing_heavy() -> None:
    """A host that imports `rushes` starts in milliseconds: no torch, no OpenImageIO, not even numpy."""
    assert _heavy_after("import rushes") == set()


def test_making_a_shot_loads_nothing_heavy() -> None:
    """Shot and Keyframe are on the ground floor: standard library only."""
    assert _heavy_after("import rushes; rushes.Shot('a'); rushes.Keyframe(0, 'a.png')") == set()


def test_the_command_line_loads_torch_only_in_a_command() -> None:
    """Help pages and refusals come at once."""
    assert _heavy_after("import rushes.cli") == {"click"}
    assert "torch" not in _modules_after("from rushes.cli import main; main(['generate', '--help'])")
    assert "torch" not in _modules_after(
        "from rushes.cli import main; assert main(['generate', 'a', '-o', 'a.gif']) == 2"
    )


def test_the_front_door_holds_what_it_promises_and_nothing_else() -> None:
    """Every name of __all__ is there, is the one object of its home, and no other public name is listed."""
    import rushes
    from rushes import engine, shot

    assert sorted(rushes.__all__) == ["Clip", "Control", "Engine", "Keyframe", "Shot", "generate"]
    assert dir(rushes) == sorted([*rushes.__all__, "__version__"])
    assert rushes.Shot is shot.Shot and rushes.Keyframe is shot.Keyframe
    assert rushes.Engine is engine.Engine and rushes.Clip is engine.Clip and rushes.generate is engine.generate


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module: hasattr and `from rushes import x` rely on it."""
    import rushes

    with pytest.raises(AttributeError, match="Pipeline"):
        _ = rushes.Pipeline
    assert not hasattr(rushes, "torch")


def test_the_version_is_the_installed_one() -> None:
    """One source: what `pip show` says is what the code says."""
    from importlib import metadata

    import rushes

    try:
        installed = metadata.version("rushes")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a source tree, not installed")
    assert rushes.__version__ == installed


def test_importing_rushes_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the best of five; asserts no time, because a shared machine would make that a coin toss."""
    program = "import time; t = time.perf_counter(); import rushes; print((time.perf_counter() - t) * 1000)"
    times = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    with capsys.disabled():
        print(f"\nimport rushes: {min(times):.1f} ms (goal: under 50)")
    assert all(time > 0 for time in times)
