"""What goes wrong again and again, said once: with every batch of a full disk it would fill the next one."""

import logging

import trio

LINES_AT_ONCE = 20
"""Said of one trouble without a pause: what comes and goes for good reasons, such as a disk that is tidied up."""
LINE_S = 60.0
"""Another line for each so many seconds. A disk with some KiB left takes one batch and not the next, for hours."""


class Troubles:
    """Those that there are now, each by its name."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, str] = {}
        self._spent_until: dict[str, float] = {}

    def note(self, trouble: str, problem: Exception | None) -> None:
        """Say a trouble when it begins, changes or, without a problem, is over.

        Of one that does so all the time only some is said, and later how it is by then.
        """
        news = "" if problem is None else str(problem)
        if news == self._said.get(trouble, "") or not self._may_say(trouble):
            return
        self._said[trouble] = news
        if news:
            self._logger.warning("%s: %s", trouble, news)
        else:
            self._logger.warning("%s no longer", trouble)

    def _may_say(self, trouble: str) -> bool:
        now = trio.current_time()
        spent_until = max(now, self._spent_until.get(trouble, now))
        if spent_until > now + LINE_S * (LINES_AT_ONCE - 1):
            return False
        self._spent_until[trouble] = spent_until + LINE_S
        return True
