"""The load: producers that send again what was not acknowledged, and subscribers that resume where they were.

Each survives any number of servers, in one of the three machine dialects, and writes down what it was promised and
shown; whether that was kept is judged in checking.py. The sockets are the load test's.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from trisync.loadtest.links import Link, Loop
from trisync.loadtest.plan import TRANSPORTS, Transport
from trisync.loadtest.transports import CLOSE, PING, PONG, TEXT

CHANNELS = ("lobby", "doc:1", "device/7", "busy")
WINDOW = 128
"""Unanswered publishes of a producer, half of what a server must remember."""
KEYS = 5
"""Keys of a channel's state; every fourth message has one."""

Doors = dict[Transport, tuple[str, int]]


class Data(Struct):
    """The data of a message: which one it is, of all that were ever published."""

    producer: int
    seq: int
    padding: str


class Heard(Struct):
    """What is read of anything that a server says."""

    op: str
    id: int | None = None
    seq: int = 0
    offset: int = 0
    duplicate: bool = False
    epoch: str = ""
    channel: str = ""
    data: Data | None = None
    code: str = ""
    reason: str = ""


_decode = msgspec.json.Decoder(Heard).decode


Complain = Callable[[str], None]
"""Where a client says what a server did wrong."""


class Client:
    """A client that is connected anew to every server there is."""

    def __init__(self, name: str, transport: Transport, complain: Complain) -> None:
        self.name = f"{name} ({transport})"
        self.transport = transport
        self.link: Link | None = None
        self.epoch = ""
        self._complain = complain
        self._rest = b""

    def connect(self, loop: Loop, doors: Doors) -> None:
        """Talk to a server from now on."""
        self._rest = b""
        self.link = Link(loop, self, self.transport, *doors[self.transport])

    def hang_up(self) -> None:
        """End the connection, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def complain(self, problem: str) -> None:
        """Say what a server did wrong."""
        self._complain(f"{self.name}: {problem}")

    def say(self, *requests: dict[str, Any]) -> None:
        """Send requests."""
        if self.link is not None and requests:
            self.link.send(self.link.join([msgspec.json.encode(request) for request in requests]))

    def opened(self) -> None:
        """See links.Client."""
        raise NotImplementedError

    def heard(self, message: Heard) -> None:
        """The server has said something."""
        raise NotImplementedError

    def receive(self, chunk: memoryview) -> None:
        """See links.Client."""
        assert self.link is not None
        data = self._rest + bytes(chunk)
        end = 0
        for piece in self.link.split(data):
            end = piece.end
            if piece.opcode == TEXT:
                self.heard(_decode(piece.payload))
            elif piece.opcode == PING and self.link.masker is not None:
                self.link.send(self.link.masker.control(PONG, piece.payload))
            elif piece.opcode == CLOSE:
                break
        self._rest = data[end:]
        self.done_reading()

    def done_reading(self) -> None:
        """All that was received together has been heard."""

    def ended(self, reason: str, kind: str) -> None:
        """See links.Client: the server is gone, as far as this client can see."""
        self.link = None

    def same_epoch(self, epoch: str) -> None:
        """Complain if the log is not the one that was known: `full` loses nothing, whatever is killed."""
        if self.epoch and epoch != self.epoch:
            self.complain(f"the epoch was {self.epoch} and is {epoch}")
        self.epoch = epoch


class Producer(Client):
    """Publishes with a seq, keeps what is not acknowledged, and sends it again to the next server."""

    def __init__(self, number: int, transport: Transport, chance: random.Random, complain: Complain) -> None:
        super().__init__(f"producer {number}", transport, complain)
        self.number = number
        self.sent = 0
        """The newest seq that was ever sent."""
        self.acknowledged: list[tuple[str, int]] = [("", 0)]
        """By seq, from 1 on: the channel and the offset."""
        self.repeated = 0
        """Acknowledgements that said `duplicate`: what was stored, though a kill took the first answer."""
        self.resting = False
        """Whether nothing new is published."""
        self._unanswered: deque[dict[str, Any]] = deque()
        self._chance = chance
        self._greeted = False

    @property
    def satisfied(self) -> bool:
        """Whether all it ever sent is acknowledged."""
        return not self._unanswered

    def opened(self) -> None:
        self._greeted = False
        self.say({"op": "hello", "id": 0, "producer": f"torture-producer-{self.number}"})

    def heard(self, message: Heard) -> None:
        if message.op == "goodbye" or message.code == "draining":
            return
        if message.op != "ok":
            self.complain(f"it was told {message}")
        elif message.id == 0:
            self._greet(message)
        else:
            self._settle(message)

    def _greet(self, hello: Heard) -> None:
        self.same_epoch(hello.epoch)
        if not len(self.acknowledged) - 1 <= hello.seq <= self.sent:
            self.complain(
                f"{len(self.acknowledged) - 1} were acknowledged and {self.sent} sent, the server knows {hello.seq}"
            )
        self._greeted = True
        self.say(*self._unanswered)

    def _settle(self, answer: Heard) -> None:
        if not self._unanswered or self._unanswered[0]["seq"] != answer.id:
            self.complain(f"an answer that nothing waits for: {answer}")
            return
        if not answer.offset:
            self.complain(f"an acknowledgement without an offset: {answer}")
        self.repeated += answer.duplicate
        self.acknowledged.append((self._unanswered.popleft()["channel"], answer.offset))

    def done_reading(self) -> None:
        if self._greeted and not self.resting and len(self._unanswered) <= WINDOW // 2:
            fresh = [self._compose() for _ in range(WINDOW - len(self._unanswered))]
            self._unanswered += fresh
            self.say(*fresh)

    def _compose(self) -> dict[str, Any]:
        self.sent += 1
        padding = "x" * int(self._chance.lognormvariate(5, 1.7))  # so that a round has a checkpoint
        request = {
            "op": "publish",
            "id": self.sent,
            "seq": self.sent,
            "channel": self._chance.choice(CHANNELS),
            "data": Data(self.number, self.sent, padding[:50_000]),
        }
        if self._chance.random() < 0.25:
            request["key"] = f"key {self._chance.randrange(KEYS)}"
        return request


class Subscriber(Client):
    """Follows all channels, and asks every new server for what comes behind the last it has seen."""

    def __init__(self, number: int, transport: Transport, complain: Complain) -> None:
        super().__init__(f"subscriber {number}", transport, complain)
        self.seen: dict[str, list[tuple[int, int]]] = {channel: [] for channel in CHANNELS}
        """By channel: producer and seq of the messages from offset 1 on."""

    def opened(self) -> None:
        since = {"epoch": self.epoch} if self.epoch else {}
        self.say(
            *(
                {"op": "subscribe", "id": 1, "channel": channel, "since": len(seen), **since}
                for channel, seen in self.seen.items()
            )
        )

    def heard(self, message: Heard) -> None:
        if message.op == "message":
            assert message.data is not None
            seen = self.seen[message.channel]
            if message.offset != len(seen) + 1:
                self.complain(f"behind offset {len(seen)} of {message.channel} it was shown {message.offset}")
            seen.append((message.data.producer, message.data.seq))
        elif message.op == "ok":
            self.same_epoch(message.epoch)
        elif message.op != "goodbye":
            self.complain(f"it was told {message}")


def make_clients(chance: random.Random, complain: Complain) -> tuple[list[Producer], list[Subscriber]]:
    """Two producers and two subscribers in each dialect."""
    transports = list(TRANSPORTS) * 2
    producers = [
        Producer(number, transport, random.Random(chance.random()), complain)
        for number, transport in enumerate(transports)
    ]
    return producers, [Subscriber(number, transport, complain) for number, transport in enumerate(transports)]
