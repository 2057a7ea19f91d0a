"""The broker: publishes in, one group commit after the other, acknowledgements and deliveries out.

It stands between the log and the connections, and knows the latter only as outlets. While a batch commits in
the log's thread, the next one gathers; load makes batches grow by themselves.
"""

import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import trio
from msgspec import UNSET, UnsetType

from trisync.core.channels import YIELD_EVERY, Channel
from trisync.core.errands import Errand
from trisync.core.fair_queue import FairQueue
from trisync.core.presence import Presence
from trisync.core.shared_reads import SharedReads
from trisync.core.troubles import Troubles
from trisync.settings import Settings
from trisync.storage.log import (
    ChannelInfo,
    Extent,
    Flow,
    Log,
    LogDamaged,
    LogUnavailable,
    Page,
    Refused,
    Run,
    StatePage,
    Submission,
    Verdict,
)
from trisync.tokens import Tokens
from trisync.wire.errors import WireError, too_large
from trisync.wire.protocol import STATE_LIMIT, Publish, data_text
from trisync.wire.replies import ephemeral_message

logger = logging.getLogger(__name__)

T = TypeVar("T")

GATHER_BYTES_MAX = 64 * 1024
"""While less than this waits, as Submission counts it, others are let join before it is committed: some 200 small
publishes. Beside more, a commit's own cost is small, and it is better to decode others while the disk works."""


class Broker:
    """Channels, group commit and reads over one log. run() must be running for publishes to be answered."""

    def __init__(
        self, log: Log, settings: Settings, *, timer: Callable[[], float], tokens: Tokens = secrets.token_hex
    ) -> None:
        self.tokens = tokens
        """For whoever serves this broker's clients."""
        self._log = log
        self._settings = settings
        self.reads = SharedReads(log, settings, timer)
        """For those who are behind a channel's head."""
        self._channels: dict[str, Channel] = {}
        self._queue = FairQueue()
        self._program = Flow()  # of the program around the server: all that it publishes is one publisher's
        self._arrived = trio.Event()
        self._storing: Sequence[Submission] = ()  # the batch that the log has, until all of it is answered
        self._answered: Sequence[Run] = ()  # what that batch stored, until all of it is fanned out
        self._written = 0  # to how many subscribers since other tasks had a turn
        self._batch_settled = trio.Event()  # replaced after each batch: whoever waits looks again
        self._errands: deque[Errand[Any]] = deque()
        self._troubles = Troubles(logger)
        self.stored: Callable[[list[Run]], None] = lambda runs: None
        """Called with what each batch stored, behind its fan-out; must not block or raise."""
        self.presence = Presence(
            grace_s=settings.presence_grace_s,
            tick_s=settings.presence_tick_s,
            bytes_max=settings.message_bytes_max,
            timer=timer,
            secret=bytes.fromhex(tokens(32)),
        )
        self._producers: dict[str, Callable[[], None]] = {}
        self.draining = False
        """Whether clients' publishes are refused."""
        self._ended = False
        self._waiting: set[trio.Event] = set()

    @property
    def epoch(self) -> str:
        """The log's identity."""
        return self._log.epoch

    def now_ms(self) -> int:
        """The log's clock: Unix time, never before that of the newest message."""
        return self._log.now_ms()

    # Publishing

    def submit(self, submission: Submission) -> None:
        """Queue publishes for the next batch; `submission.settle` is called when their verdicts are there."""
        if self.draining:
            submission.turn_away(WireError("draining", "the server is stopping; nothing was stored"))
        self._queue_up(submission)

    def _queue_up(self, submission: Submission) -> None:
        self._queue.push(submission)
        self._arrived.set()

    async def publish(self, item: Publish, sender: str | None = None) -> Verdict:
        """Publish one message that no connection sent, and wait for its verdict, also while the server drains.

        Cancelled, it may be stored nevertheless.
        """
        if len(item.data) > self._settings.message_bytes_max:
            return too_large(self._settings.message_bytes_max, closes=False)
        if self._ended:
            return WireError("draining", "the server has stopped; nothing was stored")
        answered = trio.Event()
        submission = Submission(lambda submission: answered.set(), sender, flow=self._program)
        submission.add(item, len(item.data))
        self._queue_up(submission)
        self._waiting.add(answered)
        try:
            await answered.wait()
        finally:
            self._waiting.discard(answered)
        if not submission.verdicts:
            return WireError("internal", "the server stopped meanwhile: whether it was stored is not known")
        return submission.verdicts[0]

    def has_room(self, flow: Flow) -> bool:
        """Whether a flow's publisher may be read: the queue is below its bound, or holds nothing of that flow."""
        return self._queue.size <= self._settings.queue_bytes_max or not flow.unsettled

    async def room(self, flow: Flow) -> None:
        """Wait for has_room()."""
        while not self.has_room(flow):
            await self._batch_settled.wait()

    async def settled(self) -> None:
        """Wait until everything that was submitted before this call has its verdict."""
        arrived = self._queue.arrived
        while not self._queue.has_settled(arrived):
            await self._batch_settled.wait()

    async def run(self) -> None:
        """Commit batches until cancelled. An outcome that is not known is raised: the server must stop."""
        try:
            await self._run()
        finally:
            # For the program around the server, which waits in publish() and between_batches(): nobody else wakes it.
            self._ended = True
            for answered in self._waiting:
                answered.set()
            for errand in self._errands:
                errand.call_off(LogUnavailable("the server has stopped"))

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            chores = True
            while self._queue or self._errands or chores:
                if self._queue:
                    await self._commit()
                    if 0 < self._queue.size < GATHER_BYTES_MAX:
                        await self._let_others_publish()
                if self._errands:
                    await self._errands[0].run()
                    self._errands.popleft()  # not before: if it ends the broker, run() calls it off
                chores = await self._maintain()
            self._arrived = trio.Event()

    async def _maintain(self) -> bool:
        """Have the log do a step of its own; whether it has more to do."""
        try:
            more = await self._log.maintain()
        except LogUnavailable as problem:
            self._troubles.note("maintenance fails", problem)
            return False
        self._troubles.note("maintenance fails", None)
        return more

    async def _let_others_publish(self) -> None:
        """Let those who can be read by now be read, so that what they publish is in the next batch.

        Otherwise those who publish again as soon as they are answered would go on as two crowds, taking turns in
        batches of half the size.
        """
        for _ in range(2):  # in one turn of the loop, Trio runs its tasks in either order
            await trio.lowlevel.checkpoint()

    async def between_batches(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something when no batch is under way, for its result. Raises LogUnavailable, if that does.

        Cancelled, it may be run nevertheless, also later. Anything else that it raises ends the broker.
        """
        if self._ended:
            raise LogUnavailable("the server has stopped")
        errand = Errand(work)
        self._errands.append(errand)
        self._arrived.set()
        return await errand.result()

    def _take_batch(self) -> list[Submission]:
        return self._queue.take(self._settings.batch_messages_max, self._settings.batch_bytes_max)

    async def _commit(self) -> None:
        """Store the next batch, then answer all its publishers, then deliver all that they published."""
        self._storing = batch = self._take_batch()
        runs = await self._store(batch)
        for submission in batch:
            submission.settle(submission)
        self._storing = ()
        self._answered = runs
        self.reads.keep(runs)
        for run in runs:
            channel = self._channels.get(run.channel)
            if channel is not None:
                await channel.fan_out(run)
                await self._wrote_to(channel)
        self._answered = ()
        for submission in batch:
            if submission.ephemeral:
                await self._flash(submission)
        self.stored(runs)
        self._queue.settle(batch)
        self._batch_settled.set()
        self._batch_settled = trio.Event()

    async def _store(self, batch: list[Submission]) -> list[Run]:
        """Have a batch's verdicts decided; returns what was stored, which is nothing while the log is unavailable."""
        if not any(submission.durable for submission in batch):
            for submission in batch:
                submission.verdicts = [item.error if type(item) is Refused else 0 for item in submission.items]
            return []
        try:
            runs = await self._log.append(batch)
        except LogUnavailable as problem:
            if not isinstance(problem, LogDamaged):
                self._troubles.note("publishes are refused", problem)
            elif len(batch) > 1:  # it may be in the way of one of them alone
                half = len(batch) // 2
                return await self._store(batch[:half]) + await self._store(batch[half:])
            error = WireError("unavailable", f"the log cannot take it now, nothing was stored: {problem}")
            for submission in batch:
                submission.refuse(error)
            return []
        self._troubles.note("publishes are refused", None)
        return runs

    async def _flash(self, submission: Submission) -> None:
        """Deliver what is not stored, behind what was stored with it."""
        verdicts = zip(submission.items, submission.verdicts, strict=True)
        fleeting = [item for item, verdict in verdicts if verdict == 0 and type(item) is Publish]
        for name, items in groupby(fleeting, attrgetter("channel")):
            channel = self._channels.get(name)
            if channel is not None:
                now_ms, sender = self.now_ms(), submission.sender
                await channel.flash([ephemeral_message(name, now_ms, sender, data_text(item.data)) for item in items])
                await self._wrote_to(channel)

    async def _wrote_to(self, channel: Channel) -> None:
        """Count who was written to, and let others have a turn after YIELD_EVERY, in however many channels."""
        self._written += channel.audience
        if self._written >= YIELD_EVERY:
            self._written = 0
            await trio.lowlevel.checkpoint()

    # Subscribing

    async def enter(self, name: str, offset: int | UnsetType = UNSET) -> Channel:
        """A channel whose head is known, kept in memory until leave() is called for it. Raises LogUnavailable.

        The head is at least what was acknowledged before the call, and `offset`, if the log has that: a client may know
        it from a read of the log, which has messages before they are fanned out.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name)
        channel.members += 1
        try:
            if channel.loading is not None:
                async with channel.loading:
                    if channel.loading is not None:
                        extent = await self._log.extent(name)
                        if self._is_being_stored(name):
                            await self._batch_settled.wait()
                        channel.learn(extent)
                        channel.loading = None
            if self._is_ahead(channel, offset):
                await self._batch_settled.wait()
        except BaseException:
            self.leave(channel)
            raise
        return channel

    def _is_being_stored(self, name: str) -> bool:
        """Whether the log may show messages of a channel whose publishers have no answers yet."""
        items = (item for submission in self._storing for item in submission.items)
        return any(type(item) is Publish and item.channel == name for item in items)

    def _is_ahead(self, channel: Channel, offset: int | UnsetType) -> bool:
        """Whether a client may know of something in the batch under way that is not fanned out yet."""
        if any(run.channel == channel.name and run.last > channel.head for run in self._answered):
            return True
        return offset is not UNSET and offset > channel.head and self._is_being_stored(channel.name)

    def leave(self, channel: Channel) -> None:
        """Undo one enter()."""
        channel.members -= 1
        if channel.members == 0:
            del self._channels[channel.name]

    # Asking

    async def history(self, name: str, since: int | None, count_max: int) -> Page:
        """The newest messages of a channel, or those behind `since`. Raises LogUnavailable."""
        bytes_max = self._settings.message_bytes_max
        if since is None:
            return await self._log.newest(name, count_max, bytes_max)
        return await self._log.read(name, since, count_max, bytes_max)

    async def state(self, name: str, after: str) -> StatePage:
        """Entries of a channel's state behind a key, a page of them. Raises LogUnavailable."""
        return await self._log.state(name, after, STATE_LIMIT, self._settings.message_bytes_max)

    async def word(self, name: str, key: str) -> StatePage:
        """One entry of a channel's state, or none. Raises LogUnavailable."""
        return await self._log.word(name, key)

    async def channels(self, after: str, count_max: int) -> list[ChannelInfo]:
        """Channels by name, behind a name. Raises LogUnavailable."""
        return await self._log.channels(after, count_max)

    # Cutting

    async def clear(self, name: str) -> Extent:
        """Empty a channel of messages and state; subscribers are told, unless it was empty. Offsets go on.

        Raises LogUnavailable.
        """

        async def work() -> Extent:
            extent = await self._log.clear(name)
            if extent is None:
                return await self._log.extent(name)
            logger.info("%s is emptied: it goes on behind offset %d", name, extent.head)
            self.reads.forget_state(name)
            channel = self._channels.get(name)
            if channel is not None:
                await channel.empty(extent)
            return extent

        return await self.between_batches(work)

    async def trim(self, cuts: Mapping[str, int], count_max: int) -> Mapping[str, Extent]:
        """Cut channels' oldest messages, as Log.trim() does, between two batches. Raises LogUnavailable."""

        async def work() -> Mapping[str, Extent]:
            extents = await self._log.trim(cuts, count_max)
            for name, extent in extents.items():
                logger.debug("%s is cut up to offset %d", name, extent.trimmed)
                channel = self._channels.get(name)
                if channel is not None:
                    channel.trimmed = max(channel.trimmed, extent.trimmed)
            return extents

        return await self.between_batches(work)

    # Producers

    async def take_producer(self, producer: str, fence: Callable[[], None]) -> int:
        """Make a connection the producer's only one; returns the last settled seq. Raises LogUnavailable.

        `fence` is called when another connection takes the producer over. What the earlier one had queued is settled
        before the answer: if new publishes went on from an older seq, they would be taken for retries of that.
        """
        earlier = self._producers.get(producer)
        if earlier is not None and earlier != fence:
            earlier()
        self._producers[producer] = fence
        await self.settled()
        return await self._log.settled_seq(producer)

    def release_producer(self, producer: str, fence: Callable[[], None]) -> None:
        """Forget who a producer's connection is, if it is still the one that had passed `fence`."""
        if self._producers.get(producer) == fence:
            del self._producers[producer]
