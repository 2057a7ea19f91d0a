"""One connection's subscriptions: where they begin, and how one that is behind gets to the head.

Catching up after a reconnect, replaying history and serving a slow reader are the same thing here: pages are
read behind the cursor, from the cache or the log, at the connection's own speed, until the cursor is at the
head; in that same step the subscription is live again. Nothing is missed or repeated between the two.
"""

import trio
from msgspec import UNSET

from trisync.broker import Broker
from trisync.channels import LEFT, Outlet, Subscription
from trisync.errors import WireError
from trisync.log import LogUnavailable
from trisync.protocol import Subscribe, encode_gap, encode_reply

LOG_RETRY_S = 0.5
"""Pause before a page is asked for again from a log that was unavailable."""


class Subscriptions:
    """The subscriptions of one connection. close() must be called at its end."""

    __slots__ = ("_behind", "_broker", "_by_channel", "_catching_up", "_count_max", "_outlet")

    def __init__(self, broker: Broker, outlet: Outlet, count_max: int) -> None:
        self._broker = broker
        self._outlet = outlet
        self._count_max = count_max
        self._by_channel: dict[str, Subscription] = {}
        self._behind: dict[Subscription, None] = {}
        self._catching_up = False

    async def subscribe(self, request: Subscribe) -> None:
        """Begin a subscription, or move the cursor of one there is; writes the `ok`, and a `gap` if need be.

        Raises WireError `limit`, and LogUnavailable; then nothing has changed. So with cancellation.
        """
        if request.channel not in self._by_channel and len(self._by_channel) >= self._count_max:
            raise WireError(
                "limit",
                f"a connection has at most {self._count_max} subscriptions",
                limit="subscriptions_max",
                value=self._count_max,
            )
        channel = await self._broker.enter(request.channel)
        # From here on nothing waits: the ok, a gap and what is written next belong together.
        self.unsubscribe(request.channel)
        epoch = self._broker.epoch
        if request.id is not UNSET:
            self._outlet.reply(encode_reply("ok", request.id, offset=channel.head, epoch=epoch))
        cursor = channel.head
        if request.last is not UNSET:
            cursor = max(channel.head - request.last, channel.trimmed)
        elif request.since is not UNSET:
            if request.since > channel.head or (request.epoch is not UNSET and request.epoch != epoch):
                self._outlet.reply(encode_gap(channel.name, "epoch"))
                cursor = channel.trimmed
            else:
                cursor = request.since
        subscription = Subscription(channel, self._outlet, cursor, self._fell_behind)
        self._by_channel[channel.name] = subscription
        if cursor == channel.head:
            channel.join_live(subscription)
        else:
            self._fell_behind(subscription)

    def unsubscribe(self, name: str) -> None:
        """End a subscription; one that is not there is no error."""
        subscription = self._by_channel.pop(name, None)
        if subscription is not None:
            self._end(subscription)

    def reframe(self) -> None:
        """The outlet's framing has changed: what is live goes on under the new one."""
        for subscription in self._by_channel.values():
            if subscription.framing is not None:
                subscription.channel.leave_live(subscription)
                subscription.channel.join_live(subscription)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in self._by_channel.values():
            self._end(subscription)
        self._by_channel.clear()

    def _end(self, subscription: Subscription) -> None:
        subscription.cursor = LEFT
        self._behind.pop(subscription, None)
        subscription.channel.leave_live(subscription)
        self._broker.leave(subscription.channel)

    def _fell_behind(self, subscription: Subscription) -> None:
        self._behind[subscription] = None
        if not self._catching_up:
            self._catching_up = True
            self._outlet.start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        """Bring every subscription that is behind to the head, in turns, then end."""
        try:
            while self._behind:
                for subscription in list(self._behind):
                    await self._outlet.room()
                    try:
                        await self._advance(subscription)
                    except LogUnavailable:
                        await trio.sleep(LOG_RETRY_S)
        finally:
            self._catching_up = False

    async def _advance(self, subscription: Subscription) -> None:
        """Write the next page of one subscription; at the head, make it live."""
        channel, cursor = subscription.channel, subscription.cursor
        if cursor == LEFT:
            return
        run = None
        if cursor < channel.head:
            run = await self._broker.run_behind(channel, cursor)
            if subscription.cursor != cursor:
                return  # it ended while the page was read
        # From here on nothing waits: what is seen of the head holds until the subscription is live.
        if run is None:
            self._skip(subscription, min(channel.trimmed, channel.head))
            if subscription.cursor == cursor < channel.head:
                raise RuntimeError(f"the log has lost {channel.name} behind offset {cursor}")
        else:
            self._skip(subscription, run.after)
            framing = self._outlet.framing
            assert framing is not None
            if self._outlet.offer(run.encoded(framing)):
                subscription.cursor = run.last
        if subscription.cursor >= channel.head:
            del self._behind[subscription]
            channel.join_live(subscription)

    def _skip(self, subscription: Subscription, until: int) -> None:
        """Say that what lies between the cursor and offset `until` is gone, if anything does."""
        if until > subscription.cursor:
            self._outlet.reply(encode_gap(subscription.channel.name, "trimmed", subscription.cursor + 1, until))
            subscription.cursor = until
