# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Messages between host and worker: JSON-RPC 2.0, each behind a Content-Length header, as in the language-server
protocol. Standard library only, Python 3.9 to 3.14: hosts vendor this file beside client.py.
"""

from __future__ import annotations

import json
import re
from typing import Any, BinaryIO

PROTOCOL = 1  # of the methods and their fields; client and worker must have the same
MAX_BYTES = 64 * 2**20  # of one message; a longer one is skipped
MAX_LINE = 4096
_HEADER = re.compile(rb"[A-Za-z][A-Za-z-]*:")  # others than ours are allowed, and read over

Message = dict[str, Any]


class WireError(ValueError):
    """What came is no message. The reader has skipped it and can go on."""


def encode(message: Message) -> bytes:
    """A message with its header."""
    body = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def read(stream: BinaryIO) -> Message | None:
    """The next message; None at the end of the stream. Raises WireError for anything else, once for each stretch of it.

    The stream must be buffered: a read of n bytes waits for all of them.
    """
    length, garbage, line = None, b"", b""
    while True:
        before, line = line, stream.readline(MAX_LINE)
        if not line:
            if before:
                raise WireError("the stream ended inside a message")
            return None
        name, colon, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and colon and value.strip().isdigit():
            length = int(value)
        elif line in (b"\r\n", b"\n"):
            if length is not None:
                break
        elif length is None and not _HEADER.match(line):
            garbage = garbage or line[:40]
    body = _take(stream, length)
    if garbage:
        raise WireError(f"got {garbage!r} where a header was expected; the message behind it is lost too")
    if body is None:
        raise WireError(f"got a message of {length} bytes; up to {MAX_BYTES} are allowed")
    if len(body) < length:
        raise WireError("the stream ended inside a message")
    try:
        message = json.loads(body)
    except ValueError as error:
        raise WireError(f"got a message that is not JSON ({error})") from error
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise WireError("got JSON that is no JSON-RPC 2.0 object")
    return message


def _take(stream: BinaryIO, length: int) -> bytes | None:
    """The body, or None for one that is too long, which is read and forgotten."""
    if length <= MAX_BYTES:
        return stream.read(length)
    while length > 0:
        part = stream.read(min(length, 2**20))
        if not part:
            break
        length -= len(part)
    return None
