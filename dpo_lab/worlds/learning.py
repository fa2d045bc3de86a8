"""Policies that learn from comparisons in a finite world: the exact expected loss, and descending it.

Every loss is passed in (`loss: PairScores → (P,)`, such as `LOSSES["dpo"].bind(beta=0.1)`); none is written here.
A policy is a table of logits (X, Y); a transformer in its place is in `enumerable.py`.

X prompts, Y responses, P comparisons; all values float64, logs and losses in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dpo_lab.loss import PairScores
from dpo_lab.worlds.comparisons import Comparisons, all_comparisons
from dpo_lab.worlds.tabular import World

Loss = Callable[[PairScores], Tensor]


def pair_scores(world: World, logps: Tensor, comparisons: Comparisons) -> PairScores:
    """The comparisons as a loss wants them: log-probs (nats) under policy and reference, and lengths. Each (P,)."""
    x, chosen, rejected, _ = comparisons
    return PairScores(
        policy_chosen=logps[x, chosen],
        policy_rejected=logps[x, rejected],
        reference_chosen=world.reference_logps[x, chosen],
        reference_rejected=world.reference_logps[x, rejected],
        chosen_length=world.lengths[x, chosen],
        rejected_length=world.lengths[x, rejected],
    )


def expected_loss(world: World, logits: Tensor, loss: Loss, comparisons: Comparisons | None = None) -> Tensor:
    """E[loss] over comparisons, by default over all that the world can produce. Scalar, differentiable.

    `logits` (X, Y) parametrise π = softmax(logits); log-probabilities are logits too. With the DPO loss and exact
    preferences the minimiser is π* (Rafailov et al. 2023, Eq. 7 and Section 5). Pass `comparisons` in loops: listing
    them costs more than the loss.

    With deterministic labels (temperature 0), or a sample in which some response never won or never lost, the DPO loss
    has no finite minimiser: it falls towards its infimum while log-ratios run to ±∞, whatever β is. Azar et al. 2023
    (arXiv 2310.12036), Section 4.2, name this as DPO's weakness.
    """
    if comparisons is None:
        comparisons = all_comparisons(world)
    logps = logits.double().log_softmax(-1)
    return (comparisons.weight * loss(pair_scores(world, logps, comparisons))).sum()


def value_and_gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """function(logits) and ∇function(logits). Scalar and (X, Y), both detached."""
    at = logits.detach().double().requires_grad_()
    with one_thread():
        value = function(at)
        (gradient,) = torch.autograd.grad(value, at)
    return value.detach(), gradient


@contextmanager
def one_thread() -> Iterator[None]:
    """For steps on small tables: torch splits the log-softmax of even fifteen numbers among its threads.

    That gains nothing, and where other programs keep the cores busy each such call waits 20 ms instead of 20 µs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Point(NamedTuple):
    """Where the descent stands before a step."""

    step: int
    loss: float
    gradient_norm: float
    logits: Tensor
    """(X, Y), detached: a value, not a part of the computation."""


def descend(
    function: Callable[[Tensor], Tensor], start: Tensor, *, learning_rate: float | None = None, steps: int
) -> Iterator[Point]:
    """Plain gradient descent, θ ← θ − learning_rate·∇function(θ): yields `steps` + 1 points, the start among them.

    `function` is any scalar of the logits, such as `lambda θ: expected_loss(world, θ, loss, comparisons)` or
    `lambda θ: -objective(world, θ.log_softmax(-1), β)` for RLHF. Without a learning rate it takes 1/L, L the largest
    curvature at the start: safe for DPO from the reference, where log-sigmoid is nowhere more curved (there L ∝ β²).
    """
    if steps < 0 or (learning_rate is not None and not learning_rate > 0):
        raise ValueError(f"steps must be >= 0 and learning_rate positive, got {steps} and {learning_rate}; "
                         "learning_rate=None chooses one")  # fmt: skip
    start = start.detach().double()
    rate = 1 / largest_curvature(function, start) if learning_rate is None else learning_rate
    return _descend(function, start, rate, steps)


def _descend(function: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> Iterator[Point]:
    logits = start
    for step in range(steps + 1):
        value, gradient = value_and_gradient(function, logits)
        yield Point(step, value.item(), gradient.norm().item(), logits)
        logits = logits - rate * gradient


def minimise(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    learning_rate: float | None = None,
    steps: int = 20_000,
    tolerance: float = 1e-9,
) -> Point:
    """Descend until the gradient's norm is at most `tolerance` or the steps are spent; the point says which."""
    points = descend(function, start, learning_rate=learning_rate, steps=steps)
    point = next(points)
    for point in points:
        if point.gradient_norm <= tolerance:
            break
    return point


def largest_curvature(function: Callable[[Tensor], Tensor], at: Tensor, *, iterations: int = 50) -> float:
    """The largest |eigenvalue| of the Hessian, by power iteration: the H·v products cost one more backward each."""
    point = at.detach().double().requires_grad_()
    vector = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = 0.0
    with one_thread():
        (gradient,) = torch.autograd.grad(function(point), point, create_graph=True)
        for _ in range(iterations if gradient.requires_grad else 0):  # a linear function has a constant gradient
            vector = vector / vector.norm()
            (vector,) = torch.autograd.grad(gradient, point, vector, retain_graph=True)
            size = vector.norm().item()
            if size == 0:
                break
    if size == 0:
        raise ValueError("the function must be curved at the start, got curvature 0.0; give a learning_rate")
    # Power iteration comes from below; a tenth more keeps 1/L on the safe side.
    return 1.1 * size
