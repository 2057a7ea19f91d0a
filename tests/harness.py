"""What the tests share: a server in this process or in one of its own, and clients for its dialects."""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from trio_websocket import open_websocket_url

from trisync.server import Address, Server
from trisync.settings import Settings

PATIENCE_S = 30.0
"""How long a test waits for what must come. Passing tests never wait so long; it is no measurement."""

Json = dict[str, Any]


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Settings of a server for a test: free ports, its own folder, no lingering."""
    chosen: Json = {"tcp_port": 0, "web_port": 0, "data": str(folder / "data"), "linger_s": 0.2}
    return Settings(**(chosen | changes))


@asynccontextmanager
async def running_server(folder: Path, **changes: Any) -> AsyncIterator["Running"]:
    """A server in this process, over real sockets. Cancelled at the end, unless it was drained before."""
    async with serving(Server(settings_for(folder, **changes), seed=1)) as running:
        yield running


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator["Running"]:
    """As running_server(), for a server that a test has prepared."""
    async with trio.open_nursery() as nursery:
        address = await nursery.start(lambda task_status: server.serve(task_status=task_status))
        yield Running(server, address)
        nursery.cancel_scope.cancel()


class Running:
    """A server that runs in this process."""

    def __init__(self, server: Server, address: Address) -> None:
        self.server = server
        self.address = address

    async def tcp(self) -> trio.SocketStream:
        """A bare TCP connection to the TCP door."""
        return await trio.open_tcp_stream("127.0.0.1", self.address.tcp_port)

    async def web(self) -> trio.SocketStream:
        """A bare TCP connection to the web door."""
        return await trio.open_tcp_stream("127.0.0.1", self.address.web_port)

    @asynccontextmanager
    async def lines(self) -> AsyncIterator["LinesPeer"]:
        """A client of the lines dialect."""
        async with await self.tcp() as stream:
            yield LinesPeer(stream)

    @asynccontextmanager
    async def frames(self) -> AsyncIterator["FramesPeer"]:
        """A client of the frames dialect."""
        async with await self.tcp() as stream:
            yield FramesPeer(stream)

    @asynccontextmanager
    async def websocket(self) -> AsyncIterator["WebSocketPeer"]:
        """A WebSocket client, by trio-websocket's own client side."""
        async with open_websocket_url(f"ws://127.0.0.1:{self.address.web_port}/") as websocket:
            yield WebSocketPeer(websocket)


class Peer:
    """A client of a machine dialect: JSON objects to and fro."""

    async def send_bytes(self, payload: bytes) -> None:
        """Send one payload, framed."""
        raise NotImplementedError

    async def receive_bytes(self) -> bytes:
        """The next payload. Raises EOFError at the end of the connection."""
        raise NotImplementedError

    async def send(self, op: str, **fields: Any) -> None:
        """Send one request."""
        await self.send_bytes(json.dumps({"op": op, **fields}).encode())

    async def receive(self) -> Json:
        """The next message of the server."""
        with trio.fail_after(PATIENCE_S):
            message: Json = json.loads(await self.receive_bytes())
            return message

    async def request(self, op: str, **fields: Any) -> Json:
        """Send a request and return its answer, which must be the next message."""
        await self.send(op, id=1, **fields)
        answer = await self.receive()
        assert answer.get("id") == 1, answer
        return answer

    async def receive_messages(self, count: int) -> list[Json]:
        """The next so many messages of the server, which must all be `message`s."""
        messages = [await self.receive() for _ in range(count)]
        assert {message["op"] for message in messages} <= {"message"}, messages
        return messages


class LinesPeer(Peer):
    """JSON lines over a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._rest = b""

    async def send_bytes(self, payload: bytes) -> None:
        await self.stream.send_all(payload + b"\n")

    async def receive_bytes(self) -> bytes:
        while b"\n" not in self._rest:
            chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError(self._rest)
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line


class FramesPeer(LinesPeer):
    """Length-prefixed JSON over a stream."""

    async def send_bytes(self, payload: bytes) -> None:
        await self.stream.send_all((len(payload) + 4).to_bytes(4, "big") + payload)

    async def receive_bytes(self) -> bytes:
        head = await self._exactly(4)
        return await self._exactly(int.from_bytes(head, "big") - 4)

    async def _exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError(self._rest)
            self._rest += chunk
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class WebSocketPeer(Peer):
    """JSON in WebSocket text messages."""

    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket

    async def send_bytes(self, payload: bytes) -> None:
        await self.websocket.send_message(payload.decode())

    async def receive_bytes(self) -> bytes:
        message: str = await self.websocket.get_message()
        return message.encode()


async def read_until(stream: trio.abc.ReceiveStream, ending: bytes) -> bytes:
    """Read until what was read contains `ending`. Raises EOFError where the stream ends before."""
    data = b""
    with trio.fail_after(PATIENCE_S):
        while ending not in data:
            chunk = await stream.receive_some(65536)
            if not chunk:
                raise EOFError(data)
            data += chunk
    return data


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until the other side hangs up; a reset counts as that."""
    data = b""
    with trio.fail_after(PATIENCE_S):
        try:
            while chunk := await stream.receive_some(65536):
                data += chunk
        except trio.BrokenResourceError:
            pass
    return data


class ServerProcess:
    """`trisync serve` as a process of its own, for what only a process shows."""

    def __init__(self, folder: Path, *options: str, tcp_port: int = 0, web_port: int = 0) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (not a pipe: nobody reads it while the server runs)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "trisync", "serve", "--data", str(folder)),
                *("--tcp-port", str(tcp_port), "--web-port", str(web_port), "--linger-s", "0.2", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        match = re.fullmatch(r"trisync ready tcp=\S+:(\d+) web=\S+:(\d+) data=(.*)\n", self.ready_line)
        assert match, (self.ready_line, self.stop(signal.SIGKILL), self.said())
        self.tcp_port, self.web_port = int(match[1]), int(match[2])

    def said(self) -> str:
        """What it wrote to standard error so far."""
        self.log.seek(0)
        return self.log.read().decode()

    async def tcp(self) -> trio.SocketStream:
        """A bare TCP connection to the TCP door."""
        return await trio.open_tcp_stream("127.0.0.1", self.tcp_port)

    async def web(self) -> trio.SocketStream:
        """A bare TCP connection to the web door."""
        return await trio.open_tcp_stream("127.0.0.1", self.web_port)

    async def lines(self) -> LinesPeer:
        """A client of it; its stream is to be closed."""
        return LinesPeer(await self.tcp())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(how)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.close()

    def close(self) -> None:
        """End the process whatever it does, and let go of its output."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def server_process(folder: Path, *options: str, **ports: int) -> Iterator[ServerProcess]:
    """A server process for the length of a test."""
    server = ServerProcess(folder, *options, **ports)
    try:
        yield server
    finally:
        server.close()
        server.log.close()


async def run_trisync(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of trisync's to its end, whatever its status."""
    command = [sys.executable, "-m", "trisync", *arguments]
    with trio.fail_after(PATIENCE_S):
        return await trio.run_process(command, cwd=cwd, capture_stdout=True, capture_stderr=True, check=False)
