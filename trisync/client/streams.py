"""What a program iterates over: a channel's messages, and changes of whatever changes."""

from collections.abc import Callable, Sized
from typing import Generic, Self, TypeVar, cast
from weakref import WeakSet

from trisync.client.driver import Signal
from trisync.client.errors import ClientError, Gap
from trisync.client.feeds import Inbox, Members, Start
from trisync.client.machine import Machine
from trisync.client.replica import Replica
from trisync.client.wire import Message

Item = TypeVar("Item")


async def until_ready(machine: Machine, channel: str, part: Inbox | Replica | Members, signal: Signal) -> None:
    """Wait until what was entered is there. Where it will not be, or nobody waits any more, it is left again."""
    try:
        while not part.ready:
            if part.error is not None:
                raise part.error.with_traceback(None)
            await signal.wait()
    except BaseException:
        machine.leave(channel, part)
        raise


class Taker(Generic[Item]):
    """How far a program has taken a channel's messages and gaps: where to go on another day."""

    def __init__(self, *, raise_gaps: bool) -> None:
        self.offset: int | None = None
        """The offset of the newest message or gap that was taken; before that, the one behind which it began, or None
        while only the first message can tell that, as with `last`."""
        self.epoch = ""
        """The log that `offset` is of."""
        self._raise_gaps = raise_gaps

    def _hand_out(self, item: Message | Gap, epoch: str) -> Item:
        """The item, which the program takes by this. Raises a gap, where gaps are to be raised."""
        self.epoch = epoch
        if type(item) is Message:
            if item.offset is not None:
                self.offset = item.offset
        elif type(item) is Gap:
            self.offset = item.last
            if self._raise_gaps:
                raise item
        return cast("Item", item)


class Subscription(Taker[Item]):
    """A channel's messages, each once and in order; an async context manager and an async iterator.

    Entering waits until the server has begun it, and raises what it refuses it with. A `Gap` is raised where messages
    are gone; the next iteration goes on behind it. Cancelling an iteration loses nothing. One task iterates at a time.
    """

    def __init__(self, machine: Machine, channel: str, start: Start, *, raise_gaps: bool) -> None:
        super().__init__(raise_gaps=raise_gaps)
        self.channel = channel
        self._machine = machine
        self._start = start
        self._inbox: Inbox | None = None
        self._signal = Signal()

    def __repr__(self) -> str:
        return f"<Subscription to {self.channel!r}, offset {self.offset}>"

    async def __aenter__(self) -> Self:
        inbox = self._inbox = self._machine.subscribe(self.channel, self._start)
        inbox.on_item = self._signal.fire
        await until_ready(self._machine, self.channel, inbox, self._signal)
        self.offset, self.epoch = inbox.origin
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._inbox is not None:
            self._machine.leave(self.channel, self._inbox)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        inbox = self._entered()
        while (item := inbox.take()) is None:
            await self._signal.wait()
        return self._hand_out(item, inbox.taken_epoch)

    async def take_some(self, count_max: int, taken: Sized = ()) -> list[tuple[Message | Gap, str]]:
        """At least one item, and as many more as are there already, gaps among them; each with the epoch of its log.

        Empty as soon as there are some in `taken`, where another task may put them. For whoever pays for each call. It
        moves no `offset`.
        """
        inbox = self._entered()
        items: list[tuple[Message | Gap, str]] = []
        while not items and not taken:
            if (item := inbox.take()) is None:
                await self._signal.wait()
                continue
            items.append((item, inbox.taken_epoch))
            while len(items) < count_max and inbox.error is None and (item := inbox.take()) is not None:
                items.append((item, inbox.taken_epoch))
        return items

    def _entered(self) -> Inbox:
        if self._inbox is None:
            raise RuntimeError("a subscription is entered first: async with client.subscribe(…) as messages")
        return self._inbox


class Changes(Generic[Item]):
    """Changes from the moment this was made on, as an async iterator. Raises the error with which what it is of ends.

    Of what changed more than once before it was taken, only the newest change is told: so it cannot grow without end.
    """

    def __init__(self, signal: Signal, error: Callable[[], ClientError | None]) -> None:
        """`signal` is fired behind each put(), and when it may have ended."""
        self._signal = signal
        self._error = error
        self._items: dict[str, Item] = {}

    def put(self, of: str, item: Item) -> None:
        """Something has changed."""
        self._items.pop(of, None)
        self._items[of] = item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            error = self._error()
            if error is not None:
                raise error.with_traceback(None)
            await self._signal.wait()
        return self._items.pop(next(iter(self._items)))


class Audience(Generic[Item]):
    """All those who iterate over changes of one thing, for as long as they are used."""

    def __init__(self, error: Callable[[], ClientError | None]) -> None:
        self.signal = Signal()
        """Fired at each change; to be fired when there is an error, too."""
        self._error = error
        self._all: WeakSet[Changes[Item]] = WeakSet()

    def join(self) -> Changes[Item]:
        """Another one, from now on."""
        changes: Changes[Item] = Changes(self.signal, self._error)
        self._all.add(changes)
        return changes

    def tell(self, of: str, item: Item) -> None:
        """Something has changed."""
        for changes in list(self._all):
            changes.put(of, item)
        self.signal.fire()
