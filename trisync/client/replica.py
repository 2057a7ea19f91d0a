"""A live copy of a channel's state: what the server has confirmed, and over it this client's own writes on their way.

Sans-IO. Reads see a write at once; its verdict confirms it or takes it back. While the state is read anew behind a
reconnect or a gap, the copy stays as it was, and then changes in one step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from trisync.client.errors import ClientError
from trisync.client.publishes import Publish
from trisync.client.wire import Message, StatePage


class Entry(NamedTuple):
    """A key's newest word, as the server has confirmed it."""

    offset: int
    """What a publish with `expect` compares with."""
    data: Any


class Change(NamedTuple):
    """A key has another value than before, as this client sees it."""

    key: str
    value: Any
    """None where the key is gone."""
    confirmed: bool
    """Whether the server has stored it; if not, it is a write of this client's on its way."""
    error: ClientError | None = None
    """Why a write of this client's was taken back."""


class _Write:
    """A write on its way: shown from now until the log has it, or the server refuses it."""

    __slots__ = ("epoch", "publish", "value")

    def __init__(self, publish: Publish, value: Any) -> None:
        self.publish = publish
        self.value = value
        self.epoch = ""
        """The log that it is stored in, once it is: shown until the replica comes to it there, or to another one."""


NO_ENTRY = Entry(0, None)


class Replica:
    """One channel's state. `ready` once it was read; then it is in step for as long as there is a connection."""

    def __init__(self) -> None:
        self.ready = False
        self.epoch = ""
        """The log that confirmed() is of."""
        self.error: ClientError | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_change: Callable[[Change], None] = lambda change: None
        self._confirmed: dict[str, Entry] = {}
        self._writes: dict[str, list[_Write]] = {}
        self._epoch = ""
        self._position = 0  # the offset up to which messages are in _confirmed, or in _fresh while that is read
        self._fresh: dict[str, Entry] | None = None
        self._pages_done = False
        self._target = 0

    # What is seen

    def value(self, key: str) -> Any:
        """What a reader sees: the newest write on its way, or what is confirmed. None where there is nothing."""
        writes = self._writes.get(key)
        return writes[-1].value if writes else self._confirmed.get(key, NO_ENTRY).data

    def confirmed(self, key: str) -> Entry:
        """What the server has confirmed; with offset 0 where that is no such key."""
        return self._confirmed.get(key, NO_ENTRY)

    def shown_keys(self) -> list[str]:
        """The keys that a reader sees, in no particular order."""
        return [key for key in self._confirmed.keys() | self._writes.keys() if self.value(key) is not None]

    def writes_on(self, key: str) -> list[Publish]:
        """This client's writes on a key that have no verdict yet."""
        return [write.publish for write in self._writes.get(key, []) if not write.publish.settled]

    def unsettled(self) -> list[Publish]:
        """All of this client's writes that have no verdict yet."""
        return [publish for key in self._writes for publish in self.writes_on(key)]

    # What this client writes

    def write(self, key: str, value: Any, publish: Publish) -> None:
        """Show a write that was queued, until there is a verdict on it. The value is kept, and must not be changed."""
        write = _Write(publish, value)
        self._writes.setdefault(key, []).append(write)
        publish.on_settled.append(lambda: self._settle(key, write))
        self.on_change(Change(key, value, confirmed=False))

    def _settle(self, key: str, write: _Write) -> None:
        before, error = self._seen(key), write.publish.error
        if error is not None:
            self._drop(key, write)
        else:
            write.epoch = self._epoch
            if self._fresh is None:
                self._drop_stored(key)
        self._tell_if_new(key, before, error)

    def _drop(self, key: str, write: _Write) -> None:
        writes = self._writes[key]
        writes.remove(write)
        if not writes:
            del self._writes[key]

    # What the server says

    def begin(self, epoch: str, position: int, target: int) -> None:
        """The state is read anew: pages come, and then messages from behind `position` to `target` and on."""
        self._fresh = {}
        self._pages_done = False
        self._epoch = epoch
        self._position = position
        self._target = target

    def skip(self, until: int) -> None:
        """Behind a gap that ends at offset `until`, the state is read anew."""
        self.begin(self._epoch, max(self._position, until), max(self._target, until))

    def take_page(self, page: StatePage) -> None:
        """Some of the state; it may be newer than where the messages are, and then it stays."""
        if self._fresh is None:
            return
        for key, word in page.entries.items():
            _apply(self._fresh, key, Entry(word.offset, word.data))
        if not page.more:
            self._pages_done = True
            self._finish_if_complete()

    def take_message(self, message: Message) -> None:
        """A stored message, in order."""
        assert message.offset is not None
        if message.offset <= self._position:
            return
        self._position = message.offset
        if self._fresh is not None:
            if message.key is not None:
                _apply(self._fresh, message.key, Entry(message.offset, message.data))
            self._finish_if_complete()
        elif message.key is not None:
            key, before = message.key, self._seen(message.key)
            _apply(self._confirmed, key, Entry(message.offset, message.data))
            self._drop_stored(key)
            self._tell_if_new(key, before)

    def _seen(self, key: str) -> tuple[Any, bool]:
        return self.value(key), key not in self._writes

    def _tell_if_new(self, key: str, before: tuple[Any, bool], error: ClientError | None = None) -> None:
        now = self._seen(key)
        if now[1] is not before[1] or not _is_same(now[0], before[0]):
            self.on_change(Change(key, *now, error))

    def _drop_stored(self, key: str) -> None:
        for write in list(self._writes.get(key, [])):
            is_passed = write.epoch != self._epoch or write.publish.offset <= self._position
            if write.publish.settled and is_passed:
                self._drop(key, write)

    def _finish_if_complete(self) -> None:
        """Change to what was read anew, once all pages are there and the messages have come up to the head."""
        if self._fresh is None or not self._pages_done or self._position < self._target:
            return
        before = {key: self._seen(key) for key in self._confirmed.keys() | self._writes.keys() | self._fresh.keys()}
        self._confirmed, self._fresh = self._fresh, None
        self.epoch = self._epoch
        for key, seen in before.items():
            self._drop_stored(key)
            self._tell_if_new(key, seen)
        self.ready = True
        self.on_ready()

    def fail(self, error: ClientError) -> None:
        """There will be nothing more."""
        self.error = self.error or error
        self.on_ready()


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON. To Python, True is equal to 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _apply(entries: dict[str, Entry], key: str, entry: Entry) -> None:
    """Per key the higher offset wins; null deletes."""
    known = entries.get(key)
    if known is not None and known.offset >= entry.offset:
        return
    if entry.data is None:
        entries.pop(key, None)
    else:
        entries[key] = entry
