"""The options of the load test's scenarios: their ranges, their defaults, and what their help says."""

import os
from typing import Any

import click

from trisync.loadtest.options import LEAST, Number, OutputFile
from trisync.loadtest.plan import TRANSPORTS
from trisync.loadtest.publishers import MESSAGE_BYTES_MIN, UNANSWERED_MAX
from trisync.loadtest.scenarios import Scenario

WORKERS_MAX = 4
"""Workers by default, where the machine has so many cores to spare."""

ZIPF_MAX = 10
"""A second channel with a thousandth of the first one's load; far above it, the weights are no numbers any more."""


def spare_cores() -> int:
    """Workers that this machine has cores for, beside one for the server."""
    return max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0)) - 1))


_COUNT = click.IntRange(min=1)
_POSITIVE = Number(min=LEAST)
_WINDOW = click.IntRange(min=1, max=UNANSWERED_MAX)

_PLAN_OPTIONS: dict[str, tuple[click.ParamType[Any], str]] = {
    "publishers": (_COUNT, "Connections that publish."),
    "subscribers": (_COUNT, "Connections that subscribe."),
    "channels": (_COUNT, "Channels, all of them new."),
    "follow": (_COUNT, "Channels that each subscriber follows."),
    "zipf": (Number(min=0, max=ZIPF_MAX), "Exponent of the channels' popularity: 0 is even, 1 as in life."),
    "window": (_WINDOW, "Publishes that each publisher keeps unanswered."),
    "rate": (_POSITIVE, "Publishes a second, by all publishers together."),
    "slowest": (Number(min=1), "Times that the slowest subscriber is slower than the load."),
    "faults": (Number(min=0), "Faults a second: clients cut off, stalled, vanished; rude strangers."),
    "missed": (_COUNT, "Messages that everybody misses."),
    "connections": (_COUNT, "Connections to open."),
    "concurrency": (_COUNT, "Handshakes under way at once."),
    "message_bytes": (click.IntRange(MESSAGE_BYTES_MIN, 900_000), "Size of a message's data."),
    "duration_s": (_POSITIVE, "Seconds that are measured."),
    "warmup_s": (Number(min=0), "Seconds of load before that, checked and not measured."),
}
"""Options that are fields of the plan; a scenario has those that are in its defaults."""

_SPECIAL_OPTIONS: dict[tuple[str, str], tuple[click.ParamType[Any], str]] = {
    ("fairness", "publishers"): (
        click.IntRange(min=2),
        "Connections that publish: the polite one, and those that flood.",
    ),
    ("fairness", "rate"): (_POSITIVE, "Publishes a second, by the polite one."),
    ("fairness", "window"): (_WINDOW, "Publishes that each of the others keeps unanswered."),
    ("fairness", "duration_s"): (_POSITIVE, "Seconds that are measured, first alone and then again in the flood."),
    ("resume", "window"): (_WINDOW, "Publishes kept unanswered, by the one publisher there is."),
}
"""The same, where they are something else in a scenario."""

_TRANSPORT_OPTION = click.Option(
    ["--transport"], type=click.Choice(TRANSPORTS), default="ws", help="What the clients speak."
)

_COMMON_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--tcp"], default="localhost:2345", metavar="HOST:PORT", help="The server's TCP door, for lines and frames."
    ),
    click.Option(["--web"], default="localhost:8000", metavar="HOST:PORT", help="The server's WebSocket door, for ws."),
    click.Option(["--pid"], type=_COUNT, metavar="PID", help="The server's process, to see what it costs."),
    click.Option(["--spawn"], is_flag=True, help="Load a server of its own instead, on free ports, with new data."),
    click.Option(
        ["--durability"],
        type=click.Choice(["full", "normal"]),
        default="full",
        help="How durable the server is that --spawn starts.",
    ),
    click.Option(["--allow-remote"], is_flag=True, help="Load a server on another machine, if it is yours to load."),
    click.Option(
        ["--workers"],
        type=click.IntRange(1, 64),
        default=spare_cores,
        show_default=f"one for each core but one, up to {WORKERS_MAX}",
        metavar="N",
        help="Processes of the generator.",
    ),
    click.Option(
        ["--patience", "patience_s"],
        type=_POSITIVE,
        default=10.0,
        metavar="SECONDS",
        help="Seconds without any movement after which what is awaited counts as lost.",
    ),
    click.Option(["--seed"], type=int, default=1, metavar="N", help="For what is left to chance."),
    click.Option(
        ["--json", "json_file"],
        type=OutputFile(allow_dash=True),
        metavar="FILE",
        help="Write the whole result; - is standard output. trisync/loadtest/results.py describes every field.",
    ),
    click.Option(
        ["--html", "html_file"],
        type=OutputFile(),
        metavar="FILE",
        help="Write a report with plots, one page that needs nothing else.",
    ),
    click.Option(["--quiet"], is_flag=True, help="Show nothing while it runs."),
]
"""Options that all scenarios have, behind their own."""


def options_of(scenario_name: str, scenario: Scenario) -> list[click.Parameter]:
    """A scenario's, in the order of its help."""
    own: list[click.Parameter] = []
    for name, default in scenario.defaults.items():
        kind, text = _SPECIAL_OPTIONS.get((scenario_name, name)) or _PLAN_OPTIONS[name]
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        metavar = "SECONDS" if name.endswith("_s") else "N"
        own.append(click.Option([flag, name], type=kind, default=default, metavar=metavar, help=text))
    return [_TRANSPORT_OPTION, *own, *_COMMON_OPTIONS]
