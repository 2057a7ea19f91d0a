"""The outbox: order whatever the stream takes, a bounded backlog, and what a dead stream means."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MemorySendStream, memory_stream_pair, wait_all_tasks_blocked

from trisync.core.outbox import WRITE_BYTES, DirectStream, Outbox, offer_to_all

MARK = 100


class FakeStream(DirectStream):
    """A stream that takes so many bytes at once, and more when a test lets it."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.taken = bytearray()
        self.dead = False
        self.sends: list[int] = []
        self._more = trio.Event()

    def take(self, room: int) -> None:
        """Have room for so many bytes more."""
        self.room += room
        self._more.set()
        self._more = trio.Event()

    def die(self) -> None:
        """Take nothing ever again."""
        self.dead = True
        self.take(0)

    def try_send(self, data: bytes | memoryview) -> int:
        if self.dead:
            raise BrokenPipeError
        size = min(self.room, len(data))
        if not size:
            raise BlockingIOError
        self.taken += data[:size]
        self.room -= size
        return size

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sends.append(len(data))
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.try_send(rest) :]
            except BlockingIOError:
                await self._more.wait()
            except BrokenPipeError:
                raise trio.BrokenResourceError from None

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        return b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class World:
    """An outbox over a stream, and what it asked of its owner."""

    def __init__(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        self.tasks = 0
        self.breaks = 0
        self.nursery = nursery
        self.outbox = Outbox(stream, MARK, self)

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        self.tasks += 1
        self.nursery.start_soon(work)

    def broke(self) -> None:
        self.breaks += 1


@asynccontextmanager
async def outbox_over(stream: trio.abc.Stream) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(stream, nursery)
        nursery.cancel_scope.cancel()


async def test_what_the_stream_takes_at_once_needs_no_task() -> None:
    stream = FakeStream(room=1000)
    async with outbox_over(stream) as world:
        for word in (b"one ", b"two ", b"three"):
            assert world.outbox.offer(word)
        assert (bytes(stream.taken), world.outbox.backlog, world.tasks) == (b"one two three", 0, 0)
        await world.outbox.flush()
        await world.outbox.room()


async def test_order_is_kept_when_the_stream_takes_a_part_only() -> None:
    stream = FakeStream(room=3)
    async with outbox_over(stream) as world:
        world.outbox.write(b"abcdef")
        world.outbox.write(b"ghi")
        assert (bytes(stream.taken), world.outbox.backlog, world.tasks) == (b"abc", 6, 1)
        stream.room = 100  # there would be room, but others are before
        world.outbox.write(b"jkl")
        assert bytes(stream.taken) == b"abc"
        await world.outbox.flush()
        assert (bytes(stream.taken), world.outbox.backlog) == (b"abcdefghijkl", 0)


@pytest.mark.parametrize("step", [1, 2, 7, 50])
async def test_nothing_is_lost_or_doubled_however_little_the_stream_takes(step: int) -> None:
    stream = FakeStream(room=step)
    written = b""
    async with outbox_over(stream) as world:
        for number in range(40):
            piece = f"<{number}>".encode()
            world.outbox.write(piece)
            written += piece
            if number % 3 == 0:
                stream.take(step)
            if number % 5 == 0:
                await wait_all_tasks_blocked()
        while world.outbox.backlog:
            assert len(stream.taken) + world.outbox.backlog >= len(written)
            stream.take(step)
            await wait_all_tasks_blocked()
        assert bytes(stream.taken) == written
        stream.take(100)
        world.outbox.write(b"!")
        assert bytes(stream.taken) == written + b"!"


async def test_one_writer_task_at_a_time() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        for _ in range(10):
            world.outbox.write(b"x")
        assert world.tasks == 1
        stream.take(10)
        await world.outbox.flush()
        await wait_all_tasks_blocked()
        stream.room = 0
        world.outbox.write(b"y")
        assert world.tasks == 2


async def test_small_pieces_of_the_backlog_are_sent_together() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        for _ in range(1000):
            world.outbox.write(b"x" * 600)
        stream.take(600_000)
        await world.outbox.flush()
        assert len(stream.taken) == 600_000
        assert len(stream.sends) <= 600_000 // WRITE_BYTES + 2
        assert max(stream.sends) <= WRITE_BYTES


async def test_an_offer_is_refused_past_the_mark_and_a_reply_is_not() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        assert world.outbox.offer(b"x" * MARK)
        assert not world.outbox.over
        assert world.outbox.offer(b"y")  # at the mark, not past it
        assert world.outbox.over
        assert not world.outbox.offer(b"refused")
        assert world.outbox.backlog == MARK + 1
        world.outbox.write(b"reply")
        stream.take(1000)
        await world.outbox.flush()
        assert bytes(stream.taken) == b"x" * MARK + b"y" + b"reply"
        assert world.outbox.offer(b"again")


async def test_what_waits_is_the_one_object_that_all_others_have_in_their_queues_too() -> None:
    async with outbox_over(FakeStream()) as world:
        message = b"one of a million"
        for _ in range(2):
            world.outbox.write(message)
            offer_to_all([world.outbox], message)
        assert world.outbox._queue is not None
        assert all(piece is message for piece in world.outbox._queue)


async def test_what_is_offered_to_all_each_takes_as_it_can() -> None:
    rooms = {"all": 1000, "a part": 4, "none": 0, "past its mark": 0, "closed": 0, "dead": 0}
    streams = {name: FakeStream(room) for name, room in rooms.items()}
    async with trio.open_nursery() as nursery:
        worlds = {name: World(stream, nursery) for name, stream in streams.items()}
        worlds["past its mark"].outbox.write(b"x" * (MARK + 1))
        worlds["closed"].outbox.close()
        streams["dead"].die()
        refused = offer_to_all([world.outbox for world in worlds.values()], b"to you all")
        assert refused == {worlds["past its mark"].outbox}
        assert offer_to_all([worlds["a part"].outbox, worlds["none"].outbox], b", again") == set()
        assert bytes(streams["a part"].taken) == b"to y", "what waits goes first"
        for name in ("a part", "none", "past its mark", "closed"):
            streams[name].take(1000)
        for world in worlds.values():
            await world.outbox.flush()
        assert {name: bytes(stream.taken) for name, stream in streams.items()} == {
            "all": b"to you all",
            "a part": b"to you all, again",
            "none": b"to you all, again",
            "past its mark": b"x" * (MARK + 1),
            "closed": b"",
            "dead": b"",
        }
        assert [name for name, world in worlds.items() if world.breaks] == ["dead"]
        assert offer_to_all([worlds["a part"].outbox], b"!") == set()
        assert (bytes(streams["a part"].taken)[-1:], worlds["a part"].tasks) == (b"!", 1), "sent at once, as before"


async def test_room_is_when_half_of_the_backlog_is_gone_and_flush_when_all_is() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        done: list[str] = []

        async def wait(name: str, waiting: Callable[[], Awaitable[None]]) -> None:
            await waiting()
            done.append(name)

        world.outbox.write(b"a" * 90)
        await wait_all_tasks_blocked()  # the first piece is under way alone
        world.outbox.write(b"b" * 40)
        for _ in range(2):
            world.nursery.start_soon(wait, "room", world.outbox.room)
        world.nursery.start_soon(wait, "flush", world.outbox.flush)
        await wait_all_tasks_blocked()
        assert done == []
        stream.take(90)
        await wait_all_tasks_blocked()
        assert (done, world.outbox.backlog) == (["room", "room"], 40)
        stream.take(40)
        await wait_all_tasks_blocked()
        assert done == ["room", "room", "flush"]


async def test_a_dead_stream_is_told_once_and_everything_is_dropped() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        world.outbox.write(b"lost")
        await wait_all_tasks_blocked()
        world.outbox.write(b"lost too")
        world.nursery.start_soon(world.outbox.flush)
        world.nursery.start_soon(world.outbox.room)
        stream.die()
        await world.outbox.flush()
        assert (world.breaks, world.outbox.backlog) == (1, 0)
        world.outbox.write(b"more")
        assert world.outbox.offer(b"more")  # taken, and dropped: a subscriber need not read on for it
        await world.outbox.flush()
        await wait_all_tasks_blocked()
        assert (world.breaks, world.outbox.backlog, bytes(stream.taken)) == (1, 0, b"")


async def test_a_stream_found_dead_at_the_direct_try_is_told_once() -> None:
    stream = FakeStream(room=5)
    stream.die()
    async with outbox_over(stream) as world:
        world.outbox.write(b"x")
        world.outbox.write(b"y")
        assert (world.breaks, world.tasks, world.outbox.backlog) == (1, 0, 0)


async def test_closed_it_takes_nothing_more_and_sends_what_it_took() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        world.outbox.write(b"taken")
        world.outbox.close()
        world.outbox.write(b"too late")
        stream.take(100)
        await world.outbox.flush()
        assert bytes(stream.taken) == b"taken"


async def test_closed_it_lets_nobody_wait_for_room_that_will_not_come() -> None:
    async with outbox_over(FakeStream()) as world:
        world.outbox.write(b"x" * (MARK + 1))
        assert not world.outbox.offer(b"too much")
        world.outbox.close()
        assert world.outbox.offer(b"dropped")
        assert world.outbox.backlog == MARK + 1


async def test_nothing_to_send_is_nothing() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        world.outbox.write(b"")
        assert (world.outbox.backlog, world.tasks) == (0, 0)
        await world.outbox.flush()


async def test_a_stream_that_cannot_send_directly_is_written_to_by_a_task() -> None:
    ours, theirs = memory_stream_pair()
    async with outbox_over(ours) as world:
        for word in (b"one ", b"two ", b"three"):
            world.outbox.write(word)
        assert (world.tasks, world.outbox.backlog) == (1, 13)
        await world.outbox.flush()
        assert bytes(await theirs.receive_some()) == b"one two three"
        assert world.tasks == 1


async def test_a_stream_that_its_owner_closed_counts_as_dead() -> None:
    ours, _ = memory_stream_pair()
    assert isinstance(ours.send_stream, MemorySendStream)
    async with outbox_over(ours) as world:
        await ours.aclose()
        world.outbox.write(b"x")
        await world.outbox.flush()
        assert world.breaks == 1


async def test_who_waits_for_room_can_be_cancelled() -> None:
    stream = FakeStream()
    async with outbox_over(stream) as world:
        world.outbox.write(b"x" * 200)
        with trio.CancelScope() as scope:
            scope.cancel()
            await world.outbox.room()
        assert scope.cancelled_caught
        stream.take(200)
        await world.outbox.flush()
        assert len(stream.taken) == 200
