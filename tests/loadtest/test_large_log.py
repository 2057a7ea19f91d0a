"""What a large log costs: how one is made, that every publish is seen to be acknowledged, and the table."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.loadtest.fake_server import fake_server
from trisync.loadtest import large_log
from trisync.loadtest.endings import NO_RUN
from trisync.loadtest.large_log import WINDOW, Costs, PublishFailed, figures, fill, large_log_command, publish_all
from trisync.loadtest.target import TargetRefused, serving
from trisync.storage.sqlite_opening import FILE_NAME

ROOMS = [f"room{number}" for number in range(7)]


def counts(folder: Path) -> list[int]:
    """How many messages each channel of a log has."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as db:
        query = "SELECT count(*), max(offset) FROM log GROUP BY channel ORDER BY channel"
        found = db.execute(query).fetchall()
    assert all(count == newest for count, newest in found)
    return [count for count, _ in found]


async def test_a_log_is_filled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_log, "FILL_BATCH", 4)
    await fill(tmp_path, ROOMS, 23)
    assert counts(tmp_path) == [4, 4, 3, 3, 3, 3, 3]


async def test_what_is_published_is_in_the_log_that_was_there(tmp_path: Path) -> None:
    await fill(tmp_path, ROOMS, 14)
    names = [ROOMS[number % 3] for number in range(3 * WINDOW)]
    async with serving(tmp_path, "full") as target:
        assert await publish_all(target.tcp, names) > 0
    assert counts(tmp_path) == [WINDOW + 2] * 3 + [2] * 4


@pytest.mark.parametrize(("fault", "said"), [("refuses", "answered by .*error"), ("silent", "had no answer")])
async def test_a_publish_that_is_not_acknowledged_is_no_measurement(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_log, "ANSWER_S", 0.5)
    with fake_server(fault) as fake, pytest.raises(PublishFailed, match=said):
        await publish_all(("127.0.0.1", fake.port), ["lobby"] * 100)


def test_the_table_has_medians_and_their_ratio() -> None:
    empty = [Costs(0.2, 10e-6, 20e-6), Costs(0.4, 30e-6, 20e-6), Costs(0.3, 20e-6, 90e-6)]
    large = [Costs(0.6, 20e-6, 30e-6)] * 3
    shown = [figure[1:] for figure in figures(empty, large)]
    assert shown == [("300.0", "600.0", "2.00"), ("20.0", "20.0", "1.00"), ("20.0", "30.0", "1.50")]


def test_the_command_measures_and_says_what_it_compared() -> None:
    options = ["--messages", "500", "--channels", "50", "--publishes", "100", "--rounds", "1"]
    done = CliRunner().invoke(large_log_command, options)
    assert done.exit_code == 0, done.output
    assert "500 messages in 50 channels" in done.output
    assert done.output.count("│") >= 12


def test_the_command_says_why_there_was_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TargetRefused("the server did not start: no reason")

    monkeypatch.setattr(large_log, "serving", refuse)
    done = CliRunner().invoke(large_log_command, ["--messages", "5", "--channels", "5"])
    assert (done.exit_code, done.output) == (NO_RUN, "Error: the server did not start: no reason\n")
