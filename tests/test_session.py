"""A session: what it can handle there and then, and what has to wait for something."""

import json

from trio.testing import memory_stream_pair

from tests.broker_world import World, a_world
from trisync.connection import Connection
from trisync.framing import Framing
from trisync.hook_requests import PublishRequest
from trisync.hooks import Hooks
from trisync.session import SUBMISSION_BYTES_MAX, Session


def a_session(world: World, hooks: Hooks) -> Session:
    stream, _ = memory_stream_pair()
    session = Session(world.broker, Connection(stream, world.settings, "memory"), world.settings, hooks)
    session.speak(Framing.LINES)
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


async def test_no_more_is_decided_together_than_a_submission_may_hold() -> None:
    async with a_world() as world:
        session = a_session(world, Hooks())
        large = publish(text="x" * (SUBMISSION_BYTES_MAX // 4))
        assert session.receive_at_once([large] * 6) == [large] * 2


async def test_a_hook_on_some_channels_leaves_the_others_publishes_as_fast_as_they_were() -> None:
    hooks = Hooks()

    @hooks.on_publish("chat.*")
    async def judge(publish: PublishRequest) -> None:
        pass

    async with a_world() as world:
        session = a_session(world, hooks)
        asked = publish("chat.a")
        assert session.receive_at_once([publish("lobby"), asked]) == [asked]
