"""The command that runs a server: serve."""

import gc
import importlib
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from trisync import config
from trisync.cli.errors import first_of, in_words
from trisync.server import Address, Server
from trisync.storage.log import LogGone, LogRefused
from trisync.version import __version__
from trisync.wire.http_rules import is_loopback

STOPPED_AT_ONCE = 1
"""Exit status after a second signal: clients were not told, though nothing acknowledged is lost."""

GARBAGE_THRESHOLD = 20_000
"""New objects between two looks for unreachable cycles, of which the server makes few. Python's own 700 (2,000 from
3.13) had every hundred connections look through what all others hold."""


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting."""
    for name, field in reversed(config.fields().items()):
        default = config.default(field)
        several = "; may be given several times" if config.is_list(field) else ""
        command = click.option(
            "--" + name.replace("_", "-"),
            name,
            type=_type_of(config.choices(field), default),
            multiple=config.is_list(field),
            metavar="SECONDS" if isinstance(default, float) else None,
            help=f"{config.description(field)}{several}.  [{_shown(default)}]",
        )(command)
    return command


def _type_of(choices: list[str], default: object) -> Any:
    return click.Choice(choices) if choices else type(default) if isinstance(default, (int, float)) else str


def _shown(default: object) -> str:
    return "none" if default == [] else f"{default:.10g}" if isinstance(default, float) else str(default)


@click.command("serve")
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
def serve_command(config_file: Path | None, app: str | None, **given: Any) -> None:
    """Run a server until Ctrl-C or SIGTERM.

    They drain it; a second one stops it at once.

    Every option is also a variable, TRISYNC_TCP_PORT for --tcp-port, and a line in the --config file. The command
    line is stronger than the environment, that is stronger than the file, and that than the settings of an --app.
    Options that may be given several times are variables with commas between, and arrays in the file.
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
    problem = ""
    try:
        status = trio.run(_serve, server)
    except* (LogRefused, OSError) as group:
        problem = in_words(first_of(group))
    except* (LogGone, sqlite3.Error) as group:
        failure = first_of(group)
        name = getattr(failure, "sqlite_errorname", "")
        problem = (
            f"stopped at once, because the log failed: {failure}{name and f' ({name})'}. "
            "What was not acknowledged may be stored or not; the next start finds out."
        )
        if name.startswith("SQLITE_CORRUPT"):
            problem += " If it fails again, `trisync restore` puts a backup in the log's place."
    if problem:  # raised here: Python before 3.11.4 makes a group of what an except* raises
        raise click.ClickException(problem)
    sys.exit(status)


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
        await nursery.start(heed_signals)

        async def run(task_status: trio.TaskStatus[Address]) -> None:
            await server.serve(task_status=task_status)
            nursery.cancel_scope.cancel()

        _announce(await nursery.start(run))
    return status


def _announce(address: Address) -> None:
    """Say where to connect: one line for programs, and more for a person at a terminal."""
    host = _before_a_port(address.host)
    ready = f"trisync ready tcp={host}:{address.tcp_port} web={host}:{address.web_port} data={address.data}"
    try:
        print(ready, flush=True)
    except OSError as error:  # else a disk that is full would be taken for that of the data
        raise OSError(error.errno, error.strerror, "standard output") from None
    console = Console()
    if console.is_terminal:
        name = _name_of(address.host)
        console.print(
            Panel(
                f"netcat    [bold]nc {name} {address.tcp_port}[/]\n"
                f"browser   [bold]http://{escape(_before_a_port(name))}:{address.web_port}/[/]\n"
                f"data      {escape(str(Path(address.data).resolve()))}\n\n"
                "[dim]Ctrl-C stops in good order.[/]",
                title=f"trisync {__version__}",
                expand=False,
            )
        )


def _before_a_port(host: str) -> str:
    """A name or address as a port may follow it (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _name_of(host: str) -> str:
    """How people call an address that is listened on: where that is all there are, others need this machine's name."""
    if is_loopback(host):
        return "localhost"
    return socket.gethostname() if host in ("0.0.0.0", "::") else host
