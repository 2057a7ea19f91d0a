"""The HTTP interface over real sockets: publishing, reading, keys, channels, and what becomes of a repetition."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.harness import Running, running_server
from tests.web_calls import Caller, error_in, open_caller
from trisync.sessions.hook_requests import Client, PublishRequest, Refuse, SubscribeRequest
from trisync.storage.sqlite_log import SqliteLog

LOBBY = "/channels/lobby/messages"
TITLE = "/channels/doc/state/title"


@asynccontextmanager
async def calling(folder: Path, **settings: Any) -> AsyncIterator[tuple[Running, Caller]]:
    """A server, and a client that calls it."""
    async with running_server(folder, **settings) as running:
        caller = await open_caller(running)
        async with caller.stream:
            yield running, caller


# Messages


async def test_what_is_posted_is_published_and_a_subscriber_gets_it(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller), running.lines() as peer:
        await peer.request("subscribe", channel="lobby")
        response = await caller.call("POST", f"{LOBBY}?name=ann", {"text": "hi"}, content_type="application/json")
        assert (response.status, json.loads(response.body)) == (201, {"op": "ok", "offset": 1})
        (message,) = await peer.receive_messages(1)
        assert (message["offset"], message["from"], message["data"]) == (1, "ann", {"text": "hi"})
        assert response.headers["location"] == f"{LOBBY}?since=0&limit=1"
        there = await caller.ok("GET", response.headers["location"])
        assert there["messages"] == [message]


async def test_data_goes_on_as_it_was_sent_save_line_ends_between_tokens(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("POST", LOBBY, b'\r\n{"n": 1.50,\n "big": 123456789012345678901234567890}\n')
        response = await caller.call("GET", LOBBY)
        assert b'"data":{"n": 1.50,  "big": 123456789012345678901234567890}}' in response.body


async def test_a_body_is_json_if_it_says_so_or_says_nothing(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        for content_type in ("application/json", "Application/JSON; charset=UTF-8", "application/vnd.app+json"):
            await caller.ok("POST", LOBBY, 1, content_type=content_type)
        await caller.ok("POST", LOBBY, 1)
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        async with calling(tmp_path) as (_, caller):
            response = await caller.call("POST", LOBBY, 1, content_type=content_type)
            assert (response.status, response.headers["accept"]) == (415, "application/json")
            assert error_in(response)["code"] == "bad_request"
    async with calling(tmp_path) as (_, caller):
        await caller.denied(415, "POST", LOBBY, 1, content_encoding="gzip")
        response = await caller.call("PATCH", TITLE, 1, content_type="text/plain")
        assert (response.status, response.headers["accept-patch"].split(",")[0]) == (
            415,
            "application/merge-patch+json",
        )


async def test_history_is_that_of_the_wire(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller), running.lines() as peer:
        for number in range(5):
            await peer.request("publish", channel="lobby", data=number)
        for path, fields in (
            (LOBBY, {}),
            (f"{LOBBY}?limit=2", {"limit": 2}),
            (f"{LOBBY}?since=1&limit=2", {"since": 1, "limit": 2}),
            ("/channels/nobody/messages", {"channel": "nobody"}),
        ):
            told = await peer.request("history", **{"channel": "lobby", **fields})
            assert {"id": 1, "op": "ok", **await caller.ok("GET", path)} == told


async def test_an_ephemeral_message_is_accepted_and_not_stored(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller), running.lines() as peer:
        await peer.request("subscribe", channel="lobby")
        response = await caller.call("POST", f"{LOBBY}?ephemeral=true", "typing")
        assert (response.status, json.loads(response.body)) == (202, {"op": "ok"})
        assert (await peer.receive())["data"] == "typing"
        assert (await caller.ok("GET", LOBBY))["messages"] == []
        await caller.denied(400, "POST", f"{LOBBY}?ephemeral=true", 1, idempotency_key="k")


async def test_a_keyed_post_has_its_conditions_in_the_query(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        post = "/channels/doc/messages?key=title"
        assert await caller.ok("POST", f"{post}&expect=0", {"a": 1}) == {"offset": 1}
        error = await caller.denied(409, "POST", f"{post}&expect=0", {"a": 2})
        assert (error["code"], error["offset"], error["data"]) == ("conflict", 1, {"a": 1})
        assert await caller.ok("POST", f"{post}&expect=1&merge=true", {"b": 2}) == {"offset": 2}
        assert json.loads((await caller.call("GET", TITLE)).body) == {"a": 1, "b": 2}
        error = await caller.denied(400, "POST", post, 1, if_match='"2"')
        assert "If-Match" in error["message"]


# Idempotency-Key


async def test_a_post_that_comes_again_is_stored_once(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        first = await caller.call("POST", LOBBY, "once", idempotency_key='"8e03978e"')
        again = await caller.call("POST", LOBBY, "once", idempotency_key='"8e03978e"')
        assert json.loads(first.body) == {"op": "ok", "offset": 1}
        assert json.loads(again.body) == {"op": "ok", "offset": 1, "duplicate": True}
        assert (again.status, again.headers["location"]) == (first.status, first.headers["location"])
        assert await caller.ok("POST", "/channels/other/messages", "once", idempotency_key='"8e03978e"') == {
            "offset": 1
        }
        assert (await caller.ok("GET", LOBBY))["offset"] == 1


async def test_a_post_that_comes_again_after_a_restart_is_stored_once(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        assert await caller.ok("POST", f"{LOBBY}?name=ann", {"n": 1}, idempotency_key="k1") == {"offset": 1}
        await caller.denied(409, "POST", f"{LOBBY}?key=a&expect=7", 1, idempotency_key="k2")
    async with calling(tmp_path) as (_, caller):
        repeated = await caller.ok("POST", f"{LOBBY}?name=ann", {"n": 1}, idempotency_key="k1")
        assert repeated == {"offset": 1, "duplicate": True}
        await caller.ok("PUT", "/channels/lobby/state/a", 0)
        await caller.denied(409, "POST", f"{LOBBY}?key=a&expect=7", 1, idempotency_key="k2")
        assert (await caller.ok("GET", LOBBY))["offset"] == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "header"),
    [
        ("POST", LOBBY, "other", {}),
        ("POST", f"{LOBBY}?name=ben", "once", {}),
        ("POST", f"{LOBBY}?key=a", "once", {}),
        ("PUT", "/channels/lobby/state/a", "once", {}),
        ("PUT", "/channels/lobby/state/a", "once", {"if_none_match": "*"}),
    ],
    ids=["data", "name", "key", "method", "condition"],
)
async def test_an_idempotency_key_is_for_one_request_only(
    tmp_path: Path, method: str, path: str, body: str, header: dict[str, str]
) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("POST", LOBBY, "once", idempotency_key="k")
        error = await caller.denied(422, method, path, body, idempotency_key="k", **header)
        assert error.keys() == {"op", "code", "message", "retry"}
        assert (error["code"], error["retry"]) == ("bad_request", False)
        assert (await caller.ok("GET", LOBBY))["offset"] == 1


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 256])
async def test_what_is_no_idempotency_key_is_refused(tmp_path: Path, key: str) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.denied(400, "POST", LOBBY, 1, idempotency_key=key)
        assert (await caller.ok("GET", LOBBY))["offset"] == 0


# Keys


async def test_a_key_is_put_got_patched_and_deleted(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        created = await caller.call("PUT", TITLE, {"text": "a", "size": 1}, if_none_match="*")
        assert (created.status, created.headers["etag"]) == (201, '"1"')
        put = await caller.call("PUT", TITLE, {"text": "b", "size": 1})
        assert (put.status, put.headers["etag"], json.loads(put.body)) == (200, '"2"', {"op": "ok", "offset": 2})
        patched = await caller.call(
            "PATCH", TITLE, {"size": None, "bold": True}, content_type="application/merge-patch+json", if_match='"2"'
        )
        assert (patched.status, patched.headers["etag"]) == (200, '"3"')
        got = await caller.call("GET", TITLE)
        assert (got.status, got.headers["etag"]) == (200, '"3"')
        assert json.loads(got.body) == {"text": "b", "bold": True}
        deleted = await caller.call("DELETE", TITLE, if_match='"3"')
        assert (deleted.status, json.loads(deleted.body)) == (200, {"op": "ok", "offset": 4})
        assert "etag" not in deleted.headers
        assert (await caller.denied(404, "GET", TITLE))["code"] == "not_found"


async def test_a_key_that_the_client_has_already_is_not_sent_again(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, "x")
        for known in ('"1"', 'W/"1"', '"0", "1"', "*"):
            response = await caller.call("GET", TITLE, if_none_match=known)
            assert (response.status, response.body, response.headers["etag"]) == (304, b"", '"1"')
        await caller.ok("PUT", TITLE, "y")
        response = await caller.call("GET", TITLE, if_none_match='"1"')
        assert (response.status, response.body, response.headers["etag"]) == (200, b'"y"', '"2"')


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_condition_that_is_not_met_gets_412_and_stores_nothing(tmp_path: Path, method: str) -> None:
    body = None if method == "DELETE" else {"mine": 1}
    async with calling(tmp_path) as (_, caller):
        for condition in ({"if_match": '"1"'}, {"if_match": "*"}):
            response = await caller.call(method, TITLE, body, **condition)
            error = error_in(response)
            assert (response.status, error["code"], error["offset"]) == (412, "conflict", 0)
            assert "etag" not in response.headers
        await caller.ok("PUT", TITLE, "theirs")
        for condition in ({"if_match": '"7"'}, {"if_none_match": "*"}, {"if_match": '"0"'}):
            response = await caller.call(method, TITLE, body, **condition)
            error = error_in(response)
            assert (response.status, response.headers["etag"]) == (412, '"1"')
            assert (error["code"], error["offset"], error["data"]) == ("conflict", 1, "theirs")
        assert await caller.ok(method, TITLE, body, if_match="*") == {"offset": 2}


@pytest.mark.parametrize(
    "condition",
    [
        {"if_match": "1"},
        {"if_match": 'W/"1"'},
        {"if_match": '"1", "2"'},
        {"if_match": '"x"'},
        {"if_none_match": '"1"'},
        {"if_match": "*", "if_none_match": "*"},
        {"if_match": "*", "idempotency_key": "k"},
    ],
    ids=str,
)
async def test_what_can_be_no_condition_gets_400(tmp_path: Path, condition: dict[str, str]) -> None:
    async with calling(tmp_path) as (_, caller):
        assert (await caller.denied(400, "PUT", TITLE, 1, **condition))["code"] == "bad_request"
        assert (await caller.ok("GET", "/channels/doc/messages"))["offset"] == 0


async def test_of_many_writers_with_the_same_etag_one_wins(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller):
        await caller.ok("PUT", TITLE, 0)
        statuses: list[int] = []

        async def write(number: int) -> None:
            writer = await open_caller(running)
            async with writer.stream:
                statuses.append((await writer.call("PUT", TITLE, number, if_match='"1"')).status)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(write, number)
        assert sorted(statuses) == [200] + [412] * 19


async def test_writers_who_only_ask_that_there_is_a_key_all_win_and_none_brings_it_back(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller):
        await caller.ok("PUT", TITLE, {})
        statuses: list[int] = []

        async def write(number: int) -> None:
            writer = await open_caller(running)
            async with writer.stream:
                statuses.append((await writer.call("PATCH", TITLE, {str(number): 1}, if_match="*")).status)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(write, number)
        assert statuses == [200] * 10
        assert len(json.loads((await caller.call("GET", TITLE)).body)) == 10
        await caller.ok("DELETE", TITLE)
        await caller.denied(412, "PATCH", TITLE, {"a": 1}, if_match="*")


async def test_a_writer_who_loses_to_others_all_the_time_is_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, 0)
        monkeypatch.setattr("trisync.doors.http_api.SWAPS_MAX", 0)
        error = await caller.denied(503, "PUT", TITLE, 1, if_match="*")
        assert (error["code"], error["retry"]) == ("unavailable", True)


async def test_the_state_comes_in_pages_and_is_empty_where_there_is_none(tmp_path: Path) -> None:
    async with calling(tmp_path, message_bytes_max=1024) as (_, caller):
        empty = await caller.ok("GET", "/channels/nobody/state")
        assert (empty["entries"], empty["offset"], empty["more"]) == ({}, 0, False)
        for number in range(4):
            await caller.ok("PUT", f"/channels/doc/state/k{number}", str(number) * 400)
        entries: dict[str, Any] = {}
        pages, more, after = 0, True, ""
        while more:
            page = await caller.ok("GET", f"/channels/doc/state?after={after}")
            entries |= page["entries"]
            pages, more, after = pages + 1, page["more"], max(entries)
        assert {key: entry["offset"] for key, entry in entries.items()} == {"k0": 1, "k1": 2, "k2": 3, "k3": 4}
        assert pages > 1


async def test_names_are_percent_encoded_in_paths(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller), running.lines() as peer:
        path = "/channels/games%2Fchess%23a=b@c/state/%C3%A9%2F%3F%20%2B"
        await caller.ok("PUT", path, "x")
        state = await peer.request("state", channel="games/chess#a=b@c")
        assert list(state["entries"]) == ["é/? +"]
        response = await caller.call("POST", "/channels/games%2Fchess%23a=b@c/messages", 1)
        messages = (await caller.ok("GET", response.headers["location"]))["messages"]
        assert [message["data"] for message in messages] == [1]
        for wrong in (
            "/channels/games/chess/messages",
            "/channels//messages/x",
            "/channels/a/other",
            "/channels/a/b/c",
        ):
            assert (await caller.denied(404, "GET", wrong))["code"] == "not_found"


# Channels


async def test_channels_are_listed_in_pages(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        assert (await caller.ok("GET", "/channels"))["channels"] == []
        for name in ("a", "b", "c"):
            await caller.ok("POST", f"/channels/{name}/messages", name)
        page = await caller.ok("GET", "/channels?limit=2")
        assert [(info["channel"], info["offset"], info["trimmed"]) for info in page["channels"]] == [
            ("a", 1, 0),
            ("b", 1, 0),
        ]
        assert (page["more"], page["after"]) == (True, "b")
        rest = await caller.ok("GET", f"/channels?limit=2&after={page['after']}")
        assert ([info["channel"] for info in rest["channels"]], rest["more"]) == (["c"], False)
        for limit in ("0", "1001", "x"):
            await caller.denied(400, "GET", f"/channels?limit={limit}")


async def test_a_page_of_channels_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    async with calling(tmp_path, message_bytes_max=1024) as (_, caller):
        names = [f"{number}{'x' * 199}" for number in range(9)]
        for name in names:
            await caller.ok("POST", f"/channels/{name}/messages", 1)
        seen: list[str] = []
        more, after = True, ""
        while more:
            response = await caller.call("GET", f"/channels?after={after}")
            assert len(response.body) <= 1024 + 4096
            page = json.loads(response.body)
            seen += [info["channel"] for info in page["channels"]]
            more, after = page["more"], page["after"]
        assert seen == names


async def test_a_deleted_channel_is_empty_and_its_subscribers_are_told(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller), running.lines() as peer:
        await caller.ok("PUT", TITLE, 1)
        await caller.ok("POST", "/channels/doc/messages", 2)
        await peer.request("subscribe", channel="doc")
        assert await caller.ok("DELETE", "/channels/doc") == {"offset": 2}
        gap = await peer.receive()
        assert (gap["op"], gap["from"], gap["to"]) == ("gap", 1, 2)
        assert (await caller.ok("GET", "/channels/doc/state"))["entries"] == {}
        assert await caller.ok("POST", "/channels/doc/messages", 3) == {"offset": 3}
        assert await caller.ok("DELETE", "/channels/nobody") == {"offset": 0}
        await caller.denied(400, "DELETE", "/channels/doc", if_match='"3"')


# Methods and parameters


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/channels", "GET, HEAD, OPTIONS"),
        ("/channels/a", "DELETE, OPTIONS"),
        (LOBBY, "GET, HEAD, POST, OPTIONS"),
        ("/channels/a/state", "GET, HEAD, OPTIONS"),
        (TITLE, "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"),
        ("/channels/a/events", "GET, HEAD, OPTIONS"),
    ],
)
async def test_each_resource_has_its_methods(tmp_path: Path, path: str, allow: str) -> None:
    async with calling(tmp_path) as (_, caller):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"):
            if method not in allow.split(", "):
                response = await caller.call(method, path)
                assert (response.status, response.headers["allow"]) == (405, allow)
                assert error_in(response)["code"] == "bad_request"
        options = await caller.call("OPTIONS", path)
        assert (options.status, options.headers["allow"], options.body) == (204, allow, b"")


@pytest.mark.parametrize("path", ["/channels", LOBBY, "/channels/doc/state", TITLE, "/channels/doc/events"])
async def test_head_is_the_head_of_get(tmp_path: Path, path: str) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, "x")
        head = await caller.call("HEAD", path)
        if path.endswith("events"):
            assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        else:
            got = await caller.call("GET", path)
            assert (head.status, head.headers) == (got.status, got.headers)
        assert (await caller.call("HEAD", "/channels/doc/state/other")).status == 404


@pytest.mark.parametrize(
    "query",
    [
        "expekt=1",
        "key=a&expect=-1",
        "key=a&expect=1.0",
        "key=a&expect=9007199254740992",
        "key=a&expect=",
        "key=a&merge=yes",
        "key=a&key=b",
        "key=",
        "key=%ff",
        "key=%0a",
        "key=%4",
        "key=" + "x" * 513,
        "key=" + "%C3%A9" * 257,
        "expect=1",
        "merge=true",
        "key=a&ephemeral=true",
        "name=",
        "name=%07",
        "name=" + "x" * 65,
        "&".join(f"p{number}=1" for number in range(100)),
    ],
)
async def test_a_parameter_out_of_place_or_range_gets_400_and_stores_nothing(tmp_path: Path, query: str) -> None:
    async with calling(tmp_path) as (_, caller):
        error = await caller.denied(400, "POST", f"{LOBBY}?{query}", 1)
        assert (error["code"], error["retry"]) == ("bad_request", False)
        assert (await caller.ok("GET", LOBBY))["offset"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/channels/%24system/messages",
        "/channels/a%20b/messages",
        "/channels/%zz/messages",
        "/channels/%ff/messages",
        "/channels//messages",
        f"/channels/{'x' * 201}/messages",
        "/channels/a/state/",
        f"/channels/a/state/{'x' * 513}",
        "/channels/a/state/%00",
        "/channels/a/messages?limit=0",
        "/channels/a/messages?limit=1001",
        "/channels/a/messages?last=1",
        "/channels/a/events?since=1&last=1",
        "/channels/a/events?last=0",
    ],
)
async def test_a_name_or_number_out_of_range_gets_400(tmp_path: Path, path: str) -> None:
    async with calling(tmp_path) as (_, caller):
        assert (await caller.denied(400, "GET", path))["code"] == "bad_request"


async def test_the_keys_of_a_channel_are_limited(tmp_path: Path) -> None:
    async with calling(tmp_path, keys_max=2) as (_, caller):
        for key in ("a", "b"):
            await caller.ok("PUT", f"/channels/doc/state/{key}", 1)
        error = await caller.denied(429, "PUT", "/channels/doc/state/c", 1)
        assert (error["code"], error["limit"], error["value"]) == ("limit", "keys_max", 2)
        await caller.ok("PUT", "/channels/doc/state/b", 2)


# Origins


async def test_a_page_of_an_allowed_origin_may_write_and_read_what_is_answered(tmp_path: Path) -> None:
    async with calling(tmp_path, origins=["https://app.example"]) as (_, caller):
        asked = {"origin": "https://app.example", "access_control_request_method": "PUT"}
        preflight = await caller.call("OPTIONS", TITLE, access_control_request_headers="if-match", **asked)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        assert "If-Match" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["vary"] == "Origin"
        for response in (
            await caller.call("PUT", TITLE, 1, origin="https://app.example"),
            await caller.call("PUT", TITLE, 1, origin="https://app.example", if_match='"9"'),
            await caller.call("GET", TITLE, origin="https://APP.example"),
        ):
            assert response.headers["access-control-allow-origin"].lower() == "https://app.example"
            assert "ETag" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"


async def test_a_foreign_page_can_neither_write_nor_read_what_is_answered(tmp_path: Path) -> None:
    for method in ("POST", "OPTIONS"):
        async with calling(tmp_path, origins=["https://app.example"]) as (_, caller):
            response = await caller.call(method, LOBBY, 1, origin="https://evil.example")
            assert (response.status, error_in(response)["code"]) == (403, "forbidden")
            assert "access-control-allow-origin" not in response.headers
    async with calling(tmp_path, origins=["https://app.example"]) as (_, caller):
        for origin in ("https://evil.example", "null"):
            response = await caller.call("GET", LOBBY, origin=origin)
            assert (response.status, json.loads(response.body)["offset"]) == (200, 0)
            assert "access-control-allow-origin" not in response.headers
            assert response.headers["vary"] == "Origin"
        assert (await caller.ok("POST", LOBBY, 1, origin="http://localhost"))["offset"] == 1


async def test_a_foreign_host_gets_its_error_as_json(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, _), await running.web() as stream:
        caller = Caller(stream)
        await caller.send_raw(b"GET /channels HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        response = await caller.get_response()
        assert (response.status, error_in(response)["code"]) == (421, "bad_request")


# Hooks


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


async def test_a_fault_of_the_server_is_500_and_the_end_of_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(tmp_path) as (_, caller):

        async def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("trisync.core.broker.Broker.history", fail)
        response = await caller.call("GET", LOBBY)
        error = error_in(response)
        assert (response.status, response.headers["connection"]) == (500, "close")
        assert (error["code"], error["retry"]) == ("internal", True)
        assert await caller.receive_rest() == b""
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage().split()[-1] in error["message"]


# Stopping


async def test_a_call_under_way_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        held, reached = trio.Event(), trio.Event()

        @running.server.on_publish
        async def hold(publish: PublishRequest) -> None:
            reached.set()
            await held.wait()

        waiting, idle, fresh = [await open_caller(running) for _ in range(3)]
        async with waiting.stream, idle.stream, fresh.stream:
            await idle.ok("GET", LOBBY)
            await waiting.send_raw(
                b"POST /channels/lobby/messages HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 1\r\n\r\n1"
            )
            await reached.wait()
            running.server.drain()
            assert await idle.receive_rest() == b""
            response = await fresh.call("GET", LOBBY)
            assert (response.status, response.headers["retry-after"]) == (503, "2")
            assert (error_in(response)["code"], error_in(response)["retry"]) == ("draining", True)
            held.set()
            response = await waiting.get_response()
            # Accepted too late to be stored, and told so.
            assert (response.status, error_in(response)["code"]) == (503, "draining")
            assert response.headers["connection"] == "close"


async def test_a_publish_on_its_way_to_the_disk_is_answered_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, reached = trio.Event(), trio.Event()
    append = SqliteLog.append

    async def slow(self: SqliteLog, batch: Any) -> Any:
        reached.set()
        await held.wait()
        return await append(self, batch)

    monkeypatch.setattr(SqliteLog, "append", slow)
    async with calling(tmp_path) as (running, caller):
        await caller.send_raw(b"PUT /channels/a/state/k HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 1\r\n\r\n1")
        await reached.wait()
        running.server.drain()
        await wait_all_tasks_blocked(0.01)
        held.set()
        response = await caller.get_response()
        assert (response.status, response.headers["etag"]) == (200, '"1"')
        assert await caller.receive_rest() == b""
