"""A client for tests of one server: JSON lines over a blocking socket, one request after the other."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from tests.harness import PATIENCE_S
from tests.torture.clients import Doors


class HungUp(Exception):
    """The server ended the connection."""


class Talk:
    """One connection of the lines dialect."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def receive(self) -> dict[str, Any]:
        """What the server says next. Raises HungUp."""
        while b"\n" not in self._rest:
            try:
                chunk = self._connection.recv(1 << 20)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise HungUp(self._rest)
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = msgspec.json.decode(line)
        return message

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request, and return what the server says next. Raises HungUp."""
        (answer,) = self.requests({"op": op, "id": 1, **fields})
        return answer

    def requests(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Send requests together, and return as many things as the server says next. Raises HungUp."""
        try:
            self._connection.sendall(b"".join(msgspec.json.encode(request) + b"\n" for request in requests))
        except ConnectionError as error:
            raise HungUp(error) from None
        return [self.receive() for _ in requests]


@contextmanager
def talking(doors: Doors) -> Iterator[Talk]:
    """A client of a server."""
    with socket.create_connection(doors["lines"], timeout=PATIENCE_S) as connection:
        yield Talk(connection)
