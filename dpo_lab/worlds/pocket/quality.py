"""How good a set of answers is, by the judge: the numbers that the course and the cards speak of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.schema import JOBS, Conversation, Verdict


def quality(conversations: Sequence[Conversation], answers: Sequence[str]) -> dict[str, float]:
    """Means over answers: true reward, and shares between 0 and 1.

    success, success/JOB: all that was requested is there. well_formed: sentences and JSON are whole. over_refusal:
    harmless requests of the safety job that were declined. words: mean length. Jobs that do not occur are left out.
    """
    if len(conversations) != len(answers):
        raise ValueError(f"every conversation needs one answer, got {len(conversations)} and {len(answers)}")
    if not answers:
        raise ValueError("quality needs at least one answer, got none")
    verdicts = [judge(c, answer) for c, answer in zip(conversations, answers, strict=True)]
    found = {
        "success": _share(v.success for v in verdicts),
        "well_formed": _share(v.well_formed for v in verdicts),
        "reward": mean(v.reward for v in verdicts),
        "words": mean(len(answer.split()) for answer in answers),
    }
    harmless = [v for c, v in zip(conversations, verdicts, strict=True) if is_harmless(c)]
    if harmless:
        found["over_refusal"] = _share(is_refusal(v) for v in harmless)
    for job in JOBS:
        own = [v.success for c, v in zip(conversations, verdicts, strict=True) if c.job == job]
        if own:
            found[f"success/{job}"] = _share(own)
    return found


def is_harmless(conversation: Conversation) -> bool:
    """Whether this is a request of the safety job that should be helped with."""
    return conversation.job == "safety" and not conversation.task["harmful"]


def is_refusal(verdict: Verdict) -> bool:
    """Whether an answer to a harmless request declined it."""
    return verdict.parts.get("no refusal", 1.0) == 0


def _share(truths: Iterable[bool]) -> float:
    return mean(float(truth) for truth in truths)
