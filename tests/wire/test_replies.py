"""What the server sends: each is one JSON object, and says what it is to say."""

import json

import msgspec
import pytest
from msgspec import UNSET

from trisync.wire.errors import CODES, WireError
from trisync.wire.replies import (
    encode_gap,
    encode_goodbye,
    encode_reply,
    ephemeral_message,
    message_prefix,
    message_suffix,
)


def test_a_message_put_together_by_hand_is_json() -> None:
    sender = 'al"i\\ceé'
    text = message_prefix("a/b") + "7" + message_suffix(5, sender) + '{"x": 1}}'
    assert json.loads(text) == {
        "op": "message", "channel": "a/b", "offset": 7, "time": 5, "from": sender, "data": {"x": 1},
    }  # fmt: skip
    assert "from" not in json.loads(message_prefix("a") + "7" + message_suffix(5, None) + "1}")
    assert json.loads(ephemeral_message("a", 5, None, "[1]")) == {
        "op": "message", "channel": "a", "time": 5, "data": [1],
    }  # fmt: skip


def test_replies_bear_the_id_where_there_is_one() -> None:
    assert json.loads(encode_reply("ok", "x", offset=1)) == {"op": "ok", "id": "x", "offset": 1}
    assert json.loads(encode_reply("pong", 0)) == {"op": "pong", "id": 0}
    assert json.loads(encode_reply("ok", UNSET)) == {"op": "ok"}


def test_a_gap_names_its_range_where_it_was_trimmed_and_none_where_the_log_is_another() -> None:
    assert json.loads(encode_gap("a", "trimmed", 1, 9)) == {
        "op": "gap", "channel": "a", "from": 1, "to": 9, "reason": "trimmed",
    }  # fmt: skip
    assert json.loads(encode_gap("a", "epoch")) == {"op": "gap", "channel": "a", "reason": "epoch"}
    goodbye = {"op": "goodbye", "code": "draining", "reconnect_ms": 5}
    assert json.loads(encode_goodbye(5)) == goodbye


@pytest.mark.parametrize("code", CODES)
def test_an_error_on_the_wire_says_its_code_and_whether_to_retry(code: str) -> None:
    error = WireError(code, "why", seq=4)
    assert json.loads(error.encode("i")) == {
        "op": "error", "id": "i", "code": code, "message": "why", "retry": CODES[code].retry, "seq": 4,
    }  # fmt: skip
    assert "id" not in msgspec.json.decode(error.encode())
    assert error.closes == CODES[code].closes
    assert WireError(code, "why", closes=True).closes
