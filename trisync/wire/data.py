"""`data` as Python has it, and as the JSON that it is on the wire. Sans-IO; the rest is in protocol.py, replies.py."""

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec


def decode_data(text: bytes | msgspec.Raw) -> Any:
    """Any JSON value; a number too large for a float, or an integer of more digits than int() reads, is an infinity.

    The wire sets numbers no limit, and JavaScript's JSON.parse has it so. Raises msgspec.DecodeError for what is no
    JSON, and UnicodeDecodeError.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:  # the number; what stands behind it was not looked at
        msgspec.json.decode(text, type=msgspec.Raw)
        return json.loads(str(text, "utf-8"), parse_int=_integer)


def encode_data(data: Any) -> bytes:
    """Whatever msgspec encodes and JSON has, as JSON. What is wrong with a value is said together with where it is.

    Raises TypeError for bytes and sets in its lists and dictionaries, which would come back as something else,
    ValueError for a NaN or an infinity, for a list that holds itself, and for what is no JSON of a Raw in it, and what
    msgspec does. A Raw by itself is not looked at.
    """
    try:
        text = msgspec.json.encode(data)
        # Only what does not come back as it was is looked through, which takes a multiple of the time.
        if type(data) is not msgspec.Raw and not _comes_back(text, data):
            _check_types(data)
            _check_numbers(data)
            msgspec.json.decode(text.decode(), type=msgspec.Raw)  # a Raw in it, msgspec writes as it is
    except RecursionError:
        raise ValueError("data holds itself, or is nested too deep") from None
    return text


def _comes_back(text: bytes, data: Any) -> bool:
    try:
        return bool(msgspec.json.decode(text) == data)
    except Exception:  # of a Raw in it, say, whose number is too large
        return False


def _check_types(data: Any) -> None:
    for where, part in _parts(data):
        if isinstance(part, bytes | bytearray | memoryview):
            raise TypeError(f"{where} is {type(part).__name__}, which JSON does not have: decode it, or make it Base64")
        if isinstance(part, set | frozenset):
            raise TypeError(f"{where} is a {type(part).__name__}, which JSON does not have: make it a list")


def _check_numbers(data: Any) -> None:
    for where, part in _parts(msgspec.to_builtins(data, enc_hook=lambda raw: None)):
        if isinstance(part, float) and not math.isfinite(part):
            # msgspec writes null for it, which would delete a key.
            raise ValueError(f"{where} is {part}: JSON has no number for NaN, Infinity or -Infinity")


def _parts(data: Any) -> Iterator[tuple[str, Any]]:
    """All that is in lists and dictionaries, they themselves included, each with where that is."""
    left = [("data", data)]
    while left:
        where, part = left.pop()
        yield where, part
        if isinstance(part, dict):
            left.extend((f"a key of {where}", key) for key in part)
            left.extend((f"{where}[{key!r}]", value) for key, value in part.items())
        elif isinstance(part, list | tuple):
            left.extend((f"{where}[{index}]", value) for index, value in enumerate(part))


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # over sys.get_int_max_str_digits()
        return float(digits)
