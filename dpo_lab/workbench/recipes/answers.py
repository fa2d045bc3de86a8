"""What a model answers to held-out prompts, and what that is truly worth where a judge knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lab.models.inside import position_limit
from dpo_lab.preferences.chat import completion_text, prompt_text
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.sampling import generate
from dpo_lab.workbench.recipes.recipe import Recipe
from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.schema import Conversation

Row = Mapping[str, Any]


def answer_rows(model: Any, tokenizer: Any, rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """One answer to each row's prompt, sampled as the recipe says; the same seed gives the same answers."""
    if not rows:
        return []
    longest, limit = recipe.config.max_length, position_limit(model)
    if limit is not None:  # where positions are a table, up to half of it is the answer's
        longest = min(longest, limit - min(recipe.max_new_tokens, limit // 2))
    texts = generate(
        model, tokenizer, [encode_prompt(dict(row), tokenizer, longest) for row in rows],
        max_new_tokens=recipe.max_new_tokens, temperature=recipe.sample_temperature, seed=recipe.config.seed,
    )  # fmt: skip
    return [str(text) for text in texts]


def true_reward(row: Row, answer: str) -> float | None:
    """What the pocket world's judge gives an answer; None where the row is not from that world."""
    if not ("task" in row and "job" in row):
        return None
    return judge(Conversation.from_row(row), answer).reward


def sample_rows(
    rows: Sequence[Row],
    before: Sequence[str],
    after: Sequence[str],
    *,
    rewards_before: Sequence[float | None] = (),
    rewards_after: Sequence[float | None] = (),
) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: prompt, answers before and after, the pair's own answers, and true rewards if known."""
    lines = []
    for i, row in enumerate(rows):
        line: dict[str, Any] = {"prompt": prompt_text(row), "before": before[i], "after": after[i]}
        line |= {side: completion_text(row, side) for side in ("chosen", "rejected") if side in row}
        for name, rewards in (("reward_before", rewards_before), ("reward_after", rewards_after)):
            if i < len(rewards) and rewards[i] is not None:
                line[name] = rewards[i]
        lines.append(line)
    return lines
