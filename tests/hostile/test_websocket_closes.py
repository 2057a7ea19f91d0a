"""How a WebSocket ends: Close frames of every kind, what comes behind them, and what does not."""

import pytest

from tests.hostile.arena import Undisturbed
from tests.hostile.raw_peers import BINARY, CLOSE, FIN, NOT_UTF8, PING, TEXT, frame

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
