"""Retention: channels keep what their rule says, in small steps, and nobody loses a message without being told."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock

from tests.broker_world import World, a_world, events, publish
from tests.fakes import publishes
from tests.harness import PATIENCE_S, Running, running_server
from tests.sqlite_logs import Clock, a_log, damage, opened, put
from tests.sqlite_logs import publish as stored
from trisync.core import channels
from trisync.core.broker import Broker
from trisync.core.retention import CHANNELS_PER_STEP, CHANNELS_PER_TICK, ROWS_PER_STEP, Retention
from trisync.retention_rules import Rules
from trisync.settings import Settings
from trisync.storage.damage import SAID_MAX
from trisync.storage.log import ChannelInfo, Extent, Log, LogDamaged, LogUnavailable, OldMessage, Submission
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.wire.framing import FRAMES
from trisync.wire.protocol import Publish

TICK_S = 1.0


@asynccontextmanager
async def a_kept_world(*rules: str) -> AsyncIterator[World]:
    """A broker over a log in memory, with retention."""
    async with a_world() as world:
        retention = Retention(world.log, world.broker, Rules(rules), TICK_S)
        world.broker.stored = retention.note
        world.nursery.start_soon(retention.run)
        yield world


async def ticks(count: int = 1) -> None:
    """Let so many ticks pass, whole ones."""
    await trio.sleep(count * TICK_S + TICK_S / 2)


async def held(log: Log, channel: str = "lobby") -> Extent:
    return await log.extent(channel)


async def test_the_newest_messages_stay_and_offsets_go_on(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby messages=3") as world:
        await publish(world, 10)
        await publish(world, 10, "other")
        await ticks()
        assert await held(world.log) == Extent(10, 7)
        assert await held(world.log, "other") == Extent(10, 0)
        await publish(world, 1)
        await ticks()
        assert await held(world.log) == Extent(11, 8)


async def test_what_is_too_old_goes_though_nobody_publishes_any_more(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby age_s=60") as world:
        for world.log.time_ms in (1_000, 30_000, 59_000):
            await publish(world, 2)
        await ticks()
        assert await held(world.log) == Extent(6, 0)
        world.log.time_ms = 61_001
        await ticks()
        assert await held(world.log) == Extent(6, 2)
        world.log.time_ms = 10**9
        await ticks()
        assert await held(world.log) == Extent(6, 6)
        await publish(world, 1)
        assert await held(world.log) == Extent(7, 6)


async def one_is_too_old(world: World, young: int) -> tuple[Retention, ChannelInfo]:
    """A channel's first message is, of a minute at most, and so many behind it are not."""
    await publish(world, 1)
    world.log.time_ms += 61_000
    await publish(world, young)
    [info] = await world.log.describe(["lobby"])
    return Retention(world.log, world.broker, Rules(["lobby age_s=60"]), TICK_S), info


async def test_only_what_is_too_old_goes_for_its_age_however_much_is_published_meanwhile() -> None:
    async with a_kept_world("lobby age_s=60") as world:
        retention, info = await one_is_too_old(world, 99)
        await publish(world, 50)
        assert await retention._surplus(info, ROWS_PER_STEP) == 1


@pytest.mark.parametrize(("left", "count_max", "until"), [([3, 4], 500, 2), ([], 3, 3), ([], 500, 6)])
async def test_what_damage_took_of_the_oldest_goes_with_them_and_holds_up_nothing(
    left: list[int], count_max: int, until: int
) -> None:
    async with a_kept_world("lobby age_s=60") as world:
        retention, info = await one_is_too_old(world, 5)
        await publish(world, 1)  # came since, and may be young

        async def found(channel: str, count_max: int) -> list[OldMessage]:
            return [OldMessage(offset, world.log.time_ms, 1) for offset in left]

        world.log.oldest = found  # type: ignore[method-assign]
        assert await retention._surplus(info, count_max) == until


async def test_the_newest_bytes_stay(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby bytes=250") as world:
        await publish(world, 20)
        await ticks()
        kept = world.log.messages["lobby"][(await held(world.log)).trimmed :]
        before = world.log.messages["lobby"][(await held(world.log)).trimmed - 1]
        assert sum(map(len, kept)) <= 250 < sum(map(len, kept)) + len(before)


async def test_of_several_limits_the_tightest_cuts(autojump_clock: MockClock) -> None:
    async with a_kept_world("a messages=5 bytes=100000", "b messages=1000 bytes=1", "c messages=5 age_s=1") as world:
        for channel in "abc":
            await publish(world, 20, channel)
        await ticks()
        assert [(await held(world.log, channel)).trimmed for channel in "abc"] == [15, 20, 15]
        world.log.time_ms += 2_000
        await ticks()
        assert [(await held(world.log, channel)).trimmed for channel in "abc"] == [15, 20, 20]


async def test_a_rule_holds_for_what_was_stored_before_it(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        count = CHANNELS_PER_TICK + 5
        for number in range(count):
            world.broker.submit(publishes(2, f"c{number}"))
        await publish(world, 1)
        retention = Retention(world.log, world.broker, Rules(["c* messages=1"]), TICK_S)
        world.nursery.start_soon(retention.run)
        await ticks(2)
        assert {(await held(world.log, f"c{number}")) for number in range(count)} == {Extent(2, 1)}
        reads = world.log.reads
        await ticks(5)
        assert world.log.reads == reads, "without ages, nothing more is to be looked at"


async def test_a_cut_is_made_in_steps_with_commits_between_them(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby messages=1") as world:
        cuts: list[tuple[int, int]] = []
        trim = world.log.trim

        async def watched(wanted: dict[str, int], count_max: int) -> dict[str, Extent]:
            # While this step runs, somebody publishes: the next step must wait for their commit.
            world.broker.submit(publishes(1, "other"))
            cuts.append((count_max, len(world.log.batches)))
            return await trim(wanted, count_max)

        world.log.trim = watched  # type: ignore[method-assign,assignment]
        await publish(world, 15 * ROWS_PER_STEP)
        await ticks()
        assert (await held(world.log)).trimmed == 15 * ROWS_PER_STEP - 1
        assert [count for count, _ in cuts] == [500, 1000, 2000, 4000], "the more there is to cut, the faster"
        assert world.log.reads == 1 + len(cuts), "the round's, one for each cut, and none when all is gone"
        batches = [batch for _, batch in cuts]
        assert len(batches) == 4
        assert batches == [*range(batches[0], batches[0] + 4)]


async def test_there_is_no_pause_while_a_tick_is_too_short(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby messages=1") as world:
        cuts = 0
        trim = world.log.trim

        async def slow(wanted: dict[str, int], count_max: int) -> dict[str, Extent]:
            nonlocal cuts
            cuts += 1
            await trio.sleep(TICK_S)
            return await trim(wanted, count_max)

        world.log.trim = slow  # type: ignore[method-assign,assignment]
        await publish(world, 20 * ROWS_PER_STEP)
        await ticks(10)
        assert cuts >= 9


async def test_a_channel_that_is_always_over_leaves_the_others_their_cuts(autojump_clock: MockClock) -> None:
    async with a_kept_world("busy messages=10", "old messages=5", "older age_s=1") as world:
        trim = world.log.trim

        async def flooded(wanted: dict[str, int], count_max: int) -> dict[str, Extent]:
            world.broker.submit(publishes(ROWS_PER_STEP, "busy"))
            await trio.sleep(TICK_S / 3)
            return await trim(wanted, count_max)

        world.log.trim = flooded  # type: ignore[method-assign,assignment]
        await publish(world, 3 * ROWS_PER_STEP, "busy")
        await publish(world, 20, "old")
        await publish(world, 20, "older")
        world.log.time_ms += 5_000
        await ticks(5)
        assert await held(world.log, "old") == Extent(20, 15)
        assert await held(world.log, "older") == Extent(20, 20)
        extent = await held(world.log, "busy")
        assert extent.head - extent.trimmed > 10


async def test_while_the_log_cannot_be_had_nothing_is_lost_but_time_and_it_is_said_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_kept_world("lobby messages=1") as world:
        trim = world.log.trim

        async def full(wanted: dict[str, int], count_max: int) -> dict[str, Extent]:
            raise LogUnavailable("database or disk is full")

        world.log.trim = full  # type: ignore[method-assign,assignment]
        await publish(world, 5)
        await ticks(3)
        assert await held(world.log) == Extent(5, 0)
        world.log.trim = trim  # type: ignore[method-assign]
        await ticks()
        assert await held(world.log) == Extent(5, 4)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["retention waits: database or disk is full", "retention waits no longer"]


async def test_of_many_channels_that_are_over_no_more_is_read_than_can_be_cut(autojump_clock: MockClock) -> None:
    async with a_kept_world("c* bytes=1") as world:
        count, asked = 3 * CHANNELS_PER_STEP, 0
        oldest = world.log.oldest

        async def counted(channel: str, count_max: int) -> list[OldMessage]:
            nonlocal asked
            asked += count_max
            return await oldest(channel, count_max)

        world.log.oldest = counted  # type: ignore[method-assign]
        for number in range(count):
            world.broker.submit(publishes(ROWS_PER_STEP // CHANNELS_PER_STEP, f"c{number}"))
        await ticks()
        assert [(await held(world.log, f"c{number}")) for number in range(count)] == [Extent(10, 10)] * count
        assert asked == 10 * count


async def test_who_is_live_sees_nothing_of_it_and_who_is_behind_is_told(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby messages=2") as world:
        live, _ = await world.subscriber()
        slow, _ = await world.subscriber()
        slow.slow = True
        await publish(world, 6)
        await ticks()
        slow.speed_up()
        await ticks()
        late, _ = await world.subscriber(since=3)
        await publish(world, 1)
        assert events(live) == [("ok", 0), 1, 2, 3, 4, 5, 6, 7]
        assert events(slow) == [("ok", 0), ("gap", "trimmed", 1, 4), 5, 6, 7]
        assert events(late) == [("ok", 6), ("gap", "trimmed", 4, 4), 5, 6, 7]


async def test_the_state_outlives_the_messages(autojump_clock: MockClock) -> None:
    async with a_kept_world("lobby messages=1") as world:
        submission = Submission(lambda _: None)
        submission.add(Publish(channel="lobby", data=Raw(b'"kept"'), key="title"), 10)
        world.broker.submit(submission)
        await publish(world, 3)
        await ticks()
        assert await held(world.log) == Extent(4, 3)
        assert b'"title":{"offset":1,"data":"kept"}' in (await world.log.state("lobby", "", 10, 1000)).entries


# On the disk, over the wire


@pytest.mark.parametrize("rule", ["age_s=60", "bytes=450"])
@pytest.mark.parametrize("count", [1, 2 * ROWS_PER_STEP])
async def test_however_much_damage_took_of_the_oldest_what_is_behind_that_is_cut(
    tmp_path: Path, count: int, rule: str
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as log, trio.open_nursery() as nursery:
        for _ in range(3):
            await put(log, *[stored("x" * 20)] * ROWS_PER_STEP)
        clock.ms += 61_000
        await put(log, *[stored("y" * 20)] * 4)
        log._connection.execute("DELETE FROM messages WHERE offset <= ?", (count,))
        log._connection.commit()
        broker = Broker(log, Settings(), timer=trio.current_time)
        nursery.start_soon(broker.run)
        await Retention(log, broker, Rules([f"lobby {rule}"]), PATIENCE_S)._enforce(await log.describe(["lobby"]))
        assert await held(log) == Extent(3 * ROWS_PER_STEP + 4, 3 * ROWS_PER_STEP)
        nursery.cancel_scope.cancel()


async def test_an_oldest_message_of_which_damage_took_only_the_note_is_found_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as log, trio.open_nursery() as nursery:
        await put(log, stored(), stored())
        whole = await log.describe(["lobby"])
        log._connection.execute("UPDATE recent_heads SET oldest = NULL")
        broker = Broker(log, Settings(), timer=trio.current_time)
        nursery.start_soon(broker.run)
        await Retention(log, broker, Rules(["lobby age_s=60"]), PATIENCE_S)._enforce(await log.describe(["lobby"]))
        assert await log.describe(["lobby"]) == whole
        nursery.cancel_scope.cancel()


async def test_channels_that_damage_keeps_from_being_cut_hold_up_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await a_log(tmp_path, *("x" * 3000 for _ in range(100)))  # the damage is among these
    async with opened(tmp_path) as log:
        for channel in "abc":
            await put(log, stored(channel=channel), stored(channel=channel))
    damage(tmp_path / FILE_NAME)
    async with opened(tmp_path) as log, trio.open_nursery() as nursery:
        broker = Broker(log, Settings(), timer=trio.current_time)
        nursery.start_soon(broker.run)
        names = ["a", "lobby", "b", "c"]
        retention = Retention(log, broker, Rules(["** messages=1"]), PATIENCE_S)
        for _ in range(2):
            await retention._enforce(await log.describe(names))
        assert [(await held(log, name)).trimmed for name in names] == [1, 0, 1, 1]
        nursery.cancel_scope.cancel()
    assert caplog.messages == ["retention passes over lobby, which is damaged: database disk image is malformed"]


@pytest.mark.parametrize("count_unsaid", [0, 5])
async def test_channels_that_damage_keeps_from_being_cut_are_named_once_and_not_all_of_thousands(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, count_unsaid: int
) -> None:
    async with a_kept_world("** age_s=60") as world:

        async def fail(channel: str, count_max: int) -> list[OldMessage]:
            raise LogDamaged(f"the damage of {channel}")

        world.log.oldest = fail  # type: ignore[method-assign]
        names = [f"c{number:03}" for number in range(SAID_MAX + count_unsaid)]
        for channel in names:
            await publish(world, 1, channel)
        world.log.time_ms += 61_000
        await ticks(5)
    assert sorted(caplog.messages) == [
        f"retention passes over {name}, which is damaged: the damage of {name}" for name in names[:SAID_MAX]
    ]


@pytest.mark.parametrize("are_due", [False, True])
async def test_a_channel_whose_oldest_message_is_damaged_holds_up_no_others(tmp_path: Path, are_due: bool) -> None:
    names = [f"c{number:02}" for number in range(100)]
    async with opened(tmp_path) as log:
        for size in 3000, 1:  # so that the damage is among the oldest
            await put(log, *(stored("x" * size, channel=name) for name in names))
    damage(tmp_path / FILE_NAME)
    async with opened(tmp_path) as log, trio.open_nursery() as nursery:
        broker = Broker(log, Settings(), timer=trio.current_time)
        nursery.start_soon(broker.run)
        retention = Retention(log, broker, Rules(["** messages=1"]), PATIENCE_S)
        await (retention._enforce(await log.describe(names)) if are_due else retention._go_round())
        uncut = [name for name in names if (await held(log, name)).trimmed == 0]
        assert 1 <= len(uncut) < 10  # what lies in the pages beside the damage cannot be deleted either
        for infos in await log.channels("", 1000), await log.describe(names[::-1]):
            assert [info.name for info in infos] == names
        nursery.cancel_scope.cancel()


async def until_trimmed(server: Running, channel: str, offset: int) -> dict[str, Any]:
    """A channel's history, once everything up to an offset is gone."""
    async with server.lines() as peer:
        with trio.fail_after(PATIENCE_S):
            while True:
                answer = await peer.request("history", channel=channel, since=0, limit=1000)
                if answer["trimmed"] >= offset:
                    return answer


async def test_a_server_keeps_what_its_settings_say(tmp_path: Path) -> None:
    rules = ["chat.* messages=5", "logs.* bytes=1000"]
    async with running_server(tmp_path, retention=rules, retention_tick_s=0.01) as server:
        async with server.lines() as peer:
            for number in range(20):
                await peer.request("publish", channel="chat.a", data=number)
                await peer.request("publish", channel="logs.a", data="x" * 300)
                await peer.request("publish", channel="all", data=number)
            assert [m["data"] for m in (await until_trimmed(server, "chat.a", 15))["messages"]] == [*range(15, 20)]
            assert len((await until_trimmed(server, "logs.a", 18))["messages"]) == 2
            assert len((await peer.request("history", channel="all", since=0))["messages"]) == 20


async def test_every_offset_is_delivered_or_announced_as_gone_while_the_log_is_cut(tmp_path: Path) -> None:
    """P4 under retention: a reader that is overtaken by the cut, again and again."""
    changes: dict[str, Any] = {"retention": ["lobby messages=50"], "retention_tick_s": 0.001, "cache_bytes_max": 1}
    async with running_server(tmp_path, backlog_bytes_max=2000, **changes) as server:
        async with server.lines() as writer, server.lines() as reader:
            await reader.request("subscribe", channel="lobby")
            for _ in range(40):
                for _ in range(50):
                    await writer.send("publish", channel="lobby", data="x" * 4000)
                await writer.request("ping")
            last = (await writer.request("publish", channel="lobby", data="end"))["offset"]
            expected, gaps = 1, 0
            while expected <= last:
                message = json.loads(await reader.receive_bytes())
                if message["op"] == "gap":
                    assert message["from"] == expected
                    expected, gaps = message["to"] + 1, gaps + 1
                else:
                    assert message["offset"] == expected
                    expected += 1
            assert gaps, "the cut never overtook the reader: this test has shown nothing"


async def test_a_crowd_is_told_slice_by_slice_that_its_channel_was_emptied_and_each_of_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "YIELD_EVERY", 1)
    async with a_world() as world:
        await publish(world, 2)
        lobby = await world.broker.enter("lobby")
        subscribed = [await world.subscriber() for _ in range(20)]
        told = ("gap", "trimmed", 1, 2)

        async def meddle() -> None:
            while told not in events(subscribed[0][0]):
                await trio.lowlevel.checkpoint()
            assert lobby.era, "it was emptied"
            assert any(subscription.era != lobby.era for live in lobby.live.values() for subscription in live)
            subscribed[-1][1].close(may_return=False)
            subscribed[-2][0].framing = FRAMES
            subscribed[-2][1].reframe()

        world.nursery.start_soon(meddle)
        await world.broker.clear("lobby")
        await publish(world, 1)
        assert events(subscribed[-1][0]) == [("ok", 2)]
        assert b'"gap"' in b"".join(subscribed[-2][0].taken)
        for outlet, _ in subscribed[:-2]:
            assert events(outlet) == [("ok", 2), told, 3]
        world.broker.leave(lobby)
