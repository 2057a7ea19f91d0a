"""Reading the log: the SQL of pages, states and listings, each for one connection that has a snapshot.

Everything here runs in a worker thread, and raises sqlite3.Error. What comes of that, and who reads when, is in
sqlite_log.py. See Log for what the functions give.
"""

import sqlite3
from collections.abc import Sequence

import msgspec

from trisync.log import ChannelInfo, Extent, OldMessage, Page, Run, StatePage
from trisync.protocol import message_prefix

# Which offsets make a page: so many at most, and so many bytes, but at least one. Data is not read for this.
_RANGE = """
SELECT min(offset), max(offset) FROM (
  SELECT offset,
    sum(size) OVER (ORDER BY offset {order}) AS bytes,
    row_number() OVER (ORDER BY offset {order}) AS place
  FROM (
    SELECT offset, size FROM messages WHERE channel = ? AND offset > ? ORDER BY offset {order} LIMIT ?
  )
) WHERE place = 1 OR bytes <= ?
"""
_OLDEST = _RANGE.format(order="ASC")
_NEWEST = _RANGE.format(order="DESC")

# A page is put together inside SQLite, in one step: sqlite3 gives up the interpreter lock at every step, and under
# load winning it back costs more than a row.
_LINES = """
SELECT CAST(group_concat(line, '') AS BLOB) FROM (
  SELECT ?1 || offset || ',"time":' || time
    || iif(sender IS NULL, '', ',"from":' || json_quote(sender))
    || iif(key IS NULL, '', ',"key":' || json_quote(key))
    || ',"data":' || data || '}' || char(10) AS line
  FROM messages WHERE channel = ?2 AND offset BETWEEN ?3 AND ?4 ORDER BY offset
)
"""

# The entries behind a key that make a page, as _RANGE has it for messages.
_STATE_RANGE = """
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

_CHANNELS = """
SELECT json_group_array(json_array(name, coalesce(head, trimmed), trimmed, coalesce(bytes, 0), oldest)) FROM (
  SELECT name, trimmed, last.offset AS head, last.total - first.total + first.size AS bytes, first.time AS oldest
  FROM channels
  LEFT JOIN messages AS first ON first.id = (
    SELECT id FROM messages WHERE channel = channels.id ORDER BY offset LIMIT 1)
  LEFT JOIN messages AS last ON last.id = (
    SELECT id FROM messages WHERE channel = channels.id ORDER BY offset DESC LIMIT 1)
  WHERE {which} ORDER BY name LIMIT ?
)
"""
_CHANNELS_BEHIND = _CHANNELS.format(which="name > ? AND name NOT BETWEEN '$' AND '%'")
_CHANNELS_NAMED = _CHANNELS.format(which="name IN (SELECT value FROM json_each(?))")

_OLDEST_MESSAGES = """
SELECT json_group_array(json_array(offset, time, newest - total + size)) FROM (
  SELECT offset, time, total, size,
    (SELECT total FROM messages WHERE channel = ?1 ORDER BY offset DESC LIMIT 1) AS newest
  FROM messages WHERE channel = ?1 ORDER BY offset LIMIT ?2
)
"""


def find(db: sqlite3.Connection, channel: str) -> tuple[int, Extent]:
    """A channel's id (0 where it has none) and extent."""
    row = db.execute("SELECT id, trimmed FROM channels WHERE name = ?", (channel,)).fetchone()
    if row is None:
        return 0, Extent(0, 0)
    id, trimmed = row
    (newest,) = db.execute("SELECT max(offset) FROM messages WHERE channel = ?", (id,)).fetchone()
    return id, Extent(max(newest or 0, trimmed), trimmed)


def page_behind(db: sqlite3.Connection, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
    """See Log.read()."""
    return _page(db, _OLDEST, channel, after, count_max, bytes_max)


def newest_page(db: sqlite3.Connection, channel: str, count_max: int, bytes_max: int) -> Page:
    """See Log.newest()."""
    return _page(db, _NEWEST, channel, 0, count_max, bytes_max)


def _page(db: sqlite3.Connection, query: str, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
    id, extent = find(db, channel)
    first, last = db.execute(query, (id, after, count_max, bytes_max)).fetchone()
    if first is None:
        return Page(None, extent)
    (lines,) = db.execute(_LINES, (message_prefix(channel), id, first, last)).fetchone()
    return Page(Run(channel, first - 1, last, lines), extent)


def state_page(db: sqlite3.Connection, channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
    """See Log.state()."""
    id, extent = find(db, channel)
    (last,) = db.execute(_STATE_RANGE, (id, after, count_max, bytes_max)).fetchone()
    if last is None:
        return StatePage(b"", "", False, extent)
    (entries,) = db.execute(_PAGE_OF_ENTRIES, (id, after, last)).fetchone()
    more = db.execute("SELECT 1 FROM state WHERE channel = ? AND key > ? LIMIT 1", (id, last)).fetchone()
    return StatePage(entries, last, more is not None, extent)


def word(db: sqlite3.Connection, channel: str, key: str) -> StatePage:
    """See Log.word()."""
    id, extent = find(db, channel)
    (entry,) = db.execute(_ONE_ENTRY, (id, key)).fetchone()
    return StatePage(entry or b"", key if entry else "", False, extent)


def channels_behind(db: sqlite3.Connection, after: str, count_max: int) -> list[ChannelInfo]:
    """See Log.channels()."""
    return _channels(db, _CHANNELS_BEHIND, after, count_max)


def channels_named(db: sqlite3.Connection, names: Sequence[str]) -> list[ChannelInfo]:
    """See Log.describe()."""
    return _channels(db, _CHANNELS_NAMED, msgspec.json.encode(names).decode(), len(names))


def _channels(db: sqlite3.Connection, query: str, which: str, count_max: int) -> list[ChannelInfo]:
    (rows,) = db.execute(query, (which, count_max)).fetchone()
    return [
        ChannelInfo(name, Extent(head, trimmed), size, oldest)
        for name, head, trimmed, size, oldest in msgspec.json.decode(rows)
    ]


def oldest_messages(db: sqlite3.Connection, channel: str, count_max: int) -> list[OldMessage]:
    """See Log.oldest()."""
    id, _ = find(db, channel)
    (rows,) = db.execute(_OLDEST_MESSAGES, (id, count_max)).fetchone()
    return msgspec.json.decode(rows, type=list[OldMessage])


def settled_seq(db: sqlite3.Connection, producer: str) -> int:
    """See Log.settled_seq()."""
    row = db.execute("SELECT seq FROM producers WHERE id = ?", (producer,)).fetchone()
    return 0 if row is None else int(row[0])
