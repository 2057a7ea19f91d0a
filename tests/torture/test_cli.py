"""The command line of the torture: what README.md shows runs, and a broken promise is an exit status."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.torture.cli import torture_command
from tests.torture.points import strace_works

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"^    tools/torture\.py (.*)$", README, re.MULTILINE)


@pytest.fixture(autouse=True)
def in_a_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def torture(*arguments: str) -> Result:
    return CliRunner().invoke(torture_command, arguments)


@pytest.mark.skipif(bool(strace_works()), reason=strace_works())
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run_and_leave_nothing_behind(tmp_path: Path, command: str) -> None:
    done = torture(*shlex.split(re.sub(r"--rounds \d+", "--rounds 2", command)))
    assert done.exit_code == 0, done.output
    assert re.search(r"^2 servers were killed|^the power was cut 2 times", done.output, re.MULTILINE)
    assert done.output.endswith("\n0 problems\n")
    assert list(tmp_path.iterdir()) == []


def test_the_readme_shows_each_command() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(torture_command.commands)


def test_a_broken_promise_is_named_and_its_data_kept(tmp_path: Path) -> None:
    done = torture("powercut", "--lying", "--seed", "1")
    assert done.exit_code == 1
    assert "messages were acknowledged, 0 are there" in done.stderr
    (folder,) = tmp_path.iterdir()
    assert f"seed 1, data in {folder}" in done.stdout
    assert (folder / "left").is_dir()
