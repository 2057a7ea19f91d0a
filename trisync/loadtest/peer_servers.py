"""The peers of a comparison: which are installed, and one of them started for one measurement.

Each measurement has a server of its own, on a free loopback port, with a new folder that is removed at the end; so
has trisync's. The folders are where TMPDIR says: that disk is the one that is measured.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from trisync.loadtest.crew import CrewFailed
from trisync.loadtest.peer_dialects import PeerDialect
from trisync.loadtest.peer_load import Load, Outcome
from trisync.loadtest.processes import environment, started
from trisync.loadtest.target import Target, TargetRefused, all_of

START_S = 20.0
"""How long a peer may take until it accepts connections."""

LOOK_EVERY_S = 0.02
"""How often it is tried; a peer has no other common way to say that it is ready."""

WS_FANOUT = Path(__file__).resolve().parent.parent.parent / "tools" / "peers" / "ws_fanout.mjs"


class Peer(NamedTuple):
    """A server to compare with."""

    name: str
    install: str
    """The command that installs it, for people."""
    program: str
    options: Callable[[int, str], list[str]]
    """For a port and a folder."""
    needs_ws: bool = False
    """Whether it is nothing without npm's ws."""

    def find(self, modules: list[Path]) -> str | None:
        """Its program, or None where that is missing, or ws in these folders of Node's modules."""
        # Debian has servers in /usr/sbin, which is not on everybody's path.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
        return None if self.needs_ws and _ws_version(modules) is None else shutil.which(self.program, path=path)

    def version(self, modules: list[Path]) -> str:
        """Of one that is there."""
        done = subprocess.run([self.find(modules) or "", "--version"], capture_output=True, text=True, check=False)
        version = done.stdout.strip()
        return f"ws {_ws_version(modules)}, Node {version}" if self.needs_ws else version


def _ws_version(modules: list[Path]) -> str | None:
    for folder in modules:
        with suppress(OSError):
            return str(msgspec.json.decode((folder / "ws" / "package.json").read_bytes())["version"])
    return None


def _redis_options(port: int, folder: str, *options: str) -> list[str]:
    # No snapshots and no rewriting of the log: nothing happens beside what is measured. No limit for slow readers.
    return [
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""),
        *("--client-output-buffer-limit", "pubsub 0 0 0", *options),
    ]


_APPENDING = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")

PEERS: dict[PeerDialect, Peer] = {
    "redis-pubsub": Peer(
        "Redis Pub/Sub",
        "apt-get install redis-server",
        "redis-server",
        lambda port, folder: _redis_options(port, folder, "--appendonly", "no"),
    ),
    "redis-streams": Peer(
        "Redis Streams, appendfsync always",
        "apt-get install redis-server",
        "redis-server",
        lambda port, folder: _redis_options(port, folder, *_APPENDING),
    ),
    "nats": Peer(
        "NATS core",
        "apt-get install nats-server",
        "nats-server",
        lambda port, folder: ["-a", "127.0.0.1", "-p", str(port)],
    ),
    "node-ws": Peer(
        "Node ws",
        "apt-get install nodejs npm && npm install --prefix FOLDER ws, then --node-modules FOLDER/node_modules",
        "node",
        lambda port, folder: [str(WS_FANOUT), str(port)],
        needs_ws=True,
    ),
}
"""All of them, by what they speak."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def running(dialect: PeerDialect, modules: list[Path]) -> AsyncIterator[Target]:
    """A peer that accepts connections, at one door. Raises TargetRefused. It is ended and its folder removed."""
    peer = PEERS[dialect]
    program = peer.find(modules)
    if program is None:
        raise TargetRefused(missing(peer))
    port = free_port()
    env = os.environ | {"NODE_PATH": os.pathsep.join(map(str, modules))}
    with (
        tempfile.TemporaryDirectory(prefix="trisync-compare-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as said,
    ):
        command = [program, *peer.options(port, folder)]
        async with started(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=env
        ) as process:
            with trio.move_on_after(START_S) as scope:
                while process.poll() is None and not await _accepts(port):  # noqa: ASYNC110 - see LOOK_EVERY_S
                    await trio.sleep(LOOK_EVERY_S)
            if scope.cancelled_caught or process.poll() is not None:
                raise TargetRefused(f"{peer.name} did not start: {all_of(said)}")
            door = "127.0.0.1", port
            yield Target(door, door, process.pid, None)


async def _accepts(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


def missing(peer: Peer) -> str:
    """That a peer is missing, and what installs it."""
    return f"{peer.name} is missing: {peer.install}"


async def apply(load: Load) -> Outcome:
    """Have a process carry a load out. Raises CrewFailed. Cancelled, it ends that process."""
    done = await trio.run_process(
        [sys.executable, "-m", "trisync.loadtest.peer_load"],
        stdin=msgspec.json.encode(load),
        capture_stdout=True,
        check=False,
        env=environment(),
        start_new_session=True,
    )
    if done.returncode != 0:
        raise CrewFailed(f"the generator ended with status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Outcome)
