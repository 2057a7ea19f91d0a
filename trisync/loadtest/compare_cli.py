"""The command line of the comparison, and its tables: tools/compare.py."""

import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from trisync.loadtest.compare import ROWS, Comparison, Figures, RowResult, Say, compare
from trisync.loadtest.crew import CrewFailed
from trisync.loadtest.endings import Interrupted, conclude, run_until_signal
from trisync.loadtest.machine import why_full
from trisync.loadtest.options import LEAST, SHOWN, STANDARD_OUTPUT, Number, Output, OutputFile, unwritten, write_output
from trisync.loadtest.recording import BUSY_CPU
from trisync.loadtest.report_words import count_text
from trisync.loadtest.results import to_json
from trisync.loadtest.target import TargetRefused

_ROWS = "\n".join(f"  {name:16}{row.title}" for name, row in ROWS.items())
_EPILOG = f"""\b
The rows:
{_ROWS}

\b
Exit status:
  0    everybody got every message
  1    somebody did not: who and what
  2    the command line is wrong
  3    the run could not be made
  4    everybody did, but a file could not be written
  130  a signal (Ctrl-C) ended the run
The ratios do not change it: they are the machine's as much as the programs'."""

_A_SECOND = " a second: median (lowest–highest)"
_RATIO = "ratio of medians (lowest–highest of a round)"


@click.command("compare", epilog=_EPILOG, context_settings=SHOWN)
@click.option("--only", "rows", type=click.Choice(list(ROWS)), multiple=True, help="Compare in this row; repeatable.")
@click.option(
    "--duration",
    "duration_s",
    type=Number(min=LEAST),
    default=4.0,
    metavar="SECONDS",
    help="What is measured of each, each time.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, metavar="N", help="How often each is measured.")
@click.option(
    "--node-modules",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="The folder that holds npm's ws; those in NODE_PATH are looked into too.",
)
@click.option(
    "--json",
    "json_file",
    type=OutputFile(),
    metavar="FILE",
    help="Write all figures; trisync/loadtest/compare.py describes the fields.",
)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--quiet", is_flag=True, help="Show nothing while it runs.")
def compare_command(
    rows: tuple[str, ...],
    duration_s: float,
    rounds: int,
    node_modules: Path | None,
    json_file: Path | None,
    markdown: bool,
    quiet: bool,
) -> None:
    """Put trisync and its peers under the same load, in turns, and print ratios.

    trisync is durable, with every message on disk before anybody sees it; Redis Pub/Sub, NATS core and Node's ws
    store nothing; Redis Streams run with appendfsync always. All are started by this command, on free loopback ports,
    with new folders under TMPDIR: its disk is the one that is measured. A peer that is not installed is left out,
    and named.
    """
    modules = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    if node_modules is not None:
        modules.insert(0, node_modules)
    errors = Console(stderr=True, highlight=False, markup=False)
    say: Say = (lambda line: None) if quiet else (lambda line: errors.print(line, soft_wrap=True))
    chosen = list(dict.fromkeys(rows)) or list(ROWS)
    command = shlex.join(sys.argv)
    try:
        comparison = run_until_signal(
            lambda: compare(chosen, duration_s, rounds, modules, say, command),
            (TargetRefused, CrewFailed, OSError),
        )
    except Interrupted:
        raise Interrupted(unwritten=[json_file]) from None
    problems = [
        write_output(json_file, lambda: to_json(comparison)),
        unwritten(STANDARD_OUTPUT, lambda: print_comparison(comparison, markdown=markdown)),
    ]
    conclude(problems, passed=comparison.passed)


def _cells(row: RowResult, each: Figures) -> tuple[str, str, str]:
    """A table's line for one contender."""
    ratios = [
        f"{_text(ratio.median, '{:.2f}'.format)} × {ratio.to}"
        + _range(each, ratio.min, ratio.max, "{:.2f}".format)
        + ("" if ratio.at_least is None else f", wanted {ratio.at_least:.2g}")
        for ratio in row.ratios
        if ratio.of == each.name
    ]
    rate = _text(each.median, count_text) + _range(each, each.min, each.max, count_text)
    broken = sum(bool(one.problems) for one in each.rounds)
    if broken:
        rate += f", {broken} of {len(each.rounds)} broke"
    return each.name, rate, "\n".join(ratios)


def _text(figure: float | None, text: Callable[[float], str]) -> str:
    return "–" if figure is None else text(figure)


def _range(figures: Figures, lowest: float | None, highest: float | None, text: Callable[[float], str]) -> str:
    if lowest is None or highest is None or len(figures.rounds) == 1:
        return ""
    return f" ({text(lowest)}–{text(highest)})"


def notes(comparison: Comparison) -> list[str]:
    """What to keep in mind when reading the table: versions, who is missing, who had no room, what broke."""
    often = "once" if comparison.rounds == 1 else f"{comparison.rounds} times"
    lines = [
        f"{comparison.machine}. {comparison.message_bytes} bytes of data in each message, trisync with "
        f"durability full; each was measured {often} for {comparison.duration_s:g} s, in turns.",
        *(f"{name}: {version}." for name, version in comparison.versions.items()),
        *(f"{name} is missing: {install}" for name, install in comparison.missing.items()),
    ]
    for row in comparison.rows:
        for each in row.contenders:
            if max(one.generator_cpu for one in each.rounds) > BUSY_CPU:
                lines.append(f"{row.row}: the generator's core was full while it loaded {each.name}.")
            broken = sorted({problem for one in each.rounds for problem in one.problems})
            lines += [f"{row.row}: {each.name}: {problem}" for problem in broken]
    return lines + on_full_machines(comparison.rows, os.cpu_count() or 1)


def on_full_machines(rows: Sequence[RowResult], cores: int) -> list[str]:
    """Who was loaded on a machine that had nothing left to give, in some round, by the reason for that."""
    whom: dict[str, list[str]] = {}
    for row in rows:
        for each in row.contenders:
            fullest = min(each.rounds, key=lambda one: math.inf if one.machine_idle is None else one.machine_idle)
            why = why_full(fullest.machine_idle, fullest.server_cpu, fullest.generator_cpu, cores)
            if why is not None:
                whom.setdefault(why, []).append(f"{row.row}: {each.name}")
    return [f"The machine had nothing left to give: {why} ({'; '.join(names)})." for why, names in whom.items()]


def print_comparison(comparison: Comparison, *, markdown: bool) -> None:
    """The tables and their notes, for a terminal or a README. Raises OSError."""
    console = Output(highlight=False, markup=False)
    if markdown:
        console.out(to_markdown(comparison))
        return
    for row in comparison.rows:
        table = Table("who", row.unit + _A_SECOND, _RATIO, title=row.title, title_justify="left", show_lines=True)
        for each in row.contenders:
            table.add_row(*_cells(row, each))
        console.print(table)
    for line in notes(comparison):
        console.print(line)


def to_markdown(comparison: Comparison) -> str:
    """The table and its notes, for a README."""
    lines = [("load", "who", _A_SECOND.strip(), _RATIO), ("---", "---", "---", "---")]
    for row in comparison.rows:
        for number, each in enumerate(row.contenders):
            lines.append((f"{row.title} ({row.unit})" if number == 0 else "", *_cells(row, each)))
    table = ["| " + " | ".join(cell.replace("\n", "<br>") for cell in cells) + " |" for cells in lines]
    return "\n".join([*table, "", *(f"- {line}" for line in notes(comparison))])
