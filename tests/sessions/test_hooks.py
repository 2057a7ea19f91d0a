"""Hooks: how they are registered, what they refuse, and what their bugs and deadlines cost."""

import functools
import timeit
from typing import Any

import pytest
import trio
from msgspec import UNSET
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hook_helpers import DEADLINE_S, a_client, a_publish, logged_bug, refusal, some_hooks
from trisync.sessions.hook_requests import REFUSE_CODES, Client, PublishRequest, Refuse, SubscribeRequest
from trisync.sessions.hooks import CHANNELS_REMEMBERED, Hooks
from trisync.storage.log import Refused
from trisync.wire.errors import WireError
from trisync.wire.protocol import REPLY_HEADROOM_BYTES

# Registering


async def test_a_decorated_function_stays_what_it_is() -> None:
    hooks = some_hooks()

    async def judge(publish: PublishRequest) -> None: ...

    async def allow(subscribe: SubscribeRequest) -> None: ...

    async def greet(client: Client) -> None: ...

    assert hooks.on_publish(judge) is judge
    assert hooks.on_publish("chat.*")(judge) is judge
    assert hooks.on_publish()(judge) is judge
    assert hooks.on_subscribe(allow) is allow
    assert hooks.on_subscribe("chat.*")(allow) is allow
    assert hooks.on_connect(greet) is greet
    assert hooks.on_disconnect(greet) is greet


def test_what_is_no_async_function_is_no_hook() -> None:
    hooks = some_hooks()

    def plain(about: object) -> None: ...

    async def stream(about: object) -> Any:
        yield about

    for wrong in (plain, stream, 5, None, Client):
        what: Any = wrong
        for register in (hooks.on_publish, hooks.on_publish("chat.*"), hooks.on_subscribe, hooks.on_subscribe("x")):
            with pytest.raises(TypeError, match="a hook is an async function"):
                register(what)
        for tell in (hooks.on_connect, hooks.on_disconnect):
            with pytest.raises(TypeError, match="a hook is an async function"):
                tell(what)
    pattern: Any = "chat.*"
    with pytest.raises(TypeError, match="a hook is an async function"):
        hooks.on_connect(pattern)
    assert [hooks.any_publish, hooks.any_subscribe, hooks.any_connect, hooks.any_disconnect] == [False] * 4


async def test_methods_partials_and_objects_that_are_called_with_await_are_hooks_too() -> None:
    hooks = some_hooks()
    seen: list[str] = []

    class Filter:
        async def judge(self, publish: PublishRequest) -> None:
            seen.append("method")

        async def __call__(self, publish: PublishRequest) -> None:
            seen.append("object")

    async def judge(word: str, publish: PublishRequest) -> None:
        seen.append(word)

    hooks.on_publish(Filter().judge)
    hooks.on_publish(Filter())
    hooks.on_publish(functools.partial(judge, "partial"))
    await hooks.judge_publish(a_client(), a_publish())
    assert seen == ["method", "object", "partial"]


@pytest.mark.parametrize("pattern", ["chat room", "chät", "x" * 201, "a\n*"])
def test_what_can_match_no_channel_is_no_pattern(pattern: str) -> None:
    hooks = some_hooks()
    with pytest.raises(ValueError, match="is no pattern of channel names"):
        hooks.on_publish(pattern)
    with pytest.raises(ValueError, match="is no pattern of channel names"):
        hooks.on_subscribe(pattern)


async def test_a_server_knows_which_kinds_of_hooks_it_has() -> None:
    async def hook(about: object) -> None: ...

    def kinds(hooks: Hooks) -> tuple[bool, ...]:
        return hooks.any_publish, hooks.any_subscribe, hooks.any_connect, hooks.any_disconnect

    assert kinds(Hooks()) == (False, False, False, False)
    for place, name in enumerate(["on_publish", "on_subscribe", "on_connect", "on_disconnect"]):
        hooks = Hooks()
        getattr(hooks, name)(hook)
        assert kinds(hooks) == tuple(place == other for other in range(4))
    for place, name in enumerate(["on_publish", "on_subscribe"]):
        hooks = Hooks()
        getattr(hooks, name)("chat.*")(hook)
        assert kinds(hooks) == tuple(place == other for other in range(4))


@pytest.mark.parametrize("kind", ["publish", "subscribe"])
def test_a_channel_has_the_hooks_whose_patterns_match_in_the_order_of_registration(kind: str) -> None:
    hooks = some_hooks()
    register, find = getattr(hooks, f"on_{kind}"), getattr(hooks, f"for_{kind}")

    async def first(about: object) -> None: ...

    async def second(about: object) -> None: ...

    async def third(about: object) -> None: ...

    register("chat.*")(first)
    register(second)
    register("*.a")(third)
    assert find("chat.a") == (first, second, third)
    assert find("chat.b") == (first, second)
    assert find("news") == (second,)
    register("news")(first)
    assert find("news") == (second, first)  # also for a channel that was asked about before
    other = {"publish": hooks.for_subscribe, "subscribe": hooks.for_publish}[kind]
    assert other("news") == ()


async def test_finding_the_hooks_of_a_channel_seen_before_is_cheap_and_bounded() -> None:
    hooks = some_hooks()

    @hooks.on_publish("chat.*")
    async def judge(publish: PublishRequest) -> None: ...

    found = hooks.for_publish("chat.a")
    assert hooks.for_publish("chat.a") is found
    # Measured at 0.15 µs; the bound is for slow and busy machines.
    assert min(timeit.repeat(lambda: hooks.for_publish("chat.a"), number=1000, repeat=5)) < 0.001
    for number in range(CHANNELS_REMEMBERED):
        hooks.for_publish(f"chat.{number}")
    assert hooks.for_publish("chat.a") is not found


# Refusing


def test_a_hook_refuses_with_certain_codes_only() -> None:
    assert Refuse("no").code == "forbidden"
    assert [Refuse("no", code).code for code in REFUSE_CODES] == ["forbidden", "bad_request", "limit", "unavailable"]
    for code in ("internal", "draining", "too_large", "nonsense", ""):
        with pytest.raises(ValueError, match="forbidden, bad_request, limit, unavailable, not"):
            Refuse("no", code)


@pytest.mark.parametrize("message", ["\x01" * 10_000, "\udcff" * 10_000, "é" * 10_000])
def test_every_refusal_can_be_sent(message: str) -> None:
    error = WireError("forbidden", Refuse(message).message)
    assert len(error.encode("\x01" * 64)) < REPLY_HEADROOM_BYTES


@pytest.mark.parametrize("code", REFUSE_CODES)
async def test_a_refused_publish_keeps_its_id_and_its_seq(code: str) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        raise Refuse("no advertising here", code)

    judged = await hooks.judge_publish(a_client(), a_publish(id="m1", seq=7))
    assert isinstance(judged, Refused)
    assert (judged.id, judged.seq) == ("m1", 7)
    assert (judged.error.code, judged.error.message, judged.error.closes) == (code, "no advertising here", False)
    bare = await hooks.judge_publish(a_client(), a_publish())
    assert isinstance(bare, Refused)
    assert (bare.id, bare.seq) == (UNSET, UNSET)


async def test_after_a_refusal_no_further_hook_is_asked() -> None:
    hooks = some_hooks()
    asked: list[str] = []

    @hooks.on_publish
    async def first(publish: PublishRequest) -> None:
        asked.append("first")

    @hooks.on_publish
    async def second(publish: PublishRequest) -> None:
        asked.append("second")
        raise Refuse("no")

    @hooks.on_publish
    async def third(publish: PublishRequest) -> None:
        asked.append("third")

    await refusal(hooks)
    assert asked == ["first", "second"]


async def test_a_hook_may_refuse_from_inside_a_nursery() -> None:
    hooks = some_hooks()

    async def look_up() -> None:
        raise Refuse("not you", "limit")

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as inner:
                outer.start_soon(trio.sleep_forever)
                inner.start_soon(look_up)

    error = await refusal(hooks)
    assert (error.code, error.message) == ("limit", "not you")


@pytest.mark.parametrize(
    "raised",
    [
        [Refuse("not you"), ValueError("oops")],
        [Refuse("not you"), Refuse("nor you")],
        [WireError("draining", "the server is stopping"), ValueError("oops")],
    ],
)
async def test_what_is_no_bug_by_itself_is_one_where_it_comes_with_something_else(
    raised: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        raise ExceptionGroup("both", raised)

    logged_bug(await refusal(hooks), caplog)


# Bugs and deadlines


async def test_a_hook_that_raises_refuses_one_publish_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def broken(publish: PublishRequest) -> None:
        if publish.data["text"] == "hi":
            raise KeyError("secret")

    judged = await hooks.judge_publish(a_client(), a_publish(id=1, seq=2))
    assert isinstance(judged, Refused)
    assert (judged.id, judged.seq, judged.error.closes) == (1, 2, False)
    assert "secret" not in judged.error.message
    record = logged_bug(judged.error, caplog)
    assert "broken" in record.getMessage()
    assert "192.0.2.7:4000" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    fine = a_publish(b'{"text":"ho"}')
    assert await hooks.judge_publish(a_client(), fine) is fine


async def test_a_wire_error_out_of_a_hook_is_a_bug_too(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        raise WireError("fenced", "that is not a hook's business")

    logged_bug(await refusal(hooks), caplog)


async def test_a_hook_has_its_deadline_and_no_more(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()
    asked: list[str] = []

    @hooks.on_publish("chat.*")
    async def stuck(publish: PublishRequest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    @hooks.on_publish("chat.*")
    async def late(publish: PublishRequest) -> None:
        asked.append("late")

    began = trio.current_time()
    error = await refusal(hooks)
    assert trio.current_time() - began == pytest.approx(DEADLINE_S)
    assert not error.closes
    message = logged_bug(error, caplog).getMessage()
    assert "stuck took longer than 3 s" in message
    assert asked == []


async def test_a_hook_that_cannot_be_cut_short_is_held_to_its_deadline_too(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish("chat.*")
    async def ask_the_database(publish: PublishRequest) -> None:
        with trio.CancelScope(shield=True):  # as a thread is awaited
            await trio.sleep(DEADLINE_S + 1)

    assert "ask_the_database took longer than 3 s" in logged_bug(await refusal(hooks), caplog).getMessage()


async def test_each_hook_has_the_deadline_for_itself(autojump_clock: MockClock) -> None:
    hooks = some_hooks()

    async def slow(publish: PublishRequest) -> None:
        await trio.sleep(DEADLINE_S * 0.9)

    hooks.on_publish(slow)
    hooks.on_publish(slow)
    request = a_publish()
    assert await hooks.judge_publish(a_client(), request) is request


async def test_a_hooks_own_timeout_is_its_bug_and_not_the_servers_deadline(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def impatient(publish: PublishRequest) -> None:
        with trio.fail_after(1):
            await trio.sleep_forever()

    record = logged_bug(await refusal(hooks), caplog)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], trio.TooSlowError)


async def test_cancellation_from_outside_goes_through_a_hook(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def wait(publish: PublishRequest) -> None:
        await trio.sleep_forever()

    reached = False
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await hooks.judge_publish(a_client(), a_publish())
            reached = True
    assert scope.cancelled_caught
    assert not reached
    assert not caplog.records


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_hook_that_fails_while_it_is_cancelled_is_logged_and_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = some_hooks()

    async def clumsy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clumsy)
            nursery.start_soon(trio.sleep_forever)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await hooks.judge_publish(a_client(), a_publish())
    assert scope.cancelled_caught
    (record,) = caplog.records
    assert "judge" in record.getMessage()


async def test_what_is_meant_to_end_the_program_goes_through_a_hook(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def stop(publish: PublishRequest) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await hooks.judge_publish(a_client(), a_publish())
    assert not caplog.records
