"""Producers: what is retried is stored once, over connections, take-overs and restarts."""

from pathlib import Path

import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from tests.broker_world import a_world
from tests.harness import Running, running_server
from trisync.storage.log import Submission
from trisync.wire.protocol import Publish

ALICE = "alice-0123456789"


async def stored(running: Running) -> list[object]:
    async with running.lines() as reader:
        history = await reader.request("history", channel="lobby")
        return [message["data"] for message in history["messages"]]


async def test_a_retry_on_a_new_connection_gets_the_verdict_that_the_first_one_got(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running:
        async with running.lines() as first:
            assert (await first.request("hello", producer=ALICE))["seq"] == 0
            assert (await first.request("publish", channel="lobby", seq=1, data="a"))["offset"] == 1
            refused = await first.request("publish", channel="no good", seq=2, data="b")
            assert refused["code"] == "bad_request"
        async with running.websocket() as second:
            assert (await second.request("hello", producer=ALICE))["seq"] == 2
            retried = await second.request("publish", channel="lobby", seq=1, data="a")
            assert retried == {"op": "ok", "id": 1, "offset": 1, "duplicate": True}
            assert await second.request("publish", channel="lobby", seq=2, data="b") == refused
            assert (await second.request("publish", channel="lobby", seq=3, data="c"))["offset"] == 2
        assert await stored(running) == ["a", "c"]


async def test_verdicts_survive_a_restart(tmp_path: Path) -> None:
    async with running_server(tmp_path) as running, running.lines() as peer:
        await peer.request("hello", producer=ALICE)
        for seq in range(1, 301):
            await peer.send("publish", id=seq, channel="lobby", seq=seq, data=seq)
        assert [(await peer.receive())["offset"] for _ in range(300)] == list(range(1, 301))
    async with running_server(tmp_path) as running, running.lines() as peer:
        assert (await peer.request("hello", producer=ALICE))["seq"] == 300
        for seq in (300, 45):
            answer = await peer.request("publish", channel="lobby", seq=seq, data="again")
            assert answer == {"op": "ok", "id": 1, "offset": seq, "duplicate": True}
        older = await peer.request("publish", channel="lobby", seq=44, data="again")
        assert older == {"op": "ok", "id": 1, "duplicate": True}


async def test_a_hello_is_answered_when_what_the_producer_had_queued_is_settled() -> None:
    """Else its seq would be too small, and the next publishes would be taken for repetitions."""
    async with a_world() as world:
        world.log.gate = trio.Event()
        submission = Submission(lambda submission: None, producer=ALICE)
        submission.add(Publish(channel="lobby", data=Raw(b"1"), seq=1), 10)
        world.broker.submit(submission)
        answered = trio.Event()

        async def say_hello() -> None:
            await world.broker.take_producer(ALICE, lambda: None)
            answered.set()

        world.nursery.start_soon(say_hello)
        await wait_all_tasks_blocked()
        assert not answered.is_set()
        world.log.gate.set()
        await answered.wait()


async def test_who_is_taken_over_while_its_hello_waits_is_fenced(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path) as running,
        running.lines() as first,
        running.lines() as second,
    ):
        # Pipelined behind a large publish, the first hello waits for the disk while the second one overtakes it.
        await first.send("publish", channel="other", data="x" * 900_000)
        await first.send("hello", id="first", producer=ALICE)
        await second.send("hello", id="second", producer=ALICE)
        answers = [await first.receive(), await second.receive()]
        assert [answer["id"] for answer in answers] == ["first", "second"]
        outcomes = [
            await peer.request("publish", channel="lobby", seq=1, data=name)
            for name, peer in (("first", first), ("second", second))
        ]
        kinds = sorted(outcome.get("code", "ok") for outcome in outcomes)
        assert kinds == ["fenced", "ok"]
        assert len(await stored(running)) == 1
