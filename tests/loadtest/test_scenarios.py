"""Every scenario over every transport, briefly, against a real server; and the command line around them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.harness import ServerProcess, server_process
from tests.loadtest.signalled import INTERRUPTED_SAID, TOOLS, signalled
from trisync.cli.errors import INTERRUPTED
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.endings import BROKEN, NO_RUN, UNUSABLE
from trisync.loadtest.plan import TRANSPORTS
from trisync.loadtest.problems import KINDS
from trisync.loadtest.scenarios import SCENARIOS

TIMED = ("--duration", "1.2", "--warmup", "0.1")  # longer than a busy machine stands still
BRIEF = {
    "fanout": ("--subscribers", "5", "--publishers", "2", "--channels", "2", "--window", "32", *TIMED),
    "ingest": ("--publishers", "2", "--window", "16", *TIMED),
    "latency": ("--subscribers", "5", "--rate", "100", *TIMED),
    "connect": ("--connections", "20"),
    "resume": ("--subscribers", "10", "--missed", "30"),
    "mixed": ("--channels", "8", "--subscribers", "6", "--follow", "3", "--publishers", "3", "--rate", "200", *TIMED),
    "slow": ("--subscribers", "5", "--rate", "300", "--slowest", "2", *TIMED),
    "fairness": ("--publishers", "4", "--channels", "2", "--window", "16", "--rate", "100", *TIMED),
    "soak": (
        *("--channels", "8", "--subscribers", "6", "--publishers", "3", "--rate", "200", "--faults", "60"),
        *("--duration", "0.8", "--warmup", "0.1"),
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("loadtest")) as server:
        yield server


def load(server: ServerProcess, *options: str) -> Result:
    doors = ["--tcp", f"127.0.0.1:{server.tcp_port}", "--web", f":{server.web_port}", "--pid", str(server.process.pid)]
    return CliRunner().invoke(loadtest_command, [*options, *doors, "--quiet"])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_passes_and_says_what_it_found(
    server: ServerProcess, tmp_path: Path, scenario: str, transport: str
) -> None:
    file = tmp_path / "result.json"
    result = load(server, scenario, *BRIEF[scenario], "--transport", transport, "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    found = json.loads(file.read_bytes())
    assert (found["passed"], found["problems"]) == (True, [])
    assert found["plan"]["transport"] == transport
    assert found["effort"]["server_memory_max_bytes"] > 1_000_000
    throughput = found["throughput"]
    if scenario != "connect":
        assert found["log_read"] == {
            "read": throughput["acked"],
            "late": 0,
            "interrupted": 0,
            "trimmed": 0,
            "replaced": 0,
        }
    match scenario:
        case "connect":
            assert found["connecting"]["connections"] == found["latency"]["count"] == 20
        case "resume":
            assert found["returning"]["caught_up_s"] > 0
            assert found["returning"]["missed"] == 30
            assert found["latency"]["count"] == 10
            assert throughput["delivered"] == 10 * throughput["acked"]
        case "fairness":
            alone, flooded = found["fairness"]["alone"], found["fairness"]["flooded"]
            assert found["fairness"]["p99_times"] == round(flooded["p99_us"] / alone["p99_us"], 2)
            assert 0 < alone["count"] <= flooded["count"] + 20 < throughput["acked"]
            assert "times as long" in result.output
            times = [sample["at_s"] for sample in found["series"]]
            assert times == sorted(set(times))  # of the flood alone
        case "soak":
            assert found["effort"]["server_growth_bytes_per_h"] is None
            assert "an hour" not in result.output
            assert "too short to say whether the server's memory grows" in result.output
            assert any("too short" in remark for remark in found["remarks"])
            assert sum(sample["opened_per_s"] for sample in found["series"]) > 0  # those who were cut off came back
        case "ingest":
            assert throughput["acked"] == throughput["sent"] > 0
            assert found["ack_latency"]["count"] > 0
        case _:
            assert found["latency"]["p50_us"] > 0
            assert throughput["delivered_per_s"] > 0


def test_several_workers_share_a_load(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = load(server, "fanout", *BRIEF["fanout"], "--workers", "2", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_bytes())
    assert len(found["effort"]["workers_cpu"]) == 2


@pytest.mark.parametrize("scenario", ["fanout", "ingest", "fairness"])
def test_a_server_that_is_exactly_full_is_read_back_over_the_connections_that_are_there(
    tmp_path: Path, scenario: str
) -> None:
    clients = {"fanout": 7, "ingest": 2, "fairness": 4}
    with server_process(tmp_path, "--connections-max", str(clients[scenario])) as server:
        result = load(server, scenario, *BRIEF[scenario], "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output


def test_what_nobody_was_allowed_to_subscribe_to_is_not_awaited_nor_called_lost(tmp_path: Path) -> None:
    with server_process(tmp_path, "--subscriptions-max", "2") as server:
        result = load(server, "mixed", *BRIEF["mixed"])
    assert result.exit_code == BROKEN, result.output
    _, said = result.stdout.split("FAILED\n")
    kinds = [line.split(maxsplit=1)[1] for line in said.splitlines() if re.match(r"  \d", line)]
    assert kinds == [KINDS["refused"], KINDS["unchecked"]]


def test_a_server_of_its_own_is_stopped_and_its_data_removed(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        str(TOOLS / "loadtest.py"),
        "ingest",
        "--spawn",
        "--durability",
        "normal",
        *BRIEF["ingest"],
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "PASSED" in done.stdout
    assert list(tmp_path.iterdir()) == []


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize("how", [*([each] for each in ENDING), [signal.SIGINT] * 2, [signal.SIGINT] * 50])
def test_a_signal_stops_the_load_and_its_server_and_leaves_nothing_behind(
    tmp_path: Path, how: list[signal.Signals]
) -> None:
    ended = signalled(tmp_path, how, "loadtest.py", "soak", "--spawn", "--warmup", "0", "--duration", "50")
    assert ended == (INTERRUPTED, INTERRUPTED_SAID)
    assert list(tmp_path.iterdir()) == []


def test_another_machine_is_not_loaded_without_consent() -> None:
    result = CliRunner().invoke(loadtest_command, ["fanout", "--web", "192.0.2.1:8000"])
    assert result.exit_code == UNUSABLE
    assert "--allow-remote" in result.output


@pytest.mark.parametrize(("scenario", "transport"), [*zip(SCENARIOS, cycle(TRANSPORTS), strict=False)])
def test_where_nothing_listens_there_is_no_run_and_it_says_so(scenario: str, transport: str) -> None:
    door = "--web" if transport == "ws" else "--tcp"
    command = [scenario, *BRIEF[scenario], "--transport", transport, door, "127.0.0.1:1", "--quiet"]
    result = CliRunner().invoke(loadtest_command, command)
    assert result.exit_code == NO_RUN, result.output
    assert result.stdout == ""
    assert re.fullmatch(
        r"Error: nobody could connect to 127\.0\.0\.1 port 1: \w+ [\d.]+: Connection refused\n", result.stderr
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scenario", ["fanout", "ingest", "connect"])
def test_a_server_that_only_accepts_connections_is_no_run(scenario: str, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        options = ["--transport", transport, "--patience", "0.3", "--web" if transport == "ws" else "--tcp", address]
        result = CliRunner().invoke(loadtest_command, [scenario, *BRIEF[scenario], *options, "--quiet"])
    assert result.exit_code == NO_RUN, result.output
    assert result.stderr.startswith("Error: nobody could connect to ")
    assert result.stderr.endswith(" got no answer\n")


@pytest.mark.parametrize("transport", ["lines", "frames"])
@pytest.mark.parametrize("scenario", ["fanout", "ingest"])
def test_the_wrong_door_is_no_run(server: ServerProcess, scenario: str, transport: str) -> None:
    options = ["--transport", transport, "--tcp", f"127.0.0.1:{server.web_port}", "--patience", "0.3"]
    result = CliRunner().invoke(loadtest_command, [scenario, *BRIEF[scenario], *options, "--quiet"])
    assert result.exit_code == NO_RUN, result.output
    assert result.stderr.startswith("Error: nobody could connect to ")


def test_a_server_that_cannot_start_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRISYNC_NO_SUCH_SETTING", "1")
    result = CliRunner().invoke(loadtest_command, ["connect", "--connections", "2", "--spawn", "--quiet"])
    assert result.exit_code == NO_RUN
    assert "TRISYNC_NO_SUCH_SETTING" in result.output


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_help_explains_every_scenario(scenario: str) -> None:
    result = CliRunner().invoke(loadtest_command, [scenario, "--help"])
    assert result.exit_code == 0
    assert SCENARIOS[scenario].summary in result.output
