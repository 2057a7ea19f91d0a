"""Where a server is run so that its disk fails as wanted: a mount namespace of its own, which goes when it ends."""

import functools
import os
import subprocess
from pathlib import Path


def _namespace(mount: str, folder: Path) -> list[str]:
    root = os.geteuid() == 0
    flags = ["--mount"] if root else ["--user", "--map-root-user", "--mount"]
    return ["unshare", *flags, "sh", "-c", f'{mount} && exec "$@"', str(folder)]


def on_small_disk(folder: Path, size_bytes: int) -> list[str]:
    """The beginning of a command for which a folder is a disk of its own, of this size. It stays our child."""
    return _namespace(f'mount -t tmpfs -o size={size_bytes} none "$0"', folder)


def read_only(folder: Path) -> list[str]:
    """The beginning of a command for which a folder cannot be written to, not even by root."""
    return _namespace('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', folder)


def seen_by(pid: int, folder: Path) -> Path:
    """A folder as a process in a namespace of its own sees it."""
    return Path(f"/proc/{pid}/root{folder}")


@functools.cache
def mounting_works() -> str:
    """Why this machine has no such places; "" where it has."""
    try:
        tried = subprocess.run(
            [*on_small_disk(Path("/mnt"), 65536), "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unshare is missing: apt-get install util-linux"
    return "" if tried.returncode == 0 else f"mount namespaces are not permitted here: {tried.stderr.strip()}"
