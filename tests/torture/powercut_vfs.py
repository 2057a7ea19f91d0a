"""What SQLite asks of the disk, recorded: an APSW VFS beneath the very SQLite library that the server uses.

APSW brings a SQLite of its own, and its VFS is known to that one only. But a VFS is a C structure of function
pointers, the same for every SQLite 3, and APSW tells what is in it; so it is registered, by ctypes, with the library
behind Python's sqlite3 too, as the default. The server's own code then runs on it as it is.
"""

import _sqlite3
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from tests.torture.disk import Create, Delete, Event, Sync, Truncate, Write
from trisync.storage import sqlite_files
from trisync.storage.sqlite_files import LogFiles

_NAME = "powercut"
_WAL_AHEAD_BYTES = 16 * 1024  # little, so that the WAL of a short run is lengthened too, and often

# https://www.sqlite.org/c3ref/vfs.html, as of version 3 of the structure (SQLite 3.7.6, 2011).
_METHODS = (
    *("xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose", "xRandomness"),
    *("xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64"),
    *("xSetSystemCall", "xGetSystemCall", "xNextSystemCall"),
)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        *((method, ctypes.c_void_p) for method in _METHODS),
    )


class Recorder(apsw.VFS):
    """Passes everything on to the real files, except the waiting for the disk, and writes it down."""

    def __init__(self, events: list[Event], lying: bool) -> None:
        super().__init__(_NAME, "unix")
        self.events = events
        self.lying = lying
        """Whether syncs do nothing, as on disks that say they had written."""

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None:
            return apsw.VFSFile("unix", name, flags)  # a temporary file, which a power cut may have
        if not Path(path).exists():
            self.events.append(Create(Path(path).name))
        return _RecordedFile(self, path, name, flags)

    def xDelete(self, name: str, sync_folder: bool) -> None:
        self.events.append(Delete(Path(name).name, bool(sync_folder) and not self.lying))
        super().xDelete(name, False)


class _RecordedFile(apsw.VFSFile):
    def __init__(self, recorder: Recorder, path: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._recorder = recorder
        self._file = Path(path).name

    def xWrite(self, data: bytes, offset: int) -> None:
        self._recorder.events.append(Write(self._file, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._recorder.events.append(Truncate(self._file, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if not self._recorder.lying:
            self._recorder.events.append(Sync(self._file))


@contextmanager
def recording(events: list[Event], *, lying: bool = False) -> Iterator[None]:
    """All databases that Python's sqlite3 opens in this block are recorded; they must be closed in it.

    Raises RuntimeError where Python has its SQLite so built in that nothing can be registered with it.
    """
    try:
        library = ctypes.CDLL(_sqlite3.__file__)
        register, unregister = library.sqlite3_vfs_register, library.sqlite3_vfs_unregister
    except AttributeError:
        raise RuntimeError("this Python's SQLite is built in: the power cut needs one with a shared library") from None
    recorder = Recorder(events, lying)
    make_space, ahead_bytes = LogFiles.make_space, sqlite_files.WAL_AHEAD_BYTES

    def recorded_space(self: LogFiles) -> None:  # the one thing that does not go through SQLite
        before = self.wal.stat().st_size
        make_space(self)
        zeros = bytes(self.wal.stat().st_size - before)
        events.append(Write(self.wal.name, before, zeros))

    (details,) = (details for details in apsw.vfs_details() if details["zName"] == _NAME)
    vfs = _Vfs(**{name: value.encode() if isinstance(value, str) else value for name, value in details.items()})
    if register(ctypes.byref(vfs), 1):
        raise RuntimeError("SQLite would not have the VFS")
    LogFiles.make_space = recorded_space  # type: ignore[method-assign]
    sqlite_files.WAL_AHEAD_BYTES = _WAL_AHEAD_BYTES
    try:
        yield
    finally:
        LogFiles.make_space = make_space  # type: ignore[method-assign]
        sqlite_files.WAL_AHEAD_BYTES = ahead_bytes
        unregister(ctypes.byref(vfs))
        recorder.unregister()
