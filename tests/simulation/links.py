"""Connections in the simulated network: streams with windows, latency and odd segments, which are cut or fall silent.

Who connects to whom, and who listens, is in network.py; what is sent, and what it means, is not known in either.
"""

import errno
import heapq
import random
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import trio

from tests.simulation.determinism import Trace
from trisync.core.outbox import DirectStream

Side = Literal["client", "server"]

KEEPALIVE_S = 20.0
"""How long an idle connection outlives its peer: the kernel's probes, as the server configures them, made short."""


class Weather(NamedTuple):
    """How a network treats new connections."""

    latency_s_max: float
    jitter_s_max: float
    window_bytes: tuple[int, ...]
    """Bytes sent and not yet read, each way; one of these for each connection."""
    torn: float
    """The share of connections on which sends arrive in odd segments."""


CALM = Weather(0.002, 0.0, (65536,), 0.0)


class Medium:
    """What connections run through. run() must be running for anything to arrive.

    All deliveries of a world are made by this one task, in the order of their virtual time.
    """

    def __init__(self, source: random.Random, trace: Trace, weather: Weather) -> None:
        self.random = source
        self.trace = trace
        self.weather = weather
        self.links: dict[Link, None] = {}
        """The connections of which neither side has gone altogether."""
        self.on_send: Callable[[], None] = lambda: None
        """Called before a server's bytes enter the network; may end that server."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._earlier = trio.Event()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something done at a time; of one time, in the order of the calls."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))
        if self._events[0][1] == self._count:
            self._earlier.set()

    async def run(self) -> None:
        """Do everything when it is due, until cancelled."""
        while True:
            self._earlier = trio.Event()
            if self._events:
                with trio.move_on_at(self._events[0][0]):
                    await self._earlier.wait()
            else:
                await self._earlier.wait()
            now = trio.current_time()
            while self._events and self._events[0][0] <= now:
                heapq.heappop(self._events)[2]()

    def link(self) -> "Link":
        """A new connection."""
        self._count += 1
        link = Link(self, self._count)
        self.links[link] = None
        return link


class Link:
    """One connection: two streams, and a pipe each way."""

    def __init__(self, network: Medium, number: int) -> None:
        self.network = network
        self.number = number
        weather, source = network.weather, network.random
        self.latency_s = source.uniform(0, weather.latency_s_max)
        self.jitter_s = weather.jitter_s_max
        self.torn = source.random() < weather.torn
        window = source.choice(weather.window_bytes)
        self.lost = False
        """Whether everything sent from now on vanishes, either way, and nobody is told."""
        up, down = Pipe(self, window), Pipe(self, window)
        self.client = SimStream(self, "client", up, down)
        self.server = SimStream(self, "server", down, up)

    def cut(self) -> None:
        """Reset the connection: of what is on its way, some first part still arrives, each way."""
        if self in self.network.links and not self.lost:
            self.network.trace.note("cut", self.number)
            for stream in (self.client, self.server):
                stream.outgoing.cut()
            self.network.links.pop(self)

    def lose(self) -> None:
        """Let the connection fall silent, as when a cable is pulled or a machine vanishes."""
        if not self.lost:
            self.network.trace.note("lost", self.number)
            self.lost = True
            for stream in (self.client, self.server):
                stream.outgoing.forget_flying()
                if stream.outgoing.room <= 0:
                    stream.outgoing.wait_for_acknowledgement()  # by the probes of a closed window
            self.network.at(trio.current_time() + KEEPALIVE_S, self._probe)

    def _probe(self) -> None:
        """The kernel gives up an idle connection whose peer answers no probe. With bytes unacknowledged it retries."""
        for stream in (self.client, self.server):
            if stream.outgoing.unacknowledged_since is None:
                stream.incoming.reset()
                stream.outgoing.break_off()

    def machine_died(self, *, silently: bool) -> None:
        """The server's side is gone, in the middle of whatever it was doing."""
        self.server.dead = True
        if silently:
            self.lose()
        else:
            self.cut()
        self.server.incoming.receiver_gone = True


class Pipe:
    """One way of a connection: what is on its way, what has arrived, and how it ended."""

    def __init__(self, link: Link, window: int) -> None:
        self._link = link
        self._window = window
        self._flying: list[bytes] = []
        self._arrives_at = 0.0
        self._flight = 0  # what was on its way in an earlier flight does not arrive
        self.buffer = bytearray()
        self.held = 0
        """Bytes sent and not yet read."""
        self.ended = False
        """The sender will send no more."""
        self.broken = False
        """Sending fails from now on."""
        self.was_reset = False
        self.receiver_gone = False
        self.unacknowledged_since: float | None = None
        self._news = trio.Event()
        self._room = trio.Event()

    @property
    def room(self) -> int:
        return self._window - self.held

    def send(self, data: bytes) -> None:
        """Put bytes on their way, for which there is room."""
        link = self._link
        self.held += len(data)
        if link.lost:
            self.wait_for_acknowledgement()
            return
        flight = self._flight
        for segment in self._segments(data):
            self._flying.append(segment)
            self._schedule(lambda: self._land(flight))

    def _segments(self, data: bytes) -> list[bytes]:
        source = self._link.network.random
        if not self._link.torn or source.random() < 0.5:
            return [data]
        segments, start = [], 0
        for _ in range(source.randint(1, 6)):
            end = start + source.choice((1, 1, 2, 3, 5, 20, 200))
            segments.append(data[start:end])
            start = end
        return [segment for segment in (*segments, data[start:]) if segment]

    def _schedule(self, action: Callable[[], None]) -> None:
        link = self._link
        delay = link.latency_s + (link.network.random.uniform(0, link.jitter_s) if link.jitter_s else 0)
        self._arrives_at = max(self._arrives_at, trio.current_time() + delay)
        link.network.at(self._arrives_at, action)

    def _land(self, flight: int) -> None:
        if flight == self._flight and not self.was_reset:
            self._arrive(self._flying.pop(0))

    def _arrive(self, segment: bytes) -> None:
        if self.receiver_gone:
            self._schedule(self._refuse)
            return
        trace = self._link.network.trace
        trace.note(f"{self._link.number}{self.arrow}", len(segment), f"{zlib.crc32(segment):08x}")
        self.buffer += segment
        self._wake_reader()

    @property
    def arrow(self) -> str:
        return ">" if self is self._link.client.outgoing else "<"

    def _refuse(self) -> None:
        """Data met a socket that was closed: a reset comes back."""
        self.break_off()
        other = self._link.server if self is self._link.client.outgoing else self._link.client
        other.outgoing.reset()

    def end(self) -> None:
        """The sender has no more to say, behind what is on its way."""
        if not self._link.lost:
            self._schedule(self._end)

    def _end(self) -> None:
        self.ended = True
        self._wake_reader()

    def cut(self) -> None:
        """Let a random first part of what is on its way arrive, then reset."""
        source = self._link.network.random
        flying = b"".join(self._flying)
        self.forget_flying()
        kept = flying[: source.randint(0, len(flying))]
        if kept and not self.receiver_gone:
            self._arrive(kept)
        self.break_off()
        self.reset()

    def break_off(self) -> None:
        """Sending fails from now on."""
        self.broken = True
        self._wake_writer()

    def forget_flying(self) -> None:
        """What is on its way never arrives."""
        if self._flying:
            self.wait_for_acknowledgement()
        self._flying.clear()
        self._flight += 1

    def wait_for_acknowledgement(self) -> None:
        """The sender knows from now on that something it sent is not acknowledged; it never will be."""
        if self.unacknowledged_since is None:
            self.unacknowledged_since = trio.current_time()

    def reset(self) -> None:
        """The receiver gets an error behind what has arrived."""
        self.was_reset = True
        self.forget_flying()
        self._wake_reader()

    def take(self, count: int) -> bytes:
        """Read bytes that have arrived."""
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        self.held -= len(data)
        self._wake_writer()
        return data

    async def wait_for_news(self) -> None:
        """Wait until something arrived, or the pipe ended."""
        self._news = trio.Event()
        await self._news.wait()

    async def wait_for_room(self) -> None:
        """Wait until something was read, or sending fails."""
        self._room = trio.Event()
        await self._room.wait()

    def _wake_reader(self) -> None:
        self._news.set()

    def _wake_writer(self) -> None:
        self._room.set()

    def wake_all(self) -> None:
        """Let whoever waits look again."""
        self._wake_reader()
        self._wake_writer()


class SimStream(DirectStream):
    """One side of a connection. A server's behaves as SocketStream does."""

    def __init__(self, link: Link, side: Side, outgoing: Pipe, incoming: Pipe) -> None:
        self.link = link
        self.outgoing = outgoing
        self.incoming = incoming
        self.dead = False
        """Whether the machine at this side is gone: what its code still does has no effect."""
        self._side = side
        self._closed = False

    @property
    def peer(self) -> str:
        return f"link {self.link.number}"

    def peer_is_lost(self, silent_s: float) -> bool:
        since = self.outgoing.unacknowledged_since
        return since is not None and trio.current_time() - since > silent_s

    def try_send(self, data: bytes | memoryview) -> int:
        if self._side == "server":
            self.link.network.on_send()
        if self.dead:
            return len(data)
        if self._closed:
            raise OSError(errno.EBADF, "closed")
        if self.outgoing.broken:
            raise BrokenPipeError(errno.EPIPE, "reset")
        room = min(self.outgoing.room, len(data))
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "the window is full")
        if self.link.torn and self.link.network.random.random() < 0.1:
            room = self.link.network.random.randint(1, room)
        self.outgoing.send(bytes(data[:room]))
        return room

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(bytes(data))
        await trio.lowlevel.checkpoint()
        while rest:
            try:
                rest = rest[self.try_send(rest) :]
            except BlockingIOError:
                await self.outgoing.wait_for_room()
            except OSError as error:
                if self._closed:
                    raise trio.ClosedResourceError from error
                raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.outgoing.room <= 0 and not self.outgoing.broken and not self._closed:
            await self.outgoing.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        incoming = self.incoming
        if incoming.buffer or incoming.ended or incoming.was_reset:
            await trio.lowlevel.checkpoint()
        while True:
            if self.dead:
                await trio.sleep_forever()
            if self._closed:
                raise trio.ClosedResourceError
            if incoming.buffer:
                count = min(len(incoming.buffer), max_bytes or 65536)
                if self.link.torn and self.link.network.random.random() < 0.2:
                    count = self.link.network.random.randint(1, count)
                return incoming.take(count)
            if incoming.was_reset:
                raise trio.BrokenResourceError
            if incoming.ended:
                return b""
            await incoming.wait_for_news()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.outgoing.broken:
            raise trio.BrokenResourceError
        if not self.dead:
            self.outgoing.end()

    async def aclose(self) -> None:
        self.hang_up()
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> None:
        """Close. What is unread here, or arrives from now on, is answered by a reset, as TCP does."""
        if self._closed:
            return
        self._closed = True
        self.outgoing.wake_all()
        self.incoming.wake_all()
        if self.dead:
            return
        self.incoming.receiver_gone = True
        if self.incoming.buffer:
            self.link.cut()
        elif not self.outgoing.broken:
            self.outgoing.end()
        if self.outgoing.receiver_gone:
            self.link.network.links.pop(self.link, None)
