"""A loss as a curve: its value and its pulls while a pair's answers move, and where it comes to rest.

Every number here is read off a loss by calling it, so the course's pictures of the family cannot differ from the code.
A typical pair stands for all: two answers of `LENGTH` tokens, each token with `NATS` nats under the reference.

a, b = log π/π_ref of chosen and rejected (nats), h = a − b. Values are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dpo_lab.loss import PairScores

Loss = Callable[[PairScores], Tensor]

LENGTH, NATS = 12, 2.0
"""Tokens of each answer of the typical pair, and nats of each token: its answers are those of the pocket world."""


def typical_pairs(
    chosen: Tensor, rejected: Tensor, *, chosen_length: int = LENGTH, rejected_length: int = LENGTH
) -> PairScores:
    """Typical pairs that have moved by `chosen` and `rejected`, a and b, each (B,) nats. Fields (B,) float64."""
    chosen, rejected = torch.broadcast_tensors(chosen.double(), rejected.double())
    lengths = [torch.full_like(chosen, length) for length in (chosen_length, rejected_length)]
    references = [-NATS * length for length in lengths]
    return PairScores(references[0] + chosen, references[1] + rejected, *references, *lengths)


def pulls(loss: Loss, scores: PairScores) -> tuple[Tensor, Tensor]:
    """−∂loss/∂log π of chosen and rejected: what a step of gradient descent adds to each. Each (B,), loss per nat.

    Positive: upwards. A loss that ignores one of the two pulls it with 0.
    """
    moved = [logps.detach().clone().requires_grad_() for logps in scores[:2]]
    values = loss(scores._replace(policy_chosen=moved[0], policy_rejected=moved[1]))
    slopes = torch.autograd.grad(values.sum(), moved, allow_unused=True, materialize_grads=True)
    return -slopes[0], -slopes[1]


def numerical_pulls(loss: Loss, scores: PairScores, *, step: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The same by central differences, without autograd: the error is of the order of step² plus rounding over step."""
    pulled = []
    for side in ("policy_chosen", "policy_rejected"):
        at = getattr(scores, side)
        above, below = (loss(scores._replace(**{side: at + sign * step})) for sign in (1, -1))
        pulled.append((below - above) / (2 * step))
    return pulled[0], pulled[1]


class LossCurve(NamedTuple):
    """A loss along the way on which the chosen answer rises by h/2 and the rejected one falls by h/2. Each (B,)."""

    gaps: Tensor
    """h, nats."""
    values: Tensor
    """The loss, in its own unit."""
    chosen_pull: Tensor
    """−∂loss/∂log π(y_w|x)."""
    rejected_pull: Tensor
    """−∂loss/∂log π(y_l|x)."""


def loss_curve(loss: Loss, gaps: Tensor) -> LossCurve:
    """The loss of a typical pair, and its pulls on both answers, at each gap h (B,). |h|/2 must stay below 24 nats,
    since no log-probability is above 0."""
    if bool((gaps.abs() / 2 >= LENGTH * NATS).any()):
        raise ValueError(f"gaps must lie within ±{2 * LENGTH * NATS:g} nats, got {gaps.abs().max().item():g}; "
                         "beyond, an answer would be more than certain")  # fmt: skip
    scores = typical_pairs(gaps / 2, -gaps / 2)
    return LossCurve(gaps.double(), loss(scores).detach(), *pulls(loss, scores))


class Rest(NamedTuple):
    """Where a loss stops pulling on a pair whose label is certain, in nats. ±inf: it never does; nan: left open."""

    gap: float
    """h, where the loss sees nothing else; nan where it also sees a and b."""
    chosen: float
    """a; inf: it rises until the answer is certain."""
    rejected: float
    """b; −inf: it falls without end."""


def sees_gap_only(loss: Loss) -> bool:
    """Whether moving both log-probabilities by the same amount leaves the loss as it is."""
    a, b = torch.tensor([0.5, -3.0, 2.0]), torch.tensor([-1.0, 2.0, 0.0])
    return bool(torch.allclose(loss(typical_pairs(a, b)), loss(typical_pairs(a - 5, b - 5)), rtol=1e-9, atol=1e-9))


def reads_lengths(loss: Loss) -> bool:
    """Whether answers are compared per token: a longer rejected answer, as likely as before, changes the loss."""
    scores = typical_pairs(torch.tensor([0.5, -3.0, 2.0]), torch.tensor([-1.0, 2.0, 0.0]))
    longer = scores._replace(rejected_length=2 * scores.rejected_length)
    return not torch.allclose(loss(scores), loss(longer), rtol=1e-9, atol=1e-9)


def resting_place(loss: Loss) -> Rest:
    """The minimiser of the loss of one typical pair, looked for on a grid: to 0.05 nats for the gap, 0.25 for a and b.

    A minimum that moves when the grid is made twice as wide is none: there the loss falls for ever.
    """
    if sees_gap_only(loss):
        near, far = (_lowest_gap(loss, widest) for widest in (150.0, 300.0))
        return Rest(near if near == far else math.inf, math.nan, math.nan)
    near, far = (_lowest_moves(loss, widest) for widest in (40.0, 80.0))
    certain = LENGTH * NATS
    a, b = (
        math.copysign(math.inf, second) if first != second or first >= certain else first
        for first, second in zip(near, far, strict=True)
    )
    return Rest(math.nan, a, b)


def wrong_pull(loss: Loss, gap: float = -40.0) -> float:
    """How hard a pair that is wrong by `gap` nats is pulled apart, as a multiple of the pull at the start.

    2 for plain DPO; near 0 where a loss gives such pairs up; negative where the start pulls the wrong way.
    """
    curve = loss_curve(loss, torch.tensor([gap, 0.0]))
    wrong, start = (curve.chosen_pull - curve.rejected_pull).tolist()
    return wrong / start


def _lowest_gap(loss: Loss, widest: float) -> float:
    gaps = torch.arange(-widest, widest + 0.025, 0.05, dtype=torch.float64)
    values = loss(typical_pairs(torch.zeros(()), -gaps))
    return round(gaps[_first_lowest(values)].item(), 2)


def _lowest_moves(loss: Loss, widest: float) -> tuple[float, float]:
    moves = torch.arange(-widest, LENGTH * NATS + 0.125, 0.25, dtype=torch.float64)
    a, b = torch.meshgrid(moves, moves, indexing="ij")
    place = _first_lowest(loss(typical_pairs(a.reshape(-1), b.reshape(-1))))
    return a.reshape(-1)[place].item(), b.reshape(-1)[place].item()


def _first_lowest(values: Tensor) -> int:
    """The first place that is as low as any: where a loss is flat at its bottom, the nearest point of it."""
    return int((values <= values.min() + 1e-300).nonzero()[0])
