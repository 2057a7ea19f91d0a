"""The command line of the torture: tools/torture.py."""

import random
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.torture.killing import run_rounds
from tests.torture.points import strace_works
from tests.torture.server import ServerFailed

START_MS_MAX = 1000
"""A start after a kill is under this, in half of the cases at least: the machine is shared with the load."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def torture_command() -> None:
    """Kill a real server, and cut its power, until a promise breaks or the rounds are done.

    \b
    Exit status 0: all promises were kept. 1: one was broken, and is named; what was found is kept.
    """


_seed_option = click.option("--seed", type=int, help="Of all that is chosen at random; the timing stays the machine's.")


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
    seed = random.randrange(1 << 32) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="trisync-torture-"))
    click.echo(f"seed {seed}, data in {folder}")
    began = time.monotonic()

    def progress(done: int, problems: list[str]) -> None:
        if done % 10 == 0 or problems:
            click.echo(f"{done} rounds, {time.monotonic() - began:.0f} s, {len(problems)} problems")

    try:
        totals = run_rounds(rounds, folder, seed, points, progress)
    except ServerFailed as error:
        raise click.ClickException(f"{error} (the data is in {folder})") from None
    click.echo(totals.summary())
    for problem in totals.problems[:20]:
        click.echo(problem, err=True)
    if totals.start_ms > START_MS_MAX:
        click.echo(f"a start takes {totals.start_ms:.0f} ms, more than {START_MS_MAX}", err=True)
    if totals.problems or totals.start_ms > START_MS_MAX:
        sys.exit(1)
    folder.rmdir()
