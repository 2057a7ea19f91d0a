"""A minimal client over the lines dialect, for the command line: one request, one answer, and what comes by itself."""

from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio

DEFAULT_URL = "tcp://localhost:2345"


class ServerError(Exception):
    """The server refused a request; the message is its own."""


class LinesClient:
    """A connection to a server; an async context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "tcp" or parts.hostname is None:
            raise ValueError(f"a server's address looks like {DEFAULT_URL}, not {url!r}")
        self._host, self._port = parts.hostname, parts.port or 2345
        self._rest = bytearray()
        self._last_id = 0

    async def __aenter__(self) -> "LinesClient":
        """Connect. Raises OSError."""
        self._stream = await trio.open_tcp_stream(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await trio.aclose_forcefully(self._stream)

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises ServerError, and EOFError when the server is gone."""
        self._last_id += 1
        request = {"op": op, "id": self._last_id, **fields}
        await self._stream.send_all(msgspec.json.encode(request) + b"\n")
        while True:
            message = msgspec.json.decode(await self.receive())
            if message.get("id") == self._last_id:
                if message["op"] == "error":
                    raise ServerError(f"{message['message']} ({message['code']})")
                return dict(message)

    async def receive(self) -> bytes:
        """The next message from the server, one JSON object. Raises EOFError at its end."""
        while (end := self._rest.find(b"\n")) < 0:
            try:
                chunk = await self._stream.receive_some()
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                raise EOFError("the server closed the connection")
            self._rest += chunk
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line
