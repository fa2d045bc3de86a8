"""What a result must carry to be read later: the machine, the versions, the commit, and the rate of its arithmetic."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "data" / "results"
"""Results that are committed and told about; a benchmark writes here when it is run by its own command."""
LATEST = ROOT / "build" / "benchmarks" / "results"
"""Where `make bench` writes: what it finds on this machine, beside what is kept."""


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions and commit, without names or paths of this computer."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "datasets", "trl"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def heading(command: str, found: dict[str, Any] | None = None) -> str:
    """One paragraph for the top of a result."""
    found = machine() if found is None else found
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['system']}; {versions}; "
        f"commit {found['commit']}; {found['date']}.\n`{command}`"
    )


def matrix_rate(threads: int, dtype: str = "float32") -> float:
    """Floating-point operations per second of a matrix product on a CPU with that many threads."""
    import torch

    from dpo_lab.course.speed.rates import matrix_rate as rate

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return rate(2048, dtype=dtype, seconds=3.0)
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        name = found["model name"]
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
    # Rented machines say "AMD EPYC" of processors that are years apart.
    return f"{name} (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else name


def _commit() -> str:
    run = lambda *command: subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    try:
        is_changed = bool(run("status", "--porcelain", "--untracked-files=no", "dpo_lab"))
        return (run("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if is_changed else "")
    except OSError:
        return "unknown"
