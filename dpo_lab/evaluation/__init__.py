"""How good is a policy, how far has it gone from its reference, and what did it learn to reward?

    pairs.py           loss, accuracy, margins and rewards on preference pairs
    kl.py              KL from the reference, on sampled answers
    token_rewards.py   the implicit reward of every single token
    decision.py        where in an answer the decision falls
    reward_quality.py  implicit against true rewards: calibration, rank correlation, what length explains
    ranking.py         the policy as a reward model: fresh answers, best of n
    matched_kl.py      several methods compared at the same KL, with intervals over seeds
    blocks.py          methods that shared their seeds: which differences are larger than a seed's luck
    jobs.py            the judge's verdicts split into the numbers of each job: tool calls, refusals, attacks
    kept_jobs.py       the same from the kept results of data/experiments/jobs.py

Implicit rewards are β·log(π/π_ref), so β is in them; log-probs and KL are in nats.
"""

from dpo_lab.evaluation.blocks import Difference, differences_from, student_quantile
from dpo_lab.evaluation.decision import margin_by_position, margin_parts, tokens_for_half
from dpo_lab.evaluation.kl import Estimate, kl_from_reference, kl_of_samples
from dpo_lab.evaluation.matched_kl import (
    SeedInterval,
    compare_along,
    compare_at_kl,
    curves_of,
    reach,
    reward_at_kl,
    rewards_at_kl,
    seed_interval,
    sentence,
)
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
from dpo_lab.evaluation.ranking import answer_rewards, best_of_n
from dpo_lab.evaluation.reward_quality import (
    Calibration,
    Interval,
    LengthShare,
    agreement,
    calibration,
    coin_sides,
    fit_temperature,
    length_matched,
    length_share,
    partial_rank_correlation,
    per_group,
    rank_correlation,
    sigmoid,
)
from dpo_lab.evaluation.token_rewards import PairTokens, TokenRewards, token_rewards

__all__ = [
    "ROUNDING",
    "Calibration",
    "Difference",
    "Estimate",
    "Interval",
    "LengthShare",
    "Loss",
    "PairEvaluation",
    "PairTokens",
    "SeedInterval",
    "TokenRewards",
    "agreement",
    "answer_rewards",
    "best_of_n",
    "calibration",
    "coin_sides",
    "compare_along",
    "compare_at_kl",
    "curves_of",
    "differences_from",
    "evaluate",
    "evaluate_scores",
    "fit_temperature",
    "kl_from_reference",
    "kl_of_samples",
    "length_matched",
    "length_share",
    "margin_by_position",
    "margin_parts",
    "pair_metrics",
    "pair_scores_of",
    "partial_rank_correlation",
    "per_group",
    "rank_correlation",
    "reach",
    "reward_at_kl",
    "reward_beta",
    "rewards_at_kl",
    "scored_lengths",
    "seed_interval",
    "sentence",
    "sigmoid",
    "student_quantile",
    "token_rewards",
    "tokens_for_half",
    "usable_pairs",
]
