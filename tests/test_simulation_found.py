"""What the simulation found in the server, each as the smallest case that shows it: so that it stays found."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from tests.broker_world import a_world
from tests.fakes import publishes
from trisync.settings import Settings
from trisync.storage.log import LogRefused, LogUnavailable, Submission
from trisync.storage.sqlite_log import SqliteLog
from trisync.wire.protocol import Publish


class FailingConnection(sqlite3.Connection):
    """A connection on which statements fail that begin so, the first few of them."""

    beginning = "-"
    failures = 0

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith(self.beginning) and self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("disk I/O error")  # without a code, as sqlite3's own errors are
        return super().execute(sql, parameters)


def connect(*args: Any, **options: Any) -> FailingConnection:
    return sqlite3.connect(*args, **options, factory=FailingConnection)


async def test_a_state_larger_than_the_cache_for_it_is_served_all_the_same() -> None:
    async with a_world(cache_bytes_max=1) as world:
        submission = Submission(lambda submission: None)
        submission.add(Publish(channel="lobby", key="k", data=Raw(b'"v"')), 10)
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        outlet, _ = await world.subscriber(state=True)
        await wait_all_tasks_blocked()
        assert outlet.lines()[1] == (
            b'{"op":"state","channel":"lobby","entries":{"k":{"offset":1,"data":"v"}},"more":false}'
        )


async def test_a_read_whose_end_failed_does_not_spoil_the_ones_after_it(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, Settings(), connect=connect)
    await log.append([publishes(1)])
    for reader in log._idle_readers:
        assert isinstance(reader, FailingConnection)
        reader.beginning, reader.failures = "COMMIT", 1
    for _ in log._idle_readers:
        with pytest.raises(LogUnavailable):
            await log.extent("lobby")
        log._idle_readers.reverse()
    assert (await log.extent("lobby")).head == 1
    await log.aclose()


async def test_a_start_that_fails_at_its_last_step_leaves_the_folder_free(tmp_path: Path) -> None:
    def connect_failing(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.beginning, connection.failures = "SELECT id, time FROM messages", 1
        return connection

    with pytest.raises(LogRefused, match="disk I/O error"):
        await SqliteLog.open(tmp_path, Settings(), connect=connect_failing)
    log = await SqliteLog.open(tmp_path, Settings())
    await log.aclose()


async def test_the_pages_of_a_state_are_as_new_as_the_ok_though_older_messages_are_asked_for_too() -> None:
    """Seed 302693: with `last`, a page from before the newest words was still good enough, and they were never told."""
    async with a_world() as world:
        await world.subscriber("doc", state=True)  # its page, an empty one, is shared with those who come
        await wait_all_tasks_blocked()
        submission = Submission(lambda submission: None)
        submission.add(Publish(channel="doc", data=Raw(b"1"), key="title"), 10)
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        outlet, _ = await world.subscriber("doc", state=True, last=10)
        await wait_all_tasks_blocked()
        pages = [message for message in map(json.loads, outlet.lines()) if message["op"] == "state"]
        assert [page["entries"] for page in pages] == [{"title": {"offset": 1, "data": 1}}]


async def test_who_enters_a_channel_learns_of_a_batch_only_when_its_publishers_have_their_answers() -> None:
    """Seed 2016887: a subscription began behind publishes of its own connection that were stored and not answered."""
    async with a_world() as world:
        world.log.stored = trio.Event()
        submission = Submission(lambda submission: told.append("answered"))
        submission.add(Publish(channel="lobby", data=Raw(b"1")), 10)
        told: list[str] = []

        async def subscribe() -> None:
            channel = await world.broker.enter("lobby")
            told.append(f"head {channel.head}")

        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        assert (await world.log.extent("lobby")).head == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscribe)
            await wait_all_tasks_blocked()
            assert told == []
            world.log.stored.set()
        assert told == ["answered", "head 1"]
