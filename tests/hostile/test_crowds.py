"""Crowds: thousands that say nothing, everybody back at once, and one who wants everything."""

import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.harness import PATIENCE_S
from tests.hostile.arena import Undisturbed, publish, reset
from tests.hostile.loads import load
from tests.hostile.raw_peers import RawPeer

KIB = 1024
SILENT = 5000
SILENT_MAX = 1000
RETURNING = 5000


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have: both ends of every connection are in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        assert hard == resource.RLIM_INFINITY or hard > 2 * SILENT + 500, f"at most {hard} open files here"
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("door", ["tcp", "web"])
async def test_of_5000_that_say_nothing_none_is_in_anybodys_way(
    undisturbed: Undisturbed, many_files: None, door: str
) -> None:
    async with undisturbed(log_lines=None, silent_max=SILENT_MAX, handshake_s=600) as arena, AsyncExitStack() as stack:
        polite = await stack.enter_async_context(arena.speaking("lines"))
        silent: list[trio.SocketStream] = []
        for _ in range(SILENT):
            connect = arena.running.tcp if door == "tcp" else arena.running.web
            silent.append(await stack.enter_async_context(await connect()))
            if len(silent) % 1000 == 0:
                await publish(polite, "still served", 1)
        await polite.still_served()
        if door == "tcp":  # the oldest are closed; the newest may still begin
            await arena.only_remain(3 + SILENT_MAX)
            assert await silent[0].receive_some(1) == b""
        else:  # these have a deadline, and cost a place each until then
            await arena.until(lambda: len(arena.registry) == 3 + SILENT)
        newest = RawPeer(silent[-1]) if door == "tcp" else await stack.enter_async_context(arena.speaking("frames"))
        await newest.still_served()


async def test_everybody_may_come_back_at_once_and_gets_what_was_missed(undisturbed: Undisturbed) -> None:
    crowd, missed = 300, 50
    dialects = ("lines", "frames", "websocket")
    async with undisturbed(log_lines=0) as arena, arena.speaking("lines") as publisher:
        await publish(publisher, "before", 1)
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(arena.speaking(dialects[n % 3])) for n in range(crowd)]
            for peer in peers:
                await peer.request("subscribe", channel="attacked", since=0)
                assert (await peer.receive())["offset"] == 1
            for peer in peers:
                reset(peer.stream)
            await publish(publisher, "x" * KIB, missed)
        levelled = 0

        async def come_back(number: int) -> None:
            nonlocal levelled
            async with arena.speaking(dialects[number % 3]) as peer:
                await peer.request("subscribe", channel="attacked", since=1)
                messages = await peer.receive_messages(missed)
                assert [message["offset"] for message in messages] == list(range(2, missed + 2))
                levelled += 1

        async with trio.open_nursery() as nursery:
            for number in range(crowd):
                nursery.start_soon(come_back, number)
        assert levelled == crowd


async def test_5000_may_come_back_at_once_and_a_bystander_is_served_meanwhile(
    undisturbed: Undisturbed, many_files: None, tmp_path: Path
) -> None:
    missed = 20
    async with undisturbed(log_lines=None) as arena, arena.speaking("lines") as polite, trio.open_nursery() as nursery:
        served = 0

        async def be_polite() -> None:
            nonlocal served
            while True:
                await publish(polite, "still served", 1)
                served += 1
                await trio.sleep(0.05)

        nursery.start_soon(be_polite)
        crowd = ("--subscribers", str(RETURNING), "--missed", str(missed))
        found = await load(arena, tmp_path / "result.json", "resume", *crowd)
        assert found["latency"]["count"] == RETURNING
        assert served > 10
        assert found["throughput"]["delivered"] == RETURNING * found["throughput"]["acked"] >= RETURNING * missed
        nursery.cancel_scope.cancel()


async def test_one_who_subscribes_to_everything_gets_everything_at_its_own_speed(
    undisturbed: Undisturbed, dialect: str
) -> None:
    channels, rounds, size = 1000, 3, 2 * KIB
    async with (
        undisturbed(log_lines=1, backlog_bytes_max=64 * KIB, cache_bytes_max=64 * KIB) as arena,
        arena.speaking("lines") as publisher,
        arena.speaking(dialect) as greedy,
    ):
        connection = await arena.squeeze(greedy)
        for number in range(channels + 1):
            await greedy.send("subscribe", id=number, channel=f"channel/{number}")
        answers = [await greedy.receive() for _ in range(channels + 1)]
        assert [answer["op"] for answer in answers] == ["ok"] * channels + ["error"]
        assert (answers[-1]["code"], answers[-1]["limit"]) == ("limit", "subscriptions_max")
        for turn in range(rounds):
            for number in range(channels):
                await publisher.send("publish", id=number, channel=f"channel/{number}", data=f"{turn}".ljust(size))
            assert {(await publisher.receive())["op"] for _ in range(channels)} == {"ok"}
        with trio.fail_after(PATIENCE_S):  # pages are read for it until it has too much
            while not connection.outbox.over:
                await trio.lowlevel.checkpoint()
        seen = dict.fromkeys((f"channel/{number}" for number in range(channels)), 0)
        arena.release(connection)
        for _ in range(channels * rounds):
            message = await greedy.receive()
            assert message["offset"] == seen[message["channel"]] + 1
            assert message["data"].strip() == f"{seen[message['channel']]}"
            seen[message["channel"]] += 1
        assert set(seen.values()) == {rounds}
        assert arena.peak_backlog(connection) <= 64 * KIB + 2 * 2 * size * rounds
        await greedy.still_served()
