"""What is said of troubles that come, go, and come again."""

import logging

import pytest
import trio
from trio.testing import MockClock

from trisync.core.troubles import LINE_S, LINES_AT_ONCE, Troubles

FULL = OSError("disk full")


@pytest.fixture
def troubles() -> Troubles:
    return Troubles(logging.getLogger("troubles"))


async def test_a_trouble_that_comes_and_goes_all_the_time_does_not_fill_the_log(
    troubles: Troubles, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    for _ in range(10 * LINES_AT_ONCE):
        troubles.note("it is refused", FULL)
        troubles.note("it is refused", None)
    assert caplog.messages == ["it is refused: disk full", "it is refused no longer"] * (LINES_AT_ONCE // 2)
    for _ in range(5):
        mock_clock.jump(LINE_S)
        for _ in range(10):
            troubles.note("it is refused", FULL)
            troubles.note("it is refused", None)
    assert len(caplog.messages) == LINES_AT_ONCE + 5


@pytest.mark.parametrize("count", [LINES_AT_ONCE, LINES_AT_ONCE + 1])
async def test_how_a_trouble_is_in_the_end_is_said_if_later(
    troubles: Troubles, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock, count: int
) -> None:
    notes = [FULL, None] * count
    for problem in notes[:count]:
        troubles.note("it is refused", problem)
    await trio.sleep(LINE_S)
    for _ in range(3):
        troubles.note("it is refused", notes[count - 1])
    said = "it is refused: disk full" if notes[count - 1] else "it is refused no longer"
    assert caplog.messages[-1] == said
    assert len(caplog.messages) == count


async def test_one_trouble_takes_no_line_of_another(
    troubles: Troubles, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    for _ in range(LINES_AT_ONCE):
        troubles.note("it is refused", FULL)
        troubles.note("it is refused", None)
    troubles.note("maintenance fails", FULL)
    assert caplog.messages[-1] == "maintenance fails: disk full"
