"""What readers behind a channel's head are given: pages from the caches, else from the log, one read for all who ask.

Whose turn it is, and where each reader is, is in cursors.py.
"""

from collections.abc import Callable, Sequence

import trio

from trisync.core.channels import Channel
from trisync.settings import Settings
from trisync.storage.cache import RunCache, StatePageCache
from trisync.storage.log import Log, Run, StatePage
from trisync.wire.protocol import STATE_LIMIT

PAGE_COUNT_MAX = 1000
PAGE_BYTES_MAX = 256 * 1024
"""Bounds on what a cursor reads from the log at once: a few milliseconds of a reader's thread."""

STATE_CACHE_SHARE = 4
"""Pages of states may take `cache_bytes_max` divided by this, beside all that the runs may."""


class SharedReads:
    """Reads of one log, behind its caches."""

    def __init__(self, log: Log, settings: Settings, timer: Callable[[], float]) -> None:
        self._log = log
        self._message_bytes_max = settings.message_bytes_max
        self._runs = RunCache(settings.cache_bytes_max, settings.cache_ttl_s, timer)
        self._state_pages = StatePageCache(
            settings.cache_bytes_max // STATE_CACHE_SHARE, 2 * PAGE_BYTES_MAX, settings.cache_ttl_s, timer
        )
        self._reading: dict[tuple[str, int], trio.Event] = {}

    def keep(self, runs: Sequence[Run]) -> None:
        """Have at hand what was just stored. The sequence must not be changed afterwards."""
        self._runs.add(runs)

    def forget_state(self, name: str) -> None:
        """Have no pages of a channel's state at hand: it was emptied."""
        self._state_pages.forget(name)

    async def run_behind(self, channel: Channel, after: int) -> Run | None:
        """The messages behind an offset below the head, a page of them, from the cache or the log.

        It ends at the head at the latest, and may begin later than asked for where the channel was trimmed;
        None where all up to the head was. Readers at the same place share one read. Raises LogUnavailable.
        """
        key = (channel.name, after)
        while (run := self._find(channel, after)) is None and key in self._reading:
            await self._reading[key].wait()
        if run is None:
            done = self._reading[key] = trio.Event()
            try:
                page = await self._log.read(channel.name, after, PAGE_COUNT_MAX, PAGE_BYTES_MAX)
            finally:
                del self._reading[key]
                done.set()
            channel.trimmed = max(channel.trimmed, page.extent.trimmed)
            run = page.run
            if run is not None:
                self._runs.add([run])
        if run is None or run.after >= channel.head:
            return None
        # Committed but not yet fanned out: its publisher's `ok` comes first.
        return run if run.last <= channel.head else run.until(channel.head)

    def _find(self, channel: Channel, after: int) -> Run | None:
        """A run from the cache; what was trimmed may still be there, but must not be given to anybody."""
        return None if after < channel.trimmed else self._runs.find(channel.name, after)

    async def state_behind(self, channel: Channel, after: str, at_least: int) -> StatePage:
        """A page of a channel's state behind a key, as it was when the head was at offset `at_least` or later.

        Readers at the same place share it while it is new enough. Raises LogUnavailable.
        """
        page = self._state_pages.find(channel.name, after, at_least)
        if page is not None:
            return page
        era = channel.era
        bytes_max = min(PAGE_BYTES_MAX, self._message_bytes_max)
        page = await self._log.state(channel.name, after, STATE_LIMIT, bytes_max)
        # Not where everybody has left meanwhile: nobody would tell such a channel that it was emptied.
        if era == channel.era and channel.members:
            self._state_pages.add(channel.name, after, page)
        return page
