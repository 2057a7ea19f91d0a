"""Starting processes, workers and servers: they find this very trisync, and none of them outlives its block."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio


def environment() -> dict[str, str]:
    """The environment of a process that shall find this very trisync, wherever it is started."""
    home = str(Path(__file__).resolve().parent.parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


@asynccontextmanager
async def started(command: Sequence[str], **options: Any) -> AsyncIterator[trio.Process]:
    """A process, which is killed at the end of the block. Raises OSError where it cannot be started."""
    # A session of its own, as Ctrl-C is for the command that was called, which then ends what it has started.
    process = await trio.lowlevel.open_process(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()
