"""Faults made on purpose: files that may not grow, and processes killed at any moment."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.conftest import ROOT


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """No file grows beyond `after_bytes`: to a writer the same as a full disk, and it stops root too."""
    _, hard = soft_and_hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)


def in_fresh_process(call: str, timeout: float = 120, **variables: str) -> str:
    """Evaluate `call`, such as "tests.test_reference.fill(3)", in a process of its own; returns what it printed.

    `variables` are set in its environment.

    Torch is imported there once, before any thread starts, so that the process may fork workers to be killed.
    """
    module = call.split("(")[0].rpartition(".")[0]
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}; {call}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(work: Callable[[], None]) -> int:
    """Start `work` in a forked process, which ends with 0 when the work is done; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def kill_after(child: int, seconds: float) -> bool:
    """Kill the process with -9 after a while; False if it had ended by then, as it should."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return False
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def moments(seed: int, longest: float) -> Iterator[float]:
    """Random moments between 0 and `longest` seconds."""
    generator = random.Random(seed)
    while True:
        yield generator.uniform(0, longest)
