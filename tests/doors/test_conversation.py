"""The operations of the wire, over real connections, in every machine dialect."""

import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.harness import Peer, Running, read_to_end, running_server

DIALECTS = ["lines", "frames", "websocket"]


def connect(running: Running, dialect: str) -> AbstractAsyncContextManager[Peer]:
    peer: AbstractAsyncContextManager[Peer] = getattr(running, dialect)()
    return peer


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_what_one_publishes_all_subscribers_get(tmp_path: Path, dialect: str) -> None:
    async with (
        running_server(tmp_path) as running,
        connect(running, dialect) as alice,
        connect(running, dialect) as bob,
    ):
        subscribed = await bob.request("subscribe", channel="lobby")
        assert (subscribed["op"], subscribed["offset"]) == ("ok", 0)
        assert (await alice.request("hello", name="alice"))["protocol"] == 1
        assert await alice.request("publish", channel="lobby", data={"x": [1, None]}) == {
            "op": "ok",
            "id": 1,
            "offset": 1,
        }
        message = await bob.receive()
        assert message.pop("time") > 1_700_000_000_000
        assert message == {"op": "message", "channel": "lobby", "offset": 1, "from": "alice", "data": {"x": [1, None]}}


async def test_a_publisher_gets_its_ok_before_its_own_message(tmp_path: Path, dialect: str) -> None:
    async with running_server(tmp_path) as running, connect(running, dialect) as peer:
        await peer.request("subscribe", channel="lobby")
        for number in range(1, 20):
            await peer.send("publish", id=f"p{number}", channel="lobby", data=number)
            assert await peer.receive() == {"op": "ok", "id": f"p{number}", "offset": number}
            assert (await peer.receive())["offset"] == number


async def test_replies_to_pipelined_publishes_keep_their_order_also_where_one_is_refused(
    tmp_path: Path, dialect: str
) -> None:
    async with running_server(tmp_path) as running, connect(running, dialect) as peer:
        for number in range(50):
            channel = "bad channel" if number % 7 == 3 else "lobby"
            await peer.send("publish", id=number, channel=channel, data=number)
        answers = [await peer.receive() for _ in range(50)]
        assert [answer["id"] for answer in answers] == list(range(50))
        assert [answer["id"] for answer in answers if answer["op"] == "error"] == list(range(3, 50, 7))


async def test_without_an_id_only_errors_are_answered(tmp_path: Path, dialect: str) -> None:
    async with running_server(tmp_path) as running, connect(running, dialect) as peer:
        await peer.send("hello", name="quiet")
        await peer.send("ping")
        await peer.send("publish", channel="lobby", data=1)
        await peer.send("history", channel="lobby")
        await peer.send("publish", channel="lobby")
        error = await peer.receive()
        assert (error["op"], error["code"], "id" in error) == ("error", "bad_request", False)
        assert await peer.request("ping") == {"op": "pong", "id": 1}


@pytest.mark.parametrize(
    "asked",
    [
        b'{"op":"subscribe","channel":"lobby","since":0}\n',
        b'\0\0\0\x33{"op":"subscribe","channel":"lobby","last":100}',
        b'{"op":"subscribe","channel":"lobby","state":true}\n',
        b"/join lobby 100\n",
    ],
    ids=["lines", "frames", "a state", "the console"],
)
async def test_who_ends_with_a_subscription_gets_what_was_there_for_it(tmp_path: Path, asked: bytes) -> None:
    texts = [b"text %d" % number for number in range(10, 60)]
    async with running_server(tmp_path) as running, running.lines() as alice:
        for text in texts:
            await alice.request("publish", channel="lobby", key=text.decode()[-2:], data=text.decode())
        stream = await running.tcp()
        async with stream:
            await stream.send_all(asked)
            await stream.send_eof()  # as `nc -N` does
            assert re.findall(rb"text \d+", await read_to_end(stream)) == texts
