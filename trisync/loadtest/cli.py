"""The command line of the load-test tool: `trisync loadtest` and tools/loadtest.py."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click
import trio
from click.core import ParameterSource
from rich.console import Console

from trisync.cli.errors import INTERRUPTED
from trisync.loadtest.crew import CrewFailed
from trisync.loadtest.endings import Interrupted, conclude, run_until_signal
from trisync.loadtest.machine import usage
from trisync.loadtest.options import SHOWN, STANDARD_OUTPUT, Output, unwritten, write_output
from trisync.loadtest.plan import Plan, Transport
from trisync.loadtest.report_html import to_html
from trisync.loadtest.report_terminal import Display, print_result
from trisync.loadtest.results import Result, to_json
from trisync.loadtest.run import run
from trisync.loadtest.scenario_options import options_of
from trisync.loadtest.scenarios import SCENARIOS, Scenario
from trisync.loadtest.target import Target, TargetRefused, resolve

_CALLED = "$CALLED"
"""In the help's examples: what was typed to get here, so that they can be pasted."""

_EPILOG = """\b
The server:
  $CALLED fanout --spawn
    one of its own, on free ports, with new data that is removed
  $CALLED fanout
    the one on localhost, ports 2345 and 8000
  $CALLED fanout --web :4001 --pid 1234
    another one here; with its pid, its processor and memory are shown
  $CALLED fanout --tcp :4000 --transport lines
    by its other door: --tcp is for lines and frames, --web for ws

Only this machine's servers are loaded unless --allow-remote says otherwise. A run publishes to new channels called
load/RUN/NUMBER, which stay in the server's log.

The checks: every byte that every subscriber gets is parsed, or equal to bytes that were: offsets dense, in order,
none twice, the same for all; every acknowledged publish delivered, at the offset it was acknowledged with. At the end
the log is read back, of long runs as much as 10 s allow, and must hold the same; the result says how much it was. A
signal then ends the reading, and the figures are kept. What the server says that it has trimmed, or that its log was
replaced, is told and broke nothing.

\b
Exit status:
  0    everything was kept
  1    something broke, also before a signal ended the run; it says what
  2    the command line is wrong
  3    the run could not be made
  4    everything was kept, but a file could not be written
  130  a signal (Ctrl-C) ended the run, and until then nothing had broken"""


def called(group: click.Context) -> list[str]:
    """What was typed to get to this group of commands: `trisync loadtest`, or a tool by its path."""
    if group.parent is None and Path(sys.argv[0]).stem == group.info_name:
        return [sys.argv[0]]
    return group.command_path.split()


class _Group(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = [*args]  # what the command line says from the scenario on, for the report
        return super().parse_args(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        text = super().get_help(ctx).replace("\nCommands:\n", "\nScenarios:\n")
        return text.replace(_CALLED, shlex.join(called(ctx)))


@click.group(
    "loadtest",
    cls=_Group,
    epilog=_EPILOG,
    subcommand_metavar="SCENARIO [OPTIONS]",
    context_settings=SHOWN,
)
def loadtest_command() -> None:
    """Load a server, measure it, and check what it promises.

    \b
      $CALLED fanout --spawn --subscribers 100 --transport lines
      $CALLED ingest --spawn --publishers 50 --window 1
      $CALLED latency --spawn --rate 1000 --html report.html
      $CALLED SCENARIO --help
    """


def _command(name: str, scenario: Scenario) -> click.Command:
    def invoke(**given: Any) -> None:
        try:
            _invoke(name, given)
        except KeyboardInterrupt:  # before the run or behind it: a host's name may be looked up for long
            raise Interrupted from None

    return click.Command(
        name,
        callback=invoke,
        params=options_of(name, scenario),
        short_help=scenario.summary,
        help=f"{scenario.summary}\n\n{scenario.explanation}",
    )


for _name, _scenario in SCENARIOS.items():
    loadtest_command.add_command(_command(_name, _scenario))


def _invoke(name: str, given: dict[str, Any]) -> None:
    plan = _plan(name, given)
    target = _target(plan.transport, given)
    json_file, html_file = given["json_file"], given["html_file"]
    display = Display(plan, Console(stderr=True), quiet=given["quiet"])
    try:
        result = _run(plan, target, display)
    except Interrupted:
        raise Interrupted(display.problems, [json_file, html_file]) from None
    console = Output(stderr=str(json_file) == "-")
    problems = [
        write_output(json_file, lambda: to_json(result)),
        write_output(html_file, lambda: to_html(result).encode()),
        unwritten("standard error" if console.stderr else STANDARD_OUTPUT, lambda: print_result(result, console)),
    ]
    conclude(problems, passed=result.passed)
    if result.log_read.interrupted:
        sys.exit(INTERRUPTED)


def _target(transport: Transport, given: dict[str, Any]) -> Target | str:
    """The server that was named, or the durability of one to be started. Raises UsageError where it is not clear."""
    context = click.get_current_context()
    named = [
        option
        for option in ("tcp", "web", "pid")
        if context.get_parameter_source(option) is not ParameterSource.DEFAULT
    ]
    if given["spawn"]:
        if named:
            raise click.UsageError(f"--spawn loads a server of its own, and --{named[0]} names another one: say one.")
        durability: str = given["durability"]
        return durability
    if context.get_parameter_source("durability") is not ParameterSource.DEFAULT:
        raise click.UsageError("--durability is for the server that --spawn starts; another one has its own.")
    used, other = ("web", "tcp") if transport == "ws" else ("tcp", "web")
    if other in named and used not in named:
        raise click.UsageError(
            f"--{other} is not used: over {transport}, clients connect to --{used}. Say that, or --transport "
            f"{'lines or frames' if other == 'tcp' else 'ws'}."
        )
    if given["pid"] is not None and usage(given["pid"]) is None:
        raise click.UsageError(f"--pid: there is no process {given['pid']}.")
    try:
        return Target(
            resolve(given["tcp"], 2345, allow_remote=given["allow_remote"]),
            resolve(given["web"], 8000, allow_remote=given["allow_remote"]),
            given["pid"],
            None,
        )
    except TargetRefused as problem:
        raise click.UsageError(str(problem)) from None


def _plan(name: str, given: dict[str, Any]) -> Plan:
    fields = {field: given[field] for field in SCENARIOS[name].fields}
    if name == "resume":
        fields["publishers"] = 1
    clients = max(fields.get("publishers", 0), fields.get("subscribers", 0), fields.get("connections", 0))
    workers = max(fields["workers"], 2) if name == "fairness" else fields["workers"]
    # A worker that may shake no hands could not begin.
    return Plan(scenario=name, **fields | {"workers": min(workers, clients, fields.get("concurrency", clients))})


def _run(plan: Plan, target: Target | str, display: Display) -> Result:
    group = click.get_current_context().parent
    assert group is not None
    command = shlex.join([*called(group), *group.obj])
    interrupted = trio.Event()
    with display:
        return run_until_signal(
            lambda: run(plan, target, display.show, interrupted, command),
            (TargetRefused, CrewFailed, OSError),
            interrupted,
        )
