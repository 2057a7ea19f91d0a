"""The log's WAL: when it is checkpointed, what is counted for that, and how it is made longer ahead of commits."""

import errno
import itertools
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from msgspec import Raw

from tests.sqlite_logs import data_of, names, opened, publish, put
from trisync.storage import sqlite_log, sqlite_opening
from trisync.storage.sqlite_files import SMALL_COMMIT_BYTES, WAL_AHEAD_BYTES
from trisync.storage.sqlite_log import CHECKPOINT_BYTES, CHECKPOINT_PAGES
from trisync.storage.sqlite_opening import FILE_NAME, LOCK_NAME, WAL_BYTES_KEPT, open_reader
from trisync.storage.sqlite_writer import CLEARING_PAGES, MESSAGES_DELETED_PER_PAGE, PAGE_BYTES
from trisync.wire.protocol import Publish


def word(key: str, data: str = "1", *, merge: bool = False) -> Publish:
    return Publish(channel="lobby", key=key, data=Raw(data.encode()), merge=merge)


async def test_only_the_writer_checkpoints_and_only_between_batches(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        file = tmp_path / FILE_NAME
        at_first = file.read_bytes()
        big = publish("x" * (CHECKPOINT_BYTES // 4))
        for _ in range(3):
            await put(log, big)
            await log.maintain()
        reader = open_reader(file, busy_ms=0)
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (3,)
        reader.close()  # neither reading nor leaving moves anything into the file
        assert file.read_bytes() == at_first
        await put(log, big)
        assert file.read_bytes() == at_first
        await log.maintain()
        assert len(file.read_bytes()) > CHECKPOINT_BYTES


async def test_a_wal_that_a_reader_made_long_is_short_again_once_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 100_000
    monkeypatch.setattr(sqlite_opening, "WAL_BYTES_KEPT", kept)
    async with opened(tmp_path) as log:
        wal, big = tmp_path / f"{FILE_NAME}-wal", publish("x" * kept)
        reader = open_reader(tmp_path / FILE_NAME, busy_ms=0)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        for _ in range(5):
            await put(log, big)
            log._writer.pages_written = CHECKPOINT_PAGES
            await log.maintain()
        assert wal.stat().st_size > 5 * kept
        reader.close()
        log._writer.pages_written = CHECKPOINT_PAGES
        await log.maintain()
        await put(log, publish())
        assert wal.stat().st_size <= kept


async def test_a_wal_is_begun_anew_though_somebody_reads_whenever_a_batch_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LONG_WAL_PAGES", 100)
    async with opened(tmp_path) as log:
        wal = tmp_path / f"{FILE_NAME}-wal"
        reader = open_reader(tmp_path / FILE_NAME, busy_ms=0)

        def begin_to_read() -> None:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchone()

        def leave_to_who_waits(statement: str) -> None:
            if "RESTART" in statement:
                reader.execute("COMMIT")

        log._connection.set_trace_callback(leave_to_who_waits)
        begin_to_read()
        for _ in range(20):
            await put(log, publish("x" * 100_000))
            log._writer.pages_written = CHECKPOINT_PAGES
            await log.maintain()
            if reader.in_transaction:
                reader.execute("COMMIT")
            begin_to_read()
        reader.close()
        assert wal.stat().st_size < 1_000_000


async def test_nobody_waits_for_a_backup_again_and_again_to_begin_the_wal_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LONG_WAL_PAGES", 100)
    monkeypatch.setattr(sqlite_log, "CHECKPOINT_PAGES", 50)
    async with opened(tmp_path) as log:
        said: list[str] = []
        log._connection.set_trace_callback(said.append)
        with closing(open_reader(tmp_path / FILE_NAME, busy_ms=0)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchone()
            for _ in range(20):
                await put(log, publish("x" * 100_000))
                await log.maintain()
        checkpoints = [statement for statement in said if "wal_checkpoint" in statement]
        assert len(checkpoints) > 5
        assert set(checkpoints) == {"PRAGMA wal_checkpoint(PASSIVE)"}


async def test_small_commits_are_checkpointed_too(tmp_path: Path) -> None:
    async with opened(tmp_path, durability="normal") as log:
        at_first = (tmp_path / FILE_NAME).read_bytes()
        log._writer.pages_written = CHECKPOINT_PAGES - 3
        await put(log, publish())
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() == at_first
        await put(log, publish())
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() != at_first
        assert log._writer.pages_written == 0


def many(count: int) -> list[Publish]:
    return [publish(channel=f"room{number}") for number in range(count)]


def ephemeral(number: int) -> Publish:
    return Publish(channel=f"other{number}", data=Raw(b"1"), ephemeral=True)


@pytest.mark.parametrize(
    ("batches", "too_many"),
    [
        ([[publish()]] * 50, 3),
        ([[publish("x" * 1000) for _ in range(200)]] * 3, 3),
        ([many(400)] * 3, 20),  # in a log that is small, they share pages
        ([many(3000)] * 6, 5),  # more than recent_heads keeps
        ([[word(f"key{number}") for number in range(400)]] * 3, 20),
        ([[word("doc", '"' + "x" * 100_000 + '"')], *[[word("doc", '{"a":1}', merge=True)]] * 5], 3),
        ([[word("doc", f'{{"a":"{"x" * 100_000}"}}')], *[[word("doc", '{"b":1}', merge=True)]] * 20], 3),
        ([[*map(ephemeral, range(500)), publish()]] * 5, 3),
    ],
    ids=["small", "large", "channels", "many channels", "keys", "replaced", "merged", "ephemeral"],
)
async def test_the_pages_that_are_written_are_counted_about_as_they_are(
    tmp_path: Path, batches: list[list[Publish]], too_many: int
) -> None:
    async with opened(tmp_path) as log:
        await put(log, *many(400))
        log._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        log._writer.pages_written = 0
        for batch in batches:
            await put(log, *batch)
        frames = (tmp_path / f"{FILE_NAME}-wal").stat().st_size // (PAGE_BYTES + 24)
        assert frames / 3 <= log._writer.pages_written <= too_many * frames


async def test_what_is_deleted_is_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish() for _ in range(100)))
        log._writer.pages_written = 0
        await log.trim({"lobby": 2 * MESSAGES_DELETED_PER_PAGE, "none": 1}, 1000)
        assert log._writer.pages_written == 1 + 2
        await log.clear("lobby")
        while await log.maintain():
            pass
        assert log._writer.pages_written >= 1 + 2 + CLEARING_PAGES + 80 // MESSAGES_DELETED_PER_PAGE


async def test_a_wal_that_grows_is_checkpointed_whatever_was_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish("x" * (CHECKPOINT_BYTES // 2)), publish("x" * (CHECKPOINT_BYTES // 2)))
        log._writer.pages_written = 0
        await put(log, publish())  # which sees how long it is
        at_first = (tmp_path / FILE_NAME).read_bytes()
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() != at_first
        log._writer.pages_written = 1
        await log.maintain()
        assert log._writer.pages_written == 1  # not again: it has its length


async def test_the_wal_is_made_longer_ahead_of_small_commits_and_a_crash_finds_them_all(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        wal = tmp_path / "log" / f"{FILE_NAME}-wal"
        sizes: list[int] = []
        while len(sizes) < 100:
            await put(log, publish("x" * (SMALL_COMMIT_BYTES // 2)))
            await log.maintain()
            sizes.append(wal.stat().st_size)
        grown = [later - earlier for earlier, later in itertools.pairwise(sizes)]
        assert sizes[-1] > 2 * WAL_AHEAD_BYTES
        assert grown.count(0) > 50, "most commits find their place there"
        # As after a crash, in which the index beside the WAL is worth nothing.
        shutil.copytree(tmp_path / "log", tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
        assert (tmp_path / "copy" / wal.name).read_bytes().endswith(bytes(1000))
    async with opened(tmp_path / "copy") as log:
        assert len(await data_of(log)) == 100


@pytest.mark.parametrize(
    ("durability", "commit_bytes", "free_bytes"),
    [
        ("full", WAL_AHEAD_BYTES, 1 << 40),
        ("normal", SMALL_COMMIT_BYTES // 2, 1 << 40),
        ("full", SMALL_COMMIT_BYTES // 2, 1),
    ],
    ids=["large commits", "commits that do not wait for the disk", "a disk nearly full"],
)
async def test_where_it_does_not_pay_no_space_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, commit_bytes: int, free_bytes: int
) -> None:
    disk = SimpleNamespace(f_bavail=free_bytes, f_frsize=1)
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: disk)
    async with opened(tmp_path, durability=durability) as log:
        wal = tmp_path / f"{FILE_NAME}-wal"
        while (before := wal.stat().st_size) < 2 * WAL_AHEAD_BYTES:
            await put(log, publish("x" * commit_bytes))
            await log.maintain()
            assert wal.stat().st_size - before < commit_bytes + SMALL_COMMIT_BYTES


async def test_making_the_wal_longer_never_touches_what_another_program_has_just_committed(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        await put(log, publish("x" * 2 * WAL_AHEAD_BYTES), publish("y"))
        other = sqlite3.connect(tmp_path / "log" / FILE_NAME, isolation_level=None)
        other.execute("PRAGMA wal_autocheckpoint = 0")
        log._files.require()
        other.execute("CREATE TABLE notes (note TEXT)")
        other.execute("INSERT INTO notes VALUES (?)", ("z" * WAL_AHEAD_BYTES,))
        log._files.make_space()
        other.execute("INSERT INTO notes VALUES ('after')")
        shutil.copytree(tmp_path / "log", tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
        other.close()
    copy = sqlite3.connect(tmp_path / "copy" / FILE_NAME)
    assert copy.execute("SELECT length(note) FROM notes").fetchall() == [(WAL_AHEAD_BYTES,), (5,)]
    copy.close()


async def test_where_the_wal_cannot_be_made_longer_nothing_else_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(descriptor: int) -> None:
        tries.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    async with opened(tmp_path) as log:
        with monkeypatch.context() as failing:
            failing.setattr(os, "fstatvfs", fail)
            for _ in range(60):
                await put(log, publish("x" * (SMALL_COMMIT_BYTES // 2)))
                await log.maintain()
        assert 1 <= len(tries) <= 5, "not at every commit"
        assert len(await data_of(log)) == 60


async def test_the_index_has_its_length_from_the_start_and_no_commit_needs_room_for_it(tmp_path: Path) -> None:
    index, wal = tmp_path / f"{FILE_NAME}-shm", tmp_path / f"{FILE_NAME}-wal"
    async with opened(tmp_path) as log:
        made = index.stat()
        assert made.st_blocks * 512 >= made.st_size
        while wal.stat().st_size < WAL_BYTES_KEPT + CHECKPOINT_BYTES:
            await put(log, publish("x" * 1_000_000))
        assert index.stat().st_size == made.st_size


async def test_the_locks_on_the_index_are_kept(tmp_path: Path) -> None:
    """Who finds nobody's takes itself for the first there, and empties the index beneath those who use it."""
    visit = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM heads')"
    async with opened(tmp_path) as log:
        before = (tmp_path / f"{FILE_NAME}-shm").stat().st_size
        await trio.run_process([sys.executable, "-c", visit, str(tmp_path / FILE_NAME)])
        assert (tmp_path / f"{FILE_NAME}-shm").stat().st_size == before
        await put(log, publish())
    assert names(tmp_path) == [FILE_NAME, LOCK_NAME]


def held_open(folder: Path) -> list[str]:
    held = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [file for file in held if file.startswith(str(folder))]


async def test_a_log_that_was_left_holds_none_of_its_files_open(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        assert held_open(tmp_path) != []
    assert held_open(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "posix_fallocate"])
async def test_where_the_index_cannot_be_made_longer_nothing_else_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    made = getattr(os, call)

    def fail(of: Path | str | int, *rest: int) -> int:
        if isinstance(of, int) or str(of).endswith("-shm"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        found: int = made(of, *rest)
        return found

    with monkeypatch.context() as failing:
        failing.setattr(os, call, fail)
        async with opened(tmp_path) as log:
            await put(log, publish())
            assert (tmp_path / f"{FILE_NAME}-shm").stat().st_size == 32768
    async with opened(tmp_path) as log:
        assert await data_of(log) == ["x"]
