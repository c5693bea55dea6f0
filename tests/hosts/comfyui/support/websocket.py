# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""As much of a WebSocket client (RFC 6455) as ComfyUI's events need: text out, text and binary in, over localhost."""

from __future__ import annotations

import base64
import os
import socket
import struct
import time

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), 10)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        self._waiting = b""
        while b"\r\n\r\n" not in self._waiting:
            self._waiting += self._more(time.monotonic() + 10)
        head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0], head

    def send(self, text: str) -> None:
        self._send(TEXT, text.encode())

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """(TEXT or BINARY, payload) of the next message; None when none came in time. Raises ConnectionError."""
        end = time.monotonic() + timeout
        kind, payload = 0, b""
        while True:
            try:
                final, opcode, part = self._frame(end)
            except TimeoutError:
                return None
            if opcode == PING:
                self._send(PONG, part)
            elif opcode == CLOSE:
                raise ConnectionError("the server has closed the connection")
            elif opcode != PONG:
                kind, payload = opcode or kind, payload + part
                if final:
                    return kind, payload

    def close(self) -> None:
        self._socket.close()

    def _frame(self, end: float) -> tuple[bool, int, bytes]:
        """One whole frame; what has come of an unfinished one stays for the next call."""
        while (found := self._parsed()) is None:
            self._waiting += self._more(end)
        return found

    def _parsed(self) -> tuple[bool, int, bytes] | None:
        data = self._waiting
        if len(data) < 2:
            return None
        size, start = data[1] & 127, 2
        for code, form, width in ((126, ">H", 2), (127, ">Q", 8)):
            if data[1] & 127 == code:
                if len(data) < 2 + width:
                    return None
                size, start = struct.unpack(form, data[2 : 2 + width])[0], 2 + width
        if len(data) < start + size:
            return None
        self._waiting = data[start + size :]
        return bool(data[0] & 128), data[0] & 15, data[start : start + size]

    def _more(self, end: float) -> bytes:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server has gone")
        return data

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        head = bytes([128 | opcode]) + (bytes([128 | size]) if size < 126 else bytes([254]) + struct.pack(">H", size))
        self._socket.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))
