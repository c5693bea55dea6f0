# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weight files that lie, that bring code or that would fill the memory: each is refused with a sentence, in little."""

from __future__ import annotations

import json
import pickle
import random
import secrets
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rushes.model.packed import Packed
from rushes.model.quantised import open_weights
from rushes.model.reading import load_state, map_file, read_header
from rushes.shot import ShotError

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> bytes:
    return safetensors({"a": {**ENTRY, **changes}})


SAFETENSORS = {
    "length beyond the file": safetensors({"a": ENTRY}, length=2**63 - 1),
    "length of all bits": safetensors({"a": ENTRY}, length=2**64 - 1),
    "header of 17 MB": safetensors(b" " * 17 * 2**20),
    "a million brackets": safetensors(b"[" * 10**6),
    "a list": safetensors([1, 2]),
    "no JSON": safetensors(b"{\xff}"),
    "no entry": safetensors({"a": 3}),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 24]}}),
    "shape of texts": entry(shape=["2", "3"]),
    "shape of fractions": entry(shape=[2.0, 3.0]),
    "shape of flags": entry(shape=[True, 6]),
    "negative shape": entry(shape=[-2, -3]),
    "huge shape": entry(shape=[2**62, 2**62]),
    "a hundred dimensions": entry(shape=[1] * 98 + [2, 3]),
    "negative offsets": entry(data_offsets=[-24, 0]),
    "offsets backwards": entry(data_offsets=[24, 0]),
    "offsets beyond the file": entry(data_offsets=[2**40, 2**40 + 24]),
    "three offsets": entry(data_offsets=[0, 24, 24]),
    "too few bytes for the type": entry(dtype="F64"),
    "too many bytes for the type": entry(dtype="F16"),
    "a type of nobody": entry(dtype="F33"),
    "a type that is none": entry(dtype=[1]),
    "overlapping": safetensors({"a": ENTRY, "b": {**ENTRY, "data_offsets": [20, 44]}}),
    "twice the same bytes": safetensors({"a": ENTRY, "b": ENTRY}),
    "metadata that are none": safetensors({"__metadata__": [1], "a": ENTRY}),
    "cut off": entry()[:-41],
    "empty": b"",
    "eight bytes": bytes(8),
}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def a_gguf(body: bytes, tensors: int = 0, notes: int = 0, version: int = 3, data: bytes = bytes(256)) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, notes) + body
    return head + bytes(-len(head) % 32) + data


def a_note(kind: int, value: bytes, name: bytes = b"a") -> bytes:
    return a_gguf(text(name) + struct.pack("<I", kind) + value, notes=1)


GGUFS = {
    "tensors without end": a_gguf(b"", tensors=2**62),
    "notes without end": a_gguf(b"", notes=2**62),
    "a text without end": a_note(8, struct.pack("<Q", 2**60)),
    "a name without end": a_gguf(struct.pack("<Q", 2**60), notes=1),
    "a list without end": a_note(9, struct.pack("<IQ", 0, 2**60)),
    "a list of texts without end": a_note(9, struct.pack("<IQ", 8, 2**30)),
    "lists in lists": a_note(9, struct.pack("<IQ", 9, 1) * 1000),
    "a note of no type": a_note(77, b""),
    "an old version": a_gguf(b"", version=1),
    "the other byte order": a_gguf(b"", version=3 << 24),
    "no dimensions": a_gguf(tensor(b"a", ()), tensors=1),
    "a thousand dimensions": a_gguf(text(b"a") + struct.pack("<I", 1000), tensors=1),
    "huge dimensions": a_gguf(tensor(b"a", (2**62, 2**62)), tensors=1),
    "beyond the file": a_gguf(tensor(b"a", (8,), offset=2**40), tensors=1),
    "too large for the file": a_gguf(tensor(b"a", (10**6,)), tensors=1),
    "no values": a_gguf(tensor(b"a", (0, 2)), tensors=1),
    "no values of blocks": a_gguf(tensor(b"a", (32, 0), kind=8), tensors=1),
    "not aligned": a_gguf(tensor(b"a", (8,), offset=3), tensors=1),
    "i-quants": a_gguf(tensor(b"a", (256,), kind=23), tensors=1),
    "a type of nobody": a_gguf(tensor(b"a", (8,), kind=200), tensors=1),
    "rows that are no blocks": a_gguf(tensor(b"a", (40, 2), kind=8), tensors=1),
    "overlapping": a_gguf(tensor(b"a", (16,)) + tensor(b"b", (16,), offset=32), tensors=2),
    "the same name twice": a_gguf(tensor(b"a", (8,)) + tensor(b"a", (8,), offset=32), tensors=2),
    "an alignment of nothing": a_gguf(text(b"general.alignment") + struct.pack("<II", 4, 0), notes=1),
    "cut off": a_gguf(tensor(b"a", (8,)), tensors=1)[:40],
}


class Call:
    """What a pickle of bad intent is made of."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def a_zip(data: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/version", b"3\n")
        archive.writestr("model/byteorder", b"little")
        for name, content in others.items():
            archive.writestr(f"model/data/{name}", content)
    return buffer.getvalue()


def saved(content: Any) -> bytes:
    torch.save(content, buffer := BytesIO())
    return buffer.getvalue()


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def pths() -> dict[str, bytes]:
    plain = saved({"a": torch.zeros(8)})
    return {
        "a compressed list": a_zip(pickled({"a": 1}) + bytes(2**28), zipfile.ZIP_DEFLATED),
        "compressed weights": a_zip(pickled({"a": 1}), zipfile.ZIP_DEFLATED, **{"0": bytes(2**28)}),
        "a list of 17 MB": a_zip(pickled(list(range(6 * 10**6)))),
        "a command": a_zip(pickled({"a": Call(Path.touch, Path("ran"))})),
        "a terabyte of zeros": a_zip(pickled({"a": Call(bytearray, 10**12)})),
        "two lists": a_zip(pickled({"a": 1}), **{"data.pkl": b""}),
        "nothing of torch's": zipped_text(),
        "an old file with a command": pickled(Call(Path.touch, Path("ran"))),
        "an old file of zeros": pickled(0x1950A86A20F9469CFC6C) + pickled(Call(bytearray, 10**12)),
        "a newer protocol": a_zip(pickle.dumps({"a": Call(Path.touch, Path("ran"))}, protocol=4)),
        "a tensor larger than its bytes": saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
        "no strides": saved({"a": torch.eye(3).to_sparse()}),
        "cut off": plain[: len(plain) // 2],
    }


def zipped_text() -> bytes:
    with zipfile.ZipFile(buffer := BytesIO(), "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    """As a header and as weights, in one sentence that names the file."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    for read in (read_header, load_state):
        with pytest.raises(ShotError, match=rf"^model: {path} is damaged or not a file of plain weights .*again$"):
            read(path)


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUFS[name])
    for read in (read_header, load_state):
        with pytest.raises(ShotError, match=rf"^model: {path} is damaged or not a file of plain weights .*again$"):
            read(path)


@pytest.mark.parametrize("name", pths())
def test_a_torch_file_that_is_no_state_dict_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing in it runs, nothing in it grows."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    path.write_bytes(pths()[name])
    with pytest.raises(ShotError, match=rf"^model: {path} "):
        load_state(path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def sound(tmp_path: Path) -> list[Path]:
    """One file of each kind, with marks, notes and blocks."""
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    layer = {
        "a.weight": torch.randn(8, 8).to(torch.float8_e4m3fn),
        "a.weight_scale": torch.ones(1),
        "a.comfy_quant": note,
    }
    save_file({**layer, "b": torch.randn(3)}, tmp_path / "a.safetensors", {"about": "it"})
    blocks = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "b.gguf", blocks)
    for name, zipped in (("c.pth", True), ("d.pth", False)):
        torch.save({"a": torch.randn(4, 4)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    return [tmp_path / name for name in ("a.safetensors", "b.gguf", "c.pth", "d.pth")]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_were_spoilt_by_chance_are_read_or_refused(sound: list[Path]) -> None:
    """Bytes changed, lost and added, mostly in the header, other ones each time: never anything but our sentence."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    outcomes: Counter[bool] = Counter()
    for path in sound:
        whole = path.read_bytes()
        for _ in range(150):
            path.unlink()  # written over, it would change what is mapped
            path.write_bytes(spoilt(whole, draw))
            for read in (read_header, lambda path: open_weights(path).load()):
                try:
                    read(path)
                    outcomes[True] += 1
                except ShotError as error:
                    assert len(str(error).splitlines()) == 1
                    outcomes[False] += 1
    assert min(outcomes.values()) > 10 and len(outcomes) == 2


def spoilt(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(len(data), 900))
        match draw.randrange(4):
            case 0:
                del data[at : at + draw.randrange(1, 9)]
            case 1:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            case _:
                data[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256), data[at] ^ 1 << draw.randrange(8)))
    return bytes(data)


LIMITED = """
import resource, sys
from pathlib import Path
from rushes.model.packed import Packed
from rushes.model.quantised import open_weights
from rushes.model.reading import load_state
from rushes.shot import ShotError
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_state(path)
    except ShotError as error:
        assert "annot allocate" not in str(error) and "MemoryError" not in str(error), error
    else:
        raise SystemExit(f"{path} was read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and its count are Linux's")
def test_hostile_files_are_refused_in_400_megabytes(tmp_path: Path, environment: dict[str, str]) -> None:
    """All of the above in a process that may take no more than that beside torch itself."""
    for suffix, files in (("safetensors", SAFETENSORS), ("gguf", GGUFS), ("pth", pths())):
        for i, content in enumerate(files.values()):
            (tmp_path / f"{i:03}.{suffix}").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr


def write_gguf(path: Path, blocks: Any = None) -> None:
    """blocks: a second tensor, in Q8_0, with a note on its shape."""
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_tensor("a", np.ones((2, 3), dtype=np.float32))
    if blocks is not None:
        writer.add_array("comfy.gguf.orig_shape.b", [2, 2, 32])
        writer.add_tensor("b", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "pth"])
@pytest.mark.parametrize("called", ["safetensors", "gguf", "pth"])
def test_a_file_under_another_kinds_name_is_told_by_its_content(tmp_path: Path, kind: str, called: str) -> None:
    path = tmp_path / f"wan.{called}"
    if kind == "gguf":
        write_gguf(path)
    elif kind == "pth":
        torch.save({"a": torch.ones(2, 3)}, path)
    else:
        save_file({"a": torch.ones(2, 3)}, path)
    if kind == called:
        assert load_state(path)["a"].shape == (2, 3)
        return
    name = {"safetensors": "a safetensors", "gguf": "a GGUF", "pth": "a torch"}[kind]
    with pytest.raises(
        ShotError, match=rf"{path.name} is {name} file by what is in it; the name wan\.{kind} is allowed"
    ):
        load_state(path)


def test_files_that_lie_only_a_little_are_read(tmp_path: Path) -> None:
    """No data at all, tensors without values, data that begin at an odd byte, and holes: other programs write them."""
    odd = safetensors(
        json.dumps({"a": ENTRY, "b": {"dtype": "F16", "shape": [0, 4], "data_offsets": [24, 24]}}).encode() + b" "
    )
    path = tmp_path / "odd.safetensors"
    path.write_bytes(odd[:-64] + np.arange(6, dtype=np.float32).tobytes())
    state = load_state(path)
    assert torch.equal(state["a"], torch.arange(6.0).view(2, 3)) and state["b"].shape == (0, 4)
    save_file({}, tmp_path / "nothing.safetensors")
    assert load_state(tmp_path / "nothing.safetensors") == {}


def test_a_note_on_a_shape_changes_no_bytes(tmp_path: Path) -> None:
    """Also of blocks, whose rows are those that were written; a note that cannot be is not followed."""
    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    opened = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))
    for noted, shape in (((16, 16), (16, 16)), ((2, 2, 64), (2, 2, 64)), ((5, 5), (4, 64)), ((-4, -64), (4, 64))):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
        writer.add_array("comfy.gguf.orig_shape.a", list(noted))
        writer.add_tensor("a", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        weight = load_state(tmp_path / "a.gguf")["a"]
        assert isinstance(weight, Packed) and weight.shape == shape
        assert torch.equal(weight.unpack(torch.float32), opened.view(shape))


def test_our_reading_is_that_of_safetensors(tmp_path: Path) -> None:
    """Every type that both know, in one file, to the bit."""
    state = {
        str(dtype): (torch.randn(3, 5) * 9).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
                      torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    }  # fmt: skip
    save_file(state, tmp_path / "all.safetensors")
    expected = load_file(tmp_path / "all.safetensors")
    got = load_state(tmp_path / "all.safetensors")
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype is tensor.dtype
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_parameter_and_an_ordered_state_are_plain_too(tmp_path: Path) -> None:
    """What torch's modules give, with the metadata that they hang on it."""
    layer = torch.nn.Linear(3, 2)
    torch.save(OrderedDict(w=layer.weight, **layer.state_dict()), tmp_path / "a.pth")
    assert set(load_state(tmp_path / "a.pth")) == {"w", "weight", "bias"}


@pytest.mark.skipif(sys.platform != "linux", reason="only there a mapping may be larger than memory without a claim")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    """Two terabytes, all of them a hole: nothing is claimed, and writing to a tensor does not reach the file."""
    size = 2 * 2**40
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    tensor = load_state(path)["a"]
    assert tensor.shape == (size // 4,) and tensor[-1] == 0
    tensor[0] = 1.0
    assert load_state(path)["a"][0] == 0
    whole = map_file(path)
    assert len(whole) == 8 + len(header) + size
