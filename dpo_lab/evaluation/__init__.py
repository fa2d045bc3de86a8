"""How good is a policy, how far has it gone from its reference, and what did it learn to reward?

    pairs.py           loss, accuracy, margins and rewards on preference pairs
    kl.py              KL from the reference, on sampled answers
    token_rewards.py   the implicit reward of every single token

Implicit rewards are β·log(π/π_ref), so β is in them; log-probs and KL are in nats.
"""

from dpo_lab.evaluation.kl import Estimate, kl_from_reference, kl_of_samples
from dpo_lab.evaluation.pairs import (
    ROUNDING,
    Loss,
    PairEvaluation,
    evaluate,
    evaluate_scores,
    pair_metrics,
    pair_scores_of,
    reward_beta,
    scored_lengths,
    usable_pairs,
)
from dpo_lab.evaluation.token_rewards import PairTokens, TokenRewards, token_rewards

__all__ = [
    "ROUNDING",
    "Estimate",
    "Loss",
    "PairEvaluation",
    "PairTokens",
    "TokenRewards",
    "evaluate",
    "evaluate_scores",
    "kl_from_reference",
    "kl_of_samples",
    "pair_metrics",
    "pair_scores_of",
    "reward_beta",
    "scored_lengths",
    "token_rewards",
    "usable_pairs",
]
