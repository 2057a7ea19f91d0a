"""The comparison: readers of foreign protocols, peers that cheat, each peer that is installed, and the reports."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import fake_server
from trisync.loadtest import compare as comparing
from trisync.loadtest import peer_servers
from trisync.loadtest.cli import BROKEN, INTERRUPTED
from trisync.loadtest.clients import Surroundings
from trisync.loadtest.compare import ROWS, Contender, Goal, Measurement, Row, measure, ratios, summarise
from trisync.loadtest.compare_cli import compare_command
from trisync.loadtest.measuring import Gauge
from trisync.loadtest.peer_clients import Listener
from trisync.loadtest.peer_dialects import DIALECTS, REPLY, PeerDialect, count_replies, split_nats, split_resp
from trisync.loadtest.peer_load import Generator, Load
from trisync.loadtest.peer_servers import PEERS, PeerFailed
from trisync.loadtest.problems import Problems
from trisync.loadtest.trails import Trail
from trisync.loadtest.transports import PING, PONG, TEXT, Malformed, Split

LAUNCHER = Path(__file__).parent.parent.parent / "tools" / "compare.py"
SIZE = 60
FANOUT: list[PeerDialect] = ["redis-pubsub", "nats", "node-ws"]
NODE_MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]

CUTS = st.lists(st.integers(0, 10**6), max_size=12)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


def fed(split: Split, chunks: list[bytes]) -> list[tuple[int, bytes]]:
    """What a reader finds that keeps what is behind the last whole piece."""
    found, tail = [], b""
    for chunk in chunks:
        tail += chunk
        pieces = split(tail)
        found += [(piece.opcode, piece.payload) for piece in pieces]
        tail = tail[pieces[-1].end :] if pieces else tail
    assert tail == b""
    return found


RESP = {
    b"+PONG\r\n": (PONG, b"PONG"),
    b"*2\r\n$4\r\npong\r\n$0\r\n\r\n": (PONG, b""),
    b":500\r\n": (REPLY, b"500"),
    b"$5\r\n1\r\n-0\r\n": (REPLY, b"1\r\n-0"),
    b"*3\r\n$9\r\nsubscribe\r\n$4\r\nload\r\n:1\r\n": (REPLY, b"1"),
    b"*3\r\n$7\r\nmessage\r\n$4\r\nload\r\n$4\r\na\r\nb\r\n": (TEXT, b"a\r\nb"),
}
NATS = {
    b'INFO {"server_id":"x"}\r\n': (REPLY, b'INFO {"server_id":"x"}'),
    b"PING\r\n": (PING, b"PING"),
    b"PONG\r\n": (PONG, b"PONG"),
    b"MSG load 1 4\r\na\r\nb\r\n": (TEXT, b"a\r\nb"),
    b"MSG load 1 reply 0\r\n\r\n": (TEXT, b""),
}


@given(words=st.lists(st.sampled_from(sorted(RESP)), min_size=1, max_size=12), cuts=CUTS)
def test_resp_is_read_however_it_is_cut(words: list[bytes], cuts: list[int]) -> None:
    assert fed(split_resp, pieces_of(b"".join(words), cuts)) == [RESP[word] for word in words]


@given(words=st.lists(st.sampled_from(sorted(NATS)), min_size=1, max_size=12), cuts=CUTS)
def test_nats_is_read_however_it_is_cut(words: list[bytes], cuts: list[int]) -> None:
    assert fed(split_nats, pieces_of(b"".join(words), cuts)) == [NATS[word] for word in words]


@pytest.mark.parametrize(
    ("split", "data"),
    [
        (split_resp, b"-ERR unknown command\r\n"),
        (split_resp, b"$-1\r\n"),
        (split_resp, b"$2\r\nabcd\r\n"),
        (split_resp, b"*0\r\n"),
        (split_resp, b"*1\r\n*1\r\n:1\r\n"),
        (split_nats, b"-ERR 'Slow Consumer'\r\n"),
        (split_nats, b"MSG load 1 x\r\n"),
        (split_nats, b"MSG load 1 2\r\nabcd\r\n"),
    ],
)
def test_errors_and_nonsense_of_a_peer_are_refused(split: Split, data: bytes) -> None:
    with pytest.raises(Malformed):
        split(data)


@given(
    replies=st.lists(st.sampled_from([b"$3\r\n1-0\r\n", b"$4\r\n1-10\r\n"]), max_size=9)
    | st.lists(st.sampled_from([b":0\r\n", b":500\r\n"]), max_size=9),
    cut=st.integers(0, 10**6),
)
def test_replies_are_counted_as_they_are_split(replies: list[bytes], cut: int) -> None:
    data = b"".join(replies)
    data = data[: cut % (len(data) + 1)]
    pieces = split_resp(data)
    assert count_replies(data) == (len(pieces), pieces[-1].end if pieces else 0)


@pytest.mark.parametrize("data", [b"", b"+PONG\r\n", b":1\r\n$3\r\n1-0\r\n", b":1\r\n-ERR no\r\n", b"PING\r\n"])
def test_other_replies_are_left_to_the_reader_of_them_all(data: bytes) -> None:
    assert count_replies(data) == (0, 0)


class Audience:
    """Listeners to a peer without a peer."""

    def __init__(self, dialect: PeerDialect, size: int) -> None:
        self.dialect = DIALECTS[dialect]
        self.problems = Problems()
        self.gauge = Gauge(0, self.problems)
        self.sent: list[bytes] = []
        around = Surroundings(self.gauge, lambda client: cast(Any, self))
        trail = Trail(0, "load", self.gauge, 1 << 20)
        self.listeners = [Listener(f"s{number}", around, trail, self.dialect, SIZE) for number in range(size)]
        self.split = self.dialect.split
        self.masker = None
        for listener in self.listeners:
            listener.link = cast(Any, self)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def stream(self, numbers: list[int]) -> list[bytes]:
        ends = b"" if self.dialect.transport == "ws" else b"\r\n"
        data = [(b'[0,%-9d,5,"' % number).ljust(SIZE - 2, b"x") + b'"]' for number in numbers]
        return [self.dialect.delivered(SIZE) + each + ends for each in data]

    def hear(self, listener: int, data: bytes, cuts: list[int]) -> None:
        for chunk in pieces_of(data, cuts):
            self.listeners[listener].receive(memoryview(chunk))

    def kinds(self) -> set[str]:
        for listener in self.listeners:
            listener.finish()
        return {problem.kind for problem in self.problems.listed()}


@pytest.mark.parametrize("dialect", FANOUT)
@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(CUTS, min_size=3, max_size=3))
def test_what_a_peer_delivers_whole_passes_however_it_is_cut(dialect: PeerDialect, cuts: list[list[int]]) -> None:
    audience = Audience(dialect, 3)
    data = b"".join(audience.stream(list(range(1, 31))))
    for listener, places in enumerate(cuts):
        audience.hear(listener, data, places)
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 90


@pytest.mark.parametrize("dialect", FANOUT)
@settings(max_examples=50, deadline=None)
@given(at=st.integers(1, 28), cuts=CUTS, fault=st.sampled_from(["lost", "repeated", "reordered"]), who=st.booleans())
def test_a_peer_that_cheats_is_found_out(dialect: PeerDialect, at: int, cuts: list[int], fault: str, who: bool) -> None:
    audience = Audience(dialect, 2)
    good = list(range(1, 31))
    bad = {
        "lost": good[:at] + good[at + 1 :],
        "repeated": good[: at + 1] + good[at:],
        "reordered": [*good[:at], good[at + 1], good[at], *good[at + 2 :]],
    }[fault]
    audience.hear(int(who), b"".join(audience.stream(bad)), cuts)
    audience.hear(int(not who), b"".join(audience.stream(good)), cuts[::-1])
    assert fault in audience.kinds()


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 30), cuts=CUTS)
def test_a_ping_of_nats_between_messages_breaks_nothing_and_is_answered(at: int, cuts: list[int]) -> None:
    audience = Audience("nats", 2)
    words = audience.stream(list(range(1, 31)))
    audience.hear(0, b"".join(words), [])
    audience.hear(1, b"".join([*words[:at], b"PING\r\n", *words[at:]]), cuts)
    assert audience.kinds() == set()
    assert audience.gauge.totals.delivered == 60
    assert audience.sent == [b"PONG\r\n"]


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


@pytest.mark.parametrize("sweep_s", [0.0, 0.02])
@pytest.mark.parametrize(("withheld", "kinds"), [(0, set()), (40, {"lost"})])
def test_who_drops_a_message_does_not_win_by_it(withheld: int, kinds: set[str], sweep_s: float) -> None:
    with fake_redis(withheld) as port:
        load = Load(
            peer="redis-pubsub",
            host="127.0.0.1",
            port=port,
            pid=os.getpid(),
            publishers=1,
            subscribers=3,
            window=8,
            warmup_s=0.05,
            duration_s=0.2,
            message_bytes=SIZE,
            sweep_s=sweep_s,
        )
        outcome = Generator(load).run()
    assert {problem.kind for problem in outcome.problems} == kinds
    assert outcome.sent > 40
    assert outcome.delivered == 3 * outcome.sent - len(kinds)


@pytest.mark.parametrize("subscribers", [0, 2])
@pytest.mark.parametrize(("fault", "kinds"), [("none", set()), ("drops", {"lost"}), ("forgets", {"lost", "unkept"})])
def test_trisync_is_held_to_the_same(fault: str, kinds: set[str], subscribers: int) -> None:
    with fake_server(fault) as fake:
        load = Load(
            transport="lines",
            host="127.0.0.1",
            port=fake.port,
            pid=os.getpid(),
            publishers=1,
            subscribers=subscribers,
            window=8,
            warmup_s=0.05,
            duration_s=0.2,
            message_bytes=SIZE,
            patience_s=0.6 if kinds else PATIENCE_S,  # where all is well, a slow machine is no fault
        )
        outcome = Generator(load).run()
    found = {problem.kind for problem in outcome.problems}
    assert kinds <= found
    assert bool(kinds) == bool(found)
    assert outcome.sent > 40


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


async def test_a_peer_is_ended_with_its_measurement(peer: PeerDialect) -> None:
    async with peer_servers.running(peer, NODE_MODULES) as (port, pid):
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


async def test_a_peer_that_does_not_start_is_no_run_and_says_why(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no room')"]
    broken = PEERS["nats"]._replace(find=lambda modules: command, options=lambda port, folder: [])
    monkeypatch.setitem(PEERS, "nats", broken)
    with pytest.raises(PeerFailed, match="NATS core did not start: no room"):
        async with peer_servers.running("nats", []):
            raise AssertionError("it is not there")
    assert os.listdir(temporary) == []


def compare(*options: str) -> Result:
    return CliRunner().invoke(compare_command, ["--duration", "0.3", *options])


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
    monkeypatch.setattr(peer_servers, "_program", lambda name: None)
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
    result = compare("--only", "ingest", "--rounds", "1", "--quiet")
    assert result.exit_code == BROKEN
    assert "ingest: trisync, WebSocket, window of 512: 2 messages that never came" in result.stdout
    assert "the generator's core was full" in result.stdout


def test_ratios_are_of_medians_with_the_range_of_rounds() -> None:
    row = small("nats")
    figures = [
        summarise(each, [Measurement(rate, 0.5, 0.5, []) for rate in rates])
        for each, rates in zip(row.contenders, [(100.0, 300.0, 500.0), (100.0, 200.0, 100.0)], strict=True)
    ]
    (ratio,) = ratios(row, figures)
    assert (ratio.median, ratio.min, ratio.max, ratio.at_least) == (3.0, 1.0, 5.0, 0.5)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_every_goal_is_of_contenders_of_its_row(row: Row) -> None:
    names = [each.name for each in row.contenders]
    assert len(set(names)) == len(names)
    assert {name for goal in row.goals for name in (goal.of, goal.to)} <= set(names)


def test_a_signal_stops_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(LAUNCHER), "--only", "ingest-50", "--duration", "50", "--quiet"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("*/data/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED
    assert said == b"Interrupted: the run did not come to its end, and nothing was judged.\n"
    assert list(tmp_path.iterdir()) == []
