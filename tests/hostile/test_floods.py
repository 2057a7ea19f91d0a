"""Publishers that flood: whoever publishes once in a while is served as if there were few of them.

Counted in batches and turns, not in seconds: those are for `tools/loadtest.py fairness`.
"""

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import MemoryLog
from tests.hostile.memory_doors import MemoryDoors, MemoryStream, memory_doors
from tests.turns import counted_turns
from trisync.wire.console import visible
from trisync.wire.dialects import skip_blanks
from trisync.wire.protocol import decode_request

FLOODERS = 15
LINE = b'{"op":"publish","channel":"flood","data":"%b"}\n' % (b"x" * 100)
POLITE = b'{"op":"publish","id":1,"channel":"polite","data":1}\n'


class HeldLog:
    """A log whose commits pass one at a time."""

    def __init__(self, doors: MemoryDoors) -> None:
        log = doors.broker._log
        assert isinstance(log, MemoryLog)
        self.log = log
        self.log.gate = trio.Event()

    async def let_one_batch_pass(self) -> None:
        """Commit the batch under way; the next one is then under way."""
        gate, self.log.gate = self.log.gate, trio.Event()
        gate.set()
        await wait_all_tasks_blocked()

    def stored(self, channel: str) -> int:
        """How many messages a channel has."""
        return len(self.log.messages.get(channel, []))


async def read_on(stream: MemoryStream) -> None:
    async for _ in stream:
        pass


async def flood(doors: MemoryDoors, nursery: trio.Nursery) -> None:
    """Let many connections have more to say than the server takes, and wait until it takes no more."""
    for _ in range(FLOODERS):
        stream = doors.connect("tcp")
        await stream.send_all(LINE * 2000)
        nursery.start_soon(read_on, stream)
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("queue_bytes_max", [1024 * 1024, 2**40], ids=["the queue is full", "it never is"])
async def test_a_polite_publisher_is_in_the_next_batch_each_time(
    queue_bytes_max: int, autojump_clock: MockClock
) -> None:
    async with (
        memory_doors(batch_messages_max=2000, queue_bytes_max=queue_bytes_max) as doors,
        trio.open_nursery() as nursery,
    ):
        held = HeldLog(doors)
        await flood(doors, nursery)
        polite = doors.connect("tcp")
        for number in range(1, 11):
            await polite.send_all(POLITE)
            await wait_all_tasks_blocked()  # it is read, though the disk is busy and others have filled the queue
            await held.let_one_batch_pass()  # the one under way
            await held.let_one_batch_pass()
            assert held.stored("polite") == number
            assert json.loads(await polite.receive_some()) == {"op": "ok", "id": 1, "offset": number}
        assert held.stored("flood") < FLOODERS * 2000  # who floods is not done yet
        assert held.stored("flood") > 5000
        nursery.cancel_scope.cancel()


async def test_who_only_asks_is_answered_while_publishers_have_filled_the_queue(autojump_clock: MockClock) -> None:
    async with memory_doors(queue_bytes_max=1024 * 1024) as doors, trio.open_nursery() as nursery:
        HeldLog(doors)
        await flood(doors, nursery)
        asking = doors.connect("tcp")
        for _ in range(3):
            await asking.send_all(b'{"op":"ping","id":1}\n{"op":"subscribe","id":2,"channel":"other"}\n')
            answers = b""
            while answers.count(b"\n") < 2:
                answers += await asking.receive_some()
            assert answers.startswith(b'{"op":"pong","id":1}\n{"op":"ok","id":2,')
        nursery.cancel_scope.cancel()


async def test_others_have_turns_while_many_requests_that_came_together_are_answered(autojump_clock: MockClock) -> None:
    count = 100
    async with memory_doors() as doors, counted_turns() as turns:
        flooder = doors.connect("web")
        await flooder.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < count:
            answers += await flooder.receive_some()
        assert turns() >= count


@pytest.mark.parametrize("asked", [b"POST /channels/c/messages", b"GET /channels/c/messages", b"GET /health"])
async def test_others_have_turns_while_a_body_in_tiny_chunks_is_read(asked: bytes, autojump_clock: MockClock) -> None:
    count = 100
    async with memory_doors() as doors, counted_turns() as turns:
        flooder = doors.connect("web")
        head = asked + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        await flooder.send_all(
            head + count * b"1\r\n1\r\n" + b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answers = b""
        while answers.count(b"HTTP/1.1 20") < 2:
            answers += await flooder.receive_some()
        assert turns() >= count


def steps_of(work: Callable[[], object]) -> int:
    """How many steps of Python some work takes: calls, lines and returns."""
    steps = 0

    def count_steps(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal steps
        steps += 1
        return count_steps

    before = sys.gettrace()
    sys.settrace(count_steps)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("data", [b"[]", b'{"a":[1]}', b'"["', b'{"\\"]":"\\\\"}'])
def test_a_request_of_many_brackets_takes_no_step_of_python_for_each(data: bytes) -> None:
    payload = b'{"op":"publish","channel":"lobby","data":[' + b",".join([data] * 1000) + b",[]]}"
    assert 0 < steps_of(lambda: decode_request(payload)) < 200


@pytest.mark.parametrize("blank", [b"\xef\xbb\xbf", b" \xef\xbb\xbf\t"])
def test_many_blanks_before_the_first_word_take_no_step_of_python_for_each(blank: bytes) -> None:
    assert 0 < steps_of(lambda: skip_blanks(blank * 1000)) < 200


@pytest.mark.parametrize("text", ["\x7f", "a\x1b", "é\x80", "".join(map(chr, range(0xE000, 0xF000)))])
def test_a_message_of_many_control_characters_takes_no_step_of_python_for_each(text: str) -> None:
    assert 0 < steps_of(lambda: visible(text * 1000)) < 200
