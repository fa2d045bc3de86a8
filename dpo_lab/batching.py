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
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from dpo_lab.preferences import TokenData
from dpo_lab.preferences.token_files import AT_ONCE, parts

Layout = Literal["shared", "separate"]


@dataclass(frozen=True)
class Batch:
    """What a model needs to score B·K completions, and what is needed to read its answer.

    `predictors` are flat positions in (R·T): the hidden state there predicts the token of `targets`. The shift by one
    is made here and nowhere else.
    """

    input_ids: Tensor  # (R, T)
    position_ids: Tensor  # (R, T)
    attention_mask: Tensor | None  # (R, T), 1 on tokens; None in the shared layout, where `spans` says it all
    spans: tuple[tuple[int, ...], ...] | None  # per prompt: its start, its end, the end of each completion
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


def make_batch(data: TokenData, indices: Sequence[int] | np.ndarray, layout: Layout = "shared") -> Batch:
    """The prompts at `indices` with all their completions, in the named layout. The tensors are on the CPU."""
    return shared_rows(data, indices) if layout == "shared" else separate_rows(data, indices)


def shared_rows(data: TokenData, indices: Sequence[int] | np.ndarray) -> Batch:
    """One row without padding that holds every prompt once, followed by its completions."""
    ids, positions, predictors, targets, sequences, spans = [], [], [], [], [], []
    lengths = np.zeros((len(indices), data.num_completions), np.int64)
    cursor = 0
    for b, index in enumerate(indices):
        row = data.row(int(index))
        num_prompt = len(row.prompt)
        ids.append(row.prompt)
        positions.append(np.arange(num_prompt))
        span = [cursor, cursor + num_prompt]
        for k, completion in enumerate(row.completions):
            start, num = span[-1], len(completion)
            ids.append(completion)
            positions.append(np.arange(num_prompt, num_prompt + num))
            # The prompt's last token predicts the first token of every completion; the rest predict their neighbour.
            predictor = np.arange(start - 1, start + num - 1)
            predictor[0] = span[1] - 1
            first = 0 if num_prompt else 1  # an empty prompt leaves the first token without a predictor
            predictors.append(predictor[first:])
            targets.append(completion[first:])
            sequences.append(np.full(num - first, b * data.num_completions + k))
            lengths[b, k] = num - first
            span.append(start + num)
        spans.append(tuple(span))
        cursor = span[-1]
    return Batch(
        input_ids=_long(ids)[None],
        position_ids=_long(positions)[None],
        attention_mask=None,
        spans=tuple(spans),
        predictors=_long(predictors),
        targets=_long(targets),
        sequences=_long(sequences),
        lengths=torch.from_numpy(lengths),
        weights=torch.from_numpy(data.weights[np.asarray(indices)].astype(np.float32)),
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
    rows = [data.row(int(index)) for index in indices]
    num_completions = data.num_completions
    longest = max((len(row.prompt) + len(c) for row in rows for c in row.completions), default=0)
    width = max(longest, pad_to)
    shape = (len(rows) * num_completions, width)
    ids = np.full(shape, pad_id, np.int64)
    mask = np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    lengths = np.zeros((len(rows), num_completions), np.int64)
    predictors, targets, sequences = [], [], []
    for b, row in enumerate(rows):
        for k, completion in enumerate(row.completions):
            r = b * num_completions + k
            num_prompt, num = len(row.prompt), len(completion)
            offset = width - num_prompt - num if padding_side == "left" else 0
            here = slice(offset, offset + num_prompt + num)
            ids[r, here] = np.concatenate([row.prompt, completion])
            mask[r, here] = 1
            positions[r, here] = np.arange(num_prompt + num)
            first = 0 if num_prompt else 1
            start = r * width + offset + num_prompt + first
            predictors.append(np.arange(start - 1, start - 1 + num - first))
            targets.append(completion[first:])
            sequences.append(np.full(num - first, r))
            lengths[b, k] = num - first
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.from_numpy(mask),
        spans=None,
        predictors=_long(predictors),
        targets=_long(targets),
        sequences=_long(sequences),
        lengths=torch.from_numpy(lengths),
        weights=torch.from_numpy(data.weights[np.asarray(indices)].astype(np.float32)),
    )


def row_lengths(data: TokenData, layout: Layout = "shared") -> np.ndarray:
    """Tokens that each prompt brings to a batch, shape (N,) int32; padding not counted."""
    times = 1 if layout == "shared" else data.num_completions
    every = np.empty(len(data), np.int32)
    for index, bounds in enumerate(parts(data.bounds)):  # of a million pairs no more is held than the answer
        prompts, completions = bounds[:, 1] - bounds[:, 0], bounds[:, -1] - bounds[:, 1]
        every[index * AT_ONCE : index * AT_ONCE + len(bounds)] = times * prompts + completions
    return every


class Batches(Sequence[np.ndarray]):
    """The batches of an epoch, in order: arrays of indices. Held as two arrays, whatever their number."""

    def __init__(self, order: np.ndarray, batch_size: int, places: np.ndarray) -> None:
        self.order, self.batch_size = order, batch_size  # (N,): every index once
        self.places = places  # (B,): which piece of `order` the b-th batch is

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, item: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, item: slice) -> Batches: ...
    def __getitem__(self, item: int | slice) -> np.ndarray | Batches:
        if isinstance(item, slice):
            return Batches(self.order, self.batch_size, self.places[item])
        start = int(self.places[item]) * self.batch_size  # IndexError where there is none: iteration ends with it
        return self.order[start : start + self.batch_size]


def epoch_batches(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int = 0, group_by_length: bool = True
) -> Batches:
    """One epoch as index arrays, one per optimiser step; every index exactly once, the last may be short.

    The order depends on the seed, the epoch and the lengths alone. With `group_by_length` the shuffled data is cut into
    windows of 32 batches, each sorted by length and cut into batches, and the batches are shuffled again: a batch then
    holds similar lengths, yet which pairs meet changes with every epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    num_batches = -(-len(order) // batch_size)
    places = np.arange(num_batches)
    if not group_by_length:
        return Batches(order, batch_size, places)
    window = 32 * batch_size
    for start in range(0, len(order), window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    if num_batches > 1:
        # A short last batch stays last: it would otherwise move the step boundaries within the epoch.
        full = len(order) // batch_size
        places[:full] = generator.permutation(full)
    return Batches(order, batch_size, places)


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


def _long(parts: list[np.ndarray]) -> Tensor:
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return torch.from_numpy(joined.astype(np.int64))
