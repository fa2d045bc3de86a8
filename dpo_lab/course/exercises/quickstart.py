"""Checks of notebook 00: noise in labels, the loss before the first step, and what accuracy and margin count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from dpo_lab.course.exercises.checking import NotYet, as_array, as_number, as_parts, call, close, expect, right

_REWARDS = ((3.0, 1.0), (0.5, 2.0), (1.0, 1.0), (2.0, -1.0), (-0.5, 1.5), (3.0, 2.9), (1.0, 0.0), (2.0, 1.0))


def check_share_of_wrong_labels(share_of_wrong_labels: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
    """`share_of_wrong_labels(rows)`: the share of rows whose chosen answer has the lower true reward."""
    rows = [{"reward_chosen": chosen, "reward_rejected": rejected} for chosen, rejected in _REWARDS]
    found = call(share_of_wrong_labels, rows)
    num = len(rows)
    expect(found, 2 / num, name="The share for eight made-up rows", instead={
        "That is the share of labels that are right. Which way round is the comparison?": 5 / num,
        "That counts a tie as wrong, too. Is a chosen answer as good as the rejected one a wrong label?": 3 / num,
        "That is a number of rows; a share lies between 0 and 1.": 2.0,
        "That is all but the wrong ones. Which way round is the comparison?": 6 / num,
    }, otherwise="Compare reward_chosen with reward_rejected in each row, and divide by the number "
                 "of rows.")  # fmt: skip
    alone = as_number(call(share_of_wrong_labels, rows[:2]), "The share for two of the rows")
    if not close(alone, 0.5):
        raise NotYet(f"For two rows of which one is wrong the share is {alone:.4g}. Do you divide by len(rows)?")
    right("a wrong label pulls the wrong way, and DPO cannot tell; here the right ones outweigh them by far")


def check_starting_loss(starting_loss: Any) -> None:
    """The DPO loss of any pair before the first step, with four digits after the decimal point: −log σ(0)."""
    value = as_number(starting_loss, "The starting loss")
    expect(value, math.log(2), name="The starting loss", rtol=0, atol=6e-4, instead={
        "The loss would be 0 if the policy were already sure. Before the first step it is the reference.": 0.0,
        "That is σ(0), a probability. The loss is minus its logarithm.": 0.5,
        "That is log σ(0). A loss of this form is never negative.": -math.log(2),
        "That is a logarithm to base 10; the loss uses the natural one.": math.log10(2),
        "That is a logarithm to base 2; the loss uses the natural one.": 1.0,
    }, otherwise="Policy and reference agree at first. What is the gap then, and what is σ of it?")  # fmt: skip
    if not close(value, math.log(2), rtol=0, atol=5e-5):
        raise NotYet(f"The starting loss is {value:g}: near, but not right in all four digits after the decimal point.")
    right("every run of plain DPO starts at log 2, whatever β, model and data; another start means a wrong reference")


def check_accuracy_and_margin(accuracy_and_margin: Callable[[Sequence[float], Sequence[float]], Any]) -> None:
    """`accuracy_and_margin(chosen, rejected)`: the share ranked right, ties as half, and the mean difference."""
    chosen, rejected = [0.4, -0.3, -1.0, 0.0, 0.2], [0.1, -0.9, -0.5, 0.0, -0.4]
    found = call(accuracy_and_margin, chosen, rejected)
    accuracy, margin = as_parts(found, 2, "two numbers, accuracy and margin")
    expect(as_array(accuracy, "The accuracy"), 0.7, name="The accuracy", instead={
        "A tie, as before the first step, counts as half right; yours counts for nothing.": 0.6,
        "A tie, as before the first step, counts as half right; yours counts as right.": 0.8,
        "That asks whether the chosen reward is positive. Compare the two rewards of a pair.": 0.4,
        "That is the share ranked wrong. Which way round is the comparison?": 0.3,
    }, otherwise="Count the pairs whose chosen reward is the larger, half of the ties, and divide by all.")  # fmt: skip
    expect(as_array(margin, "The margin"), 0.2, name="The margin", instead={
        "The sign is flipped: the margin is positive where the chosen answer leads.": -0.2,
        "That is a sum; the margin of a batch is the mean over its pairs.": 1.0,
        "That is the mean distance, without signs. A pair ranked wrong counts negative.": 0.4,
    }, otherwise="Take chosen minus rejected in each pair, then the mean.")  # fmt: skip
    right("both rewards may be negative while accuracy and margin are good: only the difference counts")
