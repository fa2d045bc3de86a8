"""Checks for the notebook on labels of one's own: a log with undo, kappa, sides, and how many comparisons it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from dpo_lab.course.exercises.checking import NotYet, as_number, call, expect, right
from dpo_lab.workbench.labels.two_books import cohen_kappa


def check_standing_choices(answer: Callable[..., Any]) -> None:
    """`answer(events)` → {question: choice} of the choices that still stand, from the lines of a book."""
    chose = lambda question, choice: {"kind": "choice", "question": question, "choice": choice}
    undo = lambda question: {"kind": "undo", "question": question}
    cases = [
        ("nothing is undone", [chose(0, "left"), chose(1, "tie"), chose(2, "skip")], {0: "left", 1: "tie", 2: "skip"},
         "Every choice stands, ties and skips too: whoever exports decides what becomes of them."),
        ("the last choice is undone and made anew", [chose(0, "left"), chose(1, "left"), undo(1), chose(1, "right")],
         {0: "left", 1: "right"}, "The later choice holds."),
        ("the last choice is undone and the session ends", [chose(0, "left"), chose(1, "left"), undo(1)], {0: "left"},
         "An undo without another choice leaves the question open: it isn't enough to take the latest choice."),
        ("two choices are undone, one after the other", [chose(0, "tie"), chose(1, "left"), undo(1), undo(0)], {},
         "Each undo takes one choice back."),
        ("a choice is undone twice", [chose(0, "left"), undo(0), chose(0, "right"), undo(0), chose(0, "tie")],
         {0: "tie"}, "An undo takes back the choice before it, and none of those after it."),
    ]  # fmt: skip
    for case, events, expected, advice in cases:
        before = [dict(event) for event in events]
        found = call(answer, events)
        if events != before:
            raise NotYet(f"Where {case}, your function changed the events themselves. A log is only read.")
        if not isinstance(found, dict):
            raise NotYet(f"Your function gave {found!r}; return a dict from question to choice.")
        if found != expected:
            raise NotYet(f"Where {case}, your answer is {found}. {advice}")
    right("a file that is only added to can still be undone, and tells how the labels came about")


def check_kappa(answer: Callable[..., Any]) -> None:
    """`answer(table)` → Cohen's kappa of a square table of counts, one labeller's choices by the other's."""
    tables = [[[20, 5], [10, 15]], [[40, 9, 1], [6, 30, 4], [3, 2, 5]], [[0, 12], [8, 0]], [[45, 5], [5, 5]]]
    for table in tables:
        total, size = sum(map(sum, table)), len(table)
        agreed = sum(table[i][i] for i in range(size)) / total
        rows = [sum(row) / total for row in table]
        columns = [sum(row[i] for row in table) / total for i in range(size)]
        chance = sum(r * c for r, c in zip(rows, columns, strict=True))
        scaled = lambda by_chance, agreed=agreed: (agreed - by_chance) / (1 - by_chance)
        found = as_number(call(answer, table), "kappa")
        expect(found, cohen_kappa(table), name=f"kappa of {table}", instead={
            "That is the raw agreement p_o. How much of it would two people reach who don't look?": agreed,
            "That is the agreement by chance p_e; kappa puts the raw one in relation to it.": chance,
            "Chance isn't one in the number of categories: each labeller has habits, the row and column sums.":
                scaled(1 / size),
            "The habits of both labellers enter p_e: a row sum times a column sum.": scaled(sum(r * r for r in rows)),
            "Does the column's labeller have the same habits as the row's? p_e needs both.":
                scaled(sum(c * c for c in columns)),
            "Divide by what was left to agree on beyond chance.": agreed - chance,
            "The denominator is 1 − p_e.": (agreed - chance) / chance if chance else math.inf,
        }, otherwise="(p_o − p_e)/(1 − p_e), with p_e the sum over categories of row share times "
                     "column share.")  # fmt: skip
    right("80% raw agreement can be a kappa of 0: where one answer is nearly always right, agreeing on it is cheap")


def check_sides(answer: Callable[..., Any]) -> None:
    """`answer(num, seed)` → for each of `num` questions the answer that stands on the left, 0 or 1."""
    num = 200
    sides = {seed: _sides(answer, num, seed) for seed in range(6)}
    again = _sides(answer, num, 3)
    if again != sides[3]:
        raise NotYet("Called twice with seed 3, your function gave different sides: nobody could go on with a session "
                     "that was interrupted. Draw from random.Random(seed), and from nothing else.")  # fmt: skip
    for seed, found in sides.items():
        first = found.count(0)
        if first in (0, num):
            raise NotYet(
                f"With seed {seed} answer {found[0]} stands on the left in all {num} questions: this is the planted "
                "bug. How often is a generator made, and how often is it asked?"
            )
        if not 0.35 * num <= first <= 0.65 * num:
            raise NotYet(f"With seed {seed} answer 0 stands on the left in {first} of {num} questions; about half is "
                         "fair, and exactly half is better still.")  # fmt: skip
        changes = sum(one != other for one, other in pairwise(found)) / (num - 1)
        if not 0.3 <= changes <= 0.7:
            raise NotYet(f"With seed {seed} the side changes after {changes:.0%} of the questions: a pattern that a "
                         "labeller may notice. Each question needs a draw of its own.")  # fmt: skip
    if len({tuple(found) for found in sides.values()}) < len(sides):
        raise NotYet("Different seeds give the same sides. Two labellers would be misled on the same questions, and "
                     "would agree for it: use the seed.")  # fmt: skip
    right("a pull to the left now costs a few random errors; before, it was counted as the better model")


def check_comparisons_to_tell(answer: Callable[..., Any]) -> None:
    """`answer(share)` → the fewest comparisons for which share ± 1.96·√(share(1−share)/n) leaves out one half."""
    for share in (0.6, 0.55, 0.75, 0.4):
        exact = lambda scale, share=share: scale * share * (1 - share) / (share - 0.5) ** 2
        z2, fewest = 1.96**2, math.ceil(exact(1.96**2))
        found = as_number(call(answer, share), f"the comparisons for a share of {share:g}")
        if found == fewest - 1 or abs(found - exact(z2)) < 1e-6:
            raise NotYet(f"For a share of {share:g} your answer is {found:g}. Comparisons are whole, and fewer than "
                         "needed aren't enough: round up.")  # fmt: skip
        expect(found, fewest, name=f"the comparisons for a share of {share:g}", rtol=0, atol=1e-9, instead={
            "Solve for n, not for √n: the whole fraction is squared.": math.ceil(math.sqrt(exact(z2))),
            "That is for an interval of one standard error; 95% takes 1.96 of them.": math.ceil(exact(1)),
            "1.96 is squared too.": math.ceil(exact(1.96)),
            "Only half of the interval lies between the share and one half.": math.ceil(exact(4 * z2)),
            "The variance of one comparison is share·(1 − share).": math.ceil(z2 * share / (share - 0.5) ** 2),
        }, otherwise="Set 1.96·√(share(1−share)/n) equal to the distance from one half, and solve for n.")  # fmt: skip
    right("half the distance from one half costs four times the comparisons: close calls are dear")


def _sides(answer: Callable[..., Any], num: int, seed: int) -> list[int]:
    found = [int(side) for side in call(answer, num, seed)]
    if len(found) != num or not set(found) <= {0, 1}:
        raise NotYet(f"For {num} questions your function gave {len(found)} values, {sorted(set(found))[:4]}; return "
                     "one 0 or 1 for each.")  # fmt: skip
    return found
