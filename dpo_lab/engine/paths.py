"""Which fast ways a model can take without changing its values, found out once by trying them on two small pairs.

The output layer in pieces is exact where nothing follows it but a softmax (Gemma 2 caps its logits, Cohere scales
them). Shared rows are exact where the model takes its attention from transformers' registry and sees all of its past.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, separate_rows, shared_rows
from dpo_lab.engine.attention import can_share
from dpo_lab.models.inside import body, inner_model, output_layer
from dpo_lab.preferences.token_data import TokenData

TokenLogps = Callable[[Any, Batch], Tensor]
"""(transformers model, batch) → log π of every scored token, (N,)."""

logger = logging.getLogger("dpo_lab")

_PATHS: WeakKeyDictionary[nn.Module, ScoringPath] = WeakKeyDictionary()
_PROBE_LOCK = RLock()  # a second thread waits until it is found out
_TOLERANCE = 1e-3  # nats per token in float32; a wrong mask or a missing soft-cap is off by far more
_LOUD = 256.0  # a power of two, so that multiplying by it and dividing again is exact
_CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings of transformers' models that change the logits where they are neither None nor 1."""


@dataclass
class ScoringPath:
    """What was found out about a model: whether the output layer in pieces and the shared rows give its own values."""

    chunked: bool
    shared: bool
    reason: str = ""  # why rows cannot be shared
    is_warned: bool = False

    def why_not_shared(self, model: nn.Module, data: TokenData) -> str:
        """Why a prompt cannot be shared by its completions, or nothing where it can."""
        window = sliding_window(inner_model(model).config)
        longest = 0 if window is None else data.longest()
        if not self.shared or window is None or longest <= window:
            return self.reason
        return f"it attends to a sliding window of {window} tokens and the longest sequence has {longest}"


def probe_paths(model: nn.Module, plain: TokenLogps, chunked: TokenLogps) -> ScoringPath:
    """Compare the ways with the model's own logits, once per model. plain, chunked: the two ways to score a batch."""
    with _PROBE_LOCK:
        if model not in _PATHS:
            with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
                _PATHS[model] = _probe_paths(model, plain, chunked)
        return _PATHS[model]


def _probe_paths(model: nn.Module, plain: TokenLogps, chunked: TokenLogps) -> ScoringPath:
    inner, device = inner_model(model), next(model.parameters()).device
    generator = np.random.default_rng(0)
    draw = lambda num: generator.integers(0, output_layer(model).weight.shape[0], num).astype(np.int32)
    data = TokenData.from_rows([(draw(5), (draw(3), draw(4))), (draw(2), (draw(4), draw(1)))])
    separate, shared = (rows(data, [0, 1]).to(device) for rows in (separate_rows, shared_rows))
    was_training = model.training
    model.eval()
    try:
        oracle = plain(inner, separate)
        tolerance = _TOLERANCE if next(model.parameters()).dtype is torch.float32 else 50 * _TOLERANCE
        close = lambda values: bool((values - oracle).abs().max() < tolerance)
        is_chunkable = _has_plain_logits(inner) and close(chunked(inner, separate))
        if is_chunkable:
            with _loud_logits(model):  # a cap shows only where logits are large, and they grow in training
                loud, expected = chunked(inner, separate), plain(inner, separate)
            is_chunkable = bool(((loud - expected).abs() < tolerance * expected.abs().clamp(min=1)).all())
        if not is_chunkable:
            name = type(inner).__name__
            logger.warning("%s changes its logits after the output layer: all of them are computed", name)
        way = chunked if is_chunkable else plain
        reason = _why_not_shared(inner, lambda: close(way(inner, shared)))
        return ScoringPath(is_chunkable, not reason, reason)
    finally:
        model.train(was_training)


def _has_plain_logits(inner: Any) -> bool:
    """Whether the output layer is a plain one behind a body, and no setting is known to change what it gives."""
    changes = [getattr(inner.config, name, None) not in (None, 1) for name in _CHANGES_LOGITS]
    return isinstance(inner.get_output_embeddings(), nn.Linear) and body(inner) is not None and not any(changes)


@contextmanager
def _loud_logits(model: nn.Module) -> Iterator[None]:
    """The logits times 256 for a while."""
    weight = output_layer(model).weight
    weight.mul_(_LOUD)
    try:
        yield
    finally:
        weight.div_(_LOUD)


def _why_not_shared(inner: Any, is_exact: Callable[[], bool]) -> str:
    name = type(inner).__name__
    if not can_share(inner):
        return f"{name} does not take another attention"
    own_attention = inner.config._attn_implementation
    try:
        return "" if is_exact() else f"{name} gives other values with shared prompts"
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # a model that cannot take such a row at all
        logger.debug("shared rows fail in %s: %s", name, error)
        return f"{name} gives other values with shared prompts"
    finally:
        inner.set_attn_implementation(own_attention)  # until a shared row really comes


def sliding_window(config: Any) -> int | None:
    """How many tokens back a model's attention sees in some layer; None where all of them see all."""
    layers = getattr(config, "layer_types", None)
    if layers is not None and not any("sliding" in layer or "chunked" in layer for layer in layers):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
