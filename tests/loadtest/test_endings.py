"""How a run ends that does not end well: what was found is kept, and nothing is left behind."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from click.testing import CliRunner

from trisync.loadtest import run as running
from trisync.loadtest.cli import BROKEN, Interrupted, loadtest_command, run_until_signal
from trisync.loadtest.problems import Problems
from trisync.loadtest.target import Target, spawned

BRIEF = ("fanout", "--subscribers", "2", "--window", "8", "--duration", "0.3", "--warmup", "0", "--quiet")


@asynccontextmanager
async def spawned_and_killed(durability: str, problems: Problems) -> AsyncIterator[Target]:
    """A server that crashes when the load is over."""
    async with spawned(durability, problems) as target:
        yield target
        assert target.pid is not None
        os.kill(target.pid, signal.SIGKILL)


def test_a_server_that_crashes_fails_the_run_and_the_figures_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "spawned", spawned_and_killed)
    file = tmp_path / "result.json"
    done = CliRunner().invoke(loadtest_command, [*BRIEF, "--spawn", "--json", str(file)])
    assert done.exit_code == BROKEN, done.output
    assert "1 server that crashed" in done.stdout
    assert "it ended with status -9" in done.stdout
    found = json.loads(file.read_bytes())
    assert not found["passed"]
    assert found["throughput"]["acked"] > 0


@pytest.mark.parametrize("outlives", [True, False])
def test_a_terminal_that_is_gone_ends_a_run_unless_that_was_started_to_outlive_it(outlives: bool) -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked()
        return "done"

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if outlives else signal.SIG_DFL)
    others = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    try:
        if outlives:
            assert run_until_signal(work, ()) == "done"
        else:
            with pytest.raises(Interrupted):
                run_until_signal(work, ())
    finally:
        for each, handler in {signal.SIGHUP: before, **others}.items():
            signal.signal(each, handler)
