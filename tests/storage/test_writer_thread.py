"""The writer's thread: what it returns and raises, and what cancellation leaves behind. Real threads."""

import signal
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from trisync.storage.writer_thread import WriterThread


@pytest.fixture
def thread() -> Iterator[WriterThread]:
    thread = WriterThread()
    yield thread
    thread.close()


async def test_calls_run_in_one_thread_that_is_not_the_loops(thread: WriterThread) -> None:
    threads = {await thread(threading.get_ident) for _ in range(100)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_call_that_raises_leaves_the_thread_ready_for_the_next_one(thread: WriterThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread(lambda: 1 // 0)
    assert await thread(lambda: 1 // 1) == 1


async def test_the_loop_goes_on_while_a_call_runs(thread: WriterThread) -> None:
    held = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread, held.wait)
        await trio.testing.wait_all_tasks_blocked()
        held.set()


async def test_a_call_that_has_begun_runs_to_its_end_though_it_is_cancelled(thread: WriterThread) -> None:
    held = threading.Event()
    done: list[int] = []

    def call() -> None:
        held.wait()
        done.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread, call)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        held.set()
    assert done == [1]
    assert await thread(lambda: 2) == 2


async def test_a_call_whose_caller_is_cancelled_already_is_not_made(thread: WriterThread) -> None:
    done: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await thread(lambda: done.append(1))
    assert scope.cancelled_caught
    assert not done


async def test_a_signal_that_comes_to_the_thread_does_not_end_it(thread: WriterThread) -> None:
    """The kernel gives a process's signal to any thread, as when a second one comes before the first is handled."""
    number = await thread(threading.get_ident)
    usual = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        for _ in range(200):
            signal.pthread_kill(number, signal.SIGUSR1)
            await trio.lowlevel.checkpoint()
        assert thread._thread.is_alive()
        assert await thread(lambda: 2) == 2
    finally:
        signal.signal(signal.SIGUSR1, usual)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    thread = WriterThread()
    assert threading.active_count() == before + 1
    thread.close()
    assert threading.active_count() == before
