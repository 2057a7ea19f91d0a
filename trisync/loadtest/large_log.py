"""What a start and a publish cost where the log is large already, beside an empty one: tools/large_log.py.

Each is served by a server of its own, in turns. One TCP connection publishes, and keeps many unanswered.
"""

import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import trio
from msgspec import Raw, Struct
from rich.console import Console
from rich.table import Table

from trisync.loadtest.endings import run_until_signal
from trisync.loadtest.options import SHOWN
from trisync.loadtest.target import ServerFailed, TargetRefused, serving
from trisync.settings import Settings
from trisync.storage.log import LogRefused, LogUnavailable, Submission
from trisync.storage.sqlite_log import SqliteLog
from trisync.wire.protocol import Publish

WINDOW = 512
"""Publishes that the connection keeps unanswered."""
FILL_BATCH = 1000
"""Messages stored at once while a log is filled."""
ANSWER_S = 20.0
"""Silence after which what is not answered counts as lost."""
DATA = Raw(b'{"text":"sixty bytes of data, more or less","number":12345}')


class PublishFailed(Exception):
    """A publish was refused, or not answered; the message says what came instead."""


class _Answer(Struct):
    op: str


_read = msgspec.json.Decoder(_Answer).decode


class Costs(NamedTuple):
    """Of one server, in seconds: until it was ready, and a publish's where all were to one channel, and to any."""

    start_s: float
    one_s: float
    any_s: float


FIGURES = {
    "start_s": ("until it is ready, ms", 1e3),
    "one_s": ("a publish, all to one channel, µs", 1e6),
    "any_s": ("a publish, each to any channel, µs", 1e6),
}
"""By what of Costs they show: their titles, and how many of their units a second has."""


async def fill(folder: Path, names: Sequence[str], messages: int) -> None:
    """Make a log in a folder that has so many messages, about the same number in each channel.

    Raises LogRefused, and LogUnavailable where the disk is full.
    """
    each, more = divmod(messages, len(names))
    log = await SqliteLog.open(folder, Settings(durability="normal"))
    try:
        items = (Publish(channel=name, data=DATA) for name in names)
        stored = chain.from_iterable(repeat(item, each + (place < more)) for place, item in enumerate(items))
        while True:
            batch = Submission(lambda submission: None)
            for item in islice(stored, FILL_BATCH):
                batch.add(item, len(DATA))
            if not batch.items:
                return
            await log.append([batch])
            await log.maintain()
    finally:
        await log.aclose()


async def publish_all(door: tuple[str, int], names: Sequence[str]) -> float:
    """Publish to one channel after the other; returns the seconds until the last was acknowledged.

    Raises PublishFailed, and OSError.
    """
    requests = [b'{"op":"publish","id":1,"channel":"%b","data":%b}\n' % (name.encode(), bytes(DATA)) for name in names]
    sent = acked = 0
    rest = b""
    async with await trio.open_tcp_stream(*door) as stream:
        begun = trio.current_time()
        while acked < len(requests):
            chunk = requests[sent : acked + WINDOW]
            data = b""
            with trio.move_on_after(ANSWER_S), suppress(trio.BrokenResourceError):
                await stream.send_all(b"".join(chunk))
                sent += len(chunk)
                data = await stream.receive_some()
            if not data:
                raise PublishFailed(f"{len(requests) - acked} publishes had no answer")
            *answers, rest = (rest + data).split(b"\n")
            for answer in answers:
                if _read(answer).op != "ok":
                    raise PublishFailed(f"a publish was answered by {answer.decode(errors='replace')}")
            acked += len(answers)
        return trio.current_time() - begun


async def measure(folder: Path, names: Sequence[str], publishes: int, chance: random.Random) -> Costs:
    """Serve the log in a folder, and publish to it: so often to one of the channels, then to any of them."""
    begun = trio.current_time()
    async with serving(folder, "full") as target:
        ready = trio.current_time()
        one_s = await publish_all(target.tcp, [chance.choice(names)] * publishes)
        any_s = await publish_all(target.tcp, chance.choices(names, k=publishes))
    return Costs(ready - begun, one_s / publishes, any_s / publishes)


async def compare(messages: int, channels: int, publishes: int, rounds: int) -> tuple[list[Costs], list[Costs]]:
    """The costs of an empty log and of a large one, a round each in turns. Raises one of _FAILURES."""
    names = [f"rooms/{number}" for number in range(channels)]
    empty: list[Costs] = []
    large: list[Costs] = []
    with tempfile.TemporaryDirectory(prefix="trisync-large-log-") as name:
        folder = Path(name)
        await fill(folder / "large", names, messages)
        for number in range(rounds):
            await fill(folder / f"empty{number}", names, 0)
            empty.append(await measure(folder / f"empty{number}", names, publishes, random.Random(number)))
            large.append(await measure(folder / "large", names, publishes, random.Random(number)))
    return empty, large


def figures(empty: Sequence[Costs], large: Sequence[Costs]) -> Iterator[tuple[str, str, str, str]]:
    """Each figure's title, its median in the empty and in the large log, and their ratio."""
    for field, (title, units) in FIGURES.items():
        of_empty, of_large = (statistics.median(getattr(costs, field) for costs in each) for each in (empty, large))
        yield title, f"{of_empty * units:.1f}", f"{of_large * units:.1f}", f"{of_large / of_empty:.2f}"


_FAILURES = (PublishFailed, ServerFailed, TargetRefused, LogRefused, LogUnavailable, msgspec.DecodeError, OSError)
_COUNT = click.IntRange(min=1)


@click.command("large_log", context_settings=SHOWN)
@click.option("--messages", type=_COUNT, default=10_000_000, metavar="N", help="In the large log, before it starts.")
@click.option("--channels", type=_COUNT, default=100_000, metavar="N", help="That they are in.")
@click.option("--publishes", type=_COUNT, default=50_000, metavar="N", help="That are measured of each, each time.")
@click.option("--rounds", type=_COUNT, default=3, metavar="N", help="How often each is measured.")
def large_log_command(messages: int, channels: int, publishes: int, rounds: int) -> None:
    """Publish to a log that is large already, and to an empty one, in turns, and print what each costs.

    In the empty one, the channels are made by the publishes. Both are in a new folder under TMPDIR, on free
    loopback ports, durable; 10 million messages take about two minutes to make, and 1.4 GB.
    """
    empty, large = run_until_signal(lambda: compare(messages, channels, publishes, rounds), _FAILURES)
    table = Table(
        "medians", "empty log", "large log", "ratio", caption=f"{messages:,} messages in {channels:,} channels"
    )
    for figure in figures(empty, large):
        table.add_row(*figure)
    Console(highlight=False, markup=False).print(table)
