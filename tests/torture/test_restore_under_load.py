"""`trisync restore` under load: a server is killed, and its clients go on by themselves with a log of a while ago.

Real processes on fixed ports. What producers were promised, and what subscribers hold, is judged against the last log,
which is read through none of the server's code.
"""

import itertools
import json
import random
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import trio

import trisync
from tests.harness import Json, LinesPeer, Peer, run_trisync
from tests.hostile.raw_peers import RawWebSocket
from tests.torture.server import Server
from tests.web_calls import Caller
from trisync.client import Client, Gap, Receipt, State
from trisync.client.driver import Signal
from trisync.storage.sqlite_opening import FILE_NAME

DEADLINE_S = 60.0
"""How long it may take on a machine that has other things to do."""

RESTORES = 2
"""Each of a backup of its own, so that the second is of a log that was restored."""

DOORS = ("tcp", "ws")

TRIMMED = 3
STARTS = {"lobby": 0, "emptied": TRIMMED}
"""The channels, and behind which offset each begins: one was emptied before anybody subscribed."""

WINDOW = 4
"""Publishes of a producer that wait for their answers: what is in doubt when the server is killed."""
MANY = 10 * WINDOW
"""Publishes of each producer that everybody is shown before anything else happens to the server."""

Data = tuple[str, int]
"""The data of a message: which one it is, by its producer's name and a number, of all that were ever published."""

Log = dict[str, list[tuple[int, Data]]]
"""Offset and data of all messages, by channel."""

_MESSAGES = """
SELECT channels.name, messages.offset, messages.data
FROM messages JOIN channels ON channels.id = messages.channel WHERE channels.name NOT LIKE '$%' ORDER BY messages.id
"""
"""Without what is left of the channel that was emptied, until that is tidied up."""


class Posted(NamedTuple):
    """A publish, and what has become of it."""

    channel: str
    data: Data
    receipt: Receipt


class Producer:
    """A program that publishes without end, to each channel in turn, and looks at no answer."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.posted: list[Posted] = []
        self.resting = False

    async def run(self) -> None:
        for number, channel in enumerate(itertools.cycle(STARTS), 1):
            await self.client.room()
            if self.resting:
                return
            data = (self.name, number)
            self.posted.append(Posted(channel, data, self.client.post(channel, data)))

    async def offline(self) -> None:
        """Wait until its connection is gone: nothing that was said on it will be heard any more."""
        changes = self.client.status_changes()
        while self.client.status.state is State.ONLINE:
            await anext(changes)

    async def rest(self) -> None:
        """Publish nothing more, and wait for all answers."""
        self.resting = True
        await self.client.flush()


class Held:
    """What a subscriber holds of one channel, and what it was told about that."""

    def __init__(self, subscriber: str, channel: str, progress: Signal) -> None:
        self.name = f"{subscriber}, {channel}"
        self.channel = channel
        self.epoch = ""
        self.gaps: list[str] = []
        self.messages: list[tuple[int, Data]] = []
        self.newest: dict[str, int] = {}
        """By producer: the number of its newest publish."""
        self._progress = progress

    @property
    def cursor(self) -> int:
        """The newest offset that it was shown."""
        return self.messages[-1][0] if self.messages else STARTS[self.channel]

    def gap(self, reason: str) -> None:
        """What was held so far is of no log any more."""
        self.gaps.append(reason)
        self.messages = []
        self.newest = {}

    def message(self, offset: int | None, data: Any) -> None:
        """The next message came."""
        assert offset is not None
        producer, number = data
        self.messages.append((offset, (producer, number)))
        self.newest[producer] = number
        self._progress.fire()


class World:
    """The servers, one after the other on the same ports and folder, and all their clients."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
        self.servers: list[Server] = []
        self.opened = 0
        """How many of them have opened their doors."""
        self.epochs: list[str] = []
        """One of each server, as subscribers were told."""
        self.producers: list[Producer] = []
        self.readers: list[Client] = []
        self.held: list[Held] = []
        self.lost: set[Posted] = set()
        """Acknowledged, but not before the backup began: nobody knows whether the log of now has it."""
        self.gone: set[Posted] = set()
        """Acknowledged, of what was published only when there was the backup: the log of now cannot have it."""
        self.progress = Signal()

    async def serve(self) -> None:
        """Start a server, and wait until its doors are open; clients that are there come back at once."""
        server = Server(self.data, "--tcp-port", str(self.ports["tcp"]), "--web-port", str(self.ports["ws"]))
        self.servers.append(server)
        doors = await trio.to_thread.run_sync(server.doors)
        assert {"tcp": doors["lines"][1], "ws": doors["ws"][1]} == self.ports
        self.opened += 1
        self.progress.fire()
        for client in [*self.readers, *(producer.client for producer in self.producers)]:
            client.nudge()  # their pauses have become long by now

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.close()

    def hold(self, subscriber: str) -> dict[str, Held]:
        """What a new subscriber will hold, by channel."""
        held = {channel: Held(subscriber, channel, self.progress) for channel in STARTS}
        self.held += held.values()
        return held

    def posted(self) -> Iterable[Posted]:
        return itertools.chain.from_iterable(producer.posted for producer in self.producers)

    def answered(self) -> set[Posted]:
        """What has its answer by now."""
        return {posted for posted in self.posted() if posted.receipt.done}

    async def show_many(self) -> None:
        """Wait until everybody was shown many publishes that are not made yet."""
        wanted = {producer.name: len(producer.posted) + MANY for producer in self.producers}
        while any(held.newest.get(name, 0) < number for held in self.held for name, number in wanted.items()):
            await self.progress.wait()

    def note_epoch(self) -> None:
        """Keep the epoch that everybody knows by now."""
        epochs = {held.epoch for held in self.held}
        assert len(epochs) == 1
        self.epochs += epochs

    async def show_all(self, heads: dict[str, int]) -> None:
        """Wait until everybody was shown each channel up to there."""
        while any(held.cursor < heads[held.channel] for held in self.held):
            await self.progress.wait()

    @asynccontextmanager
    async def bare(self, door: str) -> AsyncIterator[Peer]:
        """A connection that nothing of the package is used for."""
        async with await trio.open_tcp_stream("127.0.0.1", self.ports[door]) as stream:
            if door == "tcp":
                yield LinesPeer(stream)
            else:
                websocket = RawWebSocket(stream)
                await websocket.shake_hands()
                yield websocket


def free_ports(count: int) -> list[int]:
    """Free ports that stay so while no server is there: below those that connections of others are given."""
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("there are no free ports")


async def read(client: Client, held: Held) -> None:
    """Subscribe to a channel as a program does, with the client of the package: it comes back by itself."""
    async with client.subscribe(held.channel, since=STARTS[held.channel], gaps="yield") as items:
        async for item in items:
            held.epoch = items.epoch
            if isinstance(item, Gap):
                held.gap(item.reason)
            else:
                held.message(item.offset, item.data)


async def read_bare(world: World, door: str, holds: dict[str, Held]) -> None:
    """Subscribe with no client of ours, which needs no `gap` to see that the epoch is another one."""
    while True:
        server, opened = world.servers[-1], world.opened
        try:
            async with world.bare(door) as peer:
                await converse(peer, holds)
        except (EOFError, trio.BrokenResourceError):
            assert server.status is not None, "it hung up on a subscriber"
        while world.opened == opened:
            await world.progress.wait()


async def converse(peer: Peer, holds: dict[str, Held]) -> None:
    """Go on with each channel where it was; ends with the connection."""
    for channel, held in holds.items():
        known = {"epoch": held.epoch} if held.epoch else {}
        await peer.send("subscribe", id=channel, channel=channel, since=held.cursor, **known)
    while True:
        said: Json = await peer.receive()
        if said["op"] == "ok":
            holds[said["id"]].epoch = said["epoch"]
        elif said["op"] == "gap":
            holds[said["channel"]].gap(said["reason"])
        else:
            assert said["op"] == "message", said
            holds[said["channel"]].message(said["offset"], said["data"])


async def command(*arguments: str) -> str:
    """Run a command of trisync, which must succeed; what it said."""
    done = await run_trisync(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def log_in(file: Path) -> Log:
    """What is in a log, which must begin where it was made to."""
    log: Log = {channel: [] for channel in STARTS}
    with closing(sqlite3.connect(file)) as database:
        for channel, offset, text in database.execute(_MESSAGES):
            producer, number = json.loads(text)
            log[channel].append((offset, (producer, number)))
        trimmed = dict(database.execute("SELECT name, trimmed FROM channels"))
    assert {channel: trimmed[channel] for channel in STARTS} == STARTS
    return log


async def empty_a_channel(world: World) -> None:
    """Have a channel that does not begin at its first offset."""
    async with world.bare("tcp") as peer:
        for _ in range(TRIMMED):
            await peer.request("publish", channel="emptied", data="old")
    async with await trio.open_tcp_stream("127.0.0.1", world.ports["ws"]) as stream:
        await Caller(stream).ok("DELETE", "/channels/emptied")


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[None]:
    """A producer and a reader at each door, with the client of the package."""
    async with AsyncExitStack() as stack:
        for door in DOORS:
            url = f"{door}://127.0.0.1:{world.ports[door]}"
            client = await stack.enter_async_context(trisync.connect(url, queue_max=WINDOW))
            world.producers.append(Producer(f"producer at {door}", client))
            world.readers.append(await stack.enter_async_context(trisync.connect(url)))
        yield


def start_clients(world: World, nursery: trio.Nursery) -> None:
    """Publish, and read, from now on."""
    for producer in world.producers:
        nursery.start_soon(producer.run)
    for door, reader in zip(DOORS, world.readers, strict=True):
        for held in world.hold(f"reader at {door}").values():
            nursery.start_soon(read, reader, held)
        nursery.start_soon(read_bare, world, door, world.hold(f"bare reader at {door}"))


async def back_up_and_restore(world: World, file: Path) -> None:
    """Copy the log while it grows, kill the server later, and serve the copy instead."""
    promised = world.answered() - world.lost
    await command("backup", str(file), "--data", str(world.data))
    before = set(world.posted())
    await world.show_many()
    world.servers[-1].kill()
    for producer in world.producers:
        await producer.offline()
    world.lost = world.answered() - promised
    world.gone |= world.lost - before
    said = await command("restore", str(file), "--data", str(world.data), "--force")
    await world.serve()
    await world.show_many()
    world.note_epoch()
    assert said.endswith(f" in the new epoch {world.epochs[-1]}\n")


async def at_rest(world: World) -> dict[Posted, int]:
    """Publish no more, and show everybody the rest; returns what the log has to have, and at which offsets."""
    for producer in world.producers:
        await producer.rest()
    owed = {posted: await posted.receipt for posted in world.posted() if posted not in world.lost}
    heads = dict.fromkeys(STARTS, 0)
    for posted, offset in owed.items():
        heads[posted.channel] = max(heads[posted.channel], offset)
    await world.show_all(heads)
    return owed


def judge(world: World, log: Log, owed: dict[Posted, int]) -> None:
    """Hold the log of the last server against what its clients were promised and shown."""
    for channel, start in STARTS.items():
        offsets = [offset for offset, _ in log[channel]]
        assert offsets == list(range(start + 1, start + 1 + len(offsets)))
        numbers: dict[str, list[int]] = {}
        for _, (producer, number) in log[channel]:
            numbers.setdefault(producer, []).append(number)
        assert all(each == sorted(set(each)) for each in numbers.values()), "in the order of the program, each once"
    for held in world.held:
        gaps = ["epoch", "trimmed"] if STARTS[held.channel] > 0 else ["epoch"]
        assert held.gaps == gaps * RESTORES, held.name
        assert held.messages == log[held.channel], held.name
    at = {channel: dict(messages) for channel, messages in log.items()}
    assert [posted for posted, offset in owed.items() if at[posted.channel].get(offset) != posted.data] == []
    stored = {data for messages in log.values() for _, data in messages}
    assert len(stored) == sum(map(len, log.values()))
    assert not {posted.data for posted in world.gone} & stored
    assert [posted for posted in world.posted() if posted.receipt.error is not None] == []


async def test_after_a_restore_under_load_subscribers_start_over_once_and_producers_go_on(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    with trio.fail_after(DEADLINE_S), closing(world):
        await world.serve()
        await empty_a_channel(world)
        async with connected(world), trio.open_nursery() as nursery:
            start_clients(world, nursery)
            await world.show_many()
            world.note_epoch()
            for number in range(1, RESTORES + 1):
                await back_up_and_restore(world, tmp_path / f"{number}.db")
                assert len(world.gone) >= number * MANY
            owed = await at_rest(world)
            nursery.cancel_scope.cancel()
        world.servers[-1].drain()
        assert await trio.to_thread.run_sync(world.servers[-1].wait) == 0
        assert [server.said() for server in world.servers] == [""] * (RESTORES + 1)
    assert len(set(world.epochs)) == RESTORES + 1
    judge(world, log_in(world.data / FILE_NAME), owed)
