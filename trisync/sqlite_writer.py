"""Deciding and storing one batch: offsets, producers' verdicts, and the SQL that makes them durable.

Everything here runs in a worker thread, one batch at a time, on the writing connection. All about a publish is
decided inside its batch's transaction, in order; what a failed transaction decided is forgotten.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from cachetools import TTLCache
from msgspec import UNSET

from trisync.errors import WireError
from trisync.log import Duplicate, LogUnavailable, Refused, Run, Submission, Verdict
from trisync.protocol import UNANSWERED_MAX, Publish, data_text, message_prefix, message_suffix
from trisync.sqlite_schema import read_meta, transaction, write_meta

_SETTLING = {"bad_request"}
"""Errors that are a verdict on a publish. The others say that it was not judged."""

_ROWS_PER_INSERT = (128, 16, 1)
"""Rows in one INSERT, largest first. sqlite3 gives up the interpreter lock once a statement and must win it back
from the event loop: under load a row costs 57 µs alone and 10 µs among 128 (measured; idle 4.7 and 3.1)."""

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
}
"""Primary result codes after which nothing was stored and the database is whole."""


def unavailable(error: sqlite3.Error) -> LogUnavailable | None:
    """The LogUnavailable for an error that surely left nothing behind, else None."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return LogUnavailable(str(error)) if code in _UNAVAILABLE else None


_COLUMNS = ("channel", "offset", "size", "sender", "data")


def _insert_statement(rows: int) -> str:
    """?1 is the time, which a batch shares; then each row's own columns."""
    width = len(_COLUMNS)
    values = (", ".join(f"?{2 + row * width + column}" for column in range(width)) for row in range(rows))
    return f"INSERT INTO messages (time, {', '.join(_COLUMNS)}) VALUES " + ", ".join(f"(?1, {row})" for row in values)


_INSERTS = [(rows, _insert_statement(rows)) for rows in _ROWS_PER_INSERT]


class _Head:
    """Where a channel ends, and what the batch under way adds to it."""

    __slots__ = ("after", "id", "lines", "name", "offset", "prefix")

    def __init__(self, name: str, id: int, offset: int) -> None:
        self.name = name
        self.id = id
        self.offset = offset
        self.after = offset
        self.prefix = message_prefix(name)
        self.lines: list[str] = []

    def take_run(self) -> Run:
        run = Run(self.name, self.after, self.offset, "".join(self.lines).encode())
        self.after = self.offset
        self.lines = []
        return run


class _Producer:
    """A producer's last settled seq, and its newest verdicts."""

    __slots__ = ("id", "seq", "verdicts")

    def __init__(self, id: str, seq: int = 0, packed: bytes = b"\x90") -> None:
        self.id = id
        self.seq = seq
        self.verdicts: deque[int | WireError] = deque(maxlen=UNANSWERED_MAX)
        for kept in msgspec.msgpack.decode(packed):
            self.verdicts.append(kept if type(kept) is int else WireError(kept[0], kept[1], **kept[2]))

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(
            [(kept.code, kept.message, kept.details) if isinstance(kept, WireError) else kept for kept in self.verdicts]
        )

    def answer(self, seq: int) -> Verdict | None:
        """The verdict for a `seq` that is not the next one; None for the next one, which is yet to be judged."""
        if seq == self.seq + 1:
            return None
        if seq > self.seq:
            return WireError("out_of_sequence", f"the last settled seq is {self.seq}: resend from there", seq=self.seq)
        place = seq - 1 - self.seq  # -1 is the newest
        if place < -len(self.verdicts):
            return Duplicate(0)
        kept = self.verdicts[place]
        return Duplicate(kept) if type(kept) is int else kept

    def settle(self, verdict: int | WireError) -> None:
        self.seq += 1
        self.verdicts.append(verdict)


class Writer:
    """The writing side of the log. Not for two threads at once."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        now_ms: Callable[[], int],
        timer: Callable[[], float],
        cached_max: int,
        cache_ttl_s: float,
    ) -> None:
        self._db = connection
        self._now_ms = now_ms
        newest = connection.execute("SELECT time FROM messages ORDER BY id DESC LIMIT 1").fetchone()
        kept = read_meta(connection, "time")
        self.time_ms = max(newest[0] if newest else 0, int(kept or 0))
        """The newest batch's time."""
        self._heads: TTLCache[str, _Head] = TTLCache(cached_max, cache_ttl_s, timer)
        self._producers: TTLCache[str, _Producer] = TTLCache(cached_max, cache_ttl_s, timer)

    def append(self, batch: Sequence[Submission]) -> list[Run]:
        """See Log.append()."""
        work = _Batch(self._head, self._producer, self._tick())
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for submission in batch:
                work.decide(submission)
            self._insert(work)
            self._db.execute("COMMIT")
        except BaseException as error:
            self._forget(work)
            if isinstance(error, sqlite3.Error) and (reason := unavailable(error)):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise reason from error
            raise
        # Kept from now on: what was decided is what is on the disk.
        self._heads.update(work.heads)
        self._producers.update(work.producers)
        return [head.take_run() for head in work.heads.values() if head.lines]

    def _tick(self) -> int:
        """The batch's time: the clock's, but never before an earlier batch's, whatever the clock does."""
        self.time_ms = max(self.time_ms, self._now_ms())
        return self.time_ms

    def _head(self, name: str) -> _Head:
        head = self._heads.get(name)
        if head is not None:
            return head
        row = self._db.execute("SELECT id, trimmed FROM channels WHERE name = ?", (name,)).fetchone()
        if row is None:
            cursor = self._db.execute("INSERT INTO channels (name) VALUES (?)", (name,))
            assert cursor.lastrowid is not None
            return _Head(name, cursor.lastrowid, 0)
        id, trimmed = row
        (newest,) = self._db.execute("SELECT max(offset) FROM messages WHERE channel = ?", (id,)).fetchone()
        return _Head(name, id, max(newest or 0, trimmed))

    def _producer(self, id: str) -> _Producer:
        producer = self._producers.get(id)
        if producer is not None:
            return producer
        row = self._db.execute("SELECT seq, verdicts FROM producers WHERE id = ?", (id,)).fetchone()
        return _Producer(id) if row is None else _Producer(id, *row)

    def _insert(self, work: "_Batch") -> None:
        width = len(_COLUMNS)
        values, start, left = work.values, 0, len(work.values) // width
        for rows, statement in _INSERTS:
            while left >= rows:
                end = start + width * rows
                self._db.execute(statement, [work.time_ms, *values[start:end]])
                start, left = end, left - rows
        if work.settled:
            self._db.executemany(
                "INSERT INTO producers (id, seq, verdicts, seen) VALUES (?1, ?2, ?3, ?4) "
                "ON CONFLICT (id) DO UPDATE SET seq = ?2, verdicts = ?3, seen = ?4",
                [(p.id, p.seq, p.pack(), work.time_ms) for p in work.settled],
            )

    def _forget(self, work: "_Batch") -> None:
        for name in work.heads:
            self._heads.pop(name, None)
        for id in work.producers:
            self._producers.pop(id, None)

    def forget_idle_producers(self, idle_s: float, count_max: int) -> int:
        """Delete producers that settled nothing for `idle_s` seconds, at most so many; returns how many."""
        cursor = self._db.execute(
            "DELETE FROM producers WHERE id IN (SELECT id FROM producers WHERE seen < ? LIMIT ?) RETURNING id",
            (self._now_ms() - int(idle_s * 1000), count_max),
        )
        gone = [id for (id,) in cursor.fetchall()]
        for id in gone:
            self._producers.pop(id, None)
        return len(gone)

    def trim(self, name: str, until: int) -> None:
        """Cut a channel's old end: offsets up to `until`, at most all of them. Offsets go on from the head."""
        with transaction(self._db):
            head = self._head(name)
            until = min(until, head.offset)
            self._db.execute("DELETE FROM messages WHERE channel = ? AND offset <= ?", (head.id, until))
            write_meta(self._db, "time", str(self.time_ms))  # what is trimmed may have been the newest there was
            self._db.execute("UPDATE channels SET trimmed = max(trimmed, ?) WHERE id = ?", (until, head.id))


class _Batch:
    """What one transaction decides."""

    __slots__ = ("_get_head", "_get_producer", "heads", "producers", "settled", "time_ms", "values")

    def __init__(
        self, get_head: Callable[[str], _Head], get_producer: Callable[[str], _Producer], time_ms: int
    ) -> None:
        self._get_head = get_head
        self._get_producer = get_producer
        self.time_ms = time_ms
        self.heads: dict[str, _Head] = {}
        self.producers: dict[str, _Producer] = {}
        self.settled: set[_Producer] = set()
        self.values: list[Any] = []
        """_COLUMNS of each row, flat, as the INSERT binds them."""

    def decide(self, submission: Submission) -> None:
        """The verdicts of one submission, in order, and the rows they take."""
        producer = None if submission.producer is None else self._touch_producer(submission.producer)
        suffix = message_suffix(self.time_ms, submission.sender)
        verdicts: list[Verdict] = []
        submission.verdicts = verdicts
        for item in submission.items:
            if producer is None or item.seq is UNSET:
                verdicts.append(self._store(item, submission.sender, suffix))
                continue
            if type(item) is Refused and item.error.code not in _SETTLING:
                verdicts.append(item.error)
                continue
            verdict = producer.answer(item.seq)
            if verdict is None:
                verdict = self._store(item, submission.sender, suffix)
                producer.settle(verdict)
                self.settled.add(producer)
            verdicts.append(verdict)

    def _store(self, item: Publish | Refused, sender: str | None, suffix: str) -> int | WireError:
        if isinstance(item, Refused):
            return item.error
        if item.ephemeral:
            return 0
        head = self.heads.get(item.channel)
        if head is None:
            head = self.heads[item.channel] = self._get_head(item.channel)
        offset = head.offset = head.offset + 1
        data = data_text(item.data)
        line = f"{head.prefix}{offset}{suffix}{data}}}\n"
        head.lines.append(line)
        self.values += (head.id, offset, len(line) if line.isascii() else len(line.encode()), sender, data)
        return offset

    def _touch_producer(self, id: str) -> _Producer:
        producer = self.producers.get(id)
        if producer is None:
            producer = self.producers[id] = self._get_producer(id)
        return producer
