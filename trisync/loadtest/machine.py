"""The machine of a run: what it is, what the server there has used of it, and whether it had anything left to give."""

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

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


class Usage(NamedTuple):
    """What a process has used."""

    cpu_s: float
    memory_bytes: int
    peak_bytes: int
    """The most memory that it has had since its start."""


def usage(pid: int | None) -> Usage | None:
    """Processor time and resident memory of a process; None where it cannot be known."""
    if pid is None:
        return None
    try:
        # The name in the second field may hold spaces; the fields behind its bracket do not (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    memory_bytes = int(fields[21]) * _PAGE_BYTES
    peak_bytes = memory_bytes if peak is None else int(peak[1]) * 1024  # a process that has ended has none
    return Usage((int(fields[11]) + int(fields[12])) / _CLOCK_TICKS, memory_bytes, max(memory_bytes, peak_bytes))


def machine_idle_s() -> float:
    """Processor time that all cores of this machine have idled away since its start."""
    idle, waiting = Path("/proc/stat").read_text().split("\n", 1)[0].split()[4:6]
    return (int(idle) + int(waiting)) / _CLOCK_TICKS


class Look(NamedTuple):
    """At a server and its machine."""

    at_us: int
    used: Usage | None
    idle_s: float
    """Processor time that the machine has idled away since its start."""

    def server_cpu(self, later: "Look") -> float | None:
        """The server's processor time from here to a later look, in cores."""
        if self.used is None or later.used is None or later.at_us <= self.at_us:
            return None
        return round((later.used.cpu_s - self.used.cpu_s) * 1e6 / (later.at_us - self.at_us), 3)

    def machine_idle(self, later: "Look") -> float | None:
        """Processor time that nobody used from here to a later look, in cores."""
        if later.at_us <= self.at_us:
            return None
        return round(max(0.0, (later.idle_s - self.idle_s) * 1e6 / (later.at_us - self.at_us)), 3)


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
