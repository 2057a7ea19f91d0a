"""Messages that name the one before them: whatever is published, cut and emptied, reads find what a plain list has."""

import logging
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from tests.sqlite_logs import EVERYTHING, Clock, messages, opened, payloads, plain, publish, put
from trisync.storage import sqlite_heads
from trisync.storage.log import ChannelInfo, Extent, LogUnavailable, OldMessage
from trisync.storage.sqlite_chains import MILESTONE
from trisync.storage.sqlite_log import SqliteLog
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.storage.sqlite_schema import migrations
from trisync.wire.protocol import Publish

CHANNELS = ["a", "b", "c", "d"]


class Model:
    """What a log is to have, as lists."""

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[int, int, Any]]] = {name: [] for name in CHANNELS}
        """A channel's messages that are there: offset, time, data."""
        self.heads = dict.fromkeys(CHANNELS, 0)

    def put(self, name: str, time_ms: int, data: Any) -> int:
        self.heads[name] += 1
        self.lines[name].append((self.heads[name], time_ms, data))
        return self.heads[name]

    def trim(self, name: str, until: int) -> None:
        self.lines[name] = [line for line in self.lines[name] if line[0] > until]

    def extent(self, name: str) -> Extent:
        return Extent(self.heads[name], self.heads[name] - len(self.lines[name]))


async def compare(log: SqliteLog, model: Model, chance: random.Random) -> None:
    """Ask the log for some of everything that it can be asked for about places."""
    infos = []
    for name in CHANNELS:
        there = model.lines[name]
        extent = model.extent(name)
        assert await log.extent(name) == extent
        after, count = chance.randrange(extent.head + 3), chance.randint(1, 3 * MILESTONE)
        behind = [line for line in there if line[0] > after][:count]
        page = await log.read(name, after, count, EVERYTHING)
        assert [(m["offset"], m["time"], m["data"]) for m in messages(page)] == behind
        newest = messages(await log.newest(name, count, EVERYTHING))
        assert [m["offset"] for m in newest] == [line[0] for line in there[-count:]]
        whole = await payloads(log, name)
        assert len(whole) == len(there)
        bytes_max = chance.randrange(200)
        taken = [len(payload) + 1 for payload in whole]
        fitting = max(1, sum(sum(taken[: place + 1]) <= bytes_max for place in range(len(taken))))
        assert len(messages(await log.read(name, 0, 1000, bytes_max))) == (fitting if there else 0)
        held = [sum(taken[place:]) for place in range(len(taken))]
        old = [OldMessage(line[0], line[1], bytes) for line, bytes in zip(there, held, strict=True)][:count]
        assert await log.oldest(name, count) == old
        if extent.head:
            infos.append(ChannelInfo(name, extent, sum(taken), there[0][1] if there else None))
    assert await log.channels("", 10) == infos
    assert await log.describe(CHANNELS) == infos


@pytest.mark.parametrize("seed", range(9))
async def test_reads_find_what_a_list_has(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recent_max, merged_at_once = [(sqlite_heads.RECENT_MAX, 1), (0, 1), (1, 2)][seed % 3]
    monkeypatch.setattr(sqlite_heads, "RECENT_MAX", recent_max)
    monkeypatch.setattr(sqlite_heads, "MERGED_AT_ONCE", merged_at_once)
    chance = random.Random(seed)
    model = Model()
    clock = Clock()
    for _ in range(4):  # starts
        async with opened(tmp_path, clock, cached_heads_max=2) as log:
            for _ in range(8):
                clock.ms += 10
                batch = chance.choices(CHANNELS, weights=[8, 4, 2, 1], k=chance.randint(1, 4 * MILESTONE))
                wanted = [model.put(name, clock.ms, number) for number, name in enumerate(batch)]
                assert await put(log, *(publish(number, name) for number, name in enumerate(batch))) == wanted
                await compare(log, model, chance)
                name = chance.choice(CHANNELS)
                until = chance.randint(0, model.heads[name])
                match chance.randrange(6):
                    case 0 | 1:
                        await log.trim({name: until}, 10_000)
                        model.trim(name, until)
                    case 2:
                        await log.clear(name)
                        model.trim(name, model.heads[name])
                        if chance.random() < 0.7:
                            while await log.maintain():
                                pass
                await compare(log, model, chance)
    with closing(sqlite_utils.Database(tmp_path / FILE_NAME)) as database:
        assert len(database.table("messages").indexes) == 1


async def test_a_word_that_was_replaced_is_found_for_a_conflict_and_not_where_it_was_trimmed(tmp_path: Path) -> None:
    def word(data: str, expect: int) -> Publish:
        return Publish(channel="a", data=publish(data).data, key="k", expect=expect)

    async with opened(tmp_path) as log:
        for number in range(1, 3 * MILESTONE):
            conflict = word("too late", number + 5)
            verdicts = await put(log, word(f"word {number}", number - 1), conflict, publish("b's", "b"), conflict)
            assert plain([verdicts[1]]) == plain([verdicts[3]])
            assert plain(verdicts)[1][2]["offset"] == number
            assert bytes(plain(verdicts)[1][2]["data"]) == f'"word {number}"'.encode()
        producer = "p" * 16
        late = Publish(channel="a", data=publish("late").data, key="k", expect=1, seq=1)
        (first,) = await put(log, late, producer=producer)
        await put(log, word("newer", 3 * MILESTONE - 1))
        assert plain(await put(log, late, producer=producer)) == plain([first])
        await log.trim({"a": 3 * MILESTONE}, 1000)
    async with opened(tmp_path) as log:
        await put(log, *(publish("b's", "b") for _ in range(5 * MILESTONE)))
        ((_, _, details),) = plain(await put(log, late, producer=producer))
        assert details == {"offset": 3 * MILESTONE - 1}


async def test_an_id_is_never_given_anew(tmp_path: Path) -> None:
    def newest_id() -> int:
        with sqlite3.connect(tmp_path / FILE_NAME) as database:
            heads = "SELECT message FROM heads UNION SELECT message FROM recent_heads"
            (id,) = database.execute(f"SELECT max(message) FROM ({heads})").fetchone()
        database.close()
        return int(id)

    async with opened(tmp_path) as log:
        await put(log, publish("first", "b"), *(publish() for _ in range(5)))
        await log.trim({"lobby": 5}, 100)
    before = newest_id()
    async with opened(tmp_path) as log:
        await put(log, publish("second", "b"))
        assert newest_id() == before + 1
        await log.clear("b")
        while await log.maintain():
            pass
        await log.trim({"lobby": 5}, 100)
    async with opened(tmp_path) as log:
        await put(log, publish("third", "b"))
        assert newest_id() == before + 2


@pytest.mark.parametrize("gone", [3, MILESTONE, MILESTONE + 1, 2 * MILESTONE - 1])
async def test_a_log_that_lacks_messages_says_so_and_does_not_make_others_of_them(tmp_path: Path, gone: int) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(number) for number in range(1, 2 * MILESTONE)))
        log._connection.execute("DELETE FROM messages WHERE offset = ?", (gone,))
        for page in (log.read("lobby", 0, 1000, EVERYTHING), log.newest("lobby", 1000, EVERYTHING)):
            with pytest.raises(
                LogUnavailable, match=f"messages of lobby are missing between 0 and {2 * MILESTONE - 1}"
            ):
                await page


@pytest.mark.parametrize("named", ["id", "id + 1", "id + 2"])
async def test_messages_that_name_each_other_in_a_circle_are_missing_and_nobody_goes_round_for_ever(
    tmp_path: Path, named: str
) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(number) for number in range(1, MILESTONE)))
        log._connection.execute(f"UPDATE messages SET previous = {named} WHERE offset = 5")
        for reader in log._idle_readers:
            reader.set_progress_handler(lambda: 1, 1_000_000)  # what takes so many steps is interrupted
        with pytest.raises(LogUnavailable, match=f"messages of lobby are missing between 0 and {MILESTONE - 1}"):
            await log.read("lobby", 0, 1000, EVERYTHING)


def an_old_log(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Make a log as trisync had them before chains, and return what is in it. One channel is trimmed, one emptied."""
    chance = random.Random(7)
    names = {1: "a", 2: "b", 3: "c", 4: "$emptied:4"}
    there: dict[str, list[tuple[int, Any]]] = {name: [] for name in names.values()}
    totals = dict.fromkeys(names, 0)
    with sqlite3.connect(folder / FILE_NAME, isolation_level=None) as database:
        database.execute(f"PRAGMA application_id = {int.from_bytes(b'tris', 'big')}")
        migrations.apply(sqlite_utils.Database(database), stop_before="m004_chains")
        for id, name in names.items():
            database.execute("INSERT INTO channels (id, name, trimmed) VALUES (?, ?, 0)", (id, name))
        for number in range(300):
            (id,) = chance.choices([*names], weights=[20, 5, 2, 10])
            offset = len(there[names[id]]) + 1
            size = len(f'{{"op":"message","channel":"{names[id]}","offset":{offset},"time":5,"data":{number}}}\n')
            totals[id] += size
            there[names[id]].append((offset, number))
            database.execute(
                "INSERT INTO messages (channel, offset, time, size, total, data) VALUES (?, ?, 5, ?, ?, ?)",
                (id, offset, size, totals[id], str(number)),
            )
        database.execute("DELETE FROM messages WHERE channel = 1 AND offset <= 37")
        database.execute("UPDATE channels SET trimmed = 37 WHERE id = 1")
        database.execute("DELETE FROM messages WHERE channel = 4 AND offset <= 20")  # begun to be tidied up
        database.execute("DELETE FROM messages WHERE channel = 3")
        database.execute("UPDATE channels SET trimmed = ? WHERE id = 3", (len(there["c"]),))
    database.close()
    there["a"] = there["a"][37:]
    there["c"] = []
    return there


async def test_a_log_from_before_chains_has_what_it_had_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    there = an_old_log(tmp_path)
    heads = {"a": there["a"][-1][0], "b": there["b"][-1][0]}
    async with opened(tmp_path) as log:
        assert "is of an older trisync" in caplog.text
        for name in "abc":
            page = await log.read(name, 0, 1000, EVERYTHING)
            assert [(message["offset"], message["data"]) for message in messages(page)] == there[name]
        for info in await log.channels("", 10):
            taken = [len(payload) + 1 for payload in await payloads(log, info.name)]
            assert info.bytes == sum(taken)
        assert await put(log, publish(1, "a"), publish(2, "b")) == [heads["a"] + 1, heads["b"] + 1]
        (head, _) = await log.extent("c")
        assert await put(log, publish(3, "c")) == [head + 1]
        assert await log.extent("c") == Extent(head + 1, head)
        assert [message["data"] for message in messages(await log.newest("a", 20, EVERYTHING))][-1] == 1
        while await log.maintain():
            pass
        assert [info.name for info in await log.channels("", 10)] == ["a", "b", "c"]
    caplog.clear()
    async with opened(tmp_path) as log:
        assert caplog.text == ""
    with closing(sqlite_utils.Database(tmp_path / FILE_NAME)) as database:
        assert {row["channel"] for row in database.query("SELECT DISTINCT channel FROM messages")} == {1, 2, 3}
        assert {row["channel"] for table in ("heads", "recent_heads") for row in database[table].rows} == {1, 2, 3}
        assert [(row["channel"], row["data"]) for row in database["log"].rows][-3:] == [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
        ]


async def test_a_channel_of_an_old_log_whose_offsets_are_beyond_all_ids_is_emptied_as_any_other(tmp_path: Path) -> None:
    """Before chains, ids began again where the newest messages had been cut."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as database:
        database.execute(f"PRAGMA application_id = {int.from_bytes(b'tris', 'big')}")
        migrations.apply(sqlite_utils.Database(database), stop_before="m004_chains")
        database.execute("INSERT INTO channels (name, trimmed) VALUES ('a', 1000)")
    async with opened(tmp_path) as log:
        assert await put(log, publish(1, "a")) == [1001]
        await log.clear("a")
        while await log.maintain():
            pass
        assert log._connection.execute("SELECT name FROM channels").fetchall() == [("a",)]
        assert log._connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
