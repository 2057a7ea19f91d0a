"""Cursors: resuming, going live and falling behind, with nothing missed and nothing twice."""

import gc
import math
from random import Random

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.broker_world import World, a_world, events, offsets, publish
from tests.fakes import CollectingOutlet, publishes
from trisync.core import channels
from trisync.core.channels import Subscription
from trisync.core.cursors import LOG_RETRY_S, Subscriptions
from trisync.storage.cache import RunCache
from trisync.storage.log import LogUnavailable, Page, Submission
from trisync.wire.errors import WireError
from trisync.wire.framing import FRAMES, LINES
from trisync.wire.protocol import Publish, Subscribe


async def test_a_plain_subscription_begins_at_the_head() -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, _ = await world.subscriber()
        await publish(world, 2)
        assert events(outlet) == [("ok", 3), 4, 5]


@pytest.mark.parametrize(("since", "expected"), [(0, [1, 2, 3, 4]), (2, [3, 4]), (3, [4])])
async def test_since_delivers_what_follows_and_goes_on_live(since: int, expected: list[int]) -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, _ = await world.subscriber(since=since)
        await wait_all_tasks_blocked()
        await publish(world, 1)
        assert events(outlet) == [("ok", 3), *expected]


@pytest.mark.parametrize(("last", "expected"), [(1, [3]), (2, [2, 3]), (100, [1, 2, 3])])
async def test_last_begins_with_the_newest(last: int, expected: list[int]) -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, _ = await world.subscriber(last=last)
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 3), *expected]


async def test_what_was_trimmed_is_announced_once() -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 9)
        world.log.trimmed["lobby"] = 4
        outlet, _ = await world.subscriber(since=2)
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 9), ("gap", "trimmed", 3, 4), 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("times", "gap_from"), [(1, 5), (2, 1), (3, 1)])
async def test_a_slow_reader_is_told_of_all_that_went_however_often_the_channel_was_emptied(
    times: int, gap_from: int
) -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 4)
        world.log.trimmed["lobby"] = 4
        outlet, _ = await world.subscriber()
        await publish(world, 3)
        outlet.slow = True
        for _ in range(times):
            await publish(world, 2)
            await world.broker.clear("lobby")
        outlet.speed_up()
        await publish(world, 1)
        emptied_until = 7 + 2 * times
        assert events(outlet) == [("ok", 4), 5, 6, 7, ("gap", "trimmed", gap_from, emptied_until), emptied_until + 1]


async def test_a_channel_trimmed_to_nothing_is_one_gap_and_then_live() -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 9)
        world.log.trimmed["lobby"] = 9
        outlet, _ = await world.subscriber(since=2)
        await wait_all_tasks_blocked()
        await publish(world, 1)
        assert events(outlet) == [("ok", 9), ("gap", "trimmed", 3, 9), 10]


async def test_a_channel_trimmed_to_nothing_before_the_broker_is_told_of_it_is_one_gap_and_then_live() -> None:
    async with a_world(cache_bytes_max=1) as world:
        outlet, _ = await world.subscriber()
        outlet.slow = True
        await publish(world, 5)
        world.log.trimmed["lobby"] = 5
        outlet.speed_up()
        await wait_all_tasks_blocked()
        await publish(world, 1)
        assert events(outlet) == [("ok", 0), ("gap", "trimmed", 1, 5), 6]


async def test_another_epoch_begins_again_from_the_beginning() -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, subscriptions = await world.subscriber()
        await subscriptions.subscribe(Subscribe(id=1, channel="lobby", since=2, epoch="another"))
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 3), ("ok", 3), ("gap", "epoch", None, None), 1, 2, 3]


async def test_what_was_trimmed_of_another_log_is_announced_too() -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 9)
        world.log.trimmed["lobby"] = 7
        outlet, _ = await world.subscriber(since=9, epoch="another")
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 9), ("gap", "epoch", None, None), ("gap", "trimmed", 1, 7), 8, 9]


async def test_a_cursor_beyond_the_head_is_of_another_log() -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, _ = await world.subscriber(since=4)
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 3), ("gap", "epoch", None, None), 1, 2, 3]


async def test_epoch_is_judged_only_together_with_since() -> None:
    async with a_world() as world:
        await publish(world, 3)
        outlet, subscriptions = await world.subscriber()
        await subscriptions.subscribe(Subscribe(id=1, channel="lobby", epoch="another", last=1))
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 3), ("ok", 3), 3]


async def test_subscribing_again_replaces_the_cursor() -> None:
    async with a_world() as world:
        await publish(world, 2)
        outlet, subscriptions = await world.subscriber()
        await subscriptions.subscribe(Subscribe(id=1, channel="lobby", since=0))
        await wait_all_tasks_blocked()
        await publish(world, 1)
        assert events(outlet) == [("ok", 2), ("ok", 2), 1, 2, 3]


async def test_after_unsubscribing_nothing_comes() -> None:
    async with a_world() as world:
        outlet, subscriptions = await world.subscriber()
        subscriptions.unsubscribe("lobby")
        await publish(world, 1)
        assert events(outlet) == [("ok", 0)]


async def test_a_connection_has_so_many_subscriptions_and_no_more() -> None:
    async with a_world(subscriptions_max=2) as world:
        _, subscriptions = await world.subscriber("a")
        await subscriptions.subscribe(Subscribe(id=1, channel="b"))
        with pytest.raises(WireError, match="at most 2") as caught:
            await subscriptions.subscribe(Subscribe(id=1, channel="c"))
        assert caught.value.details == {"limit": "subscriptions_max", "value": 2}
        await subscriptions.subscribe(Subscribe(id=1, channel="b", since=0))


async def test_a_slow_reader_reads_on_from_the_log_and_is_live_again() -> None:
    async with a_world() as world:
        slow, _ = await world.subscriber()
        fast, _ = await world.subscriber()
        slow.slow = True
        for _ in range(5):
            await publish(world, 10)
        assert offsets(slow) == []
        assert offsets(fast) == list(range(1, 51))
        slow.speed_up()
        await wait_all_tasks_blocked()
        await publish(world, 1)
        assert offsets(slow) == list(range(1, 52))
        assert world.broker._channels["lobby"].live[slow.framing].keys() >= {
            *world.broker._channels["lobby"].live[fast.framing]
        }


async def test_a_channel_that_cannot_be_read_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with a_world(cache_bytes_max=1) as world:
        for channel in ("damaged", "lobby"):
            await publish(world, 50, channel)
        read, tries = world.log.read, 0

        async def read_one(channel: str, after: int, count_max: int, bytes_max: int) -> Page:
            nonlocal tries
            if channel == "damaged":
                tries += 1
                raise LogUnavailable("disk I/O error")
            return await read(channel, after, 1, bytes_max)

        world.log.read = read_one  # type: ignore[method-assign]
        outlet, subscriptions = await world.subscriber("damaged", since=0)
        for _ in "at first", "while it waits to be read again":
            outlet.taken.clear()
            await subscriptions.subscribe(Subscribe(id=2, channel="lobby", since=0))
            await trio.sleep(LOG_RETRY_S / 4)
            assert offsets(outlet) == list(range(1, 51))
        tries = 0
        await trio.sleep(10.5 * LOG_RETRY_S)
        assert tries == 10


async def test_a_channel_that_cannot_be_read_keeps_nobody_who_is_about_to_go(autojump_clock: MockClock) -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 1)

        async def fail(channel: str, after: int, count_max: int, bytes_max: int) -> Page:
            raise LogUnavailable("disk I/O error")

        world.log.read = fail  # type: ignore[method-assign]
        _, subscriptions = await world.subscriber(since=0)
        for _ in "at first", "while it waits to be read again":
            with trio.fail_after(2 * LOG_RETRY_S):
                await subscriptions.level()


@pytest.mark.parametrize("is_slow", [False, True])
async def test_who_subscribes_again_and_again_to_what_cannot_be_read_takes_no_more_memory(is_slow: bool) -> None:
    def in_memory() -> int:
        gc.collect()
        return sum(type(each) is Subscription for each in gc.get_objects())

    asked, failing = trio.open_memory_channel[trio.Event](math.inf)

    async def fail(channel: str, after: int, count_max: int, bytes_max: int) -> Page:
        asked.send_nowait(fails := trio.Event())
        if is_slow:
            await fails.wait()
        raise LogUnavailable("disk I/O error")

    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 1)
        world.log.read = fail  # type: ignore[method-assign]
        _, subscriptions = await world.subscriber(since=0)
        counts = set()
        for _ in range(5):
            read = await failing.receive()
            await subscriptions.subscribe(Subscribe(channel="lobby", since=0))
            read.set()
            await wait_all_tasks_blocked()
            counts.add(in_memory())
        assert len(counts) == 1


async def test_readers_at_the_same_place_share_one_read() -> None:
    async with a_world() as world:
        await publish(world, 50)
        world.broker.reads._runs = RunCache(1_000_000, 60.0, trio.current_time)
        outlets: list[CollectingOutlet] = []
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(lambda: join(world, outlets))
        await wait_all_tasks_blocked()
        assert all(offsets(outlet) == list(range(8, 51)) for outlet in outlets)
        assert (len(outlets), world.log.reads) == (100, 1)


async def join(world: World, outlets: list[CollectingOutlet]) -> None:
    outlet, _ = await world.subscriber(since=7)
    outlets.append(outlet)


async def test_what_was_cut_while_it_was_read_is_shown_to_nobody_who_comes_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_world() as world:
        await publish(world, 9)
        world.broker.reads._runs = RunCache(1_000_000, 60.0, trio.current_time)
        lobby = await world.broker.enter("lobby")
        read = world.log.read

        async def read_slowly(channel: str, after: int, count_max: int, bytes_max: int) -> Page:
            page = await read(channel, after, count_max, bytes_max)
            await world.broker.trim({"lobby": 4}, 1000)
            return page

        monkeypatch.setattr(world.log, "read", read_slowly)
        await world.broker.reads.run_behind(lobby, 0)
        monkeypatch.undo()
        outlet, _ = await world.subscriber(since=2)
        await wait_all_tasks_blocked()
        assert events(outlet) == [("ok", 9), ("gap", "trimmed", 3, 4), 5, 6, 7, 8, 9]


async def test_who_was_told_by_the_log_of_what_is_yet_to_be_fanned_out_is_not_of_another_log() -> None:
    async with a_world() as world:
        await world.subscriber()
        world.log.stored = trio.Event()
        await publish(world, 3)  # stored, and not yet answered or fanned out
        page = await world.broker.history("lobby", None, 1)
        assert page.extent.head == 3
        told: list[CollectingOutlet] = []

        async def resume(since: int) -> None:
            outlet, _ = await world.subscriber(since=since)
            told.append(outlet)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(resume, 3)
            await wait_all_tasks_blocked()
            world.log.stored.set()
        await publish(world, 1)
        assert events(told[0]) == [("ok", 3), 4]
        await resume(5)
        assert events(told[1])[1] == ("gap", "epoch", None, None)


async def test_who_reads_the_log_sees_nothing_before_its_publisher_is_answered() -> None:
    async with a_world(cache_bytes_max=1) as world:
        await publish(world, 5)
        await world.subscriber()
        world.log.stored = trio.Event()
        await publish(world, 5)  # stored, and not yet answered or fanned out
        with trio.fail_after(10):
            reader, _ = await world.subscriber(since=0)
        await wait_all_tasks_blocked()
        assert offsets(reader) == [1, 2, 3, 4, 5]
        world.log.stored.set()
        await wait_all_tasks_blocked()
        assert offsets(reader) == list(range(1, 11))


class _QuickOutlet(CollectingOutlet):
    """Whose client takes everything at once: waiting for room takes no turn."""

    async def room(self) -> None:
        pass


async def test_who_reads_on_from_the_cache_lets_others_have_a_turn() -> None:
    async with a_world() as world:
        for _ in range(50):
            await publish(world, 1)
        outlet = _QuickOutlet(world.nursery)
        await Subscriptions(world.broker, outlet, 1, "member", None).subscribe(Subscribe(channel="lobby", since=0))
        turns = 0
        while len(offsets(outlet)) < 50:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns > 40


async def test_who_comes_or_goes_or_changes_between_two_slices_of_a_fan_out_gets_each_message_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "YIELD_EVERY", 1)
    async with a_world() as world:
        subscribed = [await world.subscriber() for _ in range(20)]
        late: list[CollectingOutlet] = []

        async def meddle() -> None:
            while not offsets(subscribed[0][0]):
                await trio.lowlevel.checkpoint()
            subscribed[-1][1].close(may_return=False)
            await subscribed[-2][1].subscribe(Subscribe(id=1, channel="lobby", since=0))
            for framing in (FRAMES, LINES):
                subscribed[-3][0].framing = framing
                subscribed[-3][1].reframe()
            late.append((await world.subscriber(since=0))[0])

        world.nursery.start_soon(meddle)
        await publish(world, 3)
        await publish(world, 3)
        assert offsets(subscribed[-1][0]) == []
        for outlet in [late[0], *(outlet for outlet, _ in subscribed[:-1])]:
            assert offsets(outlet) == [1, 2, 3, 4, 5, 6]


async def test_who_goes_or_changes_between_two_slices_of_a_crowd_gets_no_ephemeral_message_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "YIELD_EVERY", 1)
    async with a_world() as world:
        subscribed = [await world.subscriber() for _ in range(20)]
        told = [len(outlet.taken) for outlet, _ in subscribed]

        async def go() -> None:
            while len(subscribed[0][0].taken) == told[0]:
                await trio.lowlevel.checkpoint()
            subscribed[-1][1].close(may_return=False)
            subscribed[-2][0].framing = FRAMES
            subscribed[-2][1].reframe()

        world.nursery.start_soon(go)
        submission = Submission(lambda submission: None)
        submission.add(Publish(channel="lobby", data=Raw(b'"here"'), ephemeral=True), 20)
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        taken = [len(outlet.taken) - before for (outlet, _), before in zip(subscribed, told, strict=True)]
        assert taken == [1] * 18 + [0, 0]


async def test_who_enters_a_channel_between_its_answers_and_its_fan_out_is_not_told_again_what_the_log_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "YIELD_EVERY", 1)
    async with a_world() as world:
        crowd = [await world.subscriber("crowded") for _ in range(50)]
        late: list[CollectingOutlet] = []

        async def enter() -> None:
            while not crowd[0][0].taken[1:]:
                await trio.lowlevel.checkpoint()
            late.append((await world.subscriber("quiet", since=0))[0])
            assert not crowd[-1][0].taken[1:], "the fan-out to the crowd was to be under way"

        world.nursery.start_soon(enter)
        batch = publishes(1, "crowded")
        batch.add(publishes(1, "quiet").items[0], 20)
        world.broker.submit(batch)
        await wait_all_tasks_blocked()
        await publish(world, 1, "quiet")
        assert offsets(late[0]) == [1, 2]


@pytest.mark.parametrize(
    ("fields", "begin"), [({}, []), ({"last": 1}, [2]), ({"since": 0}, [1, 2]), ({"since": 1}, [2]), ({"since": 2}, [])]
)
async def test_who_enters_a_channel_between_its_answers_and_its_fan_out_begins_behind_what_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], begin: list[int]
) -> None:
    monkeypatch.setattr(channels, "YIELD_EVERY", 1)
    async with a_world() as world:
        crowd = [await world.subscriber("crowded") for _ in range(50)]
        before, _ = await world.subscriber("quiet")
        late: list[CollectingOutlet] = []

        async def enter() -> None:
            while not crowd[0][0].taken[1:]:
                await trio.lowlevel.checkpoint()
            assert not offsets(before), "the fan-out to the crowd was to be under way"
            late.append((await world.subscriber("quiet", **fields))[0])

        world.nursery.start_soon(enter)
        batch = publishes(1, "crowded")
        for item in publishes(2, "quiet").items:
            batch.add(item, 20)
        world.broker.submit(batch)
        await wait_all_tasks_blocked()
        await publish(world, 1, "quiet")
        assert offsets(before) == [1, 2, 3]
        assert events(late[0]) == [("ok", 2), *begin, 3]


@pytest.mark.parametrize("seed", range(30))
async def test_whoever_resumes_while_others_publish_misses_nothing_and_sees_nothing_twice(seed: int) -> None:
    """Random publishers, resumes, replaced cursors, slow phases and cold caches; every cursor is followed."""
    random = Random(seed)
    async with a_world(cache_bytes_max=random.choice([1, 2_000, 10**6])) as world:
        await publish(world, random.randrange(20))
        outlets: list[CollectingOutlet] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(publisher, world, random)
            for _ in range(10):
                nursery.start_soon(resumer, world, random, outlets)
        for outlet in outlets:
            outlet.speed_up()
        await wait_all_tasks_blocked()
        head = len(world.log.messages.get("lobby", []))
        for outlet in outlets:
            check_contiguous(events(outlet), head)


async def publisher(world: World, random: Random) -> None:
    for _ in range(30):
        world.broker.submit(publishes(random.randrange(1, 8)))
        for _ in range(random.randrange(4)):
            await trio.lowlevel.checkpoint()


async def resumer(world: World, random: Random, outlets: list[CollectingOutlet]) -> None:
    outlet, subscriptions = await world.subscriber()
    outlets.append(outlet)
    for _ in range(12):
        for _ in range(random.randrange(20)):
            await trio.lowlevel.checkpoint()
        match random.randrange(4):
            case 0:
                since = random.randrange(len(world.log.messages.get("lobby", [])) + 1)
                head = world.broker._channels["lobby"].head
                await subscriptions.subscribe(Subscribe(id=1, channel="lobby", since=min(since, head)))
                outlet.taken.append(b'{"op":"cursor","offset":%d}\n' % min(since, head))
            case 1:
                outlet.slow = True
            case _:
                outlet.speed_up()


def check_contiguous(shown: list[object], head: int) -> None:
    """Between two cursors the offsets have no gap and no repetition; the last run of them ends at the head."""
    place: int | None = None
    for event in shown:
        if isinstance(event, int):
            assert place is None or event == place + 1, shown
            place = event
        elif isinstance(event, tuple) and (event[0] == "cursor" or (event[0] == "ok" and place is None)):
            place = event[1]
    assert place == head
