"""Counting: totals, and latencies as cheap sketches, which become HDR histograms when the load is over."""

from collections.abc import Sequence

from trisync.loadtest.plan import Tick, Totals
from trisync.loadtest.problems import Problems

PRECISION_BITS = 11
"""Bits of a latency that are kept: 1 in 2048, finer than the three digits of the histograms behind it."""

SAMPLES_PER_READ = 6
"""Latencies taken between the oldest and the newest message of one read, evenly spread, each standing for its
neighbours; of up to so many, every single one is measured. Messages of a window were sent, and are due, in batches: a
read has few different times. In an open loop each has its own, and all are measured."""

Sketch = dict[int, int]
"""Values to how often they were seen; a dict update is a tenth of the cost of a histogram's. A histogram where ticks
come together took 3 to 10 ms four times a second, of a core that the server needs: it was in the p99 of latency."""


def note(sketch: Sketch, value_us: int, count: int = 1) -> None:
    """Count a value, cut to PRECISION_BITS."""
    surplus = value_us.bit_length() - PRECISION_BITS
    if surplus > 0:
        value_us = value_us >> surplus << surplus
    sketch[value_us] = sketch.get(value_us, 0) + count


def merge(into: Sketch, sketch: Sketch) -> None:
    """Count in one sketch what another has seen."""
    for value, count in sketch.items():
        into[value] = into.get(value, 0) + count


class Gauge:
    """What one worker counts. `now_us` is set by whoever handles an event, once for all that it brought."""

    def __init__(self, worker: int, problems: Problems) -> None:
        self.problems = problems
        self.totals = Totals()
        self.now_us = 0
        self.moved_us = 0
        """When something last happened that brings a run forward."""
        self.measure_from_us = self.measure_until_us = 0
        self.samples_per_read = SAMPLES_PER_READ
        self._worker = worker
        self._latencies: Sketch = {}
        self._acks: Sketch = {}
        self._lateness: Sketch = {}

    def delivered(self, dues_us: Sequence[int], first: int, last: int) -> None:
        """Messages `first` to before `last` of a trail whose due times are given have reached a subscriber now."""
        count = last - first
        if count == 1:
            self.delivered_one(dues_us[first])
            return
        self.totals.delivered += count
        self.moved_us = self.now_us
        between = count - 2
        samples = min(between, self.samples_per_read)
        begin, due_us, alike = 0, dues_us[first], 1  # many are due at one time, and noted together
        for sample in range(1, samples + 1):
            end = between * sample // samples
            other_us = dues_us[first + 1 + (begin + end) // 2]
            if other_us != due_us:
                self._note_due(due_us, alike)
                due_us, alike = other_us, 0
            alike += end - begin
            begin = end
        if dues_us[last - 1] != due_us:
            self._note_due(due_us, alike)
            due_us, alike = dues_us[last - 1], 0
        self._note_due(due_us, alike + 1)

    def _note_due(self, due_us: int, count: int) -> None:
        if self.measure_from_us <= due_us < self.measure_until_us:
            note(self._latencies, max(0, self.now_us - due_us), count)

    def delivered_one(self, due_us: int) -> None:
        """One message that was due at `due_us` has reached a subscriber now."""
        self.totals.delivered += 1
        self.moved_us = self.now_us
        self._note_due(due_us, 1)

    def took(self, since_us: int) -> None:
        """Something that began at `since_us` is done now; for scenarios whose latency is not of messages."""
        self.moved_us = self.now_us
        note(self._latencies, self.now_us - since_us)

    def acked(self, due_us: int, audience: int, count: int) -> None:
        """So many publishes due at one time were acknowledged now, and so many subscribers shall get them."""
        self.totals.acked += count
        self.totals.due += audience * count
        self.moved_us = self.now_us
        if self.measure_from_us <= due_us < self.measure_until_us:
            note(self._acks, max(0, self.now_us - due_us), count)

    def sent_late(self, due_us: int, late_us: int) -> None:
        """A paced message was sent, and the generator was late with it by so much."""
        if self.measure_from_us <= due_us < self.measure_until_us:
            note(self._lateness, late_us)

    def tick(self, at_us: int, cpu_s: float) -> Tick:
        """What has happened since the last tick."""
        sketches = self._latencies, self._acks, self._lateness
        self._latencies, self._acks, self._lateness = {}, {}, {}
        return Tick(self._worker, at_us, cpu_s, self.totals, *sketches, self.problems.take())


class Aside:
    """A gauge's side for clients who are slow on purpose: what they get counts, and how long it took does not."""

    def __init__(self, gauge: Gauge) -> None:
        self.problems = gauge.problems
        self._gauge = gauge

    def delivered(self, dues_us: Sequence[int], first: int, last: int) -> None:
        """Messages `first` to before `last` have reached a subscriber now."""
        self._gauge.totals.delivered += last - first
        self._gauge.moved_us = self._gauge.now_us

    def delivered_one(self, due_us: int) -> None:
        """One message has reached a subscriber now."""
        self.delivered((), 0, 1)
