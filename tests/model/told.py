"""What the server said, and whether the model says the same."""

import json
from typing import Any, NamedTuple

from msgspec import UNSET, Raw, Struct, UnsetType, field
from msgspec import json as msgspec_json

from tests.harness import Json
from tests.model.model import Expected, Gap, Message, Model, Pages, Verdict


class Mismatch(Exception):
    """The server and the model do not agree."""


def same(got: Any, wanted: Any, what: object) -> None:
    """Raises Mismatch where they are not."""
    if got != wanted:
        raise Mismatch(f"{what}: the server has {got!r}, the model {wanted!r}")


class Told(NamedTuple):
    """An object of the server's; what was published is kept as the text that came."""

    fields: Json
    """All but the next three."""
    data: str | None
    messages: list["Told"]
    entries: dict[str, "Told"]


class _Texts(Struct):
    data: Raw | UnsetType = UNSET
    messages: list[Raw] = field(default_factory=list)
    entries: dict[str, Raw] = field(default_factory=dict)


def read(text: bytes) -> Told:
    """An object, from its text."""
    texts = msgspec_json.decode(text, type=_Texts)
    fields = {name: value for name, value in json.loads(text).items() if name not in _Texts.__struct_fields__}
    return Told(
        fields,
        None if texts.data is UNSET else bytes(texts.data).decode(),
        [read(bytes(message)) for message in texts.messages],
        {key: read(bytes(entry)) for key, entry in texts.entries.items()},
    )


def judge_verdict(told: Told, verdict: Verdict, what: object) -> None:
    """An answer must be this verdict. Raises Mismatch."""
    fields = {name: value for name, value in told.fields.items() if name not in ("id", "message")}
    same(fields, verdict.fields, what)
    if told.data is None and (verdict.value is None or verdict.value_may_be_gone):
        return
    if verdict.value is None or not verdict.value.is_told_by(told.data):
        raise Mismatch(f"{what}: the conflict tells {told.data}, the model has {verdict.value}")


def judge_message(model: Model, told: Told, message: Message) -> None:
    """A message must be this one, with the time that everybody is told. Raises Mismatch."""
    fields = dict(told.fields)
    time_ms = fields.pop("time", None)
    same(fields, message.fields, "a message")
    if not message.value.is_told_by(told.data):
        raise Mismatch(f"the data of {fields} is {told.data}, in the model {message.value}")
    if message.offset is not None:
        same(time_ms, model.times.setdefault((message.channel, message.offset), time_ms), f"the time of {fields}")
        before = model.times.get((message.channel, message.offset - 1), 0)
        same(before <= time_ms, True, f"time does not go back, {before} before {fields}")


def judge_entries(entries: dict[str, Told], words: dict[str, Message]) -> None:
    """Entries of a state must be these, in the order of their keys' bytes. Raises Mismatch."""
    same(list(entries), sorted(words, key=str.encode), "the keys of a state")
    for key, entry in entries.items():
        same(entry.fields, {"offset": words[key].offset}, f"the entry {key!r}")
        if not words[key].value.is_told_by(entry.data):
            raise Mismatch(f"the data of {key!r} is {entry.data}, in the model {words[key]}")


def judge_expected(model: Model, told: Told, expected: Expected) -> Pages | None:
    """What came on a subscription must be this; returns what of a state's pages is still to come. Raises Mismatch."""
    match expected:
        case Message():
            judge_message(model, told, expected)
        case Gap():
            same(told.fields, expected.fields, "a gap")
        case Pages(channel, words):
            more = told.fields.get("more")
            same(told.fields, {"op": "state", "channel": channel, "more": more}, "a page of a state")
            ordered = sorted(words, key=str.encode)
            page = ordered[: len(told.entries)] if more else ordered
            judge_entries(told.entries, {key: words[key] for key in page})
            if more:
                same(0 < len(page) < len(ordered), True, f"there is more behind {page} of {ordered}")
                return Pages(channel, {key: words[key] for key in ordered[len(page) :]})
    return None
