"""Presence: who is in a channel, what its watchers are told and when, and that their replicas are the truth."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import CollectingOutlet
from trisync import presence
from trisync.framing import JOIN, Framing
from trisync.presence import Presence

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

    def there(self, channel: str = "lobby") -> list[dict[str, str]]:
        return self.presence.members(channel, "", 1_000_000)[0]

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


# Members


def test_an_id_is_stable_and_says_nothing_without_the_secret() -> None:
    one, same, other = (
        Presence(grace_s=1, tick_s=1, bytes_max=1, timer=lambda: 0.0, secret=secret) for secret in (b"s", b"s", b"t")
    )
    id = one.member_id("a producer's secret")
    assert id == one.member_id("a producer's secret") == same.member_id("a producer's secret")
    assert id != other.member_id("a producer's secret")
    assert id != one.member_id("another producer's")
    assert len(id) == 16
    assert set(id) <= set("0123456789abcdef")


async def test_a_member_is_there_from_the_first_enter_to_the_last_leave(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", "alice")
        world.presence.enter("lobby", "a", "alice")
        world.presence.leave("lobby", "a", at_once=True)
        assert world.there() == [member("a", "alice")]
        world.presence.leave("lobby", "a", at_once=True)
        assert world.there() == []


async def test_the_newest_name_counts(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", None)
        assert world.there() == [member("a")]
        world.presence.enter("lobby", "a", 'Ann "é"')
        assert world.there() == [member("a", 'Ann "é"')]
        world.presence.rename("lobby", "a", None)
        assert world.there() == [member("a")]


async def test_renaming_who_is_not_there_is_no_error_and_brings_nobody(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.rename("lobby", "a", "alice")
        assert world.is_empty()
        world.presence.enter("lobby", "b", None)
        world.presence.rename("lobby", "a", "alice")
        assert world.there() == [member("b")]


async def test_leaving_more_often_than_entered_is_a_bug_that_is_found(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", None)
        world.presence.leave("lobby", "a", at_once=False)
        with pytest.raises(AssertionError, match="more often"):
            world.presence.leave("lobby", "a", at_once=False)


async def test_a_dropped_member_is_gone_when_the_grace_ends_and_not_before(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for id, leaves_after_s in (("a", 0), ("b", 3)):
            await trio.sleep(leaves_after_s)
            world.presence.enter("lobby", id, None)
            world.presence.leave("lobby", id, at_once=False)
        await trio.sleep(GRACE_S - 3 - MOMENT_S)
        assert world.there() == [member("a"), member("b")]
        await trio.sleep(2 * MOMENT_S)
        assert world.there() == [member("b")]
        await trio.sleep(3)
        assert world.there() == []
        assert world.is_empty()


async def test_coming_back_within_the_grace_is_told_to_nobody(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", "alice")
        watcher = world.watcher()
        world.presence.leave("lobby", "a", at_once=False)
        await trio.sleep(GRACE_S - MOMENT_S)
        world.presence.enter("lobby", "a", "alice")
        await trio.sleep(2 * GRACE_S)
        assert told(watcher) == [members(member("a", "alice"))]
        assert world.there() == [member("a", "alice")]


async def test_coming_back_within_the_grace_under_another_name_is_an_update(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", "alice")
        watcher = world.watcher()
        world.presence.leave("lobby", "a", at_once=False)
        await trio.sleep(GRACE_S / 2)
        world.presence.enter("lobby", "a", "bob")
        await trio.sleep(2 * GRACE_S)
        assert told(watcher) == [members(member("a", "alice")), changes(updated=[member("a", "bob")])]


async def test_each_drop_has_its_whole_grace(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for _ in range(3):
            world.presence.enter("lobby", "a", None)
            world.presence.leave("lobby", "a", at_once=False)
            await trio.sleep(GRACE_S - MOMENT_S)
            assert world.there() == [member("a")]
        await trio.sleep(2 * MOMENT_S)
        assert world.there() == []


async def test_leaving_at_once_after_coming_back_leaves_no_grace_behind(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "a", None)
        world.presence.leave("lobby", "a", at_once=False)
        world.presence.enter("lobby", "a", None)
        world.presence.leave("lobby", "a", at_once=True)
        assert world.is_empty()
        world.presence.enter("lobby", "a", None)
        await trio.sleep(2 * GRACE_S)
        assert world.there() == [member("a")]


# Pages


async def test_pages_are_in_order_of_ids_within_their_bytes_and_hold_everybody_once(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        expected = [member(f"{number:03}", "x" * (number % 50) or None) for number in range(300)]
        for entry in reversed(expected):
            world.presence.enter("lobby", entry["member"], entry.get("name"))
        pages, after, more = [], "", True
        while more:
            page, more = world.presence.members("lobby", after, 500)
            assert len(json.dumps(page, separators=(",", ":"))) <= 500
            pages.append(page)
            after = page[-1]["member"]
        assert [entry for page in pages for entry in page] == expected
        assert len(pages) < 60


async def test_a_page_has_a_member_even_if_that_is_too_large(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for id in "ab":
            world.presence.enter("lobby", id, "x" * 50)
        assert world.presence.members("lobby", "", 1) == ([member("a", "x" * 50)], True)
        assert world.presence.members("lobby", "a", 1) == ([member("b", "x" * 50)], False)


async def test_a_page_may_begin_behind_somebody_who_has_gone(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for id in "abc":
            world.presence.enter("lobby", id, None)
        world.presence.leave("lobby", "b", at_once=True)
        assert world.presence.members("lobby", "b", 1000) == ([member("c")], False)


async def test_a_page_of_nobody_is_empty(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        assert world.presence.members("lobby", "", 1000) == ([], False)
        world.presence.enter("lobby", "a", None)
        assert world.presence.members("lobby", "a", 1000) == ([], False)
        assert world.presence.members("elsewhere", "", 1000) == ([], False)


# What watchers are told


async def test_a_watcher_is_told_at_once_who_is_there(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        assert told(world.watcher()) == [members()]
        world.presence.enter("lobby", "a", "alice")
        assert told(world.watcher()) == [members(member("a", "alice"))]


async def test_changes_of_one_tick_are_told_together_a_tick_after_the_first(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        world.presence.enter("lobby", "gone", "g")
        world.presence.enter("lobby", "renamed", "r")
        watcher = world.watcher()
        told(watcher)
        await trio.sleep(50)
        world.presence.enter("lobby", "new", None)
        await trio.sleep(TICK_S / 2)
        world.presence.leave("lobby", "gone", at_once=True)
        world.presence.rename("lobby", "renamed", "q")
        await trio.sleep(TICK_S / 2 - MOMENT_S)
        assert told(watcher) == []
        await trio.sleep(2 * MOMENT_S)
        assert told(watcher) == [
            changes(joined=[member("new")], left=[member("gone", "g")], updated=[member("renamed", "q")])
        ]
        world.presence.enter("lobby", "next", None)
        await trio.sleep(TICK_S - MOMENT_S)
        assert told(watcher) == []
        await trio.sleep(50)
        assert told(watcher) == [changes(joined=[member("next")])]


async def test_the_next_change_is_told_a_tick_after_itself(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        for id in "ab":
            told(watcher)
            world.presence.enter("lobby", id, None)
            await trio.sleep(TICK_S - MOMENT_S)
            assert told(watcher) == []
            await trio.sleep(2 * MOMENT_S)
            assert told(watcher) == [changes(joined=[member(id)])]


async def test_changes_are_told_in_time_while_a_grace_is_far_from_its_end(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        world.presence.enter("lobby", "a", None)
        world.presence.leave("lobby", "a", at_once=False)
        await a_tick()
        world.presence.enter("lobby", "b", None)
        await a_tick()
        assert told(watcher) == [members(), changes(joined=[member("a")]), changes(joined=[member("b")])]
        await trio.sleep(GRACE_S)
        assert told(watcher) == [changes(left=[member("a")])]


async def test_a_grace_ends_in_time_while_changes_wait_to_be_told(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        world.presence.enter("lobby", "a", None)
        world.presence.leave("lobby", "a", at_once=False)
        await trio.sleep(GRACE_S - TICK_S / 2)
        world.presence.enter("lobby", "b", None)
        await trio.sleep(TICK_S / 2 + MOMENT_S)
        assert world.there() == [member("b")]
        await a_tick()
        assert replica_of(told(watcher)) == [member("b")]


def enter(world: World, name: str | None = "alice") -> None:
    world.presence.enter("lobby", "a", name)


def leave(world: World) -> None:
    world.presence.leave("lobby", "a", at_once=True)


def rename(world: World, name: str) -> None:
    world.presence.rename("lobby", "a", name)


async def test_who_joined_and_left_in_one_tick_is_not_mentioned(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        enter(world)
        leave(world)
        await a_tick()
        assert told(watcher) == [members()]


async def test_who_joined_and_was_renamed_in_one_tick_joined_with_the_new_name(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        enter(world)
        rename(world, "bob")
        await a_tick()
        assert told(watcher) == [members(), changes(joined=[member("a", "bob")])]


@pytest.mark.parametrize(("name", "expected"), [("alice", []), ("bob", [changes(updated=[member("a", "bob")])])])
async def test_who_left_and_joined_in_one_tick_is_mentioned_only_for_another_name(
    name: str, expected: list[object], autojump_clock: MockClock
) -> None:
    async with a_world() as world:
        enter(world)
        watcher = world.watcher()
        leave(world)
        enter(world, name)
        await a_tick()
        assert told(watcher) == [members(member("a", "alice")), *expected]


async def test_who_is_renamed_and_renamed_back_in_one_tick_is_not_mentioned(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        enter(world)
        watcher = world.watcher()
        rename(world, "bob")
        rename(world, "alice")
        await a_tick()
        assert told(watcher) == [members(member("a", "alice"))]


async def test_who_is_renamed_and_leaves_in_one_tick_left_as_who_they_were_known_to_be(
    autojump_clock: MockClock,
) -> None:
    async with a_world() as world:
        enter(world)
        watcher = world.watcher()
        rename(world, "bob")
        leave(world)
        await a_tick()
        assert told(watcher) == [members(member("a", "alice")), changes(left=[member("a", "alice")])]


async def test_channels_are_told_apart(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        world.presence.enter("elsewhere", "a", None)
        await a_tick()
        assert told(watcher) == [members()]
        assert world.there("elsewhere") == [member("a")]


# Beginning to watch between two ticks


async def test_a_new_watcher_is_not_told_again_what_it_saw(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        early = world.watcher()
        world.presence.enter("lobby", "a", None)
        middle = world.watcher()
        world.presence.enter("lobby", "b", None)
        late = world.watcher()
        await a_tick()
        assert replica_of(told(early)) == world.there()
        assert told(middle) == [members(member("a")), changes(joined=[member("b")])]
        assert told(late) == [members(member("a"), member("b"))]


async def test_a_watcher_that_saw_somebody_away_is_told_of_their_return_and_others_nothing(
    autojump_clock: MockClock,
) -> None:
    async with a_world() as world:
        enter(world)
        early = world.watcher()
        leave(world)
        late = world.watcher()
        enter(world)
        await a_tick()
        assert told(early) == [members(member("a", "alice"))]
        assert told(late) == [members(), changes(joined=[member("a", "alice")])]


async def test_a_watcher_that_saw_somebody_is_told_that_they_left_and_others_nothing(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        early = world.watcher()
        enter(world)
        late = world.watcher()
        leave(world)
        await a_tick()
        assert told(early) == [members()]
        assert told(late) == [members(member("a", "alice")), changes(left=[member("a", "alice")])]


async def test_watching_again_begins_afresh(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher = world.watcher()
        enter(world)
        world.presence.watch("lobby", watcher)
        await a_tick()
        assert told(watcher) == [members(), members(member("a", "alice"))]
        leave(world)
        await a_tick()
        assert told(watcher) == [changes(left=[member("a", "alice")])]


async def test_who_does_not_watch_any_more_is_told_nothing(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        watcher, other = world.watcher(), world.watcher()
        enter(world)
        world.presence.unwatch("lobby", watcher)
        world.presence.unwatch("lobby", watcher)
        world.presence.unwatch("elsewhere", watcher)
        await a_tick()
        assert told(watcher) == [members()]
        assert told(other) == [members(), changes(joined=[member("a", "alice")])]


# Many


async def test_a_thousand_joins_are_one_message_to_each_of_a_thousand_encoded_once_a_framing(
    autojump_clock: MockClock,
) -> None:
    async with a_world() as world:
        watchers = [world.watcher() for _ in range(1000)]
        for outlet in watchers[500:]:
            outlet.framing = Framing.FRAMES
        for number in range(1000):
            world.presence.enter("lobby", f"{number:03}", None)
        await a_tick()
        assert {len(outlet.taken) for outlet in watchers} == {2}
        assert len({id(outlet.taken[1]) for outlet in watchers}) == 2
        in_lines, in_frames = watchers[0].taken[1], watchers[-1].taken[1]
        assert in_frames == JOIN[Framing.FRAMES]([in_lines.rstrip(b"\n")])
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
