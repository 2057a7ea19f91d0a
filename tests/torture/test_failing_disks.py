"""Disks that fail beneath a server: what it says, what it goes on doing, and that it never pretends."""

import itertools
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import sqlite_logs
from tests.harness import PATIENCE_S
from tests.torture.checking import damage_of
from tests.torture.places import mounting_works, on_small_disk, read_only, seen_by
from tests.torture.points import SYNC, WAL, strace_works, traced
from tests.torture.server import Server
from tests.torture.talking import HungUp, Talk, talking
from trisync.storage.sqlite_log import CHECKPOINT_BYTES
from trisync.storage.sqlite_opening import FILE_NAME

WAL_INDEX_HASH_AT = 16 * 1024
"""The second half of the WAL's index, see sqlite.org/walformat.html: a commit that finds no free slot there fails."""

needs_strace = pytest.mark.skipif(bool(strace_works()), reason=strace_works())
needs_mounts = pytest.mark.skipif(bool(mounting_works()), reason=mounting_works())


def make_log(folder: Path, *data: Any) -> None:
    """A log that was left in good order."""

    async def write() -> None:
        async with sqlite_logs.opened(folder) as log:
            await sqlite_logs.put(log, *map(sqlite_logs.publish, data))

    trio.run(write)


def publish(talk: Talk, data: Any, channel: str = "lobby", **fields: Any) -> dict[str, Any]:
    return talk.request("publish", channel=channel, data=data, **fields)


def publish_until_it_ends(talk: Talk, data: Any, count_max: int) -> int:
    """Publish until the server hangs up; returns how many it acknowledged."""
    for count in range(count_max):
        try:
            assert publish(talk, data)["op"] == "ok"
        except HungUp:
            return count
    raise AssertionError(f"{count_max} publishes, and nothing happened")


def messages_until_it_ends(talk: Talk) -> int:
    """How many messages are shown until the server hangs up."""
    for count in itertools.count():
        try:
            assert talk.receive()["op"] == "message"
        except HungUp:
            return count
    raise AssertionError


def stored(folder: Path) -> list[Any]:
    """The data of the lobby, as the next start finds it."""

    async def read() -> list[Any]:
        async with sqlite_logs.opened(folder) as log:
            return await sqlite_logs.data_of(log)

    return trio.run(read)


def assert_it_stopped(server: Server, *said: str) -> None:
    """It ended by itself, with a line that says why, and not with pages that do not."""
    assert server.wait() == 1
    last = server.said().splitlines()[-1]
    assert last.startswith("Error: stopped at once, because the log failed: ")
    for words in said:
        assert words in last
    assert "Traceback" not in server.said()


# Errors whose outcome is not known


@needs_strace
@pytest.mark.parametrize(
    ("calls", "when", "name"),
    [
        (SYNC, "60", "SQLITE_IOERR_FSYNC"),  # once: a second try would succeed, and prove nothing
        (SYNC, "60+", "SQLITE_IOERR_FSYNC"),
        ("pwrite64", "60+", "SQLITE_IOERR_WRITE"),
    ],
)
def test_a_disk_that_fails_at_a_commit_stops_the_server_which_acknowledges_nothing_more(
    tmp_path: Path, calls: str, when: str, name: str
) -> None:
    make_log(tmp_path, "first")
    with closing(Server(tmp_path, under=traced(calls, tmp_path / WAL, f"error=EIO:when={when}"))) as server:
        doors = server.doors()
        with talking(doors) as talk, talking(doors) as subscriber:
            assert subscriber.request("subscribe", channel="lobby", since=0)["op"] == "ok"
            assert subscriber.receive()["data"] == "first"
            acknowledged = publish_until_it_ends(talk, "x", 100)
            shown = messages_until_it_ends(subscriber)
        assert acknowledged > 0
        assert shown <= acknowledged
        assert_it_stopped(server, name)
    # The last one had no answer: it may be there, and nothing else.
    assert stored(tmp_path) in (["first", *["x"] * acknowledged], ["first", *["x"] * (acknowledged + 1)])


@needs_strace
def test_a_disk_that_fails_at_a_checkpoint_stops_the_server_which_leaves_the_wal_for_the_next_start(
    tmp_path: Path,
) -> None:
    """The kernel may forget after one error what it could not write: a second try would succeed, and prove nothing."""
    make_log(tmp_path, "first")
    with closing(Server(tmp_path, under=traced(SYNC, tmp_path / FILE_NAME, "error=EIO:when=2"))) as server:
        with talking(server.doors()) as talk:
            acknowledged = publish_until_it_ends(talk, "x" * 500_000, 100)
        assert_it_stopped(server, "SQLITE_IOERR_FSYNC")
    assert (tmp_path / WAL).stat().st_size > CHECKPOINT_BYTES
    assert stored(tmp_path)[: acknowledged + 1] == ["first", *["x" * 500_000] * acknowledged]


@needs_strace
@pytest.mark.parametrize("when", [1, 2])
def test_a_disk_that_fails_while_a_log_is_made_is_said_and_the_next_start_makes_it(tmp_path: Path, when: int) -> None:
    with closing(Server(tmp_path, under=traced(SYNC, tmp_path / FILE_NAME, f"error=EIO:when={when}"))) as server:
        assert server.wait() == 1
        assert server.said() == f"Error: {tmp_path / FILE_NAME} cannot be opened: disk I/O error (SQLITE_IOERR_FSYNC)"
    make_log(tmp_path, "first")
    assert stored(tmp_path) == ["first"]


@needs_strace
@pytest.mark.parametrize("when", [1, 2])
def test_a_disk_that_fails_while_a_backup_is_made_leaves_none(tmp_path: Path, when: int) -> None:
    make_log(tmp_path / "data", "first")
    backup, partial = tmp_path / "monday.db", tmp_path / "monday.db.partial"
    done = subprocess.run(
        [
            *traced(SYNC, partial, f"error=EIO:when={when}"),
            *(sys.executable, "-m", "trisync", "backup", str(backup), "--data", str(tmp_path / "data")),
        ],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f" was not copied to {partial}: disk I/O error\n")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def assert_said_when_it_began_and_when_it_was_over(server: Server) -> None:
    """One line of each, among those of the maintenance, whose turn may or may not have come meanwhile."""
    began, over = [line for line in server.said().splitlines() if " publishes are refused" in line]
    assert " WARNING publishes are refused: " in began
    assert over.endswith("WARNING publishes are refused no longer")


# A disk that is full


@needs_mounts
def test_a_full_disk_refuses_publishes_and_nothing_else_and_they_return_by_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(Server(folder, under=on_small_disk(folder, 4_000_000))) as server:
        doors = server.doors()
        filler = seen_by(server.pid, folder) / "filler"
        with talking(doors) as talk, talking(doors) as live:
            assert publish(talk, 1)["offset"] == 1
            assert live.request("subscribe", channel="lobby")["op"] == "ok"
            fill(filler)
            refused = publish(talk, 2)
            assert (refused["code"], refused["retry"]) == ("unavailable", True)
            assert "disk is full" in refused["message"]
            assert publish(talk, 3)["code"] == "unavailable"
            # Reads, live clients and new ones are served.
            assert [message["data"] for message in talk.request("history", channel="lobby")["messages"]] == [1]
            assert publish(talk, "passing", ephemeral=True)["op"] == "ok"
            assert live.receive()["data"] == "passing"
            with talking(doors) as late:
                assert late.request("subscribe", channel="lobby", since=0)["op"] == "ok"
                assert late.receive()["data"] == 1
            filler.unlink()
            assert publish(talk, 4)["offset"] == 2
            assert live.receive()["data"] == 4
        take_files(server, folder, tmp_path)
        assert_said_when_it_began_and_when_it_was_over(server)
    assert stored(tmp_path) == [1, 4]


def take_files(server: Server, folder: Path, to: Path) -> None:
    """Copy a log out of a server's own disk, which ends with the server, as it is at one moment."""
    os.kill(server.pid, signal.SIGSTOP)
    for name in (FILE_NAME, WAL):
        shutil.copy(seen_by(server.pid, folder) / name, to)
    with closing(sqlite3.connect(to / FILE_NAME)) as database:
        assert damage_of(database) == ""


@needs_mounts
def test_on_a_disk_that_fills_up_under_load_exactly_what_was_acknowledged_is_stored(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    verdicts: dict[int, str] = {}
    with closing(Server(folder, under=on_small_disk(folder, 12_000_000))) as server:
        doors = server.doors()
        filler = seen_by(server.pid, folder) / "filler"
        filler.write_bytes(bytes(4_000_000))
        with talking(doors) as talk:
            assert "ok" in publish_until_it_is_full(talk, verdicts)
            filler.unlink()
            assert "ok" in publish_until_it_is_full(talk, verdicts)
        take_files(server, folder, tmp_path)
    assert set(verdicts.values()) == {"ok", "unavailable"}
    numbers = [number for number, _ in stored(tmp_path)]
    assert numbers == [number for number, verdict in verdicts.items() if verdict == "ok"]


def publish_until_it_is_full(talk: Talk, verdicts: dict[int, str]) -> set[str]:
    """Publish batches of many sizes until nothing of one is taken; returns the verdicts, and adds them by number."""
    found: set[str] = set()
    batch: set[str] = set()
    while batch != {"unavailable"}:
        first = len(verdicts)
        numbers = range(first, first + 1 + first % 50)
        requests = [
            {"op": "publish", "id": number, "channel": "lobby", "data": [number, "x" * (number * 997 % 5000)]}
            for number in numbers
        ]
        answers = talk.requests(*requests)
        assert [answer["id"] for answer in answers] == list(numbers)
        verdicts.update({answer["id"]: answer.get("code", answer["op"]) for answer in answers})
        batch = {verdicts[number] for number in numbers}
        found |= batch
    return found


def fill(file: Path) -> None:
    """Leave no byte free on a file's disk."""
    with file.open("wb", buffering=0) as filler:
        free = os.statvfs(file.parent).f_bavail * os.statvfs(file.parent).f_frsize
        filler.write(bytes(free))
        with pytest.raises(OSError, match="No space left"):
            filler.write(b"x")


@pytest.mark.parametrize("bytes_max", [1_000_000, CHECKPOINT_BYTES + 2_000_000, 3 * CHECKPOINT_BYTES])
def test_a_quota_that_is_used_up_refuses_publishes_and_they_return_by_themselves(
    tmp_path: Path, bytes_max: int
) -> None:
    """By the limit on a file's size, which SQLite takes for an error of the disk as it does a quota."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with closing(Server(tmp_path)) as server, talking(server.doors()) as talk:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))
        acknowledged, refused = 0, ""
        while not refused:  # by the WAL or, as a checkpoint brings all there, by the file
            answer = publish(talk, "x" * 500_000)
            refused = answer.get("code", "")
            acknowledged += not refused
        assert refused == "unavailable"
        assert acknowledged > 0
        assert publish(talk, "x" * 500_000)["code"] == "unavailable"
        assert len(talk.request("history", channel="lobby", since=0)["messages"]) > 0
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)
        assert publish(talk, "again")["offset"] == acknowledged + 1
        server.drain()
        assert server.wait() == 0
    assert stored(tmp_path) == [*["x" * 500_000] * acknowledged, "again"]


def test_a_start_under_a_quota_that_is_used_up_says_so_and_what_to_do(tmp_path: Path) -> None:
    make_log(tmp_path, "first")
    with closing(Server(tmp_path, under=["prlimit", "--fsize=8192"])) as server:
        assert server.wait() == 1
        problem = "a quota or limit is used up; make room in it, or raise it"
        assert server.said() == f"Error: {tmp_path / FILE_NAME} cannot be opened: {problem}"
    assert stored(tmp_path) == ["first"]


@needs_strace
def test_a_start_without_room_for_what_is_beside_the_log_says_which_io_error_that_is(tmp_path: Path) -> None:
    make_log(tmp_path, "first")
    with closing(Server(tmp_path, under=traced("pwrite64", tmp_path / f"{FILE_NAME}-shm", "error=ENOSPC"))) as server:
        assert server.wait() == 1
        assert server.said().endswith("cannot be opened: disk I/O error (SQLITE_IOERR_SHMSIZE)")


@needs_mounts
def test_a_disk_without_any_room_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(Server(tmp_path / "data", under=on_small_disk(tmp_path / "data", 65536))) as server:
        assert server.wait() == 1
        assert server.said().endswith("cannot be opened: database or disk is full")
        assert len(server.said().splitlines()) == 1


# A folder that is not what it was


@needs_mounts
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    make_log(tmp_path, "x")
    with closing(Server(tmp_path, under=read_only(tmp_path))) as server:
        assert server.wait() == 1
        assert "Read-only file system" in server.said()
        assert len(server.said().splitlines()) == 1


@pytest.mark.parametrize("gone", ["the folder", "the file", "the WAL"])
def test_a_log_that_was_removed_is_not_written_to_as_if_it_were_there(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "data"
    with closing(Server(folder)) as server, talking(server.doors()) as talk:
        assert publish(talk, 1)["op"] == "ok"
        if gone == "the folder":
            shutil.rmtree(folder)
        else:
            (folder / (FILE_NAME if gone == "the file" else WAL)).unlink()
        with pytest.raises(HungUp):
            publish(talk, 2)
        assert_it_stopped(server, "was removed, or moved, while it was in use")


def test_a_log_that_was_moved_is_whole_where_it_is_now(tmp_path: Path) -> None:
    with closing(Server(tmp_path / "data")) as server, talking(server.doors()) as talk:
        assert publish(talk, 1)["op"] == "ok"
        (tmp_path / "data").rename(tmp_path / "moved")
        with pytest.raises(HungUp):
            publish(talk, 2)
        assert_it_stopped(server, "was removed, or moved, while it was in use")
    assert stored(tmp_path / "moved") == [1]


def test_a_log_that_was_replaced_is_not_mixed_with_the_new_one(tmp_path: Path) -> None:
    make_log(tmp_path / "new", "new")
    with closing(Server(tmp_path / "data")) as server, talking(server.doors()) as talk:
        assert publish(talk, 1)["op"] == "ok"
        (tmp_path / "new" / FILE_NAME).rename(tmp_path / "data" / FILE_NAME)
        with pytest.raises(HungUp):
            publish(talk, 2)
        assert_it_stopped(server, "was replaced while it was in use")


# A file that is damaged, or locked


def test_a_damaged_page_is_said_and_takes_only_those_messages_with_it(tmp_path: Path) -> None:
    make_log(tmp_path, *("x" * 3000 for _ in range(100)))
    file = tmp_path / FILE_NAME
    with file.open("r+b") as database:
        database.seek(file.stat().st_size // 2 // 4096 * 4096)
        database.write(b"\xff" * 4096)
    with closing(Server(tmp_path)) as server, talking(server.doors()) as talk:
        for _ in range(2):
            refused = talk.request("history", channel="lobby", since=0, limit=1000)
            assert (refused["code"], refused["retry"]) == ("unavailable", True)
        assert len(talk.request("history", channel="lobby", limit=5)["messages"]) == 5
        assert publish(talk, 1, "other")["offset"] == 1
        said = server.said().splitlines()
        assert len(said) == 1
        assert "ERROR   the log cannot be read where it may be damaged: " in said[0]


def test_damage_that_is_met_at_a_commit_stops_the_server_which_says_what_to_do(tmp_path: Path) -> None:
    with closing(Server(tmp_path)) as server, talking(server.doors()) as talk:
        assert publish(talk, 1)["op"] == "ok"
        with (tmp_path / f"{FILE_NAME}-shm").open("r+b") as index:
            index.seek(WAL_INDEX_HASH_AT)
            index.write(b"\xff" * WAL_INDEX_HASH_AT)
        with pytest.raises(HungUp):
            publish(talk, 2)
        assert_it_stopped(server, "SQLITE_CORRUPT", "`trisync restore` puts a backup in the log's place")
    assert stored(tmp_path) in ([1], [1, 2])


def test_a_log_that_another_program_has_locked_is_refused_at_the_start(tmp_path: Path) -> None:
    make_log(tmp_path, "x")
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with closing(Server(tmp_path, "--busy-ms", "1")) as server:
            assert server.wait() == 1
            assert server.said().endswith("cannot be opened: database is locked")
    assert stored(tmp_path) == ["x"]


def test_a_log_that_another_program_locks_meanwhile_refuses_publishes_until_it_is_free(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--busy-ms", "1")) as server, talking(server.doors()) as talk:
        assert publish(talk, 1)["offset"] == 1
        with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = publish(talk, 2)
            assert (refused["code"], refused["retry"]) == ("unavailable", True)
            assert "database is locked" in refused["message"]
            assert [message["data"] for message in talk.request("history", channel="lobby")["messages"]] == [1]
            other.execute("ROLLBACK")
            assert publish(talk, 3)["offset"] == 2
        assert_said_when_it_began_and_when_it_was_over(server)
    assert stored(tmp_path) == [1, 3]


def test_a_folder_by_another_name_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with closing(Server(tmp_path / "data")) as first:
        first.doors()
        with closing(Server(tmp_path / "link")) as second:
            assert second.wait() == 1
            assert f"in use by another trisync server (process {first.pid})" in second.said()
