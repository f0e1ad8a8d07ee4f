"""What the benchmarks of training have in common: intervals of medians, and peaks of memory on a CPU."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

M_MMAP_THRESHOLD = -3
"""glibc's number of that option of mallopt."""


def resident_growth_mib(work: Callable[[], object]) -> float:
    """How far this process's resident memory rises at most during `work` (Linux)."""
    # Blocks of a MiB and more go back to the system when freed, so that they count only while they live.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    resident_before_mib = resident_mib("VmRSS")
    work()
    return resident_mib("VmHWM") - resident_before_mib


def resident_mib(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def median_interval(values: list[float]) -> tuple[float, float]:
    """The order statistics that hold the median with at least 95 % confidence, or the extremes of too few values."""
    ordered, num_values = sorted(values), len(values)
    outside = 0.0
    rank = 0
    while 2 * (outside + math.comb(num_values, rank) / 2**num_values) <= 0.05:
        outside += math.comb(num_values, rank) / 2**num_values
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[num_values - 1 - rank]
