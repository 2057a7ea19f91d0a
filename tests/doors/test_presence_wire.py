"""Presence as clients see it: whole conversations, in memory and in virtual time where it matters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from tests.fakes import MemoryLog
from tests.harness import Json, LinesPeer, serving, settings_for
from trisync.core.broker import Broker
from trisync.doors.tcp import TcpDoor
from trisync.server import Server
from trisync.sessions.hooks import Hooks
from trisync.sessions.registry import Registry
from trisync.settings import Settings

ALICE = "alice-0123456789abcdef"
GRACE_S = 3.0
TICK_S = 0.1


class House:
    """A TCP door over a broker in memory, in Trio's time."""

    def __init__(self, nursery: trio.Nursery, settings: Settings) -> None:
        self.broker = Broker(MemoryLog(), settings, timer=trio.current_time)
        self._door = TcpDoor(self.broker, Registry(10_000), settings, Hooks())
        self._nursery = nursery
        nursery.start_soon(self.broker.run)
        nursery.start_soon(self.broker.presence.run)

    def visitor(self, *, slow: bool = False) -> LinesPeer:
        """A connection; a slow one takes nothing that it does not read."""
        ours, theirs = lockstep_stream_pair() if slow else memory_stream_pair()
        self._nursery.start_soon(self._door.handle, theirs, "memory")
        return LinesPeer(ours)

    async def member(self, name: str, producer: str | None = None, **fields: Any) -> LinesPeer:
        """Somebody who has come into the lobby."""
        peer = self.visitor()
        await peer.request("hello", name=name, **({} if producer is None else {"producer": producer}))
        await peer.request("subscribe", channel="lobby", **fields)
        return peer

    async def watcher(self) -> tuple[LinesPeer, str]:
        """Somebody in the lobby who watches, and is told who is there; with the id by which they are there."""
        peer = self.visitor()
        await peer.request("hello", name="watcher")
        id = (await peer.request("subscribe", channel="lobby", presence=True))["member"]
        assert any(member["member"] == id for member in (await peer.receive())["members"])
        return peer, id


@asynccontextmanager
async def a_house(**changes: Any) -> AsyncIterator[House]:
    settings = Settings(presence_grace_s=GRACE_S, presence_tick_s=TICK_S, linger_s=0.01, **changes)
    async with trio.open_nursery() as nursery:
        yield House(nursery, settings)
        nursery.cancel_scope.cancel()


async def told_within(peer: LinesPeer, seconds: float) -> list[Json]:
    """What a client is told of presence in so many seconds of virtual time."""
    told: list[Json] = []
    with trio.move_on_after(seconds):
        while True:
            told.append(await peer.receive())
    assert {message["op"] for message in told} <= {"presence"}
    return told


def names(event: Json) -> dict[str, list[str]]:
    """An event, as the names in it."""
    return {kind: [who.get("name", "") for who in event[kind]] for kind in ("joined", "left", "updated") if event[kind]}


async def test_a_session_that_ends_is_gone_at_the_next_tick(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        guest = await house.member("guest")
        assert [names(event) for event in await told_within(watcher, 2 * TICK_S)] == [{"joined": ["guest"]}]
        await guest.stream.aclose()
        assert [names(event) for event in await told_within(watcher, 2 * TICK_S)] == [{"left": ["guest"]}]


async def test_a_producer_that_reconnects_within_the_grace_is_not_told_of(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        alice = await house.member("alice", ALICE)
        (event,) = await told_within(watcher, 2 * TICK_S)
        for _ in range(3):
            await alice.stream.aclose()
            assert await told_within(watcher, GRACE_S - 1) == []
            assert len((await watcher.request("presence", channel="lobby"))["members"]) == 2
            alice = await house.member("alice", ALICE)
            assert await told_within(watcher, 2 * GRACE_S) == []
        await alice.stream.aclose()
        (gone,) = await told_within(watcher, GRACE_S + 1)
        assert gone["left"] == event["joined"]


async def test_a_producer_that_comes_back_under_another_name_is_updated(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        alice = await house.member("alice", ALICE)
        (joined,) = await told_within(watcher, 2 * TICK_S)
        await alice.stream.aclose()
        await house.member("alice the second", ALICE)
        (event,) = await told_within(watcher, GRACE_S + 1)
        assert event["updated"] == [{"member": joined["joined"][0]["member"], "name": "alice the second"}]


async def test_a_producer_that_unsubscribes_is_gone_without_a_grace(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        alice = await house.member("alice", ALICE)
        await told_within(watcher, 2 * TICK_S)
        await alice.request("unsubscribe", channel="lobby")
        assert [names(event) for event in await told_within(watcher, 2 * TICK_S)] == [{"left": ["alice"]}]


async def test_a_producer_on_two_connections_is_one_member_until_the_last_of_them_ends(
    autojump_clock: MockClock,
) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        first, second = await house.member("alice", ALICE), await house.member("alice", ALICE)
        assert [names(event) for event in await told_within(watcher, 2 * TICK_S)] == [{"joined": ["alice"]}]
        await first.stream.aclose()
        assert await told_within(watcher, 2 * GRACE_S) == []
        await second.stream.aclose()
        assert [names(event) for event in await told_within(watcher, 2 * GRACE_S)] == [{"left": ["alice"]}]


async def test_who_becomes_a_producer_while_there_is_another_member_from_then_on(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        guest = await house.member("guest")
        (joined,) = await told_within(watcher, 2 * TICK_S)
        await guest.request("hello", name="alice", producer=ALICE)
        (event,) = await told_within(watcher, 2 * TICK_S)
        assert event["left"] == joined["joined"]
        assert [who["name"] for who in event["joined"]] == ["alice"]
        assert event["joined"][0]["member"] != joined["joined"][0]["member"]


async def test_a_new_name_is_an_update_in_every_channel(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        guest = await house.member("guest")
        await guest.request("subscribe", channel="other", presence=True)
        await guest.receive()
        await told_within(watcher, 2 * TICK_S)
        await guest.request("hello", name="alice")
        await watcher.request("hello", name="still watching")
        for peer, expected in ((watcher, {"alice", "still watching"}), (guest, {"alice"})):
            (event,) = await told_within(peer, 2 * TICK_S)
            assert set(names(event)["updated"]) == expected


async def test_subscribing_again_without_presence_ends_the_watching_and_is_no_leave(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watcher, _ = await house.watcher()
        other, _ = await house.watcher()
        await told_within(watcher, 2 * TICK_S)
        assert "member" not in await watcher.request("subscribe", channel="lobby")
        await house.member("guest")
        assert await told_within(watcher, 2 * TICK_S) == []
        assert [names(event) for event in await told_within(other, 2 * TICK_S)] == [{"joined": ["guest"]}]


async def test_a_member_says_nothing_of_its_session_or_producer(tmp_path: Path) -> None:
    """The id is keyed with a secret of this run: who guesses a producer's id cannot even check the guess."""
    seen: list[str] = []
    for run in ("first", "second"):
        async with (
            serving(Server(settings_for(tmp_path / run))) as running,
            running.lines() as alice,
            running.websocket() as peer,
        ):
            session = (await peer.request("hello"))["session"]
            await alice.request("hello", producer=ALICE)
            member = (await alice.request("subscribe", channel="lobby", presence=True))["member"]
            assert member not in (ALICE, session)
            answer = await peer.request("presence", channel="lobby")
            assert answer["members"] == [{"member": member}]
            assert ALICE not in str(answer)
            seen.append(member)
    assert seen[0] != seen[1]


async def test_a_slow_reader_gets_the_members_afresh_and_no_backlog_of_changes(autojump_clock: MockClock) -> None:
    async with a_house(backlog_bytes_max=3000) as house:
        slow = house.visitor(slow=True)
        await slow.request("subscribe", channel="lobby", presence=True)
        await slow.receive()
        for turn in range(50):
            guests = [await house.member(f"{turn} {number} {'x' * 40}") for number in range(5)]
            await trio.sleep(2 * TICK_S)
            for guest in guests:
                await guest.stream.aclose()
            await trio.sleep(2 * TICK_S)
        await house.member("the last")
        await trio.sleep(2 * TICK_S)
        replica: dict[str, Json] = {}
        told = await told_within(slow, 10)
        for message in told:
            if "members" in message:
                replica = {who["member"]: who for who in message["members"]}
                continue
            for who in message["joined"] + message["updated"]:
                replica[who["member"]] = who
            for who in message["left"]:
                del replica[who["member"]]
        assert len(told) < 20
        assert "members" in told[-1]
        assert sorted(who.get("name", "") for who in replica.values()) == ["", "the last"]


async def test_a_thousand_who_come_at_once_are_a_few_messages_to_each_watcher(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        watchers = [(await house.watcher())[0] for _ in range(20)]
        for watcher in watchers:
            await told_within(watcher, 2 * TICK_S)
        guests = [house.visitor() for _ in range(1000)]
        async with trio.open_nursery() as nursery:
            for guest in guests:
                nursery.start_soon(lambda guest: guest.request("subscribe", channel="lobby"), guest)
        for watcher in watchers:
            told = await told_within(watcher, 2 * TICK_S)
            assert len(told) <= 2
            assert sum(len(event["joined"]) for event in told) == 1000


@pytest.mark.parametrize("name", ["x", '"' * 64, "\U0001f600" * 64])
async def test_members_and_changes_are_as_large_as_a_client_may_expect(autojump_clock: MockClock, name: str) -> None:
    bytes_max = 2000
    async with a_house(message_bytes_max=bytes_max) as house:
        watcher = house.visitor()
        await watcher.request("subscribe", channel="lobby", presence=True)
        await watcher.receive()
        for _ in range(40):
            await house.member(name)
        with trio.move_on_after(2 * TICK_S):
            while True:
                assert len(await watcher.receive_bytes()) <= bytes_max + 4096
        late = house.visitor()
        await late.send("subscribe", channel="lobby", presence=True)
        there = 0
        with trio.move_on_after(TICK_S / 2):
            while True:
                event = await late.receive()
                there += len(event.get("members", [])) + len(event.get("joined", []))
        assert there == 42
        asked: list[str] = []
        more = True
        while more:
            await late.send("presence", id=1, channel="lobby", **({"after": asked[-1]} if asked else {}))
            answer = await late.receive()
            asked += [who["member"] for who in answer["members"]]
            more = answer["more"]
        assert (len(asked), asked) == (42, sorted(set(asked)))


async def test_nothing_is_kept_of_a_channel_when_everybody_has_gone(autojump_clock: MockClock) -> None:
    async with a_house() as house:
        peers = [await house.member("alice", ALICE, presence=True), await house.member("bob", presence=True)]
        for peer in peers:
            await peer.stream.aclose()
        await trio.sleep(GRACE_S + 1)
        await wait_all_tasks_blocked()
        presence = house.broker.presence
        assert [*presence._channels, *presence._graces, *presence._behind] == []
