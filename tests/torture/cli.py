"""The command line of the torture: tools/torture.py."""

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import click
import trio

from tests.torture.killing import run_rounds
from tests.torture.points import strace_works
from tests.torture.powercut import Durability, cut_power
from tests.torture.server import ServerFailed

START_MS_MAX = 1000
"""A start after a kill is under this, in half of the cases at least."""
PROBLEMS_SAID = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def torture_command() -> None:
    """Kill a real server, and cut its power, until a promise breaks or the rounds are done.

    \b
    Exit status 0: all promises were kept. 1: one was broken, and is named; what was found is kept.
    """


_seed_option = click.option("--seed", type=int, help="Of all that is chosen at random, not of the timing.")


class Totals(Protocol):
    """What rounds came to."""

    @property
    def problems(self) -> list[str]:
        """Promises that were broken."""

    def summary(self) -> str:
        """For people."""


def _begin(seed: int | None) -> tuple[int, Path]:
    """The seed, and a folder for the data; both are said."""
    seed = random.randrange(1 << 32) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="trisync-torture-"))
    click.echo(f"seed {seed}, data in {folder}")
    return seed, folder


def _progress(every: int) -> Callable[[int, list[str]], None]:
    """Says how far it is, once in so many rounds."""
    began = time.monotonic()

    def progress(done: int, problems: list[str]) -> None:
        if done % every == 0 or problems:
            click.echo(f"{done} rounds, {time.monotonic() - began:.0f} s, {len(problems)} problems")

    return progress


def _conclude(totals: Totals, folder: Path) -> None:
    """Say what came of it, and keep the data only where that was a problem; exits with 1 then."""
    click.echo(totals.summary())
    for problem in totals.problems[:PROBLEMS_SAID]:
        click.echo(problem, err=True)
    if totals.problems:
        sys.exit(1)
    shutil.rmtree(folder)


@torture_command.command()
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--points/--no-points", default=True, help="Every other kill is at a named point, by strace.")
@_seed_option
def kill(rounds: int, points: bool, seed: int | None) -> None:
    """SIGKILL a server under full load: in all three machine dialects, at random moments and at named points.

    After each kill: no acknowledged message is lost, none is stored twice, nobody was shown what is not there, and
    the database is whole. Producers send again what was not acknowledged, and subscribers resume.
    """
    if points and (reason := strace_works()):
        raise click.ClickException(f"{reason}; or say --no-points")
    seed, folder = _begin(seed)
    try:
        totals = run_rounds(rounds, folder, seed, points, _progress(10))
    except ServerFailed as error:
        raise click.ClickException(f"{error} (the data is in {folder})") from None
    if totals.longest_start_ms > START_MS_MAX:
        totals.problems.append(f"a start took {totals.longest_start_ms:.0f} ms, more than {START_MS_MAX}")
    _conclude(totals, folder)


@torture_command.command()
@click.option("--rounds", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--durability", type=click.Choice(["full", "normal"]), default="full", show_default=True)
@click.option("--lying", is_flag=True, help="The disk says that it has synced, and has not: problems must be found.")
@_seed_option
def powercut(rounds: int, durability: Durability, lying: bool, seed: int | None) -> None:
    """Cut the power beneath SQLite: what was not synced is lost, kept or torn, write by write, sector by sector.

    `full` must lose nothing that was acknowledged. `normal` may lose the newest, and must never be damaged, nor hide
    the loss: the epoch changes.
    """
    seed, folder = _begin(seed)
    cut = partial(cut_power, rounds, folder, seed, durability, _progress(100), lying=lying)
    _conclude(trio.run(cut), folder)
