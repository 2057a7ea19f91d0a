"""Restoring a log from a backup: it is another log, which its clients are told, and never half of one."""

import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio

from tests.harness import LinesPeer, run_trisync, server_process
from tests.sqlite_logs import a_log, contents, cut_short_at, damage, data_of, opened, publish, put
from trisync.storage.log import LogRefused
from trisync.storage.sqlite_backup import backup, restore
from trisync.storage.sqlite_opening import FILE_NAME, LOCK_NAME


async def test_clients_of_a_restored_log_are_told_that_it_is_another_one_and_start_over(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "backup.db"
    with server_process(data) as server:
        async with (await server.lines()).stream as stream:
            peer = LinesPeer(stream)
            await peer.request("publish", channel="lobby", data="kept")
            assert (await run_trisync("backup", str(file), "--data", str(data))).returncode == 0
            known = await peer.request("publish", channel="lobby", data="lost")
            epoch = (await peer.request("hello"))["epoch"]
        server.stop(signal.SIGKILL)
    done = await run_trisync("restore", str(file), "--data", str(data), "--force")
    assert (done.returncode, done.stderr) == (0, b"")
    with server_process(data) as server:
        async with (await server.lines()).stream as stream:
            peer = LinesPeer(stream)
            # Behind the head, or, worse, at another message of the same number: the epoch tells both.
            for since in (known["offset"], 1):
                subscribed = await peer.request("subscribe", channel="lobby", since=since, epoch=epoch)
                assert subscribed["epoch"] != epoch
                assert subscribed["epoch"] in done.stdout.decode()
                gap = await peer.receive()
                assert (gap["op"], gap["reason"]) == ("gap", "epoch")
                (message,) = await peer.receive_messages(1)
                assert (message["offset"], message["data"]) == (1, "kept")
            published = await peer.request("publish", channel="lobby", data="other")
            assert published["offset"] == known["offset"]


async def test_a_producer_that_went_on_after_the_backup_is_told_where_the_restored_log_has_it(tmp_path: Path) -> None:
    with server_process(tmp_path / "data") as server:
        async with (await server.lines()).stream as stream:
            peer = LinesPeer(stream)
            await peer.request("hello", producer="p" * 16)
            for seq in (1, 2):
                await peer.request("publish", channel="lobby", data=seq, seq=seq)
            backup(tmp_path / "data", tmp_path / "backup.db")
            await peer.request("publish", channel="lobby", data=3, seq=3)
    restore(tmp_path / "backup.db", tmp_path / "data", replace=True)
    with server_process(tmp_path / "data") as server:
        async with (await server.lines()).stream as stream:
            peer = LinesPeer(stream)
            assert (await peer.request("hello", producer="p" * 16))["seq"] == 2
            assert (await peer.request("publish", channel="lobby", data=4, seq=4))["code"] == "out_of_sequence"
            assert (await peer.request("publish", channel="lobby", data=3, seq=3))["offset"] == 3


async def test_each_restore_is_another_log(tmp_path: Path) -> None:
    epochs = {await a_log(tmp_path / "data", "x")}
    backup(tmp_path / "data", tmp_path / "backup.db")
    for folder in "abc":
        epochs.add(restore(tmp_path / "backup.db", tmp_path / folder))
    assert len(epochs) == 4


async def test_the_restored_log_keeps_its_new_epoch_also_under_normal(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", durability="normal"):
        backup(tmp_path / "data", tmp_path / "backup.db")
    epoch = restore(tmp_path / "backup.db", tmp_path / "restored")
    async with opened(tmp_path / "restored", durability="normal") as log:
        assert log.epoch == epoch


async def test_a_folder_in_use_is_not_restored_into(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "x")
    backup(tmp_path / "data", tmp_path / "backup.db")
    async with opened(tmp_path / "data") as log:
        with pytest.raises(LogRefused, match="in use by another trisync server"):
            restore(tmp_path / "backup.db", tmp_path / "data", replace=True)
        assert await put(log, publish("y")) == [2]


async def test_a_log_is_replaced_only_when_told_and_then_wholly(tmp_path: Path) -> None:
    await a_log(tmp_path / "old", "backup")
    backup(tmp_path / "old", tmp_path / "backup.db")
    with server_process(tmp_path / "data") as server:
        async with (await server.lines()).stream as stream:
            for word in range(10):
                await LinesPeer(stream).request("publish", channel="lobby", data=word)
        server.stop(signal.SIGKILL)  # there is a WAL now, which is of the log to be replaced
    before = contents(tmp_path / "data")
    with pytest.raises(LogRefused, match="is there already; --force replaces it"):
        restore(tmp_path / "backup.db", tmp_path / "data")
    assert {name: contents(tmp_path / "data")[name] for name in (FILE_NAME, f"{FILE_NAME}-wal")} == {
        name: before[name] for name in (FILE_NAME, f"{FILE_NAME}-wal")
    }
    restore(tmp_path / "backup.db", tmp_path / "data", replace=True)
    async with opened(tmp_path / "data") as log:
        assert await data_of(log) == ["backup"]


KILLED = """
import os, sqlite3, sys
log = sqlite3.connect(sys.argv[1], isolation_level=None)
log.execute("PRAGMA journal_mode = DELETE")
log.execute("PRAGMA cache_size = 1")
log.execute("BEGIN")
log.execute("UPDATE messages SET data = data || data")
os._exit(0)
"""
"""Another program that was killed while it wrote, and has left how to undo that."""


async def test_nothing_of_the_old_log_is_taken_for_a_part_of_the_restored_one(tmp_path: Path) -> None:
    await a_log(tmp_path / "old", "backup", *("x" * 1000 for _ in range(300)))
    backup(tmp_path / "old", tmp_path / "backup.db")
    await a_log(tmp_path / "data", *("y" * 1000 for _ in range(600)))
    await trio.run_process([sys.executable, "-c", KILLED, str(tmp_path / "data" / FILE_NAME)])
    assert (tmp_path / "data" / f"{FILE_NAME}-journal").stat().st_size
    restore(tmp_path / "backup.db", tmp_path / "data", replace=True)
    async with opened(tmp_path / "data") as log:
        assert log._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert (await data_of(log))[0] == "backup"


@pytest.mark.parametrize("step", range(12))
async def test_a_restore_that_is_cut_short_leaves_the_old_log_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each time it touches a name, it is stopped there; the folder is served as it then is."""
    await a_log(tmp_path / "other", "backup")
    backup(tmp_path / "other", tmp_path / "backup.db")
    async with opened(tmp_path / "data") as log:
        epoch = log.epoch
        await put(log, publish("old"))
        shutil.copytree(tmp_path / "data", tmp_path / "killed")
    with monkeypatch.context() as patched:
        cut_short_at(step, patched)
        with suppress(KeyboardInterrupt):
            restore(tmp_path / "backup.db", tmp_path / "killed", replace=True)
    async with opened(tmp_path / "killed") as log:
        found = await data_of(log)
        assert (log.epoch == epoch) == (found == ["old"])
        assert found in (["old"], [], ["backup"])


async def test_what_root_restores_is_for_the_owner_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_log(tmp_path / "data", "x")
    backup(tmp_path / "data", tmp_path / "backup.db")
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.update({path.name: (user, group)}))
    restore(tmp_path / "backup.db", tmp_path / "restored")
    owner = (tmp_path / "restored").stat()
    assert given == dict.fromkeys([f"{FILE_NAME}.partial", LOCK_NAME], (owner.st_uid, owner.st_gid))


async def test_a_file_that_is_no_good_log_is_not_restored(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", *("x" * 1000 for _ in range(100)))
    backup(tmp_path / "data", tmp_path / "damaged.db")
    damage(tmp_path / "damaged.db")
    backup(tmp_path / "data", tmp_path / "part.db")
    with closing(sqlite3.connect(tmp_path / "part.db")) as part:
        part.execute("DROP TABLE meta")
    (tmp_path / "text.db").write_text("x" * 200)
    (tmp_path / "short.db").write_bytes((tmp_path / "data" / FILE_NAME).read_bytes()[:50_000])
    (tmp_path / "empty.db").touch()
    before = contents(tmp_path / "data")
    for name, reason in (
        ("damaged.db", "damaged"),
        ("short.db", "damaged"),
        ("part.db", "part.db is damaged, and was not copied: it lacks meta"),
        ("text.db", "is not a SQLite database"),
        ("empty.db", "there is no log"),
        ("nowhere.db", "there is no log"),
    ):
        with pytest.raises(LogRefused, match=reason):
            restore(tmp_path / name, tmp_path / "data", replace=True)
    assert contents(tmp_path / "data").keys() == before.keys()
    assert contents(tmp_path / "data")[FILE_NAME] == before[FILE_NAME]


async def test_a_backup_that_has_the_name_that_a_copy_is_made_under_is_not_overwritten(tmp_path: Path) -> None:
    await a_log(tmp_path / "data", "kept")
    file = tmp_path / "data" / f"{FILE_NAME}.partial"
    backup(tmp_path / "data", file)
    before = file.read_bytes()

    def progress(done: int, total: int) -> None:
        pytest.fail("it is copied onto itself")

    with pytest.raises(LogRefused, match="rename it"):
        restore(file, tmp_path / "data", replace=True, progress=progress)
    assert file.read_bytes() == before
