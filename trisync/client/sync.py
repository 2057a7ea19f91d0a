"""The blocking client, for scripts, Flask and Django: the same client, in a thread of its own.

Everything is done by aio.py there; this only carries calls over. Unlike that one, it may be used from any thread.
"""

import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Generic, Literal, Self, TypeVar, cast, overload

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from trisync.client.aio import Client, connect
from trisync.client.documents import Document, Roster
from trisync.client.errors import Closed, Gap
from trisync.client.feeds import PresenceChange
from trisync.client.machine import State, Status
from trisync.client.receipts import Receipt
from trisync.client.replica import Change, Entry
from trisync.client.streams import Subscription
from trisync.client.transports import DEFAULT_URL
from trisync.client.wire import History, Member, Message
from trisync.wire.protocol import HISTORY_LIMIT_DEFAULT

T = TypeVar("T")
Item = TypeVar("Item")

TAKEN_AT_ONCE = 1000
"""Messages carried over together: a call into the other thread costs about 100 µs."""


def connect_sync(
    url: str = DEFAULT_URL,
    *,
    name: str | None = None,
    producer: str | None = None,
    wait_s: float | None = 10.0,
    close_s: float = 10.0,
    queue_max: int = 10_000,
    queue_bytes_max: int = 16 << 20,
    tls: ssl.SSLContext | None = None,
) -> "SyncClient":
    """A blocking client of the server at `url`. All is as connect() has it.

    A `with` statement opens and closes it; a program that lives longer than a block calls open() and close().

    >>> with connect_sync(URL, name="script") as client:
    ...     print(client.publish("sync", {"text": "hi"}))
    ...     with client.subscribe("sync", last=1) as messages:
    ...         print(next(messages).data)
    1
    {'text': 'hi'}
    """

    def make() -> Client:
        return connect(
            url,
            name=name,
            producer=producer,
            wait_s=wait_s,
            close_s=close_s,
            queue_max=queue_max,
            queue_bytes_max=queue_bytes_max,
            tls=tls,
        )

    make()  # which tells here, and not where it is opened, what cannot be
    return SyncClient(make)


class SyncClient:
    """A connection that comes back by itself, for threads; made by connect_sync()."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._exits: ExitStack | None = None
        self._opened: _Bridge | None = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: Any) -> None:
        exits, self._exits = self._exits, None
        if exits is not None:
            exits.__exit__(*error)

    def open(self) -> Self:
        """Connect. Raises as entering connect() does, and RuntimeError where it is open already."""
        if self._exits is not None:
            raise RuntimeError("it is open already")
        with ExitStack() as exits:
            portal = exits.enter_context(start_blocking_portal(backend="trio"))
            client = portal.call(_made, self._make)
            exits.enter_context(portal.wrap_async_context_manager(client))
            self._opened = _Bridge(portal, client)
            self._exits = exits.pop_all()
        return self

    def close(self) -> None:
        """Wait for what is queued, as leaving connect() does, and disconnect; no error if it was closed before."""
        self.__exit__(None, None, None)

    @property
    def _bridge(self) -> "_Bridge":
        if self._opened is None:
            raise RuntimeError("it is not open: use it in a with statement, or call open()")
        return self._opened

    def _call(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        bridge = self._bridge
        result: T = bridge.call(work, bridge.client)
        return result

    def __repr__(self) -> str:
        if self._opened is None:
            return "<SyncClient: not open>"
        return repr(self._opened.client).replace("Client", "SyncClient", 1)

    @property
    def status(self) -> Status:
        """How this client is connected, and why it is so."""
        return self._bridge.client.status

    def status_changes(self) -> Iterator[Status]:
        """What becomes of the connection from now on. As Client.status_changes()."""
        bridge = self._bridge
        return _blocking(bridge, bridge.call(bridge.client.status_changes))

    def nudge(self) -> None:
        """Connect at once, or make sure that the connection is still one. As Client.nudge()."""
        bridge = self._bridge
        bridge.call(bridge.client.nudge)

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        merge: bool = False,
        ephemeral: bool = False,
    ) -> int:
        """Publish, and wait until it is on the server's disk; returns its offset. As Client.publish()."""
        return self._call(
            lambda client: client.publish(channel, data, key=key, expect=expect, merge=merge, ephemeral=ephemeral)
        )

    def post(
        self, channel: str, data: Any, *, key: str | None = None, expect: int | None = None, merge: bool = False
    ) -> "SyncReceipt":
        """Publish without waiting for the answer, but until the queue has room."""

        async def post(client: Client) -> Receipt:
            await client.room()
            return client.post(channel, data, key=key, expect=expect, merge=merge)

        return SyncReceipt(self._call(post), self._bridge)

    def flush(self) -> None:
        """Wait until everything that was published so far has its answer; what was refused, its receipt tells."""
        self._call(lambda client: client.flush())

    def history(self, channel: str, *, since: int | None = None, limit: int = HISTORY_LIMIT_DEFAULT) -> History:
        """Stored messages, oldest first. As Client.history()."""
        return self._call(lambda client: client.history(channel, since=since, limit=limit))

    def members(self, channel: str) -> list[Member]:
        """Who is in a channel now."""
        return self._call(lambda client: client.members(channel))

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = ...,
        epoch: str | None = ...,
        last: int | None = ...,
        gaps: Literal["raise"] = ...,
    ) -> "SyncSubscription[Message]": ...

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = ...,
        epoch: str | None = ...,
        last: int | None = ...,
        gaps: Literal["yield"],
    ) -> "SyncSubscription[Message | Gap]": ...

    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = None,
        epoch: str | None = None,
        last: int | None = None,
        gaps: Literal["raise", "yield"] = "raise",
    ) -> "SyncSubscription[Message] | SyncSubscription[Message | Gap]":
        """A channel's messages, live: a context manager and an iterator. As Client.subscribe()."""
        bridge = self._bridge
        inner = bridge.client.subscribe(channel, since=since, epoch=epoch, last=last, gaps="yield")
        if gaps == "raise":
            return SyncSubscription[Message](inner, bridge, raise_gaps=True)
        return SyncSubscription[Message | Gap](inner, bridge, raise_gaps=False)

    def state(self, channel: str) -> "SyncDocument":
        """A channel's state as a live mapping. As Client.state().

        >>> with connect_sync(URL) as client, client.state("sync:doc") as doc:
        ...     doc["title"] = "Hello"
        ...     print(doc.update("count", lambda n: (n or 0) + 1), doc["title"])
        1 Hello
        """
        bridge = self._bridge
        return SyncDocument(bridge.client.state(channel), bridge)

    def presence(self, channel: str) -> "SyncRoster":
        """Who is in a channel, live. As Client.presence()."""
        bridge = self._bridge
        return SyncRoster(bridge.client.presence(channel), bridge)


async def _made(make: Callable[[], Client]) -> Client:
    return make()


class _Bridge:
    """The thread of a client, and the calls that are carried over to it."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self.client = client
        self._portal = portal

    @overload
    def call(self, work: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    def call(self, work: Callable[..., T], *args: Any) -> T: ...

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call or await it there. Raises Closed where that thread has ended. A Ctrl-C here cancels it there."""
        try:
            future = self._portal.start_task_soon(work, *args)
        except RuntimeError:
            if self.client.status.state is not State.CLOSED:
                raise
            raise Closed(f"the client is closed: {self.client.status.reason}") from None
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class SyncReceipt:
    """A publish on its way."""

    def __init__(self, receipt: Receipt, bridge: _Bridge) -> None:
        self._receipt = receipt
        self._bridge = bridge

    def __repr__(self) -> str:
        return repr(self._receipt).replace("Receipt", "SyncReceipt", 1)

    @property
    def done(self) -> bool:
        """Whether the server has answered."""
        return self._receipt.done

    def result(self, timeout_s: float | None = None) -> int:
        """Wait for the offset. Raises what the server refuses it with, Closed, and TimeoutError."""
        if self._receipt.done:
            return self._receipt.result()

        async def wait() -> int:
            with anyio.fail_after(timeout_s):
                return await self._receipt

        return self._bridge.call(wait)


class _Entered:
    """Something of the asynchronous client that is entered and left in its thread.

    No task there waits for its end, so that a client can be closed without it.
    """

    def __init__(self, inner: Subscription[Message | Gap] | Document | Roster, bridge: _Bridge) -> None:
        self.channel = inner.channel
        self._entering = inner
        self._bridge = bridge

    def __enter__(self) -> Self:
        self._bridge.call(self._entering.__aenter__)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._bridge.call(self._entering.__aexit__, *error)
        except Closed:
            pass  # it has ended with its client

    def __repr__(self) -> str:
        inner = self._entering
        try:
            text = self._bridge.call(repr, inner)
        except Closed:
            text = repr(inner)
        return text.replace(type(inner).__name__, type(self).__name__, 1)


class SyncSubscription(_Entered, Generic[Item]):
    """A channel's messages, each once and in order. As Subscription."""

    def __init__(self, inner: Subscription[Message | Gap], bridge: _Bridge, *, raise_gaps: bool) -> None:
        super().__init__(inner, bridge)
        self.offset: int | None = None
        """The offset of the newest message, or gap, that was taken out."""
        self._inner = inner
        self._raise_gaps = raise_gaps
        self._taken: deque[Message | Gap] = deque()

    def __repr__(self) -> str:
        return f"<SyncSubscription to {self.channel!r}, offset {self.offset}>"

    @property
    def epoch(self) -> str:
        """The log that offsets are of."""
        return self._inner.epoch

    def __enter__(self) -> Self:
        super().__enter__()
        self.offset = self._inner.offset
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if not self._taken:
            self._taken.extend(self._bridge.call(self._inner.take_some, TAKEN_AT_ONCE))
        item = self._taken.popleft()
        if type(item) is Message and item.offset is not None:
            self.offset = item.offset
        if type(item) is Gap:
            self.offset = item.last
            if self._raise_gaps:
                raise item
        return cast("Item", item)


class SyncDocument(_Entered, Mapping[str, Any]):
    """A channel's state, live. As Document, but where its client is closed, reading raises Closed too."""

    def __init__(self, inner: Document, bridge: _Bridge) -> None:
        super().__init__(inner, bridge)
        self._inner = inner

    def _snapshot(self) -> dict[str, Any]:
        return self._bridge.call(dict, self._inner)

    def __getitem__(self, key: str) -> Any:
        return self._bridge.call(self._inner.__getitem__, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._snapshot())

    def __len__(self) -> int:
        return self._bridge.call(len, self._inner)

    def __setitem__(self, key: str, value: Any) -> None:
        self._bridge.call(self._inner.__setitem__, key, value)

    def __delitem__(self, key: str) -> None:
        self._bridge.call(self._inner.__delitem__, key)

    def set(self, key: str, value: Any) -> int:
        """Write a key, and wait until it is stored; returns the offset."""
        offset: int = self._bridge.call(self._inner.set, key, value)
        return offset

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Set a key to `change(its value)`, so that nobody's change is lost; `change` runs in the client's thread."""
        return self._bridge.call(self._inner.update, key, change)

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
        return _blocking(self._bridge, self._bridge.call(self._inner.changes))


class SyncRoster(_Entered, Mapping[str, Member]):
    """Who is in a channel, live. As Roster."""

    def __init__(self, inner: Roster, bridge: _Bridge) -> None:
        super().__init__(inner, bridge)
        self._inner = inner

    @property
    def me(self) -> str:
        """The id by which the others see this client."""
        return self._inner.me

    def __getitem__(self, id: str) -> Member:
        return self._bridge.call(self._inner.__getitem__, id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bridge.call(list, self._inner))

    def __len__(self) -> int:
        return self._bridge.call(len, self._inner)

    def changes(self) -> Iterator[PresenceChange]:
        """Who comes, goes and is renamed from now on."""
        return _blocking(self._bridge, self._bridge.call(self._inner.changes))


class _blocking(Generic[Item]):
    """An asynchronous iterator, one call into the other thread for each item."""

    def __init__(self, bridge: _Bridge, inner: AsyncIterator[Item]) -> None:
        self._bridge = bridge
        self._inner = inner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        return self._bridge.call(self._inner.__anext__)
