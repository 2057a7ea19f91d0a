"""Rounds of SIGKILL under load: a server, its clients at full speed, its end, and the log it left, judged each time.

A generation of rounds shares one data folder and one set of clients; at its end a last server satisfies all of them
and stops in good order.
"""

import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tests.torture.checking import problems_of
from tests.torture.clients import Client, Doors, make_clients
from tests.torture.points import POINTS, Point, killed_at
from tests.torture.server import STOP_S, Server, ServerFailed
from trisync.loadtest.links import Loop
from trisync.storage.sqlite_opening import FILE_NAME

ROUNDS_OF_A_GENERATION = 5
"""Rounds on one log: each is judged whole, so that it must not grow for ever."""
LOAD_S = 0.8
"""The longest load of a round that ends at random."""
POINT_S = 2.5
"""How long a point may take to be reached; strace makes a server slow."""
SATISFIED_S = 30.0
"""How long a last server may take to satisfy all clients; no measurement."""
TURN_S = 0.005

AT_RANDOM, WHILE_STARTING = "at a random moment", "while it starts"


class Totals(NamedTuple):
    """What all rounds came to."""

    rounds: int
    kills: Counter[str]
    """By where the server was killed."""
    acknowledged: int
    repeated: int
    """Acknowledged only when they were sent again: stored, though a kill took the answer."""
    delivered: int
    starts_s: list[float]
    """Of servers that found what a kill had left."""
    problems: list[str]

    @property
    def longest_start_ms(self) -> float:
        """Of all that count, without waiting for a processor."""
        return 1000 * max(self.starts_s, default=0.0)

    def summary(self) -> str:
        """For people."""
        where = "\n".join(f"  {count:4} {name}" for name, count in self.kills.most_common())
        start = "a start after a kill was not measured"
        if self.starts_s:
            median_ms = 1000 * statistics.median(self.starts_s)
            start = (
                f"a start after a kill took {median_ms:.0f} ms (median), {self.longest_start_ms:.0f} ms at most, "
                "without waiting for a processor"
            )
        return (
            f"{self.rounds} servers were killed:\n{where}\n"
            f"{self.acknowledged} publishes were acknowledged, {self.repeated} of them when sent again; "
            f"{self.delivered} deliveries were checked\n"
            f"{start}\n{len(self.problems)} problems"
        )


class Generation:
    """A log, its clients, and the servers that come and go."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.problems: list[str] = []
        self.starts_s: list[float] = []
        self._folder = folder / "data"
        self._copy = folder / "copy"
        self._chance = chance
        self._loop = Loop()
        self.producers, self.subscribers = make_clients(chance, self.problems.append)
        self._clients: list[Client] = [*self.producers, *self.subscribers]
        self._killed = False

    def close(self) -> None:
        """Let go of the sockets."""
        self._end_connections()
        self._loop.close()

    def round(self, point: Point | None) -> str:
        """Run a server until it is killed, and judge what it left; returns where it was killed."""
        if point is not None:
            return self._killed_at(point)
        with closing(Server(self._folder)) as server:
            if self._chance.random() < 0.15:
                server.wait_ready(self._chance.uniform(0, 0.5))
                server.kill()
                self._judge()
                return WHILE_STARTING
            doors = server.doors()
            if self._killed:
                self.starts_s.append(server.start_s)
            self._load(server, doors, self._chance.uniform(0.05, LOAD_S))
            server.kill()
            self._judge()
            return AT_RANDOM

    def _killed_at(self, point: Point) -> str:
        times = round(point.times_max ** self._chance.random())
        self._folder.mkdir(exist_ok=True)  # strace resolves the path when it starts
        with closing(Server(self._folder, under=killed_at(point, self._folder, times))) as server:
            doors = server.wait_ready()
            if doors is None and server.status is None:
                raise ServerFailed(f"a traced server did not start: {server.said()}")
            if doors is not None:
                self._load(server, doors, POINT_S)
            reached = server.status is not None
            server.kill()
            self._judge()
            return AT_RANDOM if not reached else point.name if doors is not None else f"{point.name}, at its start"

    def satisfy(self) -> None:
        """Run a last server until all clients have all, and stop it in good order."""
        for producer in self.producers:
            producer.resting = True
        with closing(Server(self._folder)) as server:
            self._connect(server.doors())
            if not self._turn_until(self._all_satisfied, SATISFIED_S):
                self.problems.append(f"{SATISFIED_S:.0f} s after the last start, not all clients have all")
            server.drain()
            if not self._turn_until(lambda: server.status is not None, STOP_S) or server.status != 0:
                self.problems.append(f"the last server's status is {server.status}: {server.said()}")
        self._end_connections()
        self._judge()

    def _load(self, server: Server, doors: Doors, duration_s: float) -> None:
        """Serve the clients for so long, or until the server is gone."""
        self._connect(doors)
        self._turn_until(lambda: server.status is not None, duration_s)
        if server.status is None and (lost := [client.name for client in self._clients if client.link is None]):
            self.problems.append(f"a living server ended the connections of {', '.join(lost)}: {server.said()}")

    def _connect(self, doors: Doors) -> None:
        for client in self._clients:
            client.connect(self._loop, doors)

    def _turn_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() >= until:
                return False
            self._loop.turn(TURN_S)
        return True

    def _all_satisfied(self) -> bool:
        stored = sum(len(producer.acknowledged) - 1 for producer in self.producers)
        return all(producer.satisfied for producer in self.producers) and all(
            sum(map(len, subscriber.seen.values())) >= stored for subscriber in self.subscribers
        )

    def _end_connections(self) -> None:
        """What a killed server has sent may still be on its way: it was sent, and counts."""
        self._turn_until(lambda: all(client.link is None for client in self._clients), 2 * TURN_S)
        for client in self._clients:
            client.hang_up()

    def _judge(self) -> None:
        """Judge a copy: the next server is to find what the kill left, and nothing that somebody mended."""
        self._killed = True
        self._end_connections()
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.mkdir()
        for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-journal"):
            if (self._folder / name).exists():
                shutil.copy(self._folder / name, self._copy)
        file = self._copy / FILE_NAME
        if file.exists() and file.stat().st_size:
            self.problems += problems_of(file, self.producers, self.subscribers)
        elif any(len(producer.acknowledged) > 1 for producer in self.producers):
            self.problems.append("there is no log any more")


def run_rounds(
    rounds: int, folder: Path, seed: int, points: bool, progress: Callable[[int, list[str]], None]
) -> Totals:
    """Kill so many servers, at points and at random in turn; stops at the first problem, and keeps its data then.

    Raises ServerFailed where a server does not start on what a kill has left.
    """
    chance = random.Random(seed)
    kills: Counter[str] = Counter()
    starts_s: list[float] = []
    problems: list[str] = []
    done = acknowledged = repeated = delivered = 0
    while done < rounds and not problems:
        data = folder / f"from-round-{done}"
        data.mkdir()
        with closing(Generation(data, chance)) as generation:
            while True:
                # Every other kill is at a point; these take turns, so that few rounds have all.
                point = POINTS[done // 2 % len(POINTS)] if points and done % 2 else None
                kills[generation.round(point)] += 1
                done += 1
                progress(done, generation.problems)
                if generation.problems or done == rounds or done % ROUNDS_OF_A_GENERATION == 0:
                    break
            if not generation.problems:
                generation.satisfy()
            problems += generation.problems
            starts_s += generation.starts_s
            acknowledged += sum(len(producer.acknowledged) - 1 for producer in generation.producers)
            repeated += sum(producer.repeated for producer in generation.producers)
            delivered += sum(len(seen) for subscriber in generation.subscribers for seen in subscriber.seen.values())
        if not problems:
            shutil.rmtree(data)
    return Totals(done, kills, acknowledged, repeated, delivered, starts_s, problems)
