"""Requests: each field's type and range, JSON as strict as it is promised, and what a refusal says."""

import json
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from tests.harness import PATIENCE_S
from trisync.wire.protocol import (
    DEPTH_MAX,
    OFFSET_MAX,
    OPERATIONS,
    AnyRequest,
    BadRequest,
    GetPresence,
    GetState,
    Hello,
    History,
    Ping,
    Publish,
    Subscribe,
    Unsubscribe,
    channel_is_valid,
    compose_publish,
    data_text,
    decode_request,
)


def decode(op: str, **fields: Any) -> AnyRequest:
    return decode_request(json.dumps({"op": op, **fields}).encode())


def refusal(payload: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decode_request(payload)
    return caught.value


def refused(op: str, **fields: Any) -> BadRequest:
    return refusal(json.dumps({"op": op, **fields}).encode())


def published(data: bytes) -> bytes:
    return b'{"op":"publish","id":1,"channel":"lobby","data":' + data + b"}"


def test_every_operation_is_decoded() -> None:
    minimal: dict[str, dict[str, Any]] = {
        "hello": {},
        "publish": {"channel": "lobby", "data": 1},
        "subscribe": {"channel": "lobby"},
        "unsubscribe": {"channel": "lobby"},
        "history": {"channel": "lobby"},
        "state": {"channel": "lobby"},
        "presence": {"channel": "lobby"},
        "ping": {},
    }
    types = [Hello, Publish, Subscribe, Unsubscribe, History, GetState, GetPresence, Ping]
    assert tuple(minimal) == OPERATIONS
    assert [type(decode(op, **fields)) for op, fields in minimal.items()] == types
    for op, fields in minimal.items():
        for name in fields:
            bad = refused(op, id=5, **{key: value for key, value in fields.items() if key != name})
            assert (bad.error.code, bad.op, bad.id) == ("bad_request", op, 5)
            assert name in bad.error.message


def test_fields_left_out_have_their_defaults() -> None:
    history = decode("history", channel="a")
    assert isinstance(history, History)
    assert (history.limit, history.since, history.id) == (100, UNSET, UNSET)
    subscribe = decode("subscribe", channel="a")
    assert isinstance(subscribe, Subscribe)
    assert (subscribe.since, subscribe.last, subscribe.epoch) == (UNSET, UNSET, UNSET)
    publish = decode("publish", channel="a", data=None)
    assert isinstance(publish, Publish)
    assert (bytes(publish.data), publish.seq, publish.ephemeral) == (b"null", UNSET, False)


BIG = 2**53
KEYS: tuple[list[Any], list[Any]] = (
    ["a", "x" * 512, "é" * 256, "a b", "title", "\u2028"],
    ["", "x" * 513, "é" * 257, "a\n", "\0", "\x7f", "\u0085", 1, None],
)
FIELDS: list[tuple[str, str, list[Any], list[Any]]] = [
    ("ping", "id", [0, -1, BIG, -BIG, "", "x" * 64, "é" * 64], [BIG + 1, -BIG - 1, 1.5, 1.0, True, None, [], "x" * 65]),
    ("hello", "name", ["a", "é" * 64, "a b", "\u2028"], ["", "x" * 65, "a\n", "\x1b[2J", "\x7f", "\u0085", 1, None]),
    ("hello", "producer", ["p" * 16, "p" * 64], ["p" * 15, "p" * 65, "p" * 15 + " ", "p" * 16 + "\n", "é" * 16, 1]),
    ("publish", "seq", [1, OFFSET_MAX], [0, -1, OFFSET_MAX + 1, 1.0, "1", True, None]),
    ("publish", "ephemeral", [True, False], [0, 1, "true", None]),
    ("subscribe", "since", [0, OFFSET_MAX], [-1, OFFSET_MAX + 1, 0.5, "0", None]),
    ("subscribe", "last", [1, 1000], [0, 1001, -1, 1.5, "1", None]),
    ("subscribe", "epoch", ["", "x" * 1000], [1, None]),
    ("history", "since", [0, OFFSET_MAX], [-1, OFFSET_MAX + 1, "0"]),
    ("history", "limit", [1, 1000], [0, 1001, "1", None, 1.5]),
    ("publish", "key", *KEYS),
    ("publish", "merge", [False], [0, 1, "true", None]),
    ("subscribe", "state", [True, False], [0, 1, "true", None]),
    ("subscribe", "presence", [True, False], [0, 1, "true", None]),
    ("state", "key", *KEYS),
    ("state", "after", ["", "x" * 512], [1, None, "x" * 513]),
    ("presence", "after", ["", "x" * 64], [1, None, "x" * 65]),
]


@pytest.mark.parametrize(("op", "field", "good", "bad"), FIELDS, ids=[f"{op} {field}" for op, field, *_ in FIELDS])
def test_a_field_takes_its_type_and_range_and_nothing_else(
    op: str, field: str, good: list[Any], bad: list[Any]
) -> None:
    others: dict[str, Any] = {"ping": {}, "hello": {}, "publish": {"channel": "a", "data": 1}}.get(op, {"channel": "a"})
    for value in good:
        assert getattr(decode(op, **others, **{field: value}), field) == value
    for value in bad:
        problem = refused(op, **others, **{field: value})
        assert problem.error.code == "bad_request", value
        assert field in problem.error.message, (value, problem.error.message)


CHANNELS_GOOD = ["a", "lobby", "A-Z_0.9:/@#=", "x" * 200, "..", "/"]
CHANNELS_BAD = ["", "x" * 201, "a b", "$sys", "é", "a\n", "a\0", "a,b", "a*", '"', "\uff41", "a\\"]


@pytest.mark.parametrize("op", ["publish", "subscribe", "unsubscribe", "history", "state", "presence"])
def test_a_channel_name_is_one_to_two_hundred_of_the_named_characters(op: str) -> None:
    data = {"data": 1} if op == "publish" else {}
    for name in CHANNELS_GOOD:
        assert channel_is_valid(name)
        assert getattr(decode(op, channel=name, **data), "channel", None) == name
    for name in CHANNELS_BAD:
        assert not channel_is_valid(name)
        bad = refused(op, id="i", channel=name, **data)
        assert (bad.error.code, bad.op, bad.id) == ("bad_request", op, "i")
        assert "channel" in bad.error.message


def test_nothing_is_kept_of_channel_names_that_are_too_long() -> None:
    tracemalloc.start()
    try:
        for number in range(100):
            assert not channel_is_valid(f"{number}-{'x' * 10_000}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


def test_since_and_last_do_not_go_together() -> None:
    assert refused("subscribe", channel="a", since=1, last=1).error.code == "bad_request"


@pytest.mark.parametrize("condition", [{"expect": 0}, {"merge": True}])
def test_a_condition_needs_a_key_to_be_about(condition: dict[str, Any]) -> None:
    bad = refused("publish", id=1, channel="a", data=1, seq=7, **condition)
    assert (bad.error.code, bad.id, bad.seq) == ("bad_request", 1, 7)
    assert "key" in bad.error.message
    assert isinstance(decode("publish", channel="a", data=1, key="k", **condition), Publish)


def test_one_key_and_a_page_of_keys_do_not_go_together() -> None:
    assert refused("state", channel="a", key="k", after="j").error.code == "bad_request"


@pytest.mark.parametrize("field", [{"key": "k"}, {"key": "k", "expect": 1}, {"key": "k", "merge": True}])
def test_an_ephemeral_publish_has_no_key(field: dict[str, Any]) -> None:
    assert refused("publish", channel="a", data=1, ephemeral=True, **field).error.code == "bad_request"


def test_an_ephemeral_publish_has_no_seq() -> None:
    bad = refused("publish", id=1, channel="a", data=1, seq=7, ephemeral=True)
    assert (bad.error.code, bad.seq) == ("bad_request", 7)


def test_unknown_fields_are_ignored() -> None:
    assert decode("ping", id=1, colour="red", deep={"a": [1]}) == Ping(id=1)


# Refusals say who asked


def test_a_refused_publish_shows_its_op_id_and_seq_so_that_it_can_be_settled() -> None:
    for fields in ({"channel": "a b", "data": 1}, {"channel": "a"}, {"channel": 5, "data": 1}, {"data": 1}):
        bad = refused("publish", id="mine", seq=3, **fields)
        assert (bad.error.code, bad.op, bad.id, bad.seq) == ("bad_request", "publish", "mine", 3)


def test_what_cannot_be_read_of_a_refused_request_is_left_out() -> None:
    bad = refused("publish", id=1.5, seq=0, channel="a", data=1)
    assert (bad.op, bad.id, bad.seq) == ("publish", UNSET, UNSET)
    assert refusal(b'{"op":7,"id":3}').op == ""
    assert refusal(b'{"op":7,"id":3}').id == 3
    assert refusal(b'{"id":3}').id == 3


@pytest.mark.parametrize(
    "data", [b'"\xff"', rb'"\ud800"', b"[" * 64 + b"]" * 64], ids=["not-utf-8", "lone-surrogate", "too-deep"]
)
def test_what_is_no_json_is_that_whatever_its_seq_is(data: bytes) -> None:
    bad = refusal(b'{"op":"publish","id":1,"channel":"a","seq":7,"data":%b}' % data)
    assert (bad.error.code, bad.op, bad.id, bad.seq) == ("bad_json", "publish", 1, UNSET)


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\uD83D", rb"\ude00", rb"a\ud83d\ud83db", rb"\\\ud83d"])
def test_a_lone_surrogate_is_called_that(half: bytes) -> None:
    for payload in (b'{"op":"ping","id":"\\u00e9","x":"%b"}' % half, b'{"op":5,"id":"\\u00e9","%b":1}' % half):
        bad = refusal(payload)
        assert (bad.error.code, bad.id) == ("bad_json", "é")
        assert "surrogate" in bad.error.message
    with pytest.raises(BadRequest, match="surrogate"):
        compose_publish(b'"%b"' % half, channel="a")


@pytest.mark.parametrize("id", [rb'"\ud83d"', rb'"\ud83d\ude00"'], ids=["lone", "pair"])
def test_beside_a_lone_surrogate_no_other_id_is_read_than_was_sent(id: bytes) -> None:
    for value in (b'"\\ud800"', b"[" * 64 + b'"\\ud800"' + b"]" * 64):
        assert refusal(b'{"op":"ping","id":%b,"x":%b}' % (id, value)).id is UNSET
    assert refusal(b'{"op":"ping","\\ud069d":7,"x":"\\ud800"}').id is UNSET  # U+D069, which is no surrogate


def test_only_a_publish_has_a_seq() -> None:
    assert refused("subscribe", channel=1, seq=4).seq is UNSET


def test_an_unknown_operation_is_named_as_far_as_it_is_short() -> None:
    bad = refused("nope", id=9)
    assert (bad.error.code, bad.id) == ("unknown_op", 9)
    assert "nope" in bad.error.message
    assert len(refused("x" * 10_000).error.message) < 100


@pytest.mark.parametrize("payload", [b"[]", b"1", b"null", b'"op"', b"true"])
def test_a_request_is_an_object(payload: bytes) -> None:
    assert refusal(payload).error.code == "bad_request"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b'{"op":"ping"',
        b'{"op":"ping"}{"op":"ping"}',
        b'{"op":"ping"} x',
        b"{'op':'ping'}",
        b'{"op":"ping",}',
        b'\xef\xbb\xbf{"op":"ping"}',
        b'{"op":"ping","x":"\xff"}',
        b'{"op":"ping","x":"\xed\xa0\x80"}',
        b'{"op":"ping","x":"\\ud800"}',
        b'{"op":"ping","x":"a\nb"}',
        b'{"op":"ping","x":NaN}',
    ],
)
def test_what_is_not_strict_json_is_bad_json(payload: bytes) -> None:
    assert refusal(payload).error.code == "bad_json"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"op":"nope"} x',
        b'{"op":"nope","x":01}',
        b'{"op":5,"x":"\\ud800"}',
        b'{"op":"publish","channel":1,"data":[1,]}',
        b"[] []",
        b'{"op":"nope","x":' + b"[" * 200,
    ],
)
def test_what_is_wrong_in_two_ways_is_refused_like_anything_else(payload: bytes) -> None:
    assert refusal(payload).error.code in ("bad_json", "bad_request")


# Data: as strict as the standard library's reader, and passed on as it came


class Pairs(list[Any]):
    """An object as the standard library reads it, with its repeated names."""


def strict_value(text: bytes) -> Any:
    """What JSON text means; raises ValueError where it is not JSON as RFC 8259 has it, in Unicode as it should be."""

    def no_constants(name: str) -> None:
        raise ValueError(name)

    # Numbers as text: how large they may be is not JSON's matter.
    value = json.loads(
        text.decode(), parse_constant=no_constants, parse_int=str, parse_float=str, object_pairs_hook=Pairs
    )
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no Unicode text: UnicodeEncodeError
    return value


def depth(value: Any) -> int:
    if isinstance(value, Pairs):
        return 1 + max((depth(inner) for _, inner in value), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def is_strict(text: bytes) -> bool:
    try:
        return depth(strict_value(text)) <= DEPTH_MAX
    except ValueError:
        return False


spaces = st.sampled_from(["", "", "", " ", "\n", "\r\n", "\t", "\r \n"])
numbers = st.sampled_from(
    ["0", "-0", "12", "-7", "1.5", "0.0", "1e5", "1E+5", "2e-3", "-1.25e10", "9" * 40, "1e999", "0.1", "1" + "0" * 400]
)
pieces = st.sampled_from(
    [*("a", "é", "\U0001f600", "\u2028", "\x7f", "\u0085", " ", "[", "]", "{", "}", ":", ",", "'", "/")]
    + [rf"\{char}" for char in '"\\/bfnrt']
    + [r"\u0041", r"\u0000", r"\ud83d\ude00", r"\uFFFF", "\r".encode("unicode_escape").decode()]
)
strings = st.lists(pieces, max_size=5).map(lambda parts: f'"{"".join(parts)}"')
scalars = st.one_of(numbers, strings, st.sampled_from(["true", "false", "null", "[]", "{}"]))


def containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    padded = st.tuples(spaces, values, spaces).map("".join)
    members = st.tuples(spaces, strings, spaces, st.just(":"), padded).map("".join)
    return st.one_of(
        st.lists(padded, min_size=1, max_size=4).map(lambda parts: f"[{','.join(parts)}]"),
        st.lists(members, min_size=1, max_size=4).map(lambda parts: f"{{{','.join(parts)}}}"),
    )


texts = st.recursive(scalars, containers, max_leaves=8)
slips = st.sampled_from(
    [bytes([byte]) for byte in b'"\\[]{},:0-.e+\n\0\x0c\x1f\xa0\xc3\xff']
    + [b"", b"\xed\xa0\x80", rb"\ud800", rb"\udc00", b"NaN", b"nul", b"//", b"\xef\xbb\xbf"],
)


@settings(max_examples=300, deadline=None)
@given(texts, spaces, spaces)
def test_any_json_is_taken_as_data_and_comes_out_as_it_went_in(text: str, before: str, after: str) -> None:
    request = decode_request(published((before + text + after).encode()))
    assert isinstance(request, Publish)
    out = data_text(request.data)
    assert out == text.replace("\r", " ").replace("\n", " ")
    assert strict_value(out.encode()) == strict_value(text.encode())


@settings(max_examples=700, deadline=None)
@given(texts, slips, st.integers(0, 60), st.integers(0, 2))
def test_data_is_taken_if_and_only_if_the_standard_library_reads_it(
    text: str, slip: bytes, place: int, lost: int
) -> None:
    good = text.encode()
    place %= len(good) + 1
    data = good[:place] + slip + good[place + lost :]
    payload = published(data)
    if is_strict(data):
        request = decode_request(payload)
        assert isinstance(request, Publish)
        assert data_text(request.data).encode() == data.strip(b" \t\r\n").translate(bytes.maketrans(b"\r\n", b"  "))
    elif not is_strict(payload):  # a comma may have made it two fields
        assert refusal(payload).error.code == "bad_json"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_sixty_four_levels_pass_and_one_more_does_not(opening: bytes, closing: bytes) -> None:
    levels = opening.count(b"[") + opening.count(b"{")
    times = (DEPTH_MAX - 1) // levels
    data = opening * times + b"1" + closing * times
    if (DEPTH_MAX - 1) % levels:
        data = b"[" + data + b"]"
    assert isinstance(decode_request(published(data)), Publish)
    bad = refusal(published(b"[" + data + b"]"))
    assert (bad.error.code, str(DEPTH_MAX) in bad.error.message) == ("bad_json", True)


def test_brackets_in_strings_and_side_by_side_are_no_depth() -> None:
    for data in (
        b'"' + b"[{" * 500 + b'"',
        rb'["\"' + b"[" * 500 + rb'\\", "' + b"{" * 500 + b'"]',
        b"[" + b",".join([b"[[]]"] * 500) + b"]",
        b'{"' + b"[" * 200 + b'":1}',
    ):
        assert isinstance(decode_request(published(data)), Publish)


@pytest.mark.parametrize("levels", [65, 1000, 300_000])
def test_any_depth_is_refused_in_order(levels: int) -> None:
    for payload in (
        published(b"[" * levels + b"]" * levels),
        published(b"[" * levels),
        b'{"op":"ping","x":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}",
    ):
        assert refusal(payload).error.code == "bad_json"
    assert refusal(b"[" * levels + b"]" * levels).error.code in ("bad_json", "bad_request")


@contextmanager
def patience() -> Iterator[None]:
    """Fails instead of hanging. What it guards takes milliseconds, or hours; it measures nothing."""

    def give_up(*_: object) -> None:
        raise AssertionError("this takes more than linear time")

    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


@pytest.mark.parametrize("ending", [b"", b"\\", b"]]]]"])
def test_a_string_that_never_ends_is_read_once_and_not_once_a_quote(ending: bytes) -> None:
    brackets = b'{"op":"ping","brackets":"' + b"[" * 100 + b'","endless":"'
    with patience():
        assert refusal(brackets + rb"\"" * 400_000 + ending).error.code == "bad_json"
