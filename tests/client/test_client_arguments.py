"""What a program gives the client, and is given by it: what cannot be is said at the call, and the rest reads well."""

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import trisync
from tests.client.conftest import Run
from trisync.client import Conflict, Gap, State


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
                assert str(await client.words(channel)) == "{'title': Word(offset=3, data='Hello')}"
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
            partial(client.words, name),
            partial(client.word, name, "key"),
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
            lambda: client.word("lobby", 5),
        ],
        "BadRequest: a key is 1-512 bytes": [
            lambda: doc.__setitem__("", 1),
            lambda: doc.set("é" * 257, 1),
            lambda: client.word("lobby", "k" * (2 << 20)),  # over which the server would hang up, again and again
        ],
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
        "ValueError: epoch is UTF-8, not '\\udcff'": [lambda: client.subscribe("lobby", since=1, epoch="\udcff")],
        "ValueError: a key is UTF-8, not '\\udcff'": [
            lambda: client.word("lobby", "\udcff"),
            lambda: client.publish("lobby", 1, key="\udcff"),
        ],
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": 5}, "TypeError: a server's address is a string, not 5"),
        ({"url": "tcp://host:99999"}, "ValueError: "),
        ({"name": 5}, "TypeError: name is a string, not 5"),
        ({"name": "\udcff"}, "ValueError: name is UTF-8, not '\\udcff'"),
        ({"name": ""}, "BadRequest: name is 1-64 characters"),
        ({"producer": "short"}, "BadRequest: producer is 16-64 printable"),
        ({"queue_max": 0}, "ValueError: queue_max is at least 1, not 0"),
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


def test_an_address_that_is_none_is_said_at_once() -> None:
    for url in ("http://localhost", "localhost:2345", "tcp://", "tcp://localhost:0"):
        with pytest.raises(ValueError, match="address looks like"):
            trisync.connect(url)


@pytest.mark.parametrize(
    "url", ["tcp://localhost/lobby", "tcps://localhost?a=b", "tcp://localhost#a", "ws://localhost/#a"]
)
def test_a_part_of_an_address_that_would_be_ignored_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="ends with its port"):
        trisync.connect(url)


def test_a_path_that_no_request_can_have_is_said() -> None:
    for path in ("ü", "a b", "a\x7fb", "?q=ü"):
        with pytest.raises(ValueError, match="percent-encoded"):
            trisync.connect(f"ws://localhost/{path}")


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    for url in ("tcp://{}localhost", "wss://{}localhost/", "http://{}localhost", "tcp://{}localhost:x", "ws://{}[::1"):
        with pytest.raises(ValueError, match="no user and no password") as refused:
            trisync.connect(url.format("ada:lovelace@"))
        assert "lovelace" not in str(refused.value)


def test_an_address_may_end_with_a_slash_and_that_of_a_websocket_with_a_path() -> None:
    for url in (
        "tcp://localhost",
        "tcp://localhost:2345/",
        "ws://localhost:8000/live?room=1",
        "wss://[::1]/",
        "ws://b?a@c",
        "ws://b//a@c",
    ):
        trisync.connect(url)


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
