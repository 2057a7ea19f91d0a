"""A run in words, as the terminal and the page of HTML show them both: its figures, and the numbers in them."""

from trisync.loadtest.plan import Plan
from trisync.loadtest.results import Distribution, Result, Sample

ROUNDED = 0.9995
"""From so much of a unit on, three digits show it whole."""


def count_text(value: float) -> str:
    """A count, or a rate, for people: 8.61 M, 173 k, 950, 0.5."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= ROUNDED * limit:
            return three_digits(value / limit) + unit
    return f"{value:.3g}"


def three_digits(value: float) -> str:
    """A number from 1 to 999 with three digits: 8.61, 17.3, 950."""
    return f"{value:#.3g}".rstrip(".")


def rate_text(rate: float) -> str:
    """A rate with all digits before its point, and three at least: 1,449,995 /s, 0.5 /s."""
    return f"{rate:,.0f} /s" if rate >= 100 else f"{rate:.3g} /s"


def time_text(us: float | None) -> str:
    """A time for people: 830 µs, 1.24 ms, 3.1 s."""
    if us is None:
        return "–"
    if us < ROUNDED * 1e3:
        return f"{us:.0f} µs"
    if us < ROUNDED * 1e6:
        return f"{three_digits(us / 1e3)} ms"
    return f"{us / 1e6:.2f} s"


def size_text(count: float | None) -> str:
    """A size for people, in units of 1024: 81.3 MiB."""
    if count is None:
        return "–"
    sign, count = ("-" if count < 0 else ""), abs(count)
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{sign}{count:.0f} {unit}" if unit == "B" else f"{sign}{count:.1f} {unit}"
        count /= 1024
    return f"{sign}{count:.2f} GiB"


def cores_text(cores: float | None) -> str:
    """A share of processor time: 97 %."""
    return "–" if cores is None else f"{cores * 100:.0f} %"


def times_text(times: float | None) -> str:
    """How many times something is something else: 19.3."""
    return "–" if times is None else f"{times:.1f}"


def rate_of(sample: Sample, plan: Plan) -> float:
    """The rate that a plan is about."""
    if plan.scenario == "connect":
        return sample.opened_per_s
    return sample.delivered_per_s if plan.subscribers else sample.acked_per_s


def counts_checked(result: Result) -> str:
    """How many deliveries and acknowledgements were checked, in words."""
    return (
        f"{result.throughput.delivered:,} deliveries and {result.throughput.acked:,} acknowledgements checked, "
        f"{result.log_read.read:,} messages read back from the log"
    )


def describe_plan(plan: Plan) -> str:
    """A plan in a line."""
    parts = []
    if plan.connections:
        parts.append(f"{plan.connections:,} connections, {plan.concurrency} at a time")
    if plan.publishers:
        parts.append(f"{plan.publishers} publisher{'s' * (plan.publishers > 1)}")
    if plan.subscribers:
        parts.append(f"{plan.subscribers:,} subscriber{'s' * (plan.subscribers > 1)}")
    if plan.channels > 1:
        parts.append(f"{plan.channels:,} channels" + (f", Zipf {plan.zipf:g}" if plan.zipf else ""))
    if plan.missed:
        parts.append(f"{plan.missed} messages missed")
    elif plan.scenario == "fairness":
        parts.append(f"one at {plan.rate:,.10g} messages a second, the others with {plan.window:,} in flight each")
    elif plan.rate:
        parts.append(f"{plan.rate:,.10g} messages a second")
    elif plan.publishers:
        parts.append(f"{plan.window} in flight")
    if plan.publishers:
        parts.append(f"{plan.message_bytes} B of data")
    return ", ".join(parts)


def figures(result: Result) -> list[tuple[str, str]]:
    """The rows of the table at the end, which the HTML report shows too."""
    plan, throughput, effort = result.plan, result.throughput, result.effort
    rows: list[tuple[str, str]] = []
    if result.connecting is not None:
        rows.append(("handshakes", rate_text(result.connecting.handshakes_per_s)))
        rows.append(("idle memory", f"{size_text(result.connecting.idle_bytes)} a connection"))
        rows.append(("handshake", _spread(result.latency)))
    elif result.returning is not None:
        rows.append(("all caught up", f"{time_text(result.returning.caught_up_s * 1e6)} after the first reconnect"))
        rows.append(("each caught up", _spread(result.latency)))
    elif result.fairness is not None:
        rows.append(("polite, alone", _spread(result.fairness.alone)))
        rows.append(("polite, flooded", _spread(result.fairness.flooded)))
        rows.append(("p99, flooded", f"{times_text(result.fairness.p99_times)} times as long"))
        rows.append(("acknowledged", f"{rate_text(throughput.acked_per_s)}, all together"))
    else:
        if plan.subscribers:
            received = f"{size_text(throughput.delivered_bytes_per_s)}/s"
            rows.append(("deliveries", f"{rate_text(throughput.delivered_per_s)}, {received}"))
        rows.append(("acknowledged", rate_text(throughput.acked_per_s)))
        if plan.subscribers:
            rows.append(("delivery latency", _spread(result.latency)))
        rows.append(("ack latency", _spread(result.ack_latency)))
        if result.lateness is not None:
            rows.append(("sent late by", _spread(result.lateness)))
    memory = size_text(effort.server_memory_max_bytes)
    if effort.server_growth_bytes_per_h is not None:
        share = effort.server_growth_bytes_per_h / (effort.server_memory_last_bytes or 1)
        memory += f", growing {size_text(effort.server_growth_bytes_per_h)} an hour ({share:.1%})"
    rows.append(("server", f"cpu {cores_text(effort.server_cpu)}, memory {memory}"))
    workers = ", ".join(cores_text(cores) for cores in effort.workers_cpu)
    rows.append(("generator", f"cpu {workers or '–'}; idle {cores_text(effort.machine_idle)} of a core"))
    return rows


def _spread(latency: Distribution | None) -> str:
    if latency is None:
        return "–"
    return (
        f"p50 {time_text(latency.p50_us)}, p99 {time_text(latency.p99_us)}, "
        f"p99.9 {time_text(latency.p99_9_us)}, max {time_text(latency.max_us)}"
    )
