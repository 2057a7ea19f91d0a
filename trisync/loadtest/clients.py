"""The clients that a load is made of: what all of them do alike, subscribers, and visitors who only come and go.

Publishers are in publishers.py. Each client has a link, and a set `pending` that it leaves when it has done what is
awaited of it; a worker's order is done when that set is empty.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec import Struct, field

from trisync.loadtest.links import Link
from trisync.loadtest.marks import Ledger, Mark
from trisync.loadtest.measuring import Aside, Gauge
from trisync.loadtest.plan import clock_us
from trisync.loadtest.trails import Cursor, Trail
from trisync.loadtest.transports import CLOSE, PING, PONG, TEXT, UNREADABLE, Malformed, Number, Piece

ID_PING = 0
"""The id of pings; other requests count from 1."""


PIECE_BYTES_MAX = 1 << 24
"""What a server sends is smaller: longer answers come in pages (see protocol.md)."""


class Word(Struct, gc=False):
    """Anything that the server says."""

    op: str
    id: int | None = None
    channel: str = ""
    offset: Number = 0
    time: int = 0
    data: Mark | None = None
    key: str | None = None
    sender: int | str | None = field(default=None, name="from")
    duplicate: bool = False
    code: str = ""
    message: str = ""
    reason: str = ""
    to: Number = 0
    epoch: str = ""
    messages: list["Word"] | None = None
    more: bool = False
    trimmed: Number = 0


_decode = msgspec.json.Decoder(Word).decode


class Awaited(Protocol):
    """Something that an order waits for."""

    def complain(self) -> None:
        """Report that it did not come about."""


class Surroundings:
    """What all clients of a worker share."""

    def __init__(
        self,
        gauge: Gauge,
        connect: Callable[..., Link],
        after: Callable[[float, Callable[[], None]], None] = lambda seconds, do: None,
    ) -> None:
        self.gauge = gauge
        self.connect = connect
        """Makes a Link for a Client; `buffer_bytes` may be given."""
        self.after = after
        """Calls a function so many seconds later."""
        self.pending: set[Awaited] = set()
        self.acked = Ledger()
        """What was acknowledged to the publishers."""
        self.epoch = ""
        """Of the log, as the first subscriber was told; nothing where nobody subscribes."""

    def done(self, who: Awaited) -> None:
        """`who` is awaited no more."""
        self.pending.discard(who)
        self.gauge.moved_us = self.gauge.now_us

    def give_up(self, waited_us: float) -> None:
        """Report all that is awaited, after so long without any movement, and await it no more."""
        for awaited in self.pending:
            awaited.complain()
        text = f"nothing moved for {waited_us / 1e6:.1f} s, and {len(self.pending):,} clients still waited"
        self.gauge.problems.add("stalled", text)
        self.pending.clear()


class Speaker:
    """A client: its link, and what all of them do alike."""

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self.around = around
        self.gauge = around.gauge
        self.link: Link | None = None
        self._tail = b""
        self._pings = 0
        """Those without a pong yet."""
        self._greeted = False
        """Whether the next pong is the server's first word."""

    def open(self) -> None:
        """Connect; the worker waits for this client until it has."""
        self._tail = b""
        self._pings = 0
        self.around.pending.add(self)
        self.link = self._connect()

    def _connect(self) -> Link:
        return self.around.connect(self)

    def close(self) -> None:
        """Hang up."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def ping(self) -> None:
        """Ask for a pong; the worker waits for it, and so for all that the server sent before."""
        self.around.pending.add(self)
        self._pings += 1
        self.ask(b'{"op":"ping","id":%d}' % ID_PING)

    def ask(self, request: bytes) -> None:
        """Send one request."""
        if self.link is not None:
            self.link.send(self.link.join([request]))

    def complain(self) -> None:
        """Report that what was asked had no answer."""
        if self.link is not None:
            self.gauge.problems.add("unanswered", f"{self.name} got no answer")

    def opened(self) -> None:
        """The link can be used. TCP itself has no word from the server, so there it is asked for one."""
        assert self.link is not None
        if self.link.masker is None:
            self._greeted = True
            self.ping()
        else:
            self._arrived()

    def _arrived(self) -> None:
        """The server is there, and speaks this protocol."""
        self.gauge.now_us = clock_us()
        self.gauge.totals.opened += 1
        self.around.done(self)

    def receive(self, chunk: memoryview) -> None:
        """Take what was read."""
        self.gauge.now_us = clock_us()
        self.gauge.totals.delivered_bytes += len(chunk)
        self.read(self._tail + chunk)

    def read(self, data: bytes) -> None:
        """Take the whole pieces in `data`, and keep the rest; of a link that ends meanwhile, take no more."""
        assert self.link is not None
        start = 0
        for piece in self.link.split(data):
            self._take(piece, data[start : piece.end])
            if self.link is None:
                return
            start = piece.end
        self._tail = data[start:]
        if len(self._tail) > PIECE_BYTES_MAX:
            raise Malformed(f"a message without an end: {self._tail[:80]!r}")

    def _take(self, piece: Piece, wire: bytes) -> None:
        if piece.opcode == TEXT:
            try:
                word = _decode(piece.payload)
            except UNREADABLE as error:
                raise Malformed(f"{error}: {piece.payload[:80]!r}") from None
            self.hear(word, wire)
        elif piece.opcode == PING:
            assert self.link is not None
            assert self.link.masker is not None
            self.link.send(self.link.masker.control(PONG, piece.payload))
        elif piece.opcode == CLOSE:
            code = int.from_bytes(piece.payload[:2], "big")
            assert self.link is not None
            self.link.end(f"the server closed with {code} {piece.payload[2:].decode(errors='replace')}")

    def hear(self, word: Word, wire: bytes) -> None:
        """Take one word of the server, if it is one that every client may get; who expects others overrides this."""
        if word.op == "pong" and word.id == ID_PING and self._pings:
            self._pings -= 1
            if self._greeted:
                self._greeted = False
                self._arrived()
            self.around.done(self)
        elif word.op == "error":
            self._report_refused(word)
            self.around.done(self)
        elif word.op == "goodbye":
            assert self.link is not None
            self.link.end(f"the server says goodbye ({word.code})")
        else:
            said = " ".join(filter(None, (word.op, word.reason, word.channel)))
            self.gauge.problems.add("uninvited", f"{self.name}: {said}")

    def _report_refused(self, error: Word) -> None:
        self.gauge.problems.add("refused", f"{self.name}: {error.code}: {error.message}")

    def judge(self, message: Word) -> None:
        """Look at what every message says beside its data."""
        where = f"{self.name}, {message.channel}: offset {message.offset}"
        if message.key is not None or message.sender is not None:
            self.gauge.problems.add("altered", f"{where} has a key or a sender that nobody gave it")
        if not message.time:
            self.gauge.problems.add("altered", f"{where} says no time")

    def ended(self, reason: str, kind: str) -> None:
        """The link is gone."""
        self.link = None
        self.around.done(self)
        self.gauge.problems.add(kind, f"{self.name}: {reason}")


class Visitor(Speaker):
    """A connection that is opened, measured, pinged and closed. Its handshake ends when the server has answered."""

    def _arrived(self) -> None:
        super()._arrived()
        assert self.link is not None
        self.gauge.took(self.link.began_us)


class Subscriber(Speaker):
    """Follows channels, and checks what it gets: whole channels' bytes against their trails where it can."""

    def __init__(self, name: str, around: Surroundings, trails: list[Trail], *, aside: bool = False) -> None:
        super().__init__(name, around)
        gauge = Aside(around.gauge) if aside else around.gauge
        self.cursors = {trail.channel: Cursor(name, trail, gauge) for trail in trails}
        self._only = next(iter(self.cursors.values())) if len(trails) == 1 else None
        self._unsubscribed: dict[int, Cursor] = {}
        """Requests to subscribe without an answer yet."""
        self._returned_us = 0
        self._awaits_goals = False

    def opened(self) -> None:
        assert self.link is not None
        self._unsubscribed = dict(enumerate(self.cursors.values(), 1))
        requests = []
        for number, cursor in self._unsubscribed.items():
            cursor.subscribed = False
            channel = cursor.trail.channel.encode()
            requests.append(
                b'{"op":"subscribe","channel":"%b","since":%d,"id":%d}' % (channel, cursor.expected - 1, number)
            )
        self.link.send(self.link.join(requests))

    def close(self) -> None:
        """Hang up; what had begun to come, or was refused, is forgotten, and will be asked for again."""
        super().close()
        for cursor in self.cursors.values():
            cursor.step_back()
            cursor.let_go()
            cursor.subscribed = True

    def receive(self, chunk: memoryview) -> None:
        gauge, only = self.gauge, self._only
        gauge.now_us = clock_us()
        gauge.totals.delivered_bytes += len(chunk)
        if only is None or self._unsubscribed:
            self.read(self._tail + chunk)
        else:
            if self._tail:
                chunk = memoryview(self._tail + chunk)
                self._tail = b""
            known = only.skim(chunk)
            if known < len(chunk):
                self.read(only.step_back() + chunk[known:])
        if self._awaits_goals:
            self._look_for_goals()

    def expect(self, heads: dict[str, int], returned_us: int = 0) -> None:
        """Be pending until these offsets have come. Latency counts from `returned_us` where that is given.

        Who has lost its connection, and does not return, is not awaited; finish() says what it did not see.
        """
        self._returned_us = returned_us
        for channel, cursor in self.cursors.items():
            cursor.goal = heads[channel]
        self._awaits_goals = not self._has_goals()
        if self._awaits_goals and (self.link is not None or returned_us):
            self.around.pending.add(self)

    def _has_goals(self) -> bool:
        return not self._unsubscribed and all(
            cursor.expected > cursor.goal or not cursor.subscribed for cursor in self.cursors.values()
        )

    def _look_for_goals(self) -> None:
        if self._has_goals():
            self._awaits_goals = False
            self.around.done(self)
            if self._returned_us and all(cursor.subscribed for cursor in self.cursors.values()):
                self.gauge.took(self._returned_us)

    def hear(self, word: Word, wire: bytes) -> None:
        if word.op == "message":
            cursor = self.cursors.get(word.channel)
            if cursor is None or word.data is None:
                self.gauge.problems.add("uninvited", f"{self.name}: a message of {word.channel!r}")
                return
            self.judge(word)
            cursor.take(word.offset, word.data, wire, word.time)
        elif word.op in ("ok", "error") and word.id in self._unsubscribed:
            cursor = self._unsubscribed.pop(word.id)
            if word.op == "ok":
                cursor.subscribed = True
                self._judge_log(cursor, word)
            else:
                self._report_refused(word)
            self.gauge.totals.opened += not self._unsubscribed
            if not self._unsubscribed and not self._awaits_goals:
                self.around.done(self)
        elif word.op != "gap" or not self._pass_over(word):
            super().hear(word, wire)

    def _judge_log(self, cursor: Cursor, ok: Word) -> None:
        """Look at what the server says of the log: it is everybody's, and ends behind all that is known to be in it."""
        self.around.epoch = epoch = self.around.epoch or ok.epoch
        if ok.epoch != epoch:
            self._report_unkept(cursor, f"the log is {ok.epoch!r}, and {epoch!r} to others")
        known = max(cursor.goal, cursor.expected - 1)
        if ok.offset < known:
            self._report_unkept(cursor, f"the log is said to end at offset {ok.offset}, and had {known}")

    def _report_unkept(self, cursor: Cursor, what: str) -> None:
        self.gauge.problems.add("unkept", f"{self.name}, {cursor.trail.channel}: {what}")

    def _pass_over(self, gap: Word) -> bool:
        """Expect what the server says that it has removed no more; returns whether that is what it says.

        Where a channel was emptied, that begins with what has come already, and may be no more than that.
        """
        cursor, first = self.cursors.get(gap.channel), gap.sender
        if cursor is None or gap.reason != "trimmed" or not isinstance(first, int):
            return False
        if not first <= cursor.expected <= gap.to + 1:
            return False
        self.gauge.totals.trimmed += cursor.pass_over(gap.to)
        cursor.trail.trimmed = max(cursor.trail.trimmed, gap.to)
        return True

    def complain(self) -> None:
        """What is missing is said by finish()."""
        if not self._awaits_goals:
            super().complain()

    def finish(self) -> None:
        """Report what never came, or, without a connection or a subscription, what could not be seen to come."""
        for cursor in self.cursors.values():
            cursor.finish(cut_off=self.link is None or not cursor.subscribed)


SLOW_BUFFER_BYTES = 16 * 1024
"""Of the kernel, for a slow subscriber: else what it does not read would lie there, and the server never notice."""


class SlowSubscriber(Subscriber):
    """A subscriber that reads so many messages a second and no more, until it is awaited. Its latency is not measured.

    Awaited, it reads as fast as it can: pauses of its own would look like silence of the server.
    """

    def __init__(self, name: str, around: Surroundings, trails: list[Trail], messages_per_s: float) -> None:
        super().__init__(name, around, trails, aside=True)
        self._messages_per_s = messages_per_s
        self._hurries = False

    def _connect(self) -> Link:
        return self.around.connect(self, buffer_bytes=SLOW_BUFFER_BYTES)

    def receive(self, chunk: memoryview) -> None:
        before = self._count()
        super().receive(chunk)
        count = self._count() - before
        if count and self.link is not None and not self._hurries:
            self.link.pause()
            self.around.after(count / self._messages_per_s, self.link.resume)

    def _count(self) -> int:
        return sum(cursor.expected for cursor in self.cursors.values())

    def expect(self, heads: dict[str, int], returned_us: int = 0) -> None:
        super().expect(heads, returned_us)
        self._hurries = True
        if self.link is not None:
            self.link.resume()
