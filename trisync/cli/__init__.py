"""The command line: which commands there are, and in which modules."""

import errno
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from trisync.cli.errors import INTERRUPTED, first_of, in_words

try:
    import click
except KeyboardInterrupt:  # it takes a moment
    sys.exit(INTERRUPTED)

_HOMES = {
    "serve": "trisync.cli.serve",
    "publish": "trisync.cli.client",
    "subscribe": "trisync.cli.client",
    "history": "trisync.cli.client",
    "state": "trisync.cli.client",
    "delete": "trisync.cli.client",
    "backup": "trisync.cli.copies",
    "restore": "trisync.cli.copies",
    "loadtest": "trisync.loadtest.cli",
}
"""The modules of the commands, imported only when one is asked for: `publish` has no use for a server."""


@contextmanager
def _quiet_at_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends what is done in it without a word."""
    try:
        yield
    except BaseException as error:
        # A question of click's makes an Abort of it, as of an answer that is no: what it was is the Abort's context.
        cause = error.__context__ if isinstance(error, click.Abort) else first_of(error)
        if isinstance(cause, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        raise


class _Commands(click.Group):
    """The commands, each found where its home is."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*_HOMES]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _HOMES:
            return None
        command = getattr(importlib.import_module(_HOMES[name]), f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Find out what is asked for; --help is also given here, for which all commands are imported."""
        with _quiet_at_ctrl_c():
            return super().make_context(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for, which is imported here."""
        with _quiet_at_ctrl_c():
            return super().invoke(context)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """As click's; a standard output that has no space left, as /dev/full has none, is one line too."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as it was given, UTF-8 or not
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise  # an --app's module may raise it
            click.echo(f"Error: standard output: {in_words(error)}", err=True)  # what was asked for may be done
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="trisync", prog_name="trisync")
def main() -> None:
    """A reliable real-time data synchronisation server, and tools to talk to one.

    \b
    Start one, and talk to it:
      trisync serve
      nc localhost 2345
      trisync subscribe lobby --last 10
      trisync publish lobby '{"text": "hello"}'
    """
