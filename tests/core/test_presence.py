"""Presence: who is in a channel, and what its watchers are told and when."""

import pytest
import trio
from trio.testing import MockClock

from tests.presence_world import (
    GRACE_S,
    MOMENT_S,
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
from trisync.core.presence import Presence

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
            page, more = world.page("lobby", after, 500)
            pages.append(page)
            after = page[-1]["member"]
        assert [entry for page in pages for entry in page] == expected
        assert len(pages) < 60


async def test_a_page_has_a_member_even_if_that_is_too_large(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for id in "ab":
            world.presence.enter("lobby", id, "x" * 50)
        assert world.page("lobby", "", 1) == ([member("a", "x" * 50)], True)
        assert world.page("lobby", "a", 1) == ([member("b", "x" * 50)], False)


async def test_a_page_may_begin_behind_somebody_who_has_gone(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        for id in "abc":
            world.presence.enter("lobby", id, None)
        world.presence.leave("lobby", "b", at_once=True)
        assert world.page("lobby", "b", 1000) == ([member("c")], False)


async def test_a_page_of_nobody_is_empty(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        assert world.page("lobby", "", 1000) == ([], False)
        world.presence.enter("lobby", "a", None)
        assert world.page("lobby", "a", 1000) == ([], False)
        assert world.page("elsewhere", "", 1000) == ([], False)


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
