"""The WebSocket door: the end of the opening handshake, then our own frames.

A plain handshake comes with its answer (plain_upgrade.py), and trio-websocket answers the others. It costs ~60 µs a
message and ~10 KB a connection, so it is let go once the handshake is done; frames are read by wsframes.py, and what
the server sends is whole frames straight to the outbox.
"""

import trio
from trio_websocket import wrap_server_stream

from trisync.core.broker import Broker
from trisync.sessions import connection as ends
from trisync.sessions.connection import Connection
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry, look_at_all
from trisync.sessions.session import Session
from trisync.settings import Settings
from trisync.wire.framing import WEBSOCKET
from trisync.wire.wsframes import PING_FRAME, Close, FrameReader, close_frame

SWEEPS_PER_DEADLINE = 4
"""How often within the shorter of `ping_s` and `pong_s` the silent clients are looked for."""

_NORMAL, _GOING_AWAY, _POLICY, _INTERNAL = 1000, 1001, 1008, 1011  # RFC 6455, section 7.4.1


class WebSocketDoor:
    """Serves WebSocket clients whose request was judged good. keep_alive() must be running."""

    def __init__(self, broker: Broker, registry: Registry, settings: Settings, hooks: Hooks) -> None:
        self._broker = broker
        self._registry = registry
        self._settings = settings
        self._hooks = hooks
        self._clients: dict[WebSocket, None] = {}

    def meet(self, connection: Connection, key: bytes, rest: bytes, answer: bytes | None = None) -> "WebSocket":
        """A client that sent this Sec-WebSocket-Key, and `rest` behind its request. converse() must follow.

        `answer` completes the handshake; where it is not known, trio-websocket finds it.
        """
        session = Session(self._broker, connection, self._settings, self._hooks, "websocket")
        return WebSocket(connection, session, key, rest, answer, self._settings.message_bytes_max)

    async def converse(self, client: "WebSocket") -> None:
        """Serve a client until it closes, fails or vanishes. Its session's leave() must follow, behind the farewell."""
        self._registry.speak_for(client.connection, client.session)
        self._clients[client] = None
        try:
            await client.converse()
        finally:
            del self._clients[client]
            client.session.close()

    async def keep_alive(self) -> None:
        """Ping the clients that have been silent, and end those that do not answer. Runs until cancelled."""
        ping_s, pong_s = self._settings.ping_s, self._settings.pong_s
        while True:
            await trio.sleep(min(ping_s, pong_s) / SWEEPS_PER_DEADLINE)
            await look_at_all(self._clients, lambda client: client.look_alive(ping_s, pong_s))


class WebSocket:
    """One WebSocket client."""

    __slots__ = (
        "_answer",
        "_busy",
        "_heard_at",
        "_hung_up",
        "_key",
        "_left",
        "_open",
        "_pinged",
        "_progress",
        "_reader",
        "_rest",
        "connection",
        "session",
    )

    def __init__(
        self, connection: Connection, session: Session, key: bytes, rest: bytes, answer: bytes | None, bytes_max: int
    ) -> None:
        self.connection = connection
        self.session = session
        self._key = key
        self._rest = rest
        self._answer = answer
        self._reader = FrameReader(bytes_max)
        self._left: list[bytes] = []  # messages that have to wait for something
        self._progress = False  # whether the last chunk ended a message
        self._hung_up = False
        self._open = False
        self._busy = False  # with its messages: until that is over, nothing is read
        self._heard_at = trio.current_time()
        self._pinged = False

    async def converse(self) -> None:
        """Shake hands, then handle messages until the client closes, hangs up or breaks the rules."""
        connection = self.connection
        if self._answer is None:
            await shake_hands(self._key, connection)
        else:
            connection.outbox.write(self._answer)
            self._answer = None
        self._open = True
        self.session.speak(WEBSOCKET)
        await self.session.begin()
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        await connection.listen(self._take, self._settle)

    def _take(self, chunk: bytes) -> bool:
        """Handle what the client sent as far as that needs no waiting; whether nothing is left for _settle()."""
        self._heard_at = trio.current_time()
        self._hung_up = not chunk
        reader = self._reader
        messages = reader.feed(chunk)
        self._progress = bool(messages)
        self._left = self.session.receive_at_once(messages)
        if self._left:
            return False
        if answers := reader.take_answers():
            self.connection.outbox.write(answers)
        return bool(chunk) and reader.held_bytes is None and not (reader.close or self.session.must_wait)

    async def _settle(self) -> bool:
        """Do what _take() left; whether the conversation goes on."""
        if self._hung_up:
            return False
        reader, left = self._reader, self._left
        self._left = []
        self._busy = True
        await self.session.receive(left)
        self._busy = False
        self._heard_at = trio.current_time()
        if answers := reader.take_answers():
            self.connection.outbox.write(answers)
        if reader.close is not None:
            code, reason = reader.close
            self.connection.end(f"WebSocket {code}: {reason}" if reason else ends.HUNG_UP)
            return False
        self.connection.expect(reader.held_bytes, progress=self._progress)
        return True

    def farewell(self) -> None:
        """Send the Close frame."""
        if self._open:
            self.connection.outbox.write(close_frame(self._reader.close or self._our_close()))

    def _our_close(self) -> Close:
        match self.connection.ending:
            case None | ends.HUNG_UP:
                return Close(_NORMAL)
            case ends.DRAINING:
                return Close(_GOING_AWAY, ends.DRAINING)
            case reason:
                return Close(_INTERNAL if reason.startswith("internal") else _POLICY, reason)

    def look_alive(self, ping_s: float, pong_s: float) -> None:
        """Ping a client silent for `ping_s`; end one that then stays silent for `pong_s` more.

        Who has not yet taken what was sent to it is slow, not silent; the kernel tells when such a peer is gone. Nor is
        it silent while nobody listens, because there is much to do for it.
        """
        now = trio.current_time()
        silent_s = now - self._heard_at
        excused = not self._open or self._busy or self.connection.untaken() > len(PING_FRAME)
        if silent_s < ping_s or excused:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            self._heard_at = now - ping_s  # the deadline for the answer counts from now
            self.connection.outbox.write(PING_FRAME)
        elif silent_s >= ping_s + pong_s:
            self.connection.end("no answer to a ping")


# The request that trio-websocket sees is never the client's: what it rejects, and what makes it raise (odd Host
# headers do), was judged in http_rules.py before.
_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


async def shake_hands(key: bytes, connection: Connection) -> None:
    """Answer an opening handshake with this Sec-WebSocket-Key, through trio-websocket (RFC 6455, section 4.2.2)."""
    async with trio.open_nursery() as nursery:
        request = await wrap_server_stream(nursery, _Handshake(_REQUEST % key, connection))
        await request.accept()


class _Handshake(trio.abc.Stream):
    """The stream that trio-websocket sees: one request, then the end, by which its reader is done; and the answer.

    It waits for nothing, so none of its methods is a checkpoint: a handshake has enough of them.
    """

    def __init__(self, request: bytes, connection: Connection) -> None:
        self._request = request
        self._connection = connection

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        request, self._request = self._request, b""
        if not request:
            raise trio.ClosedResourceError
        return request

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.outbox.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
