"""A worker in this process, loading a fake server: what it reports is looked at order by order."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from tests.loadtest.fake_server import fake_server
from trisync.loadtest import worker as working
from trisync.loadtest.plan import AnyOrder, Done, Finish, Plan, Report, Tick, Totals
from trisync.loadtest.scenarios import share_out
from trisync.loadtest.target import Target
from trisync.loadtest.worker import Worker


class WorkerHere:
    """One worker."""

    def __init__(self, worker: Worker, reports: list[Report]) -> None:
        self._worker = worker
        self.reports = reports

    @property
    def totals(self) -> Totals:
        """What it has counted."""
        return self.ticks[-1].totals

    @property
    def ticks(self) -> list[Tick]:
        """Its ticks until now."""
        return [report for report in self.reports if isinstance(report, Tick)]

    def obey(self, order: AnyOrder) -> Done:
        """Have an order carried out."""
        self._worker.obey(order)
        while self._worker.busy:
            self._worker.turn()
        done = self.reports[-1]
        assert isinstance(done, Done)
        return done


@contextmanager
def here(
    monkeypatch: pytest.MonkeyPatch, scenario: str, fault: str = "none", number: int = 0, **plan: object
) -> Iterator[WorkerHere]:
    """A worker for a plan, over lines; one of its workers, of which the others do not exist."""
    reports: list[Report] = []
    crew = msgspec.json.Decoder(Report)
    monkeypatch.setattr(working, "_say", lambda report: reports.append(crew.decode(msgspec.json.encode(report))))
    with fake_server(fault) as fake:
        door = ("127.0.0.1", fake.port)
        whole = Plan(scenario=scenario, transport="lines", **plan)  # type: ignore[arg-type]
        share = share_out(whole, Target(door, door, None, None), "run")[number]
        worker = WorkerHere(Worker(share), reports)
        try:
            yield worker
        finally:
            worker.obey(Finish())
            worker._worker._loop.close()
