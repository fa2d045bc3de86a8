"""A finite world: X prompts, Y responses each, and nothing that has to be estimated.

Here stand the world, its policies' values and the optimum that RLHF looks for and DPO finds. What people say about the
responses is in `comparisons.py`; the same quantities for a real transformer are in `enumerable.py`. No DPO loss here.

X prompts, Y responses; ρ the prompt distribution, π a policy, π_ref the reference, r the true reward, β the price of
drifting. A policy is a table of log-probabilities `logps` (X, Y). All tensors are float64; logs, divergences and
rewards over β are in nats. Equation numbers are those of Rafailov et al. 2023 (arXiv 2305.18290).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class World:
    """Prompts, responses, and the three tables that decide everything. Build one with `World.from_tables`."""

    rewards: Tensor
    """r(x, y), the true reward. (X, Y)"""
    reference_logps: Tensor
    """log π_ref(y|x). (X, Y)"""
    prompt_probs: Tensor
    """ρ(x). (X,)"""
    lengths: Tensor
    """Scored tokens of each response; 1 where responses have no parts. Only length-normalised losses look. (X, Y)"""
    prompts: tuple[str, ...]
    """What the prompts say, for figures."""
    responses: tuple[tuple[str, ...], ...]
    """What the responses say: `responses[x][y]`."""

    @classmethod
    def from_tables(
        cls, rewards: Tensor | Sequence[Sequence[float]], reference_probs: Tensor | Sequence[Sequence[float]],
        *, prompt_probs: Tensor | Sequence[float] | None = None, lengths: Tensor | None = None,
        prompts: Sequence[str] | None = None, responses: Sequence[Sequence[str]] | None = None,
    ) -> World:  # fmt: skip
        """The world with these rewards (X, Y) and this π_ref(y|x) (X, Y); prompts are equally likely unless given.

        Raises ValueError where a table has the wrong shape or is no distribution.
        """
        rewards, reference = _table(rewards), _table(reference_probs)
        _require(rewards.ndim == 2 and rewards.shape[1] >= 2, "rewards must have shape (X, Y) with Y >= 2",
                 tuple(rewards.shape), "one row per prompt, one column per response")  # fmt: skip
        num_prompts, num_responses = rewards.shape
        _require(bool(rewards.isfinite().all()), "rewards must be finite", _first(rewards, ~rewards.isfinite()),
                 "an infinite reward has no optimal policy")  # fmt: skip
        _require(reference.shape == rewards.shape, f"reference_probs must have the shape {tuple(rewards.shape)} of the "
                 "rewards", tuple(reference.shape), "give one probability per response")  # fmt: skip
        _require(bool((reference > 0).all()), "reference_probs must be positive", _first(reference, ~(reference > 0)),
                 "no β can bring back a response that the reference never gives")  # fmt: skip
        _check_sums(reference, "reference_probs of each prompt")
        rho = torch.full((num_prompts,), 1 / num_prompts).double() if prompt_probs is None else _table(prompt_probs)
        _require(rho.shape == (num_prompts,) and bool((rho >= 0).all()),
                 f"prompt_probs must be {num_prompts} numbers >= 0", rho.tolist(), "None makes all equal")  # fmt: skip
        _check_sums(rho, "prompt_probs")
        lengths = torch.ones_like(rewards) if lengths is None else _table(lengths)
        _require(lengths.shape == rewards.shape, f"lengths must have the shape {tuple(rewards.shape)} of the rewards",
                 tuple(lengths.shape), "give one length per response")  # fmt: skip
        prompts = tuple(prompts or (f"x{x}" for x in range(num_prompts)))
        named = responses or [[f"y{y}" for y in range(num_responses)]] * num_prompts
        _require(
            len(prompts) == num_prompts, f"prompts must name {num_prompts} prompts", len(prompts), "or none at all"
        )
        _require([len(row) for row in named] == [num_responses] * num_prompts,
                 f"responses must name {num_responses} responses for each of {num_prompts} prompts",
                 [len(row) for row in named], "or none at all")  # fmt: skip
        # Once more through log-softmax, so that the logs sum to one to the last bit that float64 has.
        return cls(
            rewards, reference.log().log_softmax(-1), rho / rho.sum(), lengths, prompts, tuple(map(tuple, named))
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(X, Y)."""
        num_prompts, num_responses = self.rewards.shape
        return num_prompts, num_responses

    def mean(self, per_prompt: Tensor) -> Tensor:
        """E_{x~ρ} of one value per prompt. (X,) → scalar."""
        return (self.prompt_probs * per_prompt).sum()

    def with_rewards(self, rewards: Tensor) -> World:
        """The same world with another reward, such as one that was learnt from comparisons."""
        _require(rewards.shape == self.rewards.shape, f"rewards must have the shape {self.shape} of the world",
                 tuple(rewards.shape), "one row per prompt")  # fmt: skip
        return replace(self, rewards=rewards.double())


# What a policy is worth.


def expected_reward(world: World, logps: Tensor) -> Tensor:
    """E_{x~ρ, y~π}[r(x, y)]. Scalar."""
    return world.mean((logps.double().exp() * world.rewards).sum(-1))


def kl(logps: Tensor, other_logps: Tensor) -> Tensor:
    """KL(π‖π') = Σ_y π(y|x) log(π(y|x) / π'(y|x)) for each prompt, in nats. (X,)

    A response that π never gives adds nothing; one that only π gives makes it infinite.
    """
    logps = logps.double()
    return (logps.exp() * (logps - other_logps).masked_fill(logps == -math.inf, 0.0)).sum(-1)


def total_variation(logps: Tensor, other_logps: Tensor) -> Tensor:
    """½ Σ_y |π(y|x) − π'(y|x)| for each prompt: the most by which the two can differ about any event. (X,)"""
    return (logps.double().exp() - other_logps.double().exp()).abs().sum(-1) / 2


def objective(world: World, logps: Tensor, beta: float) -> Tensor:
    """J(π) = E[r] − β·KL(π‖π_ref), what RLHF (with PPO or anything else) climbs. Scalar. Rafailov et al. 2023, Eq. 3.

    A larger β pays more for drifting. Its maximum is `best_objective`, at `optimal_logps`, and
    J(π*) − J(π) = β·E[KL(π‖π*)]: falling short of the optimum is drifting away from π*.
    """
    _check_beta(beta)
    return expected_reward(world, logps) - beta * world.mean(kl(logps, world.reference_logps))


# The optimum, in closed form.


def log_partition(world: World, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β), in nats. (X,) Rafailov et al. 2023, below Eq. 4."""
    _check_beta(beta)
    return (world.reference_logps + world.rewards / beta).logsumexp(-1)


def optimal_logps(world: World, beta: float) -> Tensor:
    """log π*(y|x) = log π_ref(y|x) + r(x, y)/β − log Z(x). (X, Y) Rafailov et al. 2023, Eq. 4.

    β → ∞ gives the reference back; β → 0 puts everything on the best response. Adding f(x) to r changes nothing.
    With a learnt reward in the world (`with_rewards`) it is what RLHF converges to: the optimum for that reward.
    """
    return world.reference_logps + world.rewards / beta - log_partition(world, beta)[:, None]


def best_objective(world: World, beta: float) -> Tensor:
    """max_π J(π) = J(π*) = β·E[log Z(x)]. Scalar."""
    return beta * world.mean(log_partition(world, beta))


def recovered_rewards(world: World, logps: Tensor, beta: float, log_z: Tensor | None = None) -> Tensor:
    """r(x, y) = β log(π(y|x) / π_ref(y|x)) + β log Z(x): Eq. 4 solved for r. (X, Y) Rafailov et al. 2023, Eq. 5.

    Without `log_z` (X,) the last term is left out: the implicit reward, which is r up to one number per prompt. That
    is all that comparisons can tell, since Z(x) cancels between two responses to the same prompt (Eq. 6).
    """
    _check_beta(beta)
    implicit = beta * (logps.double() - world.reference_logps)
    return implicit if log_z is None else implicit + beta * log_z[:, None]


class Frontier(NamedTuple):
    """The best reward for every KL: π* as β runs. Each (len(betas),)."""

    betas: Tensor
    kl: Tensor
    """E[KL(π*‖π_ref)], in nats; it falls as β grows."""
    rewards: Tensor
    """E[r] under π*. No policy has more reward at the same KL."""


def frontier(world: World, betas: Sequence[float]) -> Frontier:
    """Reward against KL, traced by β. The slope d reward / d KL at a point is its β."""
    optima = [optimal_logps(world, beta) for beta in betas]
    drift = [world.mean(kl(logps, world.reference_logps)) for logps in optima]
    rewards = [expected_reward(world, logps) for logps in optima]
    return Frontier(torch.tensor(betas).double(), torch.stack(drift), torch.stack(rewards))


# Ready worlds.


def kitchen_world() -> World:
    """Two questions, four answers each, short enough to read in a figure.

    The reference likes to ramble; the truth prefers what helps, and on the mushroom a warning beats an answer.
    """
    return World.from_tables(
        prompts=("How do I boil an egg?", "Is this wild mushroom safe to eat?"),
        responses=(
            ("Eight minutes in boiling water.", "Eggs have a long and rich history…", "Ask a cook.", "Fry it."),
            ("Don't eat it; ask an expert.", "Mushrooms have a long and rich history…", "No idea.", "Sure, go ahead."),
        ),
        rewards=((2.0, 0.5, 0.0, -1.0), (2.0, 0.0, 0.5, -3.0)),
        reference_probs=((0.2, 0.5, 0.2, 0.1), (0.1, 0.4, 0.2, 0.3)),
    )


def random_world(
    num_prompts: int, num_responses: int, *, generator: torch.Generator, reward_scale: float = 1.0, spread: float = 1.0
) -> World:
    """Rewards ~ N(0, reward_scale²) and π_ref = softmax of N(0, spread²); spread 0 is the uniform reference.

    Prompts differ in probability by up to a factor of three.
    """
    rewards, logits = torch.randn(2, num_prompts, num_responses, generator=generator, dtype=torch.float64)
    rho = 0.5 + torch.rand(num_prompts, generator=generator, dtype=torch.float64)
    return World.from_tables(rewards * reward_scale, (logits * spread).softmax(-1), prompt_probs=rho / rho.sum())


def small_world(seed: int = 0) -> World:
    """Three prompts with five responses: small enough to print, large enough that no symmetry helps."""
    return random_world(3, 5, generator=torch.Generator().manual_seed(seed))


# What a reader may get wrong.


def _table(values: Tensor | Sequence) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach()


def _first(values: Tensor, wrong: Tensor) -> float | None:
    return values[wrong][0].item() if bool(wrong.any()) else None


def _require(holds: bool, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value!r}; {remedy}")


def _check_sums(probs: Tensor, name: str) -> None:
    sums = probs.sum(-1)
    # 1e-6 lets float32 tables in; what is left of the error is normalised away.
    wrong = (sums - 1).abs() > 1e-6
    _require(not bool(wrong.any()), f"{name} must sum to 1", _first(sums, wrong), "divide by the sum")


def _check_beta(beta: float) -> None:
    _require(0 < beta < math.inf, "beta must be positive and finite", beta,
             "smaller values allow more drift from the reference, 0.1 is the usual start")  # fmt: skip
