"""The files that a log is in, as the file system has them: that they are still there, and space ahead of their ends.

What is written into them is SQLite's business, but for that space.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from trisync.storage.log import LogGone

WAL_AHEAD_BYTES = 512 * 1024
"""By how much the WAL is made longer at once, which takes 1 ms."""
SPARE_BYTES = 16 * 1024 * 1024
"""On a disk that has less than this, the WAL is not made longer."""
SMALL_COMMIT_BYTES = 64 * 1024
"""What a commit adds to the WAL, at most, where that pays: space is made by writing it, twice then. Measured on ext4, a
commit of 12 KiB takes 210 µs instead of 340 so, one of 50 KiB 310 instead of 390, one of 200 KiB more than without."""
INDEX_BYTES = 6 * 32 * 1024
"""Of the WAL's index: each 32 KiB are for 16 MiB of the WAL, which is longer than all only beside a long backup."""


def may_grow(path: Path) -> bool:
    """Whether quotas and limits let the larger of a log's files grow. Tried on another file, which is gone at once."""
    sizes = [file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists()]
    try:
        with TemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), max(sizes, default=0), SPARE_BYTES)
    except OSError as error:
        return error.errno not in (errno.EDQUOT, errno.EFBIG)
    return True


class LogFiles:
    """The database and its WAL, which must be there, and the WAL's index. Not for two threads at once.

    close() must be called behind that of the last connection.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # the program may change its folder
        self.wal = self.path.with_name(f"{path.name}-wal")
        self.wal_bytes = 0
        """Its size, when require() last saw it."""
        self._grown_bytes = 0  # when it was last seen to grow
        self._wal_bytes_wanted = WAL_AHEAD_BYTES  # a log that is written to little is never lengthened
        self._ids = self._look()
        self._index = self._lengthen_index()

    def _lengthen_index(self) -> int | None:
        """Have the WAL's index as long as it may become; returns a descriptor of it, if there is one to be had.

        SQLite makes it longer in the midst of a commit. Where the disk is full by then, that is an I/O error, and not
        its SQLITE_FULL: nobody knows what was stored, and the server would have to stop. With whichever descriptor of a
        file it closes, a process loses its locks on that file (fcntl(2)); these are SQLite's, so it stays open.
        """
        try:
            index = os.open(f"{self.path}-shm", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # SQLite has it in memory, or nothing more can be opened
            return None
        with suppress(OSError):  # of a disk that is full already, or cannot do it
            there = os.fstat(index).st_size
            if there < INDEX_BYTES:
                os.posix_fallocate(index, there, INDEX_BYTES - there)
        return index

    def close(self) -> None:
        """Let go of the index."""
        if self._index is not None:
            os.close(self._index)

    def _look(self) -> list[tuple[int, int]]:
        try:
            found = [os.stat(file) for file in (self.path, self.wal)]
        except FileNotFoundError as error:
            raise LogGone(f"{error.filename} was removed, or moved, while it was in use") from None
        wal_bytes = found[1].st_size
        if wal_bytes != self.wal_bytes:
            self._grown_bytes = wal_bytes - self.wal_bytes
            self.wal_bytes = wal_bytes
        return [(status.st_dev, status.st_ino) for status in found]

    def require(self) -> None:
        """Raise LogGone unless they are where they were.

        A file that was removed or moved while it is open is written to as if nothing had happened, and nobody will
        find what is in it.
        """
        if self._look() != self._ids:
            raise LogGone(f"{self.path} was replaced while it was in use")

    @property
    def wal_wants_space(self) -> bool:
        """Whether small commits make the WAL longer, as far as require() saw."""
        return self.wal_bytes > self._wal_bytes_wanted and self._grown_bytes <= SMALL_COMMIT_BYTES

    def make_space(self) -> None:
        """Make the WAL longer by zeros, ahead of its last commit. Between two batches.

        A commit that makes its file longer has fdatasync() write the file system's journal too. Checkpoints let SQLite
        begin the file anew and leave it as long as it is; so this ends when it has its size. SQLite takes what is
        behind the last commit for the rest of an older run through the file, and nothing in it has the checksum of a
        next frame: sqlite.org/fileformat2.html, section 4.1.
        """
        self._wal_bytes_wanted = self.wal_bytes + WAL_AHEAD_BYTES
        # Appending, so that what another program has committed meanwhile is never written over. The sync is that of the
        # next commit, which knows what to do if it fails; and if this fails, the commits say what they lack.
        with suppress(OSError), self.wal.open("ab", buffering=0) as file:
            disk = os.fstatvfs(file.fileno())
            if disk.f_bavail * disk.f_frsize >= SPARE_BYTES:
                file.write(bytes(WAL_AHEAD_BYTES))
