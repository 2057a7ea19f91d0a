"""Deciding one batch: offsets, conditions on keys, producers' verdicts, one publish after the other, in order.

No SQL and no I/O here: what is not in memory is looked up through Lookup, inside the batch's transaction. What a
batch decides counts only once its transaction is committed; until then it must be possible to forget it.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, cast

from msgspec import UNSET, Raw

from trisync.settings import Settings
from trisync.storage.log import Duplicate, Once, Refused, Run, Submission, Verdict
from trisync.storage.verdicts import Conflict, Kept, Producer, Remembered
from trisync.wire.errors import WireError, too_large
from trisync.wire.merge_patch import merge_patch
from trisync.wire.protocol import Publish, data_text
from trisync.wire.replies import keyed_suffix, message_prefix, message_suffix

NO_DATA = "null"
"""The data that deletes a key."""


class Word(NamedTuple):
    """A key's newest message; offset 0 where there is no such key."""

    offset: int
    data: str | None
    """None where it was not looked up."""


_NOTHING = Word(0, NO_DATA)


class Head:
    """Where a channel ends, and what the batch under way adds to it."""

    __slots__ = (
        *("after", "changed", "first", "id", "keys", "lines"),
        *("message", "name", "offset", "prefix", "total", "words"),
    )

    def __init__(self, name: str, id: int, offset: int, keys: int, total: int = 0, message: int = 0) -> None:
        self.name = name
        self.id = id
        """0 while nothing was ever stored in it."""
        self.offset = offset
        self.total = total
        """The newest message's `total`: see ROW."""
        self.message = message
        """The newest message's id, 0 where there is none."""
        self.first = 0
        """The id of the first message that the batch adds, 0 while it adds none."""
        self.keys = keys
        """How many keys have a word."""
        self.after = offset
        self.prefix = message_prefix(name)
        self.lines: list[str] = []
        self.words: dict[str, Word] | None = None
        """The words of those keys that the batch is about."""
        self.changed: dict[str, None] | None = None
        """The keys whose words it changed."""

    def take_run(self) -> Run | None:
        """What the batch added, if anything, once that is stored; the next batch begins behind it."""
        self.words = self.changed = None
        self.first = 0
        if not self.lines:
            return None
        run = Run(self.name, self.after, self.offset, "".join(self.lines).encode())
        self.after = self.offset
        self.lines = []
        return run


class Lookup(Protocol):
    """What a batch asks of the store, as the transaction sees it."""

    def known_head(self, name: str) -> Head | None:
        """Where a channel ends, if that is in memory."""

    def find_heads(self, names: list[str]) -> list[Head]:
        """Where channels end that are not in memory, in any order."""

    def create(self, name: str) -> int:
        """A new channel's id."""

    def producer(self, id: str) -> Producer:
        """A producer's verdicts, empty ones for one not known."""

    def offsets(self, head: Head, keys: list[str]) -> dict[str, int]:
        """The offsets of those keys' words that there are."""

    def word_data(self, head: Head, key: str) -> str:
        """The data of a key's word, which is there."""

    def old_data(self, word: Conflict) -> str | None:
        """The data of a word that may have been replaced since, or None where its message was trimmed."""

    def remembered(self, id: bytes) -> Remembered | None:
        """The verdict on the first request with an Idempotency-Key."""


ROW = ("id", "channel", "offset", "size", "total", "previous", "sender", "key", "data")
"""What a batch gives of each message to store.

`previous` is the id of the channel's message before it, 0 where there is none. `size` is in bytes, of the whole line;
`total` is the sum of the channel's sizes up to this one, counted from anywhere: the difference between two messages is
what lies between them. `sender` and `key` are 0 where there is none.
"""
_ROW_WIDTH = len(ROW)

_CHANNEL = attrgetter("channel")


class Batch:
    """What one transaction decides, and the rows that it takes."""

    __slots__ = (
        "_keys_max",
        "_lookup",
        "_message_bytes_max",
        "_submissions",
        "heads",
        "newest_id",
        "once",
        "producers",
        "rows",
        "settled",
        "time_ms",
    )

    def __init__(self, lookup: Lookup, settings: Settings, time_ms: int, newest_id: int) -> None:
        self._lookup = lookup
        self._message_bytes_max = settings.message_bytes_max
        self._keys_max = settings.keys_max
        self._submissions: Sequence[Submission] = ()
        self.time_ms = time_ms
        self.newest_id = newest_id
        """Of all messages; the next one's is one more."""
        self.heads: dict[str, Head] = {}
        self.producers: dict[str, Producer] = {}
        self.settled: set[Producer] = set()
        self.once: dict[bytes, Remembered] = {}
        """What is to be remembered for Idempotency-Keys."""
        self.rows: list[Any] = []
        """The ROW of each message, flat, as an INSERT binds them."""

    def decide(self, submissions: Sequence[Submission]) -> None:
        """Fill the verdicts of all submissions, in order."""
        self._submissions = submissions
        if any(submission.keyed for submission in submissions):
            self._look_up_words()
        for submission in submissions:
            if submission.once is not None:
                submission.verdicts = [self._decide_once(submission, submission.once)]
            else:
                self._decide(submission)

    def _decide(self, submission: Submission) -> None:
        producer = None if submission.producer is None else self._touch_producer(submission.producer)
        sender, items = submission.sender, submission.items
        suffix = message_suffix(self.time_ms, sender)
        if submission.plain and len(items) > 1 and (producer is None or producer.awaits(items)):
            offsets = self._store_plain(cast(list[Publish], items), sender, suffix)
            if producer is not None:
                producer.settle(*offsets)
                self.settled.add(producer)
            submission.verdicts = [*offsets]
        else:
            submission.verdicts = [self._judge(item, producer, sender, suffix) for item in items]

    def _judge(self, item: Publish | Refused, producer: Producer | None, sender: str | None, suffix: str) -> Verdict:
        if producer is None or item.seq is UNSET:
            return self._spell_out(self._store(item, sender, suffix))
        if type(item) is Refused and not item.settles:
            return item.error
        answer = producer.answer(item.seq)
        if answer is not None:
            # A retry has `expect` if the first try had. Another publish under that seq gets no data of a conflict: its
            # submission did not count that, see CONDITIONAL_BYTES.
            return self._repeat(answer, with_data=type(item) is Publish and item.expect is not UNSET)
        verdict = self._store(item, sender, suffix)
        producer.settle(verdict)
        self.settled.add(producer)
        return self._spell_out(verdict)

    def _decide_once(self, submission: Submission, once: Once) -> Verdict:
        """The one publish of a request that may come again under the same Idempotency-Key."""
        known = self.once.get(once.id) or self._lookup.remembered(once.id)
        if known is None:
            [item] = submission.items
            if isinstance(item, Refused):
                return item.error  # from before the log, as a hook's or when the server stops: it is not remembered
            suffix = message_suffix(self.time_ms, submission.sender)
            verdict = self._store(item, submission.sender, suffix)
            self.once[once.id] = Remembered(once.fingerprint, verdict)
            return self._spell_out(verdict)
        if known.fingerprint != once.fingerprint:
            return WireError("bad_request", "this Idempotency-Key was used for another request", reused=True)
        return self._repeat(known.verdict)

    def _repeat(self, answer: Kept | Duplicate, *, with_data: bool = True) -> Verdict:
        return Duplicate(answer) if type(answer) is int else self._spell_out(answer, with_data=with_data)

    def _spell_out(self, verdict: Kept | Duplicate, *, with_data: bool = True) -> Verdict:
        """A verdict as the publisher gets it: a conflict with what stands there."""
        if not isinstance(verdict, Conflict):
            return verdict
        details: dict[str, Any] = {"offset": verdict.offset}
        data = self._conflicting_data(verdict) if with_data else None
        if data is not None:
            details["data"] = Raw(data.encode())
        problem = f"the key's newest offset is {verdict.offset}" if verdict.offset else "there is no such key"
        return WireError("conflict", problem, **details)

    def _conflicting_data(self, conflict: Conflict) -> str | None:
        if conflict.offset == 0:
            return NO_DATA
        # The word may be this batch's own, which is not in the store yet.
        for start in range(len(self.rows) - _ROW_WIDTH, -1, -_ROW_WIDTH):
            _, channel, offset, *_, data = self.rows[start : start + _ROW_WIDTH]
            if channel == conflict.channel and offset == conflict.offset:
                return str(data)
        return self._lookup.old_data(conflict)

    def _store(self, item: Publish | Refused, sender: str | None, suffix: str) -> Kept:
        if isinstance(item, Refused):
            return item.error
        if item.ephemeral:
            return 0
        head = self._touch_head(item.channel)
        if item.key is UNSET:
            return self._add(head, sender, suffix, None, (data_text(item.data),))
        return self._store_word(head, item, item.key, sender, suffix)

    def _store_word(self, head: Head, item: Publish, key: str, sender: str | None, suffix: str) -> Kept:
        assert head.words is not None
        word = head.words.get(key, _NOTHING)
        if item.expect is not UNSET and item.expect != word.offset:
            return Conflict(head.id, key, word.offset)
        data = data_text(item.data)
        if item.merge:
            target = None
            if word.offset:
                target = self._lookup.word_data(head, key) if word.data is None else word.data
            data = merge_patch(None if target is None else target.encode(), data.encode()).decode()
            if len(data) > self._message_bytes_max or len(data.encode()) > self._message_bytes_max:
                return too_large(self._message_bytes_max, closes=False)
        is_there, stays = word.offset > 0, data != NO_DATA
        if stays and not is_there and head.keys >= self._keys_max:
            problem = f"a channel has at most {self._keys_max} keys"
            return WireError("limit", problem, limit="keys_max", value=self._keys_max)
        head.keys += stays - is_there
        offset = self._add(head, sender, keyed_suffix(suffix, key), key, (data,))
        head.words[key] = Word(offset, data) if stays else _NOTHING
        if head.changed is None:
            head.changed = {}
        head.changed[key] = None
        return offset

    def _store_plain(self, items: list[Publish], sender: str | None, suffix: str) -> list[int]:
        """Store publishes that name no key, in runs of a channel; returns their offsets."""
        offsets: list[int] = []
        for channel, run in groupby(items, _CHANNEL):
            texts = [data_text(item.data) for item in run]
            last = self._add(self._touch_head(channel), sender, suffix, None, texts)
            offsets += range(last - len(texts) + 1, last + 1)
        return offsets

    def _add(self, head: Head, sender: str | None, suffix: str, key: str | None, texts: Sequence[str]) -> int:
        """Store messages with this data, at least one; returns the last one's offset."""
        if not head.id:
            head.id = self._lookup.create(head.name)
        if not head.first:
            head.first = self.newest_id + 1
        # Local, as this runs for every message there is.
        rows, lines, prefix, channel = self.rows, head.lines, head.prefix, head.id
        id, offset, total, previous = self.newest_id, head.offset, head.total, head.message
        sender_or_0, key_or_0 = sender or 0, key or 0
        for text in texts:
            id += 1
            offset += 1
            line = f"{prefix}{offset}{suffix}{text}}}\n"
            lines.append(line)
            size = len(line) if line.isascii() else len(line.encode())
            total += size
            rows += (id, channel, offset, size, total, previous, sender_or_0, key_or_0, text)
            previous = id
        self.newest_id = head.message = id
        head.offset, head.total = offset, total
        return offset

    def _look_up_words(self) -> None:
        """Find the words of all keys that the batch names, at once: one by one they would cost a statement each."""
        wanted: dict[str, dict[str, None]] = {}
        for submission in self._submissions:
            if submission.keyed:
                for item in submission.items:
                    if type(item) is Publish and item.key is not UNSET:
                        wanted.setdefault(item.channel, {})[item.key] = None
        for name, keys in wanted.items():
            head = self._touch_head(name)
            there = self._lookup.offsets(head, list(keys)) if head.keys else {}
            head.words = {key: Word(offset, None) for key, offset in there.items()}

    def _touch_head(self, name: str) -> Head:
        head = self.heads.get(name)
        if head is None:
            head = self._lookup.known_head(name)
            if head is None:
                self._look_up_heads()
                return self.heads[name]
            self.heads[name] = head
        return head

    def _look_up_heads(self) -> None:
        """Find the heads of all channels that the batch names and that are not in memory, at once."""
        named: dict[str, None] = {}
        for submission in self._submissions:
            for item in submission.items:
                if type(item) is Publish and not item.ephemeral:
                    named[item.channel] = None
        cold = [name for name in named if name not in self.heads and self._lookup.known_head(name) is None]
        for head in self._lookup.find_heads(cold):
            self.heads[head.name] = head

    def _touch_producer(self, id: str) -> Producer:
        producer = self.producers.get(id)
        if producer is None:
            producer = self.producers[id] = self._lookup.producer(id)
        return producer
