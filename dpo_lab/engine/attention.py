"""Attention over shared rows: each completion sees its prompt and its own past, and nothing else is computed.

A row `[prompt | chosen | rejected | next prompt | ...]` is described by spans (`batching.Batch.spans`). Its ways give
the same values. Long rows on a CPU are attended to apart: the causal part `[prompt | chosen]` is one call and each
further completion another, against the keys of its prompt and its own, so the work is that of the tokens that see each
other. Many short rows, and rows on a GPU, are attended to together, since calls cost more there than masked-out work:
one call, each prompt with its completions padded to a row, under a mask. A model may be set to attend in blocks
instead (`block_attention`), which a GPU does without padding once a kernel is compiled.

Registered with transformers under the names `SHARED_ATTENTION` and `BLOCK_ATTENTION`; calls without spans (generation,
separate rows) go to transformers' own scaled-dot-product attention.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpo_lab.batching import Spans

SHARED_ATTENTION = "shared_prompts"
BLOCK_ATTENTION = "shared_prompts_in_blocks"
TOKENS_TOGETHER = 160
"""On a CPU, rows of up to this many tokens on average are attended to together; longer ones apart."""
TOKENS_IN_FLOAT32 = 300
"""On a CPU, rows of up to this many tokens on average are attended to in float32 under bfloat16 too: torch's backward
pass in bfloat16 takes five times as long at 60 tokens, and as long at 350. Without gradients it is the same, so that
policy and reference agree."""


def shared_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, spans: Spans | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query (1, H, T, d), key and value (1, H_kv, T, d) → (1, T, H, d), the layout that transformers expects."""
    if spans is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    check_plain(kwargs)
    is_short = query.shape[2] <= TOKENS_TOGETHER * len(spans)
    attend = _attend_together if is_short or query.device.type != "cpu" else _attend_apart
    key, value = _one_each(query, key), _one_each(query, value)
    if query.device.type == "cpu" and query.shape[2] <= TOKENS_IN_FLOAT32 * len(spans):
        with torch.autocast("cpu", enabled=False):
            output = attend(query.float(), key.float(), value.float(), spans, {"dropout_p": dropout, "scale": scaling})
            return output.to(query.dtype), None
    return attend(query, key, value, spans, {"dropout_p": dropout, "scale": scaling}), None


def shared_attention_in_blocks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As `shared_attention`, in blocks where they work: on a GPU, without dropout."""
    from dpo_lab.engine.block_attention import attend_in_blocks, is_exact_here  # most runs have no use for it

    spans = options.get("spans")
    if spans is None or options.get("dropout", 0.0) > 0 or not is_exact_here(query, key, _padded):
        return shared_attention(module, query, key, value, attention_mask, **options)
    check_plain(options)
    return attend_in_blocks(query, key, value, spans, {"scale": options.get("scaling")}), None


def check_plain(options: dict[str, Any]) -> None:
    """A capped score or a sink (Gemma 2, GPT-OSS) would otherwise be left out without a word."""
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"attention over shared rows has no {name}; use layout='separate' with this model")


def _padded(query: Tensor, key: Tensor, value: Tensor, spans: Spans, options: dict[str, Any]) -> Tensor:
    return _attend_together(query, _one_each(query, key), _one_each(query, value), spans, options)


def _one_each(query: Tensor, key: Tensor) -> Tensor:
    """Keys (or values) for every query head: in grouped-query attention each key head serves several."""
    groups = query.shape[1] // key.shape[1]
    return key if groups == 1 else key.repeat_interleave(groups, 1)


def _attend_apart(query: Tensor, key: Tensor, value: Tensor, spans: Spans, options: dict[str, Any]) -> Tensor:
    """One call per prompt and completion: (1, H, T, d) → (1, T, H, d)."""
    # Cut once and join once: the backward pass of a cut is then one join, where that of many slices would write a
    # tensor of zeros for each.
    query_sizes, key_sizes = [], []
    for start, prompt_end, *ends in spans:
        later = [end - begin for begin, end in pairwise(ends)]
        query_sizes += [ends[0] - start, *later]
        key_sizes += [prompt_end - start, ends[0] - prompt_end, *later]
    queries = iter(query.split(query_sizes, 2))
    pieces = zip(key.split(key_sizes, 2), value.split(key_sizes, 2), strict=True)
    outputs = []
    for _, _, *ends in spans:
        prompt_key, prompt_value = next(pieces)
        for _ in ends:
            own_key, own_value = next(pieces)
            keys, values = torch.cat([prompt_key, own_key], 2), torch.cat([prompt_value, own_value], 2)
            outputs.append(_attend(next(queries), keys, values, options))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _attend_together(query: Tensor, key: Tensor, value: Tensor, spans: Spans, options: dict[str, Any]) -> Tensor:
    """One call over padded rows, one row per prompt: (1, H, T, d) → (1, T, H, d)."""
    places, mask = _padded_rows(spans, query.device)
    num_rows, _, width, _ = mask.shape

    def padded(x: Tensor) -> Tensor:  # (1, H, T, d) → (B, H, L, d)
        _, heads, _, size = x.shape
        rows = x.new_zeros(num_rows * width, heads, size).index_copy(0, places, x[0].transpose(0, 1))
        return rows.view(num_rows, width, heads, size).transpose(1, 2)

    output = F.scaled_dot_product_attention(padded(query), padded(key), padded(value), attn_mask=mask, **options)
    return output.transpose(1, 2).flatten(0, 1).index_select(0, places)[None]


@lru_cache(maxsize=4)  # every layer needs the same
def _padded_rows(spans: Spans, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token stands among B padded rows of L tokens, (T,), and who sees whom in each, (B, 1, L, L)."""
    lengths = torch.tensor([span[-1] - span[0] for span in spans])
    num_rows, width = len(spans), int(lengths.max())
    is_token = torch.arange(width) < lengths[:, None]  # (B, L)
    # Which part of its row a token belongs to: 0 the prompt, k the k-th completion.
    inner = torch.tensor([span[1:-1] for span in spans]) - torch.tensor([[span[0]] for span in spans])
    part = (torch.arange(width)[None, :, None] >= inner[:, None, :]).sum(-1)  # (B, L)
    sees = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    mask = sees.tril().view(num_rows, 1, width, width)
    return is_token.flatten().nonzero()[:, 0].to(device), mask.to(device)


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """Causal attention whose last query sees all keys: where the queries are fewer, the early keys are a prompt."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)


def can_share(model: Any) -> bool:
    """Whether a transformers model can be given this attention: it takes its own from the registry, and needs nothing
    that torch's own attention does not do (Gemma 2 caps scores, GPT-OSS has sinks)."""
    if getattr(getattr(model, "config", None), "attn_logit_softcapping", None) is not None:
        return False  # transformers 5.15 says of Gemma 2 that torch's attention serves it
    return bool(
        hasattr(model, "set_attn_implementation") and model._can_set_attn_implementation() and model._supports_sdpa
    )


def use_shared_attention(model: Any) -> None:
    """Make a transformers model take its attention from here. Generation and ordinary masks work as before."""
    if model.config._attn_implementation not in (SHARED_ATTENTION, BLOCK_ATTENTION):
        model.set_attn_implementation(SHARED_ATTENTION)


def use_block_attention(model: Any) -> None:
    """Make a transformers model attend to shared rows in blocks wherever that works; elsewhere as before."""
    if model.config._attn_implementation != BLOCK_ATTENTION:
        model.set_attn_implementation(BLOCK_ATTENTION)


AttentionInterface.register(SHARED_ATTENTION, shared_attention)
AttentionInterface.register(BLOCK_ATTENTION, shared_attention_in_blocks)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)
