"""What a connection has yet to send: one direct try, a bounded backlog, and a writer task only while there is one.

All writing to a stream goes through its outbox: one writer a stream. Streams that can send without waiting
(DirectStream, which plain sockets are) usually take everything at once, and an idle connection has no task.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import trio

RECEIVE_BYTES = 64 * 1024
"""Most bytes of one read; all whole messages in it are handled together. Where many sockets can be read, the poller has
them read less each."""


class DirectStream(trio.abc.HalfCloseableStream):
    """A stream that can also send as much as it takes without waiting."""

    __slots__ = ()

    @property
    @abstractmethod
    def try_send(self) -> Callable[[bytes | memoryview], int]:
        """Sends now what fits, and returns how many bytes that was.

        As socket.send(): raises BlockingIOError when nothing fits, and another OSError when nothing ever will. An
        outbox keeps and calls it, millions of times a second.
        """

    @property
    def peer(self) -> str:
        """The other side's address, for people."""
        return "somebody"

    def hand_on(self, take: Callable[[bytes], bool]) -> Awaitable[None]:
        """Hand what comes to `take`, chunk by chunk and b"" at the end, until that returns False.

        `take` must not block; what it raises comes out of here. Cancelled, what came was taken, and nothing is lost.
        """
        return hand_on(self, take)

    def unacknowledged(self) -> int:
        """Bytes that were sent and that the peer's system has not taken yet, where that is known."""
        return 0

    def peer_is_lost(self, silent_s: float) -> bool:
        """Whether the peer has acknowledged nothing for so long though it was given reason to, where that is known."""
        return False


async def hand_on(stream: trio.abc.ReceiveStream, take: Callable[[bytes], bool]) -> None:
    """DirectStream.hand_on() for any stream."""
    while take(bytes(await stream.receive_some(RECEIVE_BYTES))):
        pass


class Owner(Protocol):
    """Who an outbox belongs to."""

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run the writer until it ends."""

    def broke(self) -> None:
        """Called once, when the stream will take nothing more."""


class _Nobody:
    """The owner of an outbox that is done with."""

    __slots__ = ()

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """There is nothing to write."""

    def broke(self) -> None:
        """There is nobody to tell."""


_NOBODY = _Nobody()

WRITE_BYTES = 256 * 1024
"""Small pieces of the backlog are joined up to about this size for one send()."""


def _send_nothing(data: bytes | memoryview) -> int:
    return 0


class Outbox:
    """The sending side of one stream."""

    __slots__ = ("_backlog_max", "_closed", "_drained", "_owner", "_queue", "_stream", "backlog", "send")

    def __init__(
        self,
        stream: trio.abc.Stream,
        backlog_max: int,
        owner: Owner,
    ) -> None:
        self._stream = stream
        self._backlog_max = backlog_max
        self._owner = owner
        self._queue: deque[bytes | memoryview] | None = None  # made when first needed: most never have one
        self._drained: trio.Event | None = None
        self._closed = False
        self.backlog = 0
        """Bytes taken but not yet sent."""
        self.send = self._direct()
        """The stream's try_send() while there is no backlog; otherwise something in its place that sends nothing."""

    def _direct(self) -> Callable[[bytes | memoryview], int]:
        return self._stream.try_send if isinstance(self._stream, DirectStream) else _send_nothing

    @property
    def over(self) -> bool:
        """Whether the backlog is past its mark."""
        return self.backlog > self._backlog_max

    def offer(self, data: bytes) -> bool:
        """Take data to send unless the backlog is past its mark; whether it was taken.

        Closed, it drops all, and says that it was taken: nobody is to wait for room that will not come.
        """
        if self.backlog > self._backlog_max:
            return self._closed
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        """Take data to send, whatever the backlog. Never blocks or raises; on a dead stream it is dropped."""
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            return
        if sent != len(data):
            self.keep(memoryview(data)[sent:] if sent else data)  # the object itself is shared by all queues

    def keep(self, rest: bytes | memoryview) -> None:
        """Queue what send() did not take, behind what waits already."""
        if self._closed:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(rest)
        if not self.backlog:
            self.send = _send_nothing
            self._owner.start_soon(self._write_backlog)
        self.backlog += len(rest)

    def close(self) -> None:
        """Take nothing more; what was taken is still sent."""
        self._closed = True
        self.send = _send_nothing

    def discard(self) -> None:
        """Take nothing more, and forget what was not sent and whose this is.

        An owner and its outbox refer to each other: left so, both would stay in memory, with the backlog, until the
        garbage collector comes, which may be long.
        """
        self.close()
        self.backlog = 0
        self._queue = None
        self._owner = _NOBODY
        self._wake()

    async def room(self) -> None:
        """Wait until the backlog is below half its mark, or the stream is dead."""
        await self._wait_below(self._backlog_max // 2)

    async def flush(self) -> None:
        """Wait until everything taken was handed to the stream, or the stream is dead."""
        await self._wait_below(0)

    async def _wait_below(self, limit: int) -> None:
        while self.backlog > limit:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    async def _write_backlog(self) -> None:
        assert self._queue is not None
        while self._queue:
            pieces = [self._queue.popleft()]
            size = len(pieces[0])
            while self._queue and size + len(self._queue[0]) <= WRITE_BYTES:
                pieces.append(self._queue.popleft())
                size += len(pieces[-1])
            try:
                await self._stream.send_all(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._break()
                return
            # Counted as backlog until here: while there is one, this task is the writer, and nobody sends directly.
            self.backlog -= size
            self._wake()
        if not self._closed:
            self.send = self._direct()

    def _break(self) -> None:
        owner = self._owner
        self.discard()
        owner.broke()


def offer_to_all(outboxes: Iterable[Outbox], data: bytes) -> set[Outbox]:
    """Outbox.offer() of the same data to many; returns those that did not take it.

    One send() each, and little memory touched beside it: once the system has sent to hundreds of sockets, nothing is
    left in the processor's caches. Each object on the way to a socket then costs 0.2 of some 6 µs (measured).
    """
    size = len(data)
    refused = set()
    for outbox in outboxes:
        try:
            sent = outbox.send(data)
        except OSError:
            sent = 0
        if sent == size:
            continue
        if sent:
            outbox.keep(memoryview(data)[sent:])
        elif not outbox.offer(data):
            refused.add(outbox)
    return refused
