"""Plain sockets: how they are accepted, sending without waiting, and telling a lost peer from a slow one."""

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing

import pytest
import trio
import trio.testing

from trisync.config import ConfigError, check_settings
from trisync.core.outbox import DirectStream
from trisync.doors.poller import Poller
from trisync.doors.sockets import UNSENT_BYTES, PeerListener, SocketStream, configure
from trisync.settings import KEEPALIVE_S_MAX, Settings


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            yield ours, theirs


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    with closing(Poller()) as poller:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            yield poller
            nursery.cancel_scope.cancel()


@pytest.fixture
async def listener(poller: Poller) -> AsyncIterator[PeerListener]:
    (opened,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with PeerListener(opened, Settings(), poller) as listener:
        yield listener


def connect_to(listener: PeerListener) -> socket.socket:
    return socket.create_connection(listener._sock.getsockname())


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
    with closing(Poller()) as poller:
        stream = SocketStream(SocketWithInfo(retransmits, probes, last_ack_ms), poller)  # type: ignore[arg-type]
    assert stream.peer_is_lost(30.0) is lost


async def test_the_kernels_own_answer_about_a_living_peer_is_understood(
    pair: tuple[socket.socket, socket.socket], poller: Poller
) -> None:
    ours, theirs = pair
    stream = SocketStream(ours, poller)
    stream.try_send(b"x")
    assert theirs.recv(1) == b"x"
    assert not stream.peer_is_lost(0.0)


async def test_what_a_peer_has_not_taken_is_known(pair: tuple[socket.socket, socket.socket], poller: Poller) -> None:
    async with SocketStream(pair[0], poller) as stream:
        assert stream.unacknowledged() == 0
        sent = stream.try_send(bytes(100_000_000))
        assert 0 < stream.unacknowledged() <= sent < 100_000_000
    assert stream.unacknowledged() == 0


def test_an_accepted_socket_has_what_the_listening_one_was_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configure(listener, Settings(tcp_keepalive_s=47))
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 47
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


def test_the_longest_keep_alive_that_can_be_set_is_the_longest_that_the_system_takes() -> None:
    longest, longer = (Settings(tcp_keepalive_s=seconds) for seconds in (KEEPALIVE_S_MAX, KEEPALIVE_S_MAX + 1))
    check_settings(longest)
    with pytest.raises(ConfigError, match="tcp_keepalive_s"):
        check_settings(longer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configure(listener, longest)
        with pytest.raises(OSError, match="Invalid argument"):
            configure(listener, longer)


async def test_what_does_not_fit_is_said_and_the_rest_can_be_waited_for(
    pair: tuple[socket.socket, socket.socket], poller: Poller
) -> None:
    ours, theirs = SocketStream(pair[0], poller), SocketStream(pair[1], poller)
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
    for stream in (ours, theirs):
        await stream.aclose()


async def test_a_read_takes_as_much_as_was_asked_for_and_no_more(
    pair: tuple[socket.socket, socket.socket], poller: Poller
) -> None:
    async with SocketStream(pair[0], poller) as ours:
        pair[1].sendall(b"x" * 100_000)
        assert await ours.receive_some(3) == b"xxx"
        rest = bytearray()
        while len(rest) < 100_000 - 3:
            rest += await ours.receive_some()
        pair[1].shutdown(socket.SHUT_WR)
        assert await ours.receive_some() == b""


async def test_two_tasks_may_not_read_the_same_socket(
    pair: tuple[socket.socket, socket.socket], poller: Poller
) -> None:
    read: list[bytes] = []

    async def wait() -> None:
        read.append(await ours.receive_some())

    async with SocketStream(pair[0], poller) as ours:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await ours.receive_some()
                pair[1].send(b"x")
    assert read == [b"x"]


async def test_a_closed_stream_wakes_who_waits_on_it(pair: tuple[socket.socket, socket.socket], poller: Poller) -> None:
    ours = SocketStream(pair[0], poller)

    async def wait() -> None:
        with trio.fail_after(10), pytest.raises(trio.ClosedResourceError):
            await ours.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_a_peer_that_reset_the_connection_is_a_broken_stream(
    pair: tuple[socket.socket, socket.socket], poller: Poller
) -> None:
    ours = SocketStream(pair[0], poller)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"x")
    await ours.aclose()


async def test_clients_are_accepted_as_streams(listener: PeerListener) -> None:
    with connect_to(listener) as theirs, trio.fail_after(10):
        async with await listener.accept() as ours:
            host, port = theirs.getsockname()
            assert ours.peer == f"{host}:{port}"
            theirs.sendall(b"hello")
            assert await ours.receive_some() == b"hello"
            assert ours.try_send(b"welcome") == 7
            assert theirs.recv(100) == b"welcome"


async def test_a_client_is_waited_for_and_not_lost_by_a_cancelled_wait(listener: PeerListener) -> None:
    accepted: list[DirectStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert accepted == []
    with connect_to(listener), trio.fail_after(10):
        with trio.CancelScope() as scope:
            scope.cancel()
            await accept()
        assert (scope.cancelled_caught, accepted) == (True, [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
    await accepted[0].aclose()


class Accepting:
    """A listening socket whose first few accept() fail so; `meanwhile` is called at each that does not."""

    def __init__(
        self, sock: socket.socket, failure: int, times: int = 1, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        self._sock = sock
        self._meanwhile = meanwhile
        self.failures = [failure] * times

    def accept(self) -> object:
        if self.failures:
            raise OSError(failure := self.failures.pop(), os.strerror(failure))
        self._meanwhile()
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("failure", [errno.ECONNABORTED, errno.EPROTO, errno.ENETUNREACH])
async def test_a_client_that_is_gone_before_it_is_accepted_does_not_stop_the_others(
    listener: PeerListener, failure: int
) -> None:
    with connect_to(listener), trio.fail_after(10):
        listener._sock = accepting = Accepting(listener._sock, failure)  # type: ignore[assignment]
        async with await listener.accept():
            assert accepting.failures == []


async def test_clients_that_are_all_gone_keep_nobody_else_from_running(listener: PeerListener) -> None:
    listener._sock = accepting = Accepting(listener._sock, errno.EPERM, 1_000_000)  # type: ignore[assignment]
    with trio.move_on_after(0.05):
        await listener.accept()
    assert 0 < len(accepting.failures) < 1_000_000


async def test_a_client_that_was_accepted_while_its_waiting_was_cancelled_is_not_lost(listener: PeerListener) -> None:
    with connect_to(listener), trio.fail_after(10), trio.CancelScope() as scope:
        accepting = Accepting(listener._sock, 0, 0, scope.cancel)
        listener._sock = accepting  # type: ignore[assignment]
        accepted = await listener.accept()
    await trio.aclose_forcefully(accepted)
    assert scope.cancel_called


@pytest.mark.parametrize("failure", [errno.EMFILE, errno.ENOMEM])
async def test_what_keeps_everybody_out_is_said_once_and_over_when_nobody_waits_any_more(
    listener: PeerListener, failure: int, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    _, port = listener._sock.getsockname()
    with connect_to(listener), connect_to(listener):
        listener._sock = accepting = Accepting(listener._sock, failure, 5)  # type: ignore[assignment]
        async with await listener.accept():
            accepting.failures = [failure]
            async with await listener.accept():
                assert len(caplog.messages) == 1
                with trio.move_on_after(1):
                    await listener.accept()
    assert caplog.messages == [
        f"new clients of port {port} wait: [Errno {failure}] {os.strerror(failure)}",
        f"new clients of port {port} wait no longer",
    ]


async def test_a_listener_that_cannot_accept_at_all_says_so_to_who_accepts(listener: PeerListener) -> None:
    listener._sock = Accepting(listener._sock, errno.EINVAL)  # type: ignore[assignment]
    with pytest.raises(OSError, match="Invalid argument"):
        await listener.accept()


async def test_a_closed_listener_wakes_who_waits_for_a_client(listener: PeerListener) -> None:
    async def wait() -> None:
        with trio.fail_after(10), pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await wait()
