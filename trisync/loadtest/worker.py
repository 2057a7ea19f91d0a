"""One process of the generator: it obeys the orders on its standard input, and reports on its standard output.

Started by crew.py as `python -m trisync.loadtest.worker`; the first line is its Share, each following one an Order.
At the end of its input it ends at once, so no load outlives the command that started it.
"""

import os
import random
import resource
import select
import sys
import time
from collections import deque
from typing import Any, NoReturn

import msgspec

from trisync.loadtest.clients import SlowSubscriber, Speaker, Subscriber, Surroundings, Visitor
from trisync.loadtest.links import Link, Loop
from trisync.loadtest.log_readers import Reading
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.mischief import VICTIM_EVERY, Mischief
from trisync.loadtest.pacing import Pacer
from trisync.loadtest.plan import (
    AnyOrder,
    Done,
    Drop,
    Enough,
    Finish,
    Load,
    Open,
    Refused,
    Return,
    Settle,
    Share,
    clock_us,
)
from trisync.loadtest.problems import Problems
from trisync.loadtest.publishers import Publisher
from trisync.loadtest.trails import TRAIL_BYTES, TRAIL_BYTES_MIN, Trail

_orders = msgspec.json.Decoder(AnyOrder)


class Worker:
    """A share of the clients, on one loop."""

    def __init__(self, share: Share, orders: bytes = b"") -> None:
        self._share = share
        self._plan = share.plan
        self._loop = Loop()
        self._problems = Problems()
        self._gauge = Gauge(share.worker, self._problems)
        if self._plan.rate:
            self._gauge.samples_per_read = sys.maxsize
        self._around = Surroundings(self._gauge, self._connect, self._loop.after)
        self._trails: dict[int, Trail] = {}
        self._subscribers = [self._subscriber(number, channels) for number, channels in enumerate(share.subscribers)]
        popularity = self._plan.popularity
        self._publishers = [
            Publisher(
                number,
                self._around,
                share.channels,
                share.audience,
                popularity,
                self._plan.message_bytes,
                self._plan.seed,
            )
            for number in share.publishers
        ]
        self._visitors = [Visitor(f"visitor {share.worker}.{number}", self._around) for number in range(share.visitors)]
        self._to_open: deque[Speaker] = deque()
        self._opening: set[Speaker] = set()
        self._order: AnyOrder | None = None
        self._began_us = 0
        self._load_until_us = 0
        self._edges_us: tuple[int, ...] = ()
        """Of what is measured: there is a tick right behind each."""
        self._pacer: Pacer | None = None
        self._mischief: Mischief | None = None
        self._ended_us = 0
        """When all that was awaited had come, once a pong behind it is awaited from everybody."""
        self._finished = self._dismissed = False
        self._reading = self._share_of(Finish())
        self._next_tick_us = clock_us()
        self._input = orders

    def _subscriber(self, number: int, channels: list[int]) -> Subscriber:
        plan, trails = self._plan, [self._trail(index) for index in channels]
        name = f"subscriber {self._share.worker}.{number}"
        place = self._place(number)
        if plan.slowest > 1 and place:
            slower = 1 + (plan.slowest - 1) * place / plan.subscribers
            return SlowSubscriber(name, self._around, trails, plan.rate / slower)
        return Subscriber(name, self._around, trails, aside=self._is_victim(number))

    def _place(self, number: int) -> int:
        """A subscriber's among those of all workers, however they are shared out."""
        return number * self._plan.workers + self._share.worker

    def _is_victim(self, number: int) -> bool:
        return self._plan.faults > 0 and self._place(number) % VICTIM_EVERY == 0

    def _trail(self, index: int) -> Trail:
        if index not in self._trails:
            bytes_max = max(TRAIL_BYTES_MIN, TRAIL_BYTES // len(self._share.channels))
            self._trails[index] = Trail(index, self._share.channels[index], self._gauge, bytes_max)
        return self._trails[index]

    def _share_of(self, order: Finish) -> Reading:
        # Publishers first: of `slow`, the others have small buffers.
        clients = [*self._publishers, *self._subscribers] if order.well else []
        free = (client.link for client in clients if client.link is not None)
        return Reading(self._around, self._share.channels, order, self._share.worker, self._plan.workers, free)

    def _everybody(self) -> list[Speaker]:
        return [*self._subscribers, *self._publishers, *self._visitors]

    def _connect(self, client: Any, buffer_bytes: int = 0) -> Link:
        return Link(self._loop, client, self._plan.transport, self._share.host, self._share.port, buffer_bytes)

    def run(self) -> None:
        """Obey until there are no more orders to come."""
        self._loop.watch(sys.stdin.fileno(), self, select.EPOLLIN)
        self._read_orders()
        while not self._dismissed:
            self.turn()
        self._loop.close()

    def turn(self) -> None:
        """Do what there is to do, or wait for it."""
        wait_s = (self._next_tick_us - clock_us()) / 1e6
        if self._pacer is not None:
            wait_s = min(wait_s, self._pacer.wait_s())
        self._loop.turn(wait_s)
        if self._pacer is not None:
            self._pacer.send_due()
        if self._to_open:
            self._open_some()
        if self.busy and (not self._around.pending or clock_us() >= self._next_tick_us):
            self._proceed()
        if clock_us() >= self._next_tick_us:
            self._tick()

    def ready(self, events: int) -> None:
        """Read orders."""
        chunk = os.read(sys.stdin.fileno(), 1 << 20)
        if not chunk:
            if not self._finished:
                sys.exit("the command that started this worker is gone")
            self._dismissed = True
        self._input += chunk
        self._read_orders()

    def _read_orders(self) -> None:
        *lines, self._input = self._input.split(b"\n")
        for line in lines:
            self.obey(_orders.decode(line))

    def _tick(self) -> None:
        now_us = clock_us()
        edges_us = [edge_us for edge_us in self._edges_us if edge_us > now_us]
        self._next_tick_us = min([now_us + int(self._plan.tick_s * 1e6), *edges_us])
        _say(self._gauge.tick(now_us, time.process_time()))

    # Orders

    @property
    def busy(self) -> bool:
        """Whether it has an order that it has not reported as done."""
        return self._order is not None

    def obey(self, order: AnyOrder) -> None:
        """Begin to carry out an order; turns do the rest."""
        if isinstance(order, Enough):
            self._reading.interrupt()
            return
        if isinstance(order, Load):
            self._edges_us = order.measure_from_us, order.measure_until_us
        self._tick()  # so that what is measured begins with the order
        self._order = order
        self._ended_us = 0
        self._began_us = self._gauge.now_us = self._gauge.moved_us = clock_us()
        match order:
            case Open():
                self._open(self._everybody())
            case Load():
                self._load(order)
            case Settle(heads):
                self._expect(heads)
            case Drop():
                for subscriber in self._subscribers:
                    subscriber.close()
            case Return(heads):
                self._open(list(self._subscribers))
                self._expect(heads, self._began_us)
            case Finish():
                self._reading = self._share_of(order)
                for reader in self._reading.readers:  # now: the connections that they take must not end meanwhile
                    reader.open()

    def _open(self, speakers: list[Speaker]) -> None:
        self._to_open.extend(speakers)
        self._open_some()

    def _open_some(self) -> None:
        self._opening &= self._around.pending
        while self._to_open and len(self._opening) < self._share.concurrency:
            speaker = self._to_open.popleft()
            self._opening.add(speaker)
            speaker.open()

    def _load(self, order: Load) -> None:
        if self._share.measured:
            self._gauge.measure_from_us, self._gauge.measure_until_us = order.measure_from_us, order.measure_until_us
        publishers = self._publishers if self._share.measured or order.flood else []
        if not publishers and not self._plan.faults:
            return
        # So many messages take as long as they take, if only answers come.
        self._load_until_us = 0 if order.messages else self._began_us + int(order.seconds * 1e6)
        if self._plan.faults:
            self._begin_mischief()
        for publisher in publishers:
            publisher.start(0 if self._share.rate else self._plan.window, order.messages or sys.maxsize)
        if self._share.rate:
            phase = self._share.worker / self._plan.workers
            self._pacer = Pacer(publishers, self._share.rate, phase, self._gauge, self._load_until_us)

    def _begin_mischief(self) -> None:
        victims = [subscriber for number, subscriber in enumerate(self._subscribers) if self._is_victim(number)]
        rate = self._plan.faults / self._plan.workers
        chance = random.Random(self._plan.seed * 1_000_003 + self._share.worker)
        self._mischief = Mischief(self._around, victims, self._share.channels, rate, chance)

    def _expect(self, heads: list[int], returned_us: int = 0) -> None:
        by_name = dict(zip(self._share.channels, heads, strict=True))
        for subscriber in self._subscribers:
            subscriber.expect(by_name, returned_us)

    def _ping_all(self) -> None:
        for speaker in self._everybody():
            if speaker.link is not None:
                speaker.ping()

    def _proceed(self) -> None:
        """See whether the order is done, or will never be."""
        now_us = clock_us()
        if self._load_until_us and now_us >= self._load_until_us + self._extra_us():
            self._end_load()
        if self._mischief is not None:
            return  # for as long as the load lasts elsewhere, whether or not anybody publishes here
        if self._around.pending or self._to_open:
            waited_us = clock_us() - max(self._gauge.moved_us, self._load_until_us)
            if waited_us < self._plan.patience_s * 1e6:
                return
            self._around.give_up(waited_us)
            self._to_open.clear()
        elif isinstance(self._order, Settle | Return) and not self._ended_us:
            # A pong comes behind all that was sent before it: nothing uninvited is overlooked.
            self._ended_us = self._gauge.now_us
            self._ping_all()
            return
        if isinstance(self._order, Finish):
            self._finish(self._order.refused)
        self._report_done()

    def _extra_us(self) -> float:
        """How long the load goes on behind its end, for what was due and the server did not take."""
        return self._plan.patience_s * 1e6 if self._pacer is not None and self._pacer.unsent else 0.0

    def _end_load(self) -> None:
        self._load_until_us = 0
        self._gauge.moved_us = clock_us()  # silence counts from here: nobody had to say anything before
        if self._pacer is not None:
            self._gauge.totals.unsent += self._pacer.unsent
            self._pacer = None
        if self._mischief is not None:
            self._mischief.stop()
            self._mischief = None
        for publisher in self._publishers:
            publisher.stop()

    def _report_done(self) -> None:
        ended_us = self._ended_us or self._gauge.now_us
        self._order = None
        self._tick()
        acked = self._around.acked.blocks()
        seen = [tally for trail in self._trails.values() for tally in trail.contents.ledger.blocks()]
        refused = [each for publisher in self._publishers for each in publisher.refused]
        trimmed = {index: trail.trimmed for index, trail in self._trails.items() if trail.trimmed}
        read, unread, heads = self._reading.ledger.blocks(), self._reading.unread, self._reading.heads
        _say(Done(self._share.worker, self._began_us, ended_us, acked, seen, refused, trimmed, read, unread, heads))

    def _finish(self, refused: list[Refused]) -> None:
        self._finished = True
        self._reading.finish()
        for subscriber in self._subscribers:
            subscriber.finish()
        for trail in self._trails.values():
            trail.contents.finish(refused)
        for speaker in self._everybody():
            speaker.close()


def _say(report: object) -> None:
    """Write a report, whole."""
    data = memoryview(msgspec.json.encode(report) + b"\n")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def main() -> NoReturn:
    """Run the worker that standard input tells of."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    told = b""
    while b"\n" not in told:
        chunk = os.read(sys.stdin.fileno(), 1 << 16)
        if not chunk:
            sys.exit("no share to work on")
        told += chunk
    share, _, orders = told.partition(b"\n")
    Worker(msgspec.json.decode(share, type=Share), orders).run()
    sys.exit(0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
