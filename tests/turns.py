"""Whether others have their turns while something is done."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Callable[[], int]]:
    """Tells how many turns somebody else has had since this began."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        yield lambda: turns
        nursery.cancel_scope.cancel()
