"""Running Trio from a seed: its scheduler, its clock, and a trace by which two runs can be compared.

Trio has no public way to seed its scheduler; what is used here is private, pinned with Trio's version, and guarded by a
test. One run at a time in a process: the switches are global.
"""

import gc
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run as scheduler

T = TypeVar("T")


def run_seeded(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` in virtual time, which jumps ahead whenever all tasks wait; the same seed, the same run.

    Nothing in it may wait for a thread, a socket or the real clock.
    """
    with _seeded_scheduler(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    private: Any = scheduler
    before = private._ALLOW_DETERMINISTIC_SCHEDULING, private._r.getstate()
    private._ALLOW_DETERMINISTIC_SCHEDULING = True
    private._r.seed(seed)
    gc.disable()  # half the time of a run, and reference counts free nearly everything
    try:
        yield
    finally:
        gc.enable()
        private._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        private._r.setstate(before[1])


class Trace:
    """What happened, in order: hashed always, kept as text only where somebody wants to read it."""

    def __init__(self, *, kept: bool = False) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: list[str] | None = [] if kept else None

    def note(self, *what: object) -> None:
        """Something happened now."""
        line = f"{trio.current_time():.6f} {' '.join(map(str, what))}"
        self._hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def digest(self) -> str:
        """The hash of everything noted so far."""
        return self._hash.hexdigest()


def fork(source: random.Random) -> random.Random:
    """A source of its own for one part of a world, so that what another part draws does not shift it."""
    return random.Random(source.getrandbits(64))
