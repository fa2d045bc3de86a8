"""From token ids to tensors: which tokens stand in which row, what each may see, and which of them are scored.

B prompts with K completions each (K = 2 for a preference pair: chosen, rejected; K = 1 for SFT); R rows of T tokens go
through the model; N completion tokens are scored. Two layouts hold the same pairs:

    shared     [prompt a | chosen a | rejected a | prompt b | chosen b | rejected b]     R = 1, no padding
    separate   [prompt a | chosen a | pad]  [prompt a | rejected a]  [prompt b | ...]    R = B·K

In a shared row both completions see their prompt and not each other, and the positions of each restart after the
prompt, so the model computes exactly what it computes on separate rows, at the cost of one prompt. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpo_lab.preferences.token_data import TokenData, plain
from dpo_lab.storage.token_files import AT_ONCE, parts

Layout = Literal["shared", "separate"]
Spans = tuple[tuple[int, ...], ...]
"""Of each prompt in a shared row: its start, its end, the end of each completion."""


@dataclass(frozen=True)
class Batch:
    """What a model needs to score B·K completions, and what is needed to read its answer.

    `predictors` are flat positions in (R·T): the hidden state there predicts the token of `targets`. The shift by one
    is made here and nowhere else.
    """

    input_ids: Tensor  # (R, T)
    position_ids: Tensor  # (R, T)
    attention_mask: Tensor | None  # (R, T), 1 on tokens; None in the shared layout, where `spans` says it all
    spans: Spans | None
    predictors: Tensor  # (N,)
    targets: Tensor  # (N,)
    sequences: Tensor  # (N,), b·K + k of the completion that the scored token belongs to
    lengths: Tensor  # (B, K), scored tokens
    weights: Tensor  # (B,)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


_flat = lambda arrays: torch.from_numpy(np.concatenate([np.empty(0, np.int64), *arrays]))  # also of no arrays


def make_batch(data: TokenData, indices: Sequence[int] | np.ndarray, layout: Layout = "shared") -> Batch:
    """The prompts at `indices` with all their completions, in the named layout. The tensors are on the CPU."""
    return shared_rows(data, indices) if layout == "shared" else separate_rows(data, indices)


def shared_rows(data: TokenData, indices: Sequence[int] | np.ndarray) -> Batch:
    """One row without padding that holds every prompt once, followed by its completions."""
    bounds = data.bounds[np.asarray(indices, np.int64)]  # (B, K+2)
    lengths = np.diff(bounds[:, 1:])  # (B, K)
    ids, positions, predictors, targets, sequences, spans = [], [], [], [], [], []
    cursor = 0
    for b, (start, prompt_end, *ends) in enumerate(bounds.tolist()):
        num_prompt = prompt_end - start
        ids.append(plain(data.ids[start : ends[-1]]))
        positions.append(np.arange(num_prompt))
        span = [cursor, cursor + num_prompt]
        for k, (begin, end) in enumerate(pairwise([prompt_end, *ends])):
            positions.append(np.arange(num_prompt, num_prompt + end - begin))
            # The prompt's last token predicts the first token of every completion; the rest predict their neighbour.
            predictor = np.arange(span[-1] - 1, span[-1] + end - begin - 1)
            predictor[0] = span[1] - 1
            own = data.ids[begin:end]
            is_scored = own >= 0
            is_scored[0] &= num_prompt > 0  # an empty prompt leaves the first token without a predictor
            predictors.append(predictor[is_scored])
            targets.append(own[is_scored])
            lengths[b, k] = is_scored.sum()
            sequences.append(np.full(lengths[b, k], b * lengths.shape[1] + k))
            span.append(span[-1] + end - begin)  # `begin` and `end` are places in the data, `span` in the row
        spans.append(tuple(span))
        cursor = span[-1]
    return Batch(
        input_ids=_flat(ids)[None],
        position_ids=_flat(positions)[None],
        attention_mask=None,
        spans=tuple(spans),
        predictors=_flat(predictors),
        targets=_flat(targets),
        sequences=_flat(sequences),
        lengths=torch.from_numpy(lengths),
        weights=torch.from_numpy(data.weights[np.asarray(indices, np.int64)].astype(np.float32)),
    )


def separate_rows(
    data: TokenData,
    indices: Sequence[int] | np.ndarray,
    *,
    padding_side: Literal["left", "right"] = "right",
    pad_to: int = 0,
    pad_id: int = 0,
) -> Batch:
    """One padded row per completion: the layout to teach with, and the oracle for `shared_rows`.

    Padding is masked by length, never by comparing with `pad_id`, which is often the end token itself.
    """
    bounds = data.bounds[np.asarray(indices, np.int64)]  # (B, K+2)
    lengths = np.diff(bounds[:, 1:])  # (B, K)
    totals = (lengths + np.diff(bounds[:, :2])).flatten()  # (R,)
    width = max(pad_to, totals.max(initial=0))
    shape = (len(totals), width)
    ids, mask, positions = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    predictors, targets, sequences = [], [], []
    for r, total in enumerate(totals.tolist()):
        b, k = divmod(r, lengths.shape[1])
        start, prompt_end, begin, end = bounds[b, [0, 1, k + 1, k + 2]].tolist()
        offset = width - total if padding_side == "left" else 0
        here = slice(offset, offset + total)
        own = data.ids[begin:end]
        ids[r, here] = np.concatenate([data.ids[start:prompt_end], plain(own)])
        mask[r, here] = 1
        positions[r, here] = np.arange(total)
        is_scored = own >= 0
        is_scored[0] &= prompt_end > start  # as in a shared row
        lengths[b, k] = is_scored.sum()
        predictors.append(r * width + offset + prompt_end - start - 1 + np.flatnonzero(is_scored))
        targets.append(own[is_scored])
        sequences.append(np.full(lengths[b, k], r))
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.from_numpy(mask),
        spans=None,
        predictors=_flat(predictors),
        targets=_flat(targets),
        sequences=_flat(sequences),
        lengths=torch.from_numpy(lengths),
        weights=torch.from_numpy(data.weights[np.asarray(indices, np.int64)].astype(np.float32)),
    )


def row_lengths(data: TokenData, layout: Layout = "shared") -> np.ndarray:
    """Tokens that each prompt brings to a batch, shape (N,) int32; padding not counted."""
    times = 1 if layout == "shared" else data.num_completions
    every = np.empty(len(data), np.int32)
    for index, bounds in enumerate(parts(data.bounds)):  # of a million pairs no more is held than the answer
        prompts, completions = bounds[:, 1] - bounds[:, 0], bounds[:, -1] - bounds[:, 1]
        every[index * AT_ONCE : index * AT_ONCE + len(bounds)] = times * prompts + completions
    return every


def epoch_batches(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int = 0, group_by_length: bool = True
) -> list[np.ndarray]:
    """One epoch as index arrays, one per optimiser step; every index exactly once, the last may be short.

    The order depends on the seed, the epoch, the batch size and the lengths alone. With `group_by_length` the shuffled
    data is cut into windows of 32 batches, each sorted by length and cut into batches, and the batches are shuffled
    again: a batch then holds similar lengths, yet which pairs meet changes with every epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if group_by_length:
        for start in range(0, len(order), 32 * batch_size):
            window = order[start : start + 32 * batch_size]
            order[start : start + 32 * batch_size] = window[np.argsort(lengths[window], kind="stable")]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]  # views: nothing copied
    if group_by_length and len(batches) > 1:
        # A short last batch stays last: it would otherwise move the step boundaries within the epoch.
        num_full = len(order) // batch_size
        batches[:num_full] = [batches[place] for place in generator.permutation(num_full)]
    return batches


def split_passes(
    indices: np.ndarray, lengths: np.ndarray, *, tokens_per_pass: int, micro_batch_size: int | None = None
) -> list[np.ndarray]:
    """Cut a batch into runs that go through the model one at a time, each of at most `tokens_per_pass` tokens.

    A single prompt longer than that makes a run of its own. `micro_batch_size` limits the prompts per run as well.
    """
    runs, current, tokens = [], [], 0
    for index in indices:
        num = int(lengths[index])
        is_full = micro_batch_size is not None and len(current) == micro_batch_size
        if current and (is_full or tokens + num > tokens_per_pass):
            runs.append(np.array(current))
            current, tokens = [], 0
        current.append(int(index))
        tokens += num
    return [*runs, np.array(current)] if current else runs
