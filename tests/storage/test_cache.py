"""The caches of encoded runs and of states: what they find, and that they stay within their bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.storage.cache import DROPPED_AT_ONCE, PAGE_OVERHEAD_BYTES, RunCache, StatePageCache
from trisync.storage.log import Extent, Run, StatePage
from trisync.wire.framing import CONSOLE, FRAMES, LINES, WEBSOCKET, Framing, events

TTL_S = 10.0
FRAMINGS = [LINES, FRAMES, WEBSOCKET, CONSOLE, events(b""), events(b"@mark")]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def line(channel: str, offset: int) -> bytes:
    return f'{{"op":"message","channel":"{channel}","offset":{offset},"time":1,"data":"x"}}\n'.encode()


def run_of(after: int, last: int, channel: str = "lobby") -> Run:
    return Run(channel, after, last, b"".join(line(channel, offset) for offset in range(after + 1, last + 1)))


def cache_of(bytes_max: int = 1_000_000) -> tuple[RunCache, Clock]:
    clock = Clock()
    return RunCache(bytes_max, TTL_S, clock), clock


def span(run: Run | None) -> tuple[int, int] | None:
    return None if run is None else (run.after, run.last)


def test_a_run_is_found_by_the_offset_it_begins_behind() -> None:
    cache, _ = cache_of()
    first, second = run_of(0, 5), run_of(5, 9)
    cache.add([first])
    cache.add([second])
    assert cache.find("lobby", 0) is first
    assert cache.find("lobby", 5) is second
    assert cache.find("lobby", 9) is None
    assert cache.find("kitchen", 0) is None


def test_a_batch_may_have_several_runs_of_a_channel() -> None:
    """One that met damage is stored in parts."""
    cache, clock = cache_of()
    first, second = run_of(0, 5), run_of(5, 9)
    cache.add([first, run_of(0, 1, "kitchen"), second])
    assert (cache.find("lobby", 0), cache.find("lobby", 5)) == (first, second)
    clock.now += TTL_S
    assert (cache.find("lobby", 0), len(cache), cache.size) == (None, 0, 0)


def test_a_run_that_contains_the_offset_is_cut_there_once_for_all() -> None:
    cache, _ = cache_of()
    cache.add([run_of(0, 5)])
    part = cache.find("lobby", 3)
    assert part is not None
    assert (span(part), part.lines) == ((3, 5), run_of(3, 5).lines)
    assert cache.find("lobby", 3) is part
    assert span(cache.find("lobby", 4)) == (4, 5)


def test_what_is_not_contained_is_not_found() -> None:
    cache, _ = cache_of()
    cache.add([run_of(5, 9)])
    cache.add([run_of(20, 22)])
    for after in (0, 4, 9, 10, 19, 22, 100):
        assert cache.find("lobby", after) is None, after


def test_runs_are_forgotten_when_their_time_is_over_and_the_index_with_them() -> None:
    cache, clock = cache_of()
    cache.add([run_of(0, 5)])
    clock.now += TTL_S - 1
    assert cache.find("lobby", 0) is not None
    clock.now += 1
    assert cache.find("lobby", 0) is None
    assert cache.find("lobby", 2) is None
    assert (len(cache), cache.size) == (0, 0)
    assert cache._runs == {}


def test_what_is_too_old_goes_a_few_at_a_time_when_others_come() -> None:
    cache, clock = cache_of()
    for offset in range(3 * DROPPED_AT_ONCE):
        cache.add([run_of(offset, offset + 1)])
    clock.now += TTL_S
    for left in (2, 1, 0):
        cache.add([run_of(0, 1, "other")])
        assert len(cache._runs.get("lobby", [])) == left * DROPPED_AT_ONCE


def test_the_least_recently_used_go_first() -> None:
    one = run_of(0, 5)
    cache, _ = cache_of(bytes_max=3 * one.size)
    for channel in "abc":
        cache.add([run_of(0, 5, channel)])
    cache.find("a", 0)
    cache.add([run_of(0, 5, "d")])
    assert [channel for channel in "abcd" if cache.find(channel, 0)] == ["a", "c", "d"]
    assert set(cache._runs) == {"a", "c", "d"}


def test_a_run_larger_than_the_whole_cache_is_not_kept() -> None:
    cache, _ = cache_of(bytes_max=run_of(0, 5).size)
    cache.add([run_of(0, 5)])
    cache.add([run_of(0, 50)])
    assert span(cache.find("lobby", 0)) == (0, 5)
    assert cache.find("lobby", 10) is None


def test_a_batch_is_dropped_as_a_whole_and_one_larger_than_the_cache_is_kept_in_part() -> None:
    one = run_of(0, 5)
    cache, _ = cache_of(bytes_max=3 * one.size)
    cache.add([run_of(0, 5, channel) for channel in "ab"])
    cache.add([run_of(5, 10, channel) for channel in "ac"])
    assert [channel for channel in "abc" if cache.find(channel, 0)] == []
    assert [channel for channel in "abc" if cache.find(channel, 5)] == ["a", "c"]
    cache.add([run_of(9, 14, channel) for channel in "abcd"])
    assert [channel for channel in "abcd" if cache.find(channel, 9)] == ["b", "c", "d"]
    cache.add([])
    assert len(cache) == 3


def test_a_longer_run_takes_the_place_of_one_that_begins_where_it_does() -> None:
    cache, _ = cache_of()
    cache.add([run_of(0, 5)])
    cache.add([run_of(0, 9)])
    assert span(cache.find("lobby", 0)) == (0, 9)
    assert span(cache.find("lobby", 7)) == (7, 9)


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda f: f.name)
def test_a_run_is_encoded_once_a_framing(framing: Framing) -> None:
    run = run_of(3, 6)
    assert run.encoded(framing) == framing.join(run.payloads())
    assert run.encoded(framing) is run.encoded(framing)
    assert run.payloads() == [line("lobby", offset)[:-1] for offset in (4, 5, 6)]


@pytest.mark.parametrize("begin", range(len(FRAMINGS)))
def test_a_run_counts_what_it_may_come_to_hold(begin: int) -> None:
    run = Run("lobby", 0, 100, b"".join(line("lobby", offset).replace(b"x", b"x" * 100) for offset in range(1, 101)))
    for framing in FRAMINGS[begin:] + FRAMINGS[:begin]:
        run.encoded(framing)
        held = [*run._encoded.values()]
        assert any(data is run.encoded(framing) for data in [run.lines, *held])
        assert run.size * 1.1 >= len(run.lines) + sum(map(len, held))


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_a_run_can_be_cut_at_any_offset(after: int, count: int, left: int, right: int) -> None:
    run = run_of(after, after + count)
    start = after + min(left, count - 1)
    end = start + 1 + right % (after + count - start)
    part = run.since(start).until(end)
    assert (span(part), part.lines) == ((start, end), run_of(start, end).lines)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["a", "b", "c", "ab", "bca"]), st.integers(0, 12), st.integers(1, 9)),
        st.tuples(st.just("find"), st.sampled_from("abc"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 11), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(operations, st.integers(1, 12))
def test_whatever_happens_the_bounds_hold_and_what_is_found_is_right(
    steps: list[tuple[str, str, int, int]], size: int
) -> None:
    cache, clock = cache_of(bytes_max=size * 700)
    added: dict[str, list[tuple[int, int]]] = {"a": [], "b": [], "c": []}
    for what, channel, number, count in steps:
        if what == "wait":
            clock.now += number
        elif what == "add":
            cache.add([run_of(number, number + count, each) for each in channel])
            for each in channel:
                added[each].append((number, number + count))
        else:
            run = cache.find(channel, number)
            if run is not None:
                assert run.after == number < run.last
                assert run.lines == run_of(number, run.last, channel).lines
                assert any(after <= number and last == run.last for after, last in added[channel])
        assert cache.size <= size * 700
        assert sum(run.size for there in cache._runs.values() for _, _, run in there) == cache.size
        assert all(there and there == sorted(there) for there in cache._runs.values())


# Pages of states


def page_of(size: int, head: int) -> StatePage:
    return StatePage(b"x" * size, last="", more=False, extent=Extent(head, 0))


def test_a_page_of_a_state_is_found_while_it_is_new_enough() -> None:
    clock = Clock()
    cache = StatePageCache(10_000, 5_000, TTL_S, clock)
    page = page_of(10, head=7)
    cache.add("doc", "k", page)
    assert cache.find("doc", "k", 7) is page
    assert cache.find("doc", "k", 8) is None
    assert cache.find("doc", "", 0) is cache.find("other", "k", 0) is None
    newer = page_of(10, head=8)
    cache.add("doc", "k", newer)
    assert cache.find("doc", "k", 8) is newer
    clock.now += TTL_S + 1
    assert cache.find("doc", "k", 0) is None


def test_pages_that_are_too_old_go_a_few_at_a_time_when_others_come() -> None:
    clock = Clock()
    cache = StatePageCache(1_000_000, 5_000, TTL_S, clock)
    for number in range(3 * DROPPED_AT_ONCE):
        cache.add(f"doc {number}", "", page_of(10, head=1))
    clock.now += TTL_S
    for left in (2, 1, 0):
        cache.add("other", "", page_of(10, head=1))
        assert len([*cache._pages]) == left * DROPPED_AT_ONCE + 1


def test_a_page_of_a_state_that_is_too_large_is_not_kept_and_drives_no_other_out() -> None:
    for bytes_max, page_bytes_max in ((10_000, 5_000), (5_000, 10_000)):
        cache = StatePageCache(bytes_max, page_bytes_max, TTL_S, Clock())
        cache.add("doc", "a", page_of(10, head=1))
        cache.add("doc", "b", page_of(5_001 - PAGE_OVERHEAD_BYTES, head=1))
        assert cache.find("doc", "b", 0) is None
        assert cache.find("doc", "a", 0) is not None


def test_a_state_that_was_emptied_is_forgotten_and_no_other() -> None:
    cache = StatePageCache(10_000, 5_000, TTL_S, Clock())
    for channel, after in (("doc", ""), ("doc", "k"), ("other", "")):
        cache.add(channel, after, page_of(10, head=1))
    cache.forget("doc")
    assert cache.find("doc", "", 0) is cache.find("doc", "k", 0) is None
    assert cache.find("other", "", 0) is not None
