"""Checks for the notebook on DPO in rounds: pairs of scores, prompts that teach, a round with three planted bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, call, expect, right

_SCORES = np.array([[0.2, 2.0, -1.0, 1.0], [3.0, 3.0, 3.0, 3.0], [1.0, 1.4, 1.2, 1.1], [-2.0, 0.5, 0.5, 0.1]])
_PAIRS = {
    0.0: {0: (1, 2), 2: (1, 0), 3: (1, 0)},
    0.5: {0: (1, 2), 3: (1, 0)},
}
"""Margin → prompt → places of its best and its worst answer."""


def check_round_pairs(answer: Callable[..., Any]) -> None:
    """`answer(scores, margin)`, scores (P, K) → (prompt, chosen, rejected) where best and worst differ by more."""
    for margin, wanted in _PAIRS.items():
        given = call(answer, _SCORES.copy(), margin)
        if not isinstance(given, list | tuple | np.ndarray):
            raise NotYet(f"Your function gave {given!r}; return a list of (prompt, chosen, rejected).")
        found = {}
        for pair in given:
            prompt, *places = (int(as_number(one, "a place")) for one in as_parts(pair, 3, "three places for a pair"))
            if prompt in found:
                raise NotYet(f"Prompt {prompt} gives two pairs; best with worst makes one at most.")
            found[prompt] = tuple(places)
        if 1 in found:
            raise NotYet("The answers to prompt 1 all have the score 3.0, and you made a pair of them. A tie teaches "
                         "nothing: it says which answer to prefer where there is nothing to prefer.")  # fmt: skip
        if 2 in found and 2 not in wanted:
            raise NotYet(f"Prompt 2's scores lie {np.ptp(_SCORES[2]):.1f} apart, and the margin is {margin}: no pair.")
        if missing := sorted(set(wanted) - set(found)):
            raise NotYet(f"At a margin of {margin} you make no pair of prompt {missing[0]}, whose scores are "
                         f"{_SCORES[missing[0]].tolist()}.")  # fmt: skip
        for prompt, (chosen, rejected) in found.items():
            own = _SCORES[prompt]
            if not {chosen, rejected} <= set(range(len(own))):
                raise NotYet(f"Prompt {prompt} has {len(own)} answers, from 0, and you take {chosen} and {rejected}.")
            if own[chosen] < own[rejected]:
                raise NotYet(f"For prompt {prompt} you choose a score of {own[chosen]} over {own[rejected]}. The "
                             "higher one is the better one.")  # fmt: skip
            if own[chosen] != own.max() or own[rejected] != own.min():
                raise NotYet(f"For prompt {prompt} you pair {own[chosen]} with {own[rejected]}; its scores are "
                             f"{own.tolist()}.")  # fmt: skip
    right("scores become pairs by comparing answers to the same prompt; a prompt whose answers tie gives none")


def check_mixed_share(answer: Callable[..., Any]) -> None:
    """`answer(chances, num_answers)`, chances of success (P,) → expected share of prompts with both outcomes."""
    chances = np.array([0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
    share = lambda p, k: float(np.mean(1 - p**k - (1 - p) ** k))
    for num in (2, 4, 16):
        expect(call(answer, chances.copy(), num), share(chances, num), name=f"the share with {num} answers", instead={
            "That is the share with a success among the answers. A prompt whose answers all succeed is not mixed.":
                np.mean(1 - (1 - chances) ** num),
            "That is the share with a failure among the answers. A prompt whose answers all fail is not mixed.":
                np.mean(1 - chances**num),
            "That is the formula at the mean chance. An easy and a hard prompt are not two middling ones: take the "
            "mean last.": share(chances.mean(keepdims=True), num),
            "That is the sum over prompts. A share is their mean.": share(chances, num) * len(chances),
            "That is the share of prompts that teach nothing; you want the others.": 1 - share(chances, num),
        }, otherwise="What is the chance that all answers succeed, and that all of them fail?")  # fmt: skip
    right("more answers make more prompts teach, but not those that always succeed or never do; for these no sampling "
          "makes a pair")  # fmt: skip


class _Model:
    """Something that answers; nothing of it is trained."""

    def __init__(self, name: str) -> None:
        self.name = name


_ROWS = ("mixed", "tied", "other")
_WORTH = {"policy mixed": (1.0, 3.0, 2.0), "policy tied": (2.0, 2.0, 2.0), "policy other": (0.0, -1.0, 0.5)}


def check_round(answer: Callable[..., Any]) -> None:
    """`answer(policy, start, rows, sample, judge, learn)` → the round's pairs (row, chosen, rejected), once learnt.

    `sample(model, rows)` gives lists of answers, `judge(row, answers)` their scores, `learn(policy, pairs, reference)`
    trains.
    """
    policy, start = _Model("policy"), _Model("start")
    learnt: list[tuple[Any, list[Any], Any]] = []
    sample = lambda model, rows: [[f"{model.name} {row} {i}" for i in range(3)] for row in rows]
    judge = lambda row, answers: [_WORTH[f"policy {row}"][int(text[-1])] for text in answers]
    learn = lambda policy, pairs, reference: learnt.append((policy, list(pairs), reference))
    pairs = list(call(answer, policy, start, list(_ROWS), sample, judge, learn))
    if len(learnt) != 1:
        raise NotYet(f"A round learns once, from all of its pairs; yours called `learn` {len(learnt)} times.")
    trained, taught, reference = learnt[0]
    if trained is not policy:
        raise NotYet("Your round trains another model than the policy.")
    if any("start" in text for _, *texts in taught for text in texts):
        raise NotYet("The answers are those of the model before training, in every round: this is offline DPO. Whose "
                     "answers should a round look at?")  # fmt: skip
    if reference is not start:
        raise NotYet("The policy is measured against itself: every log-ratio is 0, and nothing holds it near to where "
                     "it began. Which model should not move?")  # fmt: skip
    if any(row == "tied" for row, *_ in taught):
        raise NotYet("A prompt whose answers all have the same score gave a pair. What is there to prefer?")
    if taught != [("mixed", "policy mixed 1", "policy mixed 0"), ("other", "policy other 2", "policy other 1")]:
        raise NotYet(f"The pairs are {taught}; take the best answer with the worst, in the order of the rows.")
    if pairs != taught:
        raise NotYet(f"You learn from {len(taught)} pairs and return {len(pairs)} others; return those learnt from.")
    right("a round asks the policy that is trained, compares it with one that is not, and leaves out what the judge "
          "can't tell apart")  # fmt: skip
