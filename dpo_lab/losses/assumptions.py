"""What each loss takes for granted about its labels: the sentence to check against your data before choosing it."""

from __future__ import annotations

ASSUMES: dict[str, str] = {
    "dpo": "Labels are Bradley–Terry votes; a pair on which all agree may be pulled apart without end.",
    "cdpo": "Every label is right with the same probability 1 − ε.",
    "robust": "Labels are flipped at a known rate ε, whatever the pair.",
    "ipo": "A vote is worth a fixed gap, sure or not; nothing is said about Bradley–Terry.",
    "hinge": "A margin of 1 is enough, for every pair.",
    "sigmoid_norm": "What is good shows in every token; length should earn nothing.",
    "exo_pair": "Labels as in cdpo; few good answers are better than some of all.",
    "nca_pair": "Chosen answers are good, not only better than the rejected ones.",
    "bco_pair": "Chosen answers are good and rejected ones bad, each by itself.",
    "sppo_hard": "The chosen answer would win and the rejected one lose against the policy's usual answer.",
    "apo_zero": "Chosen answers are better than what the policy writes.",
    "apo_down": "Chosen answers are worse than what the policy writes, and the rejected ones more so.",
    "discopop": "Nothing: its shape was found by trying, on other data.",
    "dpop": "A chosen answer must never become less likely.",
    "rpo": "Chosen answers are worth imitating, every one.",
    "simpo": "Mean nats per token say how good an answer is; the start need not be remembered.",
    "orpo": "Chosen answers are worth imitating; task and preference are learnt in one go.",
    "cpo": "Chosen answers are worth imitating; all answers were as likely before.",
}
"""One sentence per entry of `LOSSES`, read from its formula and its paper's argument."""
