"""A presence that runs in virtual time, and what its watchers make of what they are told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes import CollectingOutlet
from trisync.core.presence import Presence

GRACE_S = 10.0
TICK_S = 1.0
MOMENT_S = 0.001


class World:
    """A presence that runs, in Trio's time."""

    def __init__(self, nursery: trio.Nursery, bytes_max: int) -> None:
        self.nursery = nursery
        self.clock_reads = 0
        self.presence = Presence(
            grace_s=GRACE_S, tick_s=TICK_S, bytes_max=bytes_max, timer=self._read_clock, secret=b"secret"
        )

    def _read_clock(self) -> float:
        self.clock_reads += 1
        return trio.current_time()

    def watcher(self, channel: str = "lobby") -> CollectingOutlet:
        outlet = CollectingOutlet(self.nursery)
        self.presence.watch(channel, outlet)
        return outlet

    def page(self, channel: str, after: str, bytes_max: int) -> tuple[list[dict[str, str]], bool]:
        members, more = self.presence.members(channel, after, bytes_max)
        assert len(members) <= bytes_max or b"},{" not in members
        return json.loads(members), more

    def there(self, channel: str = "lobby") -> list[dict[str, str]]:
        return self.page(channel, "", 1_000_000)[0]

    def is_empty(self) -> bool:
        kept = self.presence
        return not (kept._channels or kept._graces or kept._ticks or kept._behind)


@asynccontextmanager
async def a_world(bytes_max: int = 1_000_000) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, bytes_max)
        nursery.start_soon(world.presence.run)
        await wait_all_tasks_blocked()
        yield world
        nursery.cancel_scope.cancel()


async def a_tick() -> None:
    await trio.sleep(TICK_S + MOMENT_S)


def told(outlet: CollectingOutlet) -> list[dict[str, Any]]:
    """What an outlet was told since the last call."""
    messages = [json.loads(line) for line in outlet.lines()]
    outlet.taken.clear()
    for message in messages:
        assert message.pop("op") == "presence"
        assert message.pop("channel") == "lobby"
    return messages


def member(id: str, name: str | None = None) -> dict[str, str]:
    return {"member": id} if name is None else {"member": id, "name": name}


def members(*there: dict[str, str]) -> dict[str, Any]:
    return {"members": list(there)}


def changes(**kinds: list[dict[str, str]]) -> dict[str, Any]:
    return {"joined": [], "left": [], "updated": []} | kinds


def enter(world: World, name: str | None = "alice") -> None:
    world.presence.enter("lobby", "a", name)


def leave(world: World) -> None:
    world.presence.leave("lobby", "a", at_once=True)


def rename(world: World, name: str) -> None:
    world.presence.rename("lobby", "a", name)


class Replica:
    """What a client makes of what it was told. It insists on being told nothing that it knows."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, str]] = {}

    def apply(self, message: dict[str, Any]) -> None:
        if "members" in message:
            assert set(message) == {"members"}
            self.there = {entry["member"]: entry for entry in message["members"]}
            return
        assert set(message) == {"joined", "left", "updated"}
        assert any(message.values())
        for entry in message["joined"]:
            assert entry["member"] not in self.there
            self.there[entry["member"]] = entry
        for entry in message["left"]:
            assert self.there.pop(entry["member"]) == entry
        for entry in message["updated"]:
            assert self.there[entry["member"]] != entry
            self.there[entry["member"]] = entry


def replica_of(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Who a client that was told this and nothing else takes to be there, in order of ids."""
    replica = Replica()
    for message in messages:
        replica.apply(message)
    return sorted(replica.there.values(), key=lambda entry: entry["member"])
