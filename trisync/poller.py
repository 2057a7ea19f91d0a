"""One wait for many sockets. What a socket's readiness means is its owner's business (sockets.py).

A task that waits for its socket through Trio costs a registration with the kernel and a task switch for every read.
Here a socket is registered once, and one task tells all that became readable, in one sweep.
"""

import select
from collections.abc import Callable

import trio

SWEEP_MAX = 64
"""Sockets told in one sweep, before others get a turn."""


class Poller:
    """Tells the owners of sockets when those can be read. run() must be running; close() ends it for good."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """From now on call `ready` whenever there is something to read, or an end; it must not block or raise."""
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
            for fd, _ in self._epoll.poll(0, SWEEP_MAX):
                if (ready := self._owners.get(fd)) is not None:  # another owner may have closed it in this sweep
                    ready()

    def close(self) -> None:
        """Let go of what it holds. Nothing may be watched, and run() not be running, any more."""
        self._epoll.close()
