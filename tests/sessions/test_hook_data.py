"""Hooks: what they see of a publish, and what they may change in it."""

import functools
import json
import re
from collections.abc import Callable

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hook_helpers import BYTES_MAX, a_client, a_publish, data_behind, logged_bug, refusal, some_hooks
from trisync.sessions.hook_requests import PublishRequest, Refuse
from trisync.wire.protocol import DEPTH_MAX, BadRequest, Publish, decode_request


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


async def test_what_a_hook_is_given_is_printed_with_its_data() -> None:
    hooks = some_hooks()
    client = a_client()
    client.name = "ada"
    printed: list[str] = []

    @hooks.on_publish
    async def look(publish: PublishRequest) -> None:
        printed.append(str(publish))
        publish.data = ["hi"]
        printed.append(str(publish))

    await hooks.judge_publish(client, a_publish(b"1e999", key="k"))
    start = "<PublishRequest to 'chat.a', key 'k' by <Client 51f0, 'ada', 192.0.2.7:4000 by tcp>: "
    assert printed == [f"{start}1e999>", f"{start}['hi']>"]


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


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "data is nan: JSON has no number"),
        ({"text": float("-inf")}, "data['text'] is -inf: JSON has no number"),
        ([b"hi"], "data[0] is bytes, which JSON does not have"),
        ({1}, "data is a set, which JSON does not have"),
    ],
)
async def test_what_json_does_not_have_is_told_to_the_hook_where_it_sets_it(
    value: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = some_hooks()

    @hooks.on_publish("chat.*")
    async def careful(publish: PublishRequest) -> None:
        with pytest.raises((TypeError, ValueError), match=re.escape(said)):
            publish.data = value
        assert publish.data == {"text": "hi"}

    @hooks.on_publish("news")
    async def careless(publish: PublishRequest) -> None:
        publish.data["text"] = value

    request = a_publish()
    assert await hooks.judge_publish(a_client(), request) is request
    record = logged_bug(await refusal(hooks, a_publish(channel="news")), caplog)
    assert "careless" in record.getMessage()
    assert record.exc_info
    assert said.partition(" is ")[2] in str(record.exc_info[1])


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
