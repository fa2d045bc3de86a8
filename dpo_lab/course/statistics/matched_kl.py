"""Methods compared at the same KL: the reward of each, read off its own reward–KL curve. RunRows in, numbers out.

A method has a knob (β, n, a learning rate), and its settings make a curve of policies from the reference onwards. The
knobs of two methods don't compare, and neither do rewards at different KL: whoever may go further gets more. So the
curves are cut at the same KL, a curve for each seed, and the seeds make the interval.

A row is one run: {"method": "dpo", "knob": 0.5, "seed": 0, "kl": 0.8, "reward": 2.4, …}, KL in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_lab.course.statistics.paired_seeds import student_quantile

RunRows = Sequence[Mapping[str, Any]]


class SeedInterval(NamedTuple):
    """A mean over seeds with its 95 % interval, nan where one seed is all there is."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def leaves_out_zero(self) -> bool:
        """Whether the seeds agree on the sign, as far as a 95 % interval tells."""
        return self.low > 0 or self.high < 0


def reward_at_kl(kl: Any, rewards: Any, at: Any) -> np.ndarray:
    """The reward at KL k on the curve through the points (kl_i, r_i), straight in √k between neighbours. As `at`.

    With d = √k between d_i and d_{i+1}: r_i + (r_{i+1} − r_i)·(d − d_i)/(d_{i+1} − d_i). √ because the best reward
    leaves the reference like √(2·Var(r)·k), so a chord in k itself would lie below it; Gao et al. 2022 (arXiv
    2210.10760) measure trained policies along √KL too. Give the reference, at KL 0, as one of the points. nan beyond
    the furthest point: nothing is extrapolated.

    kl, rewards: (S,), in any order; points at the same KL are averaged, an estimate below 0 counts as 0.
    """
    kl, rewards = np.asarray(kl, np.float64), np.asarray(rewards, np.float64)
    if kl.shape != rewards.shape or kl.ndim != 1 or not kl.size:
        raise ValueError(f"kl and rewards must be lists of the same length, got shapes {kl.shape} and {rewards.shape}")
    if not (np.isfinite(kl).all() and np.isfinite(rewards).all()):
        raise ValueError("kl and rewards must be finite; leave out the runs that diverged, and say so")
    distance, where = np.unique(np.sqrt(np.maximum(kl, 0.0)), return_inverse=True)
    means = np.bincount(where, rewards) / np.bincount(where)
    return np.interp(np.sqrt(np.asarray(at, np.float64)), distance, means, left=np.nan, right=np.nan)


def curves_of(rows: RunRows, method: str, *, base: str = "base", reward: str = "reward") -> dict[int, np.ndarray]:
    """The curve of a method for each seed, begun at the reference's reward in that seed: seed → (2, S), KL over reward.

    RunRows of the method `base` are the reference, at KL 0. A row without a finite KL or reward is an error of the run;
    ValueError names it. So does a method without rows.
    """
    own = [row for row in rows if row["method"] == method]
    start = {row["seed"]: row[reward] for row in rows if row["method"] == base}
    if not own:
        offered = ", ".join(dict.fromkeys(str(row["method"]) for row in rows))
        raise ValueError(f"no row is of the method {method!r}; there are {offered or 'none'}")
    found = {}
    for seed in sorted({row["seed"] for row in own}):
        if seed not in start:
            raise ValueError(f"seed {seed} has no row of {base!r}, where every curve begins; run it too")
        points = [(0.0, start[seed])] + [(row["kl"], row[reward]) for row in own if row["seed"] == seed]
        found[seed] = np.array(sorted(points)).T
    return found


def rewards_at_kl(rows: RunRows, method: str, at: float, **options: Any) -> dict[int, float]:
    """`reward_at_kl` of a method for each seed; nan for a seed whose runs don't go that far. Options: `curves_of`."""
    curves = curves_of(rows, method, **options)
    return {seed: float(reward_at_kl(kl, rewards, at)) for seed, (kl, rewards) in curves.items()}


def seed_interval(values: Iterable[float]) -> SeedInterval:
    """Mean ± t·s/√n over n seeds, t of n − 1 degrees of freedom: wide where seeds are few, as it should be."""
    values = np.array(list(values), np.float64)
    num, half = len(values), np.nan
    if not num:
        raise ValueError("an interval needs at least one seed, got none; run one")
    if num > 1:
        half = student_quantile(0.975, num - 1) * values.std(ddof=1) / np.sqrt(num)
    mean = float(values.mean())
    return SeedInterval(mean, float(mean - half), float(mean + half), num)


def reach(rows: RunRows, method: str) -> float:
    """The KL that a method's runs reach in every seed: up to there it can be compared."""
    return float(min(curve[0].max() for curve in curves_of(rows, method).values()))


def compare_at_kl(rows: RunRows, method: str, other: str, at: float, **options: Any) -> SeedInterval:
    """How much more reward `method` has than `other` at the same KL: differences seed by seed, then the interval.

    ValueError where a seed of either doesn't go that far; `reach` says how far each goes.
    """
    first, second = (rewards_at_kl(rows, name, at, **options) for name in (method, other))
    shared = sorted(first.keys() & second.keys())
    differences = [first[seed] - second[seed] for seed in shared]
    if not shared or not np.isfinite(differences).all():
        raise ValueError(
            f"KL must be at most {min(reach(rows, method), reach(rows, other)):.3g} to compare {method} with {other} "
            f"in every seed, got {at:g}; nothing is extrapolated"
        )
    return seed_interval(differences)


def compare_along(
    rows: RunRows, method: str, other: str, kls: Sequence[float], **options: Any
) -> dict[float, SeedInterval]:
    """`compare_at_kl` at each KL that both methods reach in every seed; the others are left out, as `reach` says."""
    furthest = min(reach(rows, method), reach(rows, other))
    return {at: compare_at_kl(rows, method, other, at, **options) for at in kls if at <= furthest}


def sentence(comparisons: Mapping[float, SeedInterval], name: str, other: str) -> str:
    """What the seeds support, and no more: at which KL `name` has more reward than `other`, less, or neither.

    comparisons: KL → difference, as `compare_along` gives them. An interval that holds 0 decides nothing; with three
    seeds it is wide, and one in twenty leaves 0 out by chance.
    """
    if not comparisons:
        return f"{name} and {other} never stand at the same KL, so nothing can be said."
    groups: dict[str, list[str]] = {}
    for at, found in comparisons.items():
        kind = "undecided" if not found.leaves_out_zero else "more reward" if found.mean > 0 else "less reward"
        groups.setdefault(kind, []).append(f"KL {at:g} ({found})")
    kinds = [kind for kind in ("more reward", "less reward", "undecided") if kind in groups]
    return f"{name} against {other}: {'; '.join(kind + ' at ' + ', '.join(groups[kind]) for kind in kinds)}."
