"""What a program can do that runs the server inside itself: hooks, and publishing and reading without a connection.

The server's own life is in server.py, which builds on this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from trisync.core.broker import Broker
from trisync.sessions.hooks import Hooks
from trisync.storage.log import Duplicate, LogUnavailable, StatePage
from trisync.wire.arguments import check_integer, check_text, check_utf8
from trisync.wire.data import decode_data, encode_data
from trisync.wire.errors import WireError
from trisync.wire.protocol import (
    HISTORY_LIMIT_DEFAULT,
    HISTORY_LIMIT_MAX,
    OFFSET_MAX,
    BadRequest,
    channel_is_valid,
    compose_publish,
    decode_request,
)


class Entry(NamedTuple):
    """A key's newest word."""

    offset: int
    """What a publish with `expect` compares with."""
    data: Any


class Embedding:
    """The side of a server that is turned to the program around it.

    The methods that publish and read may be called while the server serves, from tasks of the same Trio run. They
    raise RuntimeError otherwise, so a task that goes on publishing is to end before serve() does; WireError with the
    wire's codes where the server refuses, `unavailable` too, and TypeError or ValueError for what is no channel's
    name, and for what is published and is no JSON: bytes, a set, a NaN. Cancelling one that writes leaves open whether
    it was done.
    """

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.on_publish = self.hooks.on_publish
        self.on_subscribe = self.hooks.on_subscribe
        self.on_connect = self.hooks.on_connect
        self.on_disconnect = self.hooks.on_disconnect
        self._broker: Broker | None = None
        """Set while the server serves."""

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        merge: bool = False,
        ephemeral: bool = False,
        name: str | None = None,
    ) -> int:
        """Publish, and return the offset once it is stored as durably as any client's; 0 if ephemeral.

        `name` is who it is from. The hooks are not asked: this is the program's own word. It is taken while the
        server drains, too, so that on_disconnect can write down who has gone.
        """
        fields: dict[str, Any] = {"channel": channel, "ephemeral": ephemeral, "merge": merge}
        fields |= {field: value for field, value in (("key", key), ("expect", expect)) if value is not None}
        broker = self._serving(channel)
        try:
            request = compose_publish(encode_data(data), **fields)
            if name is not None:
                decode_request(msgspec.json.encode({"op": "hello", "name": name}))  # as good as a client's
        except BadRequest as bad:
            raise bad.error from None
        verdict = await broker.publish(request, name)
        if isinstance(verdict, WireError):
            if "data" in verdict.details:  # of the word that a conflict is with
                verdict.details["data"] = decode_data(verdict.details["data"])
            raise verdict
        return verdict.offset if isinstance(verdict, Duplicate) else verdict

    async def history(
        self, channel: str, *, since: int | None = None, limit: int = HISTORY_LIMIT_DEFAULT
    ) -> list[dict[str, Any]]:
        """The newest messages, or those behind offset `since`, ascending; fewer than `limit` when they are large.

        Raises ValueError for a `limit` that is not 1-1000, and for a negative `since`.
        """
        check_integer("limit", limit, 1, HISTORY_LIMIT_MAX)
        if since is not None:
            check_integer("since", since, 0, OFFSET_MAX)
        with _log_needed():
            page = await self._serving(channel).history(channel, since, limit)
        return [] if page.run is None else [decode_data(payload) for payload in page.run.payloads()]

    async def state(self, channel: str) -> dict[str, Entry]:
        """All entries of a channel's state. What is written while this reads may be in it or not, key by key."""
        entries: dict[str, Entry] = {}
        after = ""
        while True:
            with _log_needed():
                page = await self._serving(channel).state(channel, after)
            entries |= _entries(page)
            if not page.more:
                return entries
            after = page.last

    async def word(self, channel: str, key: str) -> Entry | None:
        """The newest word on a key, None where there is no such key."""
        check_utf8("a key", key)
        with _log_needed():
            page = await self._serving(channel).word(channel, key)
        return _entries(page).get(key)

    async def clear(self, channel: str) -> int:
        """Empty a channel of its messages and its state; returns the offset from which it goes on."""
        with _log_needed():
            extent = await self._serving(channel).clear(channel)
        return extent.head

    def members(self, channel: str) -> list[dict[str, str]]:
        """Who is in a channel: `member`, an opaque id, and `name` where there is one."""
        presence = self._serving(channel).presence
        members, _ = presence.members(channel, "", 2**53)
        return msgspec.json.decode(members, type=list[dict[str, str]])

    def _serving(self, channel: str) -> Broker:
        if self._broker is None:
            raise RuntimeError("the server is not serving")
        check_text("a channel's name", channel)
        if not channel_is_valid(channel):
            raise ValueError(f"{channel!r} is no channel's name")
        return self._broker


def _entries(page: StatePage) -> dict[str, Entry]:
    decoded: dict[str, dict[str, Any]] = decode_data(b"{%b}" % page.entries)
    return {key: Entry(entry["offset"], entry["data"]) for key, entry in decoded.items()}


@contextmanager
def _log_needed() -> Iterator[None]:
    """Raises `unavailable` where the log cannot be had."""
    try:
        yield
    except LogUnavailable as problem:
        raise WireError("unavailable", f"the log cannot be had now: {problem}") from problem
