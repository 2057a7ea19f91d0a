"""One wait for many sockets. What a socket's readiness means is its owner's business (sockets.py).

A task that waits for its socket through Trio costs a registration with the kernel and a task switch for every read.
Here a socket is registered once, and one task tells all that became readable, in one sweep.
"""

import select
from collections.abc import Callable

import trio

SWEEP_MAX = 64
"""Sockets told in one sweep, before others get a turn."""
SWEEP_BYTES = 64 * 1024
"""Read in one sweep, shared by the sockets that it begins with, down to SHARE_BYTES_MIN: some 600 small publishes,
which take about 2 ms. A publisher that is alone gets all of it, so that its batches are large."""
SHARE_BYTES_MIN = 8 * 1024
"""A socket's share at the least: with less the calls would cost more than the bytes."""


class Poller:
    """Tells the owners of sockets when those can be read. run() must be running; close() ends it for good."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        """From now on call `ready` whenever there is something to read, or an end, with how many bytes it may read.

        It must not block or raise.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._owners[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Undo watch(); to be done before the descriptor is closed."""
        del self._owners[fd]
        self._epoll.unregister(fd)

    async def run(self) -> None:
        """Tell the owners, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            self._sweep()

    def _sweep(self) -> None:
        """Tell all who can be read, those too who come to be so meanwhile; but nobody twice.

        Clients that were answered together publish again one after the other, and what is read together is stored
        together: with 50 that wait for each answer, batches are of 40 so, and were of 25.
        """
        told: set[int] = set()
        ready = [fd for fd, _ in self._epoll.poll(0, SWEEP_MAX)]
        share = max(SWEEP_BYTES // max(len(ready), 1), SHARE_BYTES_MIN)
        while ready:
            for fd in ready:
                if (owner := self._owners.get(fd)) is not None:  # another owner may have closed it in this sweep
                    owner(share)
            told.update(ready)
            if len(told) == SWEEP_MAX:
                break
            ready = [fd for fd, _ in self._epoll.poll(0, SWEEP_MAX - len(told)) if fd not in told]
            share = SHARE_BYTES_MIN

    def close(self) -> None:
        """Let go of what it holds. Nothing may be watched, and run() not be running, any more."""
        self._epoll.close()
