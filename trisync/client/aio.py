"""The client, for asyncio and Trio alike: `connect`, and what can be done with a connection."""

import random
import ssl
from typing import Any, Literal, Self, overload

import anyio

from trisync.client.documents import Document, Roster
from trisync.client.driver import Driver
from trisync.client.errors import Gap, Unsettled
from trisync.client.feeds import Start
from trisync.client.machine import Machine
from trisync.client.options import Options
from trisync.client.pages import read_members, read_words
from trisync.client.receipts import Receipt, answer_to, ask, until_settled
from trisync.client.status import Status
from trisync.client.streams import Audience, Changes, Subscription
from trisync.client.transports import DEFAULT_URL, open_transport
from trisync.client.wire import History, Member, Message, Word, check_channel, check_key, check_start, history_of
from trisync.wire.arguments import check_integer
from trisync.wire.protocol import HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX


def connect(
    url: str = DEFAULT_URL,
    *,
    name: str | None = None,
    producer: str | None = None,
    wait_s: float | None = 10.0,
    close_s: float = 10.0,
    queue_max: int = 10_000,
    queue_bytes_max: int = 16 << 20,
    tls: ssl.SSLContext | None = None,
) -> "Client":
    """A client of the server at `url`: an async context manager, within which it stays connected by itself.

    `url` is `tcp://host:port`, `tcps://…`, `ws://…` or `wss://…`, the latter two with a path if need be; without a port
    it is 2345, or 80 and 443 as for any WebSocket. `tls` is the context for those with TLS, the system's certificates
    if it is left out. `name` is shown to others with what is published and in presence. `producer` identifies this
    client to the server (16 to 64 secret random characters): one is made up unless it is given. A program that keeps it
    goes on after a crash: once entered, what was sent before it is stored or never will be, so the channel tells what
    is still to be published. A server that has forgotten it, or has another log, is given a new one: what was in doubt
    then may be stored twice.

    Entering waits at most `wait_s` seconds for the first connection, and raises NotConnected then; 0 tries once, None
    does not wait: then publishes are queued until there is one. From there on connections that are lost come back,
    with pauses of up to 20 seconds, or what a server that stops asks for; `status` tells. A server that refuses this
    client for good ends it: what it is refused with, such as Forbidden, is raised by entering and by all that is asked
    for later.

    At most `queue_max` publishes or `queue_bytes_max` bytes wait for their answers: one more is QueueFull. Leaving
    waits at most `close_s` for them, and raises Unsettled if some are left; it does not wait if an exception leaves.

    Raises ValueError, or TypeError, for what is no such URL or another argument that cannot be.

    >>> async def main() -> None:
    ...     async with connect(URL, name="alice") as client:
    ...         print(await client.publish("lobby", {"text": "hi"}))
    >>> run(main)
    1
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
    return Client(options)


class Client:
    """A connection that comes back by itself; made by connect(). For the tasks of one event loop, in one thread.

    One of them enters and leaves it.
    """

    def __init__(self, options: Options) -> None:
        self._wait_s = options.wait_s
        self._close_s = options.close_s
        self._machine = Machine(
            producer=options.producer,
            name=options.name,
            timer=anyio.current_time,
            random=random.Random(),
            queue_max=options.queue_max,
            queue_bytes_max=options.queue_bytes_max,
        )
        address, tls = options.address, options.tls
        self._driver = Driver(self._machine, lambda: open_transport(address, tls), str(address))
        self._audience: Audience[Status] = Audience(lambda: self._machine.error)
        self._machine.on_status = lambda status: self._audience.tell("", status)

    def __repr__(self) -> str:
        return f"<Client: {self.status.state.value}, {self.status.reason}>"

    async def __aenter__(self) -> Self:
        if self._driver.started:
            raise RuntimeError("a client is entered once; connect() makes another one")
        await self._driver.start()
        try:
            if self._wait_s is not None:
                await self._driver.first_connection(self._wait_s)
        except BaseException:
            await self._driver.stop("there was no connection")
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        earlier = self._machine.error
        try:
            if kind is None and earlier is None:
                with anyio.move_on_after(self._close_s):
                    await self.flush()
        finally:
            left = await self._driver.stop("the program closed it")
        if earlier is not None:
            left = self._machine.publishes.untold
        if left and kind is None:
            raise Unsettled(left) from earlier

    def _entered(self) -> Machine:
        if not self._driver.started:
            raise RuntimeError("a client is entered first: async with trisync.connect(…) as client")
        return self._machine

    # How it is connected

    @property
    def status(self) -> Status:
        """How this client is connected, and why it is so."""
        return self._machine.status

    def status_changes(self) -> Changes[Status]:
        """What becomes of the connection from now on, as an async iterator: each time, the newest status there is.

        At the end it raises Closed, or what else has ended the client.
        """
        return self._audience.join()

    def nudge(self) -> None:
        """Connect at once, or make sure that the connection is still one: for who knows that the network is back."""
        self._machine.nudge()

    # Publishing

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        merge: bool = False,
        ephemeral: bool = False,
    ) -> int:
        """Publish, and wait until it is on the server's disk; returns its offset. Offline, it waits in the queue.

        It is stored once, however often connections break. `key` makes it the newest word on that key of the channel's
        state, `expect` only if the key's newest offset is this (0: there is none), in the log that there was when this
        was called, and `merge` applies it to what is there as a JSON Merge Patch. An `ephemeral` one goes to those who
        are there now and is not stored: it raises NotConnected when offline, and returns 0.

        Raises what the server refuses it with, such as Conflict; QueueFull; TypeError or ValueError (BadRequest is one)
        for arguments that cannot be, such as `data` that is no JSON: NaN, bytes, a set; and Closed if the client is
        closed before there is an answer. Cancelled, it is sent and stored all the same.

        >>> async def main() -> None:
        ...     async with connect(URL) as client:
        ...         print(await client.publish("publish", 21.5, key="temperature"))
        ...         try:
        ...             await client.publish("publish", 22.0, key="temperature", expect=0)
        ...         except Conflict as conflict:
        ...             print(conflict.offset, conflict.data)
        >>> run(main)
        1
        1 21.5
        """
        if ephemeral:
            if key is not None or expect is not None or merge:
                raise ValueError("an ephemeral message has no key: it is not stored")
            machine = self._entered()
            await answer_to(machine, lambda on_done: machine.flash(channel, data, on_done))
            return 0
        return await self.post(channel, data, key=key, expect=expect, merge=merge)

    def post(
        self, channel: str, data: Any, *, key: str | None = None, expect: int | None = None, merge: bool = False
    ) -> Receipt:
        """Publish without waiting: the receipt may be awaited later, or not at all. As publish() otherwise.

        Many are sent together, which is what makes publishing fast. To publish more than the queue holds, wait for
        room() before each.

        >>> async def main() -> None:
        ...     async with connect(URL) as client:
        ...         for number in range(1000):
        ...             await client.room()
        ...             receipt = client.post("post", number)
        ...         print(await receipt)
        >>> run(main)
        1000
        """
        return Receipt(self._entered().publish(channel, data, key=key, expect=expect, merge=merge))

    async def room(self) -> None:
        """Wait until the queue has room for another publish; immediate while it has. Raises Closed."""
        machine = self._entered()
        while not machine.publishes.has_room:
            await self._driver.changed.wait()
        machine.check_open()

    async def flush(self) -> None:
        """Wait until everything that was published so far has its answer; what was refused, its receipt tells.

        Raises Closed, or what else has ended the client.
        """
        machine = self._entered()
        for publish in reversed(machine.publishes.unsettled):  # nearly always, behind the last none is left
            await until_settled(publish)
        machine.check_open()

    # Reading

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = ...,
        epoch: str | None = ...,
        last: int | None = ...,
        gaps: Literal["raise"] = ...,
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = ...,
        epoch: str | None = ...,
        last: int | None = ...,
        gaps: Literal["yield"],
    ) -> Subscription[Message | Gap]: ...

    def subscribe(
        self,
        channel: str,
        *,
        since: int | None = None,
        epoch: str | None = None,
        last: int | None = None,
        gaps: Literal["raise", "yield"] = "raise",
    ) -> Subscription[Any]:
        """A channel's messages, live: those behind offset `since`, or the `last` so many (1 to 1000), or the new ones.

        Each comes once and in order, over any number of connections. Where messages are gone, a Gap is raised in their
        place, and iterating again goes on behind it; with `gaps="yield"` it comes among the messages instead, so that
        a loop need not end for it. To go on in another process, keep `offset` and `epoch` and give them as `since`
        and `epoch`.

        Messages that nobody takes stay at the server, so a slow program costs no memory; ephemeral ones are lost to
        it. A client has one subscription to a channel. Raises TypeError or ValueError for arguments that cannot be.

        >>> async def main() -> None:
        ...     async with connect(URL, name="bob") as client:
        ...         await client.publish("subscribe", {"text": "hi"})
        ...         async with client.subscribe("subscribe", last=20) as messages:
        ...             async for message in messages:
        ...                 print(message.offset, message.sender, message.data)
        ...                 break
        >>> run(main)
        1 bob {'text': 'hi'}
        """
        check_channel(channel)
        check_start(since, epoch, last)
        if gaps not in ("raise", "yield"):
            raise ValueError(f"gaps is 'raise' or 'yield', not {gaps!r}")
        return Subscription(self._entered(), channel, Start(since, epoch, last), raise_gaps=gaps == "raise")

    async def history(self, channel: str, *, since: int | None = None, limit: int = HISTORY_LIMIT_DEFAULT) -> History:
        """Stored messages, oldest first: the newest `limit` (1 to 1000), or those behind offset `since`.

        There may be fewer when they are large; `more` says whether the channel goes on, and `gap` what is missing at
        the beginning. Waits for a connection if there is none. Raises what the server refuses it with, and TypeError
        or ValueError for arguments that cannot be.

        >>> async def main() -> None:
        ...     async with connect(URL) as client:
        ...         for text in ("one", "two", "three"):
        ...             await client.publish("history", text)
        ...         page = await client.history("history", since=0, limit=2)
        ...         print([message.data for message in page.messages], page.more, page.gap)
        >>> run(main)
        ['one', 'two'] True None
        """
        check_channel(channel)
        check_start(since, None, None)
        check_integer("limit", limit, 1, HISTORY_LIMIT_MAX)
        fields = {"channel": channel, "limit": limit, "since": since}
        return history_of(channel, since, limit, await ask(self._entered(), "history", fields))

    def state(self, channel: str) -> Document:
        """A channel's state as a live mapping. A client has it once.

        >>> async def main() -> None:
        ...     async with connect(URL) as client, client.state("doc:42") as doc:
        ...         doc["title"] = "Hello"
        ...         print(await doc.update("count", lambda n: (n or 0) + 1))
        ...         await doc.flush()
        ...         print(sorted(doc.items()))
        >>> run(main)
        1
        [('count', 1), ('title', 'Hello')]
        """
        check_channel(channel)
        return Document(self._entered(), channel)

    async def words(self, channel: str) -> dict[str, Word]:
        """A channel's state, by key, without following it. Raises what the server refuses it with.

        It is read in pages of up to 1000 keys, each of its own moment.
        """
        check_channel(channel)
        return await read_words(self._entered(), channel)

    async def word(self, channel: str, key: str) -> Word | None:
        """The newest word on one key, None where there is no such key. Raises as words()."""
        check_channel(channel)
        check_key(key)
        answer = await ask(self._entered(), "state", {"channel": channel, "key": key})
        return answer.entries.get(key)

    def presence(self, channel: str) -> Roster:
        """Who is in a channel, live: those who are subscribed to it, this client among them.

        >>> async def main() -> None:
        ...     async with connect(URL, name="alice") as client, client.presence("presence") as members:
        ...         print(members[members.me].name)
        >>> run(main)
        alice
        """
        check_channel(channel)
        return Roster(self._entered(), channel)

    async def members(self, channel: str) -> list[Member]:
        """Who is in a channel now, without entering it. Raises what the server refuses it with."""
        check_channel(channel)
        return await read_members(self._entered(), channel)
