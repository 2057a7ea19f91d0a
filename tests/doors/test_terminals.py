"""People at terminals: the real netcat and the real telnet, typing to the real server."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, ServerProcess, server_process

needs_nc = pytest.mark.skipif(shutil.which("nc") is None, reason="nc is missing: apt-get install netcat-openbsd")
needs_telnet = pytest.mark.skipif(shutil.which("telnet") is None, reason="telnet is missing: apt-get install telnet")


class Terminal:
    """A program that somebody types into; with a terminal of its own where the program wants one."""

    def __init__(self, *command: str, terminal: bool = False) -> None:
        self.process: subprocess.Popen[bytes]
        self.seen = ""
        if terminal:
            self._fd, theirs = pty.openpty()
            self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
            os.close(theirs)
        else:
            ours, theirs_socket = socket.socketpair()
            self.process = subprocess.Popen(command, stdin=theirs_socket.fileno(), stdout=theirs_socket.fileno())
            theirs_socket.close()
            self._fd = ours.detach()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def await_sight(self, pattern: str) -> re.Match[str]:
        """Read on until the pattern is seen; what comes before it is then forgotten."""
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._fd], [], [], PATIENCE_S)
            assert ready, f"never seen: {pattern!r} in {self.seen!r}"
            chunk = os.read(self._fd, 65536).decode()
            assert chunk, f"ended without {pattern!r}: {self.seen!r}"
            self.seen += chunk.replace("\r\n", "\n")
        self.seen = self.seen[match.end() :]
        return match

    def close(self) -> None:
        os.close(self._fd)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path) as process:
        yield process


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def netcat(server: ServerProcess, terminals: list[Terminal]) -> Terminal:
    terminals.append(Terminal("nc", "localhost", str(server.tcp_port)))
    return terminals[-1]


@needs_nc
def test_two_people_at_netcat_see_each_other(server: ServerProcess, terminals: list[Terminal]) -> None:
    alice, bob = netcat(server, terminals), netcat(server, terminals)
    alice.type("/name alice\n")
    alice.await_sight(r"\* you are alice\n")
    bob.type("\n")
    bob.await_sight("Welcome to trisync. You are in #lobby")
    alice.type("hello, bob\n")
    alice.await_sight("^#lobby 1 alice: hello, bob\n")
    bob.await_sight("#lobby 1 alice: hello, bob\n")
    bob.type("hi\n")
    alice.await_sight("^#lobby 2 anonymous: hi\n")


@needs_nc
def test_what_is_piped_into_netcat_is_published_and_shown(server: ServerProcess) -> None:
    shown = subprocess.run(
        ["nc", "-N", "localhost", str(server.tcp_port)],
        input="first\nsecond\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    assert shown == "#lobby 1 anonymous: first\n#lobby 2 anonymous: second\n"


@needs_nc
def test_a_pasted_json_line_makes_it_the_lines_dialect(server: ServerProcess, terminals: list[Terminal]) -> None:
    terminal = netcat(server, terminals)
    terminal.type('{"op":"publish","id":1,"channel":"lobby","data":[1]}\n')
    assert json.loads(terminal.await_sight(".*\n")[0]) == {"op": "ok", "id": 1, "offset": 1}


@needs_nc
def test_channels_history_and_json_from_netcat(server: ServerProcess, terminals: list[Terminal]) -> None:
    terminal = netcat(server, terminals)
    terminal.type("one\ntwo\n/join dev\nthree\n/join lobby 1\n/history 2\n")
    terminal.await_sight("#lobby 2 anonymous: two\n")
    terminal.await_sight(r"\* you are in #dev, which is at 0\n")
    terminal.await_sight("#dev 1 anonymous: three\n")
    terminal.await_sight(r"\* you are in #lobby, which is at 2\n#lobby 2 anonymous: two\n")
    terminal.await_sight("#lobby 1 anonymous: one\n#lobby 2 anonymous: two\n")
    terminal.type('/json\n{"op":"publish","channel":"lobby","data":{"n":3}}\n')
    message = json.loads(terminal.await_sight(".*\n")[0])
    assert (message["op"], message["offset"], message["data"]) == ("message", 3, {"n": 3})
    terminal.type("not json\n")
    assert json.loads(terminal.await_sight(".*\n")[0])["code"] == "bad_json"


@needs_nc
def test_a_state_is_set_and_read_and_people_are_seen_from_netcat(
    server: ServerProcess, terminals: list[Terminal]
) -> None:
    alice, bob = netcat(server, terminals), netcat(server, terminals)
    alice.type('/name alice\n/set title The "Report"\n/set size {"pages": 3, "by": "\\u001b[31m"}\n')
    alice.await_sight(r'^\* you are alice\n#lobby 1 alice: title = The "Report"\n')
    alice.await_sight(r'^#lobby 2 alice: size = {"pages":3,"by":"\\u001b\[31m"}\n')
    bob.type("/get\n/get title\n/get nothing\n/who\n")
    bob.await_sight(r'size = {"pages":3,"by":"\\u001b\[31m"}\ntitle = The "Report"\n')
    bob.await_sight(r'^title = The "Report"\n\* nothing there\n\* here: alice, anonymous\n')
    bob.type("/set title null\n/get title\n/set\n/set key\n/get two keys\n")
    bob.await_sight(r"^#lobby 3 anonymous: title = null\n\* nothing there\n(! /set KEY VALUE, /get \[KEY\]: .*\n){3}")
    alice.await_sight("#lobby 3 anonymous: title = null\n")
    bob.type("/leave\n/set a b\n/who\n")
    bob.await_sight(r"^\* you are in no channel\n(! you are in no channel: /join one\n){2}")


@needs_nc
def test_quit_ends_the_connection(server: ServerProcess, terminals: list[Terminal]) -> None:
    terminal = netcat(server, terminals)
    terminal.type("/quit\n")
    terminal.await_sight("Good-bye")


@needs_nc
def test_a_stopping_server_tells_people_so(server: ServerProcess, terminals: list[Terminal]) -> None:
    terminal = netcat(server, terminals)
    terminal.type("hello\n")
    terminal.await_sight("hello")
    assert server.stop() == 0
    terminal.await_sight(r"\* the server is stopping; come back in \d\.\d s\n")


@needs_telnet
def test_telnet_types_and_reads_too(server: ServerProcess, terminals: list[Terminal]) -> None:
    terminals.append(Terminal("telnet", "localhost", str(server.tcp_port), terminal=True))
    terminal = terminals[-1]
    terminal.await_sight("Connected to localhost")
    terminal.type("hello from telnet\n")
    terminal.await_sight("#lobby 1 anonymous: hello from telnet\n")
    terminal.type("\x03")  # Ctrl-C: telnet sends IAC IP, IAC DO TIMING-MARK and waits for an answer
    terminal.type("still here\n")
    terminal.await_sight("#lobby 2 anonymous: still here\n")
