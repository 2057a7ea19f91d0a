"""The model of a disk: what a power cut may leave of writes that were not synced, and what it may not touch."""

import random
from collections.abc import Iterator

from tests.torture.disk import SECTOR_BYTES, Create, Delete, Disk, Event, Sync, Truncate, Write


def left_by(files: dict[str, bytes], *events: Event) -> list[dict[str, bytes]]:
    """What may be left, by hundreds of power cuts."""
    disk = Disk(files)
    for event in events:
        disk.apply(event)
    return [disk.after_power_cut(random.Random(seed)) for seed in range(500)]


def contents(images: list[dict[str, bytes]], name: str = "a") -> set[bytes | None]:
    return {image.get(name) for image in images}


def test_what_is_synced_stays() -> None:
    assert contents(left_by({"a": b"old"}, Write("a", 0, b"new"), Sync("a"))) == {b"new"}


def test_what_is_not_synced_may_be_there_or_not() -> None:
    assert contents(left_by({"a": b"old"}, Write("a", 0, b"new"))) == {b"old", b"new"}


def test_of_two_writes_the_later_may_survive_alone_and_leaves_a_hole() -> None:
    left = contents(left_by({"a": b""}, Write("a", 0, b"x"), Write("a", 1, b"y")))
    assert left == {b"", b"x", b"xy", b"\0y"}


def test_a_sync_of_one_file_is_none_of_another() -> None:
    left = left_by({"a": b"1", "b": b"1"}, Write("a", 0, b"2"), Write("b", 0, b"2"), Sync("b"))
    assert contents(left, "a") == {b"1", b"2"}
    assert contents(left, "b") == {b"2"}


def test_a_write_is_torn_between_sectors_and_damages_nothing_beside_it() -> None:
    old, new = b"o" * 3 * SECTOR_BYTES, b"n" * (2 * SECTOR_BYTES)
    left = contents(left_by({"a": old}, Write("a", 100, new)))
    assert len(left) == 8  # the write is in three sectors, of which each may be there
    for content in left:
        assert content is not None
        assert content[:100] == b"o" * 100
        assert content[100 + len(new) :] == old[100 + len(new) :]
        for start, end in sectors(100, len(new)):
            assert content[start:end] in (old[start:end], b"n" * (end - start))


def sectors(offset: int, size: int) -> Iterator[tuple[int, int]]:
    end = offset + size
    while offset < end:
        until = min(end, (offset // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield offset, until
        offset = until


def test_a_truncation_may_be_lost_though_a_later_write_is_not() -> None:
    left = contents(left_by({"a": b"123"}, Truncate("a", 0), Write("a", 0, b"4")))
    assert left == {b"123", b"", b"4", b"423"}


def test_a_new_file_may_be_missing_until_it_is_synced() -> None:
    assert contents(left_by({}, Create("a"), Write("a", 0, b"x"))) == {None, b"", b"x"}
    assert contents(left_by({}, Create("a"), Write("a", 0, b"x"), Sync("a"))) == {b"x"}


def test_a_file_deleted_may_come_back_unless_its_folder_was_synced() -> None:
    assert contents(left_by({"a": b"x"}, Delete("a", durable=False))) == {None, b"x"}
    assert contents(left_by({"a": b"x"}, Delete("a", durable=True))) == {None}


def test_a_file_made_anew_under_a_name_is_another_one() -> None:
    left = contents(left_by({"a": b"old"}, Delete("a", durable=False), Create("a"), Write("a", 0, b"new")))
    assert left == {b"old", None, b"", b"new"}


def test_whether_there_is_something_to_lose_is_known() -> None:
    disk = Disk({"a": b""})
    assert not disk.unsynced
    disk.apply(Write("a", 0, b"x"))
    assert disk.unsynced
    disk.apply(Sync("a"))
    assert not disk.unsynced
    disk.apply(Create("b"))
    assert disk.unsynced
