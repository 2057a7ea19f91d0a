"""Plays games: `python -m tests.model SEED...`, or `--seeds N` for as many from the first one on."""

import sys
import tempfile
import time
from pathlib import Path

import click
import trio

from tests.model.game import MOVES_OF_A_GAME, Lost, play


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("seeds", type=int, nargs=-1)
@click.option("--seeds", "count", type=click.IntRange(min=1), metavar="N", help="Play N games, from SEED (or 0) on.")
@click.option("--moves", type=click.IntRange(min=1), default=MOVES_OF_A_GAME, show_default=True, help="Of each game.")
def model_command(seeds: tuple[int, ...], count: int | None, moves: int) -> None:
    """Play at random against a real server, over all doors, and compare every answer with a model of it.

    Exits with 1 if a game was lost, and names the command that plays it again.
    """
    if count is not None:
        first = seeds[0] if seeds else 0
        seeds = tuple(range(first, first + count))
    began, done, lost = time.monotonic(), 0, 0
    try:
        for seed in seeds:
            lost += _is_lost(seed, moves)
            done += 1
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    click.echo(f"{done} games of {moves} moves, {lost} lost, {time.monotonic() - began:.0f} s")
    sys.exit(1 if lost or done < len(seeds) else 0)


def _is_lost(seed: int, moves: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="trisync-model-") as folder:
        try:
            trio.run(play, seed, Path(folder), moves)
        except Lost as problem:
            click.echo(str(problem))
            return True
    return False


if __name__ == "__main__":
    model_command()
