"""Modifiers: what can be put in front of a loss or multiplied behind it. None of them knows which loss it serves.

Divergences and LD-DPO turn `PairScores` into other `PairScores` before the loss; WPO's weights multiply the `(B,)` it
returns. So they compose by plain calls:

    loss = wpo_weights(scores) * dpo(under_divergence(scores, jensen_shannon), beta=0.1)

Symbols: r = log π/π_ref of a completion (nats), u = e^r the ratio itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.loss import PairScores, log_ratios

Divergence = Callable[[Tensor], Tensor]
"""A log-ratio r to f'(e^r), shifted by a constant to be 0 at r = 0 (constants cancel in the gap). Any shape."""

_LARGEST_EXPONENT = 30.0
"""Up to here e^x is exact; e^30 ≈ 1e13 leaves room for a square and a factor of 1e4 in float32 (whose end is 3e38)."""


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """f' = log u: r itself, plain DPO's choice. Seeks modes; what the reference finds unlikely stays unlikely."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f' = 1 − 1/u = 1 − e^(−r): covers modes. A completion can gain at most 1, and losing one costs exponentially.

    For r < −30, where e^(−r) nears the end of float32, the curve goes on along its tangent: finite, and its gradient
    too, which never vanishes as a flat clamp's would.
    """
    return -_expm1(-log_ratio)


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """f' = log(2u/(1+u)) = log 2 + log σ(r): between the two KLs. A completion can gain at most log 2.

    Its slope at r = 0 is ½, where the others' is 1: the same β pulls half as hard at the start.
    """
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float = 0.5) -> Tensor:
    """f' = (1 − u^(−α))/α, from reverse KL at α = 0 to forward KL at α = 1; a larger `alpha` covers modes more.

    A completion can gain at most 1/α. Beyond the exponent −α·r = 30 the curve goes on along its tangent, as in
    `forward_kl`. f-DPO's α (2309.16240, Table 1): TRL's coefficient counts the other way round and equals 1 − α, so
    the two agree at ½ only.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha of the alpha divergence must lie in [0, 1], got {alpha!r}; 0 is reverse KL, 1 is forward KL"
        )
    return log_ratio if alpha == 0 else -_expm1(-alpha * log_ratio) / alpha


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js": jensen_shannon,
    "alpha": alpha_divergence,
}
"""Divergences by name; `alpha` is α = ½. For another α pass `functools.partial(alpha_divergence, alpha=0.3)`."""


def divergence_named(name: str) -> Divergence:
    """The divergence of that name, or a ValueError that lists the names."""
    if name not in DIVERGENCES:
        raise ValueError(f"divergence is not known, got {name!r}; choose one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def under_divergence(scores: PairScores, divergence: Divergence) -> PairScores:
    """Scores whose log-ratios are f'(u) instead of log u: any loss of the gap becomes its f-DPO form. Fields `(B,)`.

    The implicit reward of a policy kept near the reference by an f-divergence is β·f'(u) plus a term of the prompt,
    which cancels in the gap only, so this suits the losses of `gap.py`. The new policy fields hold f' and the new
    reference fields 0: their difference is all that those losses read, and subtracting zero rounds nothing away.
    With `reverse_kl` nothing changes. Wang et al. 2023 (2309.16240), Theorem 1 and Table 1.
    """
    chosen, rejected = (divergence(ratio) for ratio in log_ratios(scores))
    return scores._replace(
        policy_chosen=chosen,
        policy_rejected=rejected,
        reference_chosen=torch.zeros_like(chosen),
        reference_rejected=torch.zeros_like(rejected),
    )


def discount_tail(head: PairScores, tail: PairScores, *, alpha: float) -> PairScores:
    """LD-DPO: head + α·tail, tokens beyond the shorter completion's length count α each. Fields `(B,)`.

    `head` holds the sums over the first min(|y_w|, |y_l|) tokens of each completion, `tail` over the rest, in policy
    and reference alike; one of the two tails of a pair is always empty (sum 0, length 0). A smaller `alpha` in [0, 1]
    takes away more of the reward for mere length; 1 is the undiscounted loss, 0 forgets the tail. Lengths count all
    tokens, so losses that take means divide by |y| still. Liu et al. 2024 (2409.06411).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha of LD-DPO must lie in [0, 1], got {alpha!r}; 1 keeps the tail, 0 forgets it")
    weights = (alpha, alpha, alpha, alpha, 1.0, 1.0)
    return PairScores(*(first + weight * rest for first, rest, weight in zip(head, tail, weights, strict=True)))


def wpo_weights(
    scores: PairScores,
    *,
    chosen_log_collision: Tensor | float = 0.0,
    rejected_log_collision: Tensor | float = 0.0,
) -> Tensor:
    """w(y_w)·w(y_l), w(y) = exp(log π(y|x)/|y|): pairs that the policy would write itself count more. `(B,)`.

    Multiply a loss by it. No gradient flows through the weights. Without alignment they lie in (0, 1], 1 for a policy
    that is sure of both completions. For the paper's sampled alignment pass Σ_t log Σ_v π(v|x, y_<t)², the summed log
    probability that two samples of the policy would collide: then a policy's typical samples weigh about 1, whatever
    its entropy, and weights above 1 occur; some implementations cut them there (`.clamp(max=1)`), TRL 1.16 does not.
    Zhou et al. 2024 (2406.11827), Eq. 2.
    """
    chosen = (scores.policy_chosen - chosen_log_collision) / scores.chosen_length
    rejected = (scores.policy_rejected - rejected_log_collision) / scores.rejected_length
    return torch.exp(chosen + rejected).detach()


def _expm1(x: Tensor) -> Tensor:
    """e^x − 1, along its tangent beyond x = 30. Equal in value and slope there; both stay finite.

    Two one-sided pieces, each with slope exactly 0 where the other speaks. A difference x − min(x, 30) would have the
    same values, but its slope there is 1e13 − 1e13, which drowns the e^x beside it.
    """
    return torch.expm1(x.clamp(max=_LARGEST_EXPONENT)) + torch.relu(x - _LARGEST_EXPONENT) * math.exp(_LARGEST_EXPONENT)
