"""The file and its connections: whose folder it is, what is refused, how it is opened and left, whose epoch it has.

A file that is no trisync log, or a newer one, is refused from its first 100 bytes, before SQLite opens it, so
that not a byte of it or beside it changes. (Where only the WAL says that it is newer, both stay as they are.) The
tables are in sqlite_schema.py; the reading and writing of messages are elsewhere.
"""

import fcntl
import logging
import os
import secrets
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import sqlite_utils

from trisync.storage.log import LogRefused
from trisync.storage.sqlite_errors import DAMAGE, primary_code
from trisync.storage.sqlite_files import may_grow
from trisync.storage.sqlite_schema import SCHEMA_VERSION, STEPS, TABLES, migrations
from trisync.tokens import Tokens

logger = logging.getLogger(__name__)

Connect = Callable[..., sqlite3.Connection]
"""Opens the file: sqlite3.connect, or what stands in for it where the disk is to fail."""

FILE_NAME = "trisync.db"
WAL_BYTES_KEPT = 64 * 1024 * 1024
"""What a WAL that is begun anew may keep of its length: that of four checkpoints. It comes to that only where a
reader, such as a backup, kept them from ending."""
LOCK_NAME = "trisync.lock"

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_APPLICATION_ID = 0x74726973  # "tris", shown by file(1); offset 68 of the header
_USER_VERSION_AT, _APPLICATION_ID_AT = 60, 68

_UNSAFE = "unsafe"  # in the meta table: 1 while a server runs that may lose the newest commits


def lock_folder(folder: Path) -> int:
    """Make the data folder this process's own until the returned descriptor is closed.

    Raises LogRefused where it is no folder, and where another server holds it, and OSError; the kernel lets go of a
    lock whose process died.
    """
    if folder.exists() and not folder.is_dir():
        raise LogRefused(f"{folder} is not a folder")
    _make_folder(folder)
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise LogRefused(f"{folder} is in use by another trisync server (process {owner or 'unknown'})") from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return descriptor


def _make_folder(folder: Path) -> None:
    """Make a folder, durably: SQLite sees to the names in it, but a power cut must not take its own."""
    missing = [name for name in (folder, *folder.parents) if not name.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        sync_folder(name.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable: those that were given, and those that were taken away."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_foreign_file(path: Path) -> None:
    """Raise LogRefused unless the file is a trisync log that this version can read, or is not there yet."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise LogRefused(f"{path} is not a SQLite database; it was left as it is")
    (application_id,) = struct.unpack_from(">I", header, _APPLICATION_ID_AT)
    if application_id != _APPLICATION_ID:
        raise LogRefused(f"{path} is a SQLite database of another program; it was left as it is")
    _refuse_newer(path, *struct.unpack_from(">I", header, _USER_VERSION_AT))


def _refuse_newer(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise LogRefused(
            f"{path} was written by a newer trisync (its schema is {version}, this one knows {SCHEMA_VERSION}); "
            "it was left as it is"
        )


def open_writer(
    path: Path, *, durability: str, busy_ms: int, tokens: Tokens = secrets.token_hex, connect: Connect = sqlite3.connect
) -> sqlite3.Connection:
    """The one connection that writes, with the schema up to date. Raises LogRefused.

    It is also the only one that checkpoints. SQLite before 3.51.3 can corrupt a WAL database when two
    connections checkpoint at once (the "WAL-reset" bug; Debian 12 has 3.40.1). Here that cannot happen:
    automatic checkpoints are off, this connection alone runs them between two batches, and every other one is
    opened by open_reader() with mode=ro, which cannot.
    """
    if path.is_symlink():  # SQLite keeps the WAL where it leads to, where another server's lock may be
        raise LogRefused(f"{path} is a symbolic link; let its folder be one instead")
    refuse_foreign_file(path)
    connection = connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
        _refuse_newer(path, *connection.execute("PRAGMA user_version").fetchone())  # it may be in the WAL alone
        if (problem := incomplete(connection, path)) is not None:  # before anything is written
            raise _damaged(path, problem)
        _set_header(connection, "application_id", _APPLICATION_ID)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()  # commits, or fails to, only behind its answer
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        connection.execute("PRAGMA cache_size = -65536")  # 64 MiB: the pages that scattered appends touch
        _bring_up_to_date(connection, path)
        # From 64 KiB on, what a statement may have to undo would be in a file in /var/tmp or /tmp, one for nearly every
        # batch of many keys: where those are read-only or full, nothing could be stored on a disk that is well.
        connection.execute("PRAGMA temp_store = MEMORY")
        _set_header(connection, "user_version", SCHEMA_VERSION)
        _begin_epoch(connection, durability, tokens)
        # What was just written must reach the file's own header, which the next start judges by.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA synchronous = {durability.upper()}")
    except sqlite3.DatabaseError as error:
        _close_untouched(connection, path)
        raise unusable(path, error) from error
    except LogRefused:
        _close_untouched(connection, path)
        raise
    return connection


def unusable(path: Path, error: sqlite3.Error) -> LogRefused:
    """What to raise for a log that SQLite refuses to work with."""
    if primary_code(error) in DAMAGE:
        return _damaged(path, str(error))
    if primary_code(error) == sqlite3.SQLITE_IOERR and not may_grow(path):
        return LogRefused(f"{path} cannot be opened: a quota or limit is used up; make room in it, or raise it")
    # Of I/O errors there are dozens, and a disk that is full is among them: SQLITE_IOERR_SHMSIZE.
    name = f" ({error.sqlite_errorname})" if primary_code(error) == sqlite3.SQLITE_IOERR else ""
    return LogRefused(f"{path} cannot be opened: {error}{name}")


def _damaged(path: Path, problem: str) -> LogRefused:
    return LogRefused(
        f"{path} is damaged, or not a whole trisync log: {problem}; `trisync restore` puts a backup in its place"
    )


def incomplete(connection: sqlite3.Connection, path: Path) -> str | None:
    """Why a file cannot be a whole log, or a new one; else None. Raises sqlite3.DatabaseError where it is damaged."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    done = {step.name for step in migrations.applied(sqlite_utils.Database(connection))}
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    made = {name for name, since in TABLES.items() if STEPS[since - 1] in done}
    expected = made | {name for name, since in TABLES.items() if since <= version}
    if missing := sorted(expected - there):
        return f"it lacks {', '.join(missing)}"
    if there & TABLES.keys() > made:
        return "it does not say which version made it"
    # What a start reads, but would only once it has written.
    if "meta" in there:
        read_meta(connection, "epoch")
        newest_message(connection)
    if "recent_heads" in there:
        connection.execute("SELECT count(*) FROM recent_heads").fetchone()
    # Each page is in the file or, if it is newer, in the WAL.
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    found_bytes = sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
    if found_bytes < pages * page_bytes:
        return f"of its {pages * page_bytes:,} bytes there are {found_bytes:,}"
    return None


def _close_untouched(connection: sqlite3.Connection, path: Path) -> None:
    """Close a connection while another one is open, as the last would checkpoint: what is damaged stays as it is."""
    wal = Path(f"{path}-wal")
    with suppress(sqlite3.Error, OSError), closing(connection):
        if wal.stat().st_size:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as other:
                with suppress(sqlite3.Error):
                    other.execute("SELECT count(*) FROM sqlite_master")
                connection.close()


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    database = sqlite_utils.Database(connection)
    if not migrations.pending(database):
        return
    if migrations.applied(database):
        logger.info("%s is of an older trisync: it is brought up to date, which may take minutes, and space", path)
    # Where that is SQLite's default, what is moved elsewhere would be overwritten by zeros, by way of the WAL.
    (secure_delete,) = connection.execute("PRAGMA secure_delete").fetchone()
    connection.execute("PRAGMA secure_delete = OFF")
    migrations.apply(database)
    connection.execute(f"PRAGMA secure_delete = {secure_delete}")


def _set_header(connection: sqlite3.Connection, field: str, value: int) -> None:
    if connection.execute(f"PRAGMA {field}").fetchone() != (value,):
        connection.execute(f"PRAGMA {field} = {value}")


def open_reader(path: Path, *, busy_ms: int, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """A connection that reads beside the writer and never writes, nor checkpoints.

    It has read once when this returns. From then on, it keeps the file locked against a checkpoint by whoever closes
    it, which in SQLite the last connection does; one that has only been made does not count as one. Raises
    sqlite3.Error.
    """
    connection = connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK when the body raises. (sqlite3's own `with` never begins one.)"""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_meta(connection: sqlite3.Connection, name: str) -> str | None:
    """A value of the meta table."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def newest_message(connection: sqlite3.Connection) -> tuple[int, int]:
    """The id and time of the newest message that there ever was, as far as it is known; zeros where there was none."""
    row = connection.execute("SELECT id, time FROM messages ORDER BY id DESC LIMIT 1").fetchone() or (0, 0)
    kept = [read_meta(connection, name) or 0 for name in ("id", "time")]
    try:
        id, time_ms = msgspec.convert(row, tuple[int, int])
        kept_id, kept_time_ms = msgspec.convert(kept, tuple[int, int], strict=False)
    except msgspec.ValidationError as error:
        raise sqlite3.DatabaseError(f"what is known of the newest message: {error}") from error
    return max(id, kept_id), max(time_ms, kept_time_ms)


def write_meta(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Set a value of the meta table."""
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))


def _begin_epoch(connection: sqlite3.Connection, durability: str, tokens: Tokens) -> None:
    """Give the log its identity, a new one where offsets may have been lost.

    Under `normal` the newest commits of a machine that lost power are gone, and their offsets would be given
    again; so whoever opens a log that such a server did not close begins a new epoch (promise P3).
    """
    with transaction(connection):
        if read_meta(connection, "epoch") is None or read_meta(connection, _UNSAFE) == "1":
            renew_epoch(connection, tokens)
        write_meta(connection, _UNSAFE, "1" if durability == "normal" else "0")


def renew_epoch(connection: sqlite3.Connection, tokens: Tokens = secrets.token_hex) -> str:
    """Make this another log than the one that clients know; returns the new epoch. In a transaction of the caller."""
    epoch = tokens(8)
    write_meta(connection, "epoch", epoch)
    write_meta(connection, _UNSAFE, "0")
    return epoch


def close_writer(connection: sqlite3.Connection) -> None:
    """Fold the WAL into the file, durably, and note that nothing was lost. Raises sqlite3.Error; closes in any case."""
    try:
        connection.execute("PRAGMA synchronous = FULL")
        if read_meta(connection, _UNSAFE) == "1":
            write_meta(connection, _UNSAFE, "0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
