"""Plain TCP sockets as streams that can also send without waiting, and that know when their peer is lost."""

import errno
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Awaitable, Callable

import outcome
import trio

from trisync.core.outbox import RECEIVE_BYTES, DirectStream
from trisync.core.troubles import Troubles
from trisync.doors.poller import Poller
from trisync.settings import Settings

logger = logging.getLogger(__name__)

_TCP_INFO = struct.Struct("=2xBB52xI")
_INT = struct.Struct("i")

UNSENT_BYTES = 16 * 1024
"""What the kernel takes of us beside the bytes under way: what it holds for a slow reader, we cannot drop any more."""

_PASSING = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.ENOSR),
    *(errno.EOPNOTSUPP, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT),
}
"""What accept() reports of one client that will not come after all: accept(2), "Error handling" and "ERRORS"."""
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What keeps everybody out for as long as there is no descriptor or memory for another socket."""
SCARCE_S = 0.1
"""After how long that is tried again."""


def configure(listener: socket.socket | trio.socket.SocketType, settings: Settings) -> None:
    """Have the sockets that a listening one accepts send at once, and the kernel keep little and probe idle peers.

    On Linux they inherit that, which saves six calls for each (keep-alive: RFC 9293, section 3.8.4). TCP_USER_TIMEOUT
    is not for us: it is applied to a peer that is alive and keeps its window closed too, which is a slow reader.
    SocketStream.peer_is_lost() tells the two apart.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(settings.tcp_keepalive_s)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _broken(cause: OSError) -> trio.BrokenResourceError:
    # In a function of its own: a frame that is in its own variable's traceback stays until the garbage collector comes.
    error = trio.BrokenResourceError()
    error.__cause__ = cause
    return error


class PeerListener(trio.abc.Listener[DirectStream]):
    """A listening socket whose clients come as SocketStreams; of trio's it takes only the socket.

    Trio's own would make two socket objects and a stream for each of them, and set what they inherit; and where there
    is no descriptor left, serve_listeners() logs a traceback ten times a second.
    """

    def __init__(self, listener: trio.SocketListener, settings: Settings, poller: Poller) -> None:
        old = listener.socket
        configure(old, settings)
        self._sock = socket.socket(old.family, old.type, old.proto, fileno=old.detach())
        self._sock.setblocking(False)
        self._poller = poller
        self._troubles = Troubles(logger)
        self._clients_wait = f"new clients of port {self._sock.getsockname()[1]} wait"

    async def accept(self) -> DirectStream:
        """The next client, once there is a descriptor and memory for it. Raises ClosedResourceError."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._sock.fileno() == -1:
                raise trio.ClosedResourceError
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                self._troubles.note(self._clients_wait, None)
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                if error.errno in _SCARCE:
                    self._troubles.note(self._clients_wait, error)
                    await trio.sleep(SCARCE_S)
                elif error.errno in _PASSING:
                    await trio.lowlevel.checkpoint()  # it may be of more than one
                else:
                    raise
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return SocketStream(sock, self._poller)

    async def aclose(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()


class SocketStream(DirectStream):
    """A connected TCP socket. Trio's has no way to send without waiting, and waits for each read by itself.

    What comes is read in the sweeps of a poller, whichever way it is asked for; its run() must be running.
    """

    __slots__ = ("_bytes_max", "_poller", "_sock", "_take", "_task", "_watched")

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poller = poller
        self._watched = False
        self._task: trio.lowlevel.Task | None = None  # who sleeps until it is woken by what comes
        self._take: Callable[[bytes], bool] | None = None
        self._bytes_max = 0

    @property
    def peer(self) -> str:
        """The other side's address, for people."""
        try:
            host, port, *_ = self._sock.getpeername()
        except OSError:
            return "somebody"
        return f"{host}:{port}"

    def peer_is_lost(self, silent_s: float) -> bool:
        """Whether what was sent, or the probe of a closed window, stays unacknowledged, and nothing came for so long.

        From struct tcp_info of linux/tcp.h: retransmits and probes are the tries since the last acknowledgement, the
        last field here the milliseconds since it.
        """
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        except OSError:
            return False
        retransmits, probes, last_ack_ms = _TCP_INFO.unpack(info)
        return max(retransmits, probes) > 1 and bool(last_ack_ms > 1000 * silent_s)

    def unacknowledged(self) -> int:
        if self._sock.fileno() == -1:
            return 0
        return int(_INT.unpack(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(_INT.size)))[0])

    @property
    def try_send(self) -> Callable[[bytes | memoryview], int]:
        return self._sock.send

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as rest:
            sent = 0
            while sent < len(rest):
                await self.wait_send_all_might_not_block()
                try:
                    sent += self._sock.send(rest[sent:])
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        if self._sock.fileno() == -1:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._sock)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        came: list[bytes] = []

        def take(chunk: bytes) -> bool:
            came.append(chunk)
            return False

        await self._read(take, max_bytes or RECEIVE_BYTES)
        return came[0]

    def hand_on(self, take: Callable[[bytes], bool]) -> Awaitable[None]:
        return self._read(take, RECEIVE_BYTES)  # no coroutine more for each of those who just listen

    async def _read(self, take: Callable[[bytes], bool], bytes_max: int) -> None:
        if self._sock.fileno() == -1:
            raise trio.ClosedResourceError
        if self._task is not None:
            raise trio.BusyResourceError("another task reads this socket")
        if not self._watched:
            self._poller.watch(self._sock.fileno(), self._ready)
            self._watched = True
        self._task, self._take, self._bytes_max = trio.lowlevel.current_task(), take, bytes_max
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = self._take = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _ready(self, bytes_max: int) -> None:
        """There is something to read, or an end. Who waits for it is woken only when `take` says so."""
        if self._take is None:
            self._unwatch()  # its reader is busy: until it sleeps again, nobody wants to know
            return
        try:
            chunk = self._sock.recv(min(bytes_max, self._bytes_max))
        except BlockingIOError:
            return
        except OSError as error:
            self._wake(outcome.Error(_broken(error)))
            return
        try:
            more = self._take(chunk)
        except Exception as error:
            self._wake(outcome.Error(error))
        else:
            if not more:
                self._wake(outcome.Value(None))

    def _wake(self, end: outcome.Outcome[None]) -> None:
        task = self._task
        if task is not None:  # `take` may have cancelled it
            self._task = self._take = None
            trio.lowlevel.reschedule(task, end)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._poller.unwatch(self._sock.fileno())

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        if self._sock.fileno() != -1:
            self._unwatch()
            self._wake(outcome.Error(trio.ClosedResourceError()))
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()
