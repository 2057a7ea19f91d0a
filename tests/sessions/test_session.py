"""A session: what it can handle there and then, and what has to wait for something."""

import json
from random import Random

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from tests.broker_world import World, a_world
from tests.turns import counted_turns
from trisync.sessions.connection import Connection
from trisync.sessions.console_session import ConsoleSession
from trisync.sessions.hook_requests import PublishRequest, Refuse, SubscribeRequest
from trisync.sessions.hooks import Hooks
from trisync.sessions.session import SUBMISSION_BYTES_MAX, TURN_REQUESTS, Session
from trisync.storage.log import CONDITIONAL_BYTES
from trisync.wire.framing import LINES
from trisync.wire.protocol import TOGETHER_MIN


def a_session(world: World, hooks: Hooks) -> Session:
    stream, _ = memory_stream_pair()
    session = Session(world.broker, Connection(stream, world.settings, "memory"), world.settings, hooks)
    session.speak(LINES)
    return session


def publish(channel: str = "lobby", **fields: object) -> bytes:
    return json.dumps({"op": "publish", "channel": channel, "data": 1, **fields}).encode()


async def test_plain_publishes_are_handled_at_once() -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        assert session.receive_at_once([publish(), publish("other", key="k")]) == []
        await world.broker.settled()
        assert [len(world.log.messages[name]) for name in ("lobby", "other")] == [1, 1]


async def test_what_has_to_wait_for_something_is_left_with_all_that_comes_behind_it() -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        for waits in (b'{"op":"ping"}', b"no json", publish(key="k", expect=0), publish(key="k", merge=True)):
            assert session.receive_at_once([publish(), waits, publish()]) == [waits, publish()]
        await world.broker.settled()
        assert len(world.log.messages["lobby"]) == 4


@pytest.mark.parametrize("payload", [b'{"op":"ping"}', b"no json", b'{"op":"presence","channel":"lobby"}'])
async def test_others_have_turns_while_one_client_is_answered_much(payload: bytes) -> None:
    async with a_world() as world, counted_turns() as turns:
        await a_session(world, Hooks()).receive([payload] * 10 * TURN_REQUESTS)
        assert turns() >= 8


@pytest.mark.parametrize("line", [b"said", b"/dance", b""])
async def test_others_have_turns_while_a_person_says_much(line: bytes) -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        console = ConsoleSession(session, session._connection)
        await console.receive([b"/leave", b"/join quiet"])
        async with counted_turns() as turns:
            await console.receive([line] * 10 * TURN_REQUESTS)
            assert turns() >= 8


@pytest.mark.parametrize("one_bad", [False, True])
async def test_many_publishes_are_handled_in_their_order_and_seqs_are_judged(one_bad: bool) -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        payloads = [publish(id=number, n=number) for number in range(2 * TOGETHER_MIN)]
        payloads[TOGETHER_MIN] = b"no json" if one_bad else publish(id=TOGETHER_MIN, seq=1)  # from no producer
        assert session.receive_at_once(payloads) == (payloads[TOGETHER_MIN:] if one_bad else [])
        await world.broker.settled()
        assert len(world.log.messages["lobby"]) == (TOGETHER_MIN if one_bad else 2 * TOGETHER_MIN - 1)
        answers = b"".join(session._connection.outbox._queue or ()).splitlines()
        assert [json.loads(answer)["id"] for answer in answers] == [
            *range(TOGETHER_MIN if one_bad else 2 * TOGETHER_MIN)
        ]


async def test_a_hook_on_some_channels_leaves_the_others_publishes_as_fast_as_they_were() -> None:
    hooks = Hooks()

    @hooks.on_publish("chat.*")
    async def judge(publish: PublishRequest) -> None:
        pass

    async with a_world() as world:
        session = a_session(world, hooks)
        asked = publish("chat.a")
        assert session.receive_at_once([publish("lobby"), asked]) == [asked]


async def test_who_changes_its_name_over_and_over_leaves_others_their_turns() -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        await session.receive([b'{"op":"subscribe","channel":"lobby"}'])
        with trio.testing.assert_checkpoints():
            await session.receive([b'{"op":"hello","name":"another"}'])


async def test_presence_that_nobody_would_be_told_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        asked: list[str] = []

        def members(channel: str, after: str, bytes_max: int) -> tuple[bytes, bool]:
            asked.append(channel)
            return b"[]", False

        monkeypatch.setattr(world.broker.presence, "members", members)
        await session.receive([b'{"op":"presence","channel":"lobby"}'])
        assert asked == []
        await session.receive([b'{"op":"presence","channel":"lobby","id":1}'])
        assert asked == ["lobby"]


async def test_what_was_collected_before_a_refusal_that_has_to_wait_is_submitted_before_a_fence() -> None:
    producer = "p" * 16
    async with a_world(backlog_bytes_max=10) as world:
        session = a_session(world, Hooks())
        await session.receive([json.dumps({"op": "hello", "producer": producer}).encode()])
        session._connection.outbox.write(b"x" * 1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.receive, [publish(key="k", expect=0, seq=1), b'{"op":"subscribe"}'])
            await wait_all_tasks_blocked()
            assert await world.broker.take_producer(producer, lambda: None) == 1
            nursery.cancel_scope.cancel()


async def test_what_was_collected_before_others_have_a_turn_is_submitted_before_a_fence() -> None:
    producer = "p" * 16
    async with a_world() as world:
        session = a_session(world, Hooks())
        await session.receive([json.dumps({"op": "hello", "producer": producer}).encode()])
        world.nursery.start_soon(session.receive, [publish(seq=seq) for seq in range(1, 10 * TURN_REQUESTS)])
        for _ in range(2):  # in one turn of the loop, Trio runs its tasks in either order
            await trio.lowlevel.checkpoint()
        taken_at = await world.broker.take_producer(producer, lambda: None)
        await wait_all_tasks_blocked()
        assert await world.log.settled_seq(producer) == taken_at > 0


async def test_conditional_publishes_that_come_one_by_one_are_not_owed_many_answers(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        world.log.gate = trio.Event()
        with trio.move_on_after(1):
            for _ in range(100):
                await session.receive([publish(key="k", expect=0)])
        assert session._own_flow().unsettled <= SUBMISSION_BYTES_MAX + 2 * CONDITIONAL_BYTES
        world.log.gate.set()


async def test_who_does_not_take_its_answers_has_nothing_more_answered() -> None:
    async with a_world(backlog_bytes_max=10) as world:
        session = a_session(world, Hooks())
        world.nursery.start_soon(session.receive, [b'{"op":"history","channel":"lobby","id":1}'] * 100)
        await wait_all_tasks_blocked()
        assert world.log.reads == 1


async def test_who_does_not_take_the_answers_to_conditional_publishes_has_no_more_of_them_decided() -> None:
    async with a_world(backlog_bytes_max=10) as world:
        session = a_session(world, Hooks())
        world.nursery.start_soon(session.receive, [publish(key="k", expect=0)] * 100)
        await wait_all_tasks_blocked()
        assert len(world.log.batches) == 1


async def test_what_a_person_typed_behind_quit_is_not_said() -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        console = ConsoleSession(session, session._connection)
        await console.receive([b"said", b"/quit", b"not said"])
        await world.broker.settled()
        assert [len(lines) for lines in world.log.messages.values()] == [1]


async def test_what_a_person_typed_who_is_refused_the_first_channel_is_not_said_there() -> None:
    async with a_world() as world:
        hooks = Hooks()

        @hooks.on_subscribe
        async def refuse(subscribe: SubscribeRequest) -> None:
            raise Refuse("for the staff")

        session = a_session(world, hooks)
        console = ConsoleSession(session, session._connection)
        await console.receive([b"not said", b"/set key not_set", b"nor this"])
        await world.broker.settled()
        assert not world.log.messages


async def test_what_a_person_said_is_seen_before_what_they_are_told_behind_it(autojump_clock: MockClock) -> None:
    async with a_world() as world:
        stream, terminal = memory_stream_pair()
        connection = Connection(stream, world.settings, "memory")
        session = Session(world.broker, connection, world.settings, Hooks())
        console = ConsoleSession(session, connection)
        told = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, trio.sleep_forever)
            await console.receive([b"/join lobby", b"one", b"/help", b"two", b"\xff", b"three", b"/quit"])
            with trio.move_on_after(1):
                async for chunk in terminal:
                    told += chunk
        expected = [b": one", b"/join CHANNEL", b": two", b"not UTF-8", b": three", b"Good-bye"]
        places = [told.find(each) for each in expected]
        assert places == sorted(places)
        assert -1 not in places


async def test_what_is_asked_of_a_connection_in_its_last_turn_harms_nobody() -> None:
    """As when a channel is emptied in it, whose subscribers are all to read on."""
    chance = Random(1)
    serving: dict[Connection, None] = {}

    async def nothing() -> None:
        pass

    async def serve(connection: Connection) -> None:
        await connection.serve(trio.lowlevel.checkpoint)
        del serving[connection]

    async def ask_now_and_then(connection: Connection) -> None:
        while connection in serving:
            if chance.random() < 0.2:  # each turn, and it would never end
                connection.start_soon(nothing)
            await trio.lowlevel.checkpoint()

    async with a_world(linger_s=0.01) as world, trio.open_nursery() as nursery:
        for _ in range(100):
            connection = Connection(memory_stream_pair()[0], world.settings, "memory")
            serving[connection] = None
            nursery.start_soon(serve, connection)
            nursery.start_soon(ask_now_and_then, connection)
