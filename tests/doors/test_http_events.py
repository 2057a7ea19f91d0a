"""Server-sent events over real sockets: beginning, coming back, and ending."""

import random
import re
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.harness import PATIENCE_S, read_to_end, running_server
from tests.web_calls import Events, error_in, head_of, open_caller, open_events
from trisync.storage.log import LogUnavailable
from trisync.wire.event_stream import epoch_mark, join_events
from trisync.wire.framing import events
from trisync.wire.replies import encode_gap, encode_goodbye

EVENTS = "/channels/lobby/events"


# How messages become events


def test_an_event_has_the_offset_as_its_id_and_the_message_as_its_data() -> None:
    stored = b'{"op":"message","channel":"a:b","offset":12,"time":5,"from":"x","data":{"offset":7}}'
    ephemeral = b'{"op":"message","channel":"a","time":5,"data":{"channel":"a","offset":7}}'
    assert join_events([stored, ephemeral]) == b"id: 12\ndata: %b\n\ndata: %b\n\n" % (stored, ephemeral)


def test_an_id_tells_the_epoch_too_where_one_was_given() -> None:
    mark = epoch_mark("5e70")
    stored = b'{"op":"message","channel":"a","offset":12,"time":5,"data":1}'
    unknown = encode_gap("a", "epoch")
    assert events(mark).join([stored, unknown]) == (
        b"id: 12@5e70\ndata: %b\n\nid: 0@5e70\nevent: gap\ndata: %b\n\n" % (stored, unknown)
    )


def test_what_is_no_message_is_an_event_of_another_name() -> None:
    gap, unknown, goodbye = encode_gap("a", "trimmed", 3, 9), encode_gap("a", "epoch"), encode_goodbye(1700)
    assert join_events([gap]) == b"id: 9\nevent: gap\ndata: %b\n\n" % gap
    assert join_events([unknown]) == b"id: 0\nevent: gap\ndata: %b\n\n" % unknown
    assert join_events([goodbye]) == b"retry: 1700\nevent: goodbye\ndata: %b\n\n" % goodbye


# Beginning


async def test_events_begin_at_the_head_and_go_on_live(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="lobby", data="before")
        events = await open_events(running, EVENTS)
        async with events.stream:
            assert "Content-Type: text/event-stream" in events.head
            assert "X-Accel-Buffering: no" in events.head
            ok = await events.next()
            epoch = (await peer.request("hello"))["epoch"]
            assert (ok.kind, ok.id, ok.data) == ("ok", "1", {"op": "ok", "offset": 1, "epoch": epoch})
            await peer.request("subscribe", channel="lobby")
            await peer.send("publish", channel="lobby", data="now")
            message = await peer.receive()
            event = await events.next()
            assert (event.kind, event.id, event.data) == ("message", "2", message)


@pytest.mark.parametrize(
    ("query", "header", "id", "offsets"),
    [
        ("?since=0", None, None, [1, 2, 3]),
        ("?since=2", None, None, [3]),
        ("?last=2", None, "1", [2, 3]),
        ("?last=9", None, "0", [1, 2, 3]),
        ("", "1", None, [2, 3]),
        ("?since=0", "2", None, [3]),
        ("?last=3", "2", None, [3]),
    ],
)
async def test_events_begin_where_it_is_asked_and_where_a_returning_client_was(
    tmp_path: Path, query: str, header: str | None, id: str | None, offsets: list[int]
) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        for number in range(3):
            await peer.request("publish", channel="lobby", data=number)
        headers = {} if header is None else {"last_event_id": header}
        events = await open_events(running, EVENTS + query, **headers)
        async with events.stream:
            ok = await events.next()
            assert (ok.kind, ok.id, ok.data["offset"]) == ("ok", id, 3)
            assert [message["offset"] for message in await events.messages(len(offsets))] == offsets


async def test_events_of_another_log_begin_with_a_gap(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="lobby", data="one")
        epoch = (await peer.request("hello"))["epoch"]
        for path, position, id in (
            (EVENTS, "7", "0"),
            (f"{EVENTS}?epoch=another", "1", f"0@{epoch}"),
            (f"{EVENTS}?epoch={epoch}", "1@another", f"0@{epoch}"),
        ):
            events = await open_events(running, path, last_event_id=position)
            async with events.stream:
                await events.next()
                gap = await events.next()
                assert (gap.kind, gap.id, gap.data["reason"]) == ("gap", id, "epoch")
                assert [message["offset"] for message in await events.messages(1)] == [1]


async def test_who_gives_an_epoch_is_told_of_another_log_once_however_often_it_comes_back(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        for number in range(2):
            await peer.request("publish", channel="lobby", data=number)
        path = f"{EVENTS}?since=0&epoch=of-before-the-restore"
        events = await open_events(running, path)
        async with events.stream:
            assert [(await events.next()).kind for _ in range(2)] == ["ok", "gap"]
            await events.messages(1)
        events = await open_events(running, path, last_event_id=events.last_id)
        async with events.stream:
            await events.next()
            await peer.request("publish", channel="lobby", data="live")
            assert [message["offset"] for message in await events.messages(2)] == [2, 3]


async def test_who_knows_no_epoch_yet_gives_an_empty_one_to_be_told_of_another_log_later(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="lobby", data="one")
        epoch = (await peer.request("hello"))["epoch"]
        for query, kind, offset in (("?epoch=", "ok", 1), ("?last=1&epoch=", "ok", 0), ("?since=0&epoch=", "gap", 0)):
            events = await open_events(running, EVENTS + query)
            async with events.stream:
                while (event := await events.next()).id is None:
                    pass
                assert (event.kind, event.id) == (kind, f"{offset}@{epoch}")


async def test_who_was_told_of_another_log_and_comes_back_misses_nothing_of_it(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        events = await open_events(running, EVENTS, last_event_id="1")
        async with events.stream:
            assert [(await events.next()).kind for _ in range(2)] == ["ok", "gap"]
        for number in range(2):
            await peer.request("publish", channel="lobby", data=number)
        events = await open_events(running, EVENTS, last_event_id=events.last_id)
        async with events.stream:
            await events.next()
            assert [message["offset"] for message in await events.messages(2)] == [1, 2]


async def test_who_asked_for_the_last_messages_before_there_were_any_misses_none_later(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        events = await open_events(running, f"{EVENTS}?last=2")
        async with events.stream:
            assert (await events.next()).id == "0"
        for number in range(3):
            await peer.request("publish", channel="lobby", data=number)
        events = await open_events(running, f"{EVENTS}?last=2", last_event_id=events.last_id)
        async with events.stream:
            await events.next()
            assert [message["offset"] for message in await events.messages(3)] == [1, 2, 3]


async def test_who_comes_back_behind_a_gap_is_not_told_of_it_again(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        for number in range(3):
            await peer.request("publish", channel="lobby", data=number)
        caller = await open_caller(running)
        async with caller.stream:
            await caller.ok("DELETE", "/channels/lobby")
        events = await open_events(running, f"{EVENTS}?since=1")
        async with events.stream:
            await events.next()
            gap = await events.next()
            assert (gap.kind, gap.data["from"], gap.data["to"]) == ("gap", 2, 3)
            assert events.last_id == "3"
        events = await open_events(running, f"{EVENTS}?since=1", last_event_id=events.last_id)
        async with events.stream:
            await events.next()
            await peer.request("publish", channel="lobby", data="new")
            assert [message["offset"] for message in await events.messages(1)] == [4]


async def test_events_bring_state_and_presence_where_they_are_asked_for(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="doc", key="title", data="x")
        events = await open_events(running, "/channels/doc/events?state=true&presence=true&name=ann")
        async with events.stream:
            ok = await events.next()
            seen = {event.kind: event.data for event in [await events.next(), await events.next()]}
            assert seen["presence"]["members"] == [{"member": ok.data["member"], "name": "ann"}]
            assert seen["state"]["entries"] == {"title": {"offset": 1, "data": "x"}}


async def test_an_ephemeral_event_does_not_move_where_a_client_is(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="lobby", data="stored")
        events = await open_events(running, EVENTS)
        async with events.stream:
            await events.next()
            await peer.request("publish", channel="lobby", data="typing", ephemeral=True)
            event = await events.next()
            assert (event.id, event.data["data"], events.last_id) == (None, "typing", "1")


@pytest.mark.parametrize("position", ["x", "-1", "1.5", "9007199254740992", "12345678901234567890"])
async def test_a_position_that_is_none_gets_400(tmp_path: Path, position: str) -> None:
    async with running_server(tmp_path) as running:
        caller = await open_caller(running)
        async with caller.stream:
            await caller.denied(400, "GET", EVENTS, last_event_id=position)
            await caller.ok("GET", "/channels/lobby/messages")


async def test_an_allowed_origin_may_read_events_and_a_foreign_one_is_not_told_that_it_may(tmp_path: Path) -> None:
    async with running_server(tmp_path, origins=["https://app.example"]) as running:
        events = await open_events(running, EVENTS, origin="https://app.example")
        async with events.stream:
            assert "Access-Control-Allow-Origin: https://app.example\r\n" in events.head
        events = await open_events(running, EVENTS, origin="https://evil.example")
        async with events.stream:
            assert "Access-Control-Allow-Origin" not in events.head


# Coming back


async def test_a_client_that_keeps_coming_back_gets_each_message_once_while_publishing_goes_on(tmp_path: Path) -> None:
    chance = random.Random(7)
    count = 600
    async with running_server(tmp_path) as running, running.lines() as publisher:

        async def publish() -> None:
            for number in range(count):
                await publisher.request("publish", channel="lobby", data=number)

        async with trio.open_nursery() as nursery:
            seen: list[int] = []
            last_id = ""
            begun = False
            with trio.fail_after(3 * PATIENCE_S):
                while len(seen) < count:
                    events = await open_events(running, EVENTS, **({"last_event_id": last_id} if last_id else {}))
                    async with events.stream:
                        assert (await events.next()).kind == "ok"
                        if not begun:
                            nursery.start_soon(publish)
                            begun = True
                        for _ in range(min(chance.randrange(40), count - len(seen))):
                            (message,) = await events.messages(1)
                            seen.append(message["data"])
                        last_id = events.last_id
        assert seen == list(range(count))


async def test_a_client_that_comes_back_after_a_restart_misses_nothing(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        events = await open_events(running, EVENTS)
        async with events.stream:
            await events.next()
            await peer.request("publish", channel="lobby", data=1)
            await events.messages(1)
        await peer.request("publish", channel="lobby", data=2)
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("publish", channel="lobby", data=3)
        events = await open_events(running, EVENTS, last_event_id=events.last_id)
        async with events.stream:
            await events.next()
            assert [message["data"] for message in await events.messages(2)] == [2, 3]


# While nothing happens, and the end


async def test_comments_show_that_a_connection_is_alive(tmp_path: Path) -> None:
    async with running_server(tmp_path, heartbeat_s=0.02) as running, running.lines() as peer:
        events = await open_events(running, EVENTS)
        async with events.stream:
            await events.next()
            for _ in range(3):
                await events.comment()
            await events.stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await peer.request("publish", channel="lobby", data="x")
            assert [message["data"] for message in await events.messages(1)] == ["x"]


async def test_who_ends_with_a_request_for_events_gets_those_that_were_there(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        for number in range(50):
            await peer.request("publish", channel="lobby", data=number)
        stream = await running.web()
        async with stream:
            await stream.send_all(head_of("GET", f"{EVENTS}?since=0", {}))
            await stream.send_eof()  # as `nc -N` does
            ids = re.findall(rb"^id: (\d+)$", await read_to_end(stream), re.MULTILINE)
        assert [int(id) for id in ids] == list(range(1, 51))


async def test_a_server_that_stops_says_when_to_come_back_and_ends_the_events(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        events = await open_events(running, EVENTS)
        async with events.stream:
            await events.next()
            await peer.request("publish", channel="lobby", data="last")
            running.server.drain()
            assert [message["data"] for message in await events.messages(1)] == ["last"]
            goodbye = await events.next()
            assert (goodbye.kind, goodbye.data["code"]) == ("goodbye", "draining")
            assert events.retry_ms == goodbye.data["reconnect_ms"]
            await events.end()


async def test_who_comes_back_while_the_server_is_still_stopping_is_told_to_come_again(tmp_path: Path) -> None:
    settings = {"linger_s": 60.0, "drain_s": 60.0, "reconnect_spread_ms": 1}
    async with running_server(tmp_path, **settings) as running, running.lines() as peer:
        await peer.request("ping")  # a client who has yet to hang up, and so keeps the server from ending
        running.server.drain()
        assert (await peer.receive())["op"] == "goodbye"
        events = await open_events(running, EVENTS, last_event_id="3")
        async with events.stream:
            assert (await events.next()).kind == "goodbye"
            assert (events.retry_ms, events.last_id) == (0, "")
            await events.end()


async def test_events_asked_for_while_the_server_begins_to_stop_end_at_once(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        held, reached = trio.Event(), trio.Event()

        @running.server.on_subscribe
        async def hold(subscribe: object) -> None:
            reached.set()
            await held.wait()

        events: list[Events] = []

        async def ask() -> None:
            events.append(await open_events(running, EVENTS))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await reached.wait()
            running.server.drain()
            await wait_all_tasks_blocked()
            held.set()
        async with events[0].stream:
            assert [(await events[0].next()).kind for _ in range(2)] == ["ok", "goodbye"]
            await events[0].end()


async def test_events_that_cannot_be_had_are_refused_with_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(tmp_path) as running:

        async def fail(*_: object) -> None:
            raise LogUnavailable("the disk is away")

        monkeypatch.setattr("trisync.storage.sqlite_log.SqliteLog.extent", fail)
        caller = await open_caller(running)
        async with caller.stream:
            response = await caller.call("GET", EVENTS)
            assert (response.status, response.headers["retry-after"]) == (503, "2")
            assert error_in(response)["code"] == "unavailable"
