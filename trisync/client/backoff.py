"""Pauses between attempts that fail. Sans-IO."""

from random import Random

DOUBLINGS_MAX = 30

SAID_S_MAX = 60.0
"""No server may have a client wait for longer."""


def pause_of(said_ms: float) -> float:
    """The pause that a server asks for, in seconds."""
    return max(0.0, min(said_ms / 1000, SAID_S_MAX))


class Backoff:
    """Pauses that double from `base_s` to `max_s`; each is a random part of that, `least` of it or more, so that those
    who failed together do not come back together."""

    def __init__(self, random: Random, base_s: float, max_s: float, *, least: float) -> None:
        self.failures = 0
        """How many in a row, so far."""
        self._random = random
        self._base_s = base_s
        self._max_s = max_s
        self._least = least

    def failed(self) -> float:
        """Another attempt has failed. Returns the pause before the next one, in seconds."""
        ceiling_s = min(self._max_s, self._base_s * 2 ** min(self.failures, DOUBLINGS_MAX))
        self.failures += 1
        return self._random.uniform(self._least * ceiling_s, ceiling_s)

    def reset(self) -> None:
        """One has succeeded: the next pause is a short one again."""
        self.failures = 0
