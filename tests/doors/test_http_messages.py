"""Messages over the HTTP interface: publishing, reading, and what becomes of a request that comes again."""

import json
from pathlib import Path

import pytest

from tests.web_calls import calling, error_in

LOBBY = "/channels/lobby/messages"
TITLE = "/channels/doc/state/title"


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
