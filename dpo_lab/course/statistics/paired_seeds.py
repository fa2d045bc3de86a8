"""Several methods tried on the same few seeds: which differences from a baseline are larger than the luck of a seed?

A seed decides the pairs, the labels' errors, their order, the prompts and the draws, the same for every method. So
differences within a seed are compared, and what all methods share in a seed falls out: a randomised block design, the
seeds being the blocks. M methods, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """A method's mean less the baseline's, with two intervals."""

    value: float
    half_width: float
    """Of the 95 % interval of this one difference."""
    wide_half_width: float
    """Of one that holds for all M − 1 differences at once (Bonferroni): what a claim picked afterwards needs."""

    @property
    def is_clear(self) -> bool:
        """Whether it would be distinguished from 0 even as the most striking of all that were looked at."""
        return abs(self.value) > self.wide_half_width


def differences_from(
    values: Mapping[str, Sequence[float]], baseline: str, *, confidence: float = 0.95
) -> dict[str, Difference]:
    """Every other method's difference from `baseline`. `values` maps a method to its S values, seeds in one order.

    The spread is what is left of the values when each method's and each seed's mean has been taken out, pooled over
    all methods, with (M − 1)(S − 1) degrees of freedom: three seeds of one method say little about their spread, those
    of many say enough. It supposes that the methods spread alike; one that breaks now and then widens all intervals.
    Raises ValueError for fewer than two methods or seeds, and where a seed is missing.
    """
    names = list(values)
    sizes = {len(row) for row in values.values()}
    if baseline not in values or len(names) < 2:
        raise ValueError(f"the baseline {baseline!r} and at least one method are needed, got {', '.join(names)}")
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"every method needs the same seeds, at least 2, got {sorted(sizes)} values; run what is missing"
        )
    table = np.array([values[name] for name in names], np.float64)  # (M, S)
    if not np.isfinite(table).all():
        raise ValueError("values must be finite to be compared; report runs that broke, and leave them out for all")
    means = table.mean(1, keepdims=True)
    left = table - means - table.mean(0, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    error = math.sqrt(float((left**2).sum()) / degrees * 2 / table.shape[1])
    one, all_of_them = (
        error * student_quantile(1 - (1 - confidence) / 2 / count, degrees) for count in (1, len(names) - 1)
    )
    base = means[names.index(baseline), 0]
    return {
        name: Difference(float(mean - base), one, all_of_them)
        for name, (mean,) in zip(names, means, strict=True)
        if name != baseline
    }


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t. 95 % intervals take the one at 0.975: 4.303 for 2 degrees of freedom, 2.042 for 30.

    Needs the extra `course`, which has scipy.
    """
    from scipy.special import stdtrit

    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(
            f"probability must lie in (0, 1) and degrees be at least 1, got {probability} and {degrees}; "
            "95 % intervals take 0.975"
        )
    return float(stdtrit(degrees, probability))
