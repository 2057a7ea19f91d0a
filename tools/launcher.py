"""How the tools beside this file start: from any folder and under any Python, with the packages in .venv."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent

INTERRUPTED = 130
"""Exit status, as a shell has it of a program that Ctrl-C has ended."""


def launch(command: str, needed: Sequence[str], makers: str = "tools/serve or tools/test") -> None:
    """Run a click command, `module:name`, if need be with the Python that has its packages; `makers` bring those."""
    # The tool's own folder is on the path first: without this, neither trisync nor its tests are found.
    sys.path[0] = str(HOME)
    tool = Path(sys.argv[0]).stem
    if any(importlib.util.find_spec(name) is None for name in needed):
        python = HOME / ".venv" / "bin" / "python"
        if Path(sys.prefix) == HOME / ".venv" or not python.exists():
            sys.exit(f"tools/{tool}.py: its packages are not there; run {makers} once, to get them")
        os.execv(python, [str(python), *sys.argv])
    module, _, name = command.partition(":")
    try:
        called = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:  # it takes a second on a slow machine
        print("Interrupted: nothing had begun.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    called(prog_name=tool)
