"""The log on SQLite where it is damaged: what cannot be had, what goes on beside it, and what is said."""

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from tests.sqlite_logs import (
    EVERYTHING,
    PRODUCER,
    Clock,
    a_log,
    damage,
    data_of,
    messages,
    opened,
    pages,
    publish,
    put,
    put_seqs,
)
from trisync.storage import sqlite_reading
from trisync.storage.damage import SAID_MAX
from trisync.storage.log import ChannelInfo, Duplicate, Extent, LogDamaged, LogUnavailable, Once, Submission
from trisync.storage.sqlite_log import FORGET_EVERY_S
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.wire.protocol import Publish

UNDELETED = (
    "what is not needed any more cannot be deleted: database disk image is malformed; "
    "`trisync restore` puts a backup in the log's place"
)


async def test_messages_that_damage_keeps_from_being_cut_stay_and_publishes_go_on(tmp_path: Path) -> None:
    await a_log(tmp_path, *("x" * 3000 for _ in range(100)))
    damage(tmp_path / FILE_NAME)
    async with opened(tmp_path) as log:
        for offset in 1, 2:
            with pytest.raises(LogUnavailable, match="malformed"):
                await log.trim({"lobby": 90}, 90)
            assert await put(log, publish(channel="other")) == [offset]


async def test_what_is_not_what_was_stored_cannot_be_read_and_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        log._connection.execute("UPDATE messages SET time = 'other'")  # as where a page has another's content
        with pytest.raises(LogDamaged):
            await log.oldest("lobby", 10)
        assert await log.describe(["lobby"]) == [ChannelInfo("lobby", Extent(1, 0), bytes=0, oldest_ms=None)]
        assert await put(log, publish()) == [2]


async def test_where_a_channel_lies_and_its_name_are_what_was_stored_or_cannot_be_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(), publish(channel="other"))
        log._connection.execute("UPDATE channels SET trimmed = 'other' WHERE name = 'lobby'")
        for reading in log.extent("lobby"), log.read("lobby", 0, 10, EVERYTHING):
            with pytest.raises(LogDamaged):
                await reading
        log._connection.execute("UPDATE channels SET name = x'00' WHERE name = 'lobby'")
        with pytest.raises(LogDamaged):
            await log.channels("", 10)
        assert await put(log, publish(channel="other")) == [2]


async def test_a_page_of_channels_that_cannot_be_read_may_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(db: sqlite3.Connection, *asked: Any) -> list[ChannelInfo]:
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(tmp_path) as log:
        await put(log, publish())
        for name in "channels_behind", "channels_named":
            monkeypatch.setattr(sqlite_reading, name, fail)
        assert await log.channels("lobby", 10) == []


LOST = "damaged: it is lost where its messages end"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM recent_heads", LOST),
        ("UPDATE recent_heads SET message = 1 << 40", LOST),
        ("UPDATE recent_heads SET offset = 'other'", "damaged: Expected `int`, got `str`"),
        ("UPDATE recent_heads SET offset = x'00'", "damaged: JSON cannot hold BLOB values"),
        ("UPDATE channels SET keys = 'other'", "damaged: Expected `int`, got `str`"),
    ],
)
async def test_a_publish_behind_a_head_that_is_damaged_is_refused_and_said_once(
    tmp_path: Path, damage: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    await a_log(tmp_path, 1, 2)
    async with opened(tmp_path) as log:
        log._connection.execute(damage)
        for _ in range(2):
            with pytest.raises(LogDamaged, match=f"the head of lobby is {problem}"):
                await put(log, publish(channel="new"), publish())
        assert await put(log, publish(channel="new")) == [1]
    (said,) = caplog.messages
    assert said.startswith(f"publishes are refused: the head of lobby is {problem}")
    assert said.endswith("; `trisync restore` puts a backup in the log's place")


async def test_a_channel_of_which_it_is_lost_where_its_messages_end_is_not_emptied(tmp_path: Path) -> None:
    await a_log(tmp_path, 1, 2)
    async with opened(tmp_path) as log:
        log._connection.execute("DELETE FROM recent_heads")
        with pytest.raises(LogDamaged):
            await log.clear("lobby")
        assert await log.clear("other") is None


async def test_a_publish_about_a_key_where_the_state_is_damaged_is_refused_and_no_other(tmp_path: Path) -> None:
    keyed = Publish(channel="lobby", data=Raw(b"1"), key="key")
    async with opened(tmp_path) as log:
        await put(log, keyed)
        for value in "'other'", "x'00'":
            log._connection.execute(f"UPDATE state SET offset = {value}")
            with pytest.raises(LogDamaged, match="the state of lobby is damaged"):
                await put(log, keyed)
        assert await put(log, publish()) == [2]


@pytest.mark.parametrize("change", ["seq = 'other'", "verdicts = 'other'", "verdicts = x'ff'"])
async def test_a_producer_of_which_damage_has_made_something_else_is_refused_and_no_other(
    tmp_path: Path, change: str
) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
    async with opened(tmp_path) as log:
        log._connection.execute(f"UPDATE producers SET {change}")
        with pytest.raises(LogDamaged, match="what producers have settled is damaged"):
            await put_seqs(log, 2)
        if change.startswith("seq"):
            with pytest.raises(LogDamaged):
                await log.settled_seq(PRODUCER)
        assert await put(log, publish(seq=1), producer="q" * 16) == [2]


async def test_a_request_of_which_damage_has_made_something_else_is_refused_and_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        for key in b"1", b"2":
            request = Submission(lambda _: None, once=Once(key, b"all else"))
            request.add(publish(), 10)
            await log.append([request])
            log._connection.execute("UPDATE idempotency SET verdict = 'other' WHERE id = x'31'")
        request.once = Once(b"1", b"all else")
        with pytest.raises(LogDamaged, match="what Idempotency-Keys were used for is damaged"):
            await log.append([request])
        request.once = Once(b"2", b"all else")
        await log.append([request])
        assert request.verdicts == [Duplicate(2)]


async def test_a_cut_that_contradicts_what_is_there_is_not_made_and_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(), publish())
        log._connection.execute("CREATE TRIGGER no BEFORE INSERT ON heads BEGIN SELECT raise(ABORT, 'so it is'); END")
        with pytest.raises(LogDamaged, match="so it is"):
            await log.trim({"lobby": 1}, 1)
        assert await put(log, publish()) == [3]


@pytest.mark.parametrize("content", [bytes(4096), b"\xff" * 4096, random.Random(1).randbytes(4096)])
async def test_large_data_that_was_overwritten_is_shown_to_nobody(tmp_path: Path, content: bytes) -> None:
    large = Publish(channel="large", data=Raw(b'{"x":"%s"}' % (b"x" * 5000)), key="key")
    async with opened(tmp_path) as log:
        await put(log, publish(), large, publish(channel="large"))
    for number, page in enumerate(pages(tmp_path / FILE_NAME), 1):
        if page[4:].startswith(b"x" * 500):  # without a table's header: SQLite finds nothing wrong in it
            damage(tmp_path / FILE_NAME, number, content)
    async with opened(tmp_path) as log:
        for read in (
            lambda: log.read("large", 0, 10, EVERYTHING),
            lambda: log.newest("large", 10, EVERYTHING),
            lambda: log.state("large", "", 10, EVERYTHING),
            lambda: log.word("large", "key"),
            lambda: put(log, Publish(channel="large", data=Raw(b"1"), key="key", expect=7)),
            lambda: put(log, Publish(channel="large", data=Raw(b'{"a":1}'), key="key", merge=True)),
        ):
            with pytest.raises(LogDamaged):
                await read()
        assert [m["data"] for m in messages(await log.read("large", 1, 10, EVERYTHING))] == ["x"]
        assert await data_of(log) == ["x"]


async def test_where_the_tree_of_heads_is_damaged_only_new_channels_can_be_published_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(1))
        await log.trim({"lobby": 0}, 1)  # which brings its head there
        (page,) = log._connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'heads'").fetchone()
    damage(tmp_path / FILE_NAME, page)
    async with opened(tmp_path) as log:
        with pytest.raises(LogDamaged, match="the head of lobby is damaged: database disk image is malformed"):
            await put(log, publish())
        with pytest.raises(LogDamaged):
            await log.extent("lobby")
        assert await put(log, publish(channel="new")) == [1]


async def test_a_channel_whose_end_is_lost_is_not_read_as_an_empty_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(), publish(channel="other"))
        log._connection.execute("DELETE FROM recent_heads WHERE channel = 1")
        for _ in range(2):
            with pytest.raises(LogDamaged):
                await log.read("lobby", 0, 10, EVERYTHING)
        assert await data_of(log, "other") == ["x"]
    assert [said.split(" (")[0] for said in caplog.messages] == [
        "the log cannot be read where it may be damaged: lobby: it is lost where its messages end"
    ]


@pytest.mark.parametrize("emptied", [False, True])
async def test_where_the_end_of_a_channel_that_was_cut_is_lost_no_offset_comes_again(
    tmp_path: Path, emptied: bool
) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(), publish(), publish())
        await (log.clear("lobby") if emptied else log.trim({"lobby": 1}, 1))
    async with opened(tmp_path) as log:
        assert (await log.extent("lobby")).head == 3
        log._connection.execute("DELETE FROM heads")
        with pytest.raises(LogDamaged):
            await put(log, publish())
        with pytest.raises(LogDamaged):
            await log.extent("lobby")
        assert await log.channels("", 10) == [ChannelInfo("lobby", Extent(0, 0), 0, None)]


async def test_a_channel_whose_own_row_is_damaged_is_listed_with_all_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(channel=channel) for channel in "abc"))
        whole = await log.channels("", 10)
        log._connection.execute("UPDATE channels SET trimmed = 'other' WHERE name = 'b'")
        assert await log.channels("", 10) == [whole[0], ChannelInfo("b", Extent(0, 0), 0, None), whole[2]]
        with pytest.raises(LogDamaged):
            await log.trim({"b": 1}, 1)


async def test_what_is_said_of_damage_has_an_end_whatever_clients_ask_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(channel=f"c{n}") for n in range(2 * SAID_MAX)))
        log._connection.execute("DELETE FROM recent_heads")
        for n in range(2 * SAID_MAX):
            with pytest.raises(LogDamaged):
                await log.extent(f"c{n}")
    assert len(caplog.messages) == SAID_MAX


async def test_a_fault_of_ours_is_not_taken_for_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        log._connection.close()
        with pytest.raises(sqlite3.ProgrammingError):
            await log.trim({"lobby": 1}, 1)


async def test_what_damage_keeps_from_being_purged_stays_is_said_and_no_batch_waits_for_another_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await a_log(tmp_path, *("x" * 3000 for _ in range(100)))
    damage(tmp_path / FILE_NAME)
    async with opened(tmp_path) as log:
        assert await log.clear("lobby") == Extent(100, 100)
        while await log.maintain():
            pass
        for offset in 1, 2:
            assert not await log.maintain()
            assert await put(log, publish(channel="other")) == [offset]
    assert caplog.messages == [UNDELETED]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE channels SET trimmed = 'other' WHERE id = 1",
        "UPDATE recent_heads SET offset = 1 << 40 WHERE channel = 1",
    ],
)
async def test_what_damage_keeps_from_being_purged_holds_up_nothing_else_that_was_emptied(
    tmp_path: Path, damage: str
) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(channel=channel) for channel in "abc"))
        for channel in "abc":
            await log.clear(channel)
        log._connection.execute(damage)
        while await log.maintain():
            pass
        left = log._connection.execute("SELECT name FROM channels WHERE name < 'a'").fetchall()
        assert left == [("$emptied:1",)]
        await log.clear("b")  # which has nothing to be emptied of
        assert not await log.maintain()


@pytest.mark.parametrize(("table", "other"), [("producers", "idempotency"), ("idempotency", "producers")])
async def test_damage_among_what_is_to_be_forgotten_keeps_that_and_no_more(
    tmp_path: Path, table: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = "WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < 400)"
    async with opened(tmp_path) as log:
        log._connection.execute(f"{numbers} INSERT INTO {table} SELECT n, n, zeroblob(500), -1e15 FROM numbers")
        log._connection.execute(f"INSERT INTO {other} VALUES (1, 1, zeroblob(5), -1e15)")
    damage(tmp_path / FILE_NAME)
    clock = Clock()
    async with opened(tmp_path, clock) as log:
        clock.s += FORGET_EVERY_S
        assert await log.maintain()  # not yet looked at: what was emptied
        assert log._connection.execute(f"SELECT count(*) FROM {other}").fetchone() == (0,)
        assert await put(log, publish()) == [1]
        clock.s += FORGET_EVERY_S
        await log.maintain()
    assert caplog.messages == [UNDELETED]


async def test_damage_among_idle_producers_keeps_no_old_requests(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as log:
        for n in range(400):
            log._connection.execute("INSERT INTO producers VALUES (?, ?, zeroblob(500), -1e15)", (str(n), n))
        log._connection.execute("INSERT INTO idempotency VALUES ('id', 'f', 'v', -1e15)")
    damage(tmp_path / FILE_NAME)
    async with opened(tmp_path, clock) as log:
        clock.s += FORGET_EVERY_S
        await log.maintain()
        assert log._connection.execute("SELECT count(*) FROM idempotency").fetchone() == (0,)
