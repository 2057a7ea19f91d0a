"""Bytes to payloads and back, for the machine dialects of TCP: JSON lines and length-prefixed frames.

Sans-IO: a splitter is fed what a read brought, however it was cut, and gives the whole payloads in it. What
cannot be framed ends a splitter for good: `failed` then says why, and it gives nothing more. WebSocket's
receiving side is in wsframes.py, people's text in console.py, server-sent events in event_stream.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Protocol

from trisync.wire.console import join_console
from trisync.wire.errors import WireError, too_large
from trisync.wire.event_stream import join_events
from trisync.wire.wsframes import text_header

FRAME_LENGTH_BYTES = 4
FRAME_LENGTH_MIN = FRAME_LENGTH_BYTES + 1
"""The length counts its own four bytes (Workerman's `frame`), and a payload has at least one."""


def join_lines(payloads: Iterable[bytes]) -> bytes:
    """One payload a line, each ended by LF."""
    return b"\n".join(payloads) + b"\n"


def join_frames(payloads: Iterable[bytes]) -> bytes:
    """Each payload behind its length as an unsigned 32-bit big-endian number that includes itself."""
    return b"".join([(len(payload) + 4).to_bytes(4, "big") + payload for payload in payloads])


def join_websocket(payloads: Iterable[bytes]) -> bytes:
    """Each payload as one unmasked, unfragmented text frame (RFC 6455, section 5.2)."""
    return b"".join([text_header(len(payload)) + payload for payload in payloads])


@dataclass(frozen=True, eq=False)
class Framing:
    """How payloads are told apart on a connection. Each is its own key: encoded runs are shared by framing."""

    name: str
    join: Callable[[Iterable[bytes]], bytes] = field(repr=False)
    """Payloads, at least one, to bytes."""


LINES = Framing("lines", join_lines)
FRAMES = Framing("frames", join_frames)
WEBSOCKET = Framing("websocket", join_websocket)
CONSOLE = Framing("console", join_console)


@cache
def events(mark: bytes) -> Framing:
    """Server-sent events with a mark in each id, or with b"" for none: see epoch_mark()."""
    return Framing("events", partial(join_events, mark=mark))


class Splitter(Protocol):
    """The receiving side of one connection's framing."""

    failed: WireError | None
    """Why nothing more can be read from this connection, once that is so."""

    @property
    def held_bytes(self) -> int | None:
        """How much is here of a message that has begun and not ended; None where there is none."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that `chunk` completes, in order. Never raises."""
        ...


class LineSplitter:
    """Payloads ended by LF or CRLF; empty lines are ignored, unless they mean something (a person's Enter)."""

    __slots__ = ("_keep_empty", "_limit", "_rest", "failed")

    def __init__(self, message_bytes_max: int, *, keep_empty: bool = False) -> None:
        self.failed: WireError | None = None
        self._limit = message_bytes_max
        self._keep_empty = keep_empty
        self._rest = bytearray()  # not bytes: a line that comes byte by byte must not cost its square

    @property
    def held_bytes(self) -> int | None:
        return len(self._rest) if self._rest and self._rest != b"\r" else None  # some send a CR behind their LF

    def feed(self, chunk: bytes) -> list[bytes]:
        if self.failed:
            return []
        if self._keep_empty and b"\0" in chunk:
            chunk = self._with_typed_ends(chunk)
        lines = chunk.split(b"\n")
        rest = lines.pop()
        bytes_most = len(self._rest) + len(chunk)  # that a line can have
        if self._rest and lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        if rest:
            self._rest += rest
        if b"\r" in chunk or (lines and lines[0].endswith(b"\r")):
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        if b"" in lines and not self._keep_empty:
            lines = [line for line in lines if line]
        return lines if bytes_most <= self._limit else self._refuse_too_large(lines)

    def _with_typed_ends(self, chunk: bytes) -> bytes:
        """`chunk` with CR LF for CR NUL: the same key, as some telnets send it (RFC 1123, section 3.3.1)."""
        if self._rest.endswith(b"\r") and chunk.startswith(b"\0"):
            chunk = b"\n" + chunk[1:]
        return chunk.replace(b"\r\0", b"\r\n")

    def _refuse_too_large(self, lines: list[bytes]) -> list[bytes]:
        """The lines before the first that is over the limit; from there on nothing is read."""
        for place, line in enumerate(lines):
            if len(line) > self._limit:
                self.failed = too_large(self._limit)
                return lines[:place]
        if len(self._rest) > self._limit + 1:  # one more: it may be the CR of a CRLF
            self.failed = too_large(self._limit)
            self._rest.clear()
        return lines

    def take_rest(self) -> bytes:
        """The line that has begun and not ended; it is forgotten here."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


class FrameSplitter:
    """Payloads behind a 4-byte length. A wrong length is found before anything is read or allocated for it."""

    __slots__ = ("_limit", "_rest", "_wanted", "failed")

    def __init__(self, message_bytes_max: int) -> None:
        self.failed: WireError | None = None
        self._limit = message_bytes_max + FRAME_LENGTH_BYTES
        self._rest = bytearray()
        self._wanted = FRAME_LENGTH_BYTES

    @property
    def held_bytes(self) -> int | None:
        return len(self._rest) or None

    def feed(self, chunk: bytes) -> list[bytes]:
        if self.failed:
            return []
        if self._rest:
            self._rest += chunk
            if len(self._rest) < self._wanted:
                return []
            chunk = bytes(self._rest)
            self._rest.clear()
        payloads: list[bytes] = []
        start, end = 0, len(chunk)
        self._wanted = FRAME_LENGTH_BYTES
        while end - start >= FRAME_LENGTH_BYTES:
            length = int.from_bytes(chunk[start : start + 4], "big")
            if length < FRAME_LENGTH_MIN or length > self._limit:
                self.failed = self._refusal(length)
                return payloads
            if end - start < length:
                self._wanted = length
                break
            payloads.append(chunk[start + 4 : start + length])
            start += length
        self._rest += chunk[start:]
        return payloads

    def _refusal(self, length: int) -> WireError:
        if length < FRAME_LENGTH_MIN:
            problem = f"a frame's length includes its own 4 bytes and is at least 5, not {length}"
            return WireError("bad_request", problem, closes=True)
        return too_large(self._limit - FRAME_LENGTH_BYTES)
