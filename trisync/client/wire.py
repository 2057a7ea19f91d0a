"""What the server says, as types, and what a client says, as bytes. Sans-IO; what follows from it is in machine.py.

`data` is decoded only when it is looked at, so that a program which passes messages on does not pay for it, and gets
every digit as it was published.
"""

from functools import cached_property
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from trisync.client.errors import BadRequest, Gap, ProtocolError, TooLarge
from trisync.wire.arguments import check_integer, check_text, check_utf8
from trisync.wire.data import decode_data, encode_data
from trisync.wire.protocol import (
    DEPTH_MAX,
    HISTORY_LIMIT_MAX,
    KEY_BYTES_MAX,
    OFFSET_MAX,
    channel_is_valid,
    decode_request,
)
from trisync.wire.protocol import BadRequest as BadPayload

T = TypeVar("T")

ENVELOPE_BYTES_MAX = 80
"""What stands around a publish's body: its op, id and seq at their longest; and what its `expect` may grow by."""


class Incoming(Struct, tag_field="op"):
    """What all that the server sends has in common."""


class Message(Incoming, tag="message", rename={"time_ms": "time", "sender": "from", "json": "data"}, dict=True):
    """A message of a channel."""

    channel: str
    json: Raw
    """The data byte for byte: as it was published, or what a merge made of it."""
    time_ms: int
    """When it was stored, Unix time."""
    offset: int | None = None
    """Its place in the channel's log; None for an ephemeral one."""
    sender: str | None = None
    """The publisher's name, if it had one. It proves nothing: anybody can take any name."""
    key: str | None = None

    @cached_property
    def data(self) -> Any:
        """The data as Python has it: decoded when first looked at. A number too large for it is an infinity."""
        return decode_data(self.json)

    def data_as(self, type: type[T]) -> T:
        """The data as a type of yours, a dataclass or a msgspec.Struct, say. Raises msgspec.ValidationError."""
        return msgspec.json.decode(self.json, type=type)

    def __repr__(self) -> str:
        fields: dict[str, Any] = {"channel": self.channel, "offset": self.offset, "sender": self.sender}
        fields |= {"key": self.key, "time_ms": self.time_ms}
        shown = [f"{name}={value!r}" for name, value in fields.items() if value is not None]
        return f"Message({', '.join(shown)}, data={self.data!r})"

    def to_json(self) -> bytes:
        """The whole message as one JSON object, on one line, as the server sends it."""
        fields: dict[str, Any] = {"op": "message", "channel": self.channel, "offset": self.offset, "time": self.time_ms}
        fields |= {"from": self.sender, "key": self.key, "data": self.json}
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


class Word(Struct, rename={"json": "data"}, dict=True):
    """The newest word on a key of a channel's state."""

    offset: int
    """What a publish with `expect` compares with."""
    json: Raw
    """The data byte for byte. As Message.json."""

    @cached_property
    def data(self) -> Any:
        """The data as Python has it. As Message.data."""
        return decode_data(self.json)

    def __repr__(self) -> str:
        return f"Word(offset={self.offset}, data={self.data!r})"


class Member(Struct, frozen=True):
    """Someone who is in a channel. `member` is an opaque id, `name` what they call themselves."""

    member: str
    name: str | None = None


class Ok(Incoming, tag="ok"):
    """The answer to any request but ping; which fields it has depends on the request."""

    id: int | str | None = None
    offset: int = 0
    epoch: str = ""
    seq: int = 0
    server: str = ""
    session: str = ""
    limits: dict[str, int] = {}
    messages: list[Message] = []
    entries: dict[str, Word] = {}
    members: list[Member] = []
    member: str = ""
    trimmed: int = 0
    more: bool = False


class Pong(Incoming, tag="pong"):
    """The answer to ping."""

    id: int | str | None = None


class Refusal(Incoming, tag="error"):
    """An error; details_of() has what else is in it."""

    code: str
    message: str
    id: int | str | None = None
    retry: bool = False
    retry_ms: float = 0
    seq: int = 0


class GapNotice(Incoming, tag="gap", rename={"first": "from", "last": "to"}):
    """What a subscription will not get."""

    channel: str
    reason: str
    first: int = 0
    last: int = 0


class StatePage(Incoming, tag="state"):
    """A page of a subscribed channel's state."""

    channel: str
    entries: dict[str, Word]
    more: bool


class PresenceNotice(Incoming, tag="presence"):
    """Who is in a channel, or what has changed about that."""

    channel: str
    members: list[Member] | None = None
    joined: list[Member] = []
    left: list[Member] = []
    updated: list[Member] = []


class Goodbye(Incoming, tag="goodbye"):
    """The server stops."""

    code: str = ""
    reconnect_ms: float = 0


AnyIncoming = Message | Ok | Pong | Refusal | GapNotice | StatePage | PresenceNotice | Goodbye

_decode = msgspec.json.Decoder(AnyIncoming).decode
_OPS = {"message", "ok", "pong", "error", "gap", "state", "presence", "goodbye"}


def decode(payload: bytes) -> AnyIncoming | None:
    """What the server said; None for an op of a later version, which is to be ignored. Raises ProtocolError."""
    try:
        if not payload.isascii():
            payload.decode()  # msgspec does not look at the bytes of a Raw, nor of what it leaves out
        said: AnyIncoming = _decode(payload)
        return said
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            if decode_data(payload)["op"] not in _OPS:
                return None
        except Exception:
            pass  # it is no message at all, which the first error says
        raise ProtocolError(f"the server sent what cannot be read: {error}") from None


def details_of(payload: bytes) -> dict[str, Any]:
    """The fields of an error that only some codes have."""
    fields: dict[str, Any] = decode_data(payload)
    return {name: value for name, value in fields.items() if name not in ("op", "id", "code", "message", "retry")}


class History(Struct):
    """Stored messages of a channel, ascending, as they were read at one moment."""

    channel: str
    messages: list[Message]
    offset: int
    """The channel's newest offset."""
    epoch: str
    more: bool
    """Whether the channel goes on behind the last of these messages."""
    gap: Gap | None
    """What retention has taken from before the first of these messages, where that was asked for too."""


def history_of(channel: str, since: int | None, limit: int, ok: Ok) -> History:
    """The answer to a `history` request, which says nothing of a gap: where it begins too late, there is one."""
    messages, gap = ok.messages, None
    first = messages[0].offset if messages else ok.offset + 1
    assert first is not None
    if since is not None and first > since + 1:
        gap = Gap(channel, "trimmed", since + 1, first - 1)
    elif since is None and ok.trimmed and first == ok.trimmed + 1 and len(messages) < limit:
        gap = Gap(channel, "trimmed", 1, ok.trimmed)
    return History(channel, messages, ok.offset, ok.epoch, ok.more, gap)


def check_channel(channel: str) -> None:
    """Raises TypeError and BadRequest for what is no channel's name."""
    check_text("a channel's name", channel)
    if not channel_is_valid(channel):
        problem = f"a channel is 1-200 characters of ASCII letters, digits and _ - . : / @ # =, not {channel[:300]!r}"
        raise BadRequest("bad_request", problem)


def check_key(key: str) -> None:
    """Raises TypeError, and ValueError (BadRequest is one), for what is no key.

    Over one that is larger than a message may be, the server would hang up, and so each time that it is asked for.
    """
    check_utf8("a key", key)
    if not 1 <= len(key.encode()) <= KEY_BYTES_MAX:
        raise BadRequest("bad_request", f"a key is 1-{KEY_BYTES_MAX} bytes of UTF-8")


def encode_body(channel: str, data: Any, key: str | None, expect: int | None, *, merge: bool, ephemeral: bool) -> bytes:
    """The fields of a publish, which no server refuses for their form: as that may not settle its seq, it is done here.

    Raises TypeError for a channel or key that is no string, BadRequest for one that is none otherwise, ValueError for
    an `expect` that is no offset and a key that is not UTF-8, and for `data` what encode_data() does.
    """
    check_channel(channel)
    fields = b""
    if key is not None:
        check_key(key)
        fields = b',"key":' + msgspec.json.encode(key)
    if expect is not None:
        check_integer("expect", expect, 0, OFFSET_MAX)
        fields += b',"expect":%d' % expect
    if merge:
        fields += b',"merge":true'
    if ephemeral:
        fields += b',"ephemeral":true'
    json = encode_data(data)
    body = b'"channel":"%b"%b,"data":%b}' % (channel.encode(), fields, json)
    if fields or isinstance(data, Raw) or json.count(b"[") + json.count(b"{") >= DEPTH_MAX:
        _check_request(b'{"op":"publish",' + body)
    return body


def check_start(since: int | None, epoch: str | None, last: int | None) -> None:
    """Raises TypeError and ValueError for what is no beginning of a subscription."""
    if since is not None and last is not None:
        raise ValueError("since and last do not go together")
    if since is not None:
        check_integer("since", since, 0, OFFSET_MAX)
    if last is not None:
        check_integer("last", last, 1, HISTORY_LIMIT_MAX)
    if epoch is not None:
        check_utf8("epoch", epoch)


def check_hello(name: str | None, producer: str | None) -> None:
    """Raises TypeError and ValueError, BadRequest among them, for what a server refuses a client for."""
    said = {"name": name, "producer": producer}
    for field, value in said.items():
        if value is not None:
            check_utf8(field, value)
    _check_request(encode_request("hello", "", said))


def _check_request(payload: bytes) -> None:
    try:
        decode_request(payload)
    except BadPayload as bad:
        raise BadRequest(bad.error.code, bad.error.message) from None


def check_size(body: bytes, message_bytes_max: int) -> TooLarge | None:
    """The refusal of what the server would hang up over."""
    if len(body) + ENVELOPE_BYTES_MAX <= message_bytes_max:
        return None
    return TooLarge(
        "too_large",
        f"a message is at most {message_bytes_max} bytes, this one {len(body) + ENVELOPE_BYTES_MAX}",
        details={"limit": "message_bytes_max", "value": message_bytes_max},
    )


def encode_request(op: str, id: str, fields: dict[str, Any]) -> bytes:
    """A request that is not a publish; fields that are None are left out."""
    said = {name: value for name, value in fields.items() if value is not None}
    return msgspec.json.encode({"op": op, "id": id, **said})
