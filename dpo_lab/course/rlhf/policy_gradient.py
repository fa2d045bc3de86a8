"""RLOO, PPO and GRPO over the same loop as DPO: sample, score, learn; again.

`train_rloo`, `train_ppo` and `train_grpo` check their arguments at once and return a stream of events; nothing is
sampled until the stream is read. What is learnt from is in `objectives`, its formulas in `estimators`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dpo_lab.course.rlhf.config import GRPOConfig, PolicyGradientConfig, PPOConfig, RLOOConfig
from dpo_lab.course.rlhf.costs import Meter
from dpo_lab.course.rlhf.objectives import ActorCritic, GRPOObjective, PPOObjective, RLOOObjective
from dpo_lab.course.rlhf.reward_model import RewardModel
from dpo_lab.course.rlhf.rewards import LearntReward, Reward
from dpo_lab.engine.engine import Engine
from dpo_lab.loop import Event, Finished, Step, optimise
from dpo_lab.models.inside import disable_dropout, pick_device
from dpo_lab.sampling import Prompt


def train_rloo(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt] | Any, reward: Reward,
    config: RLOOConfig | None = None,
    *, reference: nn.Module | None = None, watch: Mapping[str, Reward] | None = None,
    held_out: Sequence[Prompt] | Any | None = None, checkpoints: str | Path | None = None,
    resume: str | Path | None = None, stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Climb E[r] − β·KL with `model` (in place) by REINFORCE, each answer compared with its prompt's other answers.

    The loss is −A_i·log π(y_i|x) with A_i = R_i − mean_{j≠i} R_j and R = r − β·log π/π_ref of the whole answer;
    Ahmadian et al. 2024 (arXiv 2402.14740). One optimiser step per rollout, so the gradient is unbiased.

    prompts: rows, texts or token ids, as `generate` takes them. reward: see `rewards.Reward`.
    reference: the frozen model; None copies the policy as it is now. It scores answers that nobody could foresee, so
        unlike DPO's it stays in memory.
    watch: further rewards by name that are measured and not learnt from, such as {"true_reward": judge_reward}.
    held_out: prompts on which reward, KL and what is watched are measured at the start, at the end and every
        `config.evaluate_every` steps, one answer each.
    stop: called at the end of every rollout; True ends the run. resume: a checkpoint; the model must be as it was when
        the run began.

    Metrics: reward, kl (nats per answer), objective (reward − β·kl), entropy (nats per token, of the sampled ones),
    policy_loss, answer_length, finished (share with an end token), what is watched, and the costs (`costs.Meter`).
    """
    config = config or RLOOConfig()
    reference = _prepare(model, reference, prompts, reward, config, steps_per_rollout=1)
    meter = Meter(model, reference, *_models_in(reward))
    objective = RLOOObjective(model, reference, tokenizer, prompts, reward, config, watch, held_out, meter)
    engine = Engine.open(model, config)
    events = optimise(model, objective, engine, config, checkpoints=checkpoints, resume=resume, stop=stop)
    return _with_costs(events, meter)


def train_ppo(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt] | Any, reward: Reward,
    config: PPOConfig | None = None,
    *, reference: nn.Module | None = None, critic: RewardModel | None = None,
    watch: Mapping[str, Reward] | None = None, held_out: Sequence[Prompt] | Any | None = None,
    checkpoints: str | Path | None = None, resume: str | Path | None = None, stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Climb E[r] − β·KL with `model` (in place) by PPO as in RLHF; arguments and metrics as in `train_rloo`.

    Every token costs β·log π/π_ref, the last one earns r(x, y); a critic turns these into advantages (GAE), and the
    clipped loss learns from each rollout `config.passes` times. Ziegler et al. 2019 (arXiv 1909.08593), Ouyang et al.
    2022 (arXiv 2203.02155), Schulman et al. 2017 (arXiv 1707.06347). The policy's loss is summed over an answer's
    tokens and averaged over answers, which at the first step is the gradient of the objective; many implementations
    average over tokens. β is fixed and values are not clipped.

    critic: a model that guesses what is still to come, trained along. None puts a head of zeros on a copy of the
        policy; Ouyang et al. begin with a copy of the reward model.
    Further metrics: value_loss, clip_fraction (share of tokens whose gradient is cut), approx_kl (policy from the one
    that sampled, nats per token).
    """
    config = config or PPOConfig()
    steps_per_rollout = config.passes * config.minibatches
    reference = _prepare(model, reference, prompts, reward, config, steps_per_rollout=steps_per_rollout)
    critic = RewardModel.on(model, seed=None) if critic is None else critic
    if any(critic.backbone is other for other in (model, reference, *(m.backbone for m in _models_in(reward)))):
        raise ValueError("critic is trained and must be a model of its own; copy.deepcopy it first")
    both = ActorCritic(model, critic)
    meter = Meter(model, reference, critic, *_models_in(reward))
    objective = PPOObjective(model, reference, tokenizer, prompts, reward, config, watch, held_out, meter, critic)
    at_border = None if stop is None else lambda: objective.is_spent and stop()
    events = optimise(
        both, objective, Engine.open(both, config), config, scorer=both, checkpoints=checkpoints, resume=resume,
        stop=at_border,
    )  # fmt: skip
    return _with_costs(events, meter)


def train_grpo(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt] | Any, reward: Reward,
    config: GRPOConfig | None = None,
    *, reference: nn.Module | None = None, watch: Mapping[str, Reward] | None = None,
    held_out: Sequence[Prompt] | Any | None = None, checkpoints: str | Path | None = None,
    resume: str | Path | None = None, stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Climb the reward with `model` (in place) by GRPO; arguments and metrics as in `train_rloo`.

    Like RLOO it compares an answer with the prompt's others, but divides by their standard deviation; like PPO it takes
    several clipped steps on a rollout, without a critic. The KL is no part of the reward: each token pays
    β·(π_ref/π − log π_ref/π − 1). Shao et al. 2024 (arXiv 2402.03300). Further metrics: clip_fraction, approx_kl, as in
    `train_ppo`.
    """
    config = config or GRPOConfig()
    reference = _prepare(model, reference, prompts, reward, config,
                         steps_per_rollout=config.passes * config.minibatches)  # fmt: skip
    meter = Meter(model, reference, *_models_in(reward))
    objective = GRPOObjective(model, reference, tokenizer, prompts, reward, config, watch, held_out, meter)
    at_border = None if stop is None else lambda: objective.is_spent and stop()
    events = optimise(
        model, objective, Engine.open(model, config), config, checkpoints=checkpoints, resume=resume, stop=at_border
    )
    return _with_costs(events, meter)


def _prepare(
    model: nn.Module,
    reference: nn.Module | None,
    prompts: Any,
    reward: Reward,
    config: PolicyGradientConfig,
    *,
    steps_per_rollout: int,
) -> nn.Module:
    """Check what can be checked before anything is sampled, move the models, return the reference, frozen."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("policy gradient runs in one process here; start it without torchrun or accelerate launch")
    if not len(prompts):
        raise ValueError("there are no prompts to answer; give rows, texts or token ids")
    if not callable(reward):
        raise ValueError(f"reward must be a function (prompts, answers) -> (n,), got {reward!r}; judge_reward is one")
    if config.checkpoint_every is not None and config.checkpoint_every % steps_per_rollout:
        raise ValueError(
            f"checkpoint_every must be a multiple of the {steps_per_rollout} steps that learn from one rollout, got "
            f"{config.checkpoint_every}; elsewhere a resumed run would sample other answers"
        )
    device = pick_device(config.device)
    disable_dropout(model)
    model.to(device)
    frozen = copy.deepcopy(model).requires_grad_(False) if reference is None else reference.to(device)
    if frozen is model:
        raise ValueError("reference is the model that is trained; give a copy, or None to have one made")
    disable_dropout(frozen)
    return frozen.eval()


def _models_in(reward: Reward) -> list[RewardModel]:
    return [reward.model] if isinstance(reward, LearntReward) else []


def _with_costs(events: Iterator[Event], meter: Meter) -> Iterator[Event]:
    with meter:
        for event in events:
            if isinstance(event, Step | Finished):
                event = replace(event, metrics=event.metrics | meter.counts())
            with meter.paused():  # what the reader of the stream does with the model is no cost of training
                yield event
