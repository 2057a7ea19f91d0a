"""Node, and the packages from npm that tests need. tools/test installs both."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
NPM = shutil.which("npm")
WEB = Path(__file__).parent.parent.parent / "trisync" / "web"
MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
NODE_TEST_S = 120.0

needs_node = pytest.mark.skipif(
    NODE is None or NPM is None, reason="node or npm is missing: apt-get install nodejs npm"
)


def installed(package: str) -> Path:
    """The folder of a package that tools/test has installed; without it the test is skipped, and says so."""
    for folder in MODULES:
        if (folder / package).is_dir():
            return folder / package
    pytest.skip(f"npm's {package} is missing: NODE_PATH names no folder that has it")


def run_node(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run node to its end and return what it printed; a failure shows everything it said."""
    done = subprocess.run(
        [str(NODE), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=NODE_TEST_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_npm(*arguments: str | Path, folder: Path) -> str:
    """Run npm, which is not to look for anything on the network."""
    done = subprocess.run(
        [str(NPM), *map(str, arguments), "--offline", "--no-audit", "--no-fund", "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=NODE_TEST_S,
        env=os.environ | {"npm_config_cache": str(folder / "npm-cache")},
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout
