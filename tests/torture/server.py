"""The real server as a process, under whatever runs it: its start, its doors, its end. It is our child throughout."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.torture.clients import Doors

START_S = 20.0
STOP_S = 20.0
"""How long a server may take to be ready, and to end; nothing is measured by these."""


class ServerFailed(Exception):
    """A server did not start, or not stop; the message holds what it said."""


class Server:
    """One run of `trisync serve` on a data folder. Close it in any case."""

    def __init__(self, folder: Path, *options: str, under: Sequence[str] = ()) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe: nobody reads it while the server runs
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [
                *(*under, sys.executable, "-m", "trisync", "serve", "--data", str(folder), "--log-level", "warning"),
                *("--tcp-port", "0", "--web-port", "0", "--linger-s", "0.2", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self._line = b""
        self.start_s = 0.0
        """From the first instruction to the ready line, once that was read; without waiting for a processor that
        others had."""

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, a negative signal, or None while it runs."""
        return self._process.poll()

    def wait_ready(self, timeout_s: float = START_S) -> Doors | None:
        """Its doors, once they are open; None where it ended before, or `timeout_s` passed."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        until = time.monotonic() + timeout_s
        while not self._line.endswith(b"\n") and self.status is None and (left := until - time.monotonic()) > 0:
            if select.select([output], [], [], min(left, 0.01))[0]:
                self._line += os.read(output, 4096)
        match = re.match(rb"trisync ready tcp=(\S+):(\d+) web=(\S+):(\d+) ", self._line)
        if match is None:
            return None
        self.start_s = self.start_s or time.monotonic() - self._began - waited_for_processor_s(self.pid)
        tcp, web = (match[1].decode(), int(match[2])), (match[3].decode(), int(match[4]))
        return {"lines": tcp, "frames": tcp, "ws": web}

    def doors(self) -> Doors:
        """Its doors. Raises ServerFailed where they do not open."""
        doors = self.wait_ready()
        if doors is None:
            raise ServerFailed(f"the server did not start, its status is {self.status}: {self.said()}")
        return doors

    def kill(self) -> None:
        """End it as a power switch would, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def drain(self) -> None:
        """Ask it to stop in good order; wait for `status`."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, once it has ended by itself. Raises subprocess.TimeoutExpired where it does not."""
        return self._process.wait(STOP_S)

    def said(self) -> str:
        """What it wrote to standard error so far."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()

    def close(self) -> None:
        """End it, if it runs, and let go of its output."""
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()


def waited_for_processor_s(pid: int) -> float:
    """How long the threads of a process could have run, and did not (the kernel's sched-stats.rst)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[1]) for thread in threads) / 1e9
