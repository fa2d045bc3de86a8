"""The family of losses: each takes `PairScores` and keyword-only knobs, and returns one loss per pair, `(B,)`.

Three kinds. Some see a pair only through the gap between its two log-ratios: adding the same amount to both (to both
means, where a loss takes means) changes nothing, which is why the chosen log-probability may fall while the loss falls.
Some also look at where each completion stands by itself, and hold the chosen log-probability up, or each implicit
reward against zero. Some have no reference: they save its pass and lose its anchor, so that nothing but the learning
rate limits the drift. DPO itself is in `dpo_lab.loss`.

Symbols: a, b = log π/π_ref of chosen and rejected (nats), z = β·(a − b), ℓ(u) = −log σ(u), |y| = scored tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import PairScores, dpo, implicit_rewards, log_ratio_gap, log_ratios, mean_logps

# ── the gap only ─────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── each completion by itself ────────────────────────────────────────────────────────────────────────────────────────


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


def sft(scores: PairScores) -> Tensor:
    """−log π(y_w|x)/|y_w|: imitate the chosen completion. Returns `(B,)`, nats per token. A part of sums, no loss of
    preferences: it does not look at the rejected completion. `dpo` plus α of it is `rpo`.
    """
    return -mean_logps(scores)[0]


# ── without a reference ──────────────────────────────────────────────────────────────────────────────────────────────


def simpo(scores: PairScores, *, beta: float, gamma: float) -> Tensor:
    """ℓ(β·(log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ): compare nats per token, ask for a margin. Returns `(B,)`, nats.

    A larger `gamma` γ asks for a wider margin, γ/β nats per token; a larger `beta` sharpens the comparison and narrows
    that margin. Equal means cost ℓ(−γ), which is log 2 for γ = 0. There is no reference to fall back on.
    Meng et al. 2024 (2405.14734), Eq. 6; their code is configured by the ratio γ/β.
    """
    chosen, rejected = mean_logps(scores)
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(scores: PairScores, *, lam: float) -> Tensor:
    """−log π(y_w)/|y_w| + λ·ℓ(log-odds(y_w) − log-odds(y_l)): fine-tuning and preference in one. Returns `(B,)`, nats.

    The odds P/(1−P) take P = exp(log π(y)/|y|), the geometric mean of the token probabilities. A larger `lam` λ weighs
    the comparison more; λ = 0 is supervised fine-tuning. Equal means cost λ·log 2 plus the cross-entropy.
    Hong et al. 2024 (2403.07691), Eqs. 4, 6 and 7. TRL's cross-entropy covers the prompt too, and it calls λ beta.
    The log-odds grow without bound as P → 1; see `_log_odds` for what happens there.
    """
    chosen, rejected = mean_logps(scores)
    return -chosen - lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def cpo(scores: PairScores, *, beta: float, alpha: float) -> Tensor:
    """ℓ(β·(log π(y_w) − log π(y_l))) − α·log π(y_w)/|y_w|: `dpo` under a uniform reference. Returns `(B,)`, nats.

    The comparison takes sums, so lengths count. A smaller `beta` lets the log-probabilities part further before the
    pull fades; a larger `alpha` α imitates the chosen completions more. Equal sums cost log 2 plus the cross-entropy.
    Xu et al. 2024 (2401.08417), Section 3, with α = 1; the paper sums the cross-entropy over tokens, code averages it,
    and so does this.
    """
    chosen_mean, _ = mean_logps(scores)
    comparison = -F.logsigmoid(beta * (scores.policy_chosen - scores.policy_rejected))
    return comparison - alpha * chosen_mean


def simper(scores: PairScores) -> Tensor:
    """−exp(log π(y_w)/|y_w|) + exp(log π(y_l)/|y_l|): compare inverse perplexities. Returns `(B,)`, in [−1, 1].

    A term is the geometric mean of a completion's token probabilities. There is no knob and no reference. A completion
    is pulled in proportion to its mean, so the pull fades where the policy finds it unlikely, a chosen one too. Equal
    means cost 0. A mean log-probability above 0, which rounding alone makes, counts along the tangent there.
    Xiao et al. 2025 (2502.00883); the same as in the authors' code.
    """
    chosen, rejected = (torch.exp(mean.clamp(max=0)) + torch.relu(mean) for mean in mean_logps(scores))
    return rejected - chosen


_SUREST = -1e-6
"""Mean log-probability up to which the log-odds are exact: one nat in a million tokens."""


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log(P/(1−P)) for P = exp(mean_logp); `(B,)`.

    At P = 1 value and slope are infinite, so above −1e-6 the curve goes on along its tangent (slope 1e6). A flat clamp
    would also be finite, but a rejected completion of which the policy is sure would then get no gradient at all.
    """
    exact = mean_logp.clamp(max=_SUREST)
    log_odds = exact - torch.log(-torch.expm1(exact))
    return log_odds + torch.relu(mean_logp - _SUREST) / -math.expm1(_SUREST)  # the slope at −1e-6
