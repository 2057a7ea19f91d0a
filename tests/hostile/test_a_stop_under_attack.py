"""A server that drains while clients misbehave: what is refused, and that nobody can hold the stop up."""

import logging
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.harness import PATIENCE_S, Running, running_server, settings_for
from tests.hostile.raw_peers import FIN, TEXT, UPGRADE, RawHttp, RawPeer, RawWebSocket, frame
from trisync.server import Address, Server
from trisync.storage.sqlite_log import SqliteLog

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], trio.Event]:
    """Lets every commit wait until the event that it gives is set."""

    def hold() -> trio.Event:
        event, append = trio.Event(), SqliteLog.append

        async def held_append(log: SqliteLog, batch: Any) -> Any:
            await event.wait()
            return await append(log, batch)

        monkeypatch.setattr(SqliteLog, "append", held_append)
        return event

    return hold


async def now_drains(running: Running) -> None:
    """Ask the server to drain, and wait until it does."""
    running.server.drain()
    with trio.fail_after(PATIENCE_S):
        while await ask(running, HEALTH) == 200:
            pass


async def ask(running: Running, request: bytes) -> int:
    """The status of the answer to a request on a connection of its own."""
    async with await running.web() as stream:
        peer = RawHttp(stream)
        await peer.send_raw(request)
        response = await peer.get_response()
        if response.status != 200:
            assert await peer.receive_rest() == b""
        return response.status


async def test_a_draining_server_refuses_new_publishes_and_answers_the_accepted_ones(
    tmp_path: Path, slow_disk: Callable[[], trio.Event]
) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        disk = slow_disk()
        await peer.send("publish", id="accepted", channel="attacked", data=1)
        assert await peer.request("ping") == {"op": "pong", "id": 1}  # so it was read
        await now_drains(running)
        await peer.send("publish", id="late", channel="attacked", data=2)
        assert await peer.request("ping") == {"op": "pong", "id": 1}
        disk.set()
        assert await peer.receive() == {"op": "ok", "id": "accepted", "offset": 1}
        goodbye, late = sorted([await peer.receive(), await peer.receive()], key=lambda message: "id" in message)
        assert (late["id"], late["code"], late["retry"]) == ("late", "draining", True)
        assert (goodbye["op"], goodbye["code"]) == ("goodbye", "draining")
        assert 0 <= goodbye["reconnect_ms"] <= 5000
        with pytest.raises(EOFError):
            await peer.receive()


async def test_the_doors_of_a_draining_server_are_closed_save_for_its_health(
    tmp_path: Path, slow_disk: Callable[[], trio.Event]
) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        disk = slow_disk()
        await peer.send("publish", channel="attacked", data=1)
        await peer.request("ping")
        await now_drains(running)
        for request in (HEALTH, UPGRADE, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            assert await ask(running, request) == 503
        assert await ask(running, b"GET / HTTP/1.1\r\nHost: rebound.example\r\n\r\n") == 503
        for malformed in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: @\r\n\r\n",
            HEALTH.replace(b"1.1", b"1.2"),
        ):
            assert await ask(running, malformed) == 400
        with pytest.raises(OSError, match="connect"):
            await running.tcp()
        disk.set()
        assert (await peer.receive())["op"] == "goodbye"


async def test_a_websocket_gets_its_goodbye_and_1001(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, await running.web() as stream:
        peer = RawWebSocket(stream)
        await peer.shake_hands()
        await peer.still_served()
        running.server.drain()
        assert (await peer.receive())["op"] == "goodbye"
        assert (await peer.receive_close())[0] == 1001


async def test_nobody_can_hold_a_stop_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    # serve() returns while each of these stays as it is: that it does is the test.
    server = Server(settings_for(tmp_path, drain_s=0.5, backlog_bytes_max=1024), seed=1)
    stopped = trio.Event()

    async def serve(task_status: trio.TaskStatus[Address]) -> None:
        await server.serve(task_status=task_status)
        stopped.set()

    async with AsyncExitStack() as streams, trio.open_nursery() as nursery:
        running = Running(server, await nursery.start(serve))
        for opening in (b"", b"GE", b"\x00\x00\x10\x00{", b'{"op":', b"hello", b"\xff\xfa", b"\n"):
            peer = RawPeer(await streams.enter_async_context(await running.tcp()))
            await peer.pour(opening, 1)
        for opening in (b"", b"GET / HTTP/1.1\r\nHost: loc", b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            peer = RawPeer(await streams.enter_async_context(await running.web()))
            await peer.pour(opening, 1)
        for opening in (b"", frame(TEXT, b"{"), frame(FIN | TEXT, b"{}")[:3]):
            websocket = RawWebSocket(await streams.enter_async_context(await running.web()))
            await websocket.shake_hands(opening)
        never_reads = await streams.enter_async_context(running.lines())
        await never_reads.request("subscribe", channel="attacked")
        publisher = await streams.enter_async_context(running.lines())
        for _ in range(20):
            await publisher.request("publish", channel="attacked", data="x" * 1_000_000)
        server.drain()
        with trio.fail_after(PATIENCE_S):
            await stopped.wait()
    assert [text for text in caplog.messages if re.fullmatch(r"\d+ clients had not taken all within 0\.5 s", text)]
