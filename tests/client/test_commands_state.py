"""The commands that set, read and empty a channel's state: publish with a key, state, delete."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.commands import answering, running, trisync
from tests.harness import PATIENCE_S, ServerProcess, server_process


def test_a_key_is_set_compared_read_and_deleted(url: str, channel: str) -> None:
    def publish(*arguments: str) -> str:
        return trisync(url, "publish", channel, *arguments).stdout

    assert publish("on", "--key", "kitchen") == "1\n"
    assert publish('{"a": 1e400,  "b": "é"}', "--key", "attic", "--expect", "0") == "2\n"
    late = trisync(url, "publish", channel, "off", "--key", "kitchen", "--expect", "7")
    assert (late.returncode, late.stderr) == (1, "Error: the key's newest offset is 1 (conflict)\n")
    assert publish("off", "--key", "kitchen", "--expect", "1") == "3\n"
    assert trisync(url, "state", channel).stdout.splitlines() == [
        '{"key":"attic","offset":2,"data":{"a": 1e400,  "b": "é"}}',
        '{"key":"kitchen","offset":3,"data":"off"}',
    ]
    assert trisync(url, "state", channel, "attic").stdout == '{"a": 1e400,  "b": "é"}\n'
    assert publish("null", "--key", "attic") == "4\n"
    gone = trisync(url, "state", channel, "attic")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == f"Error: there is no key 'attic' in {channel}\n"


def test_no_control_that_others_published_reaches_a_terminal_and_the_json_is_the_same(
    tcp_url: str, channel: str
) -> None:
    data = json.dumps("\x9b2J \x7f \x85 \xc2 \xa0é😀", ensure_ascii=False)  # U+009B is as good as ESC [
    trisync(tcp_url, "publish", channel, data, "--key", "k")
    newest = ("--last", "1", "--count", "1")
    for command, *options in (("state", "k"), ("state",), ("history",), ("subscribe", *newest)):
        shown = trisync(tcp_url, command, channel, *options).stdout
        assert r'"\u009b2J \u007f \u0085 ' in shown
        found = json.loads(shown)
        assert (found["data"] if isinstance(found, dict) else found) == json.loads(data)


def test_lines_of_the_input_set_a_key_one_after_the_other(tcp_url: str, channel: str) -> None:
    assert trisync(tcp_url, "publish", channel, "--key", "progress", text="1\n2\n3\n").stdout == "1\n2\n3\n"
    assert trisync(tcp_url, "state", channel).stdout == '{"key":"progress","offset":3,"data":3}\n'
    refused = trisync(tcp_url, "publish", channel, "--key", "progress", "--expect", "3", text="4\n")
    assert refused.returncode == 2
    assert refused.stderr.endswith("Error: --expect is for one message, with DATA\n")


def test_a_channel_that_nobody_wrote_to_has_no_state(tcp_url: str, channel: str) -> None:
    shown = trisync(tcp_url, "state", channel)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "what is there is no web door of trisync"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "no whole HTTP response came"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no whole HTTP response came"),
    ],
)
def test_something_else_that_is_to_empty_a_channel_is_one_line(answer: bytes, reason: str) -> None:
    with answering(answer) as where:
        failed = trisync("", "delete", "lobby", "--web", f"http://{where}", "--yes")
    assert (failed.returncode, failed.stderr) == (1, f"Error: http://{where}: {reason}\n")


def test_a_web_address_that_is_none_is_one_line() -> None:
    for web in ("", "localhost:8000", "tcp://localhost:2345"):
        failed = trisync("", "delete", "lobby", "--web", web, "--yes")
        assert failed.returncode == 2
        assert failed.stderr.endswith(
            f"Error: --web is the address of a web door, such as http://localhost:8000, not {web!r}\n"
        )
    failed = trisync("", "delete", "lobby", "--web", "http://[::1", "--yes")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith("Error: http://[::1: ")


@pytest.mark.parametrize("said", ["n\n", "\n", ""])
def test_nothing_is_deleted_where_the_answer_is_not_yes(server: ServerProcess, said: str) -> None:
    web = f"http://127.0.0.1:{server.web_port}"
    trisync(f"tcp://127.0.0.1:{server.tcp_port}", "publish", "dear", "x")
    asked = trisync("", "delete", "dear", "--web", web, text=said)
    assert (asked.returncode, asked.stdout) == (1, "Delete all messages and the state of dear? [y/N]: ")
    assert trisync(f"tcp://127.0.0.1:{server.tcp_port}", "history", "dear").stdout
    assert trisync("", "delete", "dear", "--web", web, text="y\n").returncode == 0
    assert '"gap"' in trisync(f"tcp://127.0.0.1:{server.tcp_port}", "history", "dear").stdout


def test_ctrl_c_at_the_question_is_no_and_without_a_word() -> None:
    with running("", "delete", "lobby", "--web", "http://127.0.0.1:9") as asking:
        assert asking.stdout is not None
        while asking.stdout.read(1) not in ("?", ""):
            pass
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=PATIENCE_S)
    assert (asking.returncode, said) == (130, "")


def test_who_cannot_be_asked_is_told_of_yes() -> None:
    command = f"{shlex.quote(sys.executable)} -m trisync delete dear <&-"
    refused = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("Error: standard input is closed, so nobody can be asked; --yes deletes without\n")


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


def test_what_cannot_be_emptied_is_one_line_that_says_why() -> None:
    for channel in ("$system", "", "\udcff"):  # nobody is asked whether they want that
        refused = trisync("", "delete", channel)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("Error: a channel is 1-200 characters")
    gone = trisync("", "delete", "lobby", "--web", "http://127.0.0.1:9", "--yes")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == "Error: http://127.0.0.1:9: Connection refused\n"
