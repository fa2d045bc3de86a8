"""How good is an implicit reward as a reward? Arrays of margins, labels and true rewards in, numbers out. No torch.

A pair has two answers A and B. margin (N,) = r̂(A) − r̂(B); label (N,) is True where A was preferred, or the share of
people who prefer A; true (N,) = r(A) − r(B). If A were always the chosen answer, every label would be True and nearly
every true margin positive: a constant would be "calibrated", and only sizes would be ranked. So `coin_sides` decides
which answer comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A number with the interval that a bootstrap over the pairs gives it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities σ(margin) against how often the first answer was preferred, bin by bin (M bins)."""

    predicted: np.ndarray  # (M,) mean σ(margin) in the bin
    observed: np.ndarray  # (M,) share of labels that prefer the first answer
    counts: np.ndarray  # (M,) pairs
    spread: np.ndarray  # (M,) standard deviation of `observed` if σ(margin) were exactly right
    error: float  # expected calibration error
    noise: float  # what `error` would be on average, with this many pairs, if σ(margin) were exactly right


class LengthShare(NamedTuple):
    """What the difference of two answers' lengths explains of a margin."""

    r_squared: float  # of the least-squares line margin ≈ a + b·(length difference)
    slope: float  # b, reward per token
    rank: Interval  # Spearman's rank correlation


def coin_sides(num: int, *, seed: int = 0) -> np.ndarray:
    """A fair coin per pair, (N,): +1 puts the chosen answer first, −1 the rejected one.

    Times it, a margin "chosen − rejected" becomes "first − second"; the label is `sides > 0`.
    """
    return np.random.default_rng(seed).choice([-1, 1], num)


def calibration(
    margins: Any, labels: Any, bins: int = 10, *, temperature: float = 1.0, draws: int = 200, seed: int = 0
) -> Calibration:
    """Does σ(margin) predict how often the first answer is preferred?

    Bins have equal width in σ; empty ones are left out. The expected calibration error is Σ_b (n_b/N)·|observed_b −
    predicted_b| (Guo et al. 2017, arXiv 1706.04599, Eq. 3). It is never 0, since frequencies of few pairs
    scatter: `noise` is its mean over `draws` sets of labels drawn from σ(margin) itself.
    temperature: margins are divided by it first; above 1 it makes predictions less sure (ibid., section 4.2).
    """
    margins, labels = _aligned(margins=margins, labels=labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}; 10 are usual")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}; 1 leaves the margins")
    _check_labels(labels)
    chances = sigmoid(margins / temperature)
    place = np.minimum((chances * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    sums = lambda values: np.bincount(place, weights=values, minlength=bins)
    error = lambda outcomes: float(np.abs(sums(outcomes) - sums(chances)).sum() / len(chances))
    generator = np.random.default_rng(seed)
    noise = [error((generator.random(len(chances)) < chances).astype(float)) for _ in range(draws)]
    return Calibration(
        predicted=sums(chances)[used] / counts[used],
        observed=sums(labels)[used] / counts[used],
        counts=counts[used],
        spread=np.sqrt(sums(chances * (1 - chances))[used]) / counts[used],
        error=error(labels),
        noise=float(np.mean(noise)) if noise else float("nan"),
    )


def fit_temperature(margins: Any, labels: Any) -> float:
    """The temperature at which σ(margin / temperature) makes the labels most likely.

    Fit it on one part of the pairs and use it on another. Above 1: the margins were too sure. It never changes which
    answer of a pair is ranked first. Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    margins, labels = _aligned(margins=margins, labels=labels)
    _check_labels(labels)
    loss = lambda log_temperature: _cross_entropy(margins / np.exp(log_temperature), labels)
    low, high = np.log(1e-3), np.log(1e3)
    # The loss is convex in 1/T, so it falls and then rises in log T: cut the interval in the golden ratio.
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(80):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if loss(first) <= loss(second) else (first, high)
    return float(np.exp((low + high) / 2))


def rank_correlation(first: Any, second: Any, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Spearman's rank correlation with a percentile bootstrap interval over the pairs (Efron 1979).

    Ties share their mean rank. nan where one side is constant: nothing is ranked then.
    """
    first, second = _aligned(first=first, second=second)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")
    groups = [np.unique(values, return_inverse=True)[1].ravel() for values in (first, second)]
    value = _weighted_spearman(groups, np.ones(len(first)))
    generator = np.random.default_rng(seed)
    num = len(first)
    drawn = [
        _weighted_spearman(groups, np.bincount(generator.integers(0, num, num), minlength=num))
        for _ in range(resamples)
    ]
    drawn = np.array([one for one in drawn if np.isfinite(one)])
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def length_share(margins: Any, length_differences: Any, *, resamples: int = 1000, seed: int = 0) -> LengthShare:
    """What length explains of a margin: R² and slope of a line, and the rank correlation. (N,) each.

    Take it of the true margins as well: where longer answers really are better, a good reward follows length too.
    """
    margins, lengths = _aligned(margins=margins, length_differences=length_differences)
    rank = rank_correlation(margins, lengths, resamples=resamples, seed=seed)
    if not np.ptp(lengths):
        return LengthShare(0.0, 0.0, rank)
    centred = lengths - lengths.mean()
    slope = float(centred @ margins / (centred @ centred))
    spread = float(((margins - margins.mean()) ** 2).sum())
    return LengthShare(slope**2 * float(centred @ centred) / spread if spread else 0.0, slope, rank)


def length_matched(length_differences: Any, within: int = 1) -> np.ndarray:
    """Pairs whose answers differ by at most `within` tokens, (N,) bool: there length can decide nothing."""
    return np.abs(np.asarray(length_differences, np.float64)) <= within


def partial_rank_correlation(first: Any, second: Any, given: Any) -> float:
    """Spearman's rank correlation of `first` and `second` with `given` held fixed.

    (ρ_12 − ρ_13·ρ_23) / √((1 − ρ_13²)(1 − ρ_23²)): the correlation of what lines in the ranks of `given` leave over of
    the other two ranks.
    """
    first, second, given = _aligned(first=first, second=second, given=given)
    rank = lambda one, other: rank_correlation(one, other, resamples=0).value
    both, left, right = rank(first, second), rank(first, given), rank(second, given)
    return float((both - left * right) / np.sqrt((1 - left**2) * (1 - right**2)))


def per_group(
    groups: Sequence[Any], margins: Any, true: Any, labels: Any, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per group (such as a job), then one for all: pairs, agreement with the label and with the truth, rank
    correlation of implicit and true margins with its interval.
    """
    margins, true, labels = _aligned(margins=margins, true=true, labels=labels)
    _check_labels(labels)
    if len(groups) != len(margins):
        raise ValueError(f"every pair needs its group, got {len(groups)} groups and {len(margins)} margins")
    names = np.array([str(group) for group in groups])
    sides = np.where(labels > 0.5, 1.0, -1.0)
    rows = []
    for name in [*dict.fromkeys(names.tolist()), "all"]:
        own = np.ones(len(names), bool) if name == "all" else names == name
        rows.append({
            "group": name,
            "pairs": int(own.sum()),
            "agrees with label": agreement(margins[own], sides[own]),
            "agrees with truth": agreement(margins[own], true[own]),
            "rank correlation": rank_correlation(margins[own], true[own], resamples=resamples, seed=seed),
        })  # fmt: skip
    return rows


def agreement(margins: Any, true: Any) -> float:
    """The share of pairs on which two margins have the same sign; where one of them is 0 it counts half."""
    margins, true = _aligned(margins=margins, true=true)
    return float(np.where((margins == 0) | (true == 0), 0.5, np.sign(margins) == np.sign(true)).mean())


def sigmoid(values: Any) -> np.ndarray:
    """σ(z) = 1/(1 + e^(−z)), without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(values, np.float64)))


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _weighted_spearman(groups: Sequence[np.ndarray], weights: np.ndarray) -> float:
    """Pearson's correlation of mean ranks, where item i stands `weights[i]` times in the sample."""
    ranks = []
    for group in groups:
        sizes = np.bincount(group, weights=weights)
        ranks.append((np.cumsum(sizes) - sizes + (sizes + 1) / 2)[group])
    one, other = (rank - np.average(rank, weights=weights) for rank in ranks)
    spread = np.sqrt((weights * one**2).sum() * (weights * other**2).sum())
    return float((weights * one * other).sum() / spread) if spread > 1e-12 else float("nan")


def _aligned(**arrays: Any) -> list[np.ndarray]:
    found = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    shapes = {name: values.shape for name, values in found.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"{', '.join(found)} must be one value per pair, got shapes {shapes}")
    if not len(next(iter(found.values()))):
        raise ValueError(f"{', '.join(found)} are empty; give at least one pair")
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds {int((~np.isfinite(values)).sum())} values that are no finite numbers; "
                             "look at the pairs that scored so")  # fmt: skip
    return list(found.values())


def _cross_entropy(margins: np.ndarray, labels: np.ndarray) -> float:
    return float((labels * np.logaddexp(0, -margins) + (1 - labels) * np.logaddexp(0, margins)).mean())


def _check_labels(labels: np.ndarray) -> None:
    if labels.min() < 0 or labels.max() > 1:
        raise ValueError(
            "labels must be True where the first answer is preferred and False elsewhere, or a share between 0 and 1; "
            f"got values from {labels.min():g} to {labels.max():g}"
        )
