"""The checks of notebook 00: what they let pass, and what they say to the usual mistakes."""

from __future__ import annotations

import math
import pkgutil
from importlib import import_module

import pytest
import torch

from dpo_lab.course.exercises import (
    NotYet,
    check_accuracy_and_margin,
    check_share_of_wrong_labels,
    check_starting_loss,
)


def share(rows):
    return sum(row["reward_chosen"] < row["reward_rejected"] for row in rows) / len(rows)


def accuracy_and_margin(chosen, rejected):
    gaps = torch.tensor(chosen) - torch.tensor(rejected)
    return ((gaps > 0).float() + (gaps == 0).float() / 2).mean(), gaps.mean()


def test_right_answers_pass_and_say_what_they_show(capsys):
    check_share_of_wrong_labels(share)
    check_starting_loss(math.log(2))
    check_starting_loss(0.6931)
    check_starting_loss(torch.tensor(0.6931))
    check_accuracy_and_margin(accuracy_and_margin)
    assert all(line.startswith("Right: ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda rows: 1 - share(rows), "all but the wrong"),
        (
            lambda rows: sum(r["reward_chosen"] > r["reward_rejected"] for r in rows) / len(rows),
            "labels that are right",
        ),
        (lambda rows: sum(r["reward_chosen"] <= r["reward_rejected"] for r in rows) / len(rows), "tie"),
        (lambda rows: sum(r["reward_chosen"] < r["reward_rejected"] for r in rows), "number of rows"),
        (lambda rows: 0.25, "divide by len"),
        (lambda rows: 0.17, "divide by the number"),
        (lambda rows: None, "returned nothing"),
        (lambda rows: rows["reward_chosen"], "TypeError"),
        (0.25, "function"),
    ],
)
def test_wrong_shares(answer, hint):
    with pytest.raises(NotYet, match=hint):
        check_share_of_wrong_labels(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0, "already sure"), (0.5, "a probability"), (-math.log(2), "never negative"), (math.log10(2), "base 10"),
        (1.0, "base 2"), (0.6, "agree at first"), (..., "isn't there"), (None, "isn't there"), (math.inf, "finite"),
        ("log 2", "numbers"), (0.693, "all four digits"), ([0.69, 0.69], "one number"),
    ],
)  # fmt: skip
def test_wrong_starting_losses(answer, hint):
    with pytest.raises(NotYet, match=hint):
        check_starting_loss(answer)


def changed(accuracy=None, margin=None):
    def answer(chosen, rejected):
        gaps = torch.tensor(chosen) - torch.tensor(rejected)
        good = accuracy_and_margin(chosen, rejected)
        return (accuracy(gaps) if accuracy else good[0]), (margin(gaps) if margin else good[1])

    return answer


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (changed(accuracy=lambda g: (g > 0).float().mean()), "counts for nothing"),
        (changed(accuracy=lambda g: (g >= 0).float().mean()), "counts as right"),
        (changed(accuracy=lambda g: 1 - ((g > 0).float() + (g == 0).float() / 2).mean()), "ranked wrong"),
        (lambda c, r: (sum(x > 0 for x in c) / len(c), 0.2), "is positive"),
        (changed(margin=lambda g: -g.mean()), "sign is flipped"),
        (changed(margin=lambda g: g.sum()), "a sum"),
        (changed(margin=lambda g: g.abs().mean()), "without signs"),
        (changed(margin=lambda g: g), "shape"),
        (lambda c, r: 0.7, "two numbers"),
    ],
)
def test_wrong_accuracies_and_margins(answer, hint):
    with pytest.raises(NotYet, match=hint):
        check_accuracy_and_margin(answer)


def test_an_empty_answer_is_told_from_a_wrong_one():
    def share_of_wrong_labels(rows):
        raise NotImplementedError

    with pytest.raises(NotYet, match="still empty"):
        check_share_of_wrong_labels(share_of_wrong_labels)


def test_every_name_that_is_offered_exists_and_no_check_is_forgotten():
    import dpo_lab.course.exercises as exercises

    offered = set(dir(exercises))
    assert all(getattr(exercises, name).__name__ == name for name in offered)
    for _, room, _ in pkgutil.iter_modules(exercises.__path__):
        module = import_module(f"{exercises.__name__}.{room}")
        own = {n for n in vars(module) if n.startswith("check_") and getattr(module, n).__module__ == module.__name__}
        assert own <= offered, f"dpo_lab.course.exercises doesn't offer {sorted(own - offered)} of {room}"
