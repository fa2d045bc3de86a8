"""RLHF in two stages, for comparison with DPO: a reward model learnt from pairs, then a policy that maximises it.

Read in this order: `reward_model` (a scalar head and the Bradley–Terry loss), `reward_training`,
`rewards` (any function of prompts and answers), `estimators` (the formulas of policy gradient), `rollouts` (sampled
answers), `objectives` (RLOO, PPO and GRPO as the loop takes them), `policy_gradient` (`train_rloo`, `train_ppo`,
`train_grpo`), `costs`, `config` (the settings of all). Then two methods without a second stage: `best_of_n` and
`unlikelihood_training`.

    reward_model = RewardModel.on(policy)
    for event in train_reward_model(reward_model, tokenizer, pairs): ...
    for event in train_rloo(policy, tokenizer, pairs, LearntReward(reward_model, tokenizer)): ...
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "best_of_n": "BestOfN best_of_n_kl best_of_n_kl_of_samples best_of_n_logps sample_best_of_n",
    "config": "GRPOConfig PPOConfig PolicyGradientConfig RLOOConfig RewardConfig",
    "costs": "Meter",
    "estimators":
        "clipped_loss generalised_advantages group_relative_advantages leave_one_out_advantages normalised "
        "penalised_rewards reference_penalty reinforce_loss value_loss",
    "policy_gradient": "train_grpo train_ppo train_rloo",
    "reward_model": "RewardModel bradley_terry_loss score_rewards",
    "reward_training": "bayes_accuracy evaluate_rewards train_reward_model",
    "rewards": "LearntReward Reward judge_reward",
    "unlikelihood_training": "train_unlikelihood unlikelihood",
})  # fmt: skip
