"""How good is a policy on held-out pairs: loss, accuracy, margins and implicit rewards.

N pairs. Log-probs are in nats; implicit rewards are β·log(π/π_ref), so β is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Layout
from dpo_lab.logprobs import score
from dpo_lab.losses import LOSSES, PairScores, implicit_rewards
from dpo_lab.preferences import TokenData, tokenize_pairs
from dpo_lab.reference import ReferenceCache

logger = logging.getLogger("dpo_lab")

Loss = Callable[[PairScores], Tensor]

ROUNDING = 2e-6
"""Relative difference that rounding alone makes between two computations of a log-prob in float32."""


@dataclass(frozen=True)
class PairEvaluation:
    """Metrics over all pairs, and the value of every pair behind them."""

    metrics: dict[str, float]
    table: dict[str, np.ndarray]  # each (N,): row, loss, reward_chosen, reward_rejected, margin, logp_*, length_*

    def rows(self) -> list[dict[str, float]]:
        """The table as one dict per pair."""
        return [{name: column[i].item() for name, column in self.table.items()} for i in range(len(self.table["row"]))]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    preferences: Any,
    *,
    reference: nn.Module | None = None,
    cache: ReferenceCache | None = None,
    loss: str = "dpo",
    beta: float | None = None,
    max_length: int = 1024,
    layout: Layout = "shared",
    precision: str = "float32",
    tokens_per_pass: int = 16384,
) -> PairEvaluation:
    """Loss, accuracy, margins and rewards of `model` on preference pairs, against `reference`.

    preferences: rows as `load_preferences` gives them, or their `TokenData`.
    reference: the frozen model; None only for losses that need no reference (its log-probs then count as 0).
    """
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is not known; choose one of {', '.join(LOSSES)}")
    spec = LOSSES[loss]
    if reference is None and spec.needs_reference:
        raise ValueError(f"loss {loss!r} compares with a reference, and none was given; pass reference=model")
    knobs = {} if beta is None else {"beta": beta}
    bound = spec.bind(divergence="reverse_kl", **knobs)
    data = usable_pairs(preferences, tokenizer, max_length)
    options: dict[str, Any] = {"layout": layout, "precision": precision, "tokens_per_pass": tokens_per_pass}
    policy_logps = score(model, data, **options)
    if reference is None:
        reference_logps = np.zeros_like(policy_logps)
    elif cache is not None:
        reference_logps = cache.logps(reference, data, **options).values
    else:
        reference_logps = score(reference, data, **options)
    return evaluate_scores(pair_scores_of(policy_logps, reference_logps, data), bound, reward_beta(spec, knobs), data)


def usable_pairs(preferences: Any, tokenizer: Any, max_length: int) -> TokenData:
    """Rows or their token ids as token ids with two completions each; what was cut or left out is logged."""
    data = preferences
    if not isinstance(data, TokenData):
        data, report = tokenize_pairs(preferences, tokenizer, max_length=max_length)
        if report.identical or report.prompts_shortened or report.completions_cut:
            logger.warning("%s", report.summary())
    if len(data) == 0:
        raise ValueError("there is nothing to evaluate on: no usable pairs were given")
    if data.num_completions != 2:
        raise ValueError(f"pairs hold 2 completions per prompt (chosen, rejected), got {data.num_completions}")
    return data


def evaluate_scores(scores: PairScores, loss: Loss, beta: float, data: TokenData) -> PairEvaluation:
    """The evaluation of pairs whose log-probs are known."""
    losses = loss(scores)
    chosen, rejected = implicit_rewards(scores, beta)
    metrics = {name: float(value.double().mean()) for name, value in pair_metrics(scores, losses, beta).items()}
    table = {
        "row": data.source_rows,
        "loss": losses.numpy(),
        "reward_chosen": chosen.numpy(),
        "reward_rejected": rejected.numpy(),
        "margin": (chosen - rejected).numpy(),
        "logp_chosen": scores.policy_chosen.numpy(),
        "logp_rejected": scores.policy_rejected.numpy(),
        "length_chosen": scores.chosen_length.numpy(),
        "length_rejected": scores.rejected_length.numpy(),
    }
    return PairEvaluation(metrics, table)


def pair_metrics(scores: PairScores, losses: Tensor, beta: float) -> dict[str, Tensor]:
    """The metrics that the field reports, per pair (B,), detached; their mean over pairs is the number to log.

    A tie counts as half right: a margin that is 0 up to rounding, as at the first step, where policy and reference are
    the same model scored in other batches.
    """
    with torch.no_grad():
        chosen, rejected = implicit_rewards(scores, beta)
        margins = chosen - rejected
        is_tie = margins.abs() <= ROUNDING * beta * (scores.policy_chosen.abs() + scores.policy_rejected.abs())
        return {
            "loss": losses.detach(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            "rewards/accuracies": torch.where(is_tie, 0.5, (margins > 0).float()),
            "logps/chosen": scores.policy_chosen.detach(),
            "logps/rejected": scores.policy_rejected.detach(),
        }


def pair_scores_of(policy: np.ndarray, reference: np.ndarray, data: TokenData) -> PairScores:
    """`PairScores` from arrays of log-probs (N, 2) and the pairs that they belong to."""
    lengths = scored_lengths(data)
    columns = [policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], lengths[:, 0], lengths[:, 1]]
    return PairScores(*(torch.from_numpy(np.ascontiguousarray(column, np.float32)) for column in columns))


def scored_lengths(data: TokenData) -> np.ndarray:
    """Scored tokens per completion, shape (N, K): all of them, less the first where the prompt is empty."""
    lengths = data.lengths()
    return lengths[:, 1:] - (lengths[:, :1] == 0)


def reward_beta(spec: Any, knobs: dict[str, float]) -> float:
    """The β that scales implicit rewards: the loss's own knob, or 1 where it has none."""
    return float(({"beta": 1.0} | spec.knobs | knobs)["beta"])
