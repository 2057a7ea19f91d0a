"""What clients send, as types: bytes to requests.

Sans-IO, and without framing: a payload here is exactly one JSON object. Requests are msgspec Structs, so one
decoder checks types and ranges in about a microsecond. `data` stays raw: the server never looks into it.
What the server sends is in replies.py.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from trisync.wire.errors import WireError
from trisync.wire.nesting import is_deeper_than

PROTOCOL_VERSION = 1

DEPTH_MAX = 64
"""Levels of nesting in a request; the request itself is level 1. Deeper is an attack on somebody's parser."""

REPLY_HEADROOM_BYTES = 4096
"""What the server sends stays under `message_bytes_max` plus this, so that a client can size its buffer."""

HISTORY_LIMIT_MAX = 1000
HISTORY_LIMIT_DEFAULT = 100

STATE_LIMIT = 1000
"""Entries in one page of a channel's state."""

KEY_BYTES_MAX = 512

UNANSWERED_MAX = 256
"""Publishes that a producer may have unanswered: so many of its verdicts are kept exactly."""

OFFSET_MAX = 2**53 - 1
"""Offsets and seqs stay exact in an IEEE double, which is what JavaScript has (RFC 8259, section 6)."""

CHANNEL_LENGTH_MAX = 200

_CHANNEL = re.compile(r"[A-Za-z0-9_\-.:/@#=]+", re.ASCII)

Id = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[str, Meta(max_length=64)]
Offset = Annotated[int, Meta(ge=0, le=OFFSET_MAX)]
Seq = Annotated[int, Meta(ge=1, le=OFFSET_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]+\Z")]
Key = Annotated[str, Meta(min_length=1, max_length=KEY_BYTES_MAX)]
"""What else makes a key is for _check_key(): a pattern here would cost each publish as much as all of its fields."""
Producer = Annotated[str, Meta(min_length=16, max_length=64, pattern=r"^[!-~]+\Z")]


class Request(Struct, tag_field="op", gc=False):
    """What all requests share. A request without an `id` is answered only when it fails."""

    id: Id | UnsetType = UNSET


class Hello(Request, tag="hello"):
    name: Name | UnsetType = UNSET
    producer: Producer | UnsetType = UNSET


class Publish(Request, tag="publish", kw_only=True):
    channel: str
    data: Raw
    seq: Seq | UnsetType = UNSET
    ephemeral: bool = False
    key: Key | UnsetType = UNSET
    expect: Offset | UnsetType = UNSET
    merge: bool = False

    @property
    def conditional(self) -> bool:
        """Whether what is there now decides what becomes of this: a few bytes may then cause large ones."""
        return self.merge or self.expect is not UNSET


class Subscribe(Request, tag="subscribe", kw_only=True):
    channel: str
    since: Offset | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    last: Annotated[int, Meta(ge=1, le=HISTORY_LIMIT_MAX)] | UnsetType = UNSET
    state: bool = False
    presence: bool = False


class Unsubscribe(Request, tag="unsubscribe", kw_only=True):
    channel: str


class History(Request, tag="history", kw_only=True):
    channel: str
    since: Offset | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=HISTORY_LIMIT_MAX)] = HISTORY_LIMIT_DEFAULT


class GetState(Request, tag="state", kw_only=True):
    channel: str
    key: Key | UnsetType = UNSET
    after: Annotated[str, Meta(max_length=KEY_BYTES_MAX)] | UnsetType = UNSET


class GetPresence(Request, tag="presence", kw_only=True):
    channel: str
    after: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class Ping(Request, tag="ping"):
    pass


AnyRequest = Hello | Publish | Subscribe | Unsubscribe | History | GetState | GetPresence | Ping

OPERATIONS = ("hello", "publish", "subscribe", "unsubscribe", "history", "state", "presence", "ping")


class BadRequest(Exception):
    """A payload that is no valid request: the error for it, and what could be read of who asked.

    `op`, `id` and `seq` are what the payload says where that much is readable: a refused publish of a
    producer settles its `seq`, unless it is no JSON, and its reply keeps the publishes' order.
    """

    def __init__(
        self,
        error: WireError,
        op: str = "",
        id: int | str | UnsetType = UNSET,
        seq: int | UnsetType = UNSET,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.op = op
        self.id = id
        self.seq = seq


_decode = msgspec.json.Decoder(AnyRequest).decode


def decode_request(payload: bytes) -> AnyRequest:
    """One JSON object to a request whose every field is of its type and in its range.

    `data` is checked as strictly as the rest (UTF-8, grammar, depth) and comes as it was sent, save that CR
    and LF between tokens, which would break the lines dialect, are spaces. Raises BadRequest.
    """
    try:
        # Raw's bytes are not looked at by msgspec: UTF-8 and depth are checked here. `isascii` is nearly free,
        # and nesting 65 deep takes at least 130 bytes.
        if not payload.isascii():
            payload.decode()
        request: AnyRequest = _decode(payload)
        if len(payload) > 2 * DEPTH_MAX and is_deeper_than(payload, DEPTH_MAX):
            raise RecursionError
    except msgspec.ValidationError as error:
        raise _explain(payload, "bad_request", _broken_rule(error)) from None
    except msgspec.DecodeError as error:
        raise _explain(payload, "bad_json", str(error)) from None
    except UnicodeDecodeError as error:
        raise _explain(payload, "bad_json", f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _explain(payload, "bad_json", _TOO_DEEP) from None
    _check(request)
    return request


TOGETHER_MIN = 16
"""Payloads for which it pays to have them decoded by one call."""


def decode_requests(payloads: Sequence[bytes]) -> list[AnyRequest]:
    """What decode_request() makes of the payloads, up to the first that is bad.

    Many of them that are all good take about half as long so (measured, 512 of a hundred bytes).
    """
    if len(payloads) >= TOGETHER_MIN and (together := _decode_together(payloads)) is not None:
        return together
    requests: list[AnyRequest] = []
    for payload in payloads:
        try:
            requests.append(decode_request(payload))
        except BadRequest:
            break
    return requests


_decode_lines = msgspec.json.Decoder(AnyRequest).decode_lines


def _decode_together(payloads: Sequence[bytes]) -> list[AnyRequest] | None:
    """What decode_request() makes of each, where that is good of all, and can be told from their lines; else None."""
    lines = b"\n".join(payloads)
    # msgspec takes two values on a line, and one over two lines. But "}\n{" stands within no value: where it joins two
    # payloads, a value ends and another begins. So each has at least one; as many values as payloads are one in each.
    if not lines.count(b"}\n{") == lines.count(b"\n") == len(payloads) - 1:
        return None
    try:
        if not lines.isascii():
            lines.decode()
        requests: list[AnyRequest] = _decode_lines(lines)
        for request in requests:
            _check(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest):
        return None
    if len(requests) != len(payloads):
        return None
    if any(len(payload) > 2 * DEPTH_MAX and is_deeper_than(payload, DEPTH_MAX) for payload in payloads):
        return None
    return requests


def compose_publish(data: bytes, **fields: Any) -> Publish:
    """A publish whose `data` came by itself, as JSON, and whose other fields are values. Raises BadRequest."""
    try:
        _decode_raw(data)  # one value, so that nothing in it can end the field and begin another
    except msgspec.DecodeError as error:
        problem = str(error) if _with_surrogates_replaced(data) is None else _LONE_SURROGATE
        raise BadRequest(WireError("bad_json", problem), "publish") from None
    except RecursionError:
        raise BadRequest(WireError("bad_json", _TOO_DEEP), "publish") from None
    request = decode_request(msgspec.json.encode({"op": "publish", **fields, "data": Raw(data)}))
    assert isinstance(request, Publish)
    return request


class _Envelope(Struct):
    """What can be read of a request that is not valid as a whole."""

    op: Raw = Raw()
    id: Raw = Raw()
    seq: Raw = Raw()


_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def _read_field(raw: Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)  # what is not there is empty, which is no JSON
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UNSET


def shortened(text: str, length: int) -> str:
    """A text that a client may have made, cut for an error message."""
    return text if len(text) <= length else text[:length] + "…"


def _with_surrogates_replaced(payload: bytes) -> bytes | None:
    """The payload with other escapes in place of those of surrogates, or None if it is no JSON even so.

    What only a lone one spoils is JSON by its grammar (RFC 8259 8.2), and says who asked.
    """
    payload = payload.replace(rb"\ud", rb"\uc").replace(rb"\uD", rb"\uc")
    try:
        _decode_raw(payload)
    except (msgspec.DecodeError, RecursionError):
        return None
    return payload


_LONE_SURROGATE = r"a lone surrogate escape, such as \ud800"
_TOO_DEEP = f"nested more than {DEPTH_MAX} deep"
_RULES = {
    "name": "name is 1-64 characters, none of them a control character",
    "producer": "producer is 16-64 printable ASCII characters without spaces",
    "key": f"key is 1-{KEY_BYTES_MAX} bytes of UTF-8 without control characters",
}


def in_words(problem: msgspec.ValidationError) -> str:
    """What msgspec says of a field, without its own notation."""
    return str(problem).replace("`", "").replace("$.", "")


def _broken_rule(problem: msgspec.ValidationError) -> str:
    text = in_words(problem)
    field = text.rpartition(" at ")[2]
    if field in _RULES and text.startswith("Expected str "):
        return _RULES[field]
    return shortened(text, 200)


def _explain(payload: bytes, code: str, problem: str) -> BadRequest:
    """The BadRequest for a payload that does not decode, with the op, id and seq that can be read of it."""
    readable = payload
    try:
        _decode_raw(payload)
    except msgspec.DecodeError as error:  # a wrong type may have been met first
        replaced = _with_surrogates_replaced(payload)
        if replaced is None:
            problem = f"a request is one JSON object, whole on its line where lines are read: {error}"
            return BadRequest(WireError("bad_json", problem))
        readable, code, problem = replaced, "bad_json", _LONE_SURROGATE
    except RecursionError:
        return BadRequest(WireError("bad_json", _TOO_DEEP))
    if problem is not _TOO_DEEP and is_deeper_than(payload, DEPTH_MAX):
        code, problem = "bad_json", _TOO_DEEP
    try:
        envelope = _decode_envelope(readable)
    except msgspec.ValidationError:
        return BadRequest(WireError(code, problem))
    op = _read_field(envelope.op, str)
    id = _read_field(envelope.id, Id)
    if readable is not payload and rb"\uc" in bytes(envelope.id):
        id = UNSET  # it may have been one of those replaced
    if code == "bad_request" and op is not UNSET and op not in OPERATIONS:
        return BadRequest(WireError("unknown_op", f"there is no operation {shortened(op, 40)!r}"), op, id)
    seq = _read_field(envelope.seq, Seq) if op == "publish" and code == "bad_request" else UNSET
    return BadRequest(WireError(code, problem), "" if op is UNSET else op, id, seq)


def channel_is_valid(name: str) -> bool:
    """Whether `name` is 1-200 characters of ASCII letters, digits and `_ - . : / @ # =`."""
    return len(name) <= CHANNEL_LENGTH_MAX and _has_only_channel_characters(name)


@lru_cache(maxsize=10_000)
def _has_only_channel_characters(name: str) -> bool:
    # Names repeat: cached. Not to be asked about longer ones, which would be kept whole.
    return _CHANNEL.fullmatch(name) is not None


def _refuse(request: Request, message: str) -> BadRequest:
    op = str(request.__struct_config__.tag)
    return BadRequest(WireError("bad_request", message), op, request.id, getattr(request, "seq", UNSET))


_CHANNEL_RULE = "channel is 1-200 characters of ASCII letters, digits and _ - . : / @ # ="


def _check(request: AnyRequest) -> None:
    """What a request's types do not say. Raises BadRequest."""
    if type(request) is not Publish:
        if isinstance(request, Subscribe | Unsubscribe | History | GetState | GetPresence):
            _check_channel(request)
        return
    if not channel_is_valid(request.channel):
        raise _refuse(request, _CHANNEL_RULE)
    if request.key is not UNSET:
        _check_key(request, request.key)
    elif request.merge or request.expect is not UNSET:
        raise _refuse(request, "expect and merge need a key")
    if request.ephemeral and not (request.seq is UNSET and request.key is UNSET):
        raise _refuse(request, "an ephemeral message has no seq and no key: it is not stored")


def _check_channel(request: Subscribe | Unsubscribe | History | GetState | GetPresence) -> None:
    if not channel_is_valid(request.channel):
        raise _refuse(request, _CHANNEL_RULE)
    if type(request) is Subscribe and request.since is not UNSET and request.last is not UNSET:
        raise _refuse(request, "since and last do not go together")
    if type(request) is GetState:
        if request.key is not UNSET and request.after is not UNSET:
            raise _refuse(request, "key and after do not go together")
        _check_key(request, request.key)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _check_key(request: Request, key: str | UnsetType) -> None:
    if key is UNSET or (key.isascii() and key.isprintable()):
        return
    if len(key.encode()) > KEY_BYTES_MAX or _CONTROL.search(key):
        raise _refuse(request, _RULES["key"])


_NO_LINE_BREAKS = str.maketrans("\r\n", "  ")


def data_text(data: Raw) -> str:
    """A publish's `data` as text, on one line. Only for payloads that decode_request() has passed."""
    text = str(data, "utf-8")
    # Inside strings JSON forbids them, so every CR or LF here stands between tokens.
    if "\n" in text or "\r" in text:
        return text.translate(_NO_LINE_BREAKS)
    return text
