"""Backups: a copy of one moment of a log under load, whole or not there, and what the commands say."""

import itertools
import os
import re
import shlex
import shutil
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio

from tests.harness import LinesPeer, run_trisync, server_process
from tests.sqlite_logs import a_log, contents, cut_short_at, damage, data_of, names, opened, publish, put
from trisync.storage import sqlite_backup
from trisync.storage.log import LogRefused
from trisync.storage.sqlite_backup import backup, restore
from trisync.storage.sqlite_opening import FILE_NAME, LOCK_NAME

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


async def test_a_backup_under_load_is_of_one_moment_and_holds_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "backup.db"
    acknowledged = 0
    one_more = trio.Event()
    with server_process(data) as server:

        async def publish_without_end() -> None:
            nonlocal acknowledged, one_more
            async with (await server.lines()).stream as stream:
                peer = LinesPeer(stream)
                for number in itertools.count(1):
                    for channel in "ab":
                        await peer.request("publish", channel=channel, data=[number, "x" * 1000])
                    acknowledged = number
                    one_more.set()
                    one_more = trio.Event()

        async def acknowledge(count: int) -> None:
            while acknowledged < count:
                await one_more.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_without_end)
            await acknowledge(100)
            before = acknowledged
            done = await run_trisync("backup", str(file), "--data", str(data))
            during = acknowledged
            await acknowledge(during + 100)  # the server was not disturbed
            nursery.cancel_scope.cancel()
        assert (done.returncode, done.stderr) == (0, b"")
        assert server.stop() == 0
        assert "WARNING" not in server.said()
    restore(file, tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        a, b = [[number for number, _ in await data_of(log, channel)] for channel in "ab"]
    assert a == list(range(1, len(a) + 1))
    assert b == list(range(1, len(b) + 1))
    assert len(a) - len(b) in (0, 1)  # as they were at one moment
    assert before <= len(b) <= during


async def test_a_backup_is_one_plain_file_that_any_sqlite_reads(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as log:
        await put(log, publish("one"), publish("two"))
        backup(tmp_path / "data", tmp_path / "backup.db")
        assert names(tmp_path) == ["backup.db", "data"]
    (tmp_path / "backup.db").chmod(0o444)
    database = sqlite3.connect(f"file:{tmp_path}/backup.db?mode=ro&immutable=1", uri=True)
    assert database.execute("SELECT data FROM log").fetchall() == [('"one"',), ('"two"',)]
    database.close()


async def test_the_copy_goes_on_from_step_to_step_while_the_log_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_backup, "PAGES_PER_STEP", 1)
    steps: list[int] = []
    writes = 0
    async with opened(tmp_path / "data") as log:
        await put(log, *(publish("x" * 1000) for _ in range(100)))
        db = log._connection

        def write_and_checkpoint(done: int, total: int) -> None:
            nonlocal writes
            assert done == len(steps) + 1, "the copy began anew"
            steps.append(done)
            db.execute("UPDATE messages SET data = ?", (f'"{writes}"',))
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            writes += 1

        backup(tmp_path / "data", tmp_path / "backup.db", progress=write_and_checkpoint)
    assert writes > 20
    restore(tmp_path / "backup.db", tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        assert await data_of(log) == ["x" * 1000] * 100


async def test_what_a_killed_server_left_in_its_wal_is_in_the_backup(tmp_path: Path) -> None:
    with server_process(tmp_path / "data") as server:
        async with (await server.lines()).stream as stream:
            await LinesPeer(stream).request("publish", channel="lobby", data="newest")
        server.stop(signal.SIGKILL)
    assert (tmp_path / "data" / f"{FILE_NAME}-wal").stat().st_size > 0
    backup(tmp_path / "data", tmp_path / "backup.db")
    restore(tmp_path / "backup.db", tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        assert await data_of(log) == ["newest"]


async def test_a_backup_replaces_a_file_only_when_told(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "new")
    file = tmp_path / "backup.db"
    file.write_text("dear")
    with pytest.raises(LogRefused, match="is there already; --force replaces it"):
        backup(tmp_path / "data", file)
    assert file.read_text() == "dear"
    backup(tmp_path / "data", file, replace=True)
    restore(file, tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        assert await data_of(log) == ["new"]


async def test_what_was_copied_by_hand_to_the_name_of_a_backup_is_no_part_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as log:
        await put(log, publish("old"))
        for end in ("", "-wal"):
            shutil.copy(tmp_path / "data" / f"{FILE_NAME}{end}", tmp_path / f"backup.db{end}")
        await put(log, publish("new"))
        (tmp_path / "backup.db").unlink()
        with pytest.raises(LogRefused, match=r"backup\.db-wal is there already"):
            backup(tmp_path / "data", tmp_path / "backup.db")
        backup(tmp_path / "data", tmp_path / "backup.db", replace=True)
    restore(tmp_path / "backup.db", tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        assert await data_of(log) == ["old", "new"]


@pytest.mark.parametrize("in_wal", [False, True])
@pytest.mark.parametrize("step", range(12))
async def test_a_backup_that_is_cut_short_leaves_the_older_copy_whole_or_none_where_it_has_a_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, in_wal: bool
) -> None:
    """Each time it touches a name, it is stopped there."""
    await a_log(tmp_path / "data", "new")
    file = tmp_path / FILE_NAME
    async with opened(tmp_path / "older") as log:
        await put(log, publish("old"))
        if in_wal:
            for name in (FILE_NAME, f"{FILE_NAME}-wal"):
                shutil.copy(tmp_path / "older" / name, tmp_path)
    if not in_wal:
        shutil.copy(tmp_path / "older" / FILE_NAME, tmp_path)
    with monkeypatch.context() as patched:
        cut_short_at(step, patched)
        with suppress(KeyboardInterrupt):
            backup(tmp_path / "data", file, replace=True)
    assert file.exists() or in_wal
    if file.exists():
        async with opened(tmp_path) as log:
            assert await data_of(log) in (["old"], ["new"])


async def test_a_backup_replaces_a_copy_that_somebody_who_looked_into_it_leaves_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_log(tmp_path / "data", "new")
    file = tmp_path / "backup.db"
    reader = sqlite3.connect(file)
    reader.executescript("PRAGMA journal_mode = WAL; CREATE TABLE old (x)")
    unlink = Path.unlink

    def leave_first(path: Path, missing_ok: bool = False) -> None:
        if path == file:
            reader.close()
            assert not Path(f"{file}-wal").exists()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", leave_first)
    backup(tmp_path / "data", file, replace=True)
    restore(file, tmp_path / "restored")
    async with opened(tmp_path / "restored") as log:
        assert await data_of(log) == ["new"]


@pytest.mark.parametrize("name", [FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", f"{FILE_NAME}-journal", LOCK_NAME])
async def test_the_logs_own_files_are_never_replaced_by_a_copy_of_it(tmp_path: Path, name: str) -> None:
    data, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(data)
    async with opened(data) as log:
        await put(log, publish("dear"))
        before = contents(data)
        for folder in (data, link, data / ".." / "data"):
            with pytest.raises(LogRefused, match="belongs to the log that is to be copied"):
                backup(data, folder / name, replace=True)
        assert contents(data) == before
        backup(data, link / "another.db")


async def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "new")
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for file in (pipe, link):
        with pytest.raises(LogRefused, match="is no regular file"):
            backup(tmp_path / "data", file, replace=True)
    assert pipe.is_fifo()
    assert link.is_symlink()


async def test_there_is_no_backup_of_a_folder_without_a_log_and_none_is_made_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for folder in (tmp_path / "data", tmp_path / "nowhere"):
        with pytest.raises(LogRefused, match="there is no log"):
            backup(folder, tmp_path / "backup.db")
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == []


async def test_a_damaged_log_is_not_copied_over_a_good_backup(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", *("x" * 1000 for _ in range(100)))
    backup(tmp_path / "data", tmp_path / "backup.db")
    good = (tmp_path / "backup.db").read_bytes()
    damage(tmp_path / "data" / FILE_NAME)
    with pytest.raises(LogRefused, match=r"damaged, and was not copied: [^*\n]+; `trisync restore` .+\Z"):
        backup(tmp_path / "data", tmp_path / "backup.db", replace=True)
    assert (tmp_path / "backup.db").read_bytes() == good
    assert names(tmp_path) == ["backup.db", "data"]


async def test_a_log_whose_damage_only_its_text_shows_is_not_copied(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME)) as database:
        database.execute("UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE name = 'epoch'")
        database.commit()
    with pytest.raises(LogRefused, match=r"damaged, and was not copied: .*UTF-8"):
        backup(tmp_path / "data", tmp_path / "backup.db")
    assert names(tmp_path) == ["data"]


async def test_a_copy_that_fails_names_what_was_to_be_copied_and_where_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(reader: sqlite3.Connection, written: sqlite3.Connection, progress: object) -> None:
        written.execute("PRAGMA max_page_count = 1")
        written.execute("CREATE TABLE more (x)")

    await a_log(tmp_path / "data", "x")
    monkeypatch.setattr(sqlite_backup, "_copy_pages", fill)
    with pytest.raises(LogRefused) as caught:
        backup(tmp_path / "data", tmp_path / "x.db")
    source, copy = tmp_path / "data" / FILE_NAME, tmp_path / "x.db.partial"
    assert str(caught.value) == f"{source} was not copied to {copy}: database or disk is full"
    assert names(tmp_path) == ["data"]


async def test_two_copies_at_once_do_not_take_each_other_for_damage(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")

    def begin_another(done: int, total: int) -> None:
        with pytest.raises(LogRefused, match=r"x\.db\.partial is being written by another backup"):
            backup(tmp_path / "data", tmp_path / "x.db")

    backup(tmp_path / "data", tmp_path / "x.db", progress=begin_another)
    assert names(tmp_path) == ["data", "x.db"]


async def test_what_a_copy_that_was_killed_has_left_is_replaced(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")
    for left in ("x.db.partial", "x.db.partial-journal"):
        (tmp_path / left).write_bytes(b"left")
    backup(tmp_path / "data", tmp_path / "x.db")
    assert names(tmp_path) == ["data", "x.db"]


# From the shell


async def test_the_readmes_commands_copy_the_data_and_have_it_back(tmp_path: Path) -> None:
    commands = re.findall(r"^    \.venv/bin/trisync ((?:backup|restore) .*)$", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["backup", "restore"]
    await a_log(tmp_path / "data", "x")
    for command in commands:
        assert (await run_trisync(*shlex.split(command), cwd=tmp_path)).returncode == 0
    async with opened(tmp_path / "data") as log:
        assert await data_of(log) == ["x"]


async def test_a_backup_is_made_also_where_standard_error_is_closed(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")
    command = f"{shlex.quote(sys.executable)} -m trisync backup x.db 2>&-"
    assert (await trio.run_process(command, shell=True, cwd=tmp_path, capture_stdout=True)).stdout
    assert names(tmp_path) == ["data", "x.db"]


async def test_a_refusal_is_one_line_and_status_1(tmp_path: Path) -> None:
    for command in ("backup", "restore"):
        refused = await run_trisync(command, str(tmp_path / "none.db"), "--data", str(tmp_path / "none"))
        assert refused.returncode == 1
        assert refused.stderr.decode().splitlines()[-1].startswith("Error: there is no log ")
        assert b"Traceback" not in refused.stderr
    assert names(tmp_path) == []


async def test_what_is_wrong_with_a_folder_is_said_of_that_folder(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")
    backup(tmp_path / "data", tmp_path / "x.db")
    (tmp_path / "file").touch()
    (tmp_path / "y.db.partial").mkdir()
    for command, problem in (
        ("backup none/x.db --data data", "there is no folder none for x.db"),
        ("backup file/x.db --data data", "there is no folder file for x.db"),
        ("backup y.db --data data", "y.db.partial: Is a directory"),
        ("restore x.db --data file", "file is not a folder"),
        ("restore x.db --data file/data", "file/data: Not a directory"),
    ):
        refused = await run_trisync(*command.split(), cwd=tmp_path)
        assert (refused.returncode, refused.stderr.decode()) == (1, f"Error: {problem}\n")
    assert names(tmp_path) == ["data", "file", "x.db", "y.db.partial"]
