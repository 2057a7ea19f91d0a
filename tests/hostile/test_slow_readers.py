"""Slow readers (promise 6): each at its own rate, over messages, states and presence; memory bounded, all get all."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.harness import Peer, server_process
from tests.hostile.arena import MIB, Arena, Undisturbed
from tests.hostile.loads import load
from tests.hostile.raw_peers import RawPeer
from trisync.core.shared_reads import PAGE_BYTES_MAX
from trisync.loadtest.machine import usage
from trisync.sessions.connection import Connection

KIB = 1024
BACKLOG_MAX = 64 * KIB
DIALECTS = ("lines", "frames", "websocket")


@asynccontextmanager
async def slow_crowd(
    arena: Arena, count: int, **subscription: Any
) -> AsyncIterator[tuple[list[RawPeer], list[Connection]]]:
    """Subscribers in all dialects, for whom the kernel keeps little."""
    async with AsyncExitStack() as stack:
        crowd: list[RawPeer] = []
        connections: list[Connection] = []
        for number in range(count):
            peer = await stack.enter_async_context(arena.speaking(DIALECTS[number % len(DIALECTS)]))
            connections.append(await arena.squeeze(peer))
            assert (await peer.request("subscribe", channel="attacked", **subscription))["op"] == "ok"
            crowd.append(peer)
        yield crowd, connections


async def all_read_on(crowd: list[RawPeer], read: Callable[[int, RawPeer], Awaitable[None]]) -> None:
    """Let everybody read what is left, at the same time."""
    async with trio.open_nursery() as nursery:
        for number, peer in enumerate(crowd):
            nursery.start_soon(read, number, peer)


async def test_one_fast_and_many_slow_subscribers_each_at_its_own_rate_all_get_all(undisturbed: Undisturbed) -> None:
    count, size = 240, 20 * KIB
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX, cache_bytes_max=MIB) as arena,
        arena.speaking("lines") as publisher,
        arena.speaking("lines") as fast,
        slow_crowd(arena, 42) as (crowd, connections),
    ):
        await fast.request("subscribe", channel="attacked")
        got = [0] * len(crowd)

        async def read_one(number: int, peer: RawPeer) -> None:
            message = await peer.receive()
            got[number] += 1
            assert (message["op"], message["offset"]) == ("message", got[number])
            assert message["data"].startswith(f"{got[number]} ")

        for offset in range(1, count + 1):
            data = f"{offset} ".ljust(size, "x")
            assert (await publisher.request("publish", channel="attacked", data=data))["offset"] == offset
            assert (await fast.receive())["offset"] == offset
            for number, peer in enumerate(crowd):
                if offset % (2 + number % 13) == 0:
                    await read_one(number, peer)
        assert [connection.ending for connection in connections] == [None] * len(crowd)
        behind = sum(arena.peak_backlog(connection) > BACKLOG_MAX for connection in connections)
        assert behind > len(crowd) // 2, "hardly anybody was slow"

        async def read_all(number: int, peer: RawPeer) -> None:
            arena.release(connections[number])
            while got[number] < count:
                await read_one(number, peer)

        await all_read_on(crowd, read_all)
        # What is offered at the mark is a page of the log or a batch; the last of it may be one message too many.
        most = BACKLOG_MAX + PAGE_BYTES_MAX + 2 * size
        assert all(arena.peak_backlog(connection) <= most for connection in connections)
        await publisher.request("publish", channel="attacked", data="live again")
        for peer in (fast, *crowd):
            assert (await peer.receive())["data"] == "live again"


async def test_one_fast_and_500_slow_subscribers_all_get_all_and_no_backlog_is_beyond_its_bound(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    subscribers, size = 501, 8 * KIB
    async with undisturbed(log_lines=None, backlog_bytes_max=BACKLOG_MAX, cache_bytes_max=MIB) as arena:
        crowd = ("--subscribers", str(subscribers), "--slowest", "4", "--message-bytes", str(size))
        found = await load(arena, tmp_path / "result.json", "slow", *crowd, "--rate", "50", "--duration", "1")
        assert found["throughput"]["delivered"] == subscribers * found["throughput"]["acked"] > 0
        *peaks, last = [arena.peak_backlog(connection) for connection in arena.registry.seen]
        assert sum(peak > BACKLOG_MAX for peak in peaks) > 200, "hardly anybody was slow"
        assert max(peaks) <= BACKLOG_MAX + PAGE_BYTES_MAX + 2 * size
        assert last <= MIB + 4 * KIB  # of who reads the log back at the end, in pages of history


async def test_slow_readers_of_a_state_that_changes_meanwhile_all_end_up_with_it(undisturbed: Undisturbed) -> None:
    keys, size = 150, 16 * KIB
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=BACKLOG_MAX, cache_bytes_max=MIB) as arena,
        arena.speaking("lines") as writer,
    ):

        async def write(key: int, value: str) -> None:
            data = value.ljust(size)
            assert (await writer.request("publish", channel="attacked", key=f"key {key}", data=data))["op"] == "ok"

        for key in range(keys):
            await write(key, "old")
        async with slow_crowd(arena, 12, state=True) as (crowd, connections):
            replicas: list[dict[str, tuple[int, str]]] = [{} for _ in crowd]

            async def read_one(number: int, peer: RawPeer) -> None:
                message, replica = await peer.receive(), replicas[number]
                if message["op"] == "state":
                    new = {key: (entry["offset"], entry["data"]) for key, entry in message["entries"].items()}
                else:
                    assert message["op"] == "message"
                    new = {message["key"]: (message["offset"], message["data"])}
                for key, word in new.items():
                    replica[key] = max(replica.get(key, word), word)

            for key in range(0, keys, 2):
                await write(key, f"new {key}")
                for number, peer in enumerate(crowd):
                    if key % (6 + 4 * number) == 0:
                        await read_one(number, peer)
            await write(keys, "the end")

            async def read_all(number: int, peer: RawPeer) -> None:
                arena.release(connections[number])
                while f"key {keys}" not in replicas[number]:
                    await read_one(number, peer)

            await all_read_on(crowd, read_all)
            expected = {f"key {key}": f"new {key}" if key % 2 == 0 else "old" for key in range(keys)}
            expected[f"key {keys}"] = "the end"
            for replica in replicas:
                assert {key: data.rstrip() for key, (_, data) in replica.items()} == expected
            most = BACKLOG_MAX + PAGE_BYTES_MAX + 2 * size
            assert all(arena.peak_backlog(connection) <= most for connection in connections)
            assert any(arena.peak_backlog(connection) > BACKLOG_MAX for connection in connections)


async def test_slow_watchers_of_a_restless_crowd_all_know_in_the_end_who_is_there(undisturbed: Undisturbed) -> None:
    members, rounds, limit = 100, 60, 16 * KIB
    async with (
        undisturbed(log_lines=0, backlog_bytes_max=limit, presence_tick_s=0.001) as arena,
        AsyncExitStack() as stack,
    ):
        crowd = [await stack.enter_async_context(arena.speaking("lines")) for _ in range(members)]
        for peer in crowd:
            await peer.request("subscribe", channel="attacked")
        async with (
            arena.speaking("lines") as quick,
            slow_crowd(arena, 6, presence=True) as (watchers, connections),
        ):
            await quick.request("subscribe", channel="attacked", presence=True)
            views: dict[Peer, dict[str, str]] = {peer: {} for peer in (quick, *watchers)}

            async def watch(peer: Peer, last: str) -> None:
                """Read until everybody is seen by their name of that round."""
                view = views[peer]
                while sum(name.startswith(last) for name in view.values()) < members:
                    told = await peer.receive()
                    assert told["op"] == "presence"
                    if "members" in told:
                        view.clear()
                    for one in (*told.get("members", ()), *told.get("joined", ()), *told.get("updated", ())):
                        view[one["member"]] = one.get("name", "")
                    for one in told.get("left", ()):
                        del view[one["member"]]

            for number in range(rounds):
                name = f"{number} ".ljust(60, "x")
                for place, peer in enumerate(crowd):
                    await peer.send("hello", name=f"{name}{place}")
                await watch(quick, f"{number} ")

            async def watch_all(number: int, peer: RawPeer) -> None:
                arena.release(connections[number])
                await watch(peer, f"{rounds - 1} ")

            await all_read_on(watchers, watch_all)
            for watcher in watchers:
                assert views[watcher] == views[quick]
            most = limit + 40 * KIB  # everybody's change, or everybody
            assert all(arena.peak_backlog(connection) <= most for connection in connections)
            assert any(arena.peak_backlog(connection) > limit for connection in connections)


async def test_a_reader_that_never_reads_while_100_megabytes_pass_costs_the_process_nothing(tmp_path: Path) -> None:
    size, rounds = 500 * KIB, 200
    limits = ("--backlog-bytes-max", str(MIB), "--cache-bytes-max", str(8 * MIB), "--queue-bytes-max", str(4 * MIB))
    offset = 0
    with server_process(tmp_path, *limits, "--durability", "normal") as server:  # it is not asked about the disk

        async def pass_by(count: int) -> None:
            """Publish, each once the other reader has the one before."""
            nonlocal offset
            for _ in range(count):
                offset += 1
                data = f"{offset}".ljust(size)
                assert (await publisher.request("publish", channel="attacked", data=data))["offset"] == offset
                assert (await quick.receive())["offset"] == offset

        def memory() -> int:
            used = usage(server.process.pid)
            assert used is not None
            return used.memory_bytes

        publisher, quick, slow = await server.lines(), await server.lines(), await server.lines()
        await quick.request("subscribe", channel="attacked")
        await pass_by(rounds)  # until all caches are full, SQLite's too
        head, before = offset, memory()
        await slow.request("subscribe", channel="attacked")
        await pass_by(rounds)
        # The backlog and what was offered at its mark; beside that the allocator's own ways.
        assert memory() - before < MIB + PAGE_BYTES_MAX + size + 8 * MIB
        while head < offset:
            head += 1
            message = await slow.receive()
            assert (message["offset"], message["data"].rstrip()) == (head, f"{head}")
        await pass_by(1)
        assert (await slow.receive())["offset"] == offset
        assert memory() - before < MIB + 8 * MIB + 8 * MIB
        for peer in (publisher, quick, slow):
            await peer.stream.aclose()
        assert server.stop() == 0
