"""What a worker measures when, and what a recorder makes of it."""

import sys

import pytest

from tests.loadtest.worker_here import here
from trisync.loadtest import plan as planning
from trisync.loadtest.measuring import SAMPLES_PER_READ, Gauge, note
from trisync.loadtest.plan import Load, Open, Settle, clock_us
from trisync.loadtest.problems import Problems
from trisync.loadtest.recording import Recorder, percentile_us


def test_a_measured_part_that_ends_before_the_next_tick_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "TICK_S", 1.5)
    recorder = Recorder(1.5, lambda: (None, 0.0))
    with here(monkeypatch, "fanout", publishers=1, subscribers=1, window=8, duration_s=12.0) as worker:
        worker.obey(Open())
        from_us = clock_us() + 50_000
        until_us = from_us + 1_000_000
        recorder.measure(from_us, until_us)
        worker.obey(Load(seconds=1.1, measure_from_us=from_us, measure_until_us=until_us))
        for tick in worker.ticks:
            recorder.add(tick)
    throughput = recorder.throughput()
    assert throughput.measured_s > 0
    assert throughput.delivered_per_s > 0
    assert recorder.latencies


def test_a_connection_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with here(monkeypatch, "fanout", publishers=2, subscribers=3, connections=4, channels=3, follow=2) as worker:
        worker.obey(Open())
        assert worker.totals.opened == 9
        worker.obey(Settle([0, 0, 0]))
        assert worker.totals.opened == 9


def test_so_many_messages_are_all_published_however_long_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with here(monkeypatch, "resume", publishers=1, subscribers=1, window=8) as worker:
        worker.obey(Open())
        worker.obey(Load(seconds=0.0, messages=10_000))
        assert worker.totals.acked == 10_000


def test_latencies_are_of_messages_that_were_due_while_it_was_measured() -> None:
    gauge = Gauge(0, Problems())
    gauge.measure_from_us, gauge.measure_until_us = 1000, 2000
    gauge.now_us = 5000
    for due_us in (999, 1000, 1999, 2000):
        gauge.delivered_one(due_us)
    assert gauge.tick(0, 0.0).latencies == {4000: 1, 3001 >> 1 << 1: 1}
    assert gauge.totals.delivered == 4


def latencies_of_one_read(dues_us: list[int], first: int, samples_per_read: int = SAMPLES_PER_READ) -> dict[int, int]:
    gauge = Gauge(0, Problems())
    gauge.measure_until_us = 10**9
    gauge.now_us = 1000
    gauge.samples_per_read = samples_per_read
    gauge.delivered(dues_us, first, len(dues_us))
    assert gauge.totals.delivered == len(dues_us) - first
    return gauge.tick(0, 0.0).latencies


def test_of_many_messages_in_one_read_a_few_stand_for_all_and_the_oldest_and_the_newest_for_themselves() -> None:
    # 1 and 1, and between them six of 166 or 167, by the one in their middle.
    assert latencies_of_one_read([-1, *range(1000)], 1) == {
        1000: 1,
        1: 1,
        916: 166,
        750: 166,
        584: 167,
        417: 166,
        251: 166,
        85: 167,
    }


@pytest.mark.parametrize("count", range(1, 12))
def test_of_few_messages_in_one_read_each_stands_for_itself(count: int) -> None:
    sampled = latencies_of_one_read([*range(count)], 0)
    assert (sum(sampled.values()), max(sampled), min(sampled)) == (count, 1000, 1001 - count)
    assert count > SAMPLES_PER_READ + 2 or set(sampled.values()) == {1}


def test_in_an_open_loop_every_message_of_a_read_is_measured() -> None:
    every = dict.fromkeys(range(1, 1001), 1)
    assert latencies_of_one_read([*range(1000)], 0, samples_per_read=sys.maxsize) == every


def test_a_sketch_keeps_three_digits() -> None:
    sketch: dict[int, int] = {}
    note(sketch, 1_234_567)
    (kept,) = sketch
    assert kept == pytest.approx(1_234_567, rel=1e-3)
    assert percentile_us({10: 98, 20: 1, 30: 1}, 99) == 20
    assert percentile_us({}, 50) is None
