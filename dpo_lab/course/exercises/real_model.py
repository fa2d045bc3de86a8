"""Checks for the notebook on a real model: a guarded demand, a pair near in length, a judge asked in both orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, as_truth, call, right
from dpo_lab.worlds.instructions.text import words

_ABOUT = ("tea", "leaf", "leaves", "cup", "drink", "water")
# A text, whether a guarded "at most 20 words" is met, and what to say to a function that says otherwise.
_TEXTS = (
    ("Tea is made from the leaves of a plant, and people drink it hot.", True, "It is short, and it answers."),
    ("It comes from leaves, grows on hills and is loved by many people.", True, "It speaks of leaves, one of the "
     "topic's words; the topic's own name is not needed."),
    ("", False, "It is empty: no demand is met by saying nothing."),
    ("Tea.", False, "One word keeps every limit, and answers nothing."),
    ("It is very nice and most people in the world like it a lot.", False, "Nothing in it is about the topic."),
    ("Tea is a hot drink. Tea is a hot drink. Tea is a hot drink.", False, "It says one sentence three times."),
    ("TEA IS A HOT DRINK. tea is a hot drink. Nice tea.", False, "The same sentence in other letters is the same "
     "sentence."),
    ("Tea is a drink that is made of leaves and that people in many places of the world drink in the morning and in "
     "the afternoon with milk or sugar.", False, "It answers, and has more than 20 words: the demand itself fails."),
)  # fmt: skip


def _is_short(text: str) -> bool:
    return len(words(text)) <= 20


def check_guarded_demand(answer: Callable[..., Any]) -> None:
    """`answer(passes, text, about)` → the demand's own check passes, and the text also answers: 8 words, the topic, no
    sentence twice."""
    for text, is_met, why in _TEXTS:
        given = as_truth(call(answer, _is_short, text, _ABOUT), "your function")
        if given != is_met:
            raise NotYet(f"Your function says {given} to {text!r}, at most 20 words about tea. {why}")
    if as_truth(call(answer, lambda text: False, _TEXTS[0][0], _ABOUT), "your function"):
        raise NotYet("Your function says True where the demand's own check says False: it must call `passes(text)`.")
    right("a demand counts where the text also answers; without the guards the shortest text is the best one, and a "
          "policy finds it")  # fmt: skip


_PAIRS = (
    (["a b c d e f g h", "a b", "a b c d"], ["a b c d e", "a"], (2, 0)),
    (["a b c", "a b c d e f g h i j"], ["a b c d e f g h i", "a b c d e f"], (1, 0)),
    (["extraordinarily unbelievable", "a b c"], ["one more text", "abcde"], (1, 0)),
)


def check_nearest_pair(answer: Callable[..., Any]) -> None:
    """`answer(good, bad)`, two lists of texts → the places of the two that are nearest in their number of words."""
    for good, bad, wanted in _PAIRS:
        parts = as_parts(call(answer, list(good), list(bad)), 2, "two places, one in `good` and one in `bad`")
        found = int(as_number(parts[0], "a place")), int(as_number(parts[1], "a place"))
        length = lambda text: len(text.split())
        gaps = {(i, j): abs(length(a) - length(b)) for i, a in enumerate(good) for j, b in enumerate(bad)}
        if found not in gaps:
            raise NotYet(
                f"Your places are {found}, with {len(good)} good and {len(bad)} bad texts. Good first, from 0."
            )
        longest = max(gaps, key=lambda place: length(good[place[0]]) - length(bad[place[1]]))
        if gaps[found] != gaps[wanted]:
            hint = ("The farthest apart is what teaches length." if found == longest else
                    "Take |words of the good − words of the bad| of every combination, and the smallest.")  # fmt: skip
            raise NotYet(
                f"For {good} and {bad} you take {found}, {gaps[found]} words apart; {gaps[wanted]} can be had. {hint}"
            )
    right("a pair whose two answers are as long as each other says nothing about length, so nothing about length is "
          "learnt from it")  # fmt: skip


def check_both_orders(answer: Callable[..., Any]) -> None:
    """`answer(judge, prompts, ours, theirs)` → wins plus half of the rest, as a share; each pair in both orders."""
    prompts = ["p", "q", "r", "s"]
    ours, theirs = ["aaaa", "b", "cc", "dddd"], ["a", "bbb", "cc", "d"]
    longer = lambda prompt, first, second: 0.5 if len(first) == len(second) else float(len(first) > len(second))
    first = lambda prompt, one, other: 1.0
    second = lambda prompt, one, other: 0.0
    sticky = lambda prompt, one, other: 1.0 if prompt in "pq" else longer(prompt, one, other)
    cases = (
        (longer, 0.625, "A judge that likes the longer answer: two wins, a loss, a tie."),
        (first, 0.5, "A judge that always takes the first answer says nothing about the models: the orders disagree "
         "on every prompt."),
        (second, 0.5, "A judge that always takes the second answer: the orders disagree on every prompt."),
        (sticky, 0.625, "On two prompts it takes whichever is first: disagreement, half a win each. Then a tie, then a "
         "win."),
    )  # fmt: skip
    for judge, wanted, what in cases:
        found = as_number(call(answer, judge, list(prompts), list(ours), list(theirs)), "your rate")
        if abs(found - wanted) > 1e-9:
            hint = ("You ask in one order only." if abs(found - 1.0) < 1e-9 or found == 0 else
                    "A win needs both orders; all else but a loss in both is half.")  # fmt: skip
            raise NotYet(f"{what} The rate is {wanted}, and yours is {found:.3f}. {hint}")
    right("a preference counts where both orders agree; what is left of a judge that looks at places is a half")
