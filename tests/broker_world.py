"""A broker over a log in memory, for tests: who subscribes to it, what is published, and what they were given."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes import CollectingOutlet, MemoryLog, publishes
from trisync.core.broker import Broker
from trisync.core.cursors import Subscriptions
from trisync.settings import Settings
from trisync.storage.log import Flow
from trisync.wire.protocol import Subscribe


class World:
    """A broker that runs, over a log in memory."""

    def __init__(self, nursery: trio.Nursery, settings: Settings) -> None:
        self.nursery = nursery
        self.log = MemoryLog()
        self.broker = Broker(self.log, settings, timer=trio.current_time)
        self.settings = settings
        self.flow = Flow()
        """Of one publisher, where it matters that submissions keep their order."""

    async def subscriber(self, channel: str = "lobby", **fields: Any) -> tuple[CollectingOutlet, Subscriptions]:
        outlet = CollectingOutlet(self.nursery)
        subscriptions = Subscriptions(self.broker, outlet, self.settings.subscriptions_max, "member", None)
        await subscriptions.subscribe(Subscribe(id=1, channel=channel, **fields))
        return outlet, subscriptions


@asynccontextmanager
async def a_world(**changes: Any) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, Settings(**changes))
        nursery.start_soon(world.broker.run)
        yield world
        nursery.cancel_scope.cancel()


def offsets(outlet: CollectingOutlet) -> list[int]:
    messages = [json.loads(line) for line in outlet.lines()]
    return [message["offset"] for message in messages if message["op"] == "message"]


async def publish(world: World, count: int, channel: str = "lobby") -> None:
    world.broker.submit(publishes(count, channel))
    await wait_all_tasks_blocked()


def events(outlet: CollectingOutlet) -> list[object]:
    """What an outlet was given, in short: an offset for each message, else the operation and its facts."""
    shown: list[object] = []
    for line in outlet.lines():
        message = json.loads(line)
        if message["op"] == "message":
            shown.append(message["offset"])
        elif message["op"] == "gap":
            shown.append(("gap", message["reason"], message.get("from"), message.get("to")))
        else:
            shown.append((message["op"], message["offset"]))
    return shown
