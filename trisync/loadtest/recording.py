"""From the workers' ticks to figures: rates, histograms, the series over time, and whether the generator was the limit.

Fed by the crew and read by the live display; knows no processes and no clock of its own, so it can be tested with
ticks made by hand.
"""

from collections.abc import Callable
from typing import Any

from trisync.loadtest.measuring import Sketch
from trisync.loadtest.plan import Tick, Totals
from trisync.loadtest.problems import Problems
from trisync.loadtest.results import LATENCY_US_MAX, Effort, Sample, Throughput, new_histogram
from trisync.loadtest.target import Usage

SAMPLES_MAX = 1200
"""Points of the series, and no more however long a soak is."""

BUSY_CPU = 0.9
"""A worker that uses more of a core than this is at its end: the rest goes to the kernel and to neighbours."""


def record(histogram: Any, sketch: Sketch) -> None:
    """Add a sketch to a histogram."""
    for value, count in sketch.items():
        histogram.record_value(min(max(value, 1), LATENCY_US_MAX), count)


def percentile_us(sketch: Sketch, percentile: float) -> int | None:
    """A percentile of a sketch, in µs; None of an empty one."""
    wanted = sum(sketch.values()) * percentile / 100
    seen = 0
    for value in sorted(sketch):
        seen += sketch[value]
        if seen >= wanted:
            return value
    return None


class Recorder:
    """Everything that is known of a run so far. begin() and end() enclose its measured part."""

    def __init__(self, sample_s: float, look: Callable[[], tuple[Usage | None, float]]) -> None:
        self.problems = Problems()
        self.latencies = new_histogram()
        self.ack_latencies = new_histogram()
        self.lateness = new_histogram()
        self.series: list[Sample] = []
        self.phase = ""
        self._sample_us = sample_s * 1e6
        self._look = look
        self._newest: dict[int, Tick] = {}
        self._first: dict[int, Tick] = {}
        self._last: dict[int, Tick] = {}
        self._from_us: int | None = None
        self._until_us: int | None = None
        self._interval: Sketch = {}
        self._sampled: dict[int, Tick] = {}
        self._sampled_us = 0
        self._usage: Usage | None = None
        self._usages: list[tuple[int, Usage | None, float]] = []
        self._memories: list[tuple[float, int]] = []

    @property
    def totals(self) -> Totals:
        """What all workers have counted."""
        return _sum([tick.totals for tick in self._newest.values()])

    def measure(self, from_us: int, until_us: int | None = None) -> None:
        """Rates and the series are of this time; until further notice where there is no end."""
        self._from_us, self._until_us = from_us, until_us
        self._sampled = dict(self._newest)
        self._sampled_us = max((tick.at_us for tick in self._newest.values()), default=from_us)
        self._interval = {}
        self._first = dict(self._newest)
        self._usages.clear()
        self._memories.clear()
        self._note_memory(from_us, self._look()[0])

    def _note_memory(self, at_us: int, used: Usage | None) -> None:
        if used is not None:
            self._memories.append((at_us / 1e6, used.memory_bytes))

    def stop_measuring(self) -> None:
        """What comes from now on is not measured."""
        self._until_us = max((tick.at_us for tick in self._newest.values()), default=0)
        self._note_memory(self._until_us, self._look()[0])

    def add(self, tick: Tick) -> None:
        """Take a worker's tick."""
        self._newest[tick.worker] = tick
        self.problems.merge(tick.problems)
        record(self.latencies, tick.latencies)
        record(self.ack_latencies, tick.ack_latencies)
        record(self.lateness, tick.lateness)
        if self._from_us is None:
            return
        if tick.at_us <= self._from_us:
            self._first[tick.worker] = self._sampled[tick.worker] = tick
            self._sampled_us = tick.at_us
            return
        if self._until_us is None or tick.at_us <= self._until_us:
            self._first.setdefault(tick.worker, tick)
            self._last[tick.worker] = tick
            for value, count in (tick.latencies or tick.ack_latencies).items():
                self._interval[value] = self._interval.get(value, 0) + count
            self._sample(tick.at_us)

    def _sample(self, now_us: int) -> None:
        if not self._usages:
            self._usages.append((now_us, *self._look()))
        elapsed_s = (now_us - self._sampled_us) / 1e6
        if now_us - self._sampled_us < self._sample_us or len(self._last) < len(self._newest):
            return
        assert self._from_us is not None
        before, after = _sum([tick.totals for tick in self._sampled.values()]), self.totals
        used, idle_s = self._look()
        self._usages[1:] = [(now_us, used, idle_s)]
        server_cpu = None
        if used is not None and self._usage is not None:
            server_cpu = (used.cpu_s - self._usage.cpu_s) / elapsed_s
        self._note_memory(now_us, used)
        self.series.append(
            Sample(
                at_s=round((now_us - self._from_us) / 1e6, 3),
                opened_per_s=(after.opened - before.opened) / elapsed_s,
                acked_per_s=(after.acked - before.acked) / elapsed_s,
                delivered_per_s=(after.delivered - before.delivered) / elapsed_s,
                backlog=max(0, after.due - after.delivered),
                in_flight=after.sent - after.acked,
                p50_us=percentile_us(self._interval, 50),
                p99_us=percentile_us(self._interval, 99),
                max_us=max(self._interval, default=None),
                server_cpu=server_cpu,
                server_memory_bytes=None if used is None else used.memory_bytes,
                generator_cpu=max(
                    (_cpu(self._sampled.get(number), tick) for number, tick in self._newest.items()), default=0.0
                ),
            )
        )
        self._usage = used
        self._sampled, self._sampled_us, self._interval = dict(self._newest), now_us, {}

    def throughput(self) -> Throughput:
        """Rates of the measured part. Each worker's are taken between its own ticks, then added up."""

        def rate(name: str) -> float:
            total = 0.0
            for number, last in self._last.items():
                first = self._first[number]
                if last.at_us > first.at_us:
                    count = getattr(last.totals, name) - getattr(first.totals, name)
                    total += count * 1e6 / (last.at_us - first.at_us)
            return round(total, 1)

        totals = self.totals
        spans = [last.at_us - self._first[number].at_us for number, last in self._last.items()]
        return Throughput(
            measured_s=round(max(spans, default=0) / 1e6, 3),
            acked_per_s=rate("acked"),
            delivered_per_s=rate("delivered"),
            delivered_bytes_per_s=rate("delivered_bytes"),
            sent=totals.sent,
            acked=totals.acked,
            delivered=totals.delivered,
        )

    def effort(self, *, paced: bool, with_growth: bool) -> Effort:
        """Who worked how hard, and whether the pace was the generator's."""
        workers = [round(_cpu(self._first[number], last), 3) for number, last in sorted(self._last.items())]
        server_cpu, idle = None, None
        if len(self._usages) == 2 and self._usages[1][0] > self._usages[0][0]:
            (first_us, first, first_idle_s), (last_us, last, last_idle_s) = self._usages
            idle = round(max(0.0, (last_idle_s - first_idle_s) * 1e6 / (last_us - first_us)), 3)
            if first is not None and last is not None:
                server_cpu = round((last.cpu_s - first.cpu_s) * 1e6 / (last_us - first_us), 3)
        memories = [bytes_ for _, bytes_ in self._memories]
        busiest = max(workers, default=0.0)
        limited = busiest > BUSY_CPU and (server_cpu is None or server_cpu < BUSY_CPU)
        if paced and self.lateness.get_total_count():
            limited = limited or self.lateness.get_value_at_percentile(99) > self.latencies_p99() / 2
        return Effort(
            workers_cpu=workers,
            server_cpu=server_cpu,
            machine_idle=idle,
            server_memory_first_bytes=memories[0] if memories else None,
            server_memory_last_bytes=memories[-1] if memories else None,
            server_memory_max_bytes=max(memories, default=None),
            server_growth_bytes_per_h=slope_per_h(self._memories[len(memories) // 2 :]) if with_growth else None,
            generator_limited=limited,
        )

    def latencies_p99(self) -> int:
        """The 99th percentile of what this run calls latency, in µs."""
        histogram = self.latencies if self.latencies.get_total_count() else self.ack_latencies
        return int(histogram.get_value_at_percentile(99))


def slope_per_h(points: list[tuple[float, int]]) -> float | None:
    """The slope of a least-squares line through (seconds, bytes), in bytes an hour."""
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return round(3600 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 1)


def _cpu(first: Tick | None, last: Tick) -> float:
    if first is None or last.at_us <= first.at_us:
        return 0.0
    return (last.cpu_s - first.cpu_s) * 1e6 / (last.at_us - first.at_us)


def _sum(totals: list[Totals]) -> Totals:
    return Totals(*(sum(getattr(one, name) for one in totals) for name in Totals.__struct_fields__))
