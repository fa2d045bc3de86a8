"""Answers of mixed quality: what the base model is trained on, as real SFT models are.

Which mistakes are made, and how often, is data: `JobSpec.good_share` and the weights in each job's `flaws`.
"""

from __future__ import annotations

from random import Random

from dpo_lab.worlds.pocket import words
from dpo_lab.worlds.pocket.judge import SPECS
from dpo_lab.worlds.pocket.schema import Conversation

PADDED_SHARE = 0.15
"""Share of the mixture's prose answers that carry needless sentences."""


def write_answer(
    conversation: Conversation, rng: Random, quality: str = "mixed", *, good_share: float | None = None
) -> str:
    """An answer of this quality: `good`, `padded` (good, with needless sentences), `mixed`, or the name of a flaw.

    `mixed` is good with probability `good_share` (None: the job's own) and otherwise makes one of the mistakes that
    `flaw_names(conversation)` lists.
    """
    spec = SPECS[conversation.job]
    if quality == "good":
        return spec.good(conversation, rng)
    if quality == "padded":
        return _pad(conversation, spec.good(conversation, rng), rng)
    flaws = spec.flaws(conversation)
    if quality == "mixed":
        share = spec.good_share if good_share is None else good_share
        if rng.random() < share:
            answer = spec.good(conversation, rng)
        else:
            flaw = rng.choices(list(flaws.values()), [flaw.weight for flaw in flaws.values()])[0]
            answer = flaw.write(conversation, rng)
        return _pad(conversation, answer, rng) if rng.random() < PADDED_SHARE else answer
    if quality not in flaws:
        raise ValueError(
            f"quality {quality!r} is not known here; choose good, padded, mixed or one of {', '.join(flaws)}"
        )
    return flaws[quality].write(conversation, rng)


def flaw_names(conversation: Conversation) -> dict[str, str]:
    """The mistakes that can be made here, each with the judge's part that notices it."""
    return {name: flaw.part for name, flaw in SPECS[conversation.job].flaws(conversation).items()}


def _pad(conversation: Conversation, answer: str, rng: Random) -> str:
    """Needless sentences before or after; formats and calls, and rules that forbid them, are left alone."""
    rules = conversation.task.get("rules", {})
    if conversation.job == "format" or "<tool_call>" in answer or {"sign", "short", "one", "lower"} & set(rules):
        return answer
    filler = rng.choice(words.FILLERS)
    return f"{answer} {filler}" if rng.random() < 0.8 else f"{filler} {answer}"
