"""What a device publishes: which publishes it makes, what is unanswered, and as which producer."""

import random
from typing import Any

from tests.simulation.habits import Habits
from tests.simulation.history import Json, Op


class Publishing:
    """A device's publishes, over all its connections."""

    def __init__(self, habits: Habits, source: random.Random) -> None:
        self.producer = habits.producer
        self.settled_seq = 0
        self.made = 0
        self.quota = habits.publishes
        """How many it wants to make."""
        self.unanswered: dict[int, Op] = {}
        """By number, in the order in which they were made."""
        self.known: dict[tuple[str, str], int] = {}
        """The newest offset that it heard of, for each channel and key."""
        self._seq = 0
        self._habits = habits
        self._random = source

    @property
    def done(self) -> bool:
        """Whether it has made all and was answered to all."""
        return self.made >= self.quota and not self.unanswered

    @property
    def room(self) -> int:
        """How many more it may make now."""
        return min(self._habits.window - len(self.unanswered), self.quota - self.made)

    def make(self, connection: int) -> list[Op]:
        """Make some, to be sent on this connection."""
        ops = [self._make_op(connection) for _ in range(self._random.randint(1, max(1, min(self.room, 8))))]
        self.unanswered |= {op.number: op for op in ops}
        return ops

    def settle(self, op: Op) -> None:
        """An answer settled it, or nothing ever will."""
        del self.unanswered[op.number]
        self.settled_seq = max(self.settled_seq, op.seq or 0)

    def begin_anew(self) -> None:
        """Be another producer: the log has forgotten this one, and what is in doubt stays so."""
        self.producer = f"producer-{self._habits.name}-{self._random.getrandbits(64):016x}"
        self._seq = self.settled_seq = 0
        self.unanswered.clear()

    def _make_op(self, connection: int) -> Op:
        self.made += 1
        source, habits = self._random, self._habits
        tag = f"{habits.name}-{self.made}"
        fields: Json = {"tag": tag, "device": habits.name, "number": self.made, "connection": connection}
        if self.producer is not None:
            self._seq += 1
            fields |= {"producer": self.producer, "seq": self._seq}
        data: Any = {"tag": tag, "pad": "x" * source.choice((0, 0, 10, habits.data_bytes_max))}
        if not habits.keyed or (habits.plain and source.random() < 0.5):
            if self.producer is None and source.random() < 0.1:
                fields["ephemeral"] = True
            return Op(channel=source.choice(habits.plain), data=data, **fields)
        channel, key = source.choice(habits.keyed), source.choice("pqr")
        if source.random() < 0.6:
            fields["expect"] = self.known.get((channel, key), 0)
        match source.randrange(6):
            case 0:
                data = None
            case 1 | 2:
                fields["merge"] = True
                data[source.choice("abc")] = source.choice((None, self.made))
        return Op(channel=channel, key=key, data=data, **fields)


def request_of(op: Op) -> Json:
    """What is sent for it."""
    request: Json = {"op": "publish", "id": op.number, "channel": op.channel, "data": op.data}
    for name in ("seq", "key", "expect"):
        value = getattr(op, name)
        if value is not None:
            request[name] = value
    for name in ("merge", "ephemeral"):
        if getattr(op, name):
            request[name] = True
    return request
