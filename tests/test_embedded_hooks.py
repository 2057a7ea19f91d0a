"""The hooks of a program around the server, over real connections."""

import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.embedded import PRODUCER, a_server, connected, in_every_dialect, is_hung_up_on
from tests.harness import PATIENCE_S, Running, serving
from trisync import Client, PublishRequest, Refuse, SubscribeRequest, connect
from trisync.client import Forbidden, NotConnected


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


@pytest.mark.parametrize("tasks", [0, 1, 2])
async def test_what_a_hook_cannot_publish_as_the_server_stops_is_no_bug_of_the_hook(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tasks: int
) -> None:
    server = a_server(tmp_path)

    @server.on_disconnect
    async def note(client: Client) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(server.publish, "visits", client.ended)
        await server.publish("visits", client.ended)

    async with serving(server) as running, running.lines() as peer:
        await peer.request("ping")
        server.drain()
        assert (await peer.receive())["op"] == "goodbye"
    [told] = [record for record in caplog.records if "the hook" in record.message]
    assert (told.levelno, told.exc_info) == (logging.WARNING, None)
    assert "note raised: the server has stopped; nothing was stored (draining), reference" in told.message


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
    server = a_server(tmp_path, message_bytes_max=1024)
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


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
async def test_a_client_that_is_refused_says_why_it_is_not_connected(
    tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = a_server(tmp_path)
    code = "unavailable"

    @server.on_connect
    async def nobody(client: Client) -> None:
        raise Refuse("closed today", code)

    async with serving(server) as running:
        port = running.address.tcp_port if scheme == "tcp" else running.address.web_port
        url = f"{scheme}://127.0.0.1:{port}"
        with pytest.raises(NotConnected, match=rf"^no connection to {url}: closed today \(unavailable\)$"):
            await connect(url, wait_s=0).__aenter__()
        assert caplog.messages.count("the server said: closed today (unavailable)") == 1
        caplog.clear()
        code = "forbidden"
        with pytest.raises(Forbidden, match=r"^closed today \(forbidden\)$"):
            await connect(url).__aenter__()
        assert not [record for record in caplog.records if record.name == "trisync.client"], "it is raised"


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


async def test_a_client_says_that_it_has_gone_where_no_hook_is_told_of_that(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    clients: list[Client] = []

    @server.on_connect
    async def welcome(client: Client) -> None:
        clients.append(client)

    async with serving(server) as running:
        async with connected(running, "lines") as peer:
            await peer.request("ping")
            assert clients[0].ended is None
        server.drain()
    assert clients[0].ended is not None


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
