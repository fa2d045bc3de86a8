"""Two halves of a pass worked on side by side, on a CPU: two threads, each with half of torch's threads.

A small model's pass is some thousand short operations. When all cores share each of them, they wait for each other a
thousand times; when each half of the cores has rows of its own, they wait once, at the end. The arithmetic of a row is
the same. Knows no training.

Two threads may run backward at once (PyTorch's notes on autograd mechanics, "Multithreaded Autograd"): each adds its
gradients to the weights' under a lock. Which comes first does not matter, for a + b = b + a to the last bit; of three
it would, so there are never more than two.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

FEWEST_TOKENS = 1024
"""Passes of fewer tokens stay whole: below it two threads wait for Python more than they gain."""

STEADY_ROTATIONS = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rotary positions whose frequencies a forward pass leaves alone. The others rewrite them by length, which two
passes at once must not do."""

T = TypeVar("T")


class TwoThreads:
    """This thread and a second one, each with half of torch's threads."""

    def __init__(self) -> None:
        self._second = ThreadPoolExecutor(1, thread_name_prefix="dpo-lab-second-half")  # no thread before it has work

    def map(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """The function of each of one or two items; of two at the same time. What either raises is raised when both
        have ended."""
        if len(items) < 2:
            return [function(item) for item in items]
        one, other = items
        threads = torch.get_num_threads()
        half = max(1, threads // 2)
        later = self._second.submit(_with_threads, half, function, other)
        try:
            return [_with_threads(half, function, one), later.result()]
        finally:
            wait([later])
            torch.set_num_threads(threads)


def two_threads(model: nn.Module, device: torch.device) -> TwoThreads | None:
    """Two threads for passes through this model; None where they would not pay or might not give its own values.

    They pay on a CPU with an even number of threads (with `torch.set_num_threads(1)` there are none). They are exact
    where a forward pass only reads: models of transformers itself whose rotary frequencies stay as they are, nothing
    compiled, and no hooks that someone left to look on.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2 or threads % 2:
        return None
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if not models or not all(type(part).__module__.startswith("transformers.") for part in models):
        return None
    if not has_steady_rotations(model):
        return None
    return None if any(_is_watched(part) for part in model.modules()) else TwoThreads()


def share_a_heap(*, keep: bool = True) -> None:
    """Let all threads share one heap that keeps what was freed, where the C library is glibc; `keep=False` ends that.

    Of itself it gives each thread a heap, of which one lies idle while the other grows, and gives large blocks back to
    the kernel, which clears every page before it hands it out again (mallopt(3)). At the end all that is free goes.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-8, 1)  # M_ARENA_MAX
        libc.mallopt(-4, 0 if keep else 65_536)  # M_MMAP_MAX, of itself 65,536
        libc.mallopt(-1, -1 if keep else 131_072)  # M_TRIM_THRESHOLD: never, or 128 KiB as of itself
        if not keep:
            libc.malloc_trim(0)


def halves(indices: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The rows of a pass in two parts of about as many tokens, each in the order of `indices`; one part if it is small.

    lengths: tokens of every row of the data, (N,).
    """
    own = lengths[indices]
    if len(indices) < 2 or own.sum() < FEWEST_TOKENS:
        return [indices]
    is_first, tokens = np.zeros(len(indices), bool), [0, 0]
    for place in np.argsort(-own, kind="stable"):  # the longest first, each to the part that has less
        part = int(tokens[1] < tokens[0])
        is_first[place] = part == 0
        tokens[part] += int(own[place])
    return [indices[is_first], indices[~is_first]]


def _with_threads(num: int, function: Callable[[Any], T], item: Any) -> T:
    torch.set_num_threads(num)  # holds for this thread
    return function(item)


def has_steady_rotations(model: nn.Module) -> bool:
    """Whether a forward pass leaves the frequencies of rotary positions alone, whatever the length of its rows."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return all(kind in STEADY_ROTATIONS for part in parts for kind in _rotations(part.config))


def _rotations(config: Any) -> list[str]:
    """The kinds of rotary positions that a configuration names, whole or for each kind of layer; none is `default`."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    per_layer = [value for value in found.values() if isinstance(value, dict)]
    return [str(value.get("rope_type", value.get("type", "default"))) for value in per_layer or [found]]


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or module._compiled_call_impl is not None
