"""What says which answer is better: scores of single answers, or preferences between two. Any function can be a judge.

    judge(prompts, answers) → n numbers            n rows with a prompt and n `Completion`s; higher is better
    judge(prompt, first, second) → from 0 to 1     two texts; 1 the first is better, 0 the second, ½ a tie

The first is what the reward functions of RLHF are, so a learnt reward model is a judge too. The second is called on
every two answers to a prompt, in both orders: K·(K − 1) times for K answers. P prompts with K answers each.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from dpo_lab.logprobs import score
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.sampling import Completion
from dpo_lab.worlds.instructions import Task
from dpo_lab.worlds.instructions import judge as judge_task
from dpo_lab.worlds.pocket.judge import judge as judge_conversation
from dpo_lab.worlds.pocket.schema import Conversation

Row = Mapping[str, Any]
Judge = Callable[..., Any]
"""One of the two functions above, or an object with `compare`, as `EndpointJudge`."""
Question = tuple[Row, str, str]
"""A row with a prompt, and the two texts to compare, in the order in which they are shown."""


class Comparer(Protocol):
    """A judge that answers many questions at once."""

    def compare(self, questions: Sequence[Question]) -> list[float | None]:
        """How likely the first text is the better one, for each question; None where no verdict came."""
        ...

    def counts(self) -> dict[str, float]:
        """What the last call of `compare` cost, as metrics."""
        ...


class Verdicts(NamedTuple):
    """What a judge said of the answers to P prompts."""

    scores: np.ndarray
    """(P, K) float64. Of preferences: the share of a prompt's other answers that each answer beats, a tie as half."""
    counts: dict[str, float]
    """What it took, as metrics; empty for a judge of single answers."""
    comparisons: list[list[list[Any]]]
    """For each prompt: [i, j, how i did when shown first, and when shown second]. Empty for a judge of single answers.
    Each is 1, ½ or 0, or None where no verdict came."""


def judge_answers(judge: Judge | Comparer, rows: Sequence[Row], answers: Sequence[Sequence[Completion]]) -> Verdicts:
    """The judge's verdicts on K answers to each row. ValueError where it gives what is no verdict."""
    if hasattr(judge, "compare"):
        return _tournament(judge, rows, answers)  # pyright: ignore[reportArgumentType]
    if is_pairwise(judge):
        return _tournament(_Function(judge), rows, answers)  # pyright: ignore[reportArgumentType]
    flat = [answer for own in answers for answer in own]
    repeated = [row for row, own in zip(rows, answers, strict=True) for _ in own]
    values = np.asarray(judge(repeated, flat), np.float64)  # pyright: ignore[reportCallIssue]
    if values.shape != (len(flat),):
        raise ValueError(
            f"the judge must give one number per answer, shape ({len(flat)},), got {values.shape}; return a list in "
            "the order of the answers, or take (prompt, first, second) and return a preference"
        )
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"the score of answer {worst} must be finite, got {values[worst]} for {flat[worst].text!r}; "
                         "give a low number to what should be avoided")  # fmt: skip
    return Verdicts(values.reshape(len(rows), -1), {}, [])


def is_pairwise(judge: Any) -> bool:
    """Whether a judge compares two answers. ValueError where it is no judge."""
    if hasattr(judge, "compare"):
        return True
    if callable(judge):
        needed = [p for p in inspect.signature(judge).parameters.values() if p.default is p.empty and p.kind < 2]
        if len(needed) in (2, 3):
            return len(needed) == 3
    raise ValueError(
        f"a judge takes (prompts, answers) or (prompt, first, second), got {judge!r}; write such a function"
    )


class _Function:
    """A function (prompt, first, second) as a `Comparer`."""

    def __init__(self, judge: Callable[[Any, str, str], Any]) -> None:
        self.judge = judge

    def compare(self, questions: Sequence[Question]) -> list[float | None]:
        found: list[float | None] = []
        for row, first, second in questions:
            value = self.judge(row["prompt"], first, second)
            if not isinstance(value, float | int | np.number) or not 0 <= value <= 1:
                raise ValueError(f"a judge of two answers must return a number from 0 (the second is better) to 1 (the "
                                 f"first), got {value!r}; 0.5 is a tie")  # fmt: skip
            found.append(float(value))
        return found

    def counts(self) -> dict[str, float]:
        return {}


def _tournament(judge: Comparer, rows: Sequence[Row], answers: Sequence[Sequence[Completion]]) -> Verdicts:
    """Every two answers to a prompt in both orders. An answer wins where both orders prefer it, as in
    `evaluation.win_rate`; where they disagree, or a verdict is missing, it is half a win for each."""
    texts = [[answer.text for answer in own] for own in answers]
    pairs = [(p, i, j) for p, own in enumerate(texts) for i, j in combinations(range(len(own)), 2) if own[i] != own[j]]
    orders = [[(rows[p], texts[p][i], texts[p][j]), (rows[p], texts[p][j], texts[p][i])] for p, i, j in pairs]
    said = [None if value is None else float(np.sign(value - 0.5) + 1) / 2
            for value in judge.compare([question for both in orders for question in both])]  # fmt: skip
    wins = np.full((len(texts), len(texts[0])), (len(texts[0]) - 1) / 2)  # all ties
    comparisons: list[list[list[Any]]] = [[] for _ in texts]
    disagreements = missing = 0
    for (p, i, j), first, other in zip(pairs, said[::2], said[1::2], strict=True):
        second = None if other is None else 1 - other
        comparisons[p].append([i, j, first, second])
        missing += first is None or second is None
        disagreements += first is not None and second is not None and first != second
        if first is not None and first == second:
            wins[p, i] += first - 0.5
            wins[p, j] -= first - 0.5
    counts = {"comparisons": len(pairs), "disagreements": disagreements, "without_verdict": missing} | judge.counts()
    return Verdicts(wins / (len(texts[0]) - 1), {f"judge/{name}": float(n) for name, n in counts.items()}, comparisons)


# ── judges of single answers ─────────────────────────────────────────────────────────────────────────────────────────


def true_reward(prompts: Sequence[Row], answers: Sequence[Completion]) -> list[float]:
    """The pocket world's true reward. Prompts are rows that hold its `job` and `task`, as the embedded pairs do."""
    for row in prompts:
        if not ("task" in row and "job" in row):
            raise ValueError(f"the true reward needs rows of the pocket world, with job and task, got a row of "
                             f"{', '.join(row)}; take the embedded pairs, or another judge")  # fmt: skip
    rewards = (
        judge_conversation(Conversation.from_row(row), one.text) for row, one in zip(prompts, answers, strict=True)
    )
    return [verdict.reward for verdict in rewards]


class InstructionReward:
    """The share of a task's demands that an answer meets; −1 where it doesn't answer. Prompts are `task.row()`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = {json.dumps(task.row()["prompt"]): task for task in tasks}

    def __call__(self, prompts: Sequence[Row], answers: Sequence[Completion]) -> list[float]:
        found = [judge_task(self.tasks[json.dumps(row["prompt"])], answer.text)
                 for row, answer in zip(prompts, answers, strict=True)]  # fmt: skip
        return [verdict.score if verdict.answers else -1.0 for verdict in found]


class ImplicitReward:
    """What the policy itself says: β·log π(y|x)/π_ref(y|x) − length_price·|y|, with π as it is when it is called.

    A policy that has learnt from preferences is a reward model up to a term of the prompt alone, so it can judge its
    own answers (DICE: Chen et al. 2024, arXiv 2406.09760, Eq. 5). Where π = π_ref every reward is 0, and no two answers
    differ: the reference must be what the policy was before it learnt. The paper's length regularisation keeps long
    answers from winning by their length; a larger `length_price` favours shorter ones. 0 leaves it out.
    """

    def __init__(
        self, policy: nn.Module, reference: nn.Module, tokenizer: Any,
        *, beta: float = 0.1, length_price: float = 0.0, max_length: int = 1024, **scoring: Any,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.tokenizer = policy, reference, tokenizer
        self.beta, self.length_price, self.max_length, self.scoring = beta, length_price, max_length, scoring

    def __call__(self, prompts: Sequence[Row], answers: Sequence[Completion]) -> np.ndarray:
        rows = []
        for row, answer in zip(prompts, answers, strict=True):
            prompt = encode_prompt(row, self.tokenizer, max(1, self.max_length - len(answer.ids)))
            rows.append((prompt, (answer.ids,)))
        data = TokenData.from_rows(rows)
        own, frozen = (score(model, data, **self.scoring)[:, 0] for model in (self.policy, self.reference))
        return self.beta * (own - frozen) - self.length_price * data.completion_lengths[:, 0]
