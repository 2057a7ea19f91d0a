"""What makes the machine run: connections are opened, read and written when it says so, under asyncio or Trio.

What is said, and when to connect, is the machine's; how bytes get there is in transports.py.
"""

import logging
import math
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from trisync.client.errors import NotConnected
from trisync.client.machine import Machine
from trisync.client.status import State
from trisync.client.transports import CLOSE_S, Transport, TransportError, reason_of
from trisync.client.watchdog import ANSWER_S

logger = logging.getLogger("trisync.client")

LINGER_S = 2.0
"""How long stopping may take to end a connection in good order."""


class Signal:
    """Wakes those who wait now. Whoever waits checks first, and again afterwards, for what they wait for."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def fire(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            event, self._event = self._event, None
            event.set()

    async def wait(self) -> None:
        """Wait for the next fire()."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Driver:
    """Runs one machine, in a task of its own from start() to stop(), which one task calls."""

    def __init__(self, machine: Machine, open_transport: Callable[[], Awaitable[Transport]], where: str) -> None:
        self.changed = Signal()
        """Fired when anything may have changed: what was received, asked for, or become of the connection."""
        self._machine = machine
        self._open = open_transport
        self._where = where
        self._tasks: anyio.abc.TaskGroup | None = None
        self._ended = False
        machine.on_change = self.changed.fire

    @property
    def started(self) -> bool:
        """Whether it was started, be it that it has stopped since."""
        return self._tasks is not None

    async def start(self) -> None:
        """Begin to connect. The next duty is stop(), whatever happens."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self.run)

    async def first_connection(self, wait_s: float) -> None:
        """Wait until there is a connection. Raises NotConnected, after the first attempt where `wait_s` is 0."""
        machine = self._machine
        give_up_at = anyio.current_time() + wait_s
        with anyio.CancelScope(deadline=give_up_at if wait_s else math.inf):
            while machine.status.state is not State.ONLINE:
                machine.check_open()
                if machine.status.state is State.OFFLINE and machine.connect_at >= give_up_at:
                    break
                await self.changed.wait()
        machine.check_open()
        if machine.status.state is not State.ONLINE:
            raise NotConnected(machine.problem or f"{machine.status.reason}: no answer within {wait_s:g} s")

    async def stop(self, reason: str) -> int:
        """End the connection, in good order if that is quick. Returns how many publishes were not settled."""
        assert self._tasks is not None
        is_alone = self._machine.status.state in (State.CONNECTING, State.OFFLINE)  # with nothing to end in good order
        left = self._machine.close(reason)
        try:
            with anyio.move_on_after(0 if is_alone else LINGER_S, shield=True):
                while not self._ended:
                    await self.changed.wait()
        finally:  # against task.cancel() of asyncio there is no shield
            self._tasks.cancel_scope.cancel()
            # Without the exception that may be under way: it is the program's own, and must not come out in a group.
            await self._tasks.__aexit__(None, None, None)
        return left

    async def run(self) -> None:
        """Connect, again and again, until the machine is closed. Cancelled, the connection is ended at once."""
        try:
            while self._machine.error is None:
                await self._pause()
                if self._machine.error is None:
                    await self._connect()
        except Exception as error:
            logger.exception("a fault of the client")
            self._machine.close(f"a fault of the client: {error!r}")
        finally:
            self._ended = True
            self.changed.fire()

    async def _pause(self) -> None:
        while self._machine.error is None:
            left_s = self._machine.connect_at - anyio.current_time()
            if left_s <= 0:
                return
            with anyio.move_on_after(left_s):
                await self.changed.wait()

    async def _connect(self) -> None:
        machine = self._machine
        machine.connecting(self._where)
        try:
            with anyio.fail_after(ANSWER_S):
                transport = await self._open()
        except TimeoutError:
            machine.lost(f"no connection to {self._where} within {ANSWER_S:.0f} s")
            return
        except (OSError, TransportError) as error:
            machine.lost(f"no connection to {self._where}: {reason_of(error)}")
            return
        transport.on_part = machine.sent_part
        try:
            machine.connected()
            ending = await self._converse(transport)
            if machine.error is not None:
                await self._part(transport)
        finally:
            await transport.abort()
        # Who opened a connection and does not say hello is seldom a server, and it helps to know who that was.
        greeted = machine.status.state is not State.CONNECTING
        machine.lost(ending if greeted else f"no connection to {self._where}: {ending}")

    async def _converse(self, transport: Transport) -> str:
        """Read and write until the connection ends, or the machine wants to hang up. Returns why."""
        ending = ""
        async with anyio.create_task_group() as tasks:

            async def until_end(work: Callable[[Transport], Awaitable[None]]) -> None:
                nonlocal ending
                try:
                    await work(transport)
                    ending = self._machine.hang_up or ""
                except TransportError as error:
                    ending = self._machine.complaint or str(error)
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_end, self._write)
            tasks.start_soon(until_end, self._watch)
            await until_end(self._read)
        return ending

    async def _part(self, transport: Transport) -> None:
        """Say the last words, and end the connection in good order if the other side is still there for that."""
        try:
            with anyio.move_on_after(CLOSE_S):
                if self._machine.last_words:
                    await transport.send(self._machine.last_words)
                await transport.aclose()
        except TransportError as error:
            logger.debug("the connection ended before it was closed: %s", error)

    async def _read(self, transport: Transport) -> None:
        machine = self._machine
        while machine.hang_up is None:
            if machine.may_read():
                machine.receive(await transport.receive())
                self.changed.fire()
            else:
                await self.changed.wait()

    async def _write(self, transport: Transport) -> None:
        machine = self._machine
        while machine.hang_up is None:
            output = machine.take_output()
            if output or transport.owes:
                self.changed.fire()  # answers are awaited now, for which there may be reading again
                await transport.send(output)
            else:
                await self.changed.wait()

    async def _watch(self, _: Transport) -> None:
        """Mind the deadlines. Nobody else could, while a write waits for a network that takes nothing."""
        machine = self._machine
        while machine.hang_up is None:
            with anyio.CancelScope(deadline=machine.deadline()):
                await self.changed.wait()
            machine.tick()
