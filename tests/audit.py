"""Known holes in the pinned versions, where that can be found out: pip-audit must be installed, and its service answer.

    python tests/audit.py             the pins of constraints.txt; 1 where one has a known hole
    python tests/audit.py --needed    1 as well where the check could not be made

Without the tool or the network it says so in a line and lets the check pass: `make audit` installs the tool.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the tool prints when it reached nobody; a hole is told otherwise.
UNREACHED = ("ConnectionError", "ConnectTimeout", "Max retries", "Failed to establish", "Temporary failure",
             "ServiceError", "Could not connect", "timed out")  # fmt: skip


def audit(constraints: Path, command: list[str]) -> tuple[int, str]:
    """(0, how it went) without a hole, (1, what was found) with one, (2, why) where it could not be found out."""
    if command[:2] == [sys.executable, "-m"] and importlib.util.find_spec(command[2]) is None:
        return 2, "pip-audit is not installed (make audit installs it)"
    asked = [*command, "--requirement", str(constraints), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return 2, "pip-audit had no answer within five minutes"
    if done.returncode == 0:
        return 0, "no known hole in the pinned versions"
    if any(word in done.stderr for word in UNREACHED):
        return 2, "pip-audit could not reach its service"
    return 1, done.stdout + done.stderr


def main() -> int:
    status, told = audit(ROOT / "constraints.txt", [sys.executable, "-m", "pip_audit"])
    print(told if status != 2 else f"known holes were not looked for: {told}")
    return status if status != 2 else int("--needed" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
