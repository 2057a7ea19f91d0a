"""The in-process TTL caches: encoded runs, the recent tail of active channels; and pages of their states.

A client that comes back, or reads slowly, is served from here instead of the disk, and shares one encoded
object with everybody else who is at the same place. Bounded in bytes and in time; nothing depends on a hit.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from cachetools import TTLCache

from trisync.storage.log import Run, StatePage

DROPPED_AT_ONCE = 50
"""Runs whose time is over, about, with each batch that is added: a whole batch at least, so that all of them go."""
PAGE_OVERHEAD_BYTES = 500
"""What a cached page of a state holds beside its text."""


class _Batch(NamedTuple):
    """Runs that are kept and dropped together."""

    runs: Sequence[Run]
    size: int
    expires_at: float


class RunCache:
    """Runs by channel and offset.

    Those of a batch are one item: it may hold a thousand runs of one message each. No TTLCache, which drops all that is
    too old at once: behind five quiet minutes, the first publish waited up to 0.8 s for the batches of those before.
    """

    def __init__(self, bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self.size = 0
        """Bytes held, as Run.size counts them."""
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._timer = timer
        self._added = 0
        self._batches: OrderedDict[int, _Batch] = OrderedDict()  # by number, the least recently used first
        # By channel, ascending: the `after` of each run held, its batch's number, and itself.
        self._runs: dict[str, list[tuple[int, int, Run]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def add(self, runs: Sequence[Run]) -> None:
        """Keep runs, each of another channel, at the expense of the least recently used batches.

        Together or, where they are over the whole size, each for itself. A run over the whole size is not kept. The
        sequence is kept too: it must not be changed afterwards.
        """
        size = sum(run.size for run in runs)
        if size > self._bytes_max and len(runs) > 1:
            for run in runs:
                self.add([run])
            return
        if size > self._bytes_max or not runs:
            return
        self._drop_old()
        while self.size + size > self._bytes_max:
            self._drop(next(iter(self._batches)))
        self._added = number = self._added + 1
        self._batches[number] = _Batch(runs, size, self._timer() + self._ttl_s)
        self.size += size
        for run in runs:
            there = self._runs.get(run.channel)
            if there is None:
                self._runs[run.channel] = [(run.after, number, run)]
            else:
                insort(there, (run.after, number, run))

    def find(self, channel: str, after: int) -> Run | None:
        """A run that begins right behind `after`, or None. One that is cut for it is kept too: a crowd shares it."""
        there = self._runs.get(channel)
        if there is None:
            return None
        place = bisect_right(there, (after, inf)) - 1  # the newest of those that begin at the same place
        if place < 0:
            return None
        begins, number, run = there[place]
        if run.last <= after:
            return None
        if self._batches[number].expires_at <= self._timer():
            self._drop(number)
            return None
        self._batches.move_to_end(number)
        if begins == after:
            return run
        part = run.since(after)
        self.add([part])
        return part

    def _drop_old(self) -> None:
        """Drop batches whose time is over, a few, once they are the least recently used."""
        now = self._timer()
        dropped = 0
        while self._batches and dropped < DROPPED_AT_ONCE:
            number, batch = next(iter(self._batches.items()))
            if now < batch.expires_at:
                break
            self._drop(number)
            dropped += len(batch.runs)

    def _drop(self, number: int) -> None:
        batch = self._batches.pop(number)
        self.size -= batch.size
        for run in batch.runs:
            there = self._runs[run.channel]
            if len(there) == 1:
                del self._runs[run.channel]
            else:
                del there[bisect_left(there, (run.after, number))]


class StatePageCache:
    """Pages of channels' states, by channel and the key that they begin behind."""

    def __init__(self, bytes_max: int, page_bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self._page_bytes_max = min(bytes_max, page_bytes_max)
        self._pages: TTLCache[tuple[str, str], StatePage] = TTLCache(bytes_max, ttl_s, timer, getsizeof=_page_size)

    def add(self, channel: str, after: str, page: StatePage) -> None:
        """Keep a page in place of an earlier one, if it is not too large for that."""
        if _page_size(page) <= self._page_bytes_max:
            self._pages[channel, after] = page

    def find(self, channel: str, after: str, at_least: int) -> StatePage | None:
        """A page as of when the head was at offset `at_least` or later, or None."""
        page: StatePage | None = self._pages.get((channel, after))
        return page if page is not None and page.extent.head >= at_least else None

    def forget(self, channel: str) -> None:
        """Keep nothing of a channel: it was emptied."""
        for key in [key for key in self._pages if key[0] == channel]:
            self._pages.pop(key, None)


def _page_size(page: StatePage) -> int:
    return len(page.entries) + PAGE_OVERHEAD_BYTES
