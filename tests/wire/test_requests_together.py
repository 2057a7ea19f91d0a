"""Requests that one read brought: whatever they are, decoded together they are what each of them is alone."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.wire.protocol import TOGETHER_MIN, AnyRequest, BadRequest, decode_request, decode_requests


def published(data: bytes) -> bytes:
    return b'{"op":"publish","id":1,"channel":"lobby","data":' + data + b"}"


GOOD = [
    *[published(b"1"), published('{"ä" : [true]}'.encode()), published(b'"' + b"[" * 200 + b'"'), published(b"[\n]")],
    *[published(b"[" * 63 + b"]" * 63), published(b'1,"key":"k"'), published(b'1,"key":"k","merge":true,"expect":3')],
    b'{ "data":null,"seq":7,"op":"publish","channel":"b","ephemeral":false,"other":[1],"id":"a"\r}',
    *[published(b'1,"ephemeral":true'), b" " + published(b"1"), published(b"1") + b"\r", published(b"1") + b"\n"],
    *[b'{"op":"ping","id":1}', b'{"op":"subscribe","channel":"lobby"}', b'{"op":"history","channel":"a","limit":2}'],
]
BAD = [
    *[b"", b" ", b"\n", b"{", b"}", b"[]", b"null", b"\xff", b"{}", published(b"NaN"), published(b'"\0"')],
    *[published(b"1")[:-1], published(b"1") + published(b"1"), published(b"1") + b"}", b"[" + published(b"1") + b"]"],
    *[published(b"1") + b"\n" + published(b"2"), published(b'"\xff"'), published(b'"\xc3'), b'\xa4"}'],
    *[published(b"[" * levels + b"]" * levels) for levels in (64, 65, 100_000)],
    *[published(b'1,"expect":1'), published(b'1,"merge":true'), published(b'1,"seq":0'), published(b'1,"id":[]')],
    *[published(b'1,"ephemeral":true,"key":"k"'), published(b'1,"key":"\x7f"'), b'{"op":"bow","id":1}'],
    *[b'{"channel":"lobby","data":1}', b'{"op":"publish","channel":"lobby"}'],
    *[b'{"op":"publish","channel":"no spaces","data":1}', b'{"op":"history","channel":"no spaces"}'],
]
MANY = GOOD[:2] * TOGETHER_MIN


def one_by_one(payloads: Sequence[bytes]) -> list[AnyRequest]:
    requests = []
    for payload in payloads:
        try:
            requests.append(decode_request(payload))
        except BadRequest:
            break
    return requests


@pytest.mark.parametrize("payload", GOOD)
def test_good_ones_together_are_what_each_is_alone(payload: bytes) -> None:
    request = decode_request(payload)
    for count in (0, 1, TOGETHER_MIN - 1, TOGETHER_MIN, 100):
        assert decode_requests([payload] * count) == [request] * count


@pytest.mark.parametrize("payload", GOOD)
def test_a_good_one_of_many_is_what_it_is_alone(payload: bytes) -> None:
    for place in (0, 7, len(MANY)):
        payloads = [*MANY[:place], payload, *MANY[place:]]
        assert decode_requests(payloads) == [decode_request(each) for each in payloads]


@pytest.mark.parametrize("payload", BAD)
def test_the_first_bad_one_ends_them(payload: bytes) -> None:
    for place in (0, 7, len(MANY)):
        payloads = [*MANY[:place], payload, *MANY[place:]]
        assert decode_requests(payloads) == [decode_request(each) for each in MANY[:place]]


HALVES = (b'{"op":"ping",', b'"id":1}')


@pytest.mark.parametrize("between", [b"", b" ", b"\n", b"\r"])
def test_two_in_one_do_not_make_up_for_one_in_two(between: bytes) -> None:
    two = GOOD[0] + between + GOOD[0]
    for pieces in ((two, *HALVES), (*HALVES, two), (HALVES[0], two, HALVES[1])):
        for before, after in ((MANY, []), ([], MANY), (MANY, MANY)):
            assert decode_requests([*before, *pieces, *after]) == [decode_request(each) for each in before]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(*[st.sampled_from(GOOD)] * 12, st.sampled_from([*BAD, *HALVES]), st.binary(max_size=8)),
        min_size=TOGETHER_MIN,
        max_size=TOGETHER_MIN + 4,
    )
)
def test_whatever_comes_together_is_what_each_is_alone(payloads: list[bytes]) -> None:
    assert decode_requests(payloads) == one_by_one(payloads)
