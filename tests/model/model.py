"""What the server must hold and answer, by protocol.md alone: channels, their states, producers, calls with a key.

Dicts and lists, and no I/O. JSON texts are kept as they were published, for data is to come back byte for byte.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.harness import Json
from tests.merge_patches import by_the_rfc

KEYS_MAX = 8
BYTES_MAX = 6000
"""What the server is told to take of a channel's keys, and of a message."""
REMEMBERED = 256
"""Verdicts of a producer that are kept word for word."""
TRIMMED_CHANNEL, KEPT = "trim.1", 5
"""The channel that retention cuts, and to how many messages."""


@dataclass(frozen=True)
class Publish:
    """What a client asks to be published; None stands for what it does not say."""

    channel: str
    data: str
    key: str | None = None
    expect: int | None = None
    merge: bool | None = None
    ephemeral: bool | None = None
    seq: int | None = None

    @property
    def said(self) -> Json:
        """The fields, but for the data."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "data"}


class Value(NamedTuple):
    """A JSON value: its text as it was published, or what a merge made, of which the text is the server's own."""

    text: str
    verbatim: bool = True

    def is_told_by(self, text: str | None) -> bool:
        """Whether this is what the server says it is."""
        if text is None:
            return False
        return text == self.text if self.verbatim else sorted_json(text) == sorted_json(self.text)


def sorted_json(text: str) -> str:
    """JSON in a form in which equal values are equal texts; to Python, `true` is 1, and 1 is 1.0."""
    return json.dumps(json.loads(text), sort_keys=True)


NOTHING = Value("null")


class Message(NamedTuple):
    """A message, as everybody must be shown it; an ephemeral one has no offset."""

    channel: str
    value: Value
    offset: int | None = None
    sender: str | None = None
    key: str | None = None

    @property
    def fields(self) -> Json:
        """All but `time` and `data`."""
        said = {"channel": self.channel, "offset": self.offset, "from": self.sender, "key": self.key}
        return {"op": "message"} | {name: value for name, value in said.items() if value is not None}


class Gap(NamedTuple):
    """A subscription must be told that these are gone; without a first one, that the log is another one."""

    channel: str
    first: int = 0
    last: int = 0

    @property
    def fields(self) -> Json:
        """As they are told."""
        if not self.first:
            return {"op": "gap", "channel": self.channel, "reason": "epoch"}
        return {"op": "gap", "channel": self.channel, "from": self.first, "to": self.last, "reason": "trimmed"}


class Pages(NamedTuple):
    """A subscription must be shown a whole state, in some pages."""

    channel: str
    entries: dict[str, Message]


Expected = Message | Gap | Pages
"""What a subscription is owed."""


@dataclass(frozen=True)
class Verdict:
    """What a publish is answered with."""

    code: str = "ok"
    details: Json = field(default_factory=dict)
    value: Value | None = None
    """What stands there, with a conflict."""
    value_may_be_gone: bool = False
    """Retention is about to take it, or has."""

    @property
    def fields(self) -> Json:
        """All but `id`, `message` and `data`."""
        if self.code == "ok":
            return {"op": "ok"} | self.details
        return {"op": "error", "code": self.code, "retry": self.code == "out_of_sequence"} | self.details


class Settled(NamedTuple):
    """A verdict to be repeated."""

    publish: Publish
    verdict: Verdict


@dataclass
class Producer:
    """Its last settled number, and all the verdicts."""

    settled: int = 0
    verdicts: dict[int, Settled] = field(default_factory=dict)


class Channel:
    """A log and its state."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.head = self.trimmed = 0
        self.log: dict[int, Message] = {}
        self.words: dict[str, Message] = {}

    @property
    def due(self) -> int:
        """The offset up to which retention removes messages, sooner or later."""
        return max(self.trimmed, self.head - KEPT) if self.name == TRIMMED_CHANNEL else self.trimmed

    def trim(self) -> None:
        """Retention has done what is due."""
        self.trimmed = self.due
        self.log = self.behind(self.trimmed)

    def behind(self, offset: int) -> dict[int, Message]:
        """The messages behind an offset."""
        return {at: message for at, message in self.log.items() if at > offset}

    def clear(self) -> Gap | None:
        """Empty it; what its subscribers are told, if there was anything."""
        if self.trimmed == self.head and not self.words:
            return None
        gap = Gap(self.name, min(self.trimmed + 1, self.head), self.head)
        self.trimmed = self.head
        self.log, self.words = {}, {}
        return gap

    def owed(self, since: int | None, last: int | None, *, state: bool, foreign: bool) -> list[Expected]:
        """What a subscription is to be shown at its beginning; `foreign`: its epoch is another log's."""
        owed: list[Expected] = []
        start = self.head if last is None else max(self.trimmed, self.head - last)
        if since is not None:
            start = since
            if foreign or since > self.head:
                owed.append(Gap(self.name))
                start = 0
        if start < self.trimmed:
            owed.append(Gap(self.name, start + 1, self.trimmed))
        if state:
            owed.append(Pages(self.name, dict(self.words)))
        return [*owed, *self.behind(start).values()]

    def store(self, publish: Publish, sender: str | None) -> tuple[Verdict, Message | None]:
        """Judge what is well-formed and stored, if anything."""
        if publish.ephemeral:
            return Verdict(), Message(self.name, _as_told(publish.data), sender=sender)
        value = _as_told(publish.data)
        if publish.key is not None:
            there = self.words.get(publish.key)
            refusal = self._refuse_word(publish, there)
            if publish.merge and refusal is None:
                value = _merged(there, value)
                if len(value.text.encode()) > BYTES_MAX:
                    refusal = Verdict("too_large", {"limit": "message_bytes_max", "value": BYTES_MAX})
            if refusal is None and there is None and value.text != "null" and len(self.words) >= KEYS_MAX:
                refusal = Verdict("limit", {"limit": "keys_max", "value": KEYS_MAX})
            if refusal is not None:
                return refusal, None
        self.head += 1
        message = Message(self.name, value, self.head, sender, publish.key)
        self.log[self.head] = message
        if publish.key is not None:
            self.words.pop(publish.key, None)
            if value.text != "null":
                self.words[publish.key] = message
        return Verdict(details={"offset": self.head}), message

    def _refuse_word(self, publish: Publish, there: Message | None) -> Verdict | None:
        offset = 0 if there is None else there.offset
        if publish.expect is None or publish.expect == offset:
            return None
        return Verdict("conflict", {"offset": offset}, NOTHING if there is None else there.value)

    def repeat_conflict(self, verdict: Verdict, key: str | None) -> Verdict:
        """A conflict as it is told again: its value only while the log or the state still has it."""
        offset = verdict.details["offset"]
        word = self.words.get(key or "")
        if offset == 0 or (word is not None and word.offset == offset):
            return verdict
        if offset <= self.trimmed:
            return Verdict(verdict.code, verdict.details)
        return Verdict(verdict.code, verdict.details, verdict.value, value_may_be_gone=offset <= self.due)


class Model:
    """Everything that the server must remember."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.producers: dict[str, Producer] = {}
        self.calls: dict[tuple[str, str], tuple[Any, Settled]] = {}
        """By channel and Idempotency-Key: what tells the call from others, and what became of it."""
        self.times: dict[tuple[str, int], int] = {}
        """By channel and offset, as they were told first."""

    def channel(self, name: str) -> Channel:
        """The channel of that name, which needs no creating."""
        return self.channels.setdefault(name, Channel(name))

    def publish(self, publish: Publish, sender: str | None, producer: str | None) -> tuple[Verdict, Message | None]:
        """Judge a publish of a connection that is not fenced; also the message, if it is to be shown."""
        code = fault(publish)
        if code == "bad_json" or (publish.seq is not None and producer is None):
            return Verdict(code or "bad_request"), None
        if publish.seq is None or producer is None:
            return (Verdict(code), None) if code else self.channel(publish.channel).store(publish, sender)
        return self._publish_in_order(publish, publish.seq, sender, self.producers.setdefault(producer, Producer()))

    def _publish_in_order(
        self, publish: Publish, seq: int, sender: str | None, producer: Producer
    ) -> tuple[Verdict, Message | None]:
        if seq > producer.settled + 1:
            return Verdict("out_of_sequence", {"seq": producer.settled}), None
        if seq <= producer.settled - REMEMBERED:
            return Verdict(details={"duplicate": True}), None
        if seq <= producer.settled:
            verdict = self.repeat(producer.verdicts[seq])
            if verdict.value is not None and (fault(publish) or publish.expect is None):
                return Verdict(verdict.code, verdict.details), None
            return verdict, None
        code = fault(publish)
        verdict, message = (Verdict(code), None) if code else self.channel(publish.channel).store(publish, sender)
        producer.settled = seq
        producer.verdicts[seq] = Settled(publish, verdict)
        return verdict, message

    def repeat(self, settled: Settled) -> Verdict:
        """The verdict on what comes again."""
        publish, verdict = settled
        if verdict.code == "conflict":
            return self.channel(publish.channel).repeat_conflict(verdict, publish.key)
        return Verdict(details=verdict.details | {"duplicate": True}) if verdict.code == "ok" else verdict


def fault(publish: Publish) -> str | None:
    """The code of what is wrong with a publish whatever there is; None if nothing."""
    try:
        _require_json(publish.data)
    except ValueError:
        return "bad_json"
    key, expect = publish.key, publish.expect
    wrong = (
        not re.fullmatch(r"[A-Za-z0-9_\-.:/@#=]{1,200}", publish.channel)
        or (key is not None and not (1 <= len(key.encode()) <= 512 and not re.search(r"[\x00-\x1f\x7f-\x9f]", key)))
        or (key is None and (expect is not None or publish.merge))
        or (expect is not None and not 0 <= expect < 1 << 53)
        or (publish.ephemeral and (publish.seq is not None or key is not None))
    )
    return "bad_request" if wrong else None


def _require_json(text: str) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    json.dumps(json.loads(text, parse_constant=refuse), ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    if len(text) - len(text.lstrip("[")) > 63:  # the request's own object is one level more
        raise ValueError("nested too deep")


def _as_told(text: str) -> Value:
    return Value(text.replace("\r", " ").replace("\n", " "))


def _merged(there: Message | None, patch: Value) -> Value:
    if not patch.text.startswith("{"):
        return patch
    target = None if there is None else json.loads(there.value.text)
    result = by_the_rfc(target, json.loads(patch.text))
    return Value(json.dumps(result, ensure_ascii=False, separators=(",", ":")), verbatim=False)
