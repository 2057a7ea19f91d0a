"""The disk under the server's log: real SQLite files in memory, with errors on demand, and what a crash leaves of them.

The server's own log runs on it, SQL and all; only the file's connections and the executor are stood in for. A crash
copies the database and its WAL as they are between two statements: what a process that dies there leaves behind.
"""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import outcome
import trio

from tests.simulation.determinism import Trace
from trisync.storage.sqlite_opening import FILE_NAME

T = TypeVar("T")

WAL_NAME = FILE_NAME + "-wal"


class Trouble(NamedTuple):
    """What is wrong with the disk for a while."""

    code: int
    """SQLite's result code."""
    statements: tuple[str, ...]
    """How the statements begin that fail."""
    until: float
    share: float
    """How many of those statements fail."""
    after_effect: bool = False
    """Whether the statement was carried out nevertheless: the outcome is unknown."""


_NAMES = {
    sqlite3.SQLITE_FULL: ("SQLITE_FULL", "database or disk is full"),
    sqlite3.SQLITE_BUSY: ("SQLITE_BUSY", "database is locked"),
    sqlite3.SQLITE_READONLY: ("SQLITE_READONLY", "attempt to write a readonly database"),
    sqlite3.SQLITE_IOERR: ("SQLITE_IOERR", "disk I/O error"),
    sqlite3.SQLITE_ERROR: ("SQLITE_ERROR", "the machine is down"),
}


def random_trouble(source: random.Random, now: float) -> Trouble:
    """Some trouble with a disk, for a moment or for seconds."""
    until = now + source.choice((0.05, 0.5, 5.0))
    share = source.choice((0.3, 1.0))
    kinds: tuple[tuple[int, tuple[str, ...], float, bool], ...] = (
        (sqlite3.SQLITE_FULL, ("INSERT", "COMMIT", "UPDATE"), share, False),
        (sqlite3.SQLITE_BUSY, ("BEGIN IMMEDIATE",), share, False),
        (sqlite3.SQLITE_READONLY, ("INSERT", "DELETE", "UPDATE"), share, False),
        (sqlite3.SQLITE_IOERR, ("SELECT",), 0.3, False),
        (sqlite3.SQLITE_IOERR, ("COMMIT", "INSERT"), share, False),
        (sqlite3.SQLITE_IOERR, ("COMMIT",), share, True),
        (sqlite3.SQLITE_IOERR, ("COMMIT",), 0.1, True),
    )
    code, statements, share, after_effect = source.choice(kinds)
    return Trouble(code, statements, until, share, after_effect)


class Disk:
    """One machine's disk, over all its lives."""

    def __init__(self, home: Path, source: random.Random, trace: Trace) -> None:
        self._home = home
        self._random = source
        self._trace = trace
        self._lives = 0
        self.folder = home / "0"
        self._synced = 0
        self.trouble: Trouble | None = None
        self.slow_s_max = 0.002
        """How long a call to the disk may take."""
        self.on_statement: Callable[[str], None] = lambda point: None
        """Called before each statement and around each call, with its name; may end the machine."""
        self.dead = False
        self.struck = False
        """Whether any statement failed in this life."""
        self.outcome_unknown = False
        """Whether a statement failed in a way that must stop the server, in this life."""

    def begin_life(self) -> None:
        """The machine starts."""
        self.dead = False
        self.struck = False
        self._synced = 0
        self.outcome_unknown = False

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        """sqlite3.connect(), for the log."""
        connection = sqlite3.connect(*args, **options, factory=SimConnection)
        assert isinstance(connection, SimConnection)
        connection.disk = self
        connection.reads_only = bool(options.get("uri"))
        return connection

    async def execute(self, call: Callable[[], T]) -> T:
        """The log's executor: what takes a thread and time on a real machine takes virtual time here."""
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            await self._take_time()
            self.on_statement("call")
            result = outcome.capture(call)
            self.on_statement("return")
            await self._take_time()
        return result.unwrap()

    async def _take_time(self) -> None:
        if self._random.random() < 0.5:
            await trio.sleep(self._random.uniform(0, self.slow_s_max))

    def die(self, *, lossy: bool) -> None:
        """Power off, or SIGKILL, now: the next life finds what is in the files at this moment.

        `lossy` where what was not synced is lost with the power: of the WAL, some first part is left.
        """
        if self.dead:
            return
        self.dead = True
        self._lives += 1
        folder = self._home / str(self._lives)
        folder.mkdir(parents=True)
        for name in (FILE_NAME, WAL_NAME):
            file = self.folder / name
            if file.exists():
                shutil.copyfile(file, folder / name)
        self.folder = folder
        if lossy and (folder / WAL_NAME).exists():
            written = (folder / WAL_NAME).stat().st_size
            os.truncate(folder / WAL_NAME, self._random.randint(min(self._synced, written), written))

    def sync(self) -> None:
        """What stands in the WAL now is safe: a checkpoint syncs it before it copies."""
        file = self.folder / WAL_NAME
        self._synced = file.stat().st_size if file.exists() else 0

    def before(self, statement: str, connection: "SimConnection") -> None:
        """A statement is about to be run. Raises sqlite3.OperationalError where it is to fail."""
        if not self.dead:
            self.on_statement(statement)
        if self.dead:
            raise _error(sqlite3.SQLITE_ERROR)
        if self._strikes(statement, after_effect=False):
            self._fail(connection)

    def after(self, statement: str, connection: "SimConnection") -> None:
        """A statement was run; an error may hide that."""
        if self._strikes(statement, after_effect=True):
            self._fail(connection)

    def _strikes(self, statement: str, *, after_effect: bool) -> bool:
        trouble = self.trouble
        if trouble is None or trouble.after_effect != after_effect or not statement.startswith(trouble.statements):
            return False
        if trio.current_time() > trouble.until:
            self.trouble = None
            return False
        return self._random.random() < trouble.share

    def _fail(self, connection: "SimConnection") -> None:
        assert self.trouble is not None
        code = self.trouble.code
        self._trace.note("disk", *_NAMES[code], self.trouble.after_effect)
        self.struck = True
        self.outcome_unknown |= code == sqlite3.SQLITE_IOERR and not connection.reads_only
        raise _error(code)


def _error(code: int) -> sqlite3.OperationalError:
    name, text = _NAMES[code]
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error


class SimConnection(sqlite3.Connection):
    """A connection whose statements the disk has a say in."""

    disk: Disk | None = None
    """None while the file is being opened."""
    reads_only = False

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if self.disk is None or sql.startswith(("PRAGMA", "ROLLBACK")):
            if sql.startswith("PRAGMA wal_checkpoint") and self.disk is not None:
                self.disk.sync()
            return super().execute(sql, parameters)
        statement = sql.lstrip()
        self.disk.before(statement, self)
        cursor = super().execute(sql, parameters)
        self.disk.after(statement, self)
        return cursor

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        if self.disk is not None:
            self.disk.before(sql.lstrip(), self)
        return super().executemany(sql, parameters)
