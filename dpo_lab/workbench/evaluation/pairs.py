"""How good is a policy on held-out pairs: scored, compared with its reference, and summed up by `metrics`."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.batching import Layout
from dpo_lab.logprobs import score
from dpo_lab.losses.table import LOSSES, reward_beta
from dpo_lab.metrics import PairEvaluation, evaluate_scores, pair_scores_of
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import tokenize_pairs
from dpo_lab.reference import ReferenceCache

logger = logging.getLogger("dpo_lab")


def evaluate(
    model: nn.Module, tokenizer: Any, preferences: Any,
    *, reference: nn.Module | None = None, cache: ReferenceCache | None = None, loss: str = "dpo",
    beta: float | None = None, max_length: int = 1024, layout: Layout = "shared", precision: str = "float32",
    tokens_per_pass: int = 16384,
) -> PairEvaluation:  # fmt: skip
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


def dpo_beta(beta: float | None) -> float:
    """β of an implicit reward: None is the default of the "dpo" loss. ValueError for a β that is no price."""
    knobs = {} if beta is None else {"beta": beta}
    LOSSES["dpo"].bind(divergence="reverse_kl", **knobs)
    return reward_beta(LOSSES["dpo"], knobs)


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
