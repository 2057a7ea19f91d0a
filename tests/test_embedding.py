"""The server inside a program: its hooks over real connections, and what it publishes and reads itself."""

import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.harness import (
    PATIENCE_S,
    Json,
    LinesPeer,
    Peer,
    Running,
    WebSocketPeer,
    server_process,
    serving,
    settings_for,
)
from trisync import Client, Entry, PublishRequest, Refuse, Server, SubscribeRequest, WireError

PRODUCER = "b6ff1a90c2d84e17"


def a_server(folder: Path, **changes: Any) -> Server:
    return Server(settings_for(folder, **changes), seed=1)


@asynccontextmanager
async def connected(running: Running, dialect: str) -> AsyncIterator[Peer]:
    """A client of a machine dialect, by the dialect's name."""
    async with getattr(running, dialect)() as peer:
        yield peer


async def is_hung_up_on(peer: Peer) -> None:
    with pytest.raises((EOFError, ConnectionClosed)):
        await peer.receive()
    if isinstance(peer, WebSocketPeer):  # the library leaves the socket open where the server closed first
        await trio.aclose_forcefully(peer.websocket._stream)


in_every_dialect = pytest.mark.parametrize("dialect", ["lines", "frames", "websocket"])


# Hooks, over connections


@in_every_dialect
async def test_a_hook_changes_what_is_published_in_its_channels_alone(tmp_path: Path, dialect: str) -> None:
    server = a_server(tmp_path)

    @server.on_publish("chat.*")
    async def shout(publish: PublishRequest) -> None:
        publish.data["text"] = publish.data["text"].upper()

    async with serving(server) as running, connected(running, dialect) as peer:
        for channel, text in (("chat.lobby", "HELLO"), ("other", "hello")):
            await peer.request("subscribe", channel=channel)
            assert (await peer.request("publish", channel=channel, data={"text": "hello"}))["offset"] == 1
            assert (await peer.receive())["data"] == {"text": text}


@in_every_dialect
@pytest.mark.parametrize(
    ("code", "retry"), [("forbidden", False), ("bad_request", False), ("limit", False), ("unavailable", True)]
)
async def test_a_refusal_reaches_the_client_with_its_code_and_the_connection_goes_on(
    tmp_path: Path, dialect: str, code: str, retry: bool
) -> None:
    server = a_server(tmp_path)

    @server.on_publish
    async def refuse(publish: PublishRequest) -> None:
        raise Refuse("not here", code)

    async with serving(server) as running, connected(running, dialect) as peer:
        answer = await peer.request("publish", channel="lobby", data=1)
        assert answer == {"op": "error", "id": 1, "code": code, "message": "not here", "retry": retry}
        assert (await peer.request("history", channel="lobby"))["messages"] == []


async def fail(publish: PublishRequest) -> None:
    raise KeyError("a bug in the program")


async def take_for_ever(publish: PublishRequest) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("hook", [fail, take_for_ever])
async def test_a_hook_that_fails_refuses_one_request_with_a_reference_that_is_in_the_log(
    tmp_path: Path, hook: Callable[[PublishRequest], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    server = a_server(tmp_path, hook_s=0.01)
    server.on_publish("bad")(hook)
    async with serving(server) as running, running.lines() as peer:
        answer = await peer.request("publish", channel="bad", data=1)
        assert (answer["code"], answer["retry"]) == ("internal", True)
        reference = re.search(r"reference (\w+)", answer["message"])
        assert reference
        assert [record.levelno for record in caplog.records if reference[1] in record.message] == [logging.ERROR]
        assert (await peer.request("publish", channel="good", data=1))["offset"] == 1


async def test_publishes_of_a_connection_are_stored_and_answered_in_order_whichever_have_hooks(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_publish("slow")
    async def wait_a_little(publish: PublishRequest) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()

    async with serving(server) as running, running.lines() as peer:
        for number in range(100):
            channel = "slow" if number % 3 == 0 else "fast"
            await peer.send("publish", id=number, channel=channel, key="newest", data=number)
        assert [(await peer.receive())["id"] for _ in range(100)] == list(range(100))
        assert [message["data"] for message in await server.history("slow")] == list(range(0, 100, 3))
        assert (await server.state("fast"))["newest"].data == 98


async def test_a_hook_of_one_connection_holds_up_no_other(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    asked, go_on = trio.Event(), trio.Event()

    @server.on_publish("slow")
    async def wait(publish: PublishRequest) -> None:
        asked.set()
        await go_on.wait()

    async with serving(server) as running, running.lines() as slow, running.lines() as other:
        await slow.send("publish", id=1, channel="slow", data=1)
        await asked.wait()
        assert (await other.request("publish", channel="fast", data=1))["offset"] == 1
        go_on.set()
        assert (await slow.receive())["offset"] == 1


async def test_a_verdict_of_a_hook_settles_a_seq_and_is_repeated_whatever_the_hook_says_then(tmp_path: Path) -> None:
    server = a_server(tmp_path, message_bytes_max=1000)
    verdicts: list[Exception | None] = [Refuse("no"), None]

    @server.on_publish
    async def judge(publish: PublishRequest) -> None:
        verdict = verdicts.pop(0) if verdicts else None
        if verdict is not None:
            raise verdict
        if publish.data == "grow":
            publish.data = "x" * 2000

    async with serving(server) as running:
        async with running.lines() as peer:
            await peer.request("hello", producer=PRODUCER)
            refused = await peer.request("publish", channel="lobby", data=1, seq=1)
            assert refused["code"] == "forbidden"
            assert (await peer.request("publish", channel="lobby", data=2, seq=2))["offset"] == 1
            grown = await peer.request("publish", channel="lobby", data="grow", seq=3)
            assert grown["code"] == "too_large"
        verdicts[:] = [None, Refuse("no longer")]
        async with running.lines() as peer:
            assert (await peer.request("hello", producer=PRODUCER))["seq"] == 3
            assert await peer.request("publish", channel="lobby", data=1, seq=1) == refused
            stored = await peer.request("publish", channel="lobby", data=2, seq=2)
            assert stored == {"op": "ok", "id": 1, "offset": 1, "duplicate": True}
            assert await peer.request("publish", channel="lobby", data="grow", seq=3) == grown


async def test_an_ephemeral_message_and_a_merge_pass_the_hooks_as_what_they_are(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    seen: list[tuple[object, ...]] = []

    @server.on_publish
    async def note(publish: PublishRequest) -> None:
        seen.append((publish.data, publish.key, publish.expect, publish.merge, publish.ephemeral))
        if publish.ephemeral:
            publish.data = "changed"

    async with serving(server) as running, running.lines() as peer:
        await server.publish("doc", {"a": 1}, key="k")
        await peer.request("subscribe", channel="doc")
        await peer.request("publish", channel="doc", data={"b": 2}, key="k", expect=1, merge=True)
        assert (await peer.receive())["data"] == {"a": 1, "b": 2}
        assert await peer.request("publish", channel="doc", data="typing", ephemeral=True) == {"op": "ok", "id": 1}
        shown = await peer.receive()
        assert ("offset" in shown, shown["data"]) == (False, "changed")
        assert seen == [({"b": 2}, "k", 1, True, False), ("typing", None, None, False, True)]
        assert len(await server.history("doc")) == 2


async def test_who_may_not_subscribe_may_not_read_in_any_other_way_either(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_subscribe("secret.*")
    async def members_only(subscribe: SubscribeRequest) -> None:
        raise Refuse("members only")

    async with serving(server) as running, running.lines() as peer:
        for op in ("subscribe", "history", "state", "presence"):
            answer = await peer.request(op, channel="secret.plans")
            assert (answer["code"], answer["message"]) == ("forbidden", "members only"), op
            assert (await peer.request(op, channel="open"))["op"] == "ok"


@in_every_dialect
async def test_a_client_that_is_refused_is_told_and_hung_up_on(tmp_path: Path, dialect: str) -> None:
    server = a_server(tmp_path)
    gone: list[Client] = []

    @server.on_connect
    async def nobody(client: Client) -> None:
        raise Refuse("closed today")

    @server.on_disconnect
    async def note(client: Client) -> None:
        gone.append(client)

    async with serving(server) as running:
        async with connected(running, dialect) as peer:
            if dialect != "websocket":  # there it is known by then what the client speaks
                await peer.send("ping", id=1)
            told = await peer.receive()
            assert (told["code"], told["message"], "id" in told) == ("forbidden", "closed today", False)
            await is_hung_up_on(peer)
        server.drain()
    assert [client.ended for client in gone] == ["forbidden: closed today"]


@in_every_dialect
async def test_a_program_is_told_who_comes_and_who_goes(tmp_path: Path, dialect: str) -> None:
    server = a_server(tmp_path)
    came: list[Client] = []
    gone: list[Client] = []
    left = trio.Event()

    @server.on_connect
    async def welcome(client: Client) -> None:
        client.data["greeted"] = True
        came.append(client)

    @server.on_disconnect
    async def farewell(client: Client) -> None:
        gone.append(client)
        left.set()

    async with serving(server) as running:
        async with connected(running, dialect) as peer:
            session = (await peer.request("hello"))["session"]
            assert [(client.session, client.door, client.ended) for client in came] == [
                (session, "websocket" if dialect == "websocket" else "tcp", None)
            ]
        with trio.fail_after(PATIENCE_S):
            await left.wait()
    assert gone == came
    assert (gone[0].data, gone[0].ended is None) == ({"greeted": True}, False)


async def test_a_program_names_a_client_at_any_time(tmp_path: Path) -> None:
    server = a_server(tmp_path, presence_tick_s=0.001)
    clients: list[Client] = []

    @server.on_connect
    async def name(client: Client) -> None:
        client.name = "guest"
        clients.append(client)

    @server.on_publish("login")
    async def log_in(publish: PublishRequest) -> None:
        publish.client.name = publish.data

    async with serving(server) as running, running.lines() as peer, running.lines() as watcher:
        await peer.request("subscribe", channel="lobby")
        await watcher.request("subscribe", channel="lobby", presence=True)
        await watcher.receive()

        async def is_now(name: str) -> None:
            await peer.request("publish", channel="lobby", data="hello")
            assert (await peer.receive())["from"] == name
            told = [await watcher.receive(), await watcher.receive()]  # in any order
            assert [event["from"] for event in told if event["op"] == "message"] == [name]
            assert [event["updated"][0]["name"] for event in told if event["op"] == "presence"] == [name]

        await peer.request("publish", channel="lobby", data="hello")
        assert [(await one.receive())["from"] for one in (peer, watcher)] == ["guest", "guest"]
        await peer.request("hello", name="ann")
        assert clients[0].name == "ann"
        await is_now("ann")
        await peer.request("publish", channel="login", data="ann the great")
        assert (await server.history("login"))[0]["from"] == "ann the great"
        await is_now("ann the great")
        clients[0].name = "somebody"  # from any task of the program
        await is_now("somebody")


async def test_a_stopping_server_waits_for_no_hook_that_judges_and_nothing_of_that_request_is_stored(
    tmp_path: Path,
) -> None:
    server = a_server(tmp_path)
    asked = trio.Event()

    @server.on_publish
    async def wait(publish: PublishRequest) -> None:
        asked.set()
        await trio.sleep_forever()

    async with serving(server) as running, running.lines() as peer:
        await peer.send("publish", id=1, channel="lobby", data=1)
        await asked.wait()
        server.drain()
        assert (await peer.receive())["op"] == "goodbye"
        with pytest.raises(EOFError):
            await peer.receive()
    server = a_server(tmp_path)
    async with serving(server):
        assert await server.history("lobby") == []


async def test_on_disconnect_can_still_publish_while_the_server_stops(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    offsets: list[int] = []

    @server.on_disconnect
    async def note(client: Client) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        offsets.append(await server.publish("who", None, key=client.session))

    async with trio.open_nursery() as nursery:
        running = Running(server, await nursery.start(lambda task_status: server.serve(task_status=task_status)))
        async with connected(running, "lines") as peer, connected(running, "websocket") as other:
            await peer.request("ping")
            await other.request("ping")
            server.drain()
            for one in (peer, other):
                assert (await one.receive())["op"] == "goodbye"
                await is_hung_up_on(one)
    assert sorted(offsets) == [1, 2]


# What the program says and reads itself


async def test_a_program_publishes_to_everybody_and_its_own_hooks_are_not_asked(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_publish
    async def refuse(publish: PublishRequest) -> None:
        raise AssertionError("not asked")

    async with serving(server) as running, running.lines() as lines, running.websocket() as websocket:
        for peer in (lines, websocket):
            await peer.request("subscribe", channel="news")
        assert await server.publish("news", {"n": 1.5}, name="the editor") == 1
        assert await server.publish("news", "soon gone", ephemeral=True) == 0
        for peer in (lines, websocket):
            first, second = await peer.receive_messages(2)
            assert (first["offset"], first["from"], first["data"]) == (1, "the editor", {"n": 1.5})
            assert ("offset" in second, "from" in second, second["data"]) == (False, False, "soon gone")


async def test_a_hook_may_publish_and_read(tmp_path: Path) -> None:
    server = a_server(tmp_path)

    @server.on_publish("questions")
    async def answer(publish: PublishRequest) -> None:
        seen = len(await server.history("questions"))
        await server.publish("answers", f"{publish.data} was question {seen + 1}")

    async with serving(server) as running, running.lines() as peer:
        await peer.request("subscribe", channel="answers")
        for number in (1, 2):
            await peer.send("publish", id=1, channel="questions", data="why?")
            told = [await peer.receive(), await peer.receive()]
            (message,) = [message for message in told if message["op"] == "message"]
            assert message["data"] == f"why? was question {number}"


async def test_a_program_reads_and_writes_a_state(tmp_path: Path) -> None:
    server = a_server(tmp_path, message_bytes_max=2000)
    async with serving(server):
        assert await server.state("doc") == {}
        for number in range(100):  # more than fit into one page
            await server.publish("doc", "x" * 100, key=f"k{number:03}")
        assert list(await server.state("doc")) == [f"k{number:03}" for number in range(100)]
        assert await server.publish("doc", {"a": 1, "b": 2}, key="k000", expect=1) == 101
        assert await server.publish("doc", {"b": None}, key="k000", merge=True) == 102
        assert await server.word("doc", "k000") == Entry(102, {"a": 1})
        with pytest.raises(WireError) as conflict:
            await server.publish("doc", 0, key="k000", expect=1)
        assert conflict.value.code == "conflict"
        assert conflict.value.details["offset"] == 102
        assert json.loads(bytes(conflict.value.details["data"])) == {"a": 1}
        await server.publish("doc", None, key="k000")
        assert await server.word("doc", "k000") is None
        assert [message["offset"] for message in await server.history("doc", since=101)] == [102, 103]
        assert [message["offset"] for message in await server.history("doc", limit=1)] == [103]


async def test_a_program_reads_numbers_that_are_too_large_for_it_as_infinities(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server):
        await server.publish("doc", msgspec.Raw(b"[1e400]"), key="n")
        assert await server.word("doc", "n") == Entry(1, [math.inf])
        assert await server.state("doc") == {"n": Entry(1, [math.inf])}
        assert [message["data"] for message in await server.history("doc")] == [[math.inf]]


async def test_a_program_empties_a_channel_and_sees_who_is_there(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server) as running, running.lines() as peer:
        await server.publish("lobby", 1, key="k")
        await peer.request("hello", name="ann")
        await peer.request("subscribe", channel="lobby", state=True)
        assert (await peer.receive())["entries"] == {"k": {"offset": 1, "data": 1}}
        assert [member["name"] for member in server.members("lobby")] == ["ann"]
        assert server.members("elsewhere") == []
        assert await server.clear("lobby") == 1
        assert await peer.receive() == {"op": "gap", "channel": "lobby", "from": 1, "to": 1, "reason": "trimmed"}
        assert (await peer.receive())["entries"] == {}
        assert await server.publish("lobby", 2) == 2


@pytest.mark.parametrize(
    ("data", "fields", "code"),
    [
        (1, {"key": ""}, "bad_request"),
        (1, {"key": "two\nlines"}, "bad_request"),
        (1, {"expect": 1}, "bad_request"),
        (1, {"key": "k", "expect": -1}, "bad_request"),
        (1, {"key": "k", "ephemeral": True}, "bad_request"),
        (1, {"name": ""}, "bad_request"),
        (1, {"name": "two\nlines"}, "bad_request"),
        (1, {"name": "x" * 65}, "bad_request"),
        ("x" * 2000, {}, "too_large"),
    ],
)
async def test_a_program_is_held_to_the_rules_for_clients(
    tmp_path: Path, data: object, fields: Json, code: str
) -> None:
    server = a_server(tmp_path, message_bytes_max=1000)
    async with serving(server):
        with pytest.raises(WireError) as refused:
            await server.publish("lobby", data, **fields)
        assert refused.value.code == code
        assert await server.history("lobby") == []


async def test_a_number_that_json_does_not_have_is_not_published_as_null(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with serving(server):
        await server.publish("doc", 1, key="k")
        for data in (math.nan, [math.inf]):
            with pytest.raises(ValueError, match="JSON has no number"):
                await server.publish("doc", data, key="k")
        assert await server.word("doc", "k") == Entry(1, 1)


async def test_what_is_no_channels_name_and_no_limit_is_a_value_error(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    name = "not a name"
    async with serving(server):
        for call in (
            lambda: server.publish(name, 1),
            lambda: server.history(name),
            lambda: server.state(name),
            lambda: server.word(name, "k"),
            lambda: server.clear(name),
        ):
            with pytest.raises(ValueError, match="no channel's name"):
                await call()
        with pytest.raises(ValueError, match="no channel's name"):
            server.members(name)
        for limit in (0, -1, 1001):
            with pytest.raises(ValueError, match="limit is 1-1000"):
                await server.history("lobby", limit=limit)
        with pytest.raises(ValueError, match="since is 0-9007199254740991, not -1"):
            await server.history("lobby", since=-1)
        for wrong in (5, b"lobby", ["lobby"]):
            with pytest.raises(TypeError, match="a channel's name is a string, not "):
                await server.publish(wrong, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="since is an integer, not '1'"):
            await server.history("lobby", since="1")  # type: ignore[arg-type]


async def test_before_and_after_it_serves_a_server_cannot_be_asked(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    with pytest.raises(RuntimeError, match="not serving"):
        await server.publish("lobby", 1)
    async with serving(server):
        await server.publish("lobby", 1)
    for call in (lambda: server.publish("lobby", 1), lambda: server.history("lobby")):
        with pytest.raises(RuntimeError, match="not serving"):
            await call()


async def test_a_server_that_ends_leaves_nobody_waiting_for_it(tmp_path: Path) -> None:
    """A task of the program that publishes is not in the server's nursery: nothing else would wake it up."""
    server = a_server(tmp_path)
    outcomes: list[str] = []

    async def publish_until_it_ends() -> None:
        try:
            while True:
                await server.publish("lobby", 1)
        except (WireError, RuntimeError) as ended:
            outcomes.append(type(ended).__name__)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            async with serving(server):
                for _ in range(20):
                    nursery.start_soon(publish_until_it_ends)
                await server.publish("lobby", 1)
    assert len(outcomes) == 20


# trisync serve --app


PROGRAM = """
import trisync

server = trisync.Server(trisync.Settings(keys_max=7))

@server.on_publish("chat.*")
async def clean(publish):
    if not isinstance(publish.data, str):
        raise trisync.Refuse("text only", "bad_request")
    publish.data = publish.data.strip()

not_a_server = 5
"""


async def test_trisync_serve_runs_a_program_s_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_app.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    with server_process(tmp_path / "data", "--app", "my_app:server") as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.tcp_port) as stream:
            peer = LinesPeer(stream)
            limits = (await peer.request("hello"))["limits"]
            assert limits["keys_max"] == 7  # the program's settings
            assert (await peer.request("publish", channel="chat.x", data=1))["message"] == "text only"
            await peer.request("subscribe", channel="chat.x")
            await peer.request("publish", channel="chat.x", data="  hello ")
            assert (await peer.receive())["data"] == "hello"
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("my_app", "--app is MODULE:SERVER"),
        (":server", "--app is MODULE:SERVER"),
        (".my_app:server", "--app is MODULE:SERVER"),
        ("nowhere:server", "there is no module 'nowhere' here"),
        ("my_app:nothing", "the module 'my_app' has no 'nothing'"),
        ("my_app:not_a_server", "my_app:not_a_server is no trisync.Server"),
        ("broken:server", "AttributeError: module 'trisync' has no attribute 'Sever'"),
        ("lost:server", "No module named 'not_installed'"),
    ],
)
def test_what_cannot_be_served_is_said_clearly(tmp_path: Path, app: str, said: str) -> None:
    (tmp_path / "my_app.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("import trisync\nserver = trisync.Sever()\n")
    (tmp_path / "lost.py").write_text("import not_installed\n")
    refused = subprocess.run(
        [sys.executable, "-m", "trisync", "serve", "--app", app, "--tcp-port", "0", "--web-port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert refused.returncode != 0
    assert said in " ".join(refused.stderr.split())
    # Where it is the program that fails, its programmer sees where; else nobody needs a traceback.
    assert ("Traceback" in refused.stderr) == (app.split(":")[0] in ("broken", "lost"))
