"""A network that fails on command: a proxy in front of a server, with a thread for each direction of each link."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness import PATIENCE_S

_RESET = struct.pack("ii", 1, 0)


class _Link:
    """One client's connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_dead = threading.Event()
        """Set when nothing comes through any more, though both sides are connected."""

    def reset(self) -> None:
        for side in (self.client, self.server):
            try:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                side.shutdown(socket.SHUT_RD)  # wakes up the thread that reads from it
            except OSError:
                pass  # it is closed already
            side.close()


class Network:
    """Carries connections from `port` to a server, whose port may change, until told otherwise."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.delay_s = 0.0
        """How long each piece takes."""
        self.has_websockets = True
        """Whether requests to upgrade get through; the page itself always does."""
        self._is_black_hole = False
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def reset(self) -> None:
        """Break all connections, as a router does that was switched off and on."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.reset()

    def half_close(self) -> None:
        """End what servers send; what clients send still gets through."""
        with self._lock:
            for link in self._links:
                link.client.shutdown(socket.SHUT_WR)

    def become_a_black_hole(self) -> None:
        """Swallow everything: connections stay open, also new ones, and nobody is told."""
        with self._lock:
            self._is_black_hole = True
            for link in self._links:
                link.is_dead.set()

    def heal(self) -> None:
        """Carry new connections again; what the black hole has swallowed stays swallowed."""
        self._is_black_hole = False
        self.delay_s = 0.0
        self.has_websockets = True

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port), timeout=PATIENCE_S)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            with self._lock:
                if self._is_black_hole:
                    link.is_dead.set()
                self._links.add(link)
            for source, sink in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._carry, args=(link, source, sink)))
                self._threads[-1].start()

    def _carry(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                if source is link.client and b"Upgrade: websocket" in chunk and not self.has_websockets:
                    break
                if self.delay_s:
                    self._closing.wait(self.delay_s)
                if not link.is_dead.is_set():
                    sink.sendall(chunk)
        except OSError:
            pass  # reset
        if not link.is_dead.is_set():
            # One side has hung up: for what uses this, that is the end of both.
            with self._lock:
                self._links.discard(link)
            link.reset()


@contextmanager
def network(server_port: int = 0) -> Iterator[Network]:
    """A network for the length of a test, to a server that may be started later, on a port to be set then."""
    made = Network(server_port)
    try:
        yield made
    finally:
        made.close()
