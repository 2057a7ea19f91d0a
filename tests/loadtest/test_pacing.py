"""Open loops: what was due counts whenever the server takes it, and only its own lateness is the generator's."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.loadtest.worker_here import WorkerHere, here
from trisync.loadtest import pacing
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.pacing import Pacer
from trisync.loadtest.plan import Load, Open, clock_us
from trisync.loadtest.problems import Problems
from trisync.loadtest.publishers import Publisher

MS = 1000


class Clock:
    """Stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_us = 0
        monkeypatch.setattr(pacing, "clock_us", lambda: self.now_us)


class FakePublisher:
    full = False

    def __init__(self) -> None:
        self.dues_us: list[int] = []

    def publish(self, count: int, due_us: int) -> None:
        self.dues_us.append(due_us)


def paced(publisher: FakePublisher, until_us: int) -> tuple[Pacer, Gauge]:
    """A message a millisecond."""
    gauge = Gauge(0, Problems())
    gauge.measure_until_us = until_us
    return Pacer([cast(Any, publisher)], 1000.0, 0.0, gauge, until_us), gauge


def test_what_a_stalled_server_did_not_take_is_sent_behind_the_end_with_its_own_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, publisher = Clock(monkeypatch), FakePublisher()
    pacer, gauge = paced(publisher, 10 * MS)
    clock.now_us = 3 * MS
    pacer.send_due()
    publisher.full = True
    clock.now_us = 20 * MS
    pacer.send_due()
    assert pacer.unsent == 6
    assert pacer.wait_s() == float("inf")  # until an event: the loop does not spin
    publisher.full = False
    clock.now_us = 30 * MS
    pacer.send_due()
    assert publisher.dues_us == [ms * MS for ms in range(10)]
    assert pacer.unsent == 0
    # Of the server's 17 ms and more, nothing is the generator's.
    assert max(gauge.tick(0, 0.0).lateness) < 4 * MS


def test_a_generator_that_is_late_by_itself_says_so() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, publisher = Clock(monkeypatch), FakePublisher()
        pacer, gauge = paced(publisher, 10 * MS)
        clock.now_us = 9 * MS
        pacer.send_due()
    assert sorted(gauge.tick(0, 0.0).lateness.values()) == [1] * 10


def test_lateness_is_of_the_measured_part() -> None:
    gauge = Gauge(0, Problems())
    gauge.measure_from_us, gauge.measure_until_us = 10, 20
    for due_us in (9, 10, 19, 20):
        gauge.sent_late(due_us, due_us)
    assert gauge.tick(0, 0.0).lateness == {10: 1, 19: 1}


@pytest.fixture
def paced_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerHere]:
    with here(monkeypatch, "latency", publishers=1, subscribers=1, rate=1000.0, patience_s=0.3) as worker:
        yield worker


@pytest.mark.parametrize("number", [0, 1])
def test_every_message_is_measured_also_where_nobody_publishes(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dues_us = [*range(100)]
    with here(monkeypatch, "latency", number=number, publishers=1, subscribers=2, workers=2, rate=1000.0) as worker:
        gauge = worker._worker._gauge
        gauge.measure_until_us = 100
        gauge.now_us = 100
        gauge.delivered(dues_us, 0, 100)
        assert gauge.tick(0, 0.0).latencies == dict.fromkeys(range(1, 101), 1)


def test_a_load_is_not_over_before_what_was_due_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with here(monkeypatch, "latency", publishers=1, subscribers=1, rate=1000.0) as worker:

        def full(publisher: Publisher) -> bool:
            return clock_us() < worker._worker._load_until_us  # in time, nothing is taken

        worker.obey(Open())
        monkeypatch.setattr(Publisher, "full", property(full))
        worker.obey(Load(seconds=0.05))
        assert (worker.totals.acked, worker.totals.unsent) == (50, 0)


def test_what_is_never_taken_is_counted_when_patience_ends(
    paced_worker: WorkerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced_worker.obey(Open())
    monkeypatch.setattr(Publisher, "full", True)
    paced_worker.obey(Load(seconds=0.05))
    assert (paced_worker.totals.acked, paced_worker.totals.unsent) == (0, 50)
