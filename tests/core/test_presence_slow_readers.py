"""Presence: watchers that read slowly; and, of all kinds at random, that every replica is the truth."""

from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import CollectingOutlet
from tests.presence_world import (
    GRACE_S,
    MOMENT_S,
    TICK_S,
    World,
    a_tick,
    a_world,
    changes,
    enter,
    member,
    members,
    rename,
    replica_of,
    told,
)
from trisync.core import presence

# Slow readers


async def test_a_slow_watcher_is_told_nothing_until_it_has_room_and_then_begins_afresh(
    autojump_clock: MockClock,
) -> None:
    async with a_world() as world:
        slow, fast = world.watcher(), world.watcher()
        slow.slow = True
        for id in "abc":
            world.presence.enter("lobby", id, None)
            await a_tick()
        world.presence.enter("lobby", "d", None)  # and not yet told
        slow.speed_up()
        await wait_all_tasks_blocked()
        assert told(slow) == [members(), members(*(member(id) for id in "abcd"))]
        await a_tick()
        assert told(slow) == []
        assert replica_of(told(fast)) == world.there()
        world.presence.leave("lobby", "a", at_once=True)
        await a_tick()
        assert told(slow) == [changes(left=[member("a")])]


async def test_no_change_slips_in_between_having_room_and_beginning_afresh(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = world.watcher()
        outlet.slow = True
        enter(world)
        await a_tick()
        outlet.slow = False  # it would take something now, but has not been asked
        rename(world, "bob")
        await a_tick()
        assert told(outlet) == [members()]
        outlet.speed_up()
        await wait_all_tasks_blocked()
        assert told(outlet) == [members(member("a", "bob"))]


async def test_who_is_slow_from_the_beginning_is_told_when_it_has_room(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = CollectingOutlet(world.nursery)
        outlet.slow = True
        world.presence.watch("lobby", outlet)
        enter(world)
        await a_tick()
        outlet.speed_up()
        await wait_all_tasks_blocked()
        assert told(outlet) == [members(member("a", "alice"))]


class Refusing(CollectingOutlet):
    """Refuses a number of offers, whatever room() says."""

    refusals = 0

    def offer(self, data: bytes) -> bool:
        self.refusals -= 1
        return self.refusals < 0 and super().offer(data)

    async def room(self) -> None:
        """There is always room, it says, and lets nobody have a turn."""


async def test_who_refuses_again_after_making_room_is_asked_again(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = Refusing(world.nursery)
        outlet.refusals = 5
        world.presence.watch("lobby", outlet)
        enter(world)
        await a_tick()
        assert replica_of(told(outlet)) == world.there()
        assert outlet.refusals < 0


async def test_who_always_refuses_does_not_stop_the_others(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = Refusing(world.nursery)
        outlet.refusals = 1_000_000
        world.presence.watch("lobby", outlet)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        assert 1_000_000 - outlet.refusals < 10
        world.presence.unwatch("lobby", outlet)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        assert world.is_empty()


async def test_a_slow_outlet_has_one_task_however_much_it_watches(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = CollectingOutlet(world.nursery)
        outlet.slow = True
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(100):
            world.presence.watch(f"channel-{number % 50}", outlet)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before + 1
        outlet.speed_up()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(outlet.lines()) == 50


async def test_a_slow_watcher_that_has_gone_meanwhile_is_told_nothing(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = world.watcher()
        outlet.slow = True
        enter(world)
        await a_tick()
        world.presence.unwatch("lobby", outlet)
        outlet.speed_up()
        await wait_all_tasks_blocked()
        assert told(outlet) == [members()]
        assert not world.presence._behind


async def test_a_slow_watcher_that_watches_again_is_told_the_members_once(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        outlet = world.watcher()
        outlet.slow = True
        enter(world)
        await a_tick()
        world.presence.watch("lobby", outlet)
        outlet.speed_up()
        await wait_all_tasks_blocked()
        assert told(outlet) == [members(), members(member("a", "alice"))]


async def test_a_connection_that_ends_while_it_is_slow_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        async with trio.open_nursery() as connection:
            outlet = CollectingOutlet(connection)
            outlet.slow = True
            world.presence.watch("lobby", outlet)
            await wait_all_tasks_blocked()
            connection.cancel_scope.cancel()
        world.presence.unwatch("lobby", outlet)
        assert world.is_empty()


# All of it at random


@pytest.mark.parametrize("seed", range(60))
async def test_every_replica_is_the_truth_once_ticks_and_graces_are_over(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Random arrivals, drops, names, watchers and slow phases, also in the middle of fan-outs."""
    monkeypatch.setattr(presence, "YIELD_EVERY", 1)
    random = Random(seed)
    async with a_world(bytes_max=random.choice([1, 60, 10_000])) as world:
        entered: dict[str, list[str | None]] = {id: [] for id in "abcd"}
        watching = [CollectingOutlet(world.nursery) for _ in range(6)]
        for outlet in watching:
            world.presence.watch("lobby", outlet)
        for _ in range(200):
            if random.random() < 0.5:
                change_members(world, random, entered)
            elif random.random() < 0.3:
                await trio.sleep(random.choice([TICK_S / 3, TICK_S, TICK_S, GRACE_S / 2, GRACE_S]))
            elif random.random() < 0.6:
                await trio.lowlevel.checkpoint()
            else:
                change_watchers(world, random, watching)
        for outlet in watching:
            outlet.speed_up()
        await trio.sleep(GRACE_S + 2 * TICK_S + MOMENT_S)
        truth = [member(id, names[-1]) for id, names in entered.items() if names]
        assert world.there() == truth
        for outlet in watching:
            assert replica_of(told(outlet)) == truth
            world.presence.unwatch("lobby", outlet)
        for id, names in entered.items():
            for _ in names:
                world.presence.leave("lobby", id, at_once=True)
        assert world.is_empty()


def change_members(world: World, random: Random, entered: dict[str, list[str | None]]) -> None:
    id = random.choice(list(entered))
    names = entered[id]
    name = random.choice([None, "x", "y"])
    match random.randrange(5):
        case 0:
            world.presence.rename("lobby", id, name)
            names[:] = [name] * len(names)
        case 1 | 2 if names:
            world.presence.leave("lobby", id, at_once=random.random() < 0.7)
            names.pop()
        case _ if len(names) < 2:
            world.presence.enter("lobby", id, name)
            names[:] = [name] * (len(names) + 1)


def change_watchers(world: World, random: Random, watching: list[CollectingOutlet]) -> None:
    outlet = random.choice(watching)
    match random.randrange(6):
        case 0:
            outlet.slow = True
        case 1 | 2:
            outlet.speed_up()
        case 3:
            world.presence.watch("lobby", outlet)
        case 4 | 5:
            world.presence.unwatch("lobby", outlet)
            watching.remove(outlet)
            outlet.speed_up()  # who waits for its room, waits until it has some or its connection ends
            another = CollectingOutlet(world.nursery)
            another.slow = random.random() < 0.2
            watching.append(another)
            world.presence.watch("lobby", another)
