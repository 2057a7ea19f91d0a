"""The judge: what is in a log, against what its clients were promised and shown.

It reads the SQLite file by itself, through none of the server's code.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from tests.torture.clients import Data, Producer, Subscriber

_decode = msgspec.json.Decoder(Data).decode

_MESSAGES = """
SELECT channels.name, messages.offset, messages.key, messages.data
FROM messages JOIN channels ON channels.id = messages.channel ORDER BY messages.id
"""
_STATE = "SELECT channels.name, key, offset FROM state JOIN channels ON channels.id = state.channel"


def problems_of(file: Path, producers: Sequence[Producer], subscribers: Sequence[Subscriber]) -> list[str]:
    """What is wrong with a log, in words; a folder that a kill left is to be copied first, for this opens it."""
    with closing(sqlite3.connect(file)) as database:
        if damage := damage_of(database):
            return [f"integrity_check: {damage}"]
        log = Contents(database)
    return [*log.problems, *_acknowledged(log, producers), *_seen(log, subscribers)]


def damage_of(database: sqlite3.Connection) -> str:
    """What SQLite finds wrong with a database, "" where it is whole."""
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    return "" if verdict == "ok" else str(verdict)


class Contents:
    """The messages of a log, and what is wrong with them whoever published them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.channels: dict[str, list[tuple[int, int]]] = {}
        """By channel: producer and seq of each message, from offset 1 on."""
        self.order: list[tuple[int, int]] = []
        """The same for all channels, as they were committed."""
        self.problems: list[str] = []
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone() is None:
            return  # killed before its tables were made
        stored: dict[tuple[int, int], str] = {}
        words: dict[tuple[str, str], int] = {}
        for channel, offset, key, text in database.execute(_MESSAGES):
            messages = self.channels.setdefault(channel, [])
            data = _decode(text)
            name = (data.producer, data.seq)
            if offset != len(messages) + 1:
                self.problems.append(f"{channel} has offset {offset} behind {len(messages)}")
            if name in stored:
                self.problems.append(f"{_named(name)} is stored twice: {stored[name]}, and {channel} {offset}")
            stored[name] = f"{channel} {offset}"
            messages.append(name)
            self.order.append(name)
            if key is not None:
                words[channel, key] = offset
        state = {(channel, key): offset for channel, key, offset in database.execute(_STATE)}
        if state != words:
            self.problems.append(f"the state is {state}, the log's last words are {words}")

    def at(self, channel: str, offset: int) -> tuple[int, int] | None:
        """Which message is there."""
        messages = self.channels.get(channel, [])
        return messages[offset - 1] if 0 < offset <= len(messages) else None


def _acknowledged(log: Contents, producers: Sequence[Producer]) -> Iterator[str]:
    for producer in producers:
        for seq, (channel, offset) in enumerate(producer.acknowledged[1:], 1):
            found = log.at(channel, offset)
            if found != (producer.number, seq):
                there = "nothing" if found is None else _named(found)
                yield (
                    f"{_named((producer.number, seq))} was acknowledged at {channel} {offset}, where {there} is: "
                    "the acknowledged message is lost"
                )


def _seen(log: Contents, subscribers: Sequence[Subscriber]) -> Iterator[str]:
    for subscriber in subscribers:
        for channel, seen in subscriber.seen.items():
            if log.channels.get(channel, [])[: len(seen)] != seen:
                yield f"{subscriber.name} was shown in {channel} what the log does not have"


def _named(name: tuple[int, int]) -> str:
    return f"seq {name[1]} of producer {name[0]}"
