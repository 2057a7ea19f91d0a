"""Presence: many members, many watchers, and fan-outs that take long."""

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import CollectingOutlet
from tests.presence_world import (
    GRACE_S,
    TICK_S,
    a_tick,
    a_world,
    changes,
    enter,
    leave,
    member,
    members,
    rename,
    replica_of,
    told,
)
from trisync.core import presence
from trisync.wire.framing import FRAMES

# Many


async def test_a_thousand_joins_are_one_message_to_each_of_a_thousand_encoded_once_a_framing(
    autojump_clock: MockClock,
) -> None:
    async with a_world() as world:
        watchers = [world.watcher() for _ in range(1000)]
        for outlet in watchers[500:]:
            outlet.framing = FRAMES
        for number in range(1000):
            world.presence.enter("lobby", f"{number:03}", None)
        await a_tick()
        assert {len(outlet.taken) for outlet in watchers} == {2}
        assert len({id(outlet.taken[1]) for outlet in watchers}) == 2
        in_lines, in_frames = watchers[0].taken[1], watchers[-1].taken[1]
        assert in_frames == FRAMES.join([in_lines.rstrip(b"\n")])
        assert len(told(watchers[0])[1]["joined"]) == 1000


async def test_members_that_do_not_fit_go_on_as_joined(autojump_clock: MockClock) -> None:
    async with a_world(bytes_max=1000) as world:
        for number in range(200):
            world.presence.enter("lobby", f"{number:03}", "x" * (number % 50) or None)
        watcher = world.watcher()
        assert len(watcher.taken) == 1
        assert all(len(line) <= 1000 + 100 for line in watcher.lines())
        messages = told(watcher)
        assert list(messages[0]) == ["members"]
        assert 5 < len(messages) < 20
        assert all(message == changes(joined=message["joined"]) for message in messages[1:])
        assert replica_of(messages) == world.there()


async def test_changes_that_do_not_fit_are_several_messages(autojump_clock: MockClock) -> None:
    async with a_world(bytes_max=1000) as world:
        for number in range(200):
            world.presence.enter("lobby", f"{number:03}", None)
        watcher = world.watcher()
        before = told(watcher)
        for number in range(100):
            world.presence.leave("lobby", f"{number:03}", at_once=True)
            world.presence.rename("lobby", f"{number + 100:03}", "renamed")
            world.presence.enter("lobby", f"{number + 200:03}", "new")
        await a_tick()
        assert len(watcher.taken) == 1
        assert all(len(line) <= 1000 + 100 for line in watcher.lines())
        after = told(watcher)
        assert 6 < len(after) < 20
        assert replica_of(before + after) == world.there()


async def test_neither_members_nor_watchers_cost_a_task(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(100):
            world.watcher(f"channel-{number}")
            world.presence.enter(f"channel-{number}", "a", None)
            world.presence.leave(f"channel-{number}", "a", at_once=False)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_while_nothing_changes_nothing_wakes_up(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.watcher()
        enter(world)
        await a_tick()
        reads = world.clock_reads
        await trio.sleep(100)
        assert world.clock_reads == reads


async def test_nothing_is_kept_of_a_channel_without_members_and_watchers(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher, slow = world.watcher(), world.watcher()
        slow.slow = True
        enter(world)
        await a_tick()
        leave(world)
        world.presence.unwatch("lobby", watcher)
        world.presence.unwatch("lobby", slow)
        assert not world.presence._channels
        slow.speed_up()
        await a_tick()
        assert world.is_empty()


async def test_a_channel_that_comes_back_begins_anew(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        enter(world)
        leave(world)
        world.presence.unwatch("lobby", watcher)
        enter(world, "bob")
        world.presence.watch("lobby", watcher)
        await a_tick()
        assert told(watcher) == [members(), members(member("a", "bob"))]


# Long fan-outs


async def fan_out_begins(clock: MockClock, told_first: CollectingOutlet) -> None:
    """Return between two slices of the fan-out of a change made just now; `told_first` has been told it."""
    clock.autojump_threshold = float("inf")
    clock.jump(TICK_S)
    before = len(told_first.taken)
    for _ in range(100):
        if len(told_first.taken) > before:
            break
        await trio.lowlevel.checkpoint()
    assert len(told_first.taken) == before + 1
    clock.autojump_threshold = 0


async def test_others_have_a_turn_during_a_long_fan_out(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(presence, "YIELD_EVERY", 10)
    async with a_world() as world:
        watchers = [world.watcher() for _ in range(35)]
        enter(world)
        await fan_out_begins(autojump_clock, watchers[0])
        seen = [0]
        for _ in range(20):
            seen.append(sum(len(outlet.taken) == 2 for outlet in watchers))
            await trio.lowlevel.checkpoint()
        check_turns(seen, 35)


async def test_others_have_a_turn_while_many_graces_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(presence, "YIELD_EVERY", 10)
    async with a_world() as world:
        for number in range(35):
            world.presence.enter("lobby", str(number), None)
            world.presence.leave("lobby", str(number), at_once=False)
        seen = [0]
        await trio.sleep(GRACE_S)
        for _ in range(20):
            seen.append(35 - len(world.there()))
            await trio.lowlevel.checkpoint()
        check_turns(seen, 35)


def check_turns(seen: list[int], count: int) -> None:
    """Between two turns of a test there is one slice of 10, or two: the order of tasks is Trio's choice."""
    assert seen[-1] == count
    assert all(later - earlier <= 20 for earlier, later in pairwise(seen)), seen


async def test_watchers_that_come_and_go_during_a_fan_out_are_told_nothing_twice_and_miss_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(presence, "YIELD_EVERY", 1)
    async with a_world() as world:
        watchers = [world.watcher() for _ in range(20)]
        late: list[CollectingOutlet] = []
        enter(world)
        await fan_out_begins(autojump_clock, watchers[0])
        world.presence.unwatch("lobby", watchers[-1])
        world.presence.watch("lobby", watchers[-2])
        rename(world, "bob")
        late.append(world.watcher())
        assert len(watchers[-3].taken) == 1
        await a_tick()
        alice, bob = member("a", "alice"), member("a", "bob")
        assert told(watchers[-1]) == [members()]
        assert told(watchers[-2]) == [members(), members(alice), changes(updated=[bob])]
        assert told(late[0]) == [members(bob)]
        for outlet in watchers[:-2]:
            assert told(outlet) == [members(), changes(joined=[alice]), changes(updated=[bob])]


async def test_what_changes_during_a_fan_out_is_told_at_the_next_tick(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(presence, "YIELD_EVERY", 1)
    async with a_world() as world:
        early = world.watcher()
        enter(world)
        late = [world.watcher() for _ in range(10)]
        world.presence.enter("lobby", "b", None)
        await fan_out_begins(autojump_clock, late[0])
        leave(world)
        await a_tick()
        alice, b = member("a", "alice"), member("b")
        for outlet in late:
            assert told(outlet) == [members(alice), changes(joined=[b]), changes(left=[alice])]
        first, *joined, last = told(early)
        assert first == members()
        assert replica_of([first, *joined]) == [alice, b]
        assert last == changes(left=[alice])
