"""From random weights to DPO in the pocket world: models by size, and the stages on the way, on any device.

    model = new_llama("30m", tokenizer).to(device)
    texts = sft_tokens(120_000, tokenizer)          # train_sft(model, tokenizer, texts, …)
    pairs = own_pairs(model, tokenizer, 4_096)      # train_dpo(model, tokenizer, pairs, …)
    judged(model, tokenizer, conversations)         # the true reward

The texts, prompts and labels are made as `data/build.py` makes the embedded ones, from seeds, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpo_lab.course.speed.scaling import Shape
from dpo_lab.preferences.chat import render_prompt
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import tokenize_examples
from dpo_lab.sampling import generate
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.schema import Conversation

MAX_NEW_TOKENS = 80


SIZES = {
    "tiny": Shape(corpus.VOCABULARY, 64, 160, 2, 2, 2),
    "30m": Shape(corpus.VOCABULARY, 512, 1360, 9, 8, 8),
    "135m": Shape(corpus.VOCABULARY, 768, 2048, 19, 12, 12),
}
"""Llamas for the pocket world's vocabulary; the names say about how many weights they have."""


def new_llama(size: str | Shape, tokenizer: Any, *, seed: int = 0) -> Any:
    """A Llama with the tokenizer's vocabulary and random weights, float32, on the CPU; the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"size {size!r} is not known; choose one of {', '.join(SIZES)}, or give a Shape")
        size = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=size.width, intermediate_size=size.inner,
            num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
            max_position_embeddings=corpus.CONTEXT, tie_word_embeddings=size.is_tied, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip


def sft_tokens(num: int, tokenizer: Any, *, seed: int = 0) -> TokenData:
    """`num` training conversations with one answer each, of mixed quality, as token ids."""
    return tokenize_examples(list(corpus.sft_rows(num, seed=seed)), tokenizer, max_length=corpus.CONTEXT)[0]


def own_pairs(
    model: nn.Module, tokenizer: Any, num_prompts: int, *, answers: int = 4, temperature: float = 0.3, seed: int = 0,
    batch_size: int = 1024,
) -> list[dict[str, Any]]:  # fmt: skip
    """Pairs of the model's own answers to training prompts, labelled by the judge with Bradley–Terry noise.

    A prompt whose answers are all worth the same gives none, so there are fewer pairs than prompts.
    """
    conversations = corpus.prompts(num_prompts, split="train", seed=seed + 2000)
    texts = generate(
        model, tokenizer, [c.row() for c in conversations], max_new_tokens=MAX_NEW_TOKENS, num_samples=answers,
        seed=seed + 1, batch_size=batch_size,
    )  # fmt: skip
    several = [[one] if isinstance(one, str) else one for one in texts]
    return corpus.pair_answers(conversations, several, temperature=temperature, seed=seed)[0]


def judged(
    model: nn.Module, tokenizer: Any, conversations: Sequence[Conversation], *, seed: int = 0, batch_size: int = 256
) -> dict[str, float]:
    """The judge's figures over one sampled answer to each conversation: true reward, success and others."""
    prompts = [render_prompt(conversation.row(), tokenizer) for conversation in conversations]
    texts = generate(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=batch_size)
    return quality(conversations, [str(text) for text in texts])
