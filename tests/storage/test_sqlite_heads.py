"""Where channels end, in two tables: what is newer is in the small one, which stays small."""

import random
import sqlite3
from collections.abc import Iterator

import pytest
import sqlite_utils

from trisync.storage import sqlite_heads
from trisync.storage.deciding import Head
from trisync.storage.sqlite_heads import EXTENTS, JOIN_HEADS, RecentHeads, head_column
from trisync.storage.sqlite_schema import migrations

CHANNELS = 60


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """A log with channels, in memory."""
    monkeypatch.setattr(sqlite_heads, "RECENT_MAX", 20)
    monkeypatch.setattr(sqlite_heads, "MERGED_AT_ONCE", 5)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrations.apply(sqlite_utils.Database(connection))
    connection.executemany("INSERT INTO channels (name) VALUES (?)", [(f"c{id}",) for id in range(1, CHANNELS + 1)])
    yield connection
    connection.close()


def rows(database: sqlite3.Connection, table: str) -> int:
    (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def put(database: sqlite3.Connection, heads: RecentHeads, channels: list[int], offset: int) -> int:
    """Store a message in each, all with that offset; returns what pages are said to be written."""
    added: list[Head] = []
    for channel in channels:
        id = database.execute(
            "INSERT INTO messages (channel, offset, time, size, total, previous, data) VALUES (?, ?, 1, 10, ?, 0, '1')",
            (channel, offset, 10 * offset),
        ).lastrowid
        assert id is not None
        head = Head(f"c{channel}", channel, offset, keys=0, total=10 * offset, message=id)
        head.first = id
        added.append(head)
    return heads.store(added)


@pytest.mark.parametrize("each", [1, 3, 20, 50])
def test_the_small_table_stays_small_and_no_head_is_lost_or_grows_old(database: sqlite3.Connection, each: int) -> None:
    chance = random.Random(each)
    heads = RecentHeads(database)
    ends: dict[int, int] = {}
    first: dict[int, int] = {}
    for offset in range(1, 100):
        channels = chance.sample(range(1, CHANNELS + 1), each)
        put(database, heads, channels, offset)
        ends |= dict.fromkeys(channels, offset)
        for channel in channels:
            (id,) = database.execute("SELECT min(id) FROM messages WHERE channel = ?", (channel,)).fetchone()
            first.setdefault(channel, id)
        assert rows(database, "recent_heads") <= sqlite_heads.RECENT_MAX + 2 * each
        extents = database.execute(EXTENTS.format(which="true")).fetchall()
        assert {id: head for id, head, _ in extents if head} == ends
        total = 10 * ends[7] if 7 in ends else None
        assert database.execute(f"SELECT {head_column('total', '7')}").fetchone() == (total,)
        oldest = f"SELECT channels.id, coalesce(heads.oldest, recent.oldest) FROM channels {JOIN_HEADS}"
        assert {id: message for id, message in database.execute(oldest) if message} == first
        if chance.random() < 0.1:
            heads = RecentHeads(database)  # another start
    if each > 1:
        assert rows(database, "heads") == CHANNELS


def test_each_has_its_turn_to_be_merged(database: sqlite3.Connection) -> None:
    heads = RecentHeads(database)
    put(database, heads, [*range(1, 21)], 1)
    assert rows(database, "heads") == 0
    for turn in range(1, 5):
        put(database, heads, [30 + turn, *range(1, 21)], 1 + turn)
        merged = [channel for (channel,) in database.execute("SELECT channel FROM heads ORDER BY channel")]
        assert merged == [*range(1, 5 * turn + 1)]
    pages = put(database, heads, [*range(21, 26)], 7)
    assert rows(database, "heads") == 25
    assert pages == 2  # those of either table, all of whose rows are in one
    put(database, heads, [*range(1, 18)], 8)  # the round ends
    assert (rows(database, "recent_heads"), rows(database, "heads")) == (17, 29)
    put(database, heads, [*range(18, 22)], 9)  # and the next one begins
    assert (rows(database, "recent_heads"), rows(database, "heads")) == (16, 29)


def test_one_channel_alone_is_merged_and_not_counted_as_many(database: sqlite3.Connection) -> None:
    heads = RecentHeads(database)
    for offset in range(1, 100):
        put(database, heads, [1], offset)
    assert (rows(database, "recent_heads"), rows(database, "heads")) == (1, 0)
    heads.merge(1)
    assert (rows(database, "recent_heads"), rows(database, "heads")) == (0, 1)
    assert database.execute("SELECT offset, oldest FROM heads").fetchone() == (99, 1)
