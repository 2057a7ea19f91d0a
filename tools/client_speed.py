#!/usr/bin/env python3
"""How fast the Python client is, in one process: publishes that are pipelined, then the same messages received.

Starts a server of its own, unless --url names one. What each costs this process is measured in CPU time too, since
the server, and whatever else runs, share the machine.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


@contextmanager
def server(scheme: str) -> Iterator[str]:
    """The address of a server that is there for this run."""
    with tempfile.TemporaryDirectory(prefix="trisync-client-speed-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "trisync", "serve", "--tcp-port", "0", "--web-port", "0", "--data", folder],
            cwd=HOME,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = re.match(r"trisync ready tcp=(\S+) web=(\S+) ", process.stdout.readline())
            if ready is None:
                sys.exit("the server did not start")
            yield f"{scheme}://{ready[1] if scheme == 'tcp' else ready[2]}"
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def measured(what: str, count: int) -> Iterator[None]:
    """Say what something cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:<10}{count / wall:>10,.0f} /s {count / cpu:>12,.0f} a second of this process's CPU time")


async def measure(url: str, count: int) -> None:
    """Publish and receive so many messages."""
    import trisync

    channel = f"speed-{time.time_ns()}"
    async with trisync.connect(url, name="speed") as client:
        with measured("published", count):
            for number in range(count):
                await client.room()
                client.post(channel, {"text": "sixty bytes of data, more or less", "number": number})
            await client.flush()
        with measured("received", count):
            async with client.subscribe(channel, since=0) as messages:
                async for message in messages:
                    if message.data["number"] == count - 1:
                        break


def main() -> None:
    """Measure, if need be with the Python that has the packages."""
    sys.path[0] = str(HOME)
    if any(importlib.util.find_spec(name) is None for name in ("anyio", "msgspec", "wsproto")):
        python = HOME / ".venv" / "bin" / "python"
        if Path(sys.prefix) == HOME / ".venv" or not python.exists():
            sys.exit("tools/client_speed.py: run tools/serve or tools/test once, to get its packages")
        os.execv(python, [str(python), *sys.argv])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--scheme", choices=["tcp", "ws"], default="tcp", help="the door of a server of its own")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--count", type=int, default=100_000)
    asked = parser.parse_args()

    import anyio

    if asked.url is not None:
        anyio.run(measure, asked.url, asked.count, backend=asked.backend)
    else:
        with server(asked.scheme) as url:
            anyio.run(measure, url, asked.count, backend=asked.backend)


if __name__ == "__main__":
    main()
