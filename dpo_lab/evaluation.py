"""How good is a policy on held-out pairs, and how far has it gone from its reference?

N pairs. Log-probs and KL are in nats; implicit rewards are β·log(π/π_ref), so β is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Layout
from dpo_lab.logprobs import score
from dpo_lab.losses import LOSSES, PairScores, implicit_rewards
from dpo_lab.preferences import TokenData, encode_prompt, tokenize_pairs
from dpo_lab.reference import ReferenceCache
from dpo_lab.sampling import generate_ids, prompt_ids

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


class Estimate(NamedTuple):
    """A mean over samples with its standard error."""

    mean: float
    standard_error: float
    num_samples: int


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
    data = _pairs(preferences, tokenizer, max_length)
    options: dict[str, Any] = {"layout": layout, "precision": precision, "tokens_per_pass": tokens_per_pass}
    policy_logps = score(model, data, **options)
    if reference is None:
        reference_logps = np.zeros_like(policy_logps)
    elif cache is not None:
        reference_logps = cache.logps(reference, data, **options).values
    else:
        reference_logps = score(reference, data, **options)
    return evaluate_scores(pair_scores_of(policy_logps, reference_logps, data), bound, reward_beta(spec, knobs), data)


def _pairs(preferences: Any, tokenizer: Any, max_length: int) -> TokenData:
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
    return data.completion_lengths - (data.prompt_lengths == 0)[:, None]


def reward_beta(spec: Any, knobs: dict[str, float]) -> float:
    """The β that scales implicit rewards: the loss's own knob, or 1 where it has none."""
    return float(({"beta": 1.0} | spec.knobs | knobs)["beta"])


def kl_from_reference(
    policy: nn.Module,
    reference: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 128,
    max_length: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
) -> Estimate:
    """KL(π‖π_ref) per answer, E_{y∼π}[log π(y|x) − log π_ref(y|x)], estimated on answers sampled at temperature 1.

    prompts: rows with a prompt, rendered texts, or token ids. Answers cut at `max_new_tokens` are scored as far as they
    go, so the estimate is unbiased for answers of at most that length. The standard error is over prompts (of a single
    prompt, over its answers). In nats.
    """
    if not len(prompts):
        raise ValueError("KL needs at least one prompt to sample answers for, got none; give held-out prompts")
    ids = [
        encode_prompt(prompt, tokenizer, max_length) if isinstance(prompt, Mapping) else prompt_ids(prompt, tokenizer)
        for prompt in prompts
    ]
    answers = generate_ids(
        policy, tokenizer, ids, max_new_tokens=max_new_tokens, num_samples=num_samples, seed=seed, batch_size=batch_size
    )
    return kl_of_samples(policy, reference, ids, [[answer.ids for answer in row] for row in answers])


def kl_of_samples(
    policy: nn.Module, reference: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[np.ndarray]]
) -> Estimate:
    """The estimate of `kl_from_reference` from answers that were already sampled from `policy` at temperature 1."""
    data = TokenData.from_rows(
        (np.asarray(prompt, np.int32), tuple(np.asarray(answer, np.int32) for answer in row))
        for prompt, row in zip(prompts, answers, strict=True)
    )
    ratios = (score(policy, data) - score(reference, data)).astype(np.float64)  # (prompts, samples)
    independent = ratios.mean(1) if len(ratios) > 1 else ratios[0]  # answers to one prompt share its difficulty
    error = independent.std(ddof=1) / np.sqrt(len(independent)) if len(independent) > 1 else float("nan")
    return Estimate(float(independent.mean()), float(error), ratios.size)
