"""Whatever bytes come, whole or one by one: a message, a documented error, or the wait for more; nothing else, ever.

First each parser on its own, then all of them behind the doors. What messages should come of which bytes is tested with
each parser; here it is only that nothing makes them raise, forget their limits, or hear it differently in pieces.
"""

import json
import logging
from collections.abc import Callable, Sequence

import h11
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from tests.feeding import byte_by_byte, cut, fed_every_way
from tests.hostile.memory_doors import exchange, memory_doors
from tests.hostile.raw_peers import BINARY, CLOSE, CONTINUATION, FIN, PING, TEXT, UPGRADE, frame
from trisync.wire.console import Console, GoOnInJson, Quit, Say
from trisync.wire.dialects import Dialect, skip_blanks, tell_dialect
from trisync.wire.errors import CODES
from trisync.wire.framing import FrameSplitter, LineSplitter, Splitter
from trisync.wire.protocol import OPERATIONS, BadRequest, Request, decode_request
from trisync.wire.telnet import TelnetFilter, edited
from trisync.wire.wsframes import FrameReader

LIMIT = 1024

REQUESTS = [
    b'{"op":"ping","id":1}',
    b'{"op":"hello","id":2,"name":"ann","producer":"0123456789abcdef"}',
    b'{"op":"publish","id":3,"channel":"lobby","data":[1,{"a":null}],"seq":1}',
    b'{"op":"publish","id":4,"channel":"lobby","data":{"a":1},"key":"k","merge":true,"expect":0}',
    b'{"op":"publish","id":5,"channel":"lobby","data":"\xc3\xa4","ephemeral":true}',
    b'{"op":"subscribe","id":6,"channel":"lobby","since":0,"epoch":"e1","state":true,"presence":true}',
    b'{"op":"subscribe","id":7,"channel":"other","last":3}',
    b'{"op":"unsubscribe","id":8,"channel":"lobby"}',
    b'{"op":"history","id":9,"channel":"lobby","limit":2}',
    b'{"op":"state","id":"x","channel":"lobby","after":"k"}',
    b'{"op":"presence","id":11,"channel":"lobby"}',
]
BROKEN = [
    b"",
    b"{",
    b"{}",
    b"null",
    b'{"op":"nope","id":1}',
    b'{"op":"publish","channel":"lobby","data":"\xff"}',
    b'{"op":"publish","id":1,"channel":"lobby","data":"\\ud800"}',
    b'{"op":"publish","id":1,"channel":"lobby","data":1e999}',
    b'{"op":"publish","id":1,"channel":"lobby","data":' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"op":"subscribe","id":1,"channel":"lobby","since":-1}',
    b'{"op":"history","id":1,"channel":"lobby","limit":99999999999999999999999999}',
    b'{"op":"ping","id":1}{"op":"ping","id":2}',
    b'{"op":"ping","id":' + b"9" * 400 + b"}",
    b'{"op":"ping","op":"hello","id":[]}',
    b'{"op":"ping","id":"' + b"x" * LIMIT + b'"}',
]
TYPED = [b"hello", b"/help", b"/join a 3", b"/set k {", b"/get", b"/who", b"/history 2", b"/json", b"/quit", b"//x"]

payloads = st.one_of(
    st.sampled_from(REQUESTS + BROKEN),
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)


@st.composite
def mutated(draw: st.DrawFn, requests: list[bytes]) -> bytes:
    """A request with some bytes lost, doubled or changed."""
    data = bytearray(draw(st.sampled_from(requests)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 5)))
        data[at:until] = draw(st.binary(max_size=5) | st.just(bytes(data[at:until]) * 2))
    return bytes(data)


def as_line(payload: bytes) -> bytes:
    return payload + b"\n"


def as_frame(payload: bytes) -> bytes:
    return (len(payload) + 4).to_bytes(4, "big") + payload


def as_text(payload: bytes) -> bytes:
    return frame(FIN | TEXT, payload)


OTHER_FRAMES = [
    frame(FIN | PING, b"p"),
    frame(TEXT, b'{"op":'),
    frame(FIN | CONTINUATION, b'"ping"}'),
    frame(CONTINUATION),
    frame(FIN | BINARY, b"x"),
    frame(FIN | CLOSE, b"\x03\xe8bye"),
    frame(FIN | CLOSE, b"\x03"),
    frame(FIN | TEXT, b"x", mask=b""),
    frame(FIN | TEXT, length=1 << 62)[:10],
]


def call(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: localhost", *headers, b"", body])


def as_call(payload: bytes) -> bytes:
    return call(b"POST /channels/lobby/messages", b"Content-Length: %d" % len(payload), body=payload)


CHUNKED = b"Transfer-Encoding: chunked"
CALLS = [
    call(b"GET /channels?limit=2"),
    call(b"GET /channels/lobby/messages?since=0&limit=1"),
    call(b"GET /channels/lobby/events?presence=true", b"Last-Event-ID: 0"),
    call(b"PUT /channels/lobby/state/%C3%A4", b"If-None-Match: *", CHUNKED, body=b"2\r\n[1\r\n1;x\r\n]\r\n0\r\n\r\n"),
    call(b"PATCH /channels/lobby/state/k?name=ann", b"If-Match: *", b"Content-Length: 7", body=b'{"a":1}'),
    call(b"POST /channels/a%2Fb/messages?expect=0&key=k", b"Idempotency-Key: i", CHUNKED, body=b"1\r\n1\r\n0\r\n\r\n"),
    call(b"POST /channels/a/messages?ephemeral=true", b"Expect: 100-continue", b"Content-Length: 1", body=b"1"),
    call(b"POST /channels/a/messages", CHUNKED, body=b"401\r\n" + b"1" * (LIMIT + 1)),
    call(b"POST /channels/a/nowhere", b"Content-Length: 1", body=b"1"),
    call(b"PUT /channels/a/state/%FF", b"Content-Length: 1", body=b"1"),
    call(b"PUT /channels/a/state/k", b"Content-Length: 999", body=b"1"),
    call(b"DELETE /channels/lobby"),
    call(b"DELETE /nowhere"),
    call(b"OPTIONS /channels/lobby/state/k", b"Origin: http://localhost"),
    (put := call(b"PUT /channels/a/state/k", b"Content-Length: 1", body=b"1"))
    + call(b"GET /channels/a/state/k", b'If-None-Match: "1"'),
    put + call(b"DELETE /channels/a/state/k", b'If-Match: "1"'),
]
DIALECTS: dict[str, tuple[Callable[[bytes], bytes], list[bytes]]] = {
    "lines": (as_line, [b"\r\n", b"\n\n", b"{", b"x" * (LIMIT + 2)]),
    "frames": (as_frame, [bytes(4), b"\0\0\0\x05x", b"\0\0\x10\0{", b"\xff\xff\xff\xff"]),
    "websocket": (as_text, OTHER_FRAMES),
    "console": (as_line, [*map(as_line, TYPED), b"\xff\xfd\x01", b"\xff\xfa\x1f\0\xff\xf0", b"\xff", b"\x08\x7f\0"]),
    "http": (as_call, CALLS),
}


def streams(dialect: str) -> st.SearchStrategy[bytes]:
    """Bytes of a client that speaks a dialect, well or badly."""
    framed, odd = DIALECTS[dialect]
    words = st.one_of((payloads | mutated(REQUESTS)).map(framed), st.sampled_from(odd), st.binary(max_size=8))
    if dialect == "http":
        words = mutated(CALLS) | words
    return st.lists(words, max_size=8).map(b"".join)


# Each parser alone


def split(splitter: Splitter, chunks: Sequence[bytes]) -> tuple[list[bytes], str | None]:
    found = [payload for chunk in chunks for payload in splitter.feed(chunk)]
    assert all(len(payload) <= LIMIT for payload in found)
    return found, None if splitter.failed is None else splitter.failed.code


@settings(max_examples=150, deadline=None)
@given(st.one_of(*map(streams, DIALECTS)), st.lists(st.integers(0, 200), max_size=5))
def test_splitters_give_payloads_or_a_documented_error(data: bytes, places: list[int]) -> None:
    makes: list[tuple[Callable[[], Splitter], set[str]]] = [
        (lambda: LineSplitter(LIMIT), {"too_large"}),
        (lambda: LineSplitter(LIMIT, keep_empty=True), {"too_large"}),
        (lambda: FrameSplitter(LIMIT), {"too_large", "bad_request"}),
    ]
    for make, codes in makes:
        _, code = fed_every_way(data, lambda chunks, make=make: split(make(), chunks), places)  # type: ignore[misc]
        assert code is None or code in codes


@settings(max_examples=150, deadline=None)
@given(st.one_of(*map(streams, DIALECTS)), st.lists(st.integers(0, 200), max_size=5))
def test_a_websocket_gives_texts_or_a_close_code_of_the_rfc(data: bytes, places: list[int]) -> None:
    def read(chunks: Sequence[bytes]) -> tuple[list[bytes], bytes, int | None]:
        reader = FrameReader(LIMIT)
        texts = [text for chunk in chunks for text in reader.feed(chunk)]
        assert all(len(text) <= LIMIT and text.decode() is not None for text in texts)
        code = None if reader.close is None else reader.close.code or 1005
        return texts, reader.take_answers(), code

    _, _, code = fed_every_way(data, read, places)
    assert code is None or code in {*range(1000, 1015), *range(3000, 5000)} - {1004, 1006}


def decoded(payload: bytes) -> Request | BadRequest:
    try:
        return decode_request(payload)
    except BadRequest as bad:
        return bad


@settings(max_examples=500, deadline=None)
@given(payloads | mutated(REQUESTS))
@example(b"\xef\xbb\xbf{}")
def test_a_payload_is_a_request_or_a_documented_error(payload: bytes) -> None:
    outcome = decoded(payload)
    if isinstance(outcome, BadRequest):
        assert outcome.error.code in {"bad_json", "bad_request", "unknown_op"}
        assert not outcome.error.closes
        error = json.loads(outcome.error.encode(outcome.id))
        assert (error["op"], error["code"]) == ("error", outcome.error.code)
        assert outcome.seq is UNSET or outcome.op == "publish"
    else:
        assert outcome.__struct_config__.tag in OPERATIONS


@settings(max_examples=150, deadline=None)
@given(streams("console") | st.binary(max_size=60), st.lists(st.integers(0, 200), max_size=5))
def test_a_persons_bytes_become_text_and_actions(data: bytes, places: list[int]) -> None:
    def filtered(chunks: Sequence[bytes]) -> tuple[bytes, bytes]:
        telnet = TelnetFilter()
        texts, answers = zip(*[telnet.feed(chunk) for chunk in chunks] or [(b"", b"")], strict=True)
        return b"".join(texts), b"".join(answers)

    text, answers = fed_every_way(data, filtered, places)
    assert len(text) + len(answers) <= 2 * len(data)
    console = Console()
    for line in text.split(b"\n"):
        try:
            typed = edited(line).decode()
        except UnicodeDecodeError:
            continue  # the session says so
        for action in console.read(typed):
            assert isinstance(action, Say | GoOnInJson | Quit | Request)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", b" ", b"\xef\xbb\xbf", b"\xff\xfd\x01"]), st.one_of(*map(streams, DIALECTS)))
def test_a_dialect_is_told_from_few_bytes_and_more_of_them_do_not_change_it(before: bytes, data: bytes) -> None:
    told: Dialect | None = None
    for size in range(min(len(data), 20) + 1):
        dialect = tell_dialect(skip_blanks(before + data[:size]))
        assert told is None or dialect is told
        told = dialect
    assert told is not None or len(skip_blanks(before + data[:20])) < 8


# All of them behind the doors


Answers = list[tuple[str, str]]
CLOSES = ("closes", "")
STATUSES_TOLD = {200, 201, 202, 204, 304, 400, 403, 404, 405, 409, 412, 413, 415, 421, 422, 426, 501}
"""What may come of any bytes: what protocol.md has, but for a server that is slow, full, stopping or broken."""


def responses(said: bytes) -> Answers:
    """The status of each HTTP response, with its error's code, and whether the last says that the connection ends."""
    answers: Answers = []
    while said:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
        client.send(h11.EndOfMessage())
        client.receive_data(said)
        client.receive_data(b"")
        body = b""
        while type(event := client.next_event()) is not h11.EndOfMessage:
            if isinstance(event, h11.Response):
                status, content_type = event.status_code, dict(event.headers).get(b"content-type")
            elif isinstance(event, h11.Data):
                body += event.data
        assert status in STATUSES_TOLD, (status, body)
        answered = json.loads(body) if body and content_type == b"application/json" else None
        answers.append((str(status), answered["code"] if answered and status >= 400 else ""))
        said, _ = client.trailing_data
        if client.their_state is h11.MUST_CLOSE:
            assert not said
            answers.append(CLOSES)
    return answers


def agree(answers: Answers, whole: Answers) -> bool:
    """Whether bytes in pieces are answered as they are whole; HTTP may end behind an error, its body yet to come."""
    *told, last = answers or [CLOSES]
    refused = last == CLOSES and told != [] and told[-1][1] != ""
    return answers == whole or (refused and told == whole[: len(told)])


def heard(dialect: str, said: bytes) -> Answers:
    """The answers in what the server said, which must be of this dialect; what they say is left out."""
    payloads: list[bytes] = []
    match dialect:
        case "lines":
            assert not said or said.endswith(b"\n")
            payloads = said.splitlines()
        case "frames":
            splitter = FrameSplitter(1 << 24)
            payloads = splitter.feed(said)
            assert splitter.held_bytes is None
            assert splitter.failed is None
        case "websocket":
            _, _, rest = said.partition(b"\r\n\r\n")
            while rest:
                size, start = rest[1], 2
                assert size < 127
                if size == 126:
                    size, start = int.from_bytes(rest[2:4], "big"), 4
                if rest[0] == FIN | TEXT:
                    payloads.append(rest[start : start + size])
                rest = rest[start + size :]
        case "http":
            return responses(said)
    messages = [json.loads(payload) for payload in payloads]
    assert all(message.get("code", "draining") in CODES and message.get("code") != "internal" for message in messages)
    # What is pushed depends on whether a publish was on the disk when its channel was subscribed to.
    answers = [message for message in messages if "id" in message or message["op"] == "error"]
    return sorted((answer["op"], answer.get("code", "")) for answer in answers)


BEGINNING = {"lines": b"{}\n", "frames": b"\0\0\0\x06{}", "websocket": UPGRADE, "console": b"\n", "http": b""}


async def converse(dialect: str, data: bytes, chunks: Callable[[bytes], list[bytes]]) -> Answers:
    async with memory_doors(message_bytes_max=LIMIT, linger_s=0.1) as doors:
        stream = doors.connect("web" if dialect in ("websocket", "http") else "tcp")
        said = await exchange(stream, [*filter(None, [BEGINNING[dialect], *chunks(data)])])
        while len(doors.registry):
            await doors.registry.left()
        other = doors.connect("tcp")
        assert await exchange(other, [b'{"op":"ping","id":"still here"}\n']) == b'{"op":"pong","id":"still here"}\n'
        return heard(dialect, said)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_bytes_at_a_door_are_a_bug(dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(streams(dialect), st.lists(st.integers(0, 200), max_size=5))
    def attack(data: bytes, places: list[int]) -> None:
        def run(chunks: Callable[[bytes], list[bytes]]) -> Answers:
            clock = trio.testing.MockClock(autojump_threshold=0)
            return trio.run(converse, dialect, data, chunks, clock=clock)

        caplog.clear()
        whole = run(lambda data: [data])
        assert agree(run(lambda data: cut(data, places)), whole)
        if len(data) < 250:
            assert agree(run(byte_by_byte), whole)
        bugs = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
        assert not bugs, (bugs, data)

    for word in DIALECTS[dialect][1]:
        attack = example(word * 2, [])(attack)
    attack()
