"""Completions for prompts, batched. Knows no rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from dpo_lab.models.inside import check_length, inner_model, position_limit
from dpo_lab.preferences.encoding import end_token_id
from dpo_lab.preferences.reports import BadRow
from dpo_lab.preferences.tokens import encode_prompt

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A row with a prompt (encoded exactly as in training), token ids, or a rendered text."""


class Completion(NamedTuple):
    """One sampled answer: its text without special tokens, its token ids, and whether it ended by itself."""

    text: str
    ids: np.ndarray  # (length,), the end token included where there is one
    is_finished: bool


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt],
    *, max_new_tokens: int = 128, temperature: float = 1.0, top_p: float = 1.0, num_samples: int = 1, seed: int = 0,
    batch_size: int = 64,
) -> list[str] | list[list[str]]:  # fmt: skip
    """Texts that the model answers to each prompt: one per prompt, or a list of `num_samples` per prompt.

    prompts: rows with a prompt, as `load_preferences` gives them; or rendered texts, or token ids.
    temperature: 0 is greedy; 1 is the model's own distribution, whatever its generation_config.json says (top-k,
        penalties). The same seed, prompts and batch_size give the same texts on the same machine.
    Texts come without special tokens and without white space around them.
    """
    rows = generate_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        num_samples=num_samples, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    texts = [[completion.text for completion in row] for row in rows]
    return [row[0] for row in texts] if num_samples == 1 else texts


@torch.no_grad()
def generate_ids(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt],
    *, max_new_tokens: int = 128, temperature: float = 1.0, top_p: float = 1.0, num_samples: int = 1, seed: int = 0,
    batch_size: int = 64,
) -> list[list[Completion]]:  # fmt: skip
    """As `generate`, with token ids: one list of `num_samples` completions per prompt, in the order given."""
    _check(max_new_tokens, temperature, top_p, num_samples, batch_size)
    inner = inner_model(model)
    num_embeddings = inner.get_input_embeddings().weight.shape[0]
    encoded = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} has no tokens, and a model needs one to start from; give it some text")
        if max(ids) >= num_embeddings or min(ids) < 0:
            raise ValueError(
                f"prompt {i} holds token ids from {min(ids)} to {max(ids)}, the model has {num_embeddings} embeddings; "
                "use the tokenizer of this model"
            )
    device = next(model.parameters()).device
    ends, limit = end_tokens(model, tokenizer), position_limit(model)
    # Without sampling these must have transformers' own defaults, or it warns that they are of no use.
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, num_return_sequences=num_samples, do_sample=temperature > 0, **drawn,
        eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id or 0, use_cache=True,
    )  # fmt: skip
    completions: list[list[Completion]] = [[] for _ in encoded]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # similar lengths together: little padding
    with _ready_to_sample(model, inner, settings, seed):
        at_once = max(1, batch_size // num_samples)
        for start in range(0, len(order), at_once):
            part = order[start : start + at_once]
            width = max(len(encoded[i]) for i in part)
            if limit is not None:  # a table of positions ends an answer where it ends
                check_length(model, width + 1, "a prompt")
                settings.max_new_tokens = min(max_new_tokens, limit - width)
            ids = torch.full((len(part), width), settings.pad_token_id, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, i in enumerate(part):  # padded on the left, so that all prompts end where the answers begin
                ids[r, width - len(encoded[i]) :] = torch.tensor(encoded[i])
                mask[r, width - len(encoded[i]) :] = 1
            output = inner.generate(ids.to(device), attention_mask=mask.to(device), generation_config=settings)
            for r, row in enumerate(output[:, width:].cpu().numpy()):
                completions[part[r // num_samples]].append(_completion(row, ends, tokenizer))
    return completions


@contextmanager
def _ready_to_sample(model: nn.Module, inner: Any, settings: GenerationConfig, seed: int) -> Iterator[None]:
    """Dropout off, the generator seeded, and the model's own generation settings out of the way; then all as before."""
    device = next(model.parameters()).device
    was_training, own = model.training, inner.generation_config
    model.eval()
    inner.generation_config = settings  # transformers fills what is unset from here: top-k and penalties of the model
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise FloatingPointError(
            "the model gives probabilities that are no numbers; look at its weights, they may have diverged in training"
        ) from error
    finally:
        inner.generation_config = own
        model.train(was_training)


def prompt_ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    """The token ids from which an answer starts."""
    if isinstance(prompt, Mapping):
        return encode_prompt(prompt, tokenizer)
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    bare = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    started = encode_prompt({"prompt": prompt}, tokenizer)
    start = started[: len(started) - len(bare)]
    if start and tokenizer.chat_template:
        # The text may be a conversation that the template rendered: it begins as conversations do in training.
        chat = encode_prompt({"prompt": [{"role": "user", "content": "x"}]}, tokenizer)
        return started if chat[: len(start)] == start else bare
    return started


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Where an answer ends: the end tokens of model and tokenizer, and the token that closes a turn in its template."""
    configured = inner_model(model).generation_config.eos_token_id
    found = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    if tokenizer.chat_template:
        with suppress(BadRow):  # a template that cannot render a question and its answer closes no turn
            found.append(end_token_id(tokenizer, is_chat=True))
    return sorted({int(token) for token in found if token is not None})


def _completion(ids: np.ndarray, ends: list[int], tokenizer: Any) -> Completion:
    stops = np.flatnonzero(np.isin(ids, ends))
    own = ids[: stops[0] + 1] if len(stops) else ids
    return Completion(tokenizer.decode(own, skip_special_tokens=True).strip(), own.astype(np.int32), bool(len(stops)))


def _check(max_new_tokens: int, temperature: float, top_p: float, num_samples: int, batch_size: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}; 128 is the usual start")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be finite and not negative, got {temperature}; 0 is greedy, 1 the model's own"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}; 1 keeps every token")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}; 1 is the usual start")
    if temperature == 0 and num_samples > 1:
        raise ValueError(f"num_samples must be 1 at temperature 0, got {num_samples}; greedy answers are all the same")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 64 is the usual start")
