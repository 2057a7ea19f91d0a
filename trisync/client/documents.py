"""A channel's state as a mapping, and its members, for programs. What becomes of writes is in replica.py."""

from collections import deque
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from copy import deepcopy
from typing import Any, NamedTuple, Self, TypeVar

from msgspec import Raw

from trisync.client.errors import Conflict
from trisync.client.feeds import Members, PresenceChange
from trisync.client.machine import Machine
from trisync.client.receipts import Receipt, until_settled
from trisync.client.replica import Change, Entry, Replica
from trisync.client.streams import Audience, Changes, until_ready
from trisync.client.wire import Member
from trisync.wire.data import decode_data, encode_data

Item = TypeVar("Item")


class LiveMapping(Mapping[str, Item]):
    """A mapping that changes by itself. What items() and values() give is of one moment, and stays as it is: so does
    `dict(it.items())`, while `dict(it)` asks for one key after the other.
    """

    def _now(self) -> dict[str, Item]:
        return {key: self[key] for key in self}

    def items(self) -> ItemsView[str, Item]:
        """All keys with their values, as they are now."""
        return self._now().items()

    def values(self) -> ValuesView[Item]:
        """All values, as they are now."""
        return self._now().values()


class _Base(NamedTuple):
    """What an update begins with: a key's newest word, and the log that has it."""

    offset: int
    data: Any
    epoch: str


class Document(LiveMapping[Any]):
    """A channel's state, live: a mapping, and an async context manager whose entering waits until it is there.

    Reading is local and immediate. `doc[key] = value` and `del doc[key]` are seen at once, by this client first, as
    the JSON that is stored (a tuple as a list, a date as text), and are queued like publishes; what the server refuses
    is taken back, which changes() tells and flush() raises. There is no None in a document: writing it deletes the
    key. A value that was read is not to be changed in place. Behind its end it stays as it was last known, and writing
    raises Closed, or why else it ended.
    """

    def __init__(self, machine: Machine, channel: str) -> None:
        self.channel = channel
        self._machine = machine
        self._live: Replica | None = None
        self._audience: Audience[Change] = Audience(lambda: None if self._live is None else self._live.error)
        self._receipts: deque[Receipt] = deque()
        self._refused: Receipt | None = None  # the first that flush() has yet to raise

    async def __aenter__(self) -> Self:
        replica = self._live = self._machine.replicate(self.channel)
        replica.on_ready = self._audience.signal.fire
        replica.on_change = lambda change: self._audience.tell(change.key, change)
        await until_ready(self._machine, self.channel, replica, self._audience.signal)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._machine.leave(self.channel, self._replica)

    @property
    def _replica(self) -> Replica:
        if self._live is None:
            raise RuntimeError("a document is entered first: async with client.state(…) as doc")
        return self._live

    def __repr__(self) -> str:
        return f"Document({self.channel!r}, {'not entered' if self._live is None else dict(self)})"

    def __getitem__(self, key: str) -> Any:
        value = self._replica.value(key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._replica.shown_keys())

    def __len__(self) -> int:
        return len(self._replica.shown_keys())

    def __setitem__(self, key: str, value: Any) -> None:
        self._receipts.append(self._write(key, value))
        self._collect()

    def __delitem__(self, key: str) -> None:
        if self._replica.value(key) is None:
            raise KeyError(key)
        self[key] = None

    def _write(self, key: str, value: Any, expect: int | None = None, epoch: str | None = None) -> Receipt:
        replica = self._replica
        if replica.error is not None:
            raise replica.error.with_traceback(None)
        json = encode_data(value)
        publish = self._machine.publish(self.channel, Raw(json), key=key, expect=expect, epoch=epoch)
        replica.write(key, decode_data(json), publish)  # as everybody will have it, and not the program's to change
        return Receipt(publish)

    async def set(self, key: str, value: Any) -> int:
        """Write a key, and wait until it is stored; returns the offset. Raises what the server refuses it with."""
        return await self._write(key, value)

    async def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Set a key to `change(its value)`, None where there is none, so that nobody's change is lost.

        Compares and sets until it succeeds, so `change` may be called more than once; it may change its argument in
        place. Returns what `change` made. Raises what the server refuses it with other than Conflict. Cancelled, the
        write that is on its way is not taken back.
        """
        base = await self._settled(key)
        while True:
            value = change(deepcopy(base.data))
            newer = await self._replace(key, base, value)
            if newer is None:
                return value
            base = newer

    async def _settled(self, key: str) -> _Base:
        """What is confirmed on a key, once none of this client's writes on it is on its way."""
        replica = self._replica
        for publish in replica.writes_on(key):
            await until_settled(publish)
        return _Base(*replica.confirmed(key), replica.epoch)

    async def _replace(self, key: str, base: _Base, value: Any) -> _Base | None:
        """Write a value in place of another one. Where that is no longer there, returns what is."""
        try:
            await self._write(key, value, base.offset, base.epoch)
            return None
        except Conflict as conflict:
            return _Base(conflict.offset, conflict.data, self._machine.publishes.epoch)

    def confirmed(self, key: str) -> Entry | None:
        """What the server is known to have on a key, whatever of this client's is on its way; None if nothing."""
        entry = self._replica.confirmed(key)
        return entry if entry.offset else None

    @property
    def pending(self) -> int:
        """How many of this client's writes have no verdict yet."""
        return len(self._replica.unsettled())

    async def flush(self) -> None:
        """Wait until what was written so far has its verdict. Raises the first refusal since the last flush().

        Others, and one that no flush() came for, are logged as errors.
        """
        for publish in self._replica.unsettled():
            await until_settled(publish)
        self._collect()
        refused, self._refused = self._refused, None
        if refused is not None:
            refused.result()

    def _collect(self) -> None:
        """Keep of the writes that have their verdict the first that was refused; others are told of as any receipts."""
        while self._receipts and self._receipts[0].done:
            receipt = self._receipts.popleft()
            if receipt.failed and self._refused is None:
                self._refused = receipt

    def changes(self) -> Changes[Change]:
        """What changes from now on, one key at a time, as an async iterator; of each key the newest change."""
        return self._audience.join()


class Roster(LiveMapping[Member]):
    """Who is in a channel, live: members by their ids, and an async context manager. Being here is being in it too.

    While there is no connection it stays as it was last known.
    """

    def __init__(self, machine: Machine, channel: str) -> None:
        self.channel = channel
        self._machine = machine
        self._live: Members | None = None
        self._audience: Audience[PresenceChange] = Audience(lambda: None if self._live is None else self._live.error)

    async def __aenter__(self) -> Self:
        members = self._live = self._machine.watch(self.channel)
        members.on_ready = self._audience.signal.fire
        members.on_change = lambda change: self._audience.tell(change.member.member, change)
        await until_ready(self._machine, self.channel, members, self._audience.signal)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._machine.leave(self.channel, self._members)

    @property
    def _members(self) -> Members:
        if self._live is None:
            raise RuntimeError("presence is entered first: async with client.presence(…) as members")
        return self._live

    @property
    def me(self) -> str:
        """The id by which the others see this client."""
        return self._members.me

    def __repr__(self) -> str:
        return f"Roster({self.channel!r}, {'not entered' if self._live is None else list(self.values())})"

    def __getitem__(self, id: str) -> Member:
        return self._members.by_id[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members.by_id)

    def __len__(self) -> int:
        return len(self._members.by_id)

    def changes(self) -> Changes[PresenceChange]:
        """Who comes, goes and is renamed from now on, as an async iterator; of each member the newest change."""
        return self._audience.join()
