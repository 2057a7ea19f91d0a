"""A connection's end, where it meets what is still to come for it."""

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from trisync.sessions.connection import SLOW_BYTES, Connection
from trisync.settings import Settings
from trisync.wire.errors import WireError
from trisync.wire.framing import LINES


async def test_who_has_sent_its_last_has_no_deadline_for_its_answers(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, Settings(), "somebody")
    connection.framing = LINES

    async def publish_and_hang_up() -> None:
        connection.awaits_answer()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve, publish_and_hang_up)
        await trio.sleep(2 * Settings().drain_s)
        connection.reply(b"{}")
        connection.was_answered()
        assert await ours.receive_some() == b"{}\n"


@pytest.mark.parametrize("turns", range(8))
async def test_an_answer_that_comes_when_the_time_for_it_is_up_harms_nobody(mock_clock: MockClock, turns: int) -> None:
    settings = Settings()
    for _ in range(10):  # in one turn, Trio runs its tasks in either order
        stream, _ = memory_stream_pair()
        connection = Connection(stream, settings, "somebody")
        connection.framing = LINES

        async def publish_and_quit(connection: Connection = connection) -> None:
            connection.awaits_answer()
            connection.end("it has quit")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, publish_and_quit)
            await wait_all_tasks_blocked()
            mock_clock.jump(settings.drain_s)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            connection.reply(b"{}")
        assert connection.outbox.backlog == 0


async def test_time_in_which_a_client_is_not_read_from_is_not_taken_from_its_half_message(
    autojump_clock: MockClock,
) -> None:
    settings = Settings()
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, settings, "somebody")
    connection.expect(0, progress=True)
    waiting_since = trio.current_time()
    await trio.sleep(2 * settings.half_message_s)
    connection.excuse(waiting_since)
    for part in (b"more of it", b"the rest"):
        await ours.send_all(part)
        assert await connection.receive() == part
        connection.expect(len(part), progress=False)
    with pytest.raises(WireError):
        await connection.receive()


@pytest.mark.parametrize("by_listening", [False, True])
async def test_who_does_not_take_what_was_sent_to_it_is_not_read_from(by_listening: bool) -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, Settings(backlog_bytes_max=10), "somebody")
    is_taken = trio.Event()
    theirs.send_stream.send_all_hook = is_taken.wait
    heard: list[bytes] = []

    def take(chunk: bytes) -> bool:
        heard.append(chunk)
        return False

    async def settle() -> bool:
        return not heard

    async def converse() -> None:
        connection.outbox.write(bytes(100))
        if by_listening:
            await connection.listen(take, settle)
        else:
            take(bytes(await connection.receive()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve, converse)
        await ours.send_all(b"a request")
        await wait_all_tasks_blocked()
        assert not heard
        is_taken.set()
        await wait_all_tasks_blocked()
        assert heard == [b"a request"]
        nursery.cancel_scope.cancel()


async def test_a_large_message_may_take_its_time_as_long_as_it_comes(autojump_clock: MockClock) -> None:
    settings = Settings()
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, settings, "somebody")
    connection.expect(0, progress=True)
    for number in range(1, 17):
        await trio.sleep(settings.half_message_s * 0.9)
        await ours.send_all(bytes(SLOW_BYTES))
        assert len(await connection.receive()) == SLOW_BYTES
        connection.expect(number * SLOW_BYTES, progress=False)
    stopped_at = trio.current_time()
    with pytest.raises(WireError):
        await connection.receive()
    assert trio.current_time() - stopped_at <= settings.half_message_s


async def test_bytes_that_come_one_by_one_do_not_add_up_to_time(autojump_clock: MockClock) -> None:
    settings = Settings()
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, settings, "somebody")
    connection.expect(0, progress=True)
    began_at = trio.current_time()
    with suppress(WireError):
        for number in range(1, 100):
            await ours.send_all(b"x")
            await connection.receive()
            connection.expect(number, progress=False)
            await trio.sleep(1)
    assert trio.current_time() - began_at < settings.half_message_s + 2


async def test_who_is_cancelled_from_outside_wants_no_writer_any_more() -> None:
    _, theirs = memory_stream_pair()
    connection = Connection(theirs, Settings(), "somebody")
    connection.framing = LINES
    ends: list[bool] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()  # Trio may cancel this task before the one that serves
            connection.reply(b"{}")
            ends.append(connection.outbox.backlog == 0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve, trio.sleep_forever)
        await wait_all_tasks_blocked()
        connection.start_soon(work)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ends == [True]


async def test_a_stream_that_fails_to_the_last_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, Settings(), "somebody")

    async def fail() -> None:
        raise OSError("no more sockets can be watched")

    async def listen() -> None:
        await connection.receive()

    theirs.receive_stream.receive_some_hook = fail
    await connection.serve(listen)
    assert caplog.text.count("somebody: a bug") == 2
    assert await ours.receive_some() == b""
