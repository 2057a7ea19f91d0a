"""What an error of SQLite's says: that nothing was stored, that the file is damaged, or neither.

What is done about it is in sqlite_log.py.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from trisync.storage.log import LogDamaged, LogUnavailable

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
}
"""Primary result codes after which nothing was stored and the database is whole."""
DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}
"""What SQLite's codes say of a file that a statement of ours does not fit; the first of a table that is not there, or
of a value that is of another kind."""


def primary_code(error: Exception) -> int:
    """SQLite's own code of an error. What sqlite3 itself finds has none: what is not UTF-8 counts as damage."""
    found = sqlite3.SQLITE_MISUSE if isinstance(error, sqlite3.ProgrammingError) else sqlite3.SQLITE_CORRUPT
    return getattr(error, "sqlite_errorcode", found) & 0xFF


def unavailable(error: Exception) -> LogUnavailable | None:
    """The LogUnavailable for an error that surely left nothing behind, else None."""
    return LogUnavailable(str(error)) if primary_code(error) in _UNAVAILABLE else None


@contextmanager
def meeting_damage(what: str = "", *, as_json: bool = False) -> Iterator[None]:
    """Raise LogDamaged where damage is met, and say of what it is.

    A msgspec.DecodeError is what comes of a page that has another's content. SQLITE_ERROR is what comes of a value that
    JSON cannot hold, where values are read so; anywhere else it is a statement that is wrong.
    """
    try:
        yield
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        if primary_code(error) not in (DAMAGE if as_json else DAMAGE - {sqlite3.SQLITE_ERROR}):
            raise
        raise LogDamaged(f"{what} is damaged: {error}" if what else str(error)) from error
