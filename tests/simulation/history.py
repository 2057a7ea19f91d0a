"""What clients did and were told, as they saw it: all that the checker knows of a run, beside the final log.

The place of an event in the list is its time: one that stands before another happened before it.
"""

import sqlite3
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

Json = dict[str, Any]


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """A publish that a client wants done."""

    tag: str
    """Unique; in the data of all publishes but those that delete a key."""
    device: str
    number: int
    """Counts a device's publishes, in the order in which it wants them."""
    connection: int
    """The one on which it was sent first."""
    channel: str
    data: Any
    producer: str | None = None
    seq: int | None = None
    key: str | None = None
    expect: int | None = None
    merge: bool = False
    ephemeral: bool = False


class Invoked(NamedTuple):
    """A publish was sent for the first time."""

    op: Op


class Answered(NamedTuple):
    """A publish got an answer. One that was sent several times may get several."""

    op: Op
    outcome: Literal["ok", "refused", "retry"]
    """`retry`: the error said that nothing was settled."""
    offset: int
    """Where it was stored, or with a conflict the key's newest offset; 0 where neither is said."""
    code: str
    data: Any
    """With a conflict, what stands there."""
    connection: int
    """The one on which it came."""


class Asked(NamedTuple):
    """A subscription was asked for; Subscribed with the same number is the answer."""

    subscription: int
    device: str
    connection: int
    channel: str
    since: int | None
    epoch: str | None
    last: int | None
    state: bool


class Subscribed(NamedTuple):
    """A subscription was granted, at this head of the channel."""

    subscription: int
    head: int
    epoch: str


class Ended(NamedTuple):
    """An unsubscribe was answered, or another subscription took this one's place."""

    subscription: int


class Seen(NamedTuple):
    """A message came on a subscription."""

    subscription: int
    message: Json


class Gap(NamedTuple):
    """A subscription was told what it will not get: the messages from the first to the last, or all of another log."""

    subscription: int
    reason: str
    first: int
    last: int


class Read(NamedTuple):
    """An answer to `history`."""

    channel: str
    since: int | None
    head: int
    epoch: str
    more: bool
    messages: list[Json]
    asked_at: int
    """The place in the history at which it was asked for."""


class Greeted(NamedTuple):
    """The hello that begins a connection was answered."""

    device: str
    connection: int
    epoch: str
    producer: str | None
    seq: int
    """Its last settled one; 0 without a producer."""


class Replica(NamedTuple):
    """What a device holds of a channel's state at the end."""

    device: str
    channel: str
    entries: dict[str, tuple[int, Any]]


class Members(NamedTuple):
    """Who a device believes is in a channel, at the end; or, of device "", who the server says is."""

    device: str
    channel: str
    members: dict[str, str | None]


class Present(NamedTuple):
    """A device is connected and subscribed to a channel at the end, under this name, as this member where it knows."""

    device: str
    channel: str
    name: str
    member: str | None


class Wrong(NamedTuple):
    """Something that no server of this protocol does, whatever happened."""

    problem: str


Event = (
    Invoked | Answered | Asked | Subscribed | Ended | Seen | Gap | Read | Greeted | Replica | Members | Present | Wrong
)


def epochs_of(history: list[Event]) -> dict[int, str]:
    """The epoch in which each connection was, or nearly so: of those that got as far as a hello."""
    return {event.connection: event.epoch for event in history if isinstance(event, Greeted)}


class Stored(NamedTuple):
    """A message in the final log."""

    offset: int
    time_ms: int
    sender: str | None
    key: str | None
    data: Any


class FinalLog(NamedTuple):
    """What is in the file when all is over."""

    durability: str
    """What was promised of it: under `normal`, a power cut may take the newest messages and begins an epoch."""
    epoch: str
    trimmed: dict[str, int]
    """Of every channel."""
    messages: dict[str, list[Stored]]
    state: dict[str, dict[str, tuple[int, Any]]]


def read_final_log(file: Path, durability: str) -> FinalLog:
    """Read a log's file, past all of the server's code."""
    db = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        names = dict(db.execute("SELECT id, name FROM channels WHERE name NOT LIKE '$%'"))
        trimmed = dict(db.execute("SELECT name, trimmed FROM channels WHERE name NOT LIKE '$%'"))
        messages: dict[str, list[Stored]] = {name: [] for name in names.values()}
        state: dict[str, dict[str, tuple[int, Any]]] = {name: {} for name in names.values()}
        for channel, offset, time_ms, sender, key, data in db.execute(
            "SELECT channel, offset, time, sender, key, data FROM messages ORDER BY id"
        ):
            if channel in names:
                messages[names[channel]].append(Stored(offset, time_ms, sender, key, msgspec.json.decode(data)))
        for channel, key, offset, data in db.execute("SELECT channel, key, offset, data FROM state"):
            if channel in names:
                state[names[channel]][key] = (offset, msgspec.json.decode(data))
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    finally:
        db.close()
    return FinalLog(durability, epoch, trimmed, messages, state)
