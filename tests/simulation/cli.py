"""The command line of the simulation: tools/simulate.py."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import click

from tests.simulation.planted import PLANTS, planted
from tests.simulation.world import Outcome, simulate

CHUNK = 20
"""Seeds that a process is given at once."""
SHOWN_MAX = 300
"""Of a problem's text; --trace shows the whole."""


def run_seeds(seeds: Sequence[int], plant: str | None = None) -> list[Outcome]:
    """Let these worlds happen, one after the other, with a bug planted or none."""
    with planted(plant):
        return [simulate(seed) for seed in seeds]


def run_crew(seeds: Sequence[int], processes: int, plant: str | None = None) -> Iterator[Outcome]:
    """The outcomes of many seeds, in order, from several processes."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    crew = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        for outcomes in crew.map(partial(run_seeds, plant=plant), chunks):
            yield from outcomes
    finally:
        # Waited for: Python 3.11 that exits before its crew has may complain of a closed pipe.
        crew.shutdown(cancel_futures=True)


def command_for(seed: int, plant: str | None = None) -> str:
    """What replays one seed, and tells all that happens in it."""
    return f"tools/simulate.py --seed {seed} --trace" + (f" --plant {plant}" if plant else "")


def describe(outcome: Outcome, plant: str | None = None) -> str:
    """A world that went wrong, for people."""
    more = len(outcome.problems) - 3
    shown = [problem[:SHOWN_MAX] for problem in outcome.problems[:3]] + ([f"and {more} more"] if more > 0 else [])
    return "\n  ".join([f"seed {outcome.seed} failed; replay it: {command_for(outcome.seed, plant)}", *shown])


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Let N worlds happen, of the seeds from --seed on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The seed, or the first of them.")
@click.option("--trace", is_flag=True, help="Tell everything that happens in the one world of --seed.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=len(os.sched_getaffinity(0)),
    help="By default one for each core.",
)
@click.option("--plant", type=click.Choice(sorted(PLANTS)), help="Break the server so first: it must be found out.")
def simulate_command(seeds: int | None, seed: int, trace: bool, processes: int, plant: str | None) -> None:
    """Run the server and its clients in simulated worlds, whose every accident follows from a seed, and judge each.

    Exits with 1 if a promise was broken, and names the command that replays it.
    """
    if seeds is None or trace:
        failed = _run_one(seed, plant, trace=trace)
    else:
        failed = _run_many(range(seed, seed + seeds), processes, plant)
    sys.exit(1 if failed else 0)


def _run_one(seed: int, plant: str | None, *, trace: bool) -> bool:
    with planted(plant):
        outcome = simulate(seed, traced=trace)
    for line in outcome.trace or ():
        click.echo(line)
    for problem in outcome.problems:
        click.echo(f"BROKEN: {problem}")
    click.echo(f"seed {seed}: {outcome.events} events, trace {outcome.digest}, {len(outcome.problems)} problems")
    return bool(outcome.problems)


def _run_many(seeds: range, processes: int, plant: str | None) -> bool:
    began = time.monotonic()
    done = events = failed = 0
    try:
        for outcome in run_crew(seeds, processes, plant):
            done += 1
            events += outcome.events
            if outcome.problems:
                failed += 1
                click.echo(describe(outcome, plant))
            if done % 1000 == 0:
                click.echo(
                    f"{done} of {len(seeds)} worlds, {failed} failed, {time.monotonic() - began:.0f} s", err=True
                )
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    click.echo(f"{done} worlds, {events} events, {failed} failed, {time.monotonic() - began:.0f} s")
    return bool(failed) or done < len(seeds)
