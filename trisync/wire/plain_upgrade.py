"""The opening handshake of nearly every WebSocket client, read and answered at once. Sans-IO.

Understands one whole, plain request and nothing else: what it declines goes to h11 and trio-websocket, which read
everything, at twenty times the cost. Where it does not decline, it says what those say; that is fuzzed. Whether the
request's host and origin may connect is judged in http_rules.py.
"""

import base64
import hashlib
import re
from typing import NamedTuple

HEAD_BYTES_MAX = 4096
"""Browsers send below 1 KiB, and cookies; longer heads are left to h11, which bounds them."""

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)

# Stricter than RFC 9112: a path as target, one space behind the colon, printable ASCII, no empty value, no folded line.
_HEAD = re.compile(rb"GET /[!-~]* HTTP/1\.1\r\n((?:[-0-9A-Za-z]+: [!-~][ -~]*\r\n)+)\r\n")
_KEY = re.compile(rb"[+/0-9A-Za-z]{22}==")  # 16 bytes in base64
_LEFT_TO_H11 = {b"content-length", b"transfer-encoding", b"expect"}


class PlainUpgrade(NamedTuple):
    """A good opening handshake, but for who sent it."""

    headers: list[tuple[bytes, bytes]]
    """Names in lower case, none twice."""
    key: bytes
    answer: bytes
    """What completes the handshake: section 4.2.2."""
    rest: bytes
    """What came behind the request: frames already."""


def read_plain_upgrade(data: bytes) -> PlainUpgrade | None:
    """The opening handshake that a client's first bytes are, None where that is not plain to see. Never raises."""
    head = _HEAD.match(data, 0, HEAD_BYTES_MAX)
    if head is None:
        return None
    fields: dict[bytes, bytes] = {}
    lines = head[1].split(b"\r\n")
    lines.pop()
    for line in lines:
        name, _, value = line.partition(b": ")
        fields[name.lower()] = value.rstrip(b" ")
    if len(fields) != len(lines) or not _LEFT_TO_H11.isdisjoint(fields):
        return None
    key = fields.get(b"sec-websocket-key", b"")
    if (
        fields.get(b"upgrade", b"").lower() != b"websocket"
        or b"upgrade" not in [token.strip(b" ") for token in fields.get(b"connection", b"").lower().split(b",")]
        or fields.get(b"sec-websocket-version") != b"13"
        or _KEY.fullmatch(key) is None
        or b"host" not in fields
    ):
        return None
    return PlainUpgrade(list(fields.items()), key, accept_answer(key), data[head.end() :])


def accept_answer(key: bytes) -> bytes:
    """The answer to an opening handshake with this Sec-WebSocket-Key."""
    digest = hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()
    return _ANSWER % base64.b64encode(digest)
