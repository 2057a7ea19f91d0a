"""WebSocket frames: the reader agrees with wsproto on whatever a client may send, however it is cut."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.feeding import byte_by_byte, fed_every_way
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

UNLIMITED = 1 << 64
MASK = b"\x11\x22\xf3\x44"


class Frame(NamedTuple):
    """A client's frame, as right or wrong as its fields say."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    reserved: int = 0
    masked: bool = True
    mask: bytes = MASK
    width: int = 0
    """Bytes of extended length: 0, 2 or 8, at least what the payload needs."""
    claims_more: int = 0
    """Bytes that the length promises beyond the payload."""

    def encode(self) -> bytes:
        length = len(self.payload) + self.claims_more
        width = max(self.width, 0 if length < 126 else 2 if length < 0x10000 else 8)
        short = {0: length, 2: 126, 8: 127}[width]
        head = bytes((self.fin << 7 | self.reserved << 4 | self.opcode, self.masked << 7 | short))
        head += length.to_bytes(width, "big") if width else b""
        return head + (self.mask + naive_unmask(self.payload, self.mask) if self.masked else self.payload)


def naive_unmask(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def text(words: str, **fields: Any) -> Frame:
    return Frame(TEXT, words.encode(), **fields)


class Outcome(NamedTuple):
    """What became of a client's bytes."""

    messages: list[bytes]
    pongs: list[bytes]
    end: int | None
    """The code of the Close frame that the client gets, NO_CODE for an empty one, None while all is well."""


NO_CODE = 1005


def by_wsproto(chunks: Sequence[bytes]) -> Outcome:
    connection = Connection(ConnectionType.SERVER)
    outcome, words = Outcome([], [], None), list[str]()
    for chunk in chunks:
        connection.receive_data(chunk)
        for event in connection.events():
            if isinstance(event, CloseConnection):
                return outcome._replace(end=int(event.code))
            if isinstance(event, BytesMessage):
                return outcome._replace(end=UNSUPPORTED_DATA)  # what a server must do that takes text only
            if isinstance(event, TextMessage):
                words.append(event.data)
                if event.message_finished:
                    outcome.messages.append("".join(words).encode())
                    words.clear()
            elif isinstance(event, Ping):
                outcome.pongs.append(bytes(event.payload))
    return outcome


def by_us(chunks: Sequence[bytes], limit: int = UNLIMITED) -> Outcome:
    reader = FrameReader(limit)
    outcome = Outcome([], [], None)
    for chunk in chunks:
        outcome.messages.extend(reader.feed(chunk))
        answers = by_client(reader.take_answers())
        assert all(isinstance(answer, Pong) for answer in answers)
        outcome.pongs.extend(bytes(answer.payload) for answer in answers)
        if reader.close is not None:
            assert reader.feed(Frame(TEXT, b"more").encode() + Frame(PING).encode()) == []
            assert reader.take_answers() == b""
            return outcome._replace(end=NO_CODE if reader.close.code is None else reader.close.code)
    return outcome


def by_client(data: bytes) -> list[Any]:
    """What a client understands of the server's bytes."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    return list(client.events())


def read(data: bytes, limit: int = UNLIMITED) -> Outcome:
    return fed_every_way(data, lambda chunks: by_us(chunks, limit))


def close_for(frames: Sequence[Frame], limit: int = UNLIMITED) -> Close | None:
    def feed(chunks: Sequence[bytes]) -> Close | None:
        reader = FrameReader(limit)
        for chunk in chunks:
            reader.feed(chunk)
        return reader.close

    return fed_every_way(b"".join(frame.encode() for frame in frames), feed)


# What clients may send

words = st.sampled_from(
    ["", "a", "é", "€uro", "\U0001f600\U0001f600", "\0", "x" * 124, "x" * 125, "x" * 126, "ü" * 500]
)
masks = st.sampled_from([MASK, b"\0\0\0\0", b"\0\xff\x80\x01"])
broken_utf8 = st.sampled_from(
    [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80", b"a\xe2\x82"]
)
close_payloads = (
    st.sampled_from([b"", b"\x03", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xe8\xff", b"\x03\xec", b"\x03\xed", b"\x03\xee"])
    | st.integers(0, 6000).map(lambda code: code.to_bytes(2, "big") + "größe".encode())
    | st.just(b"\x03\xe8" + b"r" * 123)
)
pings = st.builds(
    lambda opcode, payload, mask: Frame(opcode, payload, mask=mask),
    st.sampled_from([PING, PONG]),
    st.sampled_from([b"", b"\xff\0", b"p" * 125]),
    masks,
)
texts = st.builds(lambda said, mask: [text(said, mask=mask)], words, masks)
broken_texts = st.builds(lambda start, bad: [Frame(TEXT, start.encode() + bad)], words, broken_utf8)
closes = st.builds(lambda payload, mask: [Frame(CLOSE, payload, mask=mask)], close_payloads, masks)
others = st.sampled_from(
    [
        [Frame(BINARY, b"\0\xff")],
        [Frame(BINARY, b"\0\xff", fin=False), Frame(CONTINUATION, b"\xff")],
        [Frame(CONTINUATION, b"x")],
        [Frame(TEXT, b"x", fin=False), Frame(TEXT, b"y")],
        [Frame(TEXT, b"x", fin=False), Frame(BINARY, b"y")],
        [text("x" * 65535), text("y" * 65536)],
    ]
)


@st.composite
def fragmented(draw: st.DrawFn) -> list[Frame]:
    """A text message in pieces, cut anywhere also inside characters, with pings and pongs between them."""
    payload = draw(words).encode() + (draw(broken_utf8) if draw(st.integers(0, 9)) == 0 else b"")
    places = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    edges = [0, *places, len(payload)]
    frames: list[Frame] = []
    for number, (start, end) in enumerate(pairwise(edges)):
        last = number == len(edges) - 2
        frames.append(Frame(CONTINUATION if number else TEXT, payload[start:end], fin=last, mask=draw(masks)))
        if not last:
            frames += draw(st.lists(pings, max_size=2))
    return frames


conversations = st.lists(
    st.one_of(texts, fragmented(), texts, fragmented(), pings.map(lambda ping: [ping]), broken_texts, closes, others),
    min_size=1,
    max_size=6,
).map(lambda parts: [frame for part in parts for frame in part])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The bytes of a conversation with up to two things wrong in it."""
    frames = draw(conversations)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(frames) - 1))
        size = len(frames[place].payload)
        slips: list[dict[str, Any]] = [
            {"masked": False},
            {"fin": not frames[place].fin},
            {"width": 2},
            {"width": 8},
            {"payload": b"p" * 126},
            *({"claims_more": more} for more in (1, 70_000, (1 << 63) - 1 - size, (1 << 63) - size)),
            *({"reserved": bits} for bits in range(1, 8)),
            *({"opcode": opcode} for opcode in range(16)),
        ]
        change = draw(st.sampled_from(slips))
        frames[place] = frames[place]._replace(**change)
    data = bytearray(b"".join(frame.encode() for frame in frames))
    match draw(st.sampled_from(["leave it", "leave it", "change a byte", "cut it short", "lose a byte"])):
        case "change a byte":
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        case "cut it short":
            del data[draw(st.integers(0, len(data))) :]
        case "lose a byte":
            del data[draw(st.integers(0, len(data) - 1))]
    return bytes(data)


TAIL = bytes(0x10000 + 14)
"""Completes every frame whose length has 16 bits or less; then it is no masked frame, and so an end."""


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


def test_the_reader_says_whether_something_has_begun() -> None:
    reader = FrameReader(100)
    assert not reader.partial
    for chunk in byte_by_byte(text("hello").encode())[:-1]:
        reader.feed(chunk)
        assert reader.partial
    reader.feed(text("hello").encode()[-1:])
    assert not reader.partial
    reader.feed(text("begun", fin=False).encode())
    assert reader.partial
    reader.feed(Frame(CONTINUATION, b"ended").encode())
    assert not reader.partial


def test_nothing_is_half_begun_once_the_reader_has_failed() -> None:
    reader = FrameReader(100)
    reader.feed(text("begun", fin=False).encode() + Frame(PING, fin=False).encode() + text("and more").encode()[:4])
    assert reader.close is not None
    assert not reader.partial


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
