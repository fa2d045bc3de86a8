"""Losses without a reference: the policy's own log-probabilities, mostly per token.

They save the reference pass and lose its anchor: nothing but the learning rate limits the drift. Each returns one loss
per pair, `(B,)`. Symbols: ℓ(u) = −log σ(u), |y| = scored tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import PairScores, mean_logps


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
