"""The command line of the load test: what it refuses before it runs, and how it ends where something goes wrong."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.harness import PATIENCE_S
from tests.loadtest.fake_server import fake_server
from trisync.cli import main
from trisync.cli.errors import INTERRUPTED
from trisync.loadtest.cli import loadtest_command
from trisync.loadtest.compare_cli import compare_command
from trisync.loadtest.endings import BROKEN, NO_RUN, UNUSABLE, UNWRITTEN
from trisync.loadtest.options import write_output
from trisync.loadtest.publishers import UNANSWERED_MAX
from trisync.loadtest.scenarios import SCENARIOS

HOME = Path(__file__).parent.parent.parent
TOOL = "tools/loadtest.py"
FULL = "/dev/full"
BRIEF = ("--subscribers", "2", "--window", "8", "--duration", "0.3", "--warmup", "0")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(loadtest_command, arguments)


def refusal(*arguments: str) -> str:
    """What is said where a command line is wrong, as it must be."""
    done = call(*arguments)
    assert done.exit_code == UNUSABLE, done.output
    return done.stderr


def load_fake(fault: str, *options: str) -> Result:
    with fake_server(fault) as fake:
        return call("fanout", *BRIEF, "--web", f"127.0.0.1:{fake.port}", "--patience", "0.6", "--quiet", *options)


NUMBERS = [
    (scenario, parameter.opts[0])
    for scenario, command in loadtest_command.commands.items()
    for parameter in command.params
    if isinstance(parameter.type, click.types.FloatParamType)
]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "-1"])
@pytest.mark.parametrize(("scenario", "option"), NUMBERS)
def test_a_number_that_is_none_is_a_mistake_of_the_command_line(scenario: str, option: str, number: str) -> None:
    assert option in refusal(scenario, "--web", "127.0.0.1:1", option, number)


@pytest.mark.parametrize("option", ["--rate", "--duration", "--warmup", "--patience", "--faults"])
def test_a_number_that_is_next_to_nothing_is_a_mistake_too(option: str) -> None:
    assert option in refusal("soak", "--web", "127.0.0.1:1", option, "1e-320")


def test_the_comparison_takes_no_such_number_either() -> None:
    for number in ("nan", "1e-320"):
        done = CliRunner().invoke(compare_command, ["--duration", number])
        assert done.exit_code == UNUSABLE, done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tcp", ":9"], "--tcp is not used: over ws, clients connect to --web"),
        (["--web", ":9", "--transport", "lines"], "--web is not used: over lines, clients connect to --tcp"),
        (["--web", ":9", "--transport", "frames"], "--web is not used: over frames, clients connect to --tcp"),
        (["--spawn", "--tcp", ":9"], "--spawn loads a server of its own, and --tcp names another one"),
        (["--spawn", "--web", ":9"], "--spawn loads a server of its own, and --web names another one"),
        (["--spawn", "--pid", "1"], "--spawn loads a server of its own, and --pid names another one"),
        (["--web", ":9", "--pid", "2000000000"], "there is no process 2000000000"),
        (["--durability", "normal"], "--durability is for the server that --spawn starts"),
    ],
)
def test_a_server_that_would_not_be_the_one_under_load_is_refused(options: list[str], said: str) -> None:
    assert said in refusal("fanout", *options)


@pytest.mark.parametrize("scenario", ["fanout", "ingest", "fairness", "resume"])
def test_a_window_is_no_larger_than_a_publisher_can_keep(scenario: str) -> None:
    assert f"1<=x<={UNANSWERED_MAX}" in refusal(scenario, "--web", "127.0.0.1:1", "--window", str(UNANSWERED_MAX + 1))


def test_a_flood_needs_somebody_who_floods() -> None:
    assert "1 is not in the range x>=2" in refusal("fairness", "--publishers", "1", "--web", "127.0.0.1:1")


@pytest.mark.parametrize("scenario", ["", *SCENARIOS])
def test_the_help_fits_a_terminal_of_80_columns(scenario: str) -> None:
    asked = ["loadtest", *scenario.split(), "--help"]
    shown = CliRunner().invoke(main, asked, env={"COLUMNS": "80"}, prog_name="trisync")
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []


def test_the_help_tells_every_exit_status_and_what_an_option_is_in_its_scenario() -> None:
    shown = call("--help").output
    for status in (0, BROKEN, UNUSABLE, NO_RUN, UNWRITTEN, INTERRUPTED):
        assert re.search(rf"^    {status} +\w", shown, re.MULTILINE), status
    for scenario, polite in (("fairness", True), ("latency", False)):
        assert ("by the polite one" in " ".join(call(scenario, "--help").output.split())) is polite


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path, option: str) -> None:
    # Nothing listens there, so a run would end otherwise.
    assert f"there is no folder '{tmp_path / 'nowhere'}'" in refusal(
        "fanout", "--web", "127.0.0.1:1", option, str(tmp_path / "nowhere" / "x")
    )


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert "is not writable" in refusal("fanout", "--web", "127.0.0.1:1", "--json", str(tmp_path / "x.json"))


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_the_figures_survive_a_full_disk(option: str) -> None:
    done = load_fake("none", option, FULL, "--patience", str(PATIENCE_S))
    assert done.exit_code == UNWRITTEN, done.output
    assert "deliveries" in done.stdout
    assert "PASSED" in done.stdout
    assert done.stderr == f"Error: {FULL} was not written: No space left on device\n"


def test_a_report_that_cannot_be_written_whole_leaves_the_earlier_one_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(b"earlier")
    file.chmod(0o640)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert write_output(file, lambda: bytes(2000)) == f"{file} was not written: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (file.read_bytes(), os.listdir(tmp_path)) == (b"earlier", ["report.json"])
    assert write_output(file, lambda: bytes(2000)) is None
    assert (file.read_bytes(), os.listdir(tmp_path)) == (bytes(2000), ["report.json"])
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_report_goes_into_a_pipe_that_a_shell_has_made_for_it() -> None:
    reads, writes = os.pipe()
    try:
        assert write_output(Path(f"/dev/fd/{writes}"), lambda: b"a report") is None
        assert os.read(reads, 100) == b"a report"
    finally:
        os.close(reads)
        os.close(writes)


def test_a_report_takes_the_place_of_a_link_that_leads_only_to_itself(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("link")
    assert write_output(link, lambda: b"a report") is None
    assert link.read_bytes() == b"a report"


def test_a_report_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    assert write_output(tmp_path / "link", lambda: b"a report") is None
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"a report"


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--json", "", "a file needs a name"),
        ("--html", "", "a file needs a name"),
        ("--html", "-", "standard output has the figures"),
        ("--json", "x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_a_report_is_refused_before_anything_runs(option: str, name: str, said: str) -> None:
    assert said in refusal("fanout", "--web", "127.0.0.1:1", option, name)


@pytest.mark.parametrize("host", ["foo..bar", "x" * 64 + ".example"])
def test_what_cannot_be_a_hosts_name_is_refused(host: str) -> None:
    assert "cannot be a host's name" in refusal("fanout", "--web", f"{host}:80")


def test_figures_that_nobody_reads_are_not_written_and_nothing_broke() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with fake_server("none") as fake:
        command = [sys.executable, TOOL, "fanout", *BRIEF, "--web", f"127.0.0.1:{fake.port}", "--quiet"]
        done = subprocess.run(command, cwd=HOME, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (UNWRITTEN, "Error: standard output was not written: Broken pipe\n")


@pytest.mark.parametrize("where", ["click.open_file", "trisync.loadtest.cli.to_json"])
def test_a_report_that_ctrl_c_ends_is_not_written_and_nothing_broke(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    os.mkfifo(tmp_path / "pipe")
    done = load_fake("none", "--json", str(tmp_path / "pipe"), "--patience", str(PATIENCE_S))
    assert done.exit_code == UNWRITTEN, done.output
    assert done.stderr == f"Error: {tmp_path / 'pipe'} was not written: interrupted\n"
    assert "PASSED" in done.stdout


@pytest.mark.parametrize("server", ["--spawn", "--web=127.0.0.1:1"])
@pytest.mark.parametrize(("scenario", "clients"), [("fanout", "--subscribers"), ("connect", "--connections")])
def test_more_connections_than_files_may_be_open_are_no_run(
    scenario: str, clients: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda limit: (300, 300))
    done = call(scenario, clients, "1000", "--workers", "2", server, "--quiet")
    assert done.exit_code == NO_RUN, done.output
    assert "the limit is 300 (ulimit -Hn)" in done.stderr


def test_workers_share_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda limit: (300, 300))
    done = call("connect", "--connections", "350", "--workers", "2", "--web=127.0.0.1:1", "--quiet")
    assert "nobody could connect to" in done.stderr


def test_ctrl_c_before_the_run_is_no_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trisync.loadtest.cli.resolve", interrupted)
    done = call("fanout", "--web", "slow.example")
    assert (done.exit_code, done.stdout) == (INTERRUPTED, "")
    assert done.stderr.startswith("Interrupted: ")


def test_a_broken_promise_outweighs_a_file_that_was_not_written() -> None:
    done = load_fake("drops", "--json", FULL)
    assert done.exit_code == BROKEN, done.output
    assert "was not written" in done.stderr


@pytest.mark.parametrize(
    ("run", "name"), [(["-m", "trisync", "loadtest"], "trisync loadtest"), ([TOOL], TOOL)], ids=["trisync", "tool"]
)
def test_the_help_and_the_report_name_the_command_as_it_was_called(tmp_path: Path, run: list[str], name: str) -> None:
    def call_there(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *run, *arguments]
        return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    said = call_there("--help").stdout
    assert f"  {name} fanout --spawn\n" in said
    assert f"  {name} SCENARIO --help\n" in said
    assert "$" not in said
    file = str(tmp_path / "result.json")
    with fake_server("none") as fake:
        given = ["fanout", *BRIEF, "--web", f"127.0.0.1:{fake.port}", "--quiet", "--json", file]
        done = call_there(*given)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(file).read_bytes())["command"] == f"{name} {shlex.join(given)}"
