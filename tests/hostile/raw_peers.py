"""Clients that may send anything: raw bytes in each dialect of the TCP door, HTTP and WebSocket made by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from tests.harness import PATIENCE_S, FramesPeer, Json, LinesPeer, read_until

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA
FIN = 0x80
MASK = b"\x37\xfa\x21\x3d"

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPTANCE = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of that key, RFC 6455, section 1.3

NOT_UTF8 = {
    "a byte that never occurs": b"\xff",
    "a continuation without a beginning": b"\x80",
    "a beginning without a continuation": b"\xc3",
    "an overlong slash": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates (CESU-8)": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "half a character at the end": b"\xf0\x9f\x98",
    "Latin-1": "é".encode("latin-1"),
}
"""What no UTF-8 decoder may accept, alone or between ASCII."""


def frame(head: int, payload: bytes = b"", *, mask: bytes = MASK, length: int | None = None) -> bytes:
    """A client's WebSocket frame; `mask` may be empty (which breaks the RFC), `length` may lie."""
    size = len(payload) if length is None else length
    masked = 0x80 if mask else 0
    if size < 126:
        header = bytes((head, masked | size))
    elif size < 0x10000:
        header = bytes((head, masked | 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((head, masked | 127)) + size.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return header + mask + payload


class RawPeer(LinesPeer):
    """A client that may send anything. What it is sent is read as JSON lines."""

    stream: trio.SocketStream

    def framed(self, payload: bytes) -> bytes:
        """A payload as this dialect sends it."""
        return payload + b"\n"

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(PATIENCE_S):
            await self.stream.send_all(data)

    async def pour(self, data: bytes, times: int) -> None:
        """Send the same bytes again and again, for as long as the server takes them."""
        try:
            for _ in range(times):
                await self.send_raw(data)
        except trio.BrokenResourceError:
            pass

    @asynccontextmanager
    async def dripping(self, drop: bytes) -> AsyncIterator[None]:
        """Send the same few bytes now and then, for the length of a block."""

        async def drip() -> None:
            while True:
                await self.pour(drop, 1)
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            yield
            nursery.cancel_scope.cancel()

    async def refused(self, payload: bytes) -> Json:
        """Send a payload, which must be answered with an error; returns that."""
        await self.send_bytes(payload)
        return await self.receive_error()

    async def receive_error(self) -> Json:
        """The next message, which must be an error."""
        error = await self.receive()
        assert error["op"] == "error", error
        assert isinstance(error["message"], str)
        return error

    async def left_with(self, code: str) -> None:
        """The next message must be this error, which says that a retry is useless, and the server hang up behind it."""
        error = await self.receive_error()
        assert (error["code"], error["retry"]) == (code, False)
        assert await self.receive_rest() == b""

    async def receive_rest(self) -> bytes:
        """Everything up to the server's hanging up; a reset counts as that."""
        with trio.fail_after(PATIENCE_S):
            try:
                while chunk := await self.stream.receive_some(65536):
                    self._rest += chunk
            except trio.BrokenResourceError:
                pass
        rest, self._rest = self._rest, b""
        return rest

    async def still_served(self) -> None:
        """The conversation goes on."""
        assert await self.request("ping") == {"op": "pong", "id": 1}


class RawFrames(FramesPeer, RawPeer):
    """A client of the frames dialect that may send anything."""

    def framed(self, payload: bytes) -> bytes:
        return (len(payload) + 4).to_bytes(4, "big") + payload


class RawWebSocket(RawFrames):
    """A WebSocket client made by hand, that may send anything."""

    async def shake_hands(self, behind: bytes = b"") -> None:
        """Upgrade; `behind` is sent in the same packet."""
        await self.send_raw(UPGRADE + behind)
        head, _, self._rest = (await read_until(self.stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert ACCEPTANCE in head

    def framed(self, payload: bytes) -> bytes:
        return frame(FIN | TEXT, payload)

    async def send_bytes(self, payload: bytes) -> None:
        await self.stream.send_all(self.framed(payload))

    async def receive_frame(self) -> tuple[int, bytes]:
        """The opcode and payload of the server's next frame, which must be whole, unmasked and plain."""
        with trio.fail_after(PATIENCE_S):
            head, length = await self._exactly(2)
            assert head & 0xF0 == FIN, hex(head)
            assert length < 0x80, "servers do not mask"
            if length >= 126:
                length = int.from_bytes(await self._exactly(2 if length == 126 else 8), "big")
            return head & 0x0F, await self._exactly(length)

    async def receive_bytes(self) -> bytes:
        while (received := await self.receive_frame())[0] == PING:
            await self.send_raw(frame(FIN | PONG, received[1]))
        opcode, payload = received
        if opcode == CLOSE:
            raise EOFError(payload)
        assert opcode == TEXT, (opcode, payload)
        return payload

    async def receive_close(self) -> tuple[int, str]:
        """The Close frame, which must come next, and be the last that comes: its code and reason."""
        opcode, payload = await self.receive_frame()
        assert opcode == CLOSE, (opcode, payload)
        assert await self.receive_rest() == b""
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def closed_with(self, code: int) -> None:
        """The next frame, and the last one, must be a Close of this code."""
        assert (await self.receive_close())[0] == code


class Response(NamedTuple):
    """An answer of the web door."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawHttp(RawPeer):
    """An HTTP client made by hand, that may send anything."""

    async def get_response(self, *, to_head: bool = False) -> Response:
        """The next response; one to a HEAD request has no body, whatever its length is said to be."""
        while b"\r\n\r\n" not in self._rest:
            with trio.fail_after(PATIENCE_S):
                chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError(self._rest)
            self._rest += chunk
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = 0 if to_head else int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            with trio.fail_after(PATIENCE_S):
                chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError(self._rest)
            self._rest += chunk
        body, self._rest = self._rest[:length], self._rest[length:]
        return Response(int(status), headers, body)

    async def refused_with(self, status: int) -> dict[str, str]:
        """The next answer must have this status, say why in a line of text, and be the last; its headers."""
        response = await self.get_response()
        assert response.status == status, response
        assert response.body.startswith(b"%d " % status)
        assert len(response.body) < 1000
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["connection"] == "close"
        assert await self.receive_rest() == b""
        return response.headers
