# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Messages on the pipe: what goes in comes out, and nothing that is no message stops the reader."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from rushes.jobs.wire import MAX_BYTES, WireError, encode, read


def _message(**fields: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", **fields}


def _all(data: bytes) -> list[Any]:
    """Messages and errors, in order, to the end."""
    stream, found = io.BufferedReader(io.BytesIO(data)), []  # type: ignore[arg-type]
    while True:
        try:
            message = read(stream)
        except WireError as error:
            found.append(error)
            continue
        if message is None:
            return found
        found.append(message)


def test_messages_come_back() -> None:
    """Any text, nothing, and ten million characters."""
    sent = [
        _message(id=1, method="submit", params={"prompt": 'a "red" ball\nÄ 日本 \ud800'}),
        _message(id=2, result=None),
        _message(method="note", params={"text": "x" * 10_000_000}),
    ]
    assert _all(b"".join(encode(message) for message in sent)) == sent


def test_other_headers_are_read_over() -> None:
    """As the protocol allows: further headers, any case, bare line feeds."""
    body = json.dumps(_message(id=1)).encode()
    for headers in (b"Content-Type: x; charset=utf-8\r\nContent-Length: %d\r\n\r\n", b"content-length:%d\n\n"):
        assert _all(headers % len(body) + body) == [_message(id=1)]


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\n", b"\x00\xff\xfe" * 50 + b"\n", b"{}\n", b"x" * 10_000 + b"\n", b"Content-Length: -1\r\n",
        b"\r\n\r\n",
        b"Content-Length: 3\r\n\r\n[1]", b"Content-Length: 2\r\n\r\n{}", b"Content-Length: 4\r\n\r\n\xff\xff\xff\xff",
    ],
    ids=repr,
)  # fmt: skip
def test_garbage_is_told_and_survived(garbage: bytes) -> None:
    """At most one error for each stretch, and the second message behind it arrives at the latest."""
    found = _all(garbage + encode(_message(id=1)) + encode(_message(id=2)))
    assert found[-1] == _message(id=2)
    assert sum(isinstance(item, WireError) for item in found) <= 2


def test_noise_never_hangs_or_breaks_the_reader() -> None:
    """Random bytes between messages; whatever is lost, the reader comes to the end."""
    dice = random.Random(random.SystemRandom().random())
    for _ in range(50):
        data = b"".join(
            dice.randbytes(dice.randrange(60)) if dice.random() < 0.5 else encode(_message(id=dice.randrange(99)))
            for _ in range(8)
        )
        for item in _all(data):
            assert isinstance(item, WireError) or item["jsonrpc"] == "2.0"


def test_a_message_that_is_cut_off_is_told() -> None:
    whole = encode(_message(id=1, method="x"))
    for end in range(1, len(whole)):
        (found,) = _all(whole[:end])
        assert isinstance(found, WireError)


def test_a_message_too_long_is_skipped() -> None:
    """Not kept in memory, and what follows arrives."""
    data = b"Content-Length: %d\r\n\r\n" % (MAX_BYTES + 1) + b" " * (MAX_BYTES + 1) + encode(_message(id=3))
    error, message = _all(data)
    assert "up to" in str(error) and message == _message(id=3)
