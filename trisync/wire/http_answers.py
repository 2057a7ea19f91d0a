"""What the HTTP interface answers with: statuses for the wire's errors, the headers all answers have, CORS. Sans-IO."""

import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple

import h11
from msgspec import UNSET

from trisync.wire.errors import WireError
from trisync.wire.http_rules import Headers, header
from trisync.wire.protocol import shortened
from trisync.wire.replies import encode_reply

STATUSES = {
    "bad_json": 400,
    "bad_request": 400,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "limit": 429,
    "internal": 500,
    "unavailable": 503,
    "draining": 503,
}
"""The status that an error's code is sent under, where nothing more fitting is known."""

RETRY_AFTER_S = 2
"""Told with a 503: about what a restart takes."""

PREFLIGHT_MAX_AGE_S = 7200
"""How long a browser may remember what an origin may do; none of them does for longer."""

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream"
CLOSE = (b"Connection", b"close")

_REQUEST_HEADERS = b"Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID"
_RESPONSE_HEADERS = b"ETag, Location, Retry-After, Allow, Accept-Patch"
_ALWAYS = (
    (b"Cache-Control", b"no-cache"),
    (b"Vary", b"Origin"),
    (b"X-Content-Type-Options", b"nosniff"),
)

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Answer(NamedTuple):
    """A response, but for the headers that all have."""

    status: int
    body: bytes = b""
    headers: RawHeaders = ()
    content_type: bytes = JSON
    error: WireError | None = None
    """The error that it tells, for the log."""

    @property
    def closes(self) -> bool:
        """Whether the connection ends behind it."""
        return self.error is not None and self.error.closes


class HttpError(Exception):
    """A request is refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def ok(status: int = 200, *headers: tuple[bytes, bytes], **fields: Any) -> Answer:
    """The wire's `ok` as an answer."""
    return Answer(status, encode_reply("ok", UNSET, **fields), headers)


def refused(error: WireError, status: int | None = None, headers: RawHeaders = ()) -> Answer:
    """The wire's error as an answer, under its own status if none is given."""
    if status is None:
        status = STATUSES[error.code]
    if status == 503:
        headers = (*headers, (b"Retry-After", b"%d" % RETRY_AFTER_S))
    return Answer(status, error.encode(), headers, error=error)


def etag(offset: int) -> tuple[bytes, bytes]:
    """The header ETag of a key's word."""
    return b"ETag", b'"%d"' % offset


def explain(error: h11.RemoteProtocolError) -> str:
    """What h11 says is wrong, without Python's name for the bytes that it shows."""
    return shortened(re.sub(r"bytearray\(b(.*)\)", r"\1", str(error)), 200)


@lru_cache(maxsize=1)
def _date(unix_s: int) -> bytes:
    return b"Date: " + formatdate(unix_s, usegmt=True).encode()


def date(now_ms: int) -> bytes:
    """The line of the header Date, which every response has (RFC 9110, section 6.6.1); `now_ms` is Unix time."""
    return _date(now_ms // 1000)


def common_headers(headers: Headers, origins: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """What every answer to a request with these headers has; a page of an allowed origin may read it by that."""
    listed = [*_ALWAYS]
    origin = header(headers, b"origin")
    if origin is not None and origin.decode("latin-1").lower() in {known.lower() for known in origins}:
        listed += [(b"Access-Control-Allow-Origin", origin), (b"Access-Control-Expose-Headers", _RESPONSE_HEADERS)]
    return listed


def preflight(allow: bytes) -> Answer:
    """The answer to OPTIONS. To a page whose origin is not allowed it says nothing, for want of common_headers()."""
    return Answer(
        204,
        headers=(
            (b"Allow", allow),
            (b"Access-Control-Allow-Methods", allow),
            (b"Access-Control-Allow-Headers", _REQUEST_HEADERS),
            (b"Access-Control-Max-Age", b"%d" % PREFLIGHT_MAX_AGE_S),
        ),
    )


def render(
    http: h11.Connection, answer: Answer, headers: Iterable[tuple[bytes, bytes]], *, now_ms: int, head_only: bool
) -> bytes:
    """The bytes of a whole response, with these headers beside its own; `head_only` where its request was a HEAD."""
    listed = [*answer.headers, *headers]
    if answer.status not in (204, 304):
        listed += [(b"Content-Type", answer.content_type), (b"Content-Length", b"%d" % len(answer.body))]
    reason = HTTPStatus(answer.status).phrase.encode()
    events: list[h11.Event] = [h11.Response(status_code=answer.status, reason=reason, headers=listed)]
    if answer.body and not head_only:
        events.append(h11.Data(data=answer.body))
    events.append(h11.EndOfMessage())
    whole = b"".join([http.send(event) or b"" for event in events])
    return whole.replace(b"\r\n", b"\r\n%b\r\n" % date(now_ms), 1)  # h11 would look at it for 5 µs
