"""How good is a policy on held-out pairs, or on single answers with a label: scored, compared with its reference, and
summed up by `metrics`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.batching import Layout
from dpo_lab.config import DPOConfig
from dpo_lab.logprobs import score
from dpo_lab.losses.table import loss_of
from dpo_lab.metrics import PairEvaluation, evaluate_scores, pair_scores_of
from dpo_lab.objectives.unpaired import Labelled, evaluate_answers
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import tokenize_pairs, tokenize_unpaired
from dpo_lab.preferences.unpaired import mismatched, taken_apart
from dpo_lab.reference import ReferenceCache

logger = logging.getLogger("dpo_lab")


def evaluate(
    model: nn.Module, tokenizer: Any, preferences: Any,
    *, reference: nn.Module | None = None, cache: ReferenceCache | None = None, loss: str = "dpo",
    beta: float | None = None, max_length: int = 1024, layout: Layout = "shared", precision: str = "float32",
    tokens_per_pass: int = 16384,
) -> PairEvaluation:  # fmt: skip
    """Loss, accuracy, margins and rewards of `model` on preference pairs, against `reference`, as training logs them of
    held-out rows.

    preferences: rows as `load_preferences` gives them, or their `TokenData`. An unpaired loss (kto) takes rows of
        prompt, completion and label, and takes pairs apart; its table has a line per answer.
    reference: the frozen model; None only for losses that need no reference (its log-probs then count as 0).
    """
    config = DPOConfig(loss=loss, beta=beta)
    spec, bound, scale = loss_of(config)
    if reference is None and spec.needs_reference:
        raise ValueError(f"loss {loss!r} compares with a reference, and none was given; pass reference=model")
    options: dict[str, Any] = {"layout": layout, "precision": precision, "tokens_per_pass": tokens_per_pass}

    def reference_logps(part: TokenData) -> np.ndarray:
        if reference is None:
            return np.zeros((len(part), part.num_completions), np.float32)
        return score(reference, part, **options) if cache is None else cache.logps(reference, part, **options).values

    if config.is_unpaired:
        data = taken_apart(_usable_tokens(preferences, tokenizer, max_length, tokenize_unpaired))
        probes = mismatched(data, max_length) if spec.baseline == "mismatched" else data
        logps = reference_logps(data)
        part = Labelled(data, logps, probes, logps if probes is data else reference_logps(probes))
        return evaluate_answers(part, partial(score, model, **options), bound, scale, spec.baseline)
    data = usable_pairs(preferences, tokenizer, max_length)
    scores = pair_scores_of(score(model, data, **options), reference_logps(data), data)
    return evaluate_scores(scores, bound, scale, data)


def dpo_beta(beta: float | None) -> float:
    """β of an implicit reward: None is the default of the "dpo" loss. ValueError for a β that is no price."""
    return loss_of(DPOConfig(beta=beta))[2]


def usable_pairs(preferences: Any, tokenizer: Any, max_length: int) -> TokenData:
    """Rows or their token ids as token ids with two completions each; what was cut or left out is logged."""
    data = _usable_tokens(preferences, tokenizer, max_length, tokenize_pairs)
    if data.num_completions != 2:
        raise ValueError(f"pairs hold 2 completions per prompt (chosen, rejected), got {data.num_completions}")
    return data


def _usable_tokens(rows: Any, tokenizer: Any, max_length: int, tokenize: Callable[..., Any]) -> TokenData:
    data = rows
    if not isinstance(data, TokenData):
        data, report = tokenize(rows, tokenizer, max_length=max_length)
        if report.identical or report.prompts_shortened or report.completions_cut:
            logger.warning("%s", report.summary())
    if len(data) == 0:
        raise ValueError("there is nothing to evaluate on: no usable rows were given")
    return data
