"""Publishers: how much they send before they hear of it."""

import re
from typing import Any, cast

import pytest
from click.testing import CliRunner

from tests.loadtest.test_trails import Line
from trisync.loadtest import publishers
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.clients import Surroundings
from trisync.loadtest.endings import UNUSABLE
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.problems import Problems
from trisync.loadtest.publishers import BATCH, MESSAGE_BYTES_MIN, Publisher


class StalledLine(Line):
    """A link to a server that takes nothing until it is told to."""

    unsent = 0

    def send(self, data: bytes) -> None:
        self.sent += data.splitlines()
        self.unsent += len(data)


def publisher(message_bytes: int) -> tuple[Publisher, StalledLine]:
    line = StalledLine("lines")
    around = Surroundings(Gauge(0, Problems()), lambda client: cast(Any, line))
    one = Publisher(0, around, ["c"], [0], [], message_bytes, seed=1)
    one.link = cast(Any, line)
    return one, line


def answers(first: int, last: int) -> memoryview:
    return memoryview(b"".join(b'{"op":"ok","id":%d,"offset":%d}\n' % (id, id) for id in range(first, last + 1)))


@pytest.mark.parametrize(("message_bytes", "batch"), [(60, BATCH), (10_000, 10)])
def test_a_window_stops_where_the_server_takes_no_more_and_is_filled_when_it_does(
    message_bytes: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishers, "UNSENT_BYTES_MAX", 100_000)
    one, line = publisher(message_bytes)
    one.start(5000)
    sent = len(line.sent)
    assert sent % batch == 0
    assert 100_000 < line.unsent < 100_000 + 2 * batch * (message_bytes + 100)
    line.unsent = 0
    one.receive(answers(1, 10))
    assert len(line.sent) >= 2 * sent - batch


def test_a_window_is_full_and_no_fuller() -> None:
    one, line = publisher(60)
    one.start(300, 1000)
    assert len(line.sent) == 300
    one.receive(answers(1, 200))
    assert len(line.sent) == 500
    one.receive(answers(201, 500))
    one.receive(answers(501, 800))
    assert len(line.sent) == 1000


@pytest.mark.parametrize("message_bytes", [MESSAGE_BYTES_MIN, 60, 1000])
def test_every_message_is_of_the_size_that_was_asked_for(message_bytes: int) -> None:
    one, line = publisher(message_bytes)
    one.number = 9999
    one._sent[0] = 10**9
    one.publish(1, 10 * 365 * 86400 * 10**6)  # of a machine that has been up for ten years
    (request,) = line.sent
    assert len(re.search(rb'"data":(.*)}$', request)[1]) == message_bytes  # type: ignore[index]


def test_less_than_that_is_refused() -> None:
    options = ["fanout", "--web", "127.0.0.1:1", "--message-bytes", str(MESSAGE_BYTES_MIN - 1)]
    assert CliRunner().invoke(loadtest_command, options).exit_code == UNUSABLE
