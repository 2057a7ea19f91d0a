"""What a worker measures when, and what a recorder makes of it."""

import pytest

from tests.loadtest.worker_here import here
from trisync.loadtest.plan import Load, Open, Settle, clock_us
from trisync.loadtest.recording import Recorder


def test_a_measured_part_that_ends_before_the_next_tick_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(0.25, lambda: (None, 0.0))
    with here(monkeypatch, "fanout", publishers=1, subscribers=1, window=8) as worker:
        worker.obey(Open())
        from_us = clock_us() + 50_000
        until_us = from_us + 150_000
        recorder.measure(from_us, until_us)
        worker.obey(Load(seconds=0.2, measure_from_us=from_us, measure_until_us=until_us))
        for tick in worker.ticks:
            recorder.add(tick)
    throughput = recorder.throughput()
    assert throughput.measured_s > 0
    assert throughput.delivered_per_s > 0
    assert recorder.latencies.get_total_count() > 0


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
