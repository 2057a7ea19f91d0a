"""The TCP door: a first look at what a client speaks, then its bytes to its session."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from trisync.core.broker import Broker
from trisync.sessions.connection import Connection
from trisync.sessions.console_session import ConsoleSession
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry
from trisync.sessions.session import Session
from trisync.settings import Settings
from trisync.wire.dialects import Dialect, skip_blanks, tell_dialect
from trisync.wire.errors import WireError
from trisync.wire.framing import FRAMES, LINES, FrameSplitter, LineSplitter, Splitter
from trisync.wire.telnet import TelnetFilter


class TcpDoor:
    """Serves raw TCP clients of all dialects. handle() is run once for each."""

    def __init__(self, broker: Broker, registry: Registry, settings: Settings, hooks: Hooks) -> None:
        self._broker = broker
        self._registry = registry
        self._settings = settings
        self._hooks = hooks
        self._silent: OrderedDict[Connection, None] = OrderedDict()

    async def handle(self, stream: trio.abc.HalfCloseableStream, peer: str) -> None:
        """Serve one client until it or the server ends it."""
        connection = Connection(stream, self._settings, f"tcp {peer}", self._broker.tokens)
        session = Session(self._broker, connection, self._settings, self._hooks)
        if not self._registry.admit(connection, session):
            await trio.aclose_forcefully(stream)
            return
        conversation = _Conversation(connection, session, self._settings, self._wait_for_first_word)
        try:
            await connection.serve(conversation.run)
        finally:
            session.close()
            try:
                await session.leave()
            finally:
                self._registry.dismiss(connection)  # last: a server that drains waits for the hooks

    async def _wait_for_first_word(self, connection: Connection) -> bytes:
        """A new connection's first bytes; it may be silent for long, but only so many may be so at once."""
        self._silent[connection] = None
        if len(self._silent) > self._settings.silent_max:
            oldest, _ = self._silent.popitem(last=False)
            oldest.end("silent, and too many are")
        try:
            with trio.move_on_after(self._settings.silent_s):
                return bytes(await connection.receive())
            connection.end("silent")
            return b""
        finally:
            self._silent.pop(connection, None)


class _Conversation:
    """What one TCP client sends, from its first byte."""

    __slots__ = (
        "_bytes_max",
        "_connection",
        "_first_word",
        "_hung_up",
        "_left",
        "_progress",
        "_session",
        "_splitter",
        "_telnet",
    )

    def __init__(
        self,
        connection: Connection,
        session: Session,
        settings: Settings,
        first_word: Callable[[Connection], Awaitable[bytes]],
    ) -> None:
        self._connection = connection
        self._session = session
        self._bytes_max = settings.message_bytes_max
        self._first_word = first_word
        self._telnet: TelnetFilter | None = None
        self._splitter: Splitter | None = None
        self._left: list[bytes] = []  # payloads that have to wait for something
        self._progress = False  # whether the last chunk ended a message
        self._hung_up = False

    async def run(self) -> None:
        """Find the dialect, then hand payloads to the session until the client hangs up or cannot be understood."""
        self._splitter, head = await self._begin()
        if self._splitter is not None:
            self._feed(self._splitter, head)
            del head
            await self._connection.listen(self._take, self._settle)

    def _take(self, chunk: bytes) -> bool:
        """Handle what the client sent as far as that needs no waiting; whether nothing is left for _settle()."""
        assert self._splitter is not None
        self._hung_up = not chunk
        self._progress = False
        if self._telnet is not None and chunk:
            chunk = self._filtered(chunk)
            if not chunk:
                return not self._connection.outbox.over
        return bool(chunk) and self._feed(self._splitter, chunk)

    def _feed(self, splitter: Splitter, chunk: bytes) -> bool:
        payloads = splitter.feed(chunk)
        self._progress = bool(payloads)
        self._left = self._session.receive_at_once(payloads)
        return not (self._left or splitter.failed or splitter.held_bytes or self._session.must_wait)

    async def _settle(self) -> bool:
        """Do what _take() left; whether the conversation goes on."""
        splitter, left = self._splitter, self._left
        assert splitter is not None
        if self._hung_up:
            await self._see_off(splitter)
            return False
        self._left = []
        await self._session.receive(left)
        if splitter.failed:
            self._connection.refuse(splitter.failed)
            return False
        self._connection.expect(splitter.held_bytes, progress=self._progress)
        return True

    async def _begin(self) -> tuple[Splitter | None, bytes]:
        """What splits the client's bytes, and the first of them; None where it speaks no machine dialect (any more)."""
        dialect, head = await self._meet()
        match dialect:
            case None:
                return None, b""
            case Dialect.FRAMES:
                self._session.speak(FRAMES)
                await self._session.begin()
                return FrameSplitter(self._bytes_max), head
            case Dialect.LINES:
                self._session.speak(LINES)
                await self._session.begin()
                return LineSplitter(self._bytes_max), head
            case Dialect.CONSOLE:
                if self._telnet is None:  # commands may come later: Linux telnet sends them at Ctrl-C
                    self._telnet = TelnetFilter()
                    head = self._filtered(head)
                return await self._talk(head)
            case _:
                self._connection.end(dialect.value)
                return None, b""

    async def _meet(self) -> tuple[Dialect | None, bytes]:
        """The client's dialect and what it said so far; no dialect where it left before that."""
        head = b""
        while chunk := await self._first_word(self._connection):
            head = skip_blanks(head + self._filtered(chunk))
            dialect = tell_dialect(head)
            if dialect is Dialect.TELNET and self._telnet is None:
                # The choice is made again on what is left when its negotiation is taken out.
                self._telnet = TelnetFilter()
                head = skip_blanks(self._filtered(head))
                dialect = tell_dialect(head)
            if dialect is not None:
                return dialect, head
        return None, b""

    def _filtered(self, chunk: bytes) -> bytes:
        if self._telnet is None:
            return chunk
        text, answers = self._telnet.feed(chunk)
        if answers:
            self._connection.outbox.write(answers)
        return text

    async def _receive_text(self) -> bytes:
        """The next text from the client, none at its end."""
        while chunk := await self._connection.receive():
            if text := self._filtered(bytes(chunk)):
                return text
        return b""

    async def _talk(self, chunk: bytes) -> tuple[Splitter | None, bytes]:
        """The console, until the client hangs up or goes on in JSON lines: then as _begin() has it.

        A half-typed line has no deadline: in some terminals, people send key by key.
        """
        splitter = LineSplitter(self._bytes_max, keep_empty=True)
        console = ConsoleSession(self._session, self._connection)
        await self._session.begin()
        while chunk:
            following = await console.receive(splitter.feed(chunk))
            if splitter.failed:
                self._connection.refuse(splitter.failed)
                break
            if following is not None:
                following.append(splitter.take_rest())
                return LineSplitter(self._bytes_max), b"\n".join(following)
            chunk = await self._receive_text()
        await self._see_off(splitter)
        return None, b""

    async def _see_off(self, splitter: Splitter) -> None:
        """Give a client that has sent its last, and reads on, what it asked for; say if a part was not a message."""
        await self._session.level()
        if splitter.held_bytes and not splitter.failed:
            hint = ": a line ends with LF" if isinstance(splitter, LineSplitter) else ""
            problem = f"what came last was cut short, and was not taken{hint}"
            self._connection.reply(WireError("bad_request", problem).encode())
