"""Lines and length-prefixed frames: whatever way the network cuts them, the same payloads and the same refusals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeding import byte_by_byte, fed_every_way
from trisync.wire.framing import FrameSplitter, LineSplitter, Splitter, join_frames, join_lines, join_websocket
from trisync.wire.wsframes import text_header

LIMIT = 1000


class Outcome(NamedTuple):
    """What a splitter made of some bytes."""

    payloads: list[bytes]
    refusal: str | None
    partial: bool


def feed(splitter: Splitter, chunks: Sequence[bytes]) -> Outcome:
    payloads = [payload for chunk in chunks for payload in splitter.feed(chunk)]
    if splitter.failed:
        assert splitter.feed(b'{"op":"ping"}\n\0\0\0\x05x') == []  # after a failure nothing more
        return Outcome(payloads, splitter.failed.code, False)
    return Outcome(payloads, None, splitter.held_bytes is not None)


def split(make: Callable[[], Splitter], data: bytes, places: Sequence[int] = ()) -> Outcome:
    """What a new splitter makes of the data, however it is cut, and with the begin of something behind it."""
    outcome = fed_every_way(data, lambda chunks: feed(make(), chunks), places)
    if not outcome.partial and outcome.refusal is None:
        assert fed_every_way(data + b"\0", lambda chunks: feed(make(), chunks), places) == Outcome(
            outcome.payloads, None, True
        )
    return outcome


def lines(data: bytes, places: Sequence[int] = (), limit: int = LIMIT) -> Outcome:
    return split(lambda: LineSplitter(limit), data, places)


def frames(data: bytes, places: Sequence[int] = (), limit: int = LIMIT) -> Outcome:
    return split(lambda: FrameSplitter(limit), data, places)


def frame(payload: bytes) -> bytes:
    return (len(payload) + 4).to_bytes(4, "big") + payload


places = st.lists(st.integers(0, 200), max_size=6)


# Lines


def test_lines_end_with_lf_or_crlf_and_empty_ones_are_ignored() -> None:
    assert lines(b"a\nb\r\n\n\r\n  \nc\n") == Outcome([b"a", b"b", b"  ", b"c"], None, False)


def test_for_people_an_empty_line_means_something() -> None:
    outcome = split(lambda: LineSplitter(LIMIT, keep_empty=True), b"\na\n\r\n")
    assert outcome == Outcome([b"", b"a", b""], None, False)


def test_for_people_cr_and_nul_end_a_line_too_as_some_telnets_have_it() -> None:
    outcome = split(lambda: LineSplitter(LIMIT, keep_empty=True), b"a\r\0\r\0\0b\rc\0\r\n")
    assert outcome == Outcome([b"a", b"", b"\0b\rc\0"], None, False)
    assert lines(b"a\r\0b\n") == Outcome([b"a\r\0b"], None, False)


def test_only_one_cr_before_the_lf_belongs_to_the_line_end() -> None:
    assert lines(b"a\r\r\nb\rc\n") == Outcome([b"a\r", b"b\rc"], None, False)


def test_a_line_without_its_end_is_waited_for() -> None:
    assert lines(b"whole\nhal") == Outcome([b"whole"], None, True)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.binary(max_size=30), st.sampled_from([b"\n", b"\r\n"])), max_size=8), places)
def test_any_payloads_come_back_from_lines(parts: list[tuple[bytes, bytes]], places: list[int]) -> None:
    parts = [(payload.replace(b"\n", b"").rstrip(b"\r"), end) for payload, end in parts]
    data = b"".join(payload + end for payload, end in parts)
    assert lines(data, places) == Outcome([payload for payload, _ in parts if payload], None, False)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_exactly_the_limit_passes_and_one_byte_more_does_not(end: bytes) -> None:
    assert lines(b"x" * LIMIT + end) == Outcome([b"x" * LIMIT], None, False)
    assert lines(b"x" * (LIMIT + 1) + end) == Outcome([], "too_large", False)
    assert lines(b"first\n" + b"x" * (LIMIT + 1) + end + b"later\n") == Outcome([b"first"], "too_large", False)


def test_a_line_over_the_limit_is_refused_before_it_ends() -> None:
    splitter = LineSplitter(LIMIT)
    for chunk in byte_by_byte(b"x" * (LIMIT + 1)):
        assert splitter.feed(chunk) == []
        assert splitter.failed is None  # it may be a CR that belongs to the line's end
    splitter.feed(b"x")
    assert splitter.failed is not None
    assert splitter.failed.code == "too_large"
    assert splitter.failed.closes
    assert splitter.failed.details == {"limit": "message_bytes_max", "value": LIMIT}


class CountingBuffer(bytearray):
    """A buffer that counts the bytes that are copied into it and out of it."""

    copied = 0

    def __iadd__(self, other: object) -> "CountingBuffer":
        assert isinstance(other, bytes | bytearray)
        self.copied += len(other)
        self.extend(other)
        return self

    def __bytes__(self) -> bytes:
        self.copied += len(self)
        return bytes(memoryview(self))


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: LineSplitter(1 << 20), b"x" * 20_000 + b"\n"),
        (lambda: FrameSplitter(1 << 20), frame(b"x" * 20_000)),
    ],
    ids=["lines", "frames"],
)
def test_what_comes_byte_by_byte_is_copied_once_and_not_once_a_byte(make: Callable[[], Splitter], data: bytes) -> None:
    splitter = make()
    buffer = CountingBuffer()
    splitter._rest = buffer  # type: ignore[attr-defined]
    assert sum(len(splitter.feed(chunk)) for chunk in byte_by_byte(data)) == 1
    assert splitter._rest is buffer  # type: ignore[attr-defined]
    assert buffer.copied <= 3 * len(data)


def test_the_rest_of_a_line_is_taken_once() -> None:
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"whole\nbegun") == [b"whole"]
    assert splitter.take_rest() == b"begun"
    assert splitter.take_rest() == b""
    assert splitter.held_bytes is None
    assert splitter.feed(b"next\n") == [b"next"]


# Frames


def test_a_frame_is_a_length_that_counts_itself_and_a_payload() -> None:
    assert frames(b"\0\0\0\x06{}\0\0\0\x05x") == Outcome([b"{}", b"x"], None, False)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), places)
def test_any_payloads_come_back_from_frames(payloads: list[bytes], places: list[int]) -> None:
    assert frames(join_frames(payloads), places) == Outcome(payloads, None, False)


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_a_length_that_leaves_no_payload_is_a_bad_request_that_closes(length: int) -> None:
    data = frame(b"good") + length.to_bytes(4, "big") + frame(b"later")
    assert frames(data) == Outcome([b"good"], "bad_request", False)
    splitter = FrameSplitter(LIMIT)
    splitter.feed(length.to_bytes(4, "big"))
    assert splitter.failed is not None
    assert splitter.failed.closes
    assert not splitter.failed.retry
    assert str(length) in splitter.failed.message


@pytest.mark.parametrize("length", [LIMIT + 5, 1 << 24, 0xFFFFFFFF])
def test_a_frame_over_the_limit_is_refused_from_its_length(length: int) -> None:
    assert frames(frame(b"good") + length.to_bytes(4, "big")) == Outcome([b"good"], "too_large", False)
    splitter = FrameSplitter(LIMIT)
    splitter.feed(length.to_bytes(4, "big"))
    assert splitter.failed is not None
    assert splitter.failed.details == {"limit": "message_bytes_max", "value": LIMIT}


def test_a_frame_of_exactly_the_limit_passes() -> None:
    assert frames(frame(b"x" * LIMIT)) == Outcome([b"x" * LIMIT], None, False)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 20])
def test_half_a_frame_is_waited_for(size: int) -> None:
    assert frames(frame(b"whole") + frame(b"y" * 50)[:size]) == Outcome([b"whole"], None, True)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), places)
def test_nonsense_is_split_the_same_however_it_is_cut(data: bytes, places: list[int]) -> None:
    fed_every_way(data, lambda chunks: feed(LineSplitter(10), chunks), places)
    fed_every_way(data, lambda chunks: feed(FrameSplitter(10), chunks), places)


# Joining


@given(st.lists(st.binary(min_size=1, max_size=300).map(lambda payload: payload.replace(b"\n", b" ")), min_size=1))
@settings(deadline=None, max_examples=50)
def test_what_is_joined_comes_apart_again(payloads: list[bytes]) -> None:
    assert join_lines(payloads) == b"".join(payload + b"\n" for payload in payloads)
    assert feed(FrameSplitter(LIMIT), [join_frames(payloads)]).payloads == payloads
    assert join_websocket(payloads) == b"".join(text_header(len(payload)) + payload for payload in payloads)
