"""What RLOO, PPO and GRPO give the loop: answers sampled when they are needed, and the loss that learns from them.

The training data is an endless numbered list of prompts, reshuffled whenever all have come. Slot q belongs to rollout
q // B; its answers are sampled when the loop first needs them, from the policy as it then stands. So a run is a
function of its seed, and one that is resumed at a rollout's border goes on as it would have.

B prompts per rollout with K answers each, A = B·K answers of at most T tokens, N tokens of a pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout, make_batch, row_lengths
from dpo_lab.course.rlhf.config import ClippedConfig, PolicyGradientConfig, PPOConfig
from dpo_lab.course.rlhf.costs import Meter
from dpo_lab.course.rlhf.estimators import (
    ClippedLoss,
    clipped_loss,
    generalised_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    normalised,
    penalised_rewards,
    reference_penalty,
    reinforce_loss,
    value_loss,
)
from dpo_lab.course.rlhf.reward_model import RewardModel
from dpo_lab.course.rlhf.rewards import Reward
from dpo_lab.course.rlhf.rollouts import Rollout, answer_rows, sample_rollout, score_tokens
from dpo_lab.logprobs import autocast, sum_per_sequence, token_logps, usable_layout
from dpo_lab.reference import fingerprint
from dpo_lab.sampling import Prompt


class ActorCritic(nn.Module):
    """Policy and critic as one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, policy: nn.Module, critic: RewardModel) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log π of every sampled token, and the critic's value before it. Each (N,)"""
        return token_logps(self.policy, batch), self.critic.token_values(batch)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass."""
        self.policy.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
        self.critic.gradient_checkpointing_enable()


class RolloutObjective:
    """What RLOO, PPO and GRPO share: which prompts come when, sampling, rewards, the reference, held-out prompts."""

    steps_per_rollout = 1

    def __init__(
        self, policy: nn.Module, reference: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], reward: Reward,
        config: PolicyGradientConfig, watch: Mapping[str, Reward] | None, held_out: Sequence[Prompt] | None,
        meter: Meter,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.tokenizer, self.config = policy, reference, tokenizer, config
        self.prompts, self.held = list(prompts), None if held_out is None else list(held_out)
        self.reward, self.watch, self.meter = reward, dict(watch or {}), meter
        self.number, self.steps_taken = -1, 0
        self.device = next(policy.parameters()).device

    # ── which prompts ────────────────────────────────────────────────────────────────────────────────────────────

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """As many whole rollouts as the prompts fill, one at least; each as the steps that learn from it."""
        rollouts = max(1, len(self.prompts) // self.config.batch_size)
        return [step for i in range(rollouts) for step in self.steps(epoch * rollouts + i)]

    def steps(self, rollout: int) -> list[np.ndarray]:
        """The slots of each optimiser step of a rollout."""
        size = self.config.batch_size
        return [np.arange(rollout * size, (rollout + 1) * size)]

    def prompt(self, slot: int) -> Prompt:
        """The prompt in slot `slot` of the endless list."""
        round_, place = divmod(slot, len(self.prompts))
        order = np.random.default_rng([self.config.seed, round_]).permutation(len(self.prompts))
        return self.prompts[order[place]]

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        """The rows of the rollout in hand that stand in these slots; a new rollout is sampled when its turn comes."""
        number = int(examples[0]) // self.config.batch_size
        if number != self.number:
            self.number, self.steps_taken = number, 0
            self.begin(number)
        self.steps_taken += 1
        return examples % self.config.batch_size, float(len(examples) * self.config.num_samples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row of the rollout in hand. (B,)"""
        return row_lengths(self.rollout.data, self.layout)

    @property
    def is_spent(self) -> bool:
        """Whether all steps of the rollout in hand have been taken."""
        return self.steps_taken == self.steps_per_rollout

    def describe(self, examples: np.ndarray) -> str:
        return f"the answers of rollout {int(examples[0]) // self.config.batch_size}"

    def identity(self) -> dict[str, Any]:
        text = json.dumps(self.prompts, sort_keys=True, default=str)
        prompts = hashlib.sha256(text.encode()).hexdigest()
        return {"prompts": prompts, "reference": fingerprint(self.reference), "method": type(self).__name__}

    # ── what their answers are worth ─────────────────────────────────────────────────────────────────────────────

    def begin(self, number: int) -> None:
        """Sample rollout `number` and find out what does not change while it is learnt from."""
        first = number * self.config.batch_size
        prompts = [self.prompt(slot) for slot in range(first, first + self.config.batch_size)]
        self.rollout = sample_rollout(self.policy, self.tokenizer, prompts, self.config, seed=self._seed(number))
        self.meter.count_rollout(self.rollout.num_tokens, self.config.batch_size * self.config.num_samples)
        self.layout: Layout = self._layout(self.rollout)
        self.rewards = torch.from_numpy(self.rollout.rewards_by(self.reward))  # (B, K) float64
        self.extra = self._watched(self.rollout)
        self.extra |= {"answer_length": self.rollout.data.completion_lengths, "finished": self.rollout.is_finished()}
        self.reference_logps = self._score(lambda batch: token_logps(self.reference, batch), self.rollout)  # (A, T)

    def _score(self, function: Callable[[Batch], Tensor], rollout: Rollout) -> Tensor:
        return score_tokens(function, rollout, self.config, layout=self._layout(rollout), device=self.device)

    def _layout(self, rollout: Rollout) -> Layout:
        return usable_layout(self.policy, self.config.layout, rollout.data)

    def _watched(self, rollout: Rollout) -> dict[str, np.ndarray]:
        return {name: rollout.rewards_by(other) for name, other in self.watch.items()}

    def _seed(self, number: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])

    def answer_metrics(self, rows: np.ndarray, kl: Tensor, logps: Tensor) -> dict[str, Tensor]:
        """What is logged of the answers to some prompts, summed: kl and logps (B, K) are of whole answers."""
        rewards, lengths = self.rewards[rows], torch.from_numpy(self.rollout.data.completion_lengths[rows])
        kl, logps = kl.double().cpu(), logps.double().cpu()
        objective = rewards - self.config.beta * kl
        metrics = {"reward": rewards, "kl": kl, "objective": objective, "entropy": -logps / lengths}
        metrics |= {name: torch.from_numpy(np.asarray(values[rows], np.float64)) for name, values in self.extra.items()}
        return {name: value.sum().to(self.device, torch.float32) for name, value in metrics.items()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        """One answer to each held-out prompt: its reward, its KL, and what is watched."""
        if not self.held:
            return {}, ()
        with self.meter.paused():
            rollout = sample_rollout(
                self.policy, self.tokenizer, self.held, self.config, seed=self._seed(2**31), num_samples=1
            )
            ratios = self._score(lambda batch: token_logps(self.policy, batch), rollout)
            ratios -= self._score(lambda batch: token_logps(self.reference, batch), rollout)
            found = {"reward": rollout.rewards_by(self.reward)[:, 0], "kl": ratios.sum(1).double().numpy()}
            found["objective"] = found["reward"] - self.config.beta * found["kl"]
            found |= {"answer_length": rollout.data.completion_lengths, "finished": rollout.is_finished()}
            found |= self._watched(rollout)
        return {name: float(np.mean(values)) for name, values in found.items()}, ()


class RLOOObjective(RolloutObjective):
    """One step per rollout; the baseline is the mean reward of the prompt's other answers."""

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = make_batch(self.rollout.data, rows, self.layout).to(device)
        with autocast(device, self.config.precision):
            logps = sum_per_sequence(scorer(batch), batch)  # (B, K)
        answers = answer_rows(rows, self.config.num_samples)
        reference = self.reference_logps[answers].sum(-1).view(logps.shape).to(device)
        kl = logps.detach() - reference
        returns = self.rewards[rows].to(device, torch.float32) - self.config.beta * kl
        losses = reinforce_loss(logps, leave_one_out_advantages(returns))
        metrics = self.answer_metrics(rows, kl, logps.detach())
        metrics["policy_loss"] = losses.detach().sum()
        return losses.sum(), metrics | {"loss": metrics["policy_loss"]}


class ClippedObjective(RolloutObjective):
    """Several passes over each rollout in minibatches, bounded by the clip."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.config: ClippedConfig
        self.steps_per_rollout = self.config.passes * self.config.minibatches

    def steps(self, rollout: int) -> list[np.ndarray]:
        size, generator = self.config.batch_size, np.random.default_rng([self.config.seed, rollout, 1])
        orders = [rollout * size + generator.permutation(size) for _ in range(self.config.passes)]
        return [part for order in orders for part in np.array_split(order, self.config.minibatches)]

    def begin(self, number: int) -> None:
        super().begin(number)
        self.mask = self.rollout.mask
        self.old_logps = self._score(lambda batch: token_logps(self.policy, batch), self.rollout)

    def clipped_metrics(self, rows: np.ndarray, batch: Batch, logps: Tensor, found: ClippedLoss) -> dict[str, Tensor]:
        """`answer_metrics`, with how far the policy has gone from the one that sampled."""
        answers = answer_rows(rows, self.config.num_samples)
        logps_by_answer = sum_per_sequence(logps.detach(), batch)
        reference = self.reference_logps[answers].sum(-1).view(logps_by_answer.shape)
        old = self.old_logps[answers].sum(-1).view(logps_by_answer.shape)
        far = {"clip_fraction": found.is_clipped.float(), "approx_kl": found.kl}
        means = {name: mean_per_answer(value, batch) for name, value in far.items()}
        return self.answer_metrics(rows, old - reference, old) | means


def mean_per_answer(values: Tensor, batch: Batch) -> Tensor:
    """Per token (N,) → the mean over each answer's tokens, summed over the answers. ()"""
    return (sum_per_sequence(values, batch) / batch.lengths).sum()


class GRPOObjective(ClippedObjective):
    """Advantages relative to the prompt's other answers, the same for all tokens of an answer; no critic.

    The loss is (1/|y|) Σ_t [clipped loss of token t + β·reference_penalty], averaged over answers: Shao et al. 2024
    (arXiv 2402.03300), Eq. 3. So a token of a long answer counts less than one of a short answer.
    """

    def begin(self, number: int) -> None:
        super().begin(number)
        self.advantages = group_relative_advantages(self.rewards).float().view(-1, 1)  # (A, 1)

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = make_batch(self.rollout.data, rows, self.layout).to(device)
        with autocast(device, self.config.precision):
            logps = scorer(batch)  # (N,)
        answers = answer_rows(rows, self.config.num_samples)
        mask = self.mask[answers]
        tokens = lambda padded: padded[answers].expand(mask.shape)[mask].to(device)  # (A, T) → (N,)
        found = clipped_loss(logps, tokens(self.old_logps), tokens(self.advantages), clip=self.config.clip)
        policy_loss = mean_per_answer(found.loss, batch)
        penalty = mean_per_answer(reference_penalty(logps, tokens(self.reference_logps)), batch)
        loss = policy_loss + self.config.beta * penalty
        metrics = self.clipped_metrics(rows, batch, logps, found)
        return loss, metrics | {"policy_loss": policy_loss.detach(), "loss": loss.detach()}


class PPOObjective(ClippedObjective):
    """Advantages from a critic, token by token."""

    def __init__(self, *arguments: Any) -> None:
        *shared, critic = arguments
        super().__init__(*shared)
        self.critic: RewardModel = critic
        self.config: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def begin(self, number: int) -> None:
        super().begin(number)
        config = self.config
        values = self._score(self.critic.token_values, self.rollout)
        rewards = penalised_rewards(
            self.rewards.flatten().float(), self.old_logps, self.reference_logps, self.mask, beta=config.beta
        )
        advantages = generalised_advantages(rewards, values, self.mask, discount=config.discount, lam=config.gae_lambda)
        self.returns = advantages + values
        self.advantages = normalised(advantages, self.mask) if config.normalise_advantages else advantages

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        batch = make_batch(self.rollout.data, rows, self.layout).to(device)
        with autocast(device, config.precision):
            logps, values = scorer(batch)  # (N,) each
        answers = answer_rows(rows, config.num_samples)
        mask = self.mask[answers]
        tokens = lambda padded: padded[answers][mask].to(device)  # (A, T) → (N,)
        found = clipped_loss(logps, tokens(self.old_logps), tokens(self.advantages), clip=config.clip)
        of_values = value_loss(values, tokens(self.returns))
        policy_loss = found.loss.sum()
        # The critic's loss is a mean over an answer's tokens, the policy's a sum: that is its gradient.
        loss = policy_loss + config.value_weight * mean_per_answer(of_values, batch)
        metrics = self.clipped_metrics(rows, batch, logps, found)
        metrics |= {"policy_loss": policy_loss.detach(), "value_loss": mean_per_answer(of_values.detach(), batch)}
        return loss, metrics | {"loss": loss.detach()}
