"""What one client wants of one channel, over any number of connections: its messages, its state, who is there.

Sans-IO. There is one subscription on the wire for all of them, and one cursor. Each begins anew with each
connection; what was taken already is not taken again, and a hole is never passed over.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from trisync.client.errors import ClientError, Gap, ProtocolError
from trisync.client.replica import Replica
from trisync.client.wire import GapNotice, Member, Message, Ok, PresenceNotice, StatePage

BUFFER_MESSAGES = 2000
BUFFER_BYTES = 1 << 20
"""Past so much that nobody has taken yet, the connection is not read, unless an answer is awaited."""

OVERFULL = 4
"""Past so many times that, messages are let go of: the server is to keep them until the rest was taken."""


class Start(NamedTuple):
    """Where a subscription begins: behind `since` (of `epoch`, if said), with the `last` few, or at the head."""

    since: int | None = None
    epoch: str | None = None
    last: int | None = None


class Inbox:
    """The messages of one channel that nobody has taken yet, and the cursor behind the newest of them."""

    def __init__(self, channel: str, start: Start, on_flow: Callable[[], None]) -> None:
        """`on_flow` is called when this becomes full, lets go of messages, and is full no longer."""
        self.channel = channel
        self.cursor: int | None = None
        """The newest offset that was taken in; None until the first subscription is there."""
        self.epoch = ""
        self.origin: tuple[int | None, str] = None, ""
        """The offset and epoch behind which it began; no offset where only the first message tells."""
        self.taken_epoch = ""
        """The log of what was taken out last."""
        self.error: ClientError | None = None
        self.on_item: Callable[[], None] = lambda: None
        self.overflowed = False
        """Messages were let go of, so that none fits behind the cursor until they are asked for again."""
        self._start = start
        self._on_flow = on_flow
        self._excused = 0  # the offset up to which what is not there is no gap: of the last few, fewer may be kept
        self._items: deque[tuple[Message | Gap, str]] = deque()  # with the epoch of the log that each is of
        self._bytes = 0

    @property
    def ready(self) -> bool:
        """Whether its subscription was there once."""
        return self.cursor is not None

    def next_start(self) -> Start:
        """Where the next subscription begins."""
        return self._start if self.cursor is None else Start(self.cursor, self.epoch)

    def begin(self, ok: Ok) -> bool:
        """The subscription is there. Another log is recognised here: its `gap` might be lost with the connection.

        Returns whether what comes begins right behind the cursor, with a message or a gap; if not, retention decides
        where it does, and only the first message tells.
        """
        is_new = self.cursor is None
        since, epoch, last = self.next_start()
        self.epoch = ok.epoch
        self.overflowed = False
        origin, is_exact = (since, ok.epoch), True
        if since is None:
            self._excused = ok.offset
            self.cursor = ok.offset if last is None else max(0, ok.offset - last)
            is_exact = self.cursor == ok.offset
            origin = (self.cursor if is_exact else None, ok.epoch)
        elif (epoch is not None and epoch != ok.epoch) or since > ok.offset:
            if since:  # of nothing, nothing is lost
                self._put(Gap(self.channel, "epoch"))
                origin = (since, epoch or "")
            self.cursor = self._excused = 0
        else:
            self.cursor = since
            self._excused = max(self._excused, since)
        if is_new:
            self.origin = origin
        self.on_item()
        return is_exact

    def take_in(self, message: Message) -> None:
        """A message has come. Raises ProtocolError where one before it has not."""
        offset = message.offset
        assert self.cursor is not None
        if offset is None:  # an ephemeral one, which is lost where there is no room
            if not self.is_full(OVERFULL):
                self._put(message)
            return
        if offset <= self.cursor or self.overflowed:
            return
        if offset > self._excused + 1:
            raise ProtocolError(f"{self.channel} went from offset {self.cursor} to {offset} without a word")
        if self.is_full(OVERFULL):
            self.overflowed = True
            self._on_flow()
            return
        self.cursor = self._excused = offset
        self._put(message)

    @property
    def is_overflowing(self) -> bool:
        """Whether messages were let go of, and it is not yet time to ask for them again."""
        return self.overflowed and self.is_full()

    def skip(self, gap: GapNotice) -> None:
        """Messages will not come."""
        assert self.cursor is not None
        if gap.reason == "trimmed" and gap.last > self.cursor and not self.overflowed:
            first = max(gap.first, self._excused + 1)
            if first <= gap.last:
                self._put(Gap(self.channel, gap.reason, first, gap.last))
            self.cursor = self._excused = gap.last

    def _put(self, item: Message | Gap) -> None:
        was_full = self.is_full()
        self._items.append((item, self.epoch))
        if type(item) is Message:
            self._bytes += len(item.json)
        if not was_full and self.is_full():
            self._on_flow()
        self.on_item()

    def is_full(self, times: int = 1) -> bool:
        """Whether more waits to be taken than `times` what a buffer should hold."""
        return len(self._items) > times * BUFFER_MESSAGES or self._bytes > times * BUFFER_BYTES

    def take(self) -> Message | Gap | None:
        """The next item; None if there is none now. Raises the error of a subscription that has ended."""
        if not self._items:
            if self.error is not None:
                raise self.error.with_traceback(None)
            return None
        was_full = self.is_full()
        item, self.taken_epoch = self._items.popleft()
        if type(item) is Message:
            self._bytes -= len(item.json)
        if was_full and not self.is_full():
            self._on_flow()
        return item

    def fail(self, error: ClientError) -> None:
        """There will be nothing more behind what is there."""
        self.error = self.error or error
        self.on_item()


class PresenceChange(NamedTuple):
    """Someone came, went, or has another name."""

    kind: Literal["joined", "left", "updated"]
    member: Member


class Members:
    """Who is in one channel, as far as was told."""

    def __init__(self) -> None:
        self.by_id: dict[str, Member] = {}
        self.me = ""
        """The id by which the others see this client."""
        self.ready = False
        self.error: ClientError | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_change: Callable[[PresenceChange], None] = lambda change: None

    def take(self, notice: PresenceNotice) -> None:
        """All members, or what has changed."""
        now = dict(self.by_id)
        if notice.members is not None:
            now = {member.member: member for member in notice.members}
        for member in [*notice.joined, *notice.updated]:
            now[member.member] = member
        for member in notice.left:
            now.pop(member.member, None)
        before, self.by_id = self.by_id, now
        for id, member in before.items():
            if id not in now:
                self.on_change(PresenceChange("left", member))
        for id, member in now.items():
            if before.get(id) != member:
                self.on_change(PresenceChange("updated" if id in before else "joined", member))
        if not self.ready:
            self.ready = True
            self.on_ready()

    def fail(self, error: ClientError) -> None:
        """There will be nothing more."""
        self.error = self.error or error
        self.on_ready()


class Feed:
    """One channel: what is wanted of it, and the subscription that brings it, while there is one."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.inbox: Inbox | None = None
        self.replica: Replica | None = None
        self.members: Members | None = None
        self.asked = 0
        """How often it was asked for: only the answer to the newest request begins it."""
        self.live = False
        """Whether what comes is of the newest request; if not, it will come again, and is let go of."""
        self.parked = False
        """Whether it was asked for from the head on, since its inbox takes nothing before somebody takes from it."""

    @property
    def wanted(self) -> bool:
        """Whether anybody wants anything of it."""
        return self.inbox is not None or self.replica is not None or self.members is not None

    def request(self) -> dict[str, Any]:
        """The fields of the subscribe that begins it, or goes on where it was; now nothing counts before its ok."""
        self.asked += 1
        self.live = False
        fields: dict[str, Any] = {"channel": self.channel}
        self.parked = self.inbox is not None and self.inbox.is_overflowing
        if self.inbox is not None and not self.parked:
            fields |= self.inbox.next_start()._asdict()
        if self.replica is not None:
            fields["state"] = True
        if self.members is not None:
            fields["presence"] = True
        return fields

    def begin(self, ok: Ok) -> bool:
        """The subscription is there. Returns whether to ask once more: its inbox has room again by now, or has only now
        learnt its cursor, and a state is in step only where it is certain which messages come behind it."""
        self.live = True
        if self.parked and self.inbox is not None and not self.inbox.is_overflowing:
            return True
        position = ok.offset
        if self.inbox is not None and not self.parked:
            exact = self.inbox.begin(ok)
            if not exact and self.replica is not None:
                return True
            assert self.inbox.cursor is not None
            position = self.inbox.cursor
        if self.replica is not None:
            self.replica.begin(ok.epoch, position, ok.offset)
        if self.members is not None:
            self.members.me = ok.member
        return False

    def take(self, said: Message | GapNotice | StatePage | PresenceNotice) -> None:
        """Something of this channel has come. Raises ProtocolError."""
        if not self.live:
            return
        if type(said) is Message:
            if self.inbox is not None and self.inbox.cursor is not None:
                self.inbox.take_in(said)
            if self.replica is not None and said.offset is not None:
                self.replica.take_message(said)
        elif type(said) is GapNotice:
            if self.inbox is not None and self.inbox.cursor is not None:
                self.inbox.skip(said)
            if self.replica is not None and said.reason == "trimmed":
                self.replica.skip(said.last)
        elif type(said) is StatePage:
            if self.replica is not None:
                self.replica.take_page(said)
        elif type(said) is PresenceNotice and self.members is not None:
            self.members.take(said)

    def fail(self, error: ClientError) -> None:
        """The server refuses it, or the client ends."""
        for part in (self.inbox, self.replica, self.members):
            if part is not None:
                part.fail(error)
