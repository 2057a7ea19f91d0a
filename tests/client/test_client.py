"""The client against a real server, through both doors, under asyncio and Trio."""

import logging
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

import trisync
from tests.client.conftest import Run
from tests.harness import PATIENCE_S
from trisync.client import (
    BadRequest,
    Change,
    Closed,
    Conflict,
    Gap,
    Message,
    NotConnected,
    QueueFull,
    State,
    TooLarge,
    Unsettled,
)

NOBODY = "tcp://127.0.0.1:9"
"""The discard port, where nobody listens."""


async def eventually(condition: Callable[[], bool], change: Callable[[], Awaitable[object]]) -> None:
    """Wait for changes until there is what must come."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await change()


def test_what_is_published_comes_to_subscribers_once_and_in_order(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with (
            trisync.connect(url, name="alice") as alice,
            trisync.connect(url) as bob,
            bob.subscribe(channel) as messages,
        ):
            assert [await alice.publish(channel, {"n": n}) for n in range(3)] == [1, 2, 3]
            received = [await anext(messages) for _ in range(3)]
            assert [(message.offset, message.sender, message.data) for message in received] == [
                (1, "alice", {"n": 0}),
                (2, "alice", {"n": 1}),
                (3, "alice", {"n": 2}),
            ]
            assert (messages.offset, len(messages.epoch)) == (3, 16)

    run(main)


def test_a_subscription_begins_where_it_is_told_to(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            for text in ("one", "two", "three"):
                await client.publish(channel, text)
            async with client.subscribe(channel, last=2) as messages:
                assert [(await anext(messages)).data, (await anext(messages)).data] == ["two", "three"]
            async with client.subscribe(channel, since=0) as messages:
                assert (await anext(messages)).data == "one"
                offset, epoch = messages.offset, messages.epoch
            async with client.subscribe(channel, since=offset, epoch=epoch) as messages:
                assert (await anext(messages)).data == "two"

    run(main)


def test_another_log_is_a_gap_that_stops_the_loop_unless_it_is_asked_for(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, "one")
            async with client.subscribe(channel, since=1, epoch="another") as messages:
                with pytest.raises(Gap, match=r"the log .* was replaced") as caught:
                    await anext(messages)
                assert caught.value.reason == "epoch"
                assert (await anext(messages)).data == "one"
            async with client.subscribe(channel, since=7, gaps="yield") as both:
                items = [await anext(both), await anext(both)]
                assert items[0] == Gap(channel, "epoch")
                assert isinstance(items[1], Message)

    run(main)


def test_data_is_passed_on_digit_for_digit_and_may_be_decoded_as_a_type(run: Run, url: str, channel: str) -> None:
    class Point(msgspec.Struct):
        x: float
        label: str

    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, msgspec.Raw(b'{"x":1.50,"label":"\xc3\xa9"}'))
            message = await anext(messages)
            assert bytes(message.json) == b'{"x":1.50,"label":"\xc3\xa9"}'
            assert message.data_as(Point) == Point(1.5, "é")
            assert b'"data":{"x":1.50,' in message.to_json()

    run(main)


def test_what_a_program_gets_is_printed_with_its_data(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url, name="alice") as client, client.subscribe(channel) as messages:
            await client.publish(channel, ["hi"])
            receipt = client.post(channel, None, key="k")
            said, gone = await anext(messages), await anext(messages)
            text = f"Message(channel={channel!r}, offset=1, sender='alice', time_ms={said.time_ms}, data=['hi'])"
            assert (str(said), repr(said)) == (text, text)
            assert str(gone).endswith(f"key='k', time_ms={gone.time_ms}, data=None)")
            assert text in str(await client.history(channel))
            assert str(messages) == f"<Subscription to {channel!r}, offset 2>"
            assert str(receipt) == "<Receipt: stored at offset 2>"
            assert str(client).startswith("<Client: online, connected to trisync/")
            async with client.state(channel) as doc, client.presence(channel) as members:
                await doc.set("title", "Hello")
                assert str(doc) == f"Document({channel!r}, {{'title': 'Hello'}})"
                assert str(members) == f"Roster({channel!r}, [Member(member={members.me!r}, name='alice')])"
                receipt = doc._write("title", 1, expect=7)
                assert str(receipt) == "<Receipt: on its way>"
                with pytest.raises(Conflict):
                    await receipt
                assert str(receipt) == "<Receipt: the key's newest offset is 3 (conflict)>"
            assert str(client.state(channel)) == f"Document({channel!r}, not entered)"
        assert str(Gap(channel, "trimmed", 3, 3)) == f"message 3 of {channel} is gone"
        assert str(Gap(channel, "trimmed", 3, 4)) == f"messages 3 to 4 of {channel} are gone"

    run(main)


def test_refusals_have_the_class_of_their_code(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, "a", key="k")
            with pytest.raises(Conflict) as conflict:
                await client.publish(channel, "b", key="k", expect=0)
            assert (conflict.value.code, conflict.value.offset, conflict.value.data) == ("conflict", 1, "a")
            with pytest.raises(BadRequest):
                await client.publish("no such name", 1)
            with pytest.raises(BadRequest):
                await client.publish(channel, 1, merge=True)
            with pytest.raises(BadRequest, match="64 deep"):
                await client.publish(channel, msgspec.Raw(b"[" * 64 + b"]" * 64))
            with pytest.raises(TooLarge):
                await client.publish(channel, "x" * (1 << 20))
            assert await client.publish(channel, "they harm nobody") == 2

    run(main)


def wrong_calls(client: Any, doc: Any) -> dict[str, list[Callable[[], Any]]]:
    """Calls with an argument that cannot be, by what is said of it. They raise at once, or when they are awaited."""
    channels: list[Callable[[], Any]] = [
        call
        for name in (5, None, b"lobby", ["lobby"])
        for call in (
            partial(client.publish, name, 1),
            partial(client.publish, name, 1, ephemeral=True),
            partial(client.post, name, 1),
            partial(client.history, name),
            partial(client.members, name),
            partial(client.subscribe, name),
            partial(client.state, name),
            partial(client.presence, name),
        )
    ]
    return {
        "TypeError: a channel's name is a string, not ": channels,
        "BadRequest: a channel is 1-200 characters": [
            lambda: client.publish("no such name", 1),
            lambda: client.subscribe(""),
            lambda: client.state("no such name"),
            lambda: client.presence("no such name"),
        ],
        "TypeError: a key is a string, not 5": [
            lambda: doc.__setitem__(5, 1),
            lambda: doc.set(5, 1),
            lambda: doc.update(5, lambda _: 1),
            lambda: client.publish("lobby", 1, key=5),
        ],
        "BadRequest: a key is 1-512 bytes": [lambda: doc.__setitem__("", 1), lambda: doc.set("é" * 257, 1)],
        "TypeError: data is bytes": [
            lambda: client.publish("lobby", b"text"),
            lambda: client.publish("lobby", b"text", ephemeral=True),
            lambda: client.post("lobby", b"text"),
            lambda: doc.__setitem__("k", b"text"),
        ],
        "TypeError: data['tags'] is a set": [lambda: client.publish("lobby", {"tags": {1}})],
        "ValueError: data[0] is inf": [lambda: client.publish("lobby", [float("inf")])],
        "TypeError: expect is an integer, not 1.5": [lambda: client.publish("lobby", 1, key="k", expect=1.5)],
        "TypeError: expect is an integer, not '1'": [lambda: client.publish("lobby", 1, key="k", expect="1")],
        "ValueError: expect is 0-9007199254740991, not -1": [lambda: client.publish("lobby", 1, key="k", expect=-1)],
        "BadRequest: expect and merge need a key": [lambda: client.publish("lobby", 1, expect=1)],
        "ValueError: since is 0-9007199254740991, not -1": [
            lambda: client.subscribe("lobby", since=-1),
            lambda: client.history("lobby", since=-1),
        ],
        "TypeError: since is an integer, not '1'": [
            lambda: client.subscribe("lobby", since="1"),
            lambda: client.history("lobby", since="1"),
        ],
        "TypeError: since is an integer, not True": [lambda: client.subscribe("lobby", since=True)],
        "ValueError: since and last do not go together": [lambda: client.subscribe("lobby", since=1, last=1)],
        "ValueError: last is 1-1000, not 0": [lambda: client.subscribe("lobby", last=0)],
        "ValueError: last is 1-1000, not 1001": [lambda: client.subscribe("lobby", last=1001)],
        "ValueError: limit is 1-1000, not 1001": [lambda: client.history("lobby", limit=1001)],
        "TypeError: epoch is a string, not 5": [lambda: client.subscribe("lobby", since=1, epoch=5)],
        "ValueError: gaps is 'raise' or 'yield', not 'skip'": [lambda: client.subscribe("lobby", gaps="skip")],
    }


def test_an_argument_that_cannot_be_is_said_at_the_call(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            for said, calls in wrong_calls(client, doc).items():
                for call in calls:
                    with pytest.raises((TypeError, ValueError)) as caught:
                        await call()
                    assert f"{caught.type.__name__}: {caught.value}".startswith(said)
            assert (dict(doc), doc.pending, client.status.state) == ({}, 0, State.ONLINE)
            assert 5 not in doc  # type: ignore[comparison-overlap]
            with pytest.raises(KeyError):
                doc[5]  # type: ignore[index]

    run(main)


def test_an_ephemeral_message_goes_as_it_was_at_the_call(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.subscribe(channel) as messages:
            cursor = {"x": 1.5}
            client._machine.flash(channel, cursor, lambda _: None)
            cursor["x"] = float("nan")
            assert (await anext(messages)).data == {"x": 1.5}

    run(main)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": 5}, "TypeError: a server's address is a string, not 5"),
        ({"url": "tcp://host:99999"}, "ValueError: "),
        ({"name": 5}, "TypeError: name is a string, not 5"),
        ({"name": ""}, "BadRequest: name is 1-64 characters"),
        ({"producer": "short"}, "BadRequest: producer is 16-64 printable"),
        ({"queue_max": 0}, "ValueError: queue_max is 1-"),
        ({"queue_bytes_max": "x"}, "TypeError: queue_bytes_max is an integer, not 'x'"),
        ({"wait_s": "1"}, "TypeError: wait_s is a number of seconds, not '1'"),
        ({"close_s": -1}, "ValueError: close_s is at least 0, not -1"),
        ({"url": "tcps://host", "tls": True}, "TypeError: tls is an ssl.SSLContext, not True"),
        ({"tls": ssl.create_default_context()}, "ValueError: tls is for tcps:// and wss://, and tcp://localhost"),
    ],
)
def test_an_argument_of_connect_that_cannot_be_is_said_at_once(options: dict[str, Any], said: str) -> None:
    for connect in (trisync.connect, trisync.connect_sync):
        with pytest.raises((TypeError, ValueError)) as caught:
            connect(**options)
        assert f"{caught.type.__name__}: {caught.value}".startswith(said)


def test_a_message_as_large_as_the_server_allows_goes_both_ways(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, "x" * 1_000_000)
            assert len((await anext(messages)).data) == 1_000_000

    run(main)


def test_an_ephemeral_message_is_seen_and_not_stored(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.subscribe(channel) as messages:
            assert await client.publish(channel, "typing", ephemeral=True) == 0
            message = await anext(messages)
            assert (message.offset, message.data) == (None, "typing")
            assert (await client.history(channel)).messages == []
        async with trisync.connect(NOBODY, wait_s=None) as client:
            with pytest.raises(NotConnected):
                await client.publish(channel, "typing", ephemeral=True)

    run(main)


def test_many_publishes_are_on_their_way_together_and_keep_their_order(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            receipts = []
            for number in range(2000):
                await client.room()
                receipts.append(client.post(channel, number))
            assert [await receipt for receipt in receipts] == list(range(1, 2001))
            assert [(await anext(messages)).data for _ in range(2000)] == list(range(2000))

    run(main)


def test_who_answers_each_message_does_not_wait_for_ever_however_many_there_are(
    run: Run, tcp_url: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to its own publishes stand behind messages that it has not taken yet."""
    monkeypatch.setattr("trisync.client.feeds.BUFFER_MESSAGES", 10)

    async def main() -> None:
        async with trisync.connect(tcp_url) as client, trisync.connect(tcp_url) as other:
            for number in range(3000):
                await other.room()
                other.post(channel, number)
            await other.flush()
            async with client.subscribe(channel, since=0) as messages:
                for number in range(200):
                    assert (await anext(messages)).data == number
                    await client.publish(channel + "-answers", number)
                for number in range(200, 3000):
                    assert (await anext(messages)).data == number

    run(main)


def test_what_nobody_takes_stays_at_the_server(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, trisync.connect(tcp_url) as other:
            async with client.subscribe(channel) as messages:
                for _ in range(60):
                    other.post(channel, "x" * 500_000)
                    await other.room()
                await other.flush()
                # 30 MB were published; nothing here would stop it from being read, were it not for the buffer's bound.
                inbox = messages._inbox
                assert inbox is not None
                assert inbox.cursor is not None
                assert inbox.cursor < 30
                assert [(await anext(messages)).offset for _ in range(60)] == list(range(1, 61))

    run(main)


def test_the_exceptions_of_a_program_come_out_as_they_are(run: Run, tcp_url: str) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with trisync.connect(tcp_url):
                raise ZeroDivisionError
        with pytest.raises(Conflict):
            async with trisync.connect(tcp_url) as client:
                await client.publish("exceptions", 1, key="k", expect=99)

    run(main)


def test_a_server_that_is_not_there_is_said_at_the_entrance(run: Run) -> None:
    async def main() -> None:
        for wait_s in (0, 0.3):
            with pytest.raises(NotConnected, match=r"no connection to tcp://127\.0\.0\.1:9: Connection refused"):
                async with trisync.connect(NOBODY, wait_s=wait_s):
                    pass

    run(main)


def test_a_client_that_the_server_refuses_is_closed(run: Run, tcp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a later version, whose rules are others."""
    monkeypatch.setattr("trisync.client.aio.check_hello", lambda *_: None)

    async def main() -> None:
        with pytest.raises(BadRequest, match="name is 1-64 characters"):
            async with trisync.connect(tcp_url, name=""):
                pass

    run(main)


def test_an_address_that_is_none_is_said_at_once() -> None:
    for url in ("http://localhost", "localhost:2345", "tcp://"):
        with pytest.raises(ValueError, match="address looks like"):
            trisync.connect(url)


def test_the_queue_is_bounded_and_what_is_left_in_it_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(Unsettled, match="2 publishes"):  # noqa: PT012 (it is the leaving that raises)
            async with trisync.connect(NOBODY, wait_s=None, queue_max=2, close_s=0.05) as client:
                receipts = [client.post("lobby", 1), client.post("lobby", 2)]
                with pytest.raises(QueueFull):
                    client.post("lobby", 3)
                with pytest.raises(QueueFull):
                    await client.publish("lobby", 3)
        with pytest.raises(Closed):
            await receipts[0]
        with pytest.raises(Closed):
            client.post("lobby", 4)
        assert client.status.state is State.CLOSED
        del receipts

    run(main)
    [told] = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.startswith("closed with 2 publishes that had no answer")


def test_a_refusal_that_nobody_waits_for_is_said(
    run: Run, tcp_url: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            client.post(channel, 1, key="k", expect=5)
            await client.publish(channel, 2)

    run(main)
    [told] = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.startswith("a publish failed, and nobody awaited its receipt: ")


def test_who_flushes_or_updates_does_not_take_a_refusal_from_who_has_the_receipt(
    run: Run, tcp_url: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            receipts = [client.post(channel, 1, key="k", expect=5)]
            await client.flush()
            receipts.append(doc._write("k", 1, expect=5))
            await doc.update("k", lambda _: 2)
            for receipt in receipts:
                with pytest.raises(Conflict):
                    await receipt

    run(main)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_who_flushes_or_leaves_waits_for_all_publishes_and_not_for_the_last_one_alone(
    run: Run, tcp_url: str, channel: str
) -> None:
    async def main() -> None:
        for leaving in (False, True):
            # The server's limit is not known yet: what is over it is settled when it is to be sent, and so first.
            async with trisync.connect(tcp_url, wait_s=None) as client:
                receipt, too_large = client.post(channel, "x" * 900_000), client.post(channel, "y" * (1 << 20))
                if not leaving:
                    await client.flush()
                    assert receipt.done
            assert receipt.done
            assert await receipt
            with pytest.raises(TooLarge):
                await too_large

    run(main)


def test_a_publish_that_nobody_waits_for_any_more_is_stored_all_the_same(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.publish(channel, "cancelled")
            assert scope.cancelled_caught
        async with trisync.connect(tcp_url) as client:
            assert [message.data for message in (await client.history(channel)).messages] == ["cancelled"]

    run(main)


def test_what_was_left_and_a_client_that_was_closed_end_with_closed(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            await client.publish(channel, 1, key="k")
            async with client.subscribe(channel, since=0) as left, client.state(channel) as doc:
                assert (await anext(left)).data == 1
                changes = doc.changes()
                async with client.presence(channel) as members:
                    people = members.changes()
            for iterator in (left, changes, people):
                with pytest.raises(Closed, match=f"the program left {channel}"):
                    await anext(iterator)
            assert dict(doc) == {"k": 1}
            with pytest.raises(Closed, match="the program left"):
                doc["k"] = 2
            messages = await client.subscribe(channel).__aenter__()
            doc = await client.state(channel).__aenter__()
            members = await client.presence(channel).__aenter__()
            changes, people, statuses = doc.changes(), members.changes(), client.status_changes()
        for ended in (messages, changes, people, client.status_changes()):
            with pytest.raises(Closed, match="the client is closed: the program closed it"):
                await anext(ended)
        assert (await anext(statuses)).state is State.CLOSED
        with pytest.raises(Closed, match="the client is closed"):
            await anext(statuses)
        with pytest.raises(Closed, match="the client is closed"):
            await doc.set("k", 2)

    run(main)


def test_an_error_that_is_raised_again_does_not_grow(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            refused = client.post(channel, 1, key="k", expect=5)
            messages = await client.subscribe(channel).__aenter__()
            doc = await client.state(channel).__aenter__()
        changes, statuses = doc.changes(), client.status_changes()

        async def depth(ask: Callable[[], Any]) -> int:
            with pytest.raises((Closed, Conflict)) as caught:
                await ask()
            return len(caught.traceback)

        async def receipt() -> int:
            return await refused

        asked: list[Callable[[], Any]] = [lambda: client.publish(channel, 1), client.room, receipt]
        for ask in [*asked, lambda: doc.set("k", 1), *(each.__anext__ for each in (messages, changes, statuses))]:
            before = await depth(ask)
            for _ in range(3):
                assert await depth(ask) == before

    run(main)


def test_a_client_that_was_not_entered_says_so_instead_of_waiting_for_ever(run: Run, channel: str) -> None:
    async def main() -> None:
        client = trisync.connect(NOBODY)
        for ask in (
            lambda: client.publish(channel, 1),
            lambda: client.publish(channel, 1, ephemeral=True),
            lambda: client.history(channel),
            lambda: client.members(channel),
            client.room,
        ):
            with pytest.raises(RuntimeError, match="a client is entered first"):
                await ask()
        for make in (lambda: client.post(channel, 1), lambda: client.subscribe(channel), lambda: client.state(channel)):
            with pytest.raises(RuntimeError, match="a client is entered first"):
                make()
        with pytest.raises(RuntimeError, match="a client is entered first"):
            client.presence(channel)

    run(main)


def test_a_state_is_a_mapping_that_every_client_has_alike(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as alice, trisync.connect(url) as bob:
            await alice.publish(channel, "before", key="old")
            async with alice.state(channel) as hers, bob.state(channel) as his:
                changes = his.changes()
                hers["title"] = "Hello"
                assert hers["title"] == "Hello"
                assert hers.pending == 1
                assert await anext(changes) == Change("title", "Hello", confirmed=True)
                assert dict(his) == {"old": "before", "title": "Hello"}
                del his["old"]
                assert "old" not in his
                await his.flush()
                await his.set("n", [1, {"two": 2}])
                await eventually(
                    lambda: dict(hers) == {"title": "Hello", "n": [1, {"two": 2}]}, hers.changes().__anext__
                )
                assert hers.confirmed("old") is None
                entry = hers.confirmed("title")
                assert entry is not None
                assert entry.data == "Hello"
                with pytest.raises(KeyError):
                    del hers["old"]

    run(main)


@pytest.mark.parametrize("number", [b"1e400", b"-" + b"9" * 5000])
def test_numbers_that_python_cannot_hold_are_infinities_and_stay_digit_for_digit(
    run: Run, url: str, channel: str, number: bytes
) -> None:
    infinity = float(number)
    words = msgspec.Raw(b'{"n":%b}' % number)

    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, words, key="old")
            message = await anext(messages)
            assert message.data == {"n": infinity}
            assert bytes(message.json) == bytes(words)
            async with client.state(channel) as doc:
                assert doc["old"] == {"n": infinity}
                await client.publish(channel, words, key="new")
                await eventually(
                    lambda: dict(doc) == {key: {"n": infinity} for key in ("old", "new")}, messages.__anext__
                )
            with pytest.raises(Conflict) as conflict:
                await client.publish(channel, 1, key="old", expect=0)
            assert (conflict.value.offset, conflict.value.data) == (1, {"n": infinity})

    run(main)


def test_a_number_that_json_does_not_have_is_refused_before_anything_has_changed(
    run: Run, tcp_url: str, channel: str
) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            await doc.set("t", 1)
            for publish in (
                lambda: client.publish(channel, {"t": float("inf")}),
                lambda: client.publish(channel, [float("nan")], ephemeral=True),
                lambda: doc.set("t", float("nan")),
                lambda: doc.update("t", lambda _: float("inf")),
            ):
                with pytest.raises(ValueError, match="JSON has no number"):
                    await publish()
            with pytest.raises(ValueError, match="JSON has no number"):
                doc["t"] = float("-inf")
            assert (dict(doc), doc.pending) == ({"t": 1}, 0)
            assert (await client.history(channel)).offset == 1

    run(main)


def test_updates_from_all_sides_are_all_kept(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as alice, trisync.connect(tcp_url) as bob:
            async with alice.state(channel) as hers, bob.state(channel) as his:
                async with anyio.create_task_group() as tasks:

                    async def count_up(doc: trisync.client.Document) -> None:
                        for _ in range(20):
                            await doc.update("count", lambda n: (n or 0) + 1)

                    tasks.start_soon(count_up, hers)
                    tasks.start_soon(count_up, his)
                await eventually(lambda: hers["count"] == his["count"] == 40, anyio.lowlevel.checkpoint)

    run(main)


def test_a_write_that_is_refused_is_taken_back(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            await doc.set("title", "mine")
            changes = doc.changes()

            receipt = doc._write("title", "never", expect=99)
            assert doc["title"] == "never"
            with pytest.raises(Conflict):
                await receipt
            assert doc["title"] == "mine"
            change = await anext(changes)
            assert (change.key, change.value, change.confirmed) == ("title", "mine", True)
            assert isinstance(change.error, Conflict)

    run(main)


def test_presence_tells_who_is_there(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url, name="alice") as alice, alice.presence(channel) as members:
            assert [member.name for member in members.values()] == ["alice"]
            changes = members.changes()
            async with trisync.connect(tcp_url, name="bob") as bob, bob.subscribe(channel):
                joined = await anext(changes)
                assert (joined.kind, joined.member.name) == ("joined", "bob")
                assert {member.name for member in await bob.members(channel)} == {"alice", "bob"}
            left = await anext(changes)
            assert (left.kind, left.member.name) == ("left", "bob")
            assert list(members) == [members.me]

    run(main)


def test_messages_state_and_presence_of_one_channel_share_a_subscription(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url, name="alice") as client:
            for number in range(5):
                await client.publish(channel, number, key=f"k{number}")
            async with client.subscribe(channel, last=3) as messages:
                assert (await anext(messages)).data == 2
                async with client.state(channel) as doc, client.presence(channel) as members:
                    assert dict(doc) == {f"k{number}": number for number in range(5)}
                    assert len(members) == 1
                    await doc.set("k0", "new")
                assert [(await anext(messages)).data for _ in range(3)] == [3, 4, "new"]
                with pytest.raises(RuntimeError, match="already"):
                    await client.subscribe(channel).__aenter__()

    run(main)


def test_history_comes_in_pages(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            for number in range(5):
                client.post(channel, number)
            await client.flush()
            newest = await client.history(channel, limit=2)
            assert ([message.data for message in newest.messages], newest.more, newest.gap) == ([3, 4], False, None)
            first = await client.history(channel, since=0, limit=2)
            assert ([message.data for message in first.messages], first.more, first.offset) == ([0, 1], True, 5)

    run(main)


def test_who_uses_the_producer_of_another_client_takes_its_place(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        producer = channel[-40:].rjust(16, "p")
        async with trisync.connect(tcp_url, producer=producer) as first:
            await first.publish(channel, 1)
            async with trisync.connect(tcp_url, producer=producer) as second:
                await second.publish(channel, 2)
                with pytest.raises(trisync.client.Fenced):
                    await first.publish(channel, 3)
                assert first.status.state is State.CLOSED
            with pytest.raises(trisync.client.Fenced):
                await first.history(channel)

    run(main)


def test_the_log_tells_the_story_of_a_connection(run: Run, tcp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            assert client.status.state is State.ONLINE

    caplog.set_level(logging.DEBUG, "trisync.client")
    run(main)
    assert "connecting to tcp://127.0.0.1:" in caplog.messages[0]
    assert "online with trisync/" in caplog.messages[1]
