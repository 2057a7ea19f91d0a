"""The server with one promise broken, each in turn: what the checker must find, or it proves nothing.

A plant is the smallest change of the server's own code that breaks a promise and nothing else.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import trio
from msgspec import UNSET

from trisync.core.broker import Broker
from trisync.core.channels import Channel, Subscription
from trisync.core.cursors import Subscriptions
from trisync.core.outbox import Outbox
from trisync.core.presence import Presence
from trisync.core.shared_reads import SharedReads
from trisync.sessions.connection import Connection
from trisync.sessions.session import Session
from trisync.storage import deciding, sqlite_errors, sqlite_opening, sqlite_writer
from trisync.storage.deciding import Batch, Head
from trisync.storage.log import Duplicate, LogUnavailable, Run, Submission
from trisync.storage.sqlite_lookups import SqliteLookup
from trisync.storage.sqlite_writer import Writer
from trisync.storage.verdicts import Producer
from trisync.wire.errors import WireError
from trisync.wire.framing import Framing

# Complaints of the checker that more than one plant is found by
NOT_WHERE_SAID = r"was accepted at .*, but is stored at"
SKIPPED_OR_TWICE = r"got \d+ behind \d+"
STORED_ALL_THE_SAME = "which is to mean that nothing was stored; it was"
WRONG_MEMBERS = r"sees in .*, but there are"


class Plant(NamedTuple):
    """A bug, and what it must be found by."""

    set_up: Callable[["Garden"], None]
    breaks: str
    """A pattern of what the checker says of the broken promise. Whatever else the bug leads to does not count."""
    seed: int
    """A world in which it showed itself, for whoever has not the time to look through them all."""


PLANTS: dict[str, Plant] = {}
"""All bugs, by name."""


class Garden:
    """Changes the server's code, and changes it back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, new: Any) -> Any:
        """Put something in the place of an attribute, and return what was there."""
        before = getattr(owner, name)
        self._before.append((owner, name, before))
        setattr(owner, name, new)
        return before

    def weed(self) -> None:
        """Undo everything."""
        for owner, name, before in reversed(self._before):
            setattr(owner, name, before)


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The server with one bug, or as it is."""
    garden = Garden()
    if name is not None:
        PLANTS[name].set_up(garden)
    try:
        yield
    finally:
        garden.weed()


def plant(*, breaks: str, seed: int = 0) -> Callable[[Callable[[Garden], None]], None]:
    """Register a plant under its function's name."""

    def register(set_up: Callable[[Garden], None]) -> None:
        PLANTS[set_up.__name__.replace("_", "-")] = Plant(set_up, breaks, seed)

    return register


# P1 and P2: what is said only after the commit


class _LateCommits:
    """A connection whose commits come with the next transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql == "COMMIT":
            return None
        if sql.startswith("BEGIN") and self._connection.in_transaction:
            self._connection.execute("COMMIT")
        return self._connection.execute(sql, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@plant(breaks=NOT_WHERE_SAID, seed=4)
def acknowledged_before_the_commit(garden: Garden) -> None:
    original: Any = Writer.__init__

    def __init__(self: Writer, connection: Any, **options: Any) -> None:
        original(self, _LateCommits(connection), **options)

    garden.replace(Writer, "__init__", __init__)


@plant(breaks=r" saw .*, which is", seed=510)
def shown_before_the_commit(garden: Garden) -> None:
    brokers: list[Broker] = []
    make_broker: Any = Broker.__init__

    def __init__(self: Broker, *args: Any, **options: Any) -> None:
        brokers.append(self)
        make_broker(self, *args, **options)

    def _store(self: Writer, work: Batch) -> None:
        store(self, work)
        for head in work.heads.values():
            channel = brokers[-1]._channels.get(head.name)
            if head.lines and channel is not None:
                run = Run(head.name, head.after, head.offset, "".join(head.lines).encode())
                for framing, live in list(channel.live.items()):
                    channel._write(run, framing, live)

    garden.replace(Broker, "__init__", __init__)
    store = garden.replace(Writer, "_store", _store)


@plant(breaks=STORED_ALL_THE_SAME, seed=1)
def refused_as_unavailable_though_stored(garden: Garden) -> None:
    count = 0

    def append(self: Writer, batch: Sequence[Submission]) -> list[Run]:
        nonlocal count
        count += 1
        runs: list[Run] = original(self, batch)
        if count % 7 == 0:
            raise LogUnavailable("it is said to be full")
        return runs

    original = garden.replace(Writer, "append", append)


@plant(breaks=STORED_ALL_THE_SAME, seed=27)
def an_unknown_outcome_is_called_unavailable(garden: Garden) -> None:
    garden.replace(sqlite_errors, "_UNAVAILABLE", sqlite_errors._UNAVAILABLE | {sqlite3.SQLITE_IOERR})


# P3: offsets, times, the epoch


@plant(breaks="are not dense", seed=27)
def a_failed_batch_keeps_its_offsets(garden: Garden) -> None:
    garden.replace(SqliteLookup, "forget", lambda self, **gone: None)


@plant(breaks=r"was sent after .* had been stored at", seed=18)
def offsets_begin_again_behind_what_was_trimmed(garden: Garden) -> None:
    begun = "UPDATE heads SET offset = 1, oldest = NULL WHERE channel = :channel AND offset = :until"
    garden.replace(sqlite_writer, "_CUT_HEAD", begun)


@plant(breaks="time goes back", seed=1)
def time_follows_the_clock_back(garden: Garden) -> None:
    def _tick(self: Writer) -> int:
        self.time_ms = self._now_ms()
        return self.time_ms

    garden.replace(Writer, "_tick", _tick)


@plant(breaks=r"was told epoch \w+ in a log of epoch", seed=3)
def every_start_begins_an_epoch(garden: Garden) -> None:
    def _begin_epoch(connection: Any, durability: str, tokens: Callable[[int], str]) -> None:
        sqlite_opening.write_meta(connection, "epoch", tokens(8))

    garden.replace(sqlite_opening, "_begin_epoch", _begin_epoch)


@plant(breaks=NOT_WHERE_SAID, seed=8)
def an_unclean_stop_keeps_the_epoch(garden: Garden) -> None:
    def _begin_epoch(connection: Any, durability: str, tokens: Callable[[int], str]) -> None:
        if sqlite_opening.read_meta(connection, "epoch") is None:
            sqlite_opening.write_meta(connection, "epoch", tokens(8))

    garden.replace(sqlite_opening, "_begin_epoch", _begin_epoch)


@plant(breaks="goes on from another log's offset, and was not told", seed=2)
def a_cursor_of_another_epoch_is_taken(garden: Garden) -> None:
    async def subscribe(self: Subscriptions, request: Any) -> None:
        await original(self, msgspec.structs.replace(request, epoch=UNSET))

    original = garden.replace(Subscriptions, "subscribe", subscribe)


@plant(breaks=r"was sent behind .*, which is at", seed=2)
def publishes_overtake_each_other(garden: Garden) -> None:
    def _take_batch(self: Broker) -> list[Submission]:
        batch: list[Submission] = original(self)
        return batch[::-1]

    original = garden.replace(Broker, "_take_batch", _take_batch)


# P4: each offset once, in order


@plant(breaks=SKIPPED_OR_TWICE, seed=1)
def what_came_during_a_catch_up_is_skipped(garden: Garden) -> None:
    async def _advance(self: Subscriptions, subscription: Subscription) -> None:
        if 0 < subscription.channel.head - subscription.cursor <= 2:
            subscription.cursor = subscription.channel.head
        await original(self, subscription)

    original = garden.replace(Subscriptions, "_advance", _advance)


@plant(breaks=r"got (\d+) behind \1\b")
def the_last_message_of_a_catch_up_comes_twice(garden: Garden) -> None:
    done: set[int] = set()

    async def _write_run(self: Subscriptions, subscription: Subscription) -> None:
        await original(self, subscription)
        if subscription.cursor == subscription.channel.head and id(subscription) not in done:
            done.add(id(subscription))
            subscription.cursor -= 1

    original = garden.replace(Subscriptions, "_write_run", _write_run)


@plant(breaks=SKIPPED_OR_TWICE, seed=2)
def a_gap_is_not_announced(garden: Garden) -> None:
    def _skip(self: Subscriptions, subscription: Subscription, until: int) -> None:
        subscription.cursor = max(subscription.cursor, until)

    garden.replace(Subscriptions, "_skip", _skip)


@plant(breaks=SKIPPED_OR_TWICE, seed=32)
def a_cut_run_begins_one_too_late(garden: Garden) -> None:
    def since(self: Run, offset: int) -> Run:
        part: Run = original(self, min(offset + 1, self.last - 1))
        return Run(self.channel, offset, self.last, part.lines)

    original = garden.replace(Run, "since", since)


@plant(breaks="is not subscribed, but got|had ended, but got", seed=47)
def an_ended_subscription_lives_on(garden: Garden) -> None:
    garden.replace(Subscriptions, "_end", lambda self, subscription: None)


@plant(breaks="before its own ok", seed=1)
def a_message_comes_before_its_own_ok(garden: Garden) -> None:
    def _settle(self: Session, submission: Submission) -> None:
        async def later() -> None:
            original(self, submission)

        self._connection.start_soon(later)

    original = garden.replace(Session, "_settle", _settle)


# P5: exactly once


@plant(breaks=r"settled, but a hello was told \d")
def verdicts_are_forgotten_at_a_restart(garden: Garden) -> None:
    def _store(self: Writer, work: Batch) -> None:
        work.settled.clear()
        original(self, work)

    original = garden.replace(Writer, "_store", _store)


@plant(breaks=r"is stored \d+ times", seed=6)
def a_retry_is_stored_again(garden: Garden) -> None:
    garden.replace(Producer, "answer", lambda self, seq: None)


@plant(breaks=NOT_WHERE_SAID, seed=6)
def a_retry_gets_another_verdict(garden: Garden) -> None:
    def _repeat(self: Batch, answer: Any, **how: Any) -> Any:
        verdict = original(self, answer, **how)
        return Duplicate(verdict.offset + 1) if isinstance(verdict, Duplicate) else verdict

    original = garden.replace(Batch, "_repeat", _repeat)


# P6: slow readers


@plant(breaks=SKIPPED_OR_TWICE, seed=11)
def a_slow_reader_loses_what_it_does_not_take(garden: Garden) -> None:
    def _write(self: Channel, run: Run, framing: Framing, live: dict[Subscription, Outbox]) -> None:
        for outbox in live.values():
            outbox.offer(run.encoded(framing))

    garden.replace(Channel, "_write", _write)


@plant(breaks="JSON is malformed|a frame of length|a frame that begins with")
def what_a_socket_does_not_take_is_lost(garden: Garden) -> None:
    garden.replace(Outbox, "keep", lambda self, rest: None)


@plant(breaks="not everybody could reach the head", seed=126)
def who_waits_for_room_waits_for_ever(garden: Garden) -> None:
    async def room(self: Broker, flow: Any) -> None:
        if self._queue.size > self._settings.queue_bytes_max:
            await trio.sleep_forever()

    garden.replace(Broker, "room", room)


# P7: stopping


@plant(breaks="got draining, " + STORED_ALL_THE_SAME, seed=162)
def what_a_stopping_server_refuses_is_stored(garden: Garden) -> None:
    def submit(self: Broker, submission: Submission) -> None:
        settle = submission.settle

        def refuse(settled: Submission) -> None:
            if self.draining:
                settled.refuse(WireError("draining", "nothing was stored, it says"))
            settle(settled)

        submission.settle = refuse
        draining, self.draining = self.draining, False
        original(self, submission)
        self.draining = draining

    original = garden.replace(Broker, "submit", submit)


# Keys, states, presence


@plant(breaks=r"expected .*, but was stored behind", seed=1)
def what_is_expected_does_not_matter(garden: Garden) -> None:
    def _store_word(self: Batch, head: Head, item: Any, *rest: Any) -> Any:
        return original(self, head, msgspec.structs.replace(item, expect=UNSET), *rest)

    original = garden.replace(Batch, "_store_word", _store_word)


@plant(breaks=r"merged .*, which gave")
def a_merge_replaces(garden: Garden) -> None:
    garden.replace(deciding, "merge_patch", lambda target, patch: patch)


@plant(breaks=r"the log says .*, the state", seed=1)
def a_deleted_key_stays_in_the_state(garden: Garden) -> None:
    def _delete_words(self: Writer, head: Head) -> None:
        assert head.words is not None
        head.changed = {key: None for key in head.changed or {} if head.words[key].offset}
        original(self, head)

    original = garden.replace(Writer, "_delete_words", _delete_words)


@plant(breaks=r"holds of .*, the state is", seed=14)
def a_state_lacks_what_came_while_it_was_read(garden: Garden) -> None:
    async def state_behind(self: SharedReads, channel: Channel, after: str, at_least: int) -> Any:
        return await original(self, channel, after, 0)

    original = garden.replace(SharedReads, "state_behind", state_behind)


@plant(breaks=WRONG_MEMBERS)
def who_vanished_is_shown_for_ever(garden: Garden) -> None:
    garden.replace(Connection, "check_peer", lambda self, silent_s: None)


@plant(breaks=WRONG_MEMBERS, seed=18)
def a_new_name_is_not_told(garden: Garden) -> None:
    garden.replace(Presence, "rename", lambda self, channel, member, name: None)
