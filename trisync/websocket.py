"""The WebSocket door: trio-websocket's handshake, pings and closes around our own data frames.

trio-websocket costs ~60 µs a message, so none passes through it. The stream beneath it reads the frames
(wsframes.py), gives messages straight to the session and hands up control frames alone; and what the server
sends is written beneath it too, whole frames at frame boundaries.
"""

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from trisync import connection as ends
from trisync.broker import Broker
from trisync.connection import HUNG_UP, RECEIVE_BYTES, Connection
from trisync.framing import Framing
from trisync.registry import Registry
from trisync.session import Session
from trisync.settings import Settings
from trisync.wsframes import CLOSE, FIN, PING_FRAME, Failure, FrameReader, close_frame

SWEEPS_PER_DEADLINE = 4
"""How often within the shorter of `ping_s` and `pong_s` the silent clients are looked for."""
YIELD_EVERY = 1000
"""Clients looked at before others get a turn."""

_NORMAL, _GOING_AWAY, _POLICY, _INTERNAL = 1000, 1001, 1008, 1011  # RFC 6455, section 7.4.1
_LIBRARY_FAILURES = {1002, 1007}

# The request that trio-websocket sees is never the client's: what it rejects, and what makes it raise (odd Host
# headers do), was judged in http_rules.py before.
_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


class WebSocketDoor:
    """Serves WebSocket clients whose request was judged good. keep_alive() must be running."""

    def __init__(self, broker: Broker, registry: Registry, settings: Settings) -> None:
        self._broker = broker
        self._registry = registry
        self._settings = settings
        self._wires: dict[Wire, None] = {}

    async def converse(self, wire: "Wire") -> None:
        """Shake hands, then serve until the client closes, fails or vanishes."""
        session = wire.session
        self._registry.speak_for(wire.connection, session)
        self._wires[wire] = None
        try:
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, wire, receive_buffer_size=RECEIVE_BYTES)
                wire.websocket = await request.accept()
                wire.open()
                try:
                    await wire.websocket.get_message()  # there is never one: this waits for the close
                except ConnectionClosed:
                    nursery.cancel_scope.cancel()
        finally:
            del self._wires[wire]
            session.close()

    def meet(self, connection: Connection, key: bytes, rest: bytes) -> "Wire":
        """A wire for a client that sent this Sec-WebSocket-Key, and `rest` behind its request."""
        session = Session(self._broker, connection, self._settings)
        return Wire(connection, session, _REQUEST % key, rest, self._settings.message_bytes_max)

    async def keep_alive(self) -> None:
        """Ping the clients that have been silent, and end those that do not answer. Runs until cancelled."""
        ping_s, pong_s = self._settings.ping_s, self._settings.pong_s
        while True:
            await trio.sleep(min(ping_s, pong_s) / SWEEPS_PER_DEADLINE)
            now = trio.current_time()
            for number, wire in enumerate(list(self._wires)):
                wire.look_alive(now, ping_s, pong_s)
                if number % YIELD_EVERY == YIELD_EVERY - 1:
                    await trio.lowlevel.checkpoint()


class Wire(trio.abc.Stream):
    """The stream that trio-websocket is given: it owns all writing, and keeps the data frames for itself."""

    def __init__(self, connection: Connection, session: Session, head: bytes, rest: bytes, bytes_max: int) -> None:
        self.connection = connection
        self.session = session
        self.websocket: WebSocketConnection | None = None
        self._head = head
        self._rest = rest
        self._reader = FrameReader(bytes_max)
        self._opened: trio.Event | None = trio.Event()
        self._control = b""
        self._close_sent = False
        self._failure: Failure | None = None
        self._heard_at = trio.current_time()
        self._pinged = False

    def open(self) -> None:
        """The handshake was answered: from now on frames go both ways."""
        self.session.speak(Framing.WEBSOCKET)
        assert self._opened is not None
        self._opened.set()
        self._opened = None

    def farewell(self) -> None:
        """Send the Close frame, unless one was sent already."""
        if not self._close_sent and self._opened is None:
            self._close_sent = True
            code, reason = self._why()
            self.connection.outbox.write(close_frame(code, reason))

    def _why(self) -> tuple[int, str]:
        if self._failure is not None:
            return self._failure
        # trio-websocket hangs up without a Close frame when a peer's own Close frame breaks the RFC.
        closed = self.websocket.closed if self.websocket is not None else None
        if closed is not None and closed.code in _LIBRARY_FAILURES:
            return closed.code, closed.reason or ""
        match self.connection.ending:
            case "internal":
                return _INTERNAL, "internal error"
            case ends.HUNG_UP:
                return _NORMAL, ""
            case ends.DRAINING:
                return _GOING_AWAY, ends.DRAINING
            case reason:
                return _POLICY, reason or ""

    def look_alive(self, now: float, ping_s: float, pong_s: float) -> None:
        """Ping a client silent for `ping_s`; end one that then stays silent for `pong_s` more.

        Who has not yet taken what was sent to it is slow, not silent; the kernel tells when such a peer is gone.
        """
        silent_s = now - self._heard_at
        if silent_s < ping_s or self.connection.outbox.backlog:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            self._heard_at = now - ping_s
            if not self._close_sent and self._opened is None:
                self.connection.outbox.write(PING_FRAME)
        elif silent_s >= ping_s + pong_s:
            self.connection.end("no answer to a ping")

    # What trio-websocket uses

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """First the request, then whole control frames, b"" at the end; messages never come out of here."""
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._opened is not None:
            await self._opened.wait()
        self._control = b""
        await self.connection.guard(self._receive)
        return self._control

    async def _receive(self) -> None:
        reader = self._reader
        while not self._control:
            if self._rest:
                chunk, self._rest = self._rest, b""
            else:
                chunk = await self.connection.receive()
            if not chunk:
                return
            self._heard_at = trio.current_time()
            messages = reader.feed(chunk)
            if messages:
                await self.session.receive(messages)
            self._control = reader.take_control()
            if reader.failed is not None:
                self._failure = reader.failed
                self.connection.end(f"WebSocket {reader.failed.code}: {reader.failed.reason}")
                return
            self.connection.expect(partial=reader.partial, progress=bool(messages))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue what trio-websocket sends: the handshake's answer, pongs, the Close frame. Nothing follows that."""
        if not self._close_sent:
            self._close_sent = self._opened is None and data[0] == FIN | CLOSE
            self.connection.outbox.write(bytes(data))
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """trio-websocket is done; the connection hangs up once everything is sent."""
        self.connection.end(HUNG_UP)
        await trio.lowlevel.checkpoint()
