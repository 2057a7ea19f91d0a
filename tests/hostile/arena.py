"""The helper of these tests: a server under attack, and the proof that nobody else noticed.

undisturbed() runs a server with bystanders on it. Once the attack is over and its connections are gone, the
bystanders must still get what a fresh client publishes, and the log must have got the lines that were expected.
"""

import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from tests.harness import PATIENCE_S, FramesPeer, Json, LinesPeer, Running, read_until, running_server
from trisync.connection import Connection
from trisync.outbox import Outbox
from trisync.registry import Registry

MIB = 1024 * 1024
LOWEST_LIMIT = 1024
"""The smallest `message_bytes_max`: what is about the limit is quicker to send there."""

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA
FIN = 0x80
MASK = b"\x37\xfa\x21\x3d"

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPTANCE = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of that key, RFC 6455, section 1.3


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


class RawWebSocket(RawFrames):
    """A WebSocket client made by hand, that may send anything."""

    async def shake_hands(self, behind: bytes = b"") -> None:
        """Upgrade; `behind` is sent in the same packet."""
        await self.send_raw(UPGRADE + behind)
        head, _, self._rest = (await read_until(self.stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert ACCEPTANCE in head

    async def send_bytes(self, payload: bytes) -> None:
        await self.stream.send_all(frame(FIN | TEXT, payload))

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
        opcode, payload = await self.receive_frame()
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


class WatchedRegistry(Registry):
    """A registry that remembers who was here."""

    def __init__(self, connections_max: int) -> None:
        super().__init__(connections_max)
        self.seen: list[Connection] = []

    @contextmanager
    def admit(self, connection: Connection, session: Any) -> Iterator[bool]:
        with super().admit(connection, session) as admitted:
            if admitted:
                self.seen.append(connection)
            yield admitted


class Arena:
    """A running server, the way to attack it, and what can be seen of it from inside."""

    def __init__(self, running: Running, registry: WatchedRegistry, peaks: dict[Outbox, int]) -> None:
        self.running = running
        self.registry = registry
        self._peaks = peaks

    @asynccontextmanager
    async def tcp(self) -> AsyncIterator[RawPeer]:
        """A client of the TCP door that has said nothing yet."""
        async with await self.running.tcp() as stream:
            yield RawPeer(stream)

    @asynccontextmanager
    async def web(self) -> AsyncIterator[RawHttp]:
        """A client of the web door that has said nothing yet."""
        async with await self.running.web() as stream:
            yield RawHttp(stream)

    @asynccontextmanager
    async def frames(self) -> AsyncIterator[RawFrames]:
        """A client of the frames dialect that has said nothing yet."""
        async with await self.running.tcp() as stream:
            yield RawFrames(stream)

    @asynccontextmanager
    async def websocket(self, behind: bytes = b"") -> AsyncIterator[RawWebSocket]:
        """A WebSocket client after its handshake; `behind` is sent in the handshake's packet."""
        async with await self.running.web() as stream:
            peer = RawWebSocket(stream)
            await peer.shake_hands(behind)
            yield peer

    @asynccontextmanager
    async def speaking(self, dialect: str) -> AsyncIterator[RawPeer]:
        """A client of a machine dialect that has said hello in it."""
        opened: AbstractAsyncContextManager[RawPeer] = {
            "lines": self.tcp,
            "frames": self.frames,
            "websocket": self.websocket,
        }[dialect]()
        async with opened as peer:
            await peer.still_served()
            yield peer

    def connection_of(self, peer: LinesPeer) -> Connection:
        """The server's side of a peer."""
        assert isinstance(peer.stream, trio.SocketStream)
        host, port = peer.stream.socket.getsockname()
        (found,) = [
            connection
            for connection in self.registry.seen
            if connection.ending is None and connection.peer.endswith(f" {host}:{port}")
        ]
        return found

    def peak_backlog(self, connection: Connection) -> int:
        """The most that a connection ever had to send, in bytes."""
        return self._peaks.get(connection.outbox, 0)

    async def only_remain(self, count: int) -> None:
        """Wait until so many connections are left."""
        with trio.fail_after(PATIENCE_S):
            while len(self.registry) > count:
                await self.registry.left()


Undisturbed = Callable[..., AbstractAsyncContextManager[Arena]]


class Spectacle:
    """What undisturbed() needs of a test: its folder, its log, its patches."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._caplog = caplog
        self._monkeypatch = monkeypatch

    @asynccontextmanager
    async def undisturbed(self, *, log_lines: int = 1, **settings: Any) -> AsyncIterator[Arena]:
        """Run a server for an attack of which `log_lines` lines may be logged, and see that others are served.

        Everything opened in the block must be closed in it. The defaults of `settings` are the product's.
        """
        self._caplog.set_level(logging.INFO)
        registries: list[WatchedRegistry] = []
        peaks: dict[Outbox, int] = {}
        self._monkeypatch.setattr("trisync.server.Registry", lambda most: registries.append(WatchedRegistry(most)))
        self._monkeypatch.setattr(
            "trisync.server.Registry", lambda most: registries.append(WatchedRegistry(most)) or registries[-1]
        )
        self._watch_backlogs(peaks)
        async with running_server(self._folder, **settings) as running:
            async with running.lines() as alice, running.websocket() as bob:
                await alice.request("subscribe", channel="bystanders")
                await bob.request("subscribe", channel="bystanders")
                arena = Arena(running, registries[0], peaks)
                yield arena
                await arena.only_remain(2)
                async with running.lines() as fresh:
                    assert (await fresh.request("publish", channel="bystanders", data="all well"))["op"] == "ok"
                for bystander in (alice, bob):
                    (message,) = await bystander.receive_messages(1)
                    assert (message["offset"], message["data"]) == (1, "all well")
        said = [record for record in self._caplog.records if record.levelno >= logging.INFO]
        texts = [record.getMessage() for record in said]
        assert len(texts) == log_lines, texts
        assert not [record for record in said if record.exc_info], texts
        assert not [text for text in texts if len(text.splitlines()) != 1 or len(text) > 1000], texts

    def _watch_backlogs(self, peaks: dict[Outbox, int]) -> None:
        write = Outbox.write

        def watched_write(outbox: Outbox, data: bytes) -> None:
            write(outbox, data)
            peaks[outbox] = max(peaks.get(outbox, 0), outbox.backlog)

        self._monkeypatch.setattr(Outbox, "write", watched_write)


@contextmanager
def memory_bounded(bytes_max: int) -> Iterator[None]:
    """See that Python never holds so many bytes more than at the beginning, the test's own included."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < bytes_max, f"{(peak - before) / MIB:.1f} MiB"
    finally:
        tracemalloc.stop()
