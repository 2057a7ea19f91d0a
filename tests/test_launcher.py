"""The tools beside tools/serve: they start from any folder, under any Python, or say what is missing."""

import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S

TOOLS = Path(__file__).parent.parent / "tools"
LAUNCHED = ["loadtest", "client_speed", "compare", "large_log", "simulate", "torture"]


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )


@pytest.mark.parametrize("tool", LAUNCHED)
def test_a_tool_starts_from_any_folder(tmp_path: Path, tool: str) -> None:
    done = run(TOOLS / f"{tool}.py", "-h", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {tool} ")


def test_ctrl_c_while_a_tool_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    start = f"import sys; sys.path[:0] = ['', {str(TOOLS)!r}]; import launcher; launcher.HOME = {str(tmp_path)!r}"
    done = run("-c", f"{start}; launcher.launch('interrupted:command', needed=())", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted: nothing had begun.\n")


@pytest.mark.parametrize("tool", LAUNCHED)
def test_a_tool_says_what_to_do_where_its_packages_are_missing(tmp_path: Path, tool: str) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in (tool, "launcher"):
        shutil.copy(TOOLS / f"{name}.py", folder)
    # -S leaves out the installed packages: this Python is as bare as a new machine's.
    done = run("-S", "-E", folder / f"{tool}.py", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tools/{tool}.py: its packages are not there; run tools/")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A checkout where tools/serve cannot write, as it is for another user; even root cannot write to a folder."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("serve", "venv.sh", "requirements.txt"):
        shutil.copy(TOOLS / name, folder)
    shutil.copy(TOOLS.parent / "pyproject.toml", tmp_path)
    (tmp_path / ".venv.lock").mkdir()
    return tmp_path


def serve_help(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "tools" / "serve", "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_who_may_not_write_is_told_who_has_to_install_the_packages(unwritable: Path) -> None:
    done = serve_help(unwritable)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"packages are to be installed into {unwritable}/.venv, and this user may not write there:\n"
        "run tools/serve once as the one whom that folder belongs to\n"
    )


def test_who_may_not_write_starts_a_server_whose_packages_are_installed(unwritable: Path) -> None:
    python = unwritable / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    stamped = [unwritable / name for name in ("tools/requirements.txt", "pyproject.toml", "tools/venv.sh")]
    stamp = sha256(b"".join(file.read_bytes() for file in stamped)).hexdigest()
    (unwritable / ".venv" / "requirements.txt.stamp").write_text(f"{stamp}\n")
    done = serve_help(unwritable)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: trisync serve ")
