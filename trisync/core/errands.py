"""Errands: what is to be done when no batch is under way. When that is, the broker knows."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import outcome
import trio

from trisync.storage.log import LogUnavailable

T = TypeVar("T")


class Errand(Generic[T]):
    """Somebody's work, which another task does."""

    __slots__ = ("_done", "_outcome", "_work")

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._done = trio.Event()
        self._outcome: outcome.Outcome[T] | None = None

    async def result(self) -> T:
        """Wait for what the work returns. Raises LogUnavailable, if that does, or if it is called off."""
        await self._done.wait()
        assert self._outcome is not None
        return self._outcome.unwrap()

    async def run(self) -> None:
        """Do the work. LogUnavailable is told to whoever waits; whatever else it raises comes out of here."""
        try:
            self._end(outcome.Value(await self._work()))
        except LogUnavailable as problem:
            self.call_off(problem)

    def call_off(self, problem: LogUnavailable) -> None:
        """Tell whoever waits why there is no result."""
        self._end(outcome.Error(problem))

    def _end(self, end: outcome.Outcome[T]) -> None:
        self._outcome = end
        self._done.set()
