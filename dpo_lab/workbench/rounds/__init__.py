"""DPO in rounds: sample answers, judge them, make pairs, learn from them, go on. Online, semi-online and offline DPO.

Read in this order: `config` (every setting), `pairing` (scores → pairs), `judges` (what says which answer is better),
`endpoint` (a judge behind an OpenAI chat endpoint), `training` (`train_rounds`).

    for event in train_rounds(policy, tokenizer, rows, true_reward): ...
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "config": "RoundsConfig",
    "endpoint": "EndpointJudge",
    "judges": "ImplicitReward InstructionReward Judge Verdicts judge_answers true_reward",
    "pairing": "make_pairs",
    "training": "Round train_rounds",
})  # fmt: skip
