"""The server as people run it: a process, its signals, its data folder, and the command line beside it."""

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.client.commands import without_space
from tests.harness import PATIENCE_S, ServerProcess, server_process
from trisync.cli import main
from trisync.cli.serve import _announce
from trisync.server import Address


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S)


def exchange(client: socket.socket, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Send requests in the lines dialect, and read as many answers."""
    client.sendall(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
    return [json.loads(line) for line in read_lines(client, len(requests))]


def read_lines(client: socket.socket, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        chunk = client.recv(65536)
        assert chunk, data
        data += chunk
    assert data.count(b"\n") == count, data
    return data.splitlines()


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


def trisync(server: ServerProcess, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a client command against a server."""
    return subprocess.run(
        [sys.executable, "-m", "trisync", *arguments],
        env={**os.environ, "TRISYNC_URL": f"tcp://127.0.0.1:{server.tcp_port}"},
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_it_says_where_it_is_in_one_line_and_logs_to_standard_error(tmp_path: Path) -> None:
    with server_process(tmp_path / "d") as server:
        assert server.ready_line == (
            f"trisync ready tcp=127.0.0.1:{server.tcp_port} web=127.0.0.1:{server.web_port} data={tmp_path / 'd'}\n"
        )
        assert (tmp_path / "d" / "trisync.db").exists()
        with connect(server) as client:
            exchange(client, {"op": "nonsense", "id": 1})
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert "unknown_op" in server.said()


def test_messages_offsets_and_epoch_survive_a_restart(tmp_path: Path) -> None:
    def talk() -> list[dict[str, Any]]:
        with server_process(tmp_path) as server, connect(server) as client:
            answers = exchange(
                client,
                {"op": "publish", "id": 1, "channel": "lobby", "data": "x"},
                {"op": "history", "id": 2, "channel": "lobby"},
            )
            assert server.stop() == 0
            return sorted(answers, key=lambda answer: int(answer["id"]))

    first, second = talk(), talk()
    assert [first[0]["offset"], second[0]["offset"]] == [1, 2]
    assert first[1]["epoch"] == second[1]["epoch"]
    with server_process(tmp_path) as server, connect(server) as client:
        (history,) = exchange(client, {"op": "history", "id": 1, "channel": "lobby"})
        assert [message["offset"] for message in history["messages"]] == [1, 2]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    for round in range(3):
        with server_process(tmp_path) as server, connect(server) as client:
            requests = [{"op": "publish", "id": i, "channel": "lobby", "data": i} for i in range(200)]
            answers = exchange(client, *requests)
            server.stop(signal.SIGKILL)
            assert [answer["offset"] for answer in answers] == list(range(200 * round + 1, 200 * round + 201))
    with sqlite3.connect(f"file:{tmp_path}/trisync.db?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute('SELECT count(*), max("offset") FROM log').fetchone() == (600, 600)
    database.close()


def test_under_normal_an_unclean_stop_begins_a_new_epoch(tmp_path: Path) -> None:
    def epoch_of_a_run(how: signal.Signals) -> str:
        with server_process(tmp_path, "--durability", "normal") as server, connect(server) as client:
            (hello,) = exchange(client, {"op": "hello", "id": 1})
            server.stop(how)
            return str(hello["epoch"])

    first = epoch_of_a_run(signal.SIGTERM)
    assert epoch_of_a_run(signal.SIGKILL) == first
    assert epoch_of_a_run(signal.SIGTERM) != first


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(tmp_path: Path, how: signal.Signals) -> None:
    with server_process(tmp_path) as server, connect(server) as client, connect(server) as silent:
        requests = [{"op": "publish", "id": i, "channel": "lobby", "data": "x" * 100} for i in range(5000)]
        exchange(client, *requests)
        assert server.stop(how) == 0
        goodbye = json.loads(read_to_end(client))
        assert (goodbye["op"], goodbye["code"]) == ("goodbye", "draining")
        assert 0 <= goodbye["reconnect_ms"] < 5000
        assert read_to_end(silent) == b""  # it has not said yet what it speaks


def test_every_publish_read_before_a_drain_is_stored_if_and_only_if_it_was_acknowledged(tmp_path: Path) -> None:
    with server_process(tmp_path) as server, connect(server) as client:
        exchange(client, {"op": "hello", "id": 0})  # a connection that is not accepted yet would be reset
        lines = b"".join(b'{"op":"publish","id":%d,"channel":"lobby","data":%d}\n' % (i, i) for i in range(20_000))
        client.sendall(lines)
        server.process.send_signal(signal.SIGTERM)
        answers = [json.loads(line) for line in read_to_end(client).splitlines()]
        assert server.process.wait(PATIENCE_S) == 0
    acknowledged = [answer["id"] for answer in answers if answer["op"] == "ok"]
    refused = [answer["code"] for answer in answers if answer["op"] == "error"]
    assert set(refused) <= {"draining"}
    assert answers[-1]["op"] == "goodbye"
    with sqlite3.connect(f"file:{tmp_path}/trisync.db?mode=ro", uri=True) as database:
        assert [int(data) for (data,) in database.execute("SELECT data FROM log")] == acknowledged
    database.close()


def test_health_is_503_while_it_drains_and_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, "--backlog-bytes-max", "100000000") as server, connect(server) as client:
        # A reader that never reads holds the drain up: its backlog stays.
        exchange(client, {"op": "subscribe", "id": 1, "channel": "lobby"})
        with connect(server) as publisher:
            exchange(
                publisher,
                *({"op": "publish", "id": i, "channel": "lobby", "data": "x" * 500_000} for i in range(30)),
            )
        assert health(server) == 200
        server.process.send_signal(signal.SIGTERM)
        while health(server) != 503:
            pass
        assert server.process.poll() is None
        assert server.stop(signal.SIGTERM) == 1


def health(server: ServerProcess) -> int:
    door = http.client.HTTPConnection("127.0.0.1", server.web_port, timeout=PATIENCE_S)
    try:
        door.request("GET", "/health")
        return door.getresponse().status
    finally:
        door.close()


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        second = subprocess.run(
            [sys.executable, "-m", "trisync", "serve", "--data", str(tmp_path), "--tcp-port", "0", "--web-port", "0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert second.returncode == 1
        assert f"in use by another trisync server (process {server.process.pid})" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with server_process(tmp_path / "a") as server:
        second = subprocess.run(
            [
                *(sys.executable, "-m", "trisync", "serve", "--data", str(tmp_path / "b")),
                *("--tcp-port", str(server.tcp_port), "--web-port", "0"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert second.returncode == 1
        assert f"Address already in use: 127.0.0.1, port {server.tcp_port}" in " ".join(second.stderr.split())
        assert "Traceback" not in second.stderr


def test_a_host_that_can_be_none_is_one_clear_line(tmp_path: Path) -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "trisync", "serve", "--data", str(tmp_path), "--host", "127.0.0..1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert failed.returncode == 1
    assert "Error: This is no name of a host: 127.0.0..1, port 2345" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_public_address_is_said_loudly(tmp_path: Path) -> None:
    with server_process(tmp_path, "--host", "0.0.0.0") as server:
        assert "anybody there can read and write" in " ".join(server.said().split())


def test_the_welcome_on_a_terminal_shows_an_address_and_a_folder_as_they_are_to_be_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    _announce(Address("fe80::1", 2345, 8000, "/[a]/data"))
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    for line in ("nc fe80::1 2345 ", "http://[fe80::1]:8000/ ", "data      /[a]/data "):
        assert line in shown


def test_publish_subscribe_and_history_talk_to_it(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        assert trisync(server, "publish", "lobby", '{"a": 1}', "--name", "ann").stdout == "1\n"
        assert trisync(server, "publish", "lobby", text="two\nthree\n").stdout == "2\n3\n"
        history = trisync(server, "history", "lobby", "--limit", "2").stdout.splitlines()
        assert [json.loads(line)["data"] for line in history] == ["two", "three"]
        lines = trisync(server, "subscribe", "lobby", "--since", "0", "--count", "3").stdout.splitlines()
        messages = [json.loads(line) for line in lines]
        assert [(message["offset"], message.get("from")) for message in messages] == [(1, "ann"), (2, None), (3, None)]


@pytest.mark.parametrize("command", ["", "serve", "publish", "subscribe", "history", "backup", "restore"])
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(main, [*command.split(), "--help"], prog_name="trisync").stdout
    assert f"Usage: trisync {command}" in shown


def test_the_list_of_commands_says_what_each_does_in_a_whole_sentence() -> None:
    shown = CliRunner().invoke(main, ["--help"], env={"COLUMNS": "80"}, prog_name="trisync").stdout
    for command in ("serve", "publish", "subscribe", "history", "state", "delete", "backup", "restore", "loadtest"):
        (said,) = re.findall(rf"^  {command}  +(.*)$", shown, re.MULTILINE)
        assert said.endswith("."), said
        assert not said.endswith("..."), said


@pytest.mark.parametrize(
    ("command", "imported"), [("history", "click"), ("history", "trisync.cli.client"), ("--help", "trisync.cli.client")]
)
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word(command: str, imported: str) -> None:
    start = f"""
import sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == {imported!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder)
import trisync.cli
trisync.cli.main([{command!r}, "lobby"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", start], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_path_that_is_not_utf_8_is_printed_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in all locales but C
    data, file = (str(tmp_path / os.fsdecode(name)) for name in (b"m\xfcsli", b"\xfcber.db"))
    trisync = [sys.executable, "-m", "trisync"]
    serve = [*trisync, "serve", "--data", data, "--tcp-port", "0", "--web-port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        server.terminate()
    assert ready.endswith(b" data=" + os.fsencode(data) + b"\n")
    backup = [*trisync, "backup", file, "--data", data]
    said = subprocess.run(backup, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True).stdout
    assert said.startswith(b"%b is copied to %b, " % (os.fsencode(data), os.fsencode(file)))


@pytest.mark.parametrize("command", ["--help", "publish --help", "--version", "serve --tcp-port 0 --web-port 0"])
def test_an_output_without_space_is_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRISYNC_DATA", str(tmp_path))
    failed = without_space(*command.split())
    assert (failed.returncode, failed.stderr) == (1, "Error: standard output: No space left on device\n")
