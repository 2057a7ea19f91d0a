"""Who follows a channel's state has what the server has: in memory, and over connections, the disk and restarts."""

import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tests.broker_world import World, a_world
from tests.fakes import CollectingOutlet
from tests.harness import Json, LinesPeer, Running, running_server
from tests.replicas import Document, Replica
from trisync.core import shared_reads
from trisync.storage.log import Flow, StatePage, Submission
from trisync.wire.protocol import Subscribe, compose_publish

keys = st.sampled_from(["a", "b", "c", "d", "e", 'a "quoted" one', "ключ"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("xyé\n", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("pqr"), inner, max_size=3),
    max_leaves=5,
)
writes = st.fixed_dictionaries(
    {
        "key": keys | st.none(),
        "data": values,
        "merge": st.booleans(),
        "expect": st.sampled_from([None, "right", 0, 10**6]),
    }
)


def understood(document: Document, write: Json) -> Json:
    """A write as fields of a publish: `right` is the key's offset, and what needs a key is left off without one."""
    fields = {"data": write["data"]}
    key, expect = write["key"], write["expect"]
    if key is not None:
        if expect == "right":
            expect = document.words.get(key, (0, None))[0]
        fields |= {"key": key} | ({"merge": True} if write["merge"] else {})
        fields |= {} if expect is None else {"expect": expect}
    return fields


def expected(document: Document, fields: Json) -> Json:
    return document.publish(fields.get("key"), fields["data"], fields.get("expect"), merge=fields.get("merge", False))


def answers_are(real: list[Json], shown: list[Json]) -> bool:
    """Whether the server said what it had to, but for ids and texts."""
    return [
        {name: value for name, value in answer.items() if name not in ("id", "message")} for answer in real
    ] == shown


# Who follows a state has what the server has: in memory, where a reader is as slow as a test wants it


actions_in_memory = st.lists(
    st.tuples(st.just("write"), writes)
    | st.tuples(st.sampled_from(["slow", "fast", "again", "come", "clear", "trim", "settle"]), st.integers(1, 5)),
    max_size=40,
)


def submission_of(fields: Json, settle: Any, flow: Flow | None = None) -> Submission:
    submission = Submission(settle, flow=flow)
    data = json.dumps(fields.pop("data")).encode()
    submission.add(compose_publish(data, channel="doc", **fields), len(data))
    return submission


class Follower:
    """An outlet with the replica that is made of what it took."""

    def __init__(self, outlet: CollectingOutlet, subscriptions: Any) -> None:
        self.outlet = outlet
        self.subscriptions = subscriptions
        self.replica = Replica()
        self._read = 0

    def read(self) -> None:
        for line in self.outlet.lines()[self._read :]:
            self.replica.take(json.loads(line))
            self._read += 1


async def follow_in_memory(actions: list[tuple[str, Any]]) -> None:
    document, verdicts, predicted = Document(), list[Any](), list[Json]()
    async with a_world() as world:
        followers = [Follower(*await world.subscriber("doc", state=True))]
        for action, what in actions:
            await act(world, action, what, document, followers, verdicts, predicted)
        for follower in followers:
            follower.outlet.speed_up()
        await wait_all_tasks_blocked()
        assert [verdict if isinstance(verdict, int) else verdict.code for verdict in verdicts] == [
            answer.get("code", answer["offset"]) for answer in predicted
        ]
        for follower in followers:
            follower.read()
            assert follower.replica.is_level(document.head)
            assert follower.replica.entries == document.entries


async def act(
    world: World,
    action: str,
    what: Any,
    document: Document,
    followers: list[Follower],
    verdicts: list[Any],
    predicted: list[Json],
) -> None:
    newest = followers[-1]
    match action:
        case "write":
            fields = understood(document, what)
            predicted.append(expected(document, fields))
            world.broker.submit(
                submission_of(fields, lambda submission: verdicts.extend(submission.verdicts), world.flow)
            )
        case "slow":
            newest.outlet.slow = True
        case "fast":
            newest.outlet.speed_up()
        case "come":
            followers.append(Follower(*await world.subscriber("doc", state=True)))
        case "again":
            await newest.subscriptions.subscribe(Subscribe(id=2, channel="doc", state=True))
        case "clear":
            await world.broker.settled()
            await world.broker.clear("doc")
            document.clear()
        case "trim":
            await world.broker.settled()
            await world.broker.trim({"doc": max(0, document.head - what)}, 1000)
        case "settle":
            for _ in range(what):
                await trio.lowlevel.checkpoint()


@given(actions_in_memory, st.integers(1, 4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_follower_however_slow_has_the_state_that_the_server_has(actions: list[tuple[str, Any]], page: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_reads, "STATE_LIMIT", page)
        patch.setattr(shared_reads, "PAGE_COUNT_MAX", page)
        trio.run(follow_in_memory, actions)


# The same over connections, on the disk, with restarts


actions_over_the_wire = st.lists(
    st.tuples(st.just("write"), writes)
    | st.tuples(st.sampled_from(["come back", "return", "restart", "clear"]), st.none()),
    max_size=25,
)


class Conversation:
    """A writer that waits for nothing, and a replica that comes and goes, at one server after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document = Document()
        self.replica = Replica()
        self.predicted: list[Json] = []
        self._stack = AsyncExitStack()
        self._running: Running
        self._writer: LinesPeer
        self._reader: LinesPeer
        self._with_state = True

    async def start(self) -> None:
        self._running = await self._stack.enter_async_context(running_server(self.folder))
        self._writer = await self._stack.enter_async_context(self._running.lines())
        await self.come_back()

    async def stop(self) -> None:
        await self._stack.aclose()

    async def come_back(self) -> None:
        """The replica connects anew and begins with nothing, whatever is still on its way to it."""
        self._reader = await self._stack.enter_async_context(self._running.lines())
        await self._reader.send("subscribe", id=0, channel="doc", state=True)
        self.replica = Replica()
        self._with_state = True

    async def return_(self) -> None:
        """The replica connects anew and goes on where it was; behind a gap it begins with nothing."""
        await self.catch_up()
        replica = self.replica
        self._reader = await self._stack.enter_async_context(self._running.lines())
        await self._reader.send("subscribe", id=0, channel="doc", since=replica.cursor, epoch=replica.epoch)
        assert (await self._reader.receive())["op"] == "ok"
        self._with_state = False

    async def act(self, action: str, what: Any) -> None:
        match action:
            case "write":
                fields = understood(self.document, what)
                self.predicted.append(expected(self.document, fields))
                await self._writer.send("publish", id=0, channel="doc", **fields)
            case "come back":
                await self.come_back()
            case "return":
                await self.return_()
            case "restart":
                await self.catch_up()
                await self.stop()
                await self.start()
            case "clear":
                await self.hear_answers()
                await self._running.server.clear("doc")
                self.document.clear()
                # That it was emptied comes before this.
                self.predicted.append(expected(self.document, {"data": "anew"}))
                await self._writer.send("publish", id=0, channel="doc", data="anew")

    async def hear_answers(self) -> None:
        answers = [await self._writer.receive() for _ in self.predicted]
        assert answers_are(answers, self.predicted)
        self.predicted.clear()

    async def catch_up(self) -> None:
        """Let the replica become level, and compare it with what the server answers and with what must be."""
        await self.hear_answers()
        state = await self._writer.request("state", channel="doc")
        assert (state["entries"], state["offset"], state["more"]) == (self.document.entries, self.document.head, False)
        while not self.replica.is_level(self.document.head):
            message = await self._reader.receive()
            if message["op"] == "gap" and not self._with_state:
                await self.come_back()
            else:
                self.replica.take(message)
        assert self.replica.entries == self.document.entries


async def follow_over_the_wire(actions: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        conversation = Conversation(Path(folder))
        await conversation.start()
        try:
            for action, what in actions:
                await conversation.act(action, what)
            await conversation.catch_up()
        finally:
            await conversation.stop()


@given(actions_over_the_wire)
@settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
def test_a_replica_that_comes_and_goes_has_the_state_that_the_server_has(actions: list[tuple[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_reads, "PAGE_COUNT_MAX", 2)
        patch.setattr(shared_reads, "PAGE_BYTES_MAX", 100)
        trio.run(follow_over_the_wire, actions)


@pytest.mark.parametrize("left", [False, True])
async def test_a_page_that_was_read_while_the_channel_was_emptied_is_shown_to_nobody_afterwards(
    monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    async with a_world() as world:
        world.broker.submit(submission_of({"key": "k", "data": 1}, lambda submission: None))
        await world.broker.settled()
        doc = await world.broker.enter("doc")
        read = world.log.state

        async def read_slowly(channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
            page = await read(channel, after, count_max, bytes_max)
            if left:
                world.broker.leave(doc)
            await world.broker.clear("doc")
            return page

        monkeypatch.setattr(world.log, "state", read_slowly)
        await world.broker.reads.state_behind(doc, "", 0)
        monkeypatch.undo()
        outlet, _ = await world.subscriber("doc", state=True)
        await wait_all_tasks_blocked()
        assert json.loads(outlet.lines()[-1])["entries"] == {}
