"""A loss of single answers with a label, as an objective: one completion per prompt, one baseline for the whole batch.

The baseline r₀ must be known before the first answer's loss, and a batch may be cut into passes or spread over
processes. So it is measured when the step begins, without gradient, on all its answers (BCO), or on as many answers to
other prompts (KTO). N answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.logprobs import sum_per_sequence
from dpo_lab.losses.unpaired import UnpairedScores, answer_metrics, midpoint
from dpo_lab.objectives.base import TokenObjective
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.unpaired import is_good


class Labelled(NamedTuple):
    """Single answers with labels, the answers that the baseline is measured on, the reference's log-probs of both."""

    data: TokenData
    logps: np.ndarray  # (N, 1)
    probes: TokenData
    probe_logps: np.ndarray  # (N, 1)


@dataclass
class UnpairedObjective(TokenObjective):
    """See the module."""

    answer_loss: Callable[[UnpairedScores], Tensor]
    beta: float
    baseline: str | None
    labelled: list[Labelled]  # the training data, and the held-out
    reference_name: str

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        with self.engine.whole_weights():  # before the step is cut into passes, for the baseline is that of all
            self.zero = self.zero_point(self.engine.model, self.labelled[0], examples)
        self.share_good = float(is_good(self.data)[examples].mean())
        return super().begin_step(examples)

    def zero_point(self, model: nn.Module, part: Labelled, rows: np.ndarray) -> Tensor:
        """r₀ of these rows, nats."""
        if self.baseline is None:
            return torch.zeros(())
        ratios = torch.from_numpy(self.score_held(model, part.probes.select(rows)) - part.probe_logps[rows])[:, 0]
        if self.baseline == "midpoint":
            return midpoint(ratios, torch.from_numpy(is_good(part.data)[rows]))
        return ratios.mean().clamp(min=0)  # a KL is never negative; its estimate may be

    def scores(self, policy: Tensor, part: Labelled, rows: np.ndarray, zero: Tensor) -> UnpairedScores:
        reference, good = torch.from_numpy(part.logps[rows, 0]), torch.from_numpy(is_good(part.data)[rows])
        return UnpairedScores(policy, *(values.to(policy.device) for values in (reference, good, zero)))

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        scores = self.scores(sum_per_sequence(scorer(batch), batch)[:, 0], self.labelled[0], rows, self.zero)
        losses = self.answer_loss(scores)  # (B,)
        metrics = answer_metrics(scores, losses, self.beta, self.share_good)
        return (losses * batch.weights.abs()).sum(), {name: value.sum() for name, value in metrics.items()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        part, rows = self.labelled[1], np.arange(len(self.held))
        policy, zero = torch.from_numpy(self.score_held(model, self.held)[:, 0]), self.zero_point(model, part, rows)
        scores = self.scores(policy, part, rows, zero)
        metrics = answer_metrics(scores, self.answer_loss(scores), self.beta, float(is_good(self.held).mean()))
        return {name: float(value.double().mean()) for name, value in metrics.items()}, ()

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"reference": self.reference_name}
