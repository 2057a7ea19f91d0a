"""How the commands of this folder end: their exit status, what they say of a failure, and what a signal does."""

import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import trio

from trisync.cli.errors import INTERRUPTED, first_of, in_words
from trisync.loadtest.options import name_of
from trisync.loadtest.problems import Problem, describe

T = TypeVar("T")

BROKEN, UNUSABLE, NO_RUN, UNWRITTEN = 1, 2, 3, 4
"""Exit status: a check failed; the command line is wrong (click's own); the run could not be made; all was kept, and
a file could not be written. INTERRUPTED where a signal ended it."""


class NotRun(click.ClickException):
    """There was no run, so nothing is known of the server."""

    exit_code = NO_RUN


class Interrupted(click.ClickException):
    """The run was ended from outside, before it was judged; what had broken until then has broken all the same."""

    def __init__(self, problems: Sequence[Problem] = (), unwritten: Sequence[Path | None] = ()) -> None:
        lines = ["Interrupted: the run did not come to its end, and nothing was judged."]
        if problems:
            lines = ["Interrupted: the run did not come to its end. Until then it had found:"]
            for problem in problems:
                lines += [f"  {describe(problem)}", *(f"    {example}" for example in problem.examples)]
        lines += [f"{name_of(file)} was not written." for file in unwritten if file is not None]
        super().__init__("\n".join(lines))
        self.exit_code = BROKEN if problems else INTERRUPTED  # type: ignore[misc]  # click asks the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


def conclude(problems: list[str | None], *, passed: bool) -> None:
    """Say what could not be written, behind the figures, and exit with BROKEN or UNWRITTEN unless all is well."""
    for problem in filter(None, problems):
        with suppress(OSError):  # the exit status says it too
            click.echo(f"Error: {problem}", err=True)
    if not passed:
        sys.exit(BROKEN)
    if any(problems):
        sys.exit(UNWRITTEN)


def _signals() -> list[signal.Signals]:
    """What ends a run in good order: also that the terminal is gone, unless it was started to outlive it (nohup)."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, *hangup]


def run_until_signal(
    work: Callable[[], Awaitable[T]], failures: tuple[type[Exception], ...], interrupted: trio.Event | None = None
) -> T:
    """Run a load to its end, and return its result. A signal sets `interrupted`, and cancels the work.

    Raises NotRun where one of these failures ended it, and Interrupted where a signal came first: then the load has
    stopped and all that it started has ended. More signals change nothing about that, then and until the process ends.
    """
    came: list[int] = []
    signals = _signals()
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in signals}
    results: list[T] = []
    failure: BaseException | None = None
    try:
        results = trio.run(_until_signal, work, signals, came, interrupted)
    except* failures as group:
        failure = first_of(group)
    finally:
        for each, handler in before.items():
            # Ignored, and not with a handler: Python takes those back in its last moments.
            signal.signal(each, signal.SIG_IGN if came and not results else handler)
    if failure is not None:  # raised here: Python before 3.11.4 makes a group of what an except* raises
        raise NotRun(in_words(failure))
    if not results:
        raise Interrupted
    return results[0]


async def _until_signal(
    work: Callable[[], Awaitable[T]], signals: list[signal.Signals], came: list[int], interrupted: trio.Event | None
) -> list[T]:
    """The result; none where a signal came first, or had come already."""
    results: list[T] = []
    # Around the nursery: a second signal must not meet a handler that raises while the first one's work is done.
    with trio.open_signal_receiver(*signals) as received:
        async with trio.open_nursery() as nursery:

            async def heed_signals() -> None:
                if not came:
                    came.append(await anext(received))
                if interrupted is not None:
                    interrupted.set()
                nursery.cancel_scope.cancel()

            nursery.start_soon(heed_signals)
            results.append(await work())
            nursery.cancel_scope.cancel()
    return results
