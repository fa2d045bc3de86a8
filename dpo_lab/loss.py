"""The DPO loss: one record per batch of pairs, what is computed from it, and what is logged of it.

B pairs. Log-probabilities are sums over a completion's tokens, in nats; lengths count those tokens.
Written in the losses: a and b are the log-ratios log π/π_ref of the chosen and the rejected completion,
z = β·(a − b), σ the logistic function, |y| the number of scored tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 2e-6
"""Relative difference that rounding alone makes between two computations of a log-prob in float32."""


class PairScores(NamedTuple):
    """What a loss needs to know about B pairs: four summed log-probabilities and two lengths, each `(B,)`.

    float32 in training, float64 where a check needs it. Reference entries carry no gradient; losses that need no
    reference never read them. Lengths are at least 1: an empty completion has no mean, and 0/0 would become NaN.
    """

    policy_chosen: Tensor
    """log π(y_w|x), nats."""
    policy_rejected: Tensor
    """log π(y_l|x), nats."""
    reference_chosen: Tensor
    """log π_ref(y_w|x), nats."""
    reference_rejected: Tensor
    """log π_ref(y_l|x), nats."""
    chosen_length: Tensor
    """|y_w|: how many tokens were summed."""
    rejected_length: Tensor
    """|y_l|."""


def log_ratios(scores: PairScores) -> tuple[Tensor, Tensor]:
    """a = log π/π_ref of the chosen completion, b of the rejected one. Each `(B,)`, nats; 0 where policy = reference.

    Positive: the policy has moved towards this completion.
    """
    chosen = scores.policy_chosen - scores.reference_chosen
    rejected = scores.policy_rejected - scores.reference_rejected
    return chosen, rejected


def log_ratio_gap(scores: PairScores) -> Tensor:
    """The gap a − b: what the policy has learnt about this pair beyond the reference. `(B,)`, nats; 0 at the start.

    The prompt's part of log π and the partition function Z(x) of the derivation both cancel here.
    """
    chosen, rejected = log_ratios(scores)
    return chosen - rejected


def implicit_rewards(scores: PairScores, beta: float) -> tuple[Tensor, Tensor]:
    """r̂ = β·log π/π_ref of chosen and rejected. Each `(B,)`; 0 where policy = reference.

    A policy read as a reward model, up to a term that depends on the prompt only, so differences within a prompt mean
    something and single values do not. β scales them and changes no comparison. Gradients flow: use `torch.no_grad`
    for metrics. Rafailov et al. 2023 (2305.18290), Eq. 5 and Section 5.
    """
    chosen, rejected = log_ratios(scores)
    return beta * chosen, beta * rejected


def mean_logps(scores: PairScores) -> tuple[Tensor, Tensor]:
    """log π/|y| of chosen and rejected: nats per token, without any reference. Each `(B,)`.

    The sum prefers short completions, the mean does not; the two are not interchangeable.
    """
    return scores.policy_chosen / scores.chosen_length, scores.policy_rejected / scores.rejected_length


def dpo(scores: PairScores, *, beta: float) -> Tensor:
    """ℓ(z) = −log σ(β·(a − b)): logistic regression on which completion was chosen. Returns `(B,)`, nats.

    Each pair pulls with weight β·σ(−z): most where the policy still ranks it wrongly. A smaller `beta` allows more
    drift from the reference. Where policy = reference the loss is log 2 and the weight β/2, so this is no dead start.
    Rafailov et al. 2023 (2305.18290), Eq. 7.
    """
    chosen, rejected = log_ratios(scores)
    return -F.logsigmoid(beta * (chosen - rejected))


def pair_metrics(scores: PairScores, losses: Tensor, beta: float) -> dict[str, Tensor]:
    """The metrics that the field reports, per pair (B,), detached; their mean over pairs is the number to log.

    A tie counts as half right: a margin that is 0 up to rounding, as at the first step, where policy and reference are
    the same model scored in other batches.
    """
    with torch.no_grad():
        chosen, rejected = (beta * ratio for ratio in log_ratios(scores))  # the implicit rewards
        margins = chosen - rejected
        is_tie = margins.abs() <= ROUNDING * beta * (scores.policy_chosen.abs() + scores.policy_rejected.abs())
        return {
            "loss": losses.detach(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            "rewards/accuracies": torch.where(is_tie, 0.5, (margins > 0).float()),
            "logps/chosen": scores.policy_chosen.detach(),
            "logps/rejected": scores.policy_rejected.detach(),
        }
