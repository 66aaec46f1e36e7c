"""The memory of a process; without torch, which would be most of what it measures."""

import resource
import sys
from pathlib import Path


def peak_memory() -> float:
    """Peak of this process's resident memory, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where ru_maxrss would count the parent's peak too
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
