"""A channel that a device follows: where it stands, its replica of the state, and who it believes is there."""

import random
from typing import Any, Literal, NamedTuple

from tests.simulation.history import Json
from trisync.storage.log import Extent


class Wish(NamedTuple):
    """A channel that a device follows."""

    channel: str
    begin: Literal["start", "head", "last"]
    state: bool = False
    presence: bool = False


class Following:
    """One channel that a device follows: its cursor, and its replica of the state."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.number: int | None = None
        """The subscription's, while the connection has one."""
        self.cursor: int | None = None
        self.epoch: str | None = None
        self.entries: dict[str, tuple[int, Any]] = {}
        """By key, its newest offset and data; deleted ones are kept with None."""
        self.complete = not wish.state
        """Whether all pages of the state have come."""
        self.with_state = False
        """Whether the subscription was asked for with the state, and begins it anew by itself behind a gap."""
        self.stale = False
        """Whether the state must be asked for anew."""
        self.members: dict[str, str | None] = {}
        self.member: str | None = None

    def is_at(self, extent: Extent) -> bool:
        """Whether it has everything that there is, as far as it can know."""
        nothing_came = self.cursor is None or (self.cursor == 0 and extent.trimmed == extent.head)
        return nothing_came or self.cursor == extent.head

    def request(self, source: random.Random) -> Json:
        """What to subscribe with: from the cursor, if it has one, and with the whole state where it must."""
        wish = self.wish
        fields: Json = {"channel": wish.channel}
        # Without a cursor there is no epoch to give either: nothing would tell that the log is another one.
        if wish.state and (self.stale or not self.complete or self.cursor is None or source.random() < 0.3):
            fields["state"] = True
        if self.cursor is not None and not ("state" in fields and source.random() < 0.5):
            fields |= {"since": self.cursor, "epoch": self.epoch}
        elif self.cursor is None and wish.begin == "start":
            fields["since"] = 0
        elif self.cursor is None and wish.begin == "last":
            fields["last"] = source.randint(1, 20)
        if wish.presence:
            fields["presence"] = True
        return fields

    def begin(self, number: int, request: Json, answer: Json) -> None:
        """A subscription was granted."""
        self.number = number
        self.epoch = answer["epoch"]
        self.member = answer.get("member")
        self.with_state = "state" in request
        since, epoch = request.get("since", 0), request.get("epoch", self.epoch)
        if since > answer["offset"] or epoch != self.epoch:
            self.hear_gap({})  # another log, whose `gap` may be lost with the connection
        if "since" not in request:
            self.cursor = answer["offset"] if self.with_state or "last" not in request else None
        if self.with_state:
            self._begin_state()

    def end(self) -> None:
        """There is no subscription any more."""
        self.number = None
        self.members.clear()

    def lose(self) -> None:
        """The connection is gone, and with it the rest of a state that had not come whole."""
        self.end()
        if not self.complete:
            self.stale = True

    def hear_message(self, message: Json) -> None:
        """Take a message that has an offset."""
        self.cursor = message["offset"]
        if "key" in message:
            self._take(message["key"], message["offset"], message["data"])

    def hear_gap(self, message: Json) -> None:
        """Take note of what will not come; what is held of the state may be of what is gone."""
        self.cursor = message.get("to", 0)
        if self.wish.state:
            self._begin_state()
            self.stale = not self.with_state

    def hear_state(self, message: Json) -> None:
        """Take a page of the state."""
        for key, entry in message["entries"].items():
            self._take(key, entry["offset"], entry["data"])
        self.complete = not message["more"]

    def hear_presence(self, message: Json) -> None:
        """Take who is there, or what has changed of it."""
        if "members" in message:
            self.members.clear()
        for kind in ("members", "joined", "updated"):
            for member in message.get(kind, ()):
                self.members[member["member"]] = member.get("name")
        for member in message.get("left", ()):
            self.members.pop(member["member"], None)

    def _take(self, key: str, offset: int, data: Any) -> None:
        """A word on a key; the newest counts."""
        if offset > self.entries.get(key, (0, None))[0]:
            self.entries[key] = (offset, data)

    def _begin_state(self) -> None:
        """The pages of the state begin (anew)."""
        self.entries.clear()
        self.complete = False
        self.stale = False
