"""What a person sees in the terminal: the load while it runs, and a table at its end."""

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trisync.loadtest.plan import Plan
from trisync.loadtest.problems import Problem, describe
from trisync.loadtest.recording import Recorder
from trisync.loadtest.report_words import (
    cores_text,
    count_text,
    counts_checked,
    describe_plan,
    figures,
    rate_of,
    size_text,
    time_text,
)
from trisync.loadtest.results import Result, Sample

_BARS = " ▁▂▃▄▅▆▇█"
_COURSE_POINTS = 48
_BESIDE_THE_COURSE = 32
"""Columns that the rest of its line takes; in a narrower terminal than both need, the course is shorter."""
PLAIN_EVERY_S = 5.0
"""Where no terminal shows the display, a line is written so often."""


class Display:
    """The live display; show() is what run() calls. A context manager."""

    def __init__(self, plan: Plan, console: Console, *, quiet: bool) -> None:
        self._plan = plan
        self._console = console
        self._quiet = quiet
        seen = console.is_terminal and not quiet
        self._live = Live(console=console, transient=True, auto_refresh=False) if seen else None
        self._said_s = 0.0
        self._recorder: Recorder | None = None

    @property
    def problems(self) -> list[Problem]:
        """What had broken when it was last shown."""
        return [] if self._recorder is None else self._recorder.problems.listed()

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, recorder: Recorder) -> None:
        """Show how it goes."""
        self._recorder = recorder
        if self._live is not None:
            self._live.update(self._picture(recorder), refresh=True)
        elif not self._quiet and recorder.series:
            self._say(recorder.series[-1])

    def _say(self, sample: Sample) -> None:
        """Write a line, unless the last one is hardly older. Time goes back where another part is measured."""
        if 0 <= sample.at_s - self._said_s < PLAIN_EVERY_S:
            return
        self._said_s = sample.at_s
        parts = [
            f"{sample.at_s:6.1f} s",
            f"{count_text(rate_of(sample, self._plan))}/s",
            f"p50 {time_text(sample.p50_us)}",
            f"p99 {time_text(sample.p99_us)}",
            f"max {time_text(sample.max_us)}",
            f"backlog {count_text(sample.backlog)}",
            f"server {cores_text(sample.server_cpu)} {size_text(sample.server_memory_bytes)}",
        ]
        self._console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def _picture(self, recorder: Recorder) -> RenderableType:
        plan, totals = self._plan, recorder.totals
        head = Text.assemble(("trisync loadtest ", "bold"), (plan.scenario, "bold cyan"), f" over {plan.transport}: ")
        head.append(recorder.phase, "dim")
        grid = Table.grid(padding=(0, 3))
        if recorder.series:
            sample = recorder.series[-1]
            rates = [rate_of(each, plan) for each in recorder.series]
            points = max(1, min(_COURSE_POINTS, self._console.width - _BESIDE_THE_COURSE))
            grid.add_row("rate", f"[bold]{count_text(rates[-1])}/s[/]", course(rates[-points:]))
            grid.add_row(
                "latency",
                f"p50 {time_text(sample.p50_us)}",
                f"p99 {time_text(sample.p99_us)}   max {time_text(sample.max_us)}",
            )
            backlog = f"{count_text(sample.backlog)} deliveries"
            grid.add_row("backlog", backlog, f"{count_text(sample.in_flight)} publishes unanswered")
            grid.add_row("server", f"cpu {cores_text(sample.server_cpu)}", size_text(sample.server_memory_bytes))
            grid.add_row("generator", f"cpu {cores_text(sample.generator_cpu)}", "of the busiest worker's core")
        grid.add_row(
            "so far",
            f"{totals.opened:,} opened",
            f"{count_text(totals.acked)} acknowledged, {count_text(totals.delivered)} delivered and checked",
        )
        broken = [Text(describe(problem), "bold red") for problem in recorder.problems.listed()]
        return Group(head, grid, *broken)


def course(values: list[float]) -> str:
    """Values as a row of bars."""
    top = max(values, default=0) or 1
    return "".join(_BARS[round(value / top * 8)] for value in values)


def print_result(result: Result, console: Console) -> None:
    """The table at the end, the verdict and the remarks."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in figures(result):
        table.add_row(name, value)
    title = f"{result.plan.scenario} over {result.plan.transport}"
    console.print(Text(title, "bold"), Text(f"  {describe_plan(result.plan)}", "dim"), sep="", soft_wrap=True)
    console.print(table)
    for remark in result.remarks:
        console.print(Text(f"! {remark}", "yellow"), soft_wrap=True)
    if result.passed:
        checked = f"PASSED: {counts_checked(result)}" if result.throughput.acked else "PASSED"
        console.print(Text(checked, "bold green"), soft_wrap=True)
        return
    console.print(Text("FAILED", "bold red"))
    for problem in result.problems:
        console.print(Text(f"  {describe(problem)}", "red"))
        for example in problem.examples:
            console.print(Text(f"    {example}"), soft_wrap=True)
