"""Power cuts: a server's log is written to for a while, and at any one call the disk loses what was not synced.

What is left is judged, and is where the next round begins. `full` must have all that was acknowledged. `normal` may
have lost the newest, whole batches of it, and then must say so by a new epoch, unless it was stopped in good order.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw

from tests.torture.checking import Contents, damage_of
from tests.torture.clients import CHANNELS, KEYS, Data
from tests.torture.disk import Disk, Event, Mark
from tests.torture.powercut_vfs import recording
from trisync.settings import Settings
from trisync.storage import sqlite_log
from trisync.storage.log import LogRefused, Submission
from trisync.storage.sqlite_log import SqliteLog
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.wire.protocol import Publish

T = TypeVar("T")
Durability = Literal["full", "normal"]

ROUNDS_OF_A_LOG = 25
"""Rounds until there is a new log: each image is judged whole, so that it must not grow for ever."""
BATCHES_MAX, BATCH_MESSAGES_MAX = 30, 40
CHECKPOINT_PAGES = 20
"""Some seven commits: the server's own would be too rare for rounds so short."""
PRODUCER = "powercut-producer"


class Known(NamedTuple):
    """What those outside can know of a log."""

    epoch: str = ""
    """The last that somebody was told, "" for none."""
    ends: frozenset[int] = frozenset({0})
    """How many messages it may have, as it has whole batches only."""
    acknowledged: int = 0
    opened: bool | None = False
    """Whether a server has it open; None while one opens what was closed in good order, or closes it so."""

    def after(self, events: Sequence[Event]) -> "Known":
        """What is known once these have happened too."""
        known = self._replace(opened=self.opened or (None if events else self.opened))
        for event in events:
            match event:
                case Mark("opened", str(epoch)):
                    known = known._replace(epoch=epoch, opened=True)
                case Mark("submitted", int(count)):
                    known = known._replace(ends=known.ends | {count})
                case Mark("acknowledged", int(count)):
                    known = known._replace(acknowledged=count)
                case Mark("closing"):
                    known = known._replace(opened=None)
                case Mark("closed"):
                    known = known._replace(opened=False)
        return known


class Log:
    """A log, from its first power cut to its last."""

    def __init__(self, folder: Path, durability: Durability, chance: random.Random, *, lying: bool = False) -> None:
        self.problems: list[str] = []
        self.acknowledged = 0
        self.lost: list[int] = []
        """For each round, how many of the acknowledged messages were not there."""
        self.unsynced = 0
        """Rounds in which there was something that was not synced."""
        self._folder = folder
        self._settings = Settings(durability=durability)
        self._chance = chance
        self._lying = lying
        self._image: dict[str, bytes] = {}
        self._known = Known()

    async def round(self) -> None:
        """Serve, cut the power, and judge what is left; that is in the folder `left` then."""
        disk = Disk(self._image)
        events: list[Event] = []
        with recording(events, lying=self._lying), _checkpoints_often():
            try:
                await self._serve(_lay_out(self._image, self._folder / "served"), events)
            except LogRefused as problem:
                self.problems.append(f"the log does not open: {problem}")
        before = self._known.acknowledged
        happened = events[: self._chance.randint(0, len(events))]
        for event in happened:
            disk.apply(event)
        self._known = self._known.after(happened)
        self.acknowledged += self._known.acknowledged - before
        self.unsynced += disk.unsynced
        self._image = disk.after_power_cut(self._chance)
        self._judge(_lay_out(self._image, self._folder / "left") / FILE_NAME)

    async def _serve(self, folder: Path, events: list[Event]) -> None:
        """Be a server, without doors, until a stop in good order; the power may go at any event of it."""
        log = await SqliteLog.open(folder, self._settings, executor=_at_once)
        self._check_epoch(log.epoch)
        events.append(Mark("opened", log.epoch))
        count = self._known.acknowledged
        try:
            for _ in range(self._chance.randint(1, BATCHES_MAX)):
                batch = self._compose(count, self._chance.randint(1, BATCH_MESSAGES_MAX))
                count += len(batch.items)
                events.append(Mark("submitted", count))
                await log.append([batch])
                if not all(isinstance(verdict, int) for verdict in batch.verdicts):
                    self.problems.append(f"behind {count - len(batch.items)} messages: {batch.verdicts}")
                events.append(Mark("acknowledged", count))
                await log.maintain()
        finally:
            events.append(Mark("closing", ""))
            await log.aclose()
        events.append(Mark("closed", ""))

    def _compose(self, count: int, size: int) -> Submission:
        batch = Submission(lambda _: None, producer=PRODUCER)
        for seq in range(count + 1, count + size + 1):
            padding = "x" * int(self._chance.lognormvariate(4.3, 1.7))
            data = Raw(msgspec.json.encode(Data(0, seq, padding[:50_000])))
            key = f"key {self._chance.randrange(KEYS)}" if self._chance.random() < 0.25 else UNSET
            batch.add(Publish(channel=self._chance.choice(CHANNELS), data=data, key=key, seq=seq), len(data))
        return batch

    def _check_epoch(self, epoch: str) -> None:
        """Clients must see that offsets were lost, and see nothing where they were not."""
        known = self._known
        if self._settings.durability == "full" or known.opened is False:
            if known.epoch and epoch != known.epoch:
                self.problems.append(f"the epoch was {known.epoch} and is {epoch}, though nothing can be lost")
        elif epoch == known.epoch and (known.opened or self.lost[-1]):
            self.problems.append(f"the epoch is still {epoch}, though {self.lost[-1]} messages are lost")

    def _judge(self, file: Path) -> None:
        if file.exists() and file.stat().st_size:
            with closing(sqlite3.connect(file)) as database:
                if damage := damage_of(database):
                    self.problems.append(f"integrity_check: {damage}")
                    return
                contents = Contents(database)
            self.problems += contents.problems
            found = contents.order
        else:
            found = []
        known, count = self._known, len(found)
        self.lost.append(max(0, known.acknowledged - count))
        if found != [(0, seq) for seq in range(1, count + 1)]:
            self.problems.append("not only the newest messages are lost")
        if count not in known.ends:
            self.problems.append(f"there are {count} messages, which is no whole number of batches")
        if self.lost[-1] and (self._settings.durability == "full" or known.opened is False):
            self.problems.append(f"{known.acknowledged} messages were acknowledged, {count} are there")
        self._known = known._replace(ends=frozenset({count}), acknowledged=count)


async def _at_once(call: Callable[[], T]) -> T:
    """An executor that has no threads, so that a seed is a whole run."""
    return call()


@contextmanager
def _checkpoints_often() -> Iterator[None]:
    usual, sqlite_log.CHECKPOINT_PAGES = sqlite_log.CHECKPOINT_PAGES, CHECKPOINT_PAGES
    try:
        yield
    finally:
        sqlite_log.CHECKPOINT_PAGES = usual


def _lay_out(image: dict[str, bytes], folder: Path) -> Path:
    """Make a folder that has these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in image.items():
        (folder / name).write_bytes(content)
    return folder


class Totals(NamedTuple):
    """What all rounds came to."""

    rounds: int
    unsynced: int
    acknowledged: int
    lost: list[int]
    """For each round."""
    problems: list[str]

    def summary(self) -> str:
        """For people."""
        return (
            f"the power was cut {self.rounds} times, {self.unsynced} times with something not synced\n"
            f"{self.acknowledged} publishes were acknowledged; {sum(self.lost)} of them were lost, "
            f"in {sum(map(bool, self.lost))} rounds\n"
            f"{len(self.problems)} problems"
        )


async def cut_power(
    rounds: int,
    folder: Path,
    seed: int,
    durability: Durability,
    progress: Callable[[int, list[str]], None],
    *,
    lying: bool = False,
) -> Totals:
    """Cut the power so many times; stops at the first problem, and keeps what was left then.

    With `lying`, the disk says that it had synced, and had not: no log survives that, so problems must be found.
    """
    chance = random.Random(seed)
    done = unsynced = acknowledged = 0
    lost: list[int] = []
    problems: list[str] = []
    while done < rounds and not problems:
        log = Log(folder, durability, chance, lying=lying)
        for _ in range(min(ROUNDS_OF_A_LOG, rounds - done)):
            await log.round()
            done += 1
            progress(done, log.problems)
            if log.problems:
                break
        unsynced += log.unsynced
        acknowledged += log.acknowledged
        lost += log.lost
        problems += log.problems
    return Totals(done, unsynced, acknowledged, lost, problems)
