"""Reading the log: the SQL of pages, states and listings, each for one connection that has a snapshot.

Everything here runs in a worker thread, and raises sqlite3.Error. What comes of that, and who reads when, is in
sqlite_log.py. See Log for what the functions give.
"""

import sqlite3
from collections.abc import Sequence

import msgspec

from trisync.storage.log import ChannelInfo, Extent, OldMessage, Page, Run, StatePage
from trisync.storage.sqlite_chains import chain
from trisync.storage.sqlite_heads import EXTENTS, JOIN_HEADS, head_column
from trisync.wire.replies import message_prefix

_EXTENT = EXTENTS.format(which="name = ?")
_ExtentRow = tuple[int, int, int]

# Which messages make a page: as many bytes of those in a range as allowed, but at least one; and how many there are in
# the range. Data is not read for this.
_RANGE = (
    chain(":channel", ":after", ":until")
    + """
SELECT min(offset), max(offset), json_group_array(id), max(there)
FROM (SELECT id, offset, {bytes} AS bytes, count(*) OVER () AS there FROM chain)
WHERE bytes <= :bytes_max OR offset = {at_least}
"""
)
_OLDEST = _RANGE.format(bytes="total - min(total - size) OVER ()", at_least=":after + 1")
_NEWEST = _RANGE.format(bytes="max(total) OVER () - total + size", at_least=":until")

# A page is put together inside SQLite, in one step: sqlite3 gives up the interpreter lock at every step, and under
# load winning it back costs more than a row.
_LINES = """
SELECT CAST(group_concat(line, '') AS BLOB) FROM (
  SELECT ?1 || offset || ',"time":' || time
    || iif(sender IS NULL, '', ',"from":' || json_quote(sender))
    || iif(key IS NULL, '', ',"key":' || json_quote(key))
    || ',"data":' || data || '}' || char(10) AS line
  FROM messages WHERE id IN (SELECT value FROM json_each(?2)) ORDER BY id
)
"""

# The entries behind a key that make a page: so many at most, and so many bytes, but at least one.
STATE_RANGE = """
SELECT max(key) FROM (
  SELECT key, sum(size) OVER (ORDER BY key) AS bytes, row_number() OVER (ORDER BY key) AS place
  FROM (SELECT key, size FROM state WHERE channel = ? AND key > ? ORDER BY key LIMIT ?)
) WHERE place = 1 OR bytes <= ?
"""
_ENTRIES = """
SELECT CAST(group_concat(json_quote(key) || ':{{"offset":' || offset || ',"data":' || data || '}}', ',') AS BLOB)
FROM (SELECT key, offset, data FROM state WHERE channel = ? AND {keys} ORDER BY key)
"""
_PAGE_OF_ENTRIES = _ENTRIES.format(keys="key > ? AND key <= ?")
_ONE_ENTRY = _ENTRIES.format(keys="key = ?")

_CHANNELS = f"""
SELECT json_group_array(json_array(name, head, trimmed, coalesce(bytes, 0), oldest)) FROM (
  SELECT name, coalesce(recent.offset, heads.offset) AS head, trimmed,
    coalesce(recent.total, heads.total) - first.total + first.size AS bytes, first.time AS oldest
  FROM channels {JOIN_HEADS}
  LEFT JOIN messages AS first ON first.id = coalesce(heads.oldest, recent.oldest)
  WHERE {{which}} ORDER BY name LIMIT ?
)
"""
_ChannelRow = tuple[str, int, int, int, int | None]
_CHANNELS_BEHIND = _CHANNELS.format(which="name > ? AND name NOT BETWEEN '$' AND '%'")
_CHANNELS_NAMED = _CHANNELS.format(which="name IN (SELECT value FROM json_each(?))")
_NAMES_BEHIND = "SELECT name FROM channels WHERE name > ? AND name NOT BETWEEN '$' AND '%' ORDER BY name LIMIT ?"

_OLDEST_MESSAGES = f"""
SELECT json_group_array(json_array(offset, time, newest - total + size)) FROM (
  {chain(":channel", ":after", ":until")}
  SELECT offset, time, total, size, {head_column("total", ":channel")} AS newest
  FROM chain ORDER BY offset
)
"""

_NEVER_STORED = (b"\0", b"\xff")
"""Bytes that JSON in UTF-8 cannot have."""


def whole(text: bytes) -> bytes:
    """Text from the log, unless it was overwritten. Raises sqlite3.DatabaseError.

    SQLite has no checksums: of what large data has in pages of its own, it takes anything. A page that became zeros,
    ones, or random has one of these bytes; to look for them takes 0.1 ms a MiB, and to decode that up to 5.
    """
    if any(byte in text for byte in _NEVER_STORED):
        raise sqlite3.DatabaseError("data was overwritten")
    return text


def find(db: sqlite3.Connection, channel: str) -> tuple[int, Extent]:
    """A channel's id (0 where it has none) and extent."""
    row = db.execute(_EXTENT, (channel,)).fetchone()
    if row is None:
        return 0, Extent(0, 0)
    id, head, trimmed = msgspec.convert(row, _ExtentRow)
    if not head:  # a channel begins with a message
        raise sqlite3.DatabaseError("it is lost where its messages end")
    return id, Extent(head, trimmed)


def page_behind(db: sqlite3.Connection, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
    """See Log.read()."""
    id, extent = find(db, channel)
    after = max(after, extent.trimmed)
    return _page(db, _OLDEST, (channel, id, extent), after, min(after + count_max, extent.head), bytes_max)


def newest_page(db: sqlite3.Connection, channel: str, count_max: int, bytes_max: int) -> Page:
    """See Log.newest()."""
    id, extent = find(db, channel)
    after = max(extent.head - count_max, extent.trimmed)
    return _page(db, _NEWEST, (channel, id, extent), after, extent.head, bytes_max)


def _page(
    db: sqlite3.Connection, query: str, found: tuple[str, int, Extent], after: int, until: int, bytes_max: int
) -> Page:
    channel, id, extent = found
    if after >= until:
        return Page(None, extent)
    asked = {"channel": id, "after": after, "until": until, "bytes_max": bytes_max}
    first, last, ids, there = db.execute(query, asked).fetchone()
    if there != until - after:
        raise sqlite3.DatabaseError(f"messages of {channel} are missing between {after} and {until}")
    (lines,) = db.execute(_LINES, (message_prefix(channel), ids)).fetchone()
    return Page(Run(channel, first - 1, last, whole(lines)), extent)


def state_page(db: sqlite3.Connection, channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
    """See Log.state()."""
    id, extent = find(db, channel)
    (last,) = db.execute(STATE_RANGE, (id, after, count_max, bytes_max)).fetchone()
    if last is None:
        return StatePage(b"", "", False, extent)
    (entries,) = db.execute(_PAGE_OF_ENTRIES, (id, after, last)).fetchone()
    more = db.execute("SELECT 1 FROM state WHERE channel = ? AND key > ? LIMIT 1", (id, last)).fetchone()
    return StatePage(whole(entries), last, more is not None, extent)


def word(db: sqlite3.Connection, channel: str, key: str) -> StatePage:
    """See Log.word()."""
    id, extent = find(db, channel)
    (entry,) = db.execute(_ONE_ENTRY, (id, key)).fetchone()
    return StatePage(whole(entry or b""), key if entry else "", False, extent)


def channels_behind(db: sqlite3.Connection, after: str, count_max: int) -> list[ChannelInfo]:
    """See Log.channels()."""
    return _channels(db, _CHANNELS_BEHIND, after, count_max)


def names_behind(db: sqlite3.Connection, after: str, count_max: int) -> list[str]:
    """The names of channels_behind(), for which nothing is read of their messages."""
    return msgspec.convert([name for (name,) in db.execute(_NAMES_BEHIND, (after, count_max))], list[str])


def channels_named(db: sqlite3.Connection, names: Sequence[str]) -> list[ChannelInfo]:
    """See Log.describe()."""
    return _channels(db, _CHANNELS_NAMED, msgspec.json.encode(names).decode(), len(names))


def _channels(db: sqlite3.Connection, query: str, which: str, count_max: int) -> list[ChannelInfo]:
    (rows,) = db.execute(query, (which, count_max)).fetchone()
    return [
        ChannelInfo(name, Extent(head, trimmed), size, oldest)
        for name, head, trimmed, size, oldest in msgspec.json.decode(rows, type=list[_ChannelRow])
    ]


def oldest_messages(db: sqlite3.Connection, channel: str, count_max: int) -> list[OldMessage]:
    """See Log.oldest()."""
    id, extent = find(db, channel)
    asked = {"channel": id, "after": extent.trimmed, "until": extent.trimmed + count_max}
    (rows,) = db.execute(_OLDEST_MESSAGES, asked).fetchone()
    return msgspec.json.decode(rows, type=list[OldMessage])


def settled_seq(db: sqlite3.Connection, producer: str) -> int:
    """See Log.settled_seq()."""
    row = db.execute("SELECT seq FROM producers WHERE id = ?", (producer,)).fetchone()
    return 0 if row is None else msgspec.convert(row[0], int)
