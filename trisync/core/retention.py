"""Retention: cutting the old end of channels that hold more than their rule allows, beside the commits.

Small transactions between two batches, so that no publish waits long for one. Channels that were published to are
looked at each tick; all others in turns, a page of them a tick. Rules are in retention_rules.py, and the cut itself,
which never makes a hole and leaves the state alone, is the log's.
"""

import logging
import math
from collections.abc import Sequence

import trio

from trisync.core.broker import Broker
from trisync.core.troubles import Troubles
from trisync.retention_rules import Rules
from trisync.storage.log import ChannelInfo, Log, LogUnavailable, Run

logger = logging.getLogger(__name__)

ROWS_PER_STEP = 500
"""Messages cut in one transaction, over all of its channels: a few milliseconds between two batches."""
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
        self._due: dict[str, None] = {}
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
            await trio.sleep(self._tick_s)
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
        """Cut these channels step by step, all of them in each, until none is over. Raises LogUnavailable.

        A channel that is flooded may always be: after a tick, those that are over still are due in the next one.
        """
        enough_s = trio.current_time() + self._tick_s
        while True:
            surplus = {info: await self._surplus(info) for info in infos}
            over = [info for info in infos if surplus[info] > info.extent.trimmed]
            if not over:
                return
            share = max(1, ROWS_PER_STEP // len(over))
            cuts = {info.name: min(surplus[info], info.extent.trimmed + share) for info in over}
            await self._broker.trim(cuts, ROWS_PER_STEP)
            if trio.current_time() >= enough_s:
                self._due |= dict.fromkeys(cuts)
                return
            infos = await self._log.describe(list(cuts))

    async def _surplus(self, info: ChannelInfo) -> int:
        """The offset up to which a channel's messages are too many or too old; not always all that are."""
        limits = self._rules.limits(info.name)
        if limits is None or info.oldest_ms is None:
            return 0
        until = 0 if limits.messages is None else info.extent.head - limits.messages
        since_ms = 0 if limits.age_ms is None else self._log.now_ms() - limits.age_ms
        bytes_max = math.inf if limits.bytes is None else limits.bytes
        if info.oldest_ms < since_ms or info.bytes > bytes_max:
            for message in await self._log.oldest(info.name, ROWS_PER_STEP):
                if message.time_ms >= since_ms and message.held_bytes <= bytes_max:
                    break
                until = max(until, message.offset)
        return until
