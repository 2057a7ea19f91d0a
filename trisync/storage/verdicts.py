"""Verdicts on publishes, as they are kept for the retries of producers and of requests with an Idempotency-Key."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from trisync.storage.log import Duplicate, Refused
from trisync.wire.errors import WireError
from trisync.wire.protocol import UNANSWERED_MAX, Publish


class Conflict(NamedTuple):
    """A verdict as it is kept: where the word stands that was in the way. Its data is not kept twice."""

    channel: int
    key: str
    offset: int


Kept = int | Conflict | WireError
"""A final verdict as it is kept for a retry; an int is the offset of what was stored."""


def pack_verdicts(verdicts: Iterable[Kept]) -> bytes:
    """Verdicts as MessagePack: an offset, a conflict's three fields, or an error's code, text and details."""
    return msgspec.msgpack.encode(
        [(kept.code, kept.message, kept.details) if isinstance(kept, WireError) else kept for kept in verdicts]
    )


def unpack_verdicts(packed: bytes) -> list[Kept]:
    """What pack_verdicts() made bytes of. Raises msgspec.DecodeError."""
    verdicts: list[Kept] = []
    for kept in msgspec.msgpack.decode(packed, type=list[Any]):
        if type(kept) is int:
            verdicts.append(kept)
        elif type(kept[0]) is int:
            verdicts.append(Conflict(*kept))
        else:
            verdicts.append(WireError(kept[0], kept[1], closes=False, **kept[2]))
    return verdicts


class Producer:
    """A producer's last settled seq, and its newest verdicts."""

    __slots__ = ("id", "packed_bytes", "seq", "verdicts")

    def __init__(self, id: str, seq: int = 0, packed: bytes = b"\x90") -> None:
        self.id = id
        self.seq = seq
        self.verdicts: deque[Kept] = deque(unpack_verdicts(packed), maxlen=UNANSWERED_MAX)
        self.packed_bytes = len(packed)
        """What the verdicts took when they were packed last."""

    def pack(self) -> bytes:
        """The verdicts as they are stored."""
        packed = pack_verdicts(self.verdicts)
        self.packed_bytes = len(packed)
        return packed

    def answer(self, seq: int) -> Kept | Duplicate | None:
        """What is known of a `seq` that is not the next one; None for the next one, which is yet to be judged."""
        if seq == self.seq + 1:
            return None
        if seq > self.seq:
            return WireError("out_of_sequence", f"the last settled seq is {self.seq}: resend from there", seq=self.seq)
        place = seq - 1 - self.seq  # -1 is the newest
        return Duplicate(0) if place < -len(self.verdicts) else self.verdicts[place]

    def awaits(self, items: Sequence[Publish | Refused]) -> bool:
        """Whether these are the next ones, in order."""
        following = self.seq + 1
        return [item.seq for item in items] == [*range(following, following + len(items))]

    def settle(self, *verdicts: Kept) -> None:
        """Take the verdicts on the next seqs."""
        self.seq += len(verdicts)
        self.verdicts += verdicts


class Remembered(NamedTuple):
    """What became of an earlier request with the same Idempotency-Key."""

    fingerprint: bytes
    verdict: Kept
