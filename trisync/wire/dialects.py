"""What a TCP client speaks, told from its first bytes. Sans-IO; the table is in protocol.md."""

import re
from enum import Enum


class Dialect(Enum):
    """What the first bytes of a TCP connection mean."""

    FRAMES = "frames"
    LINES = "lines"
    CONSOLE = "console"
    TELNET = "telnet negotiation"
    TLS = "TLS, which is not configured"
    HTTP = "HTTP on the TCP port"
    CONTROL = "a control byte"


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(b"(?:[ \t]++|%b)++" % _BYTE_ORDER_MARK)  # possessive: else each is remembered
# A page in a browser can make it send any of these to any port, with a body of the page's choosing.
_HTTP_METHODS = tuple(method + b" " for method in b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH PRI".split())


def skip_blanks(head: bytes) -> bytes:
    """`head` without leading spaces, tabs and byte order marks."""
    blanks = _BLANKS.match(head)
    return head if blanks is None else head[blanks.end() :]


def tell_dialect(head: bytes) -> Dialect | None:
    """The dialect of what begins with `head` (blanks skipped), None where that cannot be told yet."""
    if not head or (len(head) < 3 and _BYTE_ORDER_MARK.startswith(head)):
        return None
    first = head[0]
    if first == 0x00:
        return Dialect.FRAMES
    if first == ord("{"):
        return Dialect.LINES
    if first == 0xFF:
        return Dialect.TELNET
    if first == 0x16:
        return Dialect.TLS
    if (first < 0x20 and first not in b"\r\n") or first == 0x7F:
        return Dialect.CONTROL
    if head.startswith(_HTTP_METHODS):
        return Dialect.HTTP
    if any(method.startswith(head) for method in _HTTP_METHODS):
        return None
    return Dialect.CONSOLE
