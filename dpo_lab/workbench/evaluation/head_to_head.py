"""Which of two models answers better, by a judge that may favour a place or length? Texts in, numbers out. No torch.

A judge is a function judge(prompt, first, second) → how likely the first answer is the better one: 1 the first, 0 the
second, ½ a tie, and all between; above ½ counts as a preference for the first. It is asked in both orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpo_lab.workbench.evaluation.intervals import Measured, bootstrap_weights, ratio, share
from dpo_lab.workbench.evaluation.reward_quality import sigmoid

Judge = Callable[[Any, str, str], float]
PRIOR_SCALE = 5.0


def win_rate(
    prompts: Sequence[Any], answers: Sequence[str], others: Sequence[str], judge: Judge,
    *, resamples: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """How often `answers` beat `others`, one of each to every prompt, with 95 % bootstrap intervals over prompts.

    win_rate: a win where both orders prefer the answer, a loss where both prefer the other, else half a win: where both
        see a tie, and where the orders disagree (Zheng et al. 2023, arXiv 2306.05685, section 3.4).
    counts: wins, losses, ties, disagreements; they add up to the prompts.
    disagreement: the share of prompts on which the two orders do not say the same, a tie in one of them included.
    first_preferred: how often the answer shown first is preferred, over both orders, a tie as half: ½ without bias.
    length_controlled: see `length_controlled_rate`. longer: how many characters `answers` are longer, on average.
    outcomes: 1, ½ or 0 for every prompt.
    """
    if not len(prompts) == len(answers) == len(others) or not len(prompts):
        raise ValueError(
            "every prompt needs an answer of each side, and there must be one, got "
            f"{len(prompts)} prompts, {len(answers)} answers and {len(others)} others"
        )
    ahead, behind = (
        np.array([_asked(judge, prompt, *sides) for prompt, *sides in zip(prompts, *order, strict=True)])
        for order in ((answers, others), (others, answers))
    )  # how the answer that is shown first does: 1, ½ or 0
    behind = 1 - behind  # how `answers` do when they are shown second
    outcomes = np.where((ahead == behind) & (ahead != 0.5), ahead, 0.5)
    agree, ones = ahead == behind, np.ones(len(outcomes))
    lengths = np.array([len(one) - len(other) for one, other in zip(answers, others, strict=True)], np.float64)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    is_even = len(set(outcomes)) == 1 and outcomes[0] != 0.5  # all won or all lost: a bootstrap would give no width
    return {
        "win_rate": share(outcomes, ones) if is_even else ratio(outcomes, ones, **options),
        "length_controlled": length_controlled_rate(outcomes, lengths, **options),
        "disagreement": share(~agree, ones),
        "first_preferred": ratio((ahead + 1 - behind) / 2, ones, **options),
        "longer": ratio(lengths, ones, **options),
        "counts": {
            "wins": int((outcomes == 1).sum()), "losses": int((outcomes == 0).sum()),
            "ties": int((agree & (ahead == 0.5)).sum()), "disagreements": int((~agree).sum()),
        },
        "outcomes": outcomes.tolist(),
    }  # fmt: skip


def length_controlled_rate(outcomes: Any, length_differences: Any, *, resamples: int = 1000, seed: int = 0) -> Measured:
    """The win rate that a logistic regression predicts for answers of equal length: σ(θ), where for each prompt

        P(win) = σ(θ + φ·tanh(Δ/s)),   Δ the difference of lengths, s its root mean square.

    Dubois et al. 2024 (arXiv 2404.04475) differ in this: they add a term for the difficulty of each prompt, fitted over
    many models, and average σ over the prompts; s is the standard deviation of Δ, and a judge's preference is a
    probability. Here outcomes are 1, ½ or 0, and a weak normal prior (standard deviation 5 on θ and φ) keeps the fit
    finite where length or side decides everything. The value is None, with "why", where one side is longer in every
    prompt: nothing was seen then of answers as long as each other. `low` and `high` are a bootstrap's over prompts.
    """
    outcomes, lengths = np.asarray(outcomes, np.float64), np.asarray(length_differences, np.float64)
    assert outcomes.shape == lengths.shape, f"a length for every outcome: {outcomes.shape} and {lengths.shape}"
    if lengths.min() > 0 or lengths.max() < 0:
        side = "longer" if lengths.min() > 0 else "shorter"
        why = f"the answers are {side} than the others' on every prompt, so equal length was never seen"
        return {"value": None, "low": None, "high": None, "n": len(lengths), "why": why}
    scale = np.sqrt((lengths**2).mean()) or 1.0
    features = np.stack([np.ones_like(lengths), np.tanh(lengths / scale)], 1)  # (n, 2)
    (weights,) = fit_logistic(features, outcomes, np.ones((1, len(outcomes))))
    drawn = [fit_logistic(features, outcomes, some) for some in bootstrap_weights(len(outcomes), resamples, seed)]
    low, high = np.quantile(sigmoid(np.concatenate(drawn)[:, 0]), [0.025, 0.975]) if len(outcomes) > 1 else (None, None)
    value = {"value": sigmoid(weights[0]), "low": low, "high": high}
    plain = {name: None if number is None else float(number) for name, number in value.items()}
    return plain | {"n": len(outcomes), "length_weight": float(weights[1])}


def fit_logistic(features: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The most likely coefficients of σ(features·b) under the prior, one row for each row of `weights`: (R, D).

    features (n, D), outcomes (n,) in [0, 1], weights (R, n). Newton's method with steps of at most 1.
    """
    found, prior = np.zeros((len(weights), features.shape[1])), np.eye(features.shape[1]) / PRIOR_SCALE**2
    for _ in range(200):
        chances = sigmoid(found @ features.T)  # (R, n)
        slope = (weights * (outcomes - chances)) @ features - found @ prior
        bend = np.einsum("rn,ni,nj->rij", weights * chances * (1 - chances), features, features, optimize=True) + prior
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        found += step / np.maximum(length, 1)
        if length.max() < 1e-8:
            return found
    raise ArithmeticError("the regression on length did not converge; look at the lengths of the answers")


def instructions_judge(task: Any, first: str, second: str) -> float:
    """The judge of the world of instructions on two answers: the one that meets more of the task's demands is better.

    An answer that does not answer at all is worse than any that does.
    """
    from dpo_lab.worlds.instructions import judge

    one, other = ((verdict.answers, verdict.score) for verdict in (judge(task, first), judge(task, second)))
    return 0.5 if one == other else float(one > other)


def _asked(judge: Judge, prompt: Any, first: str, second: str) -> float:
    """1 if the judge prefers the first, 0 if the second, ½ for a tie."""
    value = judge(prompt, first, second)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 <= number <= 1:
        raise ValueError(
            f"a judge must return a number from 0 (the second is better) to 1 (the first), got {value!r}; 0.5 is a tie"
        )
    return float(0.5 if number == 0.5 else number > 0.5)
