"""How fast the Python client is: both figures are printed, and nothing is left behind."""

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.loadtest.signalled import signalled
from trisync.cli.errors import INTERRUPTED
from trisync.loadtest.client_speed import client_speed_command
from trisync.loadtest.endings import NO_RUN, UNUSABLE


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["tcp", "ws"])
def test_both_figures_are_printed(scheme: str, backend: str) -> None:
    done = CliRunner().invoke(client_speed_command, ["--count", "50", "--scheme", scheme, "--backend", backend])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["published", "received"]


def test_no_messages_at_all_are_refused() -> None:
    assert CliRunner().invoke(client_speed_command, ["--count", "0"]).exit_code == UNUSABLE


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tcp://127.0.0.1:9", "no connection to tcp://127.0.0.1:9: Connection refused"),
        ("localhost:2345", "a server's address looks like tcp://localhost:2345 or ws://localhost:8000/"),
    ],
)
def test_where_no_server_is_one_line_says_so(url: str, problem: str, backend: str) -> None:
    done = CliRunner().invoke(client_speed_command, ["--url", url, "--backend", backend])
    assert done.exit_code == NO_RUN
    assert done.stderr.startswith(f"Error: {problem}")
    assert done.stderr.count("\n") == 1


def test_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    status, _ = signalled(tmp_path, [signal.SIGTERM], "client_speed.py", "--count", "100000000")
    assert status == INTERRUPTED
    assert list(tmp_path.iterdir()) == []
