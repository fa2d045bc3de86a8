"""Fitting a reward model to pairs over the same loop as DPO, and how good it is on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.course.rlhf.config import RewardConfig
from dpo_lab.course.rlhf.reward_model import RewardModel, bradley_terry_loss, score_rewards
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import autocast, usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.training import Rows, TokenObjective, pair_tokens
from dpo_lab.workbench.evaluation.reward_quality import calibration, coin_sides


def train_reward_model(
    model: RewardModel, tokenizer: Any, preferences: Rows, config: RewardConfig | None = None,
    *, held_out: Rows | None = None, checkpoints: str | Path | None = None, resume: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Fit a reward model (in place) to preference pairs; yields the same events as `train_dpo`.

        model = RewardModel.on(policy)
        for event in train_reward_model(model, tokenizer, load_preferences("embedded", split="train")):
            ...

    Metrics are those of `train_dpo`, with the model's own rewards in place of implicit ones, so they have no β;
    `eval_calibration_error` compares how sure it is with how often it is right (see `evaluation.calibration`).
    """
    config = config or RewardConfig()
    if not isinstance(model, RewardModel):
        raise ValueError(
            f"model must be a RewardModel, got {type(model).__name__}; RewardModel.on(policy) puts a head on a copy"
        )
    data = pair_tokens(preferences, "preferences", model.backbone, tokenizer, config)
    held = None if held_out is None else pair_tokens(held_out, "held_out", model.backbone, tokenizer, config)
    engine = Engine.open(model, config)
    objective = RewardObjective(data, held, config, usable_layout(model.backbone, config.layout, data), engine)
    return optimise(model, objective, engine, config, scorer=model, checkpoints=checkpoints, resume=resume, stop=stop)


class RewardObjective(TokenObjective):
    """The Bradley–Terry loss on pairs; `scorer` is the reward model."""

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        if self.is_mapped:
            self.release()
        with autocast(device, self.config.precision):
            rewards = scorer(batch)  # (B, 2)
        losses = bradley_terry_loss(rewards)
        metrics = reward_metrics(rewards.detach(), losses.detach())
        return (losses * batch.weights).sum(), {name: value.sum() for name, value in metrics.items()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        assert isinstance(model, RewardModel)
        found = evaluate_rewards(
            model, self.held, layout=self.layout, tokens_per_pass=self.config.tokens_per_pass,
            precision=self.config.precision,
        )  # fmt: skip
        return found.metrics, tuple(found.margins.tolist())


def reward_metrics(rewards: Tensor, losses: Tensor) -> dict[str, Tensor]:
    """The metrics of `train_dpo` per pair, (B,) each, from rewards (B, 2). A tie counts as half right."""
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "loss": losses,
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": torch.where(margins == 0, 0.5, (margins > 0).float()),
    }


class RewardEvaluation(NamedTuple):
    """How well rewards rank and predict held-out pairs."""

    metrics: dict[str, float]
    margins: np.ndarray
    """r_φ(x, y_w) − r_φ(x, y_l) of every pair. (N,)"""


def evaluate_rewards(model: RewardModel, data: TokenData, **options: Any) -> RewardEvaluation:
    """Loss, accuracy, margins and calibration on pairs. Options are those of `score_rewards`."""
    rewards = torch.from_numpy(score_rewards(model, data, **options)).double()
    metrics = {
        name: float(value.mean()) for name, value in reward_metrics(rewards, bradley_terry_loss(rewards)).items()
    }
    margins = (rewards[:, 0] - rewards[:, 1]).numpy()
    sides = coin_sides(len(margins))
    error = calibration(sides * margins, sides > 0, draws=0).error
    return RewardEvaluation(metrics | {"calibration_error": error}, margins)


def bayes_accuracy(true_margins: Any, temperature: float) -> float:
    """The most that any model can agree with labels drawn by `prefers`: the mean of σ(|true margin| / temperature).

    true_margins: difference of the true rewards of two answers, (N,), in either order. Temperature 0 makes no wrong
    label, and the ceiling is 1 but for ties.
    """
    margins = np.abs(np.asarray(true_margins, np.float64))
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}; 0 makes no wrong label")
    if temperature == 0:
        return float(np.where(margins > 0, 1.0, 0.5).mean())
    return float((1 / (1 + np.exp(-margins / temperature))).mean())
