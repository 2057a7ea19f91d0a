"""`data` as Python has it, from the JSON that it is on the wire. Sans-IO; all else that is said is in protocol.py."""

import json
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


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # over sys.get_int_max_str_digits()
        return float(digits)
