"""The proof of density: however reads cut the bytes, what is kept passes, and whatever is broken is found."""

import json
import random
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.loadtest import trails
from trisync.loadtest.clients import Subscriber, Surroundings
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.plan import TRANSPORTS, Transport
from trisync.loadtest.problems import Problems
from trisync.loadtest.trails import Sequence, Trail
from trisync.loadtest.transports import AS_LINES, SPLIT, Masker
from trisync.wire.framing import FRAMES, LINES, WEBSOCKET

FRAMINGS = {"lines": LINES, "frames": FRAMES, "ws": WEBSOCKET}
PING = b"\x89\x02hi"


class Line:
    """A link without a socket."""

    def __init__(self, transport: Transport) -> None:
        self.split = SPLIT[transport]
        self.as_lines = AS_LINES[transport]
        self.join = FRAMINGS[transport].join
        self.masker = Masker()
        self.sent: list[bytes] = []
        self.client: object = None

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        pass


class Audience:
    """Subscribers of one channel in one worker."""

    def __init__(self, transport: Transport, size: int, bytes_max: int = 1 << 20) -> None:
        self.problems = Problems()
        self.gauge = Gauge(0, self.problems)
        self.line = cast(Any, Line(transport))
        self.around = Surroundings(self.gauge, lambda client: self.line)
        self.trail = Trail(0, "c", self.gauge, bytes_max)
        self.subscribers = [Subscriber(f"s{number}", self.around, [self.trail]) for number in range(size)]
        for subscriber in self.subscribers:
            subscriber.link = self.line

    def kinds(self) -> set[str]:
        """What is found to be wrong, at the end."""
        for subscriber in self.subscribers:
            subscriber.finish()
        self.trail.contents.finish([])
        return {problem.kind for problem in self.problems.listed()}


def message(offset: int, number: int | None = None) -> bytes:
    data = [0, 0, offset if number is None else number, 5, "x" * (offset % 7)]
    return json.dumps({"op": "message", "channel": "c", "offset": offset, "time": 1, "data": data}).encode()


def stream(transport: Transport, messages: list[bytes]) -> bytes:
    return FRAMINGS[transport].join(messages)


def feed(subscriber: Subscriber, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            subscriber.receive(memoryview(data)[start:end])


CUTS = st.lists(st.integers(0, 10**6), max_size=12)


@pytest.mark.parametrize("transport", TRANSPORTS)
@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(CUTS, min_size=3, max_size=3), rounds=st.integers(1, 3))
def test_what_is_dense_passes_however_it_is_cut(transport: Transport, cuts: list[list[int]], rounds: int) -> None:
    audience = Audience(transport, 3)
    for part in range(rounds):
        data = stream(transport, [message(offset) for offset in range(part * 20 + 1, part * 20 + 21)])
        for subscriber, places in zip(audience.subscribers, cuts, strict=True):
            feed(subscriber, data, places)
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 3 * 20 * rounds
    assert audience.trail.contents.ledger.channels()[0].count == 20 * rounds


@settings(max_examples=150, deadline=None)
@given(
    fault=st.sampled_from(["lost", "repeated", "reordered", "altered"]),
    at=st.integers(1, 28),
    cuts=CUTS,
    who=st.booleans(),
)
def test_whatever_is_broken_is_found_wherever_it_is(fault: str, at: int, cuts: list[int], who: bool) -> None:
    audience = Audience("lines", 2)
    good = [message(offset) for offset in range(1, 31)]
    bad = list(good)
    match fault:
        case "lost":
            del bad[at]
        case "repeated":
            bad.insert(at, bad[at])
        case "reordered":
            bad[at], bad[at + 1] = bad[at + 1], bad[at]
        case "altered":
            bad[at] = message(at + 1, number=at + 1000)
    first, second = (bad, good) if who else (good, bad)
    feed(audience.subscribers[0], stream("lines", first), cuts)
    feed(audience.subscribers[1], stream("lines", second), cuts[::-1])
    assert fault in audience.kinds()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_byte_by_byte_is_the_same_as_whole(transport: Transport) -> None:
    audience = Audience(transport, 2)
    data = stream(transport, [message(offset) for offset in range(1, 40)])
    for byte in range(len(data)):
        for subscriber in audience.subscribers:
            subscriber.receive(memoryview(data)[byte : byte + 1])
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 2 * 39


def test_a_ping_between_messages_breaks_nothing_and_is_answered() -> None:
    audience = Audience("ws", 2)
    messages = [message(offset) for offset in range(1, 21)]
    audience.subscribers[0].receive(memoryview(stream("ws", messages)))
    with_ping = stream("ws", messages[:7]) + PING + stream("ws", messages[7:])
    feed(audience.subscribers[1], with_ping, [100, 333, 700])
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 40
    (pong,) = audience.line.sent
    assert pong[:2] == b"\x8a\x82"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_channel_that_is_emptied_under_its_subscribers_is_no_fault_of_the_server(transport: Transport) -> None:
    audience = Audience(transport, 2)
    gap = json.dumps({"op": "gap", "channel": "c", "from": 1, "to": 10, "reason": "trimmed"}).encode()
    behind = [message(offset) for offset in range(11, 21)]
    for subscriber, last in zip(audience.subscribers, (10, 4), strict=True):
        before = [message(offset) for offset in range(1, last + 1)]
        feed(subscriber, stream(transport, [*before, gap, *behind]), [150, 1300])
    assert audience.kinds() == set()
    assert audience.gauge.totals.trimmed == 6


def test_who_is_far_behind_what_the_trail_still_holds_is_checked_all_the_same() -> None:
    chance = random.Random(3)
    audience = Audience("lines", 2, bytes_max=2000)
    messages = [message(offset) for offset in range(1, 301)]
    data = stream("lines", messages)
    feed(audience.subscribers[1], data[:150], [])  # and there it stays, in the middle of a message
    feed(audience.subscribers[0], data, [chance.randrange(len(data)) for _ in range(100)])
    assert audience.trail.first > 200
    feed(audience.subscribers[1], data[150:], [chance.randrange(len(data)) for _ in range(100)])
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 600


@pytest.mark.parametrize("returns", [False, True])
def test_who_gets_something_else_far_behind_what_the_trail_holds_is_found(returns: bool) -> None:
    audience = Audience("lines", 2, bytes_max=2000)
    messages = [message(offset) for offset in range(1, 301)]
    first, second = audience.subscribers
    feed(second, stream("lines", messages[:10]), [100])
    if returns:
        second.close()
        second.link = audience.line
    feed(first, stream("lines", messages), [part * 700 for part in range(60)])
    assert audience.trail.first > 200
    messages[19] = message(20, number=21)
    messages[20] = message(21, number=20)
    feed(second, stream("lines", messages[10:]), [part * 700 for part in range(60)])
    assert audience.kinds() == {"altered"}


def test_a_loss_far_behind_what_the_trail_holds_is_not_also_called_an_alteration() -> None:
    audience = Audience("lines", 2, bytes_max=2000)
    messages = [message(offset) for offset in range(1, 301)]
    feed(audience.subscribers[0], stream("lines", messages), [part * 700 for part in range(60)])
    feed(audience.subscribers[1], stream("lines", messages[:20] + messages[21:]), [])
    assert audience.kinds() == {"lost"}


def test_a_sequence_tells_late_from_repeated_from_lost() -> None:
    sequence = Sequence()
    assert [sequence.take(number) for number in (1, 2, 5, 3, 5, 3, 6)] == [
        *(None, None, None, "reordered", "repeated", "repeated", None)
    ]
    assert sequence.lost() == (1, 4)


def test_a_huge_gap_is_counted_and_not_remembered_number_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trails, "MISSING_MAX", 10)
    sequence = Sequence()
    sequence.take(1_000_000)
    assert sequence.lost() == (999_999, 1)
