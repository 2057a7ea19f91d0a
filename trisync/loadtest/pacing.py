"""The pace of an open loop: when each message is due, and how late it was sent."""

import math

from trisync.loadtest.measuring import Gauge
from trisync.loadtest.plan import clock_us
from trisync.loadtest.publishers import Publisher

BURST_MAX = 1000
"""Overdue messages that a pacer sends before answers and deliveries get their turn."""


class Pacer:
    """An open loop: messages are due at fixed times, and however late they are sent, these times count.

    What is due before `until_us` is sent behind that too: a server that stalls at the end is charged for it.
    """

    def __init__(self, publishers: list[Publisher], rate: float, phase: float, gauge: Gauge, until_us: int) -> None:
        self._publishers = publishers
        self._interval_us = 1e6 / rate
        self._gauge = gauge
        self._until_us = until_us
        # Workers begin at different places within an interval, so that they do not publish in step.
        self._began_us = clock_us() + self._interval_us * phase
        self._count = 0
        self._held = False
        """Whether the server takes no more; an answer of its, or room in its socket, is an event of the loop."""
        self._free_us = 0
        """When it was last seen to take more again. The generator is not late for longer than since then."""

    @property
    def _due_us(self) -> int:
        return int(self._began_us + self._count * self._interval_us)

    @property
    def unsent(self) -> int:
        """How many messages are still to be sent."""
        return max(0, math.ceil((self._until_us - self._due_us) / self._interval_us))

    def wait_s(self) -> float:
        """How long until a message is due and can be sent, if nothing else happens."""
        if self._held or not self.unsent:
            return math.inf
        return max(0.0, (self._due_us - clock_us()) / 1e6)

    def send_due(self) -> None:
        """Send what is due, at most BURST_MAX messages."""
        now_us = clock_us()
        for _ in range(BURST_MAX):
            due_us = self._due_us
            if due_us > now_us or due_us >= self._until_us:
                return
            publisher = self._publishers[self._count % len(self._publishers)]
            if publisher.full:
                self._held = True
                return
            if self._held:
                self._held, self._free_us = False, now_us
            self._gauge.sent_late(due_us, now_us - max(due_us, self._free_us))
            publisher.publish(1, due_us)
            self._count += 1
