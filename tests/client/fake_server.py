"""A server in a few lines, in memory, for tests of the client's machine: the rules of protocol.md, and nothing else.

It is written anew and not made of the server's own parts, whose mistakes it would share.
"""

import json
from typing import Any, NamedTuple

Json = dict[str, Any]


class Stored(NamedTuple):
    """A message in a log."""

    offset: int
    key: str | None
    data: Any


class Log:
    """A channel: all that was ever stored, and how much of it is gone."""

    def __init__(self) -> None:
        self.all: list[Stored] = []
        self.trimmed = 0

    @property
    def head(self) -> int:
        return len(self.all)

    @property
    def state(self) -> dict[str, Stored]:
        newest = {stored.key: stored for stored in self.all if stored.key is not None}
        return {key: stored for key, stored in newest.items() if stored.data is not None}


class FakeServer:
    """The logs, the producers and one client's connection; what it says is in `said` until it is taken."""

    def __init__(self) -> None:
        self.epoch = "epoch-0"
        self.logs: dict[str, Log] = {}
        self.producers: dict[str, list[Json]] = {}
        """The verdicts of each producer: the first is that of seq 1."""
        self.unavailable = False
        self.message_bytes_max = 10_000
        self.connected = False
        self.said: list[bytes] = []
        self._subscribed: dict[str, bool] = {}
        self._producer = ""

    def log(self, channel: str) -> Log:
        return self.logs.setdefault(channel, Log())

    def restore(self, kept: int) -> None:
        """An old backup takes the place of the logs: of each channel, only so many of the newest are lost."""
        self.epoch = f"epoch-{int(self.epoch[6:]) + 1}"
        for log in self.logs.values():
            del log.all[max(log.trimmed, log.head - kept) :]
        for verdicts in self.producers.values():
            del verdicts[max(0, len(verdicts) - kept) :]

    def connect(self) -> None:
        self.connected = True
        self.said = []
        self._subscribed = {}

    def disconnect(self) -> None:
        self.connected = False
        self._subscribed = {}

    def say(self, op: str, **fields: Any) -> None:
        self.said.append(json.dumps({"op": op, **fields}).encode())

    def goodbye(self, reconnect_ms: int) -> None:
        self.say("goodbye", code="draining", reconnect_ms=reconnect_ms)

    def store(self, channel: str, data: Any, key: str | None = None) -> int:
        """Anybody publishes."""
        log = self.log(channel)
        stored = Stored(log.head + 1, key, data)
        log.all.append(stored)
        return stored.offset

    def tell(self, channel: str, offset: int) -> None:
        """Show a stored message to the client, if it is subscribed."""
        if channel in self._subscribed:
            self._say_message(channel, self.log(channel).all[offset - 1])

    def _say_message(self, channel: str, stored: Stored) -> None:
        key = {} if stored.key is None else {"key": stored.key}
        self.say("message", channel=channel, offset=stored.offset, time=stored.offset, data=stored.data, **key)

    def receive(self, payload: bytes) -> None:
        """Handle one request."""
        assert len(payload) <= self.message_bytes_max, "this would end the connection, and every one after it"
        request: Json = json.loads(payload)
        getattr(self, "_" + request["op"])(request)

    def _hello(self, request: Json) -> None:
        self._producer = request["producer"]
        seq = len(self.producers.setdefault(self._producer, []))
        limits = {"message_bytes_max": self.message_bytes_max, "unanswered_max": 5}
        self.say("ok", id=request["id"], server="fake", session="s", epoch=self.epoch, seq=seq, limits=limits)

    def _ping(self, request: Json) -> None:
        self.say("pong", id=request["id"])

    def _publish(self, request: Json) -> None:
        id, seq = request["id"], request["seq"]
        verdicts = self.producers[self._producer]
        if seq > len(verdicts) + 1:
            self._refuse(id, "out_of_sequence", retry=True, seq=len(verdicts))
        elif seq <= len(verdicts):
            verdict = verdicts[seq - 1]
            self.said.append(json.dumps({**verdict, "id": id}).encode())
        elif self.unavailable:
            self._refuse(id, "unavailable", retry=True)
        else:
            verdict = self._judge(request)
            verdicts.append(verdict)
            self.said.append(json.dumps({**verdict, "id": id}).encode())
            if verdict["op"] == "ok":
                self.tell(request["channel"], verdict["offset"])

    def _judge(self, request: Json) -> Json:
        if "data" not in request:
            return {"op": "error", "code": "bad_request", "message": "no data", "retry": False}
        channel, key, expect = request["channel"], request.get("key"), request.get("expect")
        newest = self.log(channel).state.get(key) if key is not None else None
        offset = 0 if newest is None else newest.offset
        if expect is not None and expect != offset:
            data = None if newest is None else newest.data
            return {"op": "error", "code": "conflict", "message": "no", "retry": False, "offset": offset, "data": data}
        return {"op": "ok", "offset": self.store(channel, request["data"], key)}

    def _refuse(self, id: Any, code: str, **fields: Any) -> None:
        self.say("error", id=id, code=code, message="because", **fields)

    def _subscribe(self, request: Json) -> None:
        channel, since, last = request["channel"], request.get("since"), request.get("last")
        log = self.log(channel)
        self._subscribed[channel] = request.get("state", False)
        self.say("ok", id=request["id"], offset=log.head, epoch=self.epoch)
        cursor = log.head
        if last is not None:
            cursor = max(log.head - last, log.trimmed)
        elif since is not None:
            cursor = since
            if since > log.head or request.get("epoch", self.epoch) != self.epoch:
                self.say("gap", channel=channel, reason="epoch")
                cursor = 0
            if cursor < log.trimmed:
                self.say("gap", channel=channel, reason="trimmed", **{"from": cursor + 1, "to": log.trimmed})
                cursor = log.trimmed
        if request.get("state"):
            self._say_pages(channel)
        for stored in log.all[cursor:]:
            self._say_message(channel, stored)

    def _say_pages(self, channel: str) -> None:
        """The state in pages of one entry."""
        entries = list(self.log(channel).state.items())
        for place, (key, stored) in enumerate(entries):
            page = {key: {"offset": stored.offset, "data": stored.data}}
            self.say("state", channel=channel, entries=page, more=place < len(entries) - 1)
        if not entries:
            self.say("state", channel=channel, entries={}, more=False)

    def trim(self, channel: str, until: int) -> None:
        """Retention takes the oldest messages, which the client may have been told already or not."""
        log = self.log(channel)
        log.trimmed = max(log.trimmed, min(until, log.head))

    def empty(self, channel: str) -> None:
        """Messages and state go; offsets go on, and who is subscribed is told."""
        log = self.log(channel)
        first = log.trimmed + 1
        log.trimmed = log.head
        log.all = [stored._replace(key=None) for stored in log.all]
        if channel in self._subscribed and log.head:
            self.say("gap", channel=channel, reason="trimmed", **{"from": min(first, log.head), "to": log.head})
            if self._subscribed[channel]:
                self._say_pages(channel)

    def _unsubscribe(self, request: Json) -> None:
        self._subscribed.pop(request["channel"], None)
        self.say("ok", id=request["id"])

    def _history(self, request: Json) -> None:
        log = self.log(request["channel"])
        since = max(request.get("since", 0), log.trimmed)
        messages = [
            {"op": "message", "channel": request["channel"], "offset": m.offset, "time": 0, "data": m.data}
            for m in log.all[since:]
        ]
        self.say(
            "ok",
            id=request["id"],
            messages=messages,
            offset=log.head,
            trimmed=log.trimmed,
            epoch=self.epoch,
            more=False,
        )
