"""The log on SQLite: what is stored of producers, so that each publish counts once."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.sqlite_logs import PRODUCER, Clock, bad_request, data_of, opened, plain, publish, put, put_seqs, submission
from trisync.storage.log import Duplicate, Extent, Once, Refused, Submission, Verdict
from trisync.storage.sqlite_log import FORGET_EVERY_S, ROWS_DELETED_PER_STEP
from trisync.storage.sqlite_lookups import _memory_of
from trisync.wire.errors import WireError
from trisync.wire.protocol import UNANSWERED_MAX, Publish


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


async def test_a_conflict_is_repeated_with_its_data_only_for_what_may_cause_one(tmp_path: Path) -> None:
    """Else a thousand small publishes under the seq of one conflict would have answers of a mebibyte each."""
    large = "x" * 100_000
    async with opened(tmp_path) as log:
        await put(log, replace(publish(large), key="k"))
        other = publish(seq=1)
        wrong = replace(other, key="k", expect=7)
        others = (other, replace(other, key="k"), replace(other, key="k", merge=True), bad_request(seq=1))
        for item in (wrong, wrong, *others):
            (verdict,) = await put(log, item, producer=PRODUCER)
            assert isinstance(verdict, WireError)
            assert (verdict.code, verdict.details["offset"]) == ("conflict", 1)
            assert ("data" in verdict.details) is (item is wrong)


async def test_a_conflict_is_repeated_without_data_from_the_moment_that_its_channel_is_emptied(tmp_path: Path) -> None:
    wrong = replace(publish(seq=1), key="k", expect=7)
    async with opened(tmp_path) as log:
        await put(log, replace(publish("secret"), key="k"))
        for is_there in (True, False):
            (verdict,) = await put(log, wrong, producer=PRODUCER)
            assert isinstance(verdict, WireError)
            assert (verdict.details["offset"], "data" in verdict.details) == (1, is_there)
            await log.clear("lobby")  # and nothing is purged yet


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


@pytest.mark.parametrize("table", ["producers", "idempotency"])
async def test_however_many_are_to_be_forgotten_none_waits_until_they_are_looked_for_again(
    tmp_path: Path, table: str
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as log:
        rows = [(f"{number}", 1, b"", -1e15) for number in range(ROWS_DELETED_PER_STEP + 1)]
        log._connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", rows)
        clock.s += FORGET_EVERY_S
        while await log.maintain():
            pass
        assert log._connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


async def test_an_idempotency_key_is_known_for_a_day_and_then_deleted(tmp_path: Path) -> None:
    clock = Clock()

    async def verdict_on_request() -> Verdict:
        request = Submission(lambda _: None, once=Once(b"its key", b"the rest of it"))
        request.add(publish(), 1)
        await log.append([request])
        return request.verdicts[0]

    async def count_kept() -> int:
        clock.s += FORGET_EVERY_S
        await log.maintain()
        (count,) = log._writer._db.execute("SELECT count(*) FROM idempotency").fetchone()
        return int(count)

    async with opened(tmp_path, clock) as log:
        assert await verdict_on_request() == 1
        clock.ms += 86_400_000
        assert (await count_kept(), await verdict_on_request()) == (1, Duplicate(1))
        clock.ms += 1
        assert (await verdict_on_request(), await verdict_on_request()) == (2, Duplicate(2))
        clock.ms += 86_400_001
        assert await count_kept() == 0


@pytest.mark.parametrize("bytes_max", [20_000, 2000], ids=["which is room for some", "of which one takes more"])
async def test_what_producers_verdicts_take_in_memory_is_bounded(tmp_path: Path, bytes_max: int) -> None:
    async with opened(tmp_path, producer_cache_bytes_max=bytes_max) as log:
        for number in range(50):
            many = [publish(seq=seq) for seq in range(1, UNANSWERED_MAX + 1)]
            assert len(await put(log, *many, producer=f"{number:016}")) == UNANSWERED_MAX
        kept = log._writer._lookup._producers
        assert sum(map(_memory_of, kept.values())) <= bytes_max
        assert bool(kept) == (bytes_max == 20_000)
        again = await put(log, publish(seq=1), publish(seq=UNANSWERED_MAX + 1), producer="0" * 16)
        assert again == [Duplicate(1), 50 * UNANSWERED_MAX + 1]
