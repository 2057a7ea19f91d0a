"""The proof that deliveries are dense, in order and unrepeated, at millions of them a second.

A trail is a channel's messages as the first subscriber of a worker got them, parsed one by one. The server sends
all subscribers of a channel the same bytes, so what another subscriber gets is compared with the trail, at memory
speed and wherever reads have cut it: bytes equal to bytes that were parsed need no parsing. Whatever differs, be it
only a ping between two messages, is parsed. So every byte of every subscriber is checked, none by sampling.
"""

from bisect import bisect_right

from trisync.loadtest.marks import PADDING, Ledger, Mark, block_of, fingerprint
from trisync.loadtest.measuring import Aside, Gauge
from trisync.loadtest.plan import Refused
from trisync.loadtest.problems import Problems

MISSING_MAX = 10_000
"""Missing numbers of a sequence that are remembered one by one; whether later ones come late is not found out."""

TRAIL_BYTES = 64 * 1024 * 1024
"""Kept of all trails of a worker. A subscriber further behind is parsed, and compared once it has caught up."""
TRAIL_BYTES_MIN = 64 * 1024


class Sequence:
    """Numbers that should come as 1, 2, 3 …; says what is wrong with those that do not."""

    __slots__ = ("_missing", "_unremembered", "expected")

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self._missing: set[int] = set()
        self._unremembered = 0

    def take(self, number: int) -> str | None:
        """Note a number; returns "reordered" or "repeated" where it is that. A gap counts when it is not filled."""
        if number == self.expected:
            self.expected += 1
            return None
        if number > self.expected:
            room = MISSING_MAX - len(self._missing)
            self._missing.update(range(self.expected, min(number, self.expected + room)))
            self._unremembered += max(0, number - self.expected - room)
            self.expected = number + 1
            return None
        if number in self._missing:
            self._missing.remove(number)
            return "reordered"
        return "repeated"

    def excuse(self, number: int) -> None:
        """Expect a number no more."""
        self._missing.discard(number)

    def lost(self) -> tuple[int, int]:
        """How many numbers are missing below the highest, and the first of them."""
        return len(self._missing) + self._unremembered, min(self._missing, default=0)


class Contents:
    """What a channel's messages say, one after the other: they are this tool's, and each publisher's are dense."""

    def __init__(self, index: int, channel: str, problems: Problems, first: int = 1) -> None:
        self.ledger = Ledger()
        block, self._next_block = block_of(first)
        self._tally = self.ledger.open(index, block)
        self._index = index
        self._channel = channel
        self._problems = problems
        self._first = first
        """The offset that it begins with. Behind the channel's beginning, a publisher may begin with any number."""
        self._time_ms = 0
        self._sequences: dict[int, Sequence] = {}

    def take(self, offset: int, mark: Mark, time_ms: int) -> int:
        """Judge the next message; returns its fingerprint."""
        if mark.channel != self._index or mark.padding != PADDING * len(mark.padding):
            self._report("altered", f"offset {offset} is not what was published")
        if time_ms < self._time_ms:
            self._report("reordered", f"offset {offset} has an earlier time than the one before it")
        self._time_ms = time_ms
        sequence = self._sequences.get(mark.publisher)
        if sequence is None:
            sequence = self._sequences[mark.publisher] = Sequence(1 if self._first == 1 else mark.number)
        wrong = sequence.take(mark.number)
        if wrong is not None:
            self._report(wrong, f"offset {offset} is publisher {mark.publisher}'s publish {mark.number}, {wrong}")
        tally = self._tally
        if not tally.block <= offset < self._next_block:
            block, self._next_block = block_of(offset)
            tally = self._tally = self.ledger.open(self._index, block)
        tally.count += 1
        its = fingerprint(offset, mark)
        tally.fingerprint += its
        tally.times += hash((offset, time_ms))
        return its

    def finish(self, refused: list[Refused]) -> None:
        """Report the publishes that never came, though later ones of their publishers did, and were not refused."""
        for each in refused:
            if each.channel == self._index and each.publisher in self._sequences:
                self._sequences[each.publisher].excuse(each.number)
        for publisher, sequence in self._sequences.items():
            count, first = sequence.lost()
            if count:
                self._report("lost", f"publisher {publisher}'s publish {first} was left out of the channel", count)

    def _report(self, kind: str, what: str, count: int = 1) -> None:
        self._problems.add(kind, f"{self._channel}: {what}", count)


class Trail:
    """One channel's parsed messages, from offset 1 on; the newest of them with their bytes."""

    def __init__(self, index: int, channel: str, gauge: Gauge, bytes_max: int) -> None:
        self.channel = channel
        self.data = bytearray()
        self.base = 0
        """Position of the first byte of `data`, counted from the channel's first message."""
        self.end = 0
        self.ends: list[int] = []
        """Positions behind the messages held."""
        self.dues: list[int] = []
        self.first = 1
        """Offset of the first message held."""
        self.cursors: list[Cursor] = []
        self.trimmed = 0
        """Up to which offset a subscriber was told that messages are gone."""
        self.contents = Contents(index, channel, gauge.problems)
        self._bytes_max = bytes_max
        self._marks: list[Mark] = []
        self._times_ms: list[int] = []
        self._sum = self._sum_before = 0
        """Of the fingerprints of all messages, and of those before the first that is held."""
        self._sums: list[int] = []
        """Sums up to each message held."""

    @property
    def next(self) -> int:
        """The offset of the message that would make it longer."""
        return self.first + len(self.ends)

    def extend(self, offset: int, wire: bytes, mark: Mark, time_ms: int) -> None:
        """Append the message at `next`, by its bytes on the wire."""
        self.data += wire
        self.end += len(wire)
        self.ends.append(self.end)
        self.dues.append(mark.due_us)
        self._marks.append(mark)
        self._times_ms.append(time_ms)
        self._sum += self.contents.take(offset, mark, time_ms)
        self._sums.append(self._sum)
        if len(self.data) > 2 * self._bytes_max:
            self._trim()

    def agrees(self, offset: int, mark: Mark, time_ms: int) -> bool:
        """Whether a message is what others got at its offset, as far as that is known here."""
        at = offset - self.first
        return not 0 <= at < len(self.ends) or (self._marks[at] == mark and self._times_ms[at] == time_ms)

    def end_of(self, offset: int) -> int:
        """The position behind a message, or -1 where it is not held."""
        at = offset - self.first
        if 0 <= at < len(self.ends):
            return self.ends[at]
        return self.base if at == -1 else -1

    def sum_of(self, offset: int) -> int:
        """The sum of the fingerprints up to a message whose end is held."""
        return self._sums[offset - self.first] if offset >= self.first else self._sum_before

    def _trim(self) -> None:
        count = bisect_right(self.ends, self.end - self._bytes_max)
        if not count:
            return  # one message larger than all that should be held
        base = self.ends[count - 1]
        for cursor in self.cursors:
            if cursor.position < base:
                cursor.let_go()
        del self.data[: base - self.base]
        self._sum_before = self._sums[count - 1]
        for held in (self.ends, self.dues, self._marks, self._times_ms, self._sums):
            del held[:count]
        self.base = base
        self.first += count


class Cursor:
    """Where one subscriber is in one channel."""

    __slots__ = (
        "_gauge",
        "_sequence",
        "_sum",
        "_who",
        "expected",
        "goal",
        "partial",
        "position",
        "subscribed",
        "trail",
    )

    def __init__(self, who: str, trail: Trail, gauge: Gauge | Aside) -> None:
        self.trail = trail
        self.expected = 1
        """The offset of the message that comes next, or of which some bytes have come."""
        self.goal = 0
        """The offset that it shall reach, where somebody waits for that."""
        self.position = 0
        """How far its bytes are known to be the trail's; -1 where they are not compared."""
        self.partial = b""
        """Bytes of a message that was begun in the trail, which has forgotten them."""
        self.subscribed = True
        """Whether the server has said that messages come, where it was asked; they must not come before that."""
        self._who = who
        self._gauge = gauge
        self._sequence = Sequence()
        self._sum: int | None = 0
        """Of the fingerprints up to `expected`, where the trail has forgotten the messages; None where each one is
        compared, or one is missing."""
        trail.cursors.append(self)
        self._find_position()

    def _find_position(self) -> None:
        self.position = self.trail.end_of(self.expected - 1)
        if self.position >= 0 and self._sum is not None:
            self._compare_sums()

    def _compare_sums(self) -> None:
        """Judge, now that it has caught up with the trail, what it got while it was behind."""
        if self._sum != self.trail.sum_of(self.expected - 1):
            self._report("altered", f"what came before offset {self.expected} is not what others got")
        self._sum = None

    def skim(self, chunk: memoryview) -> int:
        """Go forward over the bytes of `chunk` that are the trail's; returns how many, all or up to its end, or 0."""
        trail = self.trail
        known = trail.end - self.position
        at = self.position - trail.base
        if at < 0 or known <= 0:
            return 0
        if known < len(chunk):
            chunk = chunk[:known]
        if not trail.data.startswith(chunk, at):
            return 0
        self.position += len(chunk)
        first = self.expected - trail.first
        last = bisect_right(trail.ends, self.position, first)
        if last > first:
            self.expected = self._sequence.expected = last + trail.first
            self._gauge.delivered(trail.dues, first, last)
        return len(chunk)

    def step_back(self) -> bytes:
        """Go back to the last boundary between messages; returns the bytes from there on."""
        partial, self.partial = self.partial, b""
        start = self.trail.end_of(self.expected - 1)
        if 0 <= start < self.position:
            partial = bytes(self.trail.data[start - self.trail.base : self.position - self.trail.base])
            self.position = start
        return partial

    def let_go(self) -> None:
        """Compare no more until it has caught up: the trail forgets what lies around here."""
        if self.position >= 0:
            self.partial = self.step_back()
            self.position = -1
            self._sum = self.trail.sum_of(self.expected - 1)

    def take(self, offset: int, mark: Mark, wire: bytes, time_ms: int = 0) -> None:
        """Note a whole message, parsed; `time_ms` is the server's, which never goes back within a channel."""
        if not self.subscribed:
            self._report("reordered", f"offset {offset} came before the answer to subscribe")
        if offset == self.expected:
            self._compare(offset, mark, wire, time_ms)
        else:
            self._sum = None
        wrong = self._sequence.take(offset)
        if wrong is not None:
            self._report(wrong, f"offset {offset} came after {self.expected - 1}, {wrong}")
        self.expected = self._sequence.expected
        self._find_position()
        self._gauge.delivered_one(mark.due_us)

    def pass_over(self, last: int) -> int:
        """Expect what is behind `last`; returns how many messages that leaves out, of which no bytes have come."""
        count = last + 1 - self.expected
        self.expected = self._sequence.expected = last + 1
        self._sum = None
        self._find_position()
        return count

    def _compare(self, offset: int, mark: Mark, wire: bytes, time_ms: int) -> None:
        trail = self.trail
        if self._sum is not None:
            self._sum += fingerprint(offset, mark)
        if offset == trail.next:
            trail.extend(offset, wire, mark, time_ms)
        elif not trail.agrees(offset, mark, time_ms):
            self._report("altered", f"offset {offset} is not what others got there")

    def finish(self, *, cut_off: bool = False) -> None:
        """Report the offsets that never came, though later ones did, and those awaited.

        Of a subscriber that was cut off, nobody can say whether those awaited would have come.
        """
        count, first = self._sequence.lost()
        if count:
            self._report("lost", f"offset {first} never came, later ones did", count)
        awaited = self.goal + 1 - self.expected
        if awaited > 0 and cut_off:
            self._report("unchecked", f"from offset {self.expected} on", awaited)
        elif awaited > 0:
            self._report("lost", f"offset {self.expected} never came, nor what is behind it", awaited)

    def _report(self, kind: str, what: str, count: int = 1) -> None:
        self._gauge.problems.add(kind, f"{self._who}, {self.trail.channel}: {what}", count)
