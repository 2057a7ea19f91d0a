"""Runs the examples of protocol.md labelled `http`: raw requests and their answers, on one connection a letter."""

import itertools
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from tests.harness import PATIENCE_S, Json, read_to_end, read_until, running_server

ANY = "…"

Check = Callable[[str, str | bytes, Json], None]
"""Fails unless a JSON text is as shown; takes the values that placeholders have got."""


async def run_http_example(folder: Path, steps: list[str], check: Check) -> None:
    """Send what is shown as sent, and compare what comes with what is shown as coming, in turns."""
    parsed = [re.fullmatch(r"([A-Z]?)([<>])(?: (.*))?", step) for step in steps]
    turns = itertools.groupby(parsed, key=lambda found: (found[1], found[2]) if found else None)
    clients: dict[str, HttpExampleClient] = {}
    bound: Json = {}
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_server(folder))
        for turn, lines in turns:
            assert turn is not None, steps
            letter, direction = turn
            if letter not in clients:
                clients[letter] = HttpExampleClient(await stack.enter_async_context(await running.web()), check, bound)
            shown = [found[3] or "" for found in lines if found]
            with trio.fail_after(PATIENCE_S):
                await (clients[letter].send(shown) if direction == ">" else clients[letter].expect(shown))


class HttpExampleClient:
    """One letter of an example."""

    def __init__(self, stream: trio.SocketStream, check: Check, bound: Json) -> None:
        self._stream = stream
        self._check = check
        self._bound = bound
        self._rest = b""
        self._streams_events = False

    async def send(self, lines: list[str]) -> None:
        """A request: its head, an empty line, its body."""
        body_at = lines.index("")
        head = "\r\n".join([*lines[:body_at], "", ""])
        await self._stream.send_all((head + "\n".join(lines[body_at + 1 :])).encode())

    async def expect(self, shown: list[str]) -> None:
        """An answer, or the next events of one that goes on."""
        if self._streams_events:
            await self._expect_events(shown)
            return
        body_at = shown.index("")
        headers = await self._expect_head(shown[:body_at])
        text = shown[body_at + 1 :]
        if "Content-Type: text/event-stream" in headers:
            self._streams_events = True
            await self._expect_events(text)
            return
        length = next((int(line.split(": ")[1]) for line in headers if line.startswith("Content-Length")), 0)
        while len(self._rest) < length:
            self._rest += await self._stream.receive_some()
        body, self._rest = self._rest[:length], self._rest[length:]
        if "Connection: close" in headers:
            assert self._rest + await read_to_end(self._stream) == b""
        self._compare("\n".join(text), body.decode())

    async def _expect_head(self, shown: list[str]) -> set[str]:
        while b"\r\n\r\n" not in self._rest:
            self._rest += await read_until(self._stream, b"\r\n\r\n")
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *headers = head.decode().split("\r\n")
        # Python 3.13 has another phrase for 422, and no client looks at any: RFC 9112, section 4.
        assert status.split(maxsplit=2)[:2] == shown[0].split(maxsplit=2)[:2]
        named = set(shown[1:])
        assert named - {ANY} <= set(headers), headers
        if ANY not in named:
            assert named == set(headers)
        return set(headers)

    async def _expect_events(self, shown: list[str]) -> None:
        for line in shown:
            while b"\n" not in self._rest:
                self._rest += await self._stream.receive_some()
            real, _, self._rest = self._rest.partition(b"\n")
            field, _, value = line.partition("data: ")
            if value and not field:
                assert real.startswith(b"data: "), real
                self._compare(value, real.decode().removeprefix("data: "))
            else:
                assert real.decode() == line

    def _compare(self, shown: str, real: str) -> None:
        if shown.startswith("{"):
            self._check(shown, real, self._bound)
        elif shown != ANY:
            assert real == shown
