"""What goes wrong again and again, said once: with every batch of a full disk it would fill the next one."""

import logging


class Troubles:
    """Those that there are now, each by its name."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._known: dict[str, str] = {}

    def note(self, trouble: str, problem: Exception | None) -> None:
        """Say a trouble when it begins, changes or, without a problem, is over."""
        said = self._known.pop(trouble, "")
        if problem is not None:
            self._known[trouble] = str(problem)
            if said != str(problem):
                self._logger.warning("%s: %s", trouble, problem)
        elif said:
            self._logger.warning("%s no longer", trouble)
