"""A few rounds of what tools/torture.py does hundreds of."""

import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.torture.killing import AT_RANDOM, run_rounds
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
