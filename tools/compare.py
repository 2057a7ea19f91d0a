#!/usr/bin/env python3
"""Compares trisync's speed with its peers'; try --help. The tool itself is trisync/loadtest/.

Runs with the packages in .venv, which tools/serve and tools/test make.
"""

import importlib.util
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NEEDED = ("trio", "click", "rich", "msgspec", "hdrh")


def main() -> None:
    """Run the tool, if need be with the Python that has its packages."""
    # This script's own folder is on the path first: without this, `import trisync` needs an installed one.
    sys.path[0] = str(HOME)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        python = HOME / ".venv" / "bin" / "python"
        if Path(sys.prefix) == HOME / ".venv" or not python.exists():
            sys.exit("tools/compare.py: its packages are not there; run tools/serve or tools/test once, to get them")
        os.execv(python, [str(python), *sys.argv])
    from trisync.loadtest.compare_cli import compare_command

    compare_command(prog_name="compare")


if __name__ == "__main__":
    main()
