"""What the server sends, as bytes: answers, messages and what is told of a channel, each one JSON object.

Sans-IO, and without framing. What goes out for every message is formatted by hand: its `data` is JSON already.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


def message_prefix(channel: str) -> str:
    """The constant beginning of a channel's messages; a channel's name needs no escaping."""
    return f'{{"op":"message","channel":"{channel}","offset":'


_DATA = ',"data":'


def message_suffix(time_ms: int, sender: str | None) -> str:
    """What stands between a message's offset and its data: the same for all of one sender's in a batch."""
    who = "" if sender is None else f',"from":{encode_text(sender)}'
    return f',"time":{time_ms}{who}{_DATA}'


def keyed_suffix(suffix: str, key: str) -> str:
    """A suffix for a message with a key."""
    return f'{suffix[: -len(_DATA)]},"key":{encode_text(key)}{_DATA}'


def ephemeral_message(channel: str, time_ms: int, sender: str | None, data: str) -> bytes:
    """A message that is not stored: as others, without an offset."""
    return f'{{"op":"message","channel":"{channel}"{message_suffix(time_ms, sender)}{data}}}'.encode()


def encode_text(text: str) -> str:
    """A string as JSON text."""
    return msgspec.json.encode(text).decode()


def encode_reply(op: str, id: int | str | UnsetType, **fields: Any) -> bytes:
    """A reply such as `ok` or `pong`, bearing the request's id where there is one."""
    reply: dict[str, Any] = {"op": op}
    if id is not UNSET:
        reply["id"] = id
    return msgspec.json.encode(reply | fields)


def encode_gap(channel: str, reason: str, first: int = 0, last: int = 0) -> bytes:
    """The `gap` that tells a subscriber what it will not get: offsets first to last, or another epoch."""
    gap: dict[str, Any] = {"op": "gap", "channel": channel}
    if reason == "trimmed":
        gap |= {"from": first, "to": last}
    return msgspec.json.encode(gap | {"reason": reason})


def state_page(channel: str, entries: bytes, more: bool) -> bytes:
    """A page of a channel's state; `entries` are the members of a JSON object."""
    return b'{"op":"state","channel":"%b","entries":{%b},"more":%b}' % (
        channel.encode(),
        entries,
        b"true" if more else b"false",
    )


def encode_goodbye(reconnect_ms: int) -> bytes:
    """The last message of a server that stops: come back after so many milliseconds."""
    return msgspec.json.encode({"op": "goodbye", "code": "draining", "reconnect_ms": reconnect_ms})
