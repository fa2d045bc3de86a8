"""What people say about the responses of a finite world, exactly or by samples, and the rewards that explain it.

The world itself is in `tabular.py`, policies that learn from comparisons are in `learning.py`.

X prompts, Y responses, P comparisons; all values float64, logs and losses in nats. σ is the logistic function.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_lab.worlds.tabular import World


class Comparisons(NamedTuple):
    """P statements "for this prompt, this response beats that one", each with its weight; the weights sum to 1.

    The exact expectation lists every possible statement with its probability; a sample of n lists n with 1/n each.
    """

    prompt: Tensor
    """Index x. (P,) int64"""
    chosen: Tensor
    """Index of the response that won. (P,) int64"""
    rejected: Tensor
    """Index of the response that lost. (P,) int64"""
    weight: Tensor
    """Probability or share of the statement. (P,)"""

    def merged(self) -> Comparisons:
        """Equal statements as one, their weights added: the same losses for less work when samples repeat."""
        rows, where = torch.stack(self[:3]).unique(dim=1, return_inverse=True)
        weight = torch.zeros(rows.shape[1], dtype=self.weight.dtype).index_add_(0, where, self.weight)
        return Comparisons(rows[0], rows[1], rows[2], weight)


# Bradley–Terry: from rewards to preferences.


def preference_probs(rewards: Tensor, *, temperature: float = 1.0, flip: float = 0.0) -> Tensor:
    """P(i ≻ j | x) = σ((r(x, i) − r(x, j)) / temperature). (X, Y) → (X, Y, Y)

    Two kinds of label noise: a higher `temperature` blurs close calls most, `flip` turns any label round with that
    probability (P ← (1 − flip)·P + flip·(1 − P)). Temperature 0 never errs: 1, 0, and ½ for ties. DPO's minimiser with
    price β then stands at r/(β·temperature). Bradley & Terry 1952; Rafailov et al. 2023, Eq. 1.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}; 1 is Bradley–Terry, 0 has no noise")
    if not 0 <= flip <= 0.5:
        raise ValueError(f"flip must lie in [0, 0.5], got {flip}; at one half the labels say nothing")
    gap = rewards.double()[:, :, None] - rewards.double()[:, None, :]
    probs = (gap / temperature).sigmoid() if temperature > 0 else (gap.sign() + 1) / 2
    return (1 - flip) * probs + flip * (1 - probs)


def pairs_of(proposal: Tensor) -> Tensor:
    """Two responses drawn independently from `proposal` (X, Y), and drawn again when they are the same. (X, Y, Y)"""
    pairs = proposal.double()[:, :, None] * proposal.double()[:, None, :]
    pairs = pairs - torch.diag_embed(pairs.diagonal(dim1=1, dim2=2))
    return pairs / pairs.sum((1, 2), keepdim=True)


def reference_pairs(world: World) -> Tensor:
    """Two different responses, each drawn from π_ref: the data of Rafailov et al. 2023, Section 4. (X, Y, Y)"""
    return pairs_of(world.reference_logps.exp())


def uniform_pairs(world: World) -> Tensor:
    """Two different responses, all equally likely. (X, Y, Y)"""
    return pairs_of(torch.ones_like(world.rewards))


def all_comparisons(
    world: World, *, pairs: Tensor | None = None, temperature: float = 1.0, flip: float = 0.0
) -> Comparisons:
    """Every statement with its probability ρ(x)·μ(i, j|x)·P(i ≻ j|x): preferences without sampling error.

    `pairs` (X, Y, Y) is μ, by default `reference_pairs`. It decides how fast and, with finite data, how well each
    response is learnt; the minimiser of the expected DPO loss is the same for every μ that connects all responses.
    """
    shape = (*world.rewards.shape, world.shape[1])
    mu = reference_pairs(world) if pairs is None else pairs.double()
    if mu.shape != shape or bool((mu < 0).any()) or bool(((mu.sum((1, 2)) - 1).abs() > 1e-6).any()):
        raise ValueError(
            f"pairs must be a distribution over (i, j) for each prompt, got shape {tuple(mu.shape)} with sums "
            f"{mu.flatten(1).sum(-1).tolist()}; the shape must be {shape}, the values >= 0, and each sum 1"
        )
    # Which of the two is called first says nothing, so μ is made symmetric; P(i ≻ j) then decides who is chosen.
    shown = mu + mu.transpose(1, 2)
    joint = (
        world.prompt_probs[:, None, None] * shown * preference_probs(world.rewards, temperature=temperature, flip=flip)
    )
    prompt, chosen, rejected = torch.nonzero(joint, as_tuple=True)
    return Comparisons(prompt, chosen, rejected, joint[prompt, chosen, rejected])


def sample_comparisons(
    world: World,
    n: int,
    *,
    generator: torch.Generator,
    pairs: Tensor | None = None,
    temperature: float = 1.0,
    flip: float = 0.0,
) -> Comparisons:
    """n independent comparisons, in the order in which they were drawn, weight 1/n each."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; an expectation without sampling is all_comparisons(world)")
    exact = all_comparisons(world, pairs=pairs, temperature=temperature, flip=flip)
    drawn = torch.multinomial(exact.weight, n, replacement=True, generator=generator)
    share = torch.full((n,), 1 / n, dtype=torch.float64)
    return Comparisons(exact.prompt[drawn], exact.chosen[drawn], exact.rejected[drawn], share)


# Back again: from preferences to rewards.


def fit_rewards(world: World, comparisons: Comparisons, *, ridge: float = 0.0) -> Tensor:
    """The maximum-likelihood Bradley–Terry rewards, by Newton's method; they sum to 0 for each prompt. (X, Y)

    Minimises −Σ weight·log σ(r(chosen) − r(rejected)) + ½·ridge·Σ r²: a logistic regression whose features are
    +1 for the chosen and −1 for the rejected response. Rafailov et al. 2023, Eq. 2. The error falls as 1/√n.

    Without a ridge the maximum exists only where, for each prompt, a chain of wins leads from every response to every
    other (Ford 1957); otherwise a ValueError names the prompt. `optimal_logps(world.with_rewards(fit), β)` is the
    optimum of RLHF on the same data, and equals the minimiser of the sampled DPO loss where policies are tables.
    """
    wins = _win_table(world, comparisons)
    if ridge < 0:
        raise ValueError(f"ridge must be >= 0, got {ridge}; 0 is plain maximum likelihood")
    if ridge == 0:
        _check_connected(world, wins)

    def loss(rewards: Tensor) -> Tensor:
        gap = rewards[:, :, None] - rewards[:, None, :]
        return (wins * F.softplus(-gap)).sum((1, 2)) + ridge / 2 * rewards.square().sum(-1)

    rewards = torch.zeros_like(world.rewards)
    gauge = torch.full((world.shape[1],) * 2, 1 / world.shape[1], dtype=torch.float64)
    for _ in range(100):
        surprise = wins * preference_probs(rewards).transpose(1, 2)  # weight·(1 − P of what was said)
        gradient = ridge * rewards - surprise.sum(2) + surprise.sum(1)
        # The likelihood ignores a shift of all rewards; the gauge term makes the matrix invertible there.
        curvature = _fisher_information(rewards, wins)
        scale = curvature.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        curvature = curvature + scale * gauge + ridge * torch.eye(world.shape[1], dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        # Full steps overshoot where a response nearly always wins: halve, for each prompt, until the loss falls.
        size, before = torch.ones(len(step), 1, dtype=torch.float64), loss(rewards)
        while bool((worse := loss(rewards - size * step) > before + 1e-12).any()):
            size = torch.where(worse[:, None], size / 2, size)
        rewards = rewards - size * step
        # gradient·step is twice what the loss can still fall; near the end each step squares it.
        if bool(((gradient * step).sum(-1) < 1e-18).all()):
            return rewards - rewards.mean(-1, keepdim=True)
    raise RuntimeError("Newton's method did not settle in 100 steps; a larger ridge makes the bowl rounder")


def reward_errors(world: World, comparisons: Comparisons, n: int) -> Tensor:
    """Standard errors of `fit_rewards` after n comparisons from this distribution, for the true rewards. (X, Y)

    The root of the diagonal of the inverse Fisher information, so ∝ 1/√n: a hundred times the data, a tenth the error.
    Holds for rewards that sum to 0 for each prompt, and once n is large enough for the likelihood to look like a bowl.
    """
    information = n * _fisher_information(world.rewards, _win_table(world, comparisons))
    # A shift of all rewards changes no comparison: that eigenvalue is 0, or a rounding error that must not be inverted.
    return torch.linalg.pinv(information, rtol=1e-10, hermitian=True).diagonal(dim1=1, dim2=2).sqrt()


def _win_table(world: World, comparisons: Comparisons) -> Tensor:
    """wins[x, i, j]: the weight of "i beats j at x". (X, Y, Y)"""
    num_prompts, num_responses = world.shape
    table = torch.zeros(num_prompts, num_responses, num_responses, dtype=torch.float64)
    return table.index_put_(tuple(comparisons[:3]), comparisons.weight.double(), accumulate=True)


def _fisher_information(rewards: Tensor, wins: Tensor) -> Tensor:
    """The Hessian of the Bradley–Terry loss: the Laplacian of the graph of pairs, weighted by P(1 − P). (X, Y, Y)"""
    probs = preference_probs(rewards)
    edges = (wins + wins.transpose(1, 2)) * probs * (1 - probs)
    return torch.diag_embed(edges.sum(-1)) - edges


def _check_connected(world: World, wins: Tensor) -> None:
    reach = (wins > 0) | torch.eye(world.shape[1], dtype=torch.bool)
    for _ in range(max(1, (world.shape[1] - 1).bit_length())):  # each squaring doubles the length of the chains
        reach = (reach.double() @ reach.double()) > 0
    for x, complete in enumerate(reach.flatten(1).all(-1).tolist()):
        if not complete:
            raise ValueError(
                f"Bradley–Terry rewards of prompt {world.prompts[x]!r} run to infinity: no chain of wins leads from "
                "every response to every other; add comparisons, or give ridge > 0 to prefer small rewards"
            )
