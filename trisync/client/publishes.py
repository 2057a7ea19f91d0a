"""The queue of publishes that are not settled: their producer's seq, the window in flight, and sending them again.

Sans-IO. A publish gets its seq when it is first sent, and keeps it until the server has settled it: whatever becomes
of connections, it is stored once. Only what the server is known not to have may be numbered anew.
"""

import logging
import math
import re
from collections import deque
from collections.abc import Callable
from random import Random

from trisync.client.backoff import Backoff, pause_of
from trisync.client.errors import ClientError, ProtocolError, QueueFull, Refused, publishes
from trisync.client.wire import Ok, Refusal, check_size
from trisync.wire.protocol import OFFSET_MAX, UNANSWERED_MAX

logger = logging.getLogger("trisync.client")

RESEND_S_BASE = 0.25
RESEND_S_MAX = 10.0
"""Pauses before what the server could not take is sent again double from the one to the other."""

IN_FLIGHT_BYTES = 1 << 20
"""Past so much nothing more is sent before an answer: a slow line must not look like a server that is silent."""

MESSAGE_BYTES_MAX = 1 << 20
"""The server's limit for as long as it has not said another."""

NOT_SETTLING = {"bad_json", "too_large"}
"""Final refusals that do not use up the seq: what was sent behind one is out of sequence."""

_EXPECT = re.compile(rb',"expect":[0-9]+')
"""Of a body; in a key, there is a backslash before each quote."""


class Publish:
    """One publish, from the moment it was queued until it is settled."""

    __slots__ = ("body", "epoch", "error", "in_flight", "offset", "on_settled", "seq", "settled", "told", "unanswered")

    def __init__(self, body: bytes, epoch: str) -> None:
        self.body = body
        self.epoch = epoch
        """The log that the offset it expects is of; empty where it expects none, or nobody knows."""
        self.seq = 0
        """0 until it is first sent."""
        self.in_flight = False
        """Sent on this connection, and not answered yet."""
        self.settled = False
        self.offset = 0
        """Where it is stored, once it is settled without an error."""
        self.error: ClientError | None = None
        self.unanswered = False
        """The client was closed before there was a verdict: it logs how many such there were, and no receipt does."""
        self.told = False
        """Whoever has its receipt has looked what became of it, once that was known."""
        self.on_settled: list[Callable[[], None]] = []
        """Called once it is settled, in order."""

    def settle(self, offset: int, error: ClientError | None = None) -> None:
        self.settled = True
        self.offset = offset
        self.error = error
        on_settled, self.on_settled = self.on_settled, []  # so that nothing is kept alive by what it waited for
        for act in on_settled:
            act()


class Publishes:
    """The publishes of one producer, in order. `timer` gives seconds that only grow."""

    def __init__(self, count_max: int, bytes_max: int, timer: Callable[[], float], random: Random) -> None:
        self.epoch = ""
        """The log that is published to: that of the newest hello."""
        self.window = UNANSWERED_MAX
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.in_flight = 0
        self.resend_at = math.inf
        """When sending goes on after the server could not take one."""
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._timer = timer
        self._backoff = Backoff(random, RESEND_S_BASE, RESEND_S_MAX, least=0.5)
        self._sent: deque[Publish] = deque()  # with a seq, which grow by one from the first to the last
        self._unsent: deque[Publish] = deque()
        self._bytes = 0
        self._bytes_in_flight = 0
        self._last_seq: int | None = None  # the newest that was given; None before a producer's first hello
        self._settled_seq = 0  # the newest whose verdict is here
        self._greeted = False
        self._given_up: list[Publish] = []
        self._holding = False
        self._pause_s: float | None = None
        self._expected = 0  # by an out_of_sequence, while holding

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    @property
    def has_room(self) -> bool:
        """Whether another publish may be queued; the first one always may."""
        return len(self) < self._count_max and self._bytes < self._bytes_max

    @property
    def unsettled(self) -> list[Publish]:
        """All that were queued and are not settled, in order. They may be settled in another order."""
        return [*self._sent, *self._unsent]

    def add(self, body: bytes, epoch: str) -> Publish:
        """Queue a publish; `epoch` is the log that the offset it expects is of, empty where there is none to judge.

        Raises QueueFull, and TooLarge where the limit is known by now.
        """
        if not self.has_room:
            raise QueueFull(f"the queue is full: {publishes(len(self))}, {self._bytes} bytes")
        too_large = check_size(body, self.message_bytes_max) if self._greeted else None
        if too_large is not None:
            raise too_large
        publish = Publish(body, epoch)
        self._unsent.append(publish)
        self._bytes += len(body)
        return publish

    # The connection

    def lost(self) -> None:
        """The connection is gone: what is unanswered is in doubt, and will be sent again."""
        for publish in self._sent:
            publish.in_flight = False
        self.in_flight = self._bytes_in_flight = 0
        self._greeted = False
        self._release()

    def greeted(self, settled: int) -> bool:
        """The hello was answered: `settled` is the seq that the server has settled last.

        False where that cannot be: see is_ahead(); or it is below one whose verdict is here, and the server has
        forgotten the producer, or its log is one from before. Then nothing is sent until begin_anew().
        """
        if self._last_seq is None:
            self._last_seq = self._settled_seq = settled
        if not self._settled_seq <= settled <= self._last_seq:
            return False
        self._greeted = True
        self._continue_behind(settled)
        self._refuse_too_large()
        return True

    def is_ahead(self, settled: int) -> bool:
        """Whether a seq is one that was never given: by somebody else who uses the producer, if not in another log."""
        return self._last_seq is not None and settled > self._last_seq

    def begin_anew(self) -> None:
        """Another producer publishes what is not settled, from seq 1; what was in doubt may be stored twice by that."""
        self.lost()
        self._last_seq = None
        for publish in self._sent:
            publish.seq = 0
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()

    def _continue_behind(self, settled: int) -> None:
        """Close the hole, if there is one, between what the server has settled and what is sent next.

        There is one where a refusal did not use up its seq.
        """
        assert self._last_seq is not None
        next_seq = self._sent[0].seq if self._sent else self._last_seq + 1
        if settled + 1 >= next_seq:
            return
        logger.warning("the server expects seq %d and not %d: the rest is numbered anew", settled + 1, next_seq)
        for seq, publish in enumerate(self._sent, settled + 1):
            publish.seq = seq
        self._last_seq = settled + len(self._sent)

    def _refuse_too_large(self) -> None:
        """Settle what was queued before the limit was known."""
        verdicts = [(publish, check_size(publish.body, self.message_bytes_max)) for publish in self._unsent]
        self._unsent = deque(publish for publish, too_large in verdicts if too_large is None)
        for publish, too_large in verdicts:
            if too_large is not None:
                self._bytes -= len(publish.body)
                publish.settle(0, too_large)  # whoever hears of it may publish

    # Sending

    def take_output(self) -> list[bytes]:
        """The payloads that may be sent now; from here on they are in flight."""
        if not self._greeted or self._holding:
            return []
        output: list[bytes] = []
        if self.in_flight < len(self._sent):
            for publish in self._sent:
                if not publish.in_flight and self._may_send:
                    output.append(self._send(publish))
        assert self._last_seq is not None
        while self._unsent and self._may_send and len(self._sent) < self.window:
            publish = self._unsent.popleft()
            self._last_seq += 1
            publish.seq = self._last_seq
            self._sent.append(publish)
            output.append(self._send(publish))
        return output

    @property
    def _may_send(self) -> bool:
        return self.in_flight < self.window and self._bytes_in_flight < IN_FLIGHT_BYTES

    def _send(self, publish: Publish) -> bytes:
        publish.in_flight = True
        self.in_flight += 1
        self._bytes_in_flight += len(publish.body)
        if check_size(publish.body, self.message_bytes_max) is not None:
            # The limit was higher when it was first sent, and the server would hang up over it. Of a seq alone it
            # repeats the verdict, or refuses a publish that has nothing else, and the seq is settled.
            return b'{"op":"publish","id":%d,"seq":%d}' % (publish.seq, publish.seq)
        body = publish.body
        if publish.epoch and publish.epoch != self.epoch:
            # In this log that offset may be of a word which nobody saw. No key has this one: its conflict tells what
            # there is. Where there is a verdict already, it is repeated all the same.
            body = _EXPECT.sub(b',"expect":%d' % OFFSET_MAX, body, count=1)
        return b'{"op":"publish","id":%d,"seq":%d,%b' % (publish.seq, publish.seq, body)

    # Answers

    def accepted(self, ok: Ok) -> None:
        """A publish is stored. Raises ProtocolError for an answer to none."""
        publish = self._find(ok.id)
        self._backoff.reset()
        self._settled_seq = publish.seq
        self._remove(publish)
        publish.settle(ok.offset)
        self._resume_if_all_answered()

    def refused(self, answer: Refusal, error: Refused) -> None:
        """A publish has failed for good, or is to be sent again. Raises ProtocolError for an answer to none."""
        publish = self._find(answer.id)
        if answer.retry:
            self._hold(answer)
        else:
            if answer.code not in NOT_SETTLING:
                self._settled_seq = publish.seq
            self._remove(publish)
            # In place of a conflict too, which would have no data here, as if there were no such key.
            publish.settle(0, check_size(publish.body, self.message_bytes_max) or error)
        self._resume_if_all_answered()

    def _find(self, seq: int | str | None) -> Publish:
        """The publish that is answered. Answers come in order, so it is the first, or behind some that are held."""
        for publish in self._sent:
            if publish.seq == seq and publish.in_flight:
                publish.in_flight = False
                self.in_flight -= 1
                self._bytes_in_flight -= len(publish.body)
                return publish
        raise ProtocolError(f"the server answered a publish that it was not asked: {seq}")

    def _remove(self, publish: Publish) -> None:
        self._sent.remove(publish)
        self._bytes -= len(publish.body)

    # Pauses

    def _hold(self, answer: Refusal) -> None:
        """Send nothing more until all that is in flight is answered: it was refused with this one."""
        if answer.code == "out_of_sequence":
            self._expected = max(self._expected, answer.seq + 1)
        elif self._pause_s is None:
            pause_s = self._backoff.failed()
            self._pause_s = pause_of(answer.retry_ms) or pause_s
            level = logging.WARNING if self._backoff.failures == 1 else logging.DEBUG  # not at every attempt
            said = "a publish is refused for now, and it and what comes behind it wait: %s (%s); again in %.2f s"
            logger.log(level, said, answer.message, answer.code, self._pause_s)
        self._holding = True

    def _resume_if_all_answered(self) -> None:
        if self._holding and not self.in_flight:
            if self._expected:
                self._continue_behind(self._expected - 1)
            if self._pause_s is None:
                self._release()
            else:
                self.resend_at = self._timer() + self._pause_s

    def tick(self, now: float) -> None:
        """Go on if a pause is over."""
        if now >= self.resend_at:
            self._release()

    def _release(self) -> None:
        self._holding = False
        self._pause_s = None
        self.resend_at = math.inf
        self._expected = 0

    def fail(self, error: ClientError) -> int:
        """The end: settle what is left with an error. Returns how many there were."""
        left = self._given_up = self.unsettled
        self._sent.clear()
        self._unsent.clear()
        self.in_flight = self._bytes = self._bytes_in_flight = 0
        for publish in left:
            publish.unanswered = True
            publish.settle(0, error)
        return len(left)

    @property
    def untold(self) -> int:
        """How many fail() has settled of which nobody was told."""
        return sum(not publish.told for publish in self._given_up)
