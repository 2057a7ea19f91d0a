"""A channel's state as two who know nothing of the server's code have it: who writes it, and who follows it."""

from typing import Any

from tests.harness import Json
from tests.merge_patches import by_the_rfc


class Document:
    """What a channel's state must be, from what was published to it, by protocol.md alone."""

    def __init__(self) -> None:
        self.head = 0
        self.words: dict[str, tuple[int, Any]] = {}

    def publish(self, key: str | None, data: Any, expect: int | None = None, *, merge: bool = False) -> Json:
        """Take a publish; gives the answer that there must be, but for its text."""
        if key is None:
            self.head += 1
            return {"op": "ok", "offset": self.head}
        offset, value = self.words.get(key, (0, None))
        if expect is not None and expect != offset:
            return {"op": "error", "code": "conflict", "retry": False, "offset": offset, "data": value}
        if merge:
            data = by_the_rfc(value, data)
        self.head += 1
        self.words.pop(key, None)
        if data is not None:
            self.words[key] = (self.head, data)
        return {"op": "ok", "offset": self.head}

    def clear(self) -> None:
        """The channel is emptied."""
        self.words.clear()

    @property
    def entries(self) -> Json:
        """As an answer to `state` has them."""
        return {key: {"offset": offset, "data": data} for key, (offset, data) in self.words.items()}


class Replica:
    """What a client has that follows a channel's state, by the rules in protocol.md."""

    def __init__(self) -> None:
        self.entries: Json = {}
        self.cursor = 0
        self.epoch = ""
        self.complete = False
        """Whether the last page has come."""
        self.gaps = 0
        self.seen: list[int] = []
        """The offsets of the messages since the last `ok`."""

    def take(self, message: Json) -> None:
        """Take a message of the server."""
        match message["op"]:
            case "ok":
                self.entries, self.cursor, self.epoch = {}, message["offset"], message["epoch"]
                self.complete, self.seen = False, []
            case "gap":
                self.entries, self.complete = {}, False
                self.cursor = message.get("to", 0)
                self.gaps += 1
            case "state":
                assert not self.complete
                for key, entry in message["entries"].items():
                    self._take_word(key, entry["offset"], entry["data"])
                self.complete = not message["more"]
            case "message":
                offset = message["offset"]
                assert self.complete, "a message came before the last page"
                assert offset == self.cursor + 1, "an offset is missing, or came twice"
                self.cursor = offset
                self.seen.append(offset)
                if "key" in message:
                    self._take_word(message["key"], offset, message["data"])
            case _:
                raise AssertionError(message)

    def _take_word(self, key: str, offset: int, data: Any) -> None:
        if key in self.entries and self.entries[key]["offset"] > offset:
            return
        self.entries.pop(key, None)
        if data is not None:
            self.entries[key] = {"offset": offset, "data": data}

    def is_level(self, head: int) -> bool:
        """Whether it has all there is."""
        return self.complete and self.cursor >= head
