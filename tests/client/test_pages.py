"""What is read page by page, over whatever happens between two pages."""

from random import Random
from typing import Any

import pytest
import trio
from msgspec import Raw

from trisync.client import Word, pages
from trisync.client.machine import Machine
from trisync.client.wire import Ok


async def test_a_state_is_read_anew_where_a_backup_was_restored_between_two_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def page(epoch: str, key: str, *, more: bool) -> Ok:
        return Ok(epoch=epoch, entries={key: Word(1, Raw(b"1"))}, more=more)

    answers = [page("old", "a", more=True), page("new", "b", more=False), page("new", "a", more=False)]
    asked: list[dict[str, Any]] = []

    async def answer(machine: Machine, op: str, fields: dict[str, Any]) -> Ok:
        asked.append({"op": op, **fields})
        return answers[len(asked) - 1]

    machine = Machine(producer="p" * 16, timer=trio.current_time, random=Random(1))
    monkeypatch.setattr(pages, "ask", answer)
    assert list(await pages.read_words(machine, "doc")) == ["a"]
    first = {"op": "state", "channel": "doc"}
    assert asked == [first, {**first, "after": "a"}, first]
