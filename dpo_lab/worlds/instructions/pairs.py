"""Preference pairs from a model's own answers: several answers to a task, judged, paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from random import Random
from typing import Any, Literal

from dpo_lab.worlds.instructions.judging import Verdict, judge
from dpo_lab.worlds.instructions.revising import revise
from dpo_lab.worlds.instructions.tasks import Task
from dpo_lab.worlds.instructions.text import words

How = Literal["near_length", "best_worst", "random"]
HOW: tuple[How, ...] = ("near_length", "best_worst", "random")


def pair_answers(
    tasks: Sequence[Task], answers: Sequence[Sequence[str]],
    *, how: How = "near_length", pairs_per_task: int = 1, revised: bool = False, least_gap: float = 0.3, seed: int = 0,
    judge: Callable[[Task, str], Verdict] = judge,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows with prompt, chosen and rejected for `load_preferences` and `train_dpo`, and what the judge said of each.

    answers: of each task, several sampled answers.
    revised: where the answers give no pair, those that a rule can rewrite so that they meet more (`revising.revise`)
        are chosen beside themselves as they were: what the model never does, sampling can't show.
    how: which of the better answers goes with which of the worse. "near_length" takes the two that are nearest in
        words, so that length says nothing; "best_worst" the highest and the lowest score; "random" any two.
    least_gap: the least difference in score, of at most 1. The chosen one must also be an answer.
    judge: another one than the world's.
    A row's `source` says where its chosen answer is from: "sampled" or "revised".
    No answer stands in two pairs of a task. A task all of whose answers score alike gives no pair.
    """
    if how not in HOW:
        raise ValueError(f"how {how!r} is not known; choose one of {', '.join(HOW)}")
    if len(tasks) != len(answers):
        raise ValueError(f"{len(tasks)} tasks and answers to {len(answers)}; give one list of answers per task")
    if not 0 < least_gap <= 1:
        raise ValueError(f"least_gap must be above 0 and at most 1, got {least_gap}; 0.3 is the usual start")
    rng, rows = Random(seed), []
    for number, (task, texts) in enumerate(zip(tasks, answers, strict=True)):
        own = [(text, judge(task, text), "sampled") for text in dict.fromkeys(texts)]
        options = [
            (good, bad) for good in own if good[1].answers
            for bad in own if good[1].score - bad[1].score >= least_gap
        ]  # fmt: skip
        if revised and not options:
            rewritten = [(text := revise(task, old), judge(task, text), "revised") for old, _, _ in own]
            options = [
                (good, bad) for good, bad in zip(rewritten, own, strict=True)
                if good[1].answers and good[1].score - bad[1].score >= least_gap
            ]  # fmt: skip
        rng.shuffle(options)
        if how == "near_length":
            options.sort(key=lambda option: abs(_log_length(option[0][0]) - _log_length(option[1][0])))
        elif how == "best_worst":
            options.sort(key=lambda option: option[1][1].score - option[0][1].score)
        used: set[str] = set()
        taken = 0
        for good, bad in options:
            if taken < pairs_per_task and not {good[0], bad[0]} & used:
                used |= {good[0], bad[0]}
                taken += 1
                rows.append(_row(task, number, good, bad))
    return rows


def _log_length(text: str) -> float:
    return log(len(words(text)) + 1)


def _row(task: Task, number: int, good: Any, bad: Any) -> dict[str, Any]:
    return {
        "prompt": task.prompt,
        "chosen": [{"role": "assistant", "content": good[0]}],
        "rejected": [{"role": "assistant", "content": bad[0]}],
        "task": number, "section": task.section, "kinds": [demand.kind for demand in task.demands],
        "source": good[2], "score_chosen": round(good[1].score, 3), "score_rejected": round(bad[1].score, 3),
    }  # fmt: skip
