"""Plain sockets: sending without waiting, and telling a lost peer from a slow one."""

import socket
import struct
from collections.abc import Iterator

import pytest
import trio

from trisync.settings import Settings
from trisync.sockets import SocketStream, configure


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            yield ours, theirs


class SocketWithInfo:
    """A socket of which the kernel says this: retransmits, unanswered probes, milliseconds since the last ACK."""

    def __init__(self, retransmits: int, probes: int, last_ack_ms: int) -> None:
        # As <linux/tcp.h> lays struct tcp_info out: eight bytes, then numbers of four, the thirteenth last.
        self._info = struct.pack("=8B13I", 1, 0, retransmits, probes, 0, 0, 0, 0, *([7] * 12), last_ack_ms)

    def setblocking(self, flag: bool) -> None:
        pass

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self._info[:size]


@pytest.mark.parametrize(
    ("retransmits", "probes", "last_ack_ms", "lost"),
    [
        (0, 0, 10**6, False),  # nothing was sent: silence says nothing
        (3, 0, 40_000, True),  # sent again and again, and never acknowledged
        (0, 3, 40_000, True),  # a closed window whose owner no longer answers
        (0, 1, 119_000, False),  # a closed window that was probed just now: probes are up to two minutes apart
        (5, 0, 20_000, False),  # not for long enough
    ],
)
def test_a_peer_is_lost_when_it_answers_nothing_for_long(
    retransmits: int, probes: int, last_ack_ms: int, lost: bool
) -> None:
    stream = SocketStream(SocketWithInfo(retransmits, probes, last_ack_ms))  # type: ignore[arg-type]
    assert stream.peer_is_lost(30.0) is lost


def test_the_kernels_own_answer_about_a_living_peer_is_understood(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stream = SocketStream(ours)
    stream.try_send(b"x")
    assert theirs.recv(1) == b"x"
    assert not stream.peer_is_lost(0.0)


def test_an_accepted_socket_has_what_the_listening_one_was_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configure(listener, Settings(tcp_keepalive_s=47))
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 47
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


async def test_what_does_not_fit_is_said_and_the_rest_can_be_waited_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = SocketStream(pair[0]), SocketStream(pair[1])
    data = bytes(range(256)) * 100_000
    sent = ours.try_send(data)
    assert 0 < sent < len(data)

    def fill() -> None:
        nonlocal sent
        while True:
            sent += ours.try_send(data[sent:])

    with pytest.raises(BlockingIOError):
        fill()
    received = bytearray()

    async def receive() -> None:
        while len(received) < len(data):
            received.extend(await theirs.receive_some(65536))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await ours.send_all(data[sent:])
    assert received == data


async def test_a_closed_stream_wakes_who_waits_on_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours = SocketStream(pair[0])

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_a_peer_that_reset_the_connection_is_a_broken_stream(pair: tuple[socket.socket, socket.socket]) -> None:
    ours = SocketStream(pair[0])
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"x")
