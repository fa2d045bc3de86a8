"""Clocks that wait for the device, and the rate at which a machine multiplies matrices.

A GPU works through a queue: a call returns when the work is written down, not when it is done. A clock that is read
before the queue is empty has timed the writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from dpo_lab.models.loading import DTYPES


def wait(device: torch.device | str) -> None:
    """Return when the device has done all that it was given. A CPU has no queue: nothing to wait for."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def seconds_of(
    work: Callable[[], Any], device: torch.device | str, *, repeats: int = 5, warm_up: int = 1, waits: bool = True
) -> list[float]:
    """Seconds of each of `repeats` calls, after `warm_up` calls that don't count.

    The first call pays for what is done once: loading kernels, compiling, the first touch of memory. `waits=False`
    leaves out the waiting, which is the usual mistake, offered here to be looked at.
    """
    for _ in range(warm_up):
        work()
    wait(device)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if waits:
            wait(device)
        seconds.append(time.perf_counter() - began)
    wait(device)
    return seconds


@torch.no_grad()
def matrix_rate(
    size: int = 2048, *, device: torch.device | str = "cpu", dtype: str = "float32", seconds: float = 1.0
) -> float:
    """Floating-point operations per second of a (size, size) matrix product: the median of `seconds` of trying.

    No training step is faster than its operations over this rate; small products reach less of it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    left, right = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    product = lambda: left @ right
    (once,) = seconds_of(product, device, repeats=1)
    took = seconds_of(product, device, repeats=max(5, int(seconds / max(once, 1e-6))), warm_up=0)
    return 2 * size**3 / median(took)
