"""The in-process TTL caches: encoded runs, the recent tail of active channels; and pages of their states.

A client that comes back, or reads slowly, is served from here instead of the disk, and shares one encoded
object with everybody else who is at the same place. Bounded in bytes and in time; nothing depends on a hit.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from cachetools import TTLCache

from trisync.storage.log import Run, StatePage

PAGE_OVERHEAD_BYTES = 500
"""What a cached page of a state holds beside its text."""


class _Batch(NamedTuple):
    """Runs that are kept and dropped together."""

    runs: Sequence[Run]
    size: int


class _BatchStore(TTLCache[int, _Batch]):
    """A TTLCache that says what it drops, so that the index beside it never outgrows it."""

    def __init__(
        self, bytes_max: int, ttl_s: float, timer: Callable[[], float], dropped: Callable[[int, _Batch], None]
    ) -> None:
        super().__init__(bytes_max, ttl_s, timer, getsizeof=lambda batch: batch.size)
        self._dropped = dropped

    def expire(self, time: float | None = None) -> list[tuple[int, _Batch]]:
        expired: list[tuple[int, _Batch]] = super().expire(time)
        for number, batch in expired:
            self._dropped(number, batch)
        return expired

    def popitem(self) -> tuple[int, _Batch]:
        number, batch = super().popitem()
        self._dropped(number, batch)
        return number, batch


class RunCache:
    """Runs by channel and offset.

    Those of a batch are one item: an insertion takes cachetools 5 µs, where many channels are active (measured), and
    a batch may hold a thousand runs of one message each.
    """

    def __init__(self, bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._added = 0
        self._batches = _BatchStore(bytes_max, ttl_s, timer, self._forget)
        # By channel, ascending: the `after` of each run held, its batch's number, and itself.
        self._runs: dict[str, list[tuple[int, int, Run]]] = {}

    def __len__(self) -> int:
        self._batches.expire()
        return sum(map(len, self._runs.values()))

    @property
    def size(self) -> int:
        """Bytes held, as Run.size counts them."""
        return int(self._batches.currsize)

    def add(self, runs: Sequence[Run]) -> None:
        """Keep runs, each of another channel, at the expense of the least recently used batches.

        Together or, where they are over the whole size, each for itself. A run over the whole size is not kept. The
        sequence is kept too: it must not be changed afterwards.
        """
        batch = _Batch(runs, sum(run.size for run in runs))
        if batch.size > self._bytes_max and len(runs) > 1:
            for run in runs:
                self.add([run])
            return
        if batch.size > self._bytes_max or not runs:
            return
        self._added = number = self._added + 1
        self._batches[number] = batch
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
        if run.last <= after or self._batches.get(number) is None:
            return None
        if begins == after:
            return run
        part = run.since(after)
        self.add([part])
        return part

    def _forget(self, number: int, batch: _Batch) -> None:
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
