"""Losses that see a pair only through the gap between its two log-ratios.

Each takes `PairScores` and keyword-only knobs and returns one loss per pair, `(B,)`, without reducing. Adding the same
amount to both log-ratios (to both means, where a loss takes means) changes nothing here, which is why the chosen
log-probability may fall while the loss falls.
Symbols: a, b = log π/π_ref of chosen and rejected (nats), z = β·(a − b), ℓ(u) = −log σ(u), |y| = scored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import PairScores, log_ratio_gap, log_ratios


def cdpo(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """(1−ε)·ℓ(z) + ε·ℓ(−z): cross-entropy with a label that is right with probability 1−ε. Returns `(B,)`, nats.

    A larger `label_smoothing` ε stops the pull earlier, at z = log((1−ε)/ε); ε = 0 is `dpo`, whose optimum is at
    infinity. `beta` as in `dpo`. Policy = reference costs log 2. Mitchell 2023, "A note on DPO with noisy preferences
    & relationship to IPO". Libraries call this DPO with label smoothing.
    """
    z = beta * log_ratio_gap(scores)
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def robust(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """[(1−ε)·ℓ(z) − ε·ℓ(−z)] / (1−2ε): its mean over labels flipped at rate ε is the clean `dpo` loss. `(B,)`, nats.

    A larger `label_smoothing` ε, in [0, ½), pushes harder, not softer: it undoes the flips that `cdpo` only hedges
    against. The price is variance, which grows with 1/(1−2ε), and no lower bound: for ε > 0 the loss falls without end
    as z grows. `beta` as in `dpo`. ε = 0 is `dpo`; policy = reference costs log 2 for every ε.
    Chowdhury et al. 2024 (2403.00409), Section 3.1.
    """
    z = beta * log_ratio_gap(scores)
    clean, flipped = -F.logsigmoid(z), -F.logsigmoid(-z)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(scores: PairScores, *, beta: float, length_power: float) -> Tensor:
    """(a/|y_w|^p − b/|y_l|^p − 1/(2β))²: regression of the gap on a fixed target. Returns `(B,)`, squared nats.

    The target stops the drift even on noiseless labels. A smaller `beta` (τ in the paper) asks for a wider gap.
    `length_power` p = 1 takes means, as common libraries do (TRL after asking the authors); p = 0 takes the sums of
    the paper's formula. With means the target 1/(2β) is in nats *per token*, so the two want very different β.
    Policy = reference costs 1/(4β²). Azar et al. 2023 (2310.12036), Eq. 17.
    """
    chosen, rejected = log_ratios(scores)
    gap = chosen / scores.chosen_length**length_power - rejected / scores.rejected_length**length_power
    return (gap - 1 / (2 * beta)) ** 2


def hinge(scores: PairScores, *, beta: float) -> Tensor:
    """max(0, 1 − z): a pair whose margin has reached 1 pulls no more. Returns `(B,)`.

    A smaller `beta` asks for a wider gap, 1/β nats, before it lets go. Policy = reference costs 1, with weight β.
    This is the "hinge-norm" loss of RSO (Liu et al. 2023, 2309.06657, with γ for β); SLiC-HF (Zhao et al. 2023,
    2305.10425), which it comes from, compares log π without a reference and adds a cross-entropy term.
    """
    return torch.relu(1 - beta * log_ratio_gap(scores))


def sigmoid_norm(scores: PairScores, *, beta: float) -> Tensor:
    """ℓ(β·(a/|y_w| − b/|y_l|)): `dpo` on log-ratios per token. Returns `(B,)`, nats.

    A long completion can no longer win by collecting small gains from many tokens. A smaller `beta` allows more drift;
    means are |y| times smaller than sums, so β is larger here (5 in Tülu 3). Unlike under sums, the prompt-only term
    does not cancel when the lengths differ. Policy = reference costs log 2.
    Lambert et al. 2024 (2411.15124), Section 5.
    """
    chosen, rejected = log_ratios(scores)
    return -F.logsigmoid(beta * (chosen / scores.chosen_length - rejected / scores.rejected_length))


def exo_pair(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """KL of the policy's choice (σ(z), σ(−z)) from the label's (1−ε, ε), the other way round than `cdpo`. `(B,)`, nats.

    σ(z)·(log σ(z) − log(1−ε)) + σ(−z)·(log σ(−z) − log ε). Mode-seeking and never negative, it is 0 at
    z = log((1−ε)/ε). A larger `label_smoothing` ε brings that point nearer; ε must be positive, or a wrong choice would
    cost infinitely much. `beta` (β_π in the paper) as in `dpo`. On pairs that are badly wrong the pull fades, where
    `dpo`'s is largest. Policy = reference costs −log 2 − ½·log(ε(1−ε)). Ji et al. 2024 (2402.00856), Eq. 16.
    """
    z = beta * log_ratio_gap(scores)
    epsilon = z.new_tensor(label_smoothing)
    chosen = torch.sigmoid(z) * (F.logsigmoid(z) - torch.log1p(-epsilon))
    rejected = torch.sigmoid(-z) * (F.logsigmoid(-z) - torch.log(epsilon))
    return chosen + rejected


def discopop(scores: PairScores, *, beta: float, tau: float) -> Tensor:
    """(1−m)·ℓ(z) + m·e^(−z) with m = σ(z/τ): logistic for wrong pairs, exponential for right ones. Returns `(B,)`.

    Found by a language model's search, and not convex. Policy = reference costs ½·log 2 + ½, and for τ < (1−log 2)/3 ≈
    0.10 the slope there is *positive*: at τ = 0.05 a pair must first climb to z = 0.07, or it slides back to a local
    minimum at z = −0.12. A smaller `tau`, in (0, 1], switches more abruptly at z = 0; `beta` as in `dpo`.
    The product m·e^(−z) is computed as exp(log m − z), whose exponent is never positive for τ ≤ 1: taken apart, e^(−z)
    overflows float32 at z = −89 and 0·∞ gives NaN. Lu et al. 2024 (2406.08414), the LRML loss, Section 4.
    """
    z = beta * log_ratio_gap(scores)
    logistic = -F.logsigmoid(z)
    return torch.sigmoid(-z / tau) * logistic + torch.exp(F.logsigmoid(z / tau) - z)
