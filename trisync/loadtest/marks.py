"""What this tool publishes, and sums of it by which two can tell whether they have the same messages.

Who acknowledges, who delivers and what the log holds are compared by these sums alone: at millions of messages nobody
could keep them all.
"""

from collections.abc import Iterable
from itertools import repeat

from msgspec import Struct

from trisync.loadtest.plan import Tally
from trisync.loadtest.transports import Number

PADDING = "x"

BLOCK = 1000
"""Sums are made of so many offsets each, so that a part of a log can be compared. A page of history holds as many."""

WIDER_FROM = 10_000_000, 100_000_000
"""From each of these offsets on, of ten times as many: those of a billion messages would fill the workers' memory."""

_MODULUS = (1 << 61) - 1
"""Sums are told modulo this: the integers of JSON have 64 bits at the most."""


class Mark(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What this tool publishes as `data`: an array of these."""

    channel: int
    """Its index among those of the run."""
    publisher: int
    number: Number
    """1, 2, 3 … of this publisher in this channel."""
    due_us: int
    """When it was sent, or in an open loop when it should have been."""
    padding: str = ""
    """Nothing but PADDING, up to the size that is asked for."""


def fingerprint(offset: int, mark: Mark) -> int:
    """A message's part in the sum that tells whether two have seen the same messages at the same offsets.

    Integers and tuples of them hash alike in all processes, and so that no two changes cancel each other out.
    """
    return hash((offset, mark.publisher, mark.number, mark.due_us, len(mark.padding)))


def fingerprints(offsets: Iterable[int], publisher: int, numbers: Iterable[int], due_us: int, padding: int) -> int:
    """The sum of a run's fingerprints, at half the cost."""
    return sum(map(hash, zip(offsets, repeat(publisher), numbers, repeat(due_us), repeat(padding), strict=False)))


def block_of(offset: int) -> tuple[int, int]:
    """The block that an offset is in: where that begins, which is its name, and where the next one does."""
    size = BLOCK
    for wider_from in WIDER_FROM:
        if offset >= wider_from:
            size *= 10
    first = offset - offset % size
    return first, first + size


class Ledger:
    """Messages as somebody has them, by channel and block."""

    def __init__(self, tallies: Iterable[Tally] = ()) -> None:
        self._tallies: dict[tuple[int, int], Tally] = {}
        self.add(tallies)

    def add(self, tallies: Iterable[Tally]) -> None:
        """Add what somebody else has."""
        for tally in tallies:
            _add(self.open(tally.channel, tally.block), tally)

    def open(self, channel: int, block: int) -> Tally:
        """The tally of a block, to be counted up by the caller."""
        key = channel, block
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(channel, block)
        return tally

    def blocks(self) -> list[Tally]:
        """A tally of each block of each channel."""
        for tally in self._tallies.values():
            tally.fingerprint %= _MODULUS
            tally.times %= _MODULUS
        return list(self._tallies.values())

    def block(self, channel: int, number: int) -> Tally:
        """The tally of one block."""
        return self._tallies.get((channel, number)) or Tally(channel, number)

    def channels(self) -> dict[int, Tally]:
        """A tally of each channel, whole."""
        whole: dict[int, Tally] = {}
        for part in self.blocks():
            _add(whole.setdefault(part.channel, Tally(part.channel, 0)), part)
        return whole


def _add(tally: Tally, part: Tally) -> None:
    tally.count += part.count
    tally.head = max(tally.head, part.head)
    tally.fingerprint = (tally.fingerprint + part.fingerprint) % _MODULUS
    tally.times = (tally.times + part.times) % _MODULUS
