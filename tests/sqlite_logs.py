"""SQLite logs for tests, on real files: opened with clocks that a test sets, written, read, and crashed."""

import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, Raw, UnsetType

from trisync.settings import Settings
from trisync.storage.log import Page, Refused, Submission, Verdict
from trisync.storage.sqlite_log import SqliteLog
from trisync.storage.sqlite_opening import LOCK_NAME
from trisync.wire.errors import WireError
from trisync.wire.protocol import Publish

PRODUCER = "p" * 16
EVERYTHING = 1 << 40


class Clock:
    """Clocks that a test sets: the wall clock in milliseconds, and the other one in seconds."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        self.s = 0.0

    def now_ms(self) -> int:
        return self.ms

    def timer(self) -> float:
        return self.s


@asynccontextmanager
async def opened(folder: Path, clock: Clock | None = None, **changes: Any) -> AsyncIterator[SqliteLog]:
    clock = clock or Clock()
    log = await SqliteLog.open(folder, Settings(**({"busy_ms": 0} | changes)), now_ms=clock.now_ms, timer=clock.timer)
    try:
        yield log
    finally:
        await log.aclose()


def publish(data: Any = "x", channel: str = "lobby", seq: int | UnsetType = UNSET) -> Publish:
    return Publish(channel=channel, data=Raw(json.dumps(data, ensure_ascii=False).encode()), seq=seq)


def bad_request(seq: int | UnsetType = UNSET, message: str = "no") -> Refused:
    return Refused(WireError("bad_request", message), seq=seq)


def submission(*items: Publish | Refused, sender: str | None = None, producer: str | None = None) -> Submission:
    made = Submission(lambda _: None, sender, producer)
    for item in items:
        made.add(item, len(item.data) if isinstance(item, Publish) else 10)
    return made


async def put(log: SqliteLog, *items: Publish | Refused, **fields: Any) -> list[Verdict]:
    """Append a batch of one submission, and return its verdicts."""
    batch = [submission(*items, **fields)]
    await log.append(batch)
    return batch[0].verdicts


async def put_seqs(log: SqliteLog, *seqs: int) -> list[Verdict]:
    return await put(log, *(publish(seq, seq=seq) for seq in seqs), producer=PRODUCER)


def plain(verdicts: Sequence[Verdict]) -> list[Any]:
    """Verdicts as values that compare."""
    return [(v.code, v.message, v.details) if isinstance(v, WireError) else v for v in verdicts]


def messages(page: Page) -> list[dict[str, Any]]:
    return [] if page.run is None else [json.loads(payload) for payload in page.run.payloads()]


async def payloads(log: SqliteLog, channel: str = "lobby") -> list[bytes]:
    page = await log.read(channel, 0, 100_000, EVERYTHING)
    return [] if page.run is None else page.run.payloads()


async def data_of(log: SqliteLog, channel: str = "lobby") -> list[Any]:
    return [message["data"] for message in messages(await log.read(channel, 0, 100_000, EVERYTHING))]


def crash(folder: Path, to: Path) -> Path:
    """What a killed process leaves: the files as they are now."""
    to.mkdir()
    for file in folder.iterdir():
        if file.name != LOCK_NAME and not file.name.endswith("-shm"):
            shutil.copy(file, to)
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


async def a_log(folder: Path, *data: Any) -> str:
    """Make a log with these messages; returns its epoch."""
    async with opened(folder) as log:
        await put(log, *(publish(word) for word in data))
        return log.epoch


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def pages(file: Path) -> list[bytes]:
    """The pages of a database, as they are in its file."""
    content = file.read_bytes()
    return [content[at : at + 4096] for at in range(0, len(content), 4096)]


def damage(file: Path, page: int | None = None, content: bytes = b"\xff" * 4096) -> None:
    """Overwrite a page of a database, or its middle, as a failing disk may; its header and schema stay."""
    with file.open("r+b") as written:
        written.seek(file.stat().st_size // 2 // 4096 * 4096 if page is None else (page - 1) * 4096)
        written.write(content)


def cut_short_at(step: int, patched: pytest.MonkeyPatch) -> None:
    """Stop what follows where it touches a name, or syncs, once more than this many times."""
    left = step

    def cut_short(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    patched.setattr(os, "replace", cut_short(os.replace))
    patched.setattr(os, "fsync", cut_short(os.fsync))
    patched.setattr(Path, "unlink", cut_short(Path.unlink))
