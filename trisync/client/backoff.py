"""Pauses between attempts that fail. Sans-IO."""

from random import Random

DOUBLINGS_MAX = 30


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
