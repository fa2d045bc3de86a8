"""A world for real models whose reward can be computed: requests with demands that a program can check.

`draw` gives tasks, `judge` says which demands an answer meets and why, `pair_answers` makes preference pairs of a
model's own answers. Everything comes from a seed. No torch, no tokens.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "tasks": "GROUPS SECTIONS Demand Task draw", "judging": "Verdict judge no_answer", "kinds": "KINDS Kind",
    "topics": "TEST_TOPICS TOPICS TRAIN_TOPICS", "pairs": "HOW pair_answers", "safety": "is_refusal",
})  # fmt: skip
