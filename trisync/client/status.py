"""How a client is connected, as programs are told."""

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """What becomes of a client."""

    CONNECTING = "connecting"
    """A connection is being opened, or the server is being greeted."""
    ONLINE = "online"
    OFFLINE = "offline"
    """There is no connection; the next attempt is planned."""
    CLOSED = "closed"
    """There will be no other connection."""


class Status(NamedTuple):
    """How a client is connected, and why it is so."""

    state: State
    reason: str
    retry_s: float | None = None
    """When offline: how long after this began the next attempt is made."""
