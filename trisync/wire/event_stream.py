"""Server-sent events: the server's messages as a browser's EventSource reads them (WHATWG HTML, section 9.2). Sans-IO.

Each message is one event, named by its `op` unless it is a `message`, with the whole JSON object as its data. Its id
is the offset up to which the client has everything, which it sends back as Last-Event-ID when it returns; a mark may
follow that tells of which log that is, for clients that want to know.
"""

import re
from collections.abc import Iterable

import msgspec

COMMENT = b":\n\n"
"""Shows those in between that the connection is alive; a client ignores it."""

_HEAD = re.compile(rb'\{"op":"(\w+)"(?:,"channel":"[^"]*",(?:"offset":|"from":\d+,"to":)(\d+))?')
"""How the encoders in replies.py begin a message or a gap; a channel's name needs no escaping."""


def epoch_mark(epoch: str) -> bytes:
    """What follows the offset in an id where the client has given an epoch."""
    return b"@" + epoch.encode()


def join_events(payloads: Iterable[bytes], mark: bytes = b"") -> bytes:
    """Each payload as one event; there are no line ends in a payload."""
    return b"".join([_event(payload, mark) for payload in payloads])


def position(offset: int, mark: bytes = b"") -> bytes:
    """The beginning of an event: a client that has it, and the rest, has everything up to this offset."""
    return b"id: %d%b\n" % (offset, mark)


def _event(payload: bytes, mark: bytes) -> bytes:
    head = _HEAD.match(payload)
    assert head is not None, payload[:40]
    op, offset = head.groups()
    begin = b"" if offset is None else b"id: %b%b\n" % (offset, mark)
    if op == b"gap" and offset is None:  # of another epoch: what the client has counts no more
        begin = position(0, mark)
    elif op == b"goodbye":
        begin = b"retry: %d\n" % msgspec.json.decode(payload)["reconnect_ms"]
    if op != b"message":
        begin += b"event: %b\n" % op
    return b"%bdata: %b\n\n" % (begin, payload)
