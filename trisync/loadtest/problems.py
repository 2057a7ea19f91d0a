"""What broke: kinds of problems, counted, with a few examples of each in words."""

from msgspec import Struct

from trisync.wire.console import visible

EXAMPLES_MAX = 4
"""Of a million lost messages the first few tell the story."""

KINDS = {
    "crashed": "server that crashed, or did not stop as it should",
    "closed": "connections that the server ended, or could not be made",
    "malformed": "connections given up over bytes that are not this protocol",
    "lost": "messages that never came",
    "repeated": "messages that came more than once",
    "reordered": "messages that came out of order",
    "altered": "messages that are not what was published, or what others got",
    "uninvited": "messages that nobody had published or asked for",
    "unstored": "acknowledged messages that are not in the log",
    "unkept": "acknowledgements that do not agree with what was delivered or is in the log",
    "unanswered": "requests without an answer",
    "refused": "requests that were refused",
    "stalled": "waits that nothing moved in",
    "unchecked": "deliveries not checked: their connections were refused or ended",
}
"""Every kind, in words that fit behind a number. Server and connections come first: the rest may be of their making."""


class Problem(Struct):
    """One kind of problem: how often, and the first few in words."""

    kind: str
    count: int
    examples: list[str]


class Problems:
    """A collection of problems, by kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Problem] = {}

    def __bool__(self) -> bool:
        return bool(self._by_kind)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count a problem; `example` says where and what."""
        problem = self._by_kind.setdefault(kind, Problem(kind, 0, []))
        problem.count += count
        if len(problem.examples) < EXAMPLES_MAX:
            # Some of it are the server's own words, and escapes would be obeyed by the terminal that shows them.
            problem.examples.append("\n".join(map(visible, example.split("\n"))))

    def merge(self, others: list[Problem]) -> None:
        """Add what somebody else has collected."""
        for other in others:
            problem = self._by_kind.setdefault(other.kind, Problem(other.kind, 0, []))
            problem.count += other.count
            problem.examples += other.examples[: EXAMPLES_MAX - len(problem.examples)]

    def listed(self) -> list[Problem]:
        """All of them, in the order of KINDS."""
        return sorted(self._by_kind.values(), key=lambda problem: list(KINDS).index(problem.kind))

    def take(self) -> list[Problem]:
        """All of them; none are left here."""
        taken = self.listed()
        self._by_kind = {}
        return taken


def describe(problem: Problem) -> str:
    """A problem's kind and number as one line."""
    return f"{problem.count:,} {KINDS[problem.kind]}"
