"""The broker over a log in memory: group commit, order, back-pressure, and what a failed commit means."""

import json

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from tests.broker_world import a_world, offsets
from tests.fakes import publishes
from tests.harness import PATIENCE_S
from tests.sqlite_logs import PRODUCER, bad_request
from trisync.core import broker
from trisync.doors.tcp import TcpDoor
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry
from trisync.storage.log import (
    ITEM_OVERHEAD_BYTES,
    Duplicate,
    Flow,
    LogDamaged,
    LogUnavailable,
    Once,
    Refused,
    Run,
    Submission,
    Verdict,
)
from trisync.wire.errors import WireError
from trisync.wire.protocol import Publish


async def test_nobody_is_answered_or_shown_anything_before_the_commit() -> None:
    async with a_world() as world:
        outlet, _ = await world.subscriber()
        world.log.gate = trio.Event()
        settled: list[Submission] = []
        world.broker.submit(publishes(3, settle=settled.append))
        await wait_all_tasks_blocked()
        assert (settled, offsets(outlet)) == ([], [])
        world.log.gate.set()
        await wait_all_tasks_blocked()
        assert [submission.verdicts for submission in settled] == [[1, 2, 3]]
        assert offsets(outlet) == [1, 2, 3]


async def test_what_arrives_during_a_commit_is_committed_together() -> None:
    async with a_world() as world:
        world.log.gate = trio.Event()
        for _ in range(10):
            world.broker.submit(publishes(1))
            await wait_all_tasks_blocked()
        world.log.gate.set()
        await wait_all_tasks_blocked()
        assert world.log.batches == [1, 9]


async def test_those_who_publish_as_soon_as_they_are_answered_come_to_be_one_crowd() -> None:
    async with a_world() as world:

        async def publish_again() -> None:
            await trio.lowlevel.checkpoint()  # as long as it takes to read a socket
            if len(world.log.batches) < 5:
                world.broker.submit(publishes(1, settle=answered))

        def answered(submission: Submission) -> None:
            world.nursery.start_soon(publish_again)

        world.log.gate = trio.Event()
        for count in (1, 2):
            for _ in range(count):
                world.broker.submit(publishes(1, settle=answered))
            await wait_all_tasks_blocked()
        world.log.gate.set()
        await wait_all_tasks_blocked()
        assert world.log.batches == [1, 3, 3, 3, 3]


async def test_a_batch_is_bounded_in_messages_and_bytes() -> None:
    flow = Flow()
    async with a_world(batch_messages_max=5) as world:
        for _ in range(4):
            world.broker.submit(publishes(3, flow=flow))
        await wait_all_tasks_blocked()
        assert world.log.batches == [2, 2]
    async with a_world(batch_bytes_max=1000) as world:
        for _ in range(4):
            world.broker.submit(publishes(3))
        await wait_all_tasks_blocked()
        assert world.log.batches == [2, 2]


async def test_acknowledgements_come_before_the_deliveries_of_their_batch() -> None:
    async with a_world() as world:
        outlet, _ = await world.subscriber()
        world.broker.submit(publishes(2, settle=lambda submission: outlet.taken.append(b'{"op":"acknowledged"}\n')))
        await wait_all_tasks_blocked()
        assert [json.loads(line)["op"] for line in outlet.lines()] == ["ok", "acknowledged", "message", "message"]


async def test_what_damage_keeps_from_being_stored_is_refused_and_nothing_else_of_its_batch() -> None:
    async with a_world() as world:
        append = world.log.append

        async def damaged(batch: list[Submission]) -> list[Run]:
            items = [item for submission in batch for item in submission.items]
            if any(type(item) is Publish and item.channel == "damaged" for item in items):
                raise LogDamaged("the head of damaged is damaged")
            return await append(batch)

        world.log.append = damaged  # type: ignore[method-assign,assignment]
        outlet, _ = await world.subscriber("b")
        settled: list[Submission] = []
        for channel in ("a", "damaged", "b", "b", "damaged"):
            world.broker.submit(publishes(1, channel, settle=settled.append))
        await wait_all_tasks_blocked()
        verdicts = [verdict for submission in settled for verdict in submission.verdicts]
        assert [getattr(verdict, "code", verdict) for verdict in verdicts] == [1, "unavailable", 1, 2, "unavailable"]
        assert offsets(outlet) == [1, 2]


async def test_a_batch_that_could_not_be_stored_is_refused_and_the_next_one_is_stored() -> None:
    async with a_world() as world:
        outlet, _ = await world.subscriber()
        settled: list[Submission] = []
        world.log.failure = LogUnavailable("disk full")
        world.broker.submit(publishes(2, settle=settled.append))
        await wait_all_tasks_blocked()
        world.broker.submit(publishes(2, settle=settled.append))
        await wait_all_tasks_blocked()
        first, second = settled
        codes = [verdict.code for verdict in first.verdicts if isinstance(verdict, WireError)]
        assert codes == ["unavailable", "unavailable"]
        assert second.verdicts == [1, 2]
        assert offsets(outlet) == [1, 2]


async def test_nothing_is_refused_for_good_by_a_log_that_cannot_settle_it() -> None:
    async with a_world() as world:
        settled: list[Submission] = []
        submission = Submission(settled.append, producer=PRODUCER)
        for refused in (bad_request(seq=1), bad_request(), Refused(WireError("fenced", "no"), seq=2)):
            submission.add(refused, 10)
        world.log.failure = LogUnavailable("disk full")
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        codes = [verdict.code for verdict in settled[0].verdicts if isinstance(verdict, WireError)]
        assert codes == ["unavailable", "bad_request", "fenced"]


async def test_a_log_that_refuses_is_said_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    async with a_world() as world:
        for problem in ("disk full", "disk full", "locked", None, None):
            world.log.failure = None if problem is None else LogUnavailable(problem)
            world.broker.submit(publishes(1))
            await wait_all_tasks_blocked()
    assert [record.getMessage() for record in caplog.records] == [
        "publishes are refused: disk full",
        "publishes are refused: locked",
        "publishes are refused no longer",
    ]


async def test_an_unknown_outcome_stops_the_broker_and_no_verdict_is_sent() -> None:
    settled: list[Submission] = []

    async def publish_to_a_broken_disk() -> None:
        async with a_world() as world:
            world.log.failure = OSError("fsync failed")
            world.broker.submit(publishes(1, settle=settled.append))
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await publish_to_a_broken_disk()
    assert caught.group_contains(OSError, match="fsync failed")
    assert settled == []


async def test_who_waits_for_what_is_done_between_two_batches_is_told_when_that_ends_the_broker_and_later() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("of an unknown outcome")

    world_ended = False
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError), flatten_subgroups=True):
        async with trio.open_nursery() as outside, a_world() as world:

            async def wait_for_it() -> None:
                nonlocal world_ended
                with trio.CancelScope(shield=True), trio.fail_after(10):
                    for _ in "when it ends", "and from then on":
                        with pytest.raises(LogUnavailable):
                            await world.broker.between_batches(fail)
                world_ended = True

            outside.start_soon(wait_for_it)
            await trio.sleep_forever()
    assert world_ended


async def test_publishers_wait_while_the_queue_is_full_unless_nothing_in_it_is_theirs() -> None:
    async with a_world(queue_bytes_max=1000) as world:
        world.log.gate = trio.Event()
        flood = publishes(100)
        world.broker.submit(flood)
        went_on: list[str] = []

        async def publisher(name: str, flow: Flow) -> None:
            await world.broker.room(flow)
            went_on.append(name)

        world.nursery.start_soon(publisher, "who floods", flood.flow)
        world.nursery.start_soon(publisher, "somebody else", Flow())
        await wait_all_tasks_blocked()
        assert went_on == ["somebody else"]
        world.log.gate.set()
        await wait_all_tasks_blocked()
        assert went_on == ["somebody else", "who floods"]


async def test_who_publishes_once_in_a_while_is_in_the_next_batch_however_many_flood() -> None:
    async with a_world(batch_messages_max=100) as world:
        settled: list[Submission] = []
        for _ in range(20):
            flow = Flow()
            for _ in range(20):
                world.broker.submit(publishes(100, settle=settled.append, flow=flow))
        world.log.gate = trio.Event()
        await wait_all_tasks_blocked()  # the first batch is on its way to the disk
        polite = publishes(1, settle=settled.append)
        world.broker.submit(polite)
        world.log.gate.set()
        await world.broker.settled()
        assert len(settled) == 401
        assert settled.index(polite) <= 2


@pytest.mark.parametrize(("levels", "most"), [(1, 19), (50, 2)])
async def test_of_patches_that_are_nested_deep_a_batch_has_few(levels: int, most: int) -> None:
    patch = Raw(b'{"a":' * levels + b"1" + b"}" * levels)
    async with a_world() as world:
        world.log.gate = trio.Event()
        for _ in range(20):
            submission = Submission(lambda submission: None)
            submission.add(Publish(channel="lobby", key="k", merge=True, data=patch), len(patch))
            world.broker.submit(submission)
            await wait_all_tasks_blocked()  # the first is a batch by itself
        world.log.gate.set()
        await world.broker.settled()
        assert max(world.log.batches) == most


async def test_the_program_around_the_server_is_one_publisher_however_many_tasks_of_it_publish() -> None:
    async with a_world(batch_messages_max=1) as world:
        told: list[Verdict] = []

        async def publish() -> None:
            told.append(await world.broker.publish(Publish(channel="program", data=Raw(b"1"))))

        world.log.gate = trio.Event()
        for _ in range(50):
            world.nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        flow = Flow()
        clients = [publishes(1, settle=lambda _: told.append(0), flow=flow) for _ in range(3)]
        for submission in clients:
            world.broker.submit(submission)
        world.log.gate.set()
        await world.broker.settled()
        assert told.index(0) <= 3
        assert [place for place, offset in enumerate(told) if offset == 0][-1] <= 8


async def test_everything_submitted_before_is_settled_though_later_ones_overtook_it() -> None:
    async with a_world(batch_messages_max=1) as world:
        world.log.gate = trio.Event()
        flow = Flow()
        early = [publishes(1, flow=flow) for _ in range(3)]
        for submission in early:
            world.broker.submit(submission)
        await wait_all_tasks_blocked()
        told: list[str] = []

        async def wait() -> None:
            await world.broker.settled()
            told.extend("settled" for submission in early if submission.verdicts)

        world.nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for _ in range(3):  # each of another flow: they go first
            world.broker.submit(publishes(1))
        world.log.gate.set()
        await wait_all_tasks_blocked()
        assert told == ["settled"] * 3


async def test_a_publisher_is_not_read_from_while_the_queue_is_full() -> None:
    async with a_world(queue_bytes_max=10_000) as world:
        world.log.gate = trio.Event()
        ours, theirs = lockstep_stream_pair()
        door = TcpDoor(world.broker, Registry(10), world.settings, Hooks())
        world.nursery.start_soon(door.handle, theirs, "memory")
        sent = 0

        async def publish_for_ever() -> None:
            nonlocal sent
            while True:
                await ours.send_all(b'{"op":"publish","channel":"lobby","data":1}\n')
                sent += 1

        world.nursery.start_soon(publish_for_ever)
        await wait_all_tasks_blocked()
        assert 0 < sent < 10_000 / ITEM_OVERHEAD_BYTES + 3
        before = sent
        world.log.gate.set()
        while sent < 10 * before:
            await trio.lowlevel.checkpoint()


async def test_who_is_accepted_just_before_the_goodbyes_gets_one_too(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        registry = Registry(10)
        door = TcpDoor(world.broker, registry, world.settings, Hooks())
        streams = [memory_stream_pair() for _ in range(2)]
        for number, (ours, theirs) in enumerate(streams):
            world.nursery.start_soon(door.handle, theirs, "memory")
            await ours.send_all(b'{"op":"ping","id":1}\n')
            if number == 0:
                assert await ours.receive_some() == b'{"op":"pong","id":1}\n'
                await registry.part()
        for ours, _ in streams:
            said = b"".join([chunk async for chunk in ours])
            assert said == b"" or json.loads(said)["op"] == "goodbye"
        with trio.fail_after(PATIENCE_S):
            while registry.sessions():
                await registry.left()


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_others_have_a_turn_while_much_is_delivered_in_however_many_channels(
    monkeypatch: pytest.MonkeyPatch, ephemeral: bool
) -> None:
    monkeypatch.setattr(broker, "YIELD_EVERY", 10)
    async with a_world() as world:
        names = [f"room{number}" for number in range(30)]
        outlets = [(await world.subscriber(name))[0] for name in names for _ in range(3)]
        batch = Submission(lambda _: None)
        for name in names:
            for _ in range(2):
                batch.add(Publish(channel=name, data=Raw(b"1"), ephemeral=ephemeral), 1)
        world.broker.submit(batch)
        turns = 0
        while not outlets[-1].taken[1:]:
            await trio.lowlevel.checkpoint()
            turns += bool(outlets[0].taken[1:])
        assert turns >= 5
        await wait_all_tasks_blocked()
        messages = [[json.loads(line) for line in outlet.lines()[1:]] for outlet in outlets]
        assert [[message.get("offset") for message in taken] for taken in messages] == [
            [None, None] if ephemeral else [1, 2]
        ] * len(outlets)
        assert all(len(outlet.taken) == 2 for outlet in outlets), "what belongs together is sent at once"


async def test_an_ephemeral_message_goes_to_the_live_though_the_log_takes_nothing() -> None:
    async with a_world() as world:
        outlet, _ = await world.subscriber()
        world.log.failure = LogUnavailable("the disk is full")
        submission = publishes(1)
        submission.add(Publish(channel="lobby", data=Raw(b'"here"'), ephemeral=True), 20)
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        refused, delivered = submission.verdicts
        assert isinstance(refused, WireError)
        assert (refused.code, delivered) == ("unavailable", 0)
        assert json.loads(outlet.lines()[-1])["data"] == "here"


async def test_an_ephemeral_message_goes_to_the_live_and_not_to_the_log() -> None:
    async with a_world() as world:
        outlet, _ = await world.subscriber()
        slow, _ = await world.subscriber()
        slow.slow = True
        settled: list[Submission] = []
        submission = Submission(settled.append, sender="ann")
        submission.add(Publish(channel="lobby", data=Raw(b'"here"'), ephemeral=True), 20)
        world.broker.submit(submission)
        await wait_all_tasks_blocked()
        assert settled[0].verdicts == [0]
        assert json.loads(outlet.lines()[-1]) == {
            "op": "message", "channel": "lobby", "time": 1, "from": "ann", "data": "here",
        }  # fmt: skip
        assert len(slow.lines()) == 1
        assert world.log.batches == []


async def test_what_a_stopping_server_refuses_is_not_remembered_under_its_idempotency_key() -> None:
    async with a_world() as world:

        async def publish() -> Verdict:
            submission = Submission(lambda submission: None, once=Once(b"id", b"fingerprint"))
            submission.add(Publish(channel="lobby", data=Raw(b"1")), 1)
            world.broker.submit(submission)
            await world.broker.settled()
            return submission.verdicts[0]

        world.broker.draining = True
        refusal = await publish()
        assert isinstance(refusal, WireError)
        assert refusal.code == "draining"
        world.broker.draining = False
        assert await publish() == 1
        assert await publish() == Duplicate(1)


@pytest.mark.parametrize("count", [1, 3])
async def test_while_draining_publishes_are_refused_and_earlier_ones_are_stored(count: int) -> None:
    async with a_world() as world:
        world.log.gate = trio.Event()
        settled: list[Submission] = []
        world.broker.submit(publishes(1, settle=settled.append))
        await wait_all_tasks_blocked()
        world.broker.draining = True
        world.broker.submit(publishes(count, settle=settled.append))
        world.log.gate.set()
        await world.broker.settled()
        assert settled[0].verdicts == [1]
        assert len(settled[1].verdicts) == count
        for refusal in settled[1].verdicts:
            assert isinstance(refusal, WireError)
            assert (refusal.code, refusal.retry) == ("draining", True)


async def test_a_channel_is_forgotten_when_the_last_subscriber_leaves() -> None:
    async with a_world() as world:
        _, first = await world.subscriber()
        _, second = await world.subscriber()
        first.close(may_return=False)
        assert list(world.broker._channels) == ["lobby"]
        second.close(may_return=False)
        assert list(world.broker._channels) == []
