r"""The formulas of policy gradient, as functions of tensors. No model, no sampling.

What is climbed is J(π) = E_{x~ρ, y~π}[r(x, y)] − β·KL(π‖π_ref): the objective whose optimum DPO reaches without
sampling (Rafailov et al. 2023, arXiv 2305.18290, Eq. 3). The policy gradient theorem gives

    ∇J = E[(r(x, y) − β log π(y|x)/π_ref(y|x) − b) ∇ log π(y|x)]      for any b that does not depend on y,

for the gradient of log π in the KL itself has mean zero. RLOO takes b from the prompt's other answers, PPO from a
critic, token by token.

B prompts with K answers each, A answers of at most T tokens, N tokens. Values per token are padded to (A, T), and
`mask` is True on tokens. Log-probs in nats; advantages carry no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """A_i = R_i − mean of the other answers' R_j to the same prompt. (B, K) → (B, K)

    The baseline does not depend on the answer that it is taken from, so the gradient stays unbiased for every K >= 2.
    Rewards include the KL penalty. Ahmadian et al. 2024 (arXiv 2402.14740); Kool, van Hoof and Welling 2019.
    """
    num_samples = rewards.shape[-1]
    if num_samples < 2:
        raise ValueError(f"leaving one out needs at least 2 answers per prompt, got {num_samples}; sample more of them")
    others = (rewards.sum(-1, keepdim=True) - rewards) / (num_samples - 1)
    return rewards - others


def group_relative_advantages(rewards: Tensor) -> Tensor:
    """A_i = (r_i − mean of the prompt's r) / their sample standard deviation. (B, K) → (B, K)

    A prompt whose answers are all worth the same has A = 0. The division makes prompts on which answers differ little
    count as much as the others, so unlike with `leave_one_out_advantages` the gradient is not that of the mean reward.
    Rewards come without the KL penalty. Shao et al. 2024 (arXiv 2402.03300), section 4.1.2.
    """
    num_samples = rewards.shape[-1]
    if num_samples < 2:
        raise ValueError(f"a group needs at least 2 answers per prompt, got {num_samples}; sample more of them")
    centred = rewards - rewards.mean(-1, keepdim=True)
    spread = rewards.std(-1, keepdim=True)
    # Of equal rewards the mean may be off by rounding, which a division by as little would blow up.
    is_even = spread <= 1e-6 * rewards.abs().amax(-1, keepdim=True)
    return torch.where(is_even, 0.0, centred / spread.masked_fill(is_even, 1.0))


def reference_penalty(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """π_ref/π − log π_ref/π − 1 per token: never negative, 0 where both agree. Any shape, with gradient.

    Its mean over tokens that π samples is KL(π‖π_ref). Shao et al. 2024 (arXiv 2402.03300), Eq. 4.
    """
    log_ratio = reference_logps.detach() - logps
    return torch.expm1(log_ratio) - log_ratio


def reinforce_loss(logps: Tensor, advantages: Tensor) -> Tensor:
    """−A·log π(y|x) per answer, whose gradient is minus the policy gradient's term. Any shape. Williams 1992."""
    return -advantages.detach() * logps


def penalised_rewards(rewards: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """r_t = −β(log π(y_t) − log π_ref(y_t)), and r(x, y) on top at the answer's last token. (A,), (A, T) → (A, T)

    Over an answer they add up to r(x, y) − β log π(y|x)/π_ref(y|x). Ziegler et al. 2019 (arXiv 1909.08593), Eq. 2;
    Ouyang et al. 2022 (arXiv 2203.02155), Section 3.5.
    """
    per_token = (-beta * (logps - reference_logps)).masked_fill(~mask, 0.0)
    last = mask.sum(-1) - 1  # (A,)
    return per_token.scatter_add(-1, last[:, None], rewards.to(per_token.dtype)[:, None])


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, lam: float) -> Tensor:
    """GAE: A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t. (A, T) → (A, T), 0 behind the end.

    V_t is the critic's guess before token t is chosen; behind the last token it is 0, since an answer ends there.
    λ = 1 gives Σ_{s≥t} γ^{s−t} r_s − V_t, unbiased whatever the critic says; λ = 0 gives δ_t.
    Schulman et al. 2015 (arXiv 1506.02438), Eq. 16.
    """
    advantages = torch.zeros_like(values)
    later, value_after = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + discount * value_after - values[:, t]
        # Behind an answer's end everything stays 0, so that its last token sees no value after it.
        later = torch.where(mask[:, t], surprise + discount * lam * later, 0.0)
        value_after = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = later
    return advantages


def normalised(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all tokens of the rollout; 0 behind the ends. (A, T) → (A, T)"""
    chosen = advantages[mask]
    scale = chosen.std(correction=0) + 1e-8
    return ((advantages - chosen.mean()) / scale).masked_fill(~mask, 0.0)


class ClippedLoss(NamedTuple):
    """PPO's loss per token, and how far the policy has gone from the one that sampled. Each (N,)."""

    loss: Tensor
    is_clipped: Tensor
    """Where the clipped branch is the smaller one, so that no gradient flows."""
    kl: Tensor
    """(ρ − 1) − log ρ: never negative, and its mean estimates KL(π_old‖π). Schulman, joschu.net/blog/kl-approx.html."""


def clipped_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float) -> ClippedLoss:
    """−min(ρA, clip(ρ, 1 − ε, 1 + ε)·A) per token, with ρ = π/π_old. (N,)

    A token stops paying once its probability has moved by more than ε in the direction that its advantage asks for;
    in the other direction it always pays. At ρ = 1 the gradient is the policy gradient's. Schulman et al. 2017
    (arXiv 1707.06347), Eq. 7.
    """
    log_ratio = logps - old_logps
    ratio = log_ratio.exp()
    advantages = advantages.detach()
    free, bounded = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    with torch.no_grad():
        kl = torch.expm1(log_ratio) - log_ratio
    return ClippedLoss(-torch.minimum(free, bounded), bounded.detach() < free.detach(), kl)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """½(V_t − R_t)² per token, with R_t = A_t + V_t as they stood when the answers were sampled. Any shape."""
    return (values - returns.detach()) ** 2 / 2
