"""What a game is played on: a real server, the model of it, and the clients; and what all moves need of these."""

import random
import signal
from pathlib import Path

import trio

from tests.harness import PATIENCE_S, ServerProcess
from tests.hostile.raw_peers import RawFrames, RawPeer, RawWebSocket, Response
from tests.model.calls import Call
from tests.model.model import BYTES_MAX, KEPT, KEYS_MAX, TRIMMED_CHANNEL, Expected, Gap, Message, Model, Pages
from tests.model.players import Follower, Person, Player, Request, Talker
from tests.model.told import Told, read, same
from tests.web_calls import Caller, open_caller

SUBSCRIPTIONS_MAX = 4
TICK_S = 0.02
NO_EPOCH = "none yet"
NOT_FULL = "with durability normal"
OPTIONS = (
    *("--message-bytes-max", str(BYTES_MAX), "--keys-max", str(KEYS_MAX)),
    *("--subscriptions-max", str(SUBSCRIPTIONS_MAX), "--reconnect-spread-ms", "10", "--presence-grace-s", "0.001"),
    *("--retention", f"{TRIMMED_CHANNEL} messages={KEPT}", "--retention-tick-s", str(TICK_S)),
)
KINDS_OF_SERVER: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "with nothing in memory": (
        *("--cache-bytes-max", "1", "--cache-ttl-s", "0.001"),
        *("--cached-heads-max", "1", "--producer-cache-bytes-max", "1"),
    ),
    "in small batches": ("--batch-messages-max", "2"),
    NOT_FULL: ("--durability", "normal"),
}
"""What must make no difference; only that one that is not fully durable begins an epoch when it was killed."""


class Table:
    """One game's server and clients. Open it, and close it in any case."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.model = Model()
        self.kind = kind
        self.chance = random.Random()
        self.story: list[str] = []
        self.talkers: list[Talker] = []
        self.callers: list[Caller] = []
        self.followers: list[Follower] = []
        self.repeatable: list[Call] = []
        """Calls that had an Idempotency-Key."""
        self.epoch = NO_EPOCH
        self._folder = folder
        self._server: ServerProcess | None = None
        self._was_killed = False
        self._streams: list[trio.SocketStream] = []

    @property
    def server(self) -> ServerProcess:
        """The one that runs."""
        assert self._server is not None
        return self._server

    @property
    def players(self) -> list[Player]:
        """All who can be subscribed to something."""
        return [*self.talkers, *self.followers, self.person]

    async def open(self) -> None:
        """Start a server on the folder, and have everybody connect to it."""
        self._server = ServerProcess(self._folder, *OPTIONS, *KINDS_OF_SERVER[self.kind])
        self.talkers = [await self._open_talker(kind) for kind in ("lines", "frames", "websocket", "lines")]
        self.callers = [await self._open_caller() for _ in range(2)]
        self.followers = []
        self.person = Person(RawPeer(self.owned(await self.server.tcp())), self.model)
        (hello,) = await self.talkers[0].ask(Request({"op": "hello"}))
        if self.epoch != NO_EPOCH:
            is_new = self.kind == NOT_FULL and self._was_killed
            same(hello.fields["epoch"] != self.epoch, is_new, "whether the epoch is a new one")
        self.epoch = hello.fields["epoch"]

    async def _open_talker(self, kind: str) -> Talker:
        match kind:
            case "lines":
                peer = RawPeer(self.owned(await self.server.tcp()))
            case "frames":
                peer = RawFrames(self.owned(await self.server.tcp()))
            case _:
                peer = websocket = RawWebSocket(self.owned(await self.server.web()))
                await websocket.shake_hands()
        return Talker(kind, peer, self.model, self.chance)

    async def _open_caller(self) -> Caller:
        caller = await open_caller(self.server)
        self.owned(caller.stream)
        return caller

    def owned(self, stream: trio.SocketStream) -> trio.SocketStream:
        """A new connection, which is closed with the table."""
        self._streams.append(stream)
        return stream

    def ended(self, how: signal.Signals) -> None:
        """Wait for a server to end that was sent a signal. Raises Mismatch where it does not end as it should."""
        same(self.server.process.wait(PATIENCE_S), 0 if how is signal.SIGTERM else -how, "the exit status")
        same("Traceback" in self.server.said(), False, self.server.said())
        self._was_killed = how is signal.SIGKILL
        self.close()

    def close(self) -> None:
        """End the server, if it runs, and the connections."""
        if self._server is None:
            return
        self._server.close()
        self._server.log.close()
        self._server = None
        for stream in self._streams:
            stream.socket.close()
        self._streams.clear()

    def say(self, *words: object) -> None:
        """Write down what is about to be done; an epoch is another one each time."""
        self.story.append(" ".join(map(str, words)).replace(self.epoch, "EPOCH"))

    def deliver(self, message: Message | None, but: Player | None = None) -> None:
        """A message was published: who is subscribed is to be shown it, but for who is told of it otherwise."""
        if message is not None:
            for player in self.players:
                if message.channel in player.subscriptions and player is not but:
                    player.owed.append(message)

    async def settle(self) -> None:
        """Let everybody take all that they are owed, and retention cut what is over. Raises Mismatch."""
        for player in self.players:
            await player.settle()
        channel = self.model.channel(TRIMMED_CHANNEL)
        while channel.trimmed != channel.due:
            answer = await self.callers[0].ok("GET", f"/channels/{channel.name}/messages?limit=1")
            if answer["trimmed"] == channel.due:
                channel.trim()
            else:
                same(channel.trimmed <= answer["trimmed"] <= channel.due, True, f"{answer}, {channel.due} are to go")
                await trio.sleep(TICK_S)

    def emptied(self, gap: Gap) -> None:
        """A channel was emptied: who is subscribed is told, and shown its state anew."""
        for player in self.players:
            with_state = player.subscriptions.get(gap.channel)
            if with_state is not None:
                owed: list[Expected] = [gap]
                player.owed += [*owed, Pages(gap.channel, {})] if with_state else owed

    async def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        """A call over one of the connections, or over a new one where the server has ended it."""
        at = self.chance.randrange(len(self.callers))
        self.say(method, path, body, headers)
        response = await self.callers[at].call(method, path, body, **headers)
        if response.headers.get("connection") == "close":
            await self.callers[at].stream.aclose()
            self.callers[at] = await self._open_caller()
        return response

    async def get(self, path: str) -> Told:
        """What there is under a path. Raises Mismatch unless it is an `ok`."""
        response = await self.call("GET", path)
        same(response.status, 200, path)
        return read(response.body)
