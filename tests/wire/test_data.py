"""What programs have of `data`: whatever is legal on the wire can be read."""

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from trisync.wire.data import decode_data, encode_data

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
)


class Point(msgspec.Struct):
    x: float
    label: str | None = None


@dataclass
class Place:
    x: float


class Told(msgspec.Struct):
    text: Raw


@given(VALUES)
def test_what_json_has_is_encoded(value: Any) -> None:
    assert encode_data([None, value]) == msgspec.json.encode([None, value])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused_wherever_it_is(number: float) -> None:
    places = [
        number,
        [1, (number,)],
        {"a": {"b": number}},
        Point(number),
        [Place(number)],
        [Raw(b"1"), number],
    ]
    for data in places:
        with pytest.raises(ValueError, match=rf"data.* is {number}: JSON has no number for NaN"):
            encode_data(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"text", "data is bytes, "),
        ([1, {"a": (bytearray(b"text"),)}], "data[1]['a'][0] is bytearray, "),
        ({"tags": {"new"}}, "data['tags'] is a set, "),
        ({"a": 1, b"b": 2}, "a key of data is bytes, "),
        ([{"t": float("nan")}, frozenset()], "data[1] is a frozenset, "),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_by_its_place(data: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        encode_data(data)


@pytest.mark.parametrize("text", [b"NaN", b"nul", b'1},"key":"x"', b'"\xff"'])
def test_json_of_a_programs_own_that_is_none_is_refused_wherever_it_is(text: bytes) -> None:
    for data in ({"a": Raw(text)}, [1, (Raw(text),)], Told(Raw(text))):
        with pytest.raises(ValueError, match=r"malformed|truncated|trailing|utf-8"):
            encode_data(data)


def test_the_place_of_what_is_no_number_is_said() -> None:
    with pytest.raises(ValueError, match=re.escape("data['room'][1] is -inf: ")):
        encode_data({"room": [None, -math.inf], "wall": 1})


def test_what_holds_itself_and_what_is_too_deep_is_a_value_error() -> None:
    ring: list[Any] = []
    ring.append({"ring": ring})
    nest: Any = 1
    for _ in range(10_000):
        nest = [nest]
    for data in (ring, nest):
        with pytest.raises(ValueError, match="data holds itself, or is nested too deep"):
            encode_data(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Point(1.5), b'{"x":1.5,"label":null}'),
        (["null", Raw(b"[null,1e400]"), None], b'["null",[null,1e400],null]'),
        (Raw(b"null"), b"null"),
        ([Decimal("NaN"), None], b'["NaN",null]'),
    ],
)
def test_a_null_that_is_meant_is_no_number(data: Any, text: bytes) -> None:
    assert encode_data(data) == text


@given(VALUES)
def test_values_are_read_alike_with_and_without_a_number_that_is_too_large(value: Any) -> None:
    text = msgspec.json.encode(value)
    plain = decode_data(text)
    assert decode_data(b"[1e400,%b]" % text) == [math.inf, plain]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e400", math.inf),
        ("-1e400", -math.inf),
        ("9" * 5000, math.inf),
        ("-" + "9" * 5000, -math.inf),
        ("9" * 4300, int("9" * 4300)),
        ("1." + "9" * 5000, 2.0),
        ('[{"é":[1e400,18446744073709551617,0.5]}]', [{"é": [math.inf, 2**64 + 1, 0.5]}]),
    ],
)
def test_a_number_that_python_cannot_hold_is_an_infinity(text: str, value: Any) -> None:
    assert decode_data(text.encode()) == value
    assert decode_data(Raw(text.encode())) == value
    if len(text) < 1000:
        assert json.loads(text) == value


@pytest.mark.parametrize("text", [b"NaN", b"[1e400,NaN]", b"[1e400", b"1e400 1", b"", b"1e400,"])
def test_what_is_no_json_stays_an_error(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_data(text)


@pytest.mark.parametrize("text", [b'"\xff"', b'[1e400,"\xff"]'])
def test_what_is_no_utf_8_stays_an_error(text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_data(text)
