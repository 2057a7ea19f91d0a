"""Reading the log back: what was acknowledged must be in it, whether or not anybody has seen it delivered.

It is read by `history` in blocks, each by itself: so several connections share them, and where there are more than can
be read in time, any of them can be left out. What is read is compared with the acknowledgements in verdict.py.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from trisync.loadtest.clients import Speaker, Surroundings, Word
from trisync.loadtest.links import Link
from trisync.loadtest.marks import BLOCK, Ledger
from trisync.loadtest.plan import WHY_UNREAD, Block, Finish, Unread, clock_us
from trisync.loadtest.trails import Contents, Sequence

READERS = 2
"""Connections of each worker that read at the same time, if it has so many: a server fetches for one while it sends to
the other."""


class Reading:
    """A worker's share of the log, who reads it, and what they have read."""

    def __init__(
        self, around: Surroundings, channels: list[str], order: Finish, worker: int, workers: int, links: Iterable[Link]
    ) -> None:
        self.channels = channels
        self.refused = order.refused
        self.trimmed = order.trimmed
        self.ledger = Ledger()
        self.unread: list[Unread] = []
        self.heads: dict[int, int] = {}
        self._left = deque(order.blocks[worker::workers])
        self._until_us = clock_us() + int(order.seconds * 1e6)
        self._why_late: WHY_UNREAD = "late"
        self._problems = around.gauge.problems
        taken: list[Link | None] = [*islice(links, READERS)] or [None]
        self.readers = [LogReader(f"reader {worker}.{number}", around, self, link) for number, link in enumerate(taken)]
        del self.readers[len(self._left) :]

    @property
    def late(self) -> bool:
        """Whether there is no more time."""
        return clock_us() >= self._until_us

    def next(self) -> Block | None:
        """The block to be read now; None where there is none, or no time."""
        return self._left.popleft() if self._left and not self.late else None

    def interrupt(self) -> None:
        """Hang up, whatever is on its way, and leave the rest."""
        for reader in self.readers:
            self._left.extend(reader.stop())
        self._until_us, self._why_late = 0, "interrupted"

    def finish(self) -> None:
        """Hang up, and say of all that nobody has read why that is."""
        for reader in self.readers:
            for block in reader.stop():
                self._report_unchecked(block)
        for block in self._left:
            if self.late:
                self.unread.append(Unread(block, self._why_late))
            else:
                self._report_unchecked(block)

    def _report_unchecked(self, block: Block) -> None:
        """Report a block that could not be read, as there was no answer, or no connection."""
        text = f"{self.channels[block.channel]}: offsets {block.first} to {block.last} were not read back"
        self._problems.add("unchecked", text, block.last - block.first + 1)


class LogReader(Speaker):
    """Reads block after block, as long as there are any."""

    def __init__(self, name: str, around: Surroundings, reading: Reading, link: Link | None) -> None:
        super().__init__(name, around)
        self._reading = reading
        self.link = link
        self._block: Block | None = None
        """What it reads now."""
        self._asked = 0

    def open(self) -> None:
        """Begin, over a connection that nobody needs any more where there is one: a full server takes no other."""
        if self.link is None:
            super().open()
        else:
            self.link.client = self
            self.around.pending.add(self)
            self._begin()

    def opened(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._block = block = self._reading.next()
        if block is None:
            self.around.done(self)
            return
        self._channel = self._reading.channels[block.channel]
        self._offsets = Sequence(block.first)
        self._contents = Contents(block.channel, self._channel, self.gauge.problems, block.first)
        self._ask(block)

    def _ask(self, block: Block) -> None:
        self._asked += 1
        begin, limit = self._offsets.expected - 1, min(BLOCK, block.last - self._offsets.expected + 1)
        self.ask(
            b'{"op":"history","id":%d,"channel":"%b","since":%d,"limit":%d}'
            % (self._asked, self._channel.encode(), begin, limit)
        )

    def hear(self, word: Word, wire: bytes) -> None:
        block, self.gauge.moved_us = self._block, self.gauge.now_us
        if block is None or word.messages is None or word.id != self._asked:
            super().hear(word, wire)
        elif self.around.epoch not in ("", word.epoch):
            self._leave(block, "replaced")
        else:
            self._reading.heads[block.channel] = word.offset
            if word.trimmed >= block.first:
                self._leave(block, "trimmed")
            else:
                self._take_page(block, word.messages, more=word.more)

    def _take_page(self, block: Block, messages: list[Word], *, more: bool) -> None:
        before = self._offsets.expected
        for message in messages:
            self._take_message(message)
        offsets = [message.offset for message in messages]
        gone, head = self._reading.trimmed.get(block.channel, 0), self._reading.heads[block.channel]
        if offsets and min(offsets) <= gone:
            text = f"all up to offset {gone} was called trimmed, and offset {min(offsets)} is still there"
            self.gauge.problems.add("lost", f"{self._channel}: {text}")
        if offsets and max(offsets) > head:
            text = f"offset {max(offsets)} is in the log, which is said to end at {head}"
            self.gauge.problems.add("unkept", f"{self._channel}: {text}")
        if not more or not before < self._offsets.expected <= block.last:
            self._end(block)
        elif self._reading.late:
            self._leave(block, "late")
        else:
            self._ask(block)  # one page does not hold large messages, nor all of a wide block

    def _leave(self, block: Block, why: WHY_UNREAD) -> None:
        self._reading.unread.append(Unread(block, why))
        self._begin()

    def _take_message(self, message: Word) -> None:
        if message.channel != self._channel or message.data is None:
            self.gauge.problems.add("uninvited", f"{self.name}: a message of {message.channel!r}")
            return
        self.judge(message)
        wrong = self._offsets.take(message.offset)
        if wrong is not None:
            text = f"{self.name}, {self._channel}: offset {message.offset} is {wrong} in the log"
            self.gauge.problems.add(wrong, text)
        self._contents.take(message.offset, message.data, message.time)

    def _end(self, block: Block) -> None:
        missing, first = self._offsets.lost()
        if missing:
            self._report_unstored(f"offset {first} is not in the log, later ones are", missing)
        short = block.last + 1 - self._offsets.expected
        if short > 0:
            self._report_unstored(f"offset {self._offsets.expected} is not in the log, nor what is behind it", short)
        self._contents.finish(self._reading.refused)
        self._reading.ledger.add(self._contents.ledger.blocks())
        self._begin()

    def _report_unstored(self, what: str, count: int) -> None:
        self.gauge.problems.add("unstored", f"{self._channel}: {what}", count)

    def stop(self) -> list[Block]:
        """Hang up; returns what it was still reading."""
        self.close()
        self.around.done(self)
        block, self._block = self._block, None
        return [] if block is None else [block]
