"""Clients without a server: what becomes of them when their connections do not come about, or end."""

import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from tests.harness import PATIENCE_S
from tests.loadtest.test_trails import PING, Audience, Line, message, stream
from trisync.loadtest import clients
from trisync.loadtest.clients import SlowSubscriber, Speaker, Subscriber, Surroundings
from trisync.loadtest.links import Link, Loop
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.problems import Problem, Problems
from trisync.loadtest.trails import Trail
from trisync.loadtest.transports import Malformed


class PausableLine(Line):
    """A link without a socket, and with a reader that may pause."""

    paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class SlowReader:
    """A slow subscriber of one channel, and its timers."""

    def __init__(self, messages_per_s: float) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.line = cast(Any, PausableLine("lines"))
        gauge = Gauge(0, Problems())
        around = Surroundings(gauge, lambda client: self.line, lambda *timer: self.timers.append(timer))
        trail = Trail(0, "c", gauge, 1 << 20)
        self.subscriber = SlowSubscriber("s0", around, [trail], messages_per_s)
        self.subscriber.link = self.line

    def take(self, first: int, last: int) -> None:
        assert not self.line.paused
        messages = [message(offset) for offset in range(first, last + 1)]
        self.subscriber.receive(memoryview(stream("lines", messages)))


def test_a_slow_reader_takes_as_long_as_it_is_told_for_each_message_whatever_its_size() -> None:
    reader = SlowReader(messages_per_s=4)
    reader.take(1, 6)
    assert reader.line.paused
    ((seconds, resume),) = reader.timers
    assert seconds == 1.5
    resume()
    reader.subscriber.receive(memoryview(b'{"op":'))  # not a whole one yet
    assert not reader.line.paused


def test_a_slow_reader_reads_freely_once_it_is_awaited() -> None:
    reader = SlowReader(messages_per_s=0.001)
    reader.take(1, 5)
    reader.subscriber.expect({"c": 20})
    reader.take(6, 10)
    reader.take(11, 20)
    assert not reader.subscriber.around.pending


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def opened_towards(host: str, loop: Loop) -> tuple[Speaker, Problems]:
    """A client that has tried to connect, and what it found."""
    problems = Problems()
    around = Surroundings(Gauge(0, problems), lambda client: Link(loop, client, "lines", host, 2345), loop.after)
    speaker = Speaker("s0", around)
    speaker.open()
    loop.turn(0)
    assert not around.pending
    return speaker, problems


def test_where_no_more_files_can_be_opened_there_is_no_connection(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", no_socket)
    speaker, problems = opened_towards("127.0.0.1", loop)
    assert speaker.link is None
    assert problems.listed() == [Problem("closed", 1, ["s0: Too many open files"])]


def test_who_cannot_connect_at_once_has_no_link(loop: Loop) -> None:
    speaker, problems = opened_towards("255.255.255.255", loop)  # nobody can, over TCP, and no packet is sent
    assert speaker.link is None
    assert problems.listed() == [Problem("closed", 1, ["s0: Network is unreachable"])]


@contextmanager
def connected(loop: Loop) -> Iterator[tuple[Speaker, socket.socket, Problems]]:
    """A client that is connected, the other end of its connection, and what it found."""
    problems = Problems()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        around = Surroundings(Gauge(0, problems), lambda client: Link(loop, client, "lines", "127.0.0.1", port))
        speaker = Speaker("s0", around)
        speaker.open()
        connection, _ = server.accept()
        with connection:
            loop.turn(PATIENCE_S)
            yield speaker, connection, problems


def test_who_is_reset_says_so_in_words(loop: Loop) -> None:
    with connected(loop) as (_, connection, problems):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        loop.turn(PATIENCE_S)
    assert problems.listed() == [Problem("closed", 1, ["s0: Connection reset by peer"])]


def test_who_hangs_up_before_hearing_that_the_link_failed_hears_nothing(loop: Loop) -> None:
    problems = Problems()
    around = Surroundings(Gauge(0, problems), lambda client: Link(loop, client, "lines", "255.255.255.255", 2345))
    speaker = Speaker("s0", around)
    speaker.open()
    speaker.close()
    loop.turn(0)
    assert not problems


def test_a_message_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PIECE_BYTES_MAX", 1000)
    (subscriber,) = Audience("lines", 1).subscribers
    subscriber.receive(memoryview(b"x" * 1000))
    with pytest.raises(Malformed, match="a message without an end"):
        subscriber.receive(memoryview(b"x"))


def test_a_client_whose_link_ends_while_it_answers_reads_no_further() -> None:
    audience = Audience("ws", 1)
    (subscriber,) = audience.subscribers
    cast(Any, audience.line).send = lambda data: subscriber.ended("reset", "closed")
    subscriber.receive(memoryview(PING * 3))
    (problem,) = audience.problems.listed()
    assert (problem.kind, problem.examples) == ("closed", ["s0: reset"])


def test_who_is_told_goodbye_has_no_connection_any_more_and_says_so_once(loop: Loop) -> None:
    with connected(loop) as (speaker, connection, problems):
        connection.sendall(b'{"op":"goodbye","code":"draining","reconnect_ms":1}\n')
        loop.turn(PATIENCE_S)
        assert speaker.link is None
    loop.turn(0)
    assert problems.listed() == [Problem("closed", 1, ["s0: the server says goodbye (draining)"])]


@pytest.mark.parametrize("refused", ["one", "other"])
def test_who_follows_several_channels_is_awaited_until_each_has_an_answer(refused: str) -> None:
    problems = Problems()
    gauge = Gauge(0, problems)
    around = Surroundings(gauge, lambda client: cast(Any, Line("lines")))
    trails = [Trail(number, channel, gauge, 1 << 20) for number, channel in enumerate(("one", "other"))]
    subscriber = Subscriber("s0", around, trails)
    subscriber.open()
    subscriber.opened()
    for number, trail in enumerate(trails, 1):
        assert subscriber in around.pending
        said = {"op": "error", "code": "limit", "message": "no"} if trail.channel == refused else {"op": "ok"}
        subscriber.receive(memoryview(json.dumps(said | {"id": number}).encode() + b"\n"))
    assert (around.pending, gauge.totals.opened) == (set(), 1)
    assert problems.listed() == [Problem("refused", 1, ["s0: limit: no"])]


def test_who_was_refused_once_and_returns_is_awaited_as_everybody() -> None:
    audience = Audience("lines", 1)
    (subscriber,) = audience.subscribers
    subscriber.open()
    subscriber.opened()
    subscriber.receive(memoryview(b'{"op":"error","id":1,"code":"unavailable","message":"not yet"}\n'))
    subscriber.close()
    subscriber.open()
    subscriber.expect({"c": 2}, returned_us=1)
    subscriber.opened()
    subscriber.receive(memoryview(b'{"op":"ok","id":1,"epoch":"e","offset":2}\n'))
    assert subscriber in audience.around.pending
    subscriber.receive(memoryview(stream("lines", [message(1), message(2)])))
    assert subscriber not in audience.around.pending


@pytest.mark.parametrize(
    ("answer", "latencies"),
    [
        ({"op": "ok", "epoch": "e", "offset": 2}, 1),
        ({"op": "error", "code": "limit", "message": "no"}, 0),
    ],
)
def test_how_long_a_return_took_is_measured_of_those_who_were_let_in(answer: dict[str, Any], latencies: int) -> None:
    audience = Audience("lines", 1)
    (subscriber,) = audience.subscribers
    subscriber.open()
    subscriber.expect({"c": 2}, returned_us=1)
    subscriber.opened()
    messages = [] if latencies == 0 else [message(1), message(2)]
    subscriber.receive(memoryview(stream("lines", [json.dumps(answer | {"id": 1}).encode(), *messages])))
    assert subscriber not in audience.around.pending
    assert len(audience.gauge.tick(0, 0.0).latencies) == latencies
