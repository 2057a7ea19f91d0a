"""The HTTP interface under attack: bodies that are no JSON, too large, late, cut off or unwanted; slow readers."""

import json

import pytest

from tests.hostile.arena import MIB, Arena, Undisturbed, memory_bounded, reset
from tests.hostile.raw_peers import NOT_UTF8, RawHttp
from tests.web_calls import Caller, error_in, head_of, open_caller, open_events

LOBBY = "/channels/lobby/messages"
KIB = 1024


def post(*headers: str) -> bytes:
    """The head of a POST with further headers."""
    return head_of("POST", LOBBY, dict(line.split(": ", 1) for line in headers))


async def denied(peer: RawHttp, status: int, code: str) -> None:
    """The next answer must be this error, and the last one."""
    response = await peer.get_response()
    error = error_in(response)
    assert (response.status, error["code"], error["retry"]) == (status, code, False), error
    assert response.headers["connection"] == "close"
    assert await peer.receive_rest() == b""


async def nothing_was_stored(arena: Arena) -> None:
    """The channel is as empty as it was."""
    caller = await open_caller(arena.running)
    async with caller.stream:
        assert (await caller.ok("GET", LOBBY))["offset"] == 0


# Bodies that are no JSON


BODIES = {
    "nothing": b"",
    "blanks": b"  \r\n",
    "half a value": b'{"a":',
    "two values": b"1 2",
    "the end of the field and another": b'1,"key":"k"',
    "the end of the request and more": b'1},{"op":"ping"',
    "NaN": b"NaN",
    "a byte order mark": b"\xef\xbb\xbf1",
    "a lone surrogate": b'"\\ud800"',
    "a form": b"data=1&key=k",
    "too deep": b"[" * 64 + b"]" * 64,
    "far too deep": b"[" * 100_000,
    "zeros": bytes(100),
} | {f"not UTF-8: {what}": b'"' + text + b'"' for what, text in NOT_UTF8.items()}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_is_no_json_gets_400_and_the_conversation_goes_on(
    undisturbed: Undisturbed, body: bytes
) -> None:
    async with undisturbed() as arena:
        caller = await open_caller(arena.running)
        async with caller.stream:
            for method, path in (
                ("POST", LOBBY),
                ("PUT", "/channels/lobby/state/k"),
                ("PATCH", "/channels/lobby/state/k"),
            ):
                assert (await caller.denied(400, method, path, body))["code"] == "bad_json"
        await nothing_was_stored(arena)


# Bodies of another size than they should be


async def test_a_body_at_the_limit_is_taken_and_one_over_it_gets_413(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=KIB) as arena:
        caller = await open_caller(arena.running)
        async with caller.stream:
            await caller.ok("POST", LOBBY, b'"' + b"x" * 1022 + b'"')
            response = await caller.call("POST", LOBBY, b'"' + b"x" * 1023 + b'"')
            error = error_in(response)
            assert (response.status, error["code"]) == (413, "too_large")
            assert (error["limit"], error["value"]) == ("message_bytes_max", KIB)
            assert await caller.receive_rest() == b""


async def test_a_length_over_the_limit_gets_413_before_the_body_comes(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(post("Content-Length: 1000000000000"))
        await denied(peer, 413, "too_large")


async def test_chunks_without_end_get_413_and_cost_no_more_than_the_limit(undisturbed: Undisturbed) -> None:
    async with undisturbed(message_bytes_max=64 * KIB) as arena, arena.web() as peer:
        with memory_bounded(4 * MIB):
            await peer.send_raw(post("Transfer-Encoding: chunked"))
            await peer.pour(b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 300)
        assert (await peer.get_response()).status == 413
        await peer.receive_rest()
        await nothing_was_stored(arena)


async def test_a_merge_that_grows_over_the_limit_gets_413_and_the_conversation_goes_on(
    undisturbed: Undisturbed,
) -> None:
    async with undisturbed(message_bytes_max=KIB) as arena:
        caller = await open_caller(arena.running)
        async with caller.stream:
            await caller.ok("PUT", "/channels/lobby/state/k", {"a": "x" * 600})
            error = await caller.denied(413, "PATCH", "/channels/lobby/state/k", {"b": "x" * 600})
            assert error["code"] == "too_large"
            assert (await caller.ok("GET", LOBBY))["offset"] == 1


async def test_chunks_are_put_together_however_they_are_cut(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        body = b'3\r\n{"a\r\n4;x=y\r\n": [\r\n3\r\n1]}\r\n0\r\nTrailer: z\r\n\r\n'
        for byte in post("Transfer-Encoding: chunked") + body:
            await peer.send_raw(bytes((byte,)))
        assert (await peer.get_response()).status == 201
        await peer.send_raw(head_of("GET", LOBBY, {}))
        assert json.loads((await peer.get_response()).body)["messages"][0]["data"] == {"a": [1]}


# Bodies that do not come


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        (["Content-Length: 10"], b'"12345'),
        (["Content-Length: 10"], b""),
        (["Transfer-Encoding: chunked"], b'7\r\n"12345"\r\n'),
        (["Transfer-Encoding: chunked"], b'7\r\n"123'),
        (["Transfer-Encoding: chunked"], b"x\r\n"),
        (["Transfer-Encoding: chunked"], b'7\r\n"12345"0\r\n\r\n'),
    ],
)
async def test_a_body_that_is_cut_off_or_malformed_gets_400_and_nothing_is_stored(
    undisturbed: Undisturbed, headers: list[str], part: bytes
) -> None:
    async with undisturbed() as arena:
        async with arena.web() as peer:
            await peer.send_raw(post(*headers) + part)
            await peer.stream.send_eof()
            await denied(peer, 400, "bad_request")
        await nothing_was_stored(arena)


async def test_who_vanishes_in_the_middle_of_a_body_has_stored_nothing(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        async with arena.web() as peer:
            await peer.send_raw(post("Content-Length: 10") + b'"1234')
            await arena.connection_of(peer)
            reset(peer.stream)
        await arena.only_remain(2)
        await nothing_was_stored(arena)


async def test_a_body_that_stops_half_way_gets_408(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.2) as arena:
        async with arena.web() as peer:
            await peer.send_raw(post("Content-Length: 10") + b'"1234')
            await denied(peer, 408, "bad_request")
        await nothing_was_stored(arena)


async def test_a_body_that_comes_drop_by_drop_has_no_more_time_than_one_that_stops(undisturbed: Undisturbed) -> None:
    async with undisturbed(half_message_s=0.3) as arena, arena.web() as peer:
        await peer.send_raw(post("Content-Length: 1000000"))
        async with peer.dripping(b"x"):
            assert (await peer.get_response()).status == 408


async def test_a_body_is_not_waited_for_when_the_server_stops(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=1, half_message_s=60.0) as arena:
        async with arena.web() as peer:
            await peer.send_raw(post("Content-Length: 10", "Expect: 100-continue"))
            assert (await peer.get_response()).status == 100
            session = arena.registry._sessions[await arena.connection_of(peer)]
            assert session is not None
            session.goodbye()  # as at a stop, which the bystanders need not see
            response = await peer.get_response()
            assert (response.status, error_in(response)["code"]) == (503, "draining")


async def test_a_body_that_ends_in_two_ways_gets_400_and_hides_no_second_request(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena:
        async with arena.web() as peer:
            chunked = b"1\r\n5\r\n0\r\n\r\n"
            await peer.send_raw(post("Content-Length: 3", "Transfer-Encoding: chunked") + chunked + post())
            await denied(peer, 400, "bad_request")
        await nothing_was_stored(arena)


# Expectations and bodies that nobody wants


async def test_a_body_is_asked_for_only_when_it_will_be_taken(undisturbed: Undisturbed) -> None:
    expecting = "Expect: 100-continue"
    async with undisturbed(log_lines=9) as arena:
        async with arena.web() as peer:
            await peer.send_raw(post("Content-Length: 4", expecting))
            assert (await peer.get_response()).status == 100
            await peer.send_raw(b'"ok"')
            assert (await peer.get_response()).status == 201
        for status, code, headers in (
            (413, "too_large", ["Content-Length: 9999999"]),
            (415, "bad_request", ["Content-Length: 4", "Content-Type: text/plain"]),
        ):
            async with arena.web() as peer:
                await peer.send_raw(post(*headers, expecting))
                await denied(peer, status, code)
        key = "/channels/lobby/state/k"
        for method, path, header in (
            ("POST", "/channels/bad%20name/messages", "X: y"),
            ("PUT", "/channels/lobby/state/%00", "X: y"),
            ("POST", f"{LOBBY}?expect=1", "X: y"),
            ("POST", LOBBY, "Idempotency-Key: a b"),
            ("POST", LOBBY, 'If-Match: "1"'),
            ("PUT", key, "If-Match: 7"),
            ("PATCH", key, 'If-None-Match: "7"'),
        ):
            async with arena.web() as peer:
                named = dict(line.split(": ", 1) for line in (header, "Content-Length: 4", expecting))
                await peer.send_raw(head_of(method, path, named))
                await denied(peer, 400, "bad_request")


async def test_a_refused_call_whose_body_is_here_leaves_the_conversation_as_it_was(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena:
        caller = await open_caller(arena.running)
        async with caller.stream:
            await caller.denied(405, "PUT", LOBBY, {"a": 1})
            await caller.denied(404, "POST", "/channels/lobby/nothing", {"a": 1})
            await caller.denied(415, "POST", LOBBY, {"a": 1}, content_type="text/plain")
            await caller.denied(400, "POST", f"{LOBBY}?wrong=1", {"a": 1})
            assert (await caller.call("GET", LOBBY, {"a": 1})).status == 200
            assert await caller.ok("DELETE", "/channels/lobby/state/k", {"a": 1}) == {"offset": 1}


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "BREW"])
async def test_a_body_that_nobody_wants_is_not_waited_for(undisturbed: Undisturbed, method: str) -> None:
    async with undisturbed(log_lines=int(method == "BREW")) as arena, arena.web() as peer:
        await peer.send_raw(head_of(method, "/channels/lobby/state/k", {"Content-Length": "1000000000000"}))
        response = await peer.get_response()
        assert response.headers["connection"] == "close"
        assert await peer.receive_rest() == b""


async def test_calls_that_come_together_are_answered_one_after_the_other(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw((post("Content-Length: 1") + b"1" + head_of("GET", LOBBY, {})) * 20)
        for number in range(1, 21):
            assert json.loads((await peer.get_response()).body)["offset"] == number
            assert len(json.loads((await peer.get_response()).body)["messages"]) == number


async def test_an_answer_to_http_1_0_ends_the_connection(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(post("Content-Length: 1").replace(b"HTTP/1.1", b"HTTP/1.0") + b"1")
        assert (await peer.get_response()).status == 201
        assert await peer.receive_rest() == b""


# Readers


async def test_a_slow_reader_of_events_is_served_from_the_log_and_gets_everything(undisturbed: Undisturbed) -> None:
    count, size = 200, 100_000
    async with undisturbed(log_lines=0, backlog_bytes_max=256 * 1024) as arena:
        events = await open_events(arena.running, "/channels/lobby/events")
        async with events.stream, arena.tcp() as publisher:
            await events.next()
            connection = await arena.squeeze(Caller(events.stream))
            for number in range(count):
                answer = await publisher.request("publish", channel="lobby", data=f"{number:06}" + "x" * size)
                assert answer["offset"] == number + 1
            assert connection.outbox.backlog
            arena.release(connection)
            messages = await events.messages(count)
            assert [int(message["data"][:6]) for message in messages] == list(range(count))
            assert arena.peak_backlog(connection) < 2 * 1024 * 1024


async def test_who_is_gone_is_not_subscribed_any_more(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena:
        events = await open_events(arena.running, "/channels/lobby/events?presence=true")
        async with events.stream:
            await events.next()
            assert len(arena.running.server.members("lobby")) == 1
        await arena.only_remain(2)
        assert arena.running.server.members("lobby") == []
        assert arena.running.server._broker is not None
        assert list(arena.running.server._broker._channels) == ["bystanders"]
