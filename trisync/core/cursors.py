"""One connection's subscriptions: where they begin, and how one that is behind gets to the head.

Catching up after a reconnect, replaying history and serving a slow reader are the same thing here: pages are
read behind the cursor, from the cache or the log, at the connection's own speed, until the cursor is at the
head; in that same step the subscription is live again. Nothing is missed or repeated between the two.
"""

import trio
from msgspec import UNSET

from trisync.core.broker import Broker
from trisync.core.channels import LEFT, Channel, Outlet, Subscription
from trisync.storage.log import LogUnavailable
from trisync.wire.errors import WireError
from trisync.wire.protocol import Subscribe
from trisync.wire.replies import encode_gap, encode_reply, state_page

LOG_RETRY_S = 0.5
"""Pause before a page is asked for again from a log that was unavailable."""


class Subscriptions:
    """The subscriptions of one connection. close() must be called at its end."""

    __slots__ = (
        *("_behind", "_broker", "_by_channel", "_catching_up", "_count_max", "_outlet", "_pause", "_resting"),
        *("member", "name"),
    )

    def __init__(self, broker: Broker, outlet: Outlet, count_max: int, member: str, name: str | None) -> None:
        self.member = member
        """By whom this connection is shown to others who watch a channel's presence; changed by appear_as()."""
        self.name = name
        self._broker = broker
        self._outlet = outlet
        self._count_max = count_max
        self._by_channel: dict[str, Subscription] = {}
        self._behind: dict[Subscription, None] = {}
        self._catching_up = False
        self._pause: trio.CancelScope | None = None  # while no channel can be read; one more that is behind ends it
        self._resting: trio.Event | None = None  # once somebody waits for that

    async def subscribe(self, request: Subscribe) -> None:
        """Begin a subscription, or move the cursor of one there is; writes the `ok`, and a `gap` if need be.

        Raises WireError `limit`, and LogUnavailable: then, and when it is cancelled, nothing has changed.
        """
        if request.channel not in self._by_channel and len(self._by_channel) >= self._count_max:
            raise WireError(
                "limit",
                f"a connection has at most {self._count_max} subscriptions",
                limit="subscriptions_max",
                value=self._count_max,
            )
        channel = await self._broker.enter(request.channel, request.since)
        # From here on nothing waits: the ok, a gap and what is written next belong together.
        again = self._by_channel.pop(request.channel, None)
        if again is not None:
            self._end(again)
        if request.id is not UNSET:
            who = {"member": self.member} if request.presence else {}
            self._outlet.reply(encode_reply("ok", request.id, offset=channel.head, epoch=self._broker.epoch, **who))
        cursor = self._begin(channel, request)
        subscription = Subscription(channel, self._outlet, cursor, self._fell_behind, with_state=request.state)
        self._by_channel[channel.name] = subscription
        presence = self._broker.presence
        if again is None:
            presence.enter(channel.name, self.member, self.name)
        if request.presence:
            presence.watch(channel.name, self._outlet)
        else:
            presence.unwatch(channel.name, self._outlet)
        self._go_on(subscription)

    def _begin(self, channel: Channel, request: Subscribe) -> int:
        """The offset behind which a subscription begins; writes a `gap` where what the client has is of another log."""
        if request.last is not UNSET:
            return max(channel.head - request.last, channel.gone)
        if request.since is UNSET:
            return channel.head
        if request.since > channel.head or request.epoch not in (UNSET, self._broker.epoch):
            self._outlet.reply(encode_gap(channel.name, "epoch"))
            return 0
        return request.since

    def unsubscribe(self, name: str) -> None:
        """End a subscription; one that is not there is no error."""
        subscription = self._by_channel.pop(name, None)
        if subscription is not None:
            self._end(subscription)
            self._disappear(name, at_once=True)

    def appear_as(self, member: str, name: str | None) -> None:
        """From now on, be shown as this member, by this name."""
        if (member, name) == (self.member, self.name):
            return
        presence = self._broker.presence
        for channel in self._by_channel:
            if member == self.member:
                presence.rename(channel, member, name)
            else:
                presence.enter(channel, member, name)
                presence.leave(channel, self.member, at_once=True)
        self.member, self.name = member, name

    def reframe(self) -> None:
        """The outlet's framing has changed: what is live goes on under the new one."""
        for subscription in self._by_channel.values():
            if subscription.framing is not None:
                subscription.channel.leave_live(subscription)
                self._go_on(subscription)

    async def level(self) -> None:
        """Wait until no subscription is behind any more, or none of those that are can be read."""
        if self._behind:
            if self._resting is None:
                self._resting = trio.Event()
            await self._resting.wait()

    def close(self, *, may_return: bool) -> None:
        """End all subscriptions; `may_return` where the member is one that another connection may be again."""
        for name, subscription in self._by_channel.items():
            self._end(subscription)
            self._disappear(name, at_once=not may_return)
        self._by_channel.clear()

    def _disappear(self, channel: str, *, at_once: bool) -> None:
        self._broker.presence.unwatch(channel, self._outlet)
        self._broker.presence.leave(channel, self.member, at_once=at_once)

    def _end(self, subscription: Subscription) -> None:
        self._behind.pop(subscription, None)
        subscription.channel.leave_live(subscription)
        subscription.cursor = LEFT
        self._broker.leave(subscription.channel)

    def _go_on(self, subscription: Subscription) -> None:
        """Make a subscription live, or bring it there if it has anything to get before."""
        if subscription.is_level:
            subscription.channel.join_live(subscription)
        else:
            self._fell_behind(subscription)

    def _fell_behind(self, subscription: Subscription) -> None:
        self._behind[subscription] = None
        if not self._catching_up:
            self._catching_up = True
            self._outlet.start_soon(self._catch_up)
        elif self._pause is not None:
            self._pause.cancel()

    async def _catch_up(self) -> None:
        """Bring every subscription that is behind to the head, in turns, then end."""
        failed: set[Subscription] = set()  # since the last success: there is no pause while others can be read
        try:
            while self._behind:
                failed &= self._behind.keys()  # without what has ended meanwhile
                for subscription in list(self._behind):
                    await trio.lowlevel.checkpoint()  # neither room() nor what is cached lets others have a turn
                    await self._outlet.room()
                    try:
                        await self._advance(subscription)
                        failed.clear()
                    except LogUnavailable:
                        failed.add(subscription)
                        if self._behind.keys() <= failed:
                            self._rest()
                            with trio.CancelScope() as self._pause:
                                await trio.sleep(LOG_RETRY_S)
        finally:
            self._catching_up = False
            self._rest()

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.set()
            self._resting = None

    async def _advance(self, subscription: Subscription) -> None:
        """Write the next page of one subscription; make it live where it is level then."""
        channel, cursor = subscription.channel, subscription.cursor
        if cursor == LEFT:
            return
        if subscription.era != channel.era:
            self._begin_era(subscription)
        elif cursor < channel.gone:
            # Before any page of the state: a gap makes them begin anew.
            self._skip(subscription, channel.gone)
        elif subscription.pages_after is not None:
            await self._write_state(subscription, subscription.pages_after)
        elif cursor < channel.head:
            await self._write_run(subscription)
        # From here on nothing waits: what is seen of the head holds until the subscription is live.
        if subscription.is_level:
            del self._behind[subscription]
            channel.join_live(subscription)

    async def _write_run(self, subscription: Subscription) -> None:
        channel, cursor, era = subscription.channel, subscription.cursor, subscription.channel.era
        run = await self._broker.reads.run_behind(channel, cursor)
        if subscription.cursor != cursor or channel.era != era:
            return  # it ended, or the channel was emptied, while the page was read
        if run is None:
            self._skip(subscription, channel.gone)
            if subscription.cursor == cursor < channel.head:
                raise RuntimeError(f"the log has lost {channel.name} behind offset {cursor}")
        elif run.after > cursor:
            self._skip(subscription, run.after)
        else:
            framing = self._outlet.framing
            assert framing is not None
            if self._outlet.outbox.offer(run.encoded(framing)):
                subscription.cursor = run.last

    async def _write_state(self, subscription: Subscription, after: str) -> None:
        """Write the next page of the state: no older than what the client was told, and than the cursor."""
        channel, cursor, era = subscription.channel, subscription.cursor, subscription.channel.era
        page = await self._broker.reads.state_behind(channel, after, max(cursor, subscription.begun_at))
        if subscription.cursor != cursor or channel.era != era:
            return
        framing = self._outlet.framing
        assert framing is not None
        if self._outlet.outbox.offer(framing.join([state_page(channel.name, page.entries, page.more)])):
            subscription.pages_after = page.last if page.more else None

    def _begin_era(self, subscription: Subscription) -> None:
        """The channel was emptied: what the client got of it, or was about to get, is gone."""
        channel = subscription.channel
        # If it was emptied more than once since, only where the last time began is known: all is gone.
        first = channel.emptied_from if subscription.era == channel.era - 1 else 1
        subscription.era = channel.era
        subscription.cursor = min(subscription.cursor, first - 1)
        self._skip(subscription, channel.gone)

    def _skip(self, subscription: Subscription, until: int) -> None:
        """Say that what lies between the cursor and offset `until` is gone, if anything does."""
        if until > subscription.cursor:
            self._outlet.reply(encode_gap(subscription.channel.name, "trimmed", subscription.cursor + 1, until))
            subscription.cursor = until
            if subscription.with_state:
                subscription.pages_after = ""
