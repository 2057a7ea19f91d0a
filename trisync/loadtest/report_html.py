"""A run as one page of HTML that needs nothing else: figures, plots, verdict; light and dark, screen and paper."""

from collections.abc import Callable
from html import escape

from msgspec import to_builtins

from trisync.loadtest.plots import Line, Points, linear_axis, log_axis, percentile_axis, plot
from trisync.loadtest.problems import describe
from trisync.loadtest.report_words import (
    cores_text,
    count_text,
    counts_checked,
    describe_plan,
    figures,
    rate_of,
    size_text,
    time_text,
    times_text,
)
from trisync.loadtest.results import PERCENTILES, Distribution, Result, Sample
from trisync.loadtest.scenarios import SCENARIOS

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #16181d; --soft: #5d6470; --line: #e3e3de;
  --s1: #2a6fd1; --s2: #c2410c; --s3: #8a8f99; --good: #15803d; --bad: #c81e1e; --warn: #a16207; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --card: #1b1e23; --ink: #eceef1; --soft: #9aa2af;
  --line: #2d323a; --s1: #6aa5f8; --s2: #f08c55; --s3: #7d8592; --good: #4ade80; --bad: #f87171; --warn: #facc15; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }
header { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 36px 0 12px; }
.verdict { font-weight: 650; font-size: 13px; letter-spacing: .04em; padding: 2px 10px; border-radius: 99px;
  border: 1.5px solid currentColor; }
.good { color: var(--good); } .bad { color: var(--bad); }
.plan { margin: 6px 0 0; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 26px 0 14px; }
.tile, figure, .note { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 27px; line-height: 1.25; font-weight: 620; letter-spacing: -.01em; }
.tile span { color: var(--soft); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 18px 8px; break-inside: avoid; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
.top { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 18px; }
.legend { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px;
  color: var(--soft); }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle;
  background: var(--c); }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); } .grid, .axis { fill: none; }
.line { stroke: var(--c); stroke-width: 2; fill: none; stroke-linejoin: round; stroke-linecap: round; }
circle.line { fill: var(--c); }
.area { fill: var(--c); opacity: .13; }
.tick, .name { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.note { padding: 12px 18px; margin: 14px 0; border-left: 4px solid var(--warn); }
.note.broken { border-left-color: var(--bad); }
.note p { margin: 0; } .note ul { margin: 4px 0 0; padding-left: 20px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 450; color: var(--soft); white-space: nowrap; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
.wide { overflow-x: auto; }
.spread th { font-size: 13px; } .spread td, .spread th:not(:first-child) { text-align: right; white-space: nowrap; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 4px 44px;
  align-items: start; }
footer { margin-top: 36px; font-size: 13px; }
@media (max-width: 600px) { main { padding: 24px 12px 40px; } figure { padding: 12px 8px 6px; }
  figcaption { padding-left: 6px; } .tick, .name { font-size: 13px; } }
@media print { body { background: #fff; } main { padding: 0; } }
"""

_TIMES = {
    "min": "min_us",
    "mean": "mean_us",
    **{f"{percentile:g} %": name for name, percentile in PERCENTILES.items()},
    "max": "max_us",
}
"""Columns of the table of latencies, behind their count."""


def to_html(result: Result) -> str:
    """The report of a run."""
    plan = result.plan
    title = f"{plan.scenario} over {plan.transport}"
    verdict = '<span class="verdict good">PASSED</span>' if result.passed else '<span class="verdict bad">FAILED</span>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: load test</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1>{verdict}</header>"
        f'<p class="plan">{escape(SCENARIOS[plan.scenario].summary)} '
        f'<span class="soft">{escape(_sentence(describe_plan(plan)))}</span></p>'
        f"{_problems(result)}{_remarks(result)}{_tiles(result)}"
        f'<div class="plots">{"".join(_plots(result))}</div>'
        f"{_latencies(result)}<h2>All figures</h2>{_table(figures(result))}"
        f"<h2>How it was made</h2>{_made(result)}"
        f'<footer class="soft">{escape(result.tool)}. {_checked(result)}</footer></main></body></html>\n'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _checked(result: Result) -> str:
    if not result.throughput.acked:
        return ""
    return (
        f"{counts_checked(result)}: offsets dense, in order, none twice, the same for all; every acknowledged publish "
        "delivered, and in the log."
    )


def _problems(result: Result) -> str:
    parts = []
    for problem in result.problems:
        examples = "".join(f"<li>{escape(example)}</li>" for example in problem.examples)
        parts.append(f'<div class="note broken"><p><b>{escape(describe(problem))}</b></p><ul>{examples}</ul></div>')
    return "".join(parts)


def _remarks(result: Result) -> str:
    return "".join(f'<div class="note"><p>{escape(remark)}</p></div>' for remark in result.remarks)


def _tiles(result: Result) -> str:
    throughput = result.throughput
    latency = result.ack_latency if result.plan.of_acks else result.latency
    tiles: list[tuple[str, str]] = []
    if result.connecting is not None:
        tiles.append((f"{result.connecting.handshakes_per_s:,.0f}", "handshakes a second"))
        tiles.append((size_text(result.connecting.idle_bytes), "of memory for an idle connection"))
    elif result.returning is not None:
        tiles.append((time_text(result.returning.caught_up_s * 1e6), "until all were caught up"))
        tiles.append((count_text(result.returning.subscribers), "subscribers returned"))
    elif result.fairness is not None:
        tiles.append((times_text(result.fairness.p99_times), "times as long in the flood, 99 %"))
    else:
        if result.plan.subscribers:
            tiles.append((count_text(throughput.delivered_per_s), "deliveries a second"))
        tiles.append((count_text(throughput.acked_per_s), "acknowledged publishes a second"))
    if latency is not None:
        tiles.append((time_text(latency.p50_us), f"{_latency_name(result)}, median"))
        tiles.append((time_text(latency.p99_us), f"{_latency_name(result)}, 99 %"))
    tiles.append((size_text(result.effort.server_memory_max_bytes), "of memory at the server's peak"))
    tiles = [(value, name) for value, name in tiles if value != "–"]
    return f'<div class="tiles">{"".join(f"<div class=tile><b>{v}</b><span>{n}</span></div>" for v, n in tiles)}</div>'


def _latency_name(result: Result) -> str:
    if result.connecting is not None:
        return "to shake hands"
    if result.returning is not None:
        return "to catch up"
    return "to acknowledgement" if result.plan.of_acks else "to delivery"


def _plots(result: Result) -> list[str]:
    series, plan, spread = result.series, result.plan, _plots_by_percentile(result)
    if not series:
        return spread
    seconds = linear_axis([sample.at_s for sample in series], lambda value: f"{value:g}", label="seconds", tight=True)

    def over_time(
        title: str, lines: list[Line], text: Callable[[float], str], base: float = 1000.0, least: float = 1.0
    ) -> str:
        return plot(title, lines, seconds, linear_axis(_values(lines), text, base=base, least=least))

    what = "Handshakes" if plan.connections else "Deliveries" if plan.subscribers else "Acknowledged publishes"
    rates = Line(what, [(sample.at_s, rate_of(sample, plan)) for sample in series], filled=True)
    times = [Line(label, _points(series, f"{name}_us")) for label, name in _COURSES]
    busy = [
        Line("server", _points(series, "server_cpu")),
        Line("generator's busiest worker", _points(series, "generator_cpu")),
    ]
    memory = Line("memory", _points(series, "server_memory_bytes"), filled=True)
    plots = [
        over_time(f"{what} a second", [rates], count_text),
        plot(f"Time {_latency_name(result)}", times, seconds, log_axis(_values(times), time_text)),
        *spread,
    ]
    if _values([memory]):
        plots.append(over_time("The server's memory", [memory], size_text, base=1024))
    plots.append(over_time("Processor time, of a core", busy, cores_text, least=0.01))
    if plan.subscribers and result.returning is None:
        backlog = Line("backlog", _points(series, "backlog"), filled=True)
        plots.append(over_time("Deliveries outstanding", [backlog], count_text))
    return plots


_COURSES = (("median", "p50"), ("99 %", "p99"), ("max", "max"))


def _plots_by_percentile(result: Result) -> list[str]:
    named = _distributions(result)
    if not named:
        return []
    curves = [Line(name, [(point.percentile, float(point.us)) for point in latency.curve]) for name, latency in named]
    most = [float(point.us) for _, latency in named for point in latency.curve if point.percentile >= 20]
    axis = percentile_axis(max(latency.count for _, latency in named))
    return [plot(f"Time {_latency_name(result)}, by percentile", curves, axis, log_axis(most, time_text))]


def _values(lines: list[Line]) -> list[float]:
    return [value for line in lines for _, value in line.points if value is not None]


def _points(series: list[Sample], name: str) -> Points:
    return [(sample.at_s, getattr(sample, name)) for sample in series]


def _distributions(result: Result) -> list[tuple[str, Distribution]]:
    named = [
        (_latency_name(result), result.latency),
        ("to acknowledgement", result.ack_latency),
        ("generator's lateness", result.lateness),
    ]
    return [(name, latency) for name, latency in named if latency is not None]


def _latencies(result: Result) -> str:
    named = _distributions(result)
    if not named:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("count", *_TIMES))
    rows = "".join(f"<tr><th>{escape(name)}</th>{_cells(latency)}</tr>" for name, latency in named)
    return (
        f'<h2>Latencies</h2><div class="wide"><table class="spread"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(latency: Distribution) -> str:
    times = "".join(f"<td>{time_text(getattr(latency, field))}</td>" for field in _TIMES.values())
    return f"<td>{latency.count:,}</td>{times}"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><tbody>{cells}</tbody></table>"


def _made(result: Result) -> str:
    about = [("command", result.command), ("began", result.started), ("machine", result.machine)]
    if result.durability is not None:
        about.append(("durability", result.durability))
    rows = "".join(f"<tr><th>{name}</th><td><code>{escape(value)}</code></td></tr>" for name, value in about)
    shown = SCENARIOS[result.plan.scenario].fields
    plan = [(name, str(value)) for name, value in to_builtins(result.plan).items() if name in shown]
    return f'<div class="columns"><table><tbody>{rows}</tbody></table>{_table(plan)}</div>'
