"""Storing one batch, and deleting between two: the SQL of the writing connection.

Everything here runs in a worker thread, one thing at a time. What becomes of each publish is decided in deciding.py,
inside the batch's transaction; what a failed transaction decided is forgotten.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from trisync.settings import Settings
from trisync.storage.deciding import ROW, Batch, Head
from trisync.storage.log import Extent, LogDamaged, Run, Submission
from trisync.storage.sqlite_chains import MILESTONE, chain
from trisync.storage.sqlite_errors import meeting_damage
from trisync.storage.sqlite_heads import EXTENTS, RecentHeads
from trisync.storage.sqlite_lookups import KEPT_REQUESTS_S, SqliteLookup
from trisync.storage.sqlite_opening import newest_message, transaction, write_meta
from trisync.storage.sqlite_reading import STATE_RANGE, find
from trisync.storage.sqlite_rows import RowInserter
from trisync.storage.verdicts import pack_verdicts

_MESSAGES = RowInserter("messages", ROW, shared=["time"], optional=["sender", "key"])
_STORE_WORDS = (
    "INSERT INTO state (channel, key, offset, size, data) "
    "SELECT channel, key, offset, size, data FROM messages "
    "WHERE id > ? AND key IS NOT NULL AND data <> 'null' ORDER BY id "
    "ON CONFLICT (channel, key) DO UPDATE SET offset = excluded.offset, size = excluded.size, data = excluded.data"
)
"""From the batch's messages, which are stored already: one statement, and nothing is bound twice.

A word's size is that of its message, which is more than the entry takes in a page of the state.
"""
_FITTING = f"""
{chain(":channel", ":after", ":until")}
SELECT coalesce(max(offset), :until), coalesce(max(bytes), 0)
FROM (SELECT offset, total - min(total - size) OVER () AS bytes FROM chain)
WHERE bytes <= :bytes_max OR offset = :after + 1
"""
"""How far a cut goes that is bounded in bytes, but takes one message at least; and how many bytes it takes. What damage
has made empty is cut as a whole."""
_DELETE = f"DELETE FROM messages WHERE id IN ({chain(':channel', ':after', ':until')} SELECT id FROM chain)"
_CUT_HEAD = (
    f"UPDATE heads SET oldest = ({chain(':channel', ':until', ':until + 1')} SELECT id FROM chain) "
    "WHERE channel = :channel"
)
_EMPTIED = (
    "SELECT id FROM channels WHERE name >= '$' AND name < '%' AND id NOT IN (SELECT value FROM json_each(?)) LIMIT 1"
)
_EXTENT = EXTENTS.format(which="channels.id = ?")
_DELETE_WORDS = f"DELETE FROM state WHERE channel = ? AND key <= ({STATE_RANGE})"
PAGE_BYTES = 4096
"""SQLite's default."""
MESSAGES_DELETED_PER_PAGE = 10
"""About, where many channels are active. Rows other than messages are scattered: a page each."""
BYTES_CUT_AT_ONCE = 16 * 1024 * 1024
"""As many as four batches may store: three go by between two cuts where large messages come as fast as they can, and
with 4 MiB the file grew for ever. It takes 30 to 90 ms. Where SQLite overwrites what it deletes, as Debian's does, all
of that goes through the WAL: 500 messages of 1 MB at once held up all publishers for 2 s, and took 460 MiB of a disk
that is perhaps full."""
BYTES_PURGED_AT_ONCE = 4 * 1024 * 1024
"""Purging need not keep up with publishers, and their batches wait for it: so it is as much as one batch may store."""
CLEARING_PAGES = 5
"""What it takes to empty a channel, before it is purged."""


def _pages_of(work: Batch) -> int:
    """About how many pages a batch writes: those of its messages, and of what lies elsewhere, without the heads.

    That is a milestone in the index, a key's word in the state, a producer's verdicts, and two rows for a request that
    may come again. Half a page each: in a large log none shares one, in a small one all do.
    """
    stored_bytes: int = sum(work.rows[ROW.index("size") :: len(ROW)])
    words = [head.words[key] for head in work.heads.values() if head.words for key in head.changed or ()]
    stored_bytes += sum(len(word.data) for word in words if word.data is not None)
    milestones = len(work.rows) // len(ROW) // MILESTONE
    places = milestones + len(words) + len(work.settled) + 2 * len(work.once)
    return 1 + stored_bytes // PAGE_BYTES + (places + 1) // 2


@contextmanager
def _deletion(connection: sqlite3.Connection) -> Iterator[None]:
    """transaction(), for what may stay where damage is in its way. Raises LogDamaged."""
    with meeting_damage(), transaction(connection):
        yield


class Writer:
    """The writing side of the log. Not for two threads at once. What it raises, sqlite_log.py judges."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        settings: Settings,
        now_ms: Callable[[], int],
        timer: Callable[[], float],
    ) -> None:
        self._db = connection
        self._settings = settings
        self._now_ms = now_ms
        self._newest_id, self.time_ms = newest_message(connection)
        """`time_ms` is the newest batch's."""
        self.pages_written = 0
        """About how many, since it was last set to 0. SQLite does not tell."""
        self._recent = RecentHeads(connection)
        self._lookup = SqliteLookup(connection, settings, timer)

    def append(self, batch: Sequence[Submission]) -> list[Run]:
        """See Log.append(). What it raises may leave a transaction open."""
        work = Batch(self._lookup, self._settings, self._tick(), self._newest_id)
        self._lookup.begin(work.newest_id, work.time_ms)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with meeting_damage("what it is stored in"):  # from the commit on it may be stored, before it is not
                work.decide(batch)
                self._store(work)
            self._db.execute("COMMIT")
        except BaseException:
            self._lookup.forget(heads=work.heads, producers=work.producers)
            for submission in batch:
                submission.verdicts = []
            raise
        self._newest_id = work.newest_id
        for producer in work.settled:
            self._lookup.keep(producer)
        self.pages_written += _pages_of(work)
        runs = [head.take_run() for head in work.heads.values()]
        return [run for run in runs if run is not None]

    def _tick(self) -> int:
        """The batch's time: the clock's, but never before an earlier batch's, whatever the clock does."""
        self.time_ms = max(self.time_ms, self._now_ms())
        return self.time_ms

    # What a batch stores

    def _store(self, work: Batch) -> None:
        if work.rows:
            _MESSAGES.insert(self._db, work.rows, work.time_ms)
            self.pages_written += self._recent.store([head for head in work.heads.values() if head.first])
        changed = [head for head in work.heads.values() if head.changed]
        if changed:
            self._db.execute(_STORE_WORDS, (self._newest_id,))
        for head in changed:
            self._delete_words(head)
        if work.settled:
            self._db.executemany(
                "INSERT INTO producers (id, seq, verdicts, seen) VALUES (?1, ?2, ?3, ?4) "
                "ON CONFLICT (id) DO UPDATE SET seq = ?2, verdicts = ?3, seen = ?4",
                [(p.id, p.seq, p.pack(), work.time_ms) for p in work.settled],
            )
        if work.once:
            self._db.executemany(
                "INSERT OR REPLACE INTO idempotency (id, fingerprint, verdict, time) VALUES (?, ?, ?, ?)",
                [
                    (id, known.fingerprint, pack_verdicts([known.verdict]), work.time_ms)
                    for id, known in work.once.items()
                ],
            )

    def _delete_words(self, head: Head) -> None:
        assert head.words is not None
        assert head.changed is not None
        deleted = [key for key in head.changed if not head.words[key].offset]
        if deleted:
            self._db.execute(
                "DELETE FROM state WHERE channel = ? AND key IN (SELECT value FROM json_each(?))",
                (head.id, msgspec.json.encode(deleted).decode()),
            )
        self._db.execute("UPDATE channels SET keys = ?2 WHERE id = ?1 AND keys <> ?2", (head.id, head.keys))

    # Between two batches

    def forget_idle_producers(self, idle_s: float, count_max: int) -> int:
        """Delete producers that settled nothing for `idle_s` seconds, at most so many; returns how many."""
        with _deletion(self._db):
            cursor = self._db.execute(
                "DELETE FROM producers WHERE id IN (SELECT id FROM producers WHERE seen < ? LIMIT ?) RETURNING id",
                (self._now_ms() - int(idle_s * 1000), count_max),
            )
            gone = [id for (id,) in cursor.fetchall()]
        self._lookup.forget(producers=gone)
        self.pages_written += len(gone)
        return len(gone)

    def forget_requests(self, count_max: int) -> int:
        """Delete Idempotency-Keys whose time is over, at most so many; returns how many."""
        with _deletion(self._db):
            gone = self._db.execute(
                "DELETE FROM idempotency WHERE id IN (SELECT id FROM idempotency WHERE time < ? LIMIT ?)",
                (self._now_ms() - int(KEPT_REQUESTS_S * 1000), count_max),
            ).rowcount
        self.pages_written += gone
        return gone

    def trim(self, cuts: Mapping[str, int], count_max: int) -> dict[str, Extent]:
        """See Log.trim()."""
        extents: dict[str, Extent] = {}
        bytes_max = BYTES_CUT_AT_ONCE
        with _deletion(self._db):
            self._keep_newest()
            for name, until in cuts.items():
                id, (head, trimmed) = find(self._db, name)
                if not id:
                    continue
                until = min(until, head, trimmed + count_max)
                if until >= trimmed and bytes_max > 0:  # a cut of nothing, too, notes which message is the oldest
                    until, size = self._cut(id, trimmed, until, bytes_max)
                    count_max -= until - trimmed
                    bytes_max -= size
                    trimmed = until
                extents[name] = Extent(head, trimmed)
        return extents

    def clear(self, name: str) -> Extent | None:
        """See Log.clear(). The channel goes on under a new id; what the old one had is left for purge()."""
        with _deletion(self._db):
            id, (head, trimmed) = find(self._db, name)
            (keys,) = self._db.execute("SELECT keys FROM channels WHERE id = ?", (id,)).fetchone() or (0,)
            if trimmed == head and not keys:
                return None
            self._keep_newest()
            self._db.execute("UPDATE channels SET name = ? WHERE id = ?", (f"$emptied:{id}", id))
            anew = self._db.execute("INSERT INTO channels (name, trimmed) VALUES (?, ?)", (name, head)).lastrowid
            self._db.execute("INSERT INTO heads (channel, offset, total, message) VALUES (?, ?, 0, 0)", (anew, head))
        self._lookup.forget(heads=[name])
        self.pages_written += CLEARING_PAGES
        return Extent(head, head)

    def _cut(self, id: int, trimmed: int, until: int, bytes_max: int) -> tuple[int, int]:
        """Delete a channel's oldest messages, as far as they fit; returns up to which offset, and how many bytes."""
        cut = {"channel": id, "after": trimmed, "until": until, "bytes_max": bytes_max}
        until, size = self._db.execute(_FITTING, cut).fetchone()
        cut["until"] = until
        self._db.execute(_DELETE, cut)
        self._recent.merge(id)
        self._db.execute(_CUT_HEAD, cut)
        self._db.execute("UPDATE channels SET trimmed = ? WHERE id = ?", (until, id))
        self.pages_written += 1 + (until - trimmed) // MESSAGES_DELETED_PER_PAGE + size // PAGE_BYTES
        return until, size

    def emptied(self, passed_over: Sequence[int]) -> int:
        """The id of a channel that was emptied, and is not yet purged; 0 where there is none."""
        with meeting_damage():
            row = self._db.execute(_EMPTIED, (msgspec.json.encode(passed_over).decode(),)).fetchone()
        return 0 if row is None else int(row[0])

    def purge(self, id: int, count_max: int) -> int:
        """Delete rows of a channel that was emptied, about so many at most and its own last; returns how many."""
        with _deletion(self._db):
            row = self._db.execute(_EXTENT, (id,)).fetchone()
            _, head, trimmed = msgspec.convert(row, tuple[int, int, int])
            if head - trimmed > self._newest_id:  # it would be cut for ever
                raise LogDamaged("it is lost where its messages end")
            if trimmed < head:
                until, _ = self._cut(id, trimmed, min(trimmed + count_max, head), BYTES_PURGED_AT_ONCE)
                return until - trimmed
            words = self._db.execute(_DELETE_WORDS, (id, id, "", count_max, BYTES_PURGED_AT_ONCE)).rowcount
            if not words:
                self._db.execute("DELETE FROM heads WHERE channel = ?", (id,))
                self._db.execute("DELETE FROM channels WHERE id = ?", (id,))
        self.pages_written += 1 + words // MESSAGES_DELETED_PER_PAGE
        return words or 1

    def _keep_newest(self) -> None:
        """Write down the newest time and id: what is about to go may have been the newest message there was."""
        write_meta(self._db, "time", str(self.time_ms))
        write_meta(self._db, "id", str(self._newest_id))
