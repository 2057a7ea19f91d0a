"""All workers: starting them, giving each its share, and having an order obeyed by all of them at once."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import trio

from trisync.loadtest.plan import Done, Enough, Order, Report, Share, Tick
from trisync.loadtest.processes import environment, started

REPORT_BYTES_MAX = 64 * 1024 * 1024
GRACE_S = 5.0
"""How long a worker may take to end once nothing is asked of it."""
SILENCE_S = 30.0
"""A worker that has said nothing for so long is stopped, or hangs: else it ticks, whatever the server does."""

_reports = msgspec.json.Decoder(Report)


class CrewFailed(Exception):
    """A worker has ended that should not have, or does nothing; what it said is on standard error."""


class Crew:
    """Workers that run; see hire()."""

    def __init__(self, processes: list[trio.Process], ticked: Callable[[Tick], None]) -> None:
        self._processes = processes
        self._ticked = ticked
        self._report_done, self._dones = trio.open_memory_channel[Done](len(processes))
        self._dismissed = False

    async def obey(self, order: Order, interrupted: trio.Event | None = None) -> list[Done]:
        """Give an order to all workers, and return what they say when all are done. Raises CrewFailed.

        Once `interrupted` is set, they are told that it is Enough.
        """
        await self._tell_all(order)
        async with trio.open_nursery() as nursery:
            if interrupted is not None:
                nursery.start_soon(self._cut_short, interrupted)
            dones = [await self._dones.receive() for _ in self._processes]
            nursery.cancel_scope.cancel()
        return dones

    async def _cut_short(self, interrupted: trio.Event) -> None:
        await interrupted.wait()
        await self._tell_all(Enough())

    async def _tell_all(self, order: Order) -> None:
        line = msgspec.json.encode(order) + b"\n"
        for process in self._processes:
            await self._tell(process, line)

    async def _tell(self, process: trio.Process, line: bytes) -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(line)
        except trio.BrokenResourceError:
            raise CrewFailed("a worker ended before its time") from None

    async def _listen(self, process: trio.Process) -> None:
        rest = b""
        while chunk := await _hear(process):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                report = _reports.decode(line)
                if isinstance(report, Tick):
                    self._ticked(report)
                else:
                    self._report_done.send_nowait(report)
            if len(rest) > REPORT_BYTES_MAX:
                raise CrewFailed("a worker says too much")
        if not self._dismissed:
            raise CrewFailed(f"a worker ended before its time, with status {await process.wait()}")

    async def dismiss(self) -> None:
        """Let the workers end: there is nothing more to do."""
        self._dismissed = True
        for process in self._processes:
            assert process.stdin is not None
            await process.stdin.aclose()


async def _hear(process: trio.Process) -> bytes:
    assert process.stdout is not None
    with trio.move_on_after(SILENCE_S):
        return bytes(await process.stdout.receive_some())
    raise CrewFailed(f"a worker has been silent for {SILENCE_S:g} s: it is stopped, or hangs")


@asynccontextmanager
async def hire(shares: list[Share], ticked: Callable[[Tick], None]) -> AsyncIterator[Crew]:
    """Workers for these shares; `ticked` is called with each Tick. None of them outlives the block.

    A worker that fails cancels the block and raises CrewFailed.
    """
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(
                started(
                    [sys.executable, "-m", "trisync.loadtest.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment(),
                )
            )
            for _ in shares
        ]
        crew = Crew(processes, ticked)
        async with trio.open_nursery() as nursery:
            for process in processes:
                nursery.start_soon(crew._listen, process)
            for process, share in zip(processes, shares, strict=True):
                await crew._tell(process, msgspec.json.encode(share) + b"\n")
            yield crew
            await crew.dismiss()
            with trio.move_on_after(GRACE_S):
                for process in processes:
                    await process.wait()
            nursery.cancel_scope.cancel()
