"""All that one client wants of channels, and the subscriptions that bring it, over any number of connections. Sans-IO.

A subscription that the server cannot give now is asked for again after a pause; one that it refuses ends what was
wanted of its channel.
"""

import logging
import math
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from trisync.client.backoff import Backoff
from trisync.client.errors import ClientError, NotConnected, Refused
from trisync.client.feeds import Feed, Inbox, Members, Start
from trisync.client.replica import Replica
from trisync.client.requests import Request
from trisync.client.wire import GapNotice, Message, Ok, PresenceNotice, StatePage

logger = logging.getLogger("trisync.client")

RETRY_S_BASE = 0.2
RETRY_S_MAX = 20.0

Say = Callable[[str, dict[str, Any], Callable[[Request], None]], object]
"""Asks on this connection, or not at all: an op, its fields, and what is called with the answer."""


class Subscriptions:
    """The feeds of one client, by channel. `timer` gives seconds that only grow."""

    def __init__(self, say: Say, on_change: Callable[[], None], timer: Callable[[], float], random: Random) -> None:
        """`on_change` is called when something is wanted, and when an inbox has become full or is so no longer."""
        self.retry_at = math.inf
        """When what the server could not give is asked for again."""
        self._say = say
        self._on_change = on_change
        self._timer = timer
        self._backoff = Backoff(random, RETRY_S_BASE, RETRY_S_MAX, least=0.5)
        self._feeds: dict[str, Feed] = {}
        self._full: set[Feed] = set()
        self._to_retry: set[str] = set()
        self._online = False

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def channels(self) -> Iterable[str]:
        """The channels of which anything is wanted."""
        return self._feeds.keys()

    @property
    def all_full(self) -> bool:
        """Whether all that is wanted are messages, and too many of those wait to be taken already."""
        return 0 < len(self._full) == len(self._feeds) and all(
            feed.replica is None and feed.members is None for feed in self._full
        )

    # What is wanted

    def subscribe(self, channel: str, start: Start) -> Inbox:
        """Want a channel's messages. Raises RuntimeError where they are wanted already."""
        feed = self._feed(channel)
        if feed.inbox is not None:
            raise RuntimeError(f"this client is subscribed to {channel} already")
        inbox = feed.inbox = Inbox(channel, start, lambda: self._flow(feed, inbox))
        self._want(feed)
        return inbox

    def replicate(self, channel: str) -> Replica:
        """Want a channel's state. As subscribe()."""
        feed = self._feed(channel)
        if feed.replica is not None:
            raise RuntimeError(f"this client has the state of {channel} already")
        feed.replica = Replica()
        self._want(feed)
        return feed.replica

    def watch(self, channel: str) -> Members:
        """Want to know who is in a channel. As subscribe()."""
        feed = self._feed(channel)
        if feed.members is not None:
            raise RuntimeError(f"this client watches who is in {channel} already")
        feed.members = Members()
        self._want(feed)
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
            self._to_retry.discard(channel)
            if self._online:
                self._say("unsubscribe", {"channel": channel}, lambda _: None)
        self._on_change()

    def _feed(self, channel: str) -> Feed:
        return self._feeds.setdefault(channel, Feed(channel))

    def _want(self, feed: Feed) -> None:
        if self._online:
            self._ask(feed)
        self._on_change()

    def _flow(self, feed: Feed, inbox: Inbox) -> None:
        """An inbox has become full, has let go of messages, or is full no longer."""
        if inbox is not feed.inbox:
            return  # it was left, and what it has is still taken
        if inbox.is_full():
            self._full.add(feed)
        else:
            self._full.discard(feed)
        # What was let go of is not to come before there is room for it, and then it is.
        if inbox.overflowed and feed.live and feed.parked is not inbox.is_overflowing:
            self._ask(feed)
        self._on_change()

    # What the server says

    def take(self, said: Message | GapNotice | StatePage | PresenceNotice) -> None:
        """Something of a channel has come. Raises ProtocolError."""
        feed = self._feeds.get(said.channel)
        if feed is not None:
            feed.take(said)

    def _ask(self, feed: Feed) -> None:
        self._to_retry.discard(feed.channel)
        fields = feed.request()
        generation = feed.asked

        def on_done(request: Request) -> None:
            if feed.asked != generation or self._feeds.get(feed.channel) is not feed:
                return
            if type(request.reply) is Ok:
                self._backoff.reset()
                if feed.begin(request.reply):
                    self._ask(feed)
            elif request.error is not None and not isinstance(request.error, NotConnected):
                self._refused(feed, request.error)

        self._say("subscribe", fields, on_done)

    def _refused(self, feed: Feed, error: ClientError) -> None:
        if isinstance(error, Refused) and error.retry:
            self._to_retry.add(feed.channel)
            if self.retry_at == math.inf:
                self.retry_at = self._timer() + self._backoff.failed()
            logger.debug("%s cannot be had now, it will be asked for again: %s", feed.channel, error)
        else:
            del self._feeds[feed.channel]
            self._full.discard(feed)
            feed.fail(error)

    # The connection

    def greeted(self) -> None:
        """There is a connection: go on with everything."""
        self._online = True
        for feed in self._feeds.values():
            self._ask(feed)

    def lost(self) -> None:
        """There is none any more."""
        self._online = False
        self.retry_at = math.inf
        self._to_retry.clear()
        for feed in self._feeds.values():
            feed.live = False

    def tick(self, now: float) -> None:
        """Ask again, if a pause is over."""
        if now >= self.retry_at:
            self.retry_at = math.inf
            for channel in sorted(self._to_retry):
                self._ask(self._feeds[channel])

    def fail(self, error: ClientError) -> None:
        """The end: nothing more will come of any channel."""
        self.lost()
        feeds, self._feeds = list(self._feeds.values()), {}
        for feed in feeds:
            feed.fail(error)
