"""A connection's end, where it meets what is still to come for it."""

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from trisync.connection import Connection
from trisync.framing import Framing
from trisync.settings import Settings


@pytest.mark.parametrize("turns", range(8))
async def test_an_answer_that_comes_when_the_time_for_it_is_up_harms_nobody(mock_clock: MockClock, turns: int) -> None:
    settings = Settings()
    for _ in range(10):  # in one turn, Trio runs its tasks in either order
        stream, _ = memory_stream_pair()
        connection = Connection(stream, settings, "somebody")
        connection.framing = Framing.LINES

        async def publish_and_hang_up(connection: Connection = connection) -> None:
            connection.awaits_answer()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, publish_and_hang_up)
            await wait_all_tasks_blocked()
            mock_clock.jump(settings.drain_s)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            connection.reply(b"{}")
        assert connection.outbox.backlog == 0
