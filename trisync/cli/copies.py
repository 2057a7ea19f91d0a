"""The commands that copy a log: backup, restore."""

import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import click

from trisync import config
from trisync.cli.errors import in_words
from trisync.storage.log import LogRefused
from trisync.storage.sqlite_backup import Progress, backup, restore


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the data folder, found as `trisync serve` finds it, and whether to replace what is there."""
    for option in (
        click.option("--force", is_flag=True, help="Replace what is there already."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="TRISYNC_CONFIG",
            help="The TOML file of the server whose data folder it is.",
        ),
        click.option("--data", metavar="DIR", help="The data folder, if not that of the environment or --config."),
    ):
        command = option(command)
    return command


def _copy(work: Callable[[Path, Progress], str], data: str | None, config_file: Path | None) -> None:
    """Run a copy of or to the data folder, and say how it ended; what goes wrong is one line, and exit status 1."""
    given = {} if data is None else {"data": data}
    try:
        folder = Path(config.load_settings(given, os.environ, config_file).data)
        is_seen = sys.stderr is not None and sys.stderr.isatty()
        with click.progressbar(length=1, label="copying", file=sys.stderr, hidden=not is_seen) as bar:

            def progress(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            said = work(folder, progress)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None
    except (LogRefused, sqlite3.Error, OSError) as error:
        raise click.ClickException(in_words(error)) from None
    click.echo(said)


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_data_options
def backup_command(file: Path, data: str | None, config_file: Path | None, force: bool) -> None:
    """Copy the log of a data folder into FILE.

    That may be done while a server serves it. The copy is of one moment, and is checked. FILE appears whole, or not
    at all.

    \b
      trisync backup /mnt/backups/monday.db --data /var/lib/trisync
    """

    def work(folder: Path, progress: Progress) -> str:
        backup(folder, file, replace=force, progress=progress)
        return f"{folder} is copied to {file}, {file.stat().st_size} bytes"

    _copy(work, data, config_file)


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_data_options
def restore_command(file: Path, data: str | None, config_file: Path | None, force: bool) -> None:
    """Make a backup FILE the log of a data folder.

    No server may be using it. The log gets a new epoch, so that no client takes it for the one it knew: they all start
    over.

    \b
      trisync restore /mnt/backups/monday.db --data /var/lib/trisync --force
    """

    def work(folder: Path, progress: Progress) -> str:
        epoch = restore(file, folder, replace=force, progress=progress)
        return f"{folder} has what is in {file}, in the new epoch {epoch}"

    _copy(work, data, config_file)
