"""The frames of a WebSocket server (RFC 6455): what a client sends to text messages, and what is sent to it.

Sans-IO. Everything that one read brought is parsed in one pass, at about a microsecond a message; wsproto, against
which this is fuzzed for equal behaviour, takes ten times that. The opening handshake is elsewhere.
"""

import codecs
from typing import NamedTuple

FIN = 0x80
RESERVED = 0x70
OPCODE = 0x0F
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN_TEXT = FIN | TEXT
MASKED = 0x80
CONTROL_PAYLOAD_MAX = 125  # section 5.5

# What an endpoint may send (section 7.4.1, and IANA's registry of close codes); above are libraries' and applications'.
_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}

PROTOCOL_ERROR, UNSUPPORTED_DATA, INVALID_PAYLOAD, TOO_BIG = 1002, 1003, 1007, 1009


class Close(NamedTuple):
    """A Close frame to send; without a code its payload is empty (section 5.5.1)."""

    code: int | None
    reason: str = ""


def _long_header(length: int) -> bytes:
    if length < 0x10000:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


_SHORT_HEADERS = [bytes((FIN_TEXT, length)) for length in range(126)]


def text_header(length: int) -> bytes:
    """The header of a server's unfragmented text frame with so many bytes of payload."""
    return _SHORT_HEADERS[length] if length < 126 else _long_header(length)


def _control_frame(opcode: int, payload: bytes) -> bytes:
    return bytes((FIN | opcode, len(payload))) + payload


def close_frame(close: Close) -> bytes:
    """A server's Close frame. The reason is cut to what a control frame holds."""
    if close.code is None:
        return _control_frame(CLOSE, b"")
    reason = close.reason.encode()[: CONTROL_PAYLOAD_MAX - 2].decode(errors="ignore").encode()
    return _control_frame(CLOSE, close.code.to_bytes(2, "big") + reason)


PING_FRAME = _control_frame(PING, b"")


def unmask(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated 4-byte mask (section 5.3), as one big integer: ~0.3 µs for 100 bytes."""
    size = len(payload)
    if mask == b"\0\0\0\0" or not size:
        return payload
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")


class FrameReader:
    """The receiving side of one WebSocket, from the first byte behind its handshake.

    After each feed() the caller handles the returned messages, sends `take_answers()`, and when `close` is set sends
    that Close frame and hangs up: what comes behind is discarded.
    """

    __slots__ = ("_answers", "_decoder", "_fragments", "_limit", "_rest", "_wanted", "close")

    def __init__(self, message_bytes_max: int) -> None:
        self.close: Close | None = None
        """How to answer the client's own Close frame, or what broke the RFC or a limit; None while open."""
        self._limit = message_bytes_max
        self._rest = bytearray()
        self._wanted = 2  # bytes of _rest below which nothing new can be read from it
        self._answers: bytes | bytearray = b""
        self._fragments: bytearray | None = None
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def held_bytes(self) -> int | None:
        """How much is here of a message or frame that has begun and not ended; None where there is none.

        What its frames have beside their payloads does not count, once they are whole.
        """
        if self._fragments is None:
            return len(self._rest) or None
        return len(self._rest) + len(self._fragments)

    def take_answers(self) -> bytes:
        """The pongs for the pings since the last call, ready to send (section 5.5.3)."""
        answers, self._answers = self._answers, b""
        return bytes(answers)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The text messages that `chunk` completes, unmasked, valid UTF-8, in order. Never raises."""
        if self.close is not None:
            return []
        if self._rest:
            self._rest += chunk
            if len(self._rest) < self._wanted:
                return []
            chunk = bytes(self._rest)
            self._rest.clear()
        messages: list[bytes] = []
        start = self._read_frames(chunk, messages)
        if self.close is None:
            self._rest += chunk[start:]
        return messages

    def _read_frames(self, chunk: bytes, messages: list[bytes]) -> int:
        """Read the whole frames of `chunk`; returns where the first one that is not whole begins."""
        start, end = 0, len(chunk)
        self._wanted = 2
        while end - start >= 2:
            head, size = chunk[start], chunk[start + 1]
            mask_at = start + 2
            if size >= 0xFE:
                width = 2 if size == 0xFE else 8
                mask_at += width
                # An endless length would never be whole, so its header is judged as soon as it is there.
                if end < mask_at:
                    self._judge_head(head, size)
                    self._wanted = 2 + width
                    break
                length = int.from_bytes(chunk[start + 2 : mask_at], "big")
            else:
                length = size & 0x7F
            is_plain = (  # as nearly all are
                head == FIN_TEXT
                and size >= MASKED
                and (size < 0xFE or self._length_is_minimal(size, length))
                and length <= self._limit
                and self._fragments is None
            )
            if not (is_plain or self._judge(head, size, length)):
                break
            body_at = mask_at + 4
            frame_end = body_at + length
            if frame_end > end:
                self._wanted = frame_end - start
                break
            payload = unmask(chunk[body_at:frame_end], chunk[mask_at:body_at])
            if head != FIN_TEXT:
                self._take_other(head & OPCODE, head & FIN, payload, messages)
                if self.close is not None:
                    break
            elif payload.isascii() or _is_utf8(payload):
                messages.append(payload)
            else:
                self._fail(INVALID_PAYLOAD, "invalid UTF-8")
                break
            start = frame_end
        return start

    def _fail(self, code: int, reason: str) -> bool:
        self.close = Close(code, reason)
        self._rest.clear()
        self._fragments = None
        return False

    @staticmethod
    def _length_is_minimal(size: int, length: int) -> bool:
        return length > 125 if size & 0x7F == 126 else 0xFFFF < length < 1 << 63

    def _judge_head(self, head: int, size: int) -> bool:
        """Whether a frame's first two bytes are allowed here (section 5.2 and 5.4); fails the reader if not."""
        opcode = head & OPCODE
        if head & RESERVED:
            return self._fail(PROTOCOL_ERROR, "reserved bit set")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            return self._fail(PROTOCOL_ERROR, f"invalid opcode {opcode:#x}")
        if not size & MASKED:
            return self._fail(PROTOCOL_ERROR, "client frames are masked")
        if opcode >= CLOSE:
            if not head & FIN:
                return self._fail(PROTOCOL_ERROR, "a control frame is not fragmented")
            if size & 0x7F > CONTROL_PAYLOAD_MAX:
                return self._fail(PROTOCOL_ERROR, "a control frame has at most 125 bytes")
        elif opcode == CONTINUATION:
            if self._fragments is None:
                return self._fail(PROTOCOL_ERROR, "a continuation of nothing")
        elif self._fragments is not None:
            return self._fail(PROTOCOL_ERROR, "a new message inside a fragmented one")
        return True

    def _judge(self, head: int, size: int, length: int) -> bool:
        """Whether a frame is allowed here; fails the reader if not. What breaks the RFC comes first."""
        if not self._judge_head(head, size):
            return False
        if size >= 0xFE and not self._length_is_minimal(size, length):
            return self._fail(PROTOCOL_ERROR, "a length in more bytes than it needs")
        if head & OPCODE == BINARY:
            return self._fail(UNSUPPORTED_DATA, "messages are text")
        if not head & 0x08 and length + len(self._fragments or b"") > self._limit:
            return self._fail(TOO_BIG, f"a message is at most {self._limit} bytes")
        return True

    def _take_other(self, opcode: int, fin: int, payload: bytes, messages: list[bytes]) -> None:
        """A frame that is not a whole message: a part of one, or a control frame between its parts."""
        if opcode == PING:
            if not self._answers:
                self._answers = bytearray()  # not bytes: thousands of pings must not cost their square
            self._answers += _control_frame(PONG, payload)
        elif opcode == CLOSE:
            self._take_close(payload)
        elif opcode != PONG:
            self._take_fragment(fin, payload, messages)

    def _take_close(self, payload: bytes) -> None:
        """Answer a Close frame with its own code (section 5.5.1), or with what is wrong with it (section 7.4)."""
        if not payload:
            self.close = Close(None)
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not (code in _CLOSE_CODES or 3000 <= code <= 4999):
            self._fail(PROTOCOL_ERROR, "invalid close code")
        elif not _is_utf8(payload[2:]):
            self._fail(INVALID_PAYLOAD, "invalid UTF-8")
        else:
            self.close = Close(code)

    def _take_fragment(self, fin: int, payload: bytes, messages: list[bytes]) -> None:
        if self._fragments is None:
            self._fragments = bytearray()
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        assert self._decoder is not None
        try:
            self._decoder.decode(payload, bool(fin))
        except UnicodeDecodeError:
            self._fail(INVALID_PAYLOAD, "invalid UTF-8")
            return
        self._fragments += payload
        if fin:
            messages.append(bytes(self._fragments))
            self._fragments = self._decoder = None


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
