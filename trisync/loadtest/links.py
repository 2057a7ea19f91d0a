"""Plain non-blocking sockets on one epoll loop: connecting, WebSocket's handshake, sending, receiving.

No Trio in here: the generator must outrun the server on the core that the server leaves, and the whole of an event
is a few microseconds. What is sent and received is the business of clients.py.
"""

import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Protocol

from trisync.loadtest.plan import Transport, clock_us
from trisync.loadtest.transports import (
    AS_LINES,
    HANDSHAKE_END,
    JOIN,
    SPLIT,
    Handshake,
    Join,
    Malformed,
    Masker,
)

RECEIVE_BYTES = 1024 * 1024
"""Read at once, into one buffer that all connections of a worker share."""

ANSWER_BYTES_MAX = 16 * 1024
"""Of the server's answer to a WebSocket handshake."""

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python's socket module has no name for it
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, and no time


class Ready(Protocol):
    """Whatever waits for a file descriptor."""

    def ready(self, events: int) -> None:
        """Handle epoll's events."""


class Loop:
    """An epoll loop, its timers, and the buffer that its connections read into."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, Ready] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timers_made = 0
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))

    def watch(self, fd: int, who: Ready, events: int) -> None:
        """From now on, tell `who` of these events."""
        self._waiting[fd] = who
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Tell nobody any more; to be called before the descriptor is closed."""
        del self._waiting[fd]
        self._epoll.unregister(fd)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call a function once, so much later."""
        self._timers_made += 1
        heappush(self._timers, (clock_us() + int(seconds * 1e6), self._timers_made, do))

    def turn(self, timeout_s: float) -> None:
        """Wait for events, not longer than so, and have them and the timers that are due handled.

        epoll's own timeout counts in whole milliseconds, which is the size of what is measured here; select's
        does not, and an epoll descriptor can be selected on.
        """
        if self._timers:
            timeout_s = min(timeout_s, (self._timers[0][0] - clock_us()) / 1e6)
        if timeout_s > 0:
            select.select([self._epoll.fileno()], [], [], timeout_s)
        for fd, events in self._epoll.poll(0):
            who = self._waiting.get(fd)
            if who is not None:  # else it was forgotten in this very turn
                who.ready(events)
        now_us = clock_us()
        while self._timers and self._timers[0][0] <= now_us:
            heappop(self._timers)[2]()

    def close(self) -> None:
        """Let go of the descriptor."""
        self._epoll.close()


class Client(Protocol):
    """Who has a link."""

    def opened(self) -> None:
        """The link can be used."""

    def receive(self, chunk: memoryview) -> None:
        """Bytes have come; they are gone when this returns. May raise Malformed."""

    def ended(self, reason: str, kind: str) -> None:
        """The link is gone, though nobody here closed it; `kind` is one of problems.KINDS."""


class Link:
    """One connection to the server, from its first packet on."""

    def __init__(
        self, loop: Loop, client: Client, transport: Transport, host: str, port: int, buffer_bytes: int = 0
    ) -> None:
        self.split = SPLIT[transport]
        self.as_lines = AS_LINES[transport]
        self.began_us = clock_us()
        self.masker = Masker() if transport == "ws" else None
        self.join: Join = self.masker.join if self.masker is not None else JOIN[transport]
        self._loop = loop
        self._buffer = loop.buffer
        self.client = client
        """Whom it serves; somebody else may take it over once nothing is on its way."""
        self._handshake: Handshake | None = None
        self._answer = b""
        self._open = False
        self._reading = select.EPOLLIN
        self._unsent = bytearray()
        self._target = (host, port)
        self._fd = -1
        self._over = False
        try:
            self._connect(buffer_bytes)
        except OSError as error:  # which the client hears when it has this link, and not before
            loop.after(0, partial(self._fail, error))

    def _connect(self, buffer_bytes: int) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer_bytes:  # how much the kernel takes for a client that does not read
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        code = self._socket.connect_ex(self._target)
        if code not in (0, errno.EINPROGRESS):
            self._socket.close()
            raise OSError(code, os.strerror(code))
        self._fd = self._socket.fileno()
        self._loop.watch(self._fd, self, select.EPOLLOUT)

    @property
    def usable(self) -> bool:
        """Whether it is open: neither on its way there nor gone."""
        return self._open and self._fd >= 0

    @property
    def unsent(self) -> int:
        """Bytes that the server has not taken yet."""
        return len(self._unsent)

    def send(self, data: bytes) -> None:
        """Send now what fits, and the rest when the server takes it."""
        if self._fd < 0:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.change(self._fd, self._reading | select.EPOLLOUT)

    def pause(self) -> None:
        """Read nothing until resume(): what comes piles up in the kernel, and then at the server."""
        self._read_on(0)

    def resume(self) -> None:
        """Read again."""
        self._read_on(select.EPOLLIN)

    def _read_on(self, reading: int) -> None:
        self._reading = reading
        if self.usable:
            self._loop.change(self._fd, reading | (select.EPOLLOUT if self._unsent else 0))

    def close(self) -> None:
        """Hang up; the client is told nothing more."""
        self._over = True
        if self._fd >= 0:
            self._loop.forget(self._fd)
            self._socket.close()
            self._fd = -1

    def reset(self) -> None:
        """Hang up as a crash does: with a reset in place of an end."""
        if self._fd >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def vanish(self) -> socket.socket:
        """Be gone as when a cable is pulled: from now on nothing is heard, and nothing acknowledged.

        Returns the socket, to be closed by the caller at last. The client is told nothing more.
        """
        # A filter that takes no packet (struct sock_fprog of linux/filter.h; one instruction, BPF_RET with 0).
        take_nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        filter = struct.pack("HP", 1, ctypes.addressof(take_nothing))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter)
        self._loop.forget(self._fd)
        self._fd = -1
        self._over = True
        return self._socket

    def ready(self, events: int) -> None:
        """Handle epoll's events."""
        if events == select.EPOLLIN and self._open:
            self._readable()
            return
        if events & select.EPOLLOUT:
            self._writable()
        if events & ~select.EPOLLOUT and self._fd >= 0:
            self._readable()

    def end(self, reason: str, kind: str = "closed") -> None:
        """Hang up, and tell the client why."""
        if not self._over:
            self.close()
            self.client.ended(reason, kind)

    def _fail(self, error: OSError) -> None:
        self.end(error.strerror or str(error))

    def _writable(self) -> None:
        if not self._open and self._handshake is None:
            self._connected()
            return
        unsent = self._unsent
        self._unsent = bytearray()
        self._loop.change(self._fd, self._reading)
        self.send(bytes(unsent))

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.end(os.strerror(code))
            return
        self._loop.change(self._fd, self._reading)
        if self.masker is not None:
            self._handshake = Handshake(*self._target)
            self.send(self._handshake.request)
        else:
            self._open = True
            self.client.opened()

    def _readable(self) -> None:
        buffer = self._buffer
        try:
            size = self._socket.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not size:
            self.end("the server hung up")
            return
        try:
            if self._open:
                self.client.receive(buffer[:size])
            else:
                self._shake_hands(bytes(buffer[:size]))
        except Malformed as error:
            # Who answers a handshake otherwise may be no server of this protocol: then there is no connection.
            self.end(str(error), "malformed" if self._open else "closed")

    def _shake_hands(self, data: bytes) -> None:
        assert self._handshake is not None
        self._answer += data
        end = self._answer.find(HANDSHAKE_END)
        if end < 0:
            if len(self._answer) > ANSWER_BYTES_MAX:
                raise Malformed("an endless answer to the WebSocket handshake")
            return
        self._handshake.check(self._answer[:end])
        rest = self._answer[end + len(HANDSHAKE_END) :]
        self._open = True
        self._answer = b""
        self.client.opened()
        if rest and self._fd >= 0:
            self.client.receive(memoryview(rest))
