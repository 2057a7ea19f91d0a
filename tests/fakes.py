"""Stand-ins for the floors around the broker: a log in memory whose commits a test holds, and outlets."""

import itertools
from collections.abc import Awaitable, Callable, Sequence

import trio
from msgspec import Raw

from trisync.channels import Outlet
from trisync.framing import JOIN, Framing
from trisync.log import Extent, Log, Page, Refused, Run, Submission
from trisync.protocol import Publish, data_text, message_prefix, message_suffix


class MemoryLog(Log):
    """A log without a disk.

    While `gate` is not set, appends wait before they store anything, and while `stored` is not, behind it;
    `failure` is raised by the next one.
    """

    def __init__(self) -> None:
        self.epoch = "e1"
        self.messages: dict[str, list[str]] = {}
        self.trimmed: dict[str, int] = {}
        self.gate = trio.Event()
        self.gate.set()
        self.stored = trio.Event()
        self.stored.set()
        self.failure: Exception | None = None
        self.batches: list[int] = []
        self.reads = 0

    def now_ms(self) -> int:
        return 1

    async def append(self, batch: Sequence[Submission]) -> list[Run]:
        await self.gate.wait()
        await trio.lowlevel.checkpoint()
        self.batches.append(len(batch))
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        began = self._store(batch)
        await self.stored.wait()
        return [
            Run(channel, after, len(self.messages[channel]), "".join(self.messages[channel][after:]).encode())
            for channel, after in began.items()
        ]

    def _store(self, batch: Sequence[Submission]) -> dict[str, int]:
        began: dict[str, int] = {}
        for submission in batch:
            submission.verdicts = []
            for item in submission.items:
                if isinstance(item, Refused):
                    submission.verdicts.append(item.error)
                elif item.ephemeral:
                    submission.verdicts.append(0)
                else:
                    submission.verdicts.append(self._store_one(item, submission.sender, began))
        return began

    def _store_one(self, item: Publish, sender: str | None, began: dict[str, int]) -> int:
        messages = self.messages.setdefault(item.channel, [])
        began.setdefault(item.channel, len(messages))
        offset = len(messages) + 1
        messages.append(f"{message_prefix(item.channel)}{offset}{message_suffix(1, sender)}{data_text(item.data)}}}\n")
        return offset

    async def extent(self, channel: str) -> Extent:
        await trio.lowlevel.checkpoint()
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

    async def settled_seq(self, producer: str) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def maintain(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class CollectingOutlet(Outlet):
    """An outlet that keeps what it takes; with `slow`, it takes nothing until room() is opened."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.framing = Framing.LINES
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
        self.taken.append(JOIN[Framing.LINES]([payload]))

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


def publishes(count: int, channel: str = "lobby", settle: Callable[[Submission], None] | None = None) -> Submission:
    """A submission of so many publishes, with numbers as data."""
    submission = Submission(settle or (lambda submission: None))
    for _ in range(count):
        submission.add(Publish(channel=channel, data=Raw(str(next(_ids)).encode())), 20)
    return submission
