"""Settings of RLHF in two stages: a reward model, then PPO, RLOO or GRPO. Plain dataclasses without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpo_lab.config import ScheduleName, TrainingConfig, _Check


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainingConfig):
    """Settings of a reward model: a scalar head on the base model, trained on pairs."""

    learning_rate: float = 5e-4
    """Peak learning rate; a new head has far to go. Large pretrained models want about 1e-5."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(TrainingConfig):
    """What PPO, RLOO and GRPO share: how answers are sampled, and what drifting costs.

    An epoch is as many whole rollouts as the prompts fill. `group_by_length` has no say: prompts come as they come.
    """

    batch_size: int = 64
    """Prompts per rollout, whose answers are sampled at once from the policy as it stands."""
    num_samples: int = 1
    """Answers per prompt."""
    beta: float = 0.5
    """Price of drifting from the reference, per nat of KL: larger stays closer."""
    max_new_tokens: int = 128
    """Most tokens of a sampled answer; one that is cut off there has no end token."""
    sampling_batch_size: int = 256
    """Answers that are sampled side by side; changes speed and memory, and which random numbers an answer gets."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises from zero."""
    schedule: ScheduleName = "constant"
    """How the learning rate falls after the warm-up: to zero, or not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = _Check(self)
        check("num_samples", self.num_samples >= 1, "must be at least 1", "each prompt needs an answer")
        check("beta", 0 <= self.beta < math.inf, "must be finite and not negative",
              "0 lets the policy drift for free, 0.05 to 0.5 are usual")  # fmt: skip
        check("max_new_tokens", 1 <= self.max_new_tokens < self.max_length, "must be at least 1 and below max_length",
              "the prompt needs room too")  # fmt: skip
        check("sampling_batch_size", self.sampling_batch_size >= 1, "must be at least 1", "256 is the usual start")
        check("dropout", not self.dropout, "must be off where a policy learns from its own answers",
              "they are sampled without dropout, and the gradient must be of the policy that sampled them")  # fmt: skip
        check("precision", self.precision != "float16", "float16 needs loss scaling, which these losses lack",
              "choose bfloat16 or float32")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(PolicyGradientConfig):
    """Settings of RLOO: REINFORCE, its baseline the mean reward of the prompt's other answers; one step a rollout."""

    num_samples: int = 4
    """Answers per prompt; each is compared with the mean of the others, so at least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _Check(self)("num_samples", self.num_samples >= 2, "must be at least 2",
                     "an answer is compared with the prompt's other answers; 2 to 8 are usual")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClippedConfig(PolicyGradientConfig):
    """What PPO and GRPO share: several steps on the answers of a rollout, and a clip that bounds them."""

    passes: int = 2
    """How often the answers of a rollout are learnt from before new ones are sampled."""
    minibatches: int = 2
    """Optimiser steps per pass: the rollout's prompts are dealt out to so many."""
    clip: float = 0.2
    """How far the probability of a token may move, as a share of what it was, before it stops paying."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = _Check(self)
        check("passes", self.passes >= 1, "must be at least 1", "2 to 4 are usual")
        check("minibatches", 1 <= self.minibatches <= self.batch_size, "must lie between 1 and batch_size",
              "each needs at least one prompt")  # fmt: skip
        check("clip", 0 < self.clip < 1, "must lie in (0, 1)", "0.2 is usual")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(ClippedConfig):
    """Settings of GRPO: advantages relative to the prompt's other answers, clipping, a price on the KL per token."""

    num_samples: int = 8
    """Answers per prompt, its group; at least 2."""
    passes: int = 1
    """How often the answers of a rollout are learnt from before new ones are sampled."""
    minibatches: int = 1
    """Optimiser steps per pass: the rollout's prompts are dealt out to so many."""
    beta: float = 0.04
    """Price of drifting from the reference, per nat of KL of a mean token, beside advantages of deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _Check(self)("num_samples", self.num_samples >= 2, "must be at least 2",
                     "an answer is compared with the prompt's other answers; 8 to 64 are usual")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ClippedConfig):
    """Settings of PPO as in RLHF: a KL penalty per token, a critic, GAE, clipping, several passes over a rollout."""

    discount: float = 1.0
    """γ: what a reward one token later counts. 1 is usual for answers that end."""
    gae_lambda: float = 0.95
    """λ: 1 trusts the rewards that were seen (no bias, more noise), 0 the critic."""
    value_weight: float = 0.1
    """Weight of the critic's loss beside the policy's."""
    normalise_advantages: bool = True
    """Shift and scale a rollout's advantages to mean 0 and deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = _Check(self)
        check("discount", 0 < self.discount <= 1, "must lie in (0, 1]", "1 is usual")
        check("gae_lambda", 0 <= self.gae_lambda <= 1, "must lie in [0, 1]", "0.95 is usual")
        check("value_weight", 0 < self.value_weight < math.inf, "must be positive and finite", "0.1 is usual")
