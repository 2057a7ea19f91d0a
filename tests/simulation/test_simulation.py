"""The simulation itself: it repeats itself exactly, finds what is planted, and finds nothing in the server as it is."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio._core import _run as scheduler

from tests.simulation.cli import describe, run_seeds
from tests.simulation.determinism import run_seeded
from tests.simulation.planted import PLANTS, planted
from tests.simulation.world import simulate

WORLDS = 2000
AT_A_TIME = 100
"""In one test, so that the processes among which the tests are divided end together."""
FOUND = (302693, 2016887, 2042762)
"""Worlds that showed what the first two thousand did not: tests/test_simulation_found.py has it as small cases."""
PLANTED_WORLDS = 1000
"""In so many worlds at most, a planted bug must show itself, if not in the one that is known for it: what changes the
order of things in the server makes that another one. Most show themselves in the first ten, the last after 510."""
CRASH = r"the server ended by itself|the server logged"
"""A world in which the server fell over proves nothing: a plant that no longer fits the code does that too."""
TOOL = Path(__file__).parents[2] / "tools" / "simulate.py"


@pytest.mark.parametrize("first", range(0, WORLDS, AT_A_TIME))
def test_no_promise_is_broken_in_two_thousand_worlds(first: int) -> None:
    assert not broken(range(first, first + AT_A_TIME))


def test_no_promise_is_broken_in_worlds_in_which_one_was() -> None:
    assert not broken(FOUND)


def broken(seeds: Sequence[int]) -> str:
    """What to say of the worlds in which a promise is broken."""
    return "\n".join(describe(outcome) for outcome in run_seeds(seeds) if outcome.problems)


def miss(plant: str) -> list[str]:
    """What shows itself in the place of a planted bug; nothing if the bug does, in some world."""
    others = ["nothing"]
    with planted(plant):
        for seed in (PLANTS[plant].seed, *range(PLANTED_WORLDS)):
            problems = simulate(seed).problems
            is_found = any(re.search(PLANTS[plant].breaks, problem) for problem in problems)
            if is_found and not any(re.search(CRASH, problem) for problem in problems):
                return []
            others = (others + problems)[-3:]
    return others


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found_by_the_promise_that_it_breaks(plant: str) -> None:
    assert not miss(plant)


def test_each_promise_has_a_planted_bug() -> None:
    assert len(PLANTS) > 20


# Repeating itself


def scheduled(seed: int) -> list[int]:
    """The order in which Trio lets many tasks have a turn that could all have it."""
    order: list[int] = []

    async def take_turns(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(take_turns, number)

    run_seeded(seed, main)
    return order


def test_trios_scheduler_still_has_the_private_switches_that_seed_it() -> None:
    assert isinstance(scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(scheduler._r, random.Random)
    assert scheduled(1) == scheduled(1)
    assert scheduled(1) != scheduled(2)
    assert sorted(scheduled(1)) == sorted(list(range(20)) * 3)


def test_virtual_time_passes_at_once() -> None:
    async def main() -> float:
        began = trio.current_time()
        await trio.sleep(86400)
        return trio.current_time() - began

    assert run_seeded(0, main) == 86400


def run_tool(*options: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, TOOL, *options], capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def digest_in(said: str) -> str:
    match = re.search(r"trace (\w{32})", said)
    assert match, said
    return match[1]


@pytest.mark.parametrize("seed", [3, 55, 1283])
def test_a_seed_is_the_same_world_in_any_process_and_under_any_hash_seed(seed: int) -> None:
    here = simulate(seed).digest
    elsewhere = [digest_in(run_tool("--seed", str(seed), hash_seed=hash_seed).stdout) for hash_seed in ("0", "12345")]
    assert elsewhere == [here, here]
    assert simulate(seed).digest == here != simulate(seed + 1).digest


# The tool


def test_a_failing_seed_prints_the_command_that_replays_it() -> None:
    ran = run_tool("--seeds", "12", "--plant", "a-message-comes-before-its-own-ok")
    assert ran.returncode == 1
    match = re.search(r"^seed \d+ failed; replay it: tools/simulate\.py (.*)$", ran.stdout, re.MULTILINE)
    assert match, ran.stdout
    again = run_tool(*match[1].split())
    assert again.returncode == 1
    assert "BROKEN: " in again.stdout
    assert "before its own ok" in again.stdout
    assert "the server starts" in again.stdout


def test_worlds_without_a_problem_are_counted_and_the_tool_exits_with_0() -> None:
    ran = run_tool("--seeds", "30", "--seed", "100", "--processes", "2")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"30 worlds, \d+ events, 0 failed, \d+ s\n", ran.stdout)
