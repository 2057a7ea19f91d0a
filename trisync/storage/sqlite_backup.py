"""Copying a log out of its data folder while it is served, and back into one that is not.

Both are for a process of their own, and block it. A backup is one plain SQLite file, checked before it has its
name; nothing here writes to the file that a server has open, nor checkpoints it.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trisync.storage.log import LogRefused
from trisync.storage.sqlite_errors import primary_code
from trisync.storage.sqlite_opening import (
    FILE_NAME,
    LOCK_NAME,
    incomplete,
    lock_folder,
    open_reader,
    refuse_foreign_file,
    renew_epoch,
    sync_folder,
    transaction,
)

BUSY_MS = 10_000
"""How long a copy waits for a lock: a server that starts or stops holds one for a moment."""
PAGES_PER_STEP = 4096
"""16 MiB are copied between two calls of `progress`, and between two chances for Ctrl-C."""

Progress = Callable[[int, int], None]
"""Told how many pages are copied, and of how many."""


def backup(folder: Path, file: Path, *, replace: bool = False, progress: Progress = lambda done, total: None) -> None:
    """Copy the log in a data folder into a file of its own, whether a server has it open or not.

    The copy is of one moment, and holds all that was acknowledged before the call. The file appears whole, checked
    and durable, or not at all. Raises LogRefused where there is no log, it is damaged or cannot be copied, there is no
    folder for the file, or the file is there and not to be replaced, or is one of the log's own; and OSError.
    """
    source = folder / FILE_NAME
    _require_log(source)
    _refuse_as_copy(file, folder)
    if not replace:
        _refuse_to_replace(file)
    with _copied(source, file, progress) as copy:
        _put_in_place(copy, file)


def restore(file: Path, folder: Path, *, replace: bool = False, progress: Progress = lambda done, total: None) -> str:
    """Make a backup the log of a data folder that no server uses, under a new epoch, which is returned.

    The new epoch tells every client that the log it knew is gone; it starts over. What stops this half-way leaves the
    folder with the log it had, or with none. Root restores it for whoever owns the folder. Raises LogRefused where the
    file is no log, damaged, of a newer version, or where the copy is made, where the folder is in use, or has a log and
    that is not to be replaced; and sqlite3.Error and OSError.
    """
    _require_log(file)
    lock = lock_folder(folder)
    try:
        target = folder / FILE_NAME
        if not replace:
            _refuse_to_replace(target)
        with _copied(file, target, progress) as copy, closing(sqlite3.connect(copy, isolation_level=None)) as log:
            with transaction(log):
                epoch = renew_epoch(log)
        _give_to_owner(folder, copy, folder / LOCK_NAME)
        _put_in_place(copy, target)
        return epoch
    finally:
        os.close(lock)


def _companions(file: Path) -> list[Path]:
    """What SQLite takes for a part of a database where it has such a name, whosever it was."""
    return [Path(f"{file}{end}") for end in ("-wal", "-shm", "-journal")]


def _put_in_place(copy: Path, target: Path) -> None:
    """Give a copy its name, durably, once there is nothing that would be taken for a part of it.

    What stops this half-way leaves the file that was there whole, or none: without its newest commits, or with those of
    another, it must never be found. So it goes before its WAL, and SQLite takes no notice of a WAL that has no file.
    """
    companions = _companions(target)
    if any(old.exists() for old in companions):
        target.unlink(missing_ok=True)
        sync_folder(target.parent)
        for old in companions:
            old.unlink(missing_ok=True)  # who reads the file takes them away on leaving it
        sync_folder(target.parent)
    os.replace(copy, target)
    sync_folder(target.parent)


def _give_to_owner(folder: Path, *files: Path) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        for file in files:
            os.chown(file, owner.st_uid, owner.st_gid)


def _require_log(file: Path) -> None:
    if not file.exists() or file.stat().st_size == 0:
        raise LogRefused(f"there is no log {file}")
    refuse_foreign_file(file)


def _refuse_as_copy(file: Path, folder: Path) -> None:
    """Refuse what must never be replaced: what a server may have open, and what is more than a name for bytes."""
    log = folder / FILE_NAME
    own = (log, *_companions(log), folder / LOCK_NAME)
    if file.name in [path.name for path in own] and file.parent.resolve() == folder.resolve():
        raise LogRefused(f"{file} belongs to the log that is to be copied")
    if file.exists() and not file.is_file():
        raise LogRefused(f"{file} is no regular file")


def _refuse_to_replace(file: Path) -> None:
    for old in (file, *_companions(file)):
        if old.exists():
            raise LogRefused(f"{old} is there already; --force replaces it")


@contextmanager
def _copied(source: Path, target: Path, progress: Progress) -> Iterator[Path]:
    """A checked copy of a log, beside where it is to be; what the body raises removes it."""
    copy = Path(f"{target}.partial")
    if not copy.parent.is_dir():
        raise LogRefused(f"there is no folder {copy.parent} for {target.name}")
    if copy.exists() and copy.samefile(source):
        raise LogRefused(f"{source} has the name that a copy is made under, and would be lost: rename it first")
    with _claimed(copy):
        try:
            for left in _companions(copy):  # of a copy that was killed
                left.unlink(missing_ok=True)
            _copy(source, copy, progress)
            yield copy
        except BaseException:
            for left in (copy, *_companions(copy)):
                left.unlink(missing_ok=True)
            raise


@contextmanager
def _claimed(file: Path) -> Iterator[None]:
    """Make a file, or empty it, and let no other copy be written to it meanwhile. Raises LogRefused, and OSError.

    The kernel lets go of what a copy had that was killed.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(descriptor), file.stat())
        except (BlockingIOError, FileNotFoundError):  # the other one has it, or has just given it its name
            is_ours = False
        if not is_ours:
            raise LogRefused(f"{file} is being written by another backup")
        os.ftruncate(descriptor, 0)
        yield
    finally:
        os.close(descriptor)


def _copy(source: Path, copy: Path, progress: Progress) -> None:
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as written:
            # mode=ro: a second connection that checkpoints could damage the file, see open_writer().
            with closing(open_reader(source, busy_ms=BUSY_MS)) as reader:
                _copy_pages(reader, written, progress)
            # One file, that reads well wherever it is kept. It is committed, or fails to be, behind the answer.
            written.execute("PRAGMA journal_mode = DELETE").fetchall()
            (found,) = written.execute("PRAGMA integrity_check(1)").fetchone()
            problem = incomplete(written, copy) if found == "ok" else str(found).splitlines()[-1]
    except sqlite3.DatabaseError as error:
        if primary_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise LogRefused(f"{source} was not copied to {copy}: {error}") from error
        problem = str(error)
    if problem is not None:
        raise LogRefused(
            f"{source} is damaged, and was not copied: {problem}; "
            "`trisync restore` puts an older backup in the log's place"
        )


def _copy_pages(reader: sqlite3.Connection, written: sqlite3.Connection, progress: Progress) -> None:
    # In one snapshot, the copy does not begin anew whenever the server commits, which under load is always.
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
    reader.backup(written, pages=PAGES_PER_STEP, progress=lambda status, left, total: progress(total - left, total))
    reader.execute("COMMIT")
