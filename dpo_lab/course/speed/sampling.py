"""Tokens per second of our sampler, and of transformers' `generate`, on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from dpo_lab.course.speed.rates import wait
from dpo_lab.models.inside import end_tokens
from dpo_lab.models.loading import DTYPES
from dpo_lab.sampling import generate_ids


def sampling_speed(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]],
    *, plainly: bool, precision: str = "float32", max_new_tokens: int = 64, num_samples: int = 8, rows: int = 64,
) -> dict[str, float]:  # fmt: skip
    """Answers to prompts of token ids at temperature 1, at most `rows` at a time: {"tokens": …, "seconds": …}.

    plainly: by `model.generate`, with weights in `precision` and prompts padded on the left. Up to the first end token
        an answer's tokens count, the end token included.
    """
    at_once = max(rows // num_samples, 1)
    ends = end_tokens(model, tokenizer)
    if plainly:
        model = model.to(DTYPES[precision])
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=max_new_tokens, num_return_sequences=num_samples, eos_token_id=ends,
        pad_token_id=0,
    )  # fmt: skip

    def by_generate(prompts: Sequence[list[int]]) -> int:
        count = 0
        for start in range(0, len(prompts), at_once):
            some = prompts[start : start + at_once]
            width = max(map(len, some))
            padded = [[0] * (width - len(ids)) + ids for ids in some]
            mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in some]
            ids, mask = torch.tensor([padded, mask], device=model.device)
            new = model.generate(ids, attention_mask=mask, generation_config=settings)[:, width:]
            is_end = torch.isin(new, torch.tensor(ends, device=new.device)).int()
            count += int((is_end.cumsum(1) - is_end == 0).sum())
        return count

    def by_ours(prompts: Sequence[list[int]]) -> int:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_samples": num_samples, "batch_size": rows}
        found = generate_ids(model, tokenizer, prompts, precision=precision, **options)
        return sum(len(answer.ids) for answers in found for answer in answers)

    write = by_generate if plainly else by_ours
    write(prompts[:2])  # lazy imports, the memory's first touch
    wait(model.device)
    began = time.perf_counter()
    tokens = write(prompts)
    wait(model.device)
    return {"tokens": tokens, "seconds": time.perf_counter() - began}
