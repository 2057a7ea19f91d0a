"""The client's side of the three machine dialects: payloads to bytes, bytes to pieces, and WebSocket's handshake.

Sans-IO and stateless: whoever reads keeps the bytes behind the last whole piece. It is written anew and not taken
from the server, whose mistakes it would share.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from trisync.loadtest.plan import Transport

FINAL, OPCODE = 0x80, 0x0F
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
_RESERVED, _MASKED = 0x70, 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

HANDSHAKE_END = b"\r\n\r\n"


class Malformed(Exception):
    """Bytes that no server of this protocol sends."""


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of bytes that are not the JSON that was expected, not UTF-8, or nested too deep."""

Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""An integer as all JSON has it (RFC 8259, section 6); larger ones could not be counted with."""


class Piece(NamedTuple):
    """A whole message, or a control frame, in what was read."""

    opcode: int
    """TEXT, or WebSocket's CLOSE, PING and PONG."""
    payload: bytes
    end: int
    """Where the bytes behind it begin."""


Split = Callable[[bytes], list[Piece]]
Join = Callable[[Sequence[bytes]], bytes]


def split_lines(data: bytes) -> list[Piece]:
    """The whole lines in `data`."""
    pieces = []
    start = 0
    for line in data.split(b"\n")[:-1]:
        start += len(line) + 1
        pieces.append(Piece(TEXT, line, start))
    return pieces


def split_frames(data: bytes) -> list[Piece]:
    """The whole frames in `data`. Raises Malformed."""
    pieces = []
    start, size = 0, len(data)
    while size - start >= 4:
        length = int.from_bytes(data[start : start + 4], "big")
        if not 5 <= length < 1 << 24:
            raise Malformed(f"a frame of length {length}")
        end = start + length
        if end > size:
            break
        pieces.append(Piece(TEXT, data[start + 4 : end], end))
        start = end
    return pieces


def split_websocket(data: bytes) -> list[Piece]:
    """The whole WebSocket frames in `data`. Raises Malformed, also at fragments: this protocol's servers send none."""
    pieces = []
    start, size = 0, len(data)
    while size - start >= 2:
        head, length = data[start], data[start + 1]
        body = start + 2
        if length > 125:
            width = {126: 2, 127: 8}.get(length)
            if width is None:
                raise Malformed("a masked frame from a server")
            body += width
            if body > size:
                break
            length = int.from_bytes(data[start + 2 : body], "big")
        opcode = head & OPCODE
        if not head & FINAL or head & _RESERVED or opcode not in (TEXT, CLOSE, PING, PONG):
            raise Malformed(f"a frame that begins with {head:#04x}")
        end = body + length
        if end > size:
            break
        pieces.append(Piece(opcode, data[body:end], end))
        start = end
    return pieces


SPLIT: dict[Transport, Split] = {"lines": split_lines, "frames": split_frames, "ws": split_websocket}
"""The whole pieces in some bytes, for each transport."""


def _lines_of_lines(data: bytes) -> tuple[bytes, int]:
    end = data.rfind(b"\n") + 1
    return data[:end], end


def _lines_of_frames(data: bytes) -> tuple[bytes, int]:
    return _uniform_lines(data, 4, int.from_bytes(data[:4], "big"))


def _lines_of_websocket(data: bytes) -> tuple[bytes, int]:
    if len(data) < 2 or data[0] != FINAL | TEXT or data[1] > 125:
        return b"", 0
    return _uniform_lines(data, 2, 2 + data[1])


def _uniform_lines(data: bytes, header_bytes: int, size: int) -> tuple[bytes, int]:
    count = len(data) // size if size > header_bytes else 0
    if not count:
        return b"", 0
    lines = bytearray(data[: count * size])
    for column in range(header_bytes):
        if lines[column::size] != data[column : column + 1] * count:
            return b"", 0
        lines[column::size] = b"\n" * count
    return bytes(lines), count * size


AS_LINES: dict[Transport, Callable[[bytes], tuple[bytes, int]]] = {
    "lines": _lines_of_lines,
    "frames": _lines_of_frames,
    "ws": _lines_of_websocket,
}
"""The messages that some bytes begin with, as JSON lines, and how many bytes these were; or nothing and 0.

A shortcut for long runs of answers, which are nearly always of one size: all headers are checked at once, as columns
of a table. Where it gives nothing, SPLIT does."""


def join_lines(payloads: Sequence[bytes]) -> bytes:
    """One payload a line."""
    return b"\n".join(payloads) + b"\n"


def join_frames(payloads: Sequence[bytes]) -> bytes:
    """Each payload behind its length, which includes the four bytes of itself."""
    return b"".join([(len(payload) + 4).to_bytes(4, "big") + payload for payload in payloads])


JOIN: dict[Transport, Join] = {"lines": join_lines, "frames": join_frames}
"""Payloads as bytes, for the transports that need no Masker."""


class Masker:
    """A WebSocket client's sending side. One random mask serves a connection: its aim is proxies, not secrecy."""

    def __init__(self) -> None:
        self._mask = os.urandom(4)
        self._pattern = self._mask * 256
        self._run_pattern = b""
        self._short = [bytes((FINAL | TEXT, _MASKED | length)) + self._mask for length in range(126)]

    def join(self, payloads: Sequence[bytes]) -> bytes:
        """Each payload as a masked text frame; many of one size, as they mostly are, are masked in one go."""
        if len(payloads) > 1 and len(set(map(len, payloads))) == 1:
            return self._join_run(payloads)
        return b"".join([self._header(len(payload)) + self._masked(payload) for payload in payloads])

    def _join_run(self, payloads: Sequence[bytes]) -> bytes:
        header = self._header(len(payloads[0]))
        size = len(header) + len(payloads[0])
        if len(self._run_pattern) != size:
            mask = self._mask * (size // 4 + 1)
            self._run_pattern = bytes(len(header)) + mask[: size - len(header)]
        frames = header + header.join(payloads)
        number = int.from_bytes(frames, "little") ^ int.from_bytes(self._run_pattern * len(payloads), "little")
        return number.to_bytes(len(frames), "little")

    def control(self, opcode: int, payload: bytes) -> bytes:
        """A masked control frame, of at most 125 bytes."""
        return bytes((FINAL | opcode, _MASKED | len(payload))) + self._mask + self._masked(payload)

    def _header(self, length: int) -> bytes:
        if length < 126:
            return self._short[length]
        if length < 1 << 16:
            return bytes((FINAL | TEXT, _MASKED | 126)) + length.to_bytes(2, "big") + self._mask
        return bytes((FINAL | TEXT, _MASKED | 127)) + length.to_bytes(8, "big") + self._mask

    def _masked(self, payload: bytes) -> bytes:
        # As one big number: about 0.3 µs for 100 bytes.
        size = len(payload)
        if size > len(self._pattern):
            self._pattern = self._mask * (size // 4 + 1)
        number = int.from_bytes(payload, "little") ^ int.from_bytes(self._pattern[:size], "little")
        return number.to_bytes(size, "little")


class Handshake:
    """The opening handshake of one WebSocket (RFC 6455, section 4.1)."""

    def __init__(self, host: str, port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        key = base64.b64encode(os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self.request = (
            b"GET / HTTP/1.1\r\nHost: %b:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
        ) % (name.encode(), port, key)

    def check(self, answer: bytes) -> None:
        """Judge the server's whole answer. Raises Malformed."""
        status, *lines = answer.split(b"\r\n")
        if status.split(b" ")[1:2] != [b"101"]:
            raise Malformed(f"the WebSocket handshake was answered {status.decode('latin-1')!r}")
        headers = [line.partition(b":") for line in lines]
        if self._accept not in [value.strip() for name, _, value in headers if name.lower() == b"sec-websocket-accept"]:
            raise Malformed("the WebSocket handshake was accepted with a wrong key")
