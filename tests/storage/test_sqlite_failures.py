"""The log on SQLite: what a failure leaves behind, and what goes on beside it."""

import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from msgspec import Raw

from tests.sqlite_logs import (
    EVERYTHING,
    PRODUCER,
    data_of,
    opened,
    publish,
    put,
    put_seqs,
    submission,
)
from trisync.settings import Settings
from trisync.storage.log import Duplicate, Extent, LogUnavailable
from trisync.storage.sqlite_log import CHECKPOINT_PAGES, SqliteLog
from trisync.storage.sqlite_opening import FILE_NAME, transaction
from trisync.wire.protocol import Publish

T = TypeVar("T")


async def append_fails(log: SqliteLog) -> str:
    with pytest.raises(LogUnavailable) as caught:
        await put(log, publish("lost", seq=2), publish("lost", channel="new"), publish("lost"), producer=PRODUCER)
    return str(caught.value)


async def as_if_nothing_was(log: SqliteLog) -> None:
    """After a failed batch: offsets are given back, nothing is settled, nothing is stored, and writing works."""
    assert await log.settled_seq(PRODUCER) == 1
    assert (await log.extent("lobby"), await log.extent("new")) == (Extent(1, 0), Extent(0, 0))
    verdicts = await put(
        log, publish("kept", seq=2), publish("kept", channel="new"), publish("kept"), producer=PRODUCER
    )
    assert verdicts == [2, 1, 3]
    assert await data_of(log) == [1, "kept", "kept"]


async def test_a_locked_file_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert "locked" in await append_fails(log)
        assert await data_of(log) == [1]  # reads go on
        with pytest.raises(LogUnavailable):
            await log.trim({"lobby": 1}, 1000)
        other.execute("ROLLBACK")
        other.close()
        await as_if_nothing_was(log)


async def test_a_full_disk_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
        log._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LogUnavailable, match="full"):
            await put(log, publish("small", seq=2), publish("x" * 100_000), producer=PRODUCER)
        assert not log._connection.in_transaction
        assert await data_of(log) == [1]
        log._connection.execute("PRAGMA max_page_count = 1000000")
        await as_if_nothing_was(log)


async def test_a_read_only_file_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        log._connection.execute("PRAGMA query_only = ON")
        assert "readonly" in await append_fails(log)
        log._connection.execute("PRAGMA query_only = OFF")
        await as_if_nothing_was(log)


class FailingConnection:
    """A connection on which one statement fails as SQLite would have it."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int) -> None:
        self._connection = connection
        self._statement = statement
        self._code = code

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def failing(log: SqliteLog, statement: str, code: int) -> Iterator[None]:
    """Every statement of the writer that begins so fails."""
    writer: Any = log._writer
    connection = writer._db
    writer._db = FailingConnection(connection, statement, code)
    try:
        yield
    finally:
        writer._db = connection


async def test_damage_that_a_batch_meets_before_its_commit_leaves_nothing_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        with failing(log, "INSERT INTO messages", sqlite3.SQLITE_CORRUPT):
            await append_fails(log)
        await as_if_nothing_was(log)


@pytest.mark.parametrize("statement", ["INSERT INTO messages", "INSERT OR REPLACE INTO meta"])
async def test_a_statement_that_is_wrong_is_not_taken_for_damage(tmp_path: Path, statement: str) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        with failing(log, statement, sqlite3.SQLITE_ERROR), pytest.raises(sqlite3.OperationalError):
            await (put(log, publish()) if "messages" in statement else log.clear("lobby"))


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_FSYNC])
async def test_a_batch_that_was_not_committed_has_no_verdicts(tmp_path: Path, code: int) -> None:
    """Who waits in Broker.publish() when the broker ends is given them."""
    made = submission(publish())
    async with opened(tmp_path) as log:
        with failing(log, "COMMIT", code), pytest.raises((LogUnavailable, sqlite3.OperationalError)):
            await log.append([made])
    assert made.verdicts == []


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO messages", "COMMIT"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY_SNAPSHOT])
async def test_wherever_a_batch_fails_nothing_of_it_stays(tmp_path: Path, statement: str, code: int) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        with failing(log, statement, code):
            await append_fails(log)
        await as_if_nothing_was(log)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        *product(["BEGIN", "INSERT INTO messages", "COMMIT"], [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_FSYNC]),
        ("COMMIT", sqlite3.SQLITE_CORRUPT),
    ],
)
async def test_an_error_whose_outcome_is_unknown_is_raised_as_it_is(tmp_path: Path, statement: str, code: int) -> None:
    async with opened(tmp_path / "a") as log:
        await put_seqs(log, 1)
        with failing(log, statement, code), pytest.raises(sqlite3.OperationalError, match="disk I/O error") as caught:
            await put_seqs(log, 2)
        assert caught.value.sqlite_errorcode == code
    # Closed, and opened again, it tells the truth.
    async with opened(tmp_path / "a") as log:
        assert await data_of(log) == [1]
        assert await put_seqs(log, 2) == [2]


@pytest.mark.parametrize("what", ["append", "clear"])
async def test_after_an_unknown_outcome_nothing_is_folded_into_the_file(tmp_path: Path, what: str) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        before = (tmp_path / FILE_NAME).read_bytes()
        with failing(log, "COMMIT", sqlite3.SQLITE_IOERR_FSYNC), pytest.raises(sqlite3.OperationalError):
            await (put_seqs(log, 2) if what == "append" else log.clear("lobby"))
    # Nobody has read in this log: its readers must count as such nevertheless.
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size > 0
    async with opened(tmp_path) as log:
        assert await data_of(log) == [1]


async def test_a_checkpoint_that_failed_is_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        log._writer.pages_written = CHECKPOINT_PAGES
        connection: Any = log._connection
        log._connection = FailingConnection(connection, "PRAGMA wal_checkpoint", sqlite3.SQLITE_FULL)  # type: ignore[assignment]
        before = (tmp_path / FILE_NAME).read_bytes()
        with pytest.raises(LogUnavailable):
            await log.maintain()
        log._connection = connection
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() != before


async def test_what_is_no_error_of_sqlite_is_raised_as_it_is_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        broken = Publish(channel="lobby", data=Raw(b"\xff"))  # a bug: the door lets no such thing in
        with pytest.raises(UnicodeDecodeError):
            await put(log, publish(), broken)


async def test_a_read_that_fails_is_unavailable_and_the_next_one_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        for reader in log._idle_readers:
            reader.set_progress_handler(lambda: 1, 1)  # every statement is interrupted
        for _ in range(5):
            with pytest.raises(LogUnavailable):
                await log.read("lobby", 0, 10, EVERYTHING)
        for reader in log._idle_readers:
            reader.set_progress_handler(None, 1)
        assert await data_of(log) == ["x"]


async def test_no_batch_depends_on_the_folder_for_temporary_files(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    os.utime(folder, (0, 0))
    with closing(sqlite3.connect(":memory:")) as sqlite:
        sqlite.execute(f"PRAGMA temp_store_directory = '{folder}'")  # of the whole process
        try:
            async with opened(tmp_path / "data") as log:
                for _ in range(2):  # what changes many pages of a table is what may have to be undone
                    words = (Publish(channel="lobby", data=Raw(b'"word"'), key=f"{n:0500}") for n in range(1000))
                    await put(log, *words)
        finally:
            sqlite.execute("PRAGMA temp_store_directory = ''")
    assert folder.stat().st_mtime == 0, "a file was made there"


class HeldExecutor:
    """Runs calls in threads, which wait at their beginning while a test holds them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        def run() -> T:
            self.gate.wait()
            return call()

        return trio.to_thread.run_sync(run)


async def test_a_cancelled_append_still_runs_to_its_end(tmp_path: Path) -> None:
    executor = HeldExecutor()
    log = await SqliteLog.open(tmp_path, Settings(), executor=executor)
    made = submission(publish(1, seq=1), producer=PRODUCER)
    async with trio.open_nursery() as nursery:
        executor.gate.clear()
        nursery.start_soon(log.append, [made])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        executor.gate.set()
    assert made.verdicts == [1]
    assert await data_of(log) == [1]
    assert await put_seqs(log, 1, 2) == [Duplicate(1), 2]
    await log.aclose()


async def test_a_cancelled_read_gives_its_connection_back(tmp_path: Path) -> None:
    executor = HeldExecutor()
    log = await SqliteLog.open(tmp_path, Settings(), executor=executor)
    await put(log, publish())
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            executor.gate.clear()
            nursery.start_soon(log.read, "lobby", 0, 10, 1000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            executor.gate.set()
    assert await data_of(log) == ["x"]
    await log.aclose()


async def test_reads_go_on_beside_an_append(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish("before"))
        log._connection.execute("BEGIN IMMEDIATE")
        log._connection.execute("DELETE FROM messages")
        assert await data_of(log) == ["before"]
        log._connection.execute("ROLLBACK")


def test_an_error_by_which_sqlite_has_rolled_back_by_itself_is_raised_as_it_is() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute("CREATE TABLE words (word NOT NULL)")
        with pytest.raises(sqlite3.IntegrityError), transaction(database):
            database.execute("INSERT OR ROLLBACK INTO words VALUES (NULL)")
