"""Do two people choose alike? Cohen's kappa, and the questions on which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_lab.workbench.labels.book import LabelBook

CATEGORIES = ("answer 0", "answer 1", "tie")
Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Agreement:
    """How two labellers of the same questions compare. Questions that either skipped or left open are only counted."""

    who: tuple[str, str]
    table: tuple[tuple[int, ...], ...]
    """Questions by the first labeller's choice (rows) and the second's (columns): answer 0, answer 1, tie."""
    differ: tuple[int, ...]
    """Numbers of the questions on which they differ."""
    num_skipped: int
    num_open: int

    @property
    def num_both(self) -> int:
        """Questions that both decided."""
        return sum(map(sum, self.table))

    @property
    def share(self) -> float:
        """Raw agreement: the share of those questions on which both chose alike; nan where there are none."""
        return _agreed(self.table)

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: see `cohen_kappa`."""
        return cohen_kappa(self.table)

    @property
    def kappa_error(self) -> float:
        """Standard error of kappa, √(p_o(1−p_o)/n) / (1−p_e), Cohen 1960."""
        chance = _by_chance(self.table)
        return math.sqrt(self.share * (1 - self.share) / self.num_both) / (1 - chance) if chance < 1 else math.nan

    def summary(self) -> str:
        """The numbers in words."""
        first, second = self.who
        if not self.num_both:
            return (
                f"{first} and {second} have decided no question both; {self.num_skipped} skipped, {self.num_open} open"
            )
        same = self.num_both - len(self.differ)
        return (
            f"{first} and {second} agree on {same} of {self.num_both} questions ({self.share:.0%}), Cohen's kappa "
            f"{self.kappa:.2f} ± {self.kappa_error:.2f}; {self.num_skipped} skipped by either, {self.num_open} open"
        )


def agreement(first: LabelBook, second: LabelBook) -> Agreement:
    """Compare two books of the same task, answer by answer: the sides on which they were shown play no part."""
    if first.task != second.task:
        raise ValueError(
            f"the books of {first.who!r} ({len(first.questions)} questions) and {second.who!r} "
            f"({len(second.questions)}) are of different tasks, so question n of one isn't question n of the other; "
            "give both the same rows in the same order"
        )
    counts = [[0] * len(CATEGORIES) for _ in CATEGORIES]
    differ, num_skipped, num_open = [], 0, 0
    for number in range(len(first.questions)):
        one, other = first.choice_at(number), second.choice_at(number)
        if one is None or other is None:
            num_open += 1
        elif "skip" in (one.choice, other.choice):
            num_skipped += 1
        else:
            row, column = (2 if choice.winner is None else choice.winner for choice in (one, other))
            counts[row][column] += 1
            if row != column:
                differ.append(number)
    return Agreement((first.who, second.who), tuple(map(tuple, counts)), tuple(differ), num_skipped, num_open)


def cohen_kappa(table: Table) -> float:
    """(p_o − p_e) / (1 − p_e): agreement beyond what two people with these habits would reach by chance.

    p_o is the share on the diagonal; p_e the share that independent choices with the same row and column sums would
    put there. 1 is full agreement, 0 what chance gives, below 0 less than chance. nan where there are no questions,
    or where both always chose the same one category (p_e = 1): chance explains everything then.
    Cohen 1960, Educational and Psychological Measurement 20, 37–46, Eq. 1.
    """
    if any(len(row) != len(table) for row in table):
        raise ValueError(f"the table of two labellers is square, got rows of {[len(row) for row in table]} columns")
    chance = _by_chance(table)
    return (_agreed(table) - chance) / (1 - chance) if chance < 1 else math.nan


def _agreed(table: Table) -> float:
    """The share on the diagonal."""
    counts = np.asarray(table)
    return float(np.trace(counts) / counts.sum()) if counts.sum() else math.nan


def _by_chance(table: Table) -> float:
    """The share that independent choices with these row and column sums would put on the diagonal."""
    counts = np.asarray(table)
    return float(counts.sum(1) @ counts.sum(0) / counts.sum() ** 2) if counts.sum() else math.nan
