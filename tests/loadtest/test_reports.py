"""Figures, and the reports made of them: terminal, JSON, and a page that needs nothing else."""

import base64
import json
import re
from html.parser import HTMLParser

import msgspec
import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from rich.console import Console

from trisync.loadtest.machine import Usage
from trisync.loadtest.plan import Plan, Tick, Totals
from trisync.loadtest.plots import linear_axis, log_axis, percentile_axis
from trisync.loadtest.problems import EXAMPLES_MAX, Problem, Problems
from trisync.loadtest.recording import Recorder, slope_per_h
from trisync.loadtest.report_html import to_html
from trisync.loadtest.report_terminal import Display, course, print_result
from trisync.loadtest.report_words import cores_text, count_text, figures, size_text, time_text
from trisync.loadtest.results import (
    Connecting,
    Distribution,
    Effort,
    Fairness,
    LogRead,
    Point,
    Result,
    Returning,
    Sample,
    Throughput,
    distribution,
    to_json,
)
from trisync.loadtest.run import GROWTH_S_MIN, on_a_full_machine, on_the_generator, on_the_rate, shows_growth

MEBIBYTE = 1024 * 1024


def tick(at_s: float, **changes: object) -> Tick:
    totals = {name: int(changes.pop(name, 0)) for name in Totals.__struct_fields__}  # type: ignore[call-overload]
    whole = {"cpu_s": 0.0, "latencies": {}, "ack_latencies": {}, "lateness": {}, "problems": [], "worker": 0} | changes
    return Tick(at_us=round(at_s * 1e6), totals=Totals(**totals), **whole)  # type: ignore[arg-type]


def recorded(*ticks: Tick, server_cpu: float = 0.5) -> Recorder:
    """A run measured from 10 s to 14 s, whose server uses so much of a core."""
    now_s = 0.0
    recorder = Recorder(1.0, lambda: (Usage(now_s * server_cpu, 50 * MEBIBYTE, 60 * MEBIBYTE), now_s))
    recorder.measure(10_000_000, 14_000_000)
    for each in ticks:
        now_s = each.at_us / 1e6
        recorder.add(each)
    return recorder


def result(recorder: Recorder, **changes: object) -> Result:
    whole: dict[str, object] = {
        "tool": "test",
        "started": "2026-01-01T00:00:00+00:00",
        "machine": "a machine",
        "command": "loadtest fanout <b>",
        "plan": Plan(scenario="fanout", publishers=1, subscribers=5),
        "durability": "full",
        "passed": True,
        "problems": [],
        "remarks": [],
        "throughput": recorder.throughput(),
        "latency": distribution(recorder.latencies),
        "ack_latency": None,
        "lateness": None,
        "connecting": None,
        "returning": None,
        "fairness": None,
        "log_read": LogRead(),
        "effort": recorder.effort(paced=False, with_growth=False),
        "series": recorder.series,
    }
    return Result(**(whole | changes))  # type: ignore[arg-type]


def steady(**changes: object) -> list[Tick]:
    return [
        tick(9 + second, acked=100 * second, delivered=1000 * second, cpu_s=0.3 * second, latencies={500: 99, 9000: 1})
        for second in range(6)
    ]


def test_rates_are_of_the_measured_part_alone() -> None:
    recorder = recorded(*steady(), tick(15, acked=500, delivered=5000))
    throughput = recorder.throughput()
    assert (throughput.measured_s, throughput.acked_per_s, throughput.delivered_per_s) == (4.0, 100.0, 1000.0)
    assert [(sample.at_s, sample.acked_per_s) for sample in recorder.series] == [
        (second, 100) for second in range(1, 5)
    ]
    assert recorder.series[0].p50_us == 500
    assert recorder.series[0].max_us == 9000


@pytest.mark.parametrize(("tick_s", "last_at_s"), [(1.02, 4.0), (1.2, 3.6)])
def test_the_series_goes_to_the_end_of_the_measured_part_where_ticks_are_late(tick_s: float, last_at_s: float) -> None:
    times_s = [10 + number * tick_s for number in range(4)]
    recorder = recorded(*(tick(at_s, acked=round(100 * at_s)) for at_s in (*times_s, 14, 15)))
    *_, last = recorder.series
    assert (last.at_s, last.acked_per_s) == (last_at_s, 100)


def test_what_is_measured_anew_begins_anew() -> None:
    recorder = recorded(*steady())
    recorder.measure(20_000_000, 22_000_000)
    for second in range(4):
        recorder.add(tick(19 + second, acked=1000 + 7 * second, latencies={700: 1}, lateness={3: 1}))
    assert [(sample.at_s, sample.acked_per_s) for sample in recorder.series] == [(1, 7), (2, 7)]
    assert recorder.throughput().acked_per_s == 7
    assert (recorder.latencies, recorder.lateness) == ({700: 4}, {3: 4})


@pytest.mark.parametrize("of_acks", [False, True])
def test_the_latency_over_time_is_that_of_one_thing_with_gaps_where_there_is_none(of_acks: bool) -> None:
    recorder = Recorder(1.0, lambda: (None, 0.0), of_acks=of_acks)
    recorder.measure(10_000_000, 14_000_000)
    for second in range(5):
        latencies = {} if second == 2 else {900: 1}
        recorder.add(tick(10 + second, latencies=latencies, ack_latencies={30: 1}))
    found = [(sample.p50_us, sample.p99_us, sample.max_us) for sample in recorder.series]
    assert found == ([(30,) * 3] * 4 if of_acks else [(900,) * 3, (None,) * 3, (900,) * 3, (900,) * 3])
    plan = Plan(scenario="ingest", publishers=1) if of_acks else Plan(scenario="fanout", publishers=1, subscribers=1)
    text = to_html(result(recorder, plan=plan))
    name = "Time to acknowledgement" if of_acks else "Time to delivery"
    ((svg, _),) = re.findall(rf'<svg[^>]*aria-label="{name}">(.*?)</svg>()', text)
    assert (svg.count("<circle"), svg.count('<path class="line')) == ((0, 3) if of_acks else (3, 3))


def test_rates_are_between_the_first_ticks_behind_both_ends() -> None:
    ticks = [tick(at_s, acked=round(100 * at_s)) for at_s in (9.9, 10.1, 11.5, 13.9, 14.2, 15.0)]
    throughput = recorded(*ticks).throughput()
    assert (throughput.measured_s, throughput.acked_per_s) == (4.1, 100.0)


def test_rates_of_workers_add_up() -> None:
    recorder = recorded(
        *(tick(9 + second, worker=worker, acked=50 * second) for second in range(6) for worker in (0, 1))
    )
    assert recorder.throughput().acked_per_s == 100


def test_each_point_of_the_series_has_as_much_of_every_worker_however_they_tick() -> None:
    ticks = [
        tick(9.3 + second + worker * 0.9, worker=worker, acked=50 * second, delivered=50 * second, opened=5 * second)
        for second in range(6)
        for worker in (0, 1)
    ]
    samples = recorded(*ticks).series
    assert len(samples) >= 3
    assert {(each.acked_per_s, each.delivered_per_s, each.opened_per_s) for each in samples} == {(100, 100, 10)}


@pytest.mark.parametrize(
    ("worker_cpu", "server_cpu", "limited"), [(0.99, 0.5, True), (0.99, 0.99, False), (0.5, 0.5, False)]
)
def test_it_says_when_the_generator_is_the_limit(worker_cpu: float, server_cpu: float, limited: bool) -> None:
    ticks = [tick(9 + second, cpu_s=worker_cpu * second) for second in range(6)]
    assert recorded(*ticks, server_cpu=server_cpu).effort(paced=False, with_growth=False).generator_limited is limited


@pytest.mark.parametrize(("late_us", "said"), [(5_894_100, "up to 5.89 s behind"), (230, "up to 230 µs"), (None, "")])
def test_it_says_how_late_the_generator_was_in_a_unit_of_its_size(late_us: int | None, said: str) -> None:
    effort = recorded(*steady()).effort(paced=False, with_growth=False)
    assert on_the_generator(effort, late_us) == []
    (remark,) = on_the_generator(msgspec.structs.replace(effort, generator_limited=True), late_us)
    assert ("behind their time" in remark) == (late_us is not None)
    assert said in remark


def test_a_generator_that_sends_late_is_the_limit_of_an_open_loop() -> None:
    late = recorded(tick(9), tick(12, latencies={5000: 10}, lateness={4000: 10}))
    punctual = recorded(tick(9), tick(12, latencies={5000: 10}, lateness={100: 10}))
    assert late.effort(paced=True, with_growth=False).generator_limited
    assert not punctual.effort(paced=True, with_growth=False).generator_limited


@pytest.mark.parametrize(
    ("workers", "server_cpu", "idle", "remark"),
    [
        ([0.9], 1.0, 0.05, "server and generator shared its cores"),
        ([0.5, 0.3], 0.95, 0.0, "server and generator shared its cores"),
        ([0.3], 0.5, 0.05, "other programs used 1.2 of its 2 cores"),
        ([0.0], 0.0, 0.0, "other programs used 2.0 of its 2 cores"),
        ([0.9], None, 0.05, "what the server used of it is not known"),
        ([0.99, 0.95], None, 0.0, "what the server used of it is not known"),
        ([0.9], 1.0, 0.1, None),
        ([0.3], 0.5, 1.2, None),
        ([0.9], 1.0, None, None),
    ],
)
def test_it_says_who_used_a_machine_that_had_nothing_left(
    workers: list[float], server_cpu: float | None, idle: float | None, remark: str | None
) -> None:
    effort = recorded(*steady()).effort(paced=False, with_growth=False)
    effort = msgspec.structs.replace(effort, workers_cpu=workers, server_cpu=server_cpu, machine_idle=idle)
    said = on_a_full_machine(effort, cores=2)
    if remark is None:
        assert said == []
    else:
        (only,) = said
        assert only.startswith(f"The machine had nothing left to give: {remark}")


def test_what_a_run_too_short_to_be_sampled_left_of_the_machine_is_not_known() -> None:
    effort = recorded(tick(9), tick(10.5, cpu_s=0.5)).effort(paced=False, with_growth=False)
    assert effort.workers_cpu != []
    assert effort.machine_idle is None
    assert recorded(*steady()).effort(paced=False, with_growth=False).machine_idle == 1.0


@pytest.mark.parametrize(("before", "after", "peak"), [(60, 165, 165), (200, 200, 50), (60, None, 50), (None, 165, 50)])
def test_the_servers_peak_is_of_the_whole_run_and_not_of_the_time_before(
    before: int | None, after: int | None, peak: int
) -> None:
    used = {"peak": before}

    def look() -> tuple[Usage | None, float]:
        high = used["peak"]
        return None if high is None else Usage(0.0, 50 * MEBIBYTE, high * MEBIBYTE), 0.0

    recorder = Recorder(1.0, look)
    used["peak"] = before or 60
    recorder.measure(10_000_000, 14_000_000)
    for each in steady():
        recorder.add(each)
    used["peak"] = after
    recorder.look_back()
    assert recorder.effort(paced=False, with_growth=False).server_memory_max_bytes == peak * MEBIBYTE


def test_growth_is_the_slope_of_the_memory() -> None:
    assert slope_per_h([(second, 1000 + 2 * second) for second in range(10)]) == 7200
    assert slope_per_h([(0, 1), (1, 2)]) is None


def test_growth_is_a_figure_of_long_soaks_alone() -> None:
    assert recorded(*steady()).effort(paced=False, with_growth=True).server_growth_bytes_per_h is not None
    soak = Plan(scenario="soak", duration_s=GROWTH_S_MIN)
    assert shows_growth(soak)
    assert not shows_growth(msgspec.structs.replace(soak, duration_s=GROWTH_S_MIN - 1))
    assert not shows_growth(msgspec.structs.replace(soak, scenario="mixed"))


@pytest.mark.parametrize("growth", [None, 7200.0])
def test_both_reports_show_a_growth_that_is_known_and_no_other(growth: float | None) -> None:
    recorder = recorded(*steady())
    effort = msgspec.structs.replace(recorder.effort(paced=False, with_growth=False), server_growth_bytes_per_h=growth)
    found = result(recorder, effort=effort)
    for text in (to_html(found), str(figures(found))):
        assert ("growing 7.0 KiB an hour" in text) == (growth is not None)
        assert ("growing" in text) == (growth is not None)


def test_problems_are_counted_and_only_a_few_are_told() -> None:
    problems = Problems()
    for number in range(100):
        problems.add("lost", f"message {number}", 2)
    problems.merge([Problem("refused", 1, ["no"]), Problem("lost", 5, ["more"])])
    lost, refused = problems.listed()
    assert (lost.count, len(lost.examples), refused.examples) == (205, EXAMPLES_MAX, ["no"])


def test_what_a_server_said_does_not_command_the_terminal() -> None:
    problems = Problems()
    problems.add("refused", "publisher 0: limit: \x1b[2J\x9bH\tnö\nline 2")
    assert problems.listed()[0].examples == ["publisher 0: limit: \\x1b[2J\\x9bH\\tnö\nline 2"]


def test_every_field_of_the_json_is_described() -> None:
    for kind in (Result, Throughput, Distribution, Point, Sample, Connecting, Returning, Fairness, LogRead, Effort):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            assert isinstance(field.type, msgspec.inspect.Metadata), (kind, field.name)
            assert (field.type.extra_json_schema or {}).get("description"), (kind, field.name)


def test_json_holds_the_whole_result_and_a_histogram_that_others_can_read() -> None:
    document = to_json(result(recorded(*steady())))
    found = json.loads(document)
    assert set(found) == set(Result.__struct_fields__)
    assert msgspec.json.decode(document, type=Result).throughput.acked_per_s == 100
    assert base64.b64decode(found["latency"]["hdr"])
    assert HdrHistogram.decode(found["latency"]["hdr"]).get_total_count() == found["latency"]["count"] == 600


class Page(HTMLParser):
    """Notes what a page refers to, and whether its tags are balanced."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself() -> None:
    text = to_html(result(recorded(*steady())))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "data", "onload", "onclick"}
    assert not re.search(r"url\(|@import|<script|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert "loadtest fanout &lt;b&gt;" in text
    assert text.count("<svg") == 6


@pytest.mark.parametrize(("ticks", "over_time"), [(1, False), (2, True)])
def test_the_page_of_a_short_run_shows_what_there_is_by_names_that_stand_alone(ticks: int, over_time: bool) -> None:
    recorder = recorded(*steady()[: ticks + 1])
    assert len(recorder.series) == over_time
    titles = re.findall("<figcaption>(.*?)</figcaption>", to_html(result(recorder)))
    assert "Time to delivery, by percentile" in titles
    assert ("Time to delivery" in titles) is ("Deliveries a second" in titles) is over_time


def test_the_page_tells_of_what_broke() -> None:
    broken = result(recorded(), passed=False, problems=[Problem("lost", 3, ["<offset 7>"])], remarks=["mind the gap"])
    text = to_html(broken)
    assert "FAILED" in text
    assert "3 messages that never came" in text
    assert "&lt;offset 7&gt;" in text
    assert "mind the gap" in text


def test_both_reports_of_fairness_show_what_it_is_about() -> None:
    recorder = recorded(*steady())
    alone = distribution(recorder.latencies)
    plan = Plan(scenario="fairness", publishers=21, channels=20, rate=50.0, window=4000)
    found = result(recorder, plan=plan, fairness=Fairness(alone=alone, flooded=alone, p99_times=19.3))
    text = to_html(found)
    assert "<b>19.3</b><span>times as long in the flood, 99 %</span>" in text
    assert "one at 50 messages a second, the others with 4,000 in flight each" in text
    assert ("p99, flooded", "19.3 times as long") in figures(found)


@pytest.mark.parametrize(("caught_up_s", "said"), [(0.004, "4.00 ms"), (2.345, "2.35 s")])
def test_both_reports_say_how_soon_a_crowd_was_back_however_soon(caught_up_s: float, said: str) -> None:
    plan = Plan(scenario="resume", publishers=1, subscribers=5, missed=7)
    returning = Returning(subscribers=5, missed=7, caught_up_s=caught_up_s)
    found = result(recorded(*steady()), plan=plan, returning=returning)
    assert ("all caught up", f"{said} after the first reconnect") in figures(found)
    assert f"<b>{said}</b><span>until all were caught up</span>" in to_html(found)


def test_the_page_of_a_run_without_messages_checked_none() -> None:
    recorder = recorded(tick(9), tick(12, opened=5, latencies={500: 5}))
    plan = Plan(scenario="connect", connections=5)
    text = to_html(result(recorder, plan=plan, connecting=Connecting(connections=5, handshakes_per_s=9, idle_bytes=1)))
    assert "0 deliveries" not in text


@pytest.mark.parametrize("passed", [True, False])
def test_the_terminal_shows_figures_verdict_and_problems(passed: bool) -> None:
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    problems = [] if passed else [Problem("repeated", 2, ["offset 7 came after 9, repeated"])]
    print_result(result(recorded(*steady()), passed=passed, problems=problems), console)
    text = console.export_text()
    console.file.close()
    assert "1,000 /s" in text
    assert "PASSED" in text if passed else "2 messages that came more than once" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_live_display_shows_the_newest_rates_in_a_narrow_terminal_too(width: int) -> None:
    console = Console(record=True, width=width, file=open("/dev/null", "w"))  # noqa: SIM115
    recorder = Recorder(1.0, lambda: (None, 0.0))
    recorder.measure(0, 100_000_000)
    for second in range(100):
        recorder.add(tick(second, acked=20 * second if second < 99 else 2100))
    display = Display(Plan(scenario="ingest", publishers=1), console, quiet=True)
    console.print(display._picture(recorder))
    lines = console.export_text().splitlines()
    console.file.close()
    (rates,) = [line.rstrip() for line in lines if line.startswith("rate")]
    assert rates.endswith("▁▁▁█"), rates


@pytest.mark.parametrize("count", [1, 2, 51, 60, 99, 100, 101, 150, 700, 1000, 5001])
def test_no_fewer_are_within_a_percentile_than_it_says_and_not_one_more(count: int) -> None:
    found = distribution(dict.fromkeys(range(1, count + 1), 1))
    assert found is not None
    values = found.p50_us, found.p90_us, found.p99_us, found.p99_9_us, found.p99_99_us
    # In hundredths of a percent, as whole numbers are exact; values above 2047 are cut to three digits.
    expected = [-(-count * part // 10_000) for part in (5000, 9000, 9900, 9990, 9999)]
    assert [*values] == pytest.approx(expected, rel=1e-3)


def test_figures_are_short() -> None:
    assert [count_text(value) for value in (950, 17_300, 8_612_345)] == ["950", "17.3 k", "8.61 M"]
    assert [time_text(us) for us in (None, 830, 1240, 35_100, 350_000, 3_100_000)] == [
        *("–", "830 µs", "1.24 ms", "35.1 ms", "350 ms", "3.10 s")
    ]
    assert [count_text(value) for value in (9_996, 99_960, 999_600)] == ["10.0 k", "100 k", "1.00 M"]
    assert [time_text(us) for us in (999.6, 9_996, 999_600)] == ["1.00 ms", "10.0 ms", "1.00 s"]
    assert [size_text(count) for count in (12, -2048, 85_000_000)] == ["12 B", "-2.0 KiB", "81.1 MiB"]
    assert course([0, 5, 10]) == " ▄█"


@pytest.mark.parametrize(
    ("rate", "said"), [(0.5, "0.5"), (1.5, "1.5"), (30.0, "30"), (1000.0, "1,000"), (2e6, "2,000,000")]
)
def test_both_reports_say_a_rate_as_it_is_however_low(rate: float, said: str) -> None:
    recorder = recorded(*steady())
    throughput = msgspec.structs.replace(recorder.throughput(), acked_per_s=rate)
    found = result(recorder, plan=Plan(scenario="latency", publishers=1, rate=rate), throughput=throughput)
    assert ("acknowledged", f"{said} /s") in figures(found)
    text = to_html(found)
    assert f"{said} messages a second" in text
    assert f"<b>{count_text(rate)}</b><span>acknowledged publishes a second" in text
    assert float(count_text(min(rate, 30.0))) == min(rate, 30.0)


def test_axes_cover_their_values_with_round_ticks() -> None:
    axis = linear_axis([0, 8.6e6], count_text)
    assert [text for _, text in axis.ticks] == ["0", "2 M", "4 M", "6 M", "8 M", "10 M"]
    assert axis.place(8.6e6) <= 1
    assert [text for _, text in linear_axis([1400], count_text).ticks] == ["0", "500", "1 k", "1.5 k"]
    sizes = linear_axis([85 * MEBIBYTE], size_text, base=1024)
    assert [text for _, text in sizes.ticks] == ["0 B", "20 MiB", "40 MiB", "60 MiB", "80 MiB", "100 MiB"]
    logarithmic = log_axis([150, 90_000], time_text)
    assert [text for _, text in logarithmic.ticks] == ["100 µs", "300 µs", "1 ms", "3 ms", "10 ms", "30 ms", "100 ms"]
    percentiles = percentile_axis(1000)
    assert [text for _, text in percentiles.ticks] == ["50", "", "90", "99", "99.9"]
    assert [percentiles.place(value) for value in (0, 90, 100)] == [0, pytest.approx(1 / 3), 1]


@pytest.mark.parametrize("top", [2, 7, 10, 11, 110])
def test_a_mark_of_an_axis_says_where_it_is(top: int) -> None:
    counts = linear_axis([top], count_text, least=1.0)
    assert [text for _, text in counts.ticks] == [f"{value:g}" for value, _ in counts.ticks]
    cores = linear_axis([top / 100], cores_text, least=0.01)
    assert [text for _, text in cores.ticks] == [f"{value * 100:g} %" for value, _ in cores.ticks]


@pytest.mark.parametrize("server_cpu", [0.0, 0.005, 0.5])
def test_no_two_marks_of_an_axis_are_the_same_text(server_cpu: float) -> None:
    page = to_html(result(recorded(*steady(), server_cpu=server_cpu)))
    figures = re.findall("<figure>.*?</figure>", page)
    assert len(figures) > 4
    for figure in figures:
        marks = re.findall(r'text-anchor="end">(.*?)</text>', figure)
        assert len(set(marks)) == len(marks), figure


def test_what_a_server_has_removed_is_not_outstanding() -> None:
    ticks = [tick(9 + second, due=10 * second, delivered=6 * second, trimmed=3 * second) for second in range(6)]
    assert [sample.backlog for sample in recorded(*ticks).series] == [2, 3, 4, 5]


@pytest.mark.parametrize(("publishers", "workers"), [(1, 4), (4, 1)])
@pytest.mark.parametrize(
    ("rate", "measured_s", "acked", "said"),
    [
        (1.5, 1.0, 1, None),
        (1.5, 20.0, 20, "20 of 30 publishes"),
        (4.0, 1.0, 0, "0 of 4 publishes"),
        (1000.0, 10.0, 9810, None),
        (1000.0, 10.4, 9810, None),
        (1000.0, 10.4, 9700, "9,700 of 10,000 publishes"),
        (1000.0, 10.0, 9700, "9,700 of 10,000 publishes"),
        (0.0, 10.0, 0, None),
    ],
)
def test_a_rate_is_kept_where_what_was_due_was_acknowledged_save_for_parts_of_a_message(
    rate: float, measured_s: float, acked: int, said: str | None, publishers: int, workers: int
) -> None:
    recorder = recorded()
    recorder.measure(10_000_000)
    recorder.add(tick(10))
    recorder.add(tick(10 + measured_s, acked=acked))
    duration_s = round(measured_s, 0)
    plan = Plan(scenario="latency", publishers=publishers, workers=workers, rate=rate, duration_s=duration_s)
    remarks = on_the_rate(plan, recorder.throughput())
    whole = f"The rate was not kept: {said} were acknowledged while it was measured."
    assert remarks == ([] if said is None else [whole])
