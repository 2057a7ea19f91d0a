"""From the workers' ticks to figures: rates, latencies, the series over time, and whether the generator was the limit.

Fed by the crew and read by the live display; knows no processes and no clock of its own, so it can be tested with
ticks made by hand.
"""

import statistics
import sys
from collections.abc import Callable

from trisync.loadtest.machine import Look, Usage
from trisync.loadtest.measuring import Sketch, merge
from trisync.loadtest.plan import Tick, Totals
from trisync.loadtest.problems import Problems
from trisync.loadtest.results import Effort, Sample, Throughput

SAMPLES_MAX = 1200
"""Points of the series, and no more however long a soak is."""

BUSY_CPU = 0.9
"""A worker that uses more of a core than this is at its end: the rest goes to the kernel and to neighbours."""


def percentile_us(sketch: Sketch, percentile: float) -> int | None:
    """A percentile of a sketch, in µs; None of an empty one."""
    wanted = sum(sketch.values()) * percentile / 100
    seen = 0
    for value in sorted(sketch):
        seen += sketch[value]
        if seen >= wanted:
            return value
    return None


class Part:
    """A measured part of a run: each worker's ticks at its two ends, looks at the server, and its course.

    Workers tick as soon as it begins and ends (see Load). So it is from a worker's first tick in it to the first one
    that is not.
    """

    def __init__(self, from_us: int, until_us: int | None) -> None:
        self.until_us = until_us
        """None is until further notice."""
        self.first: dict[int, Tick] = {}
        self.last: dict[int, Tick] = {}
        self.looks: list[Look] = []
        """The first one, and the newest."""
        self.memories: list[tuple[float, int]] = []
        """The server's, by the time in seconds."""
        self.series: list[Sample] = []
        self._from_us = from_us
        self._interval: Sketch = {}
        self._sampled: dict[int, Tick] = {}
        """Each worker's tick at the newest point of the series."""

    def add(self, tick: Tick, latencies: Sketch) -> bool:
        """Take a worker's tick, and what it says of latency. One of another time is not taken; returns False then."""
        before = self.last.get(tick.worker)
        is_over = before is not None and self.until_us is not None and before.at_us >= self.until_us
        if tick.at_us < self._from_us or is_over:
            return False
        self.first.setdefault(tick.worker, tick)
        self._sampled.setdefault(tick.worker, tick)
        self.last[tick.worker] = tick
        merge(self._interval, latencies)
        return True

    def is_sample_due(self, sample_us: float) -> bool:
        """Whether every worker has ticked so long behind the one before; half as long at the end of the part."""
        ended = self.until_us is not None and all(tick.at_us >= self.until_us for tick in self.last.values())
        least_us = sample_us / 2 if ended else sample_us
        return all(tick.at_us - self._sampled[number].at_us >= least_us for number, tick in self.last.items())

    def note(self, look: Look) -> None:
        """Note a look at the server."""
        self.looks[1:] = [look]
        self.note_memory(look.at_us, look.used)

    def note_memory(self, at_us: int, used: Usage | None) -> None:
        """Note the server's memory."""
        if used is not None:
            self.memories.append((at_us / 1e6, used.memory_bytes))

    def sample(self, look: Look) -> None:
        """Make a point of the series."""
        totals = _sum(self.last)
        self.series.append(
            Sample(
                at_s=round((look.at_us - self._from_us) / 1e6, 3),
                opened_per_s=_rate(self._sampled, self.last, "opened"),
                acked_per_s=_rate(self._sampled, self.last, "acked"),
                delivered_per_s=_rate(self._sampled, self.last, "delivered"),
                backlog=max(0, totals.due - totals.delivered - totals.trimmed),
                in_flight=totals.sent - totals.acked,
                p50_us=percentile_us(self._interval, 50),
                p99_us=percentile_us(self._interval, 99),
                max_us=max(self._interval, default=None),
                server_cpu=self.looks[-1].server_cpu(look),
                server_memory_bytes=None if look.used is None else look.used.memory_bytes,
                generator_cpu=max(_cpu(self._sampled[number], tick) for number, tick in self.last.items()),
            )
        )
        self.note(look)
        self._sampled, self._interval = dict(self.last), {}

    def rate(self, name: str) -> float:
        """One of the Totals, a second."""
        return _rate(self.first, self.last, name)

    def length_s(self) -> float:
        """How long it was, by the worker that saw most of it."""
        spans = [last.at_us - self.first[number].at_us for number, last in self.last.items()]
        return round(max(spans, default=0) / 1e6, 3)

    def workers_cpu(self) -> list[float]:
        """Each worker's processor time, in cores."""
        return [round(_cpu(self.first[number], last), 3) for number, last in sorted(self.last.items())]


class Recorder:
    """Everything that is known of a run so far; measure() begins its measured part."""

    def __init__(
        self, sample_s: float, look: Callable[[], tuple[Usage | None, float]], *, of_acks: bool = False
    ) -> None:
        self.problems = Problems()
        self.phase = ""
        self._sample_us = sample_s * 1e6
        self._look = look
        self._of_acks = of_acks
        """Whether the latency over time is that of acknowledgements."""
        self._newest: dict[int, Tick] = {}
        self._before = look()[0]
        self._after: Usage | None = None
        self.measure(sys.maxsize)  # nothing yet

    @property
    def totals(self) -> Totals:
        """What all workers have counted."""
        return _sum(self._newest)

    @property
    def series(self) -> list[Sample]:
        """The measured part over time."""
        return self._part.series

    def measure(self, from_us: int, until_us: int | None = None) -> None:
        """Rates, latencies and the series are of this time, and of none before; or until further notice."""
        self._part = Part(from_us, until_us)
        self._part.note_memory(from_us, self._look()[0])
        self.latencies: Sketch = {}
        self.ack_latencies: Sketch = {}
        self.lateness: Sketch = {}

    def stop_measuring(self) -> None:
        """What comes from now on is not measured."""
        self._part.until_us = max((tick.at_us for tick in self._newest.values()), default=0)
        self._part.note_memory(self._part.until_us, self._look()[0])

    def look_back(self) -> None:
        """See what the server's memory came to, when the load is over: much of it may be behind the measured part."""
        self._after = self._look()[0]

    def _memory_max_bytes(self) -> int | None:
        seen = [bytes_ for _, bytes_ in self._part.memories]
        if self._before is not None and self._after is not None and self._after.peak_bytes > self._before.peak_bytes:
            seen.append(self._after.peak_bytes)  # else its peak was before this run
        return max(seen, default=None)

    def add(self, tick: Tick) -> None:
        """Take a worker's tick."""
        self._newest[tick.worker] = tick
        self.problems.merge(tick.problems)
        merge(self.latencies, tick.latencies)
        merge(self.ack_latencies, tick.ack_latencies)
        merge(self.lateness, tick.lateness)
        part = self._part
        latencies = tick.ack_latencies if self._of_acks else tick.latencies
        if part.add(tick, latencies) and len(part.last) == len(self._newest):
            if not part.looks:
                part.note(Look(tick.at_us, *self._look()))
            elif part.is_sample_due(self._sample_us):
                part.sample(Look(tick.at_us, *self._look()))

    def throughput(self) -> Throughput:
        """Rates of the measured part."""
        part, totals = self._part, self.totals
        return Throughput(
            measured_s=part.length_s(),
            acked_per_s=part.rate("acked"),
            delivered_per_s=part.rate("delivered"),
            delivered_bytes_per_s=part.rate("delivered_bytes"),
            sent=totals.sent,
            acked=totals.acked,
            delivered=totals.delivered,
        )

    def effort(self, *, paced: bool, with_growth: bool) -> Effort:
        """Who worked how hard, and whether the pace was the generator's."""
        part = self._part
        workers = part.workers_cpu()
        server_cpu, idle = None, None
        if part.looks:
            server_cpu = part.looks[0].server_cpu(part.looks[-1])
            idle = part.looks[0].machine_idle(part.looks[-1])
        memories = [bytes_ for _, bytes_ in part.memories]
        busiest = max(workers, default=0.0)
        limited = busiest > BUSY_CPU and (server_cpu is None or server_cpu < BUSY_CPU)
        late_us = percentile_us(self.lateness, 99)
        if paced and late_us is not None:
            limited = limited or late_us > (percentile_us(self.latencies or self.ack_latencies, 99) or 0) / 2
        return Effort(
            workers_cpu=workers,
            server_cpu=server_cpu,
            machine_idle=idle,
            server_memory_first_bytes=memories[0] if memories else None,
            server_memory_last_bytes=memories[-1] if memories else None,
            server_memory_max_bytes=self._memory_max_bytes(),
            server_growth_bytes_per_h=slope_per_h(part.memories[len(memories) // 2 :]) if with_growth else None,
            generator_limited=limited,
        )


def slope_per_h(points: list[tuple[float, int]]) -> float | None:
    """The slope of a least-squares line through (seconds, bytes), in bytes an hour."""
    if len(points) < 3:
        return None
    return round(3600 * statistics.linear_regression(*zip(*points, strict=True)).slope, 1)


def _cpu(first: Tick, last: Tick) -> float:
    if last.at_us <= first.at_us:
        return 0.0
    return (last.cpu_s - first.cpu_s) * 1e6 / (last.at_us - first.at_us)


def _rate(before: dict[int, Tick], after: dict[int, Tick], name: str) -> float:
    """One of the Totals, a second. Each worker's is taken between its own ticks, then added up."""
    total = 0.0
    for number, last in after.items():
        first = before[number]
        if last.at_us > first.at_us:
            count = getattr(last.totals, name) - getattr(first.totals, name)
            total += count * 1e6 / (last.at_us - first.at_us)
    return round(total, 1)


def _sum(ticks: dict[int, Tick]) -> Totals:
    return Totals(*(sum(getattr(tick.totals, name) for tick in ticks.values()) for name in Totals.__struct_fields__))
