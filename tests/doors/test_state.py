"""A channel's state: who may write it, what becomes of it, what it must not do, and what a crash leaves of it."""

import json
import signal
import socket
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.harness import PATIENCE_S, Json, Peer, running_server, server_process
from tests.merge_patches import DOCUMENT, EXAMPLES, PATCH, RESULT

PRODUCER = "b6ff1a90c2d84e17"


# Who may write


async def test_of_many_writers_with_the_same_expect_exactly_one_wins(tmp_path: Path) -> None:
    """On several connections and in several dialects; over and over, so that some meet in one batch."""
    async with running_server(tmp_path) as running, AsyncExitStack() as stack:
        writers: list[Peer] = []
        for _ in range(4):
            for client in (running.lines, running.frames, running.websocket):
                writers.append(await stack.enter_async_context(client()))
        offset, wins = 0, [0] * len(writers)
        for turn in range(30):
            answers: dict[int, Json] = {}

            async def write(number: int, expect: int, turn: int, answers: dict[int, Json]) -> None:
                answers[number] = await writers[number].request(
                    "publish", channel="doc", key="k", data=[turn, number], expect=expect
                )

            async with trio.open_nursery() as nursery:
                for number in range(len(writers)):
                    nursery.start_soon(write, number, offset, turn, answers)
            ((winner, won),) = [item for item in answers.items() if item[1]["op"] == "ok"]
            assert won["offset"] == offset + 1
            wins[winner] += 1
            offset = won["offset"]
            for number, answer in answers.items():
                if number != winner:
                    assert (answer["code"], answer["offset"], answer["data"]) == ("conflict", offset, [turn, winner])
        history = await writers[0].request("history", channel="doc", limit=1000)
        assert [message["data"][0] for message in history["messages"]] == list(range(30))


async def test_counting_together_by_compare_and_set_loses_no_count(tmp_path: Path) -> None:
    async def count(peer: Peer, times: int) -> None:
        offset, value = 0, 0
        while times:
            answer = await peer.request("publish", channel="doc", key="n", data=value + 1, expect=offset)
            if answer["op"] == "ok":
                offset, value, times = answer["offset"], value + 1, times - 1
            else:
                offset, value = answer["offset"], answer["data"] or 0

    async with running_server(tmp_path) as running, AsyncExitStack() as stack:
        clients = [client for _ in range(4) for client in (running.lines, running.websocket)]
        peers: list[Peer] = [await stack.enter_async_context(client()) for client in clients]
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(count, peer, 10)
        word = await running.server.word("doc", "n")
        assert word == (80, 80)


@pytest.mark.parametrize("expect", [1, 2**53 - 1])
async def test_an_expect_that_no_message_had_yet_is_a_conflict(tmp_path: Path, expect: int) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        refused = await peer.request("publish", channel="doc", key="k", data=1, expect=expect)
        assert (refused["code"], refused["retry"], refused["offset"], refused["data"]) == ("conflict", False, 0, None)
        assert (await peer.request("state", channel="doc"))["offset"] == 0


@pytest.mark.parametrize("expect", [-1, 2**53, 1.5, "1", None])
async def test_an_expect_that_is_no_offset_is_a_bad_request(tmp_path: Path, expect: object) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        refused = await peer.request("publish", channel="doc", key="k", data=1, expect=expect)
        assert (refused["code"], "expect" in refused["message"]) == ("bad_request", True)
        assert (await peer.request("publish", channel="doc", key="k", data=1, expect=0))["offset"] == 1


@pytest.mark.parametrize(
    "key", ["", "x" * 513, "é" * 257, "two\nlines", "nul\0", "\x7f", "\x9b", 5, None, ["k"]], ids=repr
)
async def test_what_is_no_key_is_a_bad_request_and_settles_its_seq(tmp_path: Path, key: object) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("hello", producer=PRODUCER)
        refused = await peer.request("publish", channel="doc", key=key, data=1, seq=1)
        assert (refused["code"], "key" in refused["message"]) == ("bad_request", True)
        assert (await peer.request("publish", channel="doc", key="x" * 512, data=1, seq=2))["offset"] == 1
        assert (await peer.request("state", channel="doc", key=key))["code"] == "bad_request"
        assert (await peer.request("state", channel="doc", key="é" * 256))["entries"] == {}


async def test_verdicts_about_keys_are_repeated_across_restarts(tmp_path: Path) -> None:
    publishes: list[Json] = [
        {"key": "k", "data": {"a": 1}},
        {"key": "k", "data": 0, "expect": 7},
        {"key": "gone", "data": 0, "expect": 7},
        {"key": "k", "data": {"b": 2}, "merge": True},
        {"key": "big", "data": "x" * 1500},
        {"key": "big", "data": {"more": "x" * 1500}, "merge": True},
        {"key": "full", "data": 1},
        {"key": "k", "data": 5, "expect": 2},
    ]
    answers: list[Json] = []
    settings = {"message_bytes_max": 2000, "keys_max": 2}
    async with running_server(tmp_path, **settings) as running, running.lines() as peer:
        await peer.request("hello", producer=PRODUCER)
        for seq, fields in enumerate(publishes, 1):
            answers.append(await peer.request("publish", channel="doc", seq=seq, **fields))
        assert [answer.get("code", answer.get("offset")) for answer in answers] == (
            [1, "conflict", "conflict", 2, 3, 4, "limit", 5]
        )
        assert (answers[1]["offset"], answers[1]["data"]) == (1, {"a": 1})
    async with running_server(tmp_path, **settings) as running, running.lines() as peer:
        assert (await peer.request("hello", producer=PRODUCER))["seq"] == len(publishes)
        for seq, (fields, first) in enumerate(zip(publishes, answers, strict=True), 1):
            again = await peer.request("publish", channel="doc", seq=seq, **fields)
            assert again == (first | {"duplicate": True} if first["op"] == "ok" else first)
        await running.server.clear("doc")
        # What stood in the way is gone, and that it did not is not said.
        again = await peer.request("publish", channel="doc", seq=2, **publishes[1])
        assert again == {name: value for name, value in answers[1].items() if name != "data"}


# What becomes of it


@pytest.mark.parametrize(("target", "patch", "result"), [*EXAMPLES, (DOCUMENT, PATCH, RESULT)])
async def test_the_examples_of_rfc_7396_over_the_wire(tmp_path: Path, target: str, patch: str, result: str) -> None:
    async with running_server(tmp_path) as running, running.frames() as peer:
        await peer.request("subscribe", channel="doc")
        for data, merge in ((target, "false"), (patch, "true")):
            request = f'{{"op":"publish","channel":"doc","key":"k","merge":{merge},"data":{data}}}'
            await peer.send_bytes(request.encode())
        first, second = await peer.receive_messages(2)
        assert first["data"] == json.loads(target)
        assert second["data"] == json.loads(result)
        entries = (await peer.request("state", channel="doc"))["entries"]
        assert entries == ({} if result == "null" else {"k": {"offset": 2, "data": json.loads(result)}})


@pytest.mark.parametrize("dialect", ["lines", "frames", "websocket"])
async def test_a_merge_that_would_be_too_large_is_refused_and_the_connection_goes_on(
    tmp_path: Path, dialect: str
) -> None:
    async with running_server(tmp_path, message_bytes_max=2000) as running, getattr(running, dialect)() as peer:
        for name in "ab":
            request = {"op": "publish", "id": 1, "channel": "doc", "key": "k", "data": {name: "é" * 900}, "merge": True}
            await peer.send_bytes(json.dumps(request, ensure_ascii=False).encode())
        assert (await peer.receive())["offset"] == 1
        refused = await peer.receive()
        assert (refused["code"], refused["limit"], refused["value"]) == ("too_large", "message_bytes_max", 2000)
        assert refused["retry"] is False
        assert (await peer.request("publish", channel="doc", key="k", data={"a": None, "b": 1}, merge=True))[
            "offset"
        ] == 2
        assert (await peer.request("state", channel="doc"))["entries"] == {"k": {"offset": 2, "data": {"b": 1}}}


async def test_deleting_makes_room_and_a_deleted_key_begins_anew(tmp_path: Path) -> None:
    async with running_server(tmp_path, keys_max=3) as running, running.lines() as peer:
        for key in "abc":
            await peer.request("publish", channel="doc", key=key, data=key)
        refused = await peer.request("publish", channel="doc", key="d", data=1)
        assert (refused["code"], refused["limit"], refused["value"]) == ("limit", "keys_max", 3)
        assert (await peer.request("publish", channel="doc", key="a", data="still"))["offset"] == 4
        assert (await peer.request("publish", channel="doc", key="d", data=None))["offset"] == 5  # no key, no room
        assert (await peer.request("publish", channel="doc", key="b", data=None))["offset"] == 6
        assert (await peer.request("publish", channel="doc", key="b", data=1, expect=2))["code"] == "conflict"
        assert (await peer.request("publish", channel="doc", key="d", data=1, expect=0))["offset"] == 7
        assert (await peer.request("publish", channel="doc", key="e", data=1))["code"] == "limit"
        assert (await peer.request("publish", channel="other", key="e", data=1))["offset"] == 1
        assert list((await peer.request("state", channel="doc"))["entries"]) == ["a", "c", "d"]
    async with running_server(tmp_path, keys_max=3) as running, running.lines() as peer:
        assert (await peer.request("publish", channel="doc", key="e", data=1))["code"] == "limit"


async def test_the_state_of_a_channel_that_nobody_wrote_to_is_empty(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        for fields in ({}, {"key": "k"}, {"after": "k"}):
            answer = await peer.request("state", channel="nowhere", **fields)
            assert (answer["entries"], answer["offset"], answer["more"]) == ({}, 0, False)
        await peer.request("subscribe", channel="nowhere", state=True)
        page = {"op": "state", "channel": "nowhere", "entries": {}, "more": False}
        assert await peer.receive() == page
        assert await running.server.clear("nowhere") == 0
        assert (await peer.request("ping"))["op"] == "pong"


async def test_a_subscription_with_state_is_replaced_by_one_without(tmp_path: Path) -> None:
    async with running_server(tmp_path, message_bytes_max=1024) as running, running.lines() as peer:
        for number in range(50):
            await running.server.publish("doc", "x" * 100, key=str(number))
        await peer.send("subscribe", id=1, channel="doc", state=True)
        await peer.send("subscribe", id=2, channel="doc")
        await peer.send("ping", id=3)
        said: list[Json] = []
        while not said or said[-1]["op"] != "pong":
            said.append(await peer.receive())
        second = [answer.get("id") for answer in said].index(2)
        assert all(message["op"] == "state" for message in said[1:second])
        await running.server.publish("doc", "new")
        assert (await peer.receive())["data"] == "new"


# What it must not do


async def pages_of(peer: Peer, channel: str) -> list[bytes]:
    """The pages of a state as a new subscription gets them, as bytes."""
    await peer.send("subscribe", channel=channel, state=True)
    pages = [await peer.receive_bytes()]
    while json.loads(pages[-1])["more"]:
        pages.append(await peer.receive_bytes())
    return pages


@pytest.mark.parametrize("character", ['"', "\\", "é", "😀", "x"])
@pytest.mark.parametrize("bytes_max", [2000, 100_000])
async def test_pages_of_a_state_are_as_large_as_a_client_may_expect_and_no_larger(
    tmp_path: Path, character: str, bytes_max: int
) -> None:
    key_bytes = 500
    padding = character * ((key_bytes - 4) // len(character.encode()))
    keys = {f"{number:04}{padding}" for number in range(300)}
    async with running_server(tmp_path, message_bytes_max=bytes_max) as running, running.lines() as peer:
        for key in keys:
            await peer.send("publish", channel="doc", key=key, data=1)
        await peer.request("publish", channel="doc", data="all of it is there")
        subscribed = await pages_of(peer, "doc")
        asked: list[bytes] = []
        after: Json = {}
        while True:
            await peer.send("state", id="x" * 64, channel="doc", **after)
            asked.append(await peer.receive_bytes())
            answer = json.loads(asked[-1])
            if not answer["more"]:
                break
            after = {"after": list(answer["entries"])[-1]}
        for pages in (subscribed, asked):
            assert max(map(len, pages)) <= bytes_max + 4096
            assert {key for page in pages for key in json.loads(page)["entries"]} == keys


async def test_a_cache_that_holds_no_page_does_no_harm(tmp_path: Path) -> None:
    async with running_server(tmp_path, cache_bytes_max=1) as running, running.lines() as peer:
        await running.server.publish("doc", "x" * 1000, key="k")
        for _ in range(2):
            (page,) = await pages_of(peer, "doc")
            assert json.loads(page)["entries"]["k"]["offset"] == 1


# What a crash leaves


def state_and_log_agree(folder: Path) -> int:
    """Compare the stored state with what the log says; returns how many messages there are."""
    database = sqlite3.connect(f"file:{folder}/trisync.db?mode=ro", uri=True)
    try:
        (count,) = database.execute("SELECT count(*) FROM messages").fetchone()
        newest = database.execute(
            "SELECT key, offset, data FROM (SELECT key, max(offset) AS offset, data FROM messages GROUP BY key) "
            "WHERE data <> 'null' ORDER BY key"
        ).fetchall()
        assert database.execute("SELECT key, offset, data FROM state ORDER BY key").fetchall() == newest
        (keys,) = database.execute("SELECT keys FROM channels WHERE name = 'doc'").fetchone()
        assert keys == len(newest)
        return int(count)
    finally:
        database.close()


def test_state_and_log_agree_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    acknowledged = 0
    for turn in range(3):
        with (
            server_process(tmp_path) as server,
            socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as client,
        ):
            requests = [
                {
                    "op": "publish",
                    "id": n,
                    "channel": "doc",
                    "key": f"k{n % 37}",
                    "data": None if n % 5 == 0 else [turn, n],
                }
                for n in range(3000)
            ]
            client.sendall(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
            answers = b""
            while answers.count(b"\n") < 300 * (turn + 1):
                answers += client.recv(65536)
            server.stop(signal.SIGKILL)
            acknowledged = json.loads(answers[: answers.rindex(b"\n")].splitlines()[-1])["offset"]
        assert state_and_log_agree(tmp_path) >= acknowledged
    assert acknowledged
