"""Channels in memory: who is subscribed, who is live, and the fan-out to them.

A subscription is a cursor into its channel's log. At the head it is live and gets each run as it is committed;
behind it, cursors.py brings it back. A channel is here while somebody is subscribed to it, and no longer.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Protocol

import trio

from trisync.core.outbox import Outbox, offer_to_all
from trisync.storage.log import Extent, Run
from trisync.wire.framing import Framing

YIELD_EVERY = 1000
"""Subscribers written to before others get a turn: 5 to 20 ms of fan-out."""

LEFT = -1
"""The cursor of a subscription that has ended."""


class Outlet(Protocol):
    """A connection, as far as the broker knows one: something with an outbox and a framing."""

    framing: Framing | None
    outbox: Outbox

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
        self.begun_at = channel.head
        """The head that the client was told: no page of the state may be older, wherever the cursor begins."""
        self.cursor = cursor
        """The offset up to which everything has been written to the connection, or LEFT.

        While it is live, its channel knows that, and this is out of date: see leave_live().
        """
        self.framing: Framing | None = None
        """The framing under which it is live, None while it is not."""
        self.with_state = with_state
        """Whether it begins with the pages of the channel's state, and gets them anew behind a gap."""
        self.pages_after: str | None = "" if with_state else None
        """The key behind which the next page of the state begins, None where there are none to come."""
        self.era = channel.era
        self.fell_behind = fell_behind
        """Called when it was live and cannot go on, for a full backlog or an emptied channel; brings it back."""

    @property
    def is_level(self) -> bool:
        """Whether it has all that there is, and can be live from the next message on."""
        channel = self.channel
        return self.cursor == channel.head and self.era == channel.era and self.pages_after is None


class Channel:
    """A channel with subscribers. Its head is the newest offset that was fanned out."""

    __slots__ = ("_late", "_late_from", "emptied_from", "era", "head", "live", "loading", "members", "name", "trimmed")

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
        self.live: dict[Framing, dict[Subscription, Outbox]] = {}
        """Who gets each run as it is committed, and by which outbox. All but `_late` have got all up to the head."""
        self._late: dict[Framing, dict[Subscription, Outbox]] = {}  # whose slice of a fan-out is still to come
        self._late_from = 0  # the offset up to which they have got all

    @property
    def gone(self) -> int:
        """The offset up to which all is trimmed, of what was fanned out."""
        return min(self.trimmed, self.head)

    def learn(self, extent: Extent) -> None:
        """Take over what the log says. A run that was fanned out meanwhile may have moved the head further."""
        self.head = max(self.head, extent.head)
        self.trimmed = max(self.trimmed, extent.trimmed)

    async def empty(self, extent: Extent) -> None:
        """All that there was is gone, messages and state: whoever is live is told so before it goes on.

        Nothing may be fanned out meanwhile. A checkpoint is executed only between slices of YIELD_EVERY subscribers.
        """
        self.emptied_from = min(self.trimmed + 1, extent.head)
        self.era += 1
        self.learn(extent)
        everybody = [subscription for live in self.live.values() for subscription in live]
        for number, subscription in enumerate(everybody, start=1):
            if subscription.framing is not None and subscription.era != self.era:
                self.leave_live(subscription)
                subscription.fell_behind(subscription)
            if number % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()

    def join_live(self, subscription: Subscription) -> None:
        """Make a subscription live, in the same synchronous step in which it was seen to be level."""
        assert subscription.is_level
        outlet = subscription.outlet
        assert outlet.framing is not None
        subscription.framing = outlet.framing
        self.live.setdefault(outlet.framing, {})[subscription] = outlet.outbox

    def leave_live(self, subscription: Subscription) -> None:
        """Make a subscription not live, its cursor being where it has got to; one that is not live stays as it is."""
        framing = subscription.framing
        if framing is None:
            return
        subscription.framing = None
        subscription.cursor = self.head
        if self._late.get(framing, {}).pop(subscription, None):
            subscription.cursor = self._late_from
        del self.live[framing][subscription]
        if not self.live[framing]:
            del self.live[framing]

    async def fan_out(self, run: Run) -> None:
        """Write a committed run to everybody who is live. Runs must come in order, one at a time.

        A checkpoint is executed only between slices of YIELD_EVERY subscribers. Who becomes live meanwhile has this
        run already, and is not written to. Nobody is, where the head was read from a log that had the run.
        """
        if run.last <= self.head:
            return
        self.head, self._late_from = run.last, run.after
        self._late = {framing: live.copy() for framing, live in self.live.items() if len(live) > YIELD_EVERY}
        for framing, live in list(self.live.items()):
            if framing not in self._late:
                self._write(run, framing, live)
        for framing, late in self._late.items():
            while late:
                turn = dict(islice(late.items(), YIELD_EVERY))
                for subscription in turn:
                    del late[subscription]
                self._write(run, framing, turn)
                if late:
                    await trio.lowlevel.checkpoint()

    def _write(self, run: Run, framing: Framing, live: dict[Subscription, Outbox]) -> None:
        refused = offer_to_all(live.values(), run.encoded(framing))
        if refused:
            for subscription in [subscription for subscription, outbox in live.items() if outbox in refused]:
                self.leave_live(subscription)
                subscription.cursor = run.after
                subscription.fell_behind(subscription)

    async def flash(self, payloads: Sequence[bytes]) -> None:
        """Offer messages that are not stored to everybody who is live; to a slow reader they are lost.

        A checkpoint is executed as in fan_out(). Who becomes live meanwhile gets none of them, nor who changes its
        framing before its turn.
        """
        crowds = {framing: list(live.items()) for framing, live in self.live.items() if len(live) > YIELD_EVERY}
        for framing, live in self.live.items():
            if framing not in crowds:
                offer_to_all(live.values(), framing.join(payloads))
        for framing, crowd in crowds.items():
            data = framing.join(payloads)
            for start in range(0, len(crowd), YIELD_EVERY):
                if start:
                    await trio.lowlevel.checkpoint()
                turn = crowd[start : start + YIELD_EVERY]
                offer_to_all([outbox for subscription, outbox in turn if subscription.framing is framing], data)

    @property
    def audience(self) -> int:
        """How many are live."""
        return sum(map(len, self.live.values()))
