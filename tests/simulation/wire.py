"""A client's side of a connection in the simulated network: JSON objects to and fro, in any of the machine dialects."""

import base64
import random
from typing import Literal

import msgspec
import trio

from tests.simulation.history import Json
from tests.simulation.links import SimStream
from tests.simulation.network import Network
from trisync.loadtest.transports import CLOSE, HANDSHAKE_END, PING, PONG, SPLIT, TEXT, join_frames, join_lines

Dialect = Literal["lines", "frames", "ws"]


class Lost(Exception):
    """The connection is over, for whatever reason."""


class Wire:
    """One connection, open and past its handshake. Made by connect()."""

    def __init__(self, stream: SimStream, dialect: Dialect, source: random.Random) -> None:
        self.stream = stream
        self._dialect = dialect
        self._random = source
        self._split = SPLIT[dialect]
        self._rest = b""
        self._sending = trio.Lock()

    @staticmethod
    async def connect(network: Network, dialect: Dialect, source: random.Random) -> "Wire":
        """Raises Lost where there is no server, or not for long enough."""
        try:
            stream = await network.connect("web" if dialect == "ws" else "tcp")
        except OSError as error:
            raise Lost from error
        wire = Wire(stream, dialect, source)
        if dialect == "ws":
            with trio.move_on_after(10) as waiting:
                await wire._shake_hands()
            if waiting.cancelled_caught:
                wire.hang_up()
                raise Lost("no handshake")
        return wire

    async def _shake_hands(self) -> None:
        key = base64.b64encode(self._random.randbytes(16))
        await self._write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % key
        )
        answer = b""
        while HANDSHAKE_END not in answer:
            answer += await self._read()
        head, self._rest = answer.split(HANDSHAKE_END, 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.hang_up()
            raise Lost(head.decode("latin-1"))

    async def send(self, *requests: Json) -> None:
        """Send requests in one go. Raises Lost."""
        payloads = [msgspec.json.encode(request) for request in requests]
        match self._dialect:
            case "lines":
                data = join_lines(payloads)
            case "frames":
                data = join_frames(payloads)
            case "ws":
                data = b"".join(self._frame(TEXT, payload) for payload in payloads)
        await self._write(data)

    async def receive(self) -> list[Json]:
        """The next messages, at least one. Raises Lost."""
        messages: list[Json] = []
        while not messages:
            data = self._rest + await self._read()
            start = 0
            for piece in self._split(data):
                start = piece.end
                if piece.opcode == TEXT:
                    messages.append(msgspec.json.decode(piece.payload))
                elif piece.opcode == PING:
                    await self._write(self._frame(PONG, piece.payload))
                elif piece.opcode == CLOSE:
                    await self._write(self._frame(CLOSE, piece.payload))
            self._rest = data[start:]
        return messages

    def hang_up(self) -> None:
        """Close the connection."""
        self.stream.hang_up()

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        """A masked frame, as clients send them (RFC 6455, section 5.2)."""
        mask = self._random.randbytes(4)
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        pattern = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")
        return bytes([0x80 | opcode]) + length + mask + masked

    async def _write(self, data: bytes) -> None:
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Lost from error

    async def _read(self) -> bytes:
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Lost from error
        if not data:
            raise Lost("the server hung up")
        return data
