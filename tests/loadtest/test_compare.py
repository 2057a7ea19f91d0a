"""The comparison: peers that cheat, each peer that is installed, and the reports."""

import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import fake_server
from tests.loadtest.signalled import INTERRUPTED_SAID, signalled
from trisync.cli.errors import INTERRUPTED
from trisync.loadtest import compare as comparing
from trisync.loadtest import peer_servers
from trisync.loadtest.compare import ROWS, Contender, Goal, Measurement, Row, measure, ratios, summarise
from trisync.loadtest.compare_cli import compare_command
from trisync.loadtest.endings import BROKEN
from trisync.loadtest.peer_dialects import DIALECTS, PeerDialect
from trisync.loadtest.peer_load import Generator, Load
from trisync.loadtest.peer_servers import PEERS
from trisync.loadtest.target import TargetRefused

SIZE = 60
NODE_MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]


class FakeRedis:
    """Publishes to all but what it withholds: from its last subscriber, the message of a number."""

    def __init__(self, withheld: int) -> None:
        self.withheld = b",%-9d," % withheld
        self.lock = threading.Lock()
        self.subscribers: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ConnectionError), connection, connection.makefile("rb") as words:
            while word := words.readline():
                with self.lock:
                    if word == b"PING\r\n":
                        connection.sendall(b"+PONG\r\n")
                    elif word.startswith(b"SUBSCRIBE"):
                        self.subscribers.append(connection)
                    else:
                        data = [words.readline() for _ in range(6)][-1]
                        for subscriber in self.subscribers:
                            if subscriber is not self.subscribers[-1] or self.withheld not in data:
                                subscriber.sendall(DIALECTS["redis-pubsub"].delivered(SIZE) + data)
                        connection.sendall(b":3\r\n")


@contextmanager
def fake_redis(withheld: int) -> Iterator[int]:
    fake = FakeRedis(withheld)
    thread = threading.Thread(target=fake.accept, daemon=True)
    thread.start()
    try:
        yield fake.listener.getsockname()[1]
    finally:
        fake.listener.shutdown(socket.SHUT_RDWR)
        fake.listener.close()
        thread.join(PATIENCE_S)


def load_of(port: int, **changes: Any) -> Load:
    """A load that is over soon, of one publisher."""
    return Load(
        host="127.0.0.1",
        port=port,
        pid=os.getpid(),
        publishers=1,
        window=8,
        warmup_s=0.05,
        duration_s=0.2,
        message_bytes=SIZE,
        **changes,
    )


@pytest.mark.parametrize("sweep_s", [0.0, 0.02])
@pytest.mark.parametrize(("withheld", "kinds"), [(0, set()), (3, {"lost"})])
def test_who_drops_a_message_does_not_win_by_it(withheld: int, kinds: set[str], sweep_s: float) -> None:
    with fake_redis(withheld) as port:
        outcome = Generator(load_of(port, peer="redis-pubsub", subscribers=3, sweep_s=sweep_s)).run()
    assert {problem.kind for problem in outcome.problems} == kinds
    assert outcome.sent > withheld
    assert outcome.delivered == 3 * outcome.sent - len(kinds)


@pytest.mark.parametrize("subscribers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("none", set()),
        ("drops", {"lost"}),
        ("forgets", {"lost", "unkept"}),
        ("stores nothing", {"lost"}),
        ("loses the tail", {"lost"}),
        ("loses one", {"lost"}),
    ],
)
def test_trisync_is_held_to_the_same(fault: str, kinds: set[str], subscribers: int) -> None:
    with fake_server(fault) as fake:
        patience_s = 0.6 if kinds else PATIENCE_S  # where all is well, a slow machine is no fault
        load = load_of(fake.port, transport="lines", subscribers=subscribers, patience_s=patience_s)
        outcome = Generator(load).run()
    found = {problem.kind for problem in outcome.problems}
    assert kinds <= found
    assert bool(kinds) == bool(found)
    assert outcome.sent > 40


@pytest.mark.parametrize("fault", ["dies", "cuts off"])
@pytest.mark.parametrize("subscribers", [0, 2])
def test_trisync_that_could_not_answer_is_not_said_to_have_broken_its_word(subscribers: int, fault: str) -> None:
    with fake_server(fault) as fake:
        outcome = Generator(load_of(fake.port, transport="lines", subscribers=subscribers)).run()
    found = {problem.kind for problem in outcome.problems}
    assert "closed" in found
    assert "unkept" not in found


def test_a_peer_that_dies_is_not_said_to_have_broken_its_word() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def die() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"+PONG\r\n")
                connection.recv(1 << 16)
                connection.sendall(b"$3\r\n1-1\r\n")

        thread = threading.Thread(target=die)
        thread.start()
        outcome = Generator(load_of(server.getsockname()[1], peer="redis-streams", subscribers=0)).run()
        thread.join(PATIENCE_S)
    assert {problem.kind for problem in outcome.problems} == {"closed"}


def test_who_never_answers_is_given_up_and_it_is_said_how_many_waited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        load = load_of(silent.getsockname()[1], peer="nats", subscribers=2, patience_s=0.1)
        outcome = Generator(load).run()
    problems = {problem.kind: problem for problem in outcome.problems}
    assert {kind: problem.count for kind, problem in problems.items()} == {"stalled": 1, "unanswered": 3}
    assert problems["stalled"].examples[0].endswith(" s, and 3 clients still waited")


def small(dialect: PeerDialect) -> Row:
    """A row that is over soon: durable publishes for those that store, else a fan-out."""
    stores = bool(DIALECTS[dialect].ask_count)
    contenders = [Contender("trisync", 16, transport="lines"), Contender(PEERS[dialect].name, 16, peer=dialect)]
    goals = [Goal("trisync", PEERS[dialect].name, 0.5)]
    return Row("a load", "messages", 2 if stores else 1, 0 if stores else 5, contenders, goals)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> PeerDialect:
    """Each peer that is installed."""
    dialect: PeerDialect = request.param
    if PEERS[dialect].find(NODE_MODULES) is None:
        pytest.skip(peer_servers.missing(PEERS[dialect]))
    return dialect


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers of a test have their folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def test_a_peer_is_measured_keeps_everything_and_leaves_nothing_behind(
    peer: PeerDialect, temporary: Path
) -> None:
    row = small(peer)
    found = await measure(row, row.contenders[1], 0.3, NODE_MODULES)
    assert found.problems == []
    assert found.per_s > 100
    assert os.listdir(temporary) == []
    assert re.search(r"\d\.\d", PEERS[peer].version(NODE_MODULES))


async def test_a_peer_is_ended_with_its_measurement(peer: PeerDialect) -> None:
    async with peer_servers.running(peer, NODE_MODULES) as target:
        assert target.pid is not None
        os.kill(target.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(target.pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(target.tcp).close()


async def test_a_peer_that_does_not_start_is_no_run_and_says_why(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    options = ["-c", "raise SystemExit('no room')"]
    broken = PEERS["nats"]._replace(program=sys.executable, options=lambda port, folder: options)
    monkeypatch.setitem(PEERS, "nats", broken)
    with pytest.raises(TargetRefused, match="NATS core did not start: no room"):
        async with peer_servers.running("nats", []):
            raise AssertionError("it is not there")
    assert os.listdir(temporary) == []


def compare(*options: str) -> Result:
    return CliRunner().invoke(compare_command, ["--duration", "0.3", *options])


@pytest.mark.parametrize("peer", ["redis-streams", "nats"], indirect=True)  # one that stores, and one that does not
def test_the_whole_command_prints_ratios_and_writes_them_as_json(
    peer: PeerDialect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ROWS, "ingest", small(peer))
    file = tmp_path / "figures.json"
    result = compare("--only", "ingest", "--rounds", "2", "--json", str(file), "--markdown")
    assert result.exit_code == 0, result.output
    name = PEERS[peer].name
    order = [line for line in result.stderr.splitlines() if line.startswith("ingest, round")]
    assert [line.split(": ")[:2] for line in order] == [
        [f"ingest, round {number}", who] for number in (1, 2) for who in ("trisync", name)
    ]
    assert f"× {name} (" in result.stdout
    assert "wanted 0.5" in result.stdout

    found = json.loads(file.read_bytes())
    assert set(found) == {
        *("tool", "started", "machine", "command", "duration_s", "rounds", "message_bytes"),
        *("versions", "missing", "passed", "rows"),
    }
    assert (found["passed"], found["rounds"], found["missing"]) == (True, 2, {})
    assert set(found["versions"]) == {"trisync", name}
    (row,) = found["rows"]
    ours, theirs = row["contenders"]
    (ratio,) = row["ratios"]
    assert (ratio["of"], ratio["to"], ratio["at_least"]) == ("trisync", name, 0.5)
    assert ratio["median"] == pytest.approx(ours["median"] / theirs["median"], abs=0.001)
    assert ratio["min"] <= ratio["max"]
    for each in (ours, theirs):
        assert len(each["rounds"]) == 2
        assert 0 < each["min"] <= each["median"] <= each["max"]
        assert all(one["generator_cpu"] > 0 and one["problems"] == [] for one in each["rounds"])


def test_peers_that_are_missing_are_named_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    contenders = [Contender("trisync", 16, transport="lines"), *ROWS["fanout-100"].contenders[2:]]
    monkeypatch.setitem(ROWS, "fanout-100", Row("a load", "deliveries", 1, 3, contenders, []))
    file = tmp_path / "figures.json"
    result = compare("--only", "fanout-100", "--rounds", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "NATS core is missing: apt-get install nats-server" in result.stderr
    assert "Redis Pub/Sub is missing: apt-get install redis-server" in result.stdout.replace("\n", " ")
    found = json.loads(file.read_bytes())
    assert set(found["missing"]) == {"Redis Pub/Sub", "NATS core", "Node ws"}
    assert "npm install" in found["missing"]["Node ws"]
    assert [each["name"] for each in found["rows"][0]["contenders"]] == ["trisync"]
    assert found["rows"][0]["ratios"] == []


def test_who_lost_messages_is_named_and_fails_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lossy(*given: object) -> Measurement:
        return Measurement(1e6, 0.95, None, ["2 messages that never came"])

    monkeypatch.setattr(comparing, "measure", lossy)
    result = compare("--only", "ingest", "--rounds", "2", "--quiet", "--markdown")
    assert result.exit_code == BROKEN
    assert "1.00 M" not in result.stdout
    assert "| trisync, WebSocket, window of 512 | –, 2 of 2 broke | –" in result.stdout
    assert "ingest: trisync, WebSocket, window of 512: 2 messages that never came" in result.stdout
    assert "the generator's core was full" in result.stdout


@pytest.mark.parametrize(
    ("server_cpu", "idle", "why"),
    [
        (0.5, 0.01, "other programs used 1.0 of its 2 cores, and without them the figures may be better"),
        (1.4, 0.01, "server and generator shared its cores, so the figures are of both"),
        (1.4, 0.5, None),
        (1.4, None, None),
    ],
)
def test_a_machine_that_was_full_is_told_with_who_was_loaded_then(
    server_cpu: float, idle: float | None, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter([Measurement(1e6, 0.5, 0.5, [], 1.0), Measurement(1e6, 0.5, server_cpu, [], idle)] * 2)

    async def measured(*given: object) -> Measurement:
        return next(rounds)

    monkeypatch.setattr(comparing, "measure", measured)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    contenders = [Contender("trisync", 16, transport="lines"), Contender("another", 16, transport="ws")]
    monkeypatch.setitem(ROWS, "ingest", Row("a load", "messages", 1, 0, contenders, []))
    result = compare("--only", "ingest", "--rounds", "2", "--quiet", "--markdown")
    said = [line for line in result.stdout.splitlines() if "nothing left to give" in line]
    assert said == ([] if why is None else [f"- The machine had nothing left to give: {why} (ingest: another)."])


@pytest.mark.parametrize(("rounds", "often"), [("1", "once"), ("2", "2 times")])
def test_how_often_each_was_measured_is_said(rounds: str, often: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*given: object) -> Measurement:
        return Measurement(1e6, 0.5, 0.5, [])

    monkeypatch.setattr(comparing, "measure", measured)
    result = compare("--only", "ingest", "--rounds", rounds, "--quiet", "--markdown")
    assert f"each was measured {often} for 0.3 s, in turns" in result.stdout


def test_ratios_are_of_medians_with_the_range_of_rounds() -> None:
    row = small("nats")
    figures = [
        summarise(each, [Measurement(rate, 0.5, 0.5, []) for rate in rates])
        for each, rates in zip(row.contenders, [(100.0, 300.0, 500.0), (100.0, 200.0, 100.0)], strict=True)
    ]
    (ratio,) = ratios(row, figures)
    assert (ratio.median, ratio.min, ratio.max, ratio.at_least) == (3.0, 1.0, 5.0, 0.5)


def test_rounds_that_broke_are_in_no_median_and_no_ratio() -> None:
    row = small("nats")
    ours = [Measurement(rate, 0.5, 0.5, problems) for rate, problems in [(100.0, []), (9.0, ["lost"]), (300.0, [])]]
    theirs = [Measurement(rate, 0.5, 0.5, problems) for rate, problems in [(50.0, []), (50.0, []), (7.0, ["lost"])]]
    figures = [summarise(each, rounds) for each, rounds in zip(row.contenders, [ours, theirs], strict=True)]
    assert [(each.median, each.min, each.max) for each in figures] == [(200.0, 100.0, 300.0), (50.0, 50.0, 50.0)]
    (ratio,) = ratios(row, figures)
    assert (ratio.median, ratio.min, ratio.max) == (4.0, 2.0, 2.0)


@pytest.mark.parametrize("theirs", [Measurement(0.0, 0.5, 0.5, []), Measurement(5.0, 0.5, 0.5, ["lost"])])
def test_a_ratio_to_nothing_is_none(theirs: Measurement) -> None:
    row = small("nats")
    figures = [
        summarise(each, [one])
        for each, one in zip(row.contenders, [Measurement(5.0, 0.5, 0.5, []), theirs], strict=True)
    ]
    (ratio,) = ratios(row, figures)
    assert (ratio.median, ratio.min, ratio.max) == (None, None, None)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_every_goal_is_of_contenders_of_its_row(row: Row) -> None:
    names = [each.name for each in row.contenders]
    assert len(set(names)) == len(names)
    assert {name for goal in row.goals for name in (goal.of, goal.to)} <= set(names)


def test_a_signal_stops_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    options = ["--only", "ingest-50", "--duration", "50", "--quiet"]
    assert signalled(tmp_path, [signal.SIGTERM], "compare.py", *options) == (INTERRUPTED, INTERRUPTED_SAID)
    assert list(tmp_path.iterdir()) == []
