"""Keys and values of many answers, and the attention over them: what a model needs to go on from where it was.

Prompts of any lengths go through the model in one row without padding, as shared rows do. After that the model gets a
row of n tokens, the last of each of n answers. Its attention is replaced by one that writes each token's key and value
into the store, in place, and attends to those of the token's own answer. So the model's own layers do the work, and
every model is served that takes its attention from transformers' registry.

n answers, V vocabulary, H heads, H_kv heads of keys, d their width, L places for an answer with its prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from dpo_lab.batching import Spans
from dpo_lab.engine.attention import can_share, check_plain, shared_attention
from dpo_lab.engine.paths import sliding_window
from dpo_lab.engine.two_halves import has_steady_rotations

STORE_ATTENTION = "store_of_keys"

PROMPT_TOKENS = 8192
"""Most tokens of prompts that go through the model at once, where there is more than one prompt."""

KeysAndValues = dict[nn.Module, tuple[Tensor, Tensor]]
"""Attention layer → its keys and its values."""

logger = logging.getLogger("dpo_lab")

_REASONS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_TOLERANCE = 1e-3  # nats per token in float32; a wrong place in the store is off by far more


class ComputedPrompt(NamedTuple):
    """A prompt that went through a model: keys and values, (1, H_kv, T, d) each, and the logits behind it, (V,)."""

    kept: KeysAndValues
    logits: Tensor


class Store:
    """Keys and values of up to `size` answers in every layer, (size, H_kv, L, d) each; answer i stands in place i."""

    def __init__(self, size: int, length: int) -> None:
        self.size, self.length = size, length
        self.layers: KeysAndValues = {}

    def enter(self, places: Sequence[int], prompt: ComputedPrompt) -> None:
        """Begin an answer to the prompt in each of `places`."""
        for layer, pair in prompt.kept.items():
            if layer not in self.layers:
                # Zeros, for a place that was never written is masked and not left out: a NaN there would count.
                key, value = (x.new_zeros(self.size, x.shape[1], self.length, x.shape[3]) for x in pair)
                self.layers[layer] = key, value
            for stored, own in zip(self.layers[layer], pair, strict=True):
                stored[list(places), :, : own.shape[2]] = own

    def move(self, places: Sequence[int], to: Sequence[int]) -> None:
        """Copy whole answers to other places."""
        if places:
            for pair in self.layers.values():
                for stored in pair:
                    stored[list(to)] = stored[list(places)]


@dataclass
class PromptPass:
    """Prompts side by side go through a model; `kept` gets their keys and values, (1, H_kv, T, d)."""

    spans: Spans
    kept: KeysAndValues = field(default_factory=dict)

    def attend(self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """query (1, H, T, d) → (1, T, H, d)."""
        self.kept[layer] = key, value
        return shared_attention(layer, query, key, value, None, scaling=scaling, spans=self.spans)[0]


@dataclass
class TokenPass:
    """A token of each of the first n answers goes through a model: its place in its answer, and what it sees there."""

    store: Store
    rows: Tensor  # 0 to n − 1, (n,)
    positions: Tensor  # (n,)
    mask: Tensor  # 0 or −∞, (n, 1, 1, W)

    def attend(self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """query (1, H, n, d), key and value (1, H_kv, n, d) → (1, n, H, d)."""
        (_, num_heads, n, _), num_groups, width = query.shape, key.shape[1], self.mask.shape[-1]
        keys, values = self.store.layers[layer]
        keys[self.rows, :, self.positions] = key[0].transpose(0, 1)
        values[self.rows, :, self.positions] = value[0].transpose(0, 1)
        # The heads that share a head of keys are queries of one attention: no key is repeated.
        query = query[0].transpose(0, 1).reshape(n, num_groups, num_heads // num_groups, -1)
        seen = keys[:n, :, :width], values[:n, :, :width]
        output = F.scaled_dot_product_attention(query, *seen, attn_mask=self.mask, scale=scaling)
        return output.reshape(1, n, num_heads, -1)


def store_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, step: PromptPass | TokenPass | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What the layers call, by way of transformers' registry. Without `step` it is the attention of shared rows."""
    if step is None:
        return shared_attention(module, query, key, value, attention_mask, dropout, scaling, **options)
    check_plain(options)
    return step.attend(module, query, key, value, scaling), None


AttentionInterface.register(STORE_ATTENTION, store_attention)
AttentionMaskInterface.register(STORE_ATTENTION, sdpa_mask)


@contextmanager
def attends_to_store(model: Any) -> Iterator[None]:
    """While it is entered, a transformers model attends to what `compute_prompts` and `token_logits` give it."""
    own = model.config._attn_implementation
    model.set_attn_implementation(STORE_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def compute_prompts(model: Any, prompts: Mapping[int, Sequence[int]]) -> dict[int, ComputedPrompt]:
    """Send prompts through the model. prompts: token ids under any number; the same numbers come back."""
    computed: dict[int, ComputedPrompt] = {}
    for part in _parts(prompts):
        edges = [0, *accumulate(len(prompts[i]) for i in part)]
        step = PromptPass(tuple((start, start, end) for start, end in pairwise(edges)))
        ids = [token for i in part for token in prompts[i]]
        positions = [position for i in part for position in range(len(prompts[i]))]
        logits = _logits(model, ids, positions, step, logits_to_keep=torch.tensor(edges[1:], device=model.device) - 1)
        for place, (i, (start, end)) in enumerate(zip(part, pairwise(edges), strict=True)):
            kept = {layer: (k[:, :, start:end], v[:, :, start:end]) for layer, (k, v) in step.kept.items()}
            computed[i] = ComputedPrompt(kept, logits[place])
    return computed


def token_logits(model: Any, store: Store, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Logits behind a token of each of the first n answers in the store, (n, V), its positions counting the prompt."""
    n, width = len(tokens), max(positions) + 1
    rows, places = torch.arange(n, device=model.device), torch.tensor(positions, device=model.device)
    is_hidden = torch.arange(width, device=model.device) > places[:, None]
    mask = torch.zeros(n, width, device=model.device, dtype=model.dtype).masked_fill_(is_hidden, -torch.inf)
    return _logits(model, tokens, positions, TokenPass(store, rows, places, mask[:, None, None]))


def _logits(model: Any, ids: Sequence[int], positions: Sequence[int], step: Any, **options: Any) -> Tensor:
    input_ids, position_ids = torch.tensor([[ids], [positions]], device=model.device)
    # A four-dimensional mask is passed on as it is, so no mask is built; the attention has its own.
    everything = input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
    return model(
        input_ids=input_ids, position_ids=position_ids, attention_mask=everything, use_cache=False, step=step, **options
    ).logits[0]  # fmt: skip


def _parts(prompts: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    part: list[int] = []
    for i, ids in prompts.items():
        if part and sum(len(prompts[k]) for k in part) + len(ids) > PROMPT_TOKENS:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


# ── which models ─────────────────────────────────────────────────────────────────────────────────────────────────────


def why_not_stored(model: Any, longest: int) -> str:
    """Why a model cannot go on from a store; nothing where it can.

    model: a transformers model in evaluation mode. Its values are compared with its own plain ones, once.
    longest: most tokens of an answer with its prompt.
    """
    window = sliding_window(model.config)
    if window is not None and longest > window:
        return f"it attends to a sliding window of {window} tokens, and an answer with its prompt may have {longest}"
    if model not in _REASONS:
        _REASONS[model] = _try(model)
    return _REASONS[model]


def _try(model: Any) -> str:
    name = type(model).__name__
    if not can_share(model):
        return f"{name} does not take another attention"
    if not has_steady_rotations(model):
        return f"the rotary positions of {name} depend on the length of its rows"
    num, lengths = 8, (5, 2)
    rows = np.random.default_rng(0).integers(0, model.get_input_embeddings().weight.shape[0], (2, num)).tolist()
    try:
        expected, found = [], []
        for row, length in zip(rows, lengths, strict=True):
            ids = torch.tensor([row], device=model.device)
            plain = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            expected.append(plain[length - 1 : length + 3])
        with attends_to_store(model):
            computed = compute_prompts(model, {i: rows[i][: lengths[i]] for i in range(2)})
            store = Store(2, num)
            for i, prompt in computed.items():
                store.enter([i], prompt)
            found.append(torch.stack([computed[i].logits for i in range(2)]))
            for t in range(3):
                places = [length + t for length in lengths]
                found.append(token_logits(model, store, [row[p] for row, p in zip(rows, places, strict=True)], places))
        logps, oracle = (x.float().log_softmax(-1) for x in (torch.stack(found, 1), torch.stack(expected)))
        tolerance = _TOLERANCE if model.dtype is torch.float32 else 50 * _TOLERANCE
        # A model whose weights are NaN is not another kind of model.
        is_close = torch.allclose(logps, oracle, atol=tolerance, rtol=0, equal_nan=True)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        logger.debug("%s cannot go on from a store: %s", name, error)
        is_close = False
    return "" if is_close else f"{name} gives other values from a store of keys"
