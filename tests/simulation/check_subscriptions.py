"""Rules about reading: each subscription is one contiguous slice of the log, and what was once seen stays true."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from tests.simulation.check_publishes import tag_of
from tests.simulation.history import (
    Answered,
    Asked,
    Ended,
    Event,
    FinalLog,
    Gap,
    Invoked,
    Json,
    Op,
    Read,
    Seen,
    Subscribed,
    epochs_of,
)


class _Subscription:
    """A subscription as far as the history was read."""

    def __init__(self, asked: Asked, asked_at: int) -> None:
        self.asked = asked
        self.asked_at = asked_at
        self.cursor: int | None = None
        """None before the first message of one that asked for the last few."""
        self.first_at_least = 1
        self.begun = False
        self.epoch = ""
        self.is_of_another_log = False
        """Whether its cursor is, which it is yet to be told."""
        self.ended = False
        self.ephemeral: set[str] = set()

    def __str__(self) -> str:
        return f"{self.asked.device}'s subscription {self.asked.subscription} to {self.asked.channel}"


class _Witness:
    """What anybody ever saw: the same offset is the same message for all, for ever."""

    def __init__(self, log: FinalLog) -> None:
        self._log = log
        self._seen: dict[tuple[str, str, int], tuple[Any, ...]] = {}
        for channel, messages in log.messages.items():
            for message in messages:
                self._seen[log.epoch, channel, message.offset] = tuple(message[1:])

    def check(self, who: str, epoch: str, channel: str, message: Json) -> Iterator[str]:
        """Judge one message that was seen."""
        offset = message["offset"]
        told = (message["time"], message.get("from"), message.get("key"), message["data"])
        known = self._seen.get((epoch, channel, offset))
        if known is None:
            if offset > trimmed_in(self._log, epoch, channel):
                yield f"{who} saw {channel} {offset} ({tag_of(message['data'])}), which is not in the log"
            self._seen[epoch, channel, offset] = told
        elif known != told:
            yield f"{who} saw {channel} {offset} as {told}, which is {known}"


class _Acknowledged:
    """The newest offset that was acknowledged in each epoch and channel, at any time."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[int]] = {}
        self._newest: dict[tuple[str, str], list[int]] = {}

    def note(self, place: int, epoch: str, channel: str, offset: int) -> None:
        """At this place in the history, an offset was acknowledged."""
        newest = self._newest.setdefault((epoch, channel), [0])
        self._places.setdefault((epoch, channel), []).append(place)
        newest.append(max(newest[-1], offset))

    def before(self, epoch: str, channel: str, place: int) -> int:
        """The newest one before a place; 0 if there is none."""
        return self._newest.get((epoch, channel), [0])[bisect_left(self._places.get((epoch, channel), []), place)]


def check_subscriptions(history: list[Event], log: FinalLog) -> Iterator[str]:
    """Each subscription got its slice of the log, each history its page, and none what nobody else could have got."""
    subscriptions: dict[int, _Subscription] = {}
    witness = _Witness(log)
    answered: dict[str, None] = {}
    acknowledged = _Acknowledged()
    ops: dict[str, Op] = {}
    epochs = epochs_of(history)
    for place, event in enumerate(history):
        match event:
            case Invoked(op):
                ops[op.tag] = op
            case Answered(op, "ok", offset):
                answered[op.tag] = None
                acknowledged.note(place, epochs[event.connection], op.channel, offset)
            case Asked(number):
                subscriptions[number] = _Subscription(event, place)
            case Subscribed(number):
                yield from _begin(subscriptions[number], event, log, acknowledged)
            case Ended(number):
                subscriptions[number].ended = True
            case Gap(number):
                yield from _skip(subscriptions[number], event, log)
            case Seen(number, message):
                subscription = subscriptions[number]
                yield from _see(subscription, message, log, witness, ops)
                yield from _check_own(subscription, message, ops, answered)
            case Read():
                yield from _check_read(event, log, witness, acknowledged)
            case _:
                pass
    for subscription in subscriptions.values():
        head = _head(log, subscription.asked.channel)
        at_head = subscription.cursor in (None, head) or subscription.epoch != log.epoch
        if not at_head and not subscription.ended and _is_last_of_its_device(subscription, subscriptions):
            yield f"{subscription} ends at {subscription.cursor}, the channel at {head}"


def _is_last_of_its_device(subscription: _Subscription, all_of_them: dict[int, _Subscription]) -> bool:
    asked = subscription.asked
    return subscription.begun and all(
        (other.asked.device, other.asked.channel) != (asked.device, asked.channel)
        for number, other in all_of_them.items()
        if number > asked.subscription and other.begun
    )


def trimmed_in(log: FinalLog, epoch: str, channel: str) -> float:
    """Up to where a channel's messages may be gone: of another epoch, nobody knows."""
    return log.trimmed.get(channel, 0) if epoch == log.epoch else math.inf


def _head(log: FinalLog, channel: str) -> int:
    messages = log.messages.get(channel)
    return messages[-1].offset if messages else log.trimmed.get(channel, 0)


def _begin(subscription: _Subscription, event: Subscribed, log: FinalLog, acknowledged: _Acknowledged) -> Iterator[str]:
    asked, head = subscription.asked, event.head
    subscription.begun = True
    subscription.epoch = event.epoch
    subscription.is_of_another_log = asked.since is not None and asked.epoch not in (None, event.epoch)
    if event.epoch != log.epoch and log.durability == "full":
        yield f"{subscription} was told epoch {event.epoch} in a log of epoch {log.epoch}"
    if head > _head(log, asked.channel) and event.epoch == log.epoch:
        yield f"{subscription} was told the head {head}, the channel ends at {_head(log, asked.channel)}"
    before = acknowledged.before(event.epoch, asked.channel, subscription.asked_at)
    if head < before:
        yield f"{subscription} was told the head {head}, after {before} had been acknowledged"
    if asked.last is not None:
        subscription.first_at_least = max(1, head - asked.last + 1)
        if head == 0:
            subscription.cursor = 0
    else:
        subscription.cursor = head if asked.since is None else asked.since


def _skip(subscription: _Subscription, gap: Gap, log: FinalLog) -> Iterator[str]:
    if gap.reason != "trimmed":
        if not subscription.is_of_another_log:
            yield f"{subscription} was told of another epoch, but its cursor was of this one"
        subscription.is_of_another_log = False
        subscription.cursor = None
        return
    yield from _check_log(subscription)
    if subscription.cursor is None and gap.first >= subscription.first_at_least:
        subscription.cursor = gap.first - 1
    if gap.first != (subscription.cursor or 0) + 1 or gap.last < gap.first:
        yield f"{subscription} stands at {subscription.cursor}, but was told of a gap {gap.first}-{gap.last}"
    if gap.last > trimmed_in(log, subscription.epoch, subscription.asked.channel):
        yield f"{subscription} was told that {gap.first}-{gap.last} are gone, but they are not"
    subscription.cursor = gap.last


def _check_log(subscription: _Subscription) -> Iterator[str]:
    if subscription.is_of_another_log:
        yield f"{subscription} goes on from another log's offset, and was not told"


def _see(
    subscription: _Subscription, message: Json, log: FinalLog, witness: _Witness, ops: dict[str, Op]
) -> Iterator[str]:
    channel = subscription.asked.channel
    if subscription.ended:
        yield f"{subscription} had ended, but got {message}"
    if "offset" not in message:
        tag = tag_of(message["data"])
        op = ops.get(str(tag))
        if op is None or not op.ephemeral or op.channel != channel or tag in subscription.ephemeral:
            yield f"{subscription} got an ephemeral message that nobody sent so: {message}"
        subscription.ephemeral.add(str(tag))
        return
    offset = message["offset"]
    yield from _check_log(subscription)
    if subscription.cursor is None:
        # What comes first is the oldest of the last few, unless that was trimmed.
        if offset != subscription.first_at_least and not (
            subscription.first_at_least < offset <= trimmed_in(log, subscription.epoch, channel) + 1
        ):
            yield f"{subscription} began with {offset} instead of {subscription.first_at_least}"
    elif offset != subscription.cursor + 1:
        yield f"{subscription} got {offset} behind {subscription.cursor}"
    subscription.cursor = offset
    yield from witness.check(str(subscription), subscription.epoch, channel, message)


def _check_own(
    subscription: _Subscription, message: Json, ops: dict[str, Op], answered: dict[str, None]
) -> Iterator[str]:
    """Who publishes and is subscribed gets the ok before the message."""
    op = ops.get(str(tag_of(message["data"])))
    if op is None or op.tag in answered:
        return
    if (op.device, op.connection) == (subscription.asked.device, subscription.asked.connection):
        yield f"{subscription} got {op.tag} before its own ok"


def _check_read(read: Read, log: FinalLog, witness: _Witness, acknowledged: _Acknowledged) -> Iterator[str]:
    who = f"a history of {read.channel} behind {read.since}"
    offsets = [message["offset"] for message in read.messages]
    if read.head < acknowledged.before(read.epoch, read.channel, read.asked_at):
        yield f"{who} was told the head {read.head}, though more had been acknowledged before"
    if offsets:
        first, last = offsets[0], offsets[-1]
        if offsets != list(range(first, last + 1)):
            yield f"{who} has holes: {offsets}"
        trimmed = trimmed_in(log, read.epoch, read.channel)
        if read.since is not None and not read.since < first <= max(read.since, trimmed) + 1:
            yield f"{who} begins at {first}"
        if read.more != (last < read.head) or (read.since is None and read.more):
            yield f"{who} ends at {last} of {read.head}, and says more: {read.more}"
    for message in read.messages:
        yield from witness.check(who, read.epoch, read.channel, message)
