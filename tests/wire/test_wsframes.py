"""WebSocket frames: the reader agrees with wsproto on whatever a client may send, however it is cut."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.events import Ping, TextMessage

from tests.feeding import byte_by_byte, fed_every_way
from tests.wire.ws_clients import (
    TAIL,
    Frame,
    Outcome,
    by_client,
    by_us,
    by_wsproto,
    close_for,
    masks,
    naive_unmask,
    read,
    streams,
    text,
)
from trisync.wire.wsframes import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_PAYLOAD,
    PING,
    PING_FRAME,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    UNSUPPORTED_DATA,
    Close,
    FrameReader,
    close_frame,
    text_header,
    unmask,
)

BAD_GATEWAY = 1014
"""A close code that was registered after the RFC; wsproto does not know it yet."""


def agree(ours: Outcome, theirs: Outcome) -> bool:
    return ours == theirs or (ours == theirs._replace(end=BAD_GATEWAY) and theirs.end == PROTOCOL_ERROR)


@settings(max_examples=800, deadline=None)
@given(streams(), st.lists(st.integers(0, 400), max_size=5))
def test_the_reader_and_wsproto_make_the_same_of_every_stream(data: bytes, places: list[int]) -> None:
    so_far = fed_every_way(data, by_us, places) if len(data) < 3000 else by_us([data])
    reference = by_wsproto([data])
    assert (so_far.messages, so_far.pongs) == (reference.messages, reference.pongs)
    if so_far.end is not None and reference.end is not None:
        assert agree(so_far, reference)
    # Where a frame is not whole, either may know first that it is wrong. Completed, both do.
    ours, theirs = by_us([data, TAIL]), by_wsproto([data, TAIL])
    if ours.end is None and theirs.end == INVALID_PAYLOAD:
        assert ours.messages == theirs.messages  # inside a giant frame: ours waits for the whole of it
    else:
        assert agree(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(0, 130))
def test_a_limit_changes_nothing_but_what_is_over_it(data: bytes, limit: int) -> None:
    limited, free = by_us([data], limit), by_us([data])
    assert all(len(message) <= limit for message in limited.messages)
    if limited.end == TOO_BIG:
        assert limited.messages == free.messages[: len(limited.messages)]
    else:
        assert limited == free


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 700))
def test_the_limit_counts_a_messages_bytes_over_all_its_fragments(sizes: list[int], limit: int) -> None:
    frames = [
        Frame(CONTINUATION if number else TEXT, b"x" * size, fin=number == len(sizes) - 1)
        for number, size in enumerate(sizes)
    ]
    outcome = read(b"".join(frame.encode() for frame in frames), limit)
    if sum(sizes) <= limit:
        assert outcome == Outcome([b"x" * sum(sizes)], [], None)
    else:
        assert outcome == Outcome([], [], TOO_BIG)


# By name


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_message_of_any_size_comes_out_as_it_was(size: int) -> None:
    payload = b"x" * size
    assert by_us([Frame(TEXT, payload).encode()]) == Outcome([payload], [], None)


def test_many_messages_in_one_read_come_in_order() -> None:
    data = b"".join(text(str(number)).encode() for number in range(100))
    assert read(data).messages == [str(number).encode() for number in range(100)]


def test_pings_between_fragments_are_answered_with_their_payload_and_pongs_are_not() -> None:
    frames = [
        *(text("to", fin=False), Frame(PING, b"are you there"), Frame(PONG, b"who asked")),
        *(Frame(CONTINUATION, b"gether"), Frame(PING)),
    ]
    outcome = read(b"".join(frame.encode() for frame in frames))
    assert outcome == Outcome([b"together"], [b"are you there", b""], None)


def test_answers_are_taken_once() -> None:
    reader = FrameReader(100)
    reader.feed(Frame(PING, b"1").encode() + Frame(PING, b"2").encode())
    assert reader.take_answers() == b"\x8a\x011\x8a\x012"
    assert reader.take_answers() == b""


def test_a_character_may_be_cut_between_fragments() -> None:
    euro = "€".encode()
    frames = [
        Frame(TEXT, euro[:1], fin=False),
        Frame(CONTINUATION, euro[1:2], fin=False),
        Frame(CONTINUATION, euro[2:]),
    ]
    assert read(b"".join(frame.encode() for frame in frames)).messages == [euro]


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        ([text("x", masked=False)], PROTOCOL_ERROR, "masked"),
        ([text("x", reserved=4)], PROTOCOL_ERROR, "reserved"),
        ([text("x", reserved=1)], PROTOCOL_ERROR, "reserved"),
        ([Frame(PING, reserved=2)], PROTOCOL_ERROR, "reserved"),
        ([Frame(0x3)], PROTOCOL_ERROR, "opcode 0x3"),
        ([Frame(0xB)], PROTOCOL_ERROR, "opcode 0xb"),
        ([Frame(PING, fin=False)], PROTOCOL_ERROR, "not fragmented"),
        ([Frame(CLOSE, b"p" * 126)], PROTOCOL_ERROR, "125"),
        ([Frame(CONTINUATION, b"x")], PROTOCOL_ERROR, "continuation of nothing"),
        ([text("x", fin=False), text("y")], PROTOCOL_ERROR, "inside"),
        ([text("x", fin=False), Frame(BINARY, b"y")], PROTOCOL_ERROR, "inside"),
        ([text("x", width=2)], PROTOCOL_ERROR, "more bytes than it needs"),
        ([text("x" * 125, width=2)], PROTOCOL_ERROR, "more bytes than it needs"),
        ([text("x" * 200, width=8)], PROTOCOL_ERROR, "more bytes than it needs"),
        ([Frame(TEXT, width=8, claims_more=0xFFFF)], PROTOCOL_ERROR, "more bytes than it needs"),
        ([Frame(TEXT, claims_more=1 << 63)], PROTOCOL_ERROR, "more bytes than it needs"),
        ([Frame(BINARY, b"x")], UNSUPPORTED_DATA, "text"),
        ([Frame(TEXT, b"\xff")], INVALID_PAYLOAD, "UTF-8"),
        ([Frame(TEXT, b"\xe2\x82", fin=False), Frame(CONTINUATION)], INVALID_PAYLOAD, "UTF-8"),
    ],
)
def test_what_breaks_the_rfc_is_named(frames: list[Frame], code: int, reason: str) -> None:
    failure = close_for(frames)
    assert failure is not None
    assert failure.code == code
    assert reason in failure.reason


@pytest.mark.parametrize("wrong", [{"reserved": 1}, {"masked": False}, {"width": 2}])
def test_what_breaks_the_rfc_comes_before_what_the_server_does_not_take(wrong: dict[str, Any]) -> None:
    for opcode, payload in ((BINARY, b"x"), (TEXT, b"x" * 20)):
        failure = close_for([Frame(opcode, payload)._replace(**wrong)], limit=10)
        assert failure is not None
        assert failure.code == PROTOCOL_ERROR


def test_bad_utf8_in_a_fragment_is_found_before_the_message_ends() -> None:
    assert close_for([Frame(TEXT, b"abc\xff", fin=False)]) == Close(INVALID_PAYLOAD, "invalid UTF-8")


def test_a_giant_length_is_refused_from_its_header() -> None:
    header = Frame(TEXT, b"", claims_more=(1 << 63) - 1).encode()
    reader = FrameReader(1000)
    for chunk in byte_by_byte(header[:10]):
        assert reader.feed(chunk) == []
    assert reader.close == Close(TOO_BIG, "a message is at most 1000 bytes")


def test_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert read(text("é" * 50).encode(), limit=100).messages == ["é".encode() * 50]
    assert close_for([text("é" * 50)], limit=99) == Close(TOO_BIG, "a message is at most 99 bytes")


def test_pings_are_not_messages_and_no_limit_counts_them() -> None:
    frames = [text("12345", fin=False), Frame(PING, b"p" * 125), Frame(CONTINUATION, b"67890")]
    assert read(b"".join(frame.encode() for frame in frames), limit=10).messages == [b"1234567890"]


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", None),
        (b"\x03\xe8", 1000),
        (b"\x03\xe8bye", 1000),
        (b"\x03\xe9", 1001),
        ((4999).to_bytes(2, "big"), 4999),
        ((3000).to_bytes(2, "big"), 3000),
        (BAD_GATEWAY.to_bytes(2, "big"), BAD_GATEWAY),
        (b"\x03", PROTOCOL_ERROR),
        *(
            (code.to_bytes(2, "big"), PROTOCOL_ERROR)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
        ),
        (b"\x03\xe8\xff", INVALID_PAYLOAD),
    ],
)
def test_a_close_frame_is_answered_with_its_code_or_with_what_is_wrong_with_it(
    payload: bytes, answer: int | None
) -> None:
    close = close_for([text("before"), Frame(CLOSE, payload)])
    assert close is not None
    assert close.code == answer


def test_behind_a_close_frame_nothing_counts() -> None:
    close = Frame(CLOSE, b"\x03\xe8bye").encode()
    for behind in (text("more").encode(), b"\xff\xff", Frame(CLOSE, b"").encode(), Frame(PING).encode()):
        reader = FrameReader(100)
        assert reader.feed(text("before").encode() + close + behind) == [b"before"]
        assert reader.feed(text("later").encode()) == []
        assert reader.close == Close(1000)
        assert reader.take_answers() == b""


def test_what_came_before_a_failure_still_counts() -> None:
    data = text("good").encode() + Frame(PING, b"1").encode() + text("bad", masked=False).encode() + text("no").encode()
    assert read(data) == Outcome([b"good"], [b"1"], PROTOCOL_ERROR)


def test_the_reader_says_how_much_is_here_of_what_has_begun() -> None:
    reader = FrameReader(100)
    assert reader.held_bytes is None
    *begin, end = byte_by_byte(text("hello").encode())
    for place, chunk in enumerate(begin):
        reader.feed(chunk)
        assert reader.held_bytes == place + 1
    reader.feed(end)
    assert reader.held_bytes is None
    reader.feed(text("", fin=False).encode())
    assert reader.held_bytes == 0
    reader.feed(Frame(CONTINUATION, b"begun", fin=False).encode() + Frame(CONTINUATION, b"end").encode()[:7])
    assert reader.held_bytes == len("begun") + 7
    reader.feed(Frame(CONTINUATION, b"end").encode()[7:])
    assert reader.held_bytes is None


def test_nothing_is_half_begun_once_the_reader_has_failed() -> None:
    reader = FrameReader(100)
    reader.feed(text("begun", fin=False).encode() + Frame(PING, fin=False).encode() + text("and more").encode()[:4])
    assert reader.close is not None
    assert reader.held_bytes is None


# The sending side


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_a_client_reads_what_the_server_frames(size: int) -> None:
    (event,) = by_client(text_header(size) + b"x" * size)
    assert event == TextMessage(data="x" * size, frame_finished=True, message_finished=True)


@given(st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011]), st.text(max_size=200))
@settings(deadline=None)
def test_a_client_reads_the_servers_close_frames_however_long_the_reason(code: int, reason: str) -> None:
    frame = close_frame(Close(code, reason))
    assert len(frame) <= 2 + 125
    (event,) = by_client(frame)
    assert event.code == code
    assert reason.startswith(event.reason)
    assert event.reason == reason or len(reason.encode()) > 123


def test_a_close_frame_without_a_code_is_empty() -> None:
    assert close_frame(Close(None)) == b"\x88\x00"


def test_a_client_reads_the_servers_ping() -> None:
    assert by_client(PING_FRAME) == [Ping(payload=b"")]


@given(st.binary(max_size=200), masks)
@settings(deadline=None)
def test_unmasking_is_xor_with_the_repeated_mask(payload: bytes, mask: bytes) -> None:
    assert unmask(payload, mask) == naive_unmask(payload, mask)
