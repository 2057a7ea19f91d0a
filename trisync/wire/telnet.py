"""Telnet's in-band commands (RFC 854): stripped from what a person types, and every option refused.

Sans-IO. 0xFF is no part of UTF-8, so this can stand before any text without harm.
"""

IAC = 0xFF
_IAC = bytes((IAC,))
_DONT, _DO, _WONT, _WILL, _SB, _SE = 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF0
_BACKSPACES = b"\x08\x7f"


class TelnetFilter:
    """What comes from a telnet client, split into text and the answers that its negotiation asks for."""

    def __init__(self) -> None:
        self._pending = b""  # the begin of a command
        self._in_subnegotiation = False

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """The text in `chunk`, and what to send back. Text without commands passes as it is."""
        if not self._pending and not self._in_subnegotiation and IAC not in chunk:
            return chunk, b""
        data = self._pending + chunk
        self._pending = b""
        text, answers = bytearray(), bytearray()
        at = 0
        while at < len(data):
            begin = data.find(_IAC, at)
            end = len(data) if begin < 0 else begin
            if not self._in_subnegotiation:
                text += data[at:end]
            if begin < 0:
                break
            at = begin
            command = data[at + 1] if at + 1 < len(data) else None
            size = 3 if command is not None and _WILL <= command <= _DONT else 2
            if command is None or at + size > len(data):
                self._pending = data[at:]
                break
            if command == _SB:
                self._in_subnegotiation = True
            elif command == _SE:
                self._in_subnegotiation = False
            elif command == IAC and not self._in_subnegotiation:
                text.append(IAC)
            elif command == _WILL:
                answers += bytes((IAC, _DONT, data[at + 2]))
            elif command == _DO:
                answers += bytes((IAC, _WONT, data[at + 2]))
            at += size
        return bytes(text), bytes(answers)


def edited(line: bytes) -> bytes:
    """A typed line as its writer meant it: backspaces applied, NULs (RFC 854's padding) left out."""
    line = line.replace(b"\0", b"")
    if not any(code in line for code in _BACKSPACES):
        return line
    kept: list[str] = []
    for char in line.decode(errors="surrogateescape"):
        if char in "\x08\x7f":
            if kept:
                kept.pop()
        else:
            kept.append(char)
    return "".join(kept).encode(errors="surrogateescape")
