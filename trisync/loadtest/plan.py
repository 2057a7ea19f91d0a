"""What a run is told: the plan, each worker's share of it, and the orders and reports between the processes.

These are the words that cross the pipes, one JSON object a line; what they bring about is in worker.py and
scenarios.py. Times that end in `_us` are microseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import time
from itertools import accumulate
from typing import Literal

from msgspec import Struct

from trisync.loadtest.problems import Problem

Transport = Literal["ws", "lines", "frames"]
TRANSPORTS: tuple[Transport, ...] = ("ws", "lines", "frames")

CHANNEL_PREFIX = "load/"
"""All channels of a run are called load/RUN/NUMBER, so each run begins with empty ones."""

TICK_S = 0.25
"""How often a worker reports. At this rate the reports themselves cost well below one percent of a core."""


def clock_us() -> int:
    """Now, in microseconds of a clock that all processes of this machine share and nobody sets."""
    return time.monotonic_ns() // 1000


class Plan(Struct, frozen=True, kw_only=True):
    """A load, whole: what all workers together shall do."""

    scenario: str
    transport: Transport = "ws"
    duration_s: float = 1.0
    """Length of the measured part; or where a scenario has no such, what it may be over in."""
    warmup_s: float = 1.0
    """Load before the measured part: it is checked, and not measured."""
    publishers: int = 0
    subscribers: int = 0
    channels: int = 1
    follow: int = 1
    """Channels that each subscriber follows."""
    zipf: float = 0.0
    """Exponent of the channels' popularity with publishers and subscribers; 0 is even."""
    window: int = 512
    """Publishes that each publisher keeps unanswered, where `rate` is 0."""
    rate: float = 0.0
    """Publishes a second by all publishers together, in an open loop; 0 is as fast as the window allows."""
    message_bytes: int = 60
    """Size of a message's `data`."""
    slowest: float = 1.0
    """All subscribers but the first read slower than it is published, evenly up to so many times slower."""
    faults: float = 0.0
    """Times a second that trouble is made during the load, by all workers together (see mischief.py)."""
    missed: int = 0
    """Messages of each channel that subscribers of `resume` miss."""
    connections: int = 0
    """Connections of `connect`."""
    concurrency: int = 256
    """Handshakes under way at once, by all workers together."""
    workers: int = 1
    patience_s: float = 10.0
    """How long nothing may move before what is awaited counts as lost."""
    seed: int = 1

    @property
    def tick_s(self) -> float:
        """How often workers report: often enough for a short run to have a course."""
        return min(TICK_S, max(0.05, self.duration_s / 8))

    @property
    def of_acks(self) -> bool:
        """Whether the latency that it is about is that of acknowledgements: nobody listens, or arrives."""
        return not self.subscribers and not self.connections

    @property
    def popularity(self) -> list[float]:
        """Upper ends of the channels' shares of 0 to 1, by Zipf's law: the nth of them weighs 1 / n^zipf."""
        *ends, total = accumulate((number + 1) ** -self.zipf for number in range(self.channels))
        return [end / total for end in ends]  # the last one's is 1, whatever rounding says


class Share(Struct, frozen=True, kw_only=True):
    """What one worker has of a plan."""

    worker: int
    plan: Plan
    host: str
    port: int
    channels: list[str]
    audience: list[int]
    """Subscribers of each channel, in all workers."""
    publishers: list[int]
    """Numbers of this worker's publishers; they are unique among all workers."""
    subscribers: list[list[int]]
    """The channels of each of this worker's subscribers, by index."""
    concurrency: int
    """Handshakes under way at once."""
    visitors: int = 0
    """Connections that only come, are pinged, and go."""
    rate: float = 0.0
    """Publishes a second by this worker's publishers; 0 is as fast as the window allows."""
    measured: bool = True
    """Whether the latencies of this worker's clients count."""


# Orders to a worker. It obeys one after the other, and answers each with a Done.


class Order(Struct, tag_field="order"):
    """What all orders share."""


class Open(Order, tag="open"):
    """Connect everybody; subscribers subscribe."""


class Load(Order, tag="load", kw_only=True):
    """Publish, either for so long or so many messages each, and await all answers."""

    seconds: float = 0.0
    messages: int = 0
    measure_from_us: int = 0
    measure_until_us: int = 0
    """Latencies count of messages that were due between the two. Rates do too, so there is a tick right behind each."""
    flood: bool = True
    """Whether workers whose latencies do not count publish too."""


class Settle(Order, tag="settle"):
    """Await that every subscriber has its channels' heads, then a pong on every connection: nothing comes behind."""

    heads: list[int]


class Block(Struct, frozen=True, array_like=True):
    """Some messages of a channel, by their offsets: as many as are read at once."""

    channel: int
    first: int
    last: int


class Drop(Order, tag="drop"):
    """Cut all subscribers off, at once."""


class Return(Order, tag="return"):
    """Reconnect all subscribers, each from where it was; its time until it has its channels' heads is measured."""

    heads: list[int]


class Refused(Struct, frozen=True, array_like=True):
    """A publish that the server did not take, and so nobody can get."""

    channel: int
    publisher: int
    number: int


class Finish(Order, tag="finish"):
    """Read the log back, say what is missing, and end."""

    blocks: list[Block] = []
    """Of the log; each worker reads its share of them in their order."""
    seconds: float = 0.0
    """How long it may read; some blocks may be left."""
    refused: list[Refused] = []
    """Of all workers: these are not missing."""
    trimmed: dict[int, int] = {}
    """Up to which offset subscribers of each channel, in all workers, were told that it was trimmed."""
    well: bool = True
    """Whether nothing broke until now. Then nothing is on its way any more, and every connection is free."""


class Enough(Order, tag="enough"):
    """Read no more of the log: the Finish that is under way is done with what was read. This has no Done of its own."""


AnyOrder = Open | Load | Settle | Drop | Return | Finish | Enough


# Reports of a worker.


class Tally(Struct, array_like=True):
    """The messages of one block of a channel as somebody has them (see marks.py), or of a whole channel."""

    channel: int
    block: int
    """Where it begins."""
    count: int = 0
    head: int = 0
    """The highest offset that was acknowledged."""
    fingerprint: int = 0
    """Made from every message's offset and content."""
    times: int = 0
    """Made from every message's offset and time, which acknowledgements do not say."""

    def agrees(self, other: "Tally") -> bool:
        """Whether both have the same messages at the same offsets."""
        return (self.count, self.fingerprint) == (other.count, other.fingerprint)


WHY_UNREAD = Literal["trimmed", "replaced", "late", "interrupted"]


class Unread(Struct, frozen=True, array_like=True):
    """A block that was not read back, through no fault of the server's."""

    block: Block
    why: WHY_UNREAD
    """Retention has removed some of it; the log is another one than at the beginning; there was no more time; or
    the command was told to end."""


class Totals(Struct):
    """What a worker has counted since its start."""

    opened: int = 0
    sent: int = 0
    unsent: int = 0
    """Publishes that were due in an open loop, and that the server had not taken when patience ended."""
    acked: int = 0
    due: int = 0
    """Deliveries that acknowledged publishes must lead to, by the subscribers that their channels have."""
    delivered: int = 0
    trimmed: int = 0
    """Deliveries in whose place the server said that it had removed the message."""
    delivered_bytes: int = 0


class Tick(Struct, tag="tick", tag_field="report"):
    """What has happened in a worker. Totals are since its start, the rest is since its last tick."""

    worker: int
    at_us: int
    cpu_s: float
    """Processor time since its start."""
    totals: Totals
    latencies: dict[int, int]
    """Messages by latency in µs: publish (or due time) to delivery; in `connect` of handshakes, in `resume` of
    returns."""
    ack_latencies: dict[int, int]
    """The same from a publish to its answer."""
    lateness: dict[int, int]
    """How late paced messages were sent: the generator's own share of their latency."""
    problems: list[Problem]


class Done(Struct, tag="done", tag_field="report"):
    """An order was obeyed; or not quite, and then there are problems."""

    worker: int
    began_us: int
    ended_us: int
    acked: list[Tally] = []
    """What was acknowledged so far."""
    seen: list[Tally] = []
    """What was delivered so far."""
    refused: list[Refused] = []
    """The first of its publishers' publishes that were refused so far; only so many are remembered."""
    trimmed: dict[int, int] = {}
    """Up to which offset its subscribers of each channel were told that it was trimmed."""
    read: list[Tally] = []
    """What was read from the log."""
    unread: list[Unread] = []
    heads: dict[int, int] = {}
    """How far the log of each channel goes, as the server said when it was read."""


Report = Tick | Done
