"""How a load is shared out: who follows what, and what each worker has of it."""

import json
from math import ceil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.loadtest.fake_server import fake_server
from tests.loadtest.worker_here import here
from trisync.loadtest import scenarios
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.mischief import VICTIM_EVERY, Mischief
from trisync.loadtest.plan import Load, Open, Plan, Settle, Share
from trisync.loadtest.scenarios import share_out
from trisync.loadtest.target import Target
from trisync.loadtest.worker import Worker

TARGET = Target(("127.0.0.1", 1), ("127.0.0.1", 2), None, None)


def shares(scenario: str, **plan: object) -> list[Share]:
    return share_out(Plan(scenario=scenario, **plan), TARGET, "run")  # type: ignore[arg-type]


def test_each_follows_as_many_channels_as_it_should_however_unpopular_they_are() -> None:
    (share,) = shares("mixed", subscribers=20, channels=200, follow=50, zipf=6.0)
    assert [len(set(channels)) for channels in share.subscribers] == [50] * 20


@pytest.mark.parametrize("draws", [0, 8])
def test_popular_channels_are_followed_by_zipfs_law(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "DRAWS", draws)
    (share,) = shares("mixed", subscribers=5000, channels=3, follow=2, zipf=1.0)
    # Chosen one after the other, weights 6, 3 and 2: 6/11 · 3/5 + 3/11 · 6/8 have the first two, and so on.
    expected = {(0, 1): 0.532, (0, 2): 0.339, (1, 2): 0.129}
    for channels, part in expected.items():
        assert share.subscribers.count([*channels]) / 5000 == pytest.approx(part, abs=0.02)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_subscriber_in_so_many_is_a_victim_however_they_are_shared_out(workers: int) -> None:
    victims = 0
    for share in shares("soak", publishers=1, subscribers=7, channels=4, faults=1.0, workers=workers):
        worker = Worker(share)
        victims += sum(worker._is_victim(number) for number in range(len(share.subscribers)))
        worker._loop.close()
    assert victims == ceil(7 / VICTIM_EVERY)


def test_a_worker_that_has_no_publisher_makes_its_share_of_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    for trouble in ("_stall", "_vanish"):
        monkeypatch.setattr(Mischief, trouble, Mischief._cut_off)
    monkeypatch.setattr(Mischief, "_intrude", lambda mischief: None)
    with here(monkeypatch, "soak", number=1, publishers=1, subscribers=20, workers=2, faults=400.0) as worker:
        worker.obey(Open())
        before = worker.totals.opened
        worker.obey(Load(seconds=0.3))
        worker.obey(Settle([0]))
        assert worker.totals.opened > before  # who was cut off has come back


@pytest.mark.parametrize("concurrency", [4, 6, 7, 256])
def test_handshakes_under_way_at_once_are_as_many_as_were_asked_for(concurrency: int) -> None:
    found = shares("connect", connections=1000, concurrency=concurrency, workers=4)
    assert sum(share.concurrency for share in found) == concurrency
    assert min(share.concurrency for share in found) >= 1


def test_there_are_no_more_workers_than_hands_to_shake(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with fake_server("none") as fake:
        options = ["connect", "--connections", "5", "--concurrency", "1", "--workers", "4", "--quiet"]
        options += ["--web", f"127.0.0.1:{fake.port}", "--json", str(file)]
        done = CliRunner().invoke(loadtest_command, options)
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_bytes())["plan"]["workers"] == 1
