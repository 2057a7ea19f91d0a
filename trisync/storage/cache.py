"""The in-process TTL caches: encoded runs, the recent tail of active channels; and pages of their states.

A client that comes back, or reads slowly, is served from here instead of the disk, and shares one encoded
object with everybody else who is at the same place. Bounded in bytes and in time; nothing depends on a hit.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Generic, NamedTuple, TypeVar

from trisync.storage.log import Run, StatePage

DROPPED_AT_ONCE = 50
"""About how many runs or pages whose time is over go with each addition: a whole batch at least, so that all of them
go in time."""
PAGE_OVERHEAD_BYTES = 500
"""What a cached page of a state holds beside its text."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Held(NamedTuple, Generic[Value]):
    value: Value
    weight: int
    size: int
    expires_at: float


class _Store(Generic[Key, Value]):
    """Values by key, bounded in bytes and in time.

    No TTLCache, which drops all that is too old at once: behind five quiet minutes, the first publish waited up to
    0.8 s for the runs of those before, and the first subscription to a state 0.1 s for the pages.
    """

    def __init__(
        self,
        bytes_max: int,
        ttl_s: float,
        timer: Callable[[], float],
        dropped: Callable[[Key, Value], None] = lambda key, value: None,
    ) -> None:
        self.size = 0
        """Bytes held, as add() was told them."""
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._timer = timer
        self._dropped = dropped
        self._held: OrderedDict[Key, _Held[Value]] = OrderedDict()  # the least recently used first

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def get(self, key: Key) -> Value | None:
        """A value, from now on the most recently used; None where there is none, or its time is over."""
        held = self._held.get(key)
        if held is None:
            return None
        if held.expires_at <= self._timer():
            self.drop(key)
            return None
        self._held.move_to_end(key)
        return held.value

    def add(self, key: Key, value: Value, size: int, weight: int = 1) -> None:
        """Keep a value that is not over the whole size, at the expense of the least recently used ones.

        `weight` is how many of DROPPED_AT_ONCE it counts for.
        """
        now = self._timer()
        self.drop(key)
        self._drop_old(now)
        while self.size + size > self._bytes_max:
            self.drop(next(iter(self._held)))
        self._held[key] = _Held(value, weight, size, now + self._ttl_s)
        self.size += size

    def drop(self, key: Key) -> None:
        """Keep a value no longer; one that is not there is no error."""
        held = self._held.pop(key, None)
        if held is not None:
            self.size -= held.size
            self._dropped(key, held.value)

    def _drop_old(self, now: float) -> None:
        """Drop a few values whose time is over, as long as they are the least recently used."""
        dropped = 0
        while self._held and dropped < DROPPED_AT_ONCE:
            key, held = next(iter(self._held.items()))
            if now < held.expires_at:
                break
            self.drop(key)
            dropped += held.weight


class RunCache:
    """Runs by channel and offset. Those of a batch are one value: it may hold a thousand runs of one message each."""

    def __init__(self, bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._added = 0
        self._batches: _Store[int, Sequence[Run]] = _Store(bytes_max, ttl_s, timer, self._forget)
        # By channel, ascending: the `after` of each run held, its batch's number, and itself.
        self._runs: dict[str, list[tuple[int, int, Run]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    @property
    def size(self) -> int:
        """Bytes held, as Run.size counts them."""
        return self._batches.size

    def add(self, runs: Sequence[Run]) -> None:
        """Keep runs, those of a channel in order, at the expense of the least recently used batches.

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
        self._added = number = self._added + 1
        self._batches.add(number, runs, size, len(runs))
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

    def _forget(self, number: int, runs: Sequence[Run]) -> None:
        for run in runs:
            there = self._runs[run.channel]
            if len(there) == 1:
                del self._runs[run.channel]
            else:
                del there[bisect_left(there, (run.after, number))]


class StatePageCache:
    """Pages of channels' states, by channel and the key that they begin behind."""

    def __init__(self, bytes_max: int, page_bytes_max: int, ttl_s: float, timer: Callable[[], float]) -> None:
        self._page_bytes_max = min(bytes_max, page_bytes_max)
        self._pages: _Store[tuple[str, str], StatePage] = _Store(bytes_max, ttl_s, timer)

    def add(self, channel: str, after: str, page: StatePage) -> None:
        """Keep a page in place of an earlier one, if it is not too large for that."""
        size = len(page.entries) + PAGE_OVERHEAD_BYTES
        if size <= self._page_bytes_max:
            self._pages.add((channel, after), page, size)

    def find(self, channel: str, after: str, at_least: int) -> StatePage | None:
        """A page as of when the head was at offset `at_least` or later, or None."""
        page = self._pages.get((channel, after))
        return page if page is not None and page.extent.head >= at_least else None

    def forget(self, channel: str) -> None:
        """Keep nothing of a channel: it was emptied."""
        for key in [key for key in self._pages if key[0] == channel]:
            self._pages.drop(key)
