"""One client's conversation, whatever its dialect: requests in, replies out.

Knows the broker and its own connection; bytes and framings are behind both. A run of publishes is handed to
the broker together; everything else is answered in the order it came.
"""

from collections.abc import Callable

import trio
from msgspec import UNSET

from trisync.core.broker import Broker
from trisync.core.cursors import Subscriptions
from trisync.sessions.connection import DRAINING, Connection
from trisync.sessions.hook_requests import Client, Door
from trisync.sessions.hooks import Hooks
from trisync.sessions.reading import read_history, read_members, read_state
from trisync.settings import Settings
from trisync.storage.log import Duplicate, Flow, LogUnavailable, Refused, Submission
from trisync.version import __version__
from trisync.wire.errors import WireError, too_large
from trisync.wire.framing import Framing
from trisync.wire.protocol import (
    HISTORY_LIMIT_MAX,
    PROTOCOL_VERSION,
    UNANSWERED_MAX,
    AnyRequest,
    BadRequest,
    GetPresence,
    GetState,
    Hello,
    History,
    Ping,
    Publish,
    Subscribe,
    Unsubscribe,
    decode_request,
    decode_requests,
)
from trisync.wire.replies import encode_goodbye, encode_reply

SUBMISSION_BYTES_MAX = 1024 * 1024
"""So much of one connection's publishes is decided together, as Submission counts them; the rest waits for the answers.
Those of one read that wait for nothing else may be more: a read is bounded too."""
TURN_REQUESTS = 16
"""Requests of one connection that are answered before others have a turn, while none has to wait for anything."""


class Session:
    """A conversation over one connection. close() must be called at its end."""

    __slots__ = (
        "_broker",
        "_client",
        "_connection",
        "_door",
        "_fenced",
        "_flow",
        "_hooks",
        "_id",
        "_name",
        "_producer",
        "_publish_hooks",
        "_settings",
        "_submission",
        "_subscriptions",
    )

    def __init__(
        self, broker: Broker, connection: Connection, settings: Settings, hooks: Hooks, door: Door = "tcp"
    ) -> None:
        self._broker = broker
        self._connection = connection
        self._settings = settings
        self._hooks = hooks
        self._publish_hooks = hooks.for_publish if hooks.any_publish else None
        self._door: Door = door
        self._client: Client | None = None  # made when a hook is to be told of it
        self._id: str | None = None
        self._name: str | None = None
        self._producer: str | None = None
        self._fenced = False
        self._flow: Flow | None = None  # made at the first publish
        self._subscriptions: Subscriptions | None = None  # most connections that only publish never have any
        self._submission: Submission | None = None

    async def receive(self, payloads: list[bytes]) -> None:
        """Handle payloads in order, then wait until the broker's queue has room again.

        Cancelled half-way, some are handled and some are not; those that were submitted are still answered.
        """
        waiting_since = trio.current_time()
        for number, payload in enumerate(payloads, start=1):
            if number % TURN_REQUESTS == 0:
                await trio.lowlevel.checkpoint()
            try:
                request = decode_request(payload)
            except BadRequest as bad:
                await self._refuse(bad, len(payload))
                continue
            if type(request) is Publish:
                await self._take_publish(request, len(payload))
                if self._is_much(request):
                    await self._settle_up()
            else:
                await self._answer(request)
        self._submit()
        await self._room()
        self._connection.excuse(waiting_since)

    def receive_at_once(self, payloads: list[bytes]) -> list[bytes]:
        """Handle payloads up to the first that has to wait for something; returns those that are left.

        What is left is for receive(), which also waits for room in the broker's queue before more is read.
        """
        hooks = self._publish_hooks
        items: list[Publish | Refused] = []
        for request in decode_requests(payloads):
            if (
                type(request) is not Publish
                or (request.key is not UNSET and request.conditional)
                or (hooks is not None and hooks(request.channel))
            ):
                break
            items.append(request if request.seq is UNSET else self._judge_seq(request))
        if items:
            self._own_submission().extend(items, sum(map(len, payloads[: len(items)])))
            self._submit()
        return payloads[len(items) :]

    @property
    def must_wait(self) -> bool:
        """Whether more may be read only when the client has taken its answers, and receive() has waited for room."""
        if self._connection.outbox.over:
            return True
        return self._flow is not None and not self._broker.has_room(self._flow)

    def _is_much(self, request: Publish) -> bool:
        """Whether what was collected is to be answered before more is taken.

        What is conditional counts until it is settled: its answers may be much larger than it is, and who does not take
        them is not to be owed many.
        """
        if self._submission is None:
            return False
        unsettled = self._own_flow().unsettled if request.conditional else 0
        return self._submission.size + unsettled > SUBMISSION_BYTES_MAX

    async def _settle_up(self) -> None:
        """Wait until what was collected is answered, and the answers were taken: they may be large."""
        self._submit()
        await self._connection.answered()
        await self._connection.room()

    async def handle(self, request: AnyRequest) -> None:
        """Handle one request that is known to be good, unless it is too large. Raises WireError."""
        if type(request) is Publish:
            if len(request.data) > self._settings.message_bytes_max:
                raise too_large(self._settings.message_bytes_max)
            await self._take_publish(request, len(request.data))
            self._submit()
            await self._room()
        else:
            await self._answer(request)

    def speak(self, framing: Framing, render: Callable[[bytes], bytes] | None = None) -> None:
        """From now on, write to the client in this framing; `render` where its own messages are for a person."""
        self._connection.framing = framing
        self._connection.render = render
        if self._subscriptions is not None:
            self._subscriptions.reframe()

    async def level(self) -> None:
        """Wait until the client has its answers, and of its subscriptions what there was, as far as can be read now."""
        await self._connection.answered()  # of its own publishes, too, its subscriptions bring what there is
        if self._subscriptions is not None:
            await self._subscriptions.level()

    def goodbye(self) -> None:
        """The server stops: end, and tell the client when to come back."""
        self._connection.last_word = self.goodbye_message()
        self._connection.end(DRAINING)

    def goodbye_message(self) -> bytes:
        """A `goodbye` whose pause is drawn, so that clients do not all return at once."""
        return encode_goodbye(int(self._broker.tokens(8), 16) % self._settings.reconnect_spread_ms)

    async def begin(self) -> None:
        """Tell the program's hooks that a client has come, who may refuse it: raises WireError, which is to end it."""
        if self._hooks.any_connect or self._hooks.any_disconnect:
            await self._hooks.connected(self._meet_client())

    async def leave(self) -> None:
        """Note in the hooks' Client why it has gone, and tell the hooks that ask for that; never raises."""
        if self._client is not None:
            self._client.ended = self._connection.ending
            await self._hooks.disconnected(self._client)

    def _meet_client(self) -> Client:
        if self._client is None:
            self._client = Client(self._session_id(), self._connection.peer, self._door, self._name)
            self._client.renamed = self._take_name
        return self._client

    def _appear_as(self, name: str | None) -> None:
        self._name = name
        if self._client is not None:
            self._client.name = name

    def _take_name(self) -> None:
        """The client has got another name: what was published before keeps the one it had."""
        assert self._client is not None
        self._submit()
        self._name = self._client.name
        if self._subscriptions is not None:
            self._subscriptions.appear_as(self._member(), self._name)

    def close(self) -> None:
        """End the subscriptions and let go of the producer. Publishes under way are still stored."""
        if self._client is not None:
            self._client.renamed = lambda: None
        if self._subscriptions is not None:
            self._subscriptions.close(may_return=self._producer is not None)
        if self._producer is not None:
            self._broker.release_producer(self._producer, self._fence)

    # Publishes

    def _collect(self, item: Publish | Refused, payload_bytes: int) -> None:
        if item.seq is not UNSET:
            item = self._judge_seq(item)
        self._own_submission().add(item, payload_bytes)

    def _own_submission(self) -> Submission:
        if self._submission is None:
            self._submission = Submission(self._settle, self._name, self._producer, flow=self._own_flow())
        return self._submission

    def _own_flow(self) -> Flow:
        if self._flow is None:
            self._flow = Flow()
        return self._flow

    async def _room(self) -> None:
        if self._flow is not None:
            await self._broker.room(self._flow)

    async def _take_publish(self, request: Publish, payload_bytes: int) -> None:
        """Collect a publish, once the hooks were asked about it; what came before it need not wait for them."""
        if self._publish_hooks is None or not self._publish_hooks(request.channel):
            self._collect(request, payload_bytes)
            return
        self._submit()
        item = await self._hooks.judge_publish(self._meet_client(), request)
        self._collect(item, len(item.data) if type(item) is Publish else 0)

    def _judge_seq(self, item: Publish | Refused) -> Publish | Refused:
        if self._producer is None:
            return Refused(WireError("bad_request", "seq needs a hello with a producer first"), item.id)
        if self._fenced:
            error = WireError("fenced", "a newer connection has taken this producer over")
            return Refused(error, item.id, item.seq)
        return item

    def _submit(self) -> None:
        if self._submission is not None:
            self._connection.awaits_answer()
            self._broker.submit(self._submission)
            self._submission = None

    def _settle(self, submission: Submission) -> None:
        replies: list[bytes] = []
        for item, verdict in zip(submission.items, submission.verdicts, strict=True):
            id = item.id
            if type(verdict) is int and type(id) is int and verdict:  # as nearly all are
                replies.append(b'{"op":"ok","id":%d,"offset":%d}' % (id, verdict))
            elif isinstance(verdict, WireError):
                self._connection.note(f"{verdict.code}: {verdict.message}")
                replies.append(verdict.encode(id))
            elif id is not UNSET:
                replies.append(self._encode_ok(id, verdict))
        if replies:
            self._connection.reply(*replies)
        self._connection.was_answered()

    def _encode_ok(self, id: int | str, verdict: int | Duplicate) -> bytes:
        fields: dict[str, object] = {}
        offset = verdict.offset if type(verdict) is Duplicate else verdict
        if offset:
            fields["offset"] = offset
        if type(verdict) is Duplicate:
            fields["duplicate"] = True
        return encode_reply("ok", id, **fields)

    async def _refuse(self, bad: BadRequest, payload_bytes: int) -> None:
        if bad.op == "publish":
            # In its place among the publishes, whose replies keep their order; and a seq may be settled by it.
            self._collect(Refused(bad.error, bad.id, bad.seq), payload_bytes)
        else:
            self._submit()  # it need not wait as well
            await self._connection.room()
            self._connection.refuse(bad.error, bad.id)

    def _fence(self) -> None:
        self._submit()  # what came before the fence is still the producer's
        self._fenced = True

    # Everything else

    async def _answer(self, request: AnyRequest) -> None:
        self._submit()
        await self._connection.room()
        reply: bytes | None = None
        try:
            if isinstance(request, Subscribe | History | GetState | GetPresence):
                await self._judge_reading(request)
            match request:
                case Hello():
                    reply = await self._hello(request)
                case Subscribe():
                    await self._subscribe(request)  # which has its reply written before anything else
                case Unsubscribe():
                    if self._subscriptions is not None:
                        self._subscriptions.unsubscribe(request.channel)
                    reply = encode_reply("ok", request.id)
                case History():
                    reply = await read_history(self._broker, request)
                case GetState():
                    reply = await read_state(self._broker, request)
                case GetPresence() if request.id is not UNSET:
                    await trio.lowlevel.checkpoint()  # a page may have thousands
                    reply = read_members(self._broker, request, self._settings.message_bytes_max)
                case Ping():
                    reply = encode_reply("pong", request.id)
        except LogUnavailable as problem:
            error = WireError("unavailable", f"the log cannot be read now: {problem}")
            self._connection.refuse(error, request.id)
        except WireError as error:
            self._connection.refuse(error, request.id)
        if reply is not None and request.id is not UNSET:
            self._connection.reply(reply)

    async def _judge_reading(self, request: Subscribe | History | GetState | GetPresence) -> None:
        if self._hooks.any_subscribe:
            await self._hooks.judge_reading(self._meet_client(), request)

    async def _hello(self, request: Hello) -> bytes:
        fields: dict[str, object] = {
            "protocol": PROTOCOL_VERSION,
            "server": f"trisync/{__version__}",
            "session": self._session_id(),
            "epoch": self._broker.epoch,
            "limits": {
                "message_bytes_max": self._settings.message_bytes_max,
                "subscriptions_max": self._settings.subscriptions_max,
                "keys_max": self._settings.keys_max,
                "history_limit_max": HISTORY_LIMIT_MAX,
                "unanswered_max": UNANSWERED_MAX,
            },
        }
        if request.producer is not UNSET:
            if self._producer not in (None, request.producer):
                self._broker.release_producer(str(self._producer), self._fence)
            self._producer = request.producer
            self._fenced = False
            fields["seq"] = await self._broker.take_producer(request.producer, self._fence)
        if request.name is not UNSET:
            self._appear_as(request.name)
        if self._subscriptions is not None:
            self._subscriptions.appear_as(self._member(), self._name)
            await trio.lowlevel.checkpoint()  # it may have been in many channels
        return encode_reply("ok", request.id, **fields)

    def _session_id(self) -> str:
        if self._id is None:
            self._id = self._broker.tokens(8)
        return self._id

    def _member(self) -> str:
        """Who this is in a channel's presence: its producer, if it has one, however often that connects."""
        who = f"session {self._session_id()}" if self._producer is None else f"producer {self._producer}"
        return self._broker.presence.member_id(who)

    async def _subscribe(self, request: Subscribe) -> None:
        if self._subscriptions is None:
            count_max = self._settings.subscriptions_max
            self._subscriptions = Subscriptions(self._broker, self._connection, count_max, self._member(), self._name)
        await self._subscriptions.subscribe(request)
