"""How fast the Python client is: both figures are printed, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness import PATIENCE_S
from trisync.loadtest.cli import INTERRUPTED, UNUSABLE
from trisync.loadtest.client_speed import client_speed_command

LAUNCHER = Path(__file__).parent.parent.parent / "tools" / "client_speed.py"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["tcp", "ws"])
def test_both_figures_are_printed(scheme: str, backend: str) -> None:
    done = CliRunner().invoke(client_speed_command, ["--count", "50", "--scheme", scheme, "--backend", backend])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["published", "received"]


def test_no_messages_at_all_are_refused() -> None:
    assert CliRunner().invoke(client_speed_command, ["--count", "0"]).exit_code == UNUSABLE


def test_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCHER), "--count", "100000000"]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("*/data/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED
    assert list(tmp_path.iterdir()) == []
