"""How sure a reward model is against how often it is right, and how right anyone could be. Arrays only, no torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """How sure a reward model is against how often it is right, in bins of how sure. Each (bins that hold a pair,)."""

    confidence: np.ndarray
    """Mean of σ(|margin|) in the bin: the chance that the model gives its own verdict."""
    accuracy: np.ndarray
    """Share of the bin's pairs whose chosen answer has the larger reward; a tie counts as half."""
    num_pairs: np.ndarray
    error: float
    """Σ num_pairs·|confidence − accuracy| / N: expected calibration error; Guo et al. 2017 (1706.04599), Eq. 3."""


def calibration(margins: Any, num_bins: int = 10) -> Calibration:
    """Bin pairs by σ(|margin|) in [0.5, 1] and compare with how often people (or the judge) agreed.

    margins: reward of the chosen answer minus that of the rejected, (N,). Implicit rewards of DPO may be put in, too.
    """
    margins = np.asarray(margins, np.float64)
    if margins.ndim != 1 or not len(margins) or not np.isfinite(margins).all():
        raise ValueError(f"margins must be finite numbers, one per pair, got shape {margins.shape}; score some pairs")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}; 10 is usual")
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins == 0, 0.5, margins > 0)
    which = np.minimum(((sure - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    count = np.bincount(which, minlength=num_bins)
    held = count > 0
    mean = lambda values: np.bincount(which, values, num_bins)[held] / count[held]
    confidence, accuracy = mean(sure), mean(right)
    error = float((count[held] * np.abs(confidence - accuracy)).sum() / len(margins))
    return Calibration(confidence, accuracy, count[held], error)


def bayes_accuracy(true_margins: Any, temperature: float) -> float:
    """The most that any model can agree with labels drawn by `prefers`: the mean of σ(|true margin| / temperature).

    true_margins: difference of the true rewards of two answers, (N,), in either order. Temperature 0 makes no wrong
    label, and the ceiling is 1 but for ties.
    """
    margins = np.abs(np.asarray(true_margins, np.float64))
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}; 0 makes no wrong label")
    if temperature == 0:
        return float(np.where(margins > 0, 1.0, 0.5).mean())
    return float((1 / (1 + np.exp(-margins / temperature))).mean())
