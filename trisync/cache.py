"""The in-process TTL caches: encoded runs, the recent tail of active channels; and pages of their states.

A client that comes back, or reads slowly, is served from here instead of the disk, and shares one encoded
object with everybody else who is at the same place. Bounded in bytes and in time; nothing depends on a hit.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from cachetools import TTLCache

from trisync.log import Run, StatePage

PAGE_OVERHEAD_BYTES = 500
"""What a cached page of a state holds beside its text."""

_Key = tuple[str, int]


class _RunStore(TTLCache[_Key, Run]):
    """A TTLCache that says what it drops, so that the index beside it never outgrows it."""

    def __init__(
        self, bytes_max: int, ttl_s: float, timer: Callable[[], float], dropped: Callable[[_Key], None]
    ) -> None:
        super().__init__(bytes_max, ttl_s, timer, getsizeof=lambda run: run.size)
        self._dropped = dropped

    def expire(self, time: float | None = None) -> list[tuple[_Key, Run]]:
        expired: list[tuple[_Key, Run]] = super().expire(time)
        for key, _ in expired:
            self._dropped(key)
        return expired

    def popitem(self) -> tuple[_Key, Run]:
        key, run = super().popitem()
        self._dropped(key)
        return key, run


class RunCache:
    """Runs by channel and offset."""

    def __init__(self, bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._runs = _RunStore(bytes_max, ttl_s, timer, self._forget)
        self._starts: dict[str, list[int]] = {}  # the `after` of each run held, ascending

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def size(self) -> int:
        """Bytes held, as Run.size counts them."""
        return int(self._runs.currsize)

    def add(self, run: Run) -> None:
        """Keep a run, at the expense of the least recently used ones. A run over the whole size is not kept."""
        if run.size > self._bytes_max:
            return
        self._runs[run.channel, run.after] = run
        starts = self._starts.setdefault(run.channel, [])
        place = bisect_left(starts, run.after)
        if starts[place : place + 1] != [run.after]:
            starts.insert(place, run.after)

    def find(self, channel: str, after: int) -> Run | None:
        """A run that begins right behind `after`, or None. One that is cut for it is kept too: a crowd shares it."""
        exact = self._runs.get((channel, after))
        if exact is not None:
            return exact
        starts = self._starts.get(channel)
        if not starts:
            return None
        place = bisect_right(starts, after) - 1
        run = self._runs.get((channel, starts[place])) if place >= 0 else None
        if run is None or run.last <= after:
            return None
        part = run.since(after)
        self.add(part)
        return part

    def _forget(self, key: _Key) -> None:
        channel, after = key
        starts = self._starts.get(channel, [])
        place = bisect_left(starts, after)
        if starts[place : place + 1] == [after]:
            del starts[place]
            if not starts:
                del self._starts[channel]


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
