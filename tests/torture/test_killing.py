"""A few rounds of what tools/torture.py does hundreds of."""

import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.torture.killing import AT_RANDOM, Totals, run_rounds
from tests.torture.points import POINTS, Point, killed_at, strace_works
from tests.torture.server import Server

needs_strace = pytest.mark.skipif(bool(strace_works()), reason=strace_works())


def quietly(done: int, problems: Sequence[str]) -> None:
    """Nobody watches."""


def test_servers_killed_at_random_under_load_lose_nothing_and_store_nothing_twice(tmp_path: Path) -> None:
    totals = run_rounds(4, tmp_path, seed=1, points=False, progress=quietly)
    assert totals.problems == []
    assert totals.kills[AT_RANDOM] > 2
    assert totals.acknowledged > 1000
    assert totals.delivered == totals.acknowledged * 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("starts_s", "said"),
    [([], "was not measured"), ([0.02, 0.03, 0.04], "took 30 ms (median), 40 ms at most")],
)
def test_of_starts_that_were_not_measured_there_are_no_figures(starts_s: list[float], said: str) -> None:
    totals = Totals(1, Counter({AT_RANDOM: 1}), 5, 0, 9, starts_s, [])
    assert f"a start after a kill {said}" in totals.summary()


@needs_strace
def test_servers_killed_at_named_points_under_load_lose_nothing_and_store_nothing_twice(tmp_path: Path) -> None:
    totals = run_rounds(6, tmp_path, seed=2, points=True, progress=quietly)
    assert totals.problems == []
    assert totals.acknowledged > 1000


@needs_strace
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_every_named_point_is_reached(tmp_path: Path, point: Point) -> None:
    with closing(Server(tmp_path, under=killed_at(point, tmp_path, 1))) as server:
        assert server.wait_ready() is None
        assert server.status == -signal.SIGKILL
