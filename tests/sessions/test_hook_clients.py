"""Hooks: what they are asked of subscriptions, and of clients that come and go."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.hook_helpers import DEADLINE_S, a_client, logged_bug, refusal, some_hooks
from trisync.sessions.hook_requests import Client, PublishRequest, Refuse, SubscribeRequest
from trisync.sessions.hooks import Hooks
from trisync.settings import Settings
from trisync.wire.errors import WireError
from trisync.wire.protocol import GetPresence, GetState, History, Subscribe

# Subscribing


async def test_a_hook_sees_what_is_subscribed_to_and_can_change_nothing() -> None:
    hooks = some_hooks()
    client = a_client()
    seen: list[object] = []

    @hooks.on_subscribe
    async def look(subscribe: SubscribeRequest) -> None:
        fields = ("client", "channel", "since", "last", "state", "presence")
        seen.append([getattr(subscribe, field) for field in fields])
        for field in fields:
            with pytest.raises(AttributeError):
                setattr(subscribe, field, None)

    await hooks.judge_reading(client, Subscribe(channel="a", since=0, state=True))
    await hooks.judge_reading(client, Subscribe(channel="b", last=5, presence=True))
    assert seen == [[client, "a", 0, None, True, False], [client, "b", None, 5, False, True]]


async def test_a_hook_sees_any_request_that_reads_a_channel_as_a_subscription_to_the_same() -> None:
    hooks = some_hooks()
    seen: list[object] = []

    @hooks.on_subscribe
    async def look(asked: SubscribeRequest) -> None:
        seen.append((asked.channel, asked.since, asked.last, asked.state, asked.presence))

    for request in (
        History(channel="a", limit=5),
        History(channel="b", since=3, limit=5),
        GetState(channel="c"),
        GetPresence(channel="d"),
    ):
        await hooks.judge_reading(a_client(), request)
    assert seen == [
        ("a", None, 5, False, False),
        ("b", 3, None, False, False),
        ("c", None, None, True, False),
        ("d", None, None, False, True),
    ]


async def test_a_hook_refuses_a_subscription(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()
    asked: list[str] = []

    @hooks.on_subscribe("private.*")
    async def may_read(subscribe: SubscribeRequest) -> None:
        if subscribe.client.name is None:
            raise Refuse("say who you are")

    @hooks.on_subscribe
    async def late(subscribe: SubscribeRequest) -> None:
        asked.append(subscribe.channel)

    with pytest.raises(WireError, match="say who you are") as caught:
        await hooks.judge_reading(a_client(), Subscribe(channel="private.a"))
    assert (caught.value.code, caught.value.closes) == ("forbidden", False)
    await hooks.judge_reading(a_client(), Subscribe(channel="public"))
    named = a_client()
    named.name = "alice"
    await hooks.judge_reading(named, Subscribe(channel="private.b"))
    assert asked == ["public", "private.b"]
    assert not caplog.records


async def test_a_bug_or_a_deadline_refuses_a_subscription_and_keeps_the_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_subscribe("a")
    async def broken(subscribe: SubscribeRequest) -> None:
        raise ZeroDivisionError

    @hooks.on_subscribe("b")
    async def stuck(subscribe: SubscribeRequest) -> None:
        await trio.sleep_forever()

    for channel in ("a", "b"):
        caplog.clear()
        with pytest.raises(WireError) as caught:
            await hooks.judge_reading(a_client(), Subscribe(channel=channel))
        assert not caught.value.closes
        logged_bug(caught.value, caplog)


# Coming and going


async def test_a_hook_names_a_client_and_notes_what_it_likes() -> None:
    hooks = some_hooks()

    @hooks.on_connect
    async def greet(client: Client) -> None:
        client.name = "alice"
        client.data["since"] = 5

    client = a_client()
    assert (client.session, client.door, client.name, client.data, client.ended) == ("51f0", "tcp", None, {}, None)
    await hooks.connected(client)
    assert (client.name, client.data) == ("alice", {"since": 5})
    assert a_client().data == {}


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\x85", "\ud800", 5, b"alice"])
def test_a_client_has_no_name_that_hello_would_not_take(name: Any) -> None:
    client = a_client()
    client.name = "alice"
    with pytest.raises(ValueError, match="is no name"):
        client.name = name
    assert client.name == "alice"
    client.name = None
    assert client.name is None


async def test_a_refused_client_is_told_and_the_connection_closed() -> None:
    hooks = some_hooks()
    asked: list[str] = []

    @hooks.on_connect
    async def guard(client: Client) -> None:
        raise Refuse("the house is full", "unavailable")

    @hooks.on_connect
    async def late(client: Client) -> None:
        asked.append("late")

    with pytest.raises(WireError, match="the house is full") as caught:
        await hooks.connected(a_client())
    assert (caught.value.code, caught.value.closes) == ("unavailable", True)
    assert asked == []


async def test_a_bug_or_a_deadline_at_connecting_closes_the_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(client: Client) -> None:
        raise ZeroDivisionError

    async def stuck(client: Client) -> None:
        await trio.sleep_forever()

    for hook in (broken, stuck):
        caplog.clear()
        hooks = some_hooks()
        hooks.on_connect(hook)
        with pytest.raises(WireError) as caught:
            await hooks.connected(a_client())
        assert caught.value.closes
        logged_bug(caught.value, caplog)


async def test_all_hooks_are_told_that_a_client_has_gone_whatever_the_others_do(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()
    told: list[str | None] = []

    @hooks.on_disconnect
    async def broken(client: Client) -> None:
        raise ZeroDivisionError

    @hooks.on_disconnect
    async def refusing(client: Client) -> None:
        raise Refuse("stay")

    @hooks.on_disconnect
    async def stuck(client: Client) -> None:
        await trio.sleep_forever()

    @hooks.on_disconnect
    async def left(client: Client) -> None:
        told.append(client.ended)

    client = a_client()
    client.ended = "the client hung up"
    await hooks.disconnected(client)
    assert told == ["the client hung up"]
    assert ["broken" in caplog.records[0].getMessage(), "stuck" in caplog.records[1].getMessage()] == [True, True]
    assert len(caplog.records) == 2


async def test_a_cancelled_connection_still_tells_its_hooks_each_within_its_deadline(
    autojump_clock: MockClock,
) -> None:
    hooks = some_hooks()
    told: list[str] = []

    @hooks.on_disconnect
    async def stuck(client: Client) -> None:
        await trio.sleep_forever()

    @hooks.on_disconnect
    async def left(client: Client) -> None:
        await trio.sleep(1)
        told.append("left")

    began = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        await hooks.disconnected(a_client())
        told.append("done")
    assert told == ["left", "done"]
    assert trio.current_time() - began == pytest.approx(DEADLINE_S + 1)


async def test_hooks_of_a_kind_run_one_after_the_other(autojump_clock: MockClock) -> None:
    for register, run in (("on_connect", "connected"), ("on_disconnect", "disconnected")):
        hooks = some_hooks()
        steps: list[str] = []

        async def first(client: Client, steps: list[str] = steps) -> None:
            await trio.sleep(1)
            steps.append("first")

        async def second(client: Client, steps: list[str] = steps) -> None:
            steps.append("second")

        getattr(hooks, register)(first)
        getattr(hooks, register)(second)
        await getattr(hooks, run)(a_client())
        assert steps == ["first", "second"]


async def test_hooks_have_a_deadline_before_anybody_sets_one(autojump_clock: MockClock) -> None:
    hooks = Hooks()

    @hooks.on_publish
    async def stuck(publish: PublishRequest) -> None:
        await trio.sleep_forever()

    began = trio.current_time()
    assert (await refusal(hooks)).code == "internal"
    assert trio.current_time() - began == pytest.approx(Settings().hook_s)
