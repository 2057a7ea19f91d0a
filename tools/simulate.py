#!/usr/bin/env python3
"""Lets the server and its clients run in simulated worlds; try --help. The worlds themselves are in tests/simulation/.

Runs with the packages in .venv, which tools/serve and tools/test make.
"""

import importlib.util
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NEEDED = ("trio", "click", "msgspec", "h11", "sqlite_utils", "cachetools", "trio_websocket")


def main() -> None:
    """Run the tool, if need be with the Python that has its packages."""
    # This script's own folder is on the path first: without this, neither `trisync` nor `tests` is found.
    sys.path[0] = str(HOME)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        python = HOME / ".venv" / "bin" / "python"
        if Path(sys.prefix) == HOME / ".venv" or not python.exists():
            sys.exit("tools/simulate.py: its packages are not there; run tools/serve or tools/test once, to get them")
        os.execv(python, [str(python), *sys.argv])
    from tests.simulation.cli import simulate_command

    simulate_command(prog_name="simulate")


if __name__ == "__main__":
    main()
