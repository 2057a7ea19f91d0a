"""Frames as a WebSocket client may send them, right and wrong, and what becomes of them: by wsproto, and by us."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.feeding import fed_every_way
from trisync.wire.wsframes import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UNSUPPORTED_DATA,
    Close,
    FrameReader,
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
