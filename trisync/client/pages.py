"""What is read page by page, without following it. Each page is of its own moment."""

from typing import Any

from trisync.client.machine import Machine
from trisync.client.receipts import ask
from trisync.client.wire import Member, Word


async def read_words(machine: Machine, channel: str) -> dict[str, Word]:
    """The words on all keys of a channel, by key in the order of their UTF-8 bytes. Raises as ask()."""
    words: dict[str, Word] = {}
    fields: dict[str, Any] = {"channel": channel}
    epoch = None
    while True:
        page = await ask(machine, "state", fields)
        if epoch not in (None, page.epoch):  # a backup was restored meanwhile
            words.clear()
            epoch, fields = None, {"channel": channel}
            continue
        epoch = page.epoch
        words |= page.entries
        if not page.more:
            return words
        fields["after"] = next(reversed(words))


async def read_members(machine: Machine, channel: str) -> list[Member]:
    """Who is in a channel. Raises as ask()."""
    members: list[Member] = []
    fields: dict[str, Any] = {"channel": channel}
    while True:
        page = await ask(machine, "presence", fields)
        members += page.members
        if not page.more:
            return members
        fields["after"] = members[-1].member
