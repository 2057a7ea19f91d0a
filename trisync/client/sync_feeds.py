"""What a blocking client gives: receipts, subscriptions, documents and rosters, each over an asynchronous one.

That lives in the client's own thread; a call here is made there, and waited for. The client itself is in sync.py.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from copy import deepcopy
from inspect import isawaitable
from threading import Lock
from typing import Any, Generic, Self, TypeVar, cast, overload

import anyio
from anyio.from_thread import BlockingPortal

from trisync.client.aio import Client
from trisync.client.documents import Document, LiveMapping, Roster
from trisync.client.errors import Closed, Gap
from trisync.client.feeds import PresenceChange
from trisync.client.receipts import Receipt
from trisync.client.replica import Change, Entry
from trisync.client.status import State
from trisync.client.streams import Subscription, Taker
from trisync.client.wire import Member, Message

T = TypeVar("T")
Item = TypeVar("Item")
Inner = TypeVar("Inner", bound=Subscription[Message | Gap] | Document | Roster)
InnerMapping = TypeVar("InnerMapping", bound=Document | Roster)

TAKEN_AT_ONCE = 1000
"""Messages carried over together: a call into the other thread costs about 100 µs."""


class Bridge:
    """The thread of a client, and the calls that are carried over to it."""

    def __init__(self, portal: BlockingPortal, client: Client, call_s: float | None) -> None:
        self.client = client
        self._call_s = call_s
        self._portal = portal
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether the thread is one of this process. A fork has none but that which forked."""
        return self._process == os.getpid()

    def require_here(self) -> None:
        """Raise RuntimeError where it is not."""
        if not self.is_here:
            raise RuntimeError("the client was opened before a fork: open one in each process")

    @overload
    def call(self, work: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    def call(self, work: Callable[..., T], *args: Any) -> T: ...

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call or await it there, within `call_s`. Raises Closed where that thread has ended, and TimeoutError.

        A Ctrl-C here cancels it there.
        """
        return self.call_within(self._call_s, work, *args)

    @overload
    def call_within(self, timeout_s: float | None, work: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    def call_within(self, timeout_s: float | None, work: Callable[..., T], *args: Any) -> T: ...

    def call_within(self, timeout_s: float | None, work: Callable[..., Any], *args: Any) -> Any:
        """As call(), but for its limit; None is without one."""
        self.require_here()

        async def limited() -> Any:
            with anyio.move_on_after(timeout_s):
                result = work(*args)
                return await result if isawaitable(result) else result
            status = self.client.status
            why = "" if status.state is State.ONLINE else f": {status.reason}"
            raise TimeoutError(f"nothing came within {timeout_s:g} s{why}")

        try:
            future = self._portal.start_task_soon(limited)
        except RuntimeError:
            if self.client.status.state is not State.CLOSED:
                raise
            raise Closed(f"the client is closed: {self.client.status.reason}") from None
        try:
            return future.result()
        except CancelledError:
            raise Closed("the client is closed: its end was not waited for") from None
        except BaseException:
            future.cancel()
            raise


class SyncReceipt:
    """A publish on its way."""

    def __init__(self, receipt: Receipt, bridge: Bridge) -> None:
        self._receipt = receipt
        self._bridge = bridge

    def __repr__(self) -> str:
        return repr(self._receipt).replace("Receipt", "SyncReceipt", 1)

    @property
    def done(self) -> bool:
        """Whether the server has answered, or the client was closed before."""
        return self._receipt.done

    def result(self, timeout_s: float | None = None) -> int:
        """Wait for the offset, for `timeout_s` if that is given. Raises what the server refuses it with, Closed, and
        TimeoutError.
        """
        if not self._receipt.done:
            if timeout_s is None:
                self._bridge.call(self._receipt.wait)
            else:
                self._bridge.call_within(timeout_s, self._receipt.wait)
        return self._receipt.result()


class _Entered(Generic[Inner]):
    """Something of the asynchronous client that is entered and left in its thread.

    No task there waits for its end, so that a client can be closed without it.
    """

    def __init__(self, inner: Inner, bridge: Bridge) -> None:
        self.channel = inner.channel
        self._inner = inner
        self._bridge = bridge

    def __enter__(self) -> Self:
        self._bridge.call(self._inner.__aenter__)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._bridge.call(self._inner.__aexit__, *error)
        except Closed:
            pass  # it has ended with its client

    def __repr__(self) -> str:
        try:
            text = self._bridge.call(repr, self._inner)
        except Closed:
            text = repr(self._inner)
        return text.replace(type(self._inner).__name__, type(self).__name__, 1)


class SyncSubscription(_Entered[Subscription[Message | Gap]], Taker[Item]):
    """A channel's messages, each once and in order. As Subscription; threads that share it share the messages out.

    `offset` is then of the newest that any of them has taken, and others may still be at work on earlier ones.
    """

    def __init__(self, inner: Subscription[Message | Gap], bridge: Bridge, *, raise_gaps: bool) -> None:
        _Entered.__init__(self, inner, bridge)
        Taker.__init__(self, raise_gaps=raise_gaps)
        self._taken: deque[tuple[Message | Gap, str]] = deque()
        self._taking = Lock()  # so that `offset` does not go back

    def __repr__(self) -> str:
        return f"<SyncSubscription to {self.channel!r}, offset {self.offset}>"

    def __enter__(self) -> Self:
        super().__enter__()
        self._taken.clear()
        self.offset, self.epoch = self._inner.offset, self._inner.epoch
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        return self.next()

    def next(self, timeout_s: float | None = None) -> Item:
        """As next(self), but that it raises TimeoutError if nothing comes for so long; a later call loses nothing."""
        while True:
            with self._taking:
                if self._taken:
                    return self._hand_out(*self._taken.popleft())
            self._bridge.call_within(timeout_s, self._fill)

    async def _fill(self) -> None:
        """Take what there is, in the client's thread: in order, and whatever becomes of who waits for it.

        What one thread brings is for all that wait.
        """
        self._taken.extend(await self._inner.take_some(TAKEN_AT_ONCE, self._taken))


class _SyncMapping(_Entered[InnerMapping], LiveMapping[Item]):
    """A mapping that changes by itself, at which each look is a call."""

    def _now(self) -> dict[str, Item]:
        return self._bridge.call(self._inner._now)

    def __getitem__(self, key: str) -> Item:
        return cast("Item", self._bridge.call(self._inner.__getitem__, key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return self._bridge.call(len, self._inner)


class SyncDocument(_SyncMapping[Document, Any]):
    """A channel's state, live. As Document, but where its client is closed, reading raises Closed too."""

    def __setitem__(self, key: str, value: Any) -> None:
        self._bridge.call(self._inner.__setitem__, key, value)

    def __delitem__(self, key: str) -> None:
        self._bridge.call(self._inner.__delitem__, key)

    def set(self, key: str, value: Any) -> int:
        """Write a key, and wait until it is stored; returns the offset."""
        offset: int = self._bridge.call(self._inner.set, key, value)
        return offset

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Set a key to `change(its value)`, so that nobody's change is lost. As Document.update()."""
        base = self._bridge.call(self._inner._settled, key)
        while True:
            value = change(deepcopy(base.data))
            newer = self._bridge.call(self._inner._replace, key, base, value)
            if newer is None:
                return value
            base = newer

    def confirmed(self, key: str) -> Entry | None:
        """What the server is known to have on a key."""
        return self._bridge.call(self._inner.confirmed, key)

    @property
    def pending(self) -> int:
        """How many of this client's writes have no verdict yet."""
        return self._bridge.call(lambda: self._inner.pending)

    def flush(self) -> None:
        """Wait until what was written so far has its verdict. Raises the first refusal."""
        self._bridge.call(self._inner.flush)

    def changes(self) -> Iterator[Change]:
        """What changes from now on."""
        return Blocking(self._bridge, self._bridge.call(self._inner.changes))


class SyncRoster(_SyncMapping[Roster, Member]):
    """Who is in a channel, live. As Roster."""

    @property
    def me(self) -> str:
        """The id by which the others see this client."""
        return self._inner.me

    def changes(self) -> Iterator[PresenceChange]:
        """Who comes, goes and is renamed from now on."""
        return Blocking(self._bridge, self._bridge.call(self._inner.changes))


class Blocking(Generic[Item]):
    """An asynchronous iterator, one call into the other thread for each item."""

    def __init__(self, bridge: Bridge, inner: AsyncIterator[Item]) -> None:
        self._bridge = bridge
        self._inner = inner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        return self._bridge.call_within(None, self._inner.__anext__)
