"""The log on SQLite: the async face of the writer, and the readers beside it.

The event loop never waits for the disk: every statement runs in a worker thread, through one injected
executor. The statements are in sqlite_writer.py and sqlite_reading.py, the file itself in sqlite_opening.py.
"""

import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import trio

from trisync.settings import Settings
from trisync.storage import sqlite_reading as reading
from trisync.storage.damage import SaidOnce
from trisync.storage.log import (
    ChannelInfo,
    Extent,
    Log,
    LogDamaged,
    LogGone,
    LogUnavailable,
    OldMessage,
    Page,
    Run,
    StatePage,
    Submission,
)
from trisync.storage.sqlite_errors import unavailable
from trisync.storage.sqlite_files import LogFiles, may_grow
from trisync.storage.sqlite_opening import (
    FILE_NAME,
    WAL_BYTES_KEPT,
    Connect,
    close_writer,
    lock_folder,
    open_reader,
    open_writer,
    read_meta,
    unusable,
)
from trisync.storage.sqlite_writer import PAGE_BYTES, Writer
from trisync.storage.writer_thread import WriterThread
from trisync.tokens import Tokens

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Executor(Protocol):
    """Runs a blocking call somewhere else; a cancelled caller still waits for it to end."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


CHECKPOINT_BYTES = 16 * 1024 * 1024
"""Written to the WAL between two checkpoints, about: it stays in the page cache, and nobody waits long. Measured, 5 ms
a MiB where all is in one channel, and 20 ms in all where each message is in another of 100,000, in a log of 2
million."""
CHECKPOINT_PAGES = CHECKPOINT_BYTES // PAGE_BYTES
"""The same, as Writer.pages_written counts."""
LONG_WAL_PAGES = WAL_BYTES_KEPT // PAGE_BYTES
"""SQLite begins a WAL anew when a batch finds nobody reading in it. Readers that take turns keep it from that: beside
two that were always busy the WAL came to 160 MiB, and nothing would have ended that."""
RESTART_MS = 50
"""How long a checkpoint of such a WAL waits for those who read: a few times what they need. A backup needs minutes, and
is not waited for once it has kept a whole checkpoint's pages from the file: all publishers would wait, each time."""
READERS = 2
"""Reading connections: one may be busy with somebody's long history while another serves the rest."""
ROWS_DELETED_PER_STEP = 500
"""Rows deleted between two batches: a few milliseconds."""
FORGET_EVERY_S = 60.0
"""How often idle producers and old Idempotency-Keys are looked for."""


class _Opened(NamedTuple):
    """What a log holds open."""

    lock: int
    connection: sqlite3.Connection
    readers: list[sqlite3.Connection]
    writer: Writer
    epoch: str


class SqliteLog(Log):
    """A log in one SQLite file. Made by open()."""

    def __init__(
        self,
        path: Path,
        opened: _Opened,
        settings: Settings,
        executor: Executor | None,
        timer: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._files = LogFiles(path)
        self._lock, self._connection, self._idle_readers, self._writer, self.epoch = opened
        self._reading = trio.CapacityLimiter(len(self._idle_readers))
        self._settings = settings
        self._thread = WriterThread() if executor is None else None
        self._executor: Executor = executor or trio.to_thread.run_sync
        self._write_executor: Executor = self._thread or self._executor
        self._timer = timer
        self._now_ms = now_ms
        self._broken = False
        self._damage = SaidOnce()
        self._unpurged: list[int] = []
        self._wal_bytes_kept = 0
        """The WAL's size at the last checkpoint: it is written from its beginning again, and grows behind that."""
        self._forget_at = timer() + FORGET_EVERY_S
        self._emptied = True  # there may be what an earlier run had no time for

    @staticmethod
    async def open(
        folder: Path,
        settings: Settings,
        *,
        executor: Executor | None = None,
        timer: Callable[[], float] = trio.current_time,
        writer_timer: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        tokens: Tokens = secrets.token_hex,
        connect: Connect = sqlite3.connect,
    ) -> "SqliteLog":
        """Open the log in a data folder, making both where there is none. Raises LogRefused.

        Without an executor, what blocks runs in Trio's threads, and what writes in a thread of its own. `writer_timer`
        is read in the writer's thread, where Trio's clock is not at hand.
        """
        path = folder / FILE_NAME

        def open_all() -> _Opened:
            with ExitStack() as undo:
                lock = lock_folder(folder)
                undo.callback(os.close, lock)
                connection = open_writer(
                    path, durability=settings.durability, busy_ms=settings.busy_ms, tokens=tokens, connect=connect
                )
                undo.callback(connection.close)
                try:
                    readers = []
                    for _ in range(READERS):
                        readers.append(open_reader(path, busy_ms=settings.busy_ms, connect=connect))
                        undo.callback(readers[-1].close)
                    writer = Writer(connection, settings=settings, now_ms=now_ms, timer=writer_timer)
                    epoch = read_meta(connection, "epoch")
                except sqlite3.Error as error:
                    raise unusable(path, error) from error
                undo.pop_all()
            assert epoch is not None
            return _Opened(lock, connection, readers, writer, epoch)

        opened = await (executor or trio.to_thread.run_sync)(open_all)
        return SqliteLog(path, opened, settings, executor, timer, now_ms)

    def now_ms(self) -> int:
        return max(self._writer.time_ms, self._now_ms())

    async def append(self, batch: Sequence[Submission]) -> list[Run]:
        try:
            return await self._write(lambda: self._writer.append(batch))
        except LogDamaged as problem:
            self._say_damage(f"publishes are refused: {problem}")
            raise

    async def maintain(self) -> bool:
        grown_bytes = self._files.wal_bytes - self._wal_bytes_kept  # pages_written is only about right
        if self._writer.pages_written >= CHECKPOINT_PAGES or grown_bytes >= CHECKPOINT_BYTES:
            await self._write(self._checkpoint)
            self._writer.pages_written = 0
            self._wal_bytes_kept = self._files.wal_bytes
        elif self._files.wal_wants_space and self._settings.durability == "full":  # else no commit waits for the disk
            await self._write(self._files.make_space)
        elif self._timer() >= self._forget_at:
            if await self._write(self._forget) < ROWS_DELETED_PER_STEP:
                self._forget_at = self._timer() + FORGET_EVERY_S
        elif self._emptied:
            self._emptied = await self._write(self._purge)
        return self._emptied or self._timer() >= self._forget_at

    def _checkpoint(self) -> None:
        # As far as the readers let it, without waiting for any.
        _, pages, done = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages >= LONG_WAL_PAGES and pages - done < CHECKPOINT_PAGES:
            self._connection.execute(f"PRAGMA busy_timeout = {min(RESTART_MS, self._settings.busy_ms)}")
            try:
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
            finally:
                self._connection.execute(f"PRAGMA busy_timeout = {self._settings.busy_ms}")

    def _tidy(self, delete: Callable[[int], int]) -> int:
        try:
            return delete(ROWS_DELETED_PER_STEP)
        except LogDamaged as problem:  # each batch would wait for another try
            self._say_damage(f"what is not needed any more cannot be deleted: {problem}")
            return 0

    def _forget(self) -> int:
        idle_s = self._settings.producer_idle_s
        producers = self._tidy(lambda count_max: self._writer.forget_idle_producers(idle_s, count_max))
        return max(producers, self._tidy(self._writer.forget_requests))

    def _purge(self) -> bool:
        """Whether there may be more to purge. A channel that damage keeps from it is passed over."""
        channel = self._tidy(lambda _: self._writer.emptied(self._unpurged))
        if channel and not self._tidy(lambda count_max: self._writer.purge(channel, count_max)):
            self._unpurged.append(channel)
        return channel > 0

    async def trim(self, cuts: Mapping[str, int], count_max: int) -> dict[str, Extent]:
        return await self._write(lambda: self._writer.trim(cuts, count_max))

    async def clear(self, channel: str) -> Extent | None:
        extent = await self._write(lambda: self._writer.clear(channel))
        self._emptied = True
        return extent

    async def extent(self, channel: str) -> Extent:
        return await self._read(channel, lambda db: reading.find(db, channel)[1])

    async def read(self, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
        return await self._read(channel, lambda db: reading.page_behind(db, channel, after, count_max, bytes_max))

    async def newest(self, channel: str, count_max: int, bytes_max: int) -> Page:
        return await self._read(channel, lambda db: reading.newest_page(db, channel, count_max, bytes_max))

    async def state(self, channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
        return await self._read(channel, lambda db: reading.state_page(db, channel, after, count_max, bytes_max))

    async def word(self, channel: str, key: str) -> StatePage:
        return await self._read(channel, lambda db: reading.word(db, channel, key))

    async def channels(self, after: str, count_max: int) -> list[ChannelInfo]:
        try:
            return await self._read("", lambda db: reading.channels_behind(db, after, count_max))
        except LogDamaged:
            return await self.describe(
                await self._read("the list of channels", lambda db: reading.names_behind(db, after, count_max))
            )

    async def describe(self, names: Sequence[str]) -> list[ChannelInfo]:
        try:
            return await self._read("", lambda db: reading.channels_named(db, names))
        except LogDamaged:  # of one of them, perhaps
            if len(names) < 2:
                return [await self._describe_damaged(name) for name in names]
            names, half = sorted(names), len(names) // 2
            return await self.describe(names[:half]) + await self.describe(names[half:])

    async def _describe_damaged(self, name: str) -> ChannelInfo:
        try:
            extent = await self.extent(name)
        except LogDamaged:
            extent = Extent(0, 0)
        return ChannelInfo(name, extent, 0, None)

    async def oldest(self, channel: str, count_max: int) -> list[OldMessage]:
        return await self._read(channel, lambda db: reading.oldest_messages(db, channel, count_max))

    async def settled_seq(self, producer: str) -> int:
        return await self._read("what producers have settled", lambda db: reading.settled_seq(db, producer))

    async def aclose(self) -> None:
        def close_all() -> None:
            with ExitStack() as steps:
                steps.callback(os.close, self._lock)
                steps.callback(self._files.close)
                if self._broken:
                    # What is in the WAL must not be folded into the file by a process that does not know what the
                    # disk has. While a reader has it open, closing the writer does not; the next start finds out.
                    self._connection.close()
                else:
                    steps.callback(self._leave)
                for reader in self._idle_readers:
                    reader.close()

        with trio.CancelScope(shield=True):
            await self._executor(close_all)
        if self._thread is not None:
            self._thread.close()

    def _leave(self) -> None:
        try:
            self._files.require()
            close_writer(self._connection)
        except (LogGone, sqlite3.Error) as error:
            logger.warning("the log was not left cleanly: %s; the next start sees to it", error)
            self._connection.close()

    async def _write(self, call: Callable[[], T]) -> T:
        def run() -> T:
            self._files.require()
            try:
                return call()
            except (sqlite3.Error, LogDamaged) as error:
                reason = error if isinstance(error, LogDamaged) else unavailable(error) or self._without_space(error)
                if reason is None:
                    raise
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise reason from error

        try:
            return await self._write_executor(run)
        except LogUnavailable:
            raise
        except Exception:  # not a cancellation, which comes before the call or not at all
            self._broken = True
            raise

    def _without_space(self, error: sqlite3.Error) -> LogUnavailable | None:
        """The LogUnavailable for a write that a quota did not let through: to SQLite, only ENOSPC is a full disk."""
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_IOERR_WRITE or may_grow(self._files.path):
            return None
        return LogUnavailable("a quota or limit is used up")

    def _say_damage(self, problem: str) -> None:
        """Say, once, what will not be better until a backup is restored."""
        if self._damage.is_news(problem):
            logger.error("%s; `trisync restore` puts a backup in the log's place", problem)

    def _unreadable(self, what: str, error: Exception) -> LogUnavailable:
        """What to raise for a read that failed. What will not be better the next time is said, once: whoever wants
        those messages goes on waiting for them."""
        if passing := unavailable(error):
            return passing
        name = getattr(error, "sqlite_errorname", "no SQLite code")  # what is not UTF-8 has none: sqlite3 finds it
        if what:
            self._say_damage(f"the log cannot be read where it may be damaged: {what}: {error} ({name})")
        return LogDamaged(str(error))

    async def _read(self, what: str, call: Callable[[sqlite3.Connection], T]) -> T:
        """What a call returns. `what` it reads is for those who run the server, "" where another read finds that out.

        Raises LogUnavailable.
        """
        async with self._reading:
            reader = self._idle_readers.pop()

            def run() -> T:
                try:
                    if reader.in_transaction:  # whose end failed
                        reader.execute("ROLLBACK")
                    reader.execute("BEGIN")  # one snapshot for all of a read's statements
                    try:
                        return call(reader)
                    finally:
                        reader.execute("COMMIT")
                except (sqlite3.Error, msgspec.DecodeError) as error:  # the latter where a page has another's content
                    raise self._unreadable(what, error) from error

            try:
                return await self._executor(run)
            finally:
                self._idle_readers.append(reader)
