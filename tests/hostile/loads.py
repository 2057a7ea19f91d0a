"""The bundled load test against a server under attack: thousands of clients, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from tests.harness import PATIENCE_S
from tests.hostile.arena import Arena

LOADTEST = Path(__file__).parent.parent.parent / "tools" / "loadtest.py"


async def load(arena: Arena, result: Path, scenario: str, *options: str) -> dict[str, Any]:
    """Run a scenario whose checks must all pass; returns what it found, which is written to `result`."""
    address = arena.running.address
    doors = ("--tcp", f"127.0.0.1:{address.tcp_port}", "--web", f"127.0.0.1:{address.web_port}")
    run = [sys.executable, str(LOADTEST), scenario, *options, *doors]
    run += ["--workers", "1", "--patience", str(PATIENCE_S), "--json", str(result), "--quiet"]
    with trio.fail_after(6 * PATIENCE_S):
        ended = await trio.run_process(run, check=False, capture_stdout=True, stderr=subprocess.STDOUT)
    assert ended.returncode == 0, ended.stdout.decode()
    found: dict[str, Any] = json.loads(await trio.Path(result).read_bytes())
    assert found["passed"]
    return found
