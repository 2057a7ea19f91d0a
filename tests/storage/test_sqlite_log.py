"""The log on SQLite: what is kept, in which order, how it is read, and what is cut. Real files throughout."""

import random
import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from tests.sqlite_logs import (
    EVERYTHING,
    PRODUCER,
    Clock,
    bad_request,
    crash,
    data_of,
    messages,
    opened,
    payloads,
    plain,
    publish,
    put,
    put_seqs,
    submission,
)
from trisync.settings import Settings
from trisync.storage import sqlite_writer
from trisync.storage.log import ChannelInfo, Extent, Page, Refused, StatePage
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.wire.protocol import Publish, decode_request

# Appending and reading


async def test_offsets_count_from_one_in_each_channel_and_go_on_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await put(log, publish(), publish(channel="b"), publish()) == [1, 1, 2]
        assert await put(log, publish(channel="b"), publish()) == [2, 3]
    async with opened(tmp_path) as log:
        assert await put(log, publish(), publish(channel="b"), publish(channel="c")) == [4, 3, 1]


async def test_channels_that_are_not_in_memory_are_found_by_one_statement_for_all_of_a_batch(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(channel=f"room{number}") for number in range(50)))
        await log.trim({"room7": 1}, 100)
        await log.clear("room8")
    async with opened(tmp_path) as log:
        await put(log, publish(channel="room0"))
        said: list[str] = []
        log._connection.set_trace_callback(said.append)
        rooms = [publish(channel=f"room{number}") for number in range(51)]
        assert await put(log, *rooms, rooms[50]) == [3, *[2] * 49, 1, 2]
        asked = [sql for sql in said if sql.lstrip().startswith("SELECT")]
        assert len(asked) == 1
        said.clear()
        assert await put(log, *rooms) == [4, *[3] * 49, 3]
        assert [sql for sql in said if sql.lstrip().startswith("SELECT")] == []


async def test_the_runs_of_a_batch_are_what_a_read_finds_later(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as log:
        batch = [
            submission(publish({"a": [1, None]}), publish('é😀"\\\0'), publish(channel="b"), sender='Zoë "Z" \\ 😀'),
            submission(publish(2.5), publish("")),
        ]
        runs = await log.append(batch)
        assert [(run.channel, run.after, run.last) for run in runs] == [("lobby", 0, 4), ("b", 0, 1)]
        for run in runs:
            page = await log.read(run.channel, 0, 100, EVERYTHING)
            assert page.run is not None
            assert page.run.lines == run.lines
            assert page.extent == Extent(run.last, 0)
        lobby = messages(await log.read("lobby", 0, 100, EVERYTHING))
        assert lobby[1] == {
            "op": "message",
            "channel": "lobby",
            "offset": 2,
            "time": clock.ms,
            "from": 'Zoë "Z" \\ 😀',
            "data": 'é😀"\\\0',
        }
        assert "from" not in lobby[2]


async def test_a_sender_and_a_key_may_be_called_0(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        keyed = Publish(channel="lobby", data=Raw(b"1"), key="0")
        await log.append([submission(keyed, sender="0"), submission(publish())])
        named, nameless = messages(await log.read("lobby", 0, 10, EVERYTHING))
        assert (named["from"], named["key"]) == ("0", "0")
        assert not {"from", "key"} & set(nameless)


def some_publishes(chance: random.Random) -> list[Publish | Refused]:
    """Most of them plain, and most of their seqs the next one; some come again, or too early."""
    items: list[Publish | Refused] = []
    settled = 0
    for number in range(200):
        seq = max(1, settled + chance.choice([*[1] * 20, 0, -3, 2]))
        kind = chance.randrange(20)
        if kind != 1 and seq == settled + 1:
            settled = seq
        match kind:
            case 0:
                items.append(Publish(channel="lobby", data=Raw(b"%d" % number), key=chance.choice("kl"), seq=seq))
            case 1:
                items.append(Publish(channel="lobby", data=Raw(b"%d" % number), ephemeral=True))
            case 2:
                items.append(bad_request(seq))
            case _:
                items.append(publish(f"é{number}", chance.choice(["lobby", "lobby", "b"]), seq))
    return items


@pytest.mark.parametrize("producer", [None, PRODUCER])
@pytest.mark.parametrize("seed", range(10))
async def test_what_is_decided_together_comes_out_as_one_by_one(
    tmp_path: Path, seed: int, producer: str | None
) -> None:
    chance = random.Random(seed)
    items = some_publishes(chance)
    cuts = [0, *sorted(chance.sample(range(1, len(items)), 30)), len(items)]
    outcomes: list[tuple[Any, ...]] = []
    for name, parts in (
        ("together", [items[start:end] for start, end in pairwise(cuts)]),
        ("one by one", [[item] for item in items]),
    ):
        async with opened(tmp_path / name) as log:
            verdicts = [verdict for part in parts for verdict in await put(log, *part, sender="ann", producer=producer)]
            stored = [await payloads(log, channel) for channel in ("lobby", "b")]
            state = await log.state("lobby", "", 10, EVERYTHING)
            settled = await log.settled_seq(PRODUCER)
        database = sqlite3.connect(tmp_path / name / FILE_NAME)
        rows = database.execute("SELECT * FROM messages ORDER BY id").fetchall()
        database.close()
        outcomes.append((plain(verdicts), stored, state, settled, rows))
    assert outcomes[0] == outcomes[1]


async def test_data_is_stored_as_it_came_on_one_line(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        request = decode_request(b'{"op":"publish","channel":"lobby","data":{"a" :\r\n1e5,"a":[ ] }}')
        assert isinstance(request, Publish)
        (run,) = await log.append([submission(request)])
        assert run.lines.endswith(b'"data":{"a" :  1e5,"a":[ ] }}\n')
        page = await log.read("lobby", 0, 1, 1)
        assert page.run is not None
        assert page.run.lines == run.lines


async def test_a_large_batch_is_stored_whole_and_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        count = 128 + 16 * 3 + 5
        assert await put(log, *(publish(number) for number in range(count))) == [*range(1, count + 1)]
        assert await data_of(log) == [*range(count)]


async def test_a_batch_keeps_the_order_over_its_submissions(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        batch = [submission(publish(n), publish(-n, channel="b"), sender=f"s{n}") for n in range(1, 30)]
        await log.append(batch)
        assert [made.verdicts for made in batch] == [[n, n] for n in range(1, 30)]
        assert await data_of(log) == [*range(1, 30)]


async def test_what_is_refused_or_ephemeral_takes_no_offset(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        fleeting = Publish(channel="lobby", data=Raw(b"1"), ephemeral=True)
        verdicts = await put(log, publish(), bad_request(), fleeting, publish())
        assert plain(verdicts) == [1, ("bad_request", "no", {}), 0, 2]
        assert await log.extent("lobby") == Extent(2, 0)


async def test_a_channel_nobody_wrote_to_is_empty(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, replace(publish(), key="k"))
        assert await log.extent("nobody") == Extent(0, 0)
        for page in (await log.read("nobody", 0, 10, 1000), await log.newest("nobody", 10, 1000)):
            assert page == Page(None, Extent(0, 0))
        for words in (await log.state("nobody", "", 10, 1000), await log.word("nobody", "k")):
            assert words == StatePage(b"", "", False, Extent(0, 0))


def offsets(page: Page) -> list[int]:
    return [message["offset"] for message in messages(page)]


async def test_a_page_holds_at_most_so_many_messages(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(number) for number in range(10)))
        assert offsets(await log.read("lobby", 3, 4, EVERYTHING)) == [4, 5, 6, 7]
        assert offsets(await log.read("lobby", 8, 4, EVERYTHING)) == [9, 10]
        assert offsets(await log.newest("lobby", 4, EVERYTHING)) == [7, 8, 9, 10]
        assert offsets(await log.newest("lobby", 40, EVERYTHING)) == [*range(1, 11)]
        for after in (10, 11, 2**53 - 1):
            assert await log.read("lobby", after, 4, EVERYTHING) == Page(None, Extent(10, 0))


@pytest.mark.parametrize("word", ["x" * 300, "é" * 150])
async def test_a_page_holds_at_most_so_many_bytes(tmp_path: Path, word: str) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(word) for _ in range(9)))
        one = await log.read("lobby", 0, 1, EVERYTHING)
        assert one.run is not None
        size = len(one.run.lines)  # all are of one size: offsets have one digit
        for count in (1, 2, 5):
            for bytes_max, held in ((count * size, count), (count * size + size - 1, count)):
                assert offsets(await log.read("lobby", 2, 100, bytes_max)) == [*range(3, 3 + held)]
                assert offsets(await log.newest("lobby", 100, bytes_max)) == [*range(10 - held, 10)]


async def test_a_page_holds_one_message_even_where_that_is_too_large(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish("x" * 5000), publish("y"), publish("z" * 5000))
        assert offsets(await log.read("lobby", 0, 100, 10)) == [1]
        assert offsets(await log.newest("lobby", 100, 10)) == [3]
        assert offsets(await log.newest("lobby", 100, 5000)) == [3]


async def test_a_page_of_a_state_holds_at_most_so_many_bytes_or_one_entry(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(replace(publish("x" * size), key=key) for key, size in (("a", 5000), ("b", 1), ("c", 5000))))
        for after, bytes_max, last, more in (("", 10, "a", True), ("a", 1000, "b", True), ("a", 6000, "c", False)):
            page = await log.state("lobby", after, 10, bytes_max)
            assert (page.last, page.more) == (last, more)


PROCESS_IO = Path("/proc/self/io")


def bytes_read() -> int:
    """Bytes that this process has read from files so far, from the system's cache or the disk."""
    return int(PROCESS_IO.read_text().split()[1])


@pytest.mark.skipif(not PROCESS_IO.exists(), reason="this system does not count what a process reads")
async def test_a_page_of_a_few_large_messages_is_read_without_the_rest_of_the_channel(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish("x" * 100_000) for _ in range(100)))
        before = bytes_read()
        assert offsets(await log.read("lobby", 0, 1000, 1000)) == [1]
        assert offsets(await log.newest("lobby", 1000, 1000)) == [100]
        assert bytes_read() - before < 2_000_000, "two messages of 100 kB were asked for, of 10 MB"


# Trimming


async def test_what_is_trimmed_is_gone_and_offsets_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(number) for number in range(1, 11)), publish(channel="b"))
        await log.trim({"lobby": 4}, 1000)
        assert await log.extent("lobby") == Extent(10, 4)
        page = await log.read("lobby", 1, 3, EVERYTHING)
        assert page.run is not None
        assert (page.run.after, offsets(page)) == (4, [5, 6, 7])
        assert offsets(await log.newest("lobby", 100, EVERYTHING)) == [*range(5, 11)]
        await log.trim({"lobby": 2}, 1000)  # never back
        assert await log.extent("lobby") == Extent(10, 4)
        assert await log.extent("b") == Extent(1, 0)


@pytest.mark.parametrize("until", [3, 100])
async def test_a_channel_trimmed_to_nothing_keeps_its_head_over_a_restart(tmp_path: Path, until: int) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish(), publish(), publish())
        await log.trim({"lobby": until}, 1000)
        assert await log.read("lobby", 0, 10, EVERYTHING) == Page(None, Extent(3, 3))
    async with opened(tmp_path) as log:
        assert await log.extent("lobby") == Extent(3, 3)
        assert await put(log, publish()) == [4]
        assert await log.extent("lobby") == Extent(4, 3)


async def test_channels_are_trimmed_together_and_at_most_so_many_messages(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish(channel=channel) for channel in "aabbbcc"))
        assert await log.trim({"a": 1, "none": 5, "b": 3, "c": 1}, 3) == {
            "a": Extent(2, 1),
            "b": Extent(3, 2),
            "c": Extent(2, 0),
        }


async def test_a_cut_is_bounded_in_bytes_too_but_takes_a_message_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "BYTES_CUT_AT_ONCE", 1000)
    async with opened(tmp_path) as log:
        sizes = zip("aabbbcd", [9, 9, 300, 300, 400, 2000, 9], strict=True)
        await put(log, *(publish("x" * size, channel) for channel, size in sizes))
        cuts = dict.fromkeys("abcd", 3)
        cut = await log.trim(cuts, 10)
        assert cut == {"a": Extent(2, 2), "b": Extent(3, 2), "c": Extent(1, 1), "d": Extent(1, 0)}
        cut = await log.trim(cuts, 10)
        assert cut == {"a": Extent(2, 2), "b": Extent(3, 3), "c": Extent(1, 1), "d": Extent(1, 1)}


async def test_what_three_batches_of_large_messages_store_can_be_cut_between_two(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        for _ in range(3):
            await put(log, *(publish("x" * 1_000_000) for _ in range(Settings().batch_bytes_max // 1_000_000)))
        [cut] = (await log.trim({"lobby": 100}, 100)).values()
        assert cut.trimmed == cut.head


async def test_an_emptied_channel_is_tidied_up_in_steps_that_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "BYTES_PURGED_AT_ONCE", 1000)
    async with opened(tmp_path) as log:
        await put(log, *(replace(publish("x" * 400), key=key) for key in "abc"))
        await log.clear("lobby")
        left: list[tuple[int, int]] = []
        while await log.maintain():
            left.append(*log._connection.execute("SELECT (SELECT count(*) FROM messages), count(*) FROM state"))
        assert left == [(1, 3), (0, 3), (0, 1), (0, 0), (0, 0)]


async def test_tidying_up_holds_no_batch_up_for_more_than_a_batch_may_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        for _ in range(3):
            await put(log, *[publish("x" * 1_000_000)] * 4)
        await log.clear("lobby")
        await log.maintain()
        assert log._connection.execute("SELECT count(*) FROM messages").fetchone() == (8,)


async def test_what_a_channel_holds_is_known_in_bytes_and_age_whatever_was_cut(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as log:
        for clock.ms in (5000, 6000, 7000):
            await put(log, publish("é" * clock.ms), publish(channel="b"))
        sizes = [len(payload) + 1 for payload in await payloads(log)]
        assert await log.describe(["none", "lobby"]) == [ChannelInfo("lobby", Extent(3, 0), sum(sizes), 5000)]
        assert await log.oldest("lobby", 2) == [(1, 5000, sum(sizes)), (2, 6000, sum(sizes[1:]))]
        await log.trim({"lobby": 2, "b": 3}, 1000)
    async with opened(tmp_path, clock) as log:
        await put(log, publish(4))
        sizes = [len(payload) + 1 for payload in await payloads(log)]
        assert await log.channels("", 10) == [
            ChannelInfo("b", Extent(3, 3), 0, None),
            ChannelInfo("lobby", Extent(4, 2), sum(sizes), 7000),
        ]
        assert [message.held_bytes for message in await log.oldest("lobby", 10)] == [sum(sizes), sizes[1]]
        assert await log.oldest("b", 10) == []


async def test_a_log_from_before_retention_learns_what_its_channels_hold(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish("x" * size, channel) for size, channel in ((5, "a"), (9, "b"), (2, "a"))))
        now = await log.channels("", 10)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as old:
        old.execute("ALTER TABLE messages DROP COLUMN total")
        old.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm003%'")
    old.close()
    async with opened(tmp_path) as log:
        assert await log.channels("", 10) == now
        await put(log, publish("y", "a"))
        assert (await log.oldest("a", 10))[0].held_bytes == sum(len(line) + 1 for line in await payloads(log, "a"))


@pytest.mark.parametrize("until", [0, 1])
async def test_a_channel_is_emptied_of_a_state_that_outlived_its_messages_and_then_there_is_nothing_to_empty(
    tmp_path: Path, until: int
) -> None:
    async with opened(tmp_path) as log:
        assert await log.clear("lobby") is None
        await put(log, replace(publish(), key="k"))
        await log.trim({"lobby": until}, 1000)
        assert await log.clear("lobby") == Extent(1, 1)
        assert (await log.state("lobby", "", 10, EVERYTHING)).entries == b""
        assert await log.clear("lobby") is None
        await put(log, replace(publish(None), key="k"))
        await log.trim({"lobby": 2}, 1000)
        assert await log.clear("lobby") is None


# Time


async def test_time_never_goes_back_when_the_clock_does(tmp_path: Path) -> None:
    clock = Clock()
    times = []
    async with opened(tmp_path, clock) as log:
        for ms in (5000, 6000, 2000, 6500):
            clock.ms = ms
            await put(log, publish())
    clock.ms = 10
    async with opened(tmp_path, clock) as log:
        await put(log, publish())
        times = [message["time"] for message in messages(await log.read("lobby", 0, 10, EVERYTHING))]
    assert times == [5000, 6000, 6000, 6500, 6500]


async def test_time_does_not_go_back_over_a_restart_though_all_was_trimmed(tmp_path: Path) -> None:
    clock = Clock()
    clock.ms = 5000
    async with opened(tmp_path, clock) as log:
        await put(log, publish())
        await log.trim({"lobby": 1}, 1000)
    clock.ms = 10
    async with opened(tmp_path, clock) as log:
        await put(log, publish())
        (message,) = messages(await log.read("lobby", 0, 10, EVERYTHING))
        assert message["time"] >= 5000


# The log's identity


async def test_under_full_the_epoch_stays_whatever_the_stop(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as log:
        epoch = log.epoch
        await put(log, publish())
        killed = crash(tmp_path / "a", tmp_path / "killed")
    for folder in (tmp_path / "a", killed):
        async with opened(folder) as log:
            assert log.epoch == epoch
            assert await put(log, publish()) == [2]


async def test_under_normal_the_epoch_changes_after_an_unclean_stop_and_not_after_a_clean_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "a", durability="normal") as log:
        epoch = log.epoch
        await put(log, publish())
        killed = crash(tmp_path / "a", tmp_path / "killed")
    async with opened(tmp_path / "a", durability="normal") as log:
        assert log.epoch == epoch
    async with opened(killed, durability="full") as log:
        assert log.epoch != epoch
        assert await data_of(log) == ["x"]
        after = log.epoch
        killed_again = crash(killed, tmp_path / "killed again")
    async with opened(killed_again, durability="full") as log:
        assert log.epoch == after


async def test_two_logs_have_two_epochs(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as one, opened(tmp_path / "b") as two:
        assert one.epoch != two.epoch
        assert one.epoch


async def test_what_was_acknowledged_is_there_after_a_crash(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as log:
        await put(log, *(publish(number) for number in range(300)))
        await put_seqs(log, 1, 2, 3)
        killed = crash(tmp_path / "a", tmp_path / "killed")
    async with opened(killed) as log:
        assert await data_of(log) == [*range(300), 1, 2, 3]
        assert await log.settled_seq(PRODUCER) == 3
