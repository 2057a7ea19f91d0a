"""What a run found: the figures, the verdict and how to read them. `--json` writes exactly this."""

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from msgspec import Meta, Struct

from trisync.loadtest.plan import Plan
from trisync.loadtest.problems import Problem

LATENCY_US_MAX = 3600 * 1_000_000
DIGITS = 3
"""Range and precision of all histograms."""

PERCENTILES = {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p99_9_us": 99.9, "p99_99_us": 99.99}
"""By their names in a Distribution."""


class _Histogram(HdrHistogram):  # type: ignore[misc]
    """A histogram of microseconds, empty at first."""

    def __init__(self) -> None:
        super().__init__(1, LATENCY_US_MAX, DIGITS)

    def get_target_count_at_percentile(self, percentile: float) -> int:
        """How many values a percentile must cover: no fewer than it says. HdrHistogram in Python takes the nearest."""
        count: int = self.get_total_count()
        return max(1, math.ceil(round(percentile * count / 100, 6)))


class Point(Struct, frozen=True):
    """A point of a latency distribution."""

    percentile: Annotated[float, Meta(description="0 to 100")]
    us: Annotated[int, Meta(description="This many percent were not slower, in µs")]


class Distribution(Struct, frozen=True, kw_only=True):
    """A latency's distribution."""

    count: Annotated[int, Meta(description="How many were measured")]
    mean_us: Annotated[float, Meta(description="Mean, in µs")]
    min_us: Annotated[int, Meta(description="The fastest, in µs")]
    p50_us: Annotated[int, Meta(description="Median, in µs")]
    p90_us: Annotated[int, Meta(description="90th percentile, in µs")]
    p99_us: Annotated[int, Meta(description="99th percentile, in µs")]
    p99_9_us: Annotated[int, Meta(description="99.9th percentile, in µs")]
    p99_99_us: Annotated[int, Meta(description="99.99th percentile, in µs")]
    max_us: Annotated[int, Meta(description="The slowest, in µs")]
    curve: Annotated[list[Point], Meta(description="The whole distribution, denser towards 100 %")]
    hdr: Annotated[str, Meta(description="The histogram itself, in HdrHistogram's V2 compressed encoding, base64")]


def distribution(latencies: Mapping[int, int]) -> Distribution | None:
    """The figures of latencies, in µs with how often each was seen; None where there are none."""
    if not latencies:
        return None
    histogram = _Histogram()
    for value, count in latencies.items():
        histogram.record_value(min(max(value, 1), LATENCY_US_MAX), count)
    values = histogram.get_percentile_to_value_dict([*PERCENTILES.values()])
    curve = [
        Point(item.percentile_level_iterated_to, int(item.value_iterated_to))
        for item in histogram.get_percentile_iterator(5)
    ]
    return Distribution(
        count=histogram.get_total_count(),
        mean_us=round(histogram.get_mean_value(), 1),
        min_us=int(histogram.get_min_value()),
        **{name: int(values[percentile]) for name, percentile in PERCENTILES.items()},
        max_us=int(histogram.get_max_value()),
        curve=curve,
        hdr=histogram.encode().decode(),
    )


class Sample(Struct, frozen=True, kw_only=True):
    """A short stretch of the run."""

    at_s: Annotated[float, Meta(description="Its end, in seconds since the measured part began")]
    opened_per_s: Annotated[float, Meta(description="Connections opened a second")]
    acked_per_s: Annotated[float, Meta(description="Publishes acknowledged a second")]
    delivered_per_s: Annotated[float, Meta(description="Messages delivered a second, to all subscribers together")]
    backlog: Annotated[int, Meta(description="Deliveries still due for publishes that were acknowledged")]
    in_flight: Annotated[int, Meta(description="Publishes sent and not yet answered")]
    p50_us: Annotated[int | None, Meta(description="Median latency within it, in µs")]
    p99_us: Annotated[int | None, Meta(description="99th percentile within it, in µs")]
    max_us: Annotated[int | None, Meta(description="The slowest within it, in µs")]
    server_cpu: Annotated[float | None, Meta(description="The server's processor time, in cores")]
    server_memory_bytes: Annotated[int | None, Meta(description="The server's resident memory")]
    generator_cpu: Annotated[float, Meta(description="The busiest worker's processor time, in cores")]


class Throughput(Struct, frozen=True, kw_only=True):
    """Rates over the measured part, and totals of the whole run."""

    measured_s: Annotated[float, Meta(description="Length of the measured part, in seconds")]
    acked_per_s: Annotated[float, Meta(description="Publishes acknowledged a second")]
    delivered_per_s: Annotated[float, Meta(description="Messages delivered a second, to all subscribers together")]
    delivered_bytes_per_s: Annotated[float, Meta(description="Bytes received a second, framing included")]
    sent: Annotated[int, Meta(description="Publishes sent in all")]
    acked: Annotated[int, Meta(description="Publishes acknowledged in all")]
    delivered: Annotated[int, Meta(description="Messages delivered, and checked, in all")]


class Connecting(Struct, frozen=True, kw_only=True):
    """What connections cost."""

    connections: Annotated[int, Meta(description="Connections that were opened")]
    handshakes_per_s: Annotated[float, Meta(description="Handshakes a second, from the first to the last")]
    idle_bytes: Annotated[float | None, Meta(description="The server's memory for each idle connection, in bytes")]


class Returning(Struct, frozen=True, kw_only=True):
    """How a crowd came back."""

    subscribers: Annotated[int, Meta(description="Subscribers that dropped and returned at once")]
    missed: Annotated[int, Meta(description="Messages that each of them had missed, of each channel it follows")]
    caught_up_s: Annotated[float, Meta(description="From the first reconnect until the last had everything, in s")]


class Fairness(Struct, frozen=True, kw_only=True):
    """What a flood does to a client that publishes once in a while."""

    alone: Annotated[Distribution | None, Meta(description="From its publishes to their acknowledgements, alone")]
    flooded: Annotated[Distribution | None, Meta(description="The same while others flood")]
    p99_times: Annotated[float | None, Meta(description="How many times longer the 99th percentile is then")]


class LogRead(Struct, frozen=True, kw_only=True):
    """How many of the acknowledged messages were read from the log at the end, and why others were not."""

    read: Annotated[int, Meta(description="Read and compared")] = 0
    late: Annotated[int, Meta(description="Left out, as reading all would have taken too long")] = 0
    interrupted: Annotated[int, Meta(description="Left out, as a signal ended the reading")] = 0
    trimmed: Annotated[int, Meta(description="Trimmed by the server's retention, or among others that were")] = 0
    replaced: Annotated[int, Meta(description="Of another log than the one at the end, by its epoch")] = 0


class Effort(Struct, frozen=True, kw_only=True):
    """Who worked how hard in the measured part."""

    workers_cpu: Annotated[list[float], Meta(description="Each worker's processor time, in cores")]
    server_cpu: Annotated[float | None, Meta(description="The server's processor time, in cores")]
    machine_idle: Annotated[float | None, Meta(description="Processor time that nobody used, in cores, if known")]
    server_memory_first_bytes: Annotated[int | None, Meta(description="The server's memory at the beginning")]
    server_memory_last_bytes: Annotated[int | None, Meta(description="The server's memory at the end")]
    server_memory_max_bytes: Annotated[int | None, Meta(description="The server's largest memory in the whole run")]
    server_growth_bytes_per_h: Annotated[
        float | None, Meta(description="Slope of its memory over the later half, in a soak of 10 minutes or more")
    ]
    generator_limited: Annotated[bool, Meta(description="Whether the generator, not the server, set the pace")]


class Result(Struct, frozen=True, kw_only=True):
    """A run."""

    tool: Annotated[str, Meta(description="Name and version of this program")]
    started: Annotated[str, Meta(description="When it began, ISO 8601, UTC")]
    machine: Annotated[str, Meta(description="Processor, cores and kernel of the generator's machine")]
    command: Annotated[str, Meta(description="The command that was given")]
    plan: Annotated[Plan, Meta(description="What the run was told, with all defaults")]
    durability: Annotated[str | None, Meta(description="The server's durability, where this run started it")]
    passed: Annotated[bool, Meta(description="Whether everything that was promised was kept")]
    problems: Annotated[list[Problem], Meta(description="What broke: kind, count, examples")]
    remarks: Annotated[list[str], Meta(description="What to keep in mind when reading the figures")]
    throughput: Annotated[Throughput, Meta(description="Rates and totals")]
    latency: Annotated[
        Distribution | None,
        Meta(description="From publish, or due time, to delivery; of handshakes in connect, of returns in resume"),
    ]
    ack_latency: Annotated[Distribution | None, Meta(description="From publish, or due time, to acknowledgement")]
    lateness: Annotated[Distribution | None, Meta(description="How late the generator itself sent, in open loops")]
    connecting: Annotated[Connecting | None, Meta(description="In connect only")]
    returning: Annotated[Returning | None, Meta(description="In resume only")]
    fairness: Annotated[Fairness | None, Meta(description="In fairness only")]
    log_read: Annotated[LogRead, Meta(description="What was read back of what was acknowledged")]
    effort: Annotated[Effort, Meta(description="Processor and memory")]
    series: Annotated[list[Sample], Meta(description="The run over time")]


def to_json(document: Struct) -> bytes:
    """A result as a JSON document, indented."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
