"""What a client raises: refusals of the server, one class for each code of the wire, and the client's own errors.

All are ClientErrors, and can be pickled, for other processes. What the codes mean to the server is in
trisync/wire/errors.py; a test holds the two tables together.
"""

from typing import Any

from trisync.wire.replies import encode_gap


def publishes(count: int) -> str:
    """So many publishes, in words."""
    return "1 publish" if count == 1 else f"{count} publishes"


class ClientError(Exception):
    """Anything that a client raises on purpose.

    What may be raised again, as that of a closed client is each time it is used, is raised `with_traceback(None)`: it
    would grow by the traceback of each time, and keep alive all that was in those frames.
    """


class NotConnected(ClientError):
    """There is no connection now, and this does not wait for one."""


class Closed(ClientError):
    """The client was closed, or has given up; the message says why. What was not settled is in doubt."""


class QueueFull(ClientError):
    """As many publishes as the queue holds are waiting for their answers already: this one was not taken."""


class Unsettled(ClientError):
    """The client was left while publishes were still waiting; `count` of them may be stored or not."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{publishes(count)} had no answer when the client was closed, and may be stored or not")
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.count,)


class ProtocolError(ClientError):
    """The server sent what no server of this protocol sends. The connection is given up and made anew."""


class Gap(ClientError):
    """Messages of a subscription that will not come. Raised by its iterator, which goes on behind it.

    `reason` is `trimmed`: retention took offsets `first` to `last`; or `epoch`: the log was replaced, say by a
    restored backup, and what was received of this channel belongs to another one (`first` and `last` are 0). What
    follows is then the new log from its beginning, or the gap that tells how much of that retention took.
    """

    def __init__(self, channel: str, reason: str, first: int = 0, last: int = 0) -> None:
        if reason == "trimmed":
            text = f"messages {first} to {last} of {channel} are gone"
            if first == last:
                text = f"message {first} of {channel} is gone"
        else:
            text = f"the log of {channel} was replaced: it begins again"
        super().__init__(text)
        self.channel = channel
        self.reason = reason
        self.first = first
        self.last = last

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.channel, self.reason, self.first, self.last)

    def to_json(self) -> bytes:
        """The gap as one JSON object, on one line, as the server says it."""
        return encode_gap(self.channel, self.reason, self.first, self.last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gap) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.channel, self.reason, self.first, self.last))


class Refused(ClientError):
    """The server refused a request; of a code without a class of its own, it is this.

    `code` and `details`, the extra fields, are for programs, `message` is for a person. `retry`: nothing was settled,
    and the same request may succeed later.
    """

    def __init__(self, code: str, message: str, retry: bool = False, details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.retry = retry
        self.details = details or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.retry, self.details)


class BadJson(Refused):
    """The server could not read what was sent: nested too deep, say."""


class BadRequest(Refused, ValueError):
    """A field is missing, of the wrong type or out of range; the message says which."""


class UnknownOp(Refused):
    """The server is older than this client, and does not have the operation."""


class NotFound(Refused):
    """There is no such thing. A client of messages does not meet it; one of the HTTP interface does."""


class TooLarge(Refused):
    """A message is over the server's `message_bytes_max`."""


class Unauthorized(Refused):
    """There is no token, or it is not a good one."""


class Forbidden(Refused):
    """The server, or a hook of the program around it, does not allow this."""


class Conflict(Refused):
    """`expect` was not met: the key's newest word is `data`, at `offset` (0: there is no such key)."""

    @property
    def offset(self) -> int:
        """The offset of the key's newest word; what the next attempt expects."""
        return int(self.details.get("offset", 0))

    @property
    def data(self) -> Any:
        """The key's newest word, None where there is none."""
        return self.details.get("data")


class OutOfSequence(Refused):
    """A publish came before those it follows. The client sends them again by itself: nobody else sees this."""


class Fenced(Refused):
    """Another client uses the same producer, and is it now. This one has stopped."""


class LimitReached(Refused):
    """A limit of the server is reached: `details` has its name in `limit` and its number in `value`."""


class RateLimited(Refused):
    """Too many requests for now."""


class Unavailable(Refused):
    """The server's log cannot be read or written now. Publishes are sent again by themselves."""


class Draining(Refused):
    """The server is stopping. Publishes are sent again to the next one by themselves."""


class Internal(Refused):
    """A fault of the server, which has logged it under the reference in the message."""


CLASSES: dict[str, type[Refused]] = {
    "bad_json": BadJson,
    "bad_request": BadRequest,
    "unknown_op": UnknownOp,
    "not_found": NotFound,
    "too_large": TooLarge,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
    "conflict": Conflict,
    "out_of_sequence": OutOfSequence,
    "fenced": Fenced,
    "limit": LimitReached,
    "rate_limited": RateLimited,
    "unavailable": Unavailable,
    "draining": Draining,
    "internal": Internal,
}
"""The class of each code of the wire."""


def refusal(code: str, message: str, retry: bool, details: dict[str, Any]) -> Refused:
    """The exception for an `error` of the server."""
    return CLASSES.get(code, Refused)(code, message, retry, details)
