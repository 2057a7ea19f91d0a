"""How a run ends that does not end well: what was found is kept, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import fake_server
from trisync.cli.errors import INTERRUPTED
from trisync.loadtest import run as running
from trisync.loadtest import target
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.crew import SILENCE_S, Crew, CrewFailed
from trisync.loadtest.endings import BROKEN, Interrupted, run_until_signal
from trisync.loadtest.plan import Done, Finish, Plan, Report, Tick, Totals
from trisync.loadtest.processes import environment
from trisync.loadtest.recording import Recorder
from trisync.loadtest.report_terminal import Display
from trisync.loadtest.scenarios import Stage, share_out
from trisync.loadtest.target import Target, spawned

BRIEF = ("fanout", "--subscribers", "2", "--window", "8", "--duration", "0.3", "--warmup", "0", "--quiet")


@asynccontextmanager
async def spawned_and_killed(durability: str) -> AsyncIterator[Target]:
    """A server that crashes when the load is over."""
    async with spawned(durability) as server:
        yield server
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)


def test_a_server_that_crashes_fails_the_run_and_the_figures_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "spawned", spawned_and_killed)
    file = tmp_path / "result.json"
    done = CliRunner().invoke(loadtest_command, [*BRIEF, "--spawn", "--json", str(file)])
    assert done.exit_code == BROKEN, done.output
    assert "1 server that crashed" in done.stdout
    assert "the server ended with status -9" in done.stdout
    found = json.loads(file.read_bytes())
    assert not found["passed"]
    assert found["throughput"]["acked"] > 0


def test_a_signal_while_the_server_drains_does_not_take_the_figures_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = target._stop

    async def interrupted_stop(process: trio.Process) -> str | None:
        os.kill(os.getpid(), signal.SIGINT)
        return await stop(process)

    monkeypatch.setattr(target, "_stop", interrupted_stop)
    file = tmp_path / "result.json"
    done = CliRunner().invoke(loadtest_command, [*BRIEF, "--spawn", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "PASSED" in done.stdout
    assert json.loads(file.read_bytes())["passed"]


@pytest.fixture
def signals_restored() -> Iterator[None]:
    """A run that was interrupted leaves them ignored, as its process is about to end."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("outlives", [True, False])
@pytest.mark.usefixtures("signals_restored")
def test_a_terminal_that_is_gone_ends_a_run_unless_that_was_started_to_outlive_it(outlives: bool) -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked()
        return "done"

    signal.signal(signal.SIGHUP, signal.SIG_IGN if outlives else signal.SIG_DFL)
    if outlives:
        assert run_until_signal(work, ()) == "done"
    else:
        with pytest.raises(Interrupted):
            run_until_signal(work, ())


def test_standard_output_is_called_by_its_name_where_an_interrupted_run_has_not_written_it() -> None:
    said = Interrupted(unwritten=[Path("-"), None]).message.splitlines()
    assert said[1:] == ["standard output was not written."]


@pytest.mark.parametrize("fault", ["none", "repeats"])
@pytest.mark.usefixtures("signals_restored")
def test_what_was_found_before_a_run_was_interrupted_is_told(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Display.show

    def show_and_interrupt(display: Display, recorder: Recorder) -> None:
        show(display, recorder)
        if recorder.problems or (fault == "none" and recorder.totals.delivered):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "show", show_and_interrupt)
    file = tmp_path / "result.json"
    with fake_server(fault) as fake:
        options = ["--duration", "60", "--web", f"127.0.0.1:{fake.port}", "--json", str(file)]
        done = CliRunner().invoke(loadtest_command, [*BRIEF, *options])
    first, *found, last = done.stderr.splitlines()
    assert last == f"{file} was not written."
    if fault == "none":
        assert (done.exit_code, found) == (INTERRUPTED, [])
        assert first == "Interrupted: the run did not come to its end, and nothing was judged."
    else:
        assert done.exit_code == BROKEN
        assert first == "Interrupted: the run did not come to its end. Until then it had found:"
        assert found[0] == "  1 messages that came more than once"
        assert "offset 40 came after 40, repeated" in found[1]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.usefixtures("signals_restored")
def test_a_signal_while_the_log_is_read_back_does_not_take_the_figures_along(
    workers: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Display.show

    def show_and_interrupt(display: Display, recorder: Recorder) -> None:
        show(display, recorder)
        if recorder.phase == "reading the log back":
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "show", show_and_interrupt)
    file = tmp_path / "result.json"
    with fake_server("keeps to itself") as fake:
        options = ["--web", f"127.0.0.1:{fake.port}", "--workers", workers, "--json", str(file)]
        done = CliRunner().invoke(loadtest_command, [*BRIEF, *options])
    assert done.exit_code == INTERRUPTED, done.output
    found = json.loads(file.read_bytes())
    acked = found["throughput"]["acked"]
    assert found["log_read"] == {"read": 0, "late": 0, "interrupted": acked, "trimmed": 0, "replaced": 0}
    assert f"! {acked:,} acknowledged messages were not read back: the reading was interrupted." in done.stdout
    assert "PASSED" in done.stdout


@pytest.mark.usefixtures("signals_restored")
def test_a_signal_right_before_the_log_is_read_back_leaves_no_result_that_nobody_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle = Stage.settle

    async def settle_and_interrupt(stage: Stage) -> None:
        await settle(stage)
        os.kill(os.getpid(), signal.SIGINT)
        with trio.CancelScope(shield=True):  # as if the signal had come together with the last answer
            await trio.testing.wait_all_tasks_blocked()

    monkeypatch.setattr(Stage, "settle", settle_and_interrupt)
    with fake_server("stores other data") as fake:
        done = CliRunner().invoke(loadtest_command, [*BRIEF, "--web", f"127.0.0.1:{fake.port}"])
    assert done.exit_code == INTERRUPTED, done.output
    assert done.stderr == "Interrupted: the run did not come to its end, and nothing was judged.\n"


async def test_a_worker_that_is_stopped_ends_the_run(autojump_clock: trio.testing.MockClock) -> None:
    _, stdout = trio.testing.memory_stream_one_way_pair()
    worker = cast(Any, SimpleNamespace(stdout=stdout))
    with trio.fail_after(SILENCE_S + 1), pytest.raises(CrewFailed, match="a worker has been silent for 30 s"):
        await Crew([worker], lambda tick: None)._listen(worker)


def test_a_worker_ends_when_it_is_dismissed_and_not_before() -> None:
    (share,) = share_out(Plan(scenario="ingest"), Target(("", 0), ("", 0), None, None), "run")
    command = [sys.executable, "-m", "trisync.loadtest.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(share) + b"\n" + msgspec.json.encode(Finish()) + b"\n")
        process.stdin.flush()
        reports = msgspec.json.Decoder(Report)
        while not isinstance(reports.decode(process.stdout.readline()), Done):
            pass
        assert isinstance(reports.decode(process.stdout.readline()), Tick), "others may still be busy"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


async def test_a_worker_that_ticks_may_take_its_time(autojump_clock: trio.testing.MockClock) -> None:
    tell, stdout = trio.testing.memory_stream_one_way_pair()
    stdin = SimpleNamespace(aclose=trio.lowlevel.checkpoint)
    worker = cast(Any, SimpleNamespace(stdin=stdin, stdout=stdout, wait=trio.lowlevel.checkpoint))
    ticks: list[Tick] = []
    crew = Crew([worker], ticks.append)
    await crew.dismiss()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew._listen, worker)
        for number in range(5):
            await trio.sleep(SILENCE_S - 1)
            await tell.send_all(msgspec.json.encode(Tick(0, number, 0.0, Totals(), {}, {}, {}, [])) + b"\n")
        await tell.aclose()
    assert len(ticks) == 5
