"""The commands that talk to a server: as a person at a shell, and a pipe, have them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.harness import PATIENCE_S, ServerProcess, server_process, settings_for
from trisync.storage.sqlite_log import SqliteLog


def trisync(url: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a client command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "trisync", *arguments],
        env={**os.environ, "TRISYNC_URL": url},
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@contextmanager
def running(url: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A client command that goes on; ended at the end."""
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "trisync", *arguments, "--url", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_pipe_is_published_line_by_line_and_in_order(url: str, channel: str) -> None:
    lines = [json.dumps({"n": number}) for number in range(3000)]
    published = trisync(url, "publish", channel, text="\n".join(lines))
    assert published.stdout.splitlines() == [str(offset) for offset in range(1, 3001)]
    shown = trisync(url, "subscribe", channel, "--since", "0", "--count", "3000").stdout.splitlines()
    assert [json.loads(line)["data"]["n"] for line in shown] == list(range(3000))


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


UNANSWERED = r"closed with \d+ publishes that had no answer, and may be stored or not: the program closed it\n"


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
    for command, left in (("history",), ""), (("subscribe", "--since", "0"), ""), (("publish",), UNANSWERED):
        with running(tcp_url, *command, channel) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            if command == ("publish",):
                print("line\n" * 10_000, end="", file=process.stdin, flush=True)
            assert process.wait(PATIENCE_S) == 1
            assert re.fullmatch(left, process.stderr.read()), command


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
    assert gone.stderr.startswith("Error: no connection to tcp://127.0.0.1:9: ")
    assert gone.stderr.count("\n") == 1


def test_a_server_that_does_not_speak_tls_is_one_line(server: ServerProcess) -> None:
    refused = trisync(f"tcps://127.0.0.1:{server.tcp_port}", "publish", "lobby", "x")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: no connection to tcps://127.0.0.1:{server.tcp_port}: ")
    assert refused.stderr.count("\n") == 1


def test_a_channel_is_emptied_and_its_offsets_go_on(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        url, web = f"tcp://127.0.0.1:{server.tcp_port}", f"http://127.0.0.1:{server.web_port}"
        for text in ("one", "two"):
            trisync(url, "publish", "a/b#c", text)
        with running(url, "subscribe", "a/b#c", "--since", "0") as subscribe:
            assert subscribe.stdout is not None
            assert [json.loads(subscribe.stdout.readline())["data"] for _ in range(2)] == ["one", "two"]
            deleted = trisync(url, "delete", "a/b#c", "--web", web, "--yes")
            assert (deleted.stdout, deleted.stderr) == ("a/b#c is empty; its offsets go on behind 2\n", "")
            assert trisync(url, "publish", "a/b#c", "three").stdout == "3\n"
            assert json.loads(subscribe.stdout.readline())["data"] == "three"
        shown = trisync(url, "history", "a/b#c").stdout.splitlines()
        assert [json.loads(line).get("data") for line in shown] == [None, "three"]
        assert json.loads(shown[0])["op"] == "gap"


def test_what_cannot_be_emptied_is_one_line_that_says_why(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        refused = trisync("", "delete", "$system", "--web", f"http://127.0.0.1:{server.web_port}")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("Error: channel is 1-200 characters")
    gone = trisync("", "delete", "lobby", "--web", f"http://127.0.0.1:{server.web_port}")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "Connection refused" in gone.stderr
    assert gone.stderr.count("\n") == 1
