"""The blocking client, for scripts, Flask and Django: the same client, in a thread of its own.

Everything is done by aio.py there; this only carries calls over. Unlike that one, it may be used from any thread.
"""

import atexit
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Literal, Self, TypeVar, overload

import anyio

from trisync.client.aio import Client
from trisync.client.errors import Gap
from trisync.client.loop_thread import LoopThread
from trisync.client.options import Options
from trisync.client.receipts import Receipt
from trisync.client.status import Status
from trisync.client.streams import Subscription
from trisync.client.sync_feeds import Blocking, Bridge, SyncDocument, SyncReceipt, SyncRoster, SyncSubscription
from trisync.client.transports import DEFAULT_URL
from trisync.client.wire import History, Member, Message, Word
from trisync.wire.arguments import check_seconds
from trisync.wire.protocol import HISTORY_LIMIT_DEFAULT

T = TypeVar("T")


def connect_sync(
    url: str = DEFAULT_URL,
    *,
    name: str | None = None,
    producer: str | None = None,
    wait_s: float | None = 10.0,
    close_s: float = 10.0,
    call_s: float | None = None,
    queue_max: int = 10_000,
    queue_bytes_max: int = 16 << 20,
    tls: ssl.SSLContext | None = None,
) -> "SyncClient":
    """A blocking client of the server at `url`. All is as connect() has it.

    A call waits for its answer, also while there is no connection, and raises TimeoutError after `call_s` seconds if
    that is given. What it was to publish is queued, and published, all the same. Iterating has no such limit.

    A `with` statement opens and closes it; a program that lives longer than a block calls open() and close(), which
    is also called when the process ends. After a fork, the child opens one of its own: this one raises RuntimeError.

    >>> with connect_sync(URL, name="script") as client:
    ...     print(client.publish("sync", {"text": "hi"}))
    ...     with client.subscribe("sync", last=1) as messages:
    ...         print(next(messages).data)
    1
    {'text': 'hi'}
    """

    options = Options(
        url=url,
        name=name,
        producer=producer,
        wait_s=wait_s,
        close_s=close_s,
        queue_max=queue_max,
        queue_bytes_max=queue_bytes_max,
        tls=tls,
    )
    if call_s is not None:
        check_seconds("call_s", call_s)
    return SyncClient(options, call_s)


class SyncClient:
    """A connection that comes back by itself, for threads; made by connect_sync()."""

    def __init__(self, options: Options, call_s: float | None) -> None:
        self._options = options
        self._call_s = call_s
        self._exits: ExitStack | None = None
        self._opened: Bridge | None = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: Any) -> None:
        is_open, exits, self._exits = self._is_open, self._exits, None
        if is_open and exits is not None:
            atexit.unregister(self.close)
            exits.__exit__(*error)

    def open(self) -> Self:
        """Connect. Raises as entering connect() does, and RuntimeError where it is open already."""
        if self._is_open:
            raise RuntimeError("it is open already")
        with ExitStack() as exits:
            portal = exits.enter_context(LoopThread())
            client = Client(self._options)
            exits.enter_context(portal.wrap_async_context_manager(client))
            self._opened = Bridge(portal, client, self._call_s)
            self._exits = exits.pop_all()
        atexit.register(self.close)
        return self

    def close(self) -> None:
        """Wait for what is queued, as leaving connect() does, and disconnect; no error if it was closed before."""
        self.__exit__(None, None, None)

    @property
    def _is_open(self) -> bool:
        return self._exits is not None and self._opened is not None and self._opened.is_here

    @property
    def _bridge(self) -> Bridge:
        if self._opened is None:
            raise RuntimeError("it is not open: use it in a with statement, or call open()")
        self._opened.require_here()
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
        return Blocking(bridge, bridge.call(bridge.client.status_changes))

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
    ) -> SyncReceipt:
        """Publish without waiting for the answer, but until the queue has room, or QueueFull after `call_s` seconds."""
        bridge = self._bridge

        async def post() -> Receipt:
            with anyio.move_on_after(self._call_s):
                await bridge.client.room()
            return bridge.client.post(channel, data, key=key, expect=expect, merge=merge)

        return SyncReceipt(bridge.call_within(None, post), bridge)

    def flush(self) -> None:
        """Wait until everything that was published so far has its answer; what was refused, its receipt tells."""
        self._call(lambda client: client.flush())

    def history(self, channel: str, *, since: int | None = None, limit: int = HISTORY_LIMIT_DEFAULT) -> History:
        """Stored messages, oldest first. As Client.history()."""
        return self._call(lambda client: client.history(channel, since=since, limit=limit))

    def words(self, channel: str) -> dict[str, Word]:
        """A channel's state now. As Client.words()."""
        return self._call(lambda client: client.words(channel))

    def word(self, channel: str, key: str) -> Word | None:
        """The newest word on one key. As Client.word()."""
        return self._call(lambda client: client.word(channel, key))

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
    ) -> SyncSubscription[Message]: ...

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = ...,
        epoch: str | None = ...,
        last: int | None = ...,
        gaps: Literal["yield"],
    ) -> SyncSubscription[Message | Gap]: ...

    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = None,
        epoch: str | None = None,
        last: int | None = None,
        gaps: Literal["raise", "yield"] = "raise",
    ) -> SyncSubscription[Any]:
        """A channel's messages, live: a context manager and an iterator. As Client.subscribe()."""
        bridge = self._bridge
        inner: Subscription[Any] = bridge.client.subscribe(channel, since=since, epoch=epoch, last=last, gaps=gaps)
        return SyncSubscription(inner, bridge, raise_gaps=gaps == "raise")

    def state(self, channel: str) -> SyncDocument:
        """A channel's state as a live mapping. As Client.state().

        >>> with connect_sync(URL) as client, client.state("sync:doc") as doc:
        ...     doc["title"] = "Hello"
        ...     print(doc.update("count", lambda n: (n or 0) + 1), doc["title"])
        1 Hello
        """
        bridge = self._bridge
        return SyncDocument(bridge.client.state(channel), bridge)

    def presence(self, channel: str) -> SyncRoster:
        """Who is in a channel, live. As Client.presence()."""
        bridge = self._bridge
        return SyncRoster(bridge.client.presence(channel), bridge)
