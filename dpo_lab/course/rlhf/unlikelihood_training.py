"""Unlikelihood: raise the chosen answer, lower the rejected one, without a reference. A baseline of the DPO paper.

It shows what the weight and the reference of DPO's gradient are for: without them nothing stops the rejected answer's
log-probability from falling, and the text falls apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dpo_lab.config import DPOConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.loss import PairScores
from dpo_lab.training import DPOObjective, Rows, pair_tokens


def unlikelihood(scores: PairScores, *, alpha: float) -> Tensor:
    """−log π(y_w|x) + α·log π(y_l|x) per pair. (B,)

    α = 0 is SFT on the chosen answers; for α > 0 there is no minimum. Rafailov et al. 2023 (arXiv 2305.18290), Section
    6, "Methods", with α in [0, 1]; after Welleck et al. 2019 (arXiv 1908.04319), who bound the term per token instead.
    """
    return -scores.policy_chosen + alpha * scores.policy_rejected


def train_unlikelihood(
    model: nn.Module, tokenizer: Any, preferences: Rows, config: DPOConfig | None = None,
    *, alpha: float = 0.5, held_out: Rows | None = None, stop: Callable[[], bool] | None = None,
    checkpoints: str | Path | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Train `model` (in place) on `unlikelihood`; yields the events of `train_dpo`.

    Of the configuration, what belongs to a preference loss (loss, beta, knobs) is not read. Rewards in the metrics are
    log π itself.
    """
    config = config or DPOConfig()
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}; 0 is SFT on the chosen answers")
    data = pair_tokens(preferences, "preferences", model, tokenizer, config)
    held = None if held_out is None else pair_tokens(held_out, "held_out", model, tokenizer, config)
    engine = Engine.open(model, config)
    none, held_none = (np.zeros((0 if part is None else len(part), 2), np.float32) for part in (data, held))
    objective = DPOObjective(
        data, held, config, usable_layout(model, config.layout, data), engine,
        lambda scores: unlikelihood(scores, alpha=alpha), 1.0, none, held_none, f"none, unlikelihood {alpha}",
    )  # fmt: skip
    return optimise(model, objective, engine, config, checkpoints=checkpoints, stop=stop)
