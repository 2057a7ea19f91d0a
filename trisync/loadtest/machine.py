"""The machine of a run: what it is, and whether it had anything left to give."""

import os
import platform
import re
from pathlib import Path

IDLE_CORES_MIN = 0.1
"""Below this, nothing of the machine was left."""

OTHERS_MAX = 0.2
"""Of the machine, what others may use, the kernel too, before they and not the run are what made it full."""


def describe_machine() -> str:
    """This machine, for a report: processor, cores, kernel."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)  # not on every machine
    processor = f"{model[1]}, " if model else ""
    cores = len(os.sched_getaffinity(0))
    return f"{processor}{cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def why_full(idle: float | None, server_cpu: float | None, generator_cpu: float, cores: int) -> str | None:
    """Why none of a machine's cores was idle; None where one was, or nobody knows. All but `cores` are in cores."""
    if idle is None or idle >= IDLE_CORES_MIN:
        return None
    others = cores - (server_cpu or 0.0) - generator_cpu
    if server_cpu is None:
        return "what the server used of it is not known (--pid tells, if it runs here), nor who set the pace"
    if others > OTHERS_MAX * cores:
        return f"other programs used {others:.1f} of its {cores} cores, and without them the figures may be better"
    return "server and generator shared its cores, so the figures are of both"
