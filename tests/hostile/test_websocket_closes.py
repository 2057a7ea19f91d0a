"""How a WebSocket ends: Close frames of every kind, what comes behind them, and what does not."""

import pytest
import trio

from tests.hostile.arena import LOWEST_LIMIT, Undisturbed, publish
from tests.hostile.raw_peers import BINARY, CLOSE, CONTINUATION, FIN, NOT_UTF8, PING, PONG, TEXT, frame
from trisync.wire.wsframes import FrameReader

PUBLISH = b'{"op":"publish","id":2,"channel":"attacked","data":"%b"}'


@pytest.mark.parametrize("payload", [b"\x03\xe8", b"\x03\xe9bye", b"\x0b\xb8", b"\x13\x87" + "é".encode() * 61])
async def test_a_close_is_answered_with_its_code(undisturbed: Undisturbed, payload: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.still_served()
        await peer.send_raw(frame(FIN | CLOSE, payload))
        await peer.closed_with(int.from_bytes(payload[:2], "big"))


async def test_an_empty_close_is_answered(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | CLOSE))
        opcode, payload = await peer.receive_frame()
        assert (opcode, payload[:2]) in ((CLOSE, b""), (CLOSE, b"\x03\xe8"))
        assert await peer.receive_rest() == b""


@pytest.mark.parametrize("reason", NOT_UTF8.values(), ids=NOT_UTF8)
async def test_a_close_whose_reason_is_not_utf8_closes_with_1007(undisturbed: Undisturbed, reason: bytes) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | CLOSE, b"\x03\xe8" + reason))
        await peer.closed_with(1007)


async def test_behind_a_close_nothing_is_heard(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        async with arena.websocket() as peer:
            await peer.send_raw(
                frame(FIN | CLOSE, b"\x03\xe8")
                + frame(FIN | PING, b"late")
                + frame(FIN | TEXT, PUBLISH % b"late")
                + frame(FIN | BINARY, b"late")
                + frame(FIN | CLOSE, b"\x03")
            )
            await peer.closed_with(1000)
        async with arena.speaking("lines") as other:
            assert (await other.request("history", channel="attacked"))["offset"] == 0


async def test_a_ping_to_a_closing_server_is_not_answered(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.websocket() as peer:
        await peer.send_raw(frame(FIN | BINARY, b"x"))
        opcode, payload = await peer.receive_frame()
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xeb")
        await peer.pour(frame(FIN | PING, b"late") + frame(FIN | CLOSE, b"\x03\xeb"), 1)
        assert await peer.receive_rest() == b""


@pytest.mark.parametrize("times", [1, 300])
async def test_pings_behind_an_oversize_message_are_not_answered(undisturbed: Undisturbed, times: int) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.websocket() as peer:
        await peer.still_served()
        oversize = frame(FIN | TEXT, b"x" * 2 * LOWEST_LIMIT)
        await peer.pour(oversize + frame(FIN | PING, b"late") * times, 1)
        await peer.closed_with(1009)


async def test_an_oversize_message_between_pings_is_refused_behind_the_answers_to_the_earlier_ones(
    undisturbed: Undisturbed,
) -> None:
    async with undisturbed(message_bytes_max=LOWEST_LIMIT) as arena, arena.websocket() as peer:
        early, oversize, late = (
            frame(FIN | PING, b"early"),
            frame(TEXT, b"x" * LOWEST_LIMIT),
            frame(FIN | PING, b"late"),
        )
        await peer.send_raw(early + oversize + late)  # a control frame between the fragments, still within the limit
        await peer.pour(frame(FIN | CONTINUATION, b"y") + frame(FIN | PING, b"too late"), 1)
        assert await peer.receive_frame() == (PONG, b"early")
        assert await peer.receive_frame() == (PONG, b"late")
        await peer.closed_with(1009)


async def test_a_ping_while_the_close_waits_behind_a_backlog_does_not_hold_it_up(undisturbed: Undisturbed) -> None:
    async with (
        undisturbed(log_lines=1, backlog_bytes_max=64 * 1024) as arena,
        arena.speaking("lines") as publisher,
        arena.websocket() as peer,
    ):
        connection = await arena.squeeze(peer)
        await peer.request("subscribe", channel="attacked")
        await publish(publisher, "x" * 10_000, 100)
        assert connection.outbox.backlog
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.pour, frame(FIN | BINARY, b"x") + frame(FIN | PING, b"late") * 50, 20)
            arena.release(connection)
            opcode, payload = await peer.receive_frame()
            while opcode == TEXT:
                opcode, payload = await peer.receive_frame()
            assert (opcode, payload[:2]) == (CLOSE, b"\x03\xeb")
            assert await peer.receive_rest() == b""
            nursery.cancel_scope.cancel()


def test_every_close_code_is_answered_as_the_registry_has_it() -> None:
    # RFC 6455, section 7.4, and IANA's registry: 1004 to 1006 and 1015 are never sent, below 3000 the rest is reserved.
    sendable = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
    for code in range(1 << 16):
        for reason in (b"", b"bye"):
            reader = FrameReader(LOWEST_LIMIT)
            assert reader.feed(frame(FIN | CLOSE, code.to_bytes(2, "big") + reason)) == []
            assert reader.close is not None
            assert reader.close.code == (code if code in sendable else 1002)


async def test_behind_the_servers_close_comes_nothing_more(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.websocket() as peer:
        await peer.request("subscribe", channel="attacked")
        # The publish is still on its way to the disk when the close is read (RFC 6455, section 5.5.1).
        await peer.send_raw(frame(FIN | TEXT, PUBLISH % b"") + frame(FIN | CLOSE, b"\x03\xe8"))
        opcode, payload = await peer.receive_frame()
        while opcode == TEXT:
            opcode, payload = await peer.receive_frame()
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xe8")
        assert await peer.receive_rest() == b""
