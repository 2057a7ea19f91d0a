"""Retention: cutting the old end of channels that hold more than their rule allows, beside the commits.

Small transactions between two batches, so that no publish waits long for one. Channels that were published to are
looked at each tick; all others in turns, a page of them a tick. Rules are in retention_rules.py, and the cut itself,
which never makes a hole and leaves the state alone, is the log's.
"""

import logging
from collections.abc import Sequence

import trio

from trisync.core.broker import Broker
from trisync.core.troubles import Troubles
from trisync.retention_rules import LIMIT_MAX, Rules
from trisync.storage.damage import SaidOnce
from trisync.storage.log import ChannelInfo, Log, LogDamaged, LogUnavailable, Run

logger = logging.getLogger(__name__)

ROWS_PER_STEP = 500
"""Messages cut in one transaction, over all of its channels: a few milliseconds between two batches."""
ROWS_PER_STEP_MAX = 4000
"""The same where one step after the other is not enough: they double up to this, 15 to 28 ms. Small messages at full
speed come faster than 500 can be cut."""
CHANNELS_PER_STEP = 50
"""Channels cut in one transaction, a share of its rows each. No more than that is read of a channel to see what has to
go: 1000 channels that are over their bytes lose 10,000 messages a second so, and lost 100 with 500 read of each."""
CHANNELS_PER_TICK = 1000
"""Channels read about in one step: ~10 ms of a reader's thread."""


class Retention:
    """Keeps a log's channels within their rules. run() must be running, and note() be told what is stored."""

    def __init__(self, log: Log, broker: Broker, rules: Rules, tick_s: float) -> None:
        self._log = log
        self._broker = broker
        self._rules = rules
        self._tick_s = tick_s
        self._troubles = Troubles(logger)
        self._passed_over = SaidOnce()
        self._due: dict[str, None] = {}
        self._is_behind = False  # a tick was too short for all that there was to cut
        self._round_at: str | None = ""
        """Behind which channel the round over all of them goes on; None when none is needed any more."""

    def note(self, runs: Sequence[Run]) -> None:
        """Channels have grown. Cheap; never blocks or raises."""
        for run in runs:
            if self._rules.outgrown(run.channel):
                self._due[run.channel] = None

    async def run(self) -> None:
        """Cut what is over, tick after tick, until cancelled: then a cut is done or not, never half.

        While the log cannot be had nothing is lost but time: the next ticks do it.
        """
        while True:
            if not self._is_behind:
                await trio.sleep(self._tick_s)
            self._is_behind = False
            due, self._due = list(self._due), {}
            try:
                for start in range(0, len(due), CHANNELS_PER_TICK):
                    await self._enforce(await self._log.describe(due[start : start + CHANNELS_PER_TICK]))
                await self._go_round()
            except LogUnavailable as problem:
                self._due |= dict.fromkeys(due)
                self._troubles.note("retention waits", problem)
            else:
                self._troubles.note("retention waits", None)

    async def _go_round(self) -> None:
        """Look at the next channels in the round: rules may be new, and age comes without a publish."""
        if self._round_at is None:
            return
        infos = await self._log.channels(self._round_at, CHANNELS_PER_TICK)
        await self._enforce(infos)
        if len(infos) == CHANNELS_PER_TICK:
            self._round_at = infos[-1].name
        else:
            self._round_at = "" if self._rules.by_age else None

    async def _enforce(self, infos: Sequence[ChannelInfo]) -> None:
        """Cut these channels step by step, all of them in turn, until what was over is gone. Raises LogUnavailable.

        What comes meanwhile is for the next tick. What is over for longer than a tick is due at once, with all others.
        """
        enough_s = trio.current_time() + self._tick_s
        rows = ROWS_PER_STEP
        while over := [info for info in infos if self._is_over(info)]:
            more: list[str] = []
            for start in range(0, len(over), CHANNELS_PER_STEP):
                more += await self._cut(over[start : start + CHANNELS_PER_STEP], rows)
            if not more:
                return
            if trio.current_time() >= enough_s:
                self._due |= dict.fromkeys(more)
                self._is_behind = True
                return
            infos = await self._log.describe(more)
            rows = min(2 * rows, ROWS_PER_STEP_MAX)

    async def _cut(self, over: Sequence[ChannelInfo], rows: int) -> list[str]:
        """Cut so many messages of these channels, a share of each; returns those that may have more to be cut.

        A channel that damage keeps from being cut is passed over, and holds up no other.
        """
        share = rows // len(over)
        try:
            cuts = {info.name: await self._surplus(info, share) for info in over}
            extents = await self._broker.trim(cuts, rows)
        except LogDamaged as problem:
            if len(over) == 1:
                if self._passed_over.is_news(over[0].name):
                    logger.warning("retention passes over %s, which is damaged: %s", over[0].name, problem)
                return []
            half = len(over) // 2
            return await self._cut(over[:half], rows // 2) + await self._cut(over[half:], rows // 2)
        return [
            info.name
            for info in over
            if info.name in extents
            and (cuts[info.name] == info.extent.trimmed + share or extents[info.name].trimmed < cuts[info.name])
        ]

    def _is_over(self, info: ChannelInfo) -> bool:
        return self._count_over(info) > 0 or self._begins_past(info)

    def _count_over(self, info: ChannelInfo) -> int:
        """How many messages a channel has more than it may, however old and large they are."""
        limits = self._rules.limits(info.name)
        if limits is None or limits.messages is None:
            return 0
        return max(0, info.extent.head - info.extent.trimmed - limits.messages)

    def _begins_past(self, info: ChannelInfo) -> bool:
        if info.oldest_ms is None:  # if it has messages, damage took the oldest: _surplus() sees what is behind that
            return info.extent.trimmed < info.extent.head and self._is_past(info.name, 0, LIMIT_MAX + 1)
        return self._is_past(info.name, info.oldest_ms, info.bytes)

    def _is_past(self, channel: str, time_ms: int, held_bytes: int) -> bool:
        """Whether a message of this time is too old, or the channel holds too many bytes from it on."""
        limits = self._rules.limits(channel)
        if limits is None:
            return False
        is_old = limits.age_ms is not None and time_ms < self._log.now_ms() - limits.age_ms
        return is_old or (limits.bytes is not None and held_bytes > limits.bytes)

    async def _surplus(self, info: ChannelInfo, count_max: int) -> int:
        """The offset up to which a channel has to be cut, by so many messages at most; what damage took is cut too."""
        trimmed = info.extent.trimmed
        until = trimmed + min(self._count_over(info), count_max)
        end = min(trimmed + count_max, info.extent.head)
        if until == end or not self._begins_past(info):
            return until
        for message in await self._log.oldest(info.name, end - trimmed):
            if message.offset > until and not self._is_past(info.name, message.time_ms, message.held_bytes):
                return message.offset - 1
        return end
