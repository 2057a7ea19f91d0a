"""What is JSON but no request, and what a connection may not do: each with its code, and it goes on."""

import json
from typing import Any

import pytest

from tests.hostile.arena import Undisturbed

PRODUCER = "producer-for-these-tests"

# The field that is to blame, and the request; `id` is there to see that it comes back.
BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("op", {}),
    ("op", {"op": 5}),
    ("op", {"op": None}),
    ("op", {"op": ["ping"]}),
    ("channel", {"op": "publish", "data": 1}),
    ("data", {"op": "publish", "channel": "attacked"}),
    ("channel", {"op": "publish", "channel": 5, "data": 1}),
    ("channel", {"op": "publish", "channel": None, "data": 1}),
    ("channel", {"op": "publish", "channel": "", "data": 1}),
    ("channel", {"op": "publish", "channel": "a" * 201, "data": 1}),
    ("channel", {"op": "publish", "channel": "$system", "data": 1}),
    ("channel", {"op": "publish", "channel": "with space", "data": 1}),
    ("channel", {"op": "publish", "channel": "umlaut-ä", "data": 1}),
    ("channel", {"op": "publish", "channel": "line\n", "data": 1}),
    ("channel", {"op": "publish", "channel": 'quote"', "data": 1}),
    ("channel", {"op": "subscribe"}),
    ("channel", {"op": "subscribe", "channel": ["attacked"]}),
    ("channel", {"op": "subscribe", "channel": "nul\0"}),
    ("channel", {"op": "unsubscribe"}),
    ("channel", {"op": "unsubscribe", "channel": {}}),
    ("channel", {"op": "history", "channel": "semi;colon"}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": "1"}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": 0}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": -1}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": 1.5}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": 2**53}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": 10**30}),
    ("seq", {"op": "publish", "channel": "attacked", "data": 1, "seq": None}),
    ("producer", {"op": "publish", "channel": "attacked", "data": 1, "seq": 1}),
    ("ephemeral", {"op": "publish", "channel": "attacked", "data": 1, "ephemeral": 1}),
    ("ephemeral", {"op": "publish", "channel": "attacked", "data": 1, "ephemeral": "yes"}),
    ("since", {"op": "subscribe", "channel": "attacked", "since": -1}),
    ("since", {"op": "subscribe", "channel": "attacked", "since": "0"}),
    ("since", {"op": "subscribe", "channel": "attacked", "since": 0.5}),
    ("since", {"op": "subscribe", "channel": "attacked", "since": 2**53}),
    ("since", {"op": "subscribe", "channel": "attacked", "since": 2**64}),
    ("epoch", {"op": "subscribe", "channel": "attacked", "since": 1, "epoch": 5}),
    ("last", {"op": "subscribe", "channel": "attacked", "last": 0}),
    ("last", {"op": "subscribe", "channel": "attacked", "last": 1001}),
    ("last", {"op": "subscribe", "channel": "attacked", "last": True}),
    ("last", {"op": "subscribe", "channel": "attacked", "last": 1, "since": 0}),
    ("state", {"op": "subscribe", "channel": "attacked", "state": "true"}),
    ("presence", {"op": "subscribe", "channel": "attacked", "presence": 1}),
    ("limit", {"op": "history", "channel": "attacked", "limit": 0}),
    ("limit", {"op": "history", "channel": "attacked", "limit": 1001}),
    ("limit", {"op": "history", "channel": "attacked", "limit": 2**70}),
    ("since", {"op": "history", "channel": "attacked", "since": -1}),
    ("name", {"op": "hello", "name": ""}),
    ("name", {"op": "hello", "name": "a" * 65}),
    ("name", {"op": "hello", "name": "bell\x07"}),
    ("name", {"op": "hello", "name": "next line\x85"}),
    ("name", {"op": "hello", "name": "line\n"}),
    ("name", {"op": "hello", "name": 5}),
    ("producer", {"op": "hello", "producer": "too-short"}),
    ("producer", {"op": "hello", "producer": "x" * 65}),
    ("producer", {"op": "hello", "producer": 5}),
]

BAD_IDS = [
    b"1.5",
    b"1e400",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b"9007199254740993",
    b"-9007199254740993",
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b'"' + b"x" * 65 + b'"',
]


async def test_a_field_that_is_missing_of_the_wrong_type_or_out_of_range_is_named(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for number, (field, fields) in enumerate(BAD_REQUESTS):
            error = await peer.refused(json.dumps({"id": number, **fields}).encode())
            assert (error["code"], error["retry"], error["id"]) == ("bad_request", False, number), (fields, error)
            assert field in error["message"], (fields, error)
        await peer.still_served()
        assert (await peer.request("history", channel="attacked"))["offset"] == 0


async def test_json_that_is_no_request_is_refused(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for payload in (b"5", b"null", b"true", b'"ping"', b"[]", b'[{"op":"ping"}]', b"{}", b"1e400"):
            error = await peer.refused(payload)
            assert error["code"] in ("bad_request", "bad_json"), payload
            assert (error["retry"], "id" in error) == (False, False)
        await peer.still_served()


async def test_an_id_that_is_none_does_not_come_back(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for id in BAD_IDS:
            for op in (b'"op":"ping"', b'"op":"publish","channel":"attacked","data":1', b'"op":"nope"'):
                error = await peer.refused(b"{" + op + b',"id":' + id + b"}")
                assert error["code"] in ("bad_request", "unknown_op"), id[:20]
                assert "id" not in error
        await peer.still_served()


async def test_an_id_of_the_largest_kind_comes_back(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed(log_lines=0) as arena, arena.speaking(dialect) as peer:
        for id in (2**53, -(2**53), 0, "", "ä" * 64, "\U0001f600" * 64, '"\\\n\0'):
            await peer.send("ping", id=id)
            assert await peer.receive() == {"op": "pong", "id": id}


async def test_an_operation_that_there_is_not_is_refused_with_the_id(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for op in ("nope", "", "PING", "ping ", "ok", "message", "__class__", "a\nb", "x" * 100_000):
            error = await peer.request(op, channel="attacked", data=1)
            assert (error["op"], error["code"], error["retry"]) == ("error", "unknown_op", False), op[:20]
            assert len(error["message"]) < 1000
        await peer.still_served()


@pytest.mark.parametrize("text", [b"\\nall is lost", b"\\u2028all is lost", b"x" * 100_000], ids=len)
async def test_what_a_client_wrote_neither_breaks_nor_fills_the_log(
    undisturbed: Undisturbed, dialect: str, text: bytes
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        # The name said twice: one reader takes the first, another the last.
        error = await peer.refused(b'{"op":"' + text + b'","op":"ping","id":1}')
        assert error["code"] in ("bad_request", "unknown_op")
        assert len(error["message"]) < 1000


async def test_a_refusal_is_logged_once_however_often_it_is_provoked(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        for number in range(300):
            await peer.send(("nope", "publish", "subscribe")[number % 3], id=number)
        assert {(await peer.receive_error())["id"] for _ in range(300)} == set(range(300))


# Sequences


async def test_a_seq_too_far_is_out_of_sequence_and_says_where_to_resend_from(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        assert (await peer.request("hello", producer=PRODUCER))["seq"] == 0
        assert (await peer.request("publish", channel="attacked", data=1, seq=1))["offset"] == 1
        for seq in (3, 2**53 - 1):
            error = await peer.request("publish", channel="attacked", data=1, seq=seq)
            assert (error["code"], error["retry"], error["seq"]) == ("out_of_sequence", True, 1)
        assert (await peer.request("publish", channel="attacked", data=2, seq=2))["offset"] == 2


async def test_a_refused_publish_settles_its_seq_and_is_refused_again_alike(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as peer:
        await peer.request("hello", producer=PRODUCER)
        first = await peer.request("publish", channel="no channel", data=1, seq=1)
        assert (first["code"], first["retry"]) == ("bad_request", False)
        assert await peer.request("publish", channel="attacked", data=1, seq=1) == first
        assert (await peer.request("publish", channel="attacked", data=2, seq=2))["offset"] == 1
        again = await peer.request("publish", channel="attacked", data=2, seq=2)
        assert again == {"op": "ok", "id": 1, "offset": 1, "duplicate": True}


async def test_the_newest_connection_of_a_producer_takes_it_over_and_the_older_is_fenced(
    undisturbed: Undisturbed, dialect: str
) -> None:
    async with undisturbed() as arena, arena.speaking(dialect) as older, arena.speaking("lines") as newer:
        await older.request("hello", producer=PRODUCER)
        assert (await older.request("publish", channel="attacked", data=1, seq=1))["offset"] == 1
        assert (await newer.request("hello", producer=PRODUCER))["seq"] == 1
        for seq in (1, 2, 9):
            error = await older.request("publish", channel="attacked", data=2, seq=seq)
            assert (error["code"], error["retry"]) == ("fenced", False)
        assert (await newer.request("publish", channel="attacked", data=3, seq=2))["offset"] == 2
        # Without a seq it may go on, and with a hello it takes the producer back.
        assert (await older.request("publish", channel="attacked", data=4))["offset"] == 3
        assert (await older.request("hello", producer=PRODUCER))["seq"] == 2
        assert (await older.request("publish", channel="attacked", data=5, seq=3))["offset"] == 4


# Limits


async def test_one_subscription_too_many_meets_the_limit_and_says_which(undisturbed: Undisturbed, dialect: str) -> None:
    async with undisturbed(subscriptions_max=2) as arena, arena.speaking(dialect) as peer:
        assert (await peer.request("hello"))["limits"]["subscriptions_max"] == 2
        for channel in ("one", "two"):
            assert (await peer.request("subscribe", channel=channel))["op"] == "ok"
        error = await peer.request("subscribe", channel="three")
        assert (error["code"], error["retry"]) == ("limit", False)
        assert (error["limit"], error["value"]) == ("subscriptions_max", 2)
        assert (await peer.request("subscribe", channel="one", last=1))["op"] == "ok"
        assert (await peer.request("unsubscribe", channel="one"))["op"] == "ok"
        assert (await peer.request("subscribe", channel="three"))["op"] == "ok"
