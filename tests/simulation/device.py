"""A client as protocol.md wants one, with habits: it publishes, follows channels, loses its connection, comes back.

It does what a good client does and writes down what it was told; whether that was right is the checker's business.
"""

import math
import random
from collections.abc import Callable
from typing import Any, Literal

import trio

from tests.simulation.determinism import fork
from tests.simulation.following import Following
from tests.simulation.habits import Habits
from tests.simulation.history import (
    Answered,
    Asked,
    Ended,
    Event,
    Gap,
    Greeted,
    Invoked,
    Json,
    Members,
    Op,
    Present,
    Read,
    Replica,
    Seen,
    Subscribed,
    Wrong,
)
from tests.simulation.network import Network
from tests.simulation.publishing import Publishing, request_of
from tests.simulation.wire import Lost, Wire

SILENCE_S = 15.0
"""A connection on which nothing came for so long is asked for a sign of life, and given up after as long again."""
HELLO_S = 20.0
"""How long a server may take to answer a hello."""


class Mood:
    """What all devices of a world share: whether times are rough, and the history that they write."""

    def __init__(self) -> None:
        self.rough = True
        self.history: list[Event] = []
        self.subscriptions = 0
        self.connections = 0
        self.changed = trio.Event()

    def calm_down(self) -> None:
        """The faults are over: what is left to do is to be done, and nothing new begun."""
        self.rough = False
        self.changed.set()
        self.changed = trio.Event()


class Device:
    """One client, over all its connections."""

    def __init__(self, habits: Habits, network: Network, source: random.Random, mood: Mood) -> None:
        self.habits = habits
        self.followings = {wish.channel: Following(wish) for wish in habits.wishes}
        self.name = habits.name
        self._network = network
        self._random = source
        self._wire_random = fork(source)
        self._mood = mood
        self._publishing = Publishing(habits, source)
        self._asking: dict[str, Callable[[Json], None]] = {}
        self._asked = 0
        self._resend_at = math.inf
        self._pause_s = 0.0
        self._deaf_until = 0.0
        self._connection = 0
        self._greeted = False
        self._news = trio.Event()

    @property
    def settled(self) -> bool:
        """Whether everything it wanted is done, and all that it follows is live."""
        return (
            self._greeted
            and self._publishing.done
            and all(following.number and following.complete for following in self.followings.values())
        )

    def waits_for(self) -> str:
        """What is not settled yet, for people."""
        missing = [channel for channel, f in self.followings.items() if not (f.number and f.complete)]
        return (
            f"{self.habits.name}: greeted {self._greeted}, {self._publishing.made} of {self._publishing.quota} made, "
            f"unanswered {list(self._publishing.unanswered)[:5]}, not following {missing}"
        )

    def _note(self, event: Event) -> None:
        self._mood.history.append(event)
        self._network.trace.note(self.habits.name, type(event).__name__, *event)

    def testify(self) -> None:
        """Write down what it holds at the end."""
        for channel, following in self.followings.items():
            if following.wish.state:
                entries = {key: word for key, word in following.entries.items() if word[1] is not None}
                self._note(Replica(self.habits.name, channel, entries))
            if following.wish.presence:
                self._note(Members(self.habits.name, channel, dict(following.members)))
            if following.number is not None:
                self._note(Present(self.habits.name, channel, self.name, following.member))

    # Connections

    async def live(self) -> None:
        """Connect, do what is to be done, come back, until cancelled."""
        while True:
            try:
                wire = await Wire.connect(self._network, self.habits.dialect, self._wire_random)
            except Lost:
                await self._pause()
                continue
            self._mood.connections += 1
            self._connection = self._mood.connections
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, wire, nursery.cancel_scope)
                    nursery.start_soon(self._talk, wire, nursery.cancel_scope)
            finally:
                wire.hang_up()
                self._lose_connection()
            await self._pause()

    async def _pause(self) -> None:
        longest = 2.0 if self._mood.rough else 0.5
        pause_s, self._pause_s = max(self._random.uniform(0, longest), self._pause_s), 0.0
        await trio.sleep(pause_s)

    def _lose_connection(self) -> None:
        self._asking.clear()
        self._greeted = False
        self._resend_at = math.inf
        for following in self.followings.values():
            following.lose()
        if self.habits.producer is None:
            self._publishing.unanswered.clear()  # never to be known

    async def _listen(self, wire: Wire, scope: trio.CancelScope) -> None:
        asked = False
        try:
            while True:
                await self._look_away()
                with trio.move_on_after(SILENCE_S) as waiting:
                    messages = await wire.receive()
                if waiting.cancelled_caught:
                    if asked:
                        raise Lost("silence")
                    asked = True
                    await self._send(wire, {"op": "ping", "id": "alive"})
                    continue
                asked = False
                for message in messages:
                    self._hear(message)
                self._wake()
        except Lost:
            scope.cancel()

    async def _send(self, wire: Wire, *requests: Json) -> None:
        """Send, but not for ever: a server that reads nothing is as good as gone. Raises Lost."""
        with trio.move_on_after(3 * SILENCE_S) as waiting:
            await wire.send(*requests)
        if waiting.cancelled_caught:
            raise Lost("it does not read")

    async def _look_away(self) -> None:
        if self._mood.rough:
            pause_s = self._random.uniform(0, self.habits.deaf_s) if self.habits.deaf_s else 0
            pause_s = max(pause_s, self._deaf_until - trio.current_time())
            with trio.move_on_after(pause_s):
                await self._mood.changed.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # What it hears

    def _hear(self, message: Json) -> None:
        id = message.get("id")
        match message["op"]:
            case "message":
                self._hear_message(message)
            case "ok" | "error" | "pong" if isinstance(id, int) and id in self._publishing.unanswered:
                self._hear_verdict(self._publishing.unanswered[id], message)
            case "ok" | "error" | "pong" if isinstance(id, int):
                pass  # the second answer to a publish that was sent twice
            case "ok" | "error" | "pong" if id == "alive":
                pass
            case "ok" | "error" | "pong" if id in self._asking:
                self._asking.pop(str(id))(message)
            case "gap":
                self._hear_gap(message)
            case "state":
                self.followings[message["channel"]].hear_state(message)
            case "presence":
                self.followings[message["channel"]].hear_presence(message)
            case "goodbye":
                self._pause_s = message["reconnect_ms"] / 1000
            case _:
                self._note(Wrong(f"{self.habits.name} was told {message}"))

    def _hear_message(self, message: Json) -> None:
        following = self.followings.get(message["channel"])
        if following is None or following.number is None:
            self._note(Wrong(f"{self.habits.name} is not subscribed, but got {message}"))
            return
        self._note(Seen(following.number, message))
        if "offset" in message:
            following.hear_message(message)
            if "key" in message:
                deleted = message["data"] is None
                self._publishing.known[message["channel"], message["key"]] = 0 if deleted else message["offset"]

    def _hear_gap(self, message: Json) -> None:
        following = self.followings[message["channel"]]
        if following.number is None:
            self._note(Wrong(f"{self.habits.name} is not subscribed, but got {message}"))
            return
        self._note(Gap(following.number, message["reason"], message.get("from", 0), message.get("to", 0)))
        following.hear_gap(message)

    def _hear_verdict(self, op: Op, answer: Json) -> None:
        if answer["op"] == "ok":
            self._note(
                Answered(
                    op,
                    "ok",
                    answer.get("offset", 0),
                    "duplicate" if "duplicate" in answer else "",
                    None,
                    self._connection,
                )
            )
            if op.key is not None:
                self._publishing.known[op.channel, op.key] = 0 if op.data is None else answer.get("offset", 0)
            self._publishing.settle(op)
            return
        code = answer["code"]
        outcome: Literal["refused", "retry"] = "retry" if answer["retry"] else "refused"
        self._note(Answered(op, outcome, answer.get("offset", 0), code, answer.get("data"), self._connection))
        if code == "conflict" and op.key is not None:
            self._publishing.known[op.channel, op.key] = answer["offset"]
        if outcome == "refused" or self._publishing.producer is None:
            self._publishing.settle(op)
        elif self._resend_at == math.inf:
            self._resend_at = trio.current_time() + self._random.uniform(0.1, 1)

    # What it says

    async def _talk(self, wire: Wire, scope: trio.CancelScope) -> None:
        try:
            with trio.move_on_after(HELLO_S) as waiting:
                await self._greet(wire)
            if waiting.cancelled_caught:
                raise Lost("no answer to a hello")
            while True:
                await self._follow_all(wire)
                if self._resend_at <= trio.current_time():
                    await self._resend(wire)
                elif self._publishing.room > 0:
                    await self._publish(wire)
                    await trio.sleep(self._random.uniform(0, self.habits.pace_s))
                else:
                    with trio.move_on_at(self._resend_at):
                        with trio.move_on_after(5):
                            await self._news.wait()
                if self._mood.rough and self._random.random() < self.habits.restless:
                    await self._fidget(wire)
        except Lost:
            scope.cancel()

    async def _ask(self, wire: Wire, op: str, handle: Callable[[Json], None], **fields: Any) -> None:
        """Send a request, and wait until `handle` got the answer. Raises Lost."""
        self._asked += 1
        id = f"q{self._asked}"
        answered = trio.Event()

        def take(answer: Json) -> None:
            handle(answer)
            answered.set()

        self._asking[id] = take
        await self._send(wire, {"op": op, "id": id, **fields})
        await answered.wait()

    async def _greet(self, wire: Wire) -> None:
        def handle(answer: Json) -> None:
            if answer["op"] == "ok":
                seq = answer.get("seq", 0)
                self._note(Greeted(self.habits.name, self._connection, answer["epoch"], self._publishing.producer, seq))
                if seq < self._publishing.settled_seq:
                    self._publishing.begin_anew()
                else:
                    self._greeted = True

        while not self._greeted:
            producer = self._publishing.producer
            greeting = {"name": self.name} if producer is None else {"name": self.name, "producer": producer}
            await self._ask(wire, "hello", handle, **greeting)
            if not self._greeted:
                await trio.sleep(0.5)  # the log could not be read just now, or has forgotten the producer
        if self._publishing.producer is not None:
            await self._resend(wire)

    async def _resend(self, wire: Wire) -> None:
        self._resend_at = math.inf
        if self._publishing.unanswered:
            await self._send(wire, *[request_of(op) for op in self._publishing.unanswered.values()])

    async def _publish(self, wire: Wire) -> None:
        ops = self._publishing.make(self._connection)
        for op in ops:
            self._note(Invoked(op))
        await self._send(wire, *[request_of(op) for op in ops])

    async def _follow_all(self, wire: Wire) -> None:
        for following in self.followings.values():
            while following.number is None or (following.stale and following.wish.state):
                if not await self._follow(wire, following):
                    await trio.sleep(0.5)

    async def _follow(self, wire: Wire, following: Following) -> bool:
        request = following.request(self._random)
        self._mood.subscriptions += 1
        number = self._mood.subscriptions
        since, epoch, last = (request.get(name) for name in ("since", "epoch", "last"))
        asked = (number, self.habits.name, self._connection, following.wish.channel)
        self._note(Asked(*asked, since, epoch, last, "state" in request))

        def handle(answer: Json) -> None:
            if answer["op"] == "ok":
                if following.number is not None:
                    self._note(Ended(following.number))
                following.begin(number, request, answer)
                self._note(Subscribed(number, answer["offset"], answer["epoch"]))

        await self._ask(wire, "subscribe", handle, **request)
        return following.number == number

    # What else it does while times are rough

    async def _fidget(self, wire: Wire) -> None:
        source = self._random
        match source.randrange(9):
            case 0:
                wire.stream.link.cut()
            case 1:
                wire.stream.link.lose()
                raise Lost("vanished")
            case 2:
                raise Lost("left")
            case 3:
                self._deaf_until = trio.current_time() + source.uniform(1, 20)
            case 4 if self.followings:
                await self._unfollow(wire, source.choice(list(self.followings.values())))
            case 5 if self.followings:
                await self._follow(wire, source.choice(list(self.followings.values())))
            case 6:
                name = f"{self.habits.name}{source.choice('αβγ')}"

                def handle(answer: Json) -> None:
                    if answer["op"] == "ok":
                        self.name = name

                await self._ask(wire, "hello", handle, name=name)
            case 7:
                await self._read_history(wire)
            case _:
                await self._send(wire, {"op": "ping"}, {"op": "state", "channel": "nowhere", "id": "alive"})

    async def _unfollow(self, wire: Wire, following: Following) -> None:
        def handle(answer: Json) -> None:
            if following.number is not None:
                self._note(Ended(following.number))
            following.end()

        await self._ask(wire, "unsubscribe", handle, channel=following.wish.channel)

    async def _read_history(self, wire: Wire) -> None:
        if not self.habits.plain:
            return
        channel = self._random.choice(self.habits.plain)
        since = self._random.choice((None, self._random.randint(0, 30)))
        asked_at = len(self._mood.history)

        def handle(answer: Json) -> None:
            if answer["op"] == "ok":
                head, epoch, more, messages = (answer[name] for name in ("offset", "epoch", "more", "messages"))
                self._note(Read(channel, since, head, epoch, more, messages, asked_at))

        fields = {} if since is None else {"since": since}
        await self._ask(wire, "history", handle, channel=channel, limit=self._random.randint(1, 50), **fields)

    def wrap_up(self) -> None:
        """Times are calm: a few publishes more, to show that the service is back."""
        self._publishing.quota = self._publishing.made + 2 if self.habits.publishes else 0
        self._deaf_until = 0
