"""Peers that are gone without a word: found out, and what they had asked for is done."""

import socket

import pytest

from tests.hostile.arena import Arena, Undisturbed, publish, reset, socket_of, vanish

KIB = 1024
BACKLOG_MAX = 64 * KIB


@pytest.mark.parametrize("count", [1, 300], ids=["what was sent", "a backlog"])
async def test_a_subscriber_that_vanished_is_found_by_what_it_does_not_acknowledge(
    undisturbed: Undisturbed, dialect: str, count: int
) -> None:
    async with (
        undisturbed(peer_timeout_s=0.5, drain_s=0.2, backlog_bytes_max=BACKLOG_MAX) as arena,
        arena.speaking("lines") as publisher,
        arena.speaking(dialect) as gone,
    ):
        await gone.request("subscribe", channel="attacked")
        vanish(gone.stream)
        await publish(publisher, "x" * 10 * KIB, count)
        await arena.only_remain(3)


@pytest.mark.parametrize("door", ["tcp", "web"])
async def test_the_kernel_is_told_to_probe_peers_that_are_idle(undisturbed: Undisturbed, door: str) -> None:
    async with undisturbed(log_lines=0, tcp_keepalive_s=7) as arena:
        opened = arena.tcp() if door == "tcp" else arena.web()
        async with opened as peer:
            sock = socket_of(await arena.connection_of(peer))
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
            assert 1 <= sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 30
            assert 1 <= sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) <= 9
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0  # it would end slow readers


async def test_a_reset_at_any_moment_ends_only_its_own_connection(undisturbed: Undisturbed, dialect: str) -> None:
    requests = [b'{"op":"subscribe","channel":"attacked"}', b'{"op":"publish","channel":"attacked","data":1}']
    async with undisturbed(log_lines=0) as arena:
        for number in range(20):
            async with arena.speaking(dialect) as peer:
                for payload in requests * number:
                    await peer.send_bytes(payload)
                if number % 2:
                    await peer.send_raw(b"\x00\x00" if dialect == "frames" else b"{" if dialect == "lines" else b"\x81")
                reset(peer.stream)


async def test_a_publish_whose_publisher_vanished_is_stored(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking("lines") as reader:
        await reader.request("subscribe", channel="attacked")
        async with arena.speaking(dialect) as peer:
            await peer.send("publish", channel="attacked", data="last words")
        assert (await reader.receive())["data"] == "last words"


async def test_who_only_stops_sending_still_gets_its_answers(undisturbed: Undisturbed, tcp_dialect: str) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking(tcp_dialect) as peer:
        for number in range(20):
            await peer.send("publish", id=number, channel="attacked", data=number)
        await peer.stream.send_eof()
        for number in range(20):
            assert await peer.receive() == {"op": "ok", "id": number, "offset": number + 1}
        assert await peer.receive_rest() == b""


async def a_subscriber_of_everything(arena: Arena, dialect: str) -> None:
    async with arena.speaking(dialect) as peer:
        await peer.request("subscribe", channel="attacked", since=0)
        await peer.receive()
        reset(peer.stream)


async def test_who_vanishes_while_catching_up_leaves_nothing_behind(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed(log_lines=0, cache_bytes_max=1) as arena, arena.speaking("lines") as publisher:
        await publish(publisher, "x" * 100 * KIB, 50)
        for _ in range(5):
            await a_subscriber_of_everything(arena, dialect)
        await arena.only_remain(3)
