"""The error codes of the wire, and the exception that carries one to its client.

Every refusal that a client can meet is a row of CODES; protocol.md documents the same table, and a test
compares the two. What a code does to the connection is decided here and nowhere else.
"""

from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType

from trisync.wire.replies import encode_reply


class Code(NamedTuple):
    """What a client is told about an error code, and what becomes of its connection."""

    retry: bool
    """The same request may succeed later: nothing was settled."""
    closes: bool
    """The server closes the connection behind the error."""


CODES = {
    "bad_json": Code(retry=False, closes=False),
    "bad_request": Code(retry=False, closes=False),
    "unknown_op": Code(retry=False, closes=False),
    "not_found": Code(retry=False, closes=False),
    "too_large": Code(retry=False, closes=True),
    "forbidden": Code(retry=False, closes=False),
    "conflict": Code(retry=False, closes=False),
    "out_of_sequence": Code(retry=True, closes=False),
    "fenced": Code(retry=False, closes=False),
    "limit": Code(retry=False, closes=False),
    "unavailable": Code(retry=True, closes=False),
    "draining": Code(retry=True, closes=False),
    "internal": Code(retry=True, closes=True),
}


class WireError(Exception):
    """A request is refused: `code` is a row of CODES, `message` is for a person, `details` are extra fields.

    `closes` overrides what the table says of the connection (a frame length below 5 is a `bad_request`
    after which no frame boundary can be found again).
    """

    def __init__(self, code: str, message: str, *, closes: bool | None = None, **details: Any) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details
        self.retry, default = CODES[code]
        self.closes = default if closes is None else closes

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def encode(self, id: int | str | UnsetType = UNSET) -> bytes:
        """The `error` message for the wire, with the request's `id` where it had one."""
        return encode_reply("error", id, code=self.code, message=self.message, retry=self.retry, **self.details)


def too_large(limit_bytes: int, *, closes: bool | None = None) -> WireError:
    """The refusal of what is over `message_bytes_max`; it need not close where no bytes are left unread for it."""
    problem = f"a message is at most {limit_bytes} bytes"
    return WireError("too_large", problem, closes=closes, limit="message_bytes_max", value=limit_bytes)
