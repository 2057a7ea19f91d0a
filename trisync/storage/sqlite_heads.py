"""Where each channel ends, in the file: a row of `heads` each, and before it counts what `recent_heads` has of it.

A publish changes its channel's row. Where there are 100,000, those of 512 publishes to any of them lie in 350 pages,
and each page that is changed is written to the WAL, and brought to its place by the next checkpoint. So a row goes to
`recent_heads` first, which is small, and from there to `heads` with many neighbours of it, as in a log-structured merge
tree. A batch of 512 takes 12 ms so, and 28 without (measured, in a log of 200,000 messages).
"""

import sqlite3
from collections.abc import Sequence

from trisync.storage.deciding import Head
from trisync.storage.sqlite_rows import RowInserter

RECENT_MAX = 8192
"""Rows of `recent_heads`, about: some 50 pages. A publish to any of 100,000 channels costs 49 µs; with 2048, 58."""
MERGED_AT_ONCE = 1024
"""How many of them one batch brings to `heads`, or all that are over RECENT_MAX, if more. All at once take 125 ms where
there are a million channels."""
HEADS_PER_PAGE = 150
"""About, in either table. They lie in the order of their channels' ids."""

JOIN_HEADS = """
LEFT JOIN recent_heads AS recent ON recent.channel = channels.id LEFT JOIN heads ON heads.channel = channels.id
"""
"""Joins a channel's two rows to it. What `recent` has counts before what `heads` has, but for `oldest`."""

EXTENTS = f"""
SELECT channels.id, coalesce(recent.offset, heads.offset, 0), trimmed
FROM channels {JOIN_HEADS} WHERE {{which}}
"""
"""A channel's id, head (0 where that is lost), and what it is trimmed to."""


def head_column(column: str, channel: str) -> str:
    """SQL of a column of a channel's row; NULL where nothing was ever stored in it. The channel is SQL too."""
    return "coalesce({}, {})".format(
        *(f"(SELECT {column} FROM {table} WHERE channel = {channel})" for table in ("recent_heads", "heads"))
    )


_COLUMNS = ("channel", "offset", "total", "message", "oldest")
_NAMES = ", ".join(_COLUMNS)
_NEWER = "offset = excluded.offset, total = excluded.total, message = excluded.message"
_STORE = RowInserter("recent_heads", _COLUMNS, conflict=f"ON CONFLICT (channel) DO UPDATE SET {_NEWER}")
_COUNT = "SELECT count(*) FROM recent_heads"
_NEXT = (
    f"SELECT count(*), max(channel), count(DISTINCT channel / {HEADS_PER_PAGE}) "
    "FROM (SELECT channel FROM recent_heads WHERE channel > ? ORDER BY channel LIMIT ?)"
)
_RANGE = "FROM recent_heads WHERE channel BETWEEN ? AND ?"
_COPY = (
    f"INSERT INTO heads ({_NAMES}) SELECT {_NAMES} {_RANGE} "
    f"ON CONFLICT (channel) DO UPDATE SET {_NEWER}, oldest = coalesce(oldest, excluded.oldest)"
)
_DELETE = f"DELETE {_RANGE}"


class RecentHeads:
    """The writing side of both tables. Everything happens in a transaction of the caller."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._rows = self._count()  # at most; more only by what a failed transaction had merged: no harm
        self._merged = 0  # up to this channel, in the round that is under way

    def store(self, heads: Sequence[Head]) -> int:
        """Note where channels end that a batch has added to; returns about how many pages that changes."""
        values: list[int] = []
        for head in heads:
            values += (head.id, head.offset, head.total, head.message, head.first)
        _STORE.insert(self._db, values)
        channels = len(heads)
        pages = min(channels, 1 + self._rows // HEADS_PER_PAGE)
        self._rows += channels
        if self._rows > RECENT_MAX:
            self._rows = self._count()
            if self._rows > RECENT_MAX:
                pages += self._merge_some()
        return pages

    def merge(self, channel: int) -> None:
        """Have all that is known of a channel in `heads`."""
        self._merge(channel, channel)

    def _count(self) -> int:
        (rows,) = self._db.execute(_COUNT).fetchone()
        return int(rows)

    def _merge_some(self) -> int:
        wanted = max(MERGED_AT_ONCE, self._rows - RECENT_MAX)
        rows, last, pages = self._db.execute(_NEXT, (self._merged, wanted)).fetchone()
        if rows:
            self._merge(self._merged + 1, last)
            self._rows -= rows
        self._merged = last if rows == wanted else 0
        return int(pages)

    def _merge(self, first: int, last: int) -> None:
        self._db.execute(_COPY, (first, last))
        self._db.execute(_DELETE, (first, last))
