"""A thread for the writer alone: the shortest way to another thread and back. What it runs is the log's business.

`trio.to_thread.run_sync` looks for an idle thread, names it and answers through the loop's queue of callbacks: 60 µs of
processor time and three turns of the loop. Here a call costs 30 µs and one turn (measured), once for every batch.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import trio
from outcome import Outcome, capture

T = TypeVar("T")


class WriterThread:
    """Runs blocking calls, one at a time, in a thread of its own. close() must be called at the end."""

    def __init__(self) -> None:
        self._call: Callable[[], Any] | None = None
        # Not a queue: waking a thread while holding the interpreter's lock has it wait for that at once. A descriptor
        # is written to without the lock.
        self._begun = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outcome: Outcome[Any] | None = None
        self._thread = threading.Thread(target=self._work, name="trisync writer", daemon=True)
        self._thread.start()

    async def __call__(self, call: Callable[[], T], /) -> T:
        """What a call returns or raises. Not for two tasks at once.

        Cancelled before the call began, it is not made; afterwards it runs to its end, and is waited for.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._call = call
        os.eventfd_write(self._begun, 1)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._ended)
        os.eventfd_read(self._ended)
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        result: T = outcome.unwrap()
        return result

    def close(self) -> None:
        """End the thread. No call may be under way."""
        self._call = None
        os.eventfd_write(self._begun, 1)
        self._thread.join()
        os.close(self._begun)
        os.close(self._ended)

    def _work(self) -> None:
        # Not eventfd_read(), which raises where a signal comes to this thread; read() goes on (PEP 475).
        while os.read(self._begun, 8) and self._call is not None:
            self._outcome = capture(self._call)
            self._call = None  # a batch is not kept until the next one comes
            os.eventfd_write(self._ended, 1)
