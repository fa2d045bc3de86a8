"""The exercises on preferences: right answers pass, wrong and almost right ones are told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpo_lab.course.exercises import (
    NotYet,
    check_bradley_terry_loss,
    check_comparisons_needed,
    check_preference_probability,
    check_reward_gap,
)


def nll(gap):
    return -F.logsigmoid(gap)


def test_right_answers_pass_and_say_what_they_show(capsys):
    check_preference_probability(lambda w, lo: torch.sigmoid(w - lo))
    check_preference_probability(lambda w, lo: torch.softmax(torch.stack([w, lo]), 0)[0])
    check_bradley_terry_loss(lambda r, w, lo: nll(r[w] - r[lo]).mean())
    check_bradley_terry_loss(lambda r, w, lo: torch.log1p(torch.exp(r[lo] - r[w])).mean())
    check_reward_gap(lambda p: math.log(p / (1 - p)))
    check_reward_gap(lambda p: torch.tensor(p).double().logit())
    check_comparisons_needed(40_000)
    check_comparisons_needed(400 * 0.2**2 / 0.02**2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("Right: ") for line in lines)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w, lo: torch.sigmoid(lo - w), "chance of the other answer"),
        (lambda w, lo: w - lo, "That is the gap itself"),
        (lambda w, lo: w / (w + lo), "Divide the strengths"),
        (lambda w, lo: w.exp() / lo.exp(), "only the odds"),
        (lambda w, lo: F.logsigmoid(w - lo), "logarithm of the probability"),
        (lambda w, lo: torch.sigmoid(w + lo), "adds the rewards"),
        (lambda w, lo: torch.sigmoid((w - lo) / 2), "depend on the difference only"),
        (lambda w, lo: w.exp() / (w.exp() + lo.exp()), "exp\\(900\\) overflows"),
        (lambda w, lo: torch.sigmoid(w - lo).mean(), "shape"),
        (lambda w, lo: None, "returned nothing"),
        (0.5, "needs a function"),
    ],
)
def test_the_probability_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_preference_probability(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r, w, lo: nll(r[w] - r[lo]).sum(), "That is the sum"),
        (lambda r, w, lo: -nll(r[w] - r[lo]).mean(), "Its sign is wrong"),
        (lambda r, w, lo: nll(r[lo] - r[w]).mean(), "wrong way round"),
        (lambda r, w, lo: (r[w] - r[lo]).sigmoid().mean(), "mean probability"),
        (lambda r, w, lo: -(r[w] - r[lo]).sigmoid().mean().log(), "logarithm of the mean"),
        (lambda r, w, lo: (r[lo] - r[w]).mean(), "without the logistic function"),
        (lambda r, w, lo: nll(r[w] - r[lo]), "one value per comparison"),
        (lambda r, w, lo: nll(r[w] - r[lo]).mean().item(), "no gradient flows"),
        (lambda r, w, lo: nll(r[w] - r[lo]).mean().detach(), "no gradient flows"),
        (lambda r, w, lo: nll(2 * (r[w] - r[lo])).mean(), "Take −log σ"),
    ],
)
def test_the_likelihood_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_bradley_terry_loss(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p: math.log((1 - p) / p), "Its sign is wrong"),
        (lambda p: 1 / (1 + math.exp(-p)), "That is σ\\(share\\)"),
        (lambda p: p / (1 - p), "That is the odds"),
        (lambda p: math.log(p), "never positive"),
        (lambda p: math.log10(p / (1 - p)), "base 10"),
        (lambda p: math.log2(p / (1 - p)), "base 2"),
        (lambda p: 2 * p - 1, "Solve share"),
    ],
)
def test_the_gap_behind_a_share_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_reward_gap(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (4_000, "fell as 1/n"),
        (400 * math.sqrt(10), "√10 times"),
        (39_600, "in all"),
        (100, "the factor"),
        (123, "c/√n"),
        (..., "isn't there yet"),
    ],
)
def test_the_price_of_a_digit_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_comparisons_needed(answer)


def test_no_message_tells_the_solution():
    for check, wrong, secret in (
        (check_comparisons_needed, 4_000, "40"),
        (check_reward_gap, lambda p: p, f"{np.log(0.84 / 0.16):.2f}"),
    ):
        with pytest.raises(NotYet) as told:
            check(wrong)
        assert secret not in str(told.value).replace("4000", "").replace("400", "")
