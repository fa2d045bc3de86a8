"""What every objective on token ids shares: their order, how they are cut, held-out ones. The loss is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.batching import Layout, epoch_batches, row_lengths, separate_rows, shared_rows
from dpo_lab.config import TrainingConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import score
from dpo_lab.preferences.token_data import TokenData, content_hash
from dpo_lab.storage.token_files import release


@dataclass
class TokenObjective:
    """An objective on token ids: their order, how they are cut, held-out ones. What is missing is the loss."""

    data: TokenData
    held: TokenData | None
    config: TrainingConfig
    layout: Layout
    engine: Engine

    def __post_init__(self) -> None:
        self.make_batch = shared_rows if self.layout == "shared" else separate_rows
        self.order_lengths = row_lengths(self.data, "shared")  # the order of the data does not depend on the layout
        self.lengths = self.order_lengths if self.layout == "shared" else row_lengths(self.data, self.layout)
        self.is_mapped = hasattr(self.data.ids, "_mmap")

    def epoch(self, epoch: int) -> list[np.ndarray]:
        config = self.config
        return epoch_batches(
            self.order_lengths, config.batch_size, seed=config.seed, epoch=epoch, group_by_length=config.group_by_length
        )

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        return examples, float(len(examples))

    def release(self) -> None:
        """The pages of mapped data that a batch was read from need not stay in memory."""
        release(self.data.ids)
        release(self.data.bounds)

    def score_held(self, model: nn.Module, held: TokenData) -> np.ndarray:
        """Log-probs of the held-out completions, (N, K), under the model as it is now."""
        return score(
            model, held, layout=self.layout, tokens_per_pass=self.config.tokens_per_pass,
            precision=self.config.precision, engine=self.engine,
        )  # fmt: skip

    def describe(self, examples: np.ndarray) -> str:
        rows = self.data.source_rows[examples]
        shown = ", ".join(str(int(row)) for row in rows[:8])
        return f"rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''}"

    def identity(self) -> dict[str, Any]:
        held = {} if self.held is None else {"held_out": content_hash(self.held)}  # its evaluations are one series
        return {"data": content_hash(self.data), "layout": self.layout} | held
