"""What is said of a damaged log to whoever runs the server."""

SAID_MAX = 20
"""Of one kind, at most: clients may ask for as many channels as they like, and what is damaged may be what all of them
need."""


class SaidOnce:
    """Remembers what was said of one kind."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def is_news(self, what: str) -> bool:
        """Whether something is to be said, and is from now on taken for said: not twice, nor behind SAID_MAX others."""
        if what in self._said or len(self._said) >= SAID_MAX:
            return False
        self._said.add(what)
        return True
