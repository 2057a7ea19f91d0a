"""The tool's framings agree with the server's, which were written apart from them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.loadtest.plan import TRANSPORTS, Transport
from trisync.loadtest.transports import (
    AS_LINES,
    PING,
    SPLIT,
    Handshake,
    Malformed,
    Masker,
    join_frames,
    join_lines,
    split_websocket,
)
from trisync.wire.framing import FRAMES, LINES, WEBSOCKET, FrameSplitter, LineSplitter
from trisync.wire.wsframes import FrameReader

FRAMINGS = {"lines": LINES, "frames": FRAMES, "ws": WEBSOCKET}
PAYLOADS = st.lists(
    st.one_of(st.text("{}:,ab", min_size=1, max_size=200), st.sampled_from(["x" * 125, "x" * 126, "x" * 70_000])).map(
        str.encode
    ),
    min_size=1,
    max_size=12,
)


@given(payloads=PAYLOADS)
@settings(max_examples=50, deadline=None)
def test_what_is_sent_is_what_the_server_reads(payloads: list[bytes]) -> None:
    assert FrameReader(1 << 20).feed(Masker().join(payloads)) == payloads
    assert FrameReader(1 << 20).feed(Masker().join(payloads[:1] * 5)) == payloads[:1] * 5
    assert FrameSplitter(1 << 20).feed(join_frames(payloads)) == payloads
    assert LineSplitter(1 << 20).feed(join_lines(payloads)) == payloads


@pytest.mark.parametrize("transport", TRANSPORTS)
@given(payloads=PAYLOADS, cut=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_what_the_server_sends_is_split_and_a_partial_message_is_left(
    transport: Transport, payloads: list[bytes], cut: int
) -> None:
    data = FRAMINGS[transport].join(payloads)
    pieces = SPLIT[transport](data)
    assert [piece.payload for piece in pieces] == payloads
    assert pieces[-1].end == len(data)
    partial = data[: cut % len(data)]
    ends = [piece.end for piece in pieces if piece.end <= len(partial)]
    assert [piece.end for piece in SPLIT[transport](partial)] == ends


@pytest.mark.parametrize("transport", TRANSPORTS)
@given(payloads=st.lists(st.sampled_from([b"{}", b"[]", b'{"a":1}']), min_size=1, max_size=9), same=st.booleans())
def test_the_shortcut_for_many_messages_takes_those_at_the_beginning_that_are_of_one_size(
    transport: Transport, payloads: list[bytes], same: bool
) -> None:
    if same:
        payloads = payloads[:1] * len(payloads)
    data = FRAMINGS[transport].join(payloads)
    lines, end = AS_LINES[transport](data + data[:1])
    taken = lines.split()
    assert taken == payloads[: len(taken)]
    assert end == len(FRAMINGS[transport].join(taken)) * bool(taken)
    if same:
        assert taken == payloads


@pytest.mark.parametrize("frame", [b"\x82\x01x", b"\x81\x81abcdx", b"\x01\x01x", b"\xc1\x01x"])
def test_frames_that_no_server_of_this_protocol_sends_are_refused(frame: bytes) -> None:
    with pytest.raises(Malformed):
        split_websocket(frame)


def test_control_frames_are_masked() -> None:
    reader = FrameReader(100)
    assert reader.feed(Masker().control(PING, b"hi")) == []
    assert reader.take_answers() == b"\x8a\x02hi"


def test_a_handshake_is_accepted_only_with_its_own_key() -> None:
    handshake = Handshake("::1", 8000)
    assert b"Host: [::1]:8000\r\n" in handshake.request
    with pytest.raises(Malformed, match="wrong key"):
        handshake.check(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x")
    with pytest.raises(Malformed, match="503"):
        handshake.check(b"HTTP/1.1 503 Service Unavailable")
