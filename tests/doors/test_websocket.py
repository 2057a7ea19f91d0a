"""A WebSocket client's silence: what counts as such."""

import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from tests.broker_world import a_world
from tests.hostile.raw_peers import FIN, TEXT, frame
from trisync.doors.websocket import WebSocket
from trisync.sessions.connection import Connection
from trisync.sessions.hooks import Hooks
from trisync.sessions.session import Session
from trisync.wire.wsframes import PING_FRAME


async def test_a_client_is_not_silent_while_the_server_is_busy_with_its_messages(autojump_clock: MockClock) -> None:
    async with a_world(queue_bytes_max=1) as world:
        ours, theirs = memory_stream_pair()
        connection = Connection(theirs, world.settings, "somebody")
        session = Session(world.broker, connection, world.settings, Hooks(), "websocket")
        websocket = WebSocket(connection, session, b"", b"", b"hello ", world.settings.message_bytes_max)
        world.log.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, websocket.converse)
            await ours.send_all(frame(FIN | TEXT, b'{"op":"publish","id":1,"channel":"lobby","data":1}'))
            await wait_all_tasks_blocked()
            for _ in range(4):
                await trio.sleep(30)
                websocket.look_alive(20, 20)
            world.log.gate.set()
            await wait_all_tasks_blocked()
            assert b'"offset":1' in await ours.receive_some()
            websocket.look_alive(20, 20)
            await trio.sleep(21)
            websocket.look_alive(20, 20)
            assert await ours.receive_some() == PING_FRAME
            nursery.cancel_scope.cancel()
