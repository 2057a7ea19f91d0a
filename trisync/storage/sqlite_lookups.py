"""What a batch looks up in the store, and the caches in front of that: deciding.Lookup on SQLite.

Everything here runs in a worker thread, inside the batch's transaction. What a failed transaction decided may be in the
caches: sqlite_writer.py has it forgotten.
"""

import sqlite3
from collections.abc import Callable, Iterable

import msgspec
from cachetools import TTLCache

from trisync.settings import Settings
from trisync.storage.deciding import Head
from trisync.storage.log import LogDamaged
from trisync.storage.sqlite_chains import chain
from trisync.storage.sqlite_errors import meeting_damage
from trisync.storage.sqlite_heads import JOIN_HEADS
from trisync.storage.sqlite_reading import whole
from trisync.storage.verdicts import Conflict, Producer, Remembered, unpack_verdicts

_HEADS = f"""
SELECT json_group_array(json_array(
  wanted.value, coalesce(channels.id, 0), coalesce(recent.offset, heads.offset, 0), coalesce(keys, 0),
  coalesce(recent.total, heads.total, 0), coalesce(recent.message, heads.message, 0)
)) FROM json_each(?) AS wanted
LEFT JOIN channels ON name = wanted.value {JOIN_HEADS}
"""
"""Those of all channels at once: see sqlite_rows.py on what a statement costs."""
_HeadRow = tuple[str, int, int, int, int, int]
_OFFSETS = msgspec.json.Decoder(dict[str, int])
_NOT_EMPTIED = "AND (SELECT name FROM channels WHERE id = :channel) NOT BETWEEN '$' AND '%'"
"""What a channel had that was emptied is gone, though not yet purged."""
_OLD_DATA = (  # a word that is still the newest outlives its message where the log was trimmed
    f"{chain(':channel', ':offset - 1', ':offset')} "
    f"SELECT data FROM messages WHERE id = (SELECT id FROM chain) {_NOT_EMPTIED}",
    f"SELECT data FROM state WHERE channel = :channel AND key = :key AND offset = :offset {_NOT_EMPTIED}",
)
KEPT_REQUESTS_S = 86400.0
"""How long an Idempotency-Key is remembered."""


def _memory_of(producer: Producer) -> int:
    """About what a producer takes in memory: measured, 0.9 KiB without verdicts, 11 with 256 offsets, 125 with as many
    refusals, which are 8 to 9 times of what they take when packed."""
    return 1024 + 8 * producer.packed_bytes


class SqliteLookup:
    """See deciding.Lookup. It is asked behind begin()."""

    def __init__(self, connection: sqlite3.Connection, settings: Settings, timer: Callable[[], float]) -> None:
        self._db = connection
        self._newest_id = self._now_ms = 0
        ttl_s = settings.cache_ttl_s
        self._heads: TTLCache[str, Head] = TTLCache(settings.cached_heads_max, ttl_s, timer)
        self._producers: TTLCache[str, Producer] = TTLCache(settings.producer_cache_bytes_max, ttl_s, timer, _memory_of)

    def begin(self, newest_id: int, now_ms: int) -> None:
        """A transaction begins, at this time, where this is the newest message's id."""
        self._newest_id, self._now_ms = newest_id, now_ms

    def known_head(self, name: str) -> Head | None:
        head: Head | None = self._heads.get(name)
        return head

    def find_heads(self, names: list[str]) -> list[Head]:
        heads = self._read_heads(names)
        for head in heads:
            self._heads[head.name] = head
        return heads

    def _read_heads(self, names: list[str]) -> list[Head]:
        try:
            with meeting_damage(f"the head of {names[0]}", as_json=True):
                (rows,) = self._db.execute(_HEADS, (msgspec.json.encode(names).decode(),)).fetchone()
                heads = [Head(*row) for row in msgspec.json.decode(rows, type=list[_HeadRow])]
                for head in heads:
                    if head.id and not (head.offset and head.message <= self._newest_id):
                        raise sqlite3.DatabaseError("it is lost where its messages end")
        except LogDamaged:
            if len(names) == 1:
                raise
            return [head for name in names for head in self._read_heads([name])]
        return heads

    def create(self, name: str) -> int:
        cursor = self._db.execute("INSERT INTO channels (name) VALUES (?)", (name,))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def producer(self, id: str) -> Producer:
        producer: Producer | None = self._producers.get(id)
        if producer is None:
            with meeting_damage("what producers have settled"):
                row = self._db.execute("SELECT seq, verdicts FROM producers WHERE id = ?", (id,)).fetchone()
                producer = Producer(id) if row is None else Producer(id, *msgspec.convert(row, tuple[int, bytes]))
            self.keep(producer)
        return producer

    def offsets(self, head: Head, keys: list[str]) -> dict[str, int]:
        try:
            (rows,) = self._db.execute(
                "SELECT json_group_object(key, offset) FROM state "
                "WHERE channel = ? AND key IN (SELECT value FROM json_each(?))",
                (head.id, msgspec.json.encode(keys).decode()),
            ).fetchone()
            return _OFFSETS.decode(rows)
        except (sqlite3.DatabaseError, msgspec.DecodeError):  # a context manager takes 2 µs, once for each channel
            with meeting_damage(f"the state of {head.name}", as_json=True):
                raise

    def word_data(self, head: Head, key: str) -> str:
        row = self._db.execute("SELECT data FROM state WHERE channel = ? AND key = ?", (head.id, key)).fetchone()
        return str(row[0])

    def old_data(self, word: Conflict) -> str | None:
        for query in _OLD_DATA:
            row = self._db.execute(query, word._asdict()).fetchone()
            if row is not None:
                return whole(str(row[0]).encode()).decode()
        return None

    def remembered(self, id: bytes) -> Remembered | None:
        with meeting_damage("what Idempotency-Keys were used for"):
            row = self._db.execute(
                "SELECT fingerprint, verdict FROM idempotency WHERE id = ? AND time >= ?",
                (id, self._now_ms - int(KEPT_REQUESTS_S * 1000)),
            ).fetchone()
            if row is None:
                return None
            fingerprint, verdict = msgspec.convert(row, tuple[bytes, bytes])
            return Remembered(fingerprint, unpack_verdicts(verdict)[0])

    def keep(self, producer: Producer) -> None:
        """Have it in memory, as large as it is now, if it is not larger than all that may be."""
        try:
            self._producers[producer.id] = producer
        except ValueError:
            self._producers.pop(producer.id, None)

    def forget(self, *, heads: Iterable[str] = (), producers: Iterable[str] = ()) -> None:
        """Have them in memory no more: heads by their channels' names, producers by id."""
        for name in heads:
            self._heads.pop(name, None)
        for id in producers:
            self._producers.pop(id, None)
