"""A loss of single answers with a label, as an objective: one completion per prompt, one baseline for the whole batch.

The baseline r₀ must be known before the first answer's loss, and a batch may be cut into passes or spread over
processes. So it is measured when the step begins, without gradient, on all its answers (BCO), or on as many answers to
other prompts (KTO). N answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.logprobs import sum_per_sequence
from dpo_lab.losses.unpaired import UnpairedScores, answer_metrics, midpoint
from dpo_lab.metrics import PairEvaluation, scored_lengths
from dpo_lab.objectives.base import TokenObjective
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.unpaired import is_good


class Labelled(NamedTuple):
    """Single answers with labels, the answers that the baseline is measured on, the reference's log-probs of both."""

    data: TokenData
    logps: np.ndarray  # (N, 1)
    probes: TokenData
    probe_logps: np.ndarray  # (N, 1)

    def zero_point(self, baseline: str | None, probe_logps: np.ndarray, rows: np.ndarray | slice) -> Tensor:
        """r₀ of these rows, nats, from the policy's log-probs (N, 1) of their probes."""
        if baseline is None:
            return torch.zeros(())
        ratios = torch.from_numpy(probe_logps - self.probe_logps[rows])[:, 0]
        if baseline == "midpoint":
            return midpoint(ratios, torch.from_numpy(is_good(self.data)[rows]))
        return ratios.mean().clamp(min=0)  # a KL is never negative; its estimate may be

    def scores(self, policy: Tensor, rows: np.ndarray | slice, zero: Tensor) -> UnpairedScores:
        """Of these rows, from the policy's log-probs (N,)."""
        reference, good = torch.from_numpy(self.logps[rows, 0]), torch.from_numpy(is_good(self.data)[rows])
        return UnpairedScores(policy, *(values.to(policy.device) for values in (reference, good, zero)))


def evaluate_answers(
    part: Labelled, score: Callable[[TokenData], np.ndarray], loss: Callable[[UnpairedScores], Tensor], beta: float,
    baseline: str | None,
) -> PairEvaluation:  # fmt: skip
    """The evaluation of single answers, with one r₀ for all of them. score: the policy's log-probs (N, 1)."""
    policy, rows = score(part.data), slice(None)
    probe_logps = policy if part.probes is part.data else score(part.probes)
    scores = part.scores(torch.from_numpy(policy[:, 0]), rows, part.zero_point(baseline, probe_logps, rows))
    losses = loss(scores)
    metrics = answer_metrics(scores, losses, beta, float(is_good(part.data).mean()))
    table = {
        "row": part.data.source_rows,
        "label": is_good(part.data),
        "loss": losses.numpy(),
        "reward": beta * (policy - part.logps)[:, 0],
        "logp": policy[:, 0],
        "length": scored_lengths(part.data)[:, 0],
    }
    return PairEvaluation({name: float(value.double().mean()) for name, value in metrics.items()}, table)


@dataclass
class UnpairedObjective(TokenObjective):
    """See the module."""

    answer_loss: Callable[[UnpairedScores], Tensor]
    beta: float
    baseline: str | None
    labelled: list[Labelled]  # the training data, and the held-out
    reference_name: str

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        part, probe_logps = self.labelled[0], np.zeros(())
        if self.baseline is not None:
            with self.engine.whole_weights():  # before the step is cut into passes, for the baseline is that of all
                probe_logps = self.score_held(self.engine.model, part.probes.select(examples))
        self.zero = part.zero_point(self.baseline, probe_logps, examples)
        self.share_good = float(is_good(self.data)[examples].mean())
        return super().begin_step(examples)

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        scores = self.labelled[0].scores(sum_per_sequence(scorer(batch), batch)[:, 0], rows, self.zero)
        losses = self.answer_loss(scores)  # (B,)
        metrics = answer_metrics(scores, losses, self.beta, self.share_good)
        return (losses * batch.weights.abs()).sum(), {name: value.sum() for name, value in metrics.items()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        score = partial(self.score_held, model)
        return evaluate_answers(self.labelled[1], score, self.answer_loss, self.beta, self.baseline).metrics, ()

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"reference": self.reference_name}
