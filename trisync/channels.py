"""Channels in memory: who is subscribed, who is live, and the fan-out to them.

A subscription is a cursor into its channel's log. At the head it is live and gets each run as it is committed;
behind it, cursors.py brings it back. A channel is here while somebody is subscribed to it, and no longer.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from trisync.framing import JOIN, Framing
from trisync.log import Extent, Run

YIELD_EVERY = 1000
"""Subscribers written to before others get a turn: 5 to 20 ms of fan-out."""

LEFT = -1
"""The cursor of a subscription that has ended: no run continues it."""


class Outlet(Protocol):
    """A connection, as far as the broker knows one: something with an outbox and a framing."""

    framing: Framing | None

    @property
    def offer(self) -> Callable[[bytes], bool]:
        """Sends or queues framed bytes; False, and nothing taken, while the backlog is past its mark.

        Never blocks, never raises. Fan-out keeps and calls it directly, millions of times a second.
        """

    def reply(self, payload: bytes) -> None:
        """Send or queue one of the server's own messages, whatever the backlog. Never blocks, never raises."""

    async def room(self) -> None:
        """Wait until the backlog is small again."""

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run an async function until it ends or the connection does."""


class Subscription:
    """One connection's cursor into one channel."""

    __slots__ = (
        "begun_at",
        "channel",
        "cursor",
        "era",
        "fell_behind",
        "framing",
        "offer",
        "outlet",
        "pages_after",
        "with_state",
    )

    def __init__(
        self,
        channel: "Channel",
        outlet: Outlet,
        cursor: int,
        fell_behind: Callable[["Subscription"], None],
        *,
        with_state: bool = False,
    ) -> None:
        self.channel = channel
        self.outlet = outlet
        self.offer = outlet.offer
        self.begun_at = channel.head
        """The head that the client was told: pages of the state are not older, wherever the cursor begins."""
        self.cursor = cursor
        """The offset up to which everything has been written to the connection, or LEFT."""
        self.framing: Framing | None = None
        """The framing under which it is live, None while it is not."""
        self.with_state = with_state
        """Whether it begins with the pages of the channel's state, and gets them anew behind a gap."""
        self.pages_after: str | None = "" if with_state else None
        """The key behind which the next page of the state begins, None where there are none to come."""
        self.era = channel.era
        self.fell_behind = fell_behind
        """Called when the subscription stops being live for its backlog; brings it back."""


class Channel:
    """A channel with subscribers. Its head is the newest offset that was fanned out."""

    __slots__ = ("emptied_from", "era", "head", "live", "loading", "members", "name", "trimmed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.head = 0
        self.trimmed = 0
        self.era = 0
        """How often it was emptied while it was in memory: what a subscription holds of an earlier era is void."""
        self.emptied_from = 0
        """The first offset that went when it was emptied last."""
        self.members = 0
        """Subscriptions, live or not, and those about to be: the channel stays in memory for them."""
        self.loading: trio.Lock | None = trio.Lock()
        """Held by who asks the log for the extent; None once that is known."""
        self.live: dict[Framing, dict[Subscription, None]] = {}

    def learn(self, extent: Extent) -> None:
        """Take over what the log says. A run that was fanned out meanwhile may have moved the head further."""
        self.head = max(self.head, extent.head)
        self.trimmed = max(self.trimmed, extent.trimmed)

    def empty(self, extent: Extent) -> None:
        """All that there was is gone, messages and state: whoever is live is told so before it goes on."""
        self.emptied_from = min(self.trimmed + 1, extent.head)
        self.era += 1
        self.learn(extent)
        for subscription in [subscription for live in self.live.values() for subscription in live]:
            self.leave_live(subscription)
            subscription.fell_behind(subscription)

    def join_live(self, subscription: Subscription) -> None:
        """Make live a subscription whose cursor is at the head; in the same synchronous step as seeing that."""
        assert subscription.cursor == self.head
        framing = subscription.outlet.framing
        assert framing is not None
        subscription.framing = framing
        self.live.setdefault(framing, {})[subscription] = None

    def leave_live(self, subscription: Subscription) -> None:
        """Make a subscription not live; it need not have been."""
        if subscription.framing is None:
            return
        same = self.live[subscription.framing]
        del same[subscription]
        if not same:
            del self.live[subscription.framing]
        subscription.framing = None

    async def fan_out(self, run: Run) -> None:
        """Write a committed run to everybody who is live. Runs must come in order, one at a time.

        A checkpoint is executed only between slices of YIELD_EVERY subscribers. Who becomes live meanwhile has
        this run already, and who leaves has a cursor that no run continues: neither is written to.
        """
        self.head = run.last
        for framing, live in list(self.live.items()):
            data = run.encoded(framing)
            subscriptions = list(live)
            for start in range(0, len(subscriptions), YIELD_EVERY):
                if start:
                    await trio.lowlevel.checkpoint()
                self._write(run, data, subscriptions[start : start + YIELD_EVERY])

    def _write(self, run: Run, data: bytes, subscriptions: list[Subscription]) -> None:
        before, last = run.after, run.last
        behind = []
        for subscription in subscriptions:
            if subscription.cursor == before:
                if subscription.offer(data):
                    subscription.cursor = last
                else:
                    behind.append(subscription)
        for subscription in behind:
            self.leave_live(subscription)
            subscription.fell_behind(subscription)

    def flash(self, payload: bytes) -> None:
        """Offer a message that is not stored to everybody who is live; to a slow reader it is lost."""
        for framing, live in self.live.items():
            data = JOIN[framing]([payload])
            for subscription in list(live):
                subscription.offer(data)
