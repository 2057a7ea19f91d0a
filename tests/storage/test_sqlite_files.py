"""The log on SQLite: its folder and its files, who may have them, and who else may read them."""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from tests.sqlite_logs import Clock, contents, crash, data_of, opened, publish, put
from trisync.settings import Settings
from trisync.storage.log import LogRefused, LogUnavailable
from trisync.storage.sqlite_log import SqliteLog
from trisync.storage.sqlite_opening import FILE_NAME, LOCK_NAME, open_reader, open_writer
from trisync.storage.sqlite_schema import SCHEMA_VERSION, TABLES, migrations
from trisync.storage.sqlite_writer import PAGE_BYTES


async def test_a_second_server_on_the_folder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("1234567890\n")  # of one that was killed
    async with opened(tmp_path) as log:
        await put(log, publish())
        before = contents(tmp_path)
        with pytest.raises(LogRefused, match=f"in use by another trisync server .process {os.getpid()}."):
            await SqliteLog.open(tmp_path, Settings())
        assert contents(tmp_path) == before
        assert await put(log, publish()) == [2]
    async with opened(tmp_path) as log:
        assert await put(log, publish()) == [3]


async def test_a_folder_that_could_not_be_claimed_on_a_full_disk_is_free_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / LOCK_NAME}'"):
            await SqliteLog.open(tmp_path, Settings())
    async with opened(tmp_path) as log:
        assert await put(log, publish()) == [1]


async def test_the_folder_is_free_again_even_if_it_could_not_be_left_cleanly(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, Settings(busy_ms=0))
    await put(log, publish())
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        await log.aclose()
    except LogUnavailable:
        pass  # the log's own way to say it; what was acknowledged is on the disk
    other.execute("ROLLBACK")
    other.close()
    async with opened(tmp_path) as log:
        assert await data_of(log) == ["x"]


async def test_a_folder_that_is_made_is_made_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    async with opened(tmp_path / "a" / "b"):
        assert synced == [str(tmp_path / "a"), str(tmp_path)]
    async with opened(tmp_path / "a" / "b"):
        assert len(synced) == 2


async def test_a_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "down") as log:
        assert await put(log, publish()) == [1]
    assert {file.name for file in (tmp_path / "deep" / "down").iterdir()} == {FILE_NAME, LOCK_NAME}


async def test_a_log_that_is_elsewhere_is_found_by_a_link_to_its_folder_and_not_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    async with opened(tmp_path / "data") as log:
        assert await put(log, publish()) == [1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE_NAME).symlink_to(tmp_path / "disk" / FILE_NAME)
    with pytest.raises(LogRefused, match="is a symbolic link; let its folder be one instead"):
        await SqliteLog.open(tmp_path / "other", Settings())


def foreign_database(path: Path, application_id: int = 0, user_version: int = 0) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.execute("INSERT INTO theirs VALUES (1)")
    connection.execute(f"PRAGMA application_id = {application_id}")
    connection.execute(f"PRAGMA user_version = {user_version}")
    connection.commit()
    connection.close()


TRIS = 0x74726973


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"x"), "not a SQLite database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "not a SQLite database"),
        (lambda path: path.write_text("my diary\n" * 100), "not a SQLite database"),
        (lambda path: foreign_database(path), "another program"),
        (lambda path: foreign_database(path, 0x0F055111), "another program"),
        (lambda path: foreign_database(path, TRIS, SCHEMA_VERSION + 1), "newer trisync"),
        (lambda path: foreign_database(path, TRIS, 2**31 - 1), "newer trisync"),
    ],
)
async def test_a_file_that_is_not_ours_is_refused_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / FILE_NAME)
    before = contents(tmp_path)
    stat = (tmp_path / FILE_NAME).stat()
    for _ in range(2):
        with pytest.raises(LogRefused, match=reason) as caught:
            await SqliteLog.open(tmp_path, Settings())
        assert FILE_NAME in str(caught.value)
    after = contents(tmp_path)
    after.pop(LOCK_NAME)
    assert after == before
    assert (tmp_path / FILE_NAME).stat().st_mtime_ns == stat.st_mtime_ns


async def test_what_this_version_writes_is_refused_by_an_older_one_from_the_header_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        header = (tmp_path / FILE_NAME).read_bytes()[:100]
    assert int.from_bytes(header[60:64], "big") == SCHEMA_VERSION
    assert int.from_bytes(header[68:72], "big") == TRIS


async def test_a_log_of_a_newer_version_that_was_killed_is_refused_before_its_header_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as log:
        await put(log, publish())
        log._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        folder = crash(tmp_path / "data", tmp_path / "killed")
        log._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(LogRefused, match="newer trisync"):
            await SqliteLog.open(folder, Settings())
        assert before.items() <= contents(folder).items()


async def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    async with opened(tmp_path) as log:
        assert await put(log, publish()) == [1]


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_off_the_end(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 10 * PAGE_BYTES)  # a little: SQLite sees by itself what lacks more


def overwrite_behind_the_first_page(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:PAGE_BYTES] + b"\xff" * 100_000)


def empty_the_schema(file: Path) -> None:
    with file.open("r+b") as written:
        written.seek(100)
        # A page of a table, that says it has no rows: sqlite.org/fileformat2.html, section 1.6.
        written.write(b"\x0d\0\0\0\0" + PAGE_BYTES.to_bytes(2, "big"))


def executed(*statements: str) -> Callable[[Path], None]:
    def execute(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return execute


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_in_half, "malformed"),
        (overwrite_behind_the_first_page, "malformed"),
        (empty_the_schema, "it lacks channels, heads, "),
        (executed("DROP TABLE meta"), "it lacks meta;"),
        (executed("DROP VIEW log", "DROP TABLE messages"), "it lacks messages;"),
        (executed("DROP TABLE _sqlite_migrations"), "does not say which version"),
        (executed("DROP TABLE _sqlite_migrations", "PRAGMA user_version = 0"), "does not say which version"),
        (executed("DELETE FROM _sqlite_migrations WHERE name LIKE '%recent%'"), "does not say which version"),
        (executed("UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE name = 'epoch'"), "UTF-8"),
        (executed("INSERT INTO meta VALUES ('time', 'other')"), "what is known of the newest message: Expected `int`"),
        (executed("UPDATE messages SET time = 'other'"), "what is known of the newest message: Expected `int`"),
    ],
)
async def test_a_damaged_log_is_refused_and_stays_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish("x" * 100) for _ in range(500)))
    damage(tmp_path / FILE_NAME)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(LogRefused, match=reason) as caught:
            await SqliteLog.open(tmp_path, Settings())
        assert str(caught.value).startswith(f"{tmp_path / FILE_NAME} is damaged, or not a whole trisync log: ")
        assert "`trisync restore`" in str(caught.value)
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path)[FILE_NAME] == before[FILE_NAME]


@pytest.mark.parametrize("damage", [cut_in_half, cut_off_the_end, overwrite_behind_the_first_page])
async def test_a_log_that_is_damaged_and_was_killed_keeps_what_is_in_its_wal(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "killed"
    async with opened(tmp_path / "data") as log:
        await put(log, *(publish("x" * 1000) for _ in range(500)))
    async with opened(tmp_path / "data") as log:
        await put(log, publish())
        crash(tmp_path / "data", folder)
    damage(folder / FILE_NAME)
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(LogRefused, match="is damaged, or not a whole trisync log"):
            await SqliteLog.open(folder, Settings())
        assert before.items() <= contents(folder).items()


def test_every_table_of_a_log_is_known_with_the_version_that_brought_it() -> None:
    database = sqlite_utils.Database(memory=True)
    steps = [step.name for step in migrations.pending(database)]
    for version, following in enumerate([*steps[1:], None], start=1):
        migrations.apply(database, stop_before=following)
        assert set(database.table_names()) - {"_sqlite_migrations"} == {
            name for name, since in TABLES.items() if since <= version
        }
    database.close()


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        for reader in [*log._idle_readers, open_reader(tmp_path / FILE_NAME, busy_ms=0)]:
            reader.execute("PRAGMA query_only = OFF")  # it is the file that is opened so
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("DELETE FROM messages")
            if reader not in log._idle_readers:
                reader.close()


async def test_full_and_normal_are_what_sqlite_is_told(tmp_path: Path) -> None:
    for durability, synchronous in (("full", 2), ("normal", 1)):
        async with opened(tmp_path, durability=durability) as log:
            assert log._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
            assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert log._connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_what_is_deleted_is_overwritten_as_before_once_the_tables_are_made(tmp_path: Path) -> None:
    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(*args, **options)
        connection.execute("PRAGMA secure_delete = ON").fetchall()  # as in Debian
        return connection

    with closing(open_writer(tmp_path / FILE_NAME, durability="full", busy_ms=0, connect=connect)) as writer:
        assert writer.execute("PRAGMA secure_delete").fetchone() == (1,)


async def test_people_read_the_log_with_sqlite_utils_while_it_is_written(tmp_path: Path) -> None:
    clock = Clock()
    clock.ms = 1_766_000_000_123
    async with opened(tmp_path, clock) as log:
        await put(log, publish({"n": 1}), publish("two", channel="b"), sender="alice")
        await put(log, publish(3))
        connection = sqlite3.connect(f"{(tmp_path / FILE_NAME).as_uri()}?mode=ro", uri=True)
        database = sqlite_utils.Database(connection)
        assert {"channels", "messages", "producers", "meta"} <= set(database.table_names())
        assert list(database.query("SELECT * FROM log")) == [
            {
                "channel": "lobby",
                "offset": 1,
                "time": "2025-12-17 19:33:20.123",
                "from": "alice",
                "key": None,
                "data": '{"n": 1}',
            },
            {
                "channel": "b",
                "offset": 1,
                "time": "2025-12-17 19:33:20.123",
                "from": "alice",
                "key": None,
                "data": '"two"',
            },
            {
                "channel": "lobby",
                "offset": 2,
                "time": "2025-12-17 19:33:20.123",
                "from": None,
                "key": None,
                "data": "3",
            },
        ]
        await put(log, publish(4))
        assert database["messages"].count == 4
        connection.close()
    with closing(sqlite_utils.Database(tmp_path / FILE_NAME)) as database:
        assert database["messages"].count == 4


async def test_a_channel_forgotten_by_the_writers_cache_goes_on_where_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path, cached_heads_max=2, producer_cache_bytes_max=3000) as log:
        for round in range(1, 4):
            for channel in "abcde":
                assert await put(log, publish(channel=channel, seq=round), producer=channel * 16) == [round]
