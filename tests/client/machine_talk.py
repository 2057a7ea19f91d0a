"""The client's machine, and a voice for its server."""

import json
from random import Random
from typing import Any

from trisync.client import feeds
from trisync.client.feeds import Start
from trisync.client.machine import Machine

Json = dict[str, Any]

HEAD = Start()

LIMITS = {"message_bytes_max": 1000, "unanswered_max": 4}


class Talk:
    """A machine and its server, of which this is the voice."""

    def __init__(self, *, online: bool = True, seed: int = 1, producer: str | None = "p" * 16) -> None:
        self.now = 100.0
        self.machine = Machine(producer=producer, name="me", timer=lambda: self.now, random=Random(seed), queue_max=10)
        if online:
            self.come_online()

    def come_online(self, seq: int = 0, epoch: str = "e", limits: Json = LIMITS) -> list[Json]:
        """Connect and greet; returns what the machine says then."""
        self.greet(seq, epoch, limits)
        return self.heard()

    def greet(self, seq: int = 0, epoch: str = "e", limits: Json = LIMITS) -> None:
        """Connect and greet, and listen to nothing yet."""
        self.machine.connecting("here")
        self.machine.connected()
        (hello,) = self.heard()
        assert (hello["op"], hello["producer"], hello["name"]) == ("hello", self.machine.producer, "me")
        self.say("ok", id=hello["id"], seq=seq, epoch=epoch, server="fake", session="s", limits=limits)

    def heard(self) -> list[Json]:
        """What the machine says now."""
        return [json.loads(payload) for payload in self.machine.take_output()]

    def say(self, op: str, **fields: Any) -> None:
        self.machine.receive([json.dumps({"op": op, **fields}).encode()])

    def refuse(self, id: Any, code: str, **fields: Any) -> None:
        self.say("error", id=id, code=code, message="because", **fields)

    def message(self, channel: str, offset: int, data: Any = 0, **fields: Any) -> None:
        self.say("message", channel=channel, offset=offset, time=1, data=data, **fields)

    def subscribe(self, channel: str, start: Start = HEAD, *, head: int = 0, epoch: str = "e") -> feeds.Inbox:
        """Subscribe, and let the server agree."""
        inbox = self.machine.subscribe(channel, start)
        (asked,) = self.heard()
        assert asked["op"] == "subscribe"
        self.say("ok", id=asked["id"], offset=head, epoch=epoch)
        return inbox

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick()
