"""The doors of a server in memory: no sockets, no disk, and time that a test's clock decides.

For what must be tried thousands of times, or takes longer than a test may. What concerns sockets is in arena.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from tests.fakes import MemoryLog
from trisync.core.broker import Broker
from trisync.doors.http import HttpDoor
from trisync.doors.tcp import TcpDoor
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry
from trisync.settings import Settings

MemoryStream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class MemoryDoors:
    """Both doors over one broker, whose log is in memory."""

    def __init__(self, nursery: trio.Nursery, settings: Settings) -> None:
        self.broker = Broker(MemoryLog(), settings, timer=trio.current_time)
        self.registry = Registry(settings.connections_max)
        self._nursery = nursery
        self._tcp = TcpDoor(self.broker, self.registry, settings, Hooks())
        self._web = HttpDoor(self.broker, self.registry, settings, Hooks(), {})

    def connect(self, door: str) -> MemoryStream:
        """A client of the `tcp` or the `web` door that has said nothing yet."""
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon({"tcp": self._tcp.handle, "web": self._web.handle}[door], theirs, "memory")
        return ours


@asynccontextmanager
async def memory_doors(**settings: Any) -> AsyncIterator[MemoryDoors]:
    """Doors that are open for the length of a block. Connections that are left then are cut off."""
    async with trio.open_nursery() as nursery:
        doors = MemoryDoors(nursery, Settings(**settings))
        nursery.start_soon(doors.broker.run)
        yield doors
        nursery.cancel_scope.cancel()


async def exchange(stream: MemoryStream, pieces: list[bytes], *, hang_up: bool = True) -> bytes:
    """Send pieces, each once the server has taken the one before; then hang up, and return all that the server says."""
    for piece in pieces:
        await stream.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
    if hang_up:
        await stream.send_eof()
    said = b""
    while chunk := await stream.receive_some():
        said += chunk
    return said
