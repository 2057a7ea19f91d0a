"""One client's connection from its first byte to its last: conversation, farewell, close.

The doors bring a stream and a conversation, the session speaks through it. Every end has a named reason, and
every failure stops here: this is the one boundary between a client and the rest of the server.
"""

import logging
import math
import secrets
from collections.abc import Awaitable, Callable

import trio
from msgspec import UNSET, UnsetType

from trisync.core.outbox import RECEIVE_BYTES, DirectStream, Outbox, hand_on
from trisync.settings import Settings
from trisync.tokens import Tokens
from trisync.wire.console import visible
from trisync.wire.errors import WireError
from trisync.wire.framing import Framing

logger = logging.getLogger(__name__)

HUNG_UP = "the client hung up"
DRAINING = "the server is stopping"
SLOW_BYTES = 64 * 1024
"""For each so many bytes, a message may take `half_message_s` more: a large one does over a slow link, and a small one
that is sent byte by byte must not."""
_ORDINARY = {HUNG_UP, DRAINING}


class Connection:
    """A client's stream with its outbox, its tasks and its end; an Outlet for the broker."""

    __slots__ = (
        "_answered",
        "_begun_at",
        "_conversation",
        "_deadline",
        "_nursery",
        "_settings",
        "_stream",
        "_tokens",
        "_unanswered",
        "_was_refused",
        "ending",
        "framing",
        "last_word",
        "outbox",
        "peer",
        "render",
    )

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        settings: Settings,
        peer: str,
        tokens: Tokens = secrets.token_hex,
    ) -> None:
        self.peer = peer
        """Where it came from and through which door, for the log."""
        self.framing: Framing | None = None
        """None until it is known what the client speaks: until then nothing is said to it."""
        self.render: Callable[[bytes], bytes] | None = None
        """How the server's own messages are written where it is not as they are: for people."""
        self.ending: str | None = None
        """Why the conversation is over, None while it goes on."""
        self.last_word: bytes | None = None
        """A message to send when everything else was answered."""
        self.outbox = Outbox(stream, settings.backlog_bytes_max, self)
        self._stream = stream
        self._settings = settings
        self._tokens = tokens
        self._nursery: trio.Nursery | None = None
        self._conversation: trio.CancelScope | None = None
        self._begun_at = 0.0
        self._deadline = math.inf
        self._unanswered = 0
        self._answered: trio.Event | None = None
        self._was_refused = False

    async def serve(self, converse: Callable[[], Awaitable[None]], farewell: Callable[[], None] = lambda: None) -> None:
        """Hold the conversation, answer what is still unanswered, say farewell, hang up.

        `farewell` writes the last bytes, once all answers are written. The stream is closed in any case; nothing
        but cancellation comes out of here.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    with trio.CancelScope() as self._conversation:
                        if self.ending is None:
                            await self.guard(converse)
                            await self.answered()
                            await self.outbox.flush()  # as slowly as it likes (P6): deadlines are for who is ended
                    self.end(HUNG_UP)
                    with trio.move_on_after(self._settings.drain_s):
                        await self.guard(lambda: self._hang_up(farewell))
                finally:
                    # An answer that still comes would start a writer, and a channel that is emptied a reader. But Trio
                    # takes one more turn to close the nursery, and to start anything in that turn is an error.
                    self.outbox.close()
                    self._nursery = None
                nursery.cancel_scope.cancel()
        finally:
            self.outbox.discard()
            await trio.aclose_forcefully(self._stream)
            logger.log(
                logging.DEBUG if self.ending in _ORDINARY else logging.INFO,
                "%s closed: %s",
                self.peer,
                visible(self.ending or ""),
            )

    async def guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the conversation, or its end; whatever that raises ends the connection and nothing else."""
        try:
            await work()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end(HUNG_UP)
        except WireError as error:
            self.refuse(error)
        except Exception:
            reference = self._tokens(4)
            logger.exception("%s: a bug, reference %s", self.peer, reference)
            self.refuse(WireError("internal", f"an internal error, logged with the reference {reference}"))

    async def _hang_up(self, farewell: Callable[[], None]) -> None:
        await self.answered()
        if self.last_word is not None:
            self.reply(self.last_word)
        farewell()
        self.outbox.close()
        await self.outbox.flush()
        await self._stream.send_eof()
        # Closing with bytes unread would reset the connection, and the client could lose what it has not read yet. So
        # it may hang up first.
        with trio.move_on_after(self._settings.linger_s):
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass

    def broke(self) -> None:
        """The outbox found the stream dead."""
        self.end(HUNG_UP)

    def end(self, reason: str) -> None:
        """End the conversation; what is queued is still sent, within deadlines. The first reason counts."""
        if self.ending is None:
            self.ending = reason
            if self._conversation is not None:
                self._conversation.cancel()

    def check_peer(self, silent_s: float) -> None:
        """End the connection if its peer is lost: see DirectStream.peer_is_lost()."""
        if isinstance(self._stream, DirectStream) and self._stream.peer_is_lost(silent_s):
            self.end("the peer is lost")

    def untaken(self) -> int:
        """Bytes that the client has still to take of what was sent to it, as far as that is known."""
        return self.outbox.backlog + (self._stream.unacknowledged() if isinstance(self._stream, DirectStream) else 0)

    # Sending

    def reply(self, *payloads: bytes) -> None:
        if self.render is not None:
            for payload in payloads:
                self.outbox.write(self.render(payload))
        elif self.framing is not None:
            self.outbox.write(self.framing.join(payloads))

    async def room(self) -> None:
        if self.outbox.over:
            await self.outbox.room()

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run an async function until it ends or the connection does; if it fails, the connection ends."""
        if self._nursery is not None:
            self._nursery.start_soon(self.guard, work)

    def refuse(self, error: WireError, id: int | str | UnsetType = UNSET) -> None:
        """Send an error, and end the conversation if the error is of that kind."""
        told = f"{error.code}: {error.message}"
        self.reply(error.encode(id))
        if error.closes:
            self.end(told)
        else:
            self.note(told)

    def note(self, refusal: str) -> None:
        """Log the first refusal of a connection. More of the same is not news, and would let a client fill the log."""
        if not self._was_refused:
            self._was_refused = True
            logger.info("%s: %s", self.peer, visible(refusal))

    # Receiving

    def receive(self) -> Awaitable[bytes | bytearray]:
        """The next bytes from the client, none at its end.

        Waits first until the client has taken enough of what was sent to it: who does not read is not read from.
        Raises WireError when the rest of a message does not come in time; see expect().
        """
        if self._deadline == math.inf and not self.outbox.over:
            return self._stream.receive_some(RECEIVE_BYTES)
        return self._receive_in_time()

    async def listen(self, take: Callable[[bytes], bool], settle: Callable[[], Awaitable[bool]]) -> None:
        """Hand what the client sends to `take`, chunk by chunk and b"" at its end; raises as receive() does.

        `take` handles what needs no waiting, perhaps while this task sleeps on; where it returns False, `settle` does
        the rest in this task. The conversation is over when that returns False.
        """
        while await settle():
            if self._deadline != math.inf or self.outbox.over:
                take(bytes(await self._receive_in_time()))
            elif isinstance(self._stream, DirectStream):
                await self._stream.hand_on(take)
            else:
                await hand_on(self._stream, take)

    async def _receive_in_time(self) -> bytes | bytearray:
        if self.outbox.over:
            waiting_since = trio.current_time()
            await self.outbox.room()
            self.excuse(waiting_since)
        wait_s = self._settings.half_message_s
        silent_until = math.inf if self._deadline == math.inf else trio.current_time() + wait_s
        with trio.CancelScope(deadline=min(self._deadline, silent_until)):
            return await self._stream.receive_some(RECEIVE_BYTES)
        raise WireError("bad_request", "the rest of a message did not come in time", closes=True)

    def expect(self, held_bytes: int | None, *, progress: bool) -> None:
        """Set the deadline for the next bytes: `held_bytes` is how much is here of a message that has begun and not
        ended, None where there is none, and `progress` whether any ended since the last call.

        Such a message has `half_message_s`, and as long again for each SLOW_BYTES of it; but no one silence may be
        longer than `half_message_s`.
        """
        if held_bytes is None:
            self._deadline = math.inf
            return
        if progress or self._deadline == math.inf:
            self._begun_at = trio.current_time()
        self._deadline = self._begun_at + self._settings.half_message_s * (1 + held_bytes / SLOW_BYTES)

    def excuse(self, waiting_since: float) -> None:
        """Leave the time since then out of the deadline: the client was not read from, and could do nothing."""
        waited_s = trio.current_time() - waiting_since
        self._begun_at += waited_s
        self._deadline += waited_s

    # Answers to come

    def awaits_answer(self) -> None:
        """A submission was queued: the connection stays for its answer."""
        self._unanswered += 1

    async def answered(self) -> None:
        """Wait until everything that was submitted has been answered."""
        while self._unanswered:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()

    def was_answered(self) -> None:
        """A submission's answer was written."""
        self._unanswered -= 1
        if self._unanswered == 0 and self._answered is not None:
            self._answered.set()
            self._answered = None
