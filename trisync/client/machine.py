"""One client's side of the conversation, over any number of connections: when to connect, what to say, what it means.

Sans-IO: a driver opens connections when the machine wants one, hands it what was received, sends what it gives, and
calls tick() when a deadline has come. Time and randomness are passed in, so that every promise can be tested with
any order of events, from a seed. The parts are in publishes.py, feeds.py and replica.py.
"""

import logging
import math
from collections.abc import Callable, Iterable
from enum import Enum
from random import Random
from typing import Any, NamedTuple

from trisync.client.errors import ClientError, Closed, Fenced, NotConnected, ProtocolError, refusal
from trisync.client.feeds import Feed, Inbox, Members, Start
from trisync.client.publishes import Publish, Publishes
from trisync.client.replica import Replica
from trisync.client.requests import Request, Requests
from trisync.client.wire import (
    GapNotice,
    Goodbye,
    Message,
    Ok,
    Pong,
    PresenceNotice,
    Refusal,
    StatePage,
    check_channel,
    check_size,
    decode,
    details_of,
    encode_body,
    encode_request,
)
from trisync.protocol import UNANSWERED_MAX

logger = logging.getLogger("trisync.client")

BACKOFF_S_BASE = 0.2
BACKOFF_S_MAX = 20.0
STABLE_S = 5.0
"""A connection that was online for so long lets the next pause be a short one again."""

GOODBYE_S_MAX = 60.0
"""No server may send a client away for longer."""

QUIET_S = 25.0
"""A silent server is asked whether it is there; sooner while an answer is awaited: after ANSWER_S."""
ANSWER_S = 10.0
"""How long it has for that, for the answer to hello, and for a connection to be opened."""


class State(Enum):
    """What becomes of a client."""

    CONNECTING = "connecting"
    """A connection is being opened, or the server is being greeted."""
    ONLINE = "online"
    OFFLINE = "offline"
    """There is no connection; the next attempt is planned."""
    CLOSED = "closed"
    """There will be no other connection."""


class Status(NamedTuple):
    """How a client is connected, and why it is so."""

    state: State
    reason: str
    retry_s: float | None = None
    """When offline: how long after this began the next attempt is made."""


class Machine:
    """The conversation. Nothing here waits, blocks, or raises for what a server does.

    `timer` gives seconds that only grow; `on_change` is called when take_output(), deadline(), may_read() or status
    may have changed other than by the driver's own calls.
    """

    def __init__(
        self,
        *,
        producer: str,
        name: str | None = None,
        timer: Callable[[], float],
        random: Random,
        queue_max: int = 10_000,
        queue_bytes_max: int = 16 << 20,
    ) -> None:
        self.name = name
        self.producer = producer
        self.publishes = Publishes(queue_max, queue_bytes_max, timer, random)
        self.status = Status(State.CONNECTING, "not connected yet")
        self.error: ClientError | None = None
        """Why it is closed, once it is."""
        self.hang_up: str | None = None
        """Why the driver should end the connection, where that is so."""
        self.last_words: list[bytes] = []
        """What is still to be sent once it is closed: that it leaves its channels, so that others see it go at once."""
        self.on_change: Callable[[], None] = lambda: None
        self.on_status: Callable[[], None] = lambda: None
        self._timer = timer
        self._random = random
        self._feeds: dict[str, Feed] = {}
        self._requests = Requests()
        self._attempt = 0
        self._retry_at = -math.inf
        self._goodbye_s: float | None = None
        self._online_at: float | None = None
        self._was_online = False
        self._heard_at = 0.0
        self._due_at = math.inf
        self._was_reading = True
        self._full: set[Feed] = set()
        self._feed_failures = 0
        self._retry_feeds_at = math.inf
        self._feeds_to_retry: set[str] = set()

    # What a program asks

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        merge: bool = False,
    ) -> Publish:
        """Queue a publish. Raises QueueFull, BadRequest, TooLarge, Closed, and what msgspec does of `data`."""
        self._check_open()
        publish = self.publishes.add(encode_body(channel, data, key, expect, merge=merge, ephemeral=False))
        self.on_change()
        return publish

    def flash(self, channel: str, data: Any, on_done: Callable[[Request], None]) -> Request:
        """Publish without storing: now, or not at all. Raises NotConnected, BadRequest, Closed."""
        self._check_open()
        if self.status.state is not State.ONLINE:
            raise NotConnected(f"an ephemeral message is for those who are there now: {self.status.reason}")
        body = encode_body(channel, data, None, None, merge=False, ephemeral=True)
        too_large = check_size(body, self.publishes.message_bytes_max)
        if too_large is not None:
            raise too_large
        fields = {"channel": channel, "data": data, "ephemeral": True}
        return self.request("publish", fields, on_done, once=True)

    def request(
        self, op: str, fields: dict[str, Any], on_done: Callable[[Request], None], *, once: bool = False
    ) -> Request:
        """Ask, now or on the next connection; on_done is called with the answer. Raises Closed."""
        self._check_open()
        request = self._requests.ask(op, fields, on_done, once=once)
        self.on_change()
        return request

    def forget(self, request: Request) -> None:
        """Nobody waits for a request any more: do not ask again."""
        self._requests.forget(request)

    def subscribe(self, channel: str, start: Start) -> Inbox:
        """Want a channel's messages. Raises BadRequest, Closed, and RuntimeError where they are wanted already."""
        feed = self._feed(channel)
        if feed.inbox is not None:
            raise RuntimeError(f"this client is subscribed to {channel} already")
        feed.inbox = Inbox(channel, start, lambda: self._flow(feed))
        self._ask_for(feed)
        return feed.inbox

    def replicate(self, channel: str) -> Replica:
        """Want a channel's state. As subscribe()."""
        feed = self._feed(channel)
        if feed.replica is not None:
            raise RuntimeError(f"this client has the state of {channel} already")
        feed.replica = Replica(channel)
        self._ask_for(feed)
        return feed.replica

    def watch(self, channel: str) -> Members:
        """Want to know who is in a channel. As subscribe()."""
        feed = self._feed(channel)
        if feed.members is not None:
            raise RuntimeError(f"this client watches who is in {channel} already")
        feed.members = Members()
        self._ask_for(feed)
        return feed.members

    def leave(self, channel: str, part: Inbox | Replica | Members) -> None:
        """Want that no longer; no error if it had ended by itself."""
        feed = self._feeds.get(channel)
        if feed is None:
            return
        if part is feed.inbox:
            feed.inbox = None
            self._full.discard(feed)
        elif part is feed.replica:
            feed.replica = None
        elif part is feed.members:
            feed.members = None
        if not feed.wanted:
            del self._feeds[channel]
            self._feeds_to_retry.discard(channel)
            if self.status.state is State.ONLINE:
                self.request("unsubscribe", {"channel": channel}, lambda _: None, once=True)
        self.on_change()

    def close(self, reason: str, error: ClientError | None = None) -> int:
        """The end: all that waits fails, with `error` or Closed. Returns how many publishes were not settled."""
        if self.error is not None:
            return 0
        self.error = error or Closed(reason)
        if self.status.state is State.ONLINE:
            asked = [request.fields for request in self._requests.of_kind("unsubscribe")]
            leaving = [*asked, *({"channel": channel} for channel in self._feeds)]
            self.last_words = [encode_request("unsubscribe", "bye", fields) for fields in leaving]
        self._set_status(Status(State.CLOSED, reason))
        self.hang_up = reason
        self._requests.fail(self.error)
        feeds, self._feeds = list(self._feeds.values()), {}
        for feed in feeds:
            feed.fail(self.error)
        left = self.publishes.fail(self.error)
        self.on_change()
        return left

    def nudge(self) -> None:
        """The network may be back: connect at once, or see whether the connection is still one."""
        self._attempt = 0
        if self.status.state is State.OFFLINE:
            self._retry_at = -math.inf
        elif self.status.state is State.ONLINE and self._due_at == math.inf:
            self._probe()
        self.on_change()

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error

    def _feed(self, channel: str) -> Feed:
        self._check_open()
        check_channel(channel)
        return self._feeds.setdefault(channel, Feed(channel))

    def _ask_for(self, feed: Feed) -> None:
        if self.status.state is State.ONLINE:
            self._subscribe(feed)
        self.on_change()

    # What a driver does

    def may_read(self) -> bool:
        """Whether the connection should be read. Not while all that is wanted are messages that wait to be taken,
        unless an answer is awaited: who takes them may be who awaits it."""
        reading = (
            len(self._full) < len(self._feeds)
            or bool(self._requests.awaited or self.publishes.in_flight)
            or not self._full
            or any(feed.replica is not None or feed.members is not None for feed in self._full)
        )
        if reading and not self._was_reading:
            self._heard_at = self._timer()  # it was not the server who was silent
        self._was_reading = reading
        return reading

    @property
    def connect_at(self) -> float:
        """When the next connection should be opened, while there is none."""
        return self._retry_at

    def connecting(self, where: str) -> None:
        """A connection is being opened."""
        logger.debug("connecting to %s, attempt %d", where, self._attempt + 1)
        if self.error is None:
            self._set_status(Status(State.CONNECTING, f"connecting to {where}"))

    def connected(self) -> None:
        """A connection is open."""
        self.hang_up = None if self.error is None else self.status.reason
        self._goodbye_s = None
        self._heard_at = self._timer()
        self._due_at = self._heard_at + ANSWER_S
        hello = {"producer": self.producer} | ({} if self.name is None else {"name": self.name})
        if self.error is None:
            self._say_now("hello", hello, self._on_hello)

    def lost(self, reason: str) -> None:
        """There is no connection any more, or none could be opened."""
        if self.error is not None:
            return
        now = self._timer()
        was_online = self._online_at is not None
        if self._online_at is not None and now - self._online_at >= STABLE_S:
            self._attempt = 0
        self._online_at = None
        pause_s = self._goodbye_s
        if pause_s is None:
            pause_s = self._random.uniform(0, min(BACKOFF_S_MAX, BACKOFF_S_BASE * 2 ** min(self._attempt, 30)))
        self._goodbye_s = None
        self._attempt += 1
        self._retry_at = now + pause_s
        self._due_at = math.inf
        self.hang_up = None
        self._retry_feeds_at = math.inf
        self._feeds_to_retry.clear()
        in_doubt = self.publishes.in_flight
        self.publishes.lost()
        for feed in self._feeds.values():
            feed.live = False
        logger.log(
            logging.INFO if was_online else logging.DEBUG,
            "%s; %d publishes in doubt, %d queued, %d subscriptions; next attempt in %.2f s",
            *(reason, in_doubt, len(self.publishes), len(self._feeds), pause_s),
        )
        self._set_status(Status(State.OFFLINE, reason, pause_s))
        self._requests.lost(reason)

    def take_output(self) -> list[bytes]:
        """What is to be sent now, in order."""
        if self.status.state is State.CLOSED or self.hang_up is not None:
            return []
        greeted = self.status.state is State.ONLINE
        return [*self._requests.take_output(greeted=greeted), *self.publishes.take_output()]

    def receive(self, payloads: Iterable[bytes]) -> None:
        """Take in what came. If hang_up is set behind it, the connection is to be ended."""
        if self.error is not None:
            return
        self._heard_at = self._timer()
        if self.status.state is State.ONLINE:
            self._due_at = math.inf
        try:
            for payload in payloads:
                if self.error is None:
                    self._take(payload)
        except ProtocolError as error:
            logger.warning("%s", error)
            self.hang_up = str(error)

    def deadline(self) -> float:
        """When tick() is to be called, on the timer's scale, while there is a connection."""
        resend_at = self.publishes.resend_at
        at = min(math.inf if resend_at is None else resend_at, self._retry_feeds_at)
        return min(at, self._due_at, self._quiet_until()) if self._was_reading else at

    def tick(self) -> None:
        """A deadline may have come; on_change is called if one has."""
        now = self._timer()
        if now < self.deadline():
            return
        self.publishes.tick(now)
        if now >= self._retry_feeds_at:
            self._retry_feeds_at = math.inf
            for channel in sorted(self._feeds_to_retry):
                self._subscribe(self._feeds[channel])
            self._feeds_to_retry.clear()
        if self._was_reading and now >= self._due_at:
            self.hang_up = f"the server said nothing for {now - self._heard_at:.0f} s"
        elif self._was_reading and now >= self._quiet_until():
            self._probe()
        self.on_change()

    def _quiet_until(self) -> float:
        if self._due_at != math.inf:
            return math.inf
        awaiting = self._requests.awaited or self.publishes.in_flight
        return self._heard_at + (ANSWER_S if awaiting else QUIET_S)

    def _probe(self) -> None:
        logger.debug("the server has said nothing for %.0f s: asking", self._timer() - self._heard_at)
        self._due_at = self._timer() + ANSWER_S
        self._say_now("ping", {}, lambda _: None)

    # What the server says

    def _take(self, payload: bytes) -> None:
        said = decode(payload)
        if type(said) is Message or type(said) is GapNotice or type(said) is StatePage or type(said) is PresenceNotice:
            feed = self._feeds.get(said.channel)
            if feed is not None:
                feed.take(said)
        elif type(said) is Ok or type(said) is Pong:
            if type(said) is Ok and type(said.id) is int:
                self.publishes.accepted(said)
            else:
                self._requests.answered(said.id, said, None)
        elif type(said) is Refusal:
            self._take_refusal(said, payload)
        elif type(said) is Goodbye:
            self._goodbye_s = min(said.reconnect_ms / 1000, GOODBYE_S_MAX)
            logger.debug("the server is stopping (%s); come back in %.2f s", said.code, self._goodbye_s)

    def _take_refusal(self, said: Refusal, payload: bytes) -> None:
        if said.code == "fenced":
            self.close("another client uses this producer", refusal(said.code, said.message))
        elif said.id is None:
            logger.warning("the server said: %s (%s)", said.message, said.code)
        elif type(said.id) is int:
            self.publishes.refused(said, details_of(payload))
        else:
            self._requests.answered(said.id, None, refusal(said.code, said.message, said.retry, details_of(payload)))

    def _say_now(self, op: str, fields: dict[str, Any], on_done: Callable[[Request], None]) -> None:
        """Ask on this connection, or not at all."""
        self.request(op, fields, on_done, once=True)

    def _on_hello(self, request: Request) -> None:
        if self.error is not None or isinstance(request.error, NotConnected):
            return
        ok = request.reply
        if request.error is not None:
            if getattr(request.error, "retry", False):
                self.hang_up = str(request.error)
            else:
                self.close(f"the server refuses this client: {request.error}", request.error)
            return
        assert type(ok) is Ok
        self.publishes.window = min(UNANSWERED_MAX, ok.limits.get("unanswered_max", UNANSWERED_MAX))
        self.publishes.message_bytes_max = ok.limits.get("message_bytes_max", self.publishes.message_bytes_max)
        if not self.publishes.greeted(ok.seq):
            problem = f"somebody else has published as this producer: its seq is {ok.seq}"
            self.close("another client uses this producer", Fenced("fenced", problem))
            return
        self._online_at = self._timer()
        self._due_at = math.inf
        logger.log(
            logging.INFO if self._was_online else logging.DEBUG,
            "online with %s as session %s, epoch %s; %d publishes and %d subscriptions to go on with",
            *(ok.server, ok.session, ok.epoch, len(self.publishes), len(self._feeds)),
        )
        self._was_online = True
        self._set_status(Status(State.ONLINE, f"connected to {ok.server}"))
        for feed in self._feeds.values():
            self._subscribe(feed)

    # Subscriptions

    def _subscribe(self, feed: Feed) -> None:
        fields = feed.request()
        generation = feed.asked

        def on_done(request: Request) -> None:
            if feed.asked != generation or self._feeds.get(feed.channel) is not feed:
                return
            if type(request.reply) is Ok:
                self._feed_failures = 0
                if feed.begin(request.reply):
                    self._subscribe(feed)
            elif request.error is not None and not isinstance(request.error, NotConnected):
                self._subscription_failed(feed, request.error)

        self._say_now("subscribe", fields, on_done)

    def _subscription_failed(self, feed: Feed, error: ClientError) -> None:
        if getattr(error, "retry", False):
            self._feeds_to_retry.add(feed.channel)
            if self._retry_feeds_at == math.inf:
                ceiling = min(BACKOFF_S_MAX, BACKOFF_S_BASE * 2**self._feed_failures)
                self._retry_feeds_at = self._timer() + self._random.uniform(ceiling / 2, ceiling)
                self._feed_failures = min(self._feed_failures + 1, 30)
            logger.debug("%s cannot be had now, it will be asked for again: %s", feed.channel, error)
        else:
            del self._feeds[feed.channel]
            self._full.discard(feed)
            feed.fail(error)

    def _flow(self, feed: Feed) -> None:
        """An inbox has become full, has let go of messages, or is full no longer."""
        assert feed.inbox is not None
        if feed.inbox.is_full():
            self._full.add(feed)
        else:
            self._full.discard(feed)
        # What was let go of is not to come before there is room for it, and then it is.
        if feed.inbox.overflowed and feed.live and feed.parked is not feed.inbox.is_overflowing:
            self._subscribe(feed)
        self.on_change()

    def _set_status(self, status: Status) -> None:
        if status != self.status:
            self.status = status
            self.on_status()
