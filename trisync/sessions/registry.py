"""Who is connected: a bound on how many, and the way to say something to all."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import trio

from trisync.sessions.connection import Connection
from trisync.sessions.session import Session

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECKS_PER_DEADLINE = 4
"""How often a connection is looked at within the time that a lost peer has."""
YIELD_EVERY = 1000
"""Clients looked at before others get a turn."""


async def look_at_all(clients: Iterable[T], look: Callable[[T], None]) -> None:
    """Call `look` with each of many.

    For loops that do so now and then: a variable of their own would keep the last client until the next time.
    """
    for number, client in enumerate(list(clients), start=1):
        look(client)
        if number % YIELD_EVERY == 0:
            await trio.lowlevel.checkpoint()


class Registry:
    """All connections of a server, with the session of those that have one."""

    def __init__(self, connections_max: int) -> None:
        self._max = connections_max
        self._sessions: dict[Connection, Session | None] = {}
        self._full = False
        self._parting = False
        self._somebody_left = trio.Event()

    def __len__(self) -> int:
        return len(self._sessions)

    def admit(self, connection: Connection, session: Session | None) -> bool:
        """Give a connection a place, for which dismiss() must follow; False, and no place, when there are too many."""
        if len(self._sessions) >= self._max:
            if not self._full:
                self._full = True
                logger.warning("all %d connections are taken: new ones are closed at once", self._max)
            return False
        self._sessions[connection] = None
        if session is not None:
            self.speak_for(connection, session)
        return True

    def dismiss(self, connection: Connection) -> None:
        """Take the connection's place back."""
        del self._sessions[connection]
        self._full = False
        self._somebody_left.set()
        self._somebody_left = trio.Event()

    async def left(self) -> None:
        """Wait until a connection is gone."""
        await self._somebody_left.wait()

    def speak_for(self, connection: Connection, session: Session) -> None:
        """From now on the connection has a session: its dialect is known."""
        self._sessions[connection] = session
        if self._parting:
            session.goodbye()

    async def part(self) -> None:
        """Say goodbye to each session that there is, and to each that is yet to come: accepted, and not here so far."""
        self._parting = True
        await look_at_all(self.sessions(), lambda session: session.goodbye())

    def sessions(self) -> list[Session]:
        """The sessions there are."""
        return [session for session in self._sessions.values() if session is not None]

    async def watch_peers(self, silent_s: float) -> None:
        """End the connections whose peers acknowledge nothing for so long. Runs until cancelled."""
        while True:
            await trio.sleep(silent_s / CHECKS_PER_DEADLINE)
            await look_at_all(self._sessions, lambda connection: connection.check_peer(silent_s))
