"""The named points at which a server is killed: system calls, counted by strace, that it does not live to make.

The server itself knows nothing of this. strace runs beside it (-D), so that the process is still our child.
"""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from trisync.storage.sqlite_opening import FILE_NAME


class Point(NamedTuple):
    """System calls that the process does not live to make, when one of its threads would for the N-th time."""

    name: str
    calls: str
    file: str | None
    """In the data folder, where only calls on this file count."""
    times_max: int
    """What N is chosen up to, so that it is mostly reached in a round; small ones are reached at the start."""


WAL = f"{FILE_NAME}-wal"
SYNC = "fdatasync,fsync"

POINTS = (
    Point("while a transaction is written", "pwrite64", WAL, 2000),
    Point("written, not on the disk yet", SYNC, WAL, 200),
    Point("on the disk, not acknowledged yet", "sendto", None, 1000),
    Point("while a checkpoint is written", "pwrite64", FILE_NAME, 3000),
    Point("checkpointed, not on the disk yet", SYNC, FILE_NAME, 6),
)


@functools.cache
def strace_works() -> str:
    """Why points cannot be used here; "" where they can."""
    if shutil.which("strace") is None:
        return "strace is missing: apt-get install strace"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace is not permitted here: {tried.stderr.strip()}"


def traced(calls: str, file: Path | None, injection: str) -> list[str]:
    """The beginning of a command that runs the rest with something injected into some of its system calls.

    What is injected is as strace(1) has it: `signal=KILL:when=3`, `error=EIO`.
    """
    paths = [] if file is None else ["-P", str(file)]
    # Not with --seccomp-bpf, which is faster, but loses count of `when` (strace 6.1).
    return [
        *("strace", "-D", "-f", "-qq", "-o", "/dev/null", *paths),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:{injection}"),
    ]


def killed_at(point: Point, folder: Path, times: int) -> list[str]:
    """The beginning of a command that is killed at a point."""
    file = None if point.file is None else folder / point.file
    return traced(point.calls, file, f"signal=KILL:when={times}")
