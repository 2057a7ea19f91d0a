"""The helper of these tests: a server under attack, and the proof that nobody else noticed.

undisturbed() runs a server with bystanders on it. Once the attack is over and its connections are gone, the
bystanders must still get what a fresh client publishes, and the log must have got the lines that were expected.
"""

import ctypes
import gc
import logging
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.harness import PATIENCE_S, LinesPeer, Peer, Running, running_server
from tests.hostile.raw_peers import RawFrames, RawHttp, RawPeer, RawWebSocket
from trisync.core.outbox import Outbox
from trisync.doors.sockets import SocketStream
from trisync.sessions.connection import Connection
from trisync.sessions.registry import Registry

MIB = 1024 * 1024
LOWEST_LIMIT = 1024
"""The smallest `message_bytes_max`: what is about the limit is quicker to send there."""

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python's socket module has no name for it


class News:
    """Wakes who waits for something inside the server, whenever anything happened there."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Something happened."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Wait for the next thing that happens."""
        await self._event.wait()


class WatchedRegistry(Registry):
    """A registry that remembers who was here."""

    def __init__(self, connections_max: int, news: News) -> None:
        super().__init__(connections_max)
        self.seen: list[Connection] = []
        self._news = news

    def admit(self, connection: Connection, session: Any) -> bool:
        admitted = super().admit(connection, session)
        if admitted:
            self.seen.append(connection)
            self._news.ring()
        return admitted


class Arena:
    """A running server, the way to attack it, and what can be seen of it from inside."""

    def __init__(self, running: Running, registry: WatchedRegistry, peaks: dict[Outbox, int], news: News) -> None:
        self.running = running
        self.registry = registry
        self._peaks = peaks
        self._news = news

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

    def _sides_of(self, peer: LinesPeer) -> list[Connection]:
        assert isinstance(peer.stream, trio.SocketStream)
        host, port = peer.stream.socket.getsockname()
        _, at_door = peer.stream.socket.getpeername()
        # The kernel may give two clients the same port, if they connect to different doors.
        name = f"{'tcp' if at_door == self.running.address.tcp_port else 'web'} {host}:{port}"
        return [connection for connection in self.registry.seen if connection.peer == name]

    async def connection_of(self, peer: LinesPeer) -> Connection:
        """The server's side of a peer."""
        await self.until(lambda: bool(self._sides_of(peer)))
        (connection,) = self._sides_of(peer)
        return connection

    async def squeeze(self, peer: LinesPeer) -> Connection:
        """Let the kernel keep little of what a peer is sent and does not read; returns the server's side of it."""
        connection = await self.connection_of(peer)
        socket_of(connection).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return connection

    def release(self, connection: Connection) -> None:
        """Undo squeeze(): what is read at last need not come in drops."""
        socket_of(connection).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true that comes of a connection's beginning or of what is written to one."""
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self._news.wait()

    def peak_backlog(self, connection: Connection) -> int:
        """The most that a connection ever had to send, in bytes."""
        return self._peaks.get(connection.outbox, 0)

    async def only_remain(self, count: int) -> None:
        """Wait until so many connections are left."""
        with trio.fail_after(PATIENCE_S):
            while len(self.registry) > count:
                await self.registry.left()

    def connections_in_memory(self) -> int:
        """How many connections of the server there are as objects, whether or not they have ended."""
        self.registry.seen.clear()
        self._peaks.clear()
        return sum(type(thing) is Connection for thing in gc.get_objects())


Undisturbed = Callable[..., AbstractAsyncContextManager[Arena]]


class Spectacle:
    """What undisturbed() needs of a test: its folder, its log, its patches."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._caplog = caplog
        self._monkeypatch = monkeypatch

    @asynccontextmanager
    async def undisturbed(self, *, log_lines: int | None = 1, **settings: Any) -> AsyncIterator[Arena]:
        """Run a server for an attack that is logged in `log_lines` lines, and see that others are served.

        `log_lines` may be None where that is not known. Everything opened in the block must be closed in it.
        """
        self._caplog.set_level(logging.INFO)
        registries: list[WatchedRegistry] = []
        peaks: dict[Outbox, int] = {}
        news = News()

        def make_registry(connections_max: int) -> WatchedRegistry:
            registries.append(WatchedRegistry(connections_max, news))
            return registries[-1]

        self._monkeypatch.setattr("trisync.server.Registry", make_registry)
        self._watch_backlogs(peaks, news)
        async with running_server(self._folder, **settings) as running:
            async with running.lines() as alice, running.websocket() as bob:
                await alice.request("subscribe", channel="bystanders")
                await bob.request("subscribe", channel="bystanders")
                arena = Arena(running, registries[0], peaks, news)
                yield arena
                await arena.only_remain(2)
                async with running.lines() as fresh:
                    assert (await fresh.request("publish", channel="bystanders", data="all well"))["op"] == "ok"
                for bystander in (alice, bob):
                    (message,) = await bystander.receive_messages(1)
                    assert (message["offset"], message["data"]) == (1, "all well")
        said = [record for record in self._caplog.records if record.levelno >= logging.INFO]
        texts = [record.getMessage() for record in said]
        assert log_lines is None or len(texts) == log_lines, texts
        assert not [record for record in said if record.exc_info], texts
        assert not [text for text in texts if len(text.splitlines()) != 1 or len(text) > 1000], texts

    def _watch_backlogs(self, peaks: dict[Outbox, int], news: News) -> None:
        write = Outbox.write

        def watched_write(outbox: Outbox, data: bytes) -> None:
            write(outbox, data)
            peaks[outbox] = max(peaks.get(outbox, 0), outbox.backlog)
            news.ring()

        self._monkeypatch.setattr(Outbox, "write", watched_write)


def socket_of(connection: Connection) -> socket.socket:
    """The server's socket of a connection."""
    stream = connection._stream
    assert isinstance(stream, SocketStream)
    return stream._sock


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


async def publish(peer: Peer, data: str, count: int) -> None:
    """Publish so many messages to the channel `attacked`, each after the answer to the one before it."""
    for _ in range(count):
        assert (await peer.request("publish", channel="attacked", data=data))["op"] == "ok"


def reset(stream: trio.SocketStream) -> None:
    """Close a connection as a crash does: with a reset instead of an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def vanish(stream: trio.SocketStream) -> None:
    """Let a peer be gone as when its cable is pulled: from now on it hears nothing, and acknowledges nothing.

    The filter takes no packet (struct sock_fprog of linux/filter.h; one instruction, BPF_RET with 0).
    """
    take_nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    stream.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(take_nothing)))
