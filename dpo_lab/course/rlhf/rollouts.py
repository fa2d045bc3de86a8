"""Answers sampled from the policy as it stands, and what is known of them before anything is learnt from them.

B prompts with K answers each make A = B·K answers of at most T tokens. Values per token are padded to (A, T); `mask`
is True on tokens. Sampling is at temperature 1 without cuts, since the gradient is of that distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout, make_batch, row_lengths, split_passes
from dpo_lab.course.rlhf.config import PolicyGradientConfig
from dpo_lab.course.rlhf.rewards import Reward, rewards_of_samples, token_ids
from dpo_lab.logprobs import autocast
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.sampling import Completion, Prompt, generate_ids


@dataclass(frozen=True)
class Rollout:
    """B prompts, and K answers to each."""

    prompts: list[Prompt]
    answers: list[list[Completion]]
    data: TokenData
    """The same as token ids: B rows with K completions."""

    @property
    def mask(self) -> Tensor:
        """True on tokens. (A, T)"""
        lengths = torch.from_numpy(self.data.completion_lengths.reshape(-1))
        return torch.arange(int(lengths.max())) < lengths[:, None]

    @property
    def num_tokens(self) -> int:
        """Tokens that were sampled."""
        return int(self.data.completion_lengths.sum())

    def rewards_by(self, reward: Reward) -> np.ndarray:
        """The reward of every answer. (B, K) float64"""
        return rewards_of_samples(reward, self.prompts, self.answers)

    def is_finished(self) -> np.ndarray:
        """Which answers ended by themselves. (B, K)"""
        return np.array([[answer.is_finished for answer in row] for row in self.answers])


def sample_rollout(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: PolicyGradientConfig,
    *,
    seed: int,
    num_samples: int | None = None,
) -> Rollout:
    """`num_samples` answers to each prompt, or the configuration's number. The same seed gives the same answers."""
    ids = [token_ids(prompt, tokenizer, config.max_length - config.max_new_tokens) for prompt in prompts]
    answers = generate_ids(
        policy, tokenizer, ids, max_new_tokens=config.max_new_tokens, seed=seed,
        num_samples=num_samples or config.num_samples, batch_size=config.sampling_batch_size,
    )  # fmt: skip
    rows = [(prompt, tuple(answer.ids for answer in row)) for prompt, row in zip(ids, answers, strict=True)]
    return Rollout(list(prompts), answers, TokenData.from_rows(rows))


@torch.no_grad()
def score_tokens(
    function: Callable[[Batch], Tensor],
    rollout: Rollout,
    config: PolicyGradientConfig,
    *,
    layout: Layout,
    device: torch.device,
) -> Tensor:
    """`function(batch)` (N,), such as log-probs or a critic's values, over a whole rollout. (A, T) float32, CPU"""
    data, mask = rollout.data, rollout.mask
    padded = torch.zeros(mask.shape)
    passes = split_passes(
        np.arange(len(data)), row_lengths(data, layout),
        tokens_per_pass=config.tokens_per_pass, micro_batch_size=config.micro_batch_size,
    )  # fmt: skip
    for indices in passes:
        with autocast(device, config.precision):
            values = function(make_batch(data, indices, layout).to(device)).float().cpu()
        rows = answer_rows(indices, data.num_completions)
        padded[rows] = unflatten(values, mask[rows])
    return padded


def answer_rows(indices: np.ndarray, num_samples: int) -> Tensor:
    """Rows of (A, T) that belong to the prompts at `indices`, in the order of a batch's tokens. (B·K,)"""
    first = torch.from_numpy(np.asarray(indices, np.int64)) * num_samples
    return (first[:, None] + torch.arange(num_samples)).flatten()


def unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """Tokens one behind the other (N,) to padded rows (A, T); the inverse of `padded[mask]`."""
    padded = torch.zeros(mask.shape, dtype=values.dtype)
    padded[mask] = values
    return padded
