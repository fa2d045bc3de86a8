"""Completions for prompts, batched. Knows no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dpo_lab.models import inner_model


class Completion(NamedTuple):
    """One sampled answer: its text without special tokens, its token ids, and whether it ended by itself."""

    text: str
    ids: np.ndarray  # (length,), the end token included where there is one
    is_finished: bool


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str] | list[list[str]]:
    """Texts that the model answers to each prompt: one per prompt, or a list of `num_samples` per prompt.

    prompts: rendered texts (`preferences.render_prompt` applies the chat template) or token ids.
    temperature: 0 is greedy; 1 is the model's own distribution. The same seed gives the same texts on the same machine.
    """
    rows = generate_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        num_samples=num_samples, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    texts = [[completion.text for completion in row] for row in rows]
    return [row[0] for row in texts] if num_samples == 1 else texts


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> list[list[Completion]]:
    """As `generate`, with token ids: one list of `num_samples` completions per prompt, in the order given."""
    _check(max_new_tokens, temperature, top_p, num_samples, batch_size)
    encoded = [_encode(prompt, tokenizer) for prompt in prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} has no tokens, and a model needs one to start from; give it some text")
    device = next(model.parameters()).device
    ends = _end_tokens(model, tokenizer)
    options = {
        "max_new_tokens": max_new_tokens,
        "do_sample": temperature > 0,
        "num_return_sequences": num_samples,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_token_id,
        "top_k": None,
        "use_cache": True,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    completions: list[list[Completion]] = [[] for _ in encoded]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # similar lengths together: little padding
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            at_once = max(1, batch_size // num_samples)
            for start in range(0, len(order), at_once):
                part = order[start : start + at_once]
                width = max(len(encoded[i]) for i in part)
                ids = torch.full((len(part), width), int(tokenizer.pad_token_id or 0), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for r, i in enumerate(part):
                    ids[r, width - len(encoded[i]) :] = torch.tensor(encoded[i])
                    mask[r, width - len(encoded[i]) :] = 1
                output = inner_model(model).generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), **options
                )
                for r, row in enumerate(output[:, width:].cpu().numpy()):
                    completions[part[r // num_samples]].append(_completion(row, ends, tokenizer))
    finally:
        model.train(was_training)
    return completions


def _completion(ids: np.ndarray, ends: list[int], tokenizer: Any) -> Completion:
    stops = np.flatnonzero(np.isin(ids, ends))
    kept = ids[: stops[0] + 1] if len(stops) else ids
    return Completion(tokenizer.decode(kept, skip_special_tokens=True).strip(), kept.astype(np.int32), bool(len(stops)))


def _encode(prompt: str | Sequence[int], tokenizer: Any) -> list[int]:
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    # A rendered template already holds its special tokens; add the tokenizer's own only where it would start a text.
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a")["input_ids"]
    if bos is None or tokenizer.chat_template or with_special[:1] != [bos] or ids[:1] == [bos]:
        return ids
    return [bos, *ids]


def _end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    configured = inner_model(model).generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in [*configured, tokenizer.eos_token_id] if token is not None})


def _check(max_new_tokens: int, temperature: float, top_p: float, num_samples: int, batch_size: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}; 128 is the usual start")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}; 0 is greedy, 1 the model's own")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}; 1 keeps every token")
    if num_samples < 1 or (temperature == 0 and num_samples > 1):
        raise ValueError(f"num_samples must be at least 1, and 1 at temperature 0, got {num_samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 64 is the usual start")
