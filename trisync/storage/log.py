"""The durable log: what the broker may ask of a store, and the values that pass between them.

A channel is a run of messages numbered 1, 2, 3 …; a store keeps them, in order, with each producer's verdicts.
The stores themselves are elsewhere (sqlite_log.py). Nothing here knows a connection or a framing's details.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from trisync.wire.errors import WireError
from trisync.wire.framing import LINES, Framing
from trisync.wire.nesting import nesting
from trisync.wire.protocol import Publish


class LogUnavailable(Exception):
    """The store cannot take or give anything now (disk full, locked, read-only). Nothing was stored."""


class LogDamaged(LogUnavailable):
    """A LogUnavailable that will not pass: what was asked for is not to be read, stored or deleted. All else may be."""


class LogRefused(Exception):
    """The store must not be opened: not a database, of a newer version, in use by another server."""


class LogGone(Exception):
    """The store is no longer where it was opened: what is written to it now would be lost."""


_SETTLING = {"bad_request", "forbidden", "limit", "too_large"}
"""Errors that settle a publish though the log never judged it, if the connection goes on behind them. The others say
that it was not judged."""


class Refused(Struct, gc=False):
    """A publish that was refused before it reached the log: it keeps its place among the others."""

    error: WireError
    id: int | str | UnsetType = UNSET
    seq: int | UnsetType = UNSET

    @property
    def settles(self) -> bool:
        """Whether the refusal settles the `seq` of a producer, as a verdict does: it is final once the log has it."""
        return self.seq is not UNSET and self.error.code in _SETTLING and not self.error.closes


class Once(NamedTuple):
    """A request that may come again, over HTTP: it is stored once, and repeated under the same id only as it was."""

    id: bytes
    """From the channel and the Idempotency-Key."""
    fingerprint: bytes
    """From all else that the request says."""


class Duplicate(NamedTuple):
    """A retried publish that was stored already: at `offset`, or 0 where only that it was settled is known."""

    offset: int


Verdict = int | Duplicate | WireError
"""What becomes of a publish: its offset (0 for an ephemeral one), or that it is a repetition, or refused."""


ITEM_OVERHEAD_BYTES = 250
"""What a queued publish holds beside its payload (measured with tracemalloc, rounded up)."""


CONDITIONAL_BYTES = 64 * 1024
"""Counted for a publish with `expect` or `merge`: a few bytes of it may cause a conflict's answer, or a merged
message, of message_bytes_max. It bounds how many of them one batch decides, and one connection has under way. A patch
counts so for each of its levels: what it is nested in is read anew at each."""


class Flow:
    """All that one connection publishes, one after the other; whoever queues it keeps its accounts here."""

    __slots__ = ("place", "unsettled", "waiting")

    def __init__(self) -> None:
        self.place = 0
        """The place in the queue of its last submission there: see FairQueue."""
        self.waiting = 0
        """How many submissions of it are in the queue."""
        self.unsettled = 0
        """Bytes of it that have no verdicts yet."""


class Submission:
    """Publishes that one connection sent together, in order; the log answers each in `verdicts`."""

    __slots__ = (
        *("arrival", "durable", "ephemeral", "flow", "items", "keyed", "once", "plain"),
        *("producer", "sender", "settle", "size", "verdicts"),
    )

    def __init__(
        self,
        settle: Callable[["Submission"], None],
        sender: str | None = None,
        producer: str | None = None,
        once: Once | None = None,
        flow: Flow | None = None,
    ) -> None:
        self.flow = Flow() if flow is None else flow
        self.arrival = 0
        """How many came before it, over all flows."""
        self.settle = settle
        """Called once, in the event loop, when the verdicts are there; must not block or raise."""
        self.sender = sender
        self.producer = producer
        self.once = once
        """Set for a submission of one publish, without a producer, that is not stored a second time."""
        self.items: list[Publish | Refused] = []
        self.verdicts: list[Verdict] = []
        self.size = 0
        """About what the publishes hold of memory, or may cause, in bytes, for the bounds on queues and batches."""
        self.durable = False
        """Whether the log has anything to decide or to store for this."""
        self.ephemeral = False
        """Whether any of it is to be delivered without being stored."""
        self.keyed = False
        """Whether any of it is about a key."""
        self.plain = True
        """Whether all of it are publishes that are stored, none of them about a key."""

    def add(self, item: Publish | Refused, payload_bytes: int) -> None:
        """Append a publish; its place in `items` is that of its verdict."""
        self.extend((item,), payload_bytes)

    def extend(self, items: Iterable[Publish | Refused], payload_bytes: int) -> None:
        """Append publishes, whose payloads have so many bytes together."""
        for item in items:
            self.items.append(item)
            self.size += ITEM_OVERHEAD_BYTES
            if type(item) is not Publish:
                self.plain = False
                self.durable = self.durable or item.seq is not UNSET or self.once is not None
            elif item.ephemeral:
                self.plain = False
                self.ephemeral = True
            else:
                self.durable = True
                if item.key is not UNSET:
                    self.plain = False
                    self.keyed = True
                    if item.conditional:
                        levels = nesting(bytes(item.data)) if item.merge else 1
                        self.size += CONDITIONAL_BYTES * max(1, levels)
        self.size += payload_bytes

    def turn_away(self, error: WireError) -> None:
        """Have every publish refused before it is judged; those refused already keep their own error."""
        self.items = [item if type(item) is Refused else Refused(error, item.id, item.seq) for item in self.items]
        self.plain = False

    def refuse(self, error: WireError) -> None:
        """Give every publish that the log was to settle the same error; those refused otherwise keep their own."""
        self.verdicts = []
        for item in self.items:
            if type(item) is Refused and not item.settles and self.once is None:
                self.verdicts.append(item.error)
            elif type(item) is Publish and item.ephemeral:
                self.verdicts.append(0)
            else:
                self.verdicts.append(error)


RUN_OVERHEAD_BYTES = 850
"""What a cached run of messages holds beside its text, in three framings (measured with tracemalloc, rounded up)."""
FRAMINGS_KEPT = 2
"""How many framings a run keeps itself in beside lines. There are more (two for machines, the console, events with two
kinds of ids), but those who read at the same offset seldom have more than two."""


class Run:
    """Consecutive messages of a channel, encoded once: offsets `after + 1` to `last`.

    `lines` holds one JSON message a line, each ended by LF, which is also the lines dialect's framing. Other
    framings are made from it when asked for, and the newest of them kept: their subscribers share one object.
    """

    __slots__ = ("_encoded", "after", "channel", "last", "lines")

    def __init__(self, channel: str, after: int, last: int, lines: bytes) -> None:
        self.channel = channel
        self.after = after
        self.last = last
        self.lines = lines
        self._encoded: dict[Framing, bytes] = {}

    @property
    def size(self) -> int:
        """Bytes that this may come to hold: its text, and that again in each framing that is kept, about."""
        return (1 + FRAMINGS_KEPT) * len(self.lines) + RUN_OVERHEAD_BYTES

    def payloads(self) -> list[bytes]:
        """The messages, one JSON object each."""
        return self.lines[:-1].split(b"\n")

    def encoded(self, framing: Framing) -> bytes:
        """The messages under a framing."""
        if framing is LINES:
            return self.lines
        data = self._encoded.get(framing)
        if data is None:
            if len(self._encoded) == FRAMINGS_KEPT:
                del self._encoded[next(iter(self._encoded))]
            data = self._encoded[framing] = framing.join(self.payloads())
        return data

    def since(self, offset: int) -> "Run":
        """The part behind `offset`, which lies in this run."""
        rest = self.lines.split(b"\n", offset - self.after)[-1]
        return Run(self.channel, offset, self.last, rest)

    def until(self, offset: int) -> "Run":
        """The part up to `offset`, which lies in this run."""
        kept = self.lines.split(b"\n", offset - self.after)[:-1]
        return Run(self.channel, self.after, offset, b"\n".join(kept) + b"\n")


class Extent(NamedTuple):
    """Where a channel's messages lie: offsets `trimmed + 1` to `head`. Both are 0 before the first one."""

    head: int
    trimmed: int


class Page(NamedTuple):
    """What a read found: the messages, and the channel's extent at that moment."""

    run: Run | None
    """None where there is nothing in the asked range."""
    extent: Extent


class StatePage(NamedTuple):
    """Entries of a channel's state, in the order of their keys' UTF-8 bytes."""

    entries: bytes
    """The members of a JSON object, without its braces: `"key":{"offset":1,"data":2},…`."""
    last: str
    """The last entry's key, "" where there is none."""
    more: bool
    """Whether there are entries behind it."""
    extent: Extent
    """The channel's, at the moment that the entries are of."""


class ChannelInfo(NamedTuple):
    """A channel in a listing."""

    name: str
    extent: Extent
    """Of zeros where damage keeps it from being read."""
    bytes: int
    """Of its messages, as they are sent in lines; 0 where damage keeps the oldest of them from being read."""
    oldest_ms: int | None
    """The time of its oldest message, None where it has none (any more), or where that cannot be read."""


class OldMessage(NamedTuple):
    """A message at the old end of a channel, without its data."""

    offset: int
    time_ms: int
    held_bytes: int
    """What the channel holds from this message on, this one included."""


class Log(ABC):
    """A store of channels. Reads may run beside an append; appends are one after the other.

    Cancelling append() never tears a batch: it is stored whole or not at all, and the outcome is unknown.
    """

    epoch: str
    """The log's identity: it changes when offsets may have been lost or given anew."""

    @abstractmethod
    def now_ms(self) -> int:
        """The time for messages, Unix milliseconds: never before the newest one's, whatever the clock does."""

    @abstractmethod
    async def append(self, batch: Sequence[Submission]) -> list[Run]:
        """Decide and store a batch in one transaction, durably; fills every submission's verdicts.

        Returns what was stored, a run per channel. Each publish is judged by what the ones before it did.
        Raises LogUnavailable when nothing was stored and none was settled; any other exception means that
        the outcome is unknown, and that the log must not be written to again. No submission has verdicts then.
        """

    @abstractmethod
    async def extent(self, channel: str) -> Extent:
        """Where a channel's messages lie. Raises LogUnavailable."""

    @abstractmethod
    async def read(self, channel: str, after: int, count_max: int, bytes_max: int) -> Page:
        """The messages behind offset `after`, at most so many and about so large; at least one if there is one.

        A run never begins below what was trimmed: its `after` may be larger than asked for. Raises
        LogUnavailable.
        """

    @abstractmethod
    async def newest(self, channel: str, count_max: int, bytes_max: int) -> Page:
        """The newest messages, bounded as read() is; the oldest are left off. Raises LogUnavailable."""

    @abstractmethod
    async def state(self, channel: str, after: str, count_max: int, bytes_max: int) -> StatePage:
        """The state's entries behind a key ("" for the first), bounded as read() is. Raises LogUnavailable."""

    @abstractmethod
    async def word(self, channel: str, key: str) -> StatePage:
        """One entry of the state, or none. Raises LogUnavailable."""

    @abstractmethod
    async def channels(self, after: str, count_max: int) -> list[ChannelInfo]:
        """Channels by name, behind a name ("" for the first); emptied ones are among them. Raises LogUnavailable."""

    @abstractmethod
    async def describe(self, names: Sequence[str]) -> list[ChannelInfo]:
        """Those of the named channels that there are, by name. Raises LogUnavailable."""

    @abstractmethod
    async def oldest(self, channel: str, count_max: int) -> list[OldMessage]:
        """A channel's oldest messages, ascending. Raises LogUnavailable."""

    @abstractmethod
    async def settled_seq(self, producer: str) -> int:
        """The seq of a producer's last settled publish, 0 for one not known. Raises LogUnavailable."""

    @abstractmethod
    async def clear(self, channel: str) -> Extent | None:
        """Empty a channel of messages and state; its offsets go on from the head. Not while append() runs.

        It is done at once and durably; what the store has to tidy up behind it is maintain()'s business. Returns
        the extent, in which all is trimmed; None where there was nothing to empty. Raises LogUnavailable.
        """

    @abstractmethod
    async def trim(self, cuts: Mapping[str, int], count_max: int) -> dict[str, Extent]:
        """Cut channels' oldest messages, up to an offset each, in one transaction. Not while append() runs.

        At most so many messages in all, and about as many bytes as four batches have, channel after channel: later ones
        may be cut in part or not at all. The states stay. Returns the extents of those channels that there are. Raises
        LogUnavailable; where damage keeps one of them from being cut, none is.
        """

    @abstractmethod
    async def maintain(self) -> bool:
        """A step of what the store wants done between two batches: a few milliseconds. Raises LogUnavailable.

        Called after each batch; returns whether there is more to do, for when there is nothing else.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Leave the store cleanly. To be called once no other call is under way."""
