"""The commands publish, subscribe and history: as a person at a shell, and a pipe, have them."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.client.commands import answering, running, trisync, without_space
from tests.harness import PATIENCE_S, ServerProcess, server_process, settings_for
from trisync.storage.sqlite_log import SqliteLog
from trisync.wire.framing import join_frames


def test_a_pipe_is_published_line_by_line_and_in_order(url: str, channel: str) -> None:
    lines = [json.dumps({"n": number}) for number in range(3000)]
    published = trisync(url, "publish", channel, text="\n".join(lines))
    assert published.stdout.splitlines() == [str(offset) for offset in range(1, 3001)]
    shown = trisync(url, "subscribe", channel, "--since", "0", "--count", "3000").stdout.splitlines()
    assert [json.loads(line)["data"]["n"] for line in shown] == list(range(3000))


def test_lines_of_a_file_from_windows_are_published_without_their_ends(tcp_url: str, channel: str) -> None:
    trisync(tcp_url, "publish", channel, text='one\r\n{"n": 2}\r\n\r\nin\rside\r\n')
    shown = trisync(tcp_url, "history", channel).stdout.splitlines()
    assert [json.loads(line)["data"] for line in shown] == ["one", {"n": 2}, "", "in\rside"]


@pytest.mark.parametrize("end", [b"\nlater\n", b""])
def test_the_lines_before_one_that_is_no_utf_8_are_published_and_that_one_is_named(
    tcp_url: str, channel: str, end: bytes
) -> None:
    published = subprocess.run(
        [sys.executable, "-m", "trisync", "publish", channel, "--url", tcp_url],
        input=b"line\n" * 20_000 + b"\xc3\xa9\nbad\xff" + end,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert published.returncode == 1
    assert published.stdout.split()[-1] == b"20001"
    assert published.stderr == b"Error: line 20002 of the input is not UTF-8\n"
    assert json.loads(trisync(tcp_url, "history", channel, "--limit", "1").stdout)["data"] == "é"


def test_the_lines_before_one_that_is_refused_are_published_and_that_one_is_named(tcp_url: str, channel: str) -> None:
    too_deep = "[" * 100_000 + "]" * 100_000
    for refused, problem in (("x" * 2_000_000, "a message is at most"), (too_deep, "nested too deep")):
        published = trisync(tcp_url, "publish", channel, text=f"one\ntwo\n{refused}\nbehind\n")
        assert published.returncode == 1
        assert len(published.stdout.split()) == 2
        assert published.stderr.startswith("Error: line 3 of the input: ")
        assert problem in published.stderr
    shown = trisync(tcp_url, "history", channel).stdout.splitlines()
    assert [json.loads(line)["data"] for line in shown] == ["one", "two"] * 2


def test_what_a_person_types_is_published_line_by_line(tcp_url: str, channel: str) -> None:
    with running(tcp_url, "publish", channel) as publish:
        assert publish.stdin is not None
        assert publish.stdout is not None
        for offset in (1, 2):
            print("typed", file=publish.stdin, flush=True)
            assert publish.stdout.readline() == f"{offset}\n"


def test_data_is_shown_digit_for_digit(tcp_url: str, channel: str) -> None:
    trisync(tcp_url, "publish", channel, '{"n": 1.50}')
    for command in (["history", channel], ["subscribe", channel, "--last", "1", "--count", "1"]):
        assert trisync(tcp_url, *command).stdout.endswith('"data":{"n": 1.50}}\n')


def test_ctrl_c_ends_a_subscription_without_a_traceback(tcp_url: str, channel: str) -> None:
    trisync(tcp_url, "publish", channel, "x")
    with running(tcp_url, "subscribe", channel, "--last", "1") as subscribe:
        assert subscribe.stdout is not None
        assert subscribe.stdout.readline()
        subscribe.send_signal(signal.SIGINT)
        assert subscribe.wait(PATIENCE_S) == 130
        assert subscribe.stderr is not None
        assert subscribe.stderr.read() == ""


UNANSWERED = r"closed with \d+ publish(es)? that had no answer, and may be stored or not: the program closed it\n"


def test_ctrl_c_in_the_middle_of_a_pipe_says_in_one_line_what_has_no_answer(tcp_url: str, channel: str) -> None:
    with running(tcp_url, "publish", channel) as publish:
        assert publish.stdin is not None
        assert publish.stdout is not None
        print("line\n" * 10_000, end="", file=publish.stdin, flush=True)
        assert publish.stdout.readline() == "1\n"
        publish.send_signal(signal.SIGINT)
        _, said = publish.communicate(timeout=PATIENCE_S)
        assert publish.returncode == 130
        assert re.fullmatch(UNANSWERED, said)


def test_an_output_that_is_closed_ends_a_command_quietly(tcp_url: str, channel: str) -> None:
    trisync(tcp_url, "publish", channel, text="line\n" * 100)
    for command in ("history",), ("subscribe", "--since", "0"):
        with running(tcp_url, *command, channel) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.wait(PATIENCE_S) == 1
            assert process.stderr.read() == "", command


@pytest.mark.parametrize("command", ["publish", "history"])
def test_an_output_without_space_is_not_taken_for_what_the_server_says(
    tcp_url: str, channel: str, command: str
) -> None:
    trisync(tcp_url, "publish", channel, "1")
    said = without_space(command, channel, "--url", tcp_url, text="2\n")
    assert (said.returncode, said.stderr) == (1, "Error: standard output: No space left on device\n")


def test_all_of_the_input_is_published_also_where_nobody_reads_the_offsets(tcp_url: str, channel: str) -> None:
    with running(tcp_url, "publish", channel) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.communicate("line\n" * 10_000, timeout=PATIENCE_S)[1] == ""
        assert process.returncode == 0
    [newest] = trisync(tcp_url, "history", channel, "--limit", "1").stdout.splitlines()
    assert json.loads(newest)["offset"] == 10_000


def test_a_closed_input_is_said(tcp_url: str, channel: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m trisync publish {channel} --url {tcp_url} <&-"
    refused = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("Error: there is no DATA, and standard input is closed\n")


def test_since_and_last_do_not_go_together(tcp_url: str, channel: str) -> None:
    refused = trisync(tcp_url, "subscribe", channel, "--since", "1", "--last", "1")
    assert refused.returncode == 2
    assert refused.stderr.endswith("Error: --since and --last do not go together\n")


def test_a_subscription_outlives_the_server(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        url, port = f"tcp://127.0.0.1:{server.tcp_port}", server.tcp_port
        trisync(url, "publish", "lobby", "before")
        with running(url, "subscribe", "lobby", "--since", "0") as subscribe:
            assert subscribe.stdout is not None
            assert json.loads(subscribe.stdout.readline())["data"] == "before"
            server.stop(signal.SIGKILL)
            with server_process(tmp_path, tcp_port=port):
                trisync(url, "publish", "lobby", "after")
                assert json.loads(subscribe.stdout.readline())["data"] == "after"
            subscribe.kill()
            assert subscribe.stderr is not None
            assert "the server closed the connection" in subscribe.stderr.read()


def test_what_retention_took_is_shown_as_a_gap(tmp_path: Path) -> None:
    def serve() -> "ServerProcess":
        return ServerProcess(tmp_path / "data")

    server = serve()
    try:
        trisync(f"tcp://127.0.0.1:{server.tcp_port}", "publish", "lobby", text="1\n2\n3\n")
        server.stop()
        server.log.close()

        async def trim() -> None:
            log = await SqliteLog.open(tmp_path / "data", settings_for(tmp_path))
            try:
                await log.trim({"lobby": 2}, 1000)
            finally:
                await log.aclose()

        trio.run(trim)
        server = serve()
        url = f"tcp://127.0.0.1:{server.tcp_port}"
        for command in (
            ["history", "lobby", "--since", "0"],
            ["subscribe", "lobby", "--since", "0", "--count", "1"],
        ):
            gap, message = map(json.loads, trisync(url, *command).stdout.splitlines())
            assert gap == {"op": "gap", "channel": "lobby", "from": 1, "to": 2, "reason": "trimmed"}
            assert message["offset"] == 3
    finally:
        server.close()
        server.log.close()


def test_a_server_that_is_not_there_is_one_line_at_once() -> None:
    gone = trisync("tcp://127.0.0.1:9", "publish", "lobby", "x")
    assert gone.returncode == 1
    assert gone.stderr == "Error: no connection to tcp://127.0.0.1:9: Connection refused\n"


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\nhello"
COMMANDS = (("publish", "lobby", "x"), ("history", "lobby"), ("subscribe", "lobby"))


@pytest.mark.parametrize(
    ("scheme", "answer", "reason"),
    [
        ("tcp", HTTP, "what is there does not speak frames; it speaks HTTP, as a web door does, which is for ws://"),
        ("tcp", b"SSH-2.0-OpenSSH_9.2\r\n", "what is there does not speak frames"),
        ("tcp", b"", "the server closed the connection"),
        ("ws", HTTP, "the server refuses the WebSocket with HTTP status 400"),
        ("ws", b"", "the server closed the connection in the WebSocket handshake; a TCP door is for tcp://"),
    ],
)
def test_something_else_that_answers_is_one_line_with_its_address(scheme: str, answer: bytes, reason: str) -> None:
    with answering(answer) as where:
        for command in COMMANDS:
            failed = trisync(f"{scheme}://{where}", *command)
            assert (failed.returncode, failed.stdout) == (1, ""), command
            assert failed.stderr == f"Error: no connection to {scheme}://{where}: {reason}\n"


HURRIED = (
    "import trisync.cli.client; trisync.cli.client.ANSWER_S = 2.0; import trisync.cli; trisync.cli.main(prog_name='x')"
)


@contextmanager
def dying() -> Iterator[str]:
    """The address of a server that greets one client, takes what it asks, and is gone for good."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE_S)

    def die() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            hello = json.loads(connection.recv(1 << 16)[4:])
            greeting = {"op": "ok", "id": hello["id"], "seq": 0, "epoch": "e"}
            connection.sendall(join_frames([json.dumps(greeting).encode()]))
            connection.recv(1 << 16)

    thread = threading.Thread(target=die)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    thread.join()


@pytest.mark.parametrize("command", [("publish", "lobby", "x"), ("history", "lobby")])
def test_what_a_server_that_died_was_asked_is_not_awaited_for_ever(command: tuple[str, ...]) -> None:
    with dying() as url:
        failed = subprocess.run(
            [sys.executable, "-c", HURRIED, *command, "--url", url],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (failed.returncode, failed.stdout) == (1, "")
    *story, said = failed.stderr.splitlines()
    # It may be trying again at that moment.
    again = rf"(connecting to {url} again: )?"
    assert re.fullmatch(rf"Error: no answer within 2 s: {again}no connection to {url}: Connection refused", said)
    assert story[0].startswith("the server closed the connection; ")


@pytest.mark.parametrize("url", ["tcp://localhost:99999", "tcp://localhost:http", "tcp://[::1", "localhost:2345", ""])
def test_an_address_that_is_none_is_one_line_that_shows_it(url: str) -> None:
    failed = trisync("", "history", "lobby", "--url", url)
    assert failed.returncode == 1
    assert failed.stderr.endswith(f"not {url!r}\n")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("history", "lobby", "--url", "tcp://☃:1"), "☃ is no host's name: "),
        (("history", "lobby", "--url", "ws://ü..b:1"), "ü..b is no host's name: "),
        (("delete", "lobby", "--yes", "--web", "http://localhost:abc"), "http://localhost:abc: nonnumeric port: "),
        (("delete", "lobby", "--yes", "--web", "http://ü..b:1"), "label empty"),
        (("delete", "lobby", "--yes", "--web", "http://localhost/é"), "http://localhost/é: the path is ASCII, "),
    ],
)
def test_a_host_port_or_path_that_cannot_be_is_one_line_too(command: tuple[str, ...], problem: str) -> None:
    failed = trisync("", *command)
    assert failed.returncode == 1
    assert problem in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_an_argument_that_is_no_utf_8_is_not_published(tcp_url: str, channel: str) -> None:
    command: list[str | bytes] = [sys.executable, "-m", "trisync", "publish", channel, b"\xff", "--url", tcp_url]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (failed.returncode, failed.stderr) == (1, "Error: the data is not UTF-8\n")


def test_a_server_that_does_not_speak_tls_is_one_line(server: ServerProcess) -> None:
    refused = trisync(f"tcps://127.0.0.1:{server.tcp_port}", "publish", "lobby", "x")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: no connection to tcps://127.0.0.1:{server.tcp_port}: ")
    assert refused.stderr.count("\n") == 1
