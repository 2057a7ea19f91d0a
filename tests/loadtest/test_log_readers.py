"""Reading the log back, page by page: what is asked, what ends it, and what is said of what was not read."""

import json
from typing import Any, cast

import pytest

from tests.loadtest.test_trails import Line, message
from trisync.loadtest import log_readers
from trisync.loadtest.clients import Surroundings
from trisync.loadtest.log_readers import LogReader, Reading
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.plan import Block, Finish, Unread
from trisync.loadtest.problems import Problem, Problems

FIRST, SECOND = Block(0, 1, 5), Block(0, 1000, 1003)


class Desk:
    """A worker's readers of some blocks, and the server's side of their conversations."""

    def __init__(self, *more: Block) -> None:
        self.problems = Problems()
        self.gauge = Gauge(0, self.problems)
        self.around = Surroundings(self.gauge, lambda client: pytest.fail("it has connections enough"))
        links = [cast(Any, Line("lines")) for _ in range(3)]
        self.reading = Reading(self.around, ["c"], Finish([FIRST, SECOND, *more], seconds=60.0), 0, 1, links)

    def open(self) -> list[LogReader]:
        for reader in self.reading.readers:
            reader.open()
        return self.reading.readers

    def asked(self, reader: LogReader) -> dict[str, Any]:
        """What a reader has asked at last."""
        asked: dict[str, Any] = json.loads(cast(Any, reader.link).sent[-1])
        return asked

    def answer(self, reader: LogReader, *offsets: int, more: bool = False, **facts: object) -> None:
        """Answer it, with these messages."""
        page = [json.loads(message(offset)) for offset in offsets]
        whole = {"op": "ok", "id": self.asked(reader)["id"], "epoch": "e", "offset": 1 << 50} | facts
        whole |= {"messages": page, "more": more}
        reader.receive(memoryview(json.dumps(whole).encode() + b"\n"))

    def ranges(self) -> list[tuple[int, int]]:
        """The blocks that were read: their numbers, and how many messages each had."""
        return [(tally.block, tally.count) for tally in self.reading.ledger.blocks()]


def test_a_block_is_read_in_as_many_pages_as_it_takes() -> None:
    desk = Desk()
    first, second = desk.open()
    assert (desk.asked(first)["since"], desk.asked(first)["limit"]) == (0, 5)
    desk.answer(first, 1, 2, more=True)
    assert (desk.asked(first)["since"], desk.asked(first)["limit"]) == (2, 3)
    desk.answer(first, 3, 4, 5, more=True)
    assert first not in desk.around.pending
    assert (desk.asked(second)["since"], desk.asked(second)["limit"]) == (999, 4)
    desk.answer(second, 1000, 1001, 1002, 1003)
    desk.reading.finish()
    assert desk.ranges() == [(0, 5), (1000, 4)]
    assert (desk.reading.unread, desk.problems.listed()) == ([], [])


def test_a_page_without_an_end_is_the_end_of_its_block() -> None:
    desk = Desk()
    first, _ = desk.open()
    desk.answer(first, 1, 2, more=True)
    desk.answer(first, more=True)
    (problem,) = desk.problems.listed()
    assert (problem.kind, problem.count) == ("unstored", 3)
    assert problem.examples == ["c: offset 3 is not in the log, nor what is behind it"]


def test_of_a_log_that_has_lost_its_end_it_is_said_what_is_missing_and_nothing_else() -> None:
    desk = Desk()
    desk.reading.trimmed = {0: 1001}
    _, second = desk.open()
    desk.answer(second, offset=500)
    (problem,) = desk.problems.listed()
    assert (problem.kind, problem.count) == ("unstored", 4)


def test_what_there_is_no_time_for_is_left_out_also_in_the_midst_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    first, second = desk.open()
    monkeypatch.setattr(log_readers, "clock_us", lambda: 1 << 62)
    desk.answer(first, 1, 2, more=True)
    desk.answer(second, 1000, 1001, 1002, 1003)
    desk.reading.finish()
    assert desk.ranges() == [(1000, 4)]
    assert (desk.reading.unread, desk.problems.listed()) == ([Unread(FIRST, "late")], [])


@pytest.mark.parametrize(("facts", "why"), [({"trimmed": 3}, "trimmed"), ({"epoch": "another"}, "replaced")])
def test_what_the_server_no_longer_has_is_left_out_and_reading_goes_on(facts: dict[str, Any], why: Any) -> None:
    desk = Desk(Block(0, 2000, 2999))
    desk.around.epoch = "e"
    first, _ = desk.open()
    desk.gauge.moved_us = 0
    desk.answer(first, 4, 5, **facts)
    assert desk.asked(first)["since"] == 1999
    assert desk.gauge.moved_us > 0, "or the reading of a log that is trimmed for long would count as stalled"
    assert (desk.reading.unread, desk.problems.listed()) == ([Unread(FIRST, why)], [])


def test_who_loses_the_connection_leaves_one_block_unchecked_and_the_others_to_the_others() -> None:
    desk = Desk()
    first, second = desk.open()
    first.ended("reset", "closed")
    desk.answer(second, 1000, 1001, 1002, 1003)
    desk.reading.finish()
    assert desk.ranges() == [(1000, 4)]
    assert desk.problems.listed() == [
        Problem("closed", 1, ["reader 0.0: reset"]),
        Problem("unchecked", 5, ["c: offsets 1 to 5 were not read back"]),
    ]


def test_a_wide_block_is_read_in_pages_that_a_server_allows() -> None:
    desk = Desk(Block(0, 10_000_000, 10_009_999))
    first, _ = desk.open()
    desk.answer(first, 1, 2, 3, 4, 5)
    assert (desk.asked(first)["since"], desk.asked(first)["limit"]) == (9_999_999, 1000)
