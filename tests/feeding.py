"""How parsers are fed in the tests: the same bytes, cut in every way that a network may cut them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

Outcome = TypeVar("Outcome")


def byte_by_byte(data: bytes) -> list[bytes]:
    """One byte a read."""
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in pieces that end at the given places; those beyond its end count for nothing."""
    edges = sorted({0, len(data), *(place for place in places if 0 < place < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


def fed_every_way(data: bytes, feed: Callable[[Sequence[bytes]], Outcome], places: Iterable[int] = ()) -> Outcome:
    """What `feed` makes of the data whole; in small pieces, and cut at `places`, it must come to the same."""
    whole = feed([data])
    for pieces in (byte_by_byte(data), cut(data, range(0, len(data), 3)), cut(data, places)):
        assert feed(pieces) == whole, pieces[:50]
    return whole
