"""Sockets that are read without waking their tasks: who takes what comes, who is woken, what an end leaves behind."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import trio
import trio.testing

from trisync.doors.poller import SWEEP_BYTES, Poller
from trisync.doors.sockets import SocketStream

Pair = tuple[SocketStream, socket.socket]


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        with ours, theirs:
            yield ours, theirs


@pytest.fixture
async def polled(sockets: tuple[socket.socket, socket.socket]) -> AsyncIterator[Pair]:
    poller = Poller()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        stream = SocketStream(sockets[0], poller)
        yield stream, sockets[1]
        await stream.aclose()
        nursery.cancel_scope.cancel()
    poller.close()


class Taker:
    """Takes what comes until it has had enough; tells a test what came, and whose task ran at the time."""

    def __init__(self, enough: bytes = b"") -> None:
        self.enough = enough
        self.taken: list[bytes] = []
        self.tasks: set[str] = set()
        self._came = trio.Event()

    def __call__(self, chunk: bytes) -> bool:
        self.taken.append(chunk)
        self.tasks.add(trio.lowlevel.current_task().name)
        self._came.set()
        self._came = trio.Event()
        return bool(chunk) and chunk != self.enough

    async def more(self) -> None:
        with trio.fail_after(10):
            await self._came.wait()


async def test_sockets_that_are_ready_together_share_what_one_sweep_reads() -> None:
    with closing(Poller()) as poller, ExitStack() as stack:
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(2)]
        shares: list[int] = []
        read = trio.Event()

        def watch(ours: socket.socket) -> None:
            def ready(bytes_max: int) -> None:
                shares.append(bytes_max)
                if ours.recv(bytes_max) == b"last":
                    read.set()

            poller.watch(ours.fileno(), ready)

        for ours, theirs in pairs:
            theirs.send(b"x")
            watch(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            await trio.testing.wait_all_tasks_blocked()
            pairs[0][1].send(b"last")
            with trio.fail_after(10):
                await read.wait()
            nursery.cancel_scope.cancel()
        assert shares == [SWEEP_BYTES // 2, SWEEP_BYTES // 2, SWEEP_BYTES]


async def test_who_can_be_read_by_the_end_of_a_sweep_is_told_in_it_and_nobody_twice() -> None:
    with closing(Poller()) as poller, ExitStack() as stack:
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(3)]
        told: list[int] = []
        told_at_turns: list[int] = []

        def watch(place: int) -> None:
            def ready(bytes_max: int) -> None:
                told.append(place)
                if place < 2:
                    pairs[place + 1][1].send(b"x")
                if len(told) >= 3:
                    pairs[place][0].recv(bytes_max)

            poller.watch(pairs[place][0].fileno(), ready)

        for place in range(3):
            watch(place)
        pairs[0][1].send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            with trio.fail_after(10):
                while len(told) < 5:
                    told_at_turns.append(len(told))
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert told[:3] == [0, 1, 2]
        assert set(told_at_turns) <= {0, 3, 4}, "others had no turn between the three"


async def ends(work: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(10):
        await work()


async def test_chunks_are_taken_while_the_reader_sleeps_until_it_has_had_enough(polled: Pair) -> None:
    stream, peer = polled
    take = Taker(enough=b"three")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.hand_on, take)
        for word in (b"one", b"two", b"three"):
            await trio.testing.wait_all_tasks_blocked()
            peer.send(word)
            await take.more()
    assert take.taken == [b"one", b"two", b"three"]
    assert all("Poller.run" in name for name in take.tasks)


async def test_what_came_while_nobody_read_is_there_when_somebody_does(polled: Pair) -> None:
    stream, peer = polled
    first, second = Taker(enough=b"one"), Taker(enough=b"two")
    peer.send(b"one")
    await ends(lambda: stream.hand_on(first))
    peer.send(b"two")
    await trio.testing.wait_all_tasks_blocked()  # the poller saw it, and that nobody wants it
    await ends(lambda: stream.hand_on(second))
    assert (first.taken, second.taken) == ([b"one"], [b"two"])


async def test_the_two_ways_of_reading_go_together(polled: Pair) -> None:
    stream, peer = polled
    for word in (b"one", b"two", b"three"):
        peer.send(word)
        await ends(lambda word=word: stream.hand_on(Taker(enough=word)))  # type: ignore[misc]
        peer.send(b"else")
        with trio.fail_after(10):
            assert await stream.receive_some() == b"else"


async def test_the_end_is_an_empty_chunk(polled: Pair) -> None:
    stream, peer = polled
    take = Taker()
    peer.send(b"last")
    peer.shutdown(socket.SHUT_WR)
    await ends(lambda: stream.hand_on(take))
    assert b"".join(take.taken) == b"last"
    assert take.taken[-1] == b""


async def test_a_reset_is_a_broken_stream(polled: Pair) -> None:
    stream, peer = polled
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    with pytest.raises(trio.BrokenResourceError):
        await ends(lambda: stream.hand_on(Taker()))


async def test_what_the_taker_raises_comes_out_in_the_readers_task_and_harms_no_other(polled: Pair) -> None:
    stream, peer = polled

    def fail(chunk: bytes) -> bool:
        raise ZeroDivisionError

    peer.send(b"x")
    with pytest.raises(ZeroDivisionError):
        await ends(lambda: stream.hand_on(fail))
    peer.send(b"y")
    await ends(lambda: stream.hand_on(Taker(enough=b"y")))


async def test_a_cancelled_reader_loses_nothing(polled: Pair) -> None:
    stream, peer = polled
    unused = Taker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.hand_on, unused)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    peer.send(b"x")
    await ends(lambda: stream.hand_on(Taker(enough=b"x")))
    assert unused.taken == []


async def test_a_taker_may_cancel_the_reader_that_it_takes_for(polled: Pair) -> None:
    stream, peer = polled
    peer.send(b"x")
    with trio.CancelScope() as scope:

        def leave(chunk: bytes) -> bool:
            scope.cancel()
            return False

        await ends(lambda: stream.hand_on(leave))
    assert scope.cancelled_caught


async def test_a_closed_stream_cannot_be_read(polled: Pair) -> None:
    stream, peer = polled
    peer.send(b"x")
    await ends(lambda: stream.hand_on(Taker(enough=b"x")))
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ends(lambda: stream.hand_on(Taker()))
