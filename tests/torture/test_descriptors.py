"""No file descriptors left: who is there is served, who comes waits, and is served once there are some again."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S
from tests.torture.clients import Doors
from tests.torture.server import Server
from tests.torture.talking import HungUp, Talk, talking


@contextmanager
def crowd(doors: Doors, count: int) -> Iterator[None]:
    """So many connections that say nothing, on both doors."""
    with ExitStack() as connections:
        for number in range(count):
            door = doors["lines" if number % 2 else "ws"]
            connections.enter_context(socket.create_connection(door, timeout=PATIENCE_S))
        yield


def test_with_few_descriptors_fewer_connections_are_allowed_and_those_are_served(tmp_path: Path) -> None:
    with closing(Server(tmp_path, under=["prlimit", "--nofile=100:100"])) as server:
        doors = server.doors()
        with talking(doors) as talk:
            assert talk.request("publish", channel="lobby", data=1)["offset"] == 1
            with crowd(doors, 100):
                with talking(doors) as late, pytest.raises(HungUp):
                    late.request("ping")
                assert talk.request("publish", channel="lobby", data=2)["offset"] == 2
                assert len(talk.request("history", channel="lobby")["messages"]) == 2
            assert served_in_the_end(doors)["offset"] == 3
        assert "only 36 connections: the limit on open files is 100" in server.said()


def served_in_the_end(doors: Doors) -> dict[str, object]:
    """Publish, as soon as there is room; the places of those who left may take a moment."""
    for _ in range(1000):
        with talking(doors) as talk:
            try:
                return talk.request("publish", channel="lobby", data="late")
            except HungUp:
                continue
    raise AssertionError("there was never room")


def test_when_there_are_no_descriptors_at_all_clients_wait_and_are_served_later(tmp_path: Path) -> None:
    with closing(Server(tmp_path)) as server:
        doors = server.doors()
        with talking(doors) as talk:
            assert talk.request("publish", channel="lobby", data=1)["offset"] == 1
            used = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used, used + 1000))
            with socket.create_connection(doors["lines"], timeout=PATIENCE_S) as waiting:
                waiting.sendall(b'{"op":"ping","id":1}\n')
                assert talk.request("publish", channel="lobby", data=2)["offset"] == 2
                assert len(talk.request("history", channel="lobby", since=0)["messages"]) == 2
                assert_nothing_comes(waiting, talk)
                resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 1000, used + 1000))
                assert Talk(waiting).receive()["op"] == "pong"
        server.drain()
        assert server.wait() == 0
        assert_said_once_when_it_began_and_when_it_was_over(server, doors["lines"])


def assert_said_once_when_it_began_and_when_it_was_over(server: Server, door: tuple[str, int]) -> None:
    began, over = [line for line in server.said().splitlines() if f" new clients of port {door[1]} wait" in line]
    assert "Too many open files" in began
    assert over.endswith("wait no longer")
    assert "Traceback" not in server.said()


def assert_nothing_comes(connection: socket.socket, talk: Talk) -> None:
    """However much the server has done meanwhile."""
    for _ in range(100):
        talk.request("ping")
    connection.setblocking(False)
    with pytest.raises(BlockingIOError):
        connection.recv(1)
    connection.settimeout(PATIENCE_S)
