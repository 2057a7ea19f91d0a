"""One simulated world: what it is made of, what befalls it, and what became of it. All of it follows from a seed.

First rough times: kills, restarts, disk errors, cut and silent connections, a clock that jumps. Then everything heals,
and within a bound everybody must have all that is theirs; a deadlock is found by a deadline in virtual time.
"""

import contextlib
import logging
import random
import shutil
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import trio

from tests.simulation.checker import check
from tests.simulation.determinism import Trace, fork, run_seeded
from tests.simulation.device import Device, Mood
from tests.simulation.disk import Disk, random_trouble
from tests.simulation.habits import KEYED, PLAIN, draw_devices, draw_settings, draw_weather
from tests.simulation.history import Members, read_final_log
from tests.simulation.links import CALM
from tests.simulation.machine import Kill, Machine, Overheard, Point
from tests.simulation.network import Network
from tests.simulation.nuisance import pester
from trisync.core import broker, channels, presence
from trisync.storage.log import Extent
from trisync.storage.sqlite_opening import FILE_NAME

LIVENESS_S = 120.0
"""Virtual seconds after the last fault by which everybody must have reached the head."""
PEACE_S = 45.0
"""Then, until all who vanished are found out: probes, deadlines for peers, the grace of presence."""
STOP_S = 60.0
"""For a stop in good order."""


_SLICING: list[Any] = [broker, channels, presence]
"""The modules that have a YIELD_EVERY: how many of a crowd they serve before others get a turn."""


class Outcome(NamedTuple):
    """What became of a world."""

    seed: int
    problems: list[str]
    digest: str
    """Of everything that happened: equal for equal runs."""
    events: int
    trace: list[str] | None


def simulate(seed: int, *, traced: bool = False) -> Outcome:
    """Let one world happen, and judge it."""
    trace = Trace(kept=traced)
    problems: list[str] = []
    with _folder_in_memory() as home, _listening_to_the_server(trace, problems), _in_slices(seed):
        world = World(random.Random(seed), trace, home)
        try:
            run_seeded(seed, world.happen)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            problems += [f"{said}: {_innermost(said)}" for said in _leaves(error)]
        if world.machine.log is not None:
            problems += check(
                world.mood.history, read_final_log(world.disk.folder / FILE_NAME, world.machine.settings.durability)
            )
    return Outcome(seed, problems, trace.digest(), len(world.mood.history), trace.lines)


@contextlib.contextmanager
def _folder_in_memory() -> Iterator[Path]:
    """A folder in which fsync() costs nothing, where the machine has such."""
    memory = Path("/dev/shm")
    home = tempfile.mkdtemp(prefix="trisync-simulation-", dir=memory if memory.is_dir() else None)
    try:
        yield Path(home)
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def _listening_to_the_server(trace: Trace, problems: list[str]) -> Iterator[None]:
    logger = logging.getLogger("trisync")
    overheard = Overheard(trace, problems.append)
    before = logger.level, logger.propagate
    logger.addHandler(overheard)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(overheard)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def _in_slices(seed: int) -> Iterator[None]:
    """In most worlds the few that there are are a crowd: between any two, others get a turn."""
    slices = random.Random(f"{seed} in slices").choice((1, 2, 1000))
    before = [module.YIELD_EVERY for module in _SLICING]
    for module in _SLICING:
        module.YIELD_EVERY = slices
    try:
        yield
    finally:
        for module, slices in zip(_SLICING, before, strict=True):
            module.YIELD_EVERY = slices


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _innermost(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = next(_leaves(cause.__cause__))
    frames = traceback.extract_tb(cause.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames[-4:]))


class World:
    """Everything there is in one run."""

    def __init__(self, source: random.Random, trace: Trace, home: Path) -> None:
        self.mood = Mood()
        self._random = source
        self.disk = Disk(home, fork(source), trace)
        self.network = Network(fork(source), trace, draw_weather(source))
        self._trace = trace
        self.machine = Machine(self.network, self.disk, fork(source), trace, draw_settings(source))
        self.devices = [
            Device(habits, self.network, fork(source), self.mood)
            for habits in draw_devices(source, self.machine.settings)
        ]
        self._rough_s = source.uniform(5, 40)
        self._pests = source.choice((0, 0, 1, 4))
        everything = [
            self._kill,
            self._restart,
            self._trouble,
            self._jump,
            self._storm,
            self._thin_air,
            self._slow_disk,
        ]
        self._faults = source.sample(everything, source.randint(1, len(everything)))
        self._fault_pause_s = source.choice((2.0, 5.0, 15.0))

    async def happen(self) -> None:
        """Rough times, calm times, the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.network.run)
            nursery.start_soon(self.machine.run)
            lives = await nursery.start(self._devices_live)
            with trio.move_on_after(self._rough_s):
                async with trio.open_nursery() as rough:
                    rough.start_soon(self._rage)
                    for _ in range(self._pests):
                        rough.start_soon(pester, self.network, fork(self._random))
            self._heal()
            await self._within(LIVENESS_S, self._everybody_settles, "reach the head")
            await trio.sleep(PEACE_S)
            await self._within(LIVENESS_S, self._everybody_settles, "reach the head again")
            await self._ask_for_members()
            for device in self.devices:
                device.testify()
            await self._within(STOP_S, self.machine.retire, "stop")
            lives.cancel()
            nursery.cancel_scope.cancel()

    async def _devices_live(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        async with trio.open_nursery() as nursery:
            for device in self.devices:
                nursery.start_soon(device.live)
            task_status.started(nursery.cancel_scope)

    async def _within(self, seconds: float, wait: Callable[[], Awaitable[None]], what: str) -> None:
        with trio.move_on_after(seconds) as patience:
            await wait()
        if patience.cancelled_caught:
            waiting = [device.waits_for() for device in self.devices if not device.settled]
            raise Stuck(f"within {seconds:g} s not everybody could {what}: {waiting}")

    async def _everybody_settles(self) -> None:
        while True:
            if all(device.settled for device in self.devices):
                extents = await self._extents()
                if all(
                    following.is_at(extents[channel])
                    for device in self.devices
                    for channel, following in device.followings.items()
                ):
                    return
            await trio.sleep(0.5)

    async def _extents(self) -> dict[str, Extent]:
        await self.machine.running()
        assert self.machine.log is not None
        return {channel: await self.machine.log.extent(channel) for channel in (*PLAIN, *KEYED)}

    async def _ask_for_members(self) -> None:
        server = await self.machine.running()
        for channel in (*PLAIN, *KEYED):
            members = {member["member"]: member.get("name") for member in server.members(channel)}
            self.mood.history.append(Members("", channel, members))

    def _heal(self) -> None:
        self._trace.note("calm")
        self.network.weather = CALM
        self.disk.trouble = None
        self.disk.slow_s_max = 0.001
        self.machine.heal()
        for device in self.devices:
            device.wrap_up()
        self.mood.calm_down()

    # What befalls it

    async def _rage(self) -> None:
        while True:
            await trio.sleep(self._random.uniform(0, self._fault_pause_s))
            self._random.choice(self._faults)()

    def _kill(self) -> None:
        points: tuple[Point | None, ...] = ("call", "statement", "COMMIT", "return", "send", None)
        point = self._random.choice(points)
        silently = self._random.random() < 0.3
        if point is None:
            self.machine.kill(silently=silently)
        else:
            self.machine.plan(Kill(point, self._random.choice((1, 1, 2, 5, 20)), silently))

    def _restart(self) -> None:
        if self.machine.server is not None:
            self._trace.note("the server is told to stop")
            if self._random.random() < 0.5:
                self.disk.slow_s_max = 0.5  # so that much is under way when it stops
            self.machine.server.drain()

    def _trouble(self) -> None:
        self.disk.trouble = random_trouble(self._random, trio.current_time())

    def _jump(self) -> None:
        self.machine.skew_ms += self._random.choice((-1, 1)) * self._random.choice((1000, 86_400_000))

    def _storm(self) -> None:
        """All connections break at once."""
        for link in list(self.network.links):
            link.cut()

    def _thin_air(self) -> None:
        """Some connections fall silent."""
        for link in list(self.network.links):
            if self._random.random() < 0.3:
                link.lose()

    def _slow_disk(self) -> None:
        self.disk.slow_s_max = self._random.choice((0.0, 0.002, 0.05, 1.0))


class Stuck(Exception):
    """Somebody did not get what is theirs in time, long after the last fault."""
