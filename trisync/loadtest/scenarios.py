"""The scenarios: what each is for, its defaults, how its clients are shared out, and the order of events.

A scenario is a few orders that all workers obey one after the other; between them nothing moves, so counts can be
compared. What is common to all of them (processes, display, results) is in run.py.
"""

import random
from collections.abc import Awaitable, Callable
from heapq import nsmallest
from typing import Any

import trio
from msgspec import Struct

from trisync.loadtest.crew import Crew
from trisync.loadtest.machine import usage
from trisync.loadtest.marks import Ledger
from trisync.loadtest.plan import (
    CHANNEL_PREFIX,
    Done,
    Drop,
    Finish,
    Load,
    Open,
    Order,
    Plan,
    Refused,
    Return,
    Settle,
    Share,
    clock_us,
)
from trisync.loadtest.recording import Recorder
from trisync.loadtest.results import Connecting, Fairness, LogRead, Returning, distribution
from trisync.loadtest.target import Target, TargetRefused
from trisync.loadtest.verdict import blocks_of, judge

IDLE_S = 1.0
"""How long connections rest before a server's memory is read."""

READ_BACK_S = 10.0
"""How long the log may be read at the end. At some 100,000 messages a second that is all of it, but in long runs."""

BEFORE_THE_DROP = 20
"""Messages that everybody gets in `resume` before they drop: who returns has been there."""


DRAWS = 8
"""For each channel that a subscriber follows: in most plans enough to have found different ones."""


def share_out(plan: Plan, target: Target, run: str) -> list[Share]:
    """Each worker's share. Clients are dealt like cards, so all workers have the same mixture."""
    followed = _choose_channels(plan)
    audience = [0] * plan.channels
    for channels in followed:
        for channel in channels:
            audience[channel] += 1
    host, port = target.door(plan.transport)
    publishers, measured = _deal_publishers(plan)
    paced = sum(len(dealt) for dealt, counts in zip(publishers, measured, strict=True) if counts)
    return [
        Share(
            worker=number,
            plan=plan,
            host=host,
            port=port,
            channels=[f"{CHANNEL_PREFIX}{run}/{channel}" for channel in range(plan.channels)],
            audience=audience,
            publishers=publishers[number],
            subscribers=followed[number :: plan.workers],
            concurrency=len(range(number, plan.concurrency, plan.workers)),
            visitors=len(range(number, plan.connections, plan.workers)),
            rate=plan.rate * len(publishers[number]) / max(1, paced) if measured[number] else 0.0,
            measured=measured[number],
        )
        for number in range(plan.workers)
    ]


def _deal_publishers(plan: Plan) -> tuple[list[list[int]], list[bool]]:
    """The numbers of each worker's publishers, and whether it is measured.

    In `fairness` the first worker has the polite publisher and nothing else to do, and the others have the flood.
    """
    everybody, workers = list(range(plan.publishers)), plan.workers
    if plan.scenario == "fairness":
        flood = [everybody[number :: workers - 1] for number in range(1, workers)]
        return [everybody[:1], *flood], [True] + [False] * (workers - 1)
    return [everybody[number::workers] for number in range(workers)], [True] * workers


def _choose_channels(plan: Plan) -> list[list[int]]:
    """The channels of each subscriber: one each in turn, or where several are followed, different ones by Zipf."""
    if plan.follow == 1 and not plan.zipf:
        return [[number % plan.channels] for number in range(plan.subscribers)]
    chance = random.Random(plan.seed)
    ends = [*plan.popularity, 1.0]
    wanted = min(plan.follow, plan.channels)
    everybody = []
    for _ in range(plan.subscribers):
        drawn = chance.choices(range(plan.channels), cum_weights=ends, k=DRAWS * wanted)
        chosen = list(dict.fromkeys(drawn))[:wanted]
        if len(chosen) < wanted:  # draws would repeat the popular ones for ever
            others = set(range(plan.channels)).difference(chosen)
            # Each rings after a random time, the popular ones sooner; who rings first is chosen (Efraimidis, Spirakis).
            rings = {one: chance.expovariate((one + 1) ** -plan.zipf) for one in others}
            chosen += nsmallest(wanted - len(chosen), rings, key=rings.__getitem__)
        everybody.append(sorted(chosen))
    return everybody


class Stage:
    """Where a scenario is played: the crew obeys, the recorder listens."""

    def __init__(self, plan: Plan, crew: Crew, recorder: Recorder, target: Target) -> None:
        self.plan = plan
        self.target = target
        self.recorder = recorder
        self.connecting: Connecting | None = None
        self.returning: Returning | None = None
        self.fairness: Fairness | None = None
        self.log_read = LogRead()
        self._crew = crew
        self._acked = Ledger()
        self._unanswered = 0
        """Publishes that may have been stored or not."""
        self._refused: list[Refused] = []
        self._trimmed: dict[int, int] = {}

    async def obey(self, order: Order, phase: str, interrupted: trio.Event | None = None) -> list[Done]:
        """Have all workers obey, under a name that the display shows."""
        self.recorder.phase = phase
        dones = await self._crew.obey(order, interrupted)
        self._trimmed = dict(sorted(each for done in dones for each in done.trimmed.items()))  # the highest is the last
        return dones

    async def open(self) -> list[Done]:
        """Have everybody connect. Raises TargetRefused where nobody could."""
        dones = await self.obey(Open(), "connecting")
        if not self.recorder.totals.opened:
            host, port = self.target.door(self.plan.transport)
            said = [example for problem in self.recorder.problems.listed() for example in problem.examples]
            raise TargetRefused(f"nobody could connect to {host} port {port}: {', '.join(said[:1])}")
        return dones

    async def time(self, obedience: Awaitable[list[Done]]) -> float:
        """Measure while an order is obeyed; returns the seconds from the first who began until the last was done."""
        self.recorder.measure(clock_us())
        dones = await obedience
        self.recorder.stop_measuring()
        return (max(done.ended_us for done in dones) - min(done.began_us for done in dones)) / 1e6

    async def load(self, order: Load, phase: str) -> None:
        """Publish; afterwards it is known what was acknowledged."""
        dones = await self.obey(order, phase)
        self._acked = Ledger(tally for done in dones for tally in done.acked)
        self._refused = [refused for done in dones for refused in done.refused]
        channels = self._acked.channels().values()
        self._unanswered = self.recorder.totals.sent - sum(tally.count for tally in channels)
        for tally in channels:
            if not 0 <= tally.head - tally.count <= self._unanswered:
                text = f"channel {tally.channel}: {tally.count:,} acknowledged, with offsets up to {tally.head:,}"
                self.recorder.problems.add("unkept", text)

    async def measured_load(self, *, flood: bool = True) -> None:
        """Publish for the time of the plan, and measure behind its warm-up."""
        plan = self.plan
        from_us = clock_us() + int(plan.warmup_s * 1e6)
        until_us = from_us + int(plan.duration_s * 1e6)
        self.recorder.measure(from_us, until_us)
        seconds = plan.warmup_s + plan.duration_s
        load = Load(seconds=seconds, measure_from_us=from_us, measure_until_us=until_us, flood=flood)
        await self.load(load, "loading" if flood else "loading lightly")

    def heads(self) -> list[int]:
        """Each channel's head, by what was acknowledged."""
        channels = self._acked.channels()
        return [channels[channel].head if channel in channels else 0 for channel in range(self.plan.channels)]

    async def settle(self) -> None:
        """Await everything that was acknowledged."""
        await self.obey(Settle(self.heads()), "waiting for the last answers")

    async def finish(self, interrupted: trio.Event) -> None:
        """Compare what was acknowledged with what was delivered, and with the log, as far as there is time for it."""
        blocks = blocks_of(self._acked, random.Random(self.plan.seed))
        order = Finish(blocks, READ_BACK_S, self._refused, self._trimmed, well=not self.recorder.problems)
        dones = await self.obey(order, "reading the log back", interrupted)
        self.log_read = judge(self._acked, dones, self._unanswered, self.recorder.problems)


async def _steady(stage: Stage) -> None:
    await stage.open()
    await stage.measured_load()
    await stage.settle()


async def _connect(stage: Stage) -> None:
    await stage.obey(Settle(stage.heads()), "starting")  # of nothing: workers take their time to start
    before = usage(stage.target.pid)
    took_s = await stage.time(stage.open())
    stage.recorder.phase = "resting"
    await trio.sleep(IDLE_S)
    after = usage(stage.target.pid)
    opened = stage.recorder.totals.opened
    idle_bytes = None
    if before is not None and after is not None and opened:
        idle_bytes = round((after.memory_bytes - before.memory_bytes) / opened, 1)
    await stage.settle()
    stage.connecting = Connecting(
        connections=opened, handshakes_per_s=round(opened / max(took_s, 1e-6), 1), idle_bytes=idle_bytes
    )


async def _resume(stage: Stage) -> None:
    plan = stage.plan
    await stage.open()
    await stage.load(Load(messages=BEFORE_THE_DROP), "publishing")
    await stage.settle()
    await stage.obey(Drop(), "dropping everybody")
    before = sum(stage.heads())
    await stage.load(Load(messages=plan.missed), "publishing what they miss")
    missed = sum(stage.heads()) - before
    took_s = await stage.time(stage.obey(Return(stage.heads()), "everybody returns"))
    stage.returning = Returning(subscribers=plan.subscribers, missed=missed, caught_up_s=round(took_s, 3))


async def _fairness(stage: Stage) -> None:
    recorder = stage.recorder
    await stage.open()
    await stage.measured_load(flood=False)
    alone = distribution(recorder.ack_latencies)
    await stage.measured_load()
    flooded = distribution(recorder.ack_latencies)
    times = round(flooded.p99_us / alone.p99_us, 2) if alone is not None and flooded is not None else None
    stage.fairness = Fairness(alone=alone, flooded=flooded, p99_times=times)
    await stage.settle()


class Scenario(Struct, frozen=True):
    """One of the tool's loads."""

    summary: str
    explanation: str
    defaults: dict[str, Any]
    """The plan's fields that make sense here, which are its options, with their defaults."""
    play: Callable[[Stage], Awaitable[None]]

    @property
    def fields(self) -> list[str]:
        """All of the plan's fields that can be said: these, and what every scenario has."""
        return [*self.defaults, "transport", "workers", "patience_s", "seed"]


def _timed(duration_s: float = 5.0, **others: Any) -> dict[str, Any]:
    return {**others, "message_bytes": 60, "duration_s": duration_s, "warmup_s": 1.0}


SCENARIOS = {
    "fanout": Scenario(
        "Publishers to many subscribers, as fast as it goes.",
        "Every publisher keeps a window of unanswered publishes in flight; every subscriber gets every message of its "
        "channel. The figure is deliveries a second. With --window 1 it shows what one message at a time costs.",
        _timed(publishers=1, subscribers=500, channels=1, window=512),
        _steady,
    ),
    "ingest": Scenario(
        "Durable publishes with acknowledgement, as fast as it goes.",
        "Nobody listens. The figures are acknowledged publishes a second, and the latency of the acknowledgement. "
        "With --publishers 50 --window 1 there are 50 clients that wait for each answer.",
        _timed(publishers=1, channels=1, window=512),
        _steady,
    ),
    "latency": Scenario(
        "A fixed rate, and how long each message takes to arrive.",
        "An open loop: messages are due at fixed times whether or not the server answers, and latency counts from "
        "when a message should have been sent. So a server that stalls for a second is charged for every message of "
        "that second, not for one.",
        _timed(10.0, publishers=1, subscribers=100, channels=1, rate=1000.0),
        _steady,
    ),
    "connect": Scenario(
        "Handshakes a second, and the memory of idle connections.",
        "For TCP, a handshake is a connection and one ping, as TCP alone says nothing of the server. Memory is the "
        "growth of the server's resident memory (with --spawn or --pid), read when all are open and idle.",
        {"connections": 2000, "concurrency": 64},
        _connect,
    ),
    "resume": Scenario(
        "Everybody drops at once, misses messages, and returns.",
        "The figure is the time from the first reconnect until the last subscriber has everything it missed. "
        "--concurrency says how many of them shake hands at the same time.",
        {"subscribers": 1000, "missed": 100, "window": 64, "message_bytes": 60, "concurrency": 256},
        _resume,
    ),
    "mixed": Scenario(
        "Many channels, few of them popular, at a fixed rate.",
        "Publishers and subscribers choose channels by Zipf's law, as people do; subscribers follow several. An open "
        "loop like `latency`.",
        _timed(10.0, publishers=20, subscribers=200, channels=200, follow=5, zipf=1.0, rate=2000.0),
        _steady,
    ),
    "slow": Scenario(
        "One fast subscriber and many slow ones, each at its own pace.",
        "All but the first read slower than it is published, the last of them --slowest times slower; once the load is "
        "over they read as fast as they can. The server must serve the fast one as if the others were not there (the "
        "latency is the fast one's), keep its memory bounded by its setting backlog_bytes_max for each of them, and "
        "let every one of them have everything in the end.",
        _timed(20.0, publishers=1, subscribers=501, channels=1, slowest=4.0, rate=500.0) | {"message_bytes": 1000},
        _steady,
    ),
    "fairness": Scenario(
        "A polite publisher, alone and then among others that flood.",
        "The first publisher publishes at a fixed rate; the others keep a window of unanswered publishes each. The "
        "figure is how many times longer the polite one's acknowledgements take, at the 99th percentile, while the "
        "others flood. It has a worker of its own, so the generator needs two.",
        _timed(publishers=21, channels=20, window=4000, rate=50.0),
        _fairness,
    ),
    "soak": Scenario(
        "The mixed load for long, with faults: memory and latency over time.",
        "Shows what only hours show: memory that grows, latency that creeps. The report gives the slope of the "
        "server's memory over the later half of the run, from 10 minutes on. Meanwhile one subscriber in five is cut "
        "off, stalls or vanishes now and then, and strangers come who talk nonsense or ask for much and read none of "
        "it; all subscribers must get everything nevertheless. Latency is of those who are left alone.",
        _timed(3600.0, publishers=20, subscribers=200, channels=200, follow=5, zipf=1.0, rate=500.0, faults=2.0),
        _steady,
    ),
}
"""The scenarios by name."""
