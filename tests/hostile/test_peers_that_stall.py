"""Peers that do not read, do not write, or vanish: they are waited for in bounded memory, or found out and left."""

import pytest
import trio

from tests.harness import PATIENCE_S, Peer
from tests.hostile.arena import MIB, Undisturbed, publish, reset
from tests.hostile.raw_peers import BINARY, FIN, PING, PONG, frame
from trisync.wire.protocol import REPLY_HEADROOM_BYTES

KIB = 1024
BACKLOG_MAX = 64 * KIB
BATCH_MAX = 256 * KIB


# Peers that do not read


async def test_a_subscriber_that_never_reads_holds_nobody_up_and_gets_everything_once_it_reads(
    undisturbed: Undisturbed, dialect: str
) -> None:
    count, size = 200, 100 * KIB
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX, batch_bytes_max=BATCH_MAX) as arena,
        arena.speaking(dialect) as slow,
        arena.speaking(dialect) as quick,
        arena.speaking("lines") as publisher,
    ):
        for reader in (slow, quick):
            assert (await reader.request("subscribe", channel="attacked"))["offset"] == 0
        for offset in range(1, count + 1):
            await publish(publisher, f"{offset}".ljust(size), 1)
            assert (await quick.receive())["offset"] == offset
        connection = await arena.connection_of(slow)
        assert connection.outbox.backlog, "20 MB fit into the kernel's buffers"
        # A batch is closed by the message that reaches its bound.
        assert arena.peak_backlog(connection) <= BACKLOG_MAX + BATCH_MAX + 2 * size
        for offset in range(1, count + 1):
            message = await slow.receive()
            assert (message["offset"], message["data"].rstrip()) == (offset, f"{offset}")
        await publish(publisher, "live again", 1)
        assert (await slow.receive())["data"] == "live again"


async def test_a_subscriber_that_pauses_for_longer_than_dead_peers_are_given_is_not_dropped(
    undisturbed: Undisturbed,
) -> None:
    # Linux applies TCP_USER_TIMEOUT to a closed window too, though its owner is alive and acknowledges the probes.
    async with (
        undisturbed(peer_timeout_s=0.5, half_message_s=2.0, backlog_bytes_max=BACKLOG_MAX) as arena,
        arena.speaking("lines") as slow,
        arena.speaking("lines") as publisher,
    ):
        await slow.request("subscribe", channel="attacked")
        connection = await arena.squeeze(slow)
        await publish(publisher, "x" * 10 * KIB, 100)
        async with arena.tcp() as clock:
            await clock.send_raw(b"{")
            assert (await clock.receive_error())["code"] == "bad_request"  # so `half_message_s` have passed
        assert connection.ending is None
        arena.release(connection)
        for offset in range(1, 101):
            assert (await slow.receive())["offset"] == offset


@pytest.mark.parametrize(
    "asked",
    [
        b'{"op":"subscribe","channel":"attacked","since":0}\n',
        b"GET /channels/attacked/messages HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /channels/attacked/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=["a subscription", "an answer over HTTP", "the last answer over HTTP"],
)
async def test_who_has_sent_its_last_may_read_slowly_too(undisturbed: Undisturbed, asked: bytes) -> None:
    text = "x" * 10 * KIB
    async with undisturbed(log_lines=1, drain_s=0.1, half_message_s=1.0) as arena:
        async with arena.speaking("lines") as publisher:
            await publish(publisher, text, 50)
        async with arena.web() if asked.startswith(b"GET") else arena.tcp() as slow:
            connection = await arena.squeeze(slow)
            await slow.send_raw(asked)
            if b"close" not in asked:
                await slow.stream.send_eof()
            async with arena.tcp() as clock:
                await clock.send_raw(b"{")
                assert (await clock.receive_error())["code"] == "bad_request"  # so `half_message_s` have passed
            assert connection.ending is None
            arena.release(connection)
            assert (await slow.receive_rest()).count(text.encode()) == 50


async def test_a_websocket_subscriber_that_pauses_is_not_taken_for_dead_though_all_of_it_is_in_the_kernel(
    undisturbed: Undisturbed,
) -> None:
    """A ping waits behind what was sent before it; 501 subscribers that read slowly were ended for their silence."""
    async with (
        undisturbed(log_lines=1, ping_s=0.3, pong_s=2.0) as arena,
        arena.speaking("websocket") as slow,
        arena.speaking("lines") as publisher,
    ):
        await slow.request("subscribe", channel="attacked")
        connection = await arena.connection_of(slow)
        count = 0
        while connection.untaken() < 4 * KIB:
            await publish(publisher, "x" * KIB, 8)
            count += 8
            assert connection.ending is None
            await trio.sleep(0.05)  # what a kernel takes is acknowledged by then
        assert connection.outbox.backlog == 0
        async with arena.websocket() as dead:
            assert await dead.receive_frame() == (PING, b"")
            code, _ = await dead.receive_close()
            assert code == 1008
        assert connection.ending is None
        for offset in range(1, count + 1):
            assert (await slow.receive())["offset"] == offset
        await publish(publisher, "live again", 1)
        assert (await slow.receive())["data"] == "live again"


async def test_many_that_never_read_cost_what_one_batch_and_their_marks_cost(undisturbed: Undisturbed) -> None:
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX) as arena,
        trio.open_nursery() as nursery,
        arena.speaking("lines") as publisher,
    ):
        opened = trio.Event()
        slow: list[Peer] = []

        async def subscribe() -> None:
            async with arena.speaking("frames") as peer:
                await arena.squeeze(peer)
                await peer.request("subscribe", channel="attacked")
                slow.append(peer)
                if len(slow) == 20:
                    opened.set()
                await trio.sleep_forever()

        for _ in range(20):
            nursery.start_soon(subscribe)
        await opened.wait()
        await publish(publisher, "x" * 10 * KIB, 200)
        for connection in arena.registry.seen:
            assert arena.peak_backlog(connection) <= BACKLOG_MAX + 11 * KIB
        nursery.cancel_scope.cancel()


REQUESTS = {
    "history": b'{"op":"history","id":%d,"channel":"attacked"}',
    "state": b'{"op":"state","id":%d,"channel":"attacked"}',
    "ping": b'{"op":"ping","id":%d}',
    "unknown": b'{"op":"nope","id":%d}',
    "publish": b'{"op":"publish","id":%d,"channel":"no channel","data":1}',
}


@pytest.mark.parametrize("asked", REQUESTS)
async def test_who_does_not_read_the_replies_is_not_read_from(
    undisturbed: Undisturbed, dialect: str, asked: str
) -> None:
    count = {"history": 60, "state": 60, "ping": 20_000, "unknown": 6_000, "publish": 10_000}[asked]
    # Publishes that are queued are all answered; other requests wait for each other's answers.
    most = BACKLOG_MAX + {"history": 220 * KIB, "state": 220 * KIB, "publish": MIB}.get(asked, KIB)
    log_lines = int(asked in ("unknown", "publish"))
    async with (
        undisturbed(log_lines=log_lines, backlog_bytes_max=BACKLOG_MAX, queue_bytes_max=256 * KIB) as arena,
        arena.speaking("lines") as publisher,
        arena.speaking(dialect) as peer,
    ):
        for key in range(20):
            await publisher.request("publish", channel="attacked", key=f"{key}", data="x" * 10 * KIB)
        connection = await arena.squeeze(peer)
        requests = b"".join([peer.framed(REQUESTS[asked] % number) for number in range(count)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_raw, requests)
            await arena.until(lambda: connection.outbox.over)
            await publish(publisher, "x", 20)
            arena.release(connection)
            for number in range(count):  # at last it reads, and gets every answer
                assert (await peer.receive())["id"] == number
        assert arena.peak_backlog(connection) <= most


async def test_who_pipelines_http_requests_without_reading_is_not_answered_into_memory(
    undisturbed: Undisturbed,
) -> None:
    async with undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX) as arena, arena.web() as peer:
        connection = await arena.squeeze(peer)
        count = 300
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_raw, b"GET /app.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
            await arena.until(lambda: connection.outbox.over)
            arena.release(connection)
            for _ in range(count):
                assert (await peer.get_response()).status == 200
        assert arena.peak_backlog(connection) <= BACKLOG_MAX + 64 * KIB


async def test_who_never_reads_its_pongs_is_not_read_from(undisturbed: Undisturbed) -> None:
    most = 4 * KIB
    async with undisturbed(log_lines=0, backlog_bytes_max=most) as arena, arena.websocket() as peer:
        connection = await arena.squeeze(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.pour, frame(FIN | PING, b"p" * 125) * 500, 40)
            await arena.until(lambda: connection.outbox.over)
            nursery.cancel_scope.cancel()
        assert arena.peak_backlog(connection) <= most + 70 * KIB


async def test_a_reply_is_never_much_larger_than_the_limit_whatever_is_asked_for(
    undisturbed: Undisturbed, dialect: str
) -> None:
    limit = KIB
    async with undisturbed(log_lines=0, message_bytes_max=limit) as arena, arena.speaking(dialect) as peer:
        await peer.request("hello", name='"' * 64)
        for size in (1, 900) * 10:
            await peer.request("publish", channel="attacked", data="x" * size)
        for since in range(20):
            await peer.send("history", id=1, channel="attacked", since=since, limit=1000)
            assert len(await peer.receive_bytes()) <= limit + REPLY_HEADROOM_BYTES
        await peer.request("subscribe", channel="attacked", since=0)
        for _ in range(20):
            assert len(await peer.receive_bytes()) <= limit + REPLY_HEADROOM_BYTES


@pytest.mark.parametrize("how", ["stops", "is cut off"])
async def test_who_never_reads_leaves_nothing_behind_when_it_goes(
    undisturbed: Undisturbed, dialect: str, how: str
) -> None:
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX) as arena,
        arena.speaking("lines") as publisher,
    ):
        async with arena.speaking(dialect) as slow:
            connection = await arena.squeeze(slow)
            await slow.request("subscribe", channel="attacked")
            await publish(publisher, "x" * 10 * KIB, 100)
            assert connection.outbox.backlog
            if how == "is cut off":
                reset(slow.stream)
        await arena.only_remain(3)
        assert connection.outbox.backlog == 0


# Peers that do not write


async def test_a_websocket_that_answers_no_ping_is_left(undisturbed: Undisturbed) -> None:
    async with undisturbed(ping_s=0.2, pong_s=2.0) as arena, arena.websocket() as peer:
        assert await peer.receive_frame() == (PING, b"")
        code, _ = await peer.receive_close()
        assert code == 1008


async def test_a_websocket_that_answers_pings_stays_though_it_says_nothing_else(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, ping_s=0.1, pong_s=PATIENCE_S) as arena, arena.websocket() as peer:
        for _ in range(4):
            assert await peer.receive_frame() == (PING, b"")
            await peer.send_raw(frame(FIN | PONG))


async def test_a_websocket_that_is_slow_to_read_is_not_taken_for_silent(undisturbed: Undisturbed) -> None:
    # A ping would wait behind what it has not read, so there is none to answer.
    async with (
        undisturbed(log_lines=2, ping_s=0.1, pong_s=2.0, backlog_bytes_max=BACKLOG_MAX) as arena,
        arena.websocket() as slow,
        arena.speaking("lines") as publisher,
    ):
        await slow.request("subscribe", channel="attacked")
        connection = await arena.squeeze(slow)
        await publish(publisher, "x" * 10 * KIB, 100)
        assert connection.outbox.backlog
        for _ in range(2):  # two that came later run into the deadline
            async with arena.websocket() as silent:
                assert await silent.receive_frame() == (PING, b"")
                await silent.receive_close()
        assert connection.ending is None
        arena.release(connection)
        for offset in range(1, 101):
            assert (await slow.receive())["offset"] == offset


async def test_a_closing_websocket_that_does_not_answer_the_close_is_left(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | BINARY, b"binary"))
        assert await peer.receive_close() == (1003, "messages are text")
        # It neither answers nor hangs up.
        await arena.only_remain(2)
