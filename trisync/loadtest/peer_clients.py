"""Who loads a peer: its subscribers, which check what they get, and its publishers, which keep their windows full.

The same links, cursors and trails as trisync's own clients, so a delivery costs the generator the same. They are put
on a loop by peer_load.py.
"""

import msgspec

from trisync.loadtest.clients import Speaker, Subscriber, Surroundings
from trisync.loadtest.marks import Mark
from trisync.loadtest.peer_dialects import REPLY, Dialect, count_replies
from trisync.loadtest.plan import clock_us
from trisync.loadtest.publishers import BATCH
from trisync.loadtest.trails import Trail
from trisync.loadtest.transports import PING, PONG, TEXT, UNREADABLE, Malformed, Piece

NUMBER_DIGITS = 9
TIME_DIGITS = 15
"""Room for a message's number and time, so that all messages are of one size."""

_decode_lines = msgspec.json.Decoder(Mark).decode_lines


class PeerClient(Speaker):
    """What the clients of a peer do alike."""

    _dialect: Dialect
    _greeting: bytes
    """What it says first."""

    def opened(self) -> None:
        self.gauge.totals.opened += 1
        if self._greeting:
            self.ask(self._greeting)
        self.ping()

    def ping(self) -> None:
        assert self.link is not None
        self.around.pending.add(self)
        masker = self.link.masker
        self.link.send(self._dialect.ping if masker is None else masker.control(PING, b""))

    def _take(self, piece: Piece, wire: bytes) -> None:
        assert self.link is not None
        if piece.opcode == PONG:
            self.around.done(self)
        elif piece.opcode == PING and self.link.masker is None:
            self.link.send(self._dialect.pong)
        else:
            super()._take(piece, wire)


class Listener(PeerClient, Subscriber):
    """A subscriber of a peer. A message's number is its offset: there is one publisher."""

    def __init__(self, name: str, around: Surroundings, trail: Trail, dialect: Dialect, message_bytes: int) -> None:
        super().__init__(name, around, [trail])
        self.producer: Producer | None = None
        """Whose messages are in flight until this subscriber has them."""
        self._dialect = dialect
        self._greeting = dialect.hello + dialect.subscribe
        self._cursor = self.cursors[trail.channel]
        self._header = dialect.delivered(message_bytes)
        self._message_bytes = message_bytes
        self._message_size = len(self._header) + message_bytes + (0 if dialect.transport == "ws" else 2)

    def receive(self, chunk: memoryview) -> None:
        super().receive(chunk)
        if self.producer is not None:
            self.producer.landed(self._cursor.expected - 1)

    def read(self, data: bytes) -> None:
        """Take the whole pieces in `data`, and keep the rest: many messages at once, then the others."""
        size = self._message_size
        count = len(data) // size
        if count > 1 and data.startswith(self._header):
            whole = data[: count * size]
            lines = whole.replace(self._header, b"\n")
            # Only where each is whole and in its place: any word between two of them shifts the line breaks that
            # headers become, as there are none in the data.
            stride = size - len(self._header) + 1
            if len(lines) == count * stride and lines[::stride] == b"\n" * count:
                for number, mark in enumerate(_marks(lines)):
                    self._cursor.take(mark.number, mark, whole[number * size : number * size + size])
                data = data[count * size :]
        super().read(data)

    def _take(self, piece: Piece, wire: bytes) -> None:
        if piece.opcode == TEXT:
            if len(piece.payload) != self._message_bytes:
                raise Malformed(f"a message of {len(piece.payload)} bytes")
            (mark,) = _marks(piece.payload)
            self._cursor.take(mark.number, mark, wire)
        else:
            super()._take(piece, wire)


def _marks(lines: bytes) -> list[Mark]:
    try:
        return _decode_lines(lines)
    except UNREADABLE as error:
        raise Malformed(f"{error}: {lines[:80]!r}") from None


def _publish_template(dialect: Dialect, number: int, message_bytes: int) -> bytes:
    """A publish but for its number and time. Its data is a Mark with spaces in it, so that all are of one size."""
    data = b'[0,%d,%%-%dd,%%-%dd,"' % (number, NUMBER_DIGITS, TIME_DIGITS)
    before, behind = dialect.publish(message_bytes)
    return before + data + b"x" * (message_bytes - len(data % (0, 0)) - 2) + b'"]' + behind


class Producer(PeerClient):
    """A publisher: keeps its window full."""

    def __init__(self, number: int, around: Surroundings, dialect: Dialect, message_bytes: int) -> None:
        super().__init__(f"publisher {number}", around)
        self.sent = 0
        self.stored: int | None = None
        """What the peer says that it has stored, once it was asked."""
        self._dialect = dialect
        self._greeting = dialect.hello
        self._window = 0
        self._template = _publish_template(dialect, number, message_bytes)
        self._landed = 0
        self._counting = False

    def start(self, window: int) -> None:
        """Keep so many messages in flight; it is pending until it is stopped and none is."""
        self._window = window
        self.around.pending.add(self)
        self._refill(window)

    def stop(self) -> None:
        """Send nothing more."""
        self._window = 0
        self.landed(self._landed)

    def count(self) -> None:
        """Ask how many messages are stored."""
        self._counting = True
        self.around.pending.add(self)
        self.ask(self._dialect.ask_count)

    def landed(self, count: int) -> None:
        """So many of its messages, in all, are in flight no more."""
        self._landed = count
        if self._window:
            self._refill(self._window - (self.sent - count))
        elif count == self.sent:
            self.around.done(self)

    def _refill(self, count: int) -> None:
        """Send so many messages in batches, as trisync's publisher does."""
        while count > 0:
            self._publish(min(count, BATCH))
            count -= BATCH

    def _publish(self, count: int) -> None:
        if self.link is None:
            return
        due_us, template, first = clock_us(), self._template, self.sent + 1
        self.sent += count
        self.gauge.totals.sent += count
        self.link.send(self.link.join([template % (number, due_us) for number in range(first, first + count)]))

    def receive(self, chunk: memoryview) -> None:
        self.gauge.now_us = clock_us()
        data = self._tail + chunk
        count, end = (0, 0) if self._counting else count_replies(data)
        if end:
            self._answer(count)
        if end < len(data):
            self.read(data[end:])
        else:
            self._tail = b""

    def _take(self, piece: Piece, wire: bytes) -> None:
        if piece.opcode == REPLY and self._counting:
            self.stored = int(piece.payload)
            self.around.done(self)
        elif piece.opcode == REPLY:
            self._answer(1)
        else:
            super()._take(piece, wire)

    def _answer(self, count: int) -> None:
        if self._dialect.ask_count:
            self.gauge.totals.acked += count
            self.gauge.moved_us = self.gauge.now_us
            self.landed(self._landed + count)

    def complain(self) -> None:
        """Report what it waits for."""
        self.gauge.problems.add("unanswered", f"{self.name} has {self.sent - self._landed:,} messages in flight")
