"""`data` as Python has it, and as the JSON that it is on the wire. Sans-IO; all else that is said is in protocol.py."""

import json
import math
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
    """Whatever msgspec encodes, as JSON. Raises ValueError for a NaN or an infinity in it, and what msgspec does."""
    text = msgspec.json.encode(data)
    # For these msgspec writes null, which would delete a key: only what has one is looked through.
    if text.find(b"null") >= 0 and not _is_finite(data):
        raise ValueError("JSON has no number for NaN, Infinity or -Infinity")
    return text


def _is_finite(data: Any) -> bool:
    left = [msgspec.to_builtins(data, enc_hook=lambda raw: None)]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left.extend(part.values())
        elif isinstance(part, list | tuple):
            left.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            return False
    return True


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # over sys.get_int_max_str_digits()
        return float(digits)
