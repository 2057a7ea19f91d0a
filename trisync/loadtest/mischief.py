"""Trouble for the server while it is under load: subscribers that are cut off, stall or vanish, and rude strangers.

The subscribers that it happens to come back each time from where they were, and must end up with everything, as all
others. Publishers are left alone: whoever checks the acknowledgements must have got them.
"""

import random
from collections.abc import Callable

from trisync.loadtest.clients import Subscriber, Surroundings
from trisync.loadtest.links import Client, Link

VICTIM_EVERY = 5
"""One subscriber in so many is a victim. Their latency is not measured: it would be that of the trouble."""

STALL_MAX_S = 8.0
"""Shorter than the 10 s that a WebSocket client has for its pong: who only stalls must not be dropped."""

VANISHED_S = 45.0
"""How long the socket of a vanished client is kept: longer than the 30 s after which the server gives such up."""

TOO_LARGE_BYTES = 1_200_000
"""More than the megabyte that a server takes by default."""

STRANGER_S = 5.0
"""How long a stranger stays if the server does not hang up first."""


class Stranger(Client):
    """A connection that says something rude and does not listen to the answers."""

    def __init__(self, around: Surroundings, chance: random.Random, channel: str) -> None:
        self._chance = chance
        self._channel = channel.encode()
        self.link = around.connect(self)

    def opened(self) -> None:
        link, chance = self.link, self._chance
        match chance.randrange(5):
            case 0:
                link.send(chance.randbytes(chance.randrange(1, 4096)))
            case 1:
                link.send(link.join([b'{"op":"ping","id":1}'])[: chance.randrange(1, 20)])  # and never the rest
            case 2:
                link.send(link.join([b'{"op":', b"[1]", b'{"op":"nope"}', b'{"op":"publish","channel":"\xff"}'] * 50))
            case 3:
                link.send(link.join([b"x" * TOO_LARGE_BYTES]))
            case _:  # asks for a lot, and reads none of it
                link.pause()
                subscribe = b'{"op":"subscribe","id":1,"channel":"%b","since":0,"presence":true}' % self._channel
                history = b'{"op":"history","id":1,"channel":"%b","limit":1000}' % self._channel
                link.send(link.join([subscribe, *[history] * 100]))

    def receive(self, chunk: memoryview) -> None:
        pass

    def ended(self, reason: str, kind: str) -> None:
        pass  # as it should


class Mischief:
    """Makes trouble at random moments, so many times a second on average, until stop() is called."""

    def __init__(
        self, around: Surroundings, victims: list[Subscriber], channels: list[str], rate: float, chance: random.Random
    ) -> None:
        self._around = around
        self._victims = victims
        self._channels = channels
        self._rate = rate
        self._chance = chance
        self._ends: list[Callable[[], None]] = []
        self._stopped = False
        self._plan_next()

    def _plan_next(self) -> None:
        self._around.after(self._chance.expovariate(self._rate), self._act)

    def _act(self) -> None:
        if self._stopped:
            return
        self._plan_next()
        trouble = self._chance.choice([self._cut_off, self._stall, self._vanish, None])
        if trouble is None:
            self._intrude()
        elif self._victims:
            victim = self._chance.choice(self._victims)
            if victim.link is not None and victim.link.usable:  # else it is not even back from its last trouble
                trouble(victim, victim.link)

    def stop(self) -> None:
        """End all trouble: who stalls reads again, and who vanished is gone."""
        self._stopped = True
        for end in list(self._ends):
            self._end(end)

    def _lasts(self, seconds: float, end: Callable[[], None]) -> None:
        """Have some trouble ended after a while, or by stop()."""
        self._ends.append(end)
        self._around.after(seconds, lambda: self._end(end))

    def _end(self, end: Callable[[], None]) -> None:
        if end in self._ends:
            self._ends.remove(end)
            end()

    def _cut_off(self, victim: Subscriber, link: Link) -> None:
        link.reset()
        self._return(victim)

    def _stall(self, victim: Subscriber, link: Link) -> None:
        link.pause()
        self._lasts(self._chance.uniform(0.1, STALL_MAX_S), link.resume)

    def _vanish(self, victim: Subscriber, link: Link) -> None:
        self._lasts(VANISHED_S, link.vanish().close)
        self._return(victim)

    def _return(self, victim: Subscriber) -> None:
        victim.close()
        victim.open()

    def _intrude(self) -> None:
        stranger = Stranger(self._around, self._chance, self._chance.choice(self._channels))
        leave = self._chance.choice([stranger.link.close, stranger.link.reset])
        self._lasts(self._chance.uniform(0.0, STRANGER_S), leave)
