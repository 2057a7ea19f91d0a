"""A load test catches every promise that a server breaks, says which, and fails."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import FAULTS, LOGS, VICTIM, fake_server
from trisync.loadtest import scenarios
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.endings import BROKEN
from trisync.loadtest.problems import KINDS
from trisync.loadtest.scenarios import BEFORE_THE_DROP


def load(port: int, *options: str, patience_s: float = 0.6) -> Result:
    address = f"127.0.0.1:{port}"
    shared = ["--tcp", address, "--web", address, "--quiet", "--patience", str(patience_s)]
    return CliRunner().invoke(loadtest_command, [*options, *shared])


def load_faulty(fault: str, *options: str) -> str:
    """Load such a server and return what was said of it, which must be that it failed.

    A machine that pauses may sleep through a short load before the fault has had its turn: then a longer one is tried.
    """
    for seconds in ("0.3", "3", "30"):
        with fake_server(fault) as fake:
            result = load(fake.port, *options, "--duration", seconds)
        if fake.has_failed:
            break
    assert result.exit_code == BROKEN, result.output
    assert "FAILED" in result.output
    return result.output


FANOUT = ("fanout", "--subscribers", "3", "--window", "8", "--warmup", "0")
INGEST = ("ingest", "--window", "8", "--warmup", "0", "--transport", "lines")

SAID = {
    "drops": "offset 40 never came, later ones did",
    "repeats": "offset 40 came after 40, repeated",
    "reorders": "offset 40 came after 41, reordered",
    "alters": "offset 40 is not what others got there",
    "forgets": "publisher 0's publish 40 was left out of the channel",
    "stops": "offset 40 never came, nor what is behind it",
    "doubles": "offset 41 is publisher 0's publish 40, repeated",
    "misnumbers": "acknowledged with offset 35, behind 39",
    "silent": "publisher 0 waits for answers",
    "refuses": "unavailable: not today",
    "cuts off": "publisher 0 waits for answers",
    "dies": "the server hung up",
    "hangs up": "the server hung up",
    "babbles": "Expected `int`, got `str`",
    "garbles": "'utf-8' codec can't decode",
    "nests": "maximum recursion depth exceeded",
    "exaggerates": "Expected `int` <= 9007199254740992",
    "renumbers": "Expected `int` <= 9007199254740992",
    "closes": "the server closed with 1001 bye",
    "corrupts": "offset 40 is not what was published",
    "shortens": "what came is not what was acknowledged at its offsets",
    "appends": "Expected `array` of at most length 5",
    "misdirects": "offset 40 is not what was published",
    "redates": "what came is not what was acknowledged at its offsets",
    "names": "offset 40 has a key or a sender that nobody gave it",
    "says no time": "offset 40 says no time",
    "turns back": "offset 40 has an earlier time than the one before it",
    "retimes": "offset 40 is not what others got there",
    "leaks": "publisher 0: message load/",
    "calls twins": "request 40 is called a duplicate, and is none",
    "confirms twice": "subscriber 0.0: ok",
    "pongs twice": "publisher 0: pong",
    "overtakes": "offset 21 came before the answer to subscribe",
    "redates for one": "offset 40 is not what others got there",
    "stores nothing": "is not in the log, nor what is behind it",
    "loses the tail": "is not in the log, nor what is behind it",
    "loses one": "offset 40 is not in the log, later ones are",
    "swaps two": "offset 40 is reordered in the log",
    "stores other data": "what came is not what was acknowledged at its offsets",
    "stores another time": "not everybody was told the same times",
    "goes on": "the log goes on to offset",
    "keeps to itself": "reader 0.0 got no answer",
    "pretends": "all up to offset 40 was called trimmed, and offset 1 is still there",
    "understates": "which is said to end at 0",
    "is many": " to others",
    "exchanges": "what came is not what was acknowledged at its offsets",
    "is late": "publisher 0 waits for answers",
}


KEPT = {
    "none": "messages read back from the log",
    "trims": "acknowledged messages were not read back: the server says that they",
    "is replaced": "acknowledged messages were not read back: the log is another one than at the beginning",
}


def test_every_fault_is_tested() -> None:
    assert set(SAID) | set(KEPT) == set(FAULTS)


@pytest.mark.parametrize("transport", ["lines", "ws"])
def test_a_server_that_keeps_everything_passes(transport: str) -> None:
    with fake_server("none") as fake:
        result = load(fake.port, *FANOUT, "--duration", "0.3", "--transport", transport, patience_s=PATIENCE_S)
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output


@pytest.mark.parametrize("fault", sorted(set(SAID) - {"closes", "exchanges", "overtakes"}))
def test_a_fault_is_named_and_fails_the_run_over_lines(fault: str) -> None:
    assert SAID[fault] in load_faulty(fault, *FANOUT, "--transport", "lines")


def test_acknowledgements_that_are_exchanged_do_not_make_up_for_each_other() -> None:
    options = ("fanout", "--subscribers", "2", "--publishers", "2", "--window", "1", "--warmup", "0")
    assert SAID["exchanges"] in load_faulty("exchanges", *options, "--transport", "lines")


@pytest.mark.parametrize(
    ("fault", "said"), [("redates for one", SAID["redates"]), ("retimes", SAID["stores another time"])]
)
def test_who_alone_in_a_worker_gets_something_else_or_another_time_is_found(fault: str, said: str) -> None:
    options = ("fanout", "--subscribers", "2", "--workers", "2", "--window", "8", "--warmup", "0")
    assert said in load_faulty(fault, *options, "--transport", "lines")


@pytest.mark.parametrize(
    "fault", ["drops", "repeats", "reorders", "alters", "forgets", "leaks", "calls twins", "pongs twice", "closes"]
)
def test_a_fault_is_named_and_fails_the_run_over_websocket(fault: str) -> None:
    assert SAID[fault] in load_faulty(fault, *FANOUT, "--transport", "ws")


MIXED = (
    *("mixed", "--channels", "3", "--follow", "1", "--zipf", "3", "--rate", "400"),
    *("--publishers", "1", "--subscribers", "2"),
)
"""Where the most popular channel has nearly everything, and not all of the others have a subscriber."""


@pytest.mark.parametrize("fault", sorted(LOGS.keys() - KEPT.keys()))
def test_what_was_delivered_and_is_not_in_the_log_is_found_among_many_channels(fault: str) -> None:
    said = load_faulty(fault, *MIXED, "--warmup", "0", "--transport", "lines")
    assert SAID[fault] in said


@pytest.mark.parametrize("fault", sorted(KEPT))
@pytest.mark.parametrize("options", [FANOUT, MIXED])
def test_what_a_server_says_that_it_no_longer_has_is_told_and_nothing_broke(
    options: tuple[str, ...], fault: str
) -> None:
    with fake_server(fault) as fake:
        result = load(fake.port, *options, "--duration", "1", "--transport", "lines", patience_s=PATIENCE_S)
    assert result.exit_code == 0, result.output
    assert KEPT[fault] in result.output


def test_where_there_is_no_time_to_read_the_log_it_says_how_much_was_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenarios, "READ_BACK_S", 0.0)
    file = tmp_path / "result.json"
    with fake_server("none") as fake:
        options = ("--duration", "0.3", "--transport", "lines", "--json", str(file))
        result = load(fake.port, *FANOUT, *options, patience_s=PATIENCE_S)
    found = json.loads(file.read_bytes())
    assert result.exit_code == 0, result.output
    assert found["log_read"] == {
        "read": 0,
        "late": found["throughput"]["acked"],
        "interrupted": 0,
        "trimmed": 0,
        "replaced": 0,
    }
    assert any("acknowledged messages were not read back: after " in remark for remark in found["remarks"])


@pytest.mark.parametrize(("fault", "connections"), [("none", 1), ("silent", 2)])
def test_the_log_is_not_read_over_a_connection_that_may_still_be_told_something_else(
    fault: str, connections: int
) -> None:
    with fake_server(fault) as fake:
        load(fake.port, *INGEST, "--duration", "1")
    assert len(fake.clients) == connections


def test_what_comes_while_the_log_is_read_back_is_late_and_was_asked_for() -> None:
    said = load_faulty("is late", *FANOUT, "--transport", "lines")
    assert SAID["is late"] in said
    assert KINDS["uninvited"] not in said


def test_the_log_is_read_over_two_connections_however_few_may_be_opened_at_once() -> None:
    options = ("resume", "--subscribers", "1", "--missed", "1000", "--concurrency", "1", "--transport", "lines")
    with fake_server("keeps to itself") as fake:
        said = load(fake.port, *options).output
    assert "reader 0.0 got no answer" in said
    assert "reader 0.1 got no answer" in said


@pytest.mark.parametrize("fault", ["drops", "repeats", "reorders", "forgets"])
def test_a_fault_is_found_by_subscribers_of_several_channels_too(fault: str) -> None:
    options = ("mixed", "--channels", "2", "--follow", "2", "--zipf", "3", "--publishers", "1", "--subscribers", "2")
    said = load_faulty(fault, *options, "--rate", "400", "--warmup", "0", "--transport", "lines")
    assert {"forgets": "was left out of the channel"}.get(fault, SAID[fault].partition(" after")[0]) in said


@pytest.mark.parametrize(
    "fault", ["forgets", "doubles", "misnumbers", "corrupts", "redates", "stores nothing", "goes on"]
)
def test_what_nobody_listened_to_is_read_back_and_checked(fault: str) -> None:
    assert SAID[fault] in load_faulty(fault, *INGEST)


def test_what_was_missed_is_what_was_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with fake_server("silent") as fake:
        options = ("--subscribers", "2", "--missed", "50", "--window", "1", "--transport", "lines", "--json", str(file))
        result = load(fake.port, "resume", *options)
    found = json.loads(file.read_bytes())
    assert result.exit_code == BROKEN, result.output
    assert found["returning"]["missed"] == VICTIM - 1 - BEFORE_THE_DROP


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("drops", SAID["drops"]),
        ("overtakes", SAID["overtakes"]),
        ("understates", "the log is said to end at offset 0, and had 70"),
        ("is many", SAID["is many"]),
    ],
)
def test_what_goes_wrong_between_drop_and_return_is_found(fault: str, said: str) -> None:
    with fake_server(fault) as fake:
        result = load(fake.port, "resume", "--subscribers", "2", "--missed", "50", "--transport", "lines")
    assert result.exit_code == BROKEN, result.output
    assert said in result.output


@pytest.mark.parametrize("transport", ["lines", "ws"])
def test_who_returns_to_a_trimmed_channel_is_told_and_nothing_broke(transport: str) -> None:
    with fake_server("trims") as fake:
        options = ("resume", "--subscribers", "2", "--missed", "50", "--transport", transport)
        result = load(fake.port, *options, patience_s=PATIENCE_S)
    assert result.exit_code == 0, result.output
    assert f"{2 * (VICTIM - BEFORE_THE_DROP)} deliveries were not made" in result.output


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("babbles", "malformed"), ("appends", "malformed"), ("closes", "closed"), ("hangs up", "closed")],
)
def test_nonsense_from_the_server_is_not_called_a_connection_that_it_ended(fault: str, kind: str) -> None:
    said = load_faulty(fault, *FANOUT, "--transport", "ws")
    assert {each for each in ("malformed", "closed") if KINDS[each] in said} == {kind}


@pytest.mark.parametrize("options", [FANOUT, (*FANOUT, "--workers", "2"), INGEST])
def test_what_the_server_refused_is_not_also_missed(options: tuple[str, ...]) -> None:
    said = load_faulty("refuses", *options)
    assert KINDS["refused"] in said
    assert KINDS["lost"] not in said, said


@pytest.mark.parametrize("scenario", ["fanout", "ingest"])
def test_what_was_stored_and_could_not_be_acknowledged_is_not_called_broken(scenario: str) -> None:
    options = ("--publishers", "2", "--window", "4", "--warmup", "0", "--transport", "lines")
    said = load_faulty("cuts off", scenario, *(("--subscribers", "2") if scenario == "fanout" else ()), *options)
    assert KINDS["closed"] in said
    assert KINDS["unanswered"] in said
    assert KINDS["unkept"] not in said, said


@pytest.mark.parametrize("options", [(*FANOUT, "--transport", "lines"), INGEST])
def test_what_a_dead_server_left_unchecked_is_not_called_broken(options: tuple[str, ...]) -> None:
    _, said = load_faulty("dies", *options).split("FAILED\n")
    kinds = [line.strip() for line in said.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert "connections that the server ended" in kinds[0]
    assert not any("agree" in kind or "never came" in kind for kind in kinds), said
    if options[0] == "ingest":
        assert "39 deliveries not checked" in kinds[-1]
        assert "reader 0.0: Connection refused" in said
