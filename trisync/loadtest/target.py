"""The server under load: one that runs already, or one started for this run."""

import ipaddress
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import trio

from trisync.loadtest.plan import Transport
from trisync.loadtest.processes import environment, started

START_S = 20.0
STOP_S = 15.0
"""How long a server of our own may take to be ready, and to stop."""


class TargetRefused(Exception):
    """There is no server to load, or it must not be loaded; the message says why."""


class ServerFailed(Exception):
    """A server of our own crashed, or did not stop; the message says how."""


class Target(NamedTuple):
    """A server: its two doors as (host, port), and its process where that is known."""

    tcp: tuple[str, int]
    web: tuple[str, int]
    pid: int | None
    durability: str | None

    def door(self, transport: Transport) -> tuple[str, int]:
        """Where clients of a transport connect."""
        return self.web if transport == "ws" else self.tcp


def resolve(address: str, default_port: int, *, allow_remote: bool) -> tuple[str, int]:
    """HOST, HOST:PORT, [IPV6]:PORT or :PORT as a numeric address. Raises TargetRefused, also for other machines."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*))(?::(\d+))?", address)
    if match is None:
        raise TargetRefused(f"an address is HOST:PORT, not {address!r}")
    name = match[1] or match[2] or "localhost"
    port = int(match[3] or default_port)
    if not 0 < port < 1 << 16:
        raise TargetRefused(f"{address!r}: a port is 1 to 65535")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetRefused(f"{name}: {error.strerror}") from None
    except UnicodeError:  # of its encoding, IDNA
        raise TargetRefused(f"{name!r} cannot be a host's name: a part of it is empty, or too long") from None
    # IPv4 first: where localhost is both, a server on its default address 127.0.0.1 is meant.
    host = str(sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0][4][0])
    if not ipaddress.ip_address(host).is_loopback and not allow_remote:
        raise TargetRefused(
            f"{name} is another machine, or reached like one. A load test can take a server down for everybody: "
            "say --allow-remote if it is yours to load."
        )
    return host, port


@asynccontextmanager
async def spawned(durability: str) -> AsyncIterator[Target]:
    """A server of this run's own, with a new data folder that is removed at the end. Raises as serving()."""
    with tempfile.TemporaryDirectory(prefix="trisync-loadtest-", ignore_cleanup_errors=True) as folder:
        async with serving(Path(folder) / "data", durability) as target:
            yield target


@asynccontextmanager
async def serving(folder: Path, durability: str) -> AsyncIterator[Target]:
    """A server of what is in a data folder, on free ports, until the end. Its stop is not cancelled.

    Raises TargetRefused where it does not start, and at the end of a block that was not cut short ServerFailed.
    """
    command = [
        *(sys.executable, "-m", "trisync", "serve", "--tcp-port", "0", "--web-port", "0"),
        *("--data", str(folder), "--durability", durability, "--log-level", "warning"),
        *("--connections-max", "100000", "--reconnect-spread-ms", "1"),
    ]
    with tempfile.TemporaryFile() as complaints:  # no pipe: nobody reads it meanwhile
        async with started(command, stdout=subprocess.PIPE, stderr=complaints, env=environment()) as process:
            assert process.stdout is not None
            line = b""
            with trio.move_on_after(START_S):
                while not line.endswith(b"\n") and (chunk := await process.stdout.receive_some()):
                    line += chunk
            match = re.match(rb"trisync ready tcp=(\S+):(\d+) web=\S+:(\d+) ", line)
            if match is None:
                raise TargetRefused(f"the server did not start: {all_of(complaints)}")
            host = match[1].decode()
            yield Target((host, int(match[2])), (host, int(match[3])), process.pid, durability)
            with trio.CancelScope(shield=True):  # _stop has its own deadline, and what was measured is not to be lost
                how = await _stop(process)
            if how is not None:
                raise ServerFailed(f"the server {how}: {all_of(complaints)}")


async def _stop(process: trio.Process) -> str | None:
    """Have the server drain. Returns how that failed, if it did: a load must not break a stop."""
    process.send_signal(signal.SIGTERM)
    with trio.move_on_after(STOP_S):
        await process.wait()
    if process.returncode is None:
        return f"did not stop within {STOP_S:g} s"
    return f"ended with status {process.returncode}" if process.returncode else None


def all_of(said: BinaryIO) -> str:
    """What a process has written to a file, for an error's text."""
    said.seek(0)
    return said.read().decode(errors="replace").strip() or "it said nothing"
