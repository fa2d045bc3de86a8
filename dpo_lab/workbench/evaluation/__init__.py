"""How good is a policy, how far has it gone from its reference, and what did it learn to reward?

    pairs.py           loss, accuracy, margins and rewards on preference pairs
    kl.py              KL from the reference, on sampled answers
    per_token.py       the implicit reward of every single token
    reward_quality.py  implicit against true rewards: calibration, rank correlation, what length explains
    ranking.py         the policy as a reward model: fresh answers, best of n
    suites.py          suites of sampled answers and of plain text: instructions followed, repetition, perplexity
    perplexity.py      nats per token of plain text and of good answers, against the reference
    head_to_head.py    win rates of two models under a judge, in both orders and at equal length
    intervals.py       means and shares with intervals over tasks

Implicit rewards are β·log(π/π_ref), so β is in them; log-probs and KL are in nats.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "head_to_head": "instructions_judge length_controlled_rate win_rate",
    "kl": "Estimate kl_from_reference kl_of_samples",
    "pairs": "evaluate usable_pairs",
    "perplexity": "perplexity_of standard_text text_blocks",
    "ranking": "answer_rewards best_of_n",
    "reward_quality":
        "Calibration Interval LengthShare agreement calibration coin_sides fit_temperature length_matched "
        "length_share partial_rank_correlation per_group rank_correlation sigmoid",
    "suites": "measures run_suites sample_answers",
    "per_token": "PairTokens TokenRewards token_rewards",
})  # fmt: skip
