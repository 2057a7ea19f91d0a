"""Presence: who is in each channel, and telling those who watch it.

Changes are gathered for a tick and told as one message, so that a crowd's arrival is not a message for each of
the crowd to each of the crowd. Who may watch, what a session's identity is, and when it enters and leaves, is
decided above.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence

import trio

from trisync.core.channels import YIELD_EVERY, Outlet
from trisync.wire.framing import Framing
from trisync.wire.replies import encode_text

MEMBER_ID_BYTES = 8
"""Among a million members, two have the same id with a chance of 1 in 37 million."""


class _Member:
    """Someone in a channel: in it `entries` times, or, with 0, in the grace behind the last leave."""

    __slots__ = ("entries", "id", "shown")

    def __init__(self, id: str, shown: bytes) -> None:
        self.id = id
        self.shown = shown
        """The member as JSON, ready for every message; another name is other bytes."""
        self.entries = 1


class _Watcher:
    """One outlet that is told of one channel."""

    __slots__ = ("began", "channel", "outlet", "slow")

    def __init__(self, channel: "_Channel", outlet: Outlet) -> None:
        self.channel = channel
        self.outlet = outlet
        self.began = 0
        """Which of the channel's stretches is the first that it has yet to be told."""
        self.slow = False
        """Whether it gets no changes, but will get the members afresh."""


class _Channel:
    """A channel that has members or watchers."""

    __slots__ = ("ids", "members", "name", "stretches", "watchers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[str, _Member] = {}
        self.ids: list[str] = []
        """The members' ids, sorted: a page of them must not cost a sort of all."""
        self.watchers: dict[Outlet, _Watcher] = {}
        self.stretches: list[dict[str, bytes]] = [{}]
        """What is to be told at the next tick: who changed, and what they were before (b"": not there).

        Who begins to watch has seen the changes so far and begins another stretch, unless the last is empty: what
        is new to a watcher is the difference between now and the beginning of its own stretch.
        """

    def shown(self, id: str) -> bytes:
        member = self.members.get(id)
        return b"" if member is None else member.shown

    def list_members(self, bytes_max: int) -> list[bytes]:
        """All members, as a `members` and what does not fit into it as `joined`."""
        first, *rest = _chunks([member.shown for member in self.members.values()], bytes_max)
        members = b'{"op":"presence","channel":"%b","members":[%b]}' % (self.name.encode(), first)
        return [members, *(self._changes(joined=chunk) for chunk in rest)]

    def take_changes(self, bytes_max: int) -> Iterator[tuple[list[_Watcher], list[bytes]]]:
        """End the tick: watchers with what is new to them. Changes that come meanwhile are for the next."""
        stretches, self.stretches = self.stretches, [{}]
        watchers: list[list[_Watcher]] = [[] for _ in stretches]
        for watcher in self.watchers.values():
            if not watcher.slow:
                watchers[watcher.began].append(watcher)
                watcher.began = 0
        now = {id: self.shown(id) for stretch in stretches for id in stretch}
        kinds: dict[str, dict[str, bytes]] = {"joined": {}, "left": {}, "updated": {}}
        # Backwards, so that what was before an earlier stretch takes the place of what was before a later one.
        for stretch, those in zip(reversed(stretches), reversed(watchers), strict=True):
            for id, before in stretch.items():
                for told in kinds.values():
                    told.pop(id, None)
                after = now[id]
                if before != after:
                    kind = "updated" if before and after else "joined" if after else "left"
                    kinds[kind][id] = after or before
            if those and any(kinds.values()):
                yield those, self._list_changes(kinds, bytes_max)

    def _list_changes(self, kinds: dict[str, dict[str, bytes]], bytes_max: int) -> list[bytes]:
        whole = {kind: b",".join(told.values()) for kind, told in kinds.items()}
        if sum(map(len, whole.values())) <= bytes_max:
            return [self._changes(**whole)]
        return [
            self._changes(**{kind: chunk})
            for kind, told in kinds.items()
            for chunk in _chunks(told.values(), bytes_max)
            if chunk
        ]

    def _changes(self, joined: bytes = b"", left: bytes = b"", updated: bytes = b"") -> bytes:
        # A channel's name needs no escaping.
        message = b'{"op":"presence","channel":"%b","joined":[%b],"left":[%b],"updated":[%b]}'
        return message % (self.name.encode(), joined, left, updated)


class Presence:
    """The members of all channels, and who watches them. run() must be running for changes to be told."""

    def __init__(
        self, *, grace_s: float, tick_s: float, bytes_max: int, timer: Callable[[], float], secret: bytes
    ) -> None:
        """`bytes_max` bounds a message's members, `secret` (64 bytes at most) makes ids opaque.

        `timer` is read for deadlines that run() sleeps until: it must be Trio's clock.
        """
        self._grace_s = grace_s
        self._tick_s = tick_s
        self._bytes_max = bytes_max
        self._timer = timer
        self._secret = secret
        self._channels: dict[str, _Channel] = {}
        # All graces have one length, and all ticks: both queues are in order of their deadlines.
        self._graces: OrderedDict[_Member, tuple[float, _Channel]] = OrderedDict()
        self._ticks: deque[tuple[float, _Channel]] = deque()
        self._earlier = trio.Event()  # set when run() may have to wake up earlier than it knows
        self._behind: dict[Outlet, dict[_Watcher, None]] = {}  # slow watchers, which a task of each outlet brings back
        self._steps = 0

    # Members

    def member_id(self, identity: str) -> str:
        """The id by which others know a session or a producer: always the same here, and saying nothing of it.

        The caller keeps identities of different kinds apart.
        """
        return hashlib.blake2b(identity.encode(), key=self._secret, digest_size=MEMBER_ID_BYTES).hexdigest()

    def enter(self, channel: str, member: str, name: str | None) -> None:
        """A member, by its id, comes in, or comes in once more; its newest name is the one that counts.

        leave() must be called once for each call. Coming back within the grace is not told.
        """
        place = self._place(channel)
        known = place.members.get(member)
        if known is None:
            self._note(place, member)
            place.members[member] = _Member(member, _show(member, name))
            insort(place.ids, member)
        else:
            known.entries += 1
            self._graces.pop(known, None)
            self.rename(channel, member, name)

    def leave(self, channel: str, member: str, *, at_once: bool) -> None:
        """Undo one enter(). After the last the member is gone: at once, or unless it is back within the grace."""
        place = self._channels[channel]
        known = place.members[member]
        assert known.entries, "left more often than entered"
        known.entries -= 1
        if known.entries:
            return
        if at_once:
            self._remove(place, known)
        else:
            if not self._graces:
                self._earlier.set()
            self._graces[known] = (self._timer() + self._grace_s, place)

    def rename(self, channel: str, member: str, name: str | None) -> None:
        """A member has another name, or none; no error if there is no such member."""
        place = self._channels.get(channel)
        shown = _show(member, name)
        if place is not None and place.shown(member) not in (b"", shown):
            self._note(place, member)
            place.members[member].shown = shown

    def members(self, channel: str, after: str, bytes_max: int) -> tuple[bytes, bool]:
        """A page of members, a JSON array in order of their ids, behind the id `after` ("": from the beginning).

        Each is {"member": id} or {"member": id, "name": name}. The page is at most `bytes_max` bytes, or one member;
        the second result is whether there are more behind it.
        """
        place = self._channels.get(channel)
        if place is None:
            return b"[]", False
        page: list[bytes] = []
        start = bisect_right(place.ids, after)
        size = 1  # of the brackets, less the comma that the last one lacks
        while start + len(page) < len(place.ids):
            shown = place.members[place.ids[start + len(page)]].shown
            size += len(shown) + 1
            if page and size > bytes_max:
                break
            page.append(shown)
        more = start + len(page) < len(place.ids)
        return b"[%b]" % b",".join(page), more

    def _remove(self, place: _Channel, member: _Member) -> None:
        self._note(place, member.id)
        del place.members[member.id]
        del place.ids[bisect_left(place.ids, member.id)]
        self._drop_if_empty(place)

    def _note(self, place: _Channel, id: str) -> None:
        """Remember for the next tick what a member is, or that there is none. Called before each change."""
        if not place.watchers:
            return
        if not place.stretches[0]:
            if not self._ticks:
                self._earlier.set()
            self._ticks.append((self._timer() + self._tick_s, place))
        place.stretches[-1].setdefault(id, place.shown(id))

    def _place(self, channel: str) -> _Channel:
        place = self._channels.get(channel)
        if place is None:
            place = self._channels[channel] = _Channel(channel)
        return place

    def _drop_if_empty(self, place: _Channel) -> None:
        if not place.members and not place.watchers:
            del self._channels[place.name]

    # Watchers

    def watch(self, channel: str, outlet: Outlet) -> None:
        """Write an outlet the members now and their changes from now on; if it watches already, afresh.

        The outlet's framing must be known. unwatch() must be called before the outlet is forgotten.
        """
        self.unwatch(channel, outlet)
        place = self._place(channel)
        watcher = place.watchers[outlet] = _Watcher(place, outlet)
        if not self._begin(watcher):
            self._fall_behind(watcher)

    def unwatch(self, channel: str, outlet: Outlet) -> None:
        """From now on an outlet is told nothing more of a channel; no error if it was not watching."""
        place = self._channels.get(channel)
        if place is not None and outlet in place.watchers:
            watcher = place.watchers.pop(outlet)
            self._behind.get(outlet, {}).pop(watcher, None)
            self._drop_if_empty(place)

    def _begin(self, watcher: _Watcher) -> bool:
        """Write a watcher the members as they are, and let it have changes from here; False if it has no room."""
        place = watcher.channel
        if not watcher.outlet.outbox.offer(_frame(watcher.outlet.framing, place.list_members(self._bytes_max))):
            return False
        if place.stretches[-1]:
            place.stretches.append({})
        watcher.began = len(place.stretches) - 1
        watcher.slow = False
        return True

    def _fall_behind(self, watcher: _Watcher) -> None:
        watcher.slow = True
        outlet = watcher.outlet
        if outlet not in self._behind:
            self._behind[outlet] = {}
            outlet.start_soon(lambda: self._catch_up(outlet))
        self._behind[outlet][watcher] = None

    async def _catch_up(self, outlet: Outlet) -> None:
        """Let a slow outlet begin again, in each channel where it watches and is behind, then end."""
        behind = self._behind[outlet]
        try:
            while behind:
                await trio.lowlevel.checkpoint()  # room() need not let others have a turn
                await outlet.room()
                watcher = next(iter(behind), None)
                if watcher is not None and self._begin(watcher):
                    del behind[watcher]
        finally:
            del self._behind[outlet]

    # Time

    async def run(self) -> None:
        """Tell changes and end graces until cancelled; then some may have been told the last ones and others not."""
        while True:
            self._earlier = trio.Event()
            with trio.move_on_at(self._next_deadline()):
                await self._earlier.wait()
            while self._graces and next(iter(self._graces.values()))[0] <= self._timer():
                member, (_, place) = self._graces.popitem(last=False)
                self._remove(place, member)
                await self._step()
            while self._ticks and self._ticks[0][0] <= self._timer():
                await self._tell(self._ticks.popleft()[1])

    def _next_deadline(self) -> float:
        grace_end, _ = next(iter(self._graces.values()), (math.inf, None))
        return min(grace_end, self._ticks[0][0]) if self._ticks else grace_end

    async def _tell(self, place: _Channel) -> None:
        """Write a channel's changes to its watchers. Who watches anew while it yields has seen them already."""
        for watchers, payloads in place.take_changes(self._bytes_max):
            framed: dict[Framing | None, bytes] = {}
            for watcher in watchers:
                outlet = watcher.outlet
                if place.watchers.get(outlet) is watcher:
                    if outlet.framing not in framed:
                        framed[outlet.framing] = _frame(outlet.framing, payloads)
                    if not outlet.outbox.offer(framed[outlet.framing]):
                        self._fall_behind(watcher)
                await self._step()

    async def _step(self) -> None:
        """Count one piece of work, and let others have a turn after YIELD_EVERY of them."""
        self._steps += 1
        if self._steps % YIELD_EVERY == 0:
            await trio.lowlevel.checkpoint()


def _show(member: str, name: str | None) -> bytes:
    named = "" if name is None else f',"name":{encode_text(name)}'
    return f'{{"member":{encode_text(member)}{named}}}'.encode()


def _frame(framing: Framing | None, payloads: Sequence[bytes]) -> bytes:
    assert framing is not None
    return framing.join(payloads)


def _chunks(shown: Collection[bytes], bytes_max: int) -> list[bytes]:
    """Members separated by commas, in chunks of at most `bytes_max` or of one member; always at least one chunk."""
    whole = b",".join(shown)
    if len(whole) <= bytes_max:
        return [whole]
    chunks: list[bytes] = []
    chunk: list[bytes] = []
    size = -1  # the first has no comma
    for member in shown:
        size += len(member) + 1
        if chunk and size > bytes_max:
            chunks.append(b",".join(chunk))
            chunk, size = [], len(member)
        chunk.append(member)
    return [*chunks, b",".join(chunk)]
