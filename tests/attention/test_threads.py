# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Whose threads the kernel runs on: torch's where there are any, its own elsewhere; the bits are the same."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from rushes.attention import attention, kernel, threads
from rushes.attention.extension import load_extension

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

shares = pytest.mark.skipif(threads._addresses(torch) is None, reason="torch has no OpenMP runtime of GNU's kind here")


def _run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout


SHARED = """
import os, torch
from rushes.attention import kernel
torch.set_num_threads(3)
torch.randn(1 << 20).relu()  # brings torch's threads up
q = torch.randn(1, 8, 500, 64)
before = len(os.listdir("/proc/self/task"))
first = kernel.compute(q, q, q, scale=0.125, threads=1)
for count in (2, 3, None):
    assert torch.equal(kernel.compute(q, q, q, scale=0.125, threads=count), first)
print(len(os.listdir("/proc/self/task")) - before)
assert torch.equal(kernel.compute(q, q, q, scale=0.125, threads=5), first)
print(len(os.listdir("/proc/self/task")) - before)
"""


@shares
def test_torch_brings_the_threads() -> None:
    """No second set of them as long as torch's suffice; asked for more than torch has, the kernel starts its own."""
    assert _run(SHARED).split() == ["0", "4"]


LATER = """
import os, sys, numpy as np
from rushes.attention import kernel
q = np.random.default_rng(0).standard_normal((1, 8, 500, 64), np.float32)
first = kernel.compute(q, q, q, scale=0.125, threads=2)
assert "torch" not in sys.modules
import torch
torch.set_num_threads(2)
torch.randn(1 << 20).relu()
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    assert (kernel.compute(q, q, q, scale=0.125, threads=2) == first).all()
print(len(os.listdir("/proc/self/task")) - before)
"""


@shares
def test_torch_may_come_later() -> None:
    """A process that begins with NumPy alone changes over when torch is loaded, with the same bits."""
    assert _run(LATER).split() == ["0"]


FORK = """
import os, sys, torch
from rushes.attention import kernel
torch.set_num_threads(2)
torch.randn(1 << 20).relu()
q = torch.randn(1, 8, 500, 64).numpy()
first = kernel.compute(q, q, q, scale=0.125)
child = os.fork()
if child == 0:  # torch.equal would wait for ever here
    os._exit(0 if (kernel.compute(q, q, q, scale=0.125) == first).all() else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_the_child_of_a_fork_does_not_wait_for_threads_that_stayed_behind() -> None:
    """Torch's own parallel code would, in a child of a process that has used it."""
    _run(FORK)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_error_in_the_question_is_raised(count: int) -> None:
    """Whatever `cancel` raises, or answers instead of yes and no, ends the call and reaches the caller."""

    class Broken:
        def is_set(self) -> bool:
            raise KeyError("who is asking")

    class Vague:
        def is_set(self) -> object:
            return np.array([True, False])

    q = torch.randn(1, 4, 400, 64)
    with pytest.raises(KeyError, match="who is asking"):
        attention(q, q, q, backend="rushes", threads=count, cancel=Broken())  # type: ignore[arg-type]
    with pytest.raises((RuntimeError, ValueError)):
        attention(q, q, q, backend="rushes", threads=count, cancel=Vague())  # type: ignore[arg-type]
    expected = kernel.compute(q, q, q, scale=0.125, threads=1)
    assert torch.equal(kernel.compute(q, q, q, scale=0.125, threads=count), expected), "and the next one is served"


def test_where_torch_has_no_such_runtime_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that lies elsewhere, another system, a module without its functions: the own threads serve."""
    other = ModuleType("torch")
    other.__file__ = "/nowhere/torch/__init__.py"
    assert threads._addresses(other) is None
    other.__file__ = None
    assert threads._addresses(other) is None
    monkeypatch.setattr(threads, "_FUNCTIONS", ("GOMP_parallel", "no_such_function"))
    assert threads._addresses(torch) is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert threads._addresses(torch) is None


def test_a_missing_address_is_refused() -> None:
    """Before anything is called there."""
    with pytest.raises(ValueError, match="address of 0"):
        load_extension().module.share_threads(1, 2, 3, 0)  # type: ignore[union-attr]
