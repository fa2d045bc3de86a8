"""Losses of single answers with a yes or a no: `UnpairedScores` in, one loss per answer out, `(B,)`.

A pair says which of two answers is better. A label says only whether one answer is good, so it needs a zero point that
a good answer should be above and a bad one below: the baseline, in which these losses differ.

Symbols: r = log π/π_ref of the answer (nats), r₀ the baseline (nats), s = +1 for a good answer and −1 for a bad one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import ROUNDING


class UnpairedScores(NamedTuple):
    """What a loss needs to know about B single answers. Reference and baseline carry no gradient."""

    policy: Tensor
    """log π(y|x), nats, (B,)."""
    reference: Tensor
    """log π_ref(y|x), nats, (B,)."""
    is_good: Tensor
    """The labels, bool, (B,)."""
    baseline: Tensor
    """r₀, one number for the whole batch, nats: what the log-ratios are compared with. 0 for losses that have none."""


def signed_gap(scores: UnpairedScores) -> Tensor:
    """s·(r − r₀): how far an answer stands on the side of its label. `(B,)`, nats; 0 at the start."""
    gap = scores.policy - scores.reference - scores.baseline
    return torch.where(scores.is_good, gap, -gap)


def kto(scores: UnpairedScores, *, beta: float, good_weight: float, bad_weight: float) -> Tensor:
    """λ·(1 − σ(s·β·(r − r₀))), λ = λ_D for a good answer and λ_U for a bad one. Returns `(B,)`, in [0, λ].

    The pull is largest near the baseline and fades on both sides, as gains and losses do in prospect theory: an answer
    that is far on the wrong side is given up as noise. r₀ = max(0, mean of r over answers to other prompts), which
    estimates KL(π‖π_ref). A smaller `beta` allows more drift. Where good and bad answers are not equally many, the
    paper chooses the weights so that λ_D·(good ones) / λ_U·(bad ones) lies in [1, 3/2]; larger `good_weight` and
    `bad_weight` make their kind count more. Policy = reference costs λ/2.
    Ethayarajh et al. 2024 (2402.01306), Eqs. 7 and 8.
    """
    losses = torch.sigmoid(-beta * signed_gap(scores))
    return torch.where(scores.is_good, good_weight * losses, bad_weight * losses)


def bco(scores: UnpairedScores, *, beta: float) -> Tensor:
    """−log σ(s·β·(r − r₀)): is this answer good? A classifier whose logit is the implicit reward. `(B,)`, nats.

    r₀ lies midway between the mean log-ratios of good and of bad answers (δ = β·r₀ in the paper), so a common drift of
    both costs nothing. The paper follows δ with a moving average over steps; here it is that of the step's own batch,
    so a run needs no memory beyond its weights. TRL's BCOTrainer, which 1.16 no longer has, took the mean of all
    rewards since the run began, good and bad alike: the same in a first batch with as many good answers as bad ones.
    Unlike in `kto`, a wrong answer pulls the more the further off it is. A smaller `beta` allows more drift. Policy =
    reference costs log 2. Jung et al. 2024 (2404.04656), Section 4, without its weights for other prompts.
    """
    return -F.logsigmoid(beta * signed_gap(scores))


def apo_zero_unpaired(scores: UnpairedScores, *, beta: float) -> Tensor:
    """1 − σ(βr) for a good answer, σ(βr) for a bad one: `apo_zero` taken apart, so r₀ = 0. Returns `(B,)`, in [0, 1].

    For data whose good answers are better than the policy's own. A smaller `beta` allows more drift. Policy = reference
    costs ½. D'Oosterlinck et al. 2024 (2408.06266), Eq. 7 by single answers.
    """
    return torch.sigmoid(-beta * signed_gap(scores._replace(baseline=torch.zeros_like(scores.baseline))))


def midpoint(log_ratios: Tensor, is_good: Tensor) -> Tensor:
    """BCO's r₀: midway between the mean log-ratio of good and of bad answers; of one kind alone, its mean."""
    return torch.stack([log_ratios[kind].mean() for kind in (is_good, ~is_good) if kind.any()]).mean()


def answer_metrics(scores: UnpairedScores, losses: Tensor, beta: float, share_good: float) -> dict[str, Tensor]:
    """The metrics of `loss.pair_metrics` per answer (B,), detached; their mean over the batch is the number to log.

    share_good: of the whole batch, so that `rewards/chosen` becomes the mean over its good answers and
    `rewards/rejected` over its bad ones; a kind that it lacks has none. An answer is right on its label's side of the
    baseline.
    """
    with torch.no_grad():
        rewards, gap = beta * (scores.policy - scores.reference), signed_gap(scores)
        is_tie = gap.abs() <= ROUNDING * (scores.policy.abs() + scores.reference.abs())
        metrics = {
            "loss": losses.detach(),
            "rewards/accuracies": torch.where(is_tie, 0.5, (gap > 0).float()),
            "rewards/baseline": (beta * scores.baseline).expand_as(rewards),
        }
        for side, kind, share in (
            ("chosen", scores.is_good, share_good), ("rejected", ~scores.is_good, 1 - share_good),
        ):  # fmt: skip
            if share > 0:
                metrics[f"rewards/{side}"] = rewards * kind / share
                metrics[f"logps/{side}"] = scores.policy.detach() * kind / share
        if 0 < share_good < 1:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics
