"""Completions for prompts, many at once, with their log-probs. Knows no rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from dpo_lab.engine.sampler import Answer, Choice, sample
from dpo_lab.models.inside import check_length, end_tokens, inner_model, position_limit
from dpo_lab.preferences.tokens import encode_prompt

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A row with a prompt (encoded exactly as in training), token ids, or a rendered text."""


class Completion(NamedTuple):
    """One sampled answer: its text without special tokens, its token ids, whether it ended by itself, its log-probs.

    logps: log π(token | prompt, earlier tokens) in nats, under the model's own distribution (temperature 1, no top_p),
        as the sampler computed them: in its `precision`, the softmax in float32. log π(y|x) is their sum.
    """

    text: str
    ids: np.ndarray  # (length,), the end token included where there is one
    is_finished: bool
    logps: np.ndarray  # (length,), float32


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt],
    *, max_new_tokens: int = 128, temperature: float = 1.0, top_p: float = 1.0, num_samples: int = 1, seed: int = 0,
    batch_size: int = 64, precision: str = "float32",
) -> list[str] | list[list[str]]:  # fmt: skip
    """Texts that the model answers to each prompt: one per prompt, or a list of `num_samples` per prompt.

    prompts: rows with a prompt, as `load_preferences` gives them; or rendered texts, or token ids.
    temperature: 0 is greedy; 1 is the model's own distribution, whatever its generation_config.json says (top-k,
        penalties).
    seed: each answer has random numbers of its own, made from the seed, the place of its prompt and its number among
        the prompt's answers: it does not change with what else is sampled.
    batch_size: most answers that are worked on at a time. It changes no text, up to rounding.
    precision: "float32" samples with the weights as they are, "bfloat16" with a copy of them in bfloat16: several times
        as fast where the processor has such products, and from a distribution rounded to three digits.
    Texts come without special tokens and without white space around them.
    """
    rows = generate_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        num_samples=num_samples, seed=seed, batch_size=batch_size, precision=precision,
    )  # fmt: skip
    texts = [[completion.text for completion in row] for row in rows]
    return [row[0] for row in texts] if num_samples == 1 else texts


def generate_ids(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt],
    *, max_new_tokens: int = 128, temperature: float = 1.0, top_p: float = 1.0, num_samples: int = 1, seed: int = 0,
    batch_size: int = 64, precision: str = "float32",
) -> list[list[Completion]]:  # fmt: skip
    """As `generate`, with token ids: one list of `num_samples` completions per prompt, in the order given."""
    _check(max_new_tokens, temperature, top_p, num_samples, batch_size, precision)
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
    if not encoded:
        return []
    check_length(model, max(map(len, encoded)) + 1, "a prompt")
    ends, limit = end_tokens(model, tokenizer), position_limit(model)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # similar lengths side by side
    # A table of positions ends an answer where it ends.
    most = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in encoded]
    answers = [Answer(i, _uniforms(seed, i, k, most[i])) for i in order for k in range(num_samples)]
    was_training = model.training
    model.eval()
    try:
        choice = Choice(temperature, top_p, frozenset(ends))
        sample(inner, encoded, answers, choice, batch_size=batch_size, precision=precision)
    finally:
        model.train(was_training)
    completions: list[list[Completion]] = [[] for _ in encoded]
    for answer in answers:
        text = tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
        ids, logps = np.array(answer.ids, np.int32), np.array(answer.logps, np.float32)
        completions[answer.prompt].append(Completion(text, ids, answer.ids[-1] in ends, logps))
    return completions


def _uniforms(seed: int, prompt: int, sample: int, num: int) -> np.ndarray:
    """An answer's own random numbers in [0, 1), one per token, (num,) float32."""
    return np.random.default_rng((seed % 2**64, prompt, sample)).random(num, np.float32)


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


def _check(
    max_new_tokens: int, temperature: float, top_p: float, num_samples: int, batch_size: int, precision: str
) -> None:
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
    if precision not in ("float32", "bfloat16"):
        raise ValueError(
            f"precision must be float32 or bfloat16, got {precision!r}; float32 keeps the weights as they are"
        )
