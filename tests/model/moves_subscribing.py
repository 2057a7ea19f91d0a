"""Moves that begin and end subscriptions, of talkers and as events."""

from collections import Counter
from urllib.parse import urlencode

from tests.harness import Json
from tests.model import draws
from tests.model.calls import path_of
from tests.model.model import Channel, Expected, Verdict
from tests.model.players import Follower, Request, Talker
from tests.model.table import SUBSCRIPTIONS_MAX, Table
from tests.model.told import judge_verdict, same
from tests.web_calls import open_events

FOLLOWERS_MAX = 3
FOREIGN = "of-another-log"


def _draw_place(table: Table, channel: Channel) -> Json:
    """Where a subscription begins: behind an offset, of this log or another one, with the newest, or at the head."""
    chance, head = table.chance, channel.head
    kind = chance.random()
    place: Json = {}
    if kind < 0.4:
        place["since"] = chance.choice([0, chance.randrange(head + 1), head, head + 3])
        if chance.random() < 0.4:
            place["epoch"] = chance.choice([table.epoch, FOREIGN])
    elif kind < 0.6:
        place["last"] = chance.choice([1, 3, 1000])
    return place | {"state": chance.random() < 0.3}


def _owed(table: Table, channel: Channel, place: Json) -> list[Expected]:
    foreign = place.get("epoch", table.epoch) != table.epoch
    return channel.owed(place.get("since"), place.get("last"), state=place["state"], foreign=foreign)


async def subscribe(table: Table) -> None:
    """A talker subscribes, or moves the subscription that it has."""
    chance = table.chance
    await table.settle()
    talker = chance.choice(table.talkers)
    channel = table.model.channel(chance.choice(draws.CHANNELS))
    place = _draw_place(table, channel)
    refusal = None
    if chance.random() < 0.05:
        place |= {"since": 0, "last": 1}
        refusal = Verdict("bad_request")
    elif channel.name not in talker.subscriptions and len(talker.subscriptions) >= SUBSCRIPTIONS_MAX:
        refusal = Verdict("limit", {"limit": "subscriptions_max", "value": SUBSCRIPTIONS_MAX})
    owed = [] if refusal else _owed(table, channel, place)
    table.say(talker.kind, "subscribe", channel.name, place)
    (told,) = await talker.ask(Request({"op": "subscribe", "channel": channel.name, **place}, owed=owed))
    if refusal:
        judge_verdict(told, refusal, place)
        return
    judge_verdict(told, Verdict(details={"offset": channel.head, "epoch": table.epoch}), place)
    talker.subscriptions[channel.name] = place["state"]
    await table.settle()


async def unsubscribe(table: Table) -> None:
    """A talker ends a subscription, or what is none."""
    await table.settle()
    talker = table.chance.choice(table.talkers)
    channel = table.chance.choice(draws.CHANNELS)
    table.say(talker.kind, "unsubscribe", channel)
    (told,) = await talker.ask(Request({"op": "unsubscribe", "channel": channel}))
    judge_verdict(told, Verdict(), "unsubscribe")
    talker.subscriptions.pop(channel, None)


async def follow(table: Table) -> None:
    """Somebody follows a channel's events, new or as one who comes back; or one of many goes."""
    chance = table.chance
    await table.settle()
    if len(table.followers) >= FOLLOWERS_MAX:
        await table.followers.pop(0).stream.aclose()
        return
    channel = table.model.channel(chance.choice(draws.CHANNELS))
    place = _draw_place(table, channel)
    name = chance.choice(draws.NAMES)
    asked = place | {"state": "true" if place["state"] else "false", "name": name}
    mark = f"@{table.epoch}" if "epoch" in place else ""
    headers: dict[str, str] = {}
    if chance.random() < 0.3:
        offset = chance.choice([0, channel.head, chance.randrange(channel.head + 1), channel.head + 2])
        came_with = chance.choice([table.epoch, FOREIGN]) if mark else None
        headers["last_event_id"] = f"{offset}@{came_with}" if came_with else str(offset)
        place = {"since": offset, "epoch": came_with or table.epoch, "state": place["state"]}
    path = f"{path_of(channel.name)}/events?{urlencode(asked)}"
    table.say("GET", path, headers)
    events = await open_events(table.server, path, **headers)
    table.owned(events.stream)
    follower = Follower(events, channel.name, mark, table.model, state=place["state"])
    follower.name = name
    table.followers.append(follower)
    position = None if "since" in place else max(channel.head - place.get("last", 0), channel.trimmed)
    await follower.begin(channel.head, position)
    follower.owed += _owed(table, channel, place)
    await table.settle()


async def presence(table: Table) -> None:
    """Who is in a channel: connections, and producers once however often they are connected, under any of their names.

    A connection's end is seen a moment later, so that it may take some asking.
    """
    await table.settle()
    talker, channel = table.chance.choice(table.talkers), table.chance.choice(draws.CHANNELS)
    there = [player for player in table.players if channel in player.subscriptions]
    producers = {player.producer for player in there if isinstance(player, Talker)} - {None}
    names = Counter(player.name for player in there if not (isinstance(player, Talker) and player.producer))
    table.say(talker.kind, "presence", channel)
    while True:
        (told,) = await talker.ask(Request({"op": "presence", "channel": channel}))
        members = told.fields["members"]
        ids = [member["member"] for member in members]
        same((ids, told.fields["more"]), (sorted(set(ids)), False), "the members, once and in order")
        unseen = names - Counter(member.get("name") for member in members)
        if not unseen and len(members) == names.total() + len(producers):
            return
