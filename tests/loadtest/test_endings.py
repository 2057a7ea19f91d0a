"""How a run ends that does not end well: what was found is kept, and nothing is left behind."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from trisync.loadtest import run as running
from trisync.loadtest.cli import BROKEN, Interrupted, loadtest_command, run_until_signal
from trisync.loadtest.crew import SILENCE_S, Crew, CrewFailed
from trisync.loadtest.plan import Tick, Totals
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


async def test_a_worker_that_is_stopped_ends_the_run(autojump_clock: trio.testing.MockClock) -> None:
    _, stdout = trio.testing.memory_stream_one_way_pair()
    worker = cast(Any, SimpleNamespace(stdout=stdout))
    with trio.fail_after(SILENCE_S + 1), pytest.raises(CrewFailed, match="a worker has been silent for 30 s"):
        await Crew([worker], lambda tick: None)._listen(worker)


async def test_a_worker_that_ticks_may_take_its_time(autojump_clock: trio.testing.MockClock) -> None:
    tell, stdout = trio.testing.memory_stream_one_way_pair()
    worker = cast(Any, SimpleNamespace(stdout=stdout, wait=trio.lowlevel.checkpoint))
    ticks: list[Tick] = []
    crew = Crew([worker], ticks.append)
    crew.dismiss()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew._listen, worker)
        for number in range(5):
            await trio.sleep(SILENCE_S - 1)
            await tell.send_all(msgspec.json.encode(Tick(0, number, 0.0, Totals(), {}, {}, {}, [])) + b"\n")
        await tell.aclose()
    assert len(ticks) == 5
