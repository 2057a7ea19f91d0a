"""How fast the Python client is, in one process: publishes that are pipelined, then the same messages received.

Its command is tools/client_speed.py. What each costs this process is measured in CPU time too, since the server, and
whatever else runs, share the machine.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import click
import trio

from trisync.client import ClientError, connect
from trisync.loadtest.endings import run_until_signal
from trisync.loadtest.options import SHOWN
from trisync.loadtest.target import ServerFailed, TargetRefused, spawned


@contextmanager
def measured(what: str, count: int) -> Iterator[None]:
    """Say what something cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    click.echo(f"{what:<10}{count / wall:>10,.0f} /s {count / cpu:>12,.0f} a second of this process's CPU time")


async def measure(url: str, count: int) -> None:
    """Publish and receive so many messages."""
    channel = f"speed-{time.time_ns()}"
    async with connect(url, name="speed", wait_s=0) as client:
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


async def measure_in(backend: str, url: str, count: int) -> None:
    """The same under an event loop of its own. Cancelled, it leaves that to the end of the process."""
    await trio.to_thread.run_sync(lambda: anyio.run(measure, url, count, backend=backend), abandon_on_cancel=True)


async def measure_a_new_server(scheme: str, backend: str, count: int) -> None:
    """The same with a server that is there for this run. Raises TargetRefused and ServerFailed."""
    async with spawned("full") as target:
        host, port = target.tcp if scheme == "tcp" else target.web
        await measure_in(backend, f"{scheme}://{host}:{port}", count)


@click.command("client_speed", context_settings=SHOWN)
@click.option("--url", help="A server that runs already, in place of a new one.")
@click.option("--scheme", type=click.Choice(["tcp", "ws"]), default="tcp", help="The door of a new server.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", help="What the client runs on.")
@click.option("--count", type=click.IntRange(min=1), default=100_000, metavar="N", help="Messages.")
def client_speed_command(url: str | None, scheme: str, backend: str, count: int) -> None:
    """Publish with the Python client, pipelined, then receive the same messages, and print how fast that was."""
    run_until_signal(
        lambda: measure_a_new_server(scheme, backend, count) if url is None else measure_in(backend, url, count),
        (TargetRefused, ServerFailed, ClientError, OSError, ValueError),
    )
