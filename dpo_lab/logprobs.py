"""Log-probabilities of completions, log π(y|x). Knows nothing about preferences or β.

B prompts with K completions each, R rows of T tokens, N scored tokens, D width of the model, V vocabulary. Values are
in nats; log-sum-exp and sums run in float32 whatever the precision of the model.

`plain_token_logps` says what is computed. `Scorer` computes the same where it can through `engine.output_layer`: only
where a completion token is predicted, and in pieces, so the (R, T, V) tensor of logits never exists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout, make_batch, row_lengths, split_passes
from dpo_lab.engine.attention import use_shared_attention
from dpo_lab.engine.engine import Engine
from dpo_lab.engine.output_layer import TargetLogps
from dpo_lab.engine.paths import ScoringPath, probe_paths
from dpo_lab.engine.two_halves import two_threads
from dpo_lab.models.inside import body, inner_model
from dpo_lab.preferences.token_data import TokenData

SCORING_VERSION = 1
"""Raised whenever a change here, in `batching` or in `engine` changes a value by more than the rounding that other
batches bring as well: cached log-probs then miss."""

logger = logging.getLogger("dpo_lab")


def plain_token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log π(y_t | x, y_<t) of every scored token from the model's own logits, (N,): the oracle of every faster way."""
    logits = own_logits(model, batch).flatten(0, 1)[batch.predictors].float()  # (N, V)
    return logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]


def log_collisions(model: nn.Module, batch: Batch) -> Tensor:
    """log Σ_v π(v | x, y_<t)² where each scored token is predicted, (N,): how likely two samples would be the same."""
    logits = own_logits(model, batch).flatten(0, 1)[batch.predictors].float()
    return (2 * logits.log_softmax(-1)).logsumexp(-1)


def own_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits at every position, shape (R, T, V)."""
    return call(inner_model(model), batch).logits


class Scorer(nn.Module):
    """log π of every scored token as the forward pass of a module: (N,), float32, with the gradient of the weights.

    precision: of the products in the model; None leaves it to the autocast that is on.
    """

    def __init__(self, model: nn.Module, precision: str | None = None) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.context = (
            nullcontext if precision is None else partial(torch.autocast, device.type, **_AUTOCAST[precision])
        )
        self.inner = (inner_model(model),)  # in a tuple, or its weights would be counted twice
        self.token_logps = _chunked_token_logps if scoring_path(model).chunked else plain_token_logps

    def forward(self, batch: Batch, *, collisions: bool = False) -> Tensor:
        with self.context():
            return (log_collisions if collisions else self.token_logps)(self.inner[0], batch)

    @property
    def _no_split_modules(self) -> Any:  # the layers, one of which FSDP gathers at a time
        return getattr(self.model, "_no_split_modules", None)


def token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log π(y_t | x, y_<t) of every scored token, shape (N,), float32, with the gradient of the model's weights."""
    return Scorer(model)(batch)


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
    engine: Engine | None = None,
) -> np.ndarray:
    """log π(y|x) of a whole data set, shape (N, K), float32, without gradients. (`Scorer` gives those of tokens.)

    The longest rows come first, so that memory peaks at once. `progress` is called after each pass with the indices
    scored and their values. Of several processes of an `engine` each scores its share, and all get all values. On a CPU
    two passes of half the tokens run side by side.
    """
    device = next(model.parameters()).device
    engine = engine or Engine(device)
    layout = usable_layout(model, layout, data)
    lengths = row_lengths(data, layout)
    order = engine.processes.shard(np.argsort(-lengths, kind="stable"))
    values = np.zeros((len(data), data.num_completions), np.float32)
    threads = two_threads(model, device)
    at_once = 1 if threads is None else 2
    scorer = Scorer(model, precision)

    @torch.no_grad()  # it is a matter of the thread, and this may run in a second one
    def values_of(indices: np.ndarray) -> np.ndarray:
        batch = make_batch(data, indices, layout).to(device)
        return sum_per_sequence(scorer(batch), batch).cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        runs = split_passes(order, lengths, tokens_per_pass=max(1, tokens_per_pass // at_once))
        for start in range(0, len(runs), at_once):
            together = runs[start : start + at_once]
            results = map(values_of, together) if threads is None else threads.map(values_of, together)
            for indices, scored in zip(together, results, strict=True):
                values[indices] = scored
                if progress is not None:
                    progress(indices, scored)
    finally:
        model.train(was_training)
    return engine.processes.sum(values)


def usable_layout(model: nn.Module, layout: Layout, data: TokenData) -> Layout:
    """`layout`, or `separate` where sharing a prompt would not be exact for this model and data; says so once."""
    if layout == "separate" or not (reason := scoring_path(model).why_not_shared(model, data)):
        return layout
    if not scoring_path(model).is_warned:
        logger.warning("one row per completion is used instead of shared prompts: %s", reason)
        scoring_path(model).is_warned = True
    return "separate"


def scoring_path(model: nn.Module) -> ScoringPath:
    """Which fast ways give this model's own values."""
    return probe_paths(model, plain_token_logps, _chunked_token_logps)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which policy and reference are both scored: bfloat16 or float16 products over float32 weights."""
    return torch.autocast(device.type, **_AUTOCAST[precision])


# A forward pass casts each weight once, so the cache of casts saves nothing, and all threads would share it.
_AUTOCAST: dict[str, dict[str, Any]] = {
    "float32": {"enabled": False},
    "bfloat16": {"dtype": torch.bfloat16, "cache_enabled": False},
    "float16": {"dtype": torch.float16, "cache_enabled": False},
}


# ── inside the model ─────────────────────────────────────────────────────────────────────────────────────────────────


def call(inner: Any, batch: Batch, module: Any = None) -> Any:
    """What a transformers model answers to a batch; or a module of it, such as its body without the output layer."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.spans is None:
        inputs |= {"attention_mask": batch.attention_mask}
    else:
        use_shared_attention(inner)
        # A four-dimensional mask is passed on as it is, so no T × T mask is built; the attention reads the spans.
        everything = batch.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
        inputs |= {"attention_mask": everything, "spans": batch.spans}
    return (inner if module is None else module)(**inputs)


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states, shape (R, T, D)."""
    inner = inner_model(model)
    return call(inner, batch, body(inner)).last_hidden_state


def _chunked_token_logps(inner: Any, batch: Batch) -> Tensor:
    """As `plain_token_logps`, with the output layer only where a completion token is predicted, and in pieces."""
    states = call(inner, batch, body(inner)).last_hidden_state  # (R, T, D)
    hidden = states.flatten(0, 1)[batch.predictors]  # (N, D)
    head = inner.get_output_embeddings()
    return TargetLogps.apply(hidden, head.weight, head.bias, batch.targets)
