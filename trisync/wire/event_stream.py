"""Server-sent events: the server's messages as a browser's EventSource reads them (WHATWG HTML, section 9.2). Sans-IO.

Each message is one event, named by its `op` unless it is a `message`, with the whole JSON object as its data. Its id
is the offset up to which the client has everything, which it sends back as Last-Event-ID when it returns.
"""

import re
from collections.abc import Iterable

import msgspec

COMMENT = b":\n\n"
"""Shows those in between that the connection is alive; a client ignores it."""

_HEAD = re.compile(rb'\{"op":"(\w+)"(?:,"channel":"[^"]*",(?:"offset":|"from":\d+,"to":)(\d+))?')
"""How the encoders in replies.py begin a message or a gap; a channel's name needs no escaping."""


def join_events(payloads: Iterable[bytes]) -> bytes:
    """Each payload as one event; there are no line ends in a payload."""
    return b"".join([_event(payload) for payload in payloads])


def position(offset: int) -> bytes:
    """The beginning of an event: a client that has it, and the rest, has everything up to this offset."""
    return b"id: %d\n" % offset


def _event(payload: bytes) -> bytes:
    head = _HEAD.match(payload)
    assert head is not None, payload[:40]
    op, offset = head.groups()
    begin = b"" if offset is None else b"id: %b\n" % offset
    if op == b"gap" and offset is None:  # of another epoch: what the client has counts no more
        begin = position(0)
    elif op == b"goodbye":
        begin = b"retry: %d\n" % msgspec.json.decode(payload)["reconnect_ms"]
    if op != b"message":
        begin += b"event: %b\n" % op
    return b"%bdata: %b\n\n" % (begin, payload)
