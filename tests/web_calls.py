"""Clients of the HTTP interface: calls made by hand over a real socket, and readers of server-sent events."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from tests.harness import PATIENCE_S, Json, Running, ServerProcess, read_until, running_server
from tests.hostile.raw_peers import RawHttp, Response


def head_of(method: str, path: str, headers: dict[str, str]) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


class Caller(RawHttp):
    """A client that calls the interface over one connection."""

    async def call(self, method: str, path: str, body: bytes | Any = None, **headers: str) -> Response:
        """Send one call and return its answer; `if_match` is the header If-Match, and what is no bytes is JSON."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            named["Content-Length"] = str(len(payload))
        await self.send_raw(head_of(method, path, named) + (payload if body is not None else b""))
        return await self.get_response(to_head=method == "HEAD")

    async def ok(self, method: str, path: str, body: bytes | Any = None, **headers: str) -> Json:
        """A call that must succeed: its answer, which is an `ok`."""
        response = await self.call(method, path, body, **headers)
        assert response.status in (200, 201, 202), response
        answer: Json = json.loads(response.body)
        assert answer.pop("op") == "ok"
        return answer

    async def denied(self, status: int, method: str, path: str, body: bytes | Any = None, **headers: str) -> Json:
        """A call that must be refused with this status: its error."""
        response = await self.call(method, path, body, **headers)
        assert response.status == status, response
        return error_in(response)


def error_in(response: Response) -> Json:
    """The error that a response tells."""
    assert response.headers["content-type"] == "application/json"
    error: Json = json.loads(response.body)
    assert error["op"] == "error"
    assert isinstance(error["message"], str)
    return error


async def open_caller(running: Running | ServerProcess) -> Caller:
    """A new connection; the caller closes its `stream`."""
    return Caller(await running.web())


@asynccontextmanager
async def calling(folder: Path, **settings: Any) -> AsyncIterator[tuple[Running, Caller]]:
    """A server, and a client that calls it."""
    async with running_server(folder, **settings) as running:
        caller = await open_caller(running)
        async with caller.stream:
            yield running, caller


class Event(NamedTuple):
    """One server-sent event."""

    kind: str
    id: str | None
    data: Json


class Events:
    """A reader of server-sent events, that keeps the id it would come back with."""

    def __init__(self, stream: trio.SocketStream, head: str, rest: bytes) -> None:
        self.stream = stream
        self.head = head
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._rest = rest

    async def next(self) -> Event:
        """The next event. Raises EOFError where the stream ends."""
        fields = await self.fields()
        return Event(fields.get("event", "message"), fields.get("id"), json.loads(fields["data"]))

    async def fields(self) -> dict[str, str]:
        """The fields of the next event, as they came. Raises EOFError where the stream ends."""
        while True:
            block = await self._block()
            fields: dict[str, str] = {}
            for line in block.split("\n"):
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            self.comments += "" in fields
            self.last_id = fields.get("id", self.last_id)
            if "retry" in fields:
                self.retry_ms = int(fields["retry"])
            if "data" in fields:
                return fields

    async def messages(self, count: int) -> list[Json]:
        """The next so many events, which must all be messages."""
        events = [await self.next() for _ in range(count)]
        assert {event.kind for event in events} <= {"message"}, events
        return [event.data for event in events]

    async def comment(self) -> None:
        """Wait for a comment, before which there must be no event."""
        assert await self._block() == ":"

    async def end(self) -> None:
        """The server must hang up now."""
        with pytest.raises(EOFError) as ended:
            await self._block()
        assert ended.value.args == (b"",)

    async def _block(self) -> str:
        with trio.fail_after(PATIENCE_S):
            while b"\n\n" not in self._rest:
                chunk = await self.stream.receive_some(65536)
                if not chunk:
                    raise EOFError(self._rest)
                self._rest += chunk
        block, _, self._rest = self._rest.partition(b"\n\n")
        return block.decode()


async def open_events(running: Running | ServerProcess, path: str, **headers: str) -> Events:
    """Ask for events; the first one is on its way. The caller closes the `stream`."""
    stream = await running.web()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    await stream.send_all(head_of("GET", path, named))
    head, _, rest = (await read_until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return Events(stream, head.decode(), rest)
