"""A policy as a reward model: the implicit reward of answers that nobody labelled, such as freshly sampled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.logprobs import score
from dpo_lab.workbench.evaluation.kl import answer_tokens
from dpo_lab.workbench.evaluation.pairs import dpo_beta


def answer_rewards(
    policy: nn.Module,
    reference: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Any]],
    *,
    beta: float | None = None,
) -> np.ndarray:
    """r̂(x, y) = β·log π(y|x)/π_ref(y|x) of K answers to each of P prompts, shape (P, K), float64.

    prompts: token ids, as `encode_prompt` gives them. answers: token ids, or what `generate_ids` returned. β None takes
    the default of the "dpo" loss. Only answers to the same prompt compare: r̂ = r − β·log Z(x) at the optimum, and Z
    depends on the prompt (Rafailov et al. 2023, arXiv 2305.18290, Eq. 5).
    """
    scale, data = dpo_beta(beta), answer_tokens(prompts, answers)
    return scale * (score(policy, data).astype(np.float64) - score(reference, data))


def best_of_n(scores: Any, worth: Any, sizes: Sequence[int] = (1, 2, 4, 8)) -> dict[int, tuple[float, float]]:
    """The worth of the answer that `scores` ranks first among n sampled ones: {n: (mean, standard error over prompts)}.

    scores, worth: (P, K), K answers to each of P prompts. For n < K it is the exact mean over all ways to take n of
    the K, so n = 1 is the mean answer. Equal scores share their chance.
    """
    scores, worth = np.asarray(scores, np.float64), np.asarray(worth, np.float64)
    if scores.shape != worth.shape or scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores and worth must both be (prompts, answers), got {scores.shape} and {worth.shape}")
    num_prompts, num = scores.shape
    found = {}
    for size in sizes:
        if not 1 <= size <= num:
            raise ValueError(f"best of {size} needs at least {size} answers per prompt, got {num}; sample more")
        picked = np.array([_chances(row, size) for row in scores])  # (P, K)
        values = (picked * worth).sum(1)
        error = values.std(ddof=1) / np.sqrt(num_prompts) if num_prompts > 1 else float("nan")
        found[size] = (float(values.mean()), float(error))
    return found


def _chances(scores: np.ndarray, size: int) -> np.ndarray:
    """The chance of each of K answers to be ranked first among `size` of them drawn without replacement."""
    num = len(scores)
    order = np.argsort(-scores, kind="stable")
    behind = np.arange(num)[::-1]  # how many rank after the answer at this place
    # C(behind, size − 1) / C(num, size), as a product of ratios.
    chance = np.full(num, size / num)
    for i in range(size - 1):
        chance *= np.maximum(behind - i, 0) / (num - 1 - i)
    found = np.empty(num)
    found[order] = chance
    for value in np.unique(scores):
        found[scores == value] = found[scores == value].mean()
    return found
