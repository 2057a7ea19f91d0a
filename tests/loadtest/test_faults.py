"""A load test catches every promise that a server breaks, says which, and fails."""

import pytest
from click.testing import CliRunner, Result

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import FAULTS, fake_server
from trisync.loadtest.cli import BROKEN, loadtest_command


def load(port: int, *options: str, patience_s: float = 0.6) -> Result:
    address = f"127.0.0.1:{port}"
    shared = ["--tcp", address, "--web", address, "--quiet", "--patience", str(patience_s)]
    return CliRunner().invoke(loadtest_command, [*options, *shared])


FANOUT = ("fanout", "--subscribers", "3", "--window", "8", "--duration", "0.3", "--warmup", "0")

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
    "dies": "the server hung up",
    "hangs up": "the server hung up",
    "babbles": "Expected `int`, got `str`",
}


def test_every_fault_is_tested() -> None:
    assert set(SAID) | {"none"} == set(FAULTS)


@pytest.mark.parametrize("transport", ["lines", "ws"])
def test_a_server_that_keeps_everything_passes(transport: str) -> None:
    with fake_server("none") as fake:
        result = load(fake.port, *FANOUT, "--transport", transport, patience_s=PATIENCE_S)
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_is_named_and_fails_the_run_over_lines(fault: str) -> None:
    with fake_server(fault) as fake:
        result = load(fake.port, *FANOUT, "--transport", "lines")
    assert result.exit_code == BROKEN, result.output
    assert "FAILED" in result.output
    assert SAID[fault] in result.output


@pytest.mark.parametrize("fault", ["drops", "repeats", "reorders", "alters", "forgets"])
def test_a_fault_is_named_and_fails_the_run_over_websocket(fault: str) -> None:
    with fake_server(fault) as fake:
        result = load(fake.port, *FANOUT, "--transport", "ws")
    assert result.exit_code == BROKEN, result.output
    assert SAID[fault] in result.output


@pytest.mark.parametrize("fault", ["drops", "repeats", "reorders", "forgets"])
def test_a_fault_is_found_by_subscribers_of_several_channels_too(fault: str) -> None:
    options = ("mixed", "--channels", "2", "--follow", "2", "--zipf", "3", "--publishers", "1", "--subscribers", "2")
    with fake_server(fault) as fake:
        result = load(
            fake.port, *options, "--rate", "300", "--duration", "0.4", "--warmup", "0", "--transport", "lines"
        )
    assert result.exit_code == BROKEN, result.output
    assert {"forgets": "was left out of the channel"}.get(fault, SAID[fault].partition(" after")[0]) in result.output


@pytest.mark.parametrize("fault", ["forgets", "doubles", "misnumbers"])
def test_what_nobody_listened_to_is_read_back_and_checked(fault: str) -> None:
    with fake_server(fault) as fake:
        result = load(
            fake.port, "ingest", "--window", "8", "--duration", "0.3", "--warmup", "0", "--transport", "lines"
        )
    assert result.exit_code == BROKEN, result.output
    assert SAID[fault] in result.output


def test_a_message_lost_between_drop_and_return_is_found() -> None:
    with fake_server("drops") as fake:
        result = load(fake.port, "resume", "--subscribers", "2", "--missed", "50", "--transport", "lines")
    assert result.exit_code == BROKEN, result.output
    assert SAID["drops"] in result.output


@pytest.mark.parametrize("options", [FANOUT, ("ingest", "--window", "8", "--duration", "0.3", "--warmup", "0")])
def test_what_a_dead_server_left_unchecked_is_not_called_broken(options: tuple[str, ...]) -> None:
    with fake_server("dies") as fake:
        result = load(fake.port, *options, "--transport", "lines")
    assert result.exit_code == BROKEN, result.output
    _, said = result.output.split("FAILED\n")
    kinds = [line.strip() for line in said.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert "connections that the server ended" in kinds[0]
    assert not any("agree" in kind or "never came" in kind for kind in kinds), said
    if options[0] == "ingest":
        assert "39 deliveries not checked" in kinds[-1]
        assert "reader 0.0: Connection refused" in said
