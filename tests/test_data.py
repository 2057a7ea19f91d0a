"""What programs have of `data`: whatever is legal on the wire can be read."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisync.data import decode_data

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
)


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
    assert decode_data(msgspec.Raw(text.encode())) == value
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
