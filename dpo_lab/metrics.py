"""How good is a policy on held-out pairs: loss, accuracy, margins and implicit rewards.

N pairs. Log-probs are in nats; implicit rewards are β·log(π/π_ref), so β is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpo_lab.loss import PairScores, pair_metrics
from dpo_lab.preferences.token_data import TokenData

Loss = Callable[[PairScores], Tensor]


@dataclass(frozen=True)
class PairEvaluation:
    """Metrics over all pairs, or single answers, and the value of each behind them."""

    metrics: dict[str, float]
    table: dict[str, np.ndarray]  # each (N,): row, loss, reward_chosen, reward_rejected, margin, logp_*, length_*

    def rows(self) -> list[dict[str, float]]:
        """The table as one dict per pair."""
        return [{name: column[i].item() for name, column in self.table.items()} for i in range(len(self.table["row"]))]


def evaluate_scores(scores: PairScores, loss: Loss, beta: float, data: TokenData) -> PairEvaluation:
    """The evaluation of pairs whose log-probs are known."""
    losses = loss(scores)
    per_pair = pair_metrics(scores, losses, beta)
    metrics = {name: float(value.double().mean()) for name, value in per_pair.items()}
    table = {
        "row": data.source_rows,
        "loss": losses.numpy(),
        "reward_chosen": per_pair["rewards/chosen"].numpy(),
        "reward_rejected": per_pair["rewards/rejected"].numpy(),
        "margin": per_pair["rewards/margins"].numpy(),
        "logp_chosen": scores.policy_chosen.numpy(),
        "logp_rejected": scores.policy_rejected.numpy(),
        "length_chosen": scores.chosen_length.numpy(),
        "length_rejected": scores.rejected_length.numpy(),
    }
    return PairEvaluation(metrics, table)


def pair_scores_of(policy: np.ndarray, reference: np.ndarray, data: TokenData) -> PairScores:
    """`PairScores` from arrays of log-probs (N, 2) and the pairs that they belong to."""
    lengths = scored_lengths(data)
    columns = [policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], lengths[:, 0], lengths[:, 1]]
    return PairScores(*(torch.from_numpy(np.ascontiguousarray(column, np.float32)) for column in columns))


def scored_lengths(data: TokenData) -> np.ndarray:
    """Scored tokens per completion, shape (N, K): less the first where the prompt is empty, less turns of others."""
    lengths = data.lengths()
    return lengths[:, 1:] - (lengths[:, :1] == 0) - data.unscored()
