"""Best of n: sample n answers, keep the one that a reward likes best. No training, n times the sampling, every time.

P prompts with n sampled answers each; KL in nats. What smaller n would have given is in the same answers:
`evaluation.best_of_n(found.rewards, found.rewards_by(judge_reward), sizes)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.course.rlhf.rewards import Reward, rewards_of_samples
from dpo_lab.sampling import Completion, Prompt, generate_ids
from dpo_lab.worlds.tabular import World


@dataclass(frozen=True)
class BestOfN:
    """What was sampled, and which answer each prompt gets."""

    prompts: list[Prompt]
    candidates: list[list[Completion]]
    rewards: np.ndarray
    """Of every candidate. (P, N)"""

    @property
    def answers(self) -> list[Completion]:
        """The best answer to each prompt; the first of equals."""
        return [row[i] for row, i in zip(self.candidates, self.rewards.argmax(1), strict=True)]

    def rewards_by(self, reward: Reward) -> np.ndarray:
        """Another reward of every candidate, such as the true one. (P, N)"""
        return rewards_of_samples(reward, self.prompts, self.candidates)


def sample_best_of_n(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt] | Any, n: int, reward: Reward,
    *, max_new_tokens: int = 128, seed: int = 0, batch_size: int = 256,
) -> BestOfN:  # fmt: skip
    """Sample `n` answers to each prompt at temperature 1 and score them. `.answers` holds the best of each.

    Its KL from the model that samples is at most `best_of_n_kl(n)`. Stiennon et al. 2020 (arXiv 2009.01325);
    Nakano et al. 2021 (arXiv 2112.09332).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; 4 to 64 are usual")
    prompts = list(prompts)
    candidates = generate_ids(
        model, tokenizer, prompts, num_samples=n, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size
    )
    return BestOfN(prompts, candidates, rewards_of_samples(reward, prompts, candidates))


def best_of_n_kl(n: Any) -> np.ndarray:
    """log n − (n − 1)/n: KL of best-of-n from the model that samples, where no two answers share a reward.

    An upper bound in general, far above the truth where answers repeat. Stiennon et al. 2020, Appendix G.3; that it
    bounds: Beirami et al. 2024 (arXiv 2401.01879), Theorem 1.
    """
    n = np.asarray(n, np.float64)
    if (n < 1).any():
        raise ValueError(f"n must be at least 1, got {n.min():g}; the best of no answers is none")
    return np.log(n) - (n - 1) / n


def best_of_n_kl_of_samples(rewards: Any, n: int, *, decimals: int = 4) -> float:
    """KL of best-of-n from the model that samples, estimated from the rewards of K answers to each prompt, (P, K).

    Among answers of one reward best-of-n draws as the model does, so its KL is that of the rewards alone:
    Σ_v q_v·log(q_v/p_v), with p_v the share of the K answers that are worth v and q_v = P(≤ v)^n − P(< v)^n; then the
    mean over prompts. Rewards that agree to `decimals` are one: the same answer in another batch differs by rounding.

    Below `best_of_n_kl(n)` wherever answers repeat. K should be well above n, for n answers can't show what n others
    would have: the estimate stays below log K whatever n is.
    """
    rewards = np.round(np.asarray(rewards, np.float64), decimals)
    if rewards.ndim != 2 or not rewards.size:
        raise ValueError(f"rewards must have shape (prompts, answers), got {rewards.shape}; one row per prompt")
    if not 1 <= n <= rewards.shape[1]:
        raise ValueError(f"n must lie between 1 and the {rewards.shape[1]} answers per prompt, got {n}; sample more")
    found = []
    for row in rewards:
        counts = np.unique(row, return_counts=True)[1]  # from the smallest reward to the largest
        below = np.concatenate([[0.0], np.cumsum(counts) / len(row)])
        q = np.diff(below**n)
        found.append(np.sum(q * np.log(q * len(row) / counts)))
    return float(np.mean(found))


def best_of_n_logps(world: World, logps: Tensor, n: int) -> Tensor:
    """log-probabilities of best-of-n in a finite world, by its own rewards; equal answers win in turn. (X, Y)

    The chance that the best of n draws is worth r: P(reward <= r)^n − P(reward < r)^n, shared among the answers worth
    r as π shares it.
    """
    probs, rewards = logps.double().exp(), world.rewards
    lower = rewards[:, None, :] < rewards[:, :, None]  # [x, y, z]: z is worth less than y
    below = (probs[:, None, :] * lower).sum(-1)
    same = (probs[:, None, :] * (rewards[:, None, :] == rewards[:, :, None])).sum(-1)
    return torch.log(((below + same) ** n - below**n) * probs / same)
