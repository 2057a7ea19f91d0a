"""A server that keeps its promises as badly as it is told to: what a load test must catch.

Threads and blocking sockets, one lock, nothing durable: slow, and simple enough to be sure which promise it breaks.
"""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trisync.wire.framing import LineSplitter
from trisync.wire.wsframes import FrameReader, text_header

VICTIM = 40
"""The offset, or the number of the publish, at which a fault shows."""

PAGE = 300
"""Messages in an answer to `history`."""

FAULTS = {
    "none": "keeps everything",
    "drops": "a subscriber never gets one message",
    "repeats": "a subscriber gets one message twice",
    "reorders": "a subscriber gets two messages in the wrong order",
    "alters": "a subscriber gets another message than the others at one offset",
    "forgets": "acknowledges a publish that it does not store",
    "stops": "delivers nothing from some offset on, and goes on acknowledging",
    "doubles": "stores one publish twice",
    "misnumbers": "acknowledges one publish with another one's offset",
    "exaggerates": "acknowledges one publish with an offset that no log can have",
    "silent": "never answers one publish",
    "refuses": "answers one publish with an error",
    "cuts off": "stores one publish, and closes its publisher's connection in place of an answer",
    "dies": "is gone in the midst of it, and nobody can connect any more",
    "hangs up": "closes a subscriber's connection",
    "babbles": "sends a subscriber what is no message",
    "garbles": "sends a subscriber what is not UTF-8",
    "nests": "sends a subscriber what is nested too deep to be read",
    "closes": "closes a subscriber's WebSocket",
    "corrupts": "stores one publish with other content",
    "shortens": "stores one publish without the end of its content",
    "appends": "stores one publish with more content than it had",
    "renumbers": "stores one publish with a number in its content that nobody can count to",
    "redates": "stores one publish with another time in its content",
    "misdirects": "stores one publish in a channel as if it were to another one",
    "names": "gives one message a key and a sender that its publish did not have",
    "says no time": "gives one message no time",
    "turns back": "gives one message an earlier time than the one before it",
    "retimes": "a subscriber gets another time of a message than the others",
    "leaks": "sends a message to who never subscribed",
    "calls twins": "acknowledges one publish as a duplicate",
    "confirms twice": "answers each request to subscribe twice",
    "pongs twice": "answers each ping twice",
    "overtakes": "answers a request to subscribe behind the messages that it asks for",
    "redates for one": "a subscriber gets another time than was published in one message's content",
    "stores nothing": "acknowledges and delivers everything, and has none of it in the log",
    "loses the tail": "has nothing in the log from some offset on, though it was delivered",
    "loses one": "has one message less in the log than it has delivered",
    "swaps two": "has two messages in the log in another order than it has delivered them",
    "stores other data": "has another message in the log than it has delivered",
    "stores another time": "has another time of one message in the log than it has told",
    "goes on": "has the newest message twice in the log, and delivered it once",
    "keeps to itself": "acknowledges, stores and delivers everything, and does not answer who wants to read the log",
    "is late": "does nothing about one publish and those behind it until somebody reads the log",
    "trims": "has trimmed the beginning of the log, and says so",
    "pretends": "calls one message trimmed to a subscriber, and has it in the log",
    "understates": "says that its log ends where it begins",
    "is many": "says another epoch to each subscriber",
    "is replaced": "has another, empty log at the end, and says so by its epoch",
    "exchanges": "acknowledges two publishers with each other's offsets, and then again, the other way round",
}

Json = dict[str, Any]

LOGS: dict[str, Callable[[list[Json]], list[Json]]] = {
    "stores nothing": lambda log: [],
    "is replaced": lambda log: [],
    "loses the tail": lambda log: log[: VICTIM - 1],
    "loses one": lambda log: log[: VICTIM - 1] + log[VICTIM:],
    "swaps two": lambda log: log[: VICTIM - 1] + log[VICTIM - 1 : VICTIM + 1][::-1] + log[VICTIM + 1 :],
    "stores other data": lambda log: [
        each | {"data": ALTERATIONS["redates"](each["data"])} if each["offset"] == VICTIM else each for each in log
    ],
    "stores another time": lambda log: [each | {"time": 3} if each["offset"] >= VICTIM else each for each in log],
    "goes on": lambda log: log + [each | {"offset": len(log) + 1} for each in log[-1:]],
    "trims": lambda log: log[VICTIM:],
}
"""What some faults have in the log in place of what was delivered."""

CHANNEL, PUBLISHER, NUMBER, DUE_US, PADDING = range(5)
"""Places in the content of a message."""


def replaced(data: list[Any], place: int, value: Any) -> list[Any]:
    """The content of a message with another value at one place."""
    return [*data[:place], value, *data[place + 1 :]]


ALTERATIONS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "corrupts": lambda data: replaced(data, PADDING, data[PADDING].replace("x", "y", 1)),
    "shortens": lambda data: replaced(data, PADDING, data[PADDING][1:]),
    "appends": lambda data: [*data, 1],
    "misdirects": lambda data: replaced(data, CHANNEL, data[CHANNEL] + 1),
    "renumbers": lambda data: replaced(data, NUMBER, 10**30),
    "redates": lambda data: replaced(data, DUE_US, data[DUE_US] + 1),
}
"""What some faults make of a message's content."""


NONSENSE = {"garbles": b'{"op":"\xff"}', "nests": b'{"op":"message","unknown":' + b"[" * 9999 + b"]" * 9999 + b"}"}
"""What some faults send in place of a message."""


ADDITIONS: dict[str, Json] = {
    "names": {"key": "k", "from": "somebody"},
    "turns back": {"time": 1},
    "says no time": {"time": 0},
}
"""What some faults add to a message, or replace in it."""


def message_of(request: Json, offset: int) -> Json:
    """The message that a publish becomes."""
    return {"op": "message", "channel": request["channel"], "offset": offset, "time": 2, "data": request["data"]}


class Client:
    """One connection to the fake, lines or WebSocket, served by a thread."""

    def __init__(self, fake: "FakeServer", connection: socket.socket, number: int) -> None:
        self.fake = fake
        self.connection = connection
        self.number = number
        self.channels: set[str] = set()
        self.held: Json | None = None
        self._reader: FrameReader | LineSplitter = LineSplitter(1 << 20)

    def serve(self) -> None:
        """Answer until the client hangs up."""
        with suppress(OSError):
            first = self.connection.recv(65536)
            if first.startswith(b"GET "):
                first = self._shake_hands(first)
            while True:
                for payload in self._reader.feed(first):
                    with self.fake.lock:
                        self.fake.handle(self, json.loads(payload))
                first = self.connection.recv(65536)
                if not first:
                    return

    def _shake_hands(self, head: bytes) -> bytes:
        while b"\r\n\r\n" not in head:
            head += self.connection.recv(65536)
        head, _, rest = head.partition(b"\r\n\r\n")
        key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        self._reader = FrameReader(1 << 20)
        return rest

    def send(self, message: Json, times: int = 1) -> None:
        """Send one message, so many times at once."""
        self.say(json.dumps(message, separators=(",", ":")).encode(), times)

    def say(self, payload: bytes, times: int = 1) -> None:
        """Send anything as a message; a client that is gone does not matter."""
        data = text_header(len(payload)) + payload if isinstance(self._reader, FrameReader) else payload + b"\n"
        with suppress(OSError):
            self.connection.sendall(data * times)


class FakeServer:
    """One port for lines and WebSocket, and one fault."""

    def __init__(self, fault: str) -> None:
        assert fault in FAULTS
        self.fault = fault
        self.lock = threading.Lock()
        self.clients: list[Client] = []
        self.logs: dict[str, list[Json]] = {}
        self.published = 0
        self.waiting: dict[int, tuple[Client, Json]] = {}
        """Publishes that are exchanged with another one, by their publishers."""
        self.exchanged = 0
        self.late: list[tuple[Client, Json]] | None = []
        """Publishes that are left undone until the log is read."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    @property
    def has_failed(self) -> bool:
        """Whether its fault has had its turn, and a message behind it has come."""
        if self.fault == "dies":
            return self.published >= VICTIM
        if self.fault == "exchanges":
            return self.exchanged == 2
        return max(map(len, self.logs.values()), default=0) > VICTIM

    def accept(self) -> None:
        """Accept clients until closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = Client(self, connection, len(self.clients))
                self.clients.append(client)
                threading.Thread(target=client.serve, daemon=True).start()

    def close(self) -> None:
        """Close everything."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for client in self.clients:
            with suppress(OSError):
                client.connection.shutdown(socket.SHUT_RDWR)
            client.connection.close()

    def handle(self, client: Client, request: Json) -> None:
        """Answer one request."""
        match request["op"]:
            case "ping":
                # In one segment: a run may be over as soon as the last pong is there.
                client.send({"op": "pong", "id": request["id"]}, 2 if self.fault == "pongs twice" else 1)
            case "subscribe":
                log = self.stored(request["channel"])
                client.channels.add(request["channel"])
                epoch = f"e{client.number}" if self.fault == "is many" else "e"
                ok = {"op": "ok", "id": request["id"], "offset": self.head_of(log), "epoch": epoch}
                times = {"confirms twice": 2, "overtakes": 0}.get(self.fault, 1)
                client.send(ok, times)
                if self.fault == "trims" and request["since"] < VICTIM < len(self.logs[request["channel"]]):
                    gap = {"op": "gap", "channel": request["channel"], "reason": "trimmed"}
                    client.send(gap | {"from": request["since"] + 1, "to": VICTIM})
                for message in self.stored(request["channel"]):
                    if message["offset"] > request["since"]:
                        self.deliver(client, message)
                client.send(ok, 1 - min(times, 1))
            case "publish":
                self.publish(client, request)
            case "history" if self.fault != "keeps to itself":
                late, self.late = self.late or [], None
                for publish in late:
                    self.publish(*publish)
                client.send(self.history(request))

    def stored(self, channel: str) -> list[Json]:
        """What the log is said to hold."""
        log = self.logs.setdefault(channel, [])
        return LOGS[self.fault](log) if self.fault in LOGS else log

    def head_of(self, log: list[Json]) -> int:
        """Where the log is said to end."""
        return 0 if self.fault == "understates" else max((message["offset"] for message in log), default=0)

    def history(self, request: Json) -> Json:
        """The answer to a request to read the log, in pages that are smaller than they might be."""
        log = self.stored(request["channel"])
        found = [message for message in log if message["offset"] > request["since"]]
        page = found[: min(request["limit"], PAGE)]
        epoch = "another" if self.fault == "is replaced" else "e"
        facts = {"offset": self.head_of(log), "trimmed": VICTIM if self.fault == "trims" else 0, "epoch": epoch}
        more = len(found) > len(page)
        return {"op": "ok", "id": request["id"], "messages": page, "more": more} | facts

    def publish(self, client: Client, request: Json) -> None:
        """Store, acknowledge and deliver, save for the fault."""
        self.published += 1
        if self.fault == "is late" and self.published >= VICTIM and self.late is not None:
            self.late.append((client, request))
            return
        if self.fault == "dies" and self.published >= VICTIM:
            self.close()
            return
        fault = self.fault if self.published == VICTIM else "none"
        if fault == "silent":
            return
        if fault == "refuses":
            error = {"code": "unavailable", "message": "not today", "retry": True}
            client.send({"op": "error", "id": request["id"], **error})
            return
        if self.fault == "exchanges" and request["data"][NUMBER] in (VICTIM, VICTIM + 1):
            self.exchange(client, request)
            return
        log = self.logs.setdefault(request["channel"], [])
        if fault == "forgets":
            client.send({"op": "ok", "id": request["id"], "offset": len(log) + 1})
            return
        if fault in ALTERATIONS:
            request = request | {"data": ALTERATIONS[fault](request["data"])}
        copies = 2 if fault == "doubles" else 1
        for _ in range(copies):
            log.append(message_of(request, len(log) + 1))
        log[-1] |= ADDITIONS.get(fault, {})
        offset = {"misnumbers": len(log) - 5, "exaggerates": 10**30}.get(fault, len(log))
        twin = {"duplicate": True} if fault == "calls twins" else {}
        if fault == "cuts off":
            client.connection.shutdown(socket.SHUT_RDWR)
        else:
            client.send({"op": "ok", "id": request["id"], "offset": offset} | twin)
        if fault == "leaks":
            client.send(log[-1])
        for message in log[-copies:]:
            self.deliver_to_all(message)

    def exchange(self, client: Client, request: Json) -> None:
        """Have a publish wait for the other publisher's; then acknowledge each with the other's offset."""
        self.waiting[request["data"][PUBLISHER]] = client, request
        if len(self.waiting) < 2:
            return
        pair = [self.waiting[publisher] for publisher in sorted(self.waiting, reverse=self.exchanged > 0)]
        self.waiting = {}
        self.exchanged += 1
        log = self.logs[request["channel"]]
        log += [message_of(request, offset) for offset, (_, request) in enumerate(pair, len(log) + 1)]
        for (client, request), message in zip(pair, log[:-3:-1], strict=True):
            client.send({"op": "ok", "id": request["id"], "offset": message["offset"]})
        for message in log[-2:]:
            self.deliver_to_all(message)

    def deliver_to_all(self, message: Json) -> None:
        """Send a message to everybody who follows its channel."""
        for client in self.clients:
            if message["channel"] in client.channels:
                self.deliver(client, message)

    def deliver(self, client: Client, message: Json) -> None:
        """Send a message to a subscriber; faults of delivery hit one of them, the last."""
        fault = self.fault if message["offset"] == VICTIM else "none"
        last = [other for other in self.clients if other.channels][-1]
        if client is not last:
            client.send(message)
        elif self.fault == "stops" and message["offset"] >= VICTIM:
            pass
        elif client.held is not None:
            client.send(message)
            client.send(client.held)
            client.held = None
        elif fault == "reorders":
            client.held = message
        elif fault == "repeats":
            client.send(message)
            client.send(message)
        elif fault == "alters":
            client.send(message | {"data": replaced(message["data"], NUMBER, message["data"][NUMBER] + 1)})
        elif fault == "retimes":
            client.send(message | {"time": 3})
        elif fault == "redates for one":
            client.send(message | {"data": ALTERATIONS["redates"](message["data"])})
        elif fault == "hangs up":
            client.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "closes":
            client.connection.sendall(b"\x88\x05\x03\xe9bye")
        elif fault == "pretends":
            gap = {"op": "gap", "channel": message["channel"], "reason": "trimmed"}
            client.send(gap | {"from": VICTIM, "to": VICTIM})
        elif fault in NONSENSE:
            client.say(NONSENSE[fault])
        elif fault == "babbles":
            client.send(message | {"offset": "forty"})
        elif fault != "drops":
            client.send(message)


@contextmanager
def fake_server(fault: str) -> Iterator[FakeServer]:
    """A fake for the length of a test."""
    fake = FakeServer(fault)
    thread = threading.Thread(target=fake.accept, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.close()
        thread.join(5)
