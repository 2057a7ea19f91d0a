"""The comparison: the same load in the same run against trisync and the peers that are installed, as ratios.

Rows, rounds and figures; tables and options are in compare_cli.py. How a peer is loaded, and what "in flight" means
for it, is in peer_load.py. Each measurement has one server, new, and one generator process, on one machine.
"""

import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from msgspec import Struct

from trisync.loadtest.machine import describe_machine
from trisync.loadtest.peer_dialects import PeerDialect
from trisync.loadtest.peer_load import Load
from trisync.loadtest.peer_servers import PEERS, apply, missing, running
from trisync.loadtest.plan import Transport
from trisync.loadtest.problems import Problem, Problems, describe
from trisync.loadtest.report_words import count_text
from trisync.loadtest.target import ServerFailed, spawned
from trisync.version import __version__

MESSAGE_BYTES = 60
WARMUP_S_MAX = 1.0
WARMUP_SHARE = 0.25
"""Load before the measured part: a share of its length, up to so many seconds."""

SWEEP_S = 0.1
"""How often deliveries are read in sweeps (see Load). With one message in flight some 50 messages of 60 bytes wait
meanwhile, far less than a socket's buffer; a sweep over 500 subscribers takes about 5 ms."""


class Contender(Struct, frozen=True):
    """Who is loaded in a row, and with what window."""

    name: str
    window: int
    transport: Transport | None = None
    """Of trisync."""
    peer: PeerDialect | None = None


class Goal(Struct, frozen=True):
    """A ratio of medians that the project wants to reach."""

    of: str
    to: str
    at_least: float


class Row(Struct, frozen=True):
    """A load that several are put under."""

    title: str
    unit: str
    publishers: int
    subscribers: int
    contenders: Sequence[Contender]
    goals: Sequence[Goal]
    sweep_s: float = 0.0


_TRISYNC: dict[Transport, str] = {
    "ws": "trisync, WebSocket",
    "lines": "trisync, TCP lines",
    "frames": "trisync, frames",
}
_WS, _LINES = _TRISYNC["ws"], _TRISYNC["lines"]
_PUBSUB, _STREAMS, _NATS = (PEERS[peer].name for peer in ("redis-pubsub", "redis-streams", "nats"))


def _ours(transport: Transport, window: int, note: str = "") -> Contender:
    return Contender(_TRISYNC[transport] + note, window, transport=transport)


def _peer(dialect: PeerDialect, window: int) -> Contender:
    return Contender(PEERS[dialect].name, window, peer=dialect)


def _fanout(subscribers: int, window: int, *goals: Goal, sweep_s: float = 0.0) -> Row:
    peers: list[PeerDialect] = ["redis-pubsub", "nats", "node-ws"]
    contenders = [_ours("ws", window), _ours("lines", window), *(_peer(dialect, window) for dialect in peers)]
    flight = "one message" if window == 1 else f"{window} messages"
    reading = ", read in sweeps" if sweep_s else ""
    title = f"1 publisher → {subscribers} subscribers, {flight} in flight{reading}"
    return Row(title, "deliveries", 1, subscribers, contenders, goals, sweep_s)


_ONE_BY_ONE = Goal(_WS, _NATS, 1.0), Goal(_LINES, _NATS, 1.0)

ROWS: dict[str, Row] = {
    "fanout-500": _fanout(500, 512, Goal(_WS, _PUBSUB, 1.5), Goal(_WS, _NATS, 2.0), Goal(_LINES, _PUBSUB, 2.0)),
    "fanout-100": _fanout(100, 512, Goal(_WS, _PUBSUB, 0.9), Goal(_WS, _NATS, 1.5)),
    "one-500": _fanout(500, 1, *_ONE_BY_ONE),
    "one-500-sweeps": _fanout(500, 1, *_ONE_BY_ONE, sweep_s=SWEEP_S),
    "ingest": Row(
        "durable publishes over one pipelining connection, acknowledged",
        "publishes",
        1,
        0,
        [
            _ours("lines", 512, ", window of 512"),
            _ours("lines", 64, ", window of 64"),
            _ours("ws", 512, ", window of 512"),
            _peer("redis-streams", 64),
        ],
        [
            Goal(f"{_LINES}, window of 512", _STREAMS, 0.9),
            Goal(f"{_WS}, window of 512", f"{_LINES}, window of 512", round(120 / 170, 3)),
        ],
    ),
    "ingest-50": Row(
        "durable publishes by 50 connections, each waits for each answer",
        "publishes",
        50,
        0,
        [_ours("lines", 1), _ours("ws", 1), _peer("redis-streams", 1)],
        [Goal(_LINES, _STREAMS, 0.4)],
    ),
}
"""The comparisons by name.

Where one message is in flight, each delivery is read by itself, which costs the generator more than it costs a server
to send it: `one-500` is of both together, on the cores that they share, and `one-500-sweeps` of the servers. Of Redis
Streams the window is 64 in `ingest`: a pipeline of 64.
"""


class Measurement(Struct, frozen=True):
    """One contender once."""

    per_s: float
    generator_cpu: float
    server_cpu: float | None
    """Processor time in the measured part, in cores."""
    problems: list[str]
    machine_idle: float | None = None
    """Processor time in it that nobody used, in cores."""


class Figures(Struct, frozen=True):
    """One contender in all rounds. Rates are a second, of the row's unit, in the rounds without problems."""

    name: str
    window: int
    median: float | None
    """None, as the next two, where there was no such round."""
    min: float | None
    max: float | None
    rounds: list[Measurement]


class Ratio(Struct, frozen=True):
    """Two contenders' medians, and the lowest and highest ratio within a round that neither had problems in."""

    of: str
    to: str
    median: float | None
    """None where one of them has none, or one that is 0; so the next two, where there was no such round."""
    min: float | None
    max: float | None
    at_least: float | None
    """What the project wants to reach, where it has said so."""


class RowResult(Struct, frozen=True):
    """What a row came to."""

    row: str
    title: str
    unit: str
    contenders: list[Figures]
    ratios: list[Ratio]


class Comparison(Struct, frozen=True, kw_only=True):
    """All of it: what `--json` writes."""

    tool: str
    started: str
    machine: str
    command: str
    duration_s: float
    rounds: int
    message_bytes: int
    versions: dict[str, str]
    missing: dict[str, str]
    """Peers that are not installed, and the command that installs each."""
    passed: bool
    """Whether everybody got every message."""
    rows: list[RowResult]


Say = Callable[[str], None]


async def compare(
    rows: Sequence[str], duration_s: float, rounds: int, modules: list[Path], say: Say, command: str = ""
) -> Comparison:
    """Make all measurements, in rounds: each contender once, then each again. `say` is told of each.

    Raises TargetRefused, CrewFailed and OSError. Cancelled, it ends what it has started.
    """
    started = datetime.now(UTC)
    known = sorted({each.peer for name in rows for each in ROWS[name].contenders if each.peer is not None})
    absent = [dialect for dialect in known if PEERS[dialect].find(modules) is None]
    for dialect in absent:
        say(missing(PEERS[dialect]))
    results = []
    for name in rows:
        row = ROWS[name]
        contenders = [each for each in row.contenders if each.peer not in absent]
        found: dict[str, list[Measurement]] = {each.name: [] for each in contenders}
        for number, contender in product(range(rounds), contenders):
            one = await measure(row, contender, duration_s, modules)
            found[contender.name].append(one)
            verdict = "; ".join(one.problems)
            say(f"{name}, round {number + 1}: {contender.name}: {count_text(one.per_s)}/s {verdict}".rstrip())
        figures = [summarise(each, found[each.name]) for each in contenders]
        results.append(RowResult(name, row.title, row.unit, figures, ratios(row, figures)))
    return Comparison(
        tool=f"trisync compare {__version__}",
        started=started.isoformat(timespec="seconds"),
        machine=describe_machine(),
        command=command,
        duration_s=duration_s,
        rounds=rounds,
        message_bytes=MESSAGE_BYTES,
        versions={"trisync": f"{__version__}, Python {platform.python_version()}"}
        | {PEERS[dialect].name: PEERS[dialect].version(modules) for dialect in known if dialect not in absent},
        missing={PEERS[dialect].name: PEERS[dialect].install for dialect in known if dialect in absent},
        passed=not any(one.problems for row in results for each in row.contenders for one in each.rounds),
        rows=results,
    )


async def measure(row: Row, contender: Contender, duration_s: float, modules: list[Path]) -> Measurement:
    """One contender once, on a server of its own. Raises as compare()."""
    warmup_s = min(WARMUP_S_MAX, WARMUP_SHARE * duration_s)
    problems = Problems()
    server = spawned("full") if contender.peer is None else running(contender.peer, modules)
    try:
        async with server as target:
            host, port = target.door(contender.transport or "lines")
            outcome = await apply(
                Load(
                    transport=contender.transport,
                    peer=contender.peer,
                    host=host,
                    port=port,
                    pid=target.pid,
                    publishers=row.publishers,
                    subscribers=row.subscribers,
                    window=contender.window,
                    warmup_s=warmup_s,
                    duration_s=duration_s,
                    message_bytes=MESSAGE_BYTES,
                    sweep_s=row.sweep_s,
                )
            )
    except ServerFailed as failure:  # trisync's, at its stop
        problems.add("crashed", str(failure))
    problems.merge(outcome.problems)
    said = [_in_words(problem) for problem in problems.listed()]
    return Measurement(outcome.per_s, outcome.generator_cpu, outcome.server_cpu, said, outcome.machine_idle)


def _in_words(problem: Problem) -> str:
    return ": ".join([describe(problem), *problem.examples[:1]])


def summarise(contender: Contender, rounds: list[Measurement]) -> Figures:
    """A contender's rounds. What was measured while something broke is no rate."""
    rates = [one.per_s for one in rounds if not one.problems]
    return Figures(contender.name, contender.window, *_spread(rates), rounds)


def _spread(rates: list[float]) -> tuple[float | None, float | None, float | None]:
    """Median, lowest and highest."""
    return (statistics.median(rates), min(rates), max(rates)) if rates else (None, None, None)


def ratios(row: Row, figures: list[Figures]) -> list[Ratio]:
    """Each of trisync's contenders to each peer that was there, and what else has a goal."""
    found = {each.name: each for each in figures}
    peers = {each.name for each in row.contenders if each.peer is not None}
    goals = {(goal.of, goal.to): goal.at_least for goal in row.goals}
    pairs = [(of, to) for of, to in product(found, found) if (of not in peers and to in peers) or (of, to) in goals]
    return [_ratio(found[of], found[to], goals.get((of, to))) for of, to in pairs]


def _ratio(of: Figures, to: Figures, at_least: float | None) -> Ratio:
    by_round = [
        round(one.per_s / other.per_s, 3)
        for one, other in zip(of.rounds, to.rounds, strict=True)
        if other.per_s and not one.problems and not other.problems
    ]
    median = None if of.median is None or not to.median else round(of.median / to.median, 3)
    return Ratio(of.name, to.name, median, *_spread(by_round)[1:], at_least)
