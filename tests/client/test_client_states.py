"""States and presence of the client: documents and rosters that all clients have alike."""

import gc
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path

import anyio
import msgspec
import pytest

import trisync
from tests.client.conftest import Run
from tests.client.machine_talk import Talk
from tests.harness import PATIENCE_S, server_process
from trisync.client import Change, Conflict, Document, LimitReached
from trisync.wire.protocol import OFFSET_MAX


async def eventually(condition: Callable[[], bool], change: Callable[[], Awaitable[object]]) -> None:
    """Wait for changes until there is what must come."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await change()


def test_a_state_is_a_mapping_that_every_client_has_alike(run: Run, url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(url) as alice, trisync.connect(url) as bob:
            await alice.publish(channel, "before", key="old")
            async with alice.state(channel) as hers, bob.state(channel) as his:
                changes = his.changes()
                hers["title"] = "Hello"
                assert hers["title"] == "Hello"
                assert hers.pending == 1
                assert await anext(changes) == Change("title", "Hello", confirmed=True)
                assert dict(his) == {"old": "before", "title": "Hello"}
                del his["old"]
                assert "old" not in his
                await his.flush()
                await his.set("n", [1, {"two": 2}])
                await eventually(
                    lambda: dict(hers) == {"title": "Hello", "n": [1, {"two": 2}]}, hers.changes().__anext__
                )
                assert hers.confirmed("old") is None
                entry = hers.confirmed("title")
                assert entry is not None
                assert entry.data == "Hello"
                with pytest.raises(KeyError):
                    del hers["old"]

    run(main)


def test_a_value_is_seen_at_once_as_it_will_be_stored(run: Run, tcp_url: str, channel: str) -> None:
    values = {
        "tuple": ((1, 2), [1, 2]),
        "date": (date(2020, 1, 31), "2020-01-31"),
        "keys": ({1: {"a": (True,)}}, {"1": {"a": [True]}}),
        "json": (msgspec.Raw(b'{"a": 1}'), {"a": 1}),
    }

    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            changes = doc.changes()
            for key, (value, seen) in values.items():
                doc[key] = value
                assert doc[key] == seen
                assert type(doc[key]) is type(seen)
            await doc.flush()
            await eventually(lambda: all(doc.confirmed(key) for key in values), changes.__anext__)
            assert dict(doc) == {key: seen for key, (_, seen) in values.items()}

    run(main)


def test_who_goes_through_a_state_or_members_is_not_disturbed_by_what_changes_meanwhile(
    run: Run, tcp_url: str, channel: str
) -> None:
    async def main() -> None:
        async with (
            trisync.connect(tcp_url) as client,
            client.state(channel) as doc,
            client.presence(channel) as members,
        ):
            await doc.set("a", 1)
            await doc.set("b", 2)
            changes = members.changes()
            async with trisync.connect(tcp_url, name="bob") as bob, bob.subscribe(channel):
                await eventually(lambda: len(members) == 2, changes.__anext__)
                items, values, people = iter(doc.items()), iter(doc.values()), iter(members.values())
            del doc["b"]
            await eventually(lambda: len(members) == 1, changes.__anext__)
            assert sorted(items) == [("a", 1), ("b", 2)]
            assert sorted(values) == [1, 2]
            assert {member.name for member in people} == {None, "bob"}

    run(main)


@pytest.mark.parametrize("number", [b"1e400", b"-" + b"9" * 5000])
def test_numbers_that_python_cannot_hold_are_infinities_and_stay_digit_for_digit(
    run: Run, url: str, channel: str, number: bytes
) -> None:
    infinity = float(number)
    words = msgspec.Raw(b'{"n":%b}' % number)

    async def main() -> None:
        async with trisync.connect(url) as client, client.subscribe(channel) as messages:
            await client.publish(channel, words, key="old")
            message = await anext(messages)
            assert message.data == {"n": infinity}
            assert bytes(message.json) == bytes(words)
            async with client.state(channel) as doc:
                assert doc["old"] == {"n": infinity}
                await client.publish(channel, words, key="new")
                await eventually(
                    lambda: dict(doc) == {key: {"n": infinity} for key in ("old", "new")}, messages.__anext__
                )
            with pytest.raises(Conflict) as conflict:
                await client.publish(channel, 1, key="old", expect=0)
            assert (conflict.value.offset, conflict.value.data) == (1, {"n": infinity})

    run(main)


def test_updates_from_all_sides_are_all_kept(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as alice, trisync.connect(tcp_url) as bob:
            async with alice.state(channel) as hers, bob.state(channel) as his:
                async with anyio.create_task_group() as tasks:

                    async def count_up(doc: trisync.client.Document) -> None:
                        for _ in range(20):
                            await doc.update("count", lambda n: (n or 0) + 1)

                    tasks.start_soon(count_up, hers)
                    tasks.start_soon(count_up, his)
                await eventually(lambda: hers["count"] == his["count"] == 40, anyio.lowlevel.checkpoint)

    run(main)


def test_an_update_does_not_take_a_word_of_another_log_for_the_one_that_it_read(run: Run) -> None:
    """Behind a restored backup, the first write is stored at the offset that the key's word had in the log before."""
    stored: list[str] = []

    async def main() -> None:
        talk = Talk()
        doc = Document(talk.machine, "doc")

        async def update() -> None:
            stored.append(await doc.update("k", lambda value: f"{value} and more"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(doc.__aenter__)
            await anyio.wait_all_tasks_blocked()
            (asked,) = talk.heard()
            talk.say("ok", id=asked["id"], offset=5, epoch="e")
            talk.say("state", channel="doc", entries={"k": {"offset": 5, "data": "old"}}, more=False)
            talk.machine.lost("a backup is restored")
            doc["k"] = "mine"
            tasks.start_soon(update)
            await anyio.wait_all_tasks_blocked()
            talk.come_online(epoch="another")
            talk.say("ok", id=1, offset=5)
            await anyio.wait_all_tasks_blocked()
            (blind,) = talk.heard()
            assert (blind["data"], blind["expect"]) == ("old and more", OFFSET_MAX)
            talk.refuse(2, "conflict", retry=False, offset=5, data="mine")
            await anyio.wait_all_tasks_blocked()
            (again,) = talk.heard()
            assert (again["data"], again["expect"]) == ("mine and more", 5)
            talk.say("ok", id=3, offset=6)

    run(main)
    assert stored == ["mine and more"]


def test_a_write_that_is_refused_is_taken_back(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            await doc.set("title", "mine")
            changes = doc.changes()

            receipt = doc._write("title", "never", expect=99)
            assert doc["title"] == "never"
            with pytest.raises(Conflict):
                await receipt
            assert doc["title"] == "mine"
            change = await anext(changes)
            assert (change.key, change.value, change.confirmed) == ("title", "mine", True)
            assert isinstance(change.error, Conflict)

    run(main)


def test_who_flushes_waits_also_for_writes_that_nobody_waits_for_any_more(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url) as client, client.state(channel) as doc:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await doc.set("k", 1)
            assert scope.cancelled_caught
            await doc.flush()
            assert (dict(doc), doc.pending) == ({"k": 1}, 0)

    run(main)


def test_no_refusal_of_a_write_is_lost_silently(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first is raised by who flushes, the others are logged, whatever is written behind them."""

    async def main(url: str) -> None:
        async with trisync.connect(url) as client, client.state("doc") as doc:
            for key in ("only", "one", "two"):
                doc[key] = 1
            with pytest.raises(LimitReached):
                await doc.flush()
            await doc.flush()
            assert len(told()) == 1
            doc["three"] = 1
            await client.flush()
            doc["only"] = 2
            await client.flush()
            assert len(told()) == 1

    def told() -> list[str]:
        gc.collect()
        return [record.message for record in caplog.records if record.message.startswith("a publish failed")]

    with server_process(tmp_path, "--keys-max", "1") as server:
        run(lambda: main(f"tcp://127.0.0.1:{server.tcp_port}"))
    assert len(told()) == 2


def test_a_state_is_read_to_its_end_without_following_it(run: Run, tcp_url: str, channel: str) -> None:
    keys = [f"key {number:04}" for number in range(2500)]

    async def main() -> None:
        async with trisync.connect(tcp_url) as client:
            for number, key in enumerate(keys):
                await client.room()
                client.post(channel, number, key=key)
            await client.publish(channel, None, key=keys.pop())
            words = await client.words(channel)
            assert list(words) == keys
            assert [(word.offset, word.data) for word in words.values()] == [(n + 1, n) for n in range(len(keys))]
            word = await client.word(channel, keys[7])
            assert word is not None
            assert word == words[keys[7]]
            assert bytes(word.json) == b"7"
            assert await client.word(channel, "no such key") is None
            assert await client.words(f"{channel}-never") == {}
            with pytest.raises(Conflict):
                await client.publish(channel, 0, key=keys[7], expect=word.offset + 1)
            await client.publish(channel, 0, key=keys[7], expect=word.offset)

    run(main)


def test_presence_tells_who_is_there(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url, name="alice") as alice, alice.presence(channel) as members:
            assert [member.name for member in members.values()] == ["alice"]
            changes = members.changes()
            async with trisync.connect(tcp_url, name="bob") as bob, bob.subscribe(channel):
                joined = await anext(changes)
                assert (joined.kind, joined.member.name) == ("joined", "bob")
                assert {member.name for member in await bob.members(channel)} == {"alice", "bob"}
            left = await anext(changes)
            assert (left.kind, left.member.name) == ("left", "bob")
            assert list(members) == [members.me]

    run(main)


def test_messages_state_and_presence_of_one_channel_share_a_subscription(run: Run, tcp_url: str, channel: str) -> None:
    async def main() -> None:
        async with trisync.connect(tcp_url, name="alice") as client:
            for number in range(5):
                await client.publish(channel, number, key=f"k{number}")
            async with client.subscribe(channel, last=3) as messages:
                assert (await anext(messages)).data == 2
                async with client.state(channel) as doc, client.presence(channel) as members:
                    assert dict(doc) == {f"k{number}": number for number in range(5)}
                    assert len(members) == 1
                    await doc.set("k0", "new")
                assert [(await anext(messages)).data for _ in range(3)] == [3, 4, "new"]
                with pytest.raises(RuntimeError, match="already"):
                    await client.subscribe(channel).__aenter__()

    run(main)
