"""The log on SQLite: what is kept, what is refused, and what a failure leaves behind. Real files throughout."""

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlite_utils
import trio
from msgspec import UNSET, Raw, UnsetType

from trisync.errors import WireError
from trisync.log import ChannelInfo, Duplicate, Extent, LogRefused, LogUnavailable, Page, Refused, Submission, Verdict
from trisync.protocol import UNANSWERED_MAX, Publish, decode_request
from trisync.settings import Settings
from trisync.sqlite_log import CHECKPOINT_BYTES, CHECKPOINT_COMMITS, FORGET_EVERY_S, SqliteLog
from trisync.sqlite_schema import FILE_NAME, LOCK_NAME, SCHEMA_VERSION, open_reader

T = TypeVar("T")
PRODUCER = "p" * 16
EVERYTHING = 1 << 40


class Clock:
    """Clocks that a test sets: the wall clock in milliseconds, and the other one in seconds."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        self.s = 0.0

    def now_ms(self) -> int:
        return self.ms

    def timer(self) -> float:
        return self.s


@asynccontextmanager
async def opened(folder: Path, clock: Clock | None = None, **changes: Any) -> AsyncIterator[SqliteLog]:
    clock = clock or Clock()
    log = await SqliteLog.open(folder, Settings(**({"busy_ms": 0} | changes)), now_ms=clock.now_ms, timer=clock.timer)
    try:
        yield log
    finally:
        await log.aclose()


def publish(data: Any = "x", channel: str = "lobby", seq: int | UnsetType = UNSET) -> Publish:
    return Publish(channel=channel, data=Raw(json.dumps(data, ensure_ascii=False).encode()), seq=seq)


def bad_request(seq: int | UnsetType = UNSET, message: str = "no") -> Refused:
    return Refused(WireError("bad_request", message), seq=seq)


def submission(*items: Publish | Refused, sender: str | None = None, producer: str | None = None) -> Submission:
    made = Submission(lambda _: None, sender, producer)
    for item in items:
        made.add(item, len(item.data) if isinstance(item, Publish) else 10)
    return made


async def put(log: SqliteLog, *items: Publish | Refused, **fields: Any) -> list[Verdict]:
    """Append a batch of one submission, and return its verdicts."""
    batch = [submission(*items, **fields)]
    await log.append(batch)
    return batch[0].verdicts


async def put_seqs(log: SqliteLog, *seqs: int) -> list[Verdict]:
    return await put(log, *(publish(seq, seq=seq) for seq in seqs), producer=PRODUCER)


def plain(verdicts: Sequence[Verdict]) -> list[Any]:
    """Verdicts as values that compare."""
    return [(v.code, v.message, v.details) if isinstance(v, WireError) else v for v in verdicts]


def messages(page: Page) -> list[dict[str, Any]]:
    return [] if page.run is None else [json.loads(payload) for payload in page.run.payloads()]


async def payloads(log: SqliteLog, channel: str = "lobby") -> list[bytes]:
    page = await log.read(channel, 0, 100_000, EVERYTHING)
    return [] if page.run is None else page.run.payloads()


async def data_of(log: SqliteLog, channel: str = "lobby") -> list[Any]:
    return [message["data"] for message in messages(await log.read(channel, 0, 100_000, EVERYTHING))]


def crash(folder: Path, to: Path) -> Path:
    """What a killed process leaves: the files as they are now."""
    to.mkdir()
    for file in folder.iterdir():
        if file.name != LOCK_NAME and not file.name.endswith("-shm"):
            shutil.copy(file, to)
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Appending and reading


async def test_offsets_count_from_one_in_each_channel_and_go_on_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await put(log, publish(), publish(channel="b"), publish()) == [1, 1, 2]
        assert await put(log, publish(channel="b"), publish()) == [2, 3]
    async with opened(tmp_path) as log:
        assert await put(log, publish(), publish(channel="b"), publish(channel="c")) == [4, 3, 1]


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
        assert await log.extent("nobody") == Extent(0, 0)
        for page in (await log.read("nobody", 0, 10, 1000), await log.newest("nobody", 10, 1000)):
            assert page == Page(None, Extent(0, 0))


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


# Producers


async def test_a_producers_next_seq_is_taken_and_a_gap_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await put_seqs(log, 1, 2) == [1, 2]
        (verdict,) = await put_seqs(log, 4)
        assert isinstance(verdict, WireError)
        assert (verdict.code, verdict.retry, verdict.details) == ("out_of_sequence", True, {"seq": 2})
        assert await log.settled_seq(PRODUCER) == 2
        assert await put_seqs(log, 3, 4) == [3, 4]
        assert await data_of(log) == [1, 2, 3, 4]
        assert await log.settled_seq("q" * 16) == 0


async def test_behind_a_gap_nothing_is_taken_until_it_is_filled(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        verdicts = await put_seqs(log, 1, 3, 4, 2, 3)
        assert [v.code if isinstance(v, WireError) else v for v in verdicts] == [1, *["out_of_sequence"] * 2, 2, 3]
        assert await data_of(log) == [1, 2, 3]


async def test_a_retry_gets_the_same_verdict_and_is_stored_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await put_seqs(log, 1, 1, 2, 1) == [1, Duplicate(1), 2, Duplicate(1)]  # in one batch
        assert await put_seqs(log, 2, 3) == [Duplicate(2), 3]
    async with opened(tmp_path) as log:
        assert await put_seqs(log, 1, 2, 3, 4) == [Duplicate(1), Duplicate(2), Duplicate(3), 4]
        assert await data_of(log) == [1, 2, 3, 4]


async def test_a_retry_in_another_submission_of_the_same_batch_is_stored_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        batch = [submission(publish(1, seq=1), producer=PRODUCER), submission(publish(1, seq=1), producer=PRODUCER)]
        await log.append(batch)
        assert [made.verdicts for made in batch] == [[1], [Duplicate(1)]]


async def test_a_seq_counts_over_all_channels_and_each_producer_has_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await put(log, publish(seq=1), publish(channel="b", seq=2), producer=PRODUCER) == [1, 1]
        assert await put(log, publish(seq=1), producer="q" * 16) == [2]
        assert await put(log, publish(channel="b", seq=2), producer=PRODUCER) == [Duplicate(1)]


async def test_the_newest_verdicts_are_kept_exactly_and_older_ones_only_as_settled(tmp_path: Path) -> None:
    count = UNANSWERED_MAX + 44
    refused_seqs = {45, 46, 200, count}

    def item(seq: int) -> Publish | Refused:
        return bad_request(seq, f"no {seq}") if seq in refused_seqs or seq == 10 else publish(seq, seq=seq)

    async with opened(tmp_path) as log:
        first = plain(await put(log, *map(item, range(1, count + 1)), producer=PRODUCER))
    for _ in range(2):
        async with opened(tmp_path) as log:
            again = plain(await put(log, *(publish(seq=seq) for seq in range(1, count + 1)), producer=PRODUCER))
            assert again[:44] == [Duplicate(0)] * 44
            assert again[44:] == [v if isinstance(v, tuple) else Duplicate(v) for v in first[44:]]
            assert again[44] == ("bad_request", "no 45", {})
            head = count - len(refused_seqs) - 1
            assert await log.extent("lobby") == Extent(head, 0)


async def test_a_refused_publish_with_a_seq_is_settled_and_repeats(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        refusal = Refused(WireError("bad_request", "channel is wrong", field="channel"), seq=1)
        first = plain(await put(log, refusal, publish(2, seq=2), producer=PRODUCER))
        assert first == [("bad_request", "channel is wrong", {"field": "channel"}), 1]
        assert plain(await put_seqs(log, 1)) == first[:1]  # though it is a good one now
    async with opened(tmp_path) as log:
        assert plain(await put_seqs(log, 1, 2)) == [first[0], Duplicate(1)]
        assert await log.settled_seq(PRODUCER) == 2
        assert await data_of(log) == [2]


async def test_a_refusal_out_of_sequence_settles_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        (verdict,) = await put(log, bad_request(5), producer=PRODUCER)
        assert isinstance(verdict, WireError)
        assert verdict.code == "out_of_sequence"
        assert await log.settled_seq(PRODUCER) == 0


@pytest.mark.parametrize("code", ["fenced", "unavailable", "draining", "bad_json", "too_large", "internal"])
async def test_a_refusal_that_is_no_verdict_settles_nothing(tmp_path: Path, code: str) -> None:
    async with opened(tmp_path) as log:
        verdicts = await put(log, Refused(WireError(code, "not now"), seq=1), producer=PRODUCER)
        assert plain(verdicts) == [(code, "not now", {})]
        assert await log.settled_seq(PRODUCER) == 0
        assert await put_seqs(log, 1) == [1]


async def test_a_refusal_without_a_readable_seq_settles_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, bad_request(), producer=PRODUCER)
        assert await put_seqs(log, 1) == [1]


async def test_producers_that_are_idle_are_forgotten_and_others_are_not(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock, producer_idle_s=100.0) as log:
        await put(log, publish(seq=1), producer="idle" * 4)
        clock.ms += 60_000
        await put(log, publish(seq=1), producer="busy" * 4)
        clock.ms += 60_000
        await log.maintain()
        assert await log.settled_seq("idle" * 4) == 1  # looked for now and then only
        clock.s += FORGET_EVERY_S
        await log.maintain()
        assert (await log.settled_seq("idle" * 4), await log.settled_seq("busy" * 4)) == (0, 1)
        assert await put(log, publish(seq=1), producer="idle" * 4) == [3]  # forgotten by the writer too
        assert await put(log, publish(seq=1), producer="busy" * 4) == [Duplicate(2)]


# Failures


async def append_fails(log: SqliteLog) -> str:
    with pytest.raises(LogUnavailable) as caught:
        await put(log, publish("lost", seq=2), publish("lost", channel="new"), publish("lost"), producer=PRODUCER)
    return str(caught.value)


async def as_if_nothing_was(log: SqliteLog) -> None:
    """After a failed batch: offsets are given back, nothing is settled, nothing is stored, and writing works."""
    assert await log.settled_seq(PRODUCER) == 1
    assert (await log.extent("lobby"), await log.extent("new")) == (Extent(1, 0), Extent(0, 0))
    verdicts = await put(
        log, publish("kept", seq=2), publish("kept", channel="new"), publish("kept"), producer=PRODUCER
    )
    assert verdicts == [2, 1, 3]
    assert await data_of(log) == [1, "kept", "kept"]


async def test_a_locked_file_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert "locked" in await append_fails(log)
        assert await data_of(log) == [1]  # reads go on
        with pytest.raises(LogUnavailable):
            await log.trim({"lobby": 1}, 1000)
        other.execute("ROLLBACK")
        other.close()
        await as_if_nothing_was(log)


async def test_a_full_disk_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
        log._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LogUnavailable, match="full"):
            await put(log, publish("small", seq=2), publish("x" * 100_000), producer=PRODUCER)
        assert not log._connection.in_transaction
        assert await data_of(log) == [1]
        log._connection.execute("PRAGMA max_page_count = 1000000")
        await as_if_nothing_was(log)


async def test_a_read_only_file_is_unavailable_and_the_next_batch_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        log._connection.execute("PRAGMA query_only = ON")
        assert "readonly" in await append_fails(log)
        log._connection.execute("PRAGMA query_only = OFF")
        await as_if_nothing_was(log)


class FailingConnection:
    """A connection on which one statement fails as SQLite would have it."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int) -> None:
        self._connection = connection
        self._statement = statement
        self._code = code

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def failing(log: SqliteLog, statement: str, code: int) -> Iterator[None]:
    """Every statement of the writer that begins so fails."""
    writer: Any = log._writer
    connection = writer._db
    writer._db = FailingConnection(connection, statement, code)
    try:
        yield
    finally:
        writer._db = connection


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO messages", "COMMIT"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY_SNAPSHOT])
async def test_wherever_a_batch_fails_nothing_of_it_stays(tmp_path: Path, statement: str, code: int) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        with failing(log, statement, code):
            await append_fails(log)
        await as_if_nothing_was(log)


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO messages", "COMMIT"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_CORRUPT])
async def test_an_error_whose_outcome_is_unknown_is_raised_as_it_is(tmp_path: Path, statement: str, code: int) -> None:
    async with opened(tmp_path / "a") as log:
        await put_seqs(log, 1)
        with failing(log, statement, code), pytest.raises(sqlite3.OperationalError, match="disk I/O error") as caught:
            await put_seqs(log, 2)
        assert caught.value.sqlite_errorcode == code
    # Closed, and opened again, it tells the truth.
    async with opened(tmp_path / "a") as log:
        assert await data_of(log) == [1]
        assert await put_seqs(log, 2) == [2]


@pytest.mark.parametrize("what", ["append", "clear"])
async def test_after_an_unknown_outcome_nothing_is_folded_into_the_file(tmp_path: Path, what: str) -> None:
    async with opened(tmp_path) as log:
        await put_seqs(log, 1)
        before = (tmp_path / FILE_NAME).read_bytes()
        with failing(log, "COMMIT", sqlite3.SQLITE_IOERR_FSYNC), pytest.raises(sqlite3.OperationalError):
            await (put_seqs(log, 2) if what == "append" else log.clear("lobby"))
    # Nobody has read in this log: its readers must count as such nevertheless.
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size > 0
    async with opened(tmp_path) as log:
        assert await data_of(log) == [1]


async def test_a_checkpoint_that_failed_is_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        for _ in range(CHECKPOINT_COMMITS):
            await put(log, publish())
        connection: Any = log._connection
        log._connection = FailingConnection(connection, "PRAGMA wal_checkpoint", sqlite3.SQLITE_FULL)  # type: ignore[assignment]
        before = (tmp_path / FILE_NAME).read_bytes()
        with pytest.raises(LogUnavailable):
            await log.maintain()
        log._connection = connection
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() != before


async def test_what_is_no_error_of_sqlite_is_raised_as_it_is_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        broken = Publish(channel="lobby", data=Raw(b"\xff"))  # a bug: the door lets no such thing in
        with pytest.raises(UnicodeDecodeError):
            await put(log, publish(), broken)


async def test_a_read_that_fails_is_unavailable_and_the_next_one_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        for reader in log._idle_readers:
            reader.set_progress_handler(lambda: 1, 1)  # every statement is interrupted
        for _ in range(5):
            with pytest.raises(LogUnavailable):
                await log.read("lobby", 0, 10, EVERYTHING)
        for reader in log._idle_readers:
            reader.set_progress_handler(None, 1)
        assert await data_of(log) == ["x"]


class HeldExecutor:
    """Runs calls in threads, which wait at their beginning while a test holds them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        def run() -> T:
            self.gate.wait()
            return call()

        return trio.to_thread.run_sync(run)


async def test_a_cancelled_append_still_runs_to_its_end(tmp_path: Path) -> None:
    executor = HeldExecutor()
    log = await SqliteLog.open(tmp_path, Settings(), executor=executor)
    made = submission(publish(1, seq=1), producer=PRODUCER)
    async with trio.open_nursery() as nursery:
        executor.gate.clear()
        nursery.start_soon(log.append, [made])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        executor.gate.set()
    assert made.verdicts == [1]
    assert await data_of(log) == [1]
    assert await put_seqs(log, 1, 2) == [Duplicate(1), 2]
    await log.aclose()


async def test_a_cancelled_read_gives_its_connection_back(tmp_path: Path) -> None:
    executor = HeldExecutor()
    log = await SqliteLog.open(tmp_path, Settings(), executor=executor)
    await put(log, publish())
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            executor.gate.clear()
            nursery.start_soon(log.read, "lobby", 0, 10, 1000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            executor.gate.set()
    assert await data_of(log) == ["x"]
    await log.aclose()


async def test_reads_go_on_beside_an_append(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish("before"))
        log._connection.execute("BEGIN IMMEDIATE")
        log._connection.execute("DELETE FROM messages")
        assert await data_of(log) == ["before"]
        log._connection.execute("ROLLBACK")


# The folder and its files


async def test_a_second_server_on_the_folder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, publish())
        before = contents(tmp_path)
        with pytest.raises(LogRefused, match=f"in use by another trisync server .process {os.getpid()}."):
            await SqliteLog.open(tmp_path, Settings())
        assert contents(tmp_path) == before
        assert await put(log, publish()) == [2]
    async with opened(tmp_path) as log:
        assert await put(log, publish()) == [3]


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


async def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    async with opened(tmp_path) as log:
        assert await put(log, publish()) == [1]


async def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await put(log, *(publish("x" * 100) for _ in range(500)))
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 100_000)
    with pytest.raises(LogRefused, match="cannot be opened"):
        await SqliteLog.open(tmp_path, Settings())


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


async def test_many_small_commits_are_checkpointed_too(tmp_path: Path) -> None:
    async with opened(tmp_path, durability="normal") as log:
        at_first = (tmp_path / FILE_NAME).read_bytes()
        log._uncheckpointed_commits = CHECKPOINT_COMMITS - 2
        await put(log, publish())
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() == at_first
        await put(log, publish())
        await log.maintain()
        assert (tmp_path / FILE_NAME).read_bytes() != at_first


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
    assert sqlite_utils.Database(tmp_path / FILE_NAME)["messages"].count == 4


async def test_a_channel_forgotten_by_the_writers_cache_goes_on_where_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path, cached_heads_max=2) as log:
        for round in range(1, 4):
            for channel in "abcde":
                assert await put(log, publish(channel=channel, seq=round), producer=channel * 16) == [round]
