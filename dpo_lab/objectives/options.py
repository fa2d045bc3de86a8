"""Options of a loss of pairs that need more than its six numbers: single tokens, whole distributions, a live model.

B pairs, N scored tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch
from dpo_lab.logprobs import Scorer, sum_per_sequence
from dpo_lab.loss import PairScores
from dpo_lab.losses.modifiers import wpo_weights
from dpo_lab.preferences.token_data import TokenData


def tail_weights(batch: Batch, ld_alpha: float) -> Tensor:
    """LD-DPO: 1 for the tokens up to the length of the pair's shorter completion, `ld_alpha` for the rest. (N,)

    The sums of weighted log-probs are those of `losses.modifiers.discount_tail`. Liu et al. 2024 (2409.06411).
    """
    lengths = batch.lengths.flatten()  # (2B,)
    place = torch.arange(len(batch.sequences), device=lengths.device) - (lengths.cumsum(0) - lengths)[batch.sequences]
    is_head = place < batch.lengths.min(1).values.repeat_interleave(2)[batch.sequences]
    return torch.where(is_head, 1.0, ld_alpha)


def tail_discounted(logps_of: Callable[[TokenData], np.ndarray], data: TokenData, ld_alpha: float | None) -> np.ndarray:
    """Log-probs (N, 2) of whole data in which tails count `ld_alpha`: heads are scored, and stored, by themselves."""
    whole = logps_of(data)
    if ld_alpha is None:
        return whole
    heads = logps_of(data.heads())
    return heads + ld_alpha * (whole - heads)


@torch.no_grad()
def self_weights(scorer: nn.Module, batch: Batch, token_logps: Tensor, scores: PairScores) -> Tensor:
    """WPO: how likely the policy is to write both answers itself, aligned by its own typical samples. (B,)

    One more pass, since Σ_v π(v)² needs the whole distribution at every token. Zhou et al. 2024 (2406.11827).
    """
    chosen, rejected = sum_per_sequence(token_logps, batch).unbind(1)  # of whole answers, whatever the loss sees
    collisions = sum_per_sequence(scorer(batch, collisions=True), batch).unbind(1)
    whole = scores._replace(policy_chosen=chosen, policy_rejected=rejected)
    return wpo_weights(whole, chosen_log_collision=collisions[0], rejected_log_collision=collisions[1])


class MovingReference:
    """TR-DPO: a copy of the reference that moves to the policy after every `every` steps, and is scored as it is now.

    mixup: how far it moves. 1 is the hard update π_ref ← π, less the soft one π_ref ← α·π + (1 − α)·π_ref. A smaller
    `every` or a larger `mixup` lets the policy drift further from where it began.
    Gorbatovski et al. 2024 (2404.09656), Section 3.
    """

    def __init__(self, model: nn.Module, precision: str, every: int, mixup: float | None) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.scorer, self.every, self.mixup, self.steps = Scorer(self.model, precision), every, mixup or 1.0, 0

    @torch.no_grad()
    def begin_step(self, policy: nn.Module) -> None:
        """Before each step: move if it is time."""
        if self.steps and self.steps % self.every == 0:
            for frozen, weight in zip(self.model.parameters(), policy.parameters(), strict=True):
                frozen.lerp_(weight, self.mixup)
        self.steps += 1

    @torch.no_grad()
    def token_logps(self, batch: Batch) -> Tensor:
        """(N,)"""
        return self.scorer(batch)
