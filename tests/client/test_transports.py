"""Transports over a stream in memory: what comes while something is being sent, and what breaks beneath them."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Pong, Request, TextMessage

from trisync.client.transports import (
    SEND_BYTES,
    Address,
    FramesTransport,
    Transport,
    TransportError,
    WebSocketTransport,
)


class Line(anyio.abc.ByteStream):
    """A stream to a server's WSConnection. As anyio's, it is for one who sends at a time."""

    def __init__(self) -> None:
        self.server = WSConnection(ConnectionType.SERVER)
        self.heard: list[Event] = []
        self.clear = trio.Event()
        self.clear.set()
        self.error: Exception | None = None
        self._sending = False
        self._said, self._incoming = trio.open_memory_channel[bytes](100)

    def say(self, *events: Event) -> None:
        """Have events come by one read."""
        self._said.send_nowait(b"".join([self.server.send(event) for event in events]))

    async def send(self, item: bytes) -> None:
        if self.error is not None:
            raise self.error
        if self._sending:
            raise anyio.BusyResourceError("sending")
        self._sending = True
        await self.clear.wait()
        self._sending = False
        self.server.receive_data(item)
        for event in self.server.events():
            self.heard.append(event)
            if isinstance(event, Request):
                self.say(AcceptConnection())

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.error is not None:
            raise self.error
        return await self._incoming.receive()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass


async def a_websocket(line: Line) -> WebSocketTransport:
    transport = WebSocketTransport(line)
    await transport.handshake(Address("ws", "localhost", 8000, "/"))
    line.heard.clear()
    return transport


@asynccontextmanager
async def a_send_that_waits() -> AsyncIterator[tuple[Line, WebSocketTransport]]:
    """A WebSocket on which one is under way until the end of the block."""
    line = Line()
    transport = await a_websocket(line)
    line.clear = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send, [b"large"])
        await wait_all_tasks_blocked()
        yield line, transport
        line.clear.set()


async def test_a_ping_that_comes_while_a_send_waits_is_answered_behind_it_and_reading_goes_on() -> None:
    async with a_send_that_waits() as (line, transport):
        for number in range(3):
            line.say(Ping(payload=b"%d" % number))
            line.say(TextMessage(data=f"message {number}"))
        received: list[bytes] = []
        while len(received) < 3:
            received += await transport.receive()
        assert received == [b"message 0", b"message 1", b"message 2"]
        assert transport.owes
    await transport.send([])
    assert not transport.owes
    assert line.heard == [TextMessage(data="large"), Pong(payload=b"2")]


async def test_a_close_is_answered() -> None:
    line = Line()
    transport = await a_websocket(line)
    await transport.send([b"before"])
    line.say(CloseConnection(code=1001, reason="draining"))
    with pytest.raises(TransportError, match="closed the WebSocket with code 1001: draining"):
        await transport.receive()
    with pytest.raises(TransportError, match="closed the WebSocket with code 1001: draining"):
        await transport.send([b"behind"])
    assert line.heard == [TextMessage(data="before"), CloseConnection(code=1001, reason="draining")]


async def test_what_comes_together_with_a_close_is_taken_in_before_it() -> None:
    line = Line()
    transport = await a_websocket(line)
    line.say(TextMessage(data="goodbye"), CloseConnection(code=1001, reason="draining"))
    assert await transport.receive() == [b"goodbye"]
    with pytest.raises(TransportError, match="closed the WebSocket with code 1001: draining"):
        await transport.send([b"a secret"])
    assert line.heard == []
    with pytest.raises(TransportError, match="closed the WebSocket with code 1001: draining"):
        await transport.receive()
    assert line.heard == [CloseConnection(code=1001, reason="draining")]


async def test_who_ends_the_connection_for_what_came_together_with_a_close_answers_that() -> None:
    line = Line()
    transport = await a_websocket(line)
    line.say(TextMessage(data="no client like you"), CloseConnection(code=1008))
    assert await transport.receive() == [b"no client like you"]
    await transport.aclose()
    assert line.heard == [CloseConnection(code=1008, reason="")]


async def test_a_close_that_comes_while_a_send_waits_ends_the_transport_in_good_order() -> None:
    async with a_send_that_waits() as (line, transport):
        line.say(CloseConnection(code=1001, reason="draining"))
        with pytest.raises(TransportError, match="closed the WebSocket with code 1001: draining"):
            await transport.receive()


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
async def test_nothing_is_sent_behind_a_message_that_was_cut_off(scheme: str) -> None:
    line = Line()
    transport = await a_websocket(line) if scheme == "ws" else FramesTransport(line)
    line.clear = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send, [b"large"])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(TransportError, match="cut off"):
        await transport.send([b"last words"])
    await transport.aclose()


@pytest.mark.parametrize("make", [FramesTransport, WebSocketTransport])
async def test_a_fault_of_tls_breaks_the_connection_and_not_the_client(make: Callable[[Line], Transport]) -> None:
    line = Line()
    transport = make(line)
    line.error = ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")
    with pytest.raises(TransportError, match=r"the connection broke: .*BAD_RECORD_MAC"):
        await transport.receive()
    with pytest.raises(TransportError, match=r"the connection broke: .*BAD_RECORD_MAC"):
        await FramesTransport(line).send([b"{}"])


async def test_a_send_into_tls_that_has_ended_breaks_the_connection_and_not_the_client() -> None:
    line = Line()
    transports = await a_websocket(line), FramesTransport(line)
    line.error = anyio.EndOfStream()
    for transport in transports:
        with pytest.raises(TransportError, match=r"^the server closed the connection$"):
            await transport.send([b"{}"])


async def test_why_a_connection_broke_is_said_without_the_number_of_a_system_error() -> None:
    line = Line()
    line.error = anyio.BrokenResourceError()
    for cause, said in (
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (None, "BrokenResourceError"),
    ):
        line.error.__cause__ = cause
        with pytest.raises(TransportError) as raised:
            await FramesTransport(line).receive()
        assert str(raised.value) == f"the connection broke: {said}"


class Sink(Line):
    """A stream that takes whatever is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def send(self, item: bytes) -> None:
        self.sizes.append(len(item))


async def test_a_large_message_is_sent_in_parts_of_which_all_but_the_first_tell_that_the_line_moves() -> None:
    line = Sink()
    transport = FramesTransport(line)
    parts: list[int] = []
    transport.on_part = lambda: parts.append(len(line.sizes))
    await transport.send([b"{}"])
    assert parts == []
    await transport.send([b"x" * 2 * SEND_BYTES])
    assert line.sizes == [6, SEND_BYTES, SEND_BYTES, 4]
    assert parts == [2, 3]
