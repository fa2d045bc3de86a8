"""What disturbs a DPO run on purpose: labels, references, and two losses of length that `train_dpo` does not have.

Rows are those of `load_preferences("embedded")`: they keep both true rewards. Used by failures.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, make_batch, row_lengths, split_passes
from dpo_lab.logprobs import score, sequence_logps, sum_per_sequence, token_logps
from dpo_lab.losses import PairScores, discount_tail
from dpo_lab.preferences import TokenData, tokenize_pairs
from dpo_lab.reference import CachedLogps
from dpo_lab.training import DPOObjective
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import Conversation, judge

LABEL_TEMPERATURE = 0.3  # of data/build.py: labels are drawn from σ(true margin / 0.3)

Rows = list[dict[str, Any]]

# ── labels ─────────────────────────────────────────────────────────────────────────────────────────────


def words(row: dict[str, Any], side: str) -> int:
    """Words of a row's answer."""
    return len(row[side][-1]["content"].split())


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its label flipped."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    return row | {f"{kind}{a}": row[f"{kind}{b}"] for kind in ("", "reward_") for a, b in other.items()}


def flipped(rows: Rows, share: float, seed: int) -> Rows:
    """Each label flipped with probability `share`."""
    rng = Random(seed)
    return [turned(row) if rng.random() < share else row for row in rows]


def length_biased(rows: Rows, bonus: float, seed: int, temperature: float = LABEL_TEMPERATURE) -> Rows:
    """Labels drawn anew, as by people who add `bonus` to the true reward for each word."""
    rng = Random(seed)
    worth = lambda row, side: row[f"reward_{side}"] + bonus * words(row, side)
    keeps = (corpus.prefers(worth(row, "chosen"), worth(row, "rejected"), temperature, rng) for row in rows)
    return [row if kept else turned(row) for row, kept in zip(rows, keeps, strict=True)]


def words_per_token(rows: Rows, tokenizer: Any) -> float:
    """Words of all answers over their tokens: turns a price per word into one per token."""
    data, _ = tokenize_pairs(rows, tokenizer)
    return sum(words(row, side) for row in rows for side in ("chosen", "rejected")) / int(data.completion_lengths.sum())


def mass_of(rows: Rows, answers: list[str]) -> tuple[dict[str, float], list[float]]:
    """Shares of answers that are the chosen one, the rejected one, neither; and the true rewards of the last."""
    sides = {side: [row[side][-1]["content"].strip() for row in rows] for side in ("chosen", "rejected")}
    is_side = {side: [a == b for a, b in zip(texts, answers, strict=True)] for side, texts in sides.items()}
    other = [not (a or b) for a, b in zip(*is_side.values(), strict=True)]
    rewards = [judge(Conversation.from_row(row), answer).reward
               for row, answer, is_other in zip(rows, answers, other, strict=True) if is_other]  # fmt: skip
    shares = {side: mean(map(float, found)) for side, found in is_side.items()}
    return {
        "on_chosen": shares["chosen"],
        "on_rejected": shares["rejected"],
        "elsewhere": mean(map(float, other)),
    }, rewards


# ── references and losses that train_dpo does not have ───────────────────────────────────────────────────────────────


class GivenReference:
    """Stands where a `ReferenceCache` stands and gives what `values` computes: the wrong numbers, on purpose."""

    def __init__(self, values: Callable[[nn.Module, TokenData], np.ndarray]) -> None:
        self.values = values

    def logps(self, model: nn.Module, data: TokenData, **_: Any) -> CachedLogps:
        return CachedLogps(self.values(model, data).astype(np.float32), 0, len(data))


def shifted_by_length(alpha: float, beta: float) -> GivenReference:
    """R-DPO's margin βh + α(|y_w| − |y_l|), as a reference whose log-probs are α/β lower for every token.

    Park et al. 2024 (arXiv 2403.19159).
    """
    return GivenReference(lambda model, data: score(model, data) - alpha / beta * data.completion_lengths)


def scored_with_dropout(rate: float, seed: int) -> GivenReference:
    """A reference that somebody forgot to put into evaluation mode: dropout in its attention while it is scored."""

    def values(model: nn.Module, data: TokenData) -> np.ndarray:
        noisy = copy.deepcopy(model).train()
        for module in noisy.modules():
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = rate  # pyright: ignore[reportAttributeAccessIssue]
        found = np.zeros((len(data), 2), np.float32)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for indices in split_passes(np.arange(len(data)), row_lengths(data, "shared"), tokens_per_pass=16384):
                found[indices] = sequence_logps(noisy, make_batch(data, indices)).cpu().numpy()
        return found

    return GivenReference(values)


class TailDiscounted(DPOObjective):
    """LD-DPO: tokens beyond the shorter answer's length count `alpha` each, in policy and reference alike.

    Liu et al. 2024 (arXiv 2409.06411).
    """

    alpha = 0.0

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        shortest = batch.lengths.min(1).values.repeat_interleave(2)  # (2B,)
        first = torch.cat([batch.lengths.new_zeros(1), batch.lengths.flatten().cumsum(0)[:-1]])
        place = torch.arange(len(batch.sequences), device=device) - first[batch.sequences]
        is_head = place < shortest[batch.sequences]  # (N,)

        def parts(logps: Tensor) -> tuple[Tensor, Tensor]:  # (N,) → (B, 2) head, tail
            return sum_per_sequence(logps * is_head, batch), sum_per_sequence(logps * ~is_head, batch)

        policy, frozen = parts(scorer(batch)), parts(self.frozen(batch))
        lengths = batch.lengths.float().unbind(1)
        head, tail = (PairScores(*policy[i].unbind(1), *frozen[i].unbind(1), *lengths) for i in range(2))
        losses = self.pair_loss(discount_tail(head, tail, alpha=self.alpha))
        return losses.sum(), {"loss": losses.detach().sum()}

    def frozen(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return token_logps(self.reference_model, batch)

    reference_model: nn.Module
