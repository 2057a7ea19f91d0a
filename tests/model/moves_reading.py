"""Moves that read what is stored: history, state and its keys, and the list of channels, over any door."""

import json
from collections.abc import Sequence
from urllib.parse import urlencode

from tests.harness import Json
from tests.model import draws
from tests.model.calls import encoded, path_of
from tests.model.model import BYTES_MAX, Channel, Message
from tests.model.players import Request
from tests.model.table import Table
from tests.model.told import Told, judge_entries, judge_message, same

HISTORY_LIMIT = 100
"""What is meant where no limit is said."""
ENVELOPE_BYTES_MAX = 200
"""What an answer has around the messages, at most."""


async def history(table: Table) -> None:
    """A page of a channel's messages."""
    chance = table.chance
    await table.settle()
    channel = table.model.channel(chance.choice(draws.CHANNELS))
    head = channel.head
    since = chance.choice([None, 0, chance.randrange(head + 1), head, head + 5, (1 << 53) - 1])
    limit = chance.choice([None, 1, 2, 50, 1000])
    asked = {name: value for name, value in (("since", since), ("limit", limit)) if value is not None}
    if chance.random() < 0.5:
        talker = chance.choice(table.talkers)
        table.say(talker.kind, "history", channel.name, asked)
        (told,) = await talker.ask(Request({"op": "history", "channel": channel.name, **asked}))
    else:
        told = await table.get(f"{path_of(channel.name)}/messages?{urlencode(asked)}")
    page = list(channel.behind(since or 0).values())
    page = page[: limit or HISTORY_LIMIT] if since is not None else page[-(limit or HISTORY_LIMIT) :]
    _judge_history(table, told, channel, page, oldest_first=since is not None)


def _judge_history(table: Table, told: Told, channel: Channel, page: Sequence[Message], *, oldest_first: bool) -> None:
    count = len(told.messages)
    given = page[:count] if oldest_first else page[len(page) - count :]
    more = bool(given) and given[-1].offset != channel.head
    fields = {"op": "ok", "offset": channel.head, "trimmed": channel.trimmed, "epoch": table.epoch, "more": more}
    same({name: value for name, value in told.fields.items() if name != "id"}, fields, f"a history of {channel.name}")
    same(len(given), count, f"how many messages of {channel.name} there are")
    for message, wanted in zip(told.messages, given, strict=True):
        judge_message(table.model, message, wanted)
    if count < len(page):
        same(count > 0, True, "at least one message comes")
        left_out = page[count] if oldest_first else page[len(page) - count - 1]
        bytes_there = sum(map(_size, [*given, left_out])) + ENVELOPE_BYTES_MAX
        same(bytes_there > BYTES_MAX, True, f"fewer messages come only when they are large, not {count} of {len(page)}")


def _size(message: Message) -> int:
    """Of a message in an answer, at most."""
    fields = json.dumps(message.fields | {"time": 10**13}, ensure_ascii=True)
    return len(fields) + len(message.value.text.encode()) + 10


async def state(table: Table) -> None:
    """A channel's state, page by page."""
    chance = table.chance
    channel = table.model.channel(chance.choice(draws.CHANNELS))
    begin = after = chance.choice([None, None, "a", "k", "z"])
    talker = chance.choice([None, *table.talkers])
    entries: dict[str, Told] = {}
    more = True
    while more:
        asked = {} if after is None else {"after": after}
        if talker is None:
            told = await table.get(f"{path_of(channel.name)}/state?{urlencode(asked)}")
        else:
            table.say(talker.kind, "state", channel.name, asked)
            (told,) = await talker.ask(Request({"op": "state", "channel": channel.name, **asked}))
        more = told.fields["more"]
        _judge_state(table, told, channel, more=more)
        same(bool(told.entries) or not more, True, "a page has something where there are more")
        entries |= told.entries
        after = max(told.entries, key=str.encode, default=None)
    words = {key: word for key, word in channel.words.items() if begin is None or key.encode() > begin.encode()}
    judge_entries(entries, words)


def _judge_state(table: Table, told: Told, channel: Channel, *, more: bool) -> None:
    fields = {"op": "ok", "offset": channel.head, "epoch": table.epoch, "more": more}
    same({name: value for name, value in told.fields.items() if name != "id"}, fields, f"the state of {channel.name}")


async def word(table: Table) -> None:
    """One key of a state."""
    chance = table.chance
    channel = table.model.channel(chance.choice(draws.CHANNELS))
    key = chance.choice(draws.KEYS)
    if chance.random() < 0.5:
        await _word_over_http(table, channel, key)
        return
    talker = chance.choice(table.talkers)
    table.say(talker.kind, "state", channel.name, key)
    (told,) = await talker.ask(Request({"op": "state", "channel": channel.name, "key": key}))
    _judge_state(table, told, channel, more=False)
    judge_entries(told.entries, {key: channel.words[key]} if key in channel.words else {})


async def _word_over_http(table: Table, channel: Channel, key: str) -> None:
    chance = table.chance
    there = channel.words.get(key)
    tag = f'"{there.offset if there else 3}"'
    method = chance.choice(["GET", "GET", "HEAD"])
    known = chance.choice([None, None, tag, f"W/{tag}", f'"9999", {tag}', "*", '"9999"'])
    expected = chance.choice([None, None, None, tag, "*", '"9999"'])
    conditions = {"if_none_match": known, "if_match": expected}
    headers = {name: value for name, value in conditions.items() if value is not None}
    response = await table.call(method, f"{path_of(channel.name)}/state/{encoded(key)}", None, **headers)
    if there is None:
        same(response.status, 404, f"{key!r} of {channel.name}")
        return
    status = 412 if expected == '"9999"' else 304 if known not in (None, '"9999"') else 200
    same((response.status, response.headers.get("etag")), (status, tag), f"{key!r} of {channel.name}")
    if status == 200 and method == "GET":
        same(there.value.is_told_by(response.body.decode()), True, f"{key!r} is {response.body!r}, not {there}")
    elif status == 200 and there.value.verbatim:
        same(response.headers["content-length"], str(len(there.value.text.encode())), f"the length of {key!r}")


async def channels(table: Table) -> None:
    """All channels that there are, page by page."""
    chance = table.chance
    await table.settle()
    begin = after = chance.choice(["", "", "b", "lobby"])
    limit = chance.choice([1, 2, 1000])
    listed: list[Json] = []
    more = True
    while more:
        page = (await table.get(f"/channels?{urlencode({'after': after, 'limit': limit})}")).fields
        listed += page["channels"]
        more, after = page["more"], page["after"]
        same(len(page["channels"]), limit if more else len(page["channels"]), "a page that is not the last is full")
    known = sorted(channel.name for channel in table.model.channels.values() if channel.head and channel.name > begin)
    same([info["channel"] for info in listed], known, "the channels")
    for info in listed:
        channel = table.model.channel(info["channel"])
        told = info["offset"], info["trimmed"], info["bytes"] > 0
        same(told, (channel.head, channel.trimmed, bool(channel.log)), f"what is said of {channel.name}")
