"""Stand-ins for the floors around the broker: a log in memory whose commits a test holds, and outlets."""

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy

import trio
from msgspec import Raw

from trisync.core.channels import Outlet
from trisync.core.outbox import Outbox
from trisync.settings import Settings
from trisync.storage.deciding import ROW, Batch, Head
from trisync.storage.log import ChannelInfo, Extent, Flow, Log, OldMessage, Page, Run, StatePage, Submission
from trisync.storage.verdicts import Conflict, Producer, Remembered
from trisync.wire.framing import LINES
from trisync.wire.protocol import Publish
from trisync.wire.replies import encode_text


class MemoryLog(Log):
    """A log without a disk; it decides as the real one does.

    While `gate` is not set, appends wait before they store anything, and while `stored` is not, behind it;
    `failure` is raised by the next one.
    """

    def __init__(self) -> None:
        self.epoch = "e1"
        self.time_ms = 1
        self.messages: dict[str, list[str]] = {}
        self.trimmed: dict[str, int] = {}
        self.words: dict[str, dict[str, tuple[int, str]]] = {}
        self.gate = trio.Event()
        self.gate.set()
        self.stored = trio.Event()
        self.stored.set()
        self.failure: Exception | None = None
        self.batches: list[int] = []
        self.reads = 0
        self._names: list[str] = []
        self._producers: dict[str, Producer] = {}
        self._once: dict[bytes, Remembered] = {}

    def now_ms(self) -> int:
        return self.time_ms

    async def append(self, batch: Sequence[Submission]) -> list[Run]:
        await self.gate.wait()
        await trio.lowlevel.checkpoint()
        self.batches.append(len(batch))
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        work = Batch(self, Settings(keys_max=1000), self.time_ms, 0)
        work.decide(batch)
        for head in work.heads.values():
            self.messages.setdefault(head.name, []).extend(head.lines)
            words = self.words.setdefault(head.name, {})
            for key in head.changed or {}:
                assert head.words is not None
                offset, data = head.words[key]
                words.pop(key, None)
                if offset:
                    assert data is not None
                    words[key] = (offset, data)
        self._producers |= work.producers
        self._once |= work.once
        assert len(work.rows) == len(ROW) * sum(len(head.lines) for head in work.heads.values())
        await self.stored.wait()
        return [run for head in work.heads.values() if (run := head.take_run()) is not None]

    # What a batch looks up

    def known_head(self, name: str) -> Head | None:
        return None

    def find_heads(self, names: list[str]) -> list[Head]:
        return [self._head(name) for name in names]

    def _head(self, name: str) -> Head:
        id = self._names.index(name) + 1 if name in self._names else 0
        return Head(name, id, len(self.messages.get(name, [])), len(self.words.get(name, {})))

    def create(self, name: str) -> int:
        self._names.append(name)
        return len(self._names)

    def producer(self, id: str) -> Producer:
        return copy(self._producers.get(id) or Producer(id))

    def offsets(self, head: Head, keys: list[str]) -> dict[str, int]:
        words = self.words.get(head.name, {})
        return {key: words[key][0] for key in keys if key in words}

    def word_data(self, head: Head, key: str) -> str:
        return self.words[head.name][key][1]

    def old_data(self, word: Conflict) -> str | None:
        offset, data = self.words[self._names[word.channel - 1]].get(word.key, (0, "null"))
        return data if offset == word.offset else None

    def remembered(self, id: bytes) -> Remembered | None:
        return self._once.get(id)

    # Reads

    async def extent(self, channel: str) -> Extent:
        await trio.lowlevel.checkpoint()
        return self._extent(channel)

    def _extent(self, channel: str) -> Extent:
        return Extent(len(self.messages.get(channel, [])), self.trimmed.get(channel, 0))

    async def read(self, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
        self.reads += 1
        extent = await self.extent(channel)
        after = max(after, extent.trimmed)
        lines = self.messages.get(channel, [])[after : after + count_max]
        run = Run(channel, after, after + len(lines), "".join(lines).encode()) if lines else None
        return Page(run, extent)

    async def newest(self, channel: str, count_max: int, bytes_max: int) -> Page:
        head, trimmed = await self.extent(channel)
        return await self.read(channel, max(trimmed, head - count_max), count_max, bytes_max)

    async def state(self, channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        words = sorted((key, word) for key, word in self.words.get(channel, {}).items() if key > after)
        entries = [
            f'{encode_text(key)}:{{"offset":{offset},"data":{data}}}' for key, (offset, data) in words[:count_max]
        ]
        last = words[: len(entries)][-1][0] if entries else ""
        return StatePage(",".join(entries).encode(), last, len(words) > count_max, self._extent(channel))

    async def word(self, channel: str, key: str) -> StatePage:
        page = await self.state(channel, key[:-1], 1, 0)
        return page if page.last == key else StatePage(b"", "", False, page.extent)

    async def channels(self, after: str, count_max: int) -> list[ChannelInfo]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        return self._describe([name for name in sorted(self._names) if name > after][:count_max])

    async def describe(self, names: Sequence[str]) -> list[ChannelInfo]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        return self._describe(sorted(name for name in names if name in self._names))

    def _describe(self, names: Sequence[str]) -> list[ChannelInfo]:
        infos: list[ChannelInfo] = []
        for name in names:
            old = self._oldest(name, 1)
            held, time_ms = (old[0].held_bytes, old[0].time_ms) if old else (0, None)
            infos.append(ChannelInfo(name, self._extent(name), held, time_ms))
        return infos

    async def oldest(self, channel: str, count_max: int) -> list[OldMessage]:
        await trio.lowlevel.checkpoint()
        return self._oldest(channel, count_max)

    def _oldest(self, channel: str, count_max: int) -> list[OldMessage]:
        trimmed = self._extent(channel).trimmed
        lines = self.messages[channel][trimmed:]
        held = list(itertools.accumulate(map(len, reversed(lines))))
        return [
            OldMessage(offset, json.loads(line)["time"], held.pop())
            for offset, line in enumerate(lines[:count_max], trimmed + 1)
        ]

    async def settled_seq(self, producer: str) -> int:
        await trio.lowlevel.checkpoint()
        known = self._producers.get(producer)
        return 0 if known is None else known.seq

    # Between two batches

    async def clear(self, channel: str) -> Extent | None:
        head, trimmed = self._extent(channel)
        if not self.words.pop(channel, None) and trimmed == head:
            return None
        await self.trim({channel: len(self.messages.get(channel, []))}, 10**9)
        return self._extent(channel)

    async def trim(self, cuts: Mapping[str, int], count_max: int) -> dict[str, Extent]:
        await trio.lowlevel.checkpoint()
        for channel, until in cuts.items():
            before = self.trimmed.get(channel, 0)
            self.trimmed[channel] = max(before, min(until, before + count_max))
            count_max -= self.trimmed[channel] - before
        return {channel: self._extent(channel) for channel in cuts}

    async def maintain(self) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class OutletsOutbox(Outbox):
    """An outlet's, with the outlet's own opinion of what is taken."""

    def __init__(self, outlet: "CollectingOutlet") -> None:
        self.send = lambda data: 0
        self._outlet = outlet

    def offer(self, data: bytes) -> bool:
        return self._outlet.offer(data)


class CollectingOutlet(Outlet):
    """An outlet that keeps what it takes; with `slow`, it takes nothing until room() is opened."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.framing = LINES
        self.outbox = OutletsOutbox(self)
        self.taken: list[bytes] = []
        self.slow = False
        self.opened = trio.Event()
        self._nursery = nursery

    def offer(self, data: bytes) -> bool:
        if self.slow:
            return False
        self.taken.append(data)
        return True

    def reply(self, payload: bytes) -> None:
        self.taken.append(LINES.join([payload]))

    async def room(self) -> None:
        while self.slow:
            await self.opened.wait()
        await trio.lowlevel.checkpoint()

    def speed_up(self) -> None:
        """Take things again."""
        self.slow = False
        self.opened.set()
        self.opened = trio.Event()

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(work)

    def lines(self) -> list[bytes]:
        """Everything taken so far, line by line."""
        return b"".join(self.taken).splitlines()


_ids = itertools.count(1)


def publishes(
    count: int,
    channel: str = "lobby",
    settle: Callable[[Submission], None] | None = None,
    flow: Flow | None = None,
) -> Submission:
    """A submission of so many publishes, with numbers as data."""
    submission = Submission(settle or (lambda submission: None), flow=flow)
    for _ in range(count):
        submission.add(Publish(channel=channel, data=Raw(str(next(_ids)).encode())), 20)
    return submission
