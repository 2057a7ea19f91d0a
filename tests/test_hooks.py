"""Hooks: what a program's own functions are asked, what they may change and refuse, and what their bugs cost."""

import functools
import json
import logging
import re
import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from trisync.errors import WireError
from trisync.hook_requests import REFUSE_CODES, Client, PublishRequest, Refuse, SubscribeRequest
from trisync.hooks import CHANNELS_REMEMBERED, DEADLINE_DEFAULT_S, Hooks
from trisync.log import Refused
from trisync.protocol import (
    DEPTH_MAX,
    REPLY_HEADROOM_BYTES,
    BadRequest,
    Publish,
    Subscribe,
    decode_request,
)

DEADLINE_S = 3.0
BYTES_MAX = 1024


def some_hooks() -> Hooks:
    hooks = Hooks()
    hooks.configure(DEADLINE_S, BYTES_MAX)
    return hooks


def a_client() -> Client:
    return Client("51f0", "192.0.2.7:4000 by tcp", "tcp")


def a_publish(data: bytes = b'{"text":"hi"}', channel: str = "chat.a", **fields: Any) -> Publish:
    return Publish(channel=channel, data=Raw(data), **fields)


async def refusal(hooks: Hooks, request: Publish | None = None) -> WireError:
    """The error that a publish is refused with."""
    judged = await hooks.judge_publish(a_client(), request or a_publish())
    assert isinstance(judged, Refused)
    return judged.error


async def data_behind(hooks: Hooks, request: Publish) -> bytes:
    """The data of a publish that passes, as it goes on."""
    judged = await hooks.judge_publish(a_client(), request)
    assert isinstance(judged, Publish)
    return bytes(judged.data)


def reference_in(error: WireError) -> str:
    """The reference that a client is told for a bug."""
    assert (error.code, error.retry) == ("internal", True)
    found = re.search(r"reference ([0-9a-f]{8})\Z", error.message)
    assert found is not None
    return found[1]


def logged_bug(error: WireError, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one record of the log, which bears the reference that the client was told."""
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert reference_in(error) in record.getMessage()
    return record


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


@pytest.mark.parametrize("other", [ValueError("oops"), Refuse("nor you")])
async def test_a_refusal_that_comes_with_something_else_is_a_bug(
    other: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        raise ExceptionGroup("both", [Refuse("not you"), other])

    logged_bug(await refusal(hooks), caplog)


# A message's data


async def test_a_hook_sees_what_is_published_and_can_change_nothing_but_data() -> None:
    hooks = some_hooks()
    client = a_client()
    seen: list[object] = []

    @hooks.on_publish
    async def judge(publish: PublishRequest) -> None:
        fields = ("client", "channel", "key", "expect", "merge", "ephemeral", "data")
        seen.append([getattr(publish, field) for field in fields])
        for field in fields[1:-1]:
            with pytest.raises(AttributeError):
                setattr(publish, field, None)

    await hooks.judge_publish(client, a_publish(b"1", key="k", expect=0, merge=True))
    await hooks.judge_publish(client, a_publish(b"[2]", ephemeral=True))
    assert seen == [
        [client, "chat.a", "k", 0, True, False, 1],
        [client, "chat.a", None, None, False, True, [2]],
    ]


async def test_a_publish_that_no_hook_is_for_goes_on_as_it_is() -> None:
    hooks = some_hooks()

    @hooks.on_publish("news")
    async def judge(publish: PublishRequest) -> None:
        raise Refuse("no")

    request = a_publish()
    assert await hooks.judge_publish(a_client(), request) is request


def in_place(publish: PublishRequest) -> None:
    publish.data["text"] = publish.data["text"].strip()


def by_assignment(publish: PublishRequest) -> None:
    publish.data = {"text": "hi", "n": 1}


@pytest.mark.parametrize("change", [in_place, by_assignment])
async def test_a_hook_changes_the_data_and_nothing_else(change: Callable[[PublishRequest], None]) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def clean(publish: PublishRequest) -> None:
        change(publish)

    request = a_publish(b'{ "text": " hi ", "n": 1 }', id=3, seq=9, key="k", expect=4, merge=True)
    judged = await hooks.judge_publish(a_client(), request)
    assert judged == a_publish(b'{"text":"hi","n":1}', id=3, seq=9, key="k", expect=4, merge=True)
    assert bytes(request.data) == b'{ "text": " hi ", "n": 1 }'


async def test_each_hook_sees_what_the_one_before_it_made() -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def double(publish: PublishRequest) -> None:
        publish.data *= 2

    @hooks.on_publish
    async def count(publish: PublishRequest) -> None:
        publish.data = {"was": publish.data}

    assert await data_behind(hooks, a_publish(b"21")) == b'{"was":42}'


async def test_data_that_is_changed_back_goes_on_as_it_was_sent() -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def add(publish: PublishRequest) -> None:
        publish.data["more"] = 1

    @hooks.on_publish
    async def take_away(publish: PublishRequest) -> None:
        del publish.data["more"]

    request = a_publish(b'{ "x": 1.000000000000000000001 }')
    assert await hooks.judge_publish(a_client(), request) is request


async def test_data_may_become_null_or_false() -> None:
    for value, encoded in [(None, b"null"), (False, b"false"), (0, b"0"), ("", b'""')]:
        hooks = some_hooks()

        @hooks.on_publish
        async def empty(publish: PublishRequest, value: object = value) -> None:
            publish.data = value

        assert await data_behind(hooks, a_publish()) == encoded


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
).flatmap(
    lambda value: st.builds(
        functools.partial(json.dumps, value),
        ensure_ascii=st.booleans(),
        indent=st.none() | st.integers(0, 2),
        separators=st.sampled_from([(",", ":"), (" , ", " : ")]),
    )
)
awkward_texts = st.sampled_from(
    [
        *('{"a":1,"a":2}', "1.10000000000000000000000000000000001", "-0", "-0.0", "1E2", "1e-999", '"\\u0041\\/"'),
        *("123456789012345678901234567890", "[1.0, 1.00]", '"\\ud83d\\ude00"', "\t\r\n[ ]", '"\u2028\x7f"'),
        *("1e999", '"\\ud800"', "9" * 5000),
    ]
)


@settings(deadline=None)
@given(text=json_texts | awkward_texts, times=st.integers(0, 2), put_back=st.booleans())
def test_data_that_a_hook_only_reads_goes_on_byte_for_byte(text: str, times: int, put_back: bool) -> None:
    hooks = some_hooks()
    data = text.encode("utf-8", "surrogatepass")
    try:
        sent = decode_request(b'{"op":"publish","channel":"chat.a","data":' + data + b"}")
    except BadRequest:
        return  # such as a lone surrogate, which no hook sees
    assert isinstance(sent, Publish)
    before = bytes(sent.data)

    async def read(publish: PublishRequest) -> None:
        for _ in range(times):
            try:
                value = publish.data
            except Refuse:
                return  # JSON, but nothing that Python could hold
            if put_back:
                publish.data = value

    hooks.on_publish(read)
    hooks.on_publish(read)
    judged = trio.run(hooks.judge_publish, a_client(), sent)
    assert judged is sent
    assert bytes(sent.data) == before


@pytest.mark.parametrize("data", [b"1e999", b'"\\ud800"', b"9" * 5000])
async def test_json_that_no_python_value_can_hold_is_the_clients_fault_if_a_hook_looks(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish("chat.*")
    async def look(publish: PublishRequest) -> None:
        assert publish.data

    @hooks.on_publish("news")
    async def replace(publish: PublishRequest) -> None:
        publish.data = 1

    error = await refusal(hooks, a_publish(data))
    assert (error.code, error.closes) == ("bad_request", False)
    assert error.message.startswith("data cannot be read: ")
    assert await data_behind(hooks, a_publish(data, "news")) == b"1"
    assert await data_behind(hooks, a_publish(data, "elsewhere")) == data
    assert not caplog.records


def endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize("value", [object(), "\ud800", {(1, 2): 3}, endless(), nested(DEPTH_MAX)])
async def test_data_that_is_no_json_is_the_bug_of_the_hook_that_made_it(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()
    asked: list[str] = []

    @hooks.on_publish
    async def innocent(publish: PublishRequest) -> None:
        assert publish.data == {"text": "hi"}

    @hooks.on_publish
    async def guilty(publish: PublishRequest) -> None:
        publish.data = value

    @hooks.on_publish
    async def late(publish: PublishRequest) -> None:
        asked.append("late")

    error = await refusal(hooks)
    assert not error.closes
    message = logged_bug(error, caplog).getMessage()
    assert "guilty" in message
    assert "innocent" not in message
    assert asked == []


async def test_data_may_be_nested_as_deep_as_a_client_may_nest_it() -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def nest(publish: PublishRequest) -> None:
        publish.data = nested(DEPTH_MAX - 1)

    encoded = await data_behind(hooks, a_publish())
    assert msgspec.json.decode(encoded) == nested(DEPTH_MAX - 1)
    decode_request(b'{"op":"publish","channel":"chat.a","data":' + encoded + b"}")


async def test_not_a_number_is_null() -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def divide(publish: PublishRequest) -> None:
        publish.data = [float("nan"), float("inf")]

    assert await data_behind(hooks, a_publish()) == b"[null,null]"


async def test_what_a_hook_makes_of_data_is_bounded_as_what_clients_send(caplog: pytest.LogCaptureFixture) -> None:
    hooks = some_hooks()

    @hooks.on_publish
    async def pad(publish: PublishRequest) -> None:
        publish.data = "x" * publish.data

    assert len(await data_behind(hooks, a_publish(b"%d" % (BYTES_MAX - 2)))) == BYTES_MAX
    error = await refusal(hooks, a_publish(b"%d" % (BYTES_MAX - 1)))
    assert (error.code, error.closes) == ("too_large", False)
    assert error.details == {"limit": "message_bytes_max", "value": BYTES_MAX}
    assert not caplog.records


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

    await hooks.judge_subscribe(client, Subscribe(channel="a", since=0, state=True))
    await hooks.judge_subscribe(client, Subscribe(channel="b", last=5, presence=True))
    assert seen == [[client, "a", 0, None, True, False], [client, "b", None, 5, False, True]]


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
        await hooks.judge_subscribe(a_client(), Subscribe(channel="private.a"))
    assert (caught.value.code, caught.value.closes) == ("forbidden", False)
    await hooks.judge_subscribe(a_client(), Subscribe(channel="public"))
    named = a_client()
    named.name = "alice"
    await hooks.judge_subscribe(named, Subscribe(channel="private.b"))
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
            await hooks.judge_subscribe(a_client(), Subscribe(channel=channel))
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


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\u2028", "\ud800", 5, b"alice"])
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
    assert trio.current_time() - began == pytest.approx(DEADLINE_DEFAULT_S)
