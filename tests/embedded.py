"""A server inside the test's own program, and its clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.harness import Peer, Running, WebSocketPeer, settings_for
from trisync import Server

PRODUCER = "b6ff1a90c2d84e17"


def a_server(folder: Path, **changes: Any) -> Server:
    return Server(settings_for(folder, **changes), seed=1)


@asynccontextmanager
async def connected(running: Running, dialect: str) -> AsyncIterator[Peer]:
    """A client of a machine dialect, by the dialect's name."""
    async with getattr(running, dialect)() as peer:
        yield peer


async def is_hung_up_on(peer: Peer) -> None:
    with pytest.raises((EOFError, ConnectionClosed)):
        await peer.receive()
    if isinstance(peer, WebSocketPeer):  # the library leaves the socket open where the server closed first
        await trio.aclose_forcefully(peer.websocket._stream)


in_every_dialect = pytest.mark.parametrize("dialect", ["lines", "frames", "websocket"])
