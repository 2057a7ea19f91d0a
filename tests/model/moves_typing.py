"""Moves of a person at the console."""

import json

from tests.model import draws
from tests.model.model import BYTES_MAX, KEYS_MAX, Publish
from tests.model.table import Table
from tests.model.told import same

WORDS = ("hello", "//slash", "a  b", "ünï😀", "tab\there", "trail   ", "{json", '"q"')
VALUES = ("5", "text here", "null", '{"a": 1}', "nul", '"s"')
KEYS = ("k", "ü/1", "%41", "k2", "+")


async def typing(table: Table) -> None:
    """A person types a line, and reads what comes of it."""
    await table.settle()
    person = table.person
    if not person.subscriptions:
        await person.type("/get nothing")  # so that no first line begins with a brace
        await person.reads("* nothing there")
    move = table.chance.choice([_say, _say, _set, _set, _join, _name, _history, _get])
    await move(table)
    await table.settle()


async def _say(table: Table) -> None:
    words = table.chance.choice(WORDS)
    table.say("a person says", words)
    await table.person.type(words)
    text = words.rstrip().removeprefix("/") if words.startswith("//") else words.rstrip()
    await _publish(table, Publish(table.person.channel, json.dumps(text, ensure_ascii=False)))


async def _set(table: Table) -> None:
    key, value = table.chance.choice(KEYS), table.chance.choice(VALUES)
    table.say("a person types /set", key, value)
    await table.person.type(f"/set {key} {value}")
    try:
        json.loads(value)
    except ValueError:
        value = json.dumps(value)
    await _publish(table, Publish(table.person.channel, value, key))


async def _publish(table: Table, publish: Publish) -> None:
    verdict, message = table.model.publish(publish, table.person.name, None)
    table.deliver(message)
    if message is None:
        same(verdict.code, "limit", publish)
        await table.person.reads(f"! a channel has at most {KEYS_MAX} keys (limit)")


async def _join(table: Table) -> None:
    channel = table.model.channel(table.chance.choice(draws.CHANNELS))
    last = table.chance.choice([None, 1, 3])
    table.say("a person types /join", channel.name, last)
    await table.person.type(f"/join #{channel.name} {last}" if last else f"/join {channel.name}")
    table.person.move(channel.name)
    await table.person.reads(f"* you are in #{channel.name}, which is at {channel.head}")
    table.person.owed += channel.owed(None, last, state=False, foreign=False)


async def _name(table: Table) -> None:
    name = table.chance.choice(("ann", "böb", "x y"))
    table.say("a person types /name", name)
    await table.person.type(f"/name {name}")
    await table.person.reads(f"* you are {name}")
    table.person.name = name


async def _history(table: Table) -> None:
    person, channel = table.person, table.model.channel(table.person.channel)
    count = table.chance.choice([1, 5])
    messages = list(channel.log.values())[-count:]
    if sum(len(message.value.text) + 300 for message in messages) > BYTES_MAX:
        return  # not all of them would come
    table.say("a person types /history", count)
    await person.type(f"/history {count}")
    if channel.trimmed and len(messages) == len(channel.log):
        await person.reads(f"* messages 1 to {channel.trimmed} are gone")
    for message in messages:
        await person.reads_message(message)
    if not messages:
        await person.reads("* nothing yet")


async def _get(table: Table) -> None:
    person, key = table.person, table.chance.choice(KEYS)
    word = table.model.channel(person.channel).words.get(key)
    table.say("a person types /get", key)
    await person.type(f"/get {key}")
    if word is None:
        await person.reads("* nothing there")
        return
    line = await person.read()
    same(line[: len(key) + 3], f"{key} = ", "the console")
    person.judge_shown(line[len(key) + 3 :], word)
