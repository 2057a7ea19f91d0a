"""Who may call the HTTP interface, and how: methods, parameters, origins, hooks, and a server that stops."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.harness import running_server
from tests.web_calls import Caller, calling, error_in, open_caller, open_events
from trisync.sessions.hook_requests import PublishRequest
from trisync.storage.sqlite_log import SqliteLog

LOBBY = "/channels/lobby/messages"
TITLE = "/channels/doc/state/title"


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


@pytest.mark.parametrize("path", ["/channels", LOBBY, "/channels/doc/state", TITLE])
async def test_head_is_the_head_of_get(tmp_path: Path, path: str) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, "x")
        head = await caller.call("HEAD", path)
        got = await caller.call("GET", path)
        assert "date" in head.headers
        del head.headers["date"], got.headers["date"]  # they may lie a second apart
        assert (head.status, head.headers) == (got.status, got.headers)
        assert (await caller.call("HEAD", "/channels/doc/state/other")).status == 404


async def test_head_of_events_is_the_head_of_get_and_ends_there(tmp_path: Path) -> None:
    async with calling(tmp_path) as (running, caller):
        head = await caller.call("HEAD", "/channels/doc/events")
        assert await caller.receive_rest() == b""
        events = await open_events(running, "/channels/doc/events")
        async with events.stream:
            lines = [line.split(": ", 1) for line in events.head.split("\r\n")[1:]]
            got = {name.lower(): text for name, text in lines}
        assert "date" in head.headers
        del head.headers["date"], got["date"]  # they may lie a second apart
        assert (head.status, head.headers) == (200, got)


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


async def test_a_page_of_an_allowed_origin_may_import_the_client(tmp_path: Path) -> None:
    async with calling(tmp_path, origins=["https://app.example"]) as (_, caller):
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            script = await caller.call("GET", "/trisync.js", origin=origin)
            assert script.status == 200
            assert ("access-control-allow-origin" in script.headers) == allowed
            assert script.headers["vary"] == "Origin"


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


# Faults


async def test_the_log_tells_what_was_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trisync")
    async with running_server(tmp_path) as running:
        for line in (b"GET /nothing?a=1", b"POST /"):
            async with await running.web() as stream:
                await stream.send_all(line + b" HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n")
                async for _ in stream:
                    pass
    told = [text.partition(": ")[2] for text in caplog.messages if text.startswith("web ")]
    assert told[0] == "404 there is nothing here for GET /nothing?a=1"
    assert told[1].endswith(" for POST /")


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
