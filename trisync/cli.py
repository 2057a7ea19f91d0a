"""The command line: serve, and talk to a server from a shell."""

import gc
import importlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
from rich.console import Console
from rich.panel import Panel

from trisync import config
from trisync.http_rules import is_loopback
from trisync.log import LogGone, LogRefused
from trisync.server import Address, Server
from trisync.sqlite_backup import Progress, backup, restore
from trisync.version import __version__

STOPPED_AT_ONCE = 1
"""Exit status after a second signal: clients were not told, though nothing acknowledged is lost."""

GARBAGE_THRESHOLD = 20_000
"""New objects between two looks for unreachable cycles, of which the server makes few. Python's own 700 (2,000 from
3.13) had every hundred connections look through what all others hold."""


class _Commands(click.Group):
    """The commands, of which the load test is imported only when it is asked for: a server's start is not its."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), "loadtest"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "loadtest":
            from trisync.loadtest.cli import loadtest_command

            return loadtest_command
        return super().get_command(context, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trisync")
def main() -> None:
    """A reliable real-time data synchronisation server, and tools to talk to one.

    \b
    Start one, and talk to it:
      trisync serve
      nc localhost 2345
      trisync subscribe lobby --last 10
      trisync publish lobby '{"text": "hello"}'
    """


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting."""
    for name, field in reversed(config.fields().items()):
        default = config.default(field)
        command = click.option(
            "--" + name.replace("_", "-"),
            name,
            multiple=config.is_list(field),
            metavar=_metavar(default),
            help=f"{config.description(field)}.  [{_shown(default)}]",
        )(command)
    return command


def _metavar(default: object) -> str:
    return {int: "INTEGER", float: "SECONDS"}.get(type(default), "TEXT")


def _shown(default: object) -> str:
    return "none" if default == [] else f"{default:.10g}" if isinstance(default, float) else str(default)


@main.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TRISYNC_CONFIG",
    help="A TOML file with settings, by the same names: tcp_port = 2345",
)
@click.option(
    "--app",
    metavar="MODULE:SERVER",
    help="Serve the trisync.Server of this name in this module of yours, with its hooks and settings.",
)
@_setting_options
def serve(config_file: Path | None, app: str | None, **given: Any) -> None:
    """Run a server until Ctrl-C or SIGTERM, which drain it; a second one stops it at once.

    Every option is also a variable, TRISYNC_TCP_PORT for --tcp-port, and a line in the --config file. The command
    line is stronger than the environment, that is stronger than the file, and that than the settings of an --app.
    """
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in (None, ())
    }
    server = Server() if app is None else _load_app(app)
    try:
        settings = server.settings = config.load_settings(given, os.environ, config_file, server.settings)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
    )
    if not is_loopback(settings.host):
        Console(stderr=True).print(
            f"[bold red]{settings.host} can be reached from other machines, and anybody there can read and write "
            "everything: there are no passwords yet.[/]"
        )
    gc.freeze()  # what was imported stays
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        sys.exit(trio.run(_serve, server))
    except* (LogRefused, OSError) as group:
        raise click.ClickException(str(_first_of(group))) from None
    except* (LogGone, sqlite3.Error) as group:
        failure = _first_of(group)
        name = f" ({failure.sqlite_errorname})" if isinstance(failure, sqlite3.Error) else ""
        raise click.ClickException(
            f"stopped at once, because the log failed: {failure}{name}. "
            "What was not acknowledged may be stored or not; the next start finds out."
        ) from None


def _first_of(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _load_app(app: str) -> Server:
    """A server that a program has made. Raises click.UsageError; what its module raises comes out as it is."""
    module, _, name = app.partition(":")
    if not module or module.startswith(".") or not name:
        raise click.UsageError(f"--app is MODULE:SERVER, such as chat:server, not {app!r}")
    sys.path.insert(0, os.getcwd())
    try:
        program = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it was found, and is what does not find something
        raise click.UsageError(f"there is no module {module!r} here") from None
    found = getattr(program, name, None)
    if found is None:
        raise click.UsageError(f"the module {module!r} has no {name!r}")
    if not isinstance(found, Server):
        raise click.UsageError(f"{app} is no trisync.Server")
    return found


async def _serve(server: Server) -> int:
    status = 0

    async def heed_signals(task_status: trio.TaskStatus[None]) -> None:
        nonlocal status
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if server.draining:
                    status = STOPPED_AT_ONCE
                    nursery.cancel_scope.cancel()
                else:
                    logging.getLogger("trisync").info("stopping; once more to stop at once")
                    server.drain()

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: heed_signals(task_status))

        async def run(task_status: trio.TaskStatus[Address]) -> None:
            await server.serve(task_status=task_status)
            nursery.cancel_scope.cancel()

        _announce(await nursery.start(lambda task_status: run(task_status)))
    return status


def _announce(address: Address) -> None:
    """Say where to connect: one line for programs, and more for a person at a terminal."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    print(f"trisync ready tcp={host}:{address.tcp_port} web={host}:{address.web_port} data={address.data}", flush=True)
    console = Console()
    if console.is_terminal:
        name = "localhost" if is_loopback(address.host) else address.host
        console.print(
            Panel(
                f"netcat    [bold]nc {name} {address.tcp_port}[/]\n"
                f"browser   [bold]http://{name}:{address.web_port}/[/]\n"
                f"data      {Path(address.data).resolve()}\n\n"
                "[dim]Ctrl-C stops in good order.[/]",
                title=f"trisync {__version__}",
                expand=False,
            )
        )


_url_option = click.option(
    "--url",
    default="tcp://localhost:2345",
    envvar="TRISYNC_URL",
    show_default=True,
    help="The server: tcp://, or ws:// for its web door; tcps:// or wss:// with TLS.",
)


def _run(talk: Callable[[], Awaitable[None]]) -> None:
    """Run a client command; what goes wrong is one line for a person, and exit status 1."""
    from trisync.client import ClientError

    # That a connection was lost and is back is said on standard error; meanwhile the command waits.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        trio.run(talk)
    except (ClientError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except BaseException as error:
        if isinstance(_first_of(error), KeyboardInterrupt):
            sys.exit(130)
        raise


def _as_data(text: str) -> object:
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return text


@main.command()
@click.argument("channel")
@click.argument("data", required=False)
@click.option("--name", help="Who says it.")
@_url_option
def publish(channel: str, data: str | None, name: str | None, url: str) -> None:
    """Publish DATA to CHANNEL, and print the offset it got once it is on the server's disk.

    DATA is JSON, or else text. Without it, every line of standard input is published.

    \b
      trisync publish lobby '{"text": "hello"}'
      trisync publish lobby hello --name alice
      dmesg | trisync publish logs
    """
    from trisync.client import connect

    async def talk() -> None:
        async with connect(url, name=name, wait_s=0) as client:
            async for lines in _lines_of_input() if data is None else _once([data]):
                receipts = []
                for line in lines:
                    await client.room()
                    receipts.append(client.post(channel, _as_data(line)))
                for receipt in receipts:
                    click.echo(await receipt)

    _run(talk)


async def _once(lines: list[str]) -> AsyncIterator[list[str]]:
    yield lines


async def _lines_of_input() -> AsyncIterator[list[str]]:
    """The lines of standard input, as many together as there are at a time. Raises ValueError if they are no UTF-8."""
    rest = b""
    while chunk := await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 1 << 16, abandon_on_cancel=True):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.decode() for line in lines]
    if rest:
        yield [rest.decode()]


@main.command()
@click.argument("channel")
@click.option("--since", type=click.IntRange(min=0), help="Begin behind this offset.")
@click.option("--last", type=click.IntRange(1, 1000), help="Begin with the last N messages.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@_url_option
def subscribe(channel: str, since: int | None, last: int | None, count: int | None, url: str) -> None:
    """Print what is published to CHANNEL, one JSON object a line, until Ctrl-C.

    \b
      trisync subscribe lobby --last 10
      trisync subscribe lobby --since 0 | jq .data
    """
    from trisync.client import Message, connect

    async def talk() -> None:
        async with (
            connect(url, wait_s=0) as client,
            client.subscribe(channel, since=since, last=last, gaps="yield") as messages,
        ):
            left = -1 if count is None else count
            async for item in messages:
                click.echo(item.to_json())
                left -= isinstance(item, Message)
                if not left:
                    break

    _run(talk)


@main.command()
@click.argument("channel")
@click.option("--since", type=click.IntRange(min=0), help="Begin behind this offset; else the newest are shown.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many messages.")
@_url_option
def history(channel: str, since: int | None, limit: int, url: str) -> None:
    """Print messages of CHANNEL that are stored, one JSON object a line, oldest first.

    \b
      trisync history lobby
      trisync history lobby --since 1000 --limit 500
    """
    from trisync.client import connect

    async def talk() -> None:
        async with connect(url, wait_s=0) as client:
            page = await client.history(channel, since=since, limit=limit)
            if page.gap is not None:
                click.echo(page.gap.to_json())
            for message in page.messages:
                click.echo(message.to_json())

    _run(talk)


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the data folder, found as `trisync serve` finds it, and whether to replace what is there."""
    for option in (
        click.option("--force", is_flag=True, help="Replace what is there already."),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), envvar="TRISYNC_CONFIG"
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
        with click.progressbar(length=1, label="copying", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

            def progress(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            said = work(folder, progress)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None
    except (LogRefused, sqlite3.Error, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(said)


@main.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_data_options
def backup_command(file: Path, data: str | None, config_file: Path | None, force: bool) -> None:
    """Copy the log of a data folder into FILE, also while a server serves it.

    The copy is of one moment, and is checked. FILE appears whole, or not at all.

    \b
      trisync backup /mnt/backups/monday.db --data /var/lib/trisync
    """

    def work(folder: Path, progress: Progress) -> str:
        backup(folder, file, replace=force, progress=progress)
        return f"{folder} is copied to {file}, {file.stat().st_size} bytes"

    _copy(work, data, config_file)


@main.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_data_options
def restore_command(file: Path, data: str | None, config_file: Path | None, force: bool) -> None:
    """Make a backup FILE the log of a data folder that no server uses.

    It gets a new epoch, so that no client takes it for the log it knew: they all start over.

    \b
      trisync restore /mnt/backups/monday.db --data /var/lib/trisync --force
    """

    def work(folder: Path, progress: Progress) -> str:
        epoch = restore(file, folder, replace=force, progress=progress)
        return f"{folder} has what is in {file}, in the new epoch {epoch}"

    _copy(work, data, config_file)
