"""Numbers with 95 % intervals over clusters, such as the tasks that several answers belong to. No torch.

A cluster i brings a sum xᵢ and a count mᵢ; the number is Σxᵢ/Σmᵢ. What belongs to one cluster is never taken apart:
three answers to a task are no three tasks. A result is {"value", "low", "high", "n"}, n the clusters that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpo_lab.workbench.labels.results import wilson

Measured = dict[str, Any]
"""{"value", "low", "high", "n"}: plain JSON. `low` and `high` are None where one cluster is all there is."""


def ratio(
    sums: Any, counts: Any, *, of: Callable[[Any], Any] = lambda value: value, resamples: int = 1000, seed: int = 0
) -> Measured:
    """Σx/Σm with a percentile bootstrap over clusters (Efron 1979). `of`: an increasing function of it, such as exp."""
    sums, counts = _clusters(sums, counts)
    if not len(sums):
        return {"value": None, "low": None, "high": None, "n": 0}
    value = float(of(sums.sum() / counts.sum()))
    if len(sums) < 2:
        return {"value": value, "low": None, "high": None, "n": len(sums)}
    drawn = np.concatenate([(w @ sums) / (w @ counts) for w in bootstrap_weights(len(sums), resamples, seed)])
    low, high = of(np.quantile(drawn, [0.025, 0.975]))
    return {"value": value, "low": float(low), "high": float(high), "n": len(sums)}


def share(passed: Any, counts: Any) -> Measured:
    """A share Σx/Σm of things that pass or don't, with Wilson's interval at the effective number of things.

    That is p(1 − p)/Var(p), with Var(p) = Σ(xᵢ − p·mᵢ)²/(Σm)² over clusters: fewer than Σm where the things of a
    cluster go together. With one thing in each it is their number, and the interval plainly Wilson's. Where all pass
    or none does, nothing is known of the spread, and it is the number of clusters. A bootstrap would give no width.
    """
    passed, counts = _clusters(passed, counts)
    if not len(passed):
        return {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    total = counts.sum()
    p = passed.sum() / total
    variance = ((passed - p * counts) ** 2).sum() / total**2
    size = min(total, p * (1 - p) / variance) if variance > 0 else total if 0 < p < 1 else len(passed)
    size = max(1, round(size))
    found = wilson(min(p * size, size), size)
    return {"value": float(p), "low": float(found.low), "high": float(found.high), "n": len(passed)}


def bootstrap_weights(num: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `num` clusters is drawn, (some resamples, num): a few resamples at a time, to spare memory."""
    generator, at_once = np.random.default_rng(seed), max(1, 2**21 // num)
    for start in range(0, resamples, at_once):
        yield generator.multinomial(num, np.full(num, 1 / num), min(at_once, resamples - start)).astype(np.float64)


def _clusters(sums: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as floats, without the clusters that have nothing to count."""
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    assert sums.shape == counts.shape, f"a count for every sum: {sums.shape} and {counts.shape}"
    return sums[counts > 0], counts[counts > 0]
