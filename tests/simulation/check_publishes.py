"""Rules about publishes: stored once, where and only if the answer said so, in the order in which they were made."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.simulation.history import Answered, Event, FinalLog, Invoked, Op, Stored, epochs_of


class Publish(NamedTuple):
    """All that the history says of one publish."""

    op: Op
    invoked_at: int
    answers: list[tuple[int, Answered]]
    """With their places in the history. Those of earlier epochs are left out: a power cut may have undone them."""

    @property
    def offset(self) -> int:
        """Where it was said to be stored; 0 if that was not said."""
        return next((answer.offset for _, answer in self.answers if answer.outcome == "ok" and answer.offset), 0)

    @property
    def acknowledged_at(self) -> int:
        """When that was said first."""
        return next(place for place, answer in self.answers if answer.outcome == "ok")

    @property
    def verdict(self) -> Answered | None:
        """The first answer that settled it."""
        return next((answer for _, answer in self.answers if answer.outcome != "retry"), None)


def publishes_of(history: list[Event], log: FinalLog) -> dict[str, Publish]:
    """All publishes by tag, in the order in which they were sent first."""
    epochs = epochs_of(history)
    found: dict[str, Publish] = {}
    for place, event in enumerate(history):
        if isinstance(event, Invoked):
            found[event.op.tag] = Publish(event.op, place, [])
        elif isinstance(event, Answered) and epochs[event.connection] == log.epoch:
            found[event.op.tag].answers.append((place, event))
    return found


def tag_of(data: Any) -> str | None:
    """The tag of the publish whose data this is, or of the last merge into it."""
    return data.get("tag") if isinstance(data, dict) else None


def check_publishes(history: list[Event], log: FinalLog) -> Iterator[str]:
    """Each publish is in the log as its answers say, and in its order."""
    publishes = publishes_of(history, log)
    stored: dict[str, list[tuple[str, Stored]]] = {}
    deletions: dict[tuple[str, str | None], list[int]] = {}
    for channel, messages in log.messages.items():
        for message in messages:
            tag = tag_of(message.data)
            if tag is None:
                deletions.setdefault((channel, message.key), []).append(message.offset)
            elif tag not in publishes:
                yield f"{channel} {message.offset}: nobody published {tag}"
            else:
                stored.setdefault(tag, []).append((channel, message))
    yield from _check_each(publishes, stored, log)
    yield from _check_deletions(publishes, deletions, log)
    yield from _check_order(publishes, stored)


def _check_each(
    publishes: dict[str, Publish], stored: dict[str, list[tuple[str, Stored]]], log: FinalLog
) -> Iterator[str]:
    for tag, publish in publishes.items():
        op, verdict = publish.op, publish.verdict
        places = stored.get(tag, [])
        if len(places) > 1:
            yield f"{tag} is stored {len(places)} times: at {[(channel, m.offset) for channel, m in places]}"
        for channel, message in places:
            if (channel, message.key) != (op.channel, op.key):
                yield f"{tag} was for {op.channel} {op.key}, but is in {channel} {message.key}"
            if not op.merge and message.data != op.data:
                yield f"{tag} is stored with other data: {message.data}"
            if message.sender is None or not message.sender.startswith(op.device):
                yield f"{tag} of {op.device} is stored as from {message.sender}"
        if verdict is None:
            if publish.answers and op.seq is None and places:
                yield f"{tag} got {publish.answers[0][1].code}, which is to mean that nothing was stored; it was"
            continue
        said = {(answer.outcome, answer.offset) for _, answer in publish.answers if answer.outcome != "retry"}
        if len(said) > 1:
            yield f"{tag} got different verdicts: {sorted(said)}"
        if verdict.outcome == "refused" and places:
            yield f"{tag} was refused with {verdict.code}, but is stored at {places[0][1].offset}"
        if verdict.outcome == "ok" and not op.ephemeral:
            found = [message.offset for _, message in places]
            is_gone = publish.offset <= log.trimmed.get(op.channel, 0)
            if publish.offset == 0:
                yield f"{tag} was accepted, but at no offset"
            elif op.data is not None and not is_gone and found != [publish.offset]:
                yield f"{tag} was accepted at {op.channel} {publish.offset}, but is stored at {found}"


def _check_deletions(
    publishes: dict[str, Publish], deletions: dict[tuple[str, str | None], list[int]], log: FinalLog
) -> Iterator[str]:
    """A deletion bears no tag: those that were not answered can only be counted."""
    for publish in publishes.values():
        op = publish.op
        if op.data is None and publish.offset > log.trimmed.get(op.channel, 0):
            known = deletions.get((op.channel, op.key), [])
            if publish.offset in known:
                known.remove(publish.offset)
            else:
                yield f"{op.tag} deleted {op.key} at {op.channel} {publish.offset}, but that is not stored there"
    for (channel, key), offsets in deletions.items():
        open_ones = [
            publish.op.tag
            for publish in publishes.values()
            if publish.op.data is None
            and (publish.op.channel, publish.op.key) == (channel, key)
            and publish.verdict is None
            and (publish.op.seq is not None or not publish.answers)
        ]
        if len(offsets) > len(open_ones):
            yield f"{channel}: {key} was deleted at {offsets}, by none but {open_ones}"


def _check_order(publishes: dict[str, Publish], stored: dict[str, list[tuple[str, Stored]]]) -> Iterator[str]:
    """What was answered before another was sent stands before it; and so does what one device sent before."""
    offsets = {tag: places[0][1].offset for tag, places in stored.items()}
    by_channel: dict[str, list[Publish]] = {}
    for tag, publish in publishes.items():
        if offsets.setdefault(tag, publish.offset):
            by_channel.setdefault(publish.op.channel, []).append(publish)
    for channel, those in by_channel.items():
        answered = sorted(
            (publish.acknowledged_at, offsets[publish.op.tag], publish.op.tag) for publish in those if publish.offset
        )
        newest, newest_tag, place = 0, "", 0
        last_of: dict[tuple[str, int], tuple[int, str]] = {}
        for publish in those:  # in the order in which they were sent
            op, offset = publish.op, offsets[publish.op.tag]
            while place < len(answered) and answered[place][0] < publish.invoked_at:
                if answered[place][1] > newest:
                    newest, newest_tag = answered[place][1:]
                place += 1
            if offset <= newest:
                yield f"{channel}: {op.tag} at {offset} was sent after {newest_tag} had been stored at {newest}"
            line = op.device, 0 if op.seq is not None else op.connection
            before, before_tag = last_of.get(line, (0, ""))
            if offset <= before:
                yield f"{channel}: {op.tag} at {offset} was sent behind {before_tag}, which is at {before}"
            last_of[line] = (offset, op.tag)
