"""The machine that the server runs on: it starts the real server, kills it at chosen points, and starts it again.

A kill takes effect at once for everybody else: from that statement or send on, nothing that the dead server's code
does reaches the disk or the network.
"""

import logging
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

import trio

from tests.simulation.determinism import Trace, fork
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from trisync.server import Address, Doors, Server
from trisync.settings import Settings
from trisync.storage.log import LogRefused
from trisync.storage.sqlite_log import SqliteLog
from trisync.tokens import seeded_tokens

EPOCH_MS = 1_766_000_000_000
"""What the machine's clock shows when a world begins."""


Point = Literal["call", "statement", "COMMIT", "return", "send"]
"""Before the log's work goes to its thread, in it, right before a commit, right behind it, and, once something was
committed, before something is sent: an acknowledgement or a delivery."""


class Kill(NamedTuple):
    """Where the server dies: when it gets to a point for so many times from now on."""

    point: Point
    times: int
    silently: bool
    """Whether its clients are not told, as when the power goes; else their connections are reset."""


class Bug(Exception):
    """The server failed in a way that nothing which was done to it explains."""


class Machine:
    """Runs one server after the other over one disk. run() must be running."""

    def __init__(self, network: Network, disk: Disk, source: random.Random, trace: Trace, settings: Settings) -> None:
        self.settings = settings
        self.server: Server | None = None
        """None while the machine is down."""
        self.log: SqliteLog | None = None
        """The server's, or the last one's; None before the first has served."""
        self.skew_ms = 0
        self.down_s_max = 3.0
        self.retired = trio.Event()
        """Set once the last server has stopped."""
        self._network = network
        self._disk = disk
        self._random = source
        self._trace = trace
        self._kill: Kill | None = None
        self._scope = trio.CancelScope()
        self._retiring = False
        self._up = trio.Event()
        disk.on_statement = self._pass
        network.on_send = self._pass_send
        self._since_commit = False

    def now_ms(self) -> int:
        """What the machine's own clock shows, right or wrong."""
        return EPOCH_MS + self.skew_ms + int(trio.current_time() * 1000)

    async def run(self) -> None:
        """Serve, die, serve again, until retire() is done."""
        while not self._retiring:
            await self._live()
            if not self._retiring:
                await trio.sleep(self._random.uniform(0.01, self.down_s_max))
        self.retired.set()

    async def running(self) -> Server:
        """The server, as soon as there is one."""
        while self.server is None:
            await self._up.wait()
        return self.server

    async def retire(self) -> None:
        """Stop the server in good order, for good."""
        self._retiring = True
        (await self.running()).drain()
        await self.retired.wait()

    async def _live(self) -> None:
        disk = self._disk
        disk.begin_life()
        server = Server(self.settings, seed=self._random.getrandbits(64))
        self._trace.note("the server starts")
        with trio.CancelScope() as self._scope:
            try:
                log = await SqliteLog.open(
                    disk.folder,
                    self.settings,
                    executor=disk.execute,
                    timer=trio.current_time,
                    writer_timer=trio.current_time,
                    now_ms=self.now_ms,
                    tokens=seeded_tokens(fork(self._random)),
                    connect=disk.connect,
                )
                try:
                    await self._serve(server, log)
                finally:
                    self.server = None
                    await log.aclose()
            except* LogRefused as errors:
                if not disk.dead and not disk.struck:
                    raise Bug(f"the server refused its log: {errors!r}") from errors
                self._trace.note("the server cannot start")
            except* Exception as errors:
                # A log whose outcome is unknown ends the server; of a dead one, nothing that it says counts.
                if not disk.dead and not disk.outcome_unknown:
                    raise Bug(f"the server ended by itself: {errors!r}") from errors
                self._trace.note("the server stopped by itself")

    async def _serve(self, server: Server, log: SqliteLog) -> None:
        doors = Doors([self._network.listen("tcp")], [self._network.listen("web")], Address("127.0.0.1", 1, 2, "sim"))
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: server.serve_on(log, doors, task_status=task_status))
            self.server, self.log = server, log
            self._up.set()
            self._up = trio.Event()

    # Dying

    def plan(self, kill: Kill) -> None:
        """Have the server die at a point to come."""
        self._kill = kill

    def heal(self) -> None:
        """Plan nothing bad any more."""
        self._kill = None
        self.down_s_max = 0.1

    def _pass(self, point: str) -> None:
        if point.startswith("COMMIT"):
            self._since_commit = True
        kill = self._kill
        if kill is None:
            return
        reached = (
            point == kill.point
            or (kill.point == "COMMIT" and point.startswith("COMMIT"))
            or (kill.point == "statement" and point not in ("call", "return"))
        )
        if reached:
            self._count_down(kill)

    def _pass_send(self) -> None:
        if self._kill is not None and self._kill.point == "send" and self._since_commit:
            self._count_down(self._kill)

    def _count_down(self, kill: Kill) -> None:
        if kill.times > 1:
            self._kill = kill._replace(times=kill.times - 1)
        else:
            self.kill(silently=kill.silently)

    def kill(self, *, silently: bool) -> None:
        """The server dies now."""
        self._kill = None
        self._since_commit = False
        if self.server is None or self._disk.dead:
            return
        self._trace.note("the server is killed", "silently" if silently else "")
        self._disk.die(lossy=silently and self.settings.durability == "normal")
        self.server = None
        for listener in list(self._network.listeners.values()):
            listener.shut()
        for link in list(self._network.links):
            link.machine_died(silently=silently)
        self._scope.cancel()


class Overheard(logging.Handler):
    """What the server says about itself: a bug that it caught and logged is none the less a bug."""

    def __init__(self, trace: Trace, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._trace.note("log:", record.getMessage())
        if record.exc_info or "bug" in record.getMessage():
            trouble = record.exc_info[1] if record.exc_info else None
            self._report(f"the server logged: {record.getMessage()} ({trouble!r})")
