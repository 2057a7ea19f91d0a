"""A few of the power cuts that tools/torture.py makes hundreds of, and what must be found in worse logs than ours."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.torture.disk import Create, Event, Sync, Write
from tests.torture.powercut import Durability, cut_power
from tests.torture.powercut_vfs import recording
from trisync.storage import sqlite_opening
from trisync.storage.sqlite_opening import write_meta


def quietly(done: int, problems: Sequence[str]) -> None:
    """Nobody watches."""


async def test_under_full_a_power_cut_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    totals = await cut_power(50, tmp_path, 1, "full", quietly)
    assert totals.problems == []
    assert totals.acknowledged > 4000
    assert totals.unsynced > 30
    assert sum(totals.lost) == 0


async def test_under_normal_a_power_cut_takes_the_newest_and_the_epoch_tells(tmp_path: Path) -> None:
    totals = await cut_power(50, tmp_path, 1, "normal", quietly)
    assert totals.problems == []
    assert sum(totals.lost) > 500


async def found(tmp_path: Path, durability: Durability, *, lying: bool = False) -> str:
    """The problems that are found."""
    totals = await cut_power(50, tmp_path, 1, durability, quietly, lying=lying)
    return "; ".join(totals.problems)


async def test_a_disk_that_lies_is_found_out(tmp_path: Path) -> None:
    assert "messages were acknowledged, 0 are there" in await found(tmp_path, "full", lying=True)
    damage = await found(tmp_path, "normal", lying=True)
    assert "malformed" in damage or "integrity_check" in damage  # by whichever page was lost


async def test_a_log_that_syncs_too_little_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = sqlite_opening.open_writer

    def open_careless_writer(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = really(*arguments, **options)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    monkeypatch.setattr("trisync.storage.sqlite_log.open_writer", open_careless_writer)
    assert "messages were acknowledged" in await found(tmp_path, "full")


async def test_a_loss_that_no_epoch_tells_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renew_nothing(connection: sqlite3.Connection, tokens: Any) -> None:
        write_meta(connection, "epoch", "always the same")

    monkeypatch.setattr(sqlite_opening, "renew_epoch", renew_nothing)
    assert "the epoch is still always the same" in await found(tmp_path, "normal")


def test_what_pythons_sqlite_does_is_recorded_and_afterwards_no_more(tmp_path: Path) -> None:
    events: list[Event] = []
    with recording(events):
        write_to(tmp_path / "a.db")
    assert events[0] == Create("a.db")
    assert Sync("a.db") in events
    kept = b"".join(event.data for event in events if isinstance(event, Write) and event.file == "a.db")
    assert kept == (tmp_path / "a.db").read_bytes()
    count = len(events)
    write_to(tmp_path / "b.db")
    assert len(events) == count


def write_to(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE words (word)")
