"""The load on a peer: one process, as trisync's own, with the same loop, links, subscribers and checks.

Started by peer_servers.py as `python -m trisync.loadtest.peer_load`: one Load on standard input, one Outcome on
standard output. It ends by itself: all that it waits for has an end.

In flight, for trisync, is a publish that is not acknowledged. Here it is:

- where the peer stores and acknowledges (Redis Streams): the same;
- else: a message that the first subscriber has not received. It is the one definition that a peer without
  acknowledgements (NATS core, a WebSocket fan-out) can be held to, and it asks no more of a peer than trisync's: what
  a subscriber has got, the server has surely handled. Redis' replies to PUBLISH are read, and not waited for.

A window is refilled as trisync's publisher refills its own: at each read, by as many as have left it.

All subscribers get the same bytes. Who is first to get them has them parsed, the others have them compared; numbers
must be dense, and at the end everybody must have every message, so nobody wins by dropping.
"""

import resource
import sys
import time
from typing import NoReturn

import msgspec
from msgspec import Struct

from trisync.loadtest.clients import Speaker, Surroundings
from trisync.loadtest.links import Client, Link, Loop
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.peer_clients import Listener, Producer
from trisync.loadtest.peer_dialects import DIALECTS, PeerDialect
from trisync.loadtest.plan import clock_us
from trisync.loadtest.problems import Problem, Problems
from trisync.loadtest.target import usage
from trisync.loadtest.trails import TRAIL_BYTES, Trail

OPENING_MAX = 64
"""Connections that are being opened at once: Node and Redis listen with a backlog of 511."""

TURN_S = 0.05
"""How long the loop waits at most before it looks at the clock."""


class Load(Struct, frozen=True, kw_only=True):
    """What to do to a peer."""

    dialect: PeerDialect
    host: str
    port: int
    pid: int
    """The peer's process, to see what it costs."""
    publishers: int
    subscribers: int
    window: int
    """Messages that each publisher keeps in flight."""
    warmup_s: float
    duration_s: float
    message_bytes: int
    patience_s: float = 10.0
    """How long nothing may move before what is awaited counts as lost."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What it came to."""

    per_s: float
    """Deliveries a second to all subscribers together; without subscribers, acknowledged publishes a second."""
    generator_cpu: float
    server_cpu: float | None
    """Processor time in the measured part, in cores."""
    sent: int
    delivered: int
    problems: list[Problem]


class Generator:
    """All connections of one measurement, on one loop."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._dialect = DIALECTS[load.dialect]
        self._loop = Loop()
        self._problems = Problems()
        self._gauge = Gauge(0, self._problems)
        self._around = Surroundings(self._gauge, self._connect)
        trail = Trail(0, "load", self._gauge, TRAIL_BYTES)
        self._listeners = [
            Listener(f"subscriber {number}", self._around, trail, self._dialect, load.message_bytes)
            for number in range(load.subscribers)
        ]
        self._producers = [
            Producer(number, self._around, self._dialect, load.message_bytes, load.window)
            for number in range(load.publishers)
        ]
        if self._listeners:
            (self._listeners[0].producer,) = self._producers

    def _connect(self, client: Client) -> Link:
        load = self._load
        link = Link(self._loop, client, self._dialect.transport, load.host, load.port)
        link.split = self._dialect.split
        if link.masker is None:
            link.join = b"".join
        return link

    def run(self) -> Outcome:
        """Connect, load, await everything, compare."""
        speakers: list[Speaker] = [*self._listeners, *self._producers]
        for start in range(0, len(speakers), OPENING_MAX):
            for speaker in speakers[start : start + OPENING_MAX]:
                speaker.open()
            self._await_all()
        per_s = generator_cpu = 0.0
        server_cpu = None
        if not self._problems:
            per_s, generator_cpu, server_cpu = self._measure()
            self._settle()
        self._loop.close()
        totals = self._gauge.totals
        return Outcome(
            per_s=round(per_s, 1),
            generator_cpu=round(generator_cpu, 3),
            server_cpu=server_cpu,
            sent=totals.sent,
            delivered=totals.delivered,
            problems=self._problems.take(),
        )

    def _counted(self) -> int:
        return self._gauge.totals.delivered if self._listeners else self._gauge.totals.acked

    def _measure(self) -> tuple[float, float, float | None]:
        began_us = clock_us()
        from_us = began_us + int(self._load.warmup_s * 1e6)
        until_us = from_us + int(self._load.duration_s * 1e6)
        # Latencies are not shown; they are taken because trisync's subscribers take them.
        self._gauge.measure_from_us, self._gauge.measure_until_us = from_us, until_us
        for producer in self._producers:
            producer.start()
        first = self._look_at(from_us)
        last = self._look_at(until_us)
        for producer in self._producers:
            producer.stop()
        elapsed_s = max(1, last[0] - first[0]) / 1e6
        server_cpu = None if first[3] is None or last[3] is None else round((last[3] - first[3]) / elapsed_s, 3)
        return (last[1] - first[1]) / elapsed_s, (last[2] - first[2]) / elapsed_s, server_cpu

    def _look_at(self, at_us: int) -> tuple[int, int, float, float | None]:
        """Go on until a time, or the first problem; then: the time, what was counted, processor times in seconds."""
        while (left_us := at_us - clock_us()) > 0 and not self._problems:
            self._loop.turn(min(TURN_S, left_us / 1e6))
        used = usage(self._load.pid)
        return clock_us(), self._counted(), time.process_time(), None if used is None else used.cpu_s

    def _await_all(self) -> None:
        """Go on until nobody is pending. What nothing moves in for too long is lost."""
        self._gauge.moved_us = clock_us()
        while self._around.pending:
            self._loop.turn(TURN_S)
            waited_s = (clock_us() - self._gauge.moved_us) / 1e6
            if waited_s > self._load.patience_s:
                for awaited in self._around.pending:
                    awaited.complain()
                self._problems.add("stalled", f"nothing moved for {waited_s:.1f} s")
                self._around.pending.clear()

    def _settle(self) -> None:
        """Await everything, and compare the counts."""
        sent = self._gauge.totals.sent
        for listener in self._listeners:
            if listener.link is not None:
                listener.expect({"load": sent})
        self._await_all()
        for listener in self._listeners:  # a pong comes behind all that was sent before it
            if listener.link is not None:
                listener.ping()
        if self._dialect.ask_count:
            self._producers[0].count()
        self._await_all()
        for listener in self._listeners:
            listener.finish()
            if listener.received > sent:
                self._problems.add("uninvited", f"{listener.name} got {listener.received:,} of {sent:,} messages")
        if self._dialect.ask_count and not self._gauge.totals.acked == sent == self._producers[0].stored:
            stored = self._producers[0].stored
            text = f"{sent:,} sent, {self._gauge.totals.acked:,} acknowledged, {stored or 0:,} stored"
            self._problems.add("unkept", text)
        for speaker in (*self._listeners, *self._producers):
            speaker.close()


def main() -> NoReturn:
    """Carry out the load that standard input tells of."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(Generator(load).run()))
    sys.exit(0)


if __name__ == "__main__":
    main()
