"""Calls over HTTP, and what the hooks of the program around the server make of them."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.harness import Peer, Running, running_server
from tests.web_calls import calling, error_in, open_caller
from trisync.server import Server
from trisync.sessions.hook_requests import Client, PublishRequest, Refuse, SubscribeRequest
from trisync.storage.sqlite_opening import FILE_NAME

LOBBY = "/channels/lobby/messages"
TITLE = "/channels/doc/state/title"


async def test_a_programs_hooks_are_asked_about_calls(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller):
        seen: list[tuple[str, str | None, Any]] = []
        await caller.ok("POST", "/channels/secret.a/messages", 1)

        @running.server.on_publish("chat.*")
        async def clean(publish: PublishRequest) -> None:
            seen.append((publish.client.door, publish.client.name, publish.data))
            if publish.data is None:
                raise Refuse("nobody empties this")
            publish.data = {"text": publish.data["text"].strip()}

        @running.server.on_subscribe("secret.*")
        async def guard(subscribe: SubscribeRequest) -> None:
            raise Refuse("this is secret")

        fresh = await open_caller(running)
        async with fresh.stream:
            await fresh.ok("POST", "/channels/chat.a/messages?name=ann", {"text": " hi "})
            assert (await fresh.ok("GET", "/channels/chat.a/messages"))["messages"][0]["data"] == {"text": "hi"}
            assert (await fresh.denied(403, "DELETE", "/channels/chat.a"))["message"] == "nobody empties this"
            assert seen == [("http", "ann", {"text": " hi "}), ("http", None, None)]
            for path in ("messages", "state", "state/a", "events"):
                error = await fresh.denied(403, "GET", f"/channels/secret.a/{path}")
                assert (error["code"], error["message"]) == ("forbidden", "this is secret")
            listed = await fresh.ok("GET", "/channels")
            assert [info["channel"] for info in listed["channels"]] == ["chat.a"]


async def make_channels(peer: Peer, *names: str) -> None:
    for name in names:
        await peer.request("publish", channel=name, data=1)


def hide_channels(server: Server) -> None:
    """Have a hook that lets nobody read the hidden ones."""

    @server.on_subscribe("hidden.*")
    async def hide(subscribe: SubscribeRequest) -> None:
        raise Refuse("this is hidden")


async def test_a_list_of_channels_tells_nothing_of_those_that_a_hook_hides(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await make_channels(peer, "a", "hidden.1", "hidden.2", "hidden.3", "m", "z")
        hide_channels(running.server)
        caller = await open_caller(running)
        async with caller.stream:
            pages = []
            for query in ("limit=1", "limit=1&after=a", "limit=2&after=a", "limit=2&after=hidden.2", "after=z"):
                page = await caller.ok("GET", f"/channels?{query}")
                pages.append(([info["channel"] for info in page["channels"]], page["after"], page["more"]))
            assert pages == [
                (["a"], "a", True),
                (["m"], "m", True),
                (["m", "z"], "z", False),
                (["m", "z"], "z", False),
                ([], "z", False),
            ]


async def test_a_page_of_channels_may_end_where_only_hidden_ones_are_left(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await make_channels(peer, "a", "hidden.1", "hidden.2")
        hide_channels(running.server)
        caller = await open_caller(running)
        async with caller.stream:
            for query, names in (("limit=1", ["a"]), ("limit=1&after=a", [])):
                page = await caller.ok("GET", f"/channels?{query}")
                assert [info["channel"] for info in page["channels"]] == names
                assert (page["after"], page["more"]) == ("a", False)


async def test_what_a_hook_refuses_is_not_remembered_under_an_idempotency_key(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        open_hours = False

        @running.server.on_publish
        async def opening_hours(publish: PublishRequest) -> None:
            if not open_hours:
                raise Refuse("closed", "unavailable")

        caller = await open_caller(running)
        async with caller.stream:
            response = await caller.call("POST", LOBBY, 1, idempotency_key="k")
            assert (response.status, response.headers["retry-after"]) == (503, "2")
            open_hours = True
            assert await caller.ok("POST", LOBBY, 1, idempotency_key="k") == {"offset": 1}


async def test_a_write_to_a_key_that_has_to_exist_is_not_tried_again_where_a_hook_refuses_it(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        asked: list[Any] = []

        @running.server.on_publish
        async def judge(publish: PublishRequest) -> None:
            asked.append(publish.data)
            if publish.data == "bad":
                raise Refuse("closed")

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("PUT", TITLE, "good")
            assert (await caller.denied(403, "PUT", TITLE, "bad", if_match="*"))["message"] == "closed"
            assert asked == ["good", "bad"]


@pytest.mark.parametrize("code", ["forbidden", "unavailable"])
async def test_a_call_that_was_stored_gets_its_verdict_again_whatever_a_hook_says_then(
    tmp_path: Path, code: str
) -> None:
    async with running_server(tmp_path) as running:
        closed = False

        @running.server.on_publish
        async def opening_hours(publish: PublishRequest) -> None:
            if closed:
                raise Refuse("closed", code)

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("POST", LOBBY, 1, idempotency_key="k")
            closed = True
            repeated = await caller.ok("POST", LOBBY, 1, idempotency_key="k")
            assert repeated == {"offset": 1, "duplicate": True}
            await caller.denied(422, "POST", LOBBY, 2, idempotency_key="k")
            error = await caller.denied(403 if code == "forbidden" else 503, "POST", LOBBY, 1, idempotency_key="new")
            assert (error["code"], error["message"]) == (code, "closed")
            assert (await caller.ok("GET", LOBBY))["offset"] == 1


async def test_a_call_that_was_stored_is_not_refused_for_good_while_the_log_cannot_tell(tmp_path: Path) -> None:
    async with running_server(tmp_path, busy_ms=0) as running:
        closed = False

        @running.server.on_publish
        async def opening_hours(publish: PublishRequest) -> None:
            if closed:
                raise Refuse("closed")

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("POST", LOBBY, 1, idempotency_key="k")
            closed = True
            with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                error = await caller.denied(503, "POST", LOBBY, 1, idempotency_key="k")
            assert (error["code"], error["retry"]) == ("unavailable", True)
            assert (await caller.ok("POST", LOBBY, 1, idempotency_key="k"))["duplicate"]


async def test_a_write_is_answered_as_what_a_hook_has_made_of_it(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:

        @running.server.on_publish
        async def turn_round(publish: PublishRequest) -> None:
            publish.data = "made anew" if publish.data is None else None

        caller = await open_caller(running)
        async with caller.stream:
            for method, body in (("PUT", 5), ("PATCH", {"a": 1})):
                response = await caller.call(method, TITLE, body, if_none_match="*")
                assert (response.status, "etag" in response.headers) == (200, False)
                await caller.denied(404, "GET", TITLE)
            response = await caller.call("DELETE", TITLE, if_none_match="*")
            assert (response.status, response.headers["etag"]) == (201, '"3"')
            assert (await caller.call("GET", TITLE)).headers["etag"] == '"3"'


async def test_a_name_that_a_hook_gives_in_a_call_outlasts_it(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:

        @running.server.on_publish("lobby")
        async def judge(publish: PublishRequest) -> None:
            if publish.data == "rename me":
                publish.client.name = "guest"

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("POST", f"{LOBBY}?name=ann", "as ann")
            await caller.ok("POST", LOBBY, "as nobody")
            await caller.ok("POST", f"{LOBBY}?name=ann", "rename me")
            await caller.ok("POST", LOBBY, "as guest")
            messages = (await caller.ok("GET", LOBBY))["messages"]
            assert [message.get("from") for message in messages][-1] == "guest"
            assert [message.get("from") for message in messages][:2] == ["ann", None]


def the_end(running: Running) -> trio.MemoryReceiveChannel[str | None]:
    """Why each client of a server has gone, as its program is told."""
    tell, ends = trio.open_memory_channel[str | None](1)

    @running.server.on_disconnect
    async def part(client: Client) -> None:
        await tell.send(client.ended)

    return ends


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/channels/closed/messages", b"1", "the client hung up"),
        (LOBBY, b"x" * 2000, "too_large: a message is at most 1024 bytes"),
    ],
)
async def test_a_hook_is_told_why_a_caller_has_gone(tmp_path: Path, path: str, body: bytes, reason: str) -> None:
    async with running_server(tmp_path, message_bytes_max=1024) as running:
        end = the_end(running)

        @running.server.on_publish("closed")
        async def refuse(publish: PublishRequest) -> None:
            raise Refuse("closed")

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("POST", LOBBY, 1)
            assert (await caller.call("POST", path, body)).status >= 400
        assert await end.receive() == reason


async def test_a_caller_whom_a_hook_refuses_has_gone_for_that(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        end = the_end(running)

        @running.server.on_connect
        async def meet(client: Client) -> None:
            raise Refuse("no entry")

        caller = await open_caller(running)
        async with caller.stream:
            await caller.denied(403, "GET", LOBBY)
        assert await end.receive() == "forbidden: no entry"


async def test_a_caller_is_a_client_for_as_long_as_its_connection_lasts(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        told: list[str] = []
        gone = trio.Event()

        @running.server.on_connect
        async def meet(client: Client) -> None:
            if len(told) == 2:
                raise Refuse("no more")
            client.name = "guest"
            told.append(f"{client.door} came")

        @running.server.on_disconnect
        async def part(client: Client) -> None:
            told.append(f"{client.door} went")
            gone.set()

        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("POST", f"{LOBBY}?name=ann", 1)
            await caller.ok("POST", LOBBY, 2)
            messages = (await caller.ok("GET", LOBBY))["messages"]
            assert [message["from"] for message in messages] == ["ann", "guest"]
            assert told == ["http came"]
        await gone.wait()
        assert told == ["http came", "http went"]
        caller = await open_caller(running)
        async with caller.stream:
            response = await caller.call("GET", LOBBY)
            assert (response.status, response.headers["connection"]) == (403, "close")
            assert error_in(response)["message"] == "no more"
