"""What answers are worth: any function of prompts and answers, the learnt reward and the true one among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpo_lab.course.rlhf.reward_model import RewardModel, score_rewards
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.sampling import Completion, Prompt, prompt_ids
from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.schema import Conversation

Reward = Callable[[Sequence[Prompt], Sequence[Completion]], Any]
"""(n prompts as they were given, n answers) → n numbers. A prompt with several answers comes several times."""


def rewards_of(reward: Reward, prompts: Sequence[Prompt], answers: Sequence[Completion]) -> np.ndarray:
    """The rewards of n answers, (n,) float64. Raises ValueError where it gives another number of numbers, or none."""
    values = np.asarray(reward(prompts, answers), np.float64)
    if values.shape != (len(answers),):
        raise ValueError(
            f"the reward must give one number per answer, shape ({len(answers)},), got {values.shape}; "
            "return a list or an array in the order of the answers"
        )
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"the reward of answer {worst} must be finite, got {values[worst]} for {answers[worst].text!r}; "
            "give a low number to what should be avoided"
        )
    return values


def rewards_of_samples(
    reward: Reward, prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]
) -> np.ndarray:
    """`rewards_of` K answers to each of P prompts. (P, K) float64"""
    repeated = [prompt for prompt, row in zip(prompts, answers, strict=True) for _ in row]
    return rewards_of(reward, repeated, [answer for row in answers for answer in row]).reshape(len(prompts), -1)


def judge_reward(prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[float]:
    """The pocket world's true reward. Prompts are rows that hold the judge's `task`, as the embedded pairs do."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if not isinstance(prompt, Mapping) or "task" not in prompt:
            raise ValueError(
                f"the judge needs rows with a task, got {type(prompt).__name__}; give rows of the embedded pairs, or "
                "conversation.row() of the pocket world"
            )
        found.append(judge(Conversation.from_row(prompt), answer.text).reward)
    return found


class LearntReward:
    """A reward model as a reward function. It reads the very tokens that were sampled, not their text anew."""

    def __init__(
        self,
        model: RewardModel,
        tokenizer: Any,
        *,
        max_length: int = 1024,
        tokens_per_pass: int = 16384,
        precision: str = "float32",
    ) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.options: dict[str, Any] = {"tokens_per_pass": tokens_per_pass, "precision": precision}

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[Completion]) -> np.ndarray:
        rows, known = [], {}
        for prompt, answer in zip(prompts, answers, strict=True):
            if id(prompt) not in known:  # the same prompt comes once per answer
                known[id(prompt)] = token_ids(prompt, self.tokenizer, self.max_length - 1)
            room = self.max_length - len(known[id(prompt)])
            rows.append((known[id(prompt)], (answer.ids[:room],)))
        return score_rewards(self.model, TokenData.from_rows(rows), **self.options)[:, 0]


def token_ids(prompt: Prompt, tokenizer: Any, max_length: int) -> list[int]:
    """A prompt as token ids; rows are shortened as in training where they are longer than `max_length`."""
    if isinstance(prompt, Mapping):
        return encode_prompt(prompt, tokenizer, max_length)
    ids = prompt_ids(prompt, tokenizer)
    if len(ids) > max_length:
        raise ValueError(f"a prompt has {len(ids)} tokens and may have {max_length}; raise max_length, or shorten it")
    return ids
