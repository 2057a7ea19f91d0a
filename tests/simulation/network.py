"""The simulated network: doors that are listened at, and connections to them. The connections are in links.py."""

import errno
import random

import trio

from tests.simulation.determinism import Trace
from tests.simulation.links import Medium, SimStream, Weather
from trisync.core.outbox import DirectStream


class Network(Medium):
    """Connects clients to whoever listens."""

    def __init__(self, source: random.Random, trace: Trace, weather: Weather) -> None:
        super().__init__(source, trace, weather)
        self.listeners: dict[str, SimListener] = {}

    def listen(self, door: str) -> "SimListener":
        """A door for clients; the one there was before under this name is gone."""
        listener = self.listeners[door] = SimListener(self, door)
        return listener

    async def connect(self, door: str) -> SimStream:
        """A client's connection. Raises OSError where nobody listens."""
        await trio.sleep(self.random.uniform(0, self.weather.latency_s_max))
        listener = self.listeners.get(door)
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        link = self.link()
        listener.arrive(link.server)
        self.trace.note("connect", door, link.number)
        return link.client


class SimListener(trio.abc.Listener[DirectStream]):
    """A door: connections arrive, and are accepted one by one."""

    def __init__(self, network: Network, door: str) -> None:
        self._network = network
        self._door = door
        self._waiting: list[SimStream] = []
        self._news = trio.Event()

    def arrive(self, stream: SimStream) -> None:
        """A connection waits to be accepted."""
        self._waiting.append(stream)
        self._news.set()

    async def accept(self) -> DirectStream:
        while not self._waiting:
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        return self._waiting.pop(0)

    async def aclose(self) -> None:
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Accept nobody any more; who waited is reset."""
        if self._network.listeners.get(self._door) is self:
            del self._network.listeners[self._door]
        for stream in self._waiting:
            stream.link.cut()
        self._waiting.clear()
