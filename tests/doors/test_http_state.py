"""Keys and channels over the HTTP interface: a state's entries, conditions on them, and what there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.web_calls import calling, error_in, open_caller

LOBBY = "/channels/lobby/messages"
TITLE = "/channels/doc/state/title"


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
        for asked in ({}, {"if_match": "*"}, {"if_match": '"3"'}, {"if_none_match": "*"}):
            assert (await caller.denied(404, "GET", TITLE, **asked))["code"] == "not_found"


async def test_a_patch_of_another_kind_is_not_taken_for_a_merge(tmp_path: Path) -> None:
    operations = [{"op": "replace", "path": "/text", "value": "b"}]
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, {"text": "a"})
        refused = await caller.call("PATCH", TITLE, operations, content_type="application/json-patch+json")
        assert (refused.status, error_in(refused)["code"]) == (415, "bad_request")
        assert refused.headers["accept-patch"] == "application/merge-patch+json, application/json"
        assert json.loads((await caller.call("GET", TITLE)).body) == {"text": "a"}


async def test_only_what_is_there_then_was_created(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        for method, body in (("PUT", b"null"), ("DELETE", None)):
            absent = await caller.call(method, TITLE, body, if_none_match="*")
            assert absent.status == 200
            assert "etag" not in absent.headers
        assert (await caller.call("PUT", TITLE, 1, if_none_match="*")).status == 201


async def test_a_key_that_the_client_has_already_is_not_sent_again(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, "x")
        for known in ('"1"', 'W/"1"', '"0", "1"', "*"):
            response = await caller.call("GET", TITLE, if_none_match=known)
            assert (response.status, response.body, response.headers["etag"]) == (304, b"", '"1"')
        await caller.ok("PUT", TITLE, "y")
        response = await caller.call("GET", TITLE, if_none_match='"1"')
        assert (response.status, response.body, response.headers["etag"]) == (200, b'"y"', '"2"')


async def test_who_wants_to_read_only_what_it_expects_gets_412_for_anything_else(tmp_path: Path) -> None:
    async with calling(tmp_path) as (_, caller):
        await caller.ok("PUT", TITLE, "x")
        for expected in ('"1"', '"1", "2"', "*"):
            assert (await caller.call("GET", TITLE, if_match=expected)).body == b'"x"'
        response = await caller.call("GET", TITLE, if_match='"99"', if_none_match='"1"')
        error = error_in(response)
        assert (response.status, response.headers["etag"]) == (412, '"1"')
        assert (error["code"], error["offset"], error["data"]) == ("conflict", 1, "x")
        await caller.denied(404, "GET", "/channels/doc/state/other", if_match="*")


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
        assert await caller.ok("DELETE", "/channels/doc") == {"offset": 2}
        assert (await caller.ok("GET", "/channels/doc/state"))["entries"] == {}
        assert await caller.ok("POST", "/channels/doc/messages", 3) == {"offset": 3}
        assert (await peer.receive())["offset"] == 3  # and no gap for what was empty already
        assert await caller.ok("DELETE", "/channels/nobody") == {"offset": 0}
        await caller.denied(400, "DELETE", "/channels/doc", if_match='"3"')
        await caller.denied(400, "DELETE", "/channels/doc", idempotency_key="k")
        assert (await caller.ok("GET", "/channels/doc/messages"))["offset"] == 3
