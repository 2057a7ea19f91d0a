"""Publishers: messages made and sent in batches, and their acknowledgements booked against the channels' offsets.

At 200,000 publishes a second a publisher has a core of its own for 5 µs each; so runs of messages are made, framed,
masked and booked together, and one by one only where something is not as expected.
"""

import operator
import random
import sys
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import pairwise
from typing import Literal

import msgspec
from msgspec import Struct

from trisync.loadtest.clients import ID_PING, Speaker, Surroundings, Word
from trisync.loadtest.marks import PADDING, block_of, fingerprints
from trisync.loadtest.plan import Refused, clock_us
from trisync.loadtest.transports import UNREADABLE, Number

UNANSWERED_MAX = 100_000
UNSENT_BYTES_MAX = 8 * 1024 * 1024
"""Bounds on what a publisher piles up before a server that stalls: past them it waits. What an open loop then sends
is late by the clock of its latency; a window is no larger than they allow."""

REFUSED_MAX = 1000
"""Refused publishes that each publisher remembers. If there are more, the channel is said to lack them too."""

MESSAGE_BYTES_MIN = 48
"""Room for the longest numbers and times that a message's data has: with less, some would be larger than was asked."""

BATCH = 128
"""Messages of a window that are sent together, fewer where they are large."""


class Answer(Struct):
    """What many answers that come at once must be: what is not is no Answer, and read one by one."""

    op: Literal["ok"]
    id: int | None = None
    offset: Number = 0
    duplicate: None = None


_decode_answers = msgspec.json.Decoder(Answer).decode_lines


class Run:
    """Publishes to one channel that were due at the same time, and are not answered yet."""

    __slots__ = ("channel", "due_us", "left", "number", "padding")

    def __init__(self, channel: int, number: int, left: int, due_us: int, padding: int) -> None:
        self.channel = channel
        self.number = number
        """Of the first of them that is unanswered."""
        self.left = left
        self.due_us = due_us
        self.padding = padding
        """Length of it in each of them."""


class Publisher(Speaker):
    """Publishes: a window of unanswered publishes that is always full, or what a pacer asks for."""

    def __init__(
        self,
        number: int,
        around: Surroundings,
        channels: list[str],
        audience: list[int],
        popularity: list[float],
        message_bytes: int,
        seed: int,
    ) -> None:
        super().__init__(f"publisher {number}", around)
        self.number = number
        self.left = 0
        """Publishes that it may still send."""
        self._window = 0
        self._channels = [channel.encode() for channel in channels]
        self._audience = audience
        self._cumulated = popularity
        self._random = random.Random(seed * 1_000_003 + number)
        self._message_bytes = message_bytes
        self._batch = max(1, min(BATCH, UNSENT_BYTES_MAX // message_bytes))
        self._sent = [0] * len(channels)
        self._sent_all = 0
        self._answered = 0
        self._unanswered: deque[Run] = deque()
        self._heads = [0] * len(channels)
        self.refused: list[Refused] = []

    @property
    def full(self) -> bool:
        """Whether it must not send more now: the server does not keep up with the pace."""
        if self.link is None:
            return False
        return self._sent_all - self._answered >= UNANSWERED_MAX or self.link.unsent > UNSENT_BYTES_MAX

    def start(self, window: int, left: int = sys.maxsize) -> None:
        """Send up to `left` publishes, `window` of them unanswered at a time; 0 leaves the pace to somebody else."""
        if self.link is None:
            return
        self.left = left
        self._window = window
        self.around.pending.add(self)
        if window:
            self._refill()

    def _refill(self) -> None:
        """Fill the window, in batches: the server reads one while the next one is made."""
        while self.link is not None and not self.full:
            room = min(self._window - (self._sent_all - self._answered), self.left)
            if room <= 0:
                return
            self.publish(min(room, self._batch), clock_us())

    def stop(self) -> None:
        """Send nothing more; it is pending until everything is answered."""
        self.left = 0
        if not self._unanswered:
            self.around.done(self)

    def publish(self, count: int, due_us: int) -> None:
        """Send so many messages that are due at one time."""
        if self.link is None:
            return
        if self._cumulated:
            payloads = [self._compose(self._choose(), 1, due_us)[0] for _ in range(count)]
        else:
            payloads = self._compose(0, count, due_us)
        self.left -= count
        self.gauge.totals.sent += count
        self.link.send(self.link.join(payloads))

    def _choose(self) -> int:
        return bisect_right(self._cumulated, self._random.random())

    def _compose(self, channel: int, count: int, due_us: int) -> list[bytes]:
        number, id = self._sent[channel] + 1, self._sent_all + 1
        self._sent[channel] += count
        self._sent_all += count
        padding = max(0, self._message_bytes - len(b'[%d,%d,%d,%d,""]' % (channel, self.number, number, due_us)))
        self._unanswered.append(Run(channel, number, count, due_us, padding))
        template = b'{"op":"publish","channel":"%b","id":%%d,"data":[%d,%d,%%d,%d,"%b"]}' % (
            self._channels[channel],
            channel,
            self.number,
            due_us,
            PADDING.encode() * padding,
        )
        return [template % (id + more, number + more) for more in range(count)]

    def receive(self, chunk: memoryview) -> None:
        assert self.link is not None
        self.gauge.now_us = clock_us()
        before = self._answered
        data = self._tail + chunk
        lines, end = self.link.as_lines(data)
        if end and self._hear_all(lines):
            self._tail = data = data[end:]
        if data:
            self.read(data)
        if self.left > 0 and self._window and self._answered > before:
            self._refill()
        elif self.left <= 0 and not self._unanswered:
            self.around.done(self)

    def _hear_all(self, lines: bytes) -> bool:
        """Take many answers, if they are the good ones that are due; or none of them, and return False."""
        try:
            answers = _decode_answers(lines)
        except UNREADABLE:
            return False
        first = self._answered + 1
        last = first + len(answers)
        if last > self._sent_all + 1 or [answer.id for answer in answers] != list(range(first, last)):
            return False
        offsets = [answer.offset for answer in answers]
        while offsets:
            count = self._unanswered[0].left
            self._book(offsets[:count])
            del offsets[:count]
        return True

    def hear(self, word: Word, wire: bytes) -> None:
        if word.op not in ("ok", "error") or word.id == ID_PING:
            super().hear(word, wire)
        elif not self._unanswered or word.id != self._answered + 1:
            self.gauge.problems.add("uninvited", f"{self.name}: an answer to request {word.id} out of its turn")
        elif word.op == "error":
            self._report_refused(word)
            run = self._unanswered[0]
            if len(self.refused) < REFUSED_MAX:
                self.refused.append(Refused(run.channel, self.number, run.number))
            self._next_run(1)
        else:
            if word.duplicate:
                self.gauge.problems.add("unkept", f"{self.name}: request {word.id} is called a duplicate, and is none")
            self._book([word.offset])

    def _book(self, offsets: list[int]) -> None:
        """Note the offsets of the first unanswered publishes, which are of one run."""
        run = self._unanswered[0]
        channel, count = run.channel, len(offsets)
        if offsets[0] <= self._heads[channel] or not all(map(operator.lt, offsets, offsets[1:])):
            for before, offset in pairwise([self._heads[channel], *offsets]):
                if offset <= before:
                    name = self._channels[channel].decode()
                    text = f"{self.name}, {name}: acknowledged with offset {offset}, behind {before}"
                    self.gauge.problems.add("unkept", text)
        self._heads[channel] = max(self._heads[channel], *offsets)
        start = 0
        while start < count:  # mostly once
            block, next_block = block_of(offsets[start])
            end = max(start + 1, bisect_left(offsets, next_block, start))
            numbers = range(run.number + start, run.number + end)
            tally = self.around.acked.open(channel, block)
            tally.count += end - start
            tally.head = max(tally.head, offsets[end - 1])
            tally.fingerprint += fingerprints(offsets[start:end], self.number, numbers, run.due_us, run.padding)
            start = end
        self.gauge.acked(run.due_us, self._audience[channel], count)
        self._next_run(count)

    def _next_run(self, count: int) -> None:
        run = self._unanswered[0]
        self._answered += count
        run.number += count
        run.left -= count
        if not run.left:
            self._unanswered.popleft()

    def complain(self) -> None:
        unanswered = self._sent_all - self._answered
        if unanswered:
            self.gauge.problems.add("unanswered", f"{self.name} waits for answers", unanswered)
        else:
            super().complain()

    def ended(self, reason: str, kind: str) -> None:
        super().ended(reason, kind)
        if self._unanswered:
            self.complain()
            self._unanswered.clear()
