"""Clients over real sockets that know what they are owed: of the machine dialects, of events, and a console."""

import json
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import trio

from tests.harness import Json
from tests.hostile.raw_peers import RawPeer
from tests.model.model import Expected, Gap, Message, Model, sorted_json
from tests.model.told import Mismatch, Told, judge_expected, read, same
from tests.web_calls import Events


class Player:
    """A client with subscriptions, all of which are level at the end of a move."""

    def __init__(self, kind: str, stream: trio.SocketStream, model: Model) -> None:
        self.kind = kind
        self.stream = stream
        self.name: str | None = None
        self.subscriptions: dict[str, bool] = {}
        """By channel, whether it is with the state."""
        self.owed: list[Expected] = []
        """What is to come, in order within each channel."""
        self._model = model

    async def hear(self) -> None:
        """Take the next thing that the server says, which must be owed. Raises Mismatch."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Take all that is owed. Raises Mismatch, also where more comes."""
        while self.owed:
            await self.hear()

    async def goodbye(self) -> None:
        """The server stops in good order: take what it says last, and its end. Raises Mismatch."""
        raise NotImplementedError

    def take_owed(self, channel: str, *, ephemeral: bool) -> Expected:
        """What must come next of a channel; ephemeral messages have no fixed place. Raises Mismatch."""
        for at, owed in enumerate(self.owed):
            is_ephemeral = isinstance(owed, Message) and owed.offset is None
            if owed.channel == channel and is_ephemeral == ephemeral:
                return self.owed.pop(at)
        raise Mismatch(f"{self.kind} is told of {channel}, and nothing is to come but {self.owed[:3]}")

    def judge(self, told: Told) -> Expected:
        """What came by itself must be the next that is owed; returns that. Raises Mismatch."""
        if "channel" not in told.fields:
            raise Mismatch(f"{self.kind} is told {told.fields}, and waits for {self.owed[:3]}")
        is_message = told.fields["op"] == "message"
        owed = self.take_owed(told.fields["channel"], ephemeral=is_message and "offset" not in told.fields)
        rest = judge_expected(self._model, told, owed)
        if rest is not None:
            self.owed.insert(0, rest)
        return owed


class Request(NamedTuple):
    """What a client asks."""

    fields: Json
    data: str | None = None
    owed: Sequence[Expected] = ()
    """What it must be shown itself, behind the answer."""


class Talker(Player):
    """A client of lines, frames or WebSocket."""

    def __init__(self, kind: str, peer: RawPeer, model: Model, chance: random.Random) -> None:
        super().__init__(kind, peer.stream, model)
        self.producer: str | None = None
        self.fenced = False
        self._peer = peer
        self._chance = chance
        self._asked = 0

    async def send(self, requests: Sequence[Request]) -> list[int | str]:
        """Send requests together; returns their ids."""
        ids = [self._next_id() for _ in requests]
        texts = [self._text(id, request) for id, request in zip(ids, requests, strict=True)]
        await self._peer.send_raw(b"".join([self._peer.framed(text.encode()) for text in texts]))
        return ids

    async def ask(self, *requests: Request) -> list[Told]:
        """Send requests of one kind together; returns the answers, which must come in their order. Raises Mismatch."""
        answers: list[Told] = []
        ids = await self.send(requests)
        while len(answers) < len(ids):
            told = await self.receive()
            if "id" not in told.fields and told.fields.get("code") != "bad_json":  # where it may be unreadable
                self.judge(told)
                continue
            same(told.fields.get("id", ids[len(answers)]), ids[len(answers)], f"{self.kind}: the id of {told.fields}")
            self.owed += requests[len(answers)].owed
            answers.append(told)
        return answers

    async def answered(self) -> list[Told]:
        """All that the server still says on a connection that it ends."""
        rest: list[Told] = []
        try:
            while True:
                rest.append(await self.receive())
        except (EOFError, trio.BrokenResourceError):
            return rest

    async def receive(self) -> Told:
        """What the server says next."""
        return read(await self._peer.receive_bytes())

    async def hear(self) -> None:
        self.judge(await self.receive())

    async def settle(self) -> None:
        await super().settle()
        (pong,) = await self.ask(Request({"op": "ping"}))
        same(pong.fields["op"], "pong", self.kind)

    async def goodbye(self) -> None:
        same([told.fields["op"] for told in await self.answered()], ["goodbye"], f"what {self.kind} is told at a stop")

    def _next_id(self) -> int | str:
        self._asked += 1
        return f"i{self._asked}" if self._asked % 3 == 0 else self._asked

    def _text(self, id: int | str, request: Request) -> str:
        escape = self._chance.random() < 0.5
        fields = {**request.fields, "id": id}
        members = [f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=escape)}" for name, value in fields.items()]
        if request.data is not None:
            data = request.data.replace("\n", " ") if self.kind == "lines" else request.data
            members.append(f'"data":{data}')
        self._chance.shuffle(members)
        return "{" + ",".join(members) + "}"


class Follower(Player):
    """A client of server-sent events."""

    def __init__(self, events: Events, channel: str, mark: str, model: Model, *, state: bool) -> None:
        super().__init__("events", events.stream, model)
        self.subscriptions[channel] = state
        self._events = events
        self._mark = mark

    async def begin(self, offset: int, position: int | None) -> None:
        """Take the `ok`: the head that it tells, and the id that it has. Raises Mismatch."""
        event = await self._events.fields()
        same(read(event["data"].encode()).fields["offset"], offset, "the head that events begin with")
        same((event["event"], event.get("id")), ("ok", self._id(position)), "the beginning of events")

    async def hear(self) -> None:
        event = await self._events.fields()
        owed = self.judge(read(event["data"].encode()))
        position = owed.offset if isinstance(owed, Message) else owed.last if isinstance(owed, Gap) else None
        same(event.get("id"), self._id(position), f"the id of {owed}")

    async def goodbye(self) -> None:
        event = await self._events.fields()
        same(event["event"], "goodbye", self.kind)
        same(event["retry"], str(json.loads(event["data"])["reconnect_ms"]), "when to come back")
        await self._events.end()

    def _id(self, position: int | None) -> str | None:
        return None if position is None else f"{position}{self._mark}"


class Person(Player):
    """Somebody at the console, in one channel at a time."""

    def __init__(self, peer: RawPeer, model: Model) -> None:
        super().__init__("console", peer.stream, model)
        self.channel = "lobby"
        self._peer = peer

    async def type(self, line: str) -> None:
        """Type a line; from the first one on they are in their channel."""
        await self._peer.send_raw(line.encode() + b"\n")
        if not self.subscriptions:
            self.subscriptions[self.channel] = False

    def move(self, channel: str) -> None:
        """They are in another channel now."""
        self.channel = channel
        self.subscriptions = {channel: False}

    async def read(self) -> str:
        """The next line on the screen."""
        return (await self._peer.receive_bytes()).decode()

    async def reads(self, line: str) -> None:
        """The next line on the screen must be this. Raises Mismatch."""
        same(await self.read(), line, "the console")

    async def reads_message(self, message: Message) -> None:
        """The next line on the screen must be this message. Raises Mismatch."""
        self._judge_line(await self.read(), message)

    def judge_shown(self, shown: str, message: Message) -> None:
        """A value on the screen must be this one's. Raises Mismatch."""
        text, verbatim = message.value
        if text.startswith('"'):
            same(shown, visible(json.loads(text)), f"what the console shows of {message}")
        elif verbatim:
            same(shown, visible(compact(text)), f"what the console shows of {message}")
        else:
            same(sorted_json(shown), sorted_json(text), f"what the console shows of {message}")

    async def hear(self) -> None:
        line = await self.read()
        if not line.startswith("#"):
            gap = self.take_owed(self.channel, ephemeral=False)
            assert isinstance(gap, Gap), gap
            same(line, f"* #{gap.channel}: messages {gap.first} to {gap.last} are gone", "the console")
            return
        message = self.take_owed(self.channel, ephemeral=line.split(" ")[1] == "-")
        assert isinstance(message, Message), message
        self._judge_line(line, message)

    async def settle(self) -> None:
        await super().settle()
        if self.subscriptions:
            await self.type("/nosuch")
            await self.reads("! there is no command /nosuch; /help shows those there are")

    async def goodbye(self) -> None:
        if self.subscriptions:
            line = await self.read()
            same(line.startswith("* the server is stopping"), True, line)
        same(await self._peer.receive_rest(), b"", self.kind)

    def _judge_line(self, line: str, message: Message) -> None:
        offset = "-" if message.offset is None else message.offset
        head = f"#{message.channel} {offset} {visible(message.sender or 'anonymous')}: "
        if message.key is not None:
            head += f"{visible(message.key)} = "
        same(line[: len(head)], head, "the console")
        self.judge_shown(line[len(head) :], message)


def visible(text: str) -> str:
    """Text as it is shown to people: what is not printable as an escape, but for what joins emoji."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode() for c in text)


def compact(text: str) -> str:
    """JSON text without the spaces between its tokens."""
    return "".join(re.findall(r'"(?:[^"\\]|\\.)*"|[^\s"]+', text))
