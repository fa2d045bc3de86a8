"""Log-probabilities of completions, log π(y|x). Knows nothing about preferences or β.

B prompts with K completions each, N scored tokens, D width of the model, V vocabulary. Values are in nats; log-sum-exp
and sums run in float32 whatever the precision of the model.

The hidden states go through the output layer only where a completion token is predicted, and in chunks, so the
(B, T, V) tensor of logits never exists. Where a model does more after its output layer than a matrix product
(soft-capping, scaling), the fast path is found out on a small input and the model's own logits are used instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.attention import can_share, use_shared_attention
from dpo_lab.batching import Batch, Layout, make_batch, row_lengths, separate_rows, shared_rows, split_passes
from dpo_lab.models import inner_model, output_layer
from dpo_lab.preferences import TokenData
from dpo_lab.processes import ALONE, Processes
from dpo_lab.side_by_side import SideBySide, side_by_side
from dpo_lab.target_logps import TargetLogps

SCORING_VERSION = 1
"""Raised whenever a change here, in `batching`, `attention` or `target_logps` changes a value by more than the rounding
that other batches bring as well: cached log-probs then miss."""

logger = logging.getLogger("dpo_lab")


def token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log π(y_t | x, y_<t) of every scored token, shape (N,), float32, with the gradient of the model's weights."""
    hidden = hidden_states(model, batch) if scoring_path(model).chunked else None
    if hidden is None:
        logits = own_logits(model, batch).flatten(0, 1)[batch.predictors].float()  # (N, V)
        return logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    head = output_layer(model)
    return TargetLogps.apply(hidden.flatten(0, 1)[batch.predictors], head.weight, head.bias, batch.targets)


def sequence_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log π(y|x) of every completion, the sum over its tokens: (B, K), float32. Over `batch.lengths` it is a mean."""
    return sum_per_sequence(token_logps(model, batch), batch)


def sum_per_sequence(values: Tensor, batch: Batch) -> Tensor:
    """Sum per-token `values` (N,) over each completion, shape (B, K), in float32."""
    totals = values.new_zeros(batch.lengths.numel(), dtype=torch.float32)
    return totals.index_add(0, batch.sequences, values.float()).view(batch.lengths.shape)


@torch.no_grad()
def score(
    model: nn.Module,
    data: TokenData,
    *,
    layout: Layout = "shared",
    tokens_per_pass: int = 16384,
    precision: str = "float32",
    progress: Callable[[np.ndarray, np.ndarray], None] | None = None,
    processes: Processes = ALONE,
) -> np.ndarray:
    """log π(y|x) of a whole data set, shape (N, K), float32, without gradients.

    The longest rows come first, so that memory peaks at once. `progress` is called after each pass with the indices
    scored and their values. Of several `processes` each scores its share, and all get all values. On a CPU two passes
    of half the tokens run side by side.
    """
    layout = usable_layout(model, layout, data)
    device = next(model.parameters()).device
    lengths = row_lengths(data, layout)
    order = np.argsort(-lengths, kind="stable")
    values = np.zeros((len(data), data.num_completions), np.float32)
    workers = side_by_side(model, device, precision=precision) or SideBySide(1)

    @torch.no_grad()  # holds for a thread
    def values_of(indices: np.ndarray) -> np.ndarray:
        with autocast(device, precision):
            return sequence_logps(model, make_batch(data, indices, layout).to(device)).cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        runs = split_passes(processes.share(order), lengths, tokens_per_pass=max(1, tokens_per_pass // workers.count))
        for start in range(0, len(runs), workers.count):
            together = runs[start : start + workers.count]
            for indices, found in zip(together, workers.map(values_of, together), strict=True):
                values[indices] = found
                if progress is not None:
                    progress(indices, found)
    finally:
        model.train(was_training)
    return processes.sum(values)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which policy and reference are both scored: bfloat16 or float16 products over float32 weights."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    enabled = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


class Scorer(nn.Module):
    """A model as a module whose forward pass is `token_logps`, so that data-parallel wrappers see one forward call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return token_logps(self.model, batch)

    @property
    def _no_split_modules(self) -> Any:  # the layers, one of which FSDP gathers at a time
        return getattr(self.model, "_no_split_modules", None)


# ── inside the model ─────────────────────────────────────────────────────────────────────────────────────────────────


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states, shape (R, T, D)."""
    return inner_model(model).base_model(**_inputs(model, batch)).last_hidden_state


def own_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits at every position, shape (R, T, V): the plain path, and the oracle of the fast one."""
    return inner_model(model)(**_inputs(model, batch)).logits


def _inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.spans is None:
        return inputs | {"attention_mask": batch.attention_mask}
    use_shared_attention(inner_model(model))
    # A four-dimensional mask is passed on as it is, so no T × T mask is built; the attention reads the spans instead.
    return inputs | {"attention_mask": batch.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool), "spans": batch.spans}


# ── which path a model can take ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class ScoringPath:
    """What was found out about a model: whether the chunked output layer and the shared rows give its own values."""

    chunked: bool = True
    shared: bool = True
    reason: str = ""
    is_said: bool = False


_PATHS: WeakKeyDictionary[nn.Module, ScoringPath] = WeakKeyDictionary()
_TRYING = RLock()  # a second thread waits until it is found out
_TOLERANCE = 1e-3  # nats per token in float32; a wrong mask or a missing soft-cap is off by far more


def scoring_path(model: nn.Module) -> ScoringPath:
    """Find out once per model, on two small made-up pairs, which fast paths equal the plain one."""
    with _TRYING:
        if model not in _PATHS:
            _PATHS[model] = path = ScoringPath()
            with torch.autocast(next(model.parameters()).device.type, enabled=False):
                _try_paths(model, path)
        return _PATHS[model]


def adopt_paths(module: nn.Module, twin: nn.Module) -> None:
    """What was found out about the models in `module` holds for their copies in `twin`."""
    for one, other in zip(module.modules(), twin.modules(), strict=True):
        if one in _PATHS:
            _PATHS[other] = _PATHS[one]


def usable_layout(model: nn.Module, layout: Layout, data: TokenData) -> Layout:
    """`layout`, or `separate` where sharing a prompt would not be exact for this model and data; says so once."""
    if layout == "separate":
        return layout
    path = scoring_path(model)
    window = _sliding_window(inner_model(model).config)
    longest = 0 if window is None else data.longest()
    if path.shared and (window is None or longest <= window):
        return "shared"
    reason = path.reason or f"it attends to a sliding window of {window} tokens and the longest sequence has {longest}"
    if not path.is_said:
        logger.warning("one row per completion is used instead of shared prompts: %s", reason)
        path.is_said = True
    return "separate"


@torch.no_grad()
def _try_paths(model: nn.Module, path: ScoringPath) -> None:
    vocabulary = output_layer(model).weight.shape[0]
    generator = np.random.default_rng(0)
    draw = lambda num: generator.integers(0, vocabulary, num).astype(np.int32)
    data = TokenData.from_rows([(draw(5), (draw(3), draw(4))), (draw(2), (draw(4), draw(1)))])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        plain = separate_rows(data, [0, 1]).to(device)
        logits = own_logits(model, plain).flatten(0, 1)[plain.predictors].float()
        oracle = logits.log_softmax(-1).gather(-1, plain.targets[:, None])[:, 0]
        tolerance = _TOLERANCE if next(model.parameters()).dtype is torch.float32 else 50 * _TOLERANCE
        close = lambda values: bool((values - oracle).abs().max() < tolerance)
        path.chunked = isinstance(output_layer(model), nn.Linear) and close(token_logps(model, plain))
        if not path.chunked:
            logger.warning(
                "%s changes its logits after the output layer: all of them are computed",
                type(inner_model(model)).__name__,
            )
        inner = inner_model(model)
        name = type(inner).__name__
        if not can_share(inner):
            path.shared, path.reason = False, f"{name} does not take another attention"
        else:
            own_attention = inner.config._attn_implementation
            try:
                path.shared = close(token_logps(model, shared_rows(data, [0, 1]).to(device)))
            except (
                RuntimeError,
                ValueError,
                TypeError,
                IndexError,
            ) as error:  # a model that cannot take such a row at all
                logger.debug("shared rows fail in %s: %s", name, error)
                path.shared = False
            if not path.shared:
                path.reason = f"{name} gives other values with shared prompts"
                inner.set_attn_implementation(own_attention)
    finally:
        model.train(was_training)


def _sliding_window(config: Any) -> int | None:
    layers = getattr(config, "layer_types", None)
    if layers is not None and not any("sliding" in layer or "chunked" in layer for layer in layers):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
