"""The output layer where only some tokens' log-probs are wanted: log softmax(h Wᵀ + b)[target], and its gradient.

N rows of hidden states, D their width, V the vocabulary. The (N, V) log-probs are held only where they fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**25
"""Most logits (N·V) that are saved for the backward pass: 128 MiB in float32. Beyond it they are computed again."""

LOGITS_IN_CACHE = 2**21
"""Most logits that a CPU works on at a time: what a matrix product wrote is read again from its cache."""

ROWS_AT_LEAST = 128
"""Fewest rows of a chunk: each reads all weights of the output layer and writes all of their gradient."""

TILE = 2**13
"""Tokens of the vocabulary that are worked on at a time where the logits of a larger one are too many to save."""


class TargetLogps(torch.autograd.Function):
    """log softmax(h Wᵀ + b)[target] per row of h, without ever holding more log-probs than `LOGITS_AT_ONCE`.

    Backward: ∂ log p_y / ∂ logits = onehot(y) − p. If the log-probs of the whole vocabulary fit they are saved from the
    forward pass; otherwise they are computed again, those of a large vocabulary in tiles of some rows and some tokens:
    a tile's logits stay in the cache, and its weights are read once for many rows.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            fits = hidden.shape[0] * weight.shape[0] <= LOGITS_AT_ONCE
            cast = weight.to(hidden.dtype)
            ctx.is_tiled = not fits and len(weight) > TILE
            if ctx.is_tiled:
                logps, totals = _tiled_logps(hidden, cast, bias, targets)
                ctx.save_for_backward(hidden, weight, bias, targets, totals)
                return logps
            logps, saved = [], []
            for rows in _chunks(hidden, len(weight), ROWS_AT_LEAST):
                every = _every_logp(hidden[rows], cast, bias)
                logps.append(every.gather(-1, targets[rows, None])[:, 0])
                saved += [every] if fits and any(ctx.needs_input_grad) else []
        ctx.save_for_backward(hidden, weight, bias, targets, *saved)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        # Sums over tiles are in float32, whatever the precision of the model.
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32 if ctx.is_tiled else None) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(hidden.dtype)
            slopes = (_tiled_slopes if ctx.is_tiled else _slopes)(hidden, cast, bias, targets, grad, saved)
            for rows, columns, slope in slopes:
                if grad_bias is not None:
                    grad_bias[columns] += slope.sum(0)
                slope = slope.to(hidden.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], slope, cast[columns])
                if grad_weight is not None:
                    _add_product(grad_weight[columns], slope.T, hidden[rows])
        return grad_hidden if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None


Slope = tuple[slice, slice, Tensor]
"""Rows, columns, and there the gradient of the logits, g·(onehot(y) − p), in float32."""


def _slopes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, grad: Tensor, saved: Sequence[Tensor]
) -> Iterator[Slope]:
    for i, rows in enumerate(_chunks(hidden, len(weight), ROWS_AT_LEAST)):
        every = saved[i] if saved else _every_logp(hidden[rows], weight, bias)
        slope = every.exp().mul_(-grad[rows, None])  # −g·p
        yield rows, slice(None), slope.scatter_add_(-1, targets[rows, None], grad[rows, None])


def _tiled_slopes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, grad: Tensor, saved: Sequence[Tensor]
) -> Iterator[Slope]:
    (totals,) = saved
    for rows, columns, logits, places, is_here in _tiles(hidden, weight, bias, targets):
        slope = logits.sub_(totals[rows, None]).exp_().mul_(-grad[rows, None])
        yield rows, columns, slope.scatter_add_(-1, places, (grad[rows] * is_here)[:, None])


def _tiled_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each row's target, and the log-sum-exp of its logits, both (N,) float32."""
    totals = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
    own = torch.zeros_like(totals)  # the targets' logits
    for rows, _, logits, places, is_here in _tiles(hidden, weight, bias, targets):
        totals[rows] = torch.logaddexp(totals[rows], logits.logsumexp(-1))
        own[rows] += logits.gather(-1, places)[:, 0] * is_here
    return own - totals, totals


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Rows, columns and logits of each tile; where in it the rows' targets stand, (rows, 1), and whether they do."""
    for first in range(0, len(weight), TILE):
        columns = slice(first, first + TILE)
        part = weight[columns]
        shift = None if bias is None else bias[columns].float()
        for rows in _chunks(hidden, TILE):
            logits = (hidden[rows] @ part.T).float()
            places = targets[rows] - first
            is_here = (places >= 0) & (places < len(part))
            places = places.clamp(0, len(part) - 1)[:, None]
            yield rows, columns, logits if shift is None else logits + shift, places, is_here


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add one @ other. In one precision the product adds as it multiplies, and is not written by itself."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def _every_logp(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log p of every token of the vocabulary, (rows, V), in float32."""
    logits = (hidden @ weight.T).float()
    return (logits if bias is None else logits + bias.float()).log_softmax(-1)


def _chunks(hidden: Tensor, width: int, fewest: int = 1) -> list[slice]:
    """Rows of `hidden` whose logits for `width` tokens fit: into the cache of a CPU, into memory elsewhere."""
    most = min(LOGITS_AT_ONCE, LOGITS_IN_CACHE) if hidden.is_cpu else LOGITS_AT_ONCE
    num = max(most // width, fewest)
    return [slice(start, start + num) for start in range(0, max(len(hidden), 1), num)]
