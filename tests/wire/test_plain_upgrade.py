"""Plain opening handshakes: what is read at once is what h11, our rules and trio-websocket say, to the byte."""

import base64
from typing import NamedTuple

import h11
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trisync.core.outbox import DirectStream
from trisync.doors.websocket import shake_hands
from trisync.sessions.connection import Connection
from trisync.settings import Settings
from trisync.wire.http_rules import header, refuse_upgrade, wants_upgrade
from trisync.wire.plain_upgrade import HEAD_BYTES_MAX, accept_answer, read_plain_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # and its answer: RFC 6455, section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

BROWSER = (
    b"GET /chat?room=1 HTTP/1.1",
    b"Host: localhost:8000",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    b"Accept: */*",
    b"Accept-Language: en-US,en;q=0.5",
    b"Sec-WebSocket-Version: 13",
    b"Origin: http://localhost:8000",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Key: " + KEY,
    b"Cookie: theme=dark; session=0123",
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: websocket",
)
LIBRARY = (
    b"GET / HTTP/1.1",
    b"Host: 127.0.0.1:8000",
    b"Upgrade: WebSocket",
    b"Connection: upgrade",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
)


def written(*lines: bytes, rest: bytes = b"") -> bytes:
    """A whole head, and what comes behind it."""
    return b"\r\n".join([*lines, b"", rest])


class Reading(NamedTuple):
    """What a client's first bytes were found to be."""

    headers: list[tuple[bytes, bytes]]
    key: bytes
    rest: bytes


def by_h11(data: bytes) -> Reading | None:
    """As the web door reads what is not plain: a good upgrade, or None for all else."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    try:
        event = http.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    headers = list(event.headers)
    if not wants_upgrade(headers) or refuse_upgrade(event.method, event.http_version, headers):
        return None
    return Reading(headers, header(headers, b"sec-websocket-key") or b"", http.trailing_data[0])


@pytest.mark.parametrize("lines", [BROWSER, LIBRARY])
@pytest.mark.parametrize("rest", [b"", b"\x81\x82\0\0\0\0hi", b"\r\n\r\n"])
def test_what_browsers_and_libraries_send_is_plain(lines: tuple[bytes, ...], rest: bytes) -> None:
    upgrade = read_plain_upgrade(written(*lines, rest=rest))
    assert upgrade is not None
    assert Reading(upgrade.headers, upgrade.key, upgrade.rest) == by_h11(written(*lines, rest=rest))
    assert b"\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n" in upgrade.answer
    assert upgrade.rest == rest


def test_a_head_that_is_not_whole_is_not_plain() -> None:
    whole = written(*BROWSER)
    for end in range(len(whole)):
        assert read_plain_upgrade(whole[:end]) is None


def test_a_long_head_is_not_plain() -> None:
    cookie = b"Cookie: " + b"x" * HEAD_BYTES_MAX
    assert read_plain_upgrade(written(*LIBRARY, cookie)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LIBRARY[0], b"POST / HTTP/1.1"),
        (LIBRARY[0], b"GET / HTTP/1.0"),
        (LIBRARY[0], b"GET / HTTP/2.0"),
        (LIBRARY[0], b"GET  HTTP/1.1"),
        (LIBRARY[0], b"GET http://localhost/ HTTP/1.1"),
        (LIBRARY[1], b"X: y"),
        (LIBRARY[2], b"Upgrade: h2c"),
        (LIBRARY[2], b"Upgrade: websocket, h2c"),
        (LIBRARY[3], b"Connection: keep-alive"),
        (LIBRARY[4], b"Sec-WebSocket-Key: short"),
        (LIBRARY[5], b"Sec-WebSocket-Version: 8"),
        (LIBRARY[1], LIBRARY[1] + b"\r\n" + LIBRARY[1]),
        (LIBRARY[5], LIBRARY[5] + b"\r\n folded"),
        (LIBRARY[5], LIBRARY[5] + b"\r\nContent-Length: 2"),
        (LIBRARY[5], LIBRARY[5] + b"\r\nTransfer-Encoding: chunked"),
        (LIBRARY[5], LIBRARY[5] + b"\r\nExpect: 100-continue"),
        (LIBRARY[5], LIBRARY[5] + b"\nX: y"),
        (LIBRARY[5], LIBRARY[5] + b"\r\nX: \xff"),
        (LIBRARY[5], LIBRARY[5] + b"\r\nX : y"),
    ],
)
def test_what_is_broken_or_unusual_is_left_to_h11(old: bytes, new: bytes) -> None:
    assert read_plain_upgrade(written(*LIBRARY).replace(old, new, 1)) is None


NAMES = st.sampled_from(
    [
        *(b"Host", b"Upgrade", b"Connection", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Origin", b"X"),
        *(b"Content-Length", b"Transfer-Encoding", b"Expect", b"upgrade", b"CONNECTION", b"x_y", b"", b"Host "),
    ]
)
VALUES = st.sampled_from(
    [
        *(b"localhost", b"websocket", b"WebSocket", b"Upgrade", b"keep-alive, upgrade", b"13", KEY, b"chunked", b"0"),
        *(
            b"",
            b" ",
            b"upgrade ",
            b"\tupgrade",
            b"a\x0bb",
            b"\xe4",
            b"h2c",
            b"websocket,h2c",
            b"Upgrade,\t,x",
            b"8, 13",
        ),
    ]
) | st.binary(max_size=8)
FIELDS = st.builds(
    lambda name, colon, value: name + colon + value, NAMES, st.sampled_from([b": ", b":", b" : "]), VALUES
)
SNIPPETS = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\0", b"\xff", b"\r\n\r\n", b"x"]
) | st.binary(max_size=3)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Good handshakes with something added, taken away, put elsewhere or cut into."""
    lines = list(draw(st.sampled_from([BROWSER, LIBRARY])))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(1, len(lines)))
        match draw(st.sampled_from(["add", "drop", "replace", "move"])):
            case "add":
                lines.insert(place, draw(FIELDS))
            case "drop" if place < len(lines):
                del lines[place]
            case "replace":
                lines[place:] = [draw(FIELDS), *lines[place + 1 :]]
            case "move" if place < len(lines):
                lines.insert(draw(st.integers(1, len(lines) - 1)), lines.pop(place))
    data = written(*lines, rest=draw(st.binary(max_size=6)))
    for _ in range(draw(st.integers(0, 1))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(SNIPPETS) + data[start + draw(st.integers(0, 3)) :]
    return data


@settings(max_examples=1000, deadline=None)
@given(heads())
@example(written(*LIBRARY, b"X: y "))
@example(written(*LIBRARY[:-1], LIBRARY[-1] + b"  ", rest=b" "))
def test_what_is_read_as_plain_is_what_h11_and_the_rules_say(data: bytes) -> None:
    upgrade = read_plain_upgrade(data)
    if upgrade is not None:
        assert Reading(upgrade.headers, upgrade.key, upgrade.rest) == by_h11(data)
        assert upgrade.answer == accept_answer(upgrade.key)


class Heard(DirectStream):
    """A stream that keeps what is sent to it."""

    def __init__(self) -> None:
        self.data = b""

    def try_send(self, data: bytes | memoryview) -> int:
        self.data += data
        return len(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16).map(base64.b64encode))
@example(KEY)
def test_the_answer_is_trio_websockets_to_the_byte(key: bytes) -> None:
    stream = Heard()
    trio.run(shake_hands, key, Connection(stream, Settings(), "somebody"))
    assert accept_answer(key) == stream.data
