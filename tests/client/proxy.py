"""A network between a client and a server that does what networks do: delay, cut, close one way, swallow everything.

Plain sockets and threads, so that tests of any kind can have it between them and a server.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing is then a TCP reset, as from a machine that has forgotten the connection."""


class _Link:
    """One connection through the proxy: the client's side and the server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.swallowed = False

    def reset(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class FaultProxy:
    """Listens on `port` of the loopback address, and passes bytes on to a server's port. close() must be called.

    What it does to bytes may be changed at any time; connections made from then on are treated alike.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.delay_s = 0.0
        """How long each read is kept before it is passed on."""
        self._refusing = False
        self._swallowing = False
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """How many connections there were."""
        self._start(self._accept)

    def close(self) -> None:
        """End everything, its threads too."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Reset all connections; new ones are taken."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.reset()

    def refuse(self) -> None:
        """Reset all connections, and every new one at once."""
        self._refusing = True
        self.cut()

    def half_close(self) -> None:
        """Close the way from the server to the client, of all connections there are: the other stays open."""
        with self._lock:
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.client.shutdown(socket.SHUT_WR)

    def swallow(self) -> None:
        """A black hole: connections stay open, new ones are taken, and not a byte arrives anywhere."""
        self._swallowing = True
        with self._lock:
            for link in self._links:
                link.swallowed = True

    def heal(self) -> None:
        """From now on new connections work; those whose bytes were swallowed never will."""
        self._refusing = self._swallowing = False

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                server = socket.socket()  # nobody is there, and the client is told so
                _Link(client, server).reset()
                continue
            link = _Link(client, server)
            if self._refusing:
                link.reset()
                continue
            link.swallowed = self._swallowing
            with self._lock:
                self._links.append(link)
            self._start(self._pump, link, client, server)
            self._start(self._pump, link, server, client)

    def _pump(self, link: _Link, source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(CHUNK_BYTES):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not link.swallowed:
                    target.sendall(chunk)
            if not link.swallowed:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            link.reset()  # what one side broke, the other must not wait for


@contextmanager
def fault_proxy(server_port: int) -> Iterator[FaultProxy]:
    """A proxy for the length of a test."""
    proxy = FaultProxy(server_port)
    try:
        yield proxy
    finally:
        proxy.close()
