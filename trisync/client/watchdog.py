"""Whether the server is still there: how long it may say nothing, and when an answer is due. Sans-IO."""

import math
from collections.abc import Callable

QUIET_S = 25.0
"""A silent server is asked whether it is there; sooner while an answer is awaited: after ANSWER_S."""
ANSWER_S = 10.0
"""How long it has for that, for the answer to hello, and for a connection to be opened."""
LATE_S = 1.0
"""Who looks so much later than that does not know: the program has held up its event loop, so nobody has listened."""
ASKED_MAX = 5
"""So often in a row it is asked at most: a program that holds up its event loop all the time is always too late."""


class Watchdog:
    """Over one connection at a time. Only while it is read: else it is not the server who is silent."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._heard_at = 0.0
        self._due_at = math.inf
        self._asked = 0  # since the server said something
        self._is_reading = True

    @property
    def silent_s(self) -> float:
        """For how long the server has said nothing."""
        return self._timer() - self._heard_at

    @property
    def is_answer_due(self) -> bool:
        """Whether the server was asked and has not answered."""
        return self._due_at != math.inf

    @property
    def is_overdue(self) -> bool:
        """Whether it had its time for that. Where it is too late to tell, deadline() is over, and it is asked anew."""
        late_s = self._timer() - self._due_at
        return self._is_reading and late_s >= 0 and (late_s < LATE_S or self._asked >= ASKED_MAX)

    def heard(self) -> None:
        """The server said something, or was not listened to."""
        self._heard_at = self._timer()
        self._asked = 0

    def asked(self) -> None:
        """An answer is due within ANSWER_S."""
        self._due_at = self._timer() + ANSWER_S
        self._asked += 1

    def moved(self) -> None:
        """The network took more of what is being sent: it is slow, and the server could not have answered yet."""
        self.heard()
        if self.is_answer_due:
            self.asked()

    def answered(self) -> None:
        """None is due, or there is nobody to answer."""
        self._due_at = math.inf

    def reading(self, is_reading: bool) -> None:
        """Whether the connection is read from now on."""
        if is_reading and not self._is_reading:
            self.heard()
        self._is_reading = is_reading

    def deadline(self, *, awaiting: bool) -> float:
        """When the server is to be asked, or has been silent for too long; `awaiting` is whether it has something to
        answer."""
        if not self._is_reading:
            return math.inf
        return self._due_at if self.is_answer_due else self._heard_at + (ANSWER_S if awaiting else QUIET_S)
