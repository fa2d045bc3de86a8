"""The longer road, for comparison with DPO: a reward model learnt from pairs, then a policy that climbs it.

Read in this order: `reward_model` (a scalar head and the Bradley–Terry loss), `reward_training`,
`rewards` (any function of prompts and answers), `estimators` (the formulas of policy gradient), `rollouts` (sampled
answers), `works` (RLOO and PPO as the loop wants them), `policy_gradient` (`train_rloo`, `train_ppo`), `costs`. Then
the shorter roads beside DPO: `best_of_n` and `unlikelihood`.

    reward_model = RewardModel.on(policy)
    for event in train_reward_model(reward_model, tokenizer, pairs): ...
    for event in train_rloo(policy, tokenizer, pairs, LearntReward(reward_model, tokenizer)): ...
"""

from dpo_lab.rlhf.best_of_n import (
    BestOfN,
    best_of_n_kl,
    best_of_n_kl_of_samples,
    best_of_n_logps,
    sample_best_of_n,
)
from dpo_lab.rlhf.config import PolicyGradientConfig, PPOConfig, RewardConfig, RLOOConfig
from dpo_lab.rlhf.costs import Meter
from dpo_lab.rlhf.estimators import (
    clipped_loss,
    generalised_advantages,
    leave_one_out_advantages,
    normalised,
    penalised_rewards,
    reinforce_loss,
    value_loss,
)
from dpo_lab.rlhf.policy_gradient import train_ppo, train_rloo
from dpo_lab.rlhf.reward_model import RewardModel, bradley_terry_loss, score_rewards
from dpo_lab.rlhf.reward_training import bayes_accuracy, evaluate_rewards, train_reward_model
from dpo_lab.rlhf.rewards import LearntReward, Reward, judge_reward
from dpo_lab.rlhf.unlikelihood import train_unlikelihood, unlikelihood

__all__ = [
    "BestOfN",
    "LearntReward",
    "Meter",
    "PPOConfig",
    "PolicyGradientConfig",
    "RLOOConfig",
    "Reward",
    "RewardConfig",
    "RewardModel",
    "bayes_accuracy",
    "best_of_n_kl",
    "best_of_n_kl_of_samples",
    "best_of_n_logps",
    "bradley_terry_loss",
    "clipped_loss",
    "evaluate_rewards",
    "generalised_advantages",
    "judge_reward",
    "leave_one_out_advantages",
    "normalised",
    "penalised_rewards",
    "reinforce_loss",
    "sample_best_of_n",
    "score_rewards",
    "train_ppo",
    "train_reward_model",
    "train_rloo",
    "train_unlikelihood",
    "unlikelihood",
    "value_loss",
]
