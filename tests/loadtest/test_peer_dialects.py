"""The readers of the peers' protocols: whatever is delivered whole passes, however it is cut; who cheats is found."""

from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.loadtest.clients import Surroundings
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.peer_clients import Listener
from trisync.loadtest.peer_dialects import DIALECTS, REPLY, PeerDialect, count_replies, split_nats, split_resp
from trisync.loadtest.problems import Problems
from trisync.loadtest.trails import Trail
from trisync.loadtest.transports import PING, PONG, TEXT, Malformed, Split

SIZE = 60
FANOUT: list[PeerDialect] = ["redis-pubsub", "nats", "node-ws"]

CUTS = st.lists(st.integers(0, 10**6), max_size=12)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


def fed(split: Split, chunks: list[bytes]) -> list[tuple[int, bytes]]:
    """What a reader finds that keeps what is behind the last whole piece."""
    found, tail = [], b""
    for chunk in chunks:
        tail += chunk
        pieces = split(tail)
        found += [(piece.opcode, piece.payload) for piece in pieces]
        tail = tail[pieces[-1].end :] if pieces else tail
    assert tail == b""
    return found


RESP = {
    b"+PONG\r\n": (PONG, b"PONG"),
    b"*2\r\n$4\r\npong\r\n$0\r\n\r\n": (PONG, b""),
    b":500\r\n": (REPLY, b"500"),
    b"$5\r\n1\r\n-0\r\n": (REPLY, b"1\r\n-0"),
    b"*3\r\n$9\r\nsubscribe\r\n$4\r\nload\r\n:1\r\n": (REPLY, b"1"),
    b"*3\r\n$7\r\nmessage\r\n$4\r\nload\r\n$4\r\na\r\nb\r\n": (TEXT, b"a\r\nb"),
}
NATS = {
    b'INFO {"server_id":"x"}\r\n': (REPLY, b'INFO {"server_id":"x"}'),
    b"PING\r\n": (PING, b"PING"),
    b"PONG\r\n": (PONG, b"PONG"),
    b"MSG load 1 4\r\na\r\nb\r\n": (TEXT, b"a\r\nb"),
    b"MSG load 1 reply 0\r\n\r\n": (TEXT, b""),
}


@given(words=st.lists(st.sampled_from(sorted(RESP)), min_size=1, max_size=12), cuts=CUTS)
def test_resp_is_read_however_it_is_cut(words: list[bytes], cuts: list[int]) -> None:
    assert fed(split_resp, pieces_of(b"".join(words), cuts)) == [RESP[word] for word in words]


@given(words=st.lists(st.sampled_from(sorted(NATS)), min_size=1, max_size=12), cuts=CUTS)
def test_nats_is_read_however_it_is_cut(words: list[bytes], cuts: list[int]) -> None:
    assert fed(split_nats, pieces_of(b"".join(words), cuts)) == [NATS[word] for word in words]


@pytest.mark.parametrize(
    ("split", "data"),
    [
        (split_resp, b"-ERR unknown command\r\n"),
        (split_resp, b"$-1\r\n"),
        (split_resp, b"$2\r\nabcd\r\n"),
        (split_resp, b"*0\r\n"),
        (split_resp, b"*1\r\n*1\r\n:1\r\n"),
        (split_nats, b"-ERR 'Slow Consumer'\r\n"),
        (split_nats, b"MSG load 1 x\r\n"),
        (split_nats, b"MSG load 1 2\r\nabcd\r\n"),
    ],
)
def test_errors_and_nonsense_of_a_peer_are_refused(split: Split, data: bytes) -> None:
    with pytest.raises(Malformed):
        split(data)


@given(
    replies=st.lists(st.sampled_from([b"$3\r\n1-0\r\n", b"$4\r\n1-10\r\n"]), max_size=9)
    | st.lists(st.sampled_from([b":0\r\n", b":500\r\n"]), max_size=9),
    cut=st.integers(0, 10**6),
)
def test_replies_are_counted_as_they_are_split(replies: list[bytes], cut: int) -> None:
    data = b"".join(replies)
    data = data[: cut % (len(data) + 1)]
    pieces = split_resp(data)
    assert count_replies(data) == (len(pieces), pieces[-1].end if pieces else 0)


@pytest.mark.parametrize("data", [b"", b"+PONG\r\n", b":1\r\n$3\r\n1-0\r\n", b":1\r\n-ERR no\r\n", b"PING\r\n"])
def test_other_replies_are_left_to_the_reader_of_them_all(data: bytes) -> None:
    assert count_replies(data) == (0, 0)


class Audience:
    """Listeners to a peer without a peer."""

    def __init__(self, dialect: PeerDialect, size: int) -> None:
        self.dialect = DIALECTS[dialect]
        self.problems = Problems()
        self.gauge = Gauge(0, self.problems)
        self.sent: list[bytes] = []
        around = Surroundings(self.gauge, lambda client: cast(Any, self))
        trail = Trail(0, "load", self.gauge, 1 << 20)
        self.listeners = [Listener(f"s{number}", around, trail, self.dialect, SIZE) for number in range(size)]
        self.split = self.dialect.split
        self.masker = None
        for listener in self.listeners:
            listener.link = cast(Any, self)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def stream(self, numbers: list[int]) -> list[bytes]:
        ends = b"" if self.dialect.transport == "ws" else b"\r\n"
        data = [(b'[0,0,%-9d,5,"' % number).ljust(SIZE - 2, b"x") + b'"]' for number in numbers]
        return [self.dialect.delivered(SIZE) + each + ends for each in data]

    def hear(self, listener: int, data: bytes, cuts: list[int]) -> None:
        for chunk in pieces_of(data, cuts):
            self.listeners[listener].receive(memoryview(chunk))

    def kinds(self) -> set[str]:
        for listener in self.listeners:
            listener.finish()
        return {problem.kind for problem in self.problems.listed()}


@pytest.mark.parametrize("dialect", FANOUT)
@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(CUTS, min_size=3, max_size=3))
def test_what_a_peer_delivers_whole_passes_however_it_is_cut(dialect: PeerDialect, cuts: list[list[int]]) -> None:
    audience = Audience(dialect, 3)
    data = b"".join(audience.stream(list(range(1, 31))))
    for listener, places in enumerate(cuts):
        audience.hear(listener, data, places)
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 90


@pytest.mark.parametrize("dialect", FANOUT)
@settings(max_examples=50, deadline=None)
@given(at=st.integers(1, 28), cuts=CUTS, fault=st.sampled_from(["lost", "repeated", "reordered"]), who=st.booleans())
def test_a_peer_that_cheats_is_found_out(dialect: PeerDialect, at: int, cuts: list[int], fault: str, who: bool) -> None:
    audience = Audience(dialect, 2)
    good = list(range(1, 31))
    bad = {
        "lost": good[:at] + good[at + 1 :],
        "repeated": good[: at + 1] + good[at:],
        "reordered": [*good[:at], good[at + 1], good[at], *good[at + 2 :]],
    }[fault]
    audience.hear(int(who), b"".join(audience.stream(bad)), cuts)
    audience.hear(int(not who), b"".join(audience.stream(good)), cuts[::-1])
    assert fault in audience.kinds()


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 30), cuts=CUTS)
def test_a_ping_of_nats_between_messages_breaks_nothing_and_is_answered(at: int, cuts: list[int]) -> None:
    audience = Audience("nats", 2)
    words = audience.stream(list(range(1, 31)))
    audience.hear(0, b"".join(words), [])
    audience.hear(1, b"".join([*words[:at], b"PING\r\n", *words[at:]]), cuts)
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 60
    assert audience.sent == [b"PONG\r\n"]
