"""What a model answers to held-out prompts, and what that is truly worth where a judge knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lab.models.inside import position_limit
from dpo_lab.preferences.chat import completion_text, prompt_text
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.sampling import Completion, generate_ids
from dpo_lab.workbench.runs.settings import HeldOutSettings
from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.schema import Conversation

Row = Mapping[str, Any]


def longest_prompt(model: Any, max_length: int, max_new_tokens: int) -> int:
    """Most tokens of a prompt that is to be answered: where positions are a table, up to half of it is the answer's."""
    limit = position_limit(model)
    return max_length if limit is None else min(max_length, limit - min(max_new_tokens, limit // 2))


def answer_rows(
    model: Any, tokenizer: Any, rows: Sequence[Row], settings: HeldOutSettings, *, max_length: int, seed: int
) -> list[str]:
    """One answer to each row's prompt, sampled as the settings say; the same seed gives the same answers."""
    return [one.text for one in sample_answers(model, tokenizer, rows, settings, max_length=max_length, seed=seed)[1]]


def sample_answers(
    model: Any, tokenizer: Any, rows: Sequence[Row], settings: HeldOutSettings, *, max_length: int, seed: int
) -> tuple[list[list[int]], list[Completion]]:
    """As `answer_rows`, with token ids: the prompts', and the answers."""
    longest = longest_prompt(model, max_length, settings.max_new_tokens)
    prompts = [encode_prompt(dict(row), tokenizer, longest) for row in rows]
    answers = generate_ids(
        model, tokenizer, prompts, max_new_tokens=settings.max_new_tokens, temperature=settings.sample_temperature,
        seed=seed,
    )  # fmt: skip
    return prompts, [one for (one,) in answers]


def true_reward(row: Row, answer: str) -> float | None:
    """What the pocket world's judge gives an answer; None where the row is not from that world."""
    return judge(Conversation.from_row(row), answer).reward if "task" in row and "job" in row else None


def well_formed_share(rows: Sequence[Row], texts: Sequence[str]) -> float | None:
    """The share of answers whose sentences and JSON are whole, of the pocket world; None where rows are not from it."""
    if not rows or not all("task" in row and "job" in row for row in rows):
        return None
    return quality([Conversation.from_row(row) for row in rows], texts)["well_formed"]


def sample_row(
    row: Row, before: str, after: str, reward_before: float | None = None, reward_after: float | None = None
) -> dict[str, Any]:
    """A line of samples.jsonl: prompt, answers before and after, the pair's own answers, and true rewards if known."""
    line: dict[str, Any] = {"prompt": prompt_text(row), "before": before, "after": after}
    line |= {side: completion_text(row, side) for side in ("chosen", "rejected") if side in row}
    rewards = {"reward_before": reward_before, "reward_after": reward_after}
    return line | {name: reward for name, reward in rewards.items() if reward is not None}
