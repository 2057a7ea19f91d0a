#!/usr/bin/env python3
"""Kills a real server, and cuts its power; try --help. The tool itself is tests/torture/.

Runs with the packages in .venv, which tools/test makes.
"""

import importlib.util
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NEEDED = ("trio", "click", "msgspec", "sqlite_utils", "apsw")


def main() -> None:
    """Run the tool, if need be with the Python that has its packages."""
    # This script's own folder is on the path first: without this, neither trisync nor its tests are found.
    sys.path[0] = str(HOME)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        python = HOME / ".venv" / "bin" / "python"
        if Path(sys.prefix) == HOME / ".venv" or not python.exists():
            sys.exit("tools/torture.py: its packages are not there; run tools/test once, to get them")
        os.execv(python, [str(python), *sys.argv])
    from tests.torture.cli import torture_command

    torture_command(prog_name="torture")


if __name__ == "__main__":
    main()
