"""The load of a comparison: one process, the same for trisync and its peers, down to loop, links and checks.

Started by peer_servers.py as `python -m trisync.loadtest.peer_load`: one Load on standard input, one Outcome on
standard output. It ends by itself: all that it waits for has an end.

In flight is

- where publishes are acknowledged (trisync, Redis Streams): a publish that is not;
- else: a message that the first subscriber has not received. It is the one definition that a peer without
  acknowledgements (NATS core, a WebSocket fan-out) can be held to, and it asks no more of a peer than trisync's: what
  a subscriber has got, the server has surely handled. Redis' replies to PUBLISH are read, and not waited for; its
  figures are the same either way.

A window is refilled at each read, by as many as have left it, in batches of BATCH.

All subscribers get the same bytes. Who is first to get them has them parsed, the others have them compared; numbers
must be dense, and at the end everybody must have every message, so nobody wins by dropping. What nobody subscribes
to is counted (Redis), or read back and compared (trisync).
"""

import resource
import select
import sys
import time
from typing import NoReturn

import msgspec
from msgspec import Struct

from trisync.loadtest.clients import Speaker, Subscriber, Surroundings
from trisync.loadtest.links import Client, Link, Loop
from trisync.loadtest.machine import Look, machine_idle_s, usage
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.peer_clients import Listener, Producer
from trisync.loadtest.peer_dialects import DIALECTS, PeerDialect
from trisync.loadtest.plan import Tally, Transport, clock_us
from trisync.loadtest.problems import Problem, Problems
from trisync.loadtest.publishers import Publisher
from trisync.loadtest.trails import TRAIL_BYTES, Trail

OPENING_MAX = 64
"""Connections that are being opened at once: Node and Redis listen with a backlog of 511."""

TURN_S = 0.05
"""How long the loop waits at most before it looks at the clock."""


class Load(Struct, frozen=True, kw_only=True):
    """What to do to a server: to trisync over a transport, or to a peer."""

    transport: Transport | None = None
    peer: PeerDialect | None = None
    host: str
    port: int
    pid: int | None
    """The server's process, to see what it costs."""
    publishers: int
    subscribers: int
    window: int
    """Messages that each publisher keeps in flight."""
    warmup_s: float
    duration_s: float
    message_bytes: int
    sweep_s: float = 0.0
    """How often all subscribers but the first are read; 0 is whenever they can be.

    A read costs this generator more than a send costs a server. With one message in flight each delivery is a read
    of its own, and the figure would be the generator's; so deliveries wait in the kernel's buffers for a sweep.
    """
    patience_s: float = 10.0
    """How long nothing may move before what is awaited counts as lost."""


class Outcome(Struct, kw_only=True):
    """What it came to."""

    per_s: float = 0.0
    """Deliveries a second to all subscribers together; without subscribers, acknowledged publishes a second."""
    generator_cpu: float = 0.0
    server_cpu: float | None = None
    machine_idle: float | None = None
    """Processor time in the measured part, in cores; the last is what nobody used."""
    sent: int = 0
    delivered: int = 0
    problems: list[Problem] = []


CHANNEL = "load"
"""Where everything is published; the server is new and has nothing else."""


class Generator:
    """All connections of one measurement, on one loop."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = Loop()
        self._problems = Problems()
        self._gauge = Gauge(0, self._problems)
        self._around = Surroundings(self._gauge, self._connect)
        self._trail = Trail(0, CHANNEL, self._gauge, TRAIL_BYTES)
        self._aside: list[Link] = []
        """Connections that are heard in sweeps."""
        self._subscribers: list[Subscriber]
        self._publishers: list[Publisher] | list[Producer]
        names = [f"subscriber {number}" for number in range(load.subscribers)]
        numbers = range(load.publishers)
        if load.peer is None:
            self._subscribers = [Subscriber(name, self._around, [self._trail]) for name in names]
            self._publishers = [
                Publisher(number, self._around, [CHANNEL], [load.subscribers], [], load.message_bytes, seed=1)
                for number in numbers
            ]
        else:
            dialect = DIALECTS[load.peer]
            listeners = [Listener(name, self._around, self._trail, dialect, load.message_bytes) for name in names]
            producers = [Producer(number, self._around, dialect, load.message_bytes) for number in numbers]
            if listeners:
                (listeners[0].producer,) = producers
            self._subscribers, self._publishers = [*listeners], producers

    def _connect(self, client: Client) -> Link:
        load = self._load
        if load.peer is None:
            assert load.transport is not None
            return Link(self._loop, client, load.transport, load.host, load.port)
        dialect = DIALECTS[load.peer]
        link = Link(self._loop, client, dialect.transport, load.host, load.port)
        link.split = dialect.split
        if link.masker is None:
            link.join = b"".join
        return link

    def run(self) -> Outcome:
        """Connect, load, await everything, compare."""
        self._open([*self._subscribers, *self._publishers])
        if self._load.sweep_s:
            self._set_aside([each.link for each in self._subscribers[1:] if each.link is not None])
        outcome = Outcome()
        if not self._problems:
            outcome = self._measure()
            self._settle()
        for speaker in (*self._subscribers, *self._publishers):
            speaker.close()
        self._loop.close()
        outcome.sent, outcome.delivered = self._gauge.totals.sent, self._gauge.totals.delivered
        outcome.problems = self._problems.take()
        return outcome

    def _open(self, speakers: list[Speaker]) -> None:
        for start in range(0, len(speakers), OPENING_MAX):
            for speaker in speakers[start : start + OPENING_MAX]:
                speaker.open()
            self._await_all()

    def _set_aside(self, links: list[Link]) -> None:
        """From now on hear these all together, every now and then."""
        self._aside = links
        for link in links:
            link.pause()
        self._sweep_on()

    def _sweep_on(self) -> None:
        self._sweep()
        self._loop.after(self._load.sweep_s, self._sweep_on)

    def _sweep(self) -> None:
        for link in self._aside:
            if link.usable:
                link.ready(select.EPOLLIN)

    def _counted(self) -> int:
        return self._gauge.totals.delivered if self._subscribers else self._gauge.totals.acked

    def _measure(self) -> Outcome:
        """Load for the time of the measurement."""
        began_us = clock_us()
        from_us = began_us + int(self._load.warmup_s * 1e6)
        until_us = from_us + int(self._load.duration_s * 1e6)
        for publisher in self._publishers:
            publisher.start(self._load.window)
        first, counted, cpu_s = self._look_at(from_us)
        last, counted_last, cpu_last_s = self._look_at(until_us)
        for publisher in self._publishers:
            publisher.stop()
        elapsed_s = max(1, last.at_us - first.at_us) / 1e6
        return Outcome(
            per_s=round((counted_last - counted) / elapsed_s, 1),
            generator_cpu=round((cpu_last_s - cpu_s) / elapsed_s, 3),
            server_cpu=first.server_cpu(last),
            machine_idle=first.machine_idle(last),
        )

    def _look_at(self, at_us: int) -> tuple[Look, int, float]:
        """Go on until a time, or the first problem; then what was counted until it, and this process's CPU time."""
        while (left_us := at_us - clock_us()) > 0 and not self._problems:
            self._loop.turn(min(TURN_S, left_us / 1e6))
        self._sweep()
        look = Look(clock_us(), usage(self._load.pid), machine_idle_s())
        return look, self._counted(), time.process_time()

    def _await_all(self) -> None:
        """Go on until nobody is pending. What nothing moves in for too long is lost."""
        self._gauge.moved_us = clock_us()
        while self._around.pending:
            self._loop.turn(TURN_S)
            waited_us = clock_us() - self._gauge.moved_us
            if waited_us > self._load.patience_s * 1e6:
                self._around.give_up(waited_us)

    def _settle(self) -> None:
        """Await everything, and compare the counts."""
        self._await_all()
        sent = self._gauge.totals.sent
        if self._load.peer is None:
            reader = Subscriber("reader", self._around, [self._trail])
            self._subscribers.append(reader)
            self._open([reader])
        present = [subscriber for subscriber in self._subscribers if subscriber.link is not None]
        for subscriber in present:
            subscriber.expect({CHANNEL: sent})
        self._await_all()
        for subscriber in present:  # a pong comes behind all that was sent before it
            if subscriber.link is not None:
                subscriber.ping()
        self._await_all()
        for subscriber in self._subscribers:
            subscriber.finish()
        self._trail.contents.finish([])
        if self._load.peer is None:
            self._compare_delivered()
        elif DIALECTS[self._load.peer].ask_count:
            self._compare_stored(sent)
        if self._trail.next - 1 > sent:
            self._problems.add("uninvited", f"{self._trail.next - 1:,} of {sent:,} messages came")

    def _compare_delivered(self) -> None:
        """Whether trisync has delivered what it acknowledged, where there still is somebody to say what that is."""
        if any(subscriber.link is not None for subscriber in self._subscribers):
            seen, booked = self._trail.contents.ledger.channels()[0], self._around.acked.channels().get(0, Tally(0, 0))
            unanswered = self._gauge.totals.sent - booked.count  # they may have been stored or not
            if not seen.agrees(booked) and not 0 < seen.count - booked.count <= unanswered:
                self._problems.add("unkept", "what was acknowledged is not what was delivered")

    def _compare_stored(self, sent: int) -> None:
        """Whether a peer has stored what it acknowledged, where it still can be asked."""
        first, acked = self._publishers[0], self._gauge.totals.acked
        assert isinstance(first, Producer)
        if first.link is not None:
            first.count()
        self._await_all()
        if first.stored is not None and not sent == acked == first.stored:
            self._problems.add("unkept", f"{sent:,} sent, {acked:,} acknowledged, {first.stored:,} stored")


def main() -> NoReturn:
    """Carry out the load that standard input tells of."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(Generator(load).run()))
    sys.exit(0)


if __name__ == "__main__":
    main()
