"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import resource


def peak_mb() -> float:
    """Peak memory in MB; what `resource` says includes the process that started this one."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024.0


def peak_mb_of_children() -> float:
    """Peak memory in MB of the largest process that this one has started and that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024.0


def current_mb() -> float:
    """Memory in MB at the moment."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
