"""Losses that also look at where each completion stands by itself, not only at the gap.

They hold the chosen log-probability up, or each implicit reward against zero. Each returns one loss per pair, `(B,)`.
Symbols: a, b = log π/π_ref of chosen and rejected (nats), z = β·(a − b), ℓ(u) = −log σ(u), |y| = scored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import PairScores, dpo, implicit_rewards, log_ratios, mean_logps


def nca_pair(scores: PairScores, *, beta: float) -> Tensor:
    """ℓ(βa) + ½·ℓ(−βa) + ½·ℓ(−βb): tell the policy's completions from the reference's. Returns `(B,)`, nats.

    The chosen reward βa settles at log 2 instead of growing, so the chosen log-probability rises; the rejected one only
    falls. A smaller `beta` (α in the paper) allows more drift. Policy = reference costs 2·log 2.
    Chen et al. 2024 (2402.05369), Section 4.1, the preference case of NCA with two completions.
    """
    chosen, rejected = implicit_rewards(scores, beta)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(scores: PairScores, *, beta: float) -> Tensor:
    """ℓ(βa) + ℓ(−βb): two binary classifications, chosen against 0 and rejected against 0. Returns `(B,)`, nats.

    An upper bound of `dpo`. A smaller `beta` allows more drift. Policy = reference costs 2·log 2.
    Jung et al. 2024 (2404.04656), Section 4, subtract a shift δ, the running mean of all rewards, from both; δ needs a
    memory across batches, so it is 0 here, as in TRL's paired version.
    """
    chosen, rejected = implicit_rewards(scores, beta)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(scores: PairScores, *, beta: float) -> Tensor:
    """(a − 1/(2β))² + (b + 1/(2β))²: push each log-ratio to its own target. Returns `(B,)`, squared nats.

    A smaller `beta` asks for more drift, to ±1/(2β) nats. Policy = reference costs 1/(2β²).
    Wu et al. 2024 (2405.00675), Eq. 4.7 with η = 1/β (1000 there) and win probabilities 1 and 0; the paper estimates
    the probabilities with a preference model and takes the previous round's policy as the reference.
    """
    chosen, rejected = log_ratios(scores)
    target = 1 / (2 * beta)
    return (chosen - target) ** 2 + (rejected + target) ** 2


def apo_zero(scores: PairScores, *, beta: float) -> Tensor:
    """1 − σ(βa) + σ(βb): raise the chosen, lower the rejected, each against the reference. Returns `(B,)`, in [0, 2].

    For data whose chosen answers are better than the policy's own. The pull is bounded and fades for completions that
    have moved far either way, wrong ones included. A smaller `beta` allows more drift. Policy = reference costs 1.
    D'Oosterlinck et al. 2024 (2408.06266), Eq. 7, plus the constant 1 that makes it non-negative.
    """
    chosen, rejected = implicit_rewards(scores, beta)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(scores: PairScores, *, beta: float) -> Tensor:
    """σ(βa) + 1 − σ(z): lower the chosen, and the rejected more. Returns `(B,)`, in [0, 2].

    For data whose chosen answers are worse than the policy's own. A smaller `beta` allows more drift. Policy =
    reference costs 1; there the two pulls on the chosen cancel and only the rejected one moves.
    D'Oosterlinck et al. 2024 (2408.06266), Eq. 8, plus the constant 1 that makes it non-negative.
    """
    chosen, rejected = implicit_rewards(scores, beta)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def dpop(scores: PairScores, *, beta: float, lam: float) -> Tensor:
    """ℓ(β·(a − b − λ·max(0, −a))): `dpo` that pays when the chosen falls below the reference. Returns `(B,)`, nats.

    A larger `lam` λ defends the chosen log-probability harder; λ = 0 is `dpo`. `beta` as in `dpo`. Policy = reference
    costs log 2, with no penalty yet. The penalty stands inside the sigmoid, so a large λ·β makes it nearly linear.
    Pal et al. 2024 (2402.13228), Eq. 3.
    """
    chosen, rejected = log_ratios(scores)
    return -F.logsigmoid(beta * (chosen - rejected - lam * torch.relu(-chosen)))


def rpo(scores: PairScores, *, beta: float, alpha: float) -> Tensor:
    """ℓ(z) − α·log π(y_w|x)/|y_w|: `dpo` plus the cross-entropy of the chosen completion. Returns `(B,)`, nats.

    A larger `alpha` α imitates the chosen completions more; α = 0 is `dpo`. `beta` as in `dpo`. Policy = reference
    costs log 2 + α·(the chosen's nats per token). Pang et al. 2024 (2404.19733), Eq. 1, whose chain of thought and
    answer together are the completion here. Here each pair weighs the same; libraries that average the cross-entropy
    over a batch's tokens give long completions more. Regularised PO (2405.16436) adds the sum, not the mean.
    """
    chosen_mean, _ = mean_logps(scores)
    return dpo(scores, beta=beta) - alpha * chosen_mean
