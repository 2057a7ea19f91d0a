"""What a hook is given, and what it may raise: a client, its requests, and the refusal of either.

Which hooks there are and when they are asked is in hooks.py and the session; nothing here waits.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct

from trisync.wire.data import encode_data
from trisync.wire.errors import WireError
from trisync.wire.protocol import Name, Publish, decode_request, shortened

REFUSE_CODES = ("forbidden", "bad_request", "limit", "unavailable")
"""The error codes that a hook may refuse with: the others say something of the server itself."""

REFUSAL_LENGTH_MAX = 500
"""Characters of a refusal's message; escaped six bytes each, it still fits into REPLY_HEADROOM_BYTES."""


class Refuse(Exception):
    """Raised by a hook: the request, or the connection, is refused with this message and code.

    `unavailable` tells the client that it may try again, or come again, the other codes that it is final; but with
    `bad_request` a client comes again, as after a message that came only in part. A message is cut after
    REFUSAL_LENGTH_MAX characters. Raises ValueError for a code that is not one of REFUSE_CODES.
    """

    def __init__(self, message: str, code: str = "forbidden") -> None:
        if code not in REFUSE_CODES:
            raise ValueError(f"a hook refuses with one of the codes {', '.join(REFUSE_CODES)}, not {code!r}")
        super().__init__(message)
        # A lone surrogate, as in the name of a file that is not UTF-8, could not be sent.
        self.message = shortened(str(message).encode(errors="backslashreplace").decode(), REFUSAL_LENGTH_MAX)
        self.code = code


Door = Literal["tcp", "websocket", "http"]


class Client:
    """The client that a hook is about: the same object for as long as its connection lasts."""

    __slots__ = ("_name", "data", "door", "ended", "peer", "renamed", "session")

    def __init__(self, session: str, peer: str, door: Door, name: str | None = None) -> None:
        self.session = session
        """Its session's id: opaque, and never given twice."""
        self.peer = peer
        """Its address, as text for people."""
        self.door = door
        self.data: dict[str, Any] = {}
        """The program's own notes about this client; the server never looks into them."""
        self.ended: str | None = None
        """Why the connection is over, for people; None while it is not."""
        self.renamed: Callable[[], None] = lambda: None
        """Called when it has got another name; the server's."""
        self.name = name

    def __repr__(self) -> str:
        return f"<Client {self.session}, {self.name!r}, {self.peer}>"

    @property
    def name(self) -> str | None:
        """The name on its messages and in presence, None without one.

        A `hello` changes it, and so may the program, at any time: it is on what is published from then on. One that
        `hello` would not take raises ValueError.
        """
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        try:
            str(name).encode()  # a lone surrogate could not be sent
            self._name = msgspec.convert(name, Name | None)
        except (msgspec.ValidationError, UnicodeEncodeError):
            raise ValueError(f"{name!r} is no name: 1-64 characters, none of them a control character") from None
        self.renamed()


class PublishRequest:
    """A publish that a hook is to judge. Only `data` can be changed, by assignment or in place."""

    __slots__ = ("_before", "_data", "_request", "_touched", "client", "result")

    def __init__(self, client: Client, request: Publish) -> None:
        self.client = client
        self._request = self.result = request
        """What is to be published, once settle() was called; the server's."""
        self._touched = False
        self._data: Any = None
        self._before: bytes | None = None  # the encoding of `data` as it was; None until somebody has looked

    def __repr__(self) -> str:
        data = repr(self._data) if self._touched else str(self._request.data, "utf-8")
        key = "" if self.key is None else f", key {self.key!r}"
        return f"<PublishRequest to {self.channel!r}{key} by {self.client!r}: {shortened(data, 200)}>"

    @property
    def channel(self) -> str:
        return self._request.channel

    @property
    def key(self) -> str | None:
        """The key of the channel's state that this sets; None for a message without one."""
        return None if self._request.key is UNSET else self._request.key

    @property
    def expect(self) -> int | None:
        """The offset that the key must be at for this to be stored; None where that does not matter."""
        return None if self._request.expect is UNSET else self._request.expect

    @property
    def merge(self) -> bool:
        """Whether `data` is a patch of the key's value rather than a new value."""
        return self._request.merge

    @property
    def ephemeral(self) -> bool:
        """Whether this is delivered without being stored."""
        return self._request.ephemeral

    @property
    def data(self) -> Any:
        """What is published, as Python values: dict, list, str, int, float, bool or None.

        While its content stays the same, the message goes on byte for byte as it was sent; a changed one is
        encoded anew, and a float then has no more digits than Python's. Raises Refuse for JSON that Python's
        values cannot hold (1e999). Setting it raises TypeError or ValueError for what JSON cannot hold, such as NaN.
        """
        if not self._touched:
            try:
                value = msgspec.json.decode(self._request.data)
            except msgspec.DecodeError as error:
                raise Refuse(f"data cannot be read: {error}", "bad_request") from None
            self._before = msgspec.json.encode(value)
            self._data, self._touched = value, True
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        encode_data(value)  # told here, where the hook's own line is in the traceback
        self._data, self._touched = value, True

    def settle(self, message_bytes_max: int) -> WireError | None:
        """The server's: bring the result up to date with `data`. Raises whatever is wrong with a new value."""
        if not self._touched:
            return None
        encoded = encode_data(self._data)
        if encoded == self._before:
            self.result = self._request
            return None
        if len(encoded) > message_bytes_max:
            problem = f"what the server's program made of data is over {message_bytes_max} bytes"
            limit = {"limit": "message_bytes_max", "value": message_bytes_max}
            return WireError("too_large", problem, closes=False, **limit)
        self.result = msgspec.structs.replace(self._request, data=Raw(encoded))
        # Judged as if a client had sent it: how deep it is, and what goes together.
        decode_request(msgspec.json.encode(self.result))
        return None


class SubscribeRequest(Struct, frozen=True, eq=False):
    """A subscription that a hook is to judge."""

    client: Client
    channel: str
    since: int | None
    """The offset behind which the client asks for messages; None where it gave none."""
    last: int | None
    """How many of the newest messages it asks for; None where it gave no number."""
    state: bool
    presence: bool
