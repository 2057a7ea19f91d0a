"""The server: one nursery that owns the log, the broker and the doors; start, drain, stop."""

import errno
import logging
import random
import resource
import secrets
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from trisync.config import check_settings
from trisync.core.broker import Broker
from trisync.core.outbox import DirectStream
from trisync.core.retention import Retention
from trisync.doors.http import HttpDoor
from trisync.doors.poller import Poller
from trisync.doors.sockets import PeerListener
from trisync.doors.tcp import TcpDoor
from trisync.doors.web_files import load_web_files
from trisync.embedding import Embedding
from trisync.retention_rules import Rules
from trisync.sessions.registry import Registry
from trisync.settings import Settings
from trisync.storage.log import Log
from trisync.storage.sqlite_log import SqliteLog
from trisync.tokens import seeded_tokens

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel accepts before we do: a reconnecting crowd must not be refused."""
SPARE_DESCRIPTORS = 64
"""Open files beside the clients': the log and its readers, listeners, standard streams, imports."""

Listeners = list[trio.abc.Listener[DirectStream]]
Handler = Callable[[trio.abc.HalfCloseableStream, str], Awaitable[None]]


class Address(NamedTuple):
    """Where the server listens and keeps its data, once it is ready."""

    host: str
    tcp_port: int
    web_port: int
    data: str


class Doors(NamedTuple):
    """Where clients come in."""

    tcp: Listeners
    web: Listeners
    address: Address
    attend: Callable[[], Awaitable[None]] = trio.sleep_forever
    """Runs while the doors are open, and as long as anybody who came in is there."""


class Server(Embedding):
    """One server. serve() runs it; drain(), from another task, makes serve() return once everybody is served.

    A program that runs it inside itself registers its hooks before serve(), and can publish and read while it
    serves: see Embedding.
    """

    def __init__(self, settings: Settings | None = None, *, seed: int | None = None) -> None:
        super().__init__()
        self.settings = Settings() if settings is None else settings
        """What serve() begins with; to be replaced before that at the latest."""
        self._tokens = secrets.token_hex if seed is None else seeded_tokens(random.Random(seed))
        self._drain_asked = trio.Event()
        self._has_served = False
        self.address: Address | None = None
        """None until both doors are open, and again when it has stopped."""

    def drain(self) -> None:
        """Stop in good order: see serve(). Further calls change nothing."""
        self._drain_asked.set()

    @property
    def draining(self) -> bool:
        """Whether drain() was called."""
        return self._drain_asked.is_set()

    async def serve(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drain() is called, or cancelled.

        `task_status.started` gets the Address when both doors are open. Draining closes the TCP door, commits and
        acknowledges what was accepted, tells every client when to come back, and sends what is theirs, for
        `drain_s` seconds at most. Cancelled, it stops at once; what was acknowledged is on the disk in any case.
        Raises ValueError for settings that cannot be, LogRefused, and OSError where an address cannot be had.
        Anything that the log raises otherwise ends the server: an outcome that is not known must not be served. A
        server serves once: RuntimeError.
        """
        if self._has_served:
            raise RuntimeError("a server serves once: make another one")
        check_settings(self.settings)
        self._has_served = True
        settings = self.settings = fit_connections(self.settings)
        log = await SqliteLog.open(Path(settings.data), settings, tokens=self._tokens)
        try:
            tcp_listeners = await open_listeners(settings.host, settings.tcp_port)
            try:
                web_listeners = await open_listeners(settings.host, settings.web_port)
            except BaseException:
                for listener in tcp_listeners:
                    listener.socket.close()
                raise
            address = Address(settings.host, port_of(tcp_listeners), port_of(web_listeners), settings.data)
            with closing(Poller()) as poller:
                tcp: Listeners = [PeerListener(listener, settings, poller) for listener in tcp_listeners]
                web: Listeners = [PeerListener(listener, settings, poller) for listener in web_listeners]
                await self.serve_on(log, Doors(tcp, web, address, poller.run), task_status=task_status)
        finally:
            await log.aclose()

    async def serve_on(
        self, log: Log, doors: Doors, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """serve(), on a log and doors of the caller's; closes the doors and leaves the log open."""
        try:
            await self._serve_log(log, doors, task_status)
        finally:
            self._broker = self.address = None
            with trio.CancelScope(shield=True):  # to close a listener waits for nothing
                for listener in (*doors.tcp, *doors.web):
                    await listener.aclose()

    async def _serve_log(self, log: Log, doors: Doors, task_status: trio.TaskStatus[Address]) -> None:
        settings = self.settings
        self.hooks.configure(settings.hook_s, settings.message_bytes_max, self._tokens)
        broker = Broker(log, settings, timer=trio.current_time, tokens=self._tokens)
        retention = Retention(log, broker, Rules(settings.retention), settings.retention_tick_s)
        registry = Registry(settings.connections_max)
        tcp = TcpDoor(broker, registry, settings, self.hooks)
        files = load_web_files(doors.address.tcp_port)
        web = HttpDoor(broker, registry, settings, self.hooks, files)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doors.attend)
            nursery.start_soon(broker.run)
            nursery.start_soon(broker.presence.run)
            if settings.retention:
                broker.stored = retention.note
                nursery.start_soon(retention.run)
            nursery.start_soon(web.websockets.keep_alive)
            nursery.start_soon(registry.watch_peers, settings.peer_timeout_s)
            tcp_open = await nursery.start(partial(open_door, doors.tcp, tcp.handle, nursery))
            await nursery.start(partial(open_door, doors.web, web.handle, nursery))
            self.address = doors.address
            self._broker = broker
            task_status.started(doors.address)
            await self._drain_asked.wait()
            tcp_open.cancel()
            web.draining = True
            broker.draining = True
            await self._say_goodbye(broker, registry)
            nursery.cancel_scope.cancel()

    async def _say_goodbye(self, broker: Broker, registry: Registry) -> None:
        settings = self.settings
        with trio.move_on_after(settings.drain_s) as patience:
            await broker.settled()
            await registry.part()
            while registry.sessions():
                await registry.left()
        if patience.cancelled_caught:
            logger.info("%d clients had not taken all within %g s", len(registry.sessions()), settings.drain_s)


def fit_connections(settings: Settings) -> Settings:
    """The settings with `connections_max` below what the limit on open files allows, raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connections_max + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            allowed = max(1, soft - SPARE_DESCRIPTORS)
            logger.warning("only %d connections: the limit on open files is %d", allowed, soft)
            return msgspec.structs.replace(settings, connections_max=allowed)
    return settings


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listening sockets for every address of a host; a free port, the same for all, where it is 0.

    Raises OSError, which names both.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}: {host}, port {port}") from error
    except UnicodeError as error:  # of Python, for what cannot be looked up: an empty label, as in 127.0.0..1
        raise OSError(errno.EINVAL, f"This is no name of a host: {host}, port {port}") from error
    if port == 0 and len(listeners) > 1:
        chosen = port_of(listeners)
        for listener in listeners:
            listener.socket.close()
        return await trio.open_tcp_listeners(chosen, host=host, backlog=BACKLOG)
    return listeners


def port_of(listeners: list[trio.SocketListener]) -> int:
    """The port that listeners are on."""
    return int(listeners[0].socket.getsockname()[1])


async def open_door(
    listeners: Listeners,
    handler: Handler,
    nursery: trio.Nursery,
    *,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    """Accept clients and handle each in `nursery`, until the scope given to `task_status` is cancelled."""

    def handle(stream: DirectStream) -> Awaitable[None]:
        return handler(stream, stream.peer)

    with trio.CancelScope() as scope:
        task_status.started(scope)
        await trio.serve_listeners(handle, listeners, handler_nursery=nursery)
