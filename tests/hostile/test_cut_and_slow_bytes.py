"""Bytes that are cut at every place, and bytes that come one a second: in memory, in the time of a test's clock."""

import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hostile.memory_doors import MemoryDoors, MemoryStream, exchange, memory_doors
from tests.hostile.raw_peers import CONTINUATION, FIN, PING, TEXT, UPGRADE, frame
from trisync.storage.log import Run, Submission

PUBLISH = '{"op":"publish","id":1,"channel":"lobby","data":"ä€😀"}'.encode()
WATCH = b'{"op":"subscribe","id":2,"channel":"lobby","since":0}'
ASK = b'{"op":"ping","id":3}'


def framed(payload: bytes) -> bytes:
    return (len(payload) + 4).to_bytes(4, "big") + payload


CONVERSATIONS = {
    "lines": PUBLISH + b"\r\n" + WATCH + b"\n\n" + ASK + b"\n",
    "lines behind blanks and telnet": b"\xef\xbb\xbf \xff\xfd\x01\t" + PUBLISH + b"\n" + ASK + b"\n",
    "frames": framed(PUBLISH) + framed(WATCH) + framed(ASK),
    "websocket": UPGRADE
    + frame(FIN | TEXT, PUBLISH)
    + frame(TEXT, WATCH[:9])
    + frame(FIN | PING, b"p")
    + frame(FIN | CONTINUATION, WATCH[9:])
    + frame(FIN | TEXT, ASK.ljust(130)),
    "console": "/name ann\r\nhello ä€😀\r\n/history 5\r\n/json\r\n".encode() + ASK + b"\n",
    "HTTP": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: 1\r\n\r\nHEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def door_of(conversation: str) -> str:
    return "web" if conversation in ("websocket", "HTTP") else "tcp"


@asynccontextmanager
async def one_after_the_other(caplog: pytest.LogCaptureFixture) -> AsyncIterator[MemoryDoors]:
    """Doors at which nobody may be left in the end, and nothing have gone wrong."""
    caplog.set_level(logging.WARNING)
    async with memory_doors(linger_s=0.1) as doors:
        yield doors
        while len(doors.registry):
            await doors.registry.left()
        assert await exchange(doors.connect("tcp"), [ASK + b"\n"]) == b'{"op":"pong","id":3}\n'
    assert caplog.records == []


OBJECT = re.compile(rb'{"op":[^{}]*}')


def in_any_order(said: bytes) -> list[bytes]:
    """What was said: the answers in whatever order, as some may overtake others, and the bytes around them.

    Digits are left out: whether a head is 0 or 1 depends on who was faster, the subscribe or the disk.
    """
    answers = [re.sub(rb"[0-9]", b"#", answer) for answer in OBJECT.findall(said)]
    return [*sorted(answers), bytes(sorted(OBJECT.sub(b"", said)))]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
async def test_a_conversation_cut_at_any_byte_is_the_same_conversation(
    conversation: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    data = CONVERSATIONS[conversation]

    async def hold(pieces: list[bytes]) -> list[bytes]:
        async with one_after_the_other(caplog) as doors:
            return in_any_order(await exchange(doors.connect(door_of(conversation)), pieces))

    whole = await hold([data])
    assert any(whole)
    for place in range(1, len(data)):
        assert await hold([data[:place], data[place:]]) == whole, data[:place]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
async def test_a_client_may_be_gone_behind_any_byte(
    conversation: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    data = CONVERSATIONS[conversation]
    async with one_after_the_other(caplog) as doors:
        for place in range(len(data)):
            stream = doors.connect(door_of(conversation))
            await stream.send_all(data[:place])
            await wait_all_tasks_blocked()
            if place % 2:
                await stream.send_eof()  # it listens to the end, as netcat does
                async for _ in stream:
                    pass
            await stream.aclose()


# One byte a second

POST = b"POST /channels/lobby/messages HTTP/1.1\r\nHost: localhost\r\n"
SLOW = {
    "the head of a request": ("web", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Filling: ", b"HTTP/1.1 408 "),
    "the head of an upgrade": ("web", UPGRADE[:-2] + b"X-Filling: ", b"HTTP/1.1 408 "),
    "the body of a request": ("web", POST + b"Content-Length: 100000\r\n\r\n", b"HTTP/1.1 408 "),
    "a line": ("tcp", b'{"op":"publish","channel":"lobby","data":"', b'"code":"bad_request"'),
    "the length of a frame": ("tcp", b"\0\0\x10\0", b'"code":"bad_request"'),
    "a frame": ("tcp", framed(b"x" * 10_000)[:50], b'"code":"bad_request"'),
    "a WebSocket frame": ("web", frame(FIN | TEXT, b"x" * 60_000)[:50], b'"code":"bad_request"'),
    "a WebSocket message in fragments": ("web", frame(TEXT, b"{") + frame(CONTINUATION, b" ") * 50, b"bad_request"),
}
DEADLINE_S = 10
"""Of `handshake_s` and `half_message_s`, by default."""


async def drip(stream: MemoryStream, data: bytes) -> None:
    """Send a byte a second, and go on when the data is over."""
    for byte in data.ljust(1000, b"x"):
        try:
            await stream.send_all(bytes((byte,)))
        except trio.BrokenResourceError:
            return
        await trio.sleep(1)


@pytest.mark.parametrize("what", SLOW)
async def test_what_comes_a_byte_a_second_is_refused_at_its_deadline(what: str, autojump_clock: MockClock) -> None:
    door, data, answer = SLOW[what]
    async with memory_doors() as doors, trio.open_nursery() as nursery:
        stream = doors.connect(door)
        if "WebSocket" in what:
            await stream.send_all(UPGRADE)
            await wait_all_tasks_blocked()
        began = trio.current_time()
        nursery.start_soon(drip, stream, data)
        said = b""
        with trio.fail_after(3 * DEADLINE_S):
            while answer not in said:
                chunk = await stream.receive_some()
                assert chunk, said
                said += chunk
        assert DEADLINE_S <= trio.current_time() - began <= DEADLINE_S + 1
        async for _ in stream:
            pass
        assert trio.current_time() - began <= DEADLINE_S + 3  # it lingers for a second at most
        nursery.cancel_scope.cancel()


async def test_a_large_body_may_come_slowly(autojump_clock: MockClock) -> None:
    body = b'"' + b"x" * 500_000 + b'"'
    async with memory_doors() as doors:
        stream = doors.connect("web")
        began = trio.current_time()
        await stream.send_all(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 50_000):
            await trio.sleep(0.7 * DEADLINE_S)
            await stream.send_all(body[start : start + 50_000])
        assert trio.current_time() - began > 7 * DEADLINE_S
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 201 ")
        await stream.aclose()


async def test_a_crowd_of_slow_heads_hold_nobody_up(autojump_clock: MockClock) -> None:
    async with memory_doors() as doors, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(drip, doors.connect("web"), SLOW["the head of a request"][1])
            nursery.start_soon(drip, doors.connect("tcp"), SLOW["a line"][1])
        for _ in range(DEADLINE_S):
            await trio.sleep(0.7)
            began = trio.current_time()
            assert json.loads(await exchange(doors.connect("tcp"), [PUBLISH + b"\n"]))["op"] == "ok"
            assert trio.current_time() == began
        while len(doors.registry):
            await doors.registry.left()
        nursery.cancel_scope.cancel()


async def test_a_person_may_type_a_letter_a_second(autojump_clock: MockClock) -> None:
    async with memory_doors() as doors, trio.open_nursery() as nursery:
        stream = doors.connect("tcp")
        typed = b"so slowly that a machine would have been given up"
        nursery.start_soon(drip, stream, typed + b"\n")
        said = b""
        while b"\n" not in said:
            said += await stream.receive_some()
        assert said == b"#lobby 1 anonymous: " + typed + b"\n"
        assert trio.current_time() > len(typed) - 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "cut",
    [PUBLISH + b"\n" + ASK, framed(PUBLISH) + framed(ASK)[:-1], framed(PUBLISH) + b"\0\0", b"\xff\xfd\x01{}\n{"],
    ids=["a line", "a frame", "a length", "behind telnet"],
)
async def test_who_ends_in_the_middle_of_a_message_is_told_so(cut: bytes, autojump_clock: MockClock) -> None:
    async with memory_doors(linger_s=0.1) as doors:
        *answers, last = OBJECT.findall(await exchange(doors.connect("tcp"), [cut]))
        whole = await exchange(doors.connect("tcp"), [CONVERSATIONS["lines"]])
        with_lf_cr = await exchange(doors.connect("tcp"), [PUBLISH + b"\n\r"])
    assert (json.loads(last)["code"], b"cut short" in last) == ("bad_request", True)
    assert all(b"error" not in said for said in (whole, with_lf_cr, *answers[1:]))
    if PUBLISH in cut:
        assert json.loads(answers[0])["offset"] == 1, "an answer to what came before comes later"


async def test_who_ends_before_the_disk_is_done_gets_the_rest_in_order(autojump_clock: MockClock) -> None:
    async with memory_doors(linger_s=0.1) as doors:
        log = doors.broker._log
        append = log.append

        async def append_slowly(batch: Sequence[Submission]) -> list[Run]:
            await trio.sleep(60)
            return await append(batch)

        log.append = append_slowly  # type: ignore[method-assign]
        sent = b'{"op":"subscribe","channel":"lobby"}\n' + PUBLISH + b"\n{"
        said = await exchange(doors.connect("tcp"), [sent])
    assert re.findall(rb'"op":"(\w+)"', said) == [b"ok", b"message", b"error"]


async def test_a_person_is_told_that_their_last_line_had_no_end(autojump_clock: MockClock) -> None:
    async with memory_doors(linger_s=0.1) as doors:
        said = await exchange(doors.connect("tcp"), [b"hello\n", b"world"])
    assert b"hello" in said
    assert b"cut short" in said
    assert b"world" not in said
