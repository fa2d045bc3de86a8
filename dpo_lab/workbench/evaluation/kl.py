"""How far has a policy gone from its reference? KL(π‖π_ref) per answer, in nats, estimated on sampled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from dpo_lab.logprobs import score
from dpo_lab.models.lora import adapter_off, has_adapter
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.sampling import generate_ids, prompt_ids


class Estimate(NamedTuple):
    """A mean over samples with its standard error."""

    mean: float
    standard_error: float
    num_samples: int


def kl_from_reference(
    policy: nn.Module, reference: nn.Module | None, tokenizer: Any, prompts: Sequence[Any],
    *, num_samples: int = 1, max_new_tokens: int = 128, max_length: int = 1024, seed: int = 0, batch_size: int = 64,
) -> Estimate:  # fmt: skip
    """KL(π‖π_ref) per answer, E_{y∼π}[log π(y|x) − log π_ref(y|x)], estimated on answers sampled at temperature 1.

    reference: None is the base behind the policy's adapter, which then need not be in memory twice.
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
    policy: nn.Module,
    reference: nn.Module | None,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[np.ndarray]],
) -> Estimate:
    """The estimate of `kl_from_reference` from answers that were already sampled from `policy` at temperature 1."""
    data = answer_tokens(prompts, answers)
    if reference is None and not has_adapter(policy):
        raise ValueError("the policy has no adapter to switch off; give the reference that it started from")
    own = score(policy, data)
    with adapter_off(policy) if reference is None else nullcontext():
        frozen = score(policy if reference is None else reference, data)
    ratios = (own - frozen).astype(np.float64)  # (prompts, samples)
    independent = ratios.mean(1) if len(ratios) > 1 else ratios[0]  # answers to one prompt share its difficulty
    error = independent.std(ddof=1) / np.sqrt(len(independent)) if len(independent) > 1 else float("nan")
    return Estimate(float(independent.mean()), float(error), ratios.size)


def answer_tokens(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Any]]) -> TokenData:
    """K answers to each prompt, given as token ids or as what `generate_ids` returned, ready to be scored."""
    return TokenData.from_rows(
        (np.asarray(prompt, np.int32), tuple(np.asarray(getattr(one, "ids", one), np.int32) for one in row))
        for prompt, row in zip(prompts, answers, strict=True)
    )
