"""README.md: its commands, its transcript and its program do what it says."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, ServerProcess, server_process

README = (Path(__file__).parent.parent / "README.md").read_text()


def transcript(beginning: str) -> list[str]:
    """The indented block that begins with a line, without its indent."""
    after = README[README.index(f"    {beginning}\n") :].splitlines()
    block = []
    for line in after:
        if not line.startswith("    "):
            break
        block.append(line[4:])
    return block


def programs(title: str) -> list[str]:
    """The Python programs of a section."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found: list[str] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found


def matches(pattern: str, text: str) -> bool:
    """Whether a line is as README shows it; … stands for what varies."""
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("…")), text) is not None


def talk(server: ServerProcess, shown: list[str], answer: re.Pattern[str]) -> None:
    """Type what a transcript shows as typed, and compare what comes back with what it shows as answered."""
    with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as connection:
        lines = connection.makefile("rw")
        for line in shown:
            if answer.match(line):
                assert matches(line, lines.readline().rstrip("\n")), line
            else:
                print(line, file=lines, flush=True)


def run_shell(server: ServerProcess, line: str) -> list[str]:
    """Run a `.venv/bin/trisync …` line against a server."""
    program, *arguments = shlex.split(line.removeprefix("$ "))
    assert program == ".venv/bin/trisync"
    return subprocess.run(
        [sys.executable, "-m", "trisync", *arguments, "--url", f"tcp://127.0.0.1:{server.tcp_port}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout.splitlines()


def test_the_five_minutes_go_as_they_are_told(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        talk(server, transcript("$ nc localhost 2345")[1:], re.compile("[#*] ?"))
        shell = transcript("""$ .venv/bin/trisync publish lobby '{"text": "from a script"}' --name robot""")
        published, offset, history, subscribe, keyed, state = shell
        assert run_shell(server, published) == [offset]
        assert len(run_shell(server, history)) == 1
        assert len(run_shell(server, subscribe)) == 3
        assert [run_shell(server, keyed), run_shell(server, state)] == [
            ["1"],
            ['{"key":"kitchen","offset":1,"data":"on"}'],
        ]
        pasted = README.index("**In JSON lines.**")
        json_lines = [line[4:] for line in README[pasted:].splitlines()[2:] if line.startswith("    ")][1:4]
        talk(server, json_lines, re.compile(r'\{"op":"(ok|message)"'))


SAID = (
    "stored at offset 1\n1 python {'temperature': 21.5}\n[('count', 1), ('title', 'Hello')]\n",
    "from a script\n",
    "from a socket\n",
)
"""What the programs in Python say, one after the other."""


def test_the_python_programs_run(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        for program, said in zip(programs("Five minutes"), SAID, strict=True):
            run = subprocess.run(
                [sys.executable, "-c", program.replace("2345", str(server.tcp_port))],
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE_S,
            )
            assert (run.stdout, run.stderr) == (said, "")


def test_a_program_s_hooks_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.py").write_text(programs("Inside your own program")[0])
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^    .venv/bin/trisync serve (--app .*)$", README, re.MULTILINE)
    with server_process(tmp_path / "data", *shlex.split(command)) as server:
        with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as connection:
            lines = connection.makefile("rw")
            answers = []
            for request in (
                {"op": "publish", "channel": "chat.lobby", "data": 5},
                {"op": "publish", "channel": "chat.lobby", "data": "  hello  "},
                {"op": "history", "channel": "chat.lobby"},
                {"op": "subscribe", "channel": "staff.room"},
                {"op": "subscribe", "channel": "visits"},
            ):
                print(json.dumps(request | {"id": 1}), file=lines, flush=True)
                answers.append(json.loads(lines.readline()))
            with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=PATIENCE_S) as guest:
                guest.sendall(b'{"op":"ping"}\n')
            visit = json.loads(lines.readline())
        assert [answer.get("code", "ok") for answer in answers] == ["bad_request", "ok", "ok", "forbidden", "ok"]
        assert [answer.get("message") for answer in answers if "code" in answer] == ["only text here", "for the staff"]
        (message,) = answers[2]["messages"]
        assert (message["data"], re.fullmatch(r"guest \w{4}", message["from"]) is not None) == ("hello", True)
        assert (visit["from"] != message["from"], visit["data"]) == (True, "the client hung up")
        assert server.stop() == 0


def test_a_program_runs_the_server_itself(tmp_path: Path) -> None:
    program = programs("Inside your own program")[1]
    said = subprocess.run(
        [sys.executable, "-c", program.replace("2345", "0").replace("8000", "0")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    assert said == "Entry(offset=3, data=21.5)\n[21, 21.5]\nconflict 3\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: apt-get install curl")
def test_what_curl_is_shown_to_do_happens(tmp_path: Path) -> None:
    begin = README.index("**From anything that speaks HTTP.**")
    transcript = README[begin : README.index("The last one goes on")]
    commands = re.findall(r"^    \$ (curl .*)\n((?:(?:    [^$].*)?\n)*)", transcript, re.MULTILINE)
    assert len(commands) == 6
    published = re.findall(r"^    (\$ .venv/bin/trisync publish .*)$", README[:begin], re.MULTILINE)
    assert len(published) == 2
    with server_process(tmp_path) as server:
        for line in published:  # who reads on has done this too
            run_shell(server, line)
        for command, shown in commands:
            arguments = shlex.split(command.replace("localhost:8000", f"127.0.0.1:{server.web_port}"))
            arguments += ["--max-time", str(PATIENCE_S)]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as curl:
                assert curl.stdout is not None
                try:
                    for line in shown.strip("\n").split("\n"):
                        assert matches(line.removeprefix("    "), curl.stdout.readline().rstrip("\n")), line
                    if "/events" not in command:
                        assert (curl.stdout.read(), curl.wait(PATIENCE_S)) == ("", 0)
                finally:
                    curl.kill()


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is missing: apt-get install sqlite3")
def test_the_data_reads_well_while_the_server_runs(tmp_path: Path) -> None:
    (command,) = re.findall(r"^    (sqlite3 .*)$", README, re.MULTILINE)
    with server_process(tmp_path / "data") as server:
        run_shell(server, "$ .venv/bin/trisync publish lobby hello --name ann")
        shown = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r'lobby\|1\|[-0-9]+ [0-9:.]+\|ann\|\|"hello"\n', shown)


def test_every_file_that_is_named_is_there() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / name).exists(), name
    for room in re.findall(r"^\| \d \| (.*?) \|", README, re.MULTILINE):
        for name in re.findall(r"`([\w/]+)`", room):
            assert (root / "trisync" / name).exists() or (root / "trisync" / f"{name}.py").exists(), name
