"""A tool that is told to end while it loads a server of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.harness import PATIENCE_S

TOOLS = Path(__file__).parent.parent.parent / "tools"
INTERRUPTED_SAID = b"Interrupted: the run did not come to its end, and nothing was judged.\n"


def signalled(folder: Path, how: Sequence[signal.Signals], tool: str, *options: str) -> tuple[int, bytes]:
    """Send signals to a tool once its server has made its files, in `folder`; returns its status and what it said."""
    command = [sys.executable, str(TOOLS / tool), *options]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob("*/data/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in how:
        process.send_signal(each)
        time.sleep(0.005)  # else the kernel makes one of them
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said
