"""What the peers of a comparison speak: just enough of Redis' RESP and of NATS to publish, subscribe and append.

Sans-IO, as transports.py, whose pieces and errors these are. What a peer is and how it is started is in
peer_servers.py, the load in peer_load.py.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from trisync.loadtest.plan import Transport
from trisync.loadtest.transports import PING, PONG, TEXT, Malformed, Piece, Split, split_websocket

CHANNEL = b"load"
"""The one channel, subject or stream of a measurement; its server is new and has no other."""

REPLY = 0
"""The opcode of an answer to a request, beside those of transports.py."""

CRLF = b"\r\n"

_Resp = bytes | list[bytes]


def split_resp(data: bytes) -> list[Piece]:
    """The whole values in `data`: Pub/Sub messages are TEXT, pongs are PONG, all else is REPLY. Raises Malformed.

    RESP version 2: simple strings, errors (raised), integers, bulk strings, and arrays of these.
    """
    pieces = []
    start = 0
    while found := _resp_value(data, start):
        value, start = found
        values = [value] if isinstance(value, bytes) else value
        pieces.append(Piece(_RESP_WORDS.get(values[0], REPLY), values[-1], start))
    return pieces


_RESP_WORDS = {b"message": TEXT, b"pong": PONG, b"PONG": PONG}
"""What a value says by itself, or by the first of an array."""


def _resp_value(data: bytes, start: int) -> tuple[_Resp, int] | None:
    line_end = data.find(CRLF, start)
    if line_end < 0:
        return None
    kind, line = data[start : start + 1], data[start + 1 : line_end]
    at = line_end + len(CRLF)
    if kind in (b"+", b":"):
        return line, at
    if kind == b"$":
        end = at + _size(line)
        if len(data) < end + len(CRLF):
            return None
        if data[end : end + len(CRLF)] != CRLF:
            raise Malformed(f"a value longer than its length: {data[start:end][:80]!r}")
        return data[at:end], end + len(CRLF)
    if kind == b"*":
        values: list[bytes] = []
        size = _size(line)
        if not size:
            raise Malformed("an empty array")
        for _ in range(size):
            found = _resp_value(data, at)
            if found is None:
                return None
            value, at = found
            if not isinstance(value, bytes):
                raise Malformed("an array within an array")
            values.append(value)
        return values, at
    raise Malformed(f"the server says {data[start:line_end][:200].decode(errors='replace')!r}")


def count_replies(data: bytes) -> tuple[int, int]:
    """How many whole integers, or whole bulk strings without line breaks, `data` begins with, and where they end.

    For 200,000 replies a second: 0.1 µs each, where split_resp takes 1. (0, 0) where `data` is anything but these.
    """
    kind = data[:1]
    if kind not in (b"$", b":"):
        return 0, 0
    width = 2 if kind == b"$" else 1
    lines = data.split(CRLF)
    count = (len(lines) - 1) // width
    if {head[:1] for head in lines[: count * width : width]} != {kind}:
        return 0, 0
    return count, len(data) - len(CRLF.join(lines[count * width :]))


def split_nats(data: bytes) -> list[Piece]:
    """The whole operations in `data`: MSG is TEXT, PING and PONG are that, INFO is REPLY. Raises Malformed."""
    pieces = []
    start = 0
    while (line_end := data.find(CRLF, start)) >= 0:
        line = data[start:line_end]
        end = line_end + len(CRLF)
        word = line.partition(b" ")[0]
        if word == b"MSG":
            body, end = end, end + _size(line.rpartition(b" ")[2]) + len(CRLF)
            if end > len(data):
                break
            if data[end - len(CRLF) : end] != CRLF:
                raise Malformed(f"a message longer than its length: {line[:80]!r}")
            pieces.append(Piece(TEXT, data[body : end - len(CRLF)], end))
        elif word in _NATS_WORDS:
            pieces.append(Piece(_NATS_WORDS[word], line, end))
        else:
            raise Malformed(f"the server says {line[:200].decode(errors='replace')!r}")
        start = end
    return pieces


_NATS_WORDS = {b"PING": PING, b"PONG": PONG, b"INFO": REPLY}


def _size(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 9:
        raise Malformed(f"a length of {digits[:80]!r}")
    return int(digits)


class Dialect(NamedTuple):
    """One peer's words. Data is ASCII, of the same size in all messages of a measurement."""

    split: Split
    publish: Callable[[int], tuple[bytes, bytes]]
    """What stands before and behind data of so many bytes, where it is published."""
    delivered: Callable[[int], bytes]
    """What stands before it where it is delivered; behind it there is at most a line's end."""
    hello: bytes = b""
    """What each connection begins with."""
    subscribe: bytes = b""
    """Nothing where a connection is a subscription."""
    ping: bytes = b""
    pong: bytes = b""
    ask_count: bytes = b""
    """Asks how many messages are stored, where they are stored and publishes are acknowledged."""
    transport: Transport = "lines"
    """For its handshake and masks; anything but "ws" is plain TCP."""


PeerDialect = Literal["redis-pubsub", "redis-streams", "nats", "node-ws"]

DIALECTS: dict[PeerDialect, Dialect] = {
    "redis-pubsub": Dialect(
        split=split_resp,
        publish=lambda size: (b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(CHANNEL), CHANNEL, size), CRLF),
        delivered=lambda size: b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n" % (len(CHANNEL), CHANNEL, size),
        subscribe=b"SUBSCRIBE %b\r\n" % CHANNEL,
        ping=b"PING\r\n",
    ),
    "redis-streams": Dialect(
        split=split_resp,
        publish=lambda size: (
            b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$1\r\nd\r\n$%d\r\n" % (len(CHANNEL), CHANNEL, size),
            CRLF,
        ),
        delivered=lambda size: b"",
        ping=b"PING\r\n",
        ask_count=b"XLEN %b\r\n" % CHANNEL,
    ),
    "nats": Dialect(
        split=split_nats,
        publish=lambda size: (b"PUB %b %d\r\n" % (CHANNEL, size), CRLF),
        delivered=lambda size: b"MSG %b 1 %d\r\n" % (CHANNEL, size),
        hello=b'CONNECT {"verbose":false,"pedantic":false}\r\n',  # without it, each PUB is answered +OK
        subscribe=b"SUB %b 1\r\n" % CHANNEL,
        ping=b"PING\r\n",
        pong=b"PONG\r\n",
    ),
    "node-ws": Dialect(
        split=split_websocket,
        publish=lambda size: (b"", b""),
        delivered=lambda size: bytes((0x81, size)),
        transport="ws",
    ),
}
"""Everything that can be loaded beside trisync, by name."""
