"""Rules about keys and presence: compare-and-set is linear, merges are merges, replicas equal the state."""

from collections.abc import Iterator
from typing import Any

from tests.merge_patches import by_the_rfc
from tests.simulation.check_publishes import Publish, publishes_of, tag_of
from tests.simulation.history import Event, FinalLog, Members, Present, Replica

Word = tuple[int, Any]
"""Offset and data of a key's newest message; (0, None) where there is no such key."""


def check_keys(history: list[Event], log: FinalLog) -> Iterator[str]:
    """Each word followed the one that its publisher expected, and the state is the log's last word on each key."""
    publishes = publishes_of(history, log)
    deletions = {
        (publish.op.channel, publish.offset): publish
        for publish in publishes.values()
        if publish.op.data is None and publish.offset
    }
    for channel, messages in log.messages.items():
        if log.trimmed[channel]:
            continue  # what its words followed is gone
        words: dict[str, Word] = {}
        ever: dict[str, dict[int, Any]] = {}
        for message in messages:
            if message.key is None:
                continue
            word = words.get(message.key, (0, None))
            tag = tag_of(message.data)
            publish = deletions.get((channel, message.offset)) if tag is None else publishes.get(tag)
            if publish is not None:
                yield from _check_word(publish, word, message.data)
            ever.setdefault(message.key, {})[message.offset] = message.data
            words[message.key] = (0, None) if message.data is None else (message.offset, message.data)
        there = {key: word for key, word in words.items() if word[0]}
        if there != log.state.get(channel, {}):
            yield f"{channel}: the log says {there}, the state {log.state.get(channel, {})}"
        yield from _check_conflicts(channel, publishes, ever)


def _check_word(publish: Publish, word: Word, data: Any) -> Iterator[str]:
    op = publish.op
    if op.expect is not None and op.expect != word[0]:
        yield f"{op.tag} expected {op.channel} {op.key} at {op.expect}, but was stored behind {word[0]}"
    if op.merge and data != by_the_rfc(word[1], op.data):
        yield f"{op.tag} merged {op.data} into {word[1]}, which gave {data}"


def _check_conflicts(channel: str, publishes: dict[str, Publish], ever: dict[str, dict[int, Any]]) -> Iterator[str]:
    """A conflict names a word that was there, was not the expected one, and was not replaced before the publish."""
    acknowledged: dict[str, list[tuple[int, int]]] = {}
    for publish in publishes.values():
        if publish.op.channel == channel and publish.op.key is not None and publish.offset:
            acknowledged.setdefault(publish.op.key, []).append((publish.acknowledged_at, publish.offset))
    for publish in publishes.values():
        op, verdict = publish.op, publish.verdict
        if op.channel != channel or op.key is None or verdict is None or verdict.code != "conflict":
            continue
        words = ever.get(op.key, {})
        if verdict.offset == op.expect:
            yield f"{op.tag} expected {op.expect}, and was refused for {verdict.offset}"
        if verdict.offset and (verdict.offset not in words or words[verdict.offset] != verdict.data):
            yield f"{op.tag} was refused for {op.key} at {verdict.offset} with {verdict.data}, which never was so"
        before = max((offset for at, offset in acknowledged.get(op.key, []) if at < publish.invoked_at), default=0)
        if 0 < verdict.offset < before:
            yield f"{op.tag} was refused for {op.key} at {verdict.offset}, which {before} had replaced before"


def check_replicas(history: list[Event], log: FinalLog) -> Iterator[str]:
    """At the end, everybody who follows a state has it."""
    for event in history:
        if isinstance(event, Replica):
            state = log.state.get(event.channel, {})
            if event.entries != state:
                yield f"{event.device} holds of {event.channel} {event.entries}, the state is {state}"


def check_members(history: list[Event], log: FinalLog) -> Iterator[str]:
    """At the end, everybody who watches a channel's presence, and who asks, sees those who are there."""
    present: dict[str, list[Present]] = {}
    for event in history:
        if isinstance(event, Present):
            present.setdefault(event.channel, []).append(event)
    for event in history:
        if not isinstance(event, Members):
            continue
        those = present.get(event.channel, [])
        names = sorted(one.name for one in those)
        if sorted(str(name) for name in event.members.values()) != names:
            yield f"{event.device or 'who asks'} sees in {event.channel} {event.members}, but there are {names}"
        for one in those:
            if one.member is not None and event.members.get(one.member) != one.name:
                yield f"{event.device or 'who asks'} does not see {one.name} in {event.channel} as {one.member}"
