"""One client's side of the conversation, over any number of connections: when to connect, what to say, what it means.

Sans-IO: a driver opens connections when the machine wants one, hands it what was received, sends what it gives, and
calls tick() when a deadline has come. Time and randomness are passed in, so that every promise can be tested with
any order of events, from a seed. The parts are in publishes.py, subscriptions.py and requests.py.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from msgspec import Raw

from trisync.client.backoff import Backoff, pause_of
from trisync.client.errors import ClientError, Closed, Fenced, NotConnected, ProtocolError, Refused, publishes, refusal
from trisync.client.feeds import Inbox, Members, Start
from trisync.client.publishes import Publish, Publishes
from trisync.client.replica import Replica
from trisync.client.requests import Request, Requests
from trisync.client.status import State, Status
from trisync.client.subscriptions import Subscriptions
from trisync.client.watchdog import Watchdog
from trisync.client.wire import (
    GapNotice,
    Goodbye,
    Message,
    Ok,
    Pong,
    PresenceNotice,
    Refusal,
    StatePage,
    check_size,
    decode,
    details_of,
    encode_body,
    encode_request,
)
from trisync.wire.data import encode_data
from trisync.wire.protocol import UNANSWERED_MAX

logger = logging.getLogger("trisync.client")

BACKOFF_S_BASE = 0.2
BACKOFF_S_MAX = 20.0
STABLE_S = 5.0
"""A connection that was online for so long lets the next pause be a short one again."""


def make_producer() -> str:
    """A producer id that nobody else has, or can guess."""
    return secrets.token_hex(16)


class Machine:
    """The conversation. Nothing here waits, blocks, or raises for what a server does.

    A `producer` that is not given is made up, so that nobody else has it. `timer` gives seconds that only grow;
    `on_change` is called when take_output(), deadline() or may_read() may have changed other than by the driver's own
    calls, and with each status.
    """

    def __init__(
        self,
        *,
        producer: str | None = None,
        name: str | None = None,
        timer: Callable[[], float],
        random: Random,
        queue_max: int = 10_000,
        queue_bytes_max: int = 16 << 20,
    ) -> None:
        self.name = name
        self.producer = producer or make_producer()
        self._is_producer_ours = producer is None
        self.publishes = Publishes(queue_max, queue_bytes_max, timer, random)
        self.status = Status(State.CONNECTING, "not connected yet")
        self.error: ClientError | None = None
        """Why it is closed, once it is."""
        self.problem = ""
        """Why the last connection ended, or could not be opened."""
        self.hang_up: str | None = None
        """Why the driver should end the connection, where that is so."""
        self.complaint = ""
        """What the server said of the connection as a whole, as it does before it ends one."""
        self.last_words: list[bytes] = []
        """What is still to be sent once it is closed: that it leaves its channels, so that others see it go at once."""
        self.connect_at = -math.inf
        """When the next connection should be opened, while there is none."""
        self.on_change: Callable[[], None] = lambda: None
        self.on_status: Callable[[Status], None] = lambda status: None
        self._timer = timer
        self._requests = Requests()
        self._subscriptions = Subscriptions(self._say_now, lambda: self.on_change(), timer, random)
        self._watchdog = Watchdog(timer)
        self._backoff = Backoff(random, BACKOFF_S_BASE, BACKOFF_S_MAX, least=0)
        self._goodbye_s: float | None = None
        self._online_at: float | None = None
        self._was_online = False

    # What a program asks

    def check_open(self) -> None:
        """Raises what it was closed with, if it was."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        epoch: str | None = None,
        merge: bool = False,
    ) -> Publish:
        """Queue a publish. Raises QueueFull, TooLarge, Closed, and what encode_body() does.

        `epoch` is the log that `expect` is of, that of the newest hello if it is left out. In another log it is not
        met, unless it is 0, which is the same in all.
        """
        self.check_open()
        body = encode_body(channel, data, key, expect, merge=merge, ephemeral=False)
        publish = self.publishes.add(body, (self.publishes.epoch if epoch is None else epoch) if expect else "")
        self.on_change()
        return publish

    def flash(self, channel: str, data: Any, on_done: Callable[[Request], None]) -> Request:
        """Publish without storing: now, or not at all. Raises NotConnected, and otherwise as publish() does."""
        self.check_open()
        if self.status.state is not State.ONLINE:
            raise NotConnected(f"an ephemeral message is for those who are there now: {self.status.reason}")
        data = Raw(encode_data(data))  # as it is now, whenever it is sent
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
        self.check_open()
        request = self._requests.ask(op, fields, on_done, once=once)
        self.on_change()
        return request

    def forget(self, request: Request) -> None:
        """Nobody waits for a request any more: do not ask again."""
        self._requests.forget(request)

    def subscribe(self, channel: str, start: Start) -> Inbox:
        """Want a channel's messages. Raises Closed, and RuntimeError where they are wanted already."""
        self.check_open()
        return self._subscriptions.subscribe(channel, start)

    def replicate(self, channel: str) -> Replica:
        """Want a channel's state. As subscribe()."""
        self.check_open()
        return self._subscriptions.replicate(channel)

    def watch(self, channel: str) -> Members:
        """Want to know who is in a channel. As subscribe()."""
        self.check_open()
        return self._subscriptions.watch(channel)

    def leave(self, channel: str, part: Inbox | Replica | Members) -> None:
        """Want that no longer, which ends it with Closed; no error if it had ended by itself."""
        self._subscriptions.leave(channel, part)
        part.fail(Closed(f"the program left {channel}"))

    def close(self, reason: str, error: ClientError | None = None) -> int:
        """The end: all that waits fails, with `error` or Closed. Returns how many publishes were not settled."""
        if self.error is not None:
            return 0
        self.error = error or Closed(f"the client is closed: {reason}")
        if self.status.state is State.ONLINE:
            asked = [request.fields for request in self._requests.of_kind("unsubscribe")]
            leaving = [*asked, *({"channel": channel} for channel in self._subscriptions.channels)]
            self.last_words = [encode_request("unsubscribe", "bye", fields) for fields in leaving]
        self._set_status(Status(State.CLOSED, reason))
        self.hang_up = reason
        self._subscriptions.fail(self.error)
        self._requests.fail(self.error)
        left = self.publishes.fail(self.error)
        if left:
            logger.error("closed with %s that had no answer, and may be stored or not: %s", publishes(left), reason)
        self.on_change()
        return left

    def nudge(self) -> None:
        """The network may be back: connect at once, or see whether the connection is still one."""
        self._backoff.reset()
        if self.status.state is State.OFFLINE:
            self.connect_at = -math.inf
        elif self.status.state is State.ONLINE and not self._watchdog.is_answer_due:
            self._probe()
        self.on_change()

    # What a driver does

    def may_read(self) -> bool:
        """Whether the connection should be read. Not while all that is wanted are messages that wait to be taken,
        unless an answer is awaited: who takes them may be who awaits it."""
        is_reading = self._is_awaiting or not self._subscriptions.all_full
        self._watchdog.reading(is_reading)
        return is_reading

    def connecting(self, where: str) -> None:
        """A connection is being opened."""
        logger.debug("connecting to %s, attempt %d", where, self._backoff.failures + 1)
        if self.error is None:
            again = f" again: {self.problem}" if self.problem else ""
            self._set_status(Status(State.CONNECTING, f"connecting to {where}{again}"))

    def connected(self) -> None:
        """A connection is open."""
        self.hang_up = None if self.error is None else self.status.reason
        self.complaint = ""
        self._goodbye_s = None
        self._watchdog.heard()
        self._watchdog.asked()
        self._greet()

    def lost(self, reason: str) -> None:
        """There is no connection any more, or none could be opened."""
        if self.error is not None:
            return
        self.problem = reason
        now = self._timer()
        online_at, self._online_at = self._online_at, None
        if online_at is not None and now - online_at >= STABLE_S:
            self._backoff.reset()
        pause_s = self._backoff.failed()
        if self._goodbye_s is not None:
            pause_s, self._goodbye_s = self._goodbye_s, None
        self.connect_at = now + pause_s
        self._watchdog.answered()
        self.hang_up = None
        in_doubt = self.publishes.in_flight
        self.publishes.lost()
        self._subscriptions.lost()
        logger.log(
            logging.DEBUG if online_at is None else logging.INFO,
            "%s; %s in doubt, queued %d, subscribed to %d; next attempt in %.2f s",
            *(reason, publishes(in_doubt), len(self.publishes), len(self._subscriptions), pause_s),
        )
        self._set_status(Status(State.OFFLINE, reason, pause_s))
        self._requests.lost(reason)

    def take_output(self) -> list[bytes]:
        """What is to be sent now, in order."""
        if self.status.state is State.CLOSED or self.hang_up is not None:
            return []
        greeted = self.status.state is State.ONLINE
        return [*self._requests.take_output(greeted=greeted), *self.publishes.take_output()]

    def sent_part(self) -> None:
        """The network has taken a part of what is being sent."""
        self._watchdog.moved()

    def receive(self, payloads: Iterable[bytes]) -> None:
        """Take in what came. If hang_up is set behind it, the connection is to be ended."""
        self._watchdog.heard()
        if self.status.state is State.ONLINE:
            self._watchdog.answered()
        try:
            for payload in payloads:
                if self.error is None:
                    self._take(payload)
        except ProtocolError as error:
            logger.warning("%s", error)
            self.hang_up = str(error)

    def deadline(self) -> float:
        """When tick() is to be called, on the timer's scale, while there is a connection."""
        silent_at = self._watchdog.deadline(awaiting=self._is_awaiting)
        return min(self.publishes.resend_at, self._subscriptions.retry_at, silent_at)

    def tick(self) -> None:
        """A deadline may have come; on_change is called if one has."""
        now = self._timer()
        if now < self.deadline():
            return
        self.publishes.tick(now)
        self._subscriptions.tick(now)
        if self._watchdog.is_overdue:
            self.hang_up = f"the server said nothing for {self._watchdog.silent_s:.0f} s"
        elif now >= self._watchdog.deadline(awaiting=self._is_awaiting):
            self._probe()
        self.on_change()

    @property
    def _is_awaiting(self) -> bool:
        """Whether the server has something to answer."""
        return bool(self._requests.awaited or self.publishes.in_flight)

    def _probe(self) -> None:
        logger.debug("the server has said nothing for %.0f s: asking", self._watchdog.silent_s)
        self._watchdog.asked()
        self._say_now("ping", {}, lambda _: None)

    # What the server says

    def _take(self, payload: bytes) -> None:
        said = decode(payload)
        if type(said) is Message or type(said) is GapNotice or type(said) is StatePage or type(said) is PresenceNotice:
            self._subscriptions.take(said)
        elif type(said) is Ok and type(said.id) is int:
            self.publishes.accepted(said)
        elif type(said) is Ok or type(said) is Pong:
            self._requests.answered(said.id, said, None)
        elif type(said) is Refusal:
            self._take_refusal(said, payload)
        elif type(said) is Goodbye:
            self._goodbye_s = pause_of(said.reconnect_ms)
            logger.debug("the server is stopping (%s); come back in %.2f s", said.code, self._goodbye_s)

    def _take_refusal(self, said: Refusal, payload: bytes) -> None:
        error = refusal(said.code, said.message, said.retry, details_of(payload))
        if said.code == "fenced" and self._is_producer_ours:
            self.hang_up = "a hello of this client's that came late, from a connection that it had given up, took over"
        elif said.code == "fenced":
            self.close("another client uses this producer", error)
        elif said.id is None:
            self.complaint = f"{said.message} ({said.code})"
            # It was not asked for more than to come. A hello that the network cut in half is a bad_request.
            if self.status.state is State.CONNECTING and not said.retry and said.code != "bad_request":
                self._turned_away(error)
            else:
                logger.warning("the server said: %s", self.complaint)
        elif type(said.id) is int:
            self.publishes.refused(said, error)
        else:
            self._requests.answered(said.id, None, error)

    def _say_now(self, op: str, fields: dict[str, Any], on_done: Callable[[Request], None]) -> None:
        """Ask on this connection, or not at all."""
        if self.error is None:
            self.request(op, fields, on_done, once=True)

    def _greet(self) -> None:
        self._say_now("hello", {"producer": self.producer, "name": self.name}, self._on_hello)

    def _on_hello(self, request: Request) -> None:
        if self.error is not None or isinstance(request.error, NotConnected):
            return
        if request.error is not None:
            if isinstance(request.error, Refused) and request.error.retry:
                self.hang_up = str(request.error)
            else:
                self._turned_away(request.error)
            return
        ok = request.reply
        assert type(ok) is Ok
        self.publishes.window = min(UNANSWERED_MAX, ok.limits.get("unanswered_max", UNANSWERED_MAX))
        self.publishes.message_bytes_max = ok.limits.get("message_bytes_max", self.publishes.message_bytes_max)
        is_same_log, self.publishes.epoch = self.publishes.epoch == ok.epoch, ok.epoch
        if self.publishes.greeted(ok.seq):
            self._go_online(ok)
        elif is_same_log and self.publishes.is_ahead(ok.seq):
            problem = f"somebody else has published as this producer: its seq is {ok.seq}"
            self.close("another client uses this producer", Fenced("fenced", problem))
        else:
            logger.warning("the server does not know how far this client had got: it goes on as another producer")
            self.producer = make_producer()
            self._is_producer_ours = True
            self.publishes.begin_anew()
            self._greet()

    def _go_online(self, ok: Ok) -> None:
        self._online_at = self._timer()
        self._watchdog.answered()
        logger.log(
            logging.INFO if self._was_online else logging.DEBUG,
            "online with %s as session %s, epoch %s; %s queued, subscribed to %d",
            *(ok.server, ok.session, ok.epoch, publishes(len(self.publishes)), len(self._subscriptions)),
        )
        self._was_online = True
        self._set_status(Status(State.ONLINE, f"connected to {ok.server}"))
        self._subscriptions.greeted()

    def _turned_away(self, error: ClientError) -> None:
        self.close(f"the server refuses this client: {error}", error)

    def _set_status(self, status: Status) -> None:
        if status != self.status:
            self.status = status
            self.on_status(status)
            self.on_change()
