"""What a connection held is freed when it ends, however it ends, and not only when the garbage collector comes.

That may be many minutes later, and until then a backlog of a megabyte would stay with each.
"""

import gc
from collections.abc import Awaitable, Callable

import pytest

from tests.hostile.arena import Arena, Undisturbed, publish, reset, vanish
from tests.hostile.raw_peers import RawPeer

KIB = 1024
BACKLOG_MAX = 64 * KIB


async def hang_up(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    await peer.stream.aclose()


async def is_reset(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    reset(peer.stream)


async def is_reset_half_way(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    await peer.send_raw(peer.framed(b'{"op":"ping"}')[:-3])
    reset(peer.stream)


async def says_too_much(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    await peer.send_raw(peer.framed(b"x" * 200 * KIB))
    await peer.receive_rest()


async def gets_a_backlog(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    connection = await arena.squeeze(peer)
    await peer.request("subscribe", channel="attacked")
    await publish(publisher, "x" * 20 * KIB, 300)
    assert connection.outbox.backlog


async def is_reset_with_a_backlog(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    await gets_a_backlog(arena, publisher, peer)
    reset(peer.stream)


async def vanishes_with_a_backlog(arena: Arena, publisher: RawPeer, peer: RawPeer) -> None:
    await gets_a_backlog(arena, publisher, peer)
    vanish(peer.stream)


@pytest.mark.parametrize(
    "ends",
    [hang_up, is_reset, is_reset_half_way, says_too_much, is_reset_with_a_backlog, vanishes_with_a_backlog],
)
async def test_who_is_gone_is_freed_without_the_garbage_collector(
    undisturbed: Undisturbed, dialect: str, ends: Callable[[Arena, RawPeer, RawPeer], Awaitable[None]]
) -> None:
    limits = {"message_bytes_max": 100 * KIB, "backlog_bytes_max": BACKLOG_MAX}
    async with (
        undisturbed(log_lines=None, peer_timeout_s=0.5, drain_s=0.2, **limits) as arena,
        arena.speaking("lines") as publisher,
    ):
        gc.collect()
        gc.disable()
        before = arena.connections_in_memory()  # an earlier test may have left some
        try:
            async with arena.speaking(dialect) as peer:
                await ends(arena, publisher, peer)
                await arena.only_remain(3)
                assert arena.connections_in_memory() == before
        finally:
            gc.enable()
