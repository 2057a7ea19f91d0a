"""One run, from a plan to its result: the server, the crew, the recorder and a scenario, put together."""

import math
import os
import resource
import secrets
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime

import trio

from trisync.loadtest.crew import hire
from trisync.loadtest.machine import describe_machine, machine_idle_s, usage, why_full
from trisync.loadtest.plan import Plan
from trisync.loadtest.recording import SAMPLES_MAX, Recorder
from trisync.loadtest.report_words import time_text
from trisync.loadtest.results import Effort, LogRead, Result, Throughput, distribution
from trisync.loadtest.scenarios import READ_BACK_S, SCENARIOS, Stage, share_out
from trisync.loadtest.target import ServerFailed, Target, TargetRefused, spawned
from trisync.version import __version__

SHOW_S = 0.25
"""How often the display is shown anew."""

GROWTH_S_MIN = 600.0
"""Measured for less than this, a server that warms up cannot be told from one that grows."""

RATE_KEPT = 0.98
"""So much of the publishes that are due must be acknowledged: the last ones' answers come behind the measured part."""

FILES_BESIDE = 100
"""Open files that a process has room for beside its connections, the server's log among them."""

Show = Callable[[Recorder], None]


async def run(plan: Plan, target: Target | str, show: Show, interrupted: trio.Event, command: str = "") -> Result:
    """Carry a plan out against a server, or one of its own with the durability given in its stead.

    `show` is called every SHOW_S. Raises TargetRefused, CrewFailed and OSError. Cancelled, it stops the load and
    its own server, and removes that one's data. Once only the log is to be read back, it is not cancelled any more, and
    returns what was measured; `interrupted` then ends the reading.
    """
    refuse_too_many_files(plan, of_its_own=isinstance(target, str))
    try:
        async with spawned(target) if isinstance(target, str) else nullcontext(target) as server:
            started = datetime.now(UTC)
            sample_s = max(plan.tick_s, plan.duration_s / SAMPLES_MAX)
            recorder = Recorder(sample_s, lambda: (usage(server.pid), machine_idle_s()), of_acks=plan.of_acks)
            shares = share_out(plan, server, secrets.token_hex(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_show_on, show, recorder)
                async with hire(shares, recorder.add) as crew:
                    stage = Stage(plan, crew, recorder, server)
                    await SCENARIOS[plan.scenario].play(stage)
                    await trio.lowlevel.checkpoint_if_cancelled()  # a crew that is cancelled already judges nothing
                    nursery.cancel_scope.shield = True
                    recorder.look_back()
                    await stage.finish(interrupted)
                nursery.cancel_scope.cancel()
            show(recorder)
    except ServerFailed as failure:  # at its stop: what was measured until then is not lost
        recorder.problems.add("crashed", str(failure))
    return _result(stage, recorder, started, command)


def refuse_too_many_files(plan: Plan, *, of_its_own: bool) -> None:
    """Raise TargetRefused where a worker, or a server of its own, would need more open files than it may have.

    Else the server would be blamed for the connections that could not be made.
    """
    connections = plan.publishers + plan.subscribers + plan.connections
    files = FILES_BESIDE + (connections if of_its_own else math.ceil(connections / plan.workers))
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != limit < files:
        raise TargetRefused(
            f"{connections:,} connections need up to {files:,} open files in a process, and the limit is {limit:,} "
            "(ulimit -Hn): raise it, or ask for fewer"
        )


async def _show_on(show: Show, recorder: Recorder) -> None:
    while True:
        show(recorder)
        await trio.sleep(SHOW_S)


def _result(stage: Stage, recorder: Recorder, started: datetime, command: str) -> Result:
    plan = stage.plan
    effort = recorder.effort(paced=plan.rate > 0, with_growth=shows_growth(plan))
    problems = recorder.problems.listed()
    return Result(
        tool=f"trisync loadtest {__version__}",
        started=started.isoformat(timespec="seconds"),
        machine=describe_machine(),
        command=command,
        plan=plan,
        durability=stage.target.durability,
        passed=not problems,
        problems=problems,
        remarks=[*_remarks(plan, recorder, effort), *on_unread(stage.log_read)],
        throughput=recorder.throughput(),
        latency=distribution(recorder.latencies),
        ack_latency=distribution(recorder.ack_latencies),
        lateness=distribution(recorder.lateness),
        connecting=stage.connecting,
        returning=stage.returning,
        fairness=stage.fairness,
        log_read=stage.log_read,
        effort=effort,
        series=recorder.series,
    )


def shows_growth(plan: Plan) -> bool:
    """Whether the slope of the server's memory is a figure of this plan."""
    return plan.scenario == "soak" and plan.duration_s >= GROWTH_S_MIN


def _remarks(plan: Plan, recorder: Recorder, effort: Effort) -> list[str]:
    remarks = on_the_generator(effort, max(recorder.lateness, default=0) if plan.rate else None)
    remarks += on_a_full_machine(effort, os.cpu_count() or 1)
    remarks += on_the_rate(plan, recorder.throughput())
    if recorder.totals.unsent:
        remarks.append(
            f"{recorder.totals.unsent:,} messages were due and never sent, as the server still did not take them "
            f"{plan.patience_s:g} s after the end: they are in none of the latencies, which would be worse with them."
        )
    if recorder.totals.trimmed:
        remarks.append(
            f"{recorder.totals.trimmed:,} deliveries were not made, as the server had removed the messages before: it "
            "said so. What came behind such a gap may not have been compared with what others got."
        )
    if plan.scenario == "soak" and not shows_growth(plan) and effort.server_memory_max_bytes is not None:
        remarks.append(
            f"The run was too short to say whether the server's memory grows: {plan.duration_s:g} s were measured, and "
            f"it takes {GROWTH_S_MIN / 60:.0f} minutes."
        )
    return remarks


def on_the_generator(effort: Effort, late_us: int | None) -> list[str]:
    """What there is to say where it was the limit; in an open loop its messages left up to so late."""
    if not effort.generator_limited:
        return []
    server = "" if effort.server_cpu is None else f", while the server used {effort.server_cpu:.0%} of one"
    late = "" if late_us is None else f"; messages left up to {time_text(late_us)} behind their time"
    return [
        f"The generator was the limit: its busiest worker used {max(effort.workers_cpu, default=0):.0%} of a core"
        f"{server}{late}. The server can do better than these figures; try more --workers, or another machine."
    ]


def on_the_rate(plan: Plan, throughput: Throughput) -> list[str]:
    """What there is to say where fewer publishes were acknowledged than were due."""
    measured_s = throughput.measured_s  # up to the ticks behind the end, where nothing is due any more
    acked, due = throughput.acked_per_s * measured_s, plan.rate * min(measured_s, plan.duration_s)
    # Of a worker's, if it publishes, one more or less is due by where its measured part begins.
    if plan.scenario == "fairness" or acked + min(plan.workers, plan.publishers) >= RATE_KEPT * due:
        return []
    return [f"The rate was not kept: {acked:,.0f} of {due:,.0f} publishes were acknowledged while it was measured."]


def on_unread(log: LogRead) -> list[str]:
    """What there is to say of acknowledged messages that were not read back, though nothing broke."""
    reasons = [
        (log.late, f"after {READ_BACK_S:g} s of reading there were so many left, chosen at random"),
        (log.interrupted, "the reading was interrupted"),
        (log.trimmed, "the server says that they, or others beside them, were trimmed meanwhile"),
        (log.replaced, "the log is another one than at the beginning, by its epoch"),
    ]
    return [f"{count:,} acknowledged messages were not read back: {why}." for count, why in reasons if count]


def on_a_full_machine(effort: Effort, cores: int) -> list[str]:
    """What there is to say where none of a machine's cores was idle."""
    why = why_full(effort.machine_idle, effort.server_cpu, sum(effort.workers_cpu), cores)
    return [] if why is None else [f"The machine had nothing left to give: {why}."]
