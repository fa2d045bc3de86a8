"""Attention over shared rows: each completion sees its prompt and its own past, and nothing else is computed.

A row `[prompt | chosen | rejected | next prompt | ...]` is described by spans (`batching.Batch.spans`). The causal part
`[prompt | chosen]` is one attention call; each further completion is one call against the keys of its prompt and its
own. So the work is that of the tokens that see each other: no padding, no masked-out half, no T × T mask.

Registered with transformers under the name `SHARED_ATTENTION`; calls without spans (generation, separate rows) go to
transformers' own scaled-dot-product attention.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_ATTENTION = "shared_prompts"


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: tuple[tuple[int, ...], ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, d), key and value (1, H_kv, T, d) → (1, T, H, d), the layout that transformers expects."""
    if spans is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped-query attention: each key head serves several query heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
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
            outputs.append(_attend(next(queries), keys, values, dropout, scaling))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Causal attention whose last query sees all keys: where the queries are fewer, the early keys are a prompt."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


def can_share(model: Any) -> bool:
    """Whether a transformers model asks the registry for its attention, so that it can be given this one."""
    return hasattr(model, "set_attn_implementation") and bool(model._can_set_attn_implementation())


def use_shared_attention(model: Any) -> None:
    """Make a transformers model take its attention from here. Generation and ordinary masks work as before."""
    if model.config._attn_implementation != SHARED_ATTENTION:
        model.set_attn_implementation(SHARED_ATTENTION)


AttentionInterface.register(SHARED_ATTENTION, shared_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
