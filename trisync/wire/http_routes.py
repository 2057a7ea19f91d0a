"""What a request to the HTTP interface asks for, told from its method, target and headers. Sans-IO.

Paths name a resource, its methods are operations of the wire, and query parameters are their fields. What fields may
hold is protocol.py's business; what the answers look like is in http_answers.py.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from trisync.wire.errors import WireError
from trisync.wire.http_answers import HttpError, refused
from trisync.wire.http_rules import Headers, header, tokens
from trisync.wire.protocol import AnyRequest, BadRequest, Publish, Request, decode_request, shortened

ROOT = b"/channels"

PARAMETERS_MAX = 20
"""In one query: more than any request takes."""


class Resource(Enum):
    """What there is under ROOT, by its path."""

    CHANNELS = "/channels"
    CHANNEL = "/channels/{channel}"
    MESSAGES = "/channels/{channel}/messages"
    STATE = "/channels/{channel}/state"
    KEY = "/channels/{channel}/state/{key}"
    EVENTS = "/channels/{channel}/events"


METHODS: dict[Resource, dict[str, tuple[str, ...]]] = {
    Resource.CHANNELS: {"GET": ("after", "limit")},
    Resource.CHANNEL: {"DELETE": ()},
    Resource.MESSAGES: {
        "GET": ("since", "limit"),
        "POST": ("key", "expect", "merge", "ephemeral", "name"),
    },
    Resource.STATE: {"GET": ("after",)},
    Resource.KEY: {"GET": (), "PUT": ("name",), "PATCH": ("name",), "DELETE": ("name",)},
    Resource.EVENTS: {"GET": ("since", "epoch", "last", "state", "presence", "name")},
}
"""The methods of each resource, with their query parameters. HEAD is served where GET is, OPTIONS everywhere."""

_WITH_BODY = ("POST", "PUT", "PATCH")
_JSON_TYPE = re.compile(rb'\s*application/(json|[\w.+-]+\+json)\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)
_NOT_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ETAG = re.compile(rb'"(\d{1,16})"')


R = TypeVar("R", bound=Request)


class Call(NamedTuple):
    """A request to the interface, understood but for its body."""

    resource: Resource
    method: str
    channel: str
    """"" for the list of channels."""
    key: str | None
    query: dict[str, Any]
    """The parameters, as the fields of the wire that they are."""

    @property
    def has_body(self) -> bool:
        """Whether a body belongs to it."""
        return self.method in _WITH_BODY

    @property
    def name(self) -> str | None:
        """Who is asking, where that is said."""
        name = self.query.get("name")
        return None if name is None else str(name)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the operation: all that is said but who is asking."""
        query = {field: value for field, value in self.query.items() if field != "name"}
        key = {} if self.key is None else {"key": self.key}
        return {"channel": self.channel} | key | query

    def request(self, kind: type[R], **fields: Any) -> R:
        """The operation of the wire that is asked for, checked as there. Raises WireError."""
        request = _checked({"op": kind.__struct_config__.tag} | self.fields | fields)
        assert isinstance(request, kind)
        return request


def is_for_api(target: bytes) -> bool:
    """Whether a request's target lies in this interface."""
    path = target.partition(b"?")[0]
    return path == ROOT or path.startswith(ROOT + b"/")


def is_for_events(target: bytes) -> bool:
    """Whether a target in this interface looks like that of an EventSource."""
    return target.partition(b"?")[0].split(b"/")[3:] == [b"events"]


def find_resource(target: bytes) -> tuple[Resource, str, str | None]:
    """The resource that a target names, with the channel and the key. Raises WireError."""
    path = target.partition(b"?")[0]
    if _NOT_PERCENT.search(target):
        raise WireError("bad_request", "a % in a path or query is followed by two hex digits")
    match path.split(b"/")[2:]:
        case [] | [b""]:
            return Resource.CHANNELS, "", None
        case [channel]:
            return Resource.CHANNEL, _text(channel), None
        case [channel, b"messages"]:
            return Resource.MESSAGES, _text(channel), None
        case [channel, b"state"]:
            return Resource.STATE, _text(channel), None
        case [channel, b"state", key]:
            return Resource.KEY, _text(channel), _text(key)
        case [channel, b"events"]:
            return Resource.EVENTS, _text(channel), None
    raise WireError("not_found", "there is nothing under this path; a / in a channel's name or a key is written %2F")


def allowed_methods(resource: Resource) -> bytes:
    """The value of the header Allow."""
    methods = list(METHODS[resource])
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join([*methods, "OPTIONS"]).encode()


def read_call(method: bytes, target: bytes, headers: Headers) -> Call:
    """What a request asks for, its headers judged too. Raises HttpError and WireError.

    Nothing that a body has to follow is wrong then, but for the body.
    """
    resource, channel, key = find_resource(target)
    name = "GET" if method == b"HEAD" else method.decode("latin-1")
    parameters = METHODS[resource].get(name)
    if parameters is None:
        allow = allowed_methods(resource)
        error = WireError("bad_request", f"the methods here are {allow.decode()}")
        raise HttpError(refused(error, 405, ((b"Allow", allow),)))
    call = Call(resource, name, channel, key, _read_query(target.partition(b"?")[2], parameters))
    if call.name is not None:
        _checked({"op": "hello", "name": call.name})
    if call.has_body:
        _check_content(headers, name)
    if name != "GET":
        call.request(Publish, data=None)
        _check_conditions(call, headers)
    return call


def _text(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise WireError("bad_request", "a path is UTF-8, percent-encoded") from None


def _checked(fields: dict[str, Any]) -> AnyRequest:
    try:
        return decode_request(msgspec.json.encode(fields))
    except BadRequest as bad:
        raise bad.error from None


# Queries


def _read_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise ValueError("is a number")
    return int(text)


def _read_switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is true or false")
    return text == "true"


_READERS: dict[str, Callable[[str], int | bool]] = {
    **dict.fromkeys(("since", "last", "limit", "expect"), _read_number),
    **dict.fromkeys(("merge", "ephemeral", "state", "presence"), _read_switch),
}
"""How parameters are read that are not text."""


def _read_query(query: bytes, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of a query. One that is not known is refused: a mistyped `expect` must not be no condition."""
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX
        )
        for name, text in pairs:
            if name not in parameters:
                known = ", ".join(parameters) or "none"
                raise ValueError(f"{shortened(name, 40)!r} is no parameter here: there are {known}")
            if name in fields:
                raise ValueError(f"{name} is given twice")
            try:
                fields[name] = _READERS[name](text) if name in _READERS else text
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
    except UnicodeDecodeError:
        raise WireError("bad_request", "a query is UTF-8, percent-encoded") from None
    except ValueError as error:
        raise WireError("bad_request", str(error)) from None
    return fields


# Headers


def _check_content(headers: Headers, method: str) -> None:
    """Refuse a body of another type than JSON; without a type it is taken for JSON."""
    if tokens(headers, b"content-encoding") - {b"", b"identity"}:
        raise _unsupported("a body is not compressed", method)
    content_type = header(headers, b"content-type")
    if content_type is None:
        return
    json_type = _JSON_TYPE.fullmatch(content_type)
    if json_type is None:
        raise _unsupported("a body is application/json, in UTF-8", method)
    if method == "PATCH" and json_type[1].lower() == b"json-patch+json":
        # Merged, its array of operations would take the value's place.
        raise _unsupported("a patch is a JSON Merge Patch (RFC 7396), not a JSON Patch (RFC 6902)", method)


def _unsupported(problem: str, method: str) -> HttpError:
    accept = (b"Accept", b"application/json")
    if method == "PATCH":
        accept = (b"Accept-Patch", b"application/merge-patch+json, application/json")
    return HttpError(refused(WireError("bad_request", problem), 415, (accept,)))


def _check_conditions(call: Call, headers: Headers) -> None:
    """Refuse what is no condition or Idempotency-Key, or none here: it must not seem to be heeded."""
    repeatable = idempotency_key(headers) is not None
    if call.resource is Resource.KEY:
        if read_condition(headers) is Condition.EXISTS and repeatable:
            raise WireError("bad_request", "an Idempotency-Key and If-Match: * do not go together")
    elif header(headers, b"if-match") is not None or header(headers, b"if-none-match") is not None:
        raise WireError("bad_request", "If-Match and If-None-Match are for /channels/{channel}/state/{key}")
    elif repeatable and call.resource is Resource.CHANNEL:
        raise WireError("bad_request", "emptying a channel has no Idempotency-Key: it can be done again")
    elif repeatable and call.query.get("ephemeral"):
        raise WireError("bad_request", "an ephemeral message has no Idempotency-Key: it is not stored")


class Condition(Enum):
    """What a write may ask of a key, beside being at an offset."""

    EXISTS = "If-Match: *"


def read_condition(headers: Headers) -> int | Condition | None:
    """What If-Match or If-None-Match ask of a key: its offset (0: that there is none), or that it is there.

    Raises WireError for what can be no condition on a key.
    """
    match, none_match = header(headers, b"if-match"), header(headers, b"if-none-match")
    if match is not None and none_match is not None:
        raise WireError("bad_request", "If-Match and If-None-Match do not go together")
    if none_match is not None:
        if none_match != b"*":
            raise WireError("bad_request", "a write takes no If-None-Match but *")
        return 0
    if match is None:
        return None
    if match == b"*":
        return Condition.EXISTS
    found = _ETAG.fullmatch(match)
    if found is None:
        raise WireError("bad_request", 'If-Match is * or one ETag, such as "7"')
    return int(found[1])


def is_expected(headers: Headers, offset: int) -> bool:
    """Whether a key's word is one that If-Match names, if that was sent (RFC 9110, section 13.1.1)."""
    if header(headers, b"if-match") is None:
        return True
    return bool(tokens(headers, b"if-match") & {b"*", b'"%d"' % offset})


def is_known(headers: Headers, offset: int) -> bool:
    """Whether If-None-Match says that the client has a key's word already (RFC 9110, section 13.1.2)."""
    known = tokens(headers, b"if-none-match")
    return bool(known & {b"*", b'"%d"' % offset, b'w/"%d"' % offset})


def last_event_id(headers: Headers) -> dict[str, int | str]:
    """Where a returning EventSource is, as fields of the wire: none, `since`, or that and `epoch`.

    Raises WireError for what is no id of an event.
    """
    value = header(headers, b"last-event-id")
    if not value:
        return {}
    offset, mark, epoch = value.decode("latin-1").partition("@")
    try:
        since = _read_number(offset)
    except ValueError:
        raise WireError("bad_request", "Last-Event-ID is an offset") from None
    return {"since": since, "epoch": epoch} if mark else {"since": since}


_IDEMPOTENCY_KEY = re.compile(rb"[!-~]{1,255}")


def idempotency_key(headers: Headers) -> bytes | None:
    """The Idempotency-Key; quoted or not, it is only compared. Raises WireError for what is none."""
    value = header(headers, b"idempotency-key")
    if value is not None and _IDEMPOTENCY_KEY.fullmatch(value) is None:
        raise WireError("bad_request", "an Idempotency-Key is 1-255 printable ASCII characters without spaces")
    return value
