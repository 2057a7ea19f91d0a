"""The judge sees what it is there to see: each promise is broken by hand, in a log that was good."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET, Raw

from tests.sqlite_logs import opened, put
from tests.torture.checking import problems_of
from tests.torture.clients import CHANNELS, Data, Heard, Producer, Subscriber, make_clients
from trisync.storage.sqlite_opening import FILE_NAME
from trisync.wire.protocol import Publish

COUNT = 40


class Scene:
    """A log of 40 messages, with those who published and who saw them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.complaints: list[str] = []
        producers, subscribers = make_clients(random.Random(1), self.complaints.append)
        self.producer: Producer = producers[0]
        self.subscriber: Subscriber = subscribers[0]

    def problems(self) -> list[str]:
        return problems_of(self.file, [self.producer], [self.subscriber])

    def change(self, statement: str) -> None:
        with closing(sqlite3.connect(self.file)) as database, database:
            assert database.execute(statement).rowcount > 0


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path / "data" / FILE_NAME)
    async with opened(tmp_path / "data") as log:
        for seq in range(1, COUNT + 1):
            channel = CHANNELS[seq % 2]
            data = Data(0, seq, "")
            key = str(seq % 3) if seq % 4 == 0 else UNSET
            (offset,) = await put(log, Publish(channel=channel, data=Raw(msgspec.json.encode(data)), key=key))
            assert isinstance(offset, int)
            scene.producer.acknowledged.append((channel, offset))
            scene.subscriber.heard(Heard("message", channel=channel, offset=offset, data=data))
    return scene


async def test_a_good_log_has_no_problems(scene: Scene) -> None:
    assert scene.problems() == []
    assert scene.complaints == []


NEWEST = "(SELECT max(id) FROM messages)"
BREACHES = [
    (f"DELETE FROM messages WHERE id = {NEWEST}", "seq 40 of producer 0 was acknowledged at lobby 20, where nothing"),
    ("DELETE FROM messages WHERE id = 5", "has offset 4 behind 2"),
    (f"UPDATE messages SET data = (SELECT data FROM messages WHERE id = 3) WHERE id = {NEWEST}", "stored twice"),
    (f"UPDATE messages SET data = (SELECT data FROM messages WHERE id = 3) WHERE id = {NEWEST}", "where seq 3 of"),
    (f"DELETE FROM messages WHERE id = {NEWEST}", "was shown in lobby what the log does not have"),
    ("UPDATE state SET offset = offset - 1", "the log's last words are"),
    ("DELETE FROM state WHERE key = '1'", "the log's last words are"),
]
"""A change of a log, and what is to be said of it."""


@pytest.mark.parametrize(("statement", "said"), BREACHES)
async def test_a_breach_is_named(scene: Scene, statement: str, said: str) -> None:
    scene.change(statement)
    assert [problem for problem in scene.problems() if said in problem], scene.problems()


async def test_a_database_that_is_not_whole_is_named(scene: Scene) -> None:
    scene.change("DELETE FROM messages WHERE id = 1")
    whole = scene.file.with_name("whole")
    shutil.copy(scene.file, whole)
    with closing(sqlite3.connect(scene.file)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name LIKE 'idx_messages%'").fetchone()
        (older,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    with scene.file.open("r+b") as file:
        file.seek((older - 1) * 4096)
        content = file.read(4096)
        file.seek((page - 1) * 4096)
        file.write(content)
    assert [problem.partition(":")[0] for problem in scene.problems()] == ["integrity_check"]


def heard(scene: Scene, *messages: Heard) -> list[str]:
    for message in messages:
        scene.subscriber.heard(message)
    return scene.complaints


async def test_a_subscriber_complains_of_a_hole_a_repetition_and_another_epoch(scene: Scene) -> None:
    data = Data(0, 1, "")
    assert (
        "behind offset 20 of lobby it was shown 22"
        in heard(scene, Heard("message", channel="lobby", offset=22, data=data))[-1]
    )
    assert (
        "behind offset 21 of lobby it was shown 21"
        in heard(scene, Heard("message", channel="lobby", offset=21, data=data))[-1]
    )
    heard(scene, Heard("ok", epoch="a"))
    assert "the epoch was a and is b" in heard(scene, Heard("ok", epoch="b"))[-1]
    assert "it was told" in heard(scene, Heard("gap", channel="lobby", reason="epoch"))[-1]


async def test_a_producer_complains_of_a_server_that_forgot_or_invented_its_publishes(scene: Scene) -> None:
    producer = scene.producer
    producer.sent = COUNT
    for known, complaints in ((COUNT, 0), (COUNT - 1, 1), (COUNT + 1, 2)):
        producer.heard(Heard("ok", id=0, seq=known))
        assert len(scene.complaints) == complaints
    producer.heard(Heard("ok", id=COUNT + 1, offset=1))
    assert "nothing waits for" in scene.complaints[-1]
