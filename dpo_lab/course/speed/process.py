"""The most memory that this process held. Loads no torch, so that what asks for it stays small."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int:
    """The most memory that this process held, in bytes.

    Linux counts it per program (VmHWM); `ru_maxrss` would also count the process that started this one. Where neither
    is there (Windows) it is 0.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
